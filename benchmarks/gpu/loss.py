"""The balanced contrastive loss, forward and backward, against the published computation."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks import loss
from benchmarks.gpu.machine import never_waited_for, peak_mib, versus
from benchmarks.gpu.report import FAILED, OK, SKIPPED, Row
from benchmarks.gpu.supervise import Settings

SIZES = [(1000, 256, 1024), (8142, 256, 1024), (100_000, 256, 1024)]  # K, N, D
TINY = [(50, 16, 32), (200, 16, 32), (1000, 16, 32)]
GOALS = {8142: 50.0}
PUBLISHED_UP_TO = 8142  # beyond it, its one-hot matrix fills the memory


def run(settings: Settings) -> Iterator[Row]:
    device = torch.device(settings.device)
    for size in TINY if settings.smoke else SIZES:
        inputs = inputs_on(device, size)
        if size[0] <= PUBLISHED_UP_TO:
            yield from against_published(inputs, device, settings)
        else:
            mine, limit = versus(
                partial(step, loss.ours, *inputs), partial(loss.products, *inputs), device
            )
            yield _row(f"K = {size[0]:,}", mine, limit, "matrix products alone", None)
        if settings.left < 0:
            yield Row("", "larger K", outcome=SKIPPED, note="no time left")
            return
    yield unwaited(inputs_on(device, (TINY if settings.smoke else SIZES)[0]), device)


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
    yield _row(f"K = {classes:,}", *taken, "as published", goal, memory)
    taken = versus(mine, no_loop, device)
    yield _row(f"K = {classes:,}", *taken, "published, without its loop over items", None)


def _row(
    what: str,
    mine: float,
    theirs: float,
    against: str,
    goal: float | None,
    detail: dict[str, float | None] | None = None,
) -> Row:
    return Row(
        "", what, mine * 1e3, "ms", theirs * 1e3, against, theirs / mine, goal, detail=detail or {}
    )


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
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def inputs_on(device: torch.device, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    features, prototypes, labels = (t.detach().to(device) for t in loss.make_inputs(*size))
    return features.requires_grad_(), prototypes.requires_grad_(), labels
