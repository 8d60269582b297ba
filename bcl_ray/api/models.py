"""Use a trained model: label images with it, or load its network."""

from typing import TYPE_CHECKING

from bcl_ray.display.run import RunDisplay
from bcl_ray.display.terminal import console, quiet, silence_ray_core
from bcl_ray.runs.events import receiver

if TYPE_CHECKING:
    from bcl_ray.use.loaded import Model
    from bcl_ray.use.predict.outputs import Summary


def predict(
    model: str,
    images: str,
    output: str,
    *,
    top: int = 5,
    embeddings: bool = False,
    csv: bool = False,
    batch_size: int = 128,
    part_size: int = 4096,
    runs: str = "runs",
    last: bool | None = None,
    split: str | None = None,
    resume: bool = False,
    gpus: int | None = None,
    cpus: int | None = None,
) -> "Summary":
    """Label images and write the labels as tables.

    Args:
        model: A run; the folder of a checkpoint; or
            models:/NAME@ALIAS.
        images: Folder or URI of images, at any depth, or of shards.
        output: Folder or URI for the tables.
        top: Number of classes to write for each image.
        embeddings: Whether to write the backbone's embeddings too.
        csv: Whether to write the tables as CSV too.
        batch_size: Images per batch of the network.
        part_size: Images per file of the result; an interruption loses at most one part.
        runs: Folder or URI that holds runs.
        last: Whether to use a run's last checkpoint, or its best. None: the best if it was selected
            on validation data (data.validation_split), otherwise the last.
        split: Split of the shards; None for the one that the model's run evaluates on.
        resume: Whether to continue if `output` already has a part of the result.
        gpus: Largest number of GPUs, 0 to use CPUs; None for all that the cluster has or can add.
        cpus: Largest number of CPUs if no GPU is used; None likewise.

    Returns:
        Numbers of images, and mean probabilities, by shot group.

    Raises:
        ValueError: The prediction cannot work; nothing was written.
        bcl_ray.use.predict.pool.PredictionError: The prediction has started and failed.
        KeyboardInterrupt: Ctrl-C was pressed; `resume` continues.
    """
    quiet()
    from bcl_ray.use.models import open_model

    opened = open_model(model, runs, last=last)  # fails before Ray is imported, which takes seconds
    from bcl_ray.use.predict.job import predict as label
    from bcl_ray.use.predict.request import PredictionOptions

    try:
        with silence_ray_core(), receiver(RunDisplay(console())) as follow:
            return label(
                opened,
                images,
                output,
                PredictionOptions(top, embeddings, csv, batch_size, part_size),
                split=split,
                resume=resume,
                gpus=gpus,
                cpus=cpus,
                follow=follow,
            )
    except KeyboardInterrupt:
        message = "stopped; finished parts are kept: go on with --resume"
        raise KeyboardInterrupt(message) from None


def load_model(name: str, *, runs: str = "runs", last: bool | None = None) -> "Model":
    """Load the network of a trained model.

        model = bcl_ray.load_model("first")
        model.label([PIL.Image.open("photo.jpg")])     # class names and probabilities

    Args:
        name: A run; the folder of a checkpoint; or
            models:/NAME@ALIAS.
        runs: Folder or URI that holds runs.
        last: Whether to use a run's last checkpoint, or its best. None: the best if it was selected
            on validation data (data.validation_split), otherwise the last.

    Raises:
        ValueError: There is no such model.
    """
    from bcl_ray.use.loaded import Model
    from bcl_ray.use.models import open_model

    return Model(open_model(name, runs, last=last))
