"""The precision that a network runs in, and what needs float32 at least."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Precision(NamedTuple):
    """The meaning of a value of train.precision."""

    autocast_dtype: torch.dtype | None
    """What autocast computes in; None where autocast is off."""
    tf32_convolutions: bool
    """Whether cuDNN multiplies float32 as TF32."""


# Matrix products are never in TF32: similarities are divided by a temperature of about 0.07, and
# the error of TF32's 10 bits with them.
PRECISIONS = {
    "float32": Precision(None, tf32_convolutions=False),
    "tf32": Precision(None, tf32_convolutions=True),
    "bfloat16": Precision(torch.bfloat16, tf32_convolutions=False),
}


def resolve_precision(name: str, device: torch.device) -> str:
    """The precision that a value of train.precision means on a device.

    Args:
        name: A name in PRECISIONS, or "auto".
        device: Where the network is.

    Returns:
        A name in PRECISIONS. For "auto", bfloat16 on GPUs whose hardware computes it, and float32
        elsewhere.
    """
    if name != "auto":
        return name
    # Older GPUs emulate bfloat16, which is slower than float32.
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"


def set_up_precision(name: str, device: torch.device) -> torch.autocast:
    """Set whether cuDNN uses TF32, for the whole process, and make the autocast context.

    Args:
        name: Value of train.precision.
        device: Where the network is.

    Returns:
        The context for every forward pass.
    """
    dtype, tf32 = PRECISIONS[resolve_precision(name, device)]
    # cuDNN uses TF32 by default. These are torch's older switches: once the newer ones
    # (fp32_precision) are set, reading the older ones, as libraries do, raises an error.
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN choose its fastest algorithm for each input shape.

    cuDNN measures its algorithms once per shape, so all batches should have the same size.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it has that dtype."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
