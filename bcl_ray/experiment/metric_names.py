"""Names and units of metrics of evaluations and workers, for the code that makes or shows them."""

from typing import NamedTuple

SHOT_GROUPS = ("many", "medium", "few")
"""Groups of classes by their number of training images; `bcl_ray.data.longtail.shot_groups`
defines them."""
GROUPS = ("all", *SHOT_GROUPS)


def accuracy(group: str) -> str:
    """Name of the accuracy of a group of classes."""
    return f"accuracy/{group}"


ACCURACY = accuracy("all")
"""The metric by which runs are compared unless another one is asked for."""
ECE, ECE_CALIBRATED = "calibration/ece", "calibration/ece_calibrated"
TEMPERATURE = "calibration/temperature"
NLL = "loss/nll"
EPOCH_SECONDS, EVALUATION_SECONDS = "time/epoch", "time/evaluate"
CHECKPOINT_SECONDS = "time/checkpoint"
"""Seconds that checkpoints held up training since this metric was last taken."""
DATA_SHARE = "time/data_share"
"""Share of an epoch in which workers waited for batches, in per cent."""
SPEED = "throughput/images_per_second"
GEOMETRY = "geometry/"
"""Beginning of the names of geometry metrics."""
TAIL_COSINE = "geometry/tail_tail_cosine"
"""Mean cosine between the class means of few-shot classes, of embeddings."""
FEATURE_TAIL_COSINE = "geometry/features/tail_tail_cosine"
"""The same of contrastive features."""

TITLES = {
    **{accuracy(group): f"accuracy {group} (%)" for group in GROUPS},
    ECE: "calibration error (%)",
    ECE_CALIBRATED: "calibration error after temperature scaling (%)",
    TEMPERATURE: "temperature",
    NLL: "negative log-likelihood (nats)",
}
"""Title and unit of each metric, for tables and figures."""

RESULTS = {**{group: accuracy(group) for group in GROUPS}, "ECE": ECE}
"""Columns of a table of results, and the metric in each, in per cent."""
STUDY_RESULTS = {
    **RESULTS,
    "tail cosine": TAIL_COSINE,
    "feature tail cosine": FEATURE_TAIL_COSINE,
}
"""Columns of a study's tables, and the metric in each."""


class WorkerRate(NamedTuple):
    """A rate of a worker while it trains."""

    shown: str
    """Format of the value in the display of a run."""
    description: str


WORKER_RATES = {
    "images_per_second": WorkerRate(
        "{:,.0f} images/s", "Training images a second of a worker; their sum is the run's."
    ),
    "data_percent": WorkerRate(
        "data {:.0f} %", "Per cent of its time that a worker waited for batches."
    ),
    "checkpoint_percent": WorkerRate(
        "checkpoints {:.0f} %",
        "Per cent of the time since its start that checkpoints held a worker up.",
    ),
    "gpu_percent": WorkerRate("GPU {:.0f} %", "Per cent of the time that a GPU is in use."),
    "gpu_memory_percent": WorkerRate(
        "GPU memory {:.0f} %", "Per cent of a GPU's memory that is in use."
    ),
}
"""By name. As Ray metrics they are `bcl_ray_` and the name; on CPUs those of GPUs do not exist."""
