"""A bare pool of processes that does what data tasks do: read, decode and crop."""

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from bcl_ray.training.tasks import Batch, Task, TaskSource, split_block

_source: TaskSource


def _remember(source: TaskSource) -> None:
    global _source  # noqa: PLW0603  a pool's worker has nowhere else to keep it
    _source = source


def _load(task: Task) -> list[Batch]:
    return list(_source.load(task))


def pooled_blocks(
    source: TaskSource, tasks: Iterable[Task], processes: int
) -> Generator[Batch, None, None]:
    """One block per read of the tasks, in order; two tasks ahead for each process."""
    with multiprocessing.get_context("spawn").Pool(processes, _remember, (source,)) as pool:
        running: deque[tuple[Task, Any]] = deque()

        def first() -> Iterator[Batch]:
            task, result = running.popleft()
            for portion, block in zip(task.portions, result.get(), strict=True):
                yield from split_block(portion, block)

        for task in tasks:
            running.append((task, pool.apply_async(_load, (task,))))
            if len(running) > 2 * processes:
                yield from first()
        while running:
            yield from first()
