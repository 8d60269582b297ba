"""One MLflow run per training or search, written by one thread of one process.

Everything goes to a journal first, so that a server that is down neither stops nor slows
training: what it missed is replayed when it is back, by the same process or by `bcl-ray sync`.
Replaying twice is harmless: the MLflow run is found again by its tag, and metrics and models
that it has are skipped.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bcl_ray.data.shards import Manifest
from bcl_ray.experiment.options import Experiment
from bcl_ray.machine.errors import UserError
from bcl_ray.machine.versions import cluster_tags, versions
from bcl_ray.runs.run_folder import Run
from bcl_ray.storage import files
from bcl_ray.storage.lease import Lease
from bcl_ray.storage.paths import is_local
from bcl_ray.tracking.journal import Delivery, Journal, Subject, Write
from bcl_ray.tracking.run_page import note

JOURNAL = "journal.jsonl"
NOTE_TAG = "mlflow.note.content"  # MLflow's own, of the description
COLUMNS = [  # of a shard, in MLflow's words
    {"name": "id", "type": "long", "required": True},
    {"name": "image", "type": "binary", "required": True},
    {"name": "label", "type": "integer", "required": True},
]
SETTINGS = {  # of MLflow's client, where the environment does not have them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we repeat by ourselves
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def tracking_uri(experiment: Experiment) -> str:
    """Where a run is tracked: as `store` says of its options."""
    return store(experiment.tracking.uri, experiment.tracking.runs)


def store(uri: str | None, runs: str) -> str:
    """MLflow's URI: the option, the environment, or SQLite beside local runs.

    Args:
        uri: the option tracking.uri.
        runs: folder or URI that holds runs.

    Raises:
        ValueError: an address that is neither SQLite nor a server's, or that holds a secret;
            or none, while runs are remote, so that every machine would track alone.
    """
    for option, address in (
        ("tracking.uri", uri),
        ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")),
    ):
        if address:
            return _checked(option, address)
    if not is_local(runs):
        raise UserError(
            f"tracking.runs is {runs}, so tracking.uri (or MLFLOW_TRACKING_URI) must name an "
            "MLflow server"
        )
    return f"sqlite:///{files.resolve(runs)[1]}/mlflow.db"


def _checked(option: str, uri: str) -> str:
    address = urlsplit(uri)
    if "@" in address.netloc:  # it is not shown, here or anywhere
        raise UserError(
            f"{option} holds a user name or a password, and it is shown and stored with the run: "
            "take it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if address.scheme in ("", "file"):
        raise UserError(
            f"{option} '{uri}' is a file store, which MLflow has retired: use sqlite:///FILE or "
            "a server's http(s):// address"
        )
    if address.scheme not in ("sqlite", "http", "https"):
        raise UserError(
            f"{option} '{uri}' must be sqlite:///FILE or a server's http(s):// address; put a "
            "server before any other database"
        )
    return uri


def subject(run: Run, experiment: Experiment) -> Subject:
    """A training run as the tracker knows it: its options become parameters."""
    parameters = {
        f"{section}.{name}": str(value)
        for section, options in experiment.model_dump(mode="json").items()
        if isinstance(options, dict)
        for name, value in options.items()
    }
    tags = {"recipe": experiment.name, "digest": run.digest, "mlflow.source.name": "bcl-ray train"}
    return Subject(run.uid, run.name, experiment.tracking.experiment, parameters, tags)


class Tracker:
    """Takes a run's records at once, and hands them to MLflow in the background.

    Args:
        subject: what is tracked, whose uid finds the MLflow run again: `subject` of a training.
        uri: of MLflow: `tracking_uri`.
        folder: local folder of the journal.
        lease: of the run's folder, without which nothing is tracked; `sync` has none.

    Raises:
        ValueError: a journal that cannot be read.
    """

    def __init__(
        self, subject: Subject, uri: str, folder: Path, lease: Lease | None = None
    ) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self.uri = uri
        self.run_id: str | None = None  # MLflow's, once it has been reached
        self.page: str | None = None  # likewise: where a server shows it
        self._subject = subject
        self._described: tuple[Experiment, Manifest] | None = None
        self._evaluated: dict[int, Mapping[str, float]] = {}
        self._finished = False
        self._delivery = Delivery(Journal(folder / JOURNAL), self._connect, lease)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._finished:
            killed = kind is not None and not issubclass(kind, Exception)
            self.finish("KILLED" if killed else "FAILED", patience=10)

    @property
    def problem(self) -> str | None:
        """Why MLflow has not got everything; none where nothing is known to be wrong."""
        return self._delivery.problem

    def start(self, parent: str | None = None) -> None:
        """Record that the run goes on, with which software, and where.

        Args:
            parent: uid of the run that this one is part of: a trial's search. It may reach MLflow
                later than this one.
        """
        self._delivery.record({"kind": "status", "status": "RUNNING"})
        if parent is not None:
            self._delivery.record({"kind": "parent", "uid": parent})
        self.tags({**versions(), **cluster_tags()})

    def describe(self, experiment: Experiment, manifest: Manifest) -> None:
        """Record what is trained, and on which data."""
        self._described = (experiment, manifest)
        data = experiment.data
        split = manifest.splits[data.train_split]
        counts = dict(zip(manifest.class_names, split.class_counts, strict=True))
        self.tags({"data": data.path, "data.fingerprint": manifest.fingerprint})
        self.text("experiment.yaml", experiment.to_yaml())
        self.text("class_counts.json", json.dumps(counts, indent=1))
        self.dataset(manifest, data.path, data.train_split, "training")
        self.dataset(manifest, data.path, data.eval_split, "test")
        self._note()

    def dataset(self, manifest: Manifest, uri: str, split: str, context: str) -> None:
        """Record a split of a data set as an input of the run.

        Args:
            manifest: of the data set.
            uri: where it lies.
            split: its name.
            context: what it is for: training, validation or test.
        """
        found = manifest.splits[split]
        profile = {
            "num_rows": found.rows,
            "source": manifest.source,
            **manifest.profile.model_dump(mode="json"),
            "class_counts": dict(zip(manifest.class_names, found.class_counts, strict=True)),
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
        """Record an epoch's metrics; those that MLflow has of that epoch already are skipped."""
        self._delivery.record({"kind": "metrics", "epoch": epoch, "values": dict(values)})
        if "accuracy/all" in values:
            self._evaluated[epoch] = values
            self._note()

    def _note(self) -> None:
        """Keep the description of the run's page up to date."""
        if self._described is not None:
            self.tags({NOTE_TAG: note(*self._described, self._evaluated)})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self._delivery.record({"kind": "tags", "tags": dict(tags)})

    def text(self, name: str, content: str) -> None:
        """Record a text artifact."""
        self._delivery.record({"kind": "text", "name": name, "content": content})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a local file as an artifact, in a folder of them.

        The file must stay until MLflow has got it.
        """
        self._delivery.record({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def model(self, folder: str) -> None:
        """Record the model of a checkpoint, as `mlflow.pytorch.load_model` brings it back.

        Args:
            folder: path from the root, or URI, of the checkpoint, which must stay until MLflow has
                got the model: it is read then.
        """
        self._delivery.record({"kind": "model", "folder": folder})

    def finish(self, status: str, patience: float) -> bool:
        """End the run; False when MLflow has not got everything after `patience` seconds.

        Args:
            status: FINISHED, FAILED or KILLED.
            patience: seconds to wait for a server that is down or slow.
        """
        self._delivery.record({"kind": "status", "status": status})
        return self.drain(patience)

    def drain(self, patience: float) -> bool:
        """Stop, when everything has been handed over or `patience` seconds are up."""
        self._finished = True
        return self._delivery.drain(patience)

    def _connect(self, begun: float) -> Write:
        # Seconds of import, while training starts; in the delivery's thread, as everything here.
        from bcl_ray.tracking.mlflow_run import MlflowRun  # noqa: PLC0415

        target = MlflowRun(self.uri, self._subject, begun)
        self.run_id, self.page = target.run_id, target.page
        return target.write


def recorded(folder: Path) -> list[dict[str, float]] | None:
    """Records of epochs that the journal in a local folder has; None where there is no journal.

    Raises:
        ValueError: a journal that cannot be read.
    """
    epochs: dict[int, dict[str, float]] = {}
    entries = Journal(folder / JOURNAL).entries()
    for entry in entries:
        if entry["kind"] == "metrics":
            record = epochs.setdefault(entry["epoch"], {"epoch": float(entry["epoch"])})
            for metric, value in entry["values"].items():
                record.setdefault(metric, value)  # as in MLflow: the first one counts
    return [epochs[epoch] for epoch in sorted(epochs)] if entries else None


def sync(subject: Subject, uri: str, folder: Path, patience: float) -> None:
    """Hand MLflow what a run's journal has.

    Raises:
        ValueError: there is no journal in `folder`, or MLflow has not taken everything after
            `patience` seconds.
    """
    if not (folder / JOURNAL).exists():
        raise UserError(
            f"run '{subject.name}' has no {JOURNAL} in {folder}: run this on the machine that its "
            "training was started on"
        )
    tracker = Tracker(subject, uri, folder)
    if not tracker.drain(patience):
        raise UserError(f"MLflow at {uri} did not take everything: {tracker.problem}")
