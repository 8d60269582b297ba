"""The balanced contrastive loss, forward and backward, against the published computation."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import loss
from benchmarks.gpu.machine import device_of, never_waited_for, peak_mib, versus
from benchmarks.gpu.report import FAILED, OK, SKIPPED, Row
from benchmarks.gpu.supervise import Settings

SIZES = [(1000, 256, 1024), (8142, 256, 1024), (100_000, 256, 1024)]  # K, N, D
TINY = [(50, 16, 32), (200, 16, 32), (1000, 16, 32)]
GOALS = {8142: 50.0}


def run(settings: Settings) -> Iterator[Row]:
    device = device_of(settings)
    *compared, last = TINY if settings.smoke else SIZES
    for size in compared:
        yield from against_published(inputs_on(device, size), device, settings)
    inputs = inputs_on(device, last)  # the published one-hot matrix alone would fill the memory
    taken = versus(partial(step, loss.ours, *inputs), partial(loss.products, *inputs), device)
    yield _row(f"K = {last[0]:,}", taken, "matrix products alone")
    yield unwaited(inputs_on(device, compared[0]), device)


def against_published(
    inputs: tuple[Tensor, Tensor, Tensor], device: torch.device, settings: Settings
) -> Iterator[Row]:
    """As published, with its loop over items in Python; and as forks that have mended the loop."""
    classes = len(inputs[1])
    mine = partial(step, loss.ours, *inputs)
    loop = partial(step, loss.published, *inputs)
    no_loop = partial(step, partial(loss.published, row_by_row=False), *inputs)
    torch.testing.assert_close(mine(), loop(), rtol=1e-3, atol=0)
    memory = {"ours_mib": peak_mib(mine, device), "published_mib": peak_mib(loop, device)}
    taken = versus(mine, loop, device)
    goal = settings.goal(GOALS[classes]) if classes in GOALS else None
    yield _row(f"K = {classes:,}", taken, "as published", goal=goal, detail=memory)
    taken = versus(mine, no_loop, device)
    yield _row(f"K = {classes:,}", taken, "published, without its loop")


def _row(what: str, taken: tuple[float, float], against: str, **more: Any) -> Row:
    """Milliseconds of both sides."""
    mine, theirs = (seconds * 1e3 for seconds in taken)
    return Row("", what, mine, "ms", theirs, against, theirs / mine, **more)


def unwaited(inputs: tuple[Tensor, Tensor, Tensor], device: torch.device) -> Row:
    """Whether a step of the loss makes the host wait."""
    what = "the host never waits for the loss"
    if device.type == "cpu":
        step(loss.ours, *inputs)
        return Row("", what, outcome=SKIPPED, note="a CPU cannot tell")
    try:
        with never_waited_for(device):
            taken = some_steps(inputs)
    except RuntimeError as error:
        return Row("", what, outcome=FAILED, note=str(error).splitlines()[0])
    return Row("", what, taken, "steps", outcome=OK)


def some_steps(inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    steps = 3
    for _ in range(steps):
        step(loss.ours, *inputs)
    return steps


def step(compute: loss.Loss, features: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward; the value stays on the device."""
    features.grad = prototypes.grad = None
    value = compute(features, prototypes, labels)
    value.backward()
    return value.detach()


def inputs_on(device: torch.device, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    features, prototypes, labels = (t.detach().to(device) for t in loss.make_inputs(*size))
    return features.requires_grad_(), prototypes.requires_grad_(), labels
