"""The supplier: one Ray Data execution that makes the blocks of many workers.

Ray divides the free CPUs of each node by the number of running executions, and drops the remainder:
with one execution per worker, and another one for each evaluation, little or nothing is left
(benchmarks/supply.py). So the workers of a node, or of several nodes, share one execution, which
lasts as long as the run and serves evaluations as well.

The execution has two stages. The first is a single task that asks the supplier for the next data
tasks, again and again: so there is no list of all tasks of a large data set, and no end to wait for
between epochs. The second runs data tasks on CPUs. Their blocks arrive in the order of
`Assignment.deliveries`, and wait for their workers here, as references: the images stay in the
object store of the node that made them until a worker needs them. Data tasks do not import torch,
which would take seconds in each process.

The supplier is a process of its own, since Ray Data's control loop uses the interpreter all the
time, and so does a training step.
"""

import asyncio
import functools
import itertools
import logging
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import Dataset, ExecutionResources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bcl_ray.ray_runtime.internals import ExecutionCallback, ResourceManager, generator_limit
from bcl_ray.training.deliveries import Assignment, Purpose
from bcl_ray.training.tasks import TaskSource, packed

ISSUED_TASKS = 1024  # given to Ray Data and not complete, at most; each is a few kB
ISSUED_AT_ONCE = 16
READY_BLOCKS = 2  # per worker, that wait here; more wait in Ray Data, which limits their bytes
EXECUTION_TASKS = 100_000  # then a new execution begins: Ray Data keeps statistics of all blocks
STEP_PAUSE = 0.01  # seconds
LIMITS_INTERVAL = 0.2  # seconds; how often Ray Data asks which CPUs it has, before its first task
STORE_SHARE = 0.5  # of the cluster's object store, for the blocks of all suppliers of a run

Labels = Mapping[str, str]
Recipient = tuple[int, Purpose]  # a worker's rank, and what it needs a block for


class Supplier:
    """An actor that runs Ray Data for some workers; `start_supplier` starts one.

    Args:
        assignment: What to deliver, and to which workers.
        share: Share of the run's limits (scale.data_cpus, object store) that this supplier has.
        nodes: Labels of the nodes on which data tasks run; empty for all nodes.
    """

    def __init__(self, assignment: Assignment, share: float, nodes: Labels) -> None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        self._assignment, self._share, self._nodes = assignment, share, nodes
        self._deliveries = assignment.deliveries()
        self._exhausted = False
        self._issued = 0  # tasks of the present execution
        # Recipient of each block of the issued tasks, and whether the block is its task's last.
        self._expected: deque[tuple[Recipient, bool]] = deque()
        self._delivered: Counter[Recipient] = Counter()  # blocks so far
        # Blocks that nobody has taken yet, and those that workers already wait for, by recipient
        # and number.
        self._blocks: dict[tuple[Recipient, int], asyncio.Future[Any]] = {}
        self._error: BaseException | None = None
        self._may_issue = asyncio.Semaphore(ISSUED_TASKS)
        self._room = threading.Semaphore(READY_BLOCKS * len(assignment.ranks))

    async def start(self) -> None:
        """Start Ray Data."""
        loop, actor = asyncio.get_running_loop(), ray.get_runtime_context().current_actor
        threading.Thread(target=self._run, args=(loop, actor), daemon=True).start()

    async def take(self, rank: int, purpose: Purpose, number: int) -> list[Any]:
        """Wait for one of a worker's blocks; each is taken once.

        Args:
            rank, purpose: The worker, and what it needs the block for.
            number: Number of the block, from 0. Calls that wait at the same time may come in
                another order than they were made in.

        Returns:
            The block's reference alone; in a list, so that Ray does not fetch the block.

        Raises:
            Exception: That of a data task, or of Ray Data.
        """
        key = ((rank, purpose), number)
        block = await self._future(key)
        del self._blocks[key]
        self._room.release()
        return [block]

    async def issue(self) -> list[bytes]:
        """The next data tasks, for Ray Data's first stage; an empty list ends the execution."""
        left = min(ISSUED_AT_ONCE, EXECUTION_TASKS - self._issued)
        deliveries = list(itertools.islice(self._deliveries, left))
        self._exhausted = left > 0 and not deliveries
        self._issued += len(deliveries)
        for rank, purpose, task in deliveries:
            await self._may_issue.acquire()
            is_last = [False] * (len(task.portions) - 1) + [True]
            self._expected.extend(((rank, purpose), last) for last in is_last)
        return [pickle.dumps((purpose, task)) for _, purpose, task in deliveries]

    def _run(self, loop: asyncio.AbstractEventLoop, actor: Any) -> None:
        """Run executions until everything is delivered; in a thread."""
        # Any: the attribute is typed as int, and this is a fraction of a second.
        manager: Any = ResourceManager
        manager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_INTERVAL
        try:
            while not self._exhausted:
                self._issued = 0
                for bundle in self._dataset(actor).iter_internal_ref_bundles():
                    for block in bundle.block_refs:
                        self._room.acquire()
                        loop.call_soon_threadsafe(self._deliver, block)
        except BaseException as error:  # workers raise it
            loop.call_soon_threadsafe(self._fail, error)

    def _deliver(self, block: Any) -> None:
        recipient, is_last = self._expected.popleft()
        self._future((recipient, self._delivered[recipient])).set_result(block)
        self._delivered[recipient] += 1
        if is_last:
            self._may_issue.release()

    def _future(self, key: tuple[Recipient, int]) -> asyncio.Future[Any]:
        future = self._blocks.get(key)
        if future is None:
            future = self._blocks[key] = asyncio.get_running_loop().create_future()
            if self._error is not None:
                future.set_exception(self._error)
        return future

    def _fail(self, error: BaseException) -> None:
        self._error = error
        for future in self._blocks.values():
            if not future.done():
                future.set_exception(error)

    def _dataset(self, actor: Any) -> Dataset:
        scale = self._assignment.experiment.scale
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        issued = ray.data.from_items([0], override_num_blocks=1).map_batches(
            functools.partial(_issued_tasks, actor),
            batch_size=None,
            num_cpus=0,
            label_selector=here,
            max_retries=0,  # another attempt would get other tasks
            **generator_limit(2 * ISSUED_AT_ONCE),
        )
        dataset = issued.map_batches(
            functools.partial(_run_task, self._assignment.sources()),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=scale.cpus_per_data_task,
            label_selector=dict(self._nodes),
            # Where no such node has CPUs at all, any node.
            fallback_strategy=[{"label_selector": {}}] if self._nodes else None,
            # A task has few blocks. Between two of them it does not wait for Ray Data's loop.
            **generator_limit(-1),
        )
        context = dataset.context
        context.enable_progress_bars = False
        context.custom_execution_callback_classes.append(PausingCallback)
        context.target_max_block_size = 1  # each value that a function yields is a block
        options = context.execution_options
        options.preserve_order = True
        store = ray.cluster_resources()["object_store_memory"]
        options.resource_limits = ExecutionResources.for_limits(
            cpu=scale.data_cpus and self._share * scale.data_cpus,  # None stays None: no limit
            object_store_memory=self._share * STORE_SHARE * store,
        )
        return dataset


class PausingCallback(ExecutionCallback):
    """Pauses Ray Data's control loop after each of its steps.

    Without a pause it repeats its steps as fast as it can while finished tasks wait for the
    consumer, and keeps a CPU busy that data tasks need (measured 2026-11, Ray 2.60.0).
    """

    def on_execution_step(self, _: Any) -> None:
        """Sleep for a time that is short compared with a task's."""
        time.sleep(STEP_PAUSE)


def _issued_tasks(supplier: Any, _: Any) -> Iterator[pa.Table]:
    """Ray Data's first stage."""
    while tasks := ray.get(supplier.issue.remote()):
        for task in tasks:
            yield pa.table({"task": pa.array([task], pa.binary())})


def _run_task(sources: Mapping[Purpose, TaskSource], item: pa.Table) -> Iterator[pa.Table]:
    """Ray Data's second stage: the blocks of one task."""
    purpose, task = pickle.loads(item["task"][0].as_py())  # noqa: S301  our own bytes, from `issue`
    yield from map(packed, sources[purpose].load(task))


def start_supplier(
    assignment: Assignment, *, node: str, share: float = 1.0, nodes: Labels | None = None
) -> Any:
    """Start a supplier; it ends when nothing refers to its handle any more.

    Args:
        assignment: What to deliver, and to which workers.
        node: Id of the node that it runs on.
        share: Share of the run's limits that it has, more than 0 and at most 1.
        nodes: Labels of the nodes on which data tasks run; None for all nodes.

    Returns:
        The actor's handle.
    """
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    remote: Any = ray.remote  # Ray's types know neither this strategy nor a concurrency
    actor_class = remote(num_cpus=0, scheduling_strategy=strategy, max_concurrency=1000)(Supplier)
    supplier = actor_class.remote(assignment, share, nodes or {})
    supplier.start.remote()
    return supplier
