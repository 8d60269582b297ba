"""How fast a run will be, what limits it, and what it will cost, from rates of its parts.

A run is as fast as its slowest part (`bcl_ray.runs.limits`): workers, CPUs that make views, the
network, the object store.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.budget import Budget, kept_limit
from bcl_ray.runs.limits import LIMITS, PASSES, Limit, Machines, Situation, Work, worker_speed
from bcl_ray.runs.rates import CPU, GPUS, Rate

SNAPSHOTS = 2  # copies of a state in host memory: one is written while the next one is made
HALF = 0.5  # bytes of a bfloat16, relative to float32


@dataclass(frozen=True)
class Forecast:
    """A run before it begins, or the rest of one that has begun."""

    images_per_second: float
    limits: tuple[Limit, ...]
    """From the lowest: the first one limits the run."""
    epochs: int
    epoch_seconds: float
    """Mean, with an epoch's share of evaluations, and the time that it waits for checkpoints."""
    hours: float
    cost: float | None  # $; None if the machines are unknown
    requests: float  # of the object store, in training
    read_bytes: float  # from the object store, in training
    checkpoint_bytes: int
    checkpoint_seconds: float  # that training waits for one
    checkpoint_write_seconds: float  # to write one, while training goes on
    data_cpus_per_worker: float  # CPUs that would keep a worker busy
    worker_memory_bytes: float  # of the host: batches ahead, and copies of the state
    device_memory_bytes: float  # state, gradients, resident images, activations of a batch


@dataclass(frozen=True)
class Planned:
    """A forecast, and what it rests on."""

    experiment: Experiment
    budget: Budget
    forecast: Forecast
    rates: Mapping[str, Rate]
    machines: Machines | None
    data_source: str
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
        rates: RATES, some of them replaced by rates that the run has recorded.
        machines: Where it is to run; None for a run that has recorded rates and stays where it is.
        epochs_done: Epochs that are trained already, which hours and cost leave out.
    """
    run = Situation(experiment, budget, work, rates, machines)
    found = (limit for part in LIMITS for limit in part(run))
    limits = sorted(found, key=lambda limit: limit.images_per_second)
    epochs = experiment.train.epochs - epochs_done
    epoch_seconds = _epoch_seconds(run, limits[0].images_per_second)
    hours = epochs * epoch_seconds / 3600
    reads = run.reads_of_run * epochs / experiment.train.epochs
    requests = reads * budget.reads_per_epoch
    return Forecast(
        images_per_second=limits[0].images_per_second,
        limits=tuple(limits),
        epochs=epochs,
        epoch_seconds=epoch_seconds,
        hours=hours,
        cost=None if machines is None else _cost(machines, rates, hours, requests),
        requests=requests,
        read_bytes=reads * budget.bytes_per_epoch * budget.readers,
        checkpoint_bytes=run.state_bytes,
        checkpoint_seconds=run.copying_seconds,
        checkpoint_write_seconds=run.state_bytes / rates["writing a checkpoint"].value,
        data_cpus_per_worker=worker_speed(run).value * run.data_seconds,
        worker_memory_bytes=budget.batch_bytes * (experiment.scale.prefetch_batches + 1)
        + SNAPSHOTS * run.state_bytes,
        device_memory_bytes=_device_memory(run),
    )


def _device_memory(run: Situation) -> float:
    """Bytes of the state, of gradients, of images that stay, and of activations of a batch."""
    precision, batch = run.experiment.train.precision, run.experiment.optim.global_batch_size
    halved = run.on_gpu and precision in ("auto", "bfloat16")
    activations = batch // run.workers * run.work.activation_bytes * (HALF if halved else 1.0)
    return run.state_bytes + run.work.parameter_bytes + run.budget.resident_bytes + activations


def _epoch_seconds(run: Situation, speed: float) -> float:
    """Mean seconds of an epoch: training, evaluations, and checkpoints."""
    train, budget = run.experiment.train, run.budget
    every = train.checkpoint_every_steps
    checkpoints = 1 + ((budget.steps_per_epoch - 1) // every if every else 0)
    waiting = run.recorded("checkpoint", checkpoints * run.copying_seconds)
    evaluations = math.ceil(train.epochs / train.eval_every)
    evaluation = run.recorded("evaluation", _evaluation_seconds(run, evaluations) / evaluations)
    return budget.images_per_epoch / speed + waiting + evaluations * evaluation / train.epochs


def _evaluation_seconds(run: Situation, evaluations: int) -> float:
    """Seconds of all evaluations, each a forward pass of one view.

    Images that fit in the workers' memory are decoded once, others in every evaluation.
    """
    images, work = run.budget.eval_images, run.work
    forward = images / (run.workers * worker_speed(run).value * PASSES * work.views)
    decoding = images * run.data_seconds / work.views / (run.budget.data_cpus or run.workers)
    kept_bytes = 3 * images * work.image_size**2 / run.workers
    with_decoding = 1 if kept_bytes <= kept_limit(run.gpu_memory) else evaluations
    return (evaluations - with_decoding) * forward + with_decoding * max(forward, decoding)


def _cost(machines: Machines, rates: Mapping[str, Rate], hours: float, requests: float) -> float:
    cpu = rates["price of a CPU"].value
    if machines.device == CPU:
        hourly = machines.price * machines.cpus if machines.price else cpu * machines.cpus
    else:
        device = machines.price or GPUS[machines.device].price
        hourly = device * machines.workers + cpu * machines.data_node_cpus
    return hours * hourly + requests * rates["price of a request"].value
