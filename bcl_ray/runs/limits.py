"""What limits the speed of a run: its parts, each with the images a second that it allows.

A part is a function of the run, of machines and of the rates of `bcl_ray.runs.rates`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs.budget import Budget
from bcl_ray.runs.rates import CPU, GPUS, Rate, training_rate

PASSES = 3  # operations of training, in forward passes: forward is 1, backward is 2

MOMENTS = {"sgd": 1, "adamw": 2}  # numbers that an optimiser keeps for each weight


@dataclass(frozen=True)
class Work:
    """What one training image costs; see `bcl_ray.method.cost`."""

    views: int  # 1 + V
    image_size: int  # H = W of a view, pixels
    encoded_bytes: float  # mean of the shards
    operations: float  # of a forward pass of one view
    step_operations: float  # of a forward pass, for any number of images: prototypes
    parameter_bytes: int  # of the network's state, float32
    activation_bytes: float  # float32, that backward needs, of all views of an image

    @property
    def view_bytes(self) -> int:
        """Bytes of the uint8 views of an image."""
        return 3 * self.image_size**2 * self.views


@dataclass(frozen=True)
class Machines:
    """The part of a cluster that a run uses."""

    device: str
    """Key of `rates.GPUS`, or "cpu"."""
    workers: int
    worker_nodes: int
    data_nodes: int
    """Nodes without workers."""
    cpus: float
    """Of all these nodes."""
    data_node_cpus: float = 0.0
    """Those of nodes without workers."""
    store_bytes: float | None = None
    """Ray's object store, of all nodes; None if unknown."""
    price: float | None = None
    """$ an hour of a GPU with its share of the machine, or of a CPU; None: that of `rates`."""

    def __post_init__(self) -> None:
        if self.device != CPU and self.device not in GPUS:
            raise UserError(f"--gpu {self.device} must be one of {', '.join(GPUS)}")


@dataclass(frozen=True)
class Limit:
    """A part of a run, and the images a second that it allows."""

    name: str
    images_per_second: float
    known: str
    """How its rates are known."""
    remedy: str
    """What would raise it."""


@dataclass(frozen=True)
class Situation:
    """A run on machines: all that its speed depends on."""

    experiment: Experiment
    budget: Budget
    work: Work
    rates: Mapping[str, Rate]
    machines: Machines | None

    @property
    def workers(self) -> int:
        """Workers; of an elastic run, the most."""
        return self.machines.workers if self.machines else self.experiment.scale.max_workers

    @property
    def reads_of_run(self) -> int:
        """How often a run reads all training images: in each epoch, or once by each worker."""
        return self.workers if self.experiment.is_resident else self.experiment.train.epochs

    @property
    def data_seconds(self) -> float:
        """CPU seconds to read, decode and crop an image."""
        return (
            self.rates["image"].value
            + self.rates["decoding"].value * self.work.encoded_bytes
            + self.rates["cropping"].value * self.work.image_size**2 * self.work.views
        )

    @property
    def on_gpu(self) -> bool:
        """Whether workers train on GPUs, as far as is known."""
        return self.machines is not None and self.machines.device != CPU

    @property
    def gpu_memory(self) -> float:
        """Bytes of a worker's GPU; 0 without one."""
        if self.machines is None or not self.on_gpu:
            return 0.0
        return GPUS[self.machines.device].memory_gib * 2**30

    @property
    def copying_seconds(self) -> float:
        """Seconds that training waits for a checkpoint."""
        return self.state_bytes / self.rates["copying a checkpoint"].value

    def recorded(self, rate: str, otherwise: float) -> float:
        """The rate of this name if the run has recorded it, else `otherwise`."""
        return self.rates[rate].value if rate in self.rates else otherwise

    @property
    def state_bytes(self) -> int:
        """Bytes of a checkpoint: weights, the optimiser's moments, and the average, if any."""
        copies = 1 + MOMENTS[self.experiment.optim.kind] + (self.experiment.train.ema_decay > 0)
        return copies * self.work.parameter_bytes


def worker_speed(run: Situation) -> Rate:
    """Images a second of one worker that never waits."""
    if recorded := run.rates.get("training"):
        return recorded
    machines = run.machines
    assert machines is not None, "without machines there are recorded rates"
    rate, work = training_rate(machines.device, run.rates), run.work
    batch = run.experiment.optim.global_batch_size / run.workers
    operations = work.views * work.operations + work.step_operations / batch
    speed = rate.value / (PASSES * operations)
    if machines.device == CPU:
        return Rate(speed * run.experiment.scale.cpus_per_worker, "images a second", rate.known)
    launching = run.rates["shortest step"]
    if batch / launching.value < speed:
        return Rate(batch / launching.value, "images a second", launching.known)
    return Rate(speed, "images a second", rate.known)


def _workers(run: Situation) -> list[Limit]:
    speed = worker_speed(run)
    device = run.machines.device.upper() if run.machines else "device"
    remedy = f"more workers (scale.workers, now {run.workers}), or a device faster than {device}"
    return [Limit("workers", run.workers * speed.value, speed.known, remedy)]


def _data(run: Situation) -> list[Limit]:
    if recorded := run.rates.get("data"):
        remedy = "more CPUs for data, as workers waited for them"
        return [Limit("data", recorded.value, recorded.known, remedy)]
    cpus = run.budget.data_cpus
    if run.machines is None or run.experiment.is_resident or not cpus:
        return []
    wanted = run.workers * worker_speed(run).value * run.data_seconds
    remedy = f"{wanted:.0f} CPUs for data, now {cpus:g} (data.max_nodes, or scale.data_cpus)"
    return [Limit("data CPUs", cpus / run.data_seconds, run.rates["cropping"].known, remedy)]


def _receiving(run: Situation) -> list[Limit]:
    if run.machines is None or run.experiment.is_resident:
        return []
    rate = run.rates["receiving"]
    speed = run.workers * rate.value / run.work.view_bytes
    return [Limit("CPU of the workers", speed, rate.known, "more workers (scale.workers)")]


def _network(run: Situation) -> list[Limit]:
    """A node's network, by which views come to its workers, and gradients from other nodes."""
    machines, rate = run.machines, run.rates["network"]
    if machines is None:
        return []
    nodes = machines.worker_nodes + machines.data_nodes
    # Share of the views that other nodes make.
    foreign = 0.0 if run.experiment.is_resident else (nodes - 1) / nodes
    views = foreign * run.work.view_bytes / machines.worker_nodes  # bytes an image, into a node
    sums = 2 * run.work.parameter_bytes * (machines.worker_nodes > 1)  # bytes a step, into a node
    needed = views + sums / run.experiment.optim.global_batch_size
    if needed == 0:
        return []
    remedy = "faster networks, more nodes, or more data CPUs on the nodes of the workers"
    return [Limit("network", rate.value / needed, rate.known, remedy)]


def _object_store(run: Situation) -> list[Limit]:
    """Requests of the store, and encoded images through the networks of all nodes."""
    machines = run.machines
    if machines is None or run.experiment.is_resident:
        return []
    requests, network = run.rates["requests"], run.rates["network"]
    nodes, images = machines.worker_nodes + machines.data_nodes, run.budget.images_per_epoch
    by_requests = requests.value * images / run.budget.reads_per_epoch
    by_bytes = nodes * network.value / (run.work.encoded_bytes * run.budget.readers)
    return [
        Limit("requests of the store", by_requests, requests.known, "larger row groups"),
        Limit("bytes of the store", by_bytes, network.known, "more nodes that read"),
    ]


LIMITS: tuple[Callable[[Situation], list[Limit]], ...]
LIMITS = (_workers, _data, _receiving, _network, _object_store)
"""The parts that can limit a run; a part that a run does not use gives no limit."""
