"""The ledger of a search, from which it is resumed, and the ranking of trials."""

import json
from dataclasses import replace

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt, finetune
from bcl_ray.storage.fence import LeaseLostError
from bcl_ray.storage.lease_request import acquire_lease
from bcl_ray.tuning.ledger_writer import LedgerWriter
from bcl_ray.tuning.search_ledger import begin, check_free, check_resumable, open_search, resume
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import (
    Trial,
    best_trial,
    final_score,
    ranked,
    repeat_scores,
    trials_to_trim,
    with_repeats,
)

RECIPE = digits_lt()
PRINT = "f" * 64


@pytest.fixture
def ledger(tmp_path):
    return begin(str(tmp_path / "runs" / "one"), Settings(), Extent(), RECIPE, PRINT)


def trial(number, score, status="finished", seed=None):
    name = f"trial-{number:03d}" + (f"-seed-{seed}" if seed is not None else "")
    scores = {} if score is None else {5: score - 1, 10: score}
    return Trial(name, number, {"loss.tau": 1.0 + number}, seed, scores, status=status)


def test_a_search_is_found_again_as_it_was_begun(ledger):
    opened = open_search(ledger.uri)
    assert opened == ledger
    assert len(opened.uid) == 32
    assert opened.name == "one"


def test_what_an_experiment_leaves_open_follows_from_each_point(tmp_path):
    pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    ledger = begin(str(tmp_path / "runs" / "open"), Settings(), Extent(), finetune(), PRINT)
    for backbone, size in (("test_vit", 160), ("tf_efficientnet_lite0", 224)):
        point = {"model.backbone": f"timm/{backbone}"}
        views = ledger.experiment_of(Trial("trial-001", 1, point)).views
        assert views.image_size == size
        assert views.eval_resize >= size
    small = ledger.experiment_of(Trial("trial-002", 2, {"views.image_size": 96}))
    assert small.views.eval_resize < 224


def test_trials_are_found_again_as_they_were_written(ledger):
    written = [trial(0, 50.0), trial(2, None, "failed"), trial(10, 9.0, "running"), trial(2, 1.0)]
    written[1].reason = "the workers failed"
    written[3] = trial(2, 60.0, seed=1)
    for one in written:
        ledger.save(one)
    assert ledger.trials() == [written[0], written[1], written[3], written[2]]
    assert (ledger.trials()[0].epochs, ledger.trials()[0].score) == (10, 50.0)
    assert (ledger.trials()[1].epochs, ledger.trials()[1].score) == (0, None)


def test_a_name_is_taken_once(ledger):
    with pytest.raises(ValueError, match=r"search 'one' exists in .* with this configuration: go"):
        check_free(ledger.uri, Settings(), RECIPE)
    other = with_overrides(RECIPE, ["optim.lr=0.2"])
    with pytest.raises(ValueError, match="with another configuration: give the new search another"):
        check_free(ledger.uri, Settings(), other)
    check_free(ledger.uri.replace("one", "two"), Settings(), other)


@pytest.mark.parametrize(
    "changed",
    [
        Settings(searcher="grid"),
        Settings(scheduler="none"),
        Settings(metric="accuracy/few"),
        Settings(validation=0.3),
        Settings(seed=1),
        Settings(space="loss.tau: {uniform: [0, 1]}"),
    ],
)
def test_other_settings_do_not_go_on_with_it(ledger, changed):
    with pytest.raises(ValueError, match="another configuration") as error:
        check_resumable(ledger, changed, RECIPE, PRINT)
    assert ledger.digest in str(error.value)


def test_the_default_space_written_out_is_the_same_configuration(ledger):
    check_resumable(ledger, Settings(space="extends: loss"), RECIPE, PRINT)


def test_where_things_lie_and_how_fast_they_go_may_change(ledger):
    moved = with_overrides(
        RECIPE, ["data.path=s3://b/d", "scale.workers=1", "tracking.uri=http://m:5000"]
    )
    check_resumable(ledger, Settings(), moved, PRINT)
    with pytest.raises(ValueError, match=r"holds other data \(fingerprint eeeeeeeeeeee\)"):
        check_resumable(ledger, Settings(), moved, "e" * 64)
    again = resume(ledger, Extent(trials=40, confirm=(2, 3)), moved)
    assert open_search(ledger.uri).extent == again.extent == Extent(trials=40, confirm=(2, 3))
    assert open_search(ledger.uri).uid == ledger.uid


def test_a_file_that_was_changed_is_refused(ledger, tmp_path):
    file = tmp_path / "runs" / "one" / "search.json"
    content = json.loads(file.read_text())
    content["settings"]["seed"] = 9
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"is not what search 'one' began with \(digest"):
        open_search(ledger.uri)


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing holds no search \(no search.json\)"):
        open_search(str(tmp_path / "nothing"))


def test_a_run_of_that_name_is_refused(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--name: .*taken holds a run"):
        check_free(str(tmp_path / "taken"), Settings(), RECIPE)


def test_only_trials_that_came_to_their_end_can_win():
    trials = [trial(0, 50.0), trial(1, 70.0, "stopped"), trial(2, 60.0), trial(3, None, "failed")]
    assert [t.number for t in ranked(trials)] == [2, 0]
    assert best_trial(trials).number == 2
    assert best_trial(trials[1:2]) is None


def test_of_equals_the_first_wins_which_is_the_published_one():
    assert best_trial([trial(0, 50.0), trial(1, 50.0)]).number == 0


def test_repeats_decide_where_there_are_some():
    trials = [trial(0, 50.0), trial(1, 70.0), trial(2, 60.0)]
    extended = with_repeats(trials, k=2, n=2, seed=0)
    assert [t.name for t in extended[3:]] == [
        "trial-001-seed-1",
        "trial-001-seed-2",
        "trial-002-seed-1",
        "trial-002-seed-2",
        "trial-000-seed-1",
        "trial-000-seed-2",
    ], "the published values too"
    assert {t.status for t in extended[3:]} == {"running"}
    done = [*trials, trial(1, 50.0, seed=1), trial(1, 52.0, seed=2), trial(2, 58.0, seed=1)]
    assert repeat_scores(trials[1], done) == [50.0, 52.0]
    assert final_score(trials[1], done) == 51.0
    assert final_score(trials[1], trials) == trials[1].score
    assert best_trial(done).number == 2
    assert with_repeats(done, k=2, n=2, seed=0)[:6] == done, "what is there stays"
    assert [t.name for t in with_repeats(done, k=2, n=2, seed=0)[6:]] == [
        "trial-002-seed-2",
        "trial-000-seed-1",
        "trial-000-seed-2",
    ]


def test_a_driver_that_was_replaced_writes_no_trial_down(ledger):
    with acquire_lease(ledger.uri, "search 'one'", print, wait=False) as lease:
        ours = replace(ledger, fence=lease.fence)
        ours.save(trial(0, 50.0))
    with acquire_lease(ledger.uri, "search 'one'", print, wait=False):
        with pytest.raises(LeaseLostError, match=r"number 1, .* has it now as number 2"):
            ours.save(trial(0, 60.0))
        assert ledger.trials() == [trial(0, 50.0)]


def test_a_writer_that_cannot_write_says_why_and_does_not_hang(ledger):
    class FullLedger:
        def save(self, *trials):
            raise OSError("no space left")

    with LedgerWriter(FullLedger()) as writer:
        writer.save(trial(0, 50.0))
        with pytest.raises(OSError, match="no space left"):
            writer.flush()
        assert str(writer.error) == "no space left"
        writer.save(trial(1, 50.0))
        assert not writer.has_written(trial(1, 50.0))


def test_of_many_states_of_many_trials_the_last_ones_are_written(ledger):
    with LedgerWriter(ledger) as writer:
        for score in range(50):
            for number in range(20):
                writer.save(trial(number, float(score)))
    assert ledger.trials() == [trial(number, 49.0) for number in range(20)]


def test_trials_have_lost_once_they_cannot_win_and_nothing_needs_them():
    finished = [replace(trial(n, score), tracked=True) for n, score in enumerate((50.0, 70.0))]
    stopped, failed, running = trial(2, 90.0, "stopped"), trial(3, 9.0, "failed"), trial(4, 1.0)
    running.status = "running"
    assert trials_to_trim([*finished, stopped, failed, running]) == [finished[0], stopped]
    assert trials_to_trim([finished[0], stopped]) == [stopped], "the best so far"
    assert trials_to_trim([trial(0, 50.0), finished[1]]) == [], (
        "MLflow has not got the model of trial 0"
    )
    repeats = [replace(trial(0, 80.0, seed=1), tracked=True)]
    assert trials_to_trim([*finished, *repeats]) == [finished[1]], "the mean of repeats decides"
