"""Kernel launches of a training step: `python -m benchmarks.launches`, about two minutes, no GPU.

Counted are calls of ATen operations that compute or copy; those that only make another view of
memory, or allocate it, launch nothing. One call counts as one launch. A foreach call, which
launches one kernel for some tens of tensors, therefore counts once, and an operation that cuDNN
or a sort does in several kernels does so too: the numbers compare versions of this code, they do
not replace a profile. How many images there are and how large they are changes none of them.

Device views run on fake tensors on cuda:0, with what was drawn for a real batch: how many passes
there are depends on it. The other parts run on real CPU tensors of small images, because fake
CUDA tensors have no backward; a fake process group stands for the other three workers.
"""

import contextlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from bcl_ray.data.views import device
from bcl_ray.data.views.operations import constants
from bcl_ray.experiment.options import Experiment, ViewsConfig
from bcl_ray.experiment.recipes import cifar100_lt, imagenet_lt
from bcl_ray.method import loop
from bcl_ray.method.learner import Learner
from benchmarks import print_table

WORKERS, BATCHES = 4, 5
PRECISIONS = ("float32", "bfloat16")
VIEWS, BACKWARD, GRADIENTS, REST = "device views", "backward", "gradient sum", "rest"
PARTS = (VIEWS, "forward", "loss", BACKWARD, GRADIENTS, "optimiser", "weights' average", REST)
_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_NO_KERNEL = _ALLOCATES | {"detach", "lift_fresh", "_local_scalar_dense", "set_", "resize_"}


class Launches(TorchDispatchMode):
    """Counts the launches of the part that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._part = REST

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library, _, name = func._schema.name.partition("::")
        # Of other libraries, `prim` asks fake tensors where they are; `c10d` are the collectives.
        if library in {"aten", "c10d"} and name not in _NO_KERNEL and not _is_view(func):
            self.counts[self._part] += 1
        return func(*args, **(kwargs or {}))

    def counted_as(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose launches are this part's."""

        def wrapped(*args: Any, **options: Any) -> Any:
            before, self._part = self._part, part
            try:
                return function(*args, **options)
            finally:
                self._part = before

        return wrapped


def _is_view(func: Any) -> bool:
    """Whether what an operation returns is its argument's memory, unchanged."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def views_launches(config: ViewsConfig, num_images: int) -> int:
    """Median over batches."""
    counts = []
    for batch in range(BATCHES):
        ids = np.arange(num_images) + batch * num_images
        drawn = device.draw_augmentations(ids, config, num_views=3, seed=0, epoch=0)
        size = config.image_size
        with FakeTensorMode() as fake:
            arrays = {
                name: fake.from_tensor(torch.from_numpy(array)).to("cuda:0")
                for name, array in drawn.arrays.items()
            }
            shape = (num_images, 3, size, size, 3)
            views = torch.empty(shape, dtype=torch.uint8, device="cuda:0")
            constants.cache_clear()
            device.augment(views, drawn.passes, arrays, config)  # sends constants once
            with Launches() as launches:
                device.augment(views, drawn.passes, arrays, config)
            constants.cache_clear()
        counts.append(launches.counts.total())
    return int(statistics.median(counts))  # of an odd number of them


def step_launches(learner: Learner) -> Counter[str]:
    """Of one training step but for its device views."""
    size, counted = learner.experiment.views.image_size, Launches()
    batch: dict[str, np.ndarray] = {
        "views": np.zeros((4, 3, size, size, 3), np.uint8),
        "labels": np.arange(4),
        "ids": np.arange(4),
    }
    parts: list[tuple[Any, str, str]] = [
        (learner.model, "forward", "forward"),
        (loop, "loss_share", "loss"),
        (torch.Tensor, "backward", BACKWARD),
        (learner.gradients, "finish", GRADIENTS),
        (learner.optimizer, "step", "optimiser"),
        (learner, "move_average", "weights' average"),
    ]
    views = torch.rand(3, 4, 3, size, size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(loop, "augment", return_value=views))
        for owner, name, part in parts:
            function = counted.counted_as(part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, function))
        sent = learner.sender.send_training([batch], 0)
        loop._train_step(learner, sent, frozenset())  # the optimiser makes its buffers
        stack.enter_context(counted)
        counted.counts.clear()
        loop._train_step(learner, sent, frozenset())
    return counted.counts


def made(experiment: Experiment, precision: str) -> Learner:
    train = experiment.train.model_copy(update={"precision": precision, "ema_decay": 0.999})
    size = 32
    views = experiment.views.model_copy(update={"image_size": size, "eval_resize": size})
    small = experiment.model_copy(update={"train": train, "views": views})
    learner = Learner(small, np.full(100, 10), 10, torch.device("cpu"))
    for group in learner.optimizer.param_groups:
        if not group["fused"] and group["foreach"] is None:
            group["foreach"] = True  # what torch takes on a GPU
    return learner


def launches(experiment: Experiment, precision: str) -> Counter[str]:
    """By part, but for device views."""
    alone = made(experiment, precision)
    with workers():
        shared = step_launches(made(experiment, precision))
        # Without the hooks that sum gradients, so that what they do in backward is theirs.
        backward = step_launches(alone)[BACKWARD]
    shared[GRADIENTS] += shared[BACKWARD] - backward
    shared[BACKWARD] = backward
    return shared


@contextlib.contextmanager
def workers() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORKERS)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    imagenet = imagenet_lt()
    model = imagenet.model.model_copy(update={"backbone": "resnet50"})
    recipes = {
        "cifar100_lt": (cifar100_lt(), 256),
        "imagenet_lt, ResNet-50": (imagenet.model_copy(update={"model": model}), 64),
    }
    columns = {}
    for name, (experiment, num_images) in recipes.items():
        views = views_launches(experiment.views, num_images)
        for precision in PRECISIONS:
            counts = launches(experiment, precision)
            counts[VIEWS] = views
            columns[f"{name}, {precision}"] = counts
    rows = [(part, *(counts[part] for counts in columns.values())) for part in PARTS]
    rows.append(("all", *(counts.total() for counts in columns.values())))
    print_table("Launches of a training step", ["part", *columns], rows)


if __name__ == "__main__":
    main()
