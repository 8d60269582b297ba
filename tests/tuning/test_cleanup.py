"""What trials that lost leave, without Ray."""

import json
import time

import pytest

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs import run_folder
from bcl_ray.storage import files
from bcl_ray.storage.lease_request import acquire_lease
from bcl_ray.tuning.cleanup import Cleaner
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.search_ledger import begin
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import Trial


def all_trials():
    return [
        Trial("trial-000", 0, {}, scores={9: 50.0}, status="finished", tracked=True),
        Trial("trial-001", 1, {}, scores={9: 60.0}, status="finished", tracked=True),
        Trial("trial-002", 2, {}, status="stopped"),
        Trial("trial-003", 3, {}, status="failed"),
        Trial("trial-004", 4, {}, status="finished"),
        Trial("trial-005", 5, {}, status="running"),
        Trial("trial-001-seed-1", 1, {}, scores={9: 61.0}, seed=1, status="finished", tracked=True),
    ]


@pytest.fixture
def trials():
    return all_trials()


@pytest.fixture
def ledger(tmp_path, trials):
    """A search, each of whose trials has two last checkpoints, a best one and a journal."""
    ledger = begin(str(tmp_path / "runs" / "one"), Settings(), Extent(), digits_lt(), "f" * 64)
    for trial in trials:
        run = run_folder.create(ledger.file(trial.name), digits_lt(), "f" * 64)
        for folder in ("checkpoint_1", "checkpoint_2", "best_1"):
            files.write_bytes(files.join(run.uri, folder, "state.pt"), b"weights")
        entry = {"kind": "metrics", "epoch": 0, "values": {"accuracy/all": 50.0}}
        journal = run_folder.local_folder(run) / "journal.jsonl"
        journal.write_text(json.dumps(entry) + "\n")
    return ledger


def left(ledger, trial):
    return len(files.list_folders(ledger.file(trial)))


def finish(ledger, trials):
    """What a process of the search does at its end; returns its messages."""
    notes = []
    with LedgerWriter(ledger) as writer, Cleaner(writer, notes.append) as cleaner:
        cleaner.finish(trials)
    return notes


def test_trials_that_lost_keep_their_best_checkpoint_alone(ledger, trials):
    assert finish(ledger, trials) == []
    folders = {trial.name: left(ledger, trial.name) for trial in trials}
    assert folders == {
        "trial-000": 1,
        "trial-001": 3,  # the winner
        "trial-002": 1,
        "trial-003": 3,  # it failed, and may be gone on with
        "trial-004": 3,  # MLflow has not got its model
        "trial-005": 3,  # it goes on
        "trial-001-seed-1": 3,  # with more seeds, its trial may win
    }
    run = run_folder.open_run(ledger.file("trial-002"))[0]
    assert run_folder.why_only_best(run) == "lost its search, one"
    assert run_folder.saved_history(run) == [{"epoch": 0.0, "accuracy/all": 50.0}]


def test_what_was_removed_once_is_not_looked_at_again(ledger, trials, monkeypatch):
    finish(ledger, trials)
    resumed = ledger.trials()
    assert [trial.name for trial in resumed if trial.only_best] == ["trial-000", "trial-002"]

    def open_run(uri):
        raise AssertionError(uri)

    monkeypatch.setattr(run_folder, "open_run", open_run)
    assert finish(ledger, resumed) == []


@pytest.mark.slow
def test_a_trial_is_cleaned_when_its_driver_has_ended_and_not_before(ledger, trials):
    notes = []
    with LedgerWriter(ledger) as writer, Cleaner(writer, notes.append) as cleaner:
        with acquire_lease(ledger.file("trial-002"), "it", print, wait=False):
            cleaner.clean(trials)
            for _ in range(50):  # all others are done with meanwhile
                if left(ledger, "trial-000") > 1:
                    time.sleep(0.1)
            # The checkpoint that a stopped run still writes.
            files.write_bytes(ledger.file("trial-002", "checkpoint_3", "state.pt"), b"weights")
            assert (left(ledger, "trial-000"), left(ledger, "trial-002")) == (1, 4)
        cleaner.finish(trials)
    assert (left(ledger, "trial-002"), notes) == (1, [])


def test_what_cannot_be_removed_is_told_and_stops_nothing(ledger, trials):
    files.delete(files.join(ledger.file("trial-000"), run_folder.RUN_FILE))
    notes = finish(ledger, trials)
    assert len(notes) == 1
    assert "trial-000 (" in notes[0]
    assert left(ledger, "trial-002") == 1
