"""The server behind `bcl-ray ui`."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bcl_ray.tracking.connection import tracking_uri
from bcl_ray.tracking.ui import served
from tests.tracked import PATIENCE, begin, experiment_in, found, start, tracker_of


@pytest.mark.slow
def test_runs_in_a_folder_whose_name_is_no_url_are_shown_with_their_artifacts(tmp_path, database):
    root = tmp_path / "why? x%41#"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    experiment = experiment_in(root)
    run = begin(experiment)
    with tracker_of(run, experiment) as tracker:
        start(tracker, experiment)
        assert tracker.finish("FINISHED", PATIENCE), tracker.problem
    _, recorded = found(experiment, run)
    with served(tracking_uri(experiment)) as (address, _):
        client = MlflowClient(address)
        assert client.get_run(recorded.info.run_id).info.run_name == "first"
        text = client.download_artifacts(recorded.info.run_id, "experiment.yaml", str(tmp_path))
    assert experiment.to_yaml() == Path(text).read_text()
    names = {path.name for path in root.iterdir()}
    assert {"first", "mlartifacts", "mlflow.db"} <= names
