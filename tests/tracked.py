"""Small runs for tests of what is tracked: experiments, data, records, checkpoints."""

import contextlib
import shutil
import time

import numpy as np
import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs import run_folder

PATIENCE = 120  # seconds: far more than anything here takes
COUNTS = (20, 5, 3)
NAMES = ("a", "b", "ü")
DATA = "s3://bucket/digits"
FINGERPRINT = "f" * 64


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """A new MLflow database, to be copied: making its tables takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def experiment_in(root, *changes):
    small = ("model.width=4", "model.hidden_dim=8", "model.feature_dim=4", "train.ema_decay=0.5")
    places = (f"tracking.runs={root}", f"data.path={DATA}")
    return with_overrides(digits_lt(), [*places, *small, *changes])


@pytest.fixture
def sqlite(tmp_path, database):
    """Experiment of runs beside which MLflow has a database already."""
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    return experiment_in(root)


@contextlib.contextmanager
def mlflow_at(uri):
    """MLflow's own functions ask a store for a while; left in place, all that follows would."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)


def begin(experiment, name="first"):
    return run_folder.create(
        run_folder.run_uri(name, experiment.tracking.runs), experiment, FINGERPRINT
    )


def tracker_of(run, experiment):
    from bcl_ray.tracking.connection import tracking_uri
    from bcl_ray.tracking.tracker import Tracker, training_subject

    return Tracker(
        training_subject(run, experiment), tracking_uri(experiment), run_folder.local_folder(run)
    )


def start(tracker, experiment, parent=None):
    tracker.start(parent)
    tracker.describe(experiment, manifest())


def sync(run, experiment, patience=PATIENCE):
    from bcl_ray.tracking import tracker
    from bcl_ray.tracking.connection import tracking_uri

    subject = tracker.training_subject(run, experiment)
    tracker.sync(subject, tracking_uri(experiment), run_folder.local_folder(run), patience)


def manifest():
    from bcl_ray.data.shards import Manifest

    split = {"rows": 28, "class_counts": COUNTS, "row_group_rows": 28, "shards": ()}
    profile = {"name": "natural", "imbalance_factor": None, "max_per_class": None, "seed": 0}
    return Manifest.model_validate(
        {
            "format_version": 1,
            "class_names": NAMES,
            "splits": {"train": split, "test": split},
            "source": "by hand",
            "profile": profile,
            "fingerprint": FINGERPRINT,
        }
    )


def record_of(epoch):
    return {"loss/total": 1 / (1 + epoch), "accuracy/all": 10.0 * epoch, "time/epoch": time.time()}


def final_checkpoint(folder, experiment, history=()):
    """A checkpoint of weights by chance, and the network that its run would evaluate."""
    import torch

    from bcl_ray.method.learner import Learner
    from bcl_ray.runs import checkpoint

    learner = Learner(experiment, np.array(COUNTS), 1, torch.device("cpu"))
    for network in (learner.model, learner.average):
        for weight in network.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    state = learner.state(
        history=list(history),
        fingerprint=FINGERPRINT,
        class_names=list(NAMES),
        class_counts=list(COUNTS),
        uid="0" * 32,
    )
    folder.mkdir(parents=True)
    checkpoint.save(state, folder)
    return folder, learner.evaluation_model


def found(experiment, run):
    """The MLflow runs that have a run's tag: there must be one."""
    from mlflow import MlflowClient

    from bcl_ray.tracking.connection import tracking_uri

    client = MlflowClient(tracking_uri(experiment))
    ids = [one.experiment_id for one in client.search_experiments()]
    every = client.search_runs(ids, f"tags.`bcl_ray.uid` = '{run.uid}'")
    assert len(every) == 1
    return client, every[0]


def steps_of(client, run_id, metric="loss/total"):
    return [one.step for one in client.get_metric_history(run_id, metric)]


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
