"""The network: shapes, inputs of each branch, statistics of batch norm, several workers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bcl_ray.experiment.options import ModelConfig
from bcl_ray.method.backbones import ResidualBlock
from bcl_ray.method.batch_norm import SyncBatchNorm
from bcl_ray.method.collectives import gather_with_grad, sum_over_workers
from bcl_ray.method.losses import Keys, balanced_contrastive_loss, logit_adjusted_cross_entropy
from bcl_ray.method.model import TwoBranch

K, D, V, N = 5, 6, 2, 4


def small(num_classes: int = K, **options) -> TwoBranch:
    settings = {"backbone": "resnet8", "width": 4, "hidden_dim": 8, "feature_dim": D}
    torch.manual_seed(0)
    return TwoBranch(ModelConfig(**settings | options), num_classes)


def some_views(num_views: int = V, num_images: int = N, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + num_views, num_images, 3, 8, 8, generator=generator)


def assert_states_equal(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("classifier", ["cosine", "linear"])
@pytest.mark.parametrize("batch_norm", ["per_worker", "sync", "classification_stats"])
def test_outputs_have_their_shapes_and_unit_norms(classifier, batch_norm):
    outputs = small(classifier=classifier, batch_norm=batch_norm)(some_views())
    assert outputs.logits.shape == (N, K)
    assert outputs.features.shape == (V, N, D)
    assert outputs.prototypes.shape == (K, D)
    torch.testing.assert_close(outputs.features.norm(dim=-1), torch.ones(V, N))
    torch.testing.assert_close(outputs.prototypes.norm(dim=-1), torch.ones(K))


def test_features_keep_the_order_of_views_and_images():
    model, views = small().eval(), some_views()
    one = model(torch.stack([views[0], views[2]])[:, 1:2])
    torch.testing.assert_close(one.features[0, 0], model(views).features[1, 1])


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("resnet8", 74_640), ("resnet20", 269_072), ("resnet32", 463_504)]
)
def test_small_backbones_have_the_published_number_of_parameters(backbone, parameters):
    """He et al. give 0.27 M for ResNet-20 and 0.46 M for ResNet-32, with 650 in the classifier."""
    model = small(backbone=backbone, width=16)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == parameters
    assert model.eval().embed(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


@pytest.mark.parametrize(
    ("backbone", "width"), [("resnet18", 512), ("resnet50", 2048), ("resnext50_32x4d", 2048)]
)
def test_torchvision_backbones_embed(backbone, width):
    model = small(backbone=backbone, batch_norm="sync").eval()
    assert model.embed(torch.zeros(1, 3, 32, 32)).shape == (1, width)
    assert model.classifier(model.embed(torch.zeros(1, 3, 32, 32))).shape == (1, K)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


def test_shortcut_halves_the_picture_and_pads_channels_on_both_sides():
    block = ResidualBlock(4, 8, 2, nn.BatchNorm2d).eval()
    nn.init.zeros_(block.norm2.weight)  # only the shortcut is left
    pixels = torch.rand(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    expected[:, 2:6] = pixels[:, :, ::2, ::2]
    torch.testing.assert_close(block(pixels), expected)


def test_initial_weights_depend_on_the_seed_alone():
    first = small()
    torch.rand(3)
    assert_states_equal(first, small())
    torch.manual_seed(1)
    other = TwoBranch(ModelConfig(backbone="resnet8", width=4, hidden_dim=8, feature_dim=D), K)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_cosine_logits_ignore_the_length_of_weights_and_embeddings():
    classifier, embeddings = small().classifier, torch.randn(7, 16)
    logits = classifier(embeddings)
    assert logits.abs().max() <= 30
    with torch.no_grad():
        classifier.weight.mul_(torch.rand(K, 1) + 0.1)
    torch.testing.assert_close(classifier(embeddings * 3), logits)


def test_prototypes_are_projections_of_the_raw_classifier_weights():
    model = small()
    expected = model.prototype_projection(model.classifier.weight)
    prototypes = model(some_views()).prototypes
    torch.testing.assert_close(prototypes, nn.functional.normalize(expected))
    prototypes[0, 0].backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_only_contrastive_views_reach_the_feature_projection():
    model, seen = small(), []
    model.feature_projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(some_views())
    assert [rows.shape for rows in seen] == [(V * N, 16)]


def test_without_contrastive_views_no_projection_runs():
    model = small()
    outputs = model(some_views(num_views=0))
    assert outputs.features.shape == (0, N, D)
    assert outputs.prototypes.shape == (0, D)
    outputs.logits.sum().backward()
    idle = [*model.feature_projection.parameters(), *model.prototype_projection.parameters()]
    assert all(parameter.grad is None for parameter in idle)


def test_evaluation_gives_the_classification_views_logits():
    model, views = small().eval(), some_views()
    torch.testing.assert_close(model.classifier(model.embed(views[0])), model(views).logits)


def backbone_statistics(model: TwoBranch) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}


@pytest.mark.parametrize(
    ("batch_norm", "same"), [("classification_stats", True), ("per_worker", False)]
)
def test_running_statistics_see_classification_views_only_where_asked(batch_norm, same):
    model, alone = small(batch_norm=batch_norm), small()
    views = some_views()
    model(views)
    alone(views[:1])
    equal = [
        torch.equal(value, backbone_statistics(alone)[name])
        for name, value in backbone_statistics(model).items()
        if "num_batches" not in name
    ]
    assert all(equal) == same


def test_classification_stats_normalises_the_two_kinds_of_views_apart():
    model, views = small(batch_norm="classification_stats"), some_views()
    outputs = model(views)
    brighter = model(torch.cat([views[:1], views[1:] * 2 + 1]))
    torch.testing.assert_close(brighter.logits, outputs.logits, rtol=0, atol=0)
    darker = model(torch.cat([views[:1] * 2 + 1, views[1:]]))
    torch.testing.assert_close(darker.features, outputs.features, rtol=0, atol=0)


def test_statistics_are_tracked_again_after_a_step_that_failed():
    model = small(batch_norm="classification_stats")
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]

    def fail_on_contrastive_views(_, inputs, __):
        if len(inputs[0]) == V * N:
            assert not any(norm.track_running_stats for norm in norms)
            raise RuntimeError("stop")

    model.backbone.register_forward_hook(fail_on_contrastive_views)
    with pytest.raises(RuntimeError, match="stop"):
        model(some_views())
    assert all(norm.track_running_stats for norm in norms)


def test_autocast_leaves_logits_features_and_prototypes_in_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = small()(some_views())
    assert {part.dtype for part in outputs} == {torch.float32}


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match=r"num_classes \(1\) must be at least 2"):
        small(num_classes=1)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 4)], ids=str)
def test_sync_batch_norm_alone_is_torchs_own(shape):
    own = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3)
    synced, batch = SyncBatchNorm(3), torch.randn(shape)
    torch.testing.assert_close(synced(batch), own(batch), rtol=0, atol=0)
    assert_states_equal(synced, own)
    torch.testing.assert_close(synced.eval()(batch), own.eval()(batch), rtol=0, atol=0)


def one_step(model: nn.Module, views: Tensor, labels: Tensor, offset: int) -> Tensor:
    """This worker's share of both losses; gradients are those of the global batch."""
    outputs = model(views)
    keys = Keys(gather_with_grad(outputs.features, 1), gather_with_grad(labels, 0), offset)
    log_prior = torch.zeros(K, dtype=torch.float64)
    num_images = len(keys.labels)
    loss = balanced_contrastive_loss(
        outputs.features, outputs.prototypes, labels, temperature=0.1, keys=keys
    ) + logit_adjusted_cross_entropy(
        outputs.logits, labels, log_prior, tau=1.0, num_images=num_images
    )
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = sum_over_workers(parameter.grad)
    return loss.detach()


def double_problem() -> tuple[nn.Module, Tensor, Tensor]:
    labels = torch.tensor([0, 0, 3, 1, 0, 2])
    return small(batch_norm="sync").double(), some_views(num_images=6).double(), labels


def worker(rank: int, workers: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    model, views, labels = double_problem()
    size = len(labels) // workers
    local = slice(rank * size, (rank + 1) * size)
    share = one_step(model, views[:, local], labels[local], local.start)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save((share, gradients, model.state_dict()), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_synced_workers_give_the_loss_gradients_and_statistics_of_one(tmp_path):
    workers = 2
    torch.multiprocessing.spawn(worker, (workers, str(tmp_path)), nprocs=workers)
    model, views, labels = double_problem()
    whole = one_step(model, views, labels, 0)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(workers)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole, rtol=1e-10, atol=1e-12)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for _, gradients, state in parts:
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(state, model.state_dict(), rtol=1e-10, atol=1e-12)
