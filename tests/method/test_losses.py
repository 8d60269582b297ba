"""Losses against slow definitions and exact values, their invariances, and their shares."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bcl_ray.method.losses import (
    Keys,
    balanced_contrastive_loss,
    logit_adjusted_cross_entropy,
    supervised_contrastive_loss,
)
from tests import oracles

K, D = 5, 7
BATCHES = [
    [0, 0, 0, 1],  # absent classes; class 1 has one image alone
    [2, 2, 2, 2],  # one class only
    [0, 1, 2, 3, 4],  # nobody has a peer
    [3],  # a batch of one image
]
MEANS = ["instance", "class"]


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(random, dim=-1)


def problem(labels: list[int], num_views: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return unit(num_views, len(labels), D), unit(K, D, seed=1), torch.tensor(labels)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def assert_same(got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("labels", BATCHES, ids=str)
@pytest.mark.parametrize("num_views", [1, 2, 3])
@pytest.mark.parametrize("anchor_mean", MEANS)
def test_balanced_contrastive_loss_matches_its_definition(labels, num_views, anchor_mean):
    features, prototypes, classes = problem(labels, num_views)
    inputs = (features.requires_grad_(), prototypes.requires_grad_())
    got = balanced_contrastive_loss(*inputs, classes, temperature=0.1, anchor_mean=anchor_mean)
    expected = oracles.balanced_contrastive(*inputs, classes, 0.1, anchor_mean)
    assert_same(got, expected)
    assert_same(gradients(got, *inputs), gradients(expected, *inputs))


@pytest.mark.parametrize("labels", BATCHES, ids=str)
def test_balanced_contrastive_loss_matches_the_published_computation(labels):
    features, prototypes, classes = problem(labels)
    got = balanced_contrastive_loss(features, prototypes, classes, temperature=0.07)
    expected = oracles.balanced_contrastive_as_published(features, prototypes, classes, 0.07)
    assert_same(got, expected)


@pytest.mark.parametrize("labels", BATCHES, ids=str)
@pytest.mark.parametrize("anchor_mean", MEANS)
def test_supervised_contrastive_loss_matches_its_definition(labels, anchor_mean):
    features, _, classes = problem(labels)
    features.requires_grad_()
    got = supervised_contrastive_loss(features, classes, temperature=0.1, anchor_mean=anchor_mean)
    expected = oracles.supervised_contrastive(features, classes, 0.1, anchor_mean)
    assert_same(got, expected)
    assert_same(gradients(got, features), gradients(expected, features))


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_logit_adjusted_cross_entropy_matches_its_definition(tau):
    logits, labels = unit(6, K) * 5, torch.tensor([0, 1, 1, 4, 2, 0])
    log_prior = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.04], dtype=torch.float64).log()
    got = logit_adjusted_cross_entropy(logits, labels, log_prior, tau=tau)
    assert_same(got, oracles.logit_adjusted_cross_entropy(logits, labels, log_prior, tau))


@pytest.mark.parametrize("anchor_mean", MEANS)
def test_balanced_contrastive_gradient_is_exact(anchor_mean):
    features, prototypes, labels = problem([0, 0, 0, 1])

    def loss(features: Tensor, prototypes: Tensor) -> Tensor:
        return balanced_contrastive_loss(
            features, prototypes, labels, temperature=0.3, anchor_mean=anchor_mean
        )

    assert torch.autograd.gradcheck(loss, (features.requires_grad_(), prototypes.requires_grad_()))


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize("anchor_mean", MEANS)
def test_value_at_the_simplex_is_exact(num_classes, anchor_mean):
    corners = oracles.simplex(num_classes, 128)
    labels = torch.arange(num_classes).repeat_interleave(2)[: num_classes + 1]  # not balanced
    features = corners[labels].expand(2, -1, -1)
    got = balanced_contrastive_loss(
        features, corners, labels, temperature=0.1, anchor_mean=anchor_mean
    )
    expected = oracles.loss_at_the_simplex(num_classes, 0.1)
    assert got.item() == pytest.approx(expected, rel=1e-9)


def optimum_of_free_vectors(anchor_mean: str) -> Tensor:
    """Class vectors after descent on a long-tailed batch: views collapsed, prototypes tied."""
    labels = torch.arange(4).repeat_interleave(torch.tensor([27, 9, 3, 1]))
    free = unit(4, 6, seed=3).requires_grad_()
    descent = torch.optim.LBFGS([free], max_iter=300, line_search_fn="strong_wolfe")

    def corners() -> Tensor:
        return torch.nn.functional.normalize(free, dim=1)

    def closure() -> Tensor:
        descent.zero_grad()
        loss = balanced_contrastive_loss(
            corners()[labels].expand(2, -1, -1),
            corners(),
            labels,
            temperature=0.5,
            anchor_mean=anchor_mean,
        )
        loss.backward()
        return loss

    descent.step(closure)
    cosines = corners() @ corners().T
    return cosines.detach()[~torch.eye(4, dtype=torch.bool)]


def test_class_anchors_reach_the_simplex_on_a_long_tailed_batch():
    torch.testing.assert_close(
        optimum_of_free_vectors("class"), torch.full((12,), -1 / 3).double(), atol=1e-3, rtol=0
    )


def test_instance_anchors_miss_the_simplex_on_a_long_tailed_batch():
    assert optimum_of_free_vectors("instance").std() > 0.05


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_duplicating_a_negative_class_changes_only_its_prototypes_share(copies):
    """The prototype's weight in its class changes from 1 / (n_k + 1) to 1 / (2 n_k + 1)."""
    anchor, negatives, prototypes, tau = unit(1, 1, D), unit(1, 3, D, seed=2), unit(K, D), 0.2
    features = torch.cat([anchor, *[negatives] * copies], dim=1)
    labels = torch.tensor([0] + [1] * 3 * copies)
    share = balanced_contrastive_loss(
        anchor, prototypes, labels[:1], temperature=tau, keys=Keys(features, labels, 0)
    )
    to_negatives = (negatives[0] @ anchor[0, 0] / tau).exp().sum()
    to_prototypes = (prototypes @ anchor[0, 0] / tau).exp()
    negative = (copies * to_negatives + to_prototypes[1]) / (3 * copies + 1)
    denominator = to_prototypes[0] + negative + to_prototypes[2:].sum()
    assert_same(share * len(labels), denominator.log() - to_prototypes[0].log())


def test_tail_anchor_ignores_head_size():
    """A collapsed head class repels a tail anchor as strongly with 2 images as with 50."""
    head, tail = unit(D, seed=4), unit(2, 1, D, seed=5)
    prototypes = torch.cat([head[None], unit(K - 1, D, seed=6)])  # the head's is on the head

    def tail_loss(num_head: int) -> Tensor:
        features = torch.cat([head.expand(2, num_head, D), tail], dim=1)
        labels = torch.tensor([0] * num_head + [1])
        share = balanced_contrastive_loss(
            tail, prototypes, labels[-1:], temperature=0.1, keys=Keys(features, labels, num_head)
        )
        return share * len(labels)

    assert_same(tail_loss(50), tail_loss(2))


def test_head_size_drives_a_tail_anchor_in_supervised_contrast():
    """Without class averaging, the size of the head class does matter."""
    head, tail = unit(D, seed=4), unit(2, 1, D, seed=5)

    def tail_loss(num_head: int) -> float:
        features = torch.cat([head.expand(2, num_head, D), tail], dim=1)
        labels = torch.tensor([0] * num_head + [1])
        keys = Keys(features, labels, num_head)
        share = supervised_contrastive_loss(tail, labels[-1:], temperature=0.1, keys=keys)
        return share.item() * len(labels)

    assert tail_loss(50) > tail_loss(2) + 0.1


@settings(deadline=None, max_examples=25)
@given(
    labels=st.lists(st.integers(0, K - 1), min_size=1, max_size=9),
    seed=st.integers(0, 2**16),
    anchor_mean=st.sampled_from(MEANS),
)
def test_order_of_images_and_views_is_irrelevant(labels, seed, anchor_mean):
    features, prototypes, classes = problem(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = features.flip(0)[:, order]
    options = {"temperature": 0.1, "anchor_mean": anchor_mean}
    assert_same(
        balanced_contrastive_loss(shuffled, prototypes, classes[order], **options),
        balanced_contrastive_loss(features, prototypes, classes, **options),
    )
    assert_same(
        supervised_contrastive_loss(shuffled, classes[order], **options),
        supervised_contrastive_loss(features, classes, **options),
    )


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("anchor_mean", MEANS)
@pytest.mark.parametrize("loss", ["balanced", "supervised"])
def test_contrastive_shares_add_up_in_value_and_gradient(workers, anchor_mean, loss):
    labels = torch.tensor([0, 0, 0, 1, 0, 2, 0, 1, 4, 0, 2, 2])
    features = unit(2, 12, D).requires_grad_()
    prototypes = unit(K, D, seed=1).requires_grad_()
    options = {"temperature": 0.1, "anchor_mean": anchor_mean}

    def share(local: slice) -> Tensor:
        keys = Keys(features, labels, local.start)
        if loss == "balanced":
            return balanced_contrastive_loss(
                features[:, local], prototypes, labels[local], keys=keys, **options
            )
        anchored = supervised_contrastive_loss(
            features[:, local], labels[local], keys=keys, **options
        )
        return anchored + 0 * prototypes.sum()

    size = 12 // workers
    shares = sum(share(slice(start, start + size)) for start in range(0, 12, size))
    whole = share(slice(0, 12))
    assert_same(shares, whole)
    inputs = (features, prototypes)
    assert_same(gradients(shares, *inputs), gradients(whole, *inputs))


def test_cross_entropy_shares_add_up():
    logits, labels, log_prior = unit(12, K), torch.arange(12) % K, unit(K).log_softmax(0)
    whole = logit_adjusted_cross_entropy(logits, labels, log_prior, tau=1.0)
    shares = sum(
        logit_adjusted_cross_entropy(
            logits[start : start + 3], labels[start : start + 3], log_prior, tau=1.0, num_images=12
        )
        for start in range(0, 12, 3)
    )
    assert_same(shares, whole)


@pytest.mark.parametrize("temperature", [0.01, 10.0])
@pytest.mark.parametrize("labels", BATCHES, ids=str)
@pytest.mark.parametrize("num_views", [1, 2])
def test_extreme_temperatures_stay_finite_in_float32(temperature, labels, num_views):
    features, prototypes, classes = problem(labels, num_views)
    inputs = (features.float().requires_grad_(), prototypes.float().requires_grad_())
    got = balanced_contrastive_loss(*inputs, classes, temperature=temperature)
    expected = oracles.balanced_contrastive(features, prototypes, classes, temperature)
    assert got.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(got, *inputs))


def test_autocast_does_not_reach_the_losses():
    features, prototypes, labels = problem([0, 0, 1, 2])
    inputs = (features.float().requires_grad_(), prototypes.float().requires_grad_())

    def total() -> Tensor:
        return (
            balanced_contrastive_loss(*inputs, labels, temperature=0.07)
            + supervised_contrastive_loss(inputs[0], labels, temperature=0.07)
            + logit_adjusted_cross_entropy(inputs[0][0][:, :K], labels, torch.zeros(K), tau=1.0)
        )

    outside = total()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = total()
    assert inside == outside
    assert torch.equal(gradients(inside, *inputs)[0], gradients(outside, *inputs)[0])


@pytest.mark.parametrize("labels", BATCHES, ids=str)
@pytest.mark.parametrize("direction", [-1.0, 0.0, 1.0], ids=["opposite", "random", "aligned"])
def test_losses_and_gradients_stay_finite_under_autocast_at_a_low_temperature(labels, direction):
    features, prototypes, classes = problem(labels)
    if direction:
        features, prototypes = torch.ones_like(features), torch.full_like(prototypes, direction)
    inputs = [
        torch.nn.functional.normalize(vectors, dim=-1).bfloat16().requires_grad_()
        for vectors in (features, prototypes, 30 * features[0])
    ]
    log_prior = torch.tensor([0.0, -5, -10, -15, -20])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [
            balanced_contrastive_loss(*inputs[:2], classes, temperature=0.02),
            supervised_contrastive_loss(inputs[0], classes, temperature=0.02),
            logit_adjusted_cross_entropy(inputs[2][:, :K] / 0.02, classes, log_prior, tau=1.0),
        ]
    for loss in losses:
        found = torch.autograd.grad(loss, inputs, allow_unused=True)
        reached = [gradient for gradient in found if gradient is not None]
        assert loss.isfinite()
        assert reached
        assert all(gradient.isfinite().all() for gradient in reached)


def test_half_precision_features_are_widened():
    features, prototypes, labels = problem([0, 0, 1, 2])
    half = features.bfloat16(), prototypes.bfloat16()
    got = balanced_contrastive_loss(*half, labels, temperature=0.02)
    assert got.dtype == torch.float32
    wide = balanced_contrastive_loss(*(part.float() for part in half), labels, temperature=0.02)
    assert got == wide


def test_loss_starts_near_log_k():
    """Similarities near zero: every class mean is about exp(0)."""
    features, prototypes = unit(2, 64, 512), unit(100, 512, seed=1)
    labels = torch.arange(64) % 100
    loss = balanced_contrastive_loss(features, prototypes, labels, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(100), rel=0.05)


class NoHostReads(TorchDispatchMode):
    """Fails on operations that make the host wait for the device."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "bincount", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if name in self.FORBIDDEN:
            raise AssertionError(f"host synchronisation: {func.name()}")
        return func(*args, **(kwargs or {}))


def test_the_guard_against_host_reads_works():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostReads():
        float(torch.ones(1).sum())


@pytest.mark.parametrize("anchor_mean", MEANS)
def test_no_host_synchronisation_in_forward_and_backward(anchor_mean):
    features, prototypes, labels = problem([0, 0, 1, 2])
    features, prototypes = features.float().requires_grad_(), prototypes.float().requires_grad_()
    with NoHostReads():
        options = {"temperature": 0.1, "anchor_mean": anchor_mean}
        loss = (
            balanced_contrastive_loss(features, prototypes, labels, **options)
            + supervised_contrastive_loss(features, labels, **options)
            + logit_adjusted_cross_entropy(features[0][:, :K], labels, torch.zeros(K), tau=1.0)
        )
        loss.backward()
    assert features.grad is not None


def test_losses_run_without_any_values():
    """A fake tensor has a shape and nothing else, and refuses whatever would need a value."""
    with FakeTensorMode():
        features = torch.empty(2, 8, D, requires_grad=True)
        prototypes = torch.empty(K, D, requires_grad=True)
        labels = torch.empty(8, dtype=torch.int64)
        balanced_contrastive_loss(features, prototypes, labels, temperature=0.1).backward()
        supervised_contrastive_loss(features, labels, temperature=0.1).backward()
        with pytest.raises(DynamicOutputShapeException):
            labels.bincount()
    assert prototypes.grad.shape == (K, D)


class LargestResult(TorchDispatchMode):
    """Counts results of at least `size` elements that own new memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.storages = size, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= self.size:
            self.storages.add(result.untyped_storage().data_ptr())
        return result


def test_one_buffer_of_anchors_by_classes_is_all_there_is():
    num_classes = 3000
    features = unit(2, 16, 8).requires_grad_()
    prototypes = unit(num_classes, 8, seed=1).requires_grad_()
    labels = torch.arange(16) % 5
    with LargestResult(2 * 16 * num_classes) as seen:
        balanced_contrastive_loss(features, prototypes, labels, temperature=0.1).backward()
    assert len(seen.storages) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_host_synchronisation_on_a_gpu():
    features, prototypes, labels = problem([0, 0, 1, 2])
    features = features.float().cuda().requires_grad_()
    prototypes, labels = prototypes.float().cuda().requires_grad_(), labels.cuda()
    balanced_contrastive_loss(features, prototypes, labels, temperature=0.1).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        balanced_contrastive_loss(features, prototypes, labels, temperature=0.1).backward()
        supervised_contrastive_loss(features, labels, temperature=0.1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_losses_import_nothing_heavy():
    code = (
        "import sys; from bcl_ray.method import losses, metrics, optim, model;"
        "print(sorted({'ray', 'mlflow', 'torchvision', 'torchmetrics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def balanced(features=(2, 4, D), prototypes=(K, D), labels=(4,), keys=None, **options):
    local = torch.zeros(labels, dtype=torch.int64)
    options = {"temperature": 0.1, **options}
    return balanced_contrastive_loss(
        torch.zeros(features), torch.zeros(prototypes), local, keys=keys, **options
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": (4, D)}, r"features must have shape \(V, N, D\) .* got \(4, 7\)"),
        ({"features": (0, 4, D)}, r"without an axis of length 0, got \(0, 4, 7\)"),
        ({"labels": (3,)}, r"labels must have shape \(4,\), got \(3,\)"),
        ({"prototypes": (K, 3)}, r"prototypes must have shape \(K, 7\), got \(5, 3\)"),
        ({"temperature": 0.0}, r"loss.temperature \(0.0\) must be > 0"),
        ({"anchor_mean": "mean"}, r"loss.anchor_mean 'mean' must be 'instance' or 'class'"),
        (
            {"keys": Keys(torch.zeros(2, 8, D), torch.zeros(8, dtype=torch.int64), 5)},
            r"keys.offset \(5\) must be in \[0, 4\]: the 4 local images are part of the 8 images",
        ),
        (
            {"keys": Keys(torch.zeros(3, 8, D), torch.zeros(8, dtype=torch.int64), 0)},
            r"keys.features must have shape \(2, 8, 7\) .* got \(3, 8, 7\)",
        ),
    ],
)
def test_balanced_contrastive_loss_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        balanced(**arguments)


def test_supervised_contrast_refuses_a_single_view():
    with pytest.raises(ValueError, match="V >= 2 contrastive views, got 1: the only image"):
        supervised_contrastive_loss(
            torch.zeros(1, 4, D), torch.zeros(4, dtype=torch.int64), temperature=0.1
        )


def test_cross_entropy_names_the_shapes():
    with pytest.raises(ValueError, match=r"\(N, K\), \(N,\) and \(K,\), got \(4, 5\), \(4,\) and"):
        logit_adjusted_cross_entropy(
            torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), torch.zeros(6), tau=1.0
        )
