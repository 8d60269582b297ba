"""What a worker saves and when, and that a resumed run ends as if nothing had happened."""

import time

import pytest
import torch

pytest.importorskip("ray")
import ray.train.torch

from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.ray_runtime.failures import RestartError
from bcl_ray.runs import checkpoint
from bcl_ray.training import checkpoints
from bcl_ray.training import worker as module
from bcl_ray.training.worker import Worker, train_worker
from tests.e2e.conftest import assert_same_run
from tests.training.fakes import Channel, Fence, Train, Watchdog

EPOCHS, STEPS = 3, 3  # STEPS per epoch
OPTIONS = [
    f"train.epochs={EPOCHS}",
    "train.eval_every=1",
    "optim.global_batch_size=128",
    "optim.warmup_epochs=0",
    "model.width=4",
    "data.residency=device",
]
# How often the watchdog is asked for signals in an epoch, see `Watchdog`.
CALLS = STEPS + 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


class Run:
    """A run of one worker, which may be started several times."""

    def __init__(self, shards, folder, monkeypatch):
        self.shards, self.folder, self._monkeypatch = shards, folder, monkeypatch
        self.train, self.channel = Train(monkeypatch), Channel()
        monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(checkpoints, "broadcast_from_rank_zero", lambda value: value)

    def start(self, *options, signal_after=float("inf"), signal="stop"):
        watchdog = Watchdog(signal_after, signal)
        self._monkeypatch.setattr(module, "Watchdog", lambda *_: watchdog)
        experiment = with_overrides(digits_lt(), [f"data.path={self.shards}", *OPTIONS, *options])
        config = {
            "experiment": experiment.to_yaml(),
            "manifest": read_manifest(self.shards),
            "run": str(self.folder),
            "uid": "0" * 32,
            "channel": self.channel,
            "fence": Fence(),
        }
        return train_worker(config)

    @property
    def steps(self):
        """Of the checkpoints that were recorded."""
        return [step for step, _ in self.train.recorded]

    def state(self, number=-1):
        return checkpoint.load(self.train.recorded[number][1])


@pytest.fixture
def run(shards, tmp_path, monkeypatch):
    run = Run(shards, tmp_path / "run", monkeypatch)
    yield run
    run.train.gate.set()
    run.train.thread.shutdown()


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = Run(shards, tmp_path_factory.mktemp("undisturbed"), monkeypatch)
        assert run.start() == {}
        run.train.thread.shutdown()
        return run


def test_an_epoch_writes_one_checkpoint_which_has_its_evaluation(undisturbed):
    assert undisturbed.steps == [STEPS, 2 * STEPS, 3 * STEPS]
    for number in range(EPOCHS):
        history = undisturbed.state(number).history
        assert len(history) == number + 1
        assert all("accuracy/all" in record for record in history)


def test_the_history_that_is_saved_is_the_one_that_is_sent(undisturbed):
    sent = [event["records"][0] for event in undisturbed.channel.events if "epochs" in event]
    assert undisturbed.state().history == sent
    assert all(record["time/checkpoint"] >= 0 for record in sent)
    assert sent[0]["time/checkpoint"] == 0, "nothing was saved before"
    assert sent[1]["time/checkpoint"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["stop", "restart"])
def test_a_run_that_is_stopped_before_an_evaluation_makes_up_for_it(run, undisturbed, signal):
    after = CALLS + STEPS  # asked for the next time at the end of the second epoch's training
    if signal == "stop":
        assert run.start(signal_after=after) == {"stopped": 2 * STEPS}
    else:
        with pytest.raises(RestartError, match=f"everything up to step {2 * STEPS} is saved"):
            run.start(signal_after=after, signal="restart")
    assert run.steps == [STEPS, 2 * STEPS]
    assert len(run.state().history) == 1, "the second epoch was not evaluated"
    assert run.start() == {}
    assert run.steps == [STEPS, 2 * STEPS, 2 * STEPS, 3 * STEPS]
    assert_same_run(run.state(), undisturbed.state())


def test_an_epoch_that_is_only_evaluated_has_no_rates_of_training(run, undisturbed):
    run.start(signal_after=CALLS + STEPS)
    run.start()
    of_training = {"time/epoch", "time/data_share", "throughput/images_per_second"}
    first, second, third = run.state().history
    assert undisturbed.state().history[1].keys() - second.keys() == of_training
    assert all(record.keys() >= of_training for record in (first, third))


def test_a_stop_that_comes_during_an_evaluation_ends_the_run_after_it(run, undisturbed):
    assert run.start(signal_after=2 * CALLS - 1) == {"stopped": 2 * STEPS}
    assert run.steps == [STEPS, 2 * STEPS]
    assert len(run.state().history) == 2
    assert run.start() == {}
    assert_same_run(run.state(), undisturbed.state())


@pytest.mark.parametrize("end", ["done", "stopped", "failed"])
def test_a_worker_ends_only_when_its_last_checkpoint_is_recorded(run, monkeypatch, end):
    real, evaluate = checkpoint.save, Worker._evaluate

    def slowly(*arguments):
        time.sleep(0.3)
        real(*arguments)

    def fail(worker, epoch):
        if epoch == 1:
            raise RuntimeError("the card is broken")
        return evaluate(worker, epoch)

    monkeypatch.setattr(checkpoints.checkpoint, "save", slowly)
    if end == "done":
        run.start("train.epochs=1")
        assert run.steps == [STEPS]
    elif end == "stopped":
        run.start(signal_after=STEPS)
        assert run.steps == [STEPS]
    else:
        monkeypatch.setattr(Worker, "_evaluate", fail)
        with pytest.raises(RuntimeError, match="the card is broken"):
            run.start()
        assert run.steps == [STEPS]


def test_geometry_is_measured_at_some_evaluations(run):
    run.start("train.epochs=4", "train.geometry_every=3")
    measured = [("geometry/nc1" in record) for record in run.state().history]
    assert measured == [True, False, True, True], "the first, every third, the last"
