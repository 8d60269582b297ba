"""The published recipe as a plain PyTorch loop, in parts that this project's can replace.

It is written from the paper and from what the public re-implementations agree on: torchvision's
transforms, one network for all views, the published loss, plain SGD. Only the images come from
shards. Axes: N images of a batch, R of the split, V = 2 contrastive views, H x W pixels.
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from bcl_ray.data.layout import evaluation_reads, split_layout
from bcl_ray.data.longtail import log_prior, shot_groups
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest, read_row_group
from bcl_ray.data.views import resident
from bcl_ray.data.views.device import augment
from bcl_ray.data.views.host import one_thread
from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.options import Experiment
from bcl_ray.method import losses
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.optim import learning_rate, make_optimizer
from bcl_ray.storage import files
from bcl_ray.training.resident_images import whole_images
from benchmarks.loss import published

PARTS = {
    "order": "which images meet in a batch: the plan's instead of a shuffle",
    "crops": "crops and flips",
    "colours": "colour jitter, grayscale, AutoAugment, Cutout",
    "network": "the network; its weights begin as the plain one's",
    "weights": "initial weights",
    "loss": "both losses",
    "optimiser": "weight update and learning rates",
}
CPU = torch.device("cpu")
VIEWS = 3
Pixels = NDArray[np.uint8]


class Block(nn.Module):
    """A residual block whose shortcut has no parameters."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.added = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added or self.stride > 1:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added)
            )
        return functional.relu(y + x)


class PlainNetwork(nn.Module):
    """ResNet for small images, a cosine or linear classifier, and two projections."""

    def __init__(self, experiment: Experiment, num_classes: int) -> None:
        super().__init__()
        model = experiment.model
        blocks, width = {"resnet8": 1, "resnet20": 3, "resnet32": 5}[model.backbone], model.width
        layers: list[nn.Module] = [
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
        for stage in range(3):
            for block in range(blocks):
                layers.append(Block(before, width << stage, 2 if stage and not block else 1))
                before = width << stage
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scale = model.scale if model.classifier == "cosine" else None
        self.fc = nn.Linear(before, num_classes, bias=self.scale is None)
        self.head, self.head_fc = (
            nn.Sequential(
                nn.Linear(before, model.hidden_dim),
                nn.BatchNorm1d(model.hidden_dim),
                nn.ReLU(),
                nn.Linear(model.hidden_dim, model.feature_dim),
            )
            for _ in range(2)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if self.scale is not None:
            columns = torch.empty_like(self.fc.weight).uniform_(-1, 1)
            self.fc.weight.data.copy_(functional.normalize(columns))

    def classifier(self, embeddings: Tensor) -> Tensor:
        """Logits, (N, K), of embeddings, (N, E)."""
        if self.scale is None:
            return self.fc(embeddings)  # type: ignore[no-any-return]
        unit = functional.normalize(embeddings)
        return self.scale * unit @ functional.normalize(self.fc.weight).T

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of views (1 + V, N, 3, H, W): logits (N, K), features (V, N, D), prototypes (K, D)."""
        images = views.shape[1]
        embeddings = self.backbone(views.flatten(0, 1))
        features = functional.normalize(self.head(embeddings))[images:]
        prototypes = functional.normalize(self.head_fc(self.fc.weight))
        return (
            self.classifier(embeddings[:images]),
            features.view(-1, images, features.shape[1]),
            prototypes,
        )


class PlainLoop:
    """A training of the recipe.

    Args:
        experiment: its options.
        manifest: the shards.
        ours: those of PARTS that are this project's.
    """

    def __init__(self, experiment: Experiment, manifest: Manifest, ours: frozenset[str]) -> None:
        self.experiment, self.manifest, self.ours = experiment, manifest, ours
        self.pixels, self.labels, self.ids = decoded(experiment, manifest, "training")
        self.counts = np.array(manifest.splits["train"].class_counts)
        self.prior = torch.from_numpy(log_prior(self.counts)).float()
        self.sender = Sender(CPU, experiment.views, experiment.train.seed)
        self.crops, self.colours = torchvision_crops(experiment), torchvision_colours(experiment)
        self.normalise = transforms.Normalize(experiment.views.mean, experiment.views.std)

    def run(self, evaluated: bool) -> tuple[list[float], dict[str, float]]:
        """Loss of each epoch, and accuracy in per cent after the last if it is asked for."""
        experiment = self.experiment
        model = self.network()
        optimizer = (
            make_optimizer(model, experiment.optim)
            if "optimiser" in self.ours
            else torch.optim.SGD(
                model.parameters(),
                lr=experiment.optim.lr,
                momentum=experiment.optim.momentum,
                weight_decay=experiment.optim.weight_decay,
            )
        )
        epochs = []
        step = 0
        for epoch in range(experiment.train.epochs):
            model.train()
            terms = []
            batches = list(self.batches(epoch))
            for rows in batches:
                for group in optimizer.param_groups:
                    group["lr"] = self.rate(step, len(batches))
                views, labels = self.views(rows, epoch), torch.from_numpy(self.labels[rows])
                loss = self.loss(model(views), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                terms.append(loss.item())
                step += 1
            epochs.append(float(np.mean(terms)))
        return epochs, self.accuracy(model) if evaluated else {}

    def network(self) -> Any:
        """The network with its first weights."""
        torch.manual_seed(self.experiment.train.seed)
        plain = PlainNetwork(self.experiment, len(self.counts))
        torch.manual_seed(self.experiment.train.seed)  # as in the project's own training
        ours = TwoBranch(self.experiment.model, len(self.counts))
        model, other = (ours, plain) if "network" in self.ours else (plain, ours)
        if ("network" in self.ours) != ("weights" in self.ours):
            pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
            for mine, others in pairs:
                mine.copy_(others)
        return model

    def batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Positions of each batch's images; a last one that is not full is left out."""
        size = self.experiment.optim.global_batch_size
        if "order" not in self.ours:
            rows = torch.randperm(len(self.ids)).numpy()
            for begin in range(0, len(rows) - size + 1, size):
                yield rows[begin : begin + size]
            return
        plan = epoch_plan(self.experiment, self.manifest, epoch)
        blocks = ({"rows": plan.layout.positions(read)} for read in plan.reads(0, 1, 0))
        for parts in plan.batches(blocks, 0, 1, 0):
            yield np.concatenate([part["rows"] for part in parts])

    def views(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Normalised views of a batch, (1 + V, N, 3, H, W)."""
        ids, seed = self.ids[rows], self.experiment.train.seed
        config = self.experiment.views
        if "crops" in self.ours:
            drawn = resident.draw_table_crops(ids, config, num_views=VIEWS, seed=seed, epoch=epoch)
            boxes = torch.from_numpy(drawn)
            cropped = resident.apply_crops(self.pixels, torch.from_numpy(rows), boxes).numpy()
        else:
            cropped = self.cropped(rows)
        if "colours" in self.ours:
            batch = {"views": cropped, "labels": self.labels[rows], "ids": ids}
            sent = self.sender.send_training([batch], epoch)
            arrays = sent.arrived()
            return augment(arrays["views"], sent.passes, arrays, config)
        return torch.stack(
            [
                torch.stack([self.normalise(self.colours[view](Image.fromarray(one[view])))
                             for one in cropped])
                for view in range(VIEWS)
            ]
        )  # fmt: skip

    def cropped(self, rows: NDArray[np.int64]) -> Pixels:
        """Views as torchvision crops them, uint8 (N, 1 + V, H, W, 3)."""
        images = [Image.fromarray(self.pixels[row].numpy()) for row in rows.tolist()]
        return np.stack(
            [np.stack([np.asarray(self.crops[view](image)) for view in range(VIEWS)])
             for image in images]
        )  # fmt: skip

    def loss(self, outputs: tuple[Tensor, Tensor, Tensor], labels: Tensor) -> Tensor:
        """The weighted sum of both losses."""
        logits, features, prototypes = outputs
        config = self.experiment.loss
        if "loss" in self.ours:
            classification = losses.logit_adjusted_cross_entropy(
                logits, labels, self.prior, tau=config.tau
            )
            contrastive = losses.balanced_contrastive_loss(
                features, prototypes, labels, temperature=config.temperature
            )
        else:
            classification = functional.cross_entropy(logits + self.prior, labels)
            contrastive = published(
                features, prototypes, labels, temperature=config.temperature, row_by_row=False
            )
        return (
            config.classification_weight * classification + config.contrastive_weight * contrastive
        )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate: linear warm-up by the step, then a tenth at each milestone."""
        optim = self.experiment.optim
        if "optimiser" in self.ours:
            return learning_rate(step, steps, self.experiment.train.epochs, optim)
        warmup = round(optim.warmup_epochs * steps)
        if step < warmup:
            return optim.lr * (step + 1) / warmup
        return float(optim.lr * 0.1 ** sum(step // steps >= epoch for epoch in optim.milestones))

    @torch.no_grad()
    def accuracy(self, model: Any) -> dict[str, float]:
        """Means over classes, of all and of each shot group, in per cent."""
        model.eval()
        pixels, labels, _ = decoded(self.experiment, self.manifest, "evaluation")
        images = self.normalise(pixels.permute(0, 3, 1, 2).float() / 255)
        logits = [model.classifier(model.backbone(part)) for part in images.split(256)]
        found = torch.cat(logits).argmax(1).numpy()
        shares = np.array(
            [np.mean(found[labels == label] == label) for label in range(len(self.counts))]
        )
        groups = {"all": np.arange(len(shares)), **shot_groups(self.counts)}
        return {name: 100 * float(shares[of].mean()) for name, of in groups.items()}


def decoded(
    experiment: Experiment, manifest: Manifest, kind: Literal["training", "evaluation"]
) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """A split in the order of its layout: pixels uint8 (R, H, W, 3), labels and ids (R,)."""
    data = experiment.data
    name = data.train_split if kind == "training" else data.monitored_split
    shards = [shard.file for shard in manifest.splits[name].shards]
    pixels, labels, ids = [], [], []
    with one_thread():
        for read in evaluation_reads(split_layout(experiment, manifest, kind)):
            uri = files.join(experiment.data.path, shards[read.shard])
            table = read_row_group(uri, read.row_group).take(read.rows)
            ids.append(table["id"].to_numpy())
            labels.append(table["label"].to_numpy().astype(np.int64))
            pixels.append(whole_images(table["image"].to_pylist(), ids[-1], experiment))
    return torch.from_numpy(np.concatenate(pixels)), np.concatenate(labels), np.concatenate(ids)


def torchvision_crops(experiment: Experiment) -> list[Any]:
    """Crop and flip of each view."""
    config = experiment.views
    padded = transforms.RandomCrop(config.image_size, padding=config.classification.padding)
    resized = transforms.RandomResizedCrop(config.image_size, scale=config.contrastive.scale)
    kinds = [(padded, config.classification), *[(resized, config.contrastive)] * (VIEWS - 1)]
    return [
        transforms.Compose([crop, transforms.RandomHorizontalFlip(kind.flip)])
        for crop, kind in kinds
    ]


def torchvision_colours(experiment: Experiment) -> list[Any]:
    """What else happens to each view, up to a tensor on a scale of 0 to 1."""
    kind = experiment.views.contrastive
    cut = functools.partial(cut_out, size=experiment.views.classification.cutout)
    policy = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[128, 128, 128])
    jitter = transforms.ColorJitter(*kind.jitter)
    contrastive = [
        transforms.RandomApply([jitter], kind.jitter_probability),
        transforms.RandomGrayscale(kind.grayscale),
        transforms.ToTensor(),
    ]
    classification = [policy, transforms.ToTensor(), transforms.Lambda(cut)]
    return [transforms.Compose(classification), *[transforms.Compose(contrastive)] * (VIEWS - 1)]


def cut_out(image: Tensor, size: int) -> Tensor:
    """DeVries and Taylor's Cutout: one black square around a pixel, (3, H, W)."""
    row, column = (int(torch.randint(side, ())) for side in image.shape[1:])
    begin = size // 2
    image[:, max(0, row - begin) : row + begin, max(0, column - begin) : column + begin] = 0
    return image
