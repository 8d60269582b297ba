"""Models at work: labels for new images, and the network itself."""

from typing import TYPE_CHECKING

from bcl_ray.display.run import follower
from bcl_ray.display.terminal import console, quiet, silent_core

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
    last: bool = False,
    split: str | None = None,
    resume: bool = False,
    gpus: int | None = None,
    cpus: int | None = None,
) -> "Summary":
    """Label images, and write tables of it.

    Args:
        model: a run, its best checkpoint; a checkpoint's folder; or models:/NAME@ALIAS.
        images: folder or URI of images, at any depth, or of shards.
        output: folder or URI for the tables.
        top: classes to name of each image.
        embeddings: the backbone's embeddings too.
        csv: tables as CSV too.
        batch_size: images that the network takes at once.
        part_size: images per file of the result, all that a kill costs.
        runs: folder or URI that holds runs.
        last: a run's last checkpoint instead of its best.
        split: of shards; None: the one that the model's run evaluates on.
        resume: go on with what `output` holds, if anything.
        gpus: at most, 0 for CPUs; None: all that there are, or can come.
        cpus: at most, where no GPU is used; likewise.

    Raises:
        ValueError: something that cannot work; nothing was written.
        bcl_ray.use.predict.pool.PredictionError: it began and failed.
        KeyboardInterrupt: Ctrl-C; what is done stays, and `resume` goes on.
    """
    quiet()
    from bcl_ray.use.models import find_checkpoint

    find_checkpoint(model, runs, last=last)  # before Ray is imported, which takes seconds
    from bcl_ray.use.predict.job import predict as label
    from bcl_ray.use.predict.request import PredictionOptions

    try:
        with silent_core(), follower(console()) as follow:
            return label(
                model,
                images,
                output,
                PredictionOptions(top, embeddings, csv, batch_size, part_size),
                root=runs,
                last=last,
                split=split,
                resume=resume,
                gpus=gpus,
                cpus=cpus,
                follow=follow,
            )
    except KeyboardInterrupt:
        stopped = "stopped; what is done stays: go on with --resume"
        raise KeyboardInterrupt(stopped) from None


def load_model(name: str, *, runs: str = "runs", last: bool = False) -> "Model":
    """The network of a trained model, for one's own code.

        model = bcl_ray.load_model("first")
        model.label([PIL.Image.open("photo.jpg")])     # class names and probabilities

    Args:
        name: a run, its best checkpoint; a checkpoint's folder; or models:/NAME@ALIAS.
        runs: folder or URI that holds runs.
        last: a run's last checkpoint instead of its best.

    Raises:
        ValueError: there is no such model.
    """
    from bcl_ray.use.loaded import Model
    from bcl_ray.use.models import open_model

    return Model(open_model(name, runs, last=last))
