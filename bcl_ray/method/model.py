"""The network: a backbone, a classifier, and the two projections of the contrastive branch.

Axes: N images, V contrastive views, K classes, E embedding width, D feature width, H x W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from bcl_ray.experiment.choices import BACKBONES
from bcl_ray.experiment.options import ModelConfig
from bcl_ray.experiment.table import code
from bcl_ray.machine.errors import UserError
from bcl_ray.method.batch_norm import NORMS
from bcl_ray.method.precision import at_least_float32


class Outputs(NamedTuple):
    """The network's outputs in a training step; features and prototypes are in float32."""

    logits: Tensor
    """Logits of the classification view, (N, K)."""
    features: Tensor
    """Unit-norm projections of the contrastive views, (V, N, D)."""
    prototypes: Tensor
    """Unit-norm projections of the classifier's weights, (K, D); (0, D) without such views."""


class TwoBranch(nn.Module):
    """A backbone with a classification branch and a contrastive branch.

    The initial weights depend on nothing but torch's seed.

    Args:
        config: Options of the network.
        num_classes: K, at least 2.

    Raises:
        ValueError: There are fewer than 2 classes.

    Source: Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition",
    CVPR 2022, https://arxiv.org/abs/2207.09052.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes ({num_classes}) must be at least 2")
        image_norm, vector_norm = NORMS[config.batch_norm]
        backbone = BACKBONES[config.backbone]
        self.backbone, width = code(backbone.build)(config, image_norm)
        self.classifier = CLASSIFIERS[config.classifier](width, num_classes, config)
        self.feature_projection = _projection(width, config, vector_norm)
        # Its inputs are the classes, which are the same on every worker: no need to synchronise.
        self.prototype_projection = _projection(width, config, nn.BatchNorm1d)
        if backbone.kaiming_linear:
            # As in the published recipe. It gains BCL 1.9 points on digits; on a quarter of
            # CIFAR-100-LT no difference to torch's initialisation was measured (parity.py in
            # benchmarks/README.md).
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight)
        self.feature_dim = config.feature_dim
        self.separate_views = config.batch_norm == "classification_stats"

    def forward(self, views: Tensor) -> Outputs:
        """The outputs for a training step.

        Args:
            views: Normalised pixels, (1 + V, N, 3, H, W): the classification view, then the
                contrastive ones. With V = 0 neither projection runs.
        """
        num_views, num_images = len(views) - 1, views.shape[1]
        classified, contrasted = self._embed_views(views)
        logits = self.classifier(classified)
        if num_views == 0:
            features = logits.new_zeros(0, num_images, self.feature_dim)
            return Outputs(logits, features, logits.new_zeros(0, self.feature_dim))
        # The authors' code also projects the classification view. It ignores the result, but not
        # its part in the projection's batch statistics. Here that view is not projected.
        features = self.project(contrasted).view(num_views, num_images, -1)
        return Outputs(logits, features, self.prototypes())

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's embeddings, (N, E), of normalised images, (N, 3, H, W)."""
        embeddings: Tensor = self.backbone(images)
        return embeddings

    def compile_stages(self) -> None:
        """Compile the stages of the backbone one by one; the names of weights do not change.

        If the network were compiled as a whole, all gradients would arrive at the end of backward,
        and summing them over workers could not overlap with it.
        """
        for stage in self.backbone.children():
            # Separate views give two batch sizes: compile for each rather than for any size.
            stage.compile(dynamic=False)

    def project(self, embeddings: Tensor) -> Tensor:
        """Unit-norm features in float32, (N, D), of embeddings, (N, E)."""
        return _unit(self.feature_projection(embeddings))

    def prototypes(self) -> Tensor:
        """Unit-norm projections in float32, (K, D), of the classifier's weights."""
        return _unit(self.prototype_projection(self.classifier.weight))

    def _embed_views(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the classification view, (N, E), and of the others, (V * N, E)."""
        num_images = views.shape[1]
        if not self.separate_views or len(views) == 1:
            embeddings = self.backbone(views.flatten(0, 1))
            return embeddings[:num_images], embeddings[num_images:]
        # The authors trained with DataParallel on four GPUs. It gave the first GPU 192 of the 256
        # classification views and no other view, and kept only that GPU's running statistics.
        # Here every worker has its own classification views, 64 each with four workers, and the
        # statistics of all workers are averaged.
        classified = self.backbone(views[0])
        with _frozen_statistics(self.backbone):
            return classified, self.backbone(views[1:].flatten(0, 1))


class Classifier(nn.Module):
    """A trained network for predictions alone: from pixels in [0, 1] to logits.

    Args:
        model: The trained network; its projections are left out.
        mean: Channel means that it was trained with, on a scale of 0 to 1.
        std: Channel standard deviations, likewise.
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
        """Logits, (N, K), of float32 RGB images in [0, 1], (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.backbone((images - self.mean) / self.std))
        return logits


class CosineClassifier(nn.Module):
    """Logits are scale * cosine(embedding, weight), so long weights favour no class."""

    def __init__(self, width: int, num_classes: int, scale: float) -> None:
        super().__init__()
        directions = torch.empty(num_classes, width).uniform_(-1, 1)  # as LDAM-DRW's NormedLinear
        self.weight = nn.Parameter(functional.normalize(directions))
        self.scale = scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits, (N, K), of embeddings, (N, E); in float32, also under autocast."""
        # With the 8 bits of bfloat16 and a scale of 30, logits would be off by up to 0.1.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.scale * functional.linear(_unit(embeddings), _unit(self.weight))


class LinearClassifier(nn.Linear):
    """Logits are weight @ embedding + bias."""

    def forward(self, input: Tensor) -> Tensor:
        """Logits, (N, K), of embeddings, (N, E); in float32, also under autocast."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(at_least_float32(input), self.weight, self.bias)


# By model.classifier: from the embedding width E, the number of classes K, and the options.
CLASSIFIERS: dict[str, Callable[[int, int, ModelConfig], CosineClassifier | LinearClassifier]] = {
    "cosine": lambda width, num_classes, config: CosineClassifier(width, num_classes, config.scale),
    "linear": lambda width, num_classes, _: LinearClassifier(width, num_classes),
}


def _projection(width: int, config: ModelConfig, norm: type[_BatchNorm]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.hidden_dim),
        norm(config.hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(config.hidden_dim, config.feature_dim),
    )


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms; they still normalise by the batch."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm in norms:
        norm.track_running_stats = not norm.training
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(at_least_float32(vectors), dim=-1)
