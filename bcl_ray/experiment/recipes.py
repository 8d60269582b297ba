"""Recipes: named, complete experiments, with the source of every published number.

A recipe is a function without arguments; a variant calls another recipe and changes some options.
Accuracies in the docstrings are top-1 in per cent. Sources:

[BCL] Zhu et al., CVPR 2022, and the authors' code, github.com/FlamieZhu/Balanced-Contrastive-
Learning, which has trainers for ImageNet-LT and iNaturalist 2018, but none for CIFAR.
[CIFAR] The options for CIFAR on which public re-implementations agree (CUDA_LTR, ICLR 2023; GBG,
AAAI 2024; ConCutMix, TIP 2024; ProCo, TPAMI 2024).
"""

import difflib
from collections.abc import Callable

from bcl_ray.experiment.options import (
    DataConfig,
    Experiment,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScaleConfig,
    TrainConfig,
    ViewConfig,
    ViewsConfig,
)
from bcl_ray.experiment.overrides import from_file
from bcl_ray.machine.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
INATURALIST_MEAN, INATURALIST_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)  # [BCL]


def digits_lt() -> Experiment:
    """The 1,797 digits of scikit-learn, imbalance factor 50: a demonstration of a minute on CPUs.

    The options are our own, tuned for two cores; they are not published anywhere.
    """
    return Experiment(
        name="digits_lt",
        data=DataConfig(path="data/digits_lt"),
        views=ViewsConfig(
            image_size=8,
            eval_resize=8,
            classification=ViewConfig(crop="padded", padding=1, flip=0),
            contrastive=ViewConfig(crop="padded", padding=1, flip=0),
            mean=(0.3, 0.3, 0.3),
            std=(0.38, 0.38, 0.38),
        ),
        model=ModelConfig(
            backbone="resnet8", width=16, hidden_dim=64, feature_dim=32, batch_norm="sync"
        ),
        loss=LossConfig(temperature=0.1, contrastive_weight=0.5),
        optim=OptimConfig(
            global_batch_size=32, lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_epochs=2
        ),
        train=TrainConfig(epochs=40, eval_every=5),
        scale=ScaleConfig(workers=2, cpus_per_worker=0.5, cpus_per_data_task=0.5),
    )


def cifar10_lt() -> Experiment:
    """CIFAR-10-LT, ResNet-32, 200 epochs. Reported: 84.3 / 87.2 / 91.1 at factor 100 / 50 / 10.

    Options from [CIFAR]. Which classifier the paper used on CIFAR is not known; re-implementations
    use both kinds.
    """
    simaug = ViewConfig(
        crop="resized",
        scale=(0.2, 1.0),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
        grayscale=0.2,
    )
    return Experiment(
        name="cifar10_lt",
        data=DataConfig(path="data/cifar10_lt"),
        views=ViewsConfig(
            image_size=32,
            eval_resize=32,
            classification=ViewConfig(crop="padded", padding=4, policy="cifar10", cutout=16),
            contrastive=simaug,
            mean=CIFAR_MEAN,
            std=CIFAR_STD,
        ),
        model=ModelConfig(backbone="resnet32", hidden_dim=512, feature_dim=128),
        loss=LossConfig(temperature=0.1, classification_weight=2.0, contrastive_weight=0.6),
        optim=OptimConfig(
            global_batch_size=256,
            lr=0.15,
            weight_decay=5e-4,
            schedule="step",
            warmup_epochs=5,
            milestones=(160, 180),
        ),
        train=TrainConfig(epochs=200, geometry_every=10),
    )


def cifar100_lt() -> Experiment:
    """CIFAR-100-LT, ResNet-32, 200 epochs. Reported: 51.9 / 56.6 / 64.9 at factor 100 / 50 / 10.

    Options from [CIFAR]: the same as for CIFAR-10-LT, including its channel statistics.
    """
    base = cifar10_lt()
    return base.model_copy(
        update={"name": "cifar100_lt", "data": DataConfig(path="data/cifar100_lt")}
    )


def imagenet_lt() -> Experiment:
    """ImageNet-LT, ResNeXt-50, 90 epochs. Reported: 56.7 (paper), 57.2 (authors' code).

    Options from [BCL], with views 'sim-sim'. As there, the best checkpoint is selected on the
    published validation list, which has to be a split `val` of the shards.

    Batch norm is similar to the authors' runs on four GPUs, but not equal. Their DataParallel
    split the 768 views of a batch over four GPUs in order. So the first GPU normalised 192 of the
    256 classification views, the others normalised the remaining ones together with contrastive
    views, and only the first GPU's running statistics were kept. Here, with 4 workers, each worker
    normalises its 64 classification views and its 128 contrastive views separately, and the running
    statistics are those of the classification views, averaged over workers. With another number of
    workers, these numbers of views change.
    """
    simaug = ViewConfig(
        crop="resized", jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grayscale=0.2
    )
    return Experiment(
        name="imagenet_lt",
        data=DataConfig(path="data/imagenet_lt", validation_split="val"),
        views=ViewsConfig(
            image_size=224,
            eval_resize=256,
            classification=ViewConfig(
                crop="resized", jitter=(0.4, 0.4, 0.4, 0.0), policy="randaugment"
            ),
            contrastive=simaug,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        ),
        model=ModelConfig(
            backbone="resnext50_32x4d",
            hidden_dim=2048,
            feature_dim=1024,
            batch_norm="classification_stats",
        ),
        loss=LossConfig(temperature=0.07, classification_weight=1.0, contrastive_weight=0.35),
        optim=OptimConfig(
            global_batch_size=256,
            lr=0.1,
            weight_decay=5e-4,
            schedule="cosine",
            cosine_per_epoch=True,
        ),
        train=TrainConfig(epochs=90, geometry_every=10),
        scale=ScaleConfig(workers=4),
    )


def inat18() -> Experiment:
    """Species of iNaturalist 2018, ResNet-50, 100 epochs. Reported: 71.8.

    Options from [BCL].
    """
    base = imagenet_lt()
    return base.model_copy(
        update={
            "name": "inat18",
            "data": DataConfig(path="data/inat18"),
            "views": base.views.model_copy(
                update={"mean": INATURALIST_MEAN, "std": INATURALIST_STD}
            ),
            "model": base.model.model_copy(update={"backbone": "resnet50"}),
            "optim": base.optim.model_copy(update={"lr": 0.2, "weight_decay": 1e-4}),
            "train": TrainConfig(epochs=100, geometry_every=5),
        }
    )


def finetune() -> Experiment:
    """A small data set of your own, from pretrained weights of timm, 20 epochs.

    The options are our own. Size, mean and interpolation of views are those of the backbone. Batch
    norms stay as they were trained, because small batches of few classes have other statistics; the
    classifier learns faster than the backbone, which already knows something.

    What to expect, measured on Caltech-101-LT (2,433 images of 99 classes, 8 of the smallest) with
    EfficientNet-Lite0, views of 96 px and 4 epochs, three seeds: 85.6 of all classes and 83.3 of
    few-shot classes; with `loss.kind=logit_adjusted`, which makes one view instead of three, 85.0
    and 82.7; with cross-entropy 82.1 and 76.8 (RESULTS.md). After 6 epochs, one seed: 88.1 and
    86.0, logit-adjusted 87.8 and 85.3.
    """
    return Experiment(
        name="finetune",
        data=DataConfig(path="data/finetune"),
        views=ViewsConfig(
            image_size=None,
            eval_resize=None,
            mean=None,
            std=None,
            interpolation=None,
            classification=ViewConfig(
                crop="resized", scale=(0.25, 1.0), jitter=(0.2, 0.2, 0.2, 0.0)
            ),
            contrastive=ViewConfig(
                crop="resized",
                scale=(0.25, 1.0),
                jitter=(0.4, 0.4, 0.4, 0.1),
                jitter_probability=0.8,
                grayscale=0.2,
            ),
        ),
        model=ModelConfig(
            backbone="timm/tf_efficientnet_lite0",
            weights="timm",
            hidden_dim=512,
            feature_dim=128,
            batch_norm="frozen",
        ),
        loss=LossConfig(temperature=0.1, contrastive_weight=0.35),
        optim=OptimConfig(
            kind="adamw",
            global_batch_size=64,
            lr=1e-3,
            backbone_lr=0.3,
            weight_decay=0.05,
            decay_norms_and_biases=False,
            clip_norm=5.0,
            schedule="cosine",
            warmup_epochs=1,
        ),
        train=TrainConfig(epochs=20, eval_every=5),
    )


def linear_probe() -> Experiment:
    """The classifier alone learns, on the embeddings of a pretrained backbone, 20 epochs.

    The options are our own. It shows what the backbone already knows of the classes, in less time:
    nothing is computed backwards through it. `finetune` is better where the images differ from
    those it was trained on.
    """
    base = finetune()
    return base.model_copy(
        update={
            "name": "linear_probe",
            "data": DataConfig(path="data/linear_probe"),
            "loss": base.loss.model_copy(update={"kind": "logit_adjusted"}),
            "optim": base.optim.model_copy(update={"backbone_lr": 0.0, "lr": 1e-2}),
        }
    )


RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe
    for recipe in (
        digits_lt,
        cifar10_lt,
        cifar100_lt,
        imagenet_lt,
        inat18,
        finetune,
        linear_probe,
    )
}


def suggest_recipe(name: str) -> str:
    """A hint for an error message about a name that no recipe has."""
    near = difflib.get_close_matches(name, RECIPES, n=1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(RECIPES)}"


def load_recipe(name: str) -> Experiment:
    """The experiment of a recipe's name, or of a path or URI of a YAML file.

    Raises:
        ValueError: There is no such recipe, or the file is wrong.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if not name.endswith((".yaml", ".yml")):
        raise UserError(f"'{name}' is no recipe and no .yaml file: {suggest_recipe(name)}")
    return from_file(name)
