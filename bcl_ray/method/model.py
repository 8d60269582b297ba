"""The network: backbone, classifier, and the two projections of the contrastive branch.

Axes: N images, V contrastive views, K classes, E embedding width, D feature width, H x W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bcl_ray.experiment.choices import BACKBONES, code
from bcl_ray.experiment.options import ModelConfig
from bcl_ray.machine.errors import UserError
from bcl_ray.method.batch_norm import SyncBatchNorm
from bcl_ray.method.precision import wide


class Outputs(NamedTuple):
    """What a training step needs; features and prototypes are float32 with unit norm."""

    logits: Tensor
    """Of the classification view, (N, K)."""
    features: Tensor
    """Projections of the contrastive views, (V, N, D)."""
    prototypes: Tensor
    """Projections of the classifier's weights, (K, D); (0, D) when V is 0."""


class TwoBranch(nn.Module):
    """A backbone with two branches, one that classifies and one whose features are contrasted.

    The initial weights depend on torch's seed alone.

    Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022.

    Raises:
        ValueError: fewer than 2 classes.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes ({num_classes}) must be at least 2")
        norm = SyncBatchNorm if config.batch_norm == "sync" else nn.BatchNorm2d
        kind = BACKBONES[config.backbone]
        self.backbone, width = code(kind.build)(config, norm)
        self.classifier: CosineClassifier | LinearClassifier = (
            CosineClassifier(width, num_classes, config.scale)
            if config.classifier == "cosine"
            else LinearClassifier(width, num_classes)
        )
        feature_norm = SyncBatchNorm if config.batch_norm == "sync" else nn.BatchNorm1d
        self.feature_projection = _projection(width, config, feature_norm)
        # Its rows are the classes, the same on every worker: nothing to synchronise.
        self.prototype_projection = _projection(width, config, nn.BatchNorm1d)
        if kind.kaiming_linear:
            # The recipe's. On digits BCL gains 1.9 points by them, on a quarter of CIFAR-100-LT
            # no difference to torch's own was seen (benchmarks/README.md, parity.py).
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight)
        self.feature_dim = config.feature_dim
        self.separate_views = config.batch_norm == "classification_stats"

    def forward(self, views: Tensor) -> Outputs:
        """All that a training step needs.

        Args:
            views: normalised pixels, (1 + V, N, 3, H, W): the classification view, then the
                contrastive ones. Without contrastive views neither projection runs.
        """
        num_views, num_images = len(views) - 1, views.shape[1]
        classified, contrasted = self._embed_views(views)
        logits = self.classifier(classified)
        if num_views == 0:
            features = logits.new_zeros(0, num_images, self.feature_dim)
            return Outputs(logits, features, logits.new_zeros(0, self.feature_dim))
        # The authors also project the classification view and drop the result, which still
        # enters the projection's batch statistics. Here it does not.
        features = self.project(contrasted).view(num_views, num_images, -1)
        return Outputs(logits, features, self.prototypes())

    def classify(self, images: Tensor) -> Tensor:
        """Logits of images (N, 3, H, W), (N, K); a prediction is the largest."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings of images (N, 3, H, W), (N, E), before any projection."""
        embeddings: Tensor = self.backbone(images)
        return embeddings

    def compile_stages(self) -> None:
        """Compile the backbone's stages, each by itself; names and weights stay as they are.

        Compiled whole, the network's gradients would all arrive at the end of backward, and their
        sum over workers could not overlap with it.
        """
        for stage in self.backbone.children():
            # Classification and contrastive views may come apart, in batches of two sizes.
            stage.compile(dynamic=False)

    def project(self, embeddings: Tensor) -> Tensor:
        """Features of embeddings (N, E), (N, D), unit-norm and float32."""
        return _unit(self.feature_projection(embeddings))

    def prototypes(self) -> Tensor:
        """Projections of the classifier's weights, (K, D), unit-norm and float32."""
        return _unit(self.prototype_projection(self.classifier.weight))

    def _embed_views(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the classification view, (N, E), and of the others, (V * N, E)."""
        num_images = views.shape[1]
        if not self.separate_views or len(views) == 1:
            embeddings = self.backbone(views.flatten(0, 1))
            return embeddings[:num_images], embeddings[num_images:]
        # On four GPUs, DataParallel gave the authors' first one 192 of the 256 classification
        # views and nothing else, and kept only its running statistics. Here each worker has
        # its own classification views, 64 of four workers, and all workers' statistics count.
        classified = self.backbone(views[0])
        with _statistics_kept(self.backbone):
            return classified, self.backbone(views[1:].flatten(0, 1))


class Classifier(nn.Module):
    """What a user takes away: pixels in, logits out, nothing else to know.

    Args:
        model: a trained network; its projections are left behind.
        mean, std: channel statistics that it was trained with, on a scale of 0 to 1.
    """

    def __init__(
        self,
        model: TwoBranch,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W), float32 RGB in [0, 1]."""
        logits: Tensor = self.classifier(self.backbone((images - self.mean) / self.std))
        return logits


class CosineClassifier(nn.Module):
    """Logits are scale * cosine(embedding, weight): no class gains by the length of its weight."""

    def __init__(self, width: int, num_classes: int, scale: float) -> None:
        super().__init__()
        directions = torch.empty(num_classes, width).uniform_(-1, 1)  # as LDAM-DRW's NormedLinear
        self.weight = nn.Parameter(functional.normalize(directions))
        self.scale = scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, E) to (N, K), in float32 whatever autocast says."""
        # bfloat16 has 8 bits: at scale 30, logits would be off by up to 0.1.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.scale * functional.linear(_unit(embeddings), _unit(self.weight))


class LinearClassifier(nn.Linear):
    """Logits are weight @ embedding + bias."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, E) to (N, K), in float32 whatever autocast says, as those of `CosineClassifier`."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(wide(input), self.weight, self.bias)


def _projection(width: int, config: ModelConfig, norm: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.hidden_dim),
        norm(config.hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden_dim, config.feature_dim),
    )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms still normalise by the batch, and leave their running statistics alone."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = not norm.training
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(wide(vectors), dim=-1)
