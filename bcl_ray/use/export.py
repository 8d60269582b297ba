"""A trained model as a file that others load, compared with the model before it is done.

All formats (`formats`) take RGB images (N, 3, H, W), float32 in [0, 1], and give logits (N, K), for
any N. All carry strings by name: class_names, class_counts, temperature and more, see `about`.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bcl_ray.experiment.choices import code
from bcl_ray.experiment.options import ModelConfig
from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import Classifier, TwoBranch
from bcl_ray.storage import files
from bcl_ray.use.formats import format_of
from bcl_ray.use.models import OpenModel

TOLERANCE = 1e-4  # of the largest logit; an assumption: float32 in another order gives about 1e-6
PROGRAM_FILE = "bcl_ray.json"  # in a .pt2, the strings

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it fits.

    Args:
        bytes: of the file.
        images: that it was compared on.
        difference: largest of their logits from the original's; allowed: at most.
    """

    bytes: int
    images: int
    difference: float
    allowed: float


def export(model: OpenModel, target: str) -> Exported:
    """Write a model to a file or URI, in the format of its suffix.

    The file is loaded again and compared with the model on made-up images before it is put
    where it belongs.

    Raises:
        ValueError: another suffix, packages that are missing, or logits that differ.
    """
    form = format_of(target)
    views = model.experiment.views
    network = model.network(torch.device("cpu")).to(memory_format=torch.contiguous_format)
    original = Classifier(network, views.mean, views.std).eval()
    images = sample_images(views.image_size)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"model{Path(target).suffix}"
        with _silent():
            code(form.write)(original, about(model), file)
            difference, allowed = compare(original, code(form.load)(file), images)
        if not difference <= allowed:
            raise UserError(
                f"{target} was not written: read back, its logits differ by up to "
                f"{difference:.2g}, and {allowed:.2g} is allowed; try another format"
            )
        with file.open("rb") as content, files.open_write(target) as sink:
            shutil.copyfileobj(content, sink)
        return Exported(file.stat().st_size, len(images), difference, allowed)


def about(model: OpenModel) -> dict[str, str]:
    """What a user of the weights needs to know, as strings; lists and objects as JSON."""
    views, state = model.experiment.views, model.state
    return {
        "format": "bcl_ray 1",
        "class_names": json.dumps(state.class_names, ensure_ascii=False),
        "class_counts": json.dumps(state.class_counts),
        "input": "RGB, float32 in [0, 1], (N, 3, image_size, image_size): of an image whose "
        "shorter side was resized to eval_resize, the centre",
        "image_size": str(views.image_size),
        "eval_resize": str(views.eval_resize),
        "mean": json.dumps(views.mean),
        "std": json.dumps(views.std),
        "temperature": str(model.temperature or 1.0),
        "probabilities": "softmax(logits / temperature)",
        "network": model.experiment.model.model_dump_json(exclude={"weights"}),
        "checkpoint_sha256": model.sha256,
    }


def sample_images(size: int) -> Tensor:
    """Made-up images, from coarse to fine, (16, 3, size, size) in [0, 1]; always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(4, 3, n, n, generator=generator) for n in (2, 4, 16, size)]
    return torch.cat([functional.interpolate(images, (size, size)) for images in coarse])


@torch.no_grad()
def compare(original: Run, loaded: Run, images: Tensor) -> tuple[float, float]:
    """Largest difference of logits, for all images at once and for one, and what is allowed."""
    expected = original(images)
    found = torch.cat([loaded(images), loaded(images[:1])])
    difference = (found - torch.cat([expected, expected[:1]])).abs().max().item()
    return difference, TOLERANCE * expected.abs().max().item()


def write_safetensors(model: Classifier, strings: Mapping[str, str], file: Path) -> None:
    """Write weights by name."""
    from safetensors.torch import save_file  # noqa: PLC0415  as the other formats

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, file, dict(strings))


def load_safetensors(file: Path) -> Run:
    """Build the network again from such a file."""
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(file, "pt") as content:
        strings = content.metadata()
        weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    config = ModelConfig.model_validate_json(strings["network"])
    network = TwoBranch(config, len(json.loads(strings["class_names"])))
    mean, std = (json.loads(strings[name]) for name in ("mean", "std"))
    model = Classifier(network, mean, std).eval()
    model.load_state_dict(weights)
    return model


def write_program(model: Classifier, strings: Mapping[str, str], file: Path) -> None:
    """Write a program of torch.export."""
    extra = {PROGRAM_FILE: json.dumps(strings, ensure_ascii=False)}
    torch.export.save(_program(model, strings), file, extra_files=extra)


def load_program(file: Path) -> Run:
    """Load such a program."""
    return torch.export.load(file).module()


def _program(model: Classifier, strings: Mapping[str, str]) -> torch.export.ExportedProgram:
    size = int(strings["image_size"])
    # Two images: torch.export would take a batch of one for a batch that is always one.
    example = torch.zeros(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(model, (example,), dynamic_shapes={"images": {0: batch}})


def write_onnx(model: Classifier, strings: Mapping[str, str], file: Path) -> None:
    """Write an ONNX model."""
    import onnx  # noqa: PLC0415  an extra

    program = torch.onnx.export(
        _program(model, strings), input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    made = program.model_proto
    onnx.helper.set_model_props(made, dict(strings))
    onnx.checker.check_model(made)
    onnx.save(made, file)


def load_onnx(file: Path) -> Run:
    """Load such a model into ONNX Runtime, on a CPU."""
    import onnxruntime  # noqa: PLC0415  an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what exporters print of their progress."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
