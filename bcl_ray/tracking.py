"""One MLflow run per training, written by one thread of one process.

Everything goes to a journal on the local disk first, and from there to MLflow, so that a
server that is down neither stops nor slows training: what it missed is replayed when it is
back, by the same process or by `bcl-ray sync`. Replaying twice is harmless: the MLflow run is
found again by its tag, and steps that it has are skipped.
"""

import json
import os
import platform
import queue
import subprocess
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from bcl_ray import checkpoint
from bcl_ray.config import Experiment
from bcl_ray.model import BalancedContrastiveModel, Classifier
from bcl_ray.parse import from_yaml
from bcl_ray.runs import Run, is_local
from bcl_ray.shards import Manifest

JOURNAL = "journal.jsonl"
UID_TAG = "bcl_ray.uid"
LONGEST_PAUSE = 30.0  # seconds between attempts to reach a server that is down
Entry = dict[str, Any]


def tracking_uri(experiment: Experiment) -> str:
    """Where the run is tracked: the option, the environment, or SQLite beside local runs.

    Raises:
        ValueError: runs are remote and no server is named, so every machine would track alone.
    """
    uri = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        if uri.startswith("file:") or "://" not in uri:
            raise ValueError(
                f"tracking.uri '{uri}' is a file store, which MLflow has retired: use "
                "sqlite:///FILE or a server's http(s):// address"
            )
        return uri
    runs = experiment.tracking.runs
    if not is_local(runs):
        raise ValueError(
            f"tracking.runs is {runs}, so tracking.uri (or MLFLOW_TRACKING_URI) must name an "
            "MLflow server"
        )
    return f"sqlite:///{Path(runs.removeprefix('file://')).absolute() / 'mlflow.db'}"


class Tracker:
    """Takes a run's records at once, and hands them to MLflow in the background.

    Args:
        run: whose identity finds the MLflow run again.
        experiment: the resolved experiment; its options become parameters.
        folder: local folder of the journal.
    """

    def __init__(self, run: Run, experiment: Experiment, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # we repeat by ourselves
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self.uri = tracking_uri(experiment)
        self._run, self._experiment = run, experiment
        self._path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._entries: queue.Queue[Entry | None] = queue.Queue()
        for entry in read_journal(self._path):
            self._entries.put(entry)
        self._journal = self._path.open("a")
        self._stop = threading.Event()
        self._target: _Target | None = None
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._replay, name="mlflow", daemon=True)
        self._thread.start()
        self._finished = False

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._finished:
            killed = kind is not None and not issubclass(kind, Exception)
            self.finish("KILLED" if killed else "FAILED", patience=10)

    def start(self, manifest: Manifest, data: str) -> None:
        """Record what the run learns from: the data's fingerprint and class counts."""
        split = manifest.splits[self._experiment.data.train_split]
        counts = dict(zip(manifest.class_names, split.class_counts, strict=True))
        tags = {"data": data, "data.fingerprint": manifest.fingerprint, **_versions()}
        self._put({"kind": "tags", "tags": tags})
        self._text("experiment.yaml", self._experiment.to_yaml())
        self._text("class_counts.json", json.dumps(counts, indent=1))

    def metrics(self, values: Mapping[str, float], epoch: int) -> None:
        """Record an epoch's metrics; an epoch that MLflow has already is skipped."""
        self._put({"kind": "metrics", "epoch": epoch, "values": dict(values), "time": time.time()})

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        self._put({"kind": "tags", "tags": dict(tags)})

    def text(self, name: str, content: str) -> None:
        """Record a text artifact."""
        self._text(name, content)

    def model(self, folder: Path) -> None:
        """Record the model of a checkpoint, as `mlflow.pytorch.load_model` brings it back."""
        self._put({"kind": "model", "folder": str(folder)})

    def finish(self, status: str, patience: float) -> bool:
        """End the run; False when MLflow has not got everything after `patience` seconds.

        Args:
            status: FINISHED, FAILED or KILLED.
            patience: seconds to wait for a server that is down or slow.
        """
        self._put({"kind": "status", "status": status})
        return self.drain(patience)

    def drain(self, patience: float) -> bool:
        """Stop, when everything has been handed over or `patience` seconds are up."""
        self._finished = True
        self._entries.put(None)
        self._thread.join(patience)
        self._stop.set()
        self._journal.close()
        return not self._thread.is_alive()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once the server has been reached."""
        return self._target.run_id if self._target else None

    def _text(self, name: str, content: str) -> None:
        self._put({"kind": "text", "name": name, "content": content})

    def _put(self, entry: Entry) -> None:
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._entries.put(entry)

    def _replay(self) -> None:
        pause = 1.0
        entry = self._entries.get()
        while entry is not None and not self._stop.is_set():
            try:
                if self._target is None:
                    self._target = _Target(self.uri, self._run, self._experiment)
                self._target.write(entry)
            except Exception as error:  # whatever MLflow raises: training must go on
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                self._target = None  # so that the steps it has are asked for again
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.problem, pause = None, 1.0
            entry = self._entries.get()


def read_journal(path: Path) -> list[Entry]:
    """The entries of a journal; a last line that a crash cut short is left out."""
    entries = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


class _Target:
    """The MLflow run that a journal is written to."""

    def __init__(self, uri: str, run: Run, experiment: Experiment) -> None:
        mlflow.set_tracking_uri(uri)
        self.client = MlflowClient(uri)
        self.uri = uri
        self.run_id = self._find(run) or self._create(run, experiment)
        self._set_params(experiment)
        history = self.client.get_metric_history(self.run_id, "time/epoch")
        self.known = {metric.step for metric in history}

    def _experiment_ids(self) -> list[str]:
        return [found.experiment_id for found in self.client.search_experiments()]

    def _find(self, run: Run) -> str | None:
        found = self.client.search_runs(
            self._experiment_ids(), f"tags.`{UID_TAG}` = '{run.uid}'", max_results=1
        )
        if not found:
            return None
        self.client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)

    def _create(self, run: Run, experiment: Experiment) -> str:
        name = experiment.tracking.experiment
        existing = self.client.get_experiment_by_name(name)
        if existing:
            experiment_id = existing.experiment_id
        elif self.uri.startswith("sqlite:///"):
            folder = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            experiment_id = self.client.create_experiment(name, folder.as_uri())
        else:
            experiment_id = self.client.create_experiment(name)
        tags = {UID_TAG: run.uid, "recipe": experiment.name, "digest": run.digest}
        made = self.client.create_run(experiment_id, tags=tags, run_name=run.name)
        return str(made.info.run_id)

    def _set_params(self, experiment: Experiment) -> None:
        """Options as parameters, once; a resume may change scale, which parameters cannot."""
        have = self.client.get_run(self.run_id).data.params
        params = [
            Param(f"{section}.{name}", str(value)[:6000])
            for section, options in experiment.model_dump(mode="json").items()
            if isinstance(options, dict)
            for name, value in options.items()
            if f"{section}.{name}" not in have
        ]
        for begin in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[begin : begin + 100])

    def write(self, entry: Entry) -> None:
        kind = entry["kind"]
        if kind == "metrics":
            self._metrics(entry)
        elif kind == "tags":
            tags = [RunTag(name, value) for name, value in entry["tags"].items()]
            self.client.log_batch(self.run_id, tags=tags)
        elif kind == "text":
            self.client.log_text(self.run_id, entry["content"], entry["name"])
        elif kind == "model":
            self._model(Path(entry["folder"]))
        elif kind == "status":
            self.client.set_terminated(self.run_id, entry["status"])

    def _metrics(self, entry: Entry) -> None:
        epoch = entry["epoch"]
        if epoch not in self.known:
            moment = int(1000 * entry["time"])
            metrics = [
                Metric(name, float(value), moment, epoch) for name, value in entry["values"].items()
            ]
            self.client.log_batch(self.run_id, metrics=metrics)
            self.known.add(epoch)

    def _model(self, folder: Path) -> None:
        if "model.uri" in self.client.get_run(self.run_id).data.tags or not folder.exists():
            return
        model, example = _classifier(checkpoint.load(folder))
        with mlflow.start_run(run_id=self.run_id), torch.no_grad():
            info = mlflow.pytorch.log_model(
                model,
                name="model",
                input_example=example,
                signature=_signature(model, example),
                pip_requirements=[f"torch=={version('torch').partition('+')[0]}", "numpy"],
                serialization_format="pt2",
            )
        self.client.set_tag(self.run_id, "model.uri", info.model_uri)


def _classifier(state: checkpoint.State) -> tuple[Classifier, np.ndarray]:
    """A checkpoint's network, from pixels in [0, 1] to logits, and an input for it."""
    experiment = from_yaml(state.experiment)
    model = BalancedContrastiveModel(experiment.model, len(state.class_names))
    model.load_state_dict(checkpoint.evaluated_weights(state))
    size = experiment.views.image_size
    classifier = Classifier(model, experiment.views.mean, experiment.views.std).eval()
    return classifier, np.zeros((2, 3, size, size), dtype=np.float32)


def _signature(model: Classifier, example: np.ndarray) -> Any:
    from mlflow.models import ModelSignature  # noqa: PLC0415  with the rest of mlflow.models
    from mlflow.types import Schema, TensorSpec  # noqa: PLC0415

    logits = model(torch.from_numpy(example)).shape[1]
    float32 = np.dtype(np.float32)
    return ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *example.shape[1:]), "images")]),
        outputs=Schema([TensorSpec(float32, (-1, logits), "logits")]),
    )


def _versions() -> dict[str, str]:
    packages = ("bcl-ray", "torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow")
    versions = {f"version.{name}": version(name) for name in packages}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    known = {"git.commit": commit} if commit else {}
    return {**versions, **known, "version.python": platform.python_version()}
