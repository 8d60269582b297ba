"""The balanced contrastive loss in a training loop of your own: torch and scikit-learn, no Ray.

    python examples/own_loop.py

Ten digits, the first with 120 training images, the last with 3. Two networks are trained, by
cross-entropy and by BCL; what is printed is the accuracy on the five smallest classes.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from bcl_ray.method.losses import balanced_contrastive_loss, logit_adjusted_cross_entropy

SIZES = np.geomspace(120, 3, 10).astype(int)  # training images per class
EPOCHS, BATCH = 30, 32


class Network(nn.Module):
    """A classifier, and the two projections of the contrastive branch."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(128, 10)
        self.feature_projection = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32))
        self.prototype_projection = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32))

    def features(self, images: Tensor) -> Tensor:
        """Of images (N, 1, 8, 8): unit-norm features (N, 32)."""
        return functional.normalize(self.feature_projection(self.backbone(images)))

    def prototypes(self) -> Tensor:
        """Unit-norm prototypes of the classes, (10, 32)."""
        return functional.normalize(self.prototype_projection(self.classifier.weight))


def shifted(images: Tensor) -> Tensor:
    """A view of each image: moved by up to a pixel, with noise."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return images.roll((rows, columns), (2, 3)) + 0.05 * torch.randn_like(images)


def train(images: Tensor, labels: Tensor, *, contrastive_weight: float) -> Network:
    """Train a network; weight 0 is logit-adjusted cross-entropy alone."""
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    log_prior = (torch.bincount(labels, minlength=10) / len(labels)).log()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            batch, classes = images[rows], labels[rows]
            logits = network.classifier(network.backbone(shifted(batch)))
            loss = logit_adjusted_cross_entropy(logits, classes, log_prior, tau=1.0)
            if contrastive_weight:
                views = torch.stack([network.features(shifted(batch)) for _ in range(2)])
                loss = loss + contrastive_weight * balanced_contrastive_loss(
                    views, network.prototypes(), classes, temperature=0.1
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def long_tailed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target)
    rows = [torch.nonzero(labels == k).flatten() for k in range(10)]
    train_rows = torch.cat([of[:size] for of, size in zip(rows, SIZES, strict=True)])
    test_rows = torch.cat([of[-40:] for of in rows])
    return images[train_rows], labels[train_rows], images[test_rows], labels[test_rows]


def main() -> None:
    """Train both, and print the accuracy on the tail."""
    images, labels, test_images, test_labels = long_tailed()
    tail = test_labels >= 5
    for name, weight in (("logit-adjusted cross-entropy", 0.0), ("BCL", 0.5)):
        torch.manual_seed(0)
        network = train(images, labels, contrastive_weight=weight)
        with torch.no_grad():
            found = network.classifier(network.backbone(test_images)).argmax(1)
        right = (found == test_labels)[tail].float().mean().item()
        print(f"{name:<30} {100 * right:.1f} % on the five smallest classes")


if __name__ == "__main__":
    main()
