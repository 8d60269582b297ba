"""A trained model as an `nn.Module`, for use in other programs.

Axes: N images, K classes, E embedding width, H = W = views.image_size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bcl_ray.data.decode import decode
from bcl_ray.data.views.host import eval_view
from bcl_ray.machine.errors import UserError
from bcl_ray.method.model import Classifier
from bcl_ray.use.models import OpenModel


class Model(nn.Module):
    """A classifier with its class names, its calibration and its preprocessing.

    It is in evaluation mode, on the CPU; `.to("cuda")` moves it as any other module.

    Args:
        opened: The model.
    """

    def __init__(self, opened: OpenModel) -> None:
        super().__init__()
        self.class_names: list[str] = list(opened.class_names)  # (K,)
        # Divisor of the logits for calibrated probabilities; 1 if it was never fitted.
        self.temperature: float = opened.temperature or 1.0
        self.views = opened.experiment.views
        network = opened.network(torch.device("cpu"))
        self.classifier = Classifier(network, self.views.mean, self.views.std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W), float32 RGB in [0, 1]; see `prepare`."""
        logits: Tensor = self.classifier(images)
        return logits

    def probabilities(self, images: Tensor) -> Tensor:
        """Calibrated probabilities, (N, K): softmax(logits / temperature)."""
        return (self.forward(images) / self.temperature).softmax(dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (N, E) of the backbone."""
        mean, std = self.classifier.mean, self.classifier.std
        embeddings: Tensor = self.classifier.backbone((images - mean) / std)
        return embeddings

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """Preprocess images as in evaluation: (N, 3, H, W) in [0, 1], on the model's device.

        Args:
            images: PIL images, arrays uint8 (height, width, 3) in RGB, or encoded bytes, of any
                size.

        Raises:
            ValueError: An image is of another kind, or does not decode.
        """
        views = [torch.from_numpy(eval_view(_pixels(image), self.views)) for image in images]
        batch = torch.stack(views).permute(0, 3, 1, 2)
        return batch.to(self.classifier.mean.device).float() / 255

    @torch.no_grad()
    def label(self, images: Sequence[Any], top: int = 1) -> list[list[tuple[str, float]]]:
        """Name the most probable classes of images.

        Args:
            images: Images, as `prepare` takes them.
            top: Number of classes per image, at most all.

        Returns:
            For each image `top` class names with their probabilities, the most probable first.
        """
        if len(images) == 0:  # also of an array
            return []
        best = self.probabilities(self.prepare(images)).topk(min(top, len(self.class_names)))
        return [
            [(self.class_names[k], p) for k, p in zip(classes, probabilities, strict=True)]
            for classes, probabilities in zip(
                best.indices.tolist(), best.values.tolist(), strict=True
            )
        ]


def _pixels(image: Any) -> np.ndarray:
    """RGB pixels, uint8 (height, width, 3)."""
    if isinstance(image, bytes):
        return decode(image)
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(
            f"an image must be a PIL image, encoded bytes, or uint8 (height, width, 3), got "
            f"{pixels.dtype} {pixels.shape}"
        )
    return pixels
