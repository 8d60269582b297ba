"""The same loss in a module that a trainer drives, in the style of PyTorch Lightning.

    python examples/module_style.py

`TailModule` has the methods that Lightning calls: `class TailModule(LightningModule)` is all
that changes. Here a trainer of ten lines calls them, for Lightning is not needed to read it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bcl_ray.method.losses import balanced_contrastive_loss, logit_adjusted_cross_entropy

Batch = tuple[Tensor, Tensor, Tensor]


class TailModule(nn.Module):
    """A backbone with a classifier and a contrastive branch.

    Args:
        backbone: images to embeddings.
        width: of the embeddings.
        class_counts: training images per class, (K,).
    """

    def __init__(self, backbone: nn.Module, width: int, class_counts: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(width, len(class_counts))
        self.feature_projection = nn.Linear(width, 32)
        self.prototype_projection = nn.Linear(width, 32)
        self.register_buffer("log_prior", (class_counts / class_counts.sum()).log())

    def training_step(self, batch: Batch, _batch_number: int) -> Tensor:
        """The loss of a batch: two views of the images, (N, ...) each, and their labels, (N,)."""
        first, second, labels = batch
        embeddings = self.backbone(torch.cat([first, second]))
        logits = self.classifier(embeddings[: len(labels)])
        features = functional.normalize(self.feature_projection(embeddings), dim=1)
        prototypes = functional.normalize(self.prototype_projection(self.classifier.weight), dim=1)
        contrastive = balanced_contrastive_loss(
            features.view(2, len(labels), -1), prototypes, labels, temperature=0.1
        )
        adjusted = logit_adjusted_cross_entropy(logits, labels, self.log_prior, tau=1.0)
        return adjusted + 0.5 * contrastive

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As Lightning asks for it."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(module: TailModule, batches: Iterable[Batch]) -> list[float]:
    """What a trainer does; returns the losses."""
    optimizer, losses = module.configure_optimizers(), []
    for number, batch in enumerate(batches):
        loss = module.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train on points around ten centres, of which the last have few."""
    torch.manual_seed(0)
    counts = torch.tensor([100, 80, 60, 40, 30, 20, 15, 10, 8, 5])
    centres = torch.randn(10, 8)

    def batches(steps: int) -> Iterable[Batch]:
        for _ in range(steps):
            labels = torch.multinomial(counts.float(), 64, replacement=True)
            first, second = (centres[labels] + 0.3 * torch.randn(64, 8) for _ in range(2))
            yield first, second, labels

    module = TailModule(nn.Sequential(nn.Linear(8, 32), nn.ReLU()), 32, counts)
    losses = fit(module, batches(100))
    print(f"loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last")


if __name__ == "__main__":
    main()
