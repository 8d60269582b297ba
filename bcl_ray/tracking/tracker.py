"""One MLflow run per training run or search, written by one thread of one process.

Everything is first recorded in a journal, so that a server that is down neither stops nor slows
training. The missing entries are delivered when it is back, by the same process or by
`bcl-ray sync`. Delivering an entry again changes nothing: the MLflow run is found by its tag, and
metrics and models that it already has are skipped.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.metric_names import ACCURACY
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import cluster_tags, versions
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage.lease import Lease
from bcl_ray.tracking.connection import set_client_settings
from bcl_ray.tracking.journal import Delivery, Journal, Subject, Write
from bcl_ray.tracking.run_page import describe_run

JOURNAL = "journal.jsonl"
DESCRIPTION_TAG = "mlflow.note.content"  # MLflow's own tag for the description of a run
COLUMNS = [  # of a shard, with the names that MLflow has for their types
    {"name": "id", "type": "long", "required": True},
    {"name": "image", "type": "binary", "required": True},
    {"name": "label", "type": "integer", "required": True},
]


def training_subject(run: Run, experiment: Experiment) -> Subject:
    """The subject of a training run, with the options of its experiment as parameters."""
    parameters = {
        f"{section}.{name}": str(value)
        for section, options in experiment.model_dump(mode="json").items()
        if isinstance(options, dict)
        for name, value in options.items()
    }
    tags = {"recipe": experiment.name, "digest": run.digest, "mlflow.source.name": "bcl-ray train"}
    return Subject(run.uid, run.name, experiment.tracking.experiment, parameters, tags)


class Tracker:
    """Records what happens in a run, and delivers it to MLflow in the background.

    As a context manager, it marks the run as failed or killed after an exception.

    Args:
        subject: What is tracked, such as the `training_subject`.
        uri: MLflow's URI, from `connection.tracking_uri`.
        folder: Local folder of the journal.
        lease: Lease of the run's folder; while another driver may hold it, nothing is recorded.
            None if the run is not being trained, as for `sync`.

    Raises:
        ValueError: The journal cannot be read.
    """

    def __init__(
        self, subject: Subject, uri: str, folder: Path, lease: Lease | None = None
    ) -> None:
        set_client_settings()
        self.uri = uri
        self.run_id: str | None = None  # MLflow's, once MLflow has been reached
        self.page: str | None = None  # the run's web page on a server, once it has been reached
        self._subject = subject
        self._described: tuple[Experiment, Manifest] | None = None
        self._evaluated: dict[int, Mapping[str, float]] = {}  # metrics, by the epoch's number
        self._drained = False  # the last entry is recorded, so `__exit__` adds none
        self._delivery = Delivery(Journal(folder / JOURNAL), self._connect, lease)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._drained:
            killed = kind is not None and not issubclass(kind, Exception)
            self.finish("KILLED" if killed else "FAILED", patience=10)

    @property
    def problem(self) -> str | None:
        """Why MLflow does not have everything; None if no reason is known."""
        return self._delivery.problem

    def start(self, parent: str | None = None) -> None:
        """Record that the run has started, its software versions, and its cluster.

        Args:
            parent: For a trial, the uid of its search. The search may reach MLflow later than this
                run.
        """
        self._delivery.record({"kind": "status", "status": "RUNNING"})
        if parent is not None:
            self._delivery.record({"kind": "parent", "uid": parent})
        self.tags({**versions(), **cluster_tags()})

    def describe(self, experiment: Experiment, manifest: Manifest) -> None:
        """Record the experiment and its data."""
        self._described = (experiment, manifest)
        data = experiment.data
        split = manifest.splits[data.train_split]
        counts = dict(zip(manifest.class_names, split.class_counts, strict=True))
        self.tags({"data": data.path, "data.fingerprint": manifest.fingerprint})
        self.text("experiment.yaml", experiment.to_yaml())
        self.text("class_counts.json", json.dumps(counts, indent=1))
        self.dataset(manifest, data.path, data.train_split, "training")
        context = "test" if data.validation_split is None else "validation"
        self.dataset(manifest, data.path, data.monitored_split, context)
        self._update_description()

    def dataset(self, manifest: Manifest, uri: str, split: str, context: str) -> None:
        """Record a split of a data set as an input of the run.

        Args:
            manifest: Manifest of the data set.
            uri: Folder or URI of the data set.
            split: Name of the split.
            context: What the split is used for: training, validation or test.
        """
        rows, counts = manifest.splits[split].rows, manifest.splits[split].class_counts
        profile = {
            "num_rows": rows,
            "source": manifest.source,
            **manifest.profile.model_dump(mode="json"),
            "class_counts": dict(zip(manifest.class_names, counts, strict=True)),
        }
        name = f"{uri.partition('?')[0].rstrip('/').rpartition('/')[2]}/{split}"
        self._delivery.record(
            {
                "kind": "dataset",
                "name": name,
                "digest": manifest.fingerprint,
                "source": uri,
                "context": context,
                "columns": COLUMNS,
                "profile": profile,
            }
        )

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Record the metrics of an epoch; MLflow keeps those that it already has."""
        self._delivery.record({"kind": "metrics", "epoch": epoch, "values": dict(values)})
        if ACCURACY in values:
            self._evaluated[epoch] = values
            self._update_description()

    def _update_description(self) -> None:
        if self._described is not None:
            self.tags({DESCRIPTION_TAG: describe_run(*self._described, self._evaluated)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self._delivery.record({"kind": "tags", "tags": dict(tags)})

    def text(self, name: str, content: str) -> None:
        """Record a text as an artifact."""
        self._delivery.record({"kind": "text", "name": name, "content": content})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a local file as an artifact, in a folder of artifacts.

        The file must exist until MLflow has it.
        """
        self._delivery.record({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def model(self, folder: str) -> None:
        """Record the model of a checkpoint, for `mlflow.pytorch.load_model`.

        Args:
            folder: Absolute path or URI of the checkpoint. It is read when the entry is delivered,
                and must exist until then.
        """
        self._delivery.record({"kind": "model", "folder": folder})

    def finish(self, status: str, patience: float) -> bool:
        """End the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            patience: Longest time to wait for a server that is slow or down, in seconds.

        Returns:
            Whether MLflow has everything.
        """
        self._delivery.record({"kind": "status", "status": status})
        return self.drain_and_stop(patience)

    def drain_and_stop(self, patience: float) -> bool:
        """As `finish`, but the run does not end in MLflow; nothing may be recorded afterwards."""
        self._drained = True
        return self._delivery.drain_and_stop(patience)

    def _connect(self, start_time: float) -> Write:
        # Imported here, in the thread of the delivery, because it takes seconds.
        from bcl_ray.tracking.mlflow_run import MlflowRun  # noqa: PLC0415

        mlflow_run = MlflowRun(self.uri, self._subject, start_time)
        self.run_id, self.page = mlflow_run.run_id, mlflow_run.page
        return mlflow_run.write


def journal_metrics(folder: Path) -> list[dict[str, float]] | None:
    """The metrics of all epochs in the journal of a local folder; None if there is no journal.

    Raises:
        ValueError: The journal cannot be read.
    """
    epochs: dict[int, dict[str, float]] = {}
    entries = Journal(folder / JOURNAL).entries()
    for entry in entries:
        if entry["kind"] == "metrics":
            record = epochs.setdefault(entry["epoch"], {"epoch": float(entry["epoch"])})
            for metric, value in entry["values"].items():
                record.setdefault(metric, value)  # MLflow also keeps the first value
    return [epochs[epoch] for epoch in sorted(epochs)] if entries else None


def sync(subject: Subject, uri: str, folder: Path, patience: float) -> None:
    """Deliver the journal of a run to MLflow.

    Args:
        subject: The subject of the run.
        uri: MLflow's URI.
        folder: Local folder of the journal.
        patience: Longest time to wait for MLflow, in seconds.

    Raises:
        ValueError: There is no journal, or MLflow does not have everything in time.
    """
    if not (folder / JOURNAL).exists():
        raise UserError(
            f"run '{subject.name}' has no {JOURNAL} in {folder}: run this command on the machine "
            "on which its training was started"
        )
    tracker = Tracker(subject, uri, folder)
    if not tracker.drain_and_stop(patience):
        raise UserError(f"MLflow at {uri} did not accept everything: {tracker.problem}")
