"""Write a model to a file for other programs, and check that the file gives the same logits.

All formats (`formats`) map RGB images (N, 3, H, W), float32 in [0, 1], to logits (N, K), for any
N. All carry metadata as strings: class_names, class_counts, temperature and more, see `metadata`.
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

from bcl_ray.experiment.options import ModelConfig
from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import Classifier, TwoBranch
from bcl_ray.storage import files
from bcl_ray.use.formats import format_of
from bcl_ray.use.models import OpenModel

# Relative to the largest logit. An assumption: another order of float32 additions gives about 1e-6.
TOLERANCE = 1e-4
PROGRAM_FILE = "bcl_ray.json"  # in a .pt2 file, the metadata

Network = Callable[[Tensor], Tensor]  # images to logits


@dataclass(frozen=True)
class Exported:
    """The size of an exported file, and how far its logits differ from the model's."""

    bytes: int
    images: int  # on which logits were compared
    difference: float  # largest absolute difference
    allowed: float  # largest difference that is accepted


def export(model: OpenModel, target: str) -> Exported:
    """Write a model to a file or URI, in the format of its suffix.

    The file is first written to a temporary folder, loaded again and compared with the model on
    synthetic images.

    Raises:
        ValueError: No format has this suffix, packages are missing, or the logits differ.
    """
    file_format = format_of(target)
    views = model.experiment.views
    network = model.network(torch.device("cpu")).to(memory_format=torch.contiguous_format)
    original = Classifier(network, views.mean, views.std).eval()
    images = sample_images(views.image_size)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"model{file_format.name}"
        with _suppressed_output():
            code(file_format.write)(original, metadata(model), file)
            difference, allowed = compare(original, code(file_format.load)(file), images)
        if not difference <= allowed:  # also for NaN
            raise UserError(
                f"{target} was not written: read back, its logits differ by up to "
                f"{difference:.2g}, and {allowed:.2g} is allowed; try another format"
            )
        with file.open("rb") as content, files.open_write(target) as sink:
            shutil.copyfileobj(content, sink)
        return Exported(file.stat().st_size, len(images), difference, allowed)


def metadata(model: OpenModel) -> dict[str, str]:
    """What a user of the weights needs to know, as strings; lists and objects as JSON."""
    views, state = model.experiment.views, model.state
    return {
        "format": "bcl_ray 1",
        "class_names": json.dumps(state.class_names, ensure_ascii=False),
        "class_counts": json.dumps(state.class_counts),
        "input": "RGB, float32 in [0, 1], (N, 3, image_size, image_size): of an image whose "
        "shorter side was resized to eval_resize (interpolation, antialiased), the centre",
        "image_size": str(views.image_size),
        "eval_resize": str(views.eval_resize),
        "interpolation": str(views.interpolation),
        "mean": json.dumps(views.mean),
        "std": json.dumps(views.std),
        "temperature": str(model.temperature or 1.0),
        "probabilities": "softmax(logits / temperature)",
        "network": model.experiment.model.model_dump_json(exclude={"weights"}),
        "checkpoint_sha256": model.sha256,
    }


def sample_images(size: int) -> Tensor:
    """Random images from coarse to fine, (16, 3, size, size) in [0, 1]; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(4, 3, n, n, generator=generator) for n in (2, 4, 16, size)]
    return torch.cat([functional.interpolate(images, (size, size)) for images in coarse])


@torch.no_grad()
def compare(original: Network, loaded: Network, images: Tensor) -> tuple[float, float]:
    """The largest difference of logits, in a batch and for a single image, and its limit."""
    expected = original(images)
    logits = torch.cat([loaded(images), loaded(images[:1])])
    difference = (logits - torch.cat([expected, expected[:1]])).abs().max().item()
    return difference, TOLERANCE * expected.abs().max().item()


def write_safetensors(model: Classifier, strings: Mapping[str, str], file: Path) -> None:
    """Write the weights by name."""
    from safetensors.torch import save_file  # noqa: PLC0415  only this format needs it

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, file, dict(strings))


def load_safetensors(file: Path) -> Network:
    """Build the network from a .safetensors file alone."""
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


def load_program(file: Path) -> Network:
    """Load a program of torch.export."""
    return torch.export.load(file).module()


def _program(model: Classifier, strings: Mapping[str, str]) -> torch.export.ExportedProgram:
    size = int(strings["image_size"])
    # Two images, because torch.export would fix the batch size if the example had one.
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
    onnx_model = program.model_proto
    onnx.helper.set_model_props(onnx_model, dict(strings))
    onnx.checker.check_model(onnx_model)
    onnx.save(onnx_model, file)


def load_onnx(file: Path) -> Network:
    """Load an ONNX model into ONNX Runtime, on a CPU."""
    import onnxruntime  # noqa: PLC0415  an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return run


@contextlib.contextmanager
def _suppressed_output() -> Iterator[None]:
    """Keep the progress messages of exporters off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
