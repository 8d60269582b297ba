import pytest

from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.experiment.recipes import (
    RECIPES,
    cifar10_lt,
    cifar100_lt,
    imagenet_lt,
    inat18,
    suggest_recipe,
)

# Written out by hand from the published recipes; the sources are in bcl_ray/experiment/recipes.py.
CIFAR = {
    "model.backbone": "resnet32",
    "model.width": 16,
    "model.hidden_dim": 512,
    "model.feature_dim": 128,
    "optim.global_batch_size": 256,
    "optim.lr": 0.15,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.decay_norms_and_biases": True,
    "optim.schedule": "step",
    "optim.warmup_epochs": 5,
    "optim.milestones": (160, 180),
    "optim.gamma": 0.1,
    "train.epochs": 200,
    "loss.kind": "bcl",
    "loss.temperature": 0.1,
    "loss.tau": 1.0,
    "loss.classification_weight": 2.0,
    "loss.contrastive_weight": 0.6,
    "loss.anchor_mean": "instance",
    "views.num_contrastive": 2,
    "views.image_size": 32,
    "views.eval_resize": 32,
    "views.mean": (0.4914, 0.4822, 0.4465),
    "views.std": (0.2023, 0.1994, 0.2010),
    "views.classification.crop": "padded",
    "views.classification.padding": 4,
    "views.classification.flip": 0.5,
    "views.classification.policy": "cifar10",
    "views.classification.cutout": 16,
    "views.classification.jitter": (0, 0, 0, 0),
    "views.contrastive.crop": "resized",
    "views.contrastive.scale": (0.2, 1.0),
    "views.contrastive.ratio": (3 / 4, 4 / 3),
    "views.contrastive.flip": 0.5,
    "views.contrastive.jitter": (0.4, 0.4, 0.4, 0.1),
    "views.contrastive.jitter_probability": 0.8,
    "views.contrastive.grayscale": 0.2,
    "views.contrastive.policy": "none",
    "views.contrastive.cutout": 0,
}
LARGE = {
    "model.classifier": "cosine",
    "model.scale": 30,
    "model.hidden_dim": 2048,
    "model.feature_dim": 1024,
    "model.batch_norm": "classification_stats",
    "optim.global_batch_size": 256,
    "optim.momentum": 0.9,
    "optim.decay_norms_and_biases": True,
    "optim.schedule": "cosine",
    "optim.cosine_per_epoch": True,
    "optim.warmup_epochs": 0,
    "loss.kind": "bcl",
    "loss.temperature": 0.07,
    "loss.tau": 1.0,
    "loss.classification_weight": 1.0,
    "loss.contrastive_weight": 0.35,
    "loss.anchor_mean": "instance",
    "scale.workers": 4,
    "views.num_contrastive": 2,
    "views.image_size": 224,
    "views.eval_resize": 256,
    "views.randaugment_ops": 2,
    "views.randaugment_magnitude": 10,
    "views.randaugment_deviation": 0.5,
    "views.classification.crop": "resized",
    "views.classification.scale": (0.08, 1.0),
    "views.classification.flip": 0.5,
    "views.classification.jitter": (0.4, 0.4, 0.4, 0.0),
    "views.classification.jitter_probability": 1.0,
    "views.classification.grayscale": 0,
    "views.classification.policy": "randaugment",
    "views.contrastive.crop": "resized",
    "views.contrastive.scale": (0.08, 1.0),
    "views.contrastive.flip": 0.5,
    "views.contrastive.jitter": (0.4, 0.4, 0.4, 0.1),
    "views.contrastive.jitter_probability": 0.8,
    "views.contrastive.grayscale": 0.2,
    "views.contrastive.policy": "none",
}
IMAGENET = LARGE | {
    "model.backbone": "resnext50_32x4d",
    "data.validation_split": "val",  # the published list, on which the authors select
    "optim.lr": 0.1,
    "optim.weight_decay": 5e-4,
    "train.epochs": 90,
    "views.mean": (0.485, 0.456, 0.406),
    "views.std": (0.229, 0.224, 0.225),
}
INATURALIST = LARGE | {
    "model.backbone": "resnet50",
    "optim.lr": 0.2,
    "optim.weight_decay": 1e-4,
    "train.epochs": 100,
    "views.mean": (0.466, 0.471, 0.380),
    "views.std": (0.195, 0.194, 0.192),
}


@pytest.mark.parametrize(
    ("recipe", "published"),
    [(cifar10_lt, CIFAR), (cifar100_lt, CIFAR), (imagenet_lt, IMAGENET), (inat18, INATURALIST)],
    ids=["cifar10_lt", "cifar100_lt", "imagenet_lt", "inat18"],
)
def test_a_recipe_has_the_published_options(recipe, published):
    found = {}
    for name in published:
        value = recipe()
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    assert found == published


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_survives_yaml_unchanged(recipe):
    again = from_yaml(recipe().to_yaml())
    assert again == recipe()
    assert again.digest() == recipe().digest()


@pytest.mark.parametrize(("name", "recipe"), RECIPES.items(), ids=RECIPES)
def test_a_recipe_carries_its_name_and_its_own_data(name, recipe):
    assert recipe().name == name
    assert recipe().data.path == f"data/{name}"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_recipe_names_its_source(recipe):
    assert any(source in recipe.__doc__ for source in ("[BCL]", "[CIFAR]", "our own"))


@pytest.mark.parametrize(
    ("variant", "base", "changed"),
    [
        (cifar100_lt, cifar10_lt, {"name", "data"}),
        (inat18, imagenet_lt, {"name", "data", "views", "model", "optim", "train"}),
    ],
    ids=["cifar100_lt", "inat18"],
)
def test_a_variant_changes_only_what_it_names(variant, base, changed):
    ours, theirs = variant().model_dump(), base().model_dump()
    assert {section for section in ours if ours[section] != theirs[section]} == changed
    assert ours["loss"] == theirs["loss"]


def test_digits_train_on_two_workers_of_a_two_core_machine():
    scale = RECIPES["digits_lt"]().scale
    assert scale.workers == 2
    assert scale.workers * scale.cpus_per_worker + scale.cpus_per_data_task <= 2


def test_an_unknown_name_gets_the_nearest():
    assert suggest_recipe("cifar10lt") == "did you mean 'cifar10_lt'?"
    assert (
        suggest_recipe("xyz")
        == "there are digits_lt, cifar10_lt, cifar100_lt, imagenet_lt, inat18, "
        "finetune, linear_probe"
    )
