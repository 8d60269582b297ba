"""Everything in examples/ runs as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {**os.environ, "MLFLOW_TRACKING_URI": ""}


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_loss_helps_the_tail_in_a_plain_loop(tmp_path):
    shares = [float(share) for share in re.findall(r"([\d.]+) % on", run("own_loop.py", tmp_path))]
    assert len(shares) == 2
    assert all(share > 50 for share in shares)


@pytest.mark.slow
def test_the_loss_falls_in_a_trainers_module(tmp_path):
    first, last = map(float, re.findall(r"loss ([\d.]+) at .*, ([\d.]+)", run(
        "module_style.py", tmp_path))[0])  # fmt: skip
    assert last < 0.5 * first


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_own_images_are_sharded_trained_on_and_labelled(tmp_path):
    assert "the first blue picture: blue" in run("own_images.py", tmp_path)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = json.dumps(notebook.cells)
    assert "epoch 8/8" in texts
    assert "accuracy" in texts
