"""One of four workers on `cuda:0`, simulated on a machine without a GPU.

Tensors are FakeTensorMode's: they have a device, a shape and a type, but no values. A device
mix-up raises; so does any read of a value (`.item()`, `nonzero`, a boolean index), which on a
GPU would make the host wait. Copies between host and device raise here too, where they happen
within a step. What this cannot see: pinned memory and streams (torch's own checks of their
arguments are tested below), backward, which torch refuses without a card, autocast on CUDA, and
whether any kernel is right or fast. Those need a GPU: `make gpu`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from bcl_ray.data.views import device, operations, transfer
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES
from bcl_ray.method import evaluation, learner, loop, metrics
from bcl_ray.method.evaluation import collect_sample, evaluate
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs import checkpoint
from bcl_ray.use import models
from bcl_ray.use.models import open_checkpoint
from bcl_ray.use.predict import labeller
from bcl_ray.use.predict.labeller import Labeller

pytestmark = pytest.mark.slow

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
WORKERS, N, STEPS = 4, 4, 3
CLASS_COUNTS = np.array([150, 50, 5])
SMALL = ["model.hidden_dim=8", "model.feature_dim=6", "optim.global_batch_size=16"]
CASES = {
    "digits, sync": ("digits_lt", []),
    "CIFAR, AutoAugment and cutout": ("cifar10_lt", ["model.backbone=resnet8"]),
    "ImageNet, RandAugment": ("imagenet_lt", ["model.backbone=resnet18", "views.image_size=64"]),
    "blur": ("cifar10_lt", ["model.backbone=resnet8", "views.contrastive.blur=0.5"]),
    "linear, supervised": ("cifar10_lt", ["model.classifier=linear", "loss.kind=scl"]),
    "class mean": ("digits_lt", ["loss.anchor_mean=class", "optim.decay_norms_and_biases=false"]),
    "cross-entropy": ("digits_lt", ["loss.kind=ce"]),
    "logit-adjusted": ("imagenet_lt", ["model.backbone=resnet18", "loss.kind=logit_adjusted"]),
}


class Unpinned:
    """In the place of `transfer.CudaTransfer`, for tensors that have no values."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(
        self, pieces: transfer.Pieces, finish: transfer.Finish
    ) -> tuple[dict[str, torch.Tensor], None]:
        joined = {name: np.concatenate(arrays) for name, arrays in pieces.items()}
        sent = {name: torch.from_numpy(a).to(self._device) for name, a in joined.items()}
        return finish(sent), None


class NoCopies(TorchDispatchMode):
    """Refuses operations that wait for the device, and copies in the training thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            ends = (source.device.type, result.device.type)
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            if ends == ("cpu", "cuda") or (ends == ("cuda", "cpu") and waits):
                raise AssertionError(f"a copy from {ends[0]} to {ends[1]} within a step: {func}")
        return result


@pytest.fixture(autouse=True)
def _card(monkeypatch) -> Iterator[None]:
    """A group of workers without communication, and networks that torch can move to the GPU."""

    def real_network(*options: Any) -> TwoBranch:
        # Only parameters that are real can be moved to a device by FakeTensorMode.
        with unset_fake_temporarily():
            return TwoBranch(*options)

    for module in (learner, models):
        monkeypatch.setattr(module, "TwoBranch", real_network)
    monkeypatch.setitem(transfer.TRANSFERS, "cuda", Unpinned)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    clear_caches()
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=WORKERS)
    try:
        yield
    finally:
        dist.destroy_process_group()
        clear_caches()


def clear_caches() -> None:
    """Empty the caches of tensors per device: those of another test have another mode."""
    for made in (*vars(operations).values(), *vars(metrics).values()):
        if hasattr(made, "cache_clear"):
            made.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _batch_norm_kernels() -> Iterator[None]:
    """Register output shapes for torch's batch norm kernels, which torch does not define."""
    library = torch.library.Library("aten", "IMPL")

    def per_channel(input: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        statistics = input.new_empty(input.shape[1], dtype=torch.float32)
        return statistics, torch.empty_like(statistics)

    library.impl("batch_norm_stats", per_channel, "Meta")
    library.impl("batch_norm_gather_stats_with_counts", per_channel, "Meta")
    library.impl("batch_norm_elemt", lambda input, *_: torch.empty_like(input), "Meta")
    try:
        yield
    finally:
        library._destroy()


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def experiment(case: str, *options: str) -> Experiment:
    recipe, changes = CASES[case]
    always = ["data.path=x", "scale.workers=4", "train.ema_decay=0.9", *SMALL]
    return with_overrides(RECIPES[recipe](), [*always, *changes, *options])


def batches(of: Experiment, steps: int = STEPS, *, evaluated: bool = False) -> list[dict]:
    size, views = of.views.image_size, 1 + of.num_contrastive * (not evaluated)
    ids = np.arange(steps * N).reshape(steps, N)
    labels = np.arange(N) % len(CLASS_COUNTS)
    views = np.zeros((N, views, size, size, 3), np.uint8)
    return [{"views": views, "labels": labels, "ids": some} for some in ids]


def without_backward(trained: Learner, monkeypatch) -> None:
    """Replace backward by empty gradients, and do not read the values of a step."""

    def backward(_: torch.Tensor) -> None:
        for parameter in trained.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    def unread(_: int, told: torch.Tensor) -> Any:
        told.to("cpu", non_blocking=True)
        return frozenset

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(loop, "_copy_to_host", unread)
    monkeypatch.setattr(trained, "check", lambda: None)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("case", CASES)
def test_a_step_mixes_no_devices_and_waits_for_none(case, monkeypatch):
    of = experiment(case)
    trained = Learner(of, CLASS_COUNTS, STEPS, CARD)
    without_backward(trained, monkeypatch)
    sent = [trained.sender.send_training([batch], 0) for batch in batches(of)]
    list(train_epoch(trained, sent[:1], epoch=0))  # what is made once may wait
    with NoCopies():
        steps = list(train_epoch(trained, sent[1:], epoch=0))
    assert [step.step for step in steps] == [2, 3]
    assert all(step.images == N * WORKERS and step.terms.device == CARD for step in steps)
    assert {p.device for p in trained.model.parameters()} == {CARD}
    assert len(trained.optimizer.state) > 0


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "spoil",
    {
        "a value is read": lambda total: total * float(total.item()),
        "a tensor of the host": lambda total: total + torch.ones(3),
        "a blocking copy": lambda total: total.cpu().to(CARD),
        "an array is sent": lambda total: total + torch.from_numpy(np.ones(3)).to(CARD),
    }.values(),
)
def test_the_test_above_can_fail(spoil, monkeypatch):
    of = experiment("digits, sync")
    trained = Learner(of, CLASS_COUNTS, STEPS, CARD)
    without_backward(trained, monkeypatch)
    real = loop.loss_share
    sent = [trained.sender.send_training([batch], 0) for batch in batches(of)]
    list(train_epoch(trained, sent[:1], epoch=0))
    monkeypatch.setattr(
        loop, "loss_share", lambda *options: (spoil(real(*options)[0]).sum(), real(*options)[1])
    )
    with (
        pytest.raises((AssertionError, DataDependentOutputException, RuntimeError)) as raised,
        NoCopies(),
    ):
        list(train_epoch(trained, sent[1:], epoch=0))
    assert "card" not in str(raised.value)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("asked", [evaluate, collect_sample])
def test_evaluation_and_geometry_s_sample_read_nothing_before_their_end(case, asked, monkeypatch):
    of = experiment(case)
    trained = Learner(of, CLASS_COUNTS, STEPS, CARD)
    gathered = []

    def noted(rows: torch.Tensor) -> torch.Tensor:
        gathered.append(rows)
        return rows

    # Where it gathers, over workers, it may read how many rows there are.
    monkeypatch.setattr(evaluation, "gather_rows", noted)
    monkeypatch.setattr("bcl_ray.method.sample.gather_rows", noted)
    options: dict[str, Any] = {"experiment": of, "device": CARD}
    if asked is evaluate:
        options |= {"class_counts": CLASS_COUNTS, "rows": N, "shares": np.ones(3)}
    with contextlib.suppress(DataDependentOutputException, RuntimeError):  # values are read now
        asked(trained.evaluation_model, batches(of, evaluated=True), **options)
    assert len(gathered) == (5 if asked is evaluate else 4)  # columns
    assert {rows.device for rows in gathered} == {CARD}


def test_a_labeller_s_network_and_views_are_on_the_card(tmp_path, monkeypatch):
    of = experiment("CIFAR, AutoAugment and cutout")
    checkpoint.save(some_state(of), tmp_path)
    uri, opened = str(tmp_path), open_checkpoint(str(tmp_path), "model")
    monkeypatch.setattr(labeller, "open_checkpoint", lambda *_: opened)
    views = batches(of, 1, evaluated=True)[0]["views"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        ours = Labeller(uri, checkpoint.sha256(uri), top=2, embeddings=True, device=CARD)
        found = ours._label(views)
        shapes = {name: (tuple(t.shape), t.device.type) for name, t in found.items()}
    assert shapes == {
        "classes": ((N, 2), "cpu"),
        "probabilities": ((N, 2), "cpu"),
        "embedding": ((N, 64), "cpu"),
    }


def some_state(of: Experiment) -> checkpoint.State:
    """Of a worker that trained on a CPU."""
    trained = Learner(of, CLASS_COUNTS, STEPS, CPU)
    for parameter in trained.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trained.optimizer.step()
    trained.step = 1
    about = {"fingerprint": "f", "class_names": ["a", "b", "c"], "uid": "u"}
    return trained.state(history=[], class_counts=CLASS_COUNTS.tolist(), **about)


def test_a_state_of_a_cpu_goes_on_on_the_card_and_comes_back(tmp_path, monkeypatch):
    of = experiment("digits, sync")
    checkpoint.save(some_state(of), tmp_path / "cpu")
    state = checkpoint.load(tmp_path / "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trained = Learner(of, CLASS_COUNTS, STEPS, CARD)
        trained.restore(state)
        moments = [s["momentum_buffer"] for s in trained.optimizer.state.values()]
        assert {tensor.device for tensor in moments} == {CARD}
        without_backward(trained, monkeypatch)
        list(train_epoch(trained, batches(of, 1), epoch=0))
        kept = trained.state(
            history=[], fingerprint="f", class_names=["a"], class_counts=[1], uid="u"
        )
        copied = {name: tensor.cpu() for name, tensor in kept.model.items()}
    assert copied.keys() == state.model.keys()
    assert all(copied[name].shape == tensor.shape for name, tensor in state.model.items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tensors", ["fake", "real"])
def test_bfloat16_and_backward_pass_on_a_cpu(tensors, case, monkeypatch):
    """Replace what torch cannot do without a real GPU: autocast and the engine of backward."""
    of = experiment(case, "train.precision=bfloat16")
    mode = FakeTensorMode(allow_non_fake_inputs=True) if tensors == "fake" else None
    monkeypatch.setattr(learner, "TwoBranch", TwoBranch)
    with mode or contextlib.nullcontext():
        if mode:
            monkeypatch.setattr(TwoBranch, "to", lambda self, *_, **__: self)
        trained = Learner(of, CLASS_COUNTS, STEPS, CPU)
        sent = trained.sender.send_training(batches(of, 1), 0)
        arrays = sent.arrived()
        views = device.augment(arrays["views"], sent.passes, arrays, of.views)
        with trained.autocast:
            outputs = trained.model(views)
        total, terms = loop.loss_share(outputs, arrays["labels"], trained.log_prior, of.loss)
        total.backward()
        trained.gradients.finish(terms)
        trained.optimizer.step()
        assert {t.dtype for t in (*outputs, total)} == {torch.float32}
        reached = [p for p in trained.model.parameters() if p.grad is not None]
        assert all(p.grad.dtype == torch.float32 for p in reached)
        assert len(reached) > 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the gpu-marked tests see it")
def test_torch_accepts_how_memory_is_pinned_but_for_the_missing_driver():
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        transfer._Buffer().reserve(16)


def test_torch_refuses_to_pin_what_it_makes_of_an_array():
    """Why buffers are filled, not made from arrays; torch checks this before it needs a GPU."""
    with pytest.raises(RuntimeError, match="Can't pin tensor constructed from numpy"):
        torch.tensor(np.zeros(3), pin_memory=True)
