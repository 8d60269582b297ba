"""The trainer on a real Ray: training can be ended at any time."""

import functools
import threading
import time
from pathlib import Path

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.ray_runtime.trainer import ABORT_SECONDS
from tests.local_ray import local_ray_running

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with local_ray_running():
        yield


def beats(config):
    """A worker that trains for ever."""
    while True:
        with open(config["file"], "a") as file:  # noqa: PTH123 (in a worker)
            file.write("x")
        time.sleep(0.1)


def write_message(file, text):
    """A message of the controller, which calls this in its own process."""
    Path(file).write_text(text)


@pytest.fixture
def started(tmp_path):
    """Starts a training in a thread; returns its trainer, the thread and the file of its beats."""
    import ray.train

    from bcl_ray.ray_runtime.trainer import Trainer

    def start(*overrides):
        file = tmp_path / "beats"
        file.touch()
        experiment = with_overrides(digits_lt(), overrides)
        scale = experiment.scale
        trainer = Trainer(
            beats,
            experiment=experiment,
            notify=functools.partial(write_message, str(tmp_path / "message")),
            request_restart=print,
            train_loop_config={"file": str(file)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(scale.min_workers, scale.max_workers),
                resources_per_worker={"CPU": scale.cpus_per_worker},
            ),
            run_config=ray.train.RunConfig(name="run", storage_path=str(tmp_path)),
        )
        thread = threading.Thread(target=fit, args=[trainer], daemon=True)
        thread.start()
        return trainer, thread, file

    def fit(trainer):
        with pytest.raises(ray.exceptions.RayError):
            trainer.fit()

    return start


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_training_that_is_ended_has_no_worker_and_no_thread_left(started):
    trainer, thread, file = started("scale.workers=1", "scale.cpus_per_worker=1")
    wait_for(file.read_text)
    trainer.terminate()
    thread.join(10)
    assert not thread.is_alive()
    time.sleep(1)
    before = file.read_text()
    time.sleep(2)
    assert file.read_text() == before, "no worker goes on"
    trainer.terminate()  # a second call does no harm


def test_a_controller_that_waits_for_nodes_answers(started):
    """Its loop is not blocked, as it would be by a sleep in a policy."""
    trainer, thread, file = started("scale.workers=2", "scale.cpus_per_worker=8")
    wait_for((file.parent / "message").exists)
    assert "waiting up to" in (file.parent / "message").read_text()
    begun = time.monotonic()
    trainer.terminate()
    assert time.monotonic() - begun < ABORT_SECONDS
    thread.join(10)
    assert not thread.is_alive()
    assert file.read_text() == ""
