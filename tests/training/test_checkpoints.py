"""Checkpoints are written while training goes on, one at a time, and lose no error."""

import copy
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray")
from bcl_ray.runs import checkpoint
from bcl_ray.storage import files
from bcl_ray.storage.fence import LeaseLostError
from bcl_ray.training import checkpoints as module
from bcl_ray.training.checkpoints import Checkpoints
from tests.runs.test_checkpoint import differing, fields_of, state_of, trained
from tests.runs.test_snapshot import train_on
from tests.training.fakes import SECONDS, Fence, Train


@pytest.fixture
def train(monkeypatch):
    train = Train(monkeypatch)
    yield train
    train.gate.set()
    train.thread.shutdown()


@pytest.fixture
def fence():
    return Fence()


@pytest.fixture
def saved(tmp_path, fence):
    return Checkpoints(str(tmp_path), fence)


def folders(run: Path, prefix: str) -> list[Path]:
    return sorted(run.glob(f"{prefix}*"))


def save(saved, learner, **options):
    saved.save(lambda: state_of(learner), learner.step, **options)


def test_training_goes_on_while_a_checkpoint_of_the_moment_before_is_written(
    saved, train, tmp_path
):
    learner = trained()
    train.gate.clear()
    expected = copy.deepcopy(fields_of(state_of(learner)))
    save(saved, learner)
    train_on(learner)
    assert folders(tmp_path, "checkpoint_") == []
    assert train.recorded == []
    train.gate.set()
    saved.wait_until_recorded()
    ((step, path),) = train.recorded
    assert step == expected["step"]
    assert differing(fields_of(checkpoint.load(path)), expected) == []
    assert differing(fields_of(state_of(learner)), expected) != []


def test_the_next_checkpoint_waits_for_the_one_before(saved, train):
    learner = trained()
    train.gate.clear()
    save(saved, learner)
    train_on(learner)
    saving = threading.Thread(target=save, args=(saved, learner))
    saving.start()
    saving.join(0.2)
    assert saving.is_alive()
    assert len(train.reports) == 1
    train.gate.set()
    saving.join(SECONDS)
    saved.wait_until_recorded()
    assert [step for step, _ in train.recorded] == [7, 8]
    assert [checkpoint.load(path).step for _, path in train.recorded] == [7, 8]


def test_blocked_seconds_are_counted_once(saved, train):
    save(saved, trained())
    first = saved.take_blocked_seconds()
    assert 0 < first < SECONDS
    assert saved.take_blocked_seconds() == 0


@pytest.mark.parametrize("then", ["save", "wait_until_recorded"])
def test_a_checkpoint_that_cannot_be_written_ends_training(saved, train, monkeypatch, then):
    def fail(*_):
        raise OSError("the disk is broken")

    monkeypatch.setattr(files, "write_bytes", fail)
    learner = trained()
    save(saved, learner)
    arguments = (lambda: state_of(learner), learner.step) if then == "save" else ()
    with pytest.raises(OSError, match="the disk is broken"):
        getattr(saved, then)(*arguments)
    with pytest.raises(OSError, match="the disk is broken"):
        train.reports[0].result()  # by which Ray Train learns of it
    assert train.recorded == []


def test_the_best_is_a_copy_and_replaces_the_old_one_when_it_is_complete(
    saved, train, tmp_path, monkeypatch
):
    learner, seen, real = trained(), [], checkpoint.copy

    def observed(source, target):
        real(source, target)
        seen.append([folder.name for folder in folders(tmp_path, "best_")])

    monkeypatch.setattr(module.checkpoint, "copy", observed)
    for best in (True, False, True):
        save(saved, learner, best=best)
        train_on(learner)
    saved.wait_until_recorded()
    assert seen == [["best_00000007"], ["best_00000007", "best_00000009"]]
    (best,) = folders(tmp_path, "best_")
    _, last = train.recorded[-1]
    assert checkpoint.load(best).step == 9
    assert checkpoint.sha256(best) == checkpoint.sha256(last)


@pytest.mark.parametrize("when", ["before it is written", "while it is written"])
def test_a_driver_that_lost_its_lease_deletes_and_records_nothing(
    saved, train, fence, tmp_path, monkeypatch, when
):
    learner, real = trained(), checkpoint.save
    save(saved, learner, best=True)
    saved.wait_until_recorded()
    if when == "before it is written":
        fence.lost = True
    else:

        def lose(*arguments):
            real(*arguments)
            fence.lost = True

        monkeypatch.setattr(module.checkpoint, "save", lose)
    train_on(learner)
    save(saved, learner, best=True)
    with pytest.raises(LeaseLostError):
        saved.wait_until_recorded()
    assert [folder.name for folder in folders(tmp_path, "best_")] == ["best_00000007"]
    assert [step for step, _ in train.recorded] == [7]
