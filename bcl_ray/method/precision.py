"""In what precision a network runs, and what is too delicate for less than float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# What each value of train.precision, but auto, means: the type of autocast, where it is on, and
# whether cuDNN multiplies float32 as TF32 in convolutions. Products of matrices, losses above all,
# are never TF32: similarities are divided by a temperature of 0.07, and so are errors of 10 bits.
MEANINGS = {
    "float32": (None, False),
    "tf32": (None, True),
    "bfloat16": (torch.bfloat16, False),
}


def chosen(precision: str, device: torch.device) -> str:
    """What train.precision comes to on a device: one of MEANINGS."""
    if precision != "auto":
        return precision
    # Older GPUs emulate bfloat16, which is slower than float32.
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass; sets for this process how float32 is multiplied.

    Args:
        precision: train.precision.
        device: where the network is.
    """
    kind, tf32 = MEANINGS[chosen(precision, device)]
    # torch's default for cuDNN is TF32. These are its older switches: after the newer ones
    # (fp32_precision), reading the older ones, as libraries do, raises an error.
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """cuDNN tries its algorithms once per shape: worth it where batches have one size only."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def wide(tensor: Tensor) -> Tensor:
    """The same values in float32 at least; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
