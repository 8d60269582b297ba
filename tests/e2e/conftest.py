"""Runs of `bcl-ray train` as a user starts them: a process, a terminal's output, files."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from bcl_ray.runs import checkpoint
from bcl_ray.runs.run_folder import open_run
from bcl_ray.use.models import last_checkpoint

# Small, and slow enough to be killed in the middle; several checkpoints per epoch.
OPTIONS = (
    "train.epochs=4",
    "train.eval_every=2",
    "train.checkpoint_every_steps=4",
    "tracking.report=false",  # 5 s of CPU
)


class Command:
    """A `bcl-ray` process and what it printed so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / f"{len(list(folder.glob('*.log')))}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bcl_ray", *arguments],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "MLFLOW_TRACKING_URI": ""},
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)

    def wait_for(self, condition, seconds: float = 240) -> None:
        """Until a condition holds; the process must still run then."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended too early:\n{self.output}"
            assert time.monotonic() < deadline, f"nothing happened in time:\n{self.output}"
            time.sleep(0.05)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def start_steps(self) -> list[int]:
        """The step that each start of the workers began at."""
        starts = re.findall(r"workers? started(?: at step ([\d,]+))?", self.output)
        return [int(step.replace(",", "") or 0) for step in starts]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with shards of digits, where commands run."""
    folder = tmp_path_factory.mktemp("workplace")
    arguments = ("shard", "digits", "data/digits_lt", "--profile", "exponential")
    assert Command(folder, *arguments, "--imbalance-factor", "50").wait() == 0
    return folder


@pytest.fixture(scope="session")
def start(workplace):
    """Start a `bcl-ray` command there."""
    started = []

    def run(*arguments: str) -> Command:
        started.append(Command(workplace, *arguments))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            for process in [*command.children(), command.process]:
                process.kill()


@pytest.fixture(scope="session")
def undisturbed(start, workplace):
    """State and output of a run of two workers that nothing happened to."""
    command = start(
        "train", "digits_lt", *OPTIONS, "tracking.report=true", "tracking.run=undisturbed"
    )
    assert command.wait() == 0, command.output
    return last_state(workplace, "undisturbed"), command.output


def last_state(workplace: Path, name: str) -> checkpoint.State:
    return checkpoint.load(last_checkpoint(open_run(str(workplace / "runs" / name))[0]))


def latest_step(workplace: Path, name: str) -> int:
    """Step of the last checkpoint that Ray Train has committed; 0 before the first."""
    snapshot = workplace / "runs" / name / "checkpoint_manager_snapshot.json"
    try:
        results = json.loads(snapshot.read_text())["latest_checkpoint_result"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return 0
    return int((results or {"metrics": {}})["metrics"].get("step", 0))


def assert_same_run(state: checkpoint.State, expected: checkpoint.State) -> None:
    """Weights, momentum and metrics are the same, bit for bit; times are not."""
    assert state.step == expected.step
    for part in ("model", "optimizer"):
        assert flat(getattr(state, part)).keys() == flat(getattr(expected, part)).keys()
        for name, value in flat(getattr(expected, part)).items():
            same = flat(getattr(state, part))[name]
            assert torch.equal(same, value) if torch.is_tensor(value) else same == value, name
    for record, other in zip(state.history, expected.history, strict=True):
        kept = [name for name in other if not name.startswith(("time/", "throughput/"))]
        assert {name: record[name] for name in kept} == {name: other[name] for name in kept}


def flat(content, prefix="") -> dict:
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        return {prefix: content}
    return {k: v for name, value in items for k, v in flat(value, f"{prefix}.{name}").items()}
