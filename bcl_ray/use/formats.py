"""Kinds of file that a model is exported to, by suffix."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bcl_ray.experiment.choices import Choice, Code, Table
from bcl_ray.machine.errors import UserError


@dataclass(frozen=True)
class Format(Choice):
    """A kind of file; its name is the suffix."""

    write: Code
    """Called with (Classifier, strings, Path)."""
    load: Code
    """Called with a Path, it loads the file as somebody else would: images to logits."""
    packages: tuple[str, ...] = ()
    """That bcl_ray[onnx] installs."""


_EXPORT = "bcl_ray.use.export:"
FORMATS = Table(
    "FILE",
    Format(
        ".safetensors",
        "weights by name, for any library, with what rebuilds the network",
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
    """The format of a file's suffix.

    Raises:
        ValueError: there is none, or it needs packages that are not installed.
    """
    suffix = Path(target.partition("?")[0]).suffix
    if suffix not in FORMATS.names:
        raise UserError(f"FILE '{target}' must end in one of {', '.join(FORMATS.names)}")
    kind = FORMATS[suffix]
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"FILE '{target}' needs {', '.join(missing)}: pip install 'bcl-ray[onnx]'")
    return kind
