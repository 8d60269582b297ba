"""Tables of what a run needs, and of what it will take on a cluster."""

from bcl_ray.display.terminal import duration
from bcl_ray.experiment.options import Experiment
from bcl_ray.runs.budget import Budget
from bcl_ray.runs.forecast import Forecast, Planned

MIB = 2**20
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
COUNTED = "counted: the network's step on tensors without memory"
ARITHMETIC = "from the rates above"
CLOSE = 1.2  # times the lowest limit: raising that one alone gains little


def budget_rows(experiment: Experiment, budget: Budget, store: float | None) -> dict[str, str]:
    """What a run needs, as text.

    Args:
        store: Size of Ray's object store in bytes; None if unknown.
    """
    workers, batch = experiment.scale.min_workers, experiment.optim.global_batch_size
    data_cpus = "the rest" if budget.data_cpus is None else f"{budget.data_cpus:g}"
    rows = {
        "steps per epoch": f"{budget.steps_per_epoch:,} of {batch} images",
        "steps": f"{budget.steps:,} in {experiment.train.epochs} epochs",
        "images per epoch": f"{budget.images_per_epoch:,} ({budget.left_out} left out, others "
        "each epoch)",
        "images to evaluate": f"{budget.eval_images:,}",
        "read per epoch": f"{budget.bytes_per_epoch / MIB:,.1f} MiB",
        "workers": f"{experiment.scale.workers} x {batch // workers} images, "
        f"{budget.batch_bytes / MIB:,.1f} MiB of views a batch",
        "mixing": budget.mixing,
        "CPUs": f"{budget.worker_cpus:g} for workers, {data_cpus} for data",
        "object store": f"{budget.store_bytes / MIB:,.1f} MiB in flight"
        + (f" of {store / MIB:,.0f}" if store else ""),
    }
    if budget.resident_bytes:
        rows["images on the device"] = f"{budget.resident_bytes / MIB:,.1f} MiB, of every worker"
    return rows


def forecast_rows(planned: Planned) -> list[tuple[str, str, str]]:
    """A forecast as text: quantity, value, and how it is known."""
    found, rates, known = planned.forecast, planned.rates, planned.budget
    speed = f"{found.images_per_second:,.0f}"
    rows = [
        ("data set", f"{known.images_per_epoch:,} images an epoch", planned.data_source),
        ("images a second", speed, f"the lowest limit: {found.limits[0].name}"),
        *(
            (f"  limit: {limit.name}", f"{limit.images_per_second:,.0f}", limit.known)
            for limit in found.limits
        ),
        ("CPUs for data, a worker", f"{found.data_cpus_per_worker:.1f}", ARITHMETIC),
        ("an epoch", _short(found.epoch_seconds), "with evaluations and checkpoints"),
        (f"{found.epochs} epochs", duration(3600 * found.hours), "without starting, or geometry"),
    ]
    if planned.machines is not None and found.cost is not None:
        rows.append(("cost", f"$ {found.cost:,.2f}", _price(planned)))
    return [
        *rows,
        ("requests of the store", f"{found.requests:,.0f}", "one for each row group that is read"),
        ("bytes of the store", _size(found.read_bytes), planned.data_source),
        (
            "a checkpoint",
            f"{_size(found.checkpoint_bytes)}, training waits {_short(found.checkpoint_seconds)}",
            rates["copying a checkpoint"].known,
        ),
        (
            "  written behind training",
            _short(found.checkpoint_write_seconds),
            rates["writing a checkpoint"].known,
        ),
        (
            "memory, a worker",
            _size(found.worker_memory_bytes),
            "batches and checkpoint",
        ),
        ("memory, its device", _size(found.device_memory_bytes), COUNTED),
        ("object store", f"{_size(known.store_bytes)} in flight", ARITHMETIC),
    ]


def _size(number: float) -> str:
    """Bytes as text, in the unit that fits."""
    unit = next((unit for unit in UNITS if number >= unit[0]), UNITS[-1])
    amount = number / unit[0]
    return f"{amount:,.0f} {unit[1]}" if amount >= 100 else f"{amount:.2g} {unit[1]}"


def _short(seconds: float) -> str:
    """Seconds as text, with a fraction below a minute."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _price(planned: Planned) -> str:
    machines = planned.machines
    assert machines is not None
    if machines.price is not None:
        return f"--price {machines.price:g}, and all data nodes"
    return "assumption: list prices of 2026, with all data nodes; see --price"


def conclusion(found: Forecast) -> str:
    """What limits a run, and what to do about it, in one line."""
    first, *others = found.limits
    text = f"limited by {first.name} ({first.images_per_second:,.0f} images/s); faster with: "
    text += first.remedy
    if others and others[0].images_per_second < CLOSE * first.images_per_second:
        near = others[0]
        text += f"; the next limit is near: {near.name} ({near.images_per_second:,.0f} images/s)"
    return text
