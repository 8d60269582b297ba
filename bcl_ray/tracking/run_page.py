"""A run's description on its page in MLflow, in Markdown: what it is, and how far it has come."""

from collections.abc import Mapping

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.metric_names import RESULTS
from bcl_ray.experiment.options import Experiment

Record = Mapping[str, float]


def note(experiment: Experiment, manifest: Manifest, evaluated: Mapping[int, Record]) -> str:
    """Describe a run.

    Args:
        experiment: what is trained.
        manifest: of its data.
        evaluated: metrics by epoch, counted from 0; of those that were evaluated.
    """
    about = (
        f"Recipe `{experiment.name}`, seed {experiment.train.seed}, data "
        f"`{manifest.fingerprint[:12]}`, evaluated on its split `{experiment.data.eval_split}`."
    )
    return "\n\n".join([_method(experiment, manifest), *_table(experiment, evaluated), about])


def _method(experiment: Experiment, manifest: Manifest) -> str:
    counts = manifest.splits[experiment.data.train_split].class_counts
    groups = shot_groups(counts).items()
    sizes = ", ".join(f"{len(of)} {name}" for name, of in groups)
    return (
        f"**{experiment.loss.kind}** with `{experiment.model.backbone}` on {len(counts):,} classes "
        f"of {max(counts):,} down to {min(counts):,} training images ({sizes})."
    )


def _table(experiment: Experiment, evaluated: Mapping[int, Record]) -> list[str]:
    """The last evaluation, and the best one where that is another; none before the first."""
    if not evaluated:
        return []
    last = max(evaluated)
    best = max(evaluated, key=lambda epoch: (evaluated[epoch]["accuracy/all"], epoch))
    rows = {f"epoch {last + 1} of {experiment.train.epochs}": evaluated[last]}
    if best != last:
        rows[f"best: epoch {best + 1}"] = evaluated[best]
    names = [n for n, metric in RESULTS.items() if any(metric in row for row in rows.values())]
    lines = ["| % | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for name, row in rows.items():
        cells = [f"{row[RESULTS[n]]:.1f}" if RESULTS[n] in row else "-" for n in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]
