"""Tests that need a GPU; `make gpu` runs them."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, digits_lt
from bcl_ray.method import batch_norm
from bcl_ray.method.batch_norm import SyncBatchNorm
from bcl_ray.method.evaluation import collect_sample, evaluate
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.runs import checkpoint
from bcl_ray.runs.checkpoint import Snapshots

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
COUNTS = np.array([150, 50, 5])
OPTIONS = ["data.path=x", "optim.global_batch_size=32", "train.precision=float32"]


def some_batches(of, steps: int, *, evaluated: bool = False) -> list[dict[str, np.ndarray]]:
    """Images whose brightness is their class, with noise."""
    generator = np.random.default_rng(0)
    size, views = of.views.image_size, 1 + of.num_contrastive * (not evaluated)
    labels = generator.integers(0, 3, (steps, 32))
    noise = generator.integers(0, 60, (steps, 32, views, size, size, 3))
    pixels = (noise + 80 * labels[:, :, None, None, None, None]).astype(np.uint8)
    ids = np.arange(steps * 32).reshape(steps, 32)
    return [
        {"views": v, "labels": label, "ids": i}
        for v, label, i in zip(pixels, labels, ids, strict=True)
    ]


def test_batches_arrive_whole_while_the_device_is_busy_and_buffers_are_filled_again():
    of = with_overrides(cifar10_lt(), OPTIONS)
    sender, batches = Sender(CARD, of.views), some_batches(of, 20)
    work = torch.randn(4096, 4096, device=CARD)
    sent = []
    for batch in batches:
        halves = [
            {name: array[half] for name, array in batch.items()}
            for half in (slice(0, 10), slice(10, 32))
        ]
        sent.append(sender.send_training(halves, 0))
        work = work @ work / 4096  # the copies have to wait for nothing of this
    for batch, found in zip(batches, sent, strict=True):
        arrays = found.arrived()
        for name, expected in batch.items():
            assert arrays[name].device == CARD
            np.testing.assert_array_equal(arrays[name].cpu().numpy(), expected)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5, 7)])
def test_batch_norm_with_kernels_is_torch_s_for_one_worker(shape, tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        values = torch.randn(shape, device=CARD)
        norm = SyncBatchNorm(3).to(CARD)
        nn.init.uniform_(norm.weight)
        mean, variance = norm.running_mean.clone(), norm.running_var.clone()
        found, expected = (values.clone().requires_grad_() for _ in range(2))
        ours = batch_norm._normalise_by_cuda_kernels(norm, found)
        (ours * torch.arange(ours.numel(), device=CARD).view_as(ours)).sum().backward()
        gradients = [norm.weight.grad.clone(), norm.bias.grad.clone()]
        norm.zero_grad()
        theirs = functional.batch_norm(
            expected, mean, variance, norm.weight, norm.bias, True, norm.momentum, norm.eps
        )
        (theirs * torch.arange(ours.numel(), device=CARD).view_as(ours)).sum().backward()
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(gradients, [norm.weight.grad, norm.bias.grad])
        torch.testing.assert_close([norm.running_mean, norm.running_var], [mean, variance])
    finally:
        dist.destroy_process_group()


def test_a_snapshot_keeps_its_bits_while_the_device_trains_on():
    of = with_overrides(digits_lt(), [*OPTIONS, "train.ema_decay=0.9"])
    learner, snapshots = Learner(of, COUNTS, 8, CARD), Snapshots()
    about = {"history": [], "fingerprint": "f", "class_names": list("abc"), "uid": "u"}
    for epoch in range(2):  # the second time into the same memory
        list(train_epoch(learner, some_batches(of, 4), epoch=epoch))
        expected = {name: tensor.cpu() for name, tensor in learner.model.state_dict().items()}
        taken = snapshots.take(learner.state(class_counts=COUNTS.tolist(), **about))
        list(train_epoch(learner, some_batches(of, 1), epoch=9))
        assert all(tensor.is_pinned() for tensor in taken.model.values())
        for name, tensor in expected.items():
            assert torch.equal(taken.model[name], tensor), name
        assert not torch.equal(taken.sums, learner.sums.cpu())


@pytest.mark.parametrize("recipe", [digits_lt, cifar10_lt])
def test_a_worker_s_life_is_that_on_a_cpu_to_rounding(recipe, tmp_path):
    of = with_overrides(recipe(), [*OPTIONS, "model.backbone=resnet8", "train.ema_decay=0.9"])
    found = {}
    for device in (CPU, CARD):
        learner = Learner(of, COUNTS, 4, device)
        terms = [s.terms.cpu() for s in train_epoch(learner, some_batches(of, 2), epoch=0)]
        about = {"history": [], "fingerprint": "f", "class_names": list("abc"), "uid": "u"}
        checkpoint.save(
            learner.state(class_counts=COUNTS.tolist(), **about), tmp_path / device.type
        )
        learner = Learner(of, COUNTS, 4, device)
        learner.restore(checkpoint.load(tmp_path / device.type))
        terms += [s.terms.cpu() for s in train_epoch(learner, some_batches(of, 2), epoch=0)]
        options = {"experiment": of, "device": device}
        whole = some_batches(of, 3, evaluated=True)
        evaluation = evaluate(
            learner.evaluation_model,
            whole,
            class_counts=COUNTS,
            rows=96,
            shares=np.ones(3),
            **options,
        )
        sample = collect_sample(learner.evaluation_model, whole, **options)
        found[device] = (torch.stack(terms), evaluation, sample)
    ours, theirs = found[CARD], found[CPU]
    torch.testing.assert_close(ours[0], theirs[0], rtol=0.02, atol=0.02)
    assert ours[1].metrics["loss/nll"] == pytest.approx(theirs[1].metrics["loss/nll"], rel=0.05)
    torch.testing.assert_close(ours[2].ids, theirs[2].ids)
    torch.testing.assert_close(ours[2].embeddings, theirs[2].embeddings, rtol=0.1, atol=0.05)


def test_tf32_rounds_convolutions_and_float32_does_not():
    torch.manual_seed(0)
    images, weight = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
    exact = functional.conv2d(images.double(), weight.double())
    errors = {}
    for precision in ("float32", "tf32"):
        of = with_overrides(digits_lt(), [f"train.precision={precision}", "data.path=x"])
        Learner(of, COUNTS, 4, CARD)
        result = functional.conv2d(images.to(CARD), weight.to(CARD)).double().cpu()
        errors[precision] = (result - exact).abs().max().item()
    assert errors["float32"] < 1e-3 < errors["tf32"]
