"""The three views by torchvision v2: an image is decoded once, to a uint8 tensor."""

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.peers import RATIO, SCALE, SIZE, VIEWS

_VIEW = v2.Compose(
    [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()]
)


def views_of(image: torch.Tensor) -> torch.Tensor:
    """The views of an encoded image, given as a uint8 tensor of its bytes: (VIEWS, 3, H, W)."""
    pixels = decode_image(image, mode=ImageReadMode.RGB)
    return torch.stack([_VIEW(pixels) for _ in range(VIEWS)])


def views_of_bytes(image: bytes) -> torch.Tensor:
    """The same, given the bytes; the copy avoids a warning that they cannot be written to."""
    return views_of(torch.frombuffer(bytearray(image), dtype=torch.uint8))
