"""How fast a run will be, what limits it, and what it will cost, from rates of its parts.

A run is as fast as its slowest part: workers, CPUs that make views, the network, the object store.
Each part is a function that gives images a second, from the rates of `bcl_ray.runs.rates`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.runs.budget import Budget
from bcl_ray.runs.rates import CPU, GPUS, Rate, training_rate

PASSES = 3  # of a view in training, in operations: forward once, backward twice as many
KEPT_SHARE = 0.1  # of a GPU's memory, for evaluation images that stay there
BFLOAT16 = {True: 0.5, False: 1.0}  # bytes of an activation, relative to float32


@dataclass(frozen=True)
class Work:
    """What one training image costs; see `bcl_ray.method.cost`."""

    views: int  # 1 + V
    image_size: int  # H = W of a view, pixels
    encoded_bytes: float  # mean of the shards
    operations: float  # of a forward pass of one view
    step_operations: float  # of a forward pass, whatever its number of images: prototypes
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
    """$ an hour and device, with its machine; None for the table's."""

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
class Forecast:
    """A run before it begins, or the rest of one that has begun."""

    images_per_second: float
    limits: tuple[Limit, ...]
    """From the lowest: the first one limits the run."""
    epochs: int
    epoch_seconds: float
    """With its share of evaluations, and what checkpoints hold up."""
    hours: float
    cost: float | None  # $; None if the machines are unknown
    requests: float  # of the object store, in training
    read_bytes: float  # from the object store, in training
    checkpoint_bytes: int
    checkpoint_seconds: float  # that training waits for one
    checkpoint_write_seconds: float  # behind training
    data_cpus_per_worker: float  # CPUs that would keep a worker busy
    worker_memory_bytes: float  # host: batches ahead, and the copy of the state
    device_memory_bytes: float  # state, gradients, activations of a batch


@dataclass(frozen=True)
class Planned:
    """A forecast, and what it rests on."""

    experiment: Experiment
    budget: Budget
    forecast: Forecast
    rates: Mapping[str, Rate]
    machines: Machines | None
    data: str
    """How the sizes of the data set are known."""

    @property
    def where(self) -> str:
        """The machines, as text."""
        if self.machines is None:
            return "on its own machines"
        machines = self.machines
        nodes = machines.worker_nodes + machines.data_nodes
        each = "" if machines.device == CPU else f" with a {machines.device} each"
        return f"on {machines.workers} workers{each}, {nodes} nodes, {machines.cpus:g} CPUs"


@dataclass(frozen=True)
class _Part:
    """All that a limit may depend on."""

    experiment: Experiment
    budget: Budget
    work: Work
    rates: Mapping[str, Rate]
    machines: Machines | None

    @property
    def workers(self) -> int:
        return self.machines.workers if self.machines else self.experiment.scale.max_workers

    @property
    def epoch_reads(self) -> int:
        """How many epochs of images are read and decoded."""
        is_resident = self.experiment.data.residency == "device"
        return 1 if is_resident else self.experiment.train.epochs

    @property
    def data_seconds(self) -> float:
        """CPU seconds to read, decode and crop an image."""
        return (
            self.rates["image"].value
            + self.rates["decoding"].value * self.work.encoded_bytes
            + self.rates["cropping"].value * self.work.image_size**2 * self.work.views
        )

    @property
    def state_bytes(self) -> int:
        """Of a checkpoint: weights, momentum, and the average if there is one."""
        copies = 2 + (self.experiment.train.ema_decay > 0)
        return copies * self.work.parameter_bytes


def forecast(
    experiment: Experiment,
    budget: Budget,
    work: Work,
    rates: Mapping[str, Rate],
    machines: Machines | None,
    *,
    epochs_done: int = 0,
) -> Forecast:
    """Forecast a run.

    Args:
        experiment: The run.
        budget: What it needs, see `budget.budget`.
        work: What an image costs.
        rates: RATES, with those that the run has recorded in their place.
        machines: Where it is to run; None for a run that has recorded rates, on its own machines.
        epochs_done: Epochs that are trained already, which hours and cost leave out.
    """
    part = _Part(experiment, budget, work, rates, machines)
    limits = sorted(
        (limit for make in LIMITS for limit in make(part)), key=lambda each: each.images_per_second
    )
    speed = limits[0].images_per_second
    blocked = part.state_bytes / rates["copying a checkpoint"].value
    epochs = experiment.train.epochs - epochs_done
    epoch_seconds = _epoch_seconds(part, speed, blocked)
    hours = epochs * epoch_seconds / 3600
    reads = part.epoch_reads if epochs_done == 0 else min(part.epoch_reads, epochs)
    requests = reads * budget.reads_per_epoch
    bfloat16 = experiment.train.precision in ("auto", "bfloat16") and _on_gpu(machines)
    batch = experiment.optim.global_batch_size // part.workers
    return Forecast(
        images_per_second=speed,
        limits=tuple(limits),
        epochs=epochs,
        epoch_seconds=epoch_seconds,
        hours=hours,
        cost=None if machines is None else _cost(machines, rates, hours, requests),
        requests=requests,
        read_bytes=reads * budget.bytes_per_epoch * budget.readers,
        checkpoint_bytes=part.state_bytes,
        checkpoint_seconds=blocked,
        checkpoint_write_seconds=part.state_bytes / rates["writing a checkpoint"].value,
        data_cpus_per_worker=_worker_speed(part).value * part.data_seconds,
        worker_memory_bytes=budget.batch_bytes * (experiment.scale.prefetch_batches + 1)
        + part.state_bytes,
        device_memory_bytes=part.state_bytes
        + work.parameter_bytes
        + budget.resident_bytes
        + batch * work.activation_bytes * BFLOAT16[bfloat16],
    )


def _on_gpu(machines: Machines | None) -> bool:
    return machines is not None and machines.device != CPU


def _worker_speed(part: _Part) -> Rate:
    """Images a second of one worker that never waits."""
    if recorded := part.rates.get("training"):
        return recorded
    machines = part.machines
    assert machines is not None, "without machines there are recorded rates"
    rate, work = training_rate(machines.device, part.rates), part.work
    batch = part.experiment.optim.global_batch_size / part.workers
    operations = work.views * work.operations + work.step_operations / batch
    speed = rate.value / (PASSES * operations)
    if machines.device == CPU:
        return Rate(speed * part.experiment.scale.cpus_per_worker, "images/s", rate.known)
    launching = part.rates["shortest step"]
    if batch / launching.value < speed:
        return Rate(batch / launching.value, "images/s", launching.known)
    return Rate(speed, "images/s", rate.known)


def _workers(part: _Part) -> list[Limit]:
    speed = _worker_speed(part)
    device = part.machines.device.upper() if part.machines else "device"
    remedy = f"more workers (scale.workers, now {part.workers}), or a device faster than {device}"
    return [Limit("workers", part.workers * speed.value, speed.known, remedy)]


def _data(part: _Part) -> list[Limit]:
    if recorded := part.rates.get("data"):
        remedy = "more CPUs for data, as workers waited for them"
        return [Limit("data", recorded.value, recorded.known, remedy)]
    cpus = part.budget.data_cpus
    if part.machines is None or part.experiment.data.residency == "device" or not cpus:
        return []
    wanted = part.workers * _worker_speed(part).value * part.data_seconds
    remedy = f"{wanted:.0f} CPUs for data, now {cpus:g} (data.max_nodes, or scale.data_cpus)"
    return [Limit("data CPUs", cpus / part.data_seconds, part.rates["cropping"].known, remedy)]


def _receiving(part: _Part) -> list[Limit]:
    if part.machines is None or part.experiment.data.residency == "device":
        return []
    rate = part.rates["receiving"]
    speed = part.workers * rate.value / part.work.view_bytes
    return [Limit("CPU of the workers", speed, rate.known, "more workers (scale.workers)")]


def _network(part: _Part) -> list[Limit]:
    """Views into a node with workers, and gradients between such nodes, which share its network."""
    machines, rate = part.machines, part.rates["network"]
    if machines is None:
        return []
    nodes = machines.worker_nodes + machines.data_nodes
    streamed = part.experiment.data.residency != "device"
    foreign = (nodes - 1) / nodes if streamed else 0.0  # views that other nodes made
    views = foreign * part.work.view_bytes / machines.worker_nodes  # bytes an image, into a node
    sums = 2 * part.work.parameter_bytes * (machines.worker_nodes > 1)  # bytes a step, likewise
    needed = views + sums / part.experiment.optim.global_batch_size
    if needed == 0:
        return []
    remedy = "faster networks, more nodes, or more data CPUs on the nodes of the workers"
    return [Limit("network", rate.value / needed, rate.known, remedy)]


def _object_store(part: _Part) -> list[Limit]:
    """Requests of the store, and encoded images through the networks of all nodes."""
    machines = part.machines
    if machines is None or part.experiment.data.residency == "device":
        return []
    requests, network = part.rates["requests"], part.rates["network"]
    nodes, images = machines.worker_nodes + machines.data_nodes, part.budget.images_per_epoch
    by_requests = requests.value * images / part.budget.reads_per_epoch
    by_bytes = nodes * network.value / (part.work.encoded_bytes * part.budget.readers)
    return [
        Limit("requests of the store", by_requests, requests.known, "larger row groups"),
        Limit("bytes of the store", by_bytes, network.known, "more nodes that read"),
    ]


LIMITS: tuple[Callable[[_Part], list[Limit]], ...]
LIMITS = (_workers, _data, _receiving, _network, _object_store)
"""The parts that can limit a run; a part that a run does not use gives no limit."""


def _epoch_seconds(part: _Part, speed: float, blocked: float) -> float:
    """Mean seconds of an epoch: training, evaluations, and checkpoints."""
    train, budget, rates = part.experiment.train, part.budget, part.rates
    training = budget.images_per_epoch / speed
    every = train.checkpoint_every_steps
    checkpoints = 1 + ((budget.steps_per_epoch - 1) // every if every else 0)
    held_up = recorded.value if (recorded := rates.get("checkpoint")) else checkpoints * blocked
    evaluations = math.ceil(train.epochs / train.eval_every)
    if recorded := rates.get("evaluation"):
        evaluating = evaluations * recorded.value
    else:
        evaluating = _evaluation_seconds(part, evaluations)
    return training + held_up + evaluating / train.epochs


def _evaluation_seconds(part: _Part, evaluations: int) -> float:
    """Seconds of all evaluations: a forward pass of one view, and the decoding."""
    images, work, machines = part.budget.eval_images, part.work, part.machines
    forward = images / (part.workers * _worker_speed(part).value * PASSES * work.views)
    decoding = images * part.data_seconds / work.views / (part.budget.data_cpus or part.workers)
    kept = (
        machines is not None
        and machines.device != CPU
        and (
            3 * images * work.image_size**2 / part.workers
            <= KEPT_SHARE * GPUS[machines.device].memory_gib * 2**30
        )
    )
    decoded = 1 if kept else evaluations
    return (evaluations - decoded) * forward + decoded * max(forward, decoding)


def _cost(machines: Machines, rates: Mapping[str, Rate], hours: float, requests: float) -> float:
    cpu = rates["price of a CPU"].value
    if machines.device == CPU:
        hourly = machines.price * machines.cpus if machines.price else cpu * machines.cpus
    else:
        device = machines.price or GPUS[machines.device].price
        hourly = device * machines.workers + cpu * machines.data_node_cpus
    return hours * hourly + requests * rates["price of a request"].value
