"""What trials that lost leave, without Ray."""

import json

import pytest

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs import run_folder
from bcl_ray.storage import files
from bcl_ray.tuning.cleanup import remove_lost_checkpoints
from bcl_ray.tuning.ledger import begin
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import Trial

TRIALS = [
    Trial("trial-000", 0, {}, status="finished", tracked=True),
    Trial("trial-001", 1, {}, status="finished", tracked=True),
    Trial("trial-002", 2, {}, status="stopped"),
    Trial("trial-003", 3, {}, status="failed"),
    Trial("trial-004", 4, {}, status="finished"),
    Trial("trial-005", 5, {}, status="running"),
    Trial("trial-000-seed-1", 0, {}, seed=1, status="finished", tracked=True),
]


@pytest.fixture
def ledger(tmp_path):
    """A search, each of whose trials has two last checkpoints, a best one and a journal."""
    ledger = begin(str(tmp_path / "runs" / "one"), Settings(), Extent(), digits_lt(), "f" * 64)
    for trial in TRIALS:
        run = run_folder.create(ledger.file(trial.name), digits_lt(), "f" * 64)
        for folder in ("checkpoint_1", "checkpoint_2", "best_1"):
            files.write_bytes(files.join(run.uri, folder, "state.pt"), b"weights")
        entry = {"kind": "metrics", "epoch": 0, "values": {"accuracy/all": 50.0}}
        journal = run_folder.local_folder(run) / "journal.jsonl"
        journal.write_text(json.dumps(entry) + "\n")
    return ledger


def left(ledger, trial):
    return len(files.list_folders(ledger.file(trial)))


def test_trials_that_lost_keep_their_best_checkpoint_alone(ledger):
    notes = []
    remove_lost_checkpoints(ledger, TRIALS, "trial-001", notify=notes.append)
    folders = {trial.name: left(ledger, trial.name) for trial in TRIALS}
    assert folders == {
        "trial-000": 1,
        "trial-001": 3,  # the winner
        "trial-002": 1,
        "trial-003": 3,  # it failed, and may be gone on with
        "trial-004": 3,  # MLflow has not got its model
        "trial-005": 3,  # it goes on
        "trial-000-seed-1": 3,  # with more seeds, its trial may win
    }
    assert notes == []
    run = run_folder.open_run(ledger.file("trial-002"))[0]
    assert run_folder.why_only_best(run) == "lost its search, one"
    assert run_folder.saved_history(run) == [{"epoch": 0.0, "accuracy/all": 50.0}]


def test_what_cannot_be_removed_is_told_and_stops_nothing(ledger):
    files.delete(files.join(ledger.file("trial-000"), run_folder.RUN_FILE))
    notes = []
    remove_lost_checkpoints(ledger, TRIALS, "trial-001", notify=notes.append)
    assert len(notes) == 1
    assert "trial-000 (" in notes[0]
    assert left(ledger, "trial-002") == 1
