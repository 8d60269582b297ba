"""A function applied to many items on all nodes of the cluster, by tasks of Ray Data."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import ray.data
from ray import cloudpickle
from ray.data import ExecutionResources
from ray.exceptions import RayError

from bcl_ray.machine.errors import FailedError
from bcl_ray.machine.parallel import answer_to, result_of
from bcl_ray.ray_runtime.connection import one_line

# Items of one dataset. They are in the object store, a few MB each at most; and at the end of a
# dataset, CPUs wait for its last tasks.
SEGMENT = 8192


def map_on_cluster(
    function: Callable[[Any], Any], items: Iterable[Any], *, cpus: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Apply the function, each time in a task of one CPU; a `ParallelMap` of `machine.parallel`.

    Needs a connection to Ray. What a node that is lost has not returned is done again elsewhere.

    Args:
        function: A function that may be called again for an item.
        items: Items, which are pickled like the results, and small.
        cpus: CPUs to use at most; None: all.

    Raises:
        Exception: The function's own error.
        FailedError: Ray failed.
    """
    numbered = enumerate(items)
    while segment := list(itertools.islice(numbered, SEGMENT)):
        try:
            yield from _run_segment(function, segment, cpus)
        except RayError as error:
            raise FailedError(f"{one_line(error)}; run again: what is done stays") from error


def _run_segment(
    function: Callable[[Any], Any], segment: list[tuple[int, Any]], cpus: float | None
) -> Iterator[tuple[int, Any]]:
    rows = [
        {"position": position, "work": cloudpickle.dumps((function, item))}
        for position, item in segment
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _answer, batch_size=1, num_cpus=1
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        for position, answer in zip(batch["position"], batch["answer"], strict=True):
            yield int(position), result_of(answer)


def _answer(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Ray Data would lose the kind of an error that is raised here.
    answer = np.array([answer_to(batch["work"][0])], dtype=object)
    return {"position": batch["position"], "answer": answer}
