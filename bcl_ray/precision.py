"""In what precision a network runs, and what is too delicate for less than float32."""

import torch
from torch import Tensor


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass; `auto` is bfloat16 on GPUs that really have it."""
    # Older GPUs emulate it, which is slower than float32.
    automatic = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = precision == "bfloat16" or (precision == "auto" and automatic)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def wide(tensor: Tensor) -> Tensor:
    """The same values in float32 at least; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
