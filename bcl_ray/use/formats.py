"""The file formats of `export`, by suffix."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.experiment.table import Choice, Code, Table
from bcl_ray.machine.errors import UserError


@dataclass(frozen=True)
class Format(Choice):
    """A file format; its name is the suffix."""

    write: Code  # called with (Classifier, metadata, Path)
    load: Code  # called with a Path, returns a function from images to logits
    packages: tuple[str, ...] = ()  # that bcl_ray[onnx] installs


_EXPORT = "bcl_ray.use.export:"
FORMATS = Table(
    "FILE",
    Format(
        ".safetensors",
        "weights by name, for any library, with what is needed to rebuild the network",
        f"{_EXPORT}write_safetensors",
        f"{_EXPORT}load_safetensors",
    ),
    Format(
        ".pt2",
        "a program of torch.export, which runs without this package",
        f"{_EXPORT}write_program",
        f"{_EXPORT}load_program",
    ),
    Format(
        ".onnx",
        "for ONNX runtimes; needs bcl-ray[onnx]",
        f"{_EXPORT}write_onnx",
        f"{_EXPORT}load_onnx",
        ("onnx", "onnxruntime", "onnxscript"),
    ),
)


def format_of(target: str) -> Format:
    """The format that belongs to the suffix of a file's name.

    Raises:
        ValueError: No format has this suffix, or the format needs packages that are missing.
    """
    suffix = Path(target.partition("?")[0]).suffix
    if suffix not in FORMATS.names:
        raise UserError(f"FILE '{target}' must end in one of {', '.join(FORMATS.names)}")
    file_format = FORMATS[suffix]
    missing = [name for name in file_format.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"FILE '{target}' needs {', '.join(missing)}: pip install 'bcl-ray[onnx]'")
    return file_format
