"""Backbones of timm: how they are built, what they were made for, and which weights fit them."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from bcl_ray.experiment.open_options import resolved
from bcl_ray.experiment.options import Experiment, ModelConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.method.batch_norm import FrozenBatchNorm, SyncBatchNorm
from bcl_ray.method.cost import count_work
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.method.model import Classifier, TwoBranch
from bcl_ray.method.optim import parameter_groups
from bcl_ray.runs import checkpoint

timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
pytestmark = pytest.mark.slow

CONVOLUTIONAL, TRANSFORMER = "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"
SIZE, COUNTS, CPU = 32, np.array([20, 5, 2]), torch.device("cpu")


def model_config(backbone: str = CONVOLUTIONAL, **options: Any) -> ModelConfig:
    return ModelConfig(backbone=backbone, hidden_dim=8, feature_dim=6, **options)


def small(backbone: str = CONVOLUTIONAL, seed: int = 0, **options: Any) -> TwoBranch:
    torch.manual_seed(seed)
    return TwoBranch(model_config(backbone, **options), 3)


def experiment(*changes: str) -> Experiment:
    """Digits with all that follows from the backbone left open, but for a small size."""
    names = ("eval_resize", "mean", "std", "interpolation")
    return with_overrides(
        digits_lt(),
        [
            *(f"views.{name}=null" for name in names),
            f"views.image_size={SIZE}",
            f"model.backbone={TRANSFORMER}",
            "model.hidden_dim=8",
            "model.feature_dim=6",
            "train.precision=float32",
            "train.epochs=3",
            *changes,
        ],
    )


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def some_batches(steps: int = 2, rows: int = 4) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "views": generator.integers(0, 255, (rows, 3, SIZE, SIZE, 3)).astype(np.uint8),
            "labels": generator.integers(0, 3, rows),
            "ids": np.arange(step * rows, (step + 1) * rows),
        }
        for step in range(steps)
    ]


def train(learner: Learner, epoch: int, batches: list[Any] | None = None) -> None:
    for _ in train_epoch(learner, batches or some_batches(), epoch=epoch):
        pass


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    return copy.deepcopy(learner.model.state_dict())


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"]
)
@pytest.mark.parametrize("batch_norm", ["per_worker", "sync", "frozen"])
def test_embeddings_have_the_width_that_the_classifier_gets(name, batch_norm):
    model = small(f"timm/{name}", batch_norm=batch_norm, input_size=SIZE if "vit" in name else None)
    outputs = model(torch.stack([images(), images(), images()]))
    assert outputs.logits.shape == (4, 3)
    assert outputs.features.shape == (2, 4, 6)


@pytest.mark.parametrize("batch_norm", ["sync", "frozen"])
def test_replaced_norms_keep_names_values_and_activations(batch_norm):
    own, replaced = small().eval(), small(batch_norm=batch_norm).eval()
    assert own.backbone.state_dict().keys() == replaced.backbone.state_dict().keys()
    torch.testing.assert_close(replaced.embed(images()), own.embed(images()))
    kinds = {type(m).__mro__[1] for m in replaced.backbone.modules() if "Norm" in type(m).__name__}
    assert kinds == {{"sync": SyncBatchNorm, "frozen": FrozenBatchNorm}[batch_norm]}


def test_one_synced_worker_trains_as_with_timms_own_norms():
    own, synced = small().train(), small(batch_norm="sync").train()
    torch.testing.assert_close(synced.embed(images()), own.embed(images()))
    torch.testing.assert_close(synced.backbone.state_dict(), own.backbone.state_dict())


def test_frozen_norms_stay_as_they_are_in_training():
    learner = Learner(
        resolved(experiment(f"model.backbone={CONVOLUTIONAL}", "model.batch_norm=frozen")),
        COUNTS,
        2,
        CPU,
    )
    before = state_of(learner)
    train(learner, 0)
    after = learner.model.state_dict()
    norms = [name for name in before if ".bn" in name and name.startswith("backbone.")]
    assert len(norms) > 50
    assert all(torch.equal(before[name], after[name]) for name in norms)
    assert not torch.equal(before["backbone.conv_stem.weight"], after["backbone.conv_stem.weight"])


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        (TRANSFORMER, (224, 248, (0.5, 0.5, 0.5), "bicubic", 224)),
        ("timm/tf_efficientnet_lite0", (224, 256, (0.5, 0.5, 0.5), "bicubic", None)),
        ("timm/resnet50.tv_in1k", (224, 256, (0.485, 0.456, 0.406), "bilinear", None)),
        ("resnet50", (224, 256, (0.485, 0.456, 0.406), "bilinear", None)),
    ],
)
def test_open_options_become_those_that_the_backbone_was_made_for(name, inputs):
    found = resolved(experiment(f"model.backbone={name}", "views.image_size=null"))
    views = found.views
    got = (views.image_size, views.eval_resize, views.mean, views.interpolation)
    assert (*got, found.model.input_size) == inputs
    assert resolved(found) == found


def test_options_that_are_set_stay_and_a_transformer_is_built_for_their_size():
    found = resolved(experiment("views.mean=[0.1, 0.2, 0.3]"))
    assert found.views.mean == (0.1, 0.2, 0.3)
    assert (found.views.image_size, found.views.eval_resize) == (SIZE, 35)  # 32 / 0.9
    assert found.model.input_size == SIZE
    assert TwoBranch(found.model, 3).embed(images()).shape == (4, 192)
    larger = resolved(with_overrides(found, ["views.image_size=48", "views.eval_resize=48"]))
    assert larger.model.input_size == 48, "as a search or another command changes it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.backbone=timm/vit_tini_patch16_224"],
            "timm has no such network; there is 'timm/vit_",
        ),
        (["model.backbone=timm/resnet50.a1"], "no such network; there is 'timm/resnet50.ra_in1k'"),
        (["model.backbone=resnet8"], "views.eval_resize is null, and model.backbone 'resnet8' has"),
    ],
)
def test_a_backbone_that_is_not_there_is_refused_with_near_names(changes, message):
    with pytest.raises(ValueError, match=message):
        resolved(experiment(*changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.backbone=resnet8", "model.drop_path=0.1"], "model.drop_path .0.1. needs a model."),
        (
            ["model.backbone=resnet8", "optim.layer_decay=0.7"],
            "optim.layer_decay .0.7. needs a mod",
        ),
        (["model.backbone=resnet8", "model.weights=timm"], "'timm' needs a model.backbone of timm"),
    ],
)
def test_options_of_timms_backbones_are_refused_for_others_without_timm(changes, message):
    with pytest.raises(ValueError, match=message):
        experiment(*changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "timm/vgg11", "drop_path": 0.1}, "has no drop path: set model.drop_path=0"),
        ({"input_size": 64}, "takes images of 224 pixels only: set views.image_size=224"),
    ],
)
def test_what_a_network_of_timm_lacks_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_layers_learn_the_slower_the_nearer_they_are_to_the_image():
    config = experiment("optim.layer_decay=0.5", "optim.backbone_lr=0.1").optim
    model = small(TRANSFORMER, input_size=SIZE)
    factors = {
        id(p): group["lr_factor"]
        for group in parameter_groups(model, config)
        for p in group["params"]
    }
    backbone: Any = model.backbone
    assert factors[id(model.classifier.weight)] == 1
    assert factors[id(backbone.norm.weight)] == 0.1
    blocks = [factors[id(block.attn.qkv.weight)] for block in backbone.blocks]
    assert blocks == pytest.approx([0.1 * 0.5**n for n in range(11, -1, -1)])
    assert factors[id(backbone.patch_embed.proj.weight)] == pytest.approx(0.1 * 0.5**12)
    assert len(factors) == len(list(model.parameters()))


def test_positions_have_no_weight_decay_if_norms_have_none():
    config = experiment("optim.decay_norms_and_biases=false").optim
    model = small(TRANSFORMER, input_size=SIZE)
    _, spared = parameter_groups(model, config)
    assert any(p is model.backbone.pos_embed for p in spared["params"])


@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, TRANSFORMER])
def test_a_frozen_backbone_stays_for_its_epochs_and_then_learns(backbone):
    options = (f"model.backbone={backbone}", "optim.frozen_epochs=1", "optim.kind=adamw")
    learner = Learner(resolved(experiment(*options, "optim.lr=0.001")), COUNTS, 2, CPU)
    before = state_of(learner)
    train(learner, 0)
    frozen = state_of(learner)
    part = {name for name in before if name.startswith("backbone.")}
    assert all(torch.equal(before[name], frozen[name]) for name in part)
    assert not torch.equal(before["classifier.weight"], frozen["classifier.weight"])
    train(learner, 1)
    learned = learner.model.state_dict()
    weights = {name for name, _ in learner.model.named_parameters() if name in part}
    assert sum(not torch.equal(frozen[name], learned[name]) for name in weights) > len(weights) / 2


def test_with_backbone_lr_0_the_backbone_has_no_part_in_the_optimiser():
    learner = Learner(resolved(experiment("optim.backbone_lr=0")), COUNTS, 2, CPU)
    optimised = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in learner.model.backbone.parameters()}
    train(learner, 2)
    assert all(p.grad is None for p in learner.model.backbone.parameters())


@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, TRANSFORMER])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(backbone, tmp_path):
    options = resolved(
        experiment(
            f"model.backbone={backbone}",
            "optim.kind=adamw",
            "optim.lr=0.001",
            "optim.layer_decay=0.8",
            "optim.frozen_epochs=1",
            "optim.clip_norm=1",
            "model.drop_path=0.3",
            "train.ema_decay=0.9",
        )
    )
    whole = Learner(options, COUNTS, 2, CPU)
    for epoch in range(3):
        train(whole, epoch)
    begun = Learner(options, COUNTS, 2, CPU)
    train(begun, 0)
    train(begun, 1, some_batches()[:1])
    about = {"history": [], "fingerprint": "f", "class_names": ["a", "b", "c"], "uid": "u"}
    checkpoint.save(begun.state(class_counts=COUNTS.tolist(), **about), tmp_path)
    resumed = Learner(options, COUNTS, 2, CPU)
    torch.rand(5)  # other random numbers in between
    resumed.restore(checkpoint.load(tmp_path))
    train(resumed, 1, some_batches()[1:])
    train(resumed, 2)
    for name in ("model", "average"):
        expected, found = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "rexnet_100"])
def test_a_network_drops_nothing_by_a_default_of_its_own(name):
    network = TwoBranch(model_config(f"timm/{name}"), 3).backbone
    assert not any(getattr(module, "drop_prob", 0) for module in network.modules())
    assert not any(getattr(module, "p", 0) for module in network.modules())
    assert not getattr(network, "drop_rate", 0)


def test_drop_path_draws_for_each_step_and_changes_the_loss():
    with_path, without = (
        Learner(resolved(experiment(f"model.drop_path={rate}")), COUNTS, 2, CPU)
        for rate in (0.5, 0)
    )
    for learner in (with_path, without):
        train(learner, 0)
    assert not torch.equal(with_path.sums, without.sums)


@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, TRANSFORMER])
def test_the_cost_of_a_step_is_counted(backbone):
    work = count_work(resolved(experiment(f"model.backbone={backbone}")), 3, 1000.0)
    network = TwoBranch(resolved(experiment(f"model.backbone={backbone}")).model, 3)
    assert work.operations > 1e6
    assert work.parameter_bytes == sum(t.nbytes for t in network.state_dict().values())
    assert 0 < work.activation_bytes < 1e8


@pytest.mark.parametrize("backbone", [CONVOLUTIONAL, TRANSFORMER])
def test_export_gives_the_same_logits(backbone, tmp_path):
    from bcl_ray.use.export import compare, load_program, sample_images, write_program

    options = resolved(experiment(f"model.backbone={backbone}"))
    torch.manual_seed(0)
    model = TwoBranch(options.model, 3).eval()
    classifier = Classifier(model, options.views.mean, options.views.std).eval()
    write_program(classifier, {"image_size": str(SIZE)}, tmp_path / "model.pt2")
    program = load_program(tmp_path / "model.pt2")
    difference, allowed = compare(classifier, program, sample_images(SIZE))
    assert difference <= allowed
