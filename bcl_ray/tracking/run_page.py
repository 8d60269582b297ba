"""The description of a run on its page in MLflow, in Markdown."""

from collections.abc import Mapping

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.metric_names import ACCURACY, RESULTS
from bcl_ray.experiment.options import Experiment

Record = Mapping[str, float]


def describe_run(
    experiment: Experiment, manifest: Manifest, evaluated: Mapping[int, Record]
) -> str:
    """The method, the data, and the results so far.

    Args:
        experiment: The options of the run.
        manifest: Manifest of its data.
        evaluated: Metrics of the evaluated epochs, by epoch, counted from 0.
    """
    origin = (
        f"Recipe `{experiment.name}`, seed {experiment.train.seed}, data "
        f"`{manifest.fingerprint[:12]}`, evaluated on split `{experiment.data.monitored_split}`."
    )
    return "\n\n".join([_method(experiment, manifest), *_table(experiment, evaluated), origin])


def _method(experiment: Experiment, manifest: Manifest) -> str:
    counts = manifest.splits[experiment.data.train_split].class_counts
    groups = shot_groups(counts).items()
    sizes = ", ".join(f"{len(classes)} {name}" for name, classes in groups)
    return (
        f"**{experiment.loss.kind}** with `{experiment.model.backbone}` on {len(counts):,} classes "
        f"of {max(counts):,} down to {min(counts):,} training images ({sizes})."
    )


def _table(experiment: Experiment, evaluated: Mapping[int, Record]) -> list[str]:
    """A table of the last evaluation, and of the best one if it is another; else empty."""
    if not evaluated:
        return []
    last = max(evaluated)
    best = max(evaluated, key=lambda epoch: (evaluated[epoch][ACCURACY], epoch))
    rows = {f"epoch {last + 1} of {experiment.train.epochs}": evaluated[last]}
    if best != last:
        rows[f"best: epoch {best + 1}"] = evaluated[best]
    names = [n for n, metric in RESULTS.items() if any(metric in row for row in rows.values())]
    lines = ["| % | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, row in rows.items():
        cells = [f"{row[RESULTS[n]]:.1f}" if RESULTS[n] in row else "-" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]
