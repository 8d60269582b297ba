"""The rates that a forecast calculates with, each with how it is known.

A rate was measured by this project, which says where and when, or it is an assumption. Rates that a
run has recorded take their place by name (`recorded_rates`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bcl_ray.experiment.metric_names import (
    CHECKPOINT_SECONDS,
    DATA_SHARE,
    EVALUATION_SECONDS,
    SPEED,
)

ASSUMPTION = "assumption"
WAITING = 5.0  # per cent of an epoch; workers that wait longer for data are limited by it


@dataclass(frozen=True)
class Rate:
    """A number with its unit."""

    value: float
    unit: str
    known: str
    """How it is known: "measured ...", or "assumption ..."."""


@dataclass(frozen=True)
class Device:
    """What a worker trains on. Figures of the data sheet, per GPU or, for "cpu", per CPU."""

    teraflops: float
    """Dense bfloat16 arithmetic (T4 and V100: float16), 10^12 operations a second."""
    gigabytes_per_second: float
    memory_gib: float
    price: float
    """Assumption: US dollars an hour, with its share of the machine; see --price."""
    instances: tuple[str, ...] = ()
    """Families of EC2 instances that have it."""


GPUS = {
    "b200": Device(2250, 8000, 180, 8.0, ("p6-b200",)),
    "h200": Device(989, 4800, 141, 5.0, ("p5e", "p5en")),
    "h100": Device(989, 3350, 80, 4.0, ("p5",)),
    "a100": Device(312, 2039, 80, 2.5, ("p4d", "p4de")),
    "l40s": Device(362, 864, 48, 1.8, ("g6e",)),
    "l4": Device(121, 300, 24, 0.98, ("g6", "gr6")),
    "a10g": Device(70, 600, 24, 1.2, ("g5",)),
    "v100": Device(125, 900, 16, 3.0, ("p3",)),
    "t4": Device(65, 320, 16, 0.6, ("g4dn",)),
}
CPU = "cpu"
REFERENCE = "h100"

RATES = {
    "training, h100": Rate(
        # 900 images of 3 views, forward and backward (3 x), 8.2 billion operations a view.
        6.6e13,
        "operations a second and GPU",
        f"{ASSUMPTION}: 900 images of 3 views a second with ResNet-50 in bfloat16, never measured; "
        "by operations",
    ),
    "training, cpu": Rate(
        # 253 images of 3 views, 25 million operations a view.
        5.6e10,
        "operations a second and CPU",
        "measured 2026-11: resnet8, 3 views of 32 px, one core of an EPYC; by operations",
    ),
    "shortest step": Rate(
        0.010, "seconds a step", f"{ASSUMPTION}: 1,500 launches (counted 2026-11) of 7 µs"
    ),
    "image": Rate(
        6e-5, "CPU seconds an image", "measured 2026-11: PNGs of 32 px, on idle and busy machines"
    ),
    "decoding": Rate(
        9.6e-9, "CPU seconds a byte", "measured 2026-11: JPEGs of 120 kB (benchmarks/README.md)"
    ),
    "cropping": Rate(
        9.2e-9,
        "CPU seconds a pixel of a view",
        "measured 2026-11: ImageNet, 410 images of 3 views of 224 px a second and core",
    ),
    "receiving": Rate(
        6.7e8, "bytes of views a second and worker", "measured 2026-11: 0.23 ms of CPU for 451,584"
    ),
    "network": Rate(25e9 / 8, "bytes a second and node", f"{ASSUMPTION}: 25 Gbit/s"),
    "requests": Rate(5500, "GET requests a second", f"{ASSUMPTION}: one prefix of S3"),
    "copying a checkpoint": Rate(
        4.1e9, "bytes a second", "measured 2026-11: 452 MB in 0.11 s in the memory of a CPU"
    ),
    "writing a checkpoint": Rate(3e8, "bytes a second", f"{ASSUMPTION}: one stream to S3"),
    "price of a CPU": Rate(0.045, "$ an hour", f"{ASSUMPTION}: c7i on demand, us-east-1, 2026"),
    "price of a request": Rate(4e-7, "$", f"{ASSUMPTION}: GET of S3, us-east-1, 2026"),
}


def training_rate(device: str, rates: Mapping[str, Rate]) -> Rate:
    """Operations a second of a device in training; that of an unmeasured GPU is scaled.

    A network is limited by arithmetic or by memory, and the model takes the lower share of an H100.

    Args:
        device: "cpu" or a key of GPUS.
        rates: RATES, or with measured ones in their place.
    """
    if known := rates.get(f"training, {device}"):
        return known
    gpu, reference = GPUS[device], GPUS[REFERENCE]
    share = min(
        gpu.teraflops / reference.teraflops,
        gpu.gigabytes_per_second / reference.gigabytes_per_second,
    )
    base = rates[f"training, {REFERENCE}"]
    origin = f"{ASSUMPTION}: {share:.2f} of an H100, by arithmetic and memory of the data sheets"
    return Rate(share * base.value, base.unit, origin)


def recorded_rates(history: Sequence[Mapping[str, float]], run: str) -> dict[str, Rate]:
    """Rates of a run's last recorded epoch, by the names that a forecast uses.

    Args:
        history: A record of metrics for each epoch, as checkpoints have it; at least one.
        run: The run's name.

    Returns:
        "training" (images a second and worker that does not wait), "checkpoint" (seconds an epoch);
        "data" (images a second of all workers) if they waited for data; "evaluation" (seconds), if
        one is recorded.
    """
    record = history[-1]
    speed, waiting = record[SPEED], record[DATA_SHARE]
    workers = record["scale/workers"]
    known = f"measured: run {run}, epoch {record['epoch'] + 1:.0f}, {workers:.0f} workers"
    busy = max(1 - waiting / 100, 0.01)
    found = {
        "training": Rate(speed / workers / busy, "images a second and worker", known),
        "checkpoint": Rate(record[CHECKPOINT_SECONDS], "seconds an epoch", known),
    }
    if waiting > WAITING:
        found["data"] = Rate(speed, "images a second of all workers", known)
    if evaluations := [r[EVALUATION_SECONDS] for r in history if EVALUATION_SECONDS in r]:
        found["evaluation"] = Rate(evaluations[-1], "seconds an evaluation", known)
    return found
