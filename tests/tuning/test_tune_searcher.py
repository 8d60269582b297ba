"""The connection between Ray Tune and the ledger, without Ray."""

import json
import threading
from types import SimpleNamespace

import pytest

from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.ray_runtime.stopping import StopRequest
from bcl_ray.tuning import ledger_writer
from bcl_ray.tuning.samplers import make_sampler
from bcl_ray.tuning.search_ledger import begin
from bcl_ray.tuning.settings import Extent, Settings
from bcl_ray.tuning.trials import Trial
from bcl_ray.tuning.tune_searcher import Engine, NewTrials, StopOnRequest, TuneSearcher

FINISHED = "FINISHED"


class LedgerWriter:
    """Writes at once, in the thread that calls it."""

    def __init__(self, ledger):
        self.ledger, self.save = ledger, ledger.save

    def has_written(self, trial):
        return True


class Cleaner:
    def clean(self, trials):
        pass


class ResourceWatcher:
    def __init__(self):
        self.ended = []

    def trial_ended(self, run):
        self.ended.append(run)


@pytest.fixture
def search(tmp_path):
    """A search, for which `search.searcher()` acts as a process that begins or resumes it."""
    search = SimpleNamespace(events=[], watcher=ResourceWatcher())
    uri = str(tmp_path / "runs" / "one")
    search.ledger = begin(uri, Settings(), Extent(), digits_lt(), "f" * 64)

    def searcher(total=3, space=True, writer=LedgerWriter):
        engine = Engine(
            writer(search.ledger),
            Cleaner(),
            options=[f"tracking.runs={uri}", "scale.workers=1", "data.eval_split=validation"],
            follow=search.events.append,
            watcher=search.watcher,
        )
        sampler = make_sampler("random", search.ledger.space, 0)
        new = NewTrials(total, sampler, "none") if space else None
        return TuneSearcher(engine, search.ledger.trials(), new)

    search.searcher = searcher
    return search


def report(searcher, trial_id, epochs, score, **more):
    metrics = json.dumps({"accuracy/all": score})
    result = {"epochs": epochs, "score": score, "metrics": metrics, **more}
    if "done" not in more:
        searcher.on_trial_result(trial_id, result)
    else:
        searcher.on_trial_complete(trial_id, result)


def test_trial_0_has_the_published_values_and_others_are_chosen(search):
    searcher = search.searcher()
    configs = [searcher.suggest(name) for name in "abc"]
    experiments = [from_yaml(config["experiment"]) for config in configs]
    assert experiments[0].loss == digits_lt().loss
    assert len({experiment.loss for experiment in experiments}) == 3
    assert searcher.suggest("d") == FINISHED
    assert [e.tracking.run for e in experiments] == ["trial-000", "trial-001", "trial-002"]
    assert {e.tracking.runs for e in experiments} == {search.ledger.uri}
    assert {e.data.eval_split for e in experiments} == {"validation"}
    assert {e.scale.workers for e in experiments} == {1}
    assert {c["sweep"] for c in configs} == {search.ledger.uid}


def test_everything_is_written_down_at_once(search):
    searcher = search.searcher()
    searcher.suggest("a")
    assert [t.status for t in search.ledger.trials()] == ["running"]
    report(searcher, "a", 5, 40.0)
    assert search.ledger.trials()[0].scores == {5: 40.0}
    report(searcher, "a", 40, 60.0, done=True, end="finished")
    (trial,) = search.ledger.trials()
    assert (trial.status, trial.scores, trial.metrics) == (
        "finished",
        {5: 40.0, 40: 60.0},
        {"accuracy/all": 60.0},
    )
    assert search.watcher.ended == ["trial-000"]
    assert [event["status"] for event in search.events] == [
        "running",
        "running",
        "running",
        "finished",
    ]


def test_a_trial_starts_when_it_is_in_the_ledger_and_tune_waits_for_no_write(search):
    may_write, writers = threading.Event(), []

    class SlowLedger:
        def save(self, *trials):
            may_write.wait()
            search.ledger.save(*trials)

        def __getattr__(self, name):
            return getattr(search.ledger, name)

    def writer(_):
        writers.append(ledger_writer.LedgerWriter(SlowLedger()))
        return writers[-1].__enter__()

    searcher = search.searcher(writer=writer)
    assert [searcher.suggest(name) for name in "abc"] == [None] * 3
    may_write.set()
    writers[0].flush()
    assert [trial.name for trial in search.ledger.trials()] == ["trial-000"]
    assert searcher.suggest("d")["trial"] == "trial-000", "once, however often Tune asks"
    may_write.clear()
    report(searcher, "d", 5, 40.0)
    report(searcher, "d", 10, 50.0)
    assert searcher.suggest("e") is None
    may_write.set()
    writers[0].__exit__()
    assert searcher.suggest("f")["trial"] == "trial-001"
    assert [trial.scores for trial in search.ledger.trials()] == [{5: 40.0, 10: 50.0}, {}]


def test_what_the_scheduler_stops_is_stopped(search):
    """Tune then sets `done` itself, and passes the last result to on_trial_complete only."""
    searcher = search.searcher()
    searcher.suggest("a")
    report(searcher, "a", 10, 40.0, done=True)
    (trial,) = search.ledger.trials()
    assert (trial.status, trial.scores) == ("stopped", {10: 40.0})


def test_a_failure_is_kept_with_its_reason_and_the_search_goes_on(search):
    searcher = search.searcher(total=5)
    searcher.suggest("a")
    searcher.suggest("b")
    reason = "step 3: the loss is not finite"
    searcher.on_trial_complete("a", {"end": "failed", "reason": reason, "done": True})
    searcher.on_trial_complete("b", error=True)
    first, second = search.ledger.trials()
    assert (first.status, first.reason) == ("failed", reason)
    assert second.reason == "its process died again and again: see Ray's logs"
    assert searcher.suggest("c") != FINISHED


def test_a_trial_that_an_outage_held_up_is_tried_again_by_the_next_process(search):
    first = search.searcher(total=2)
    first.suggest("a")
    report(first, "a", 5, 40.0)
    reason = "s3://bucket: does not answer"
    first.on_trial_complete("a", {"end": "held up", "reason": reason, "done": True})
    (trial,) = search.ledger.trials()
    assert (trial.status, trial.reason) == ("held up", reason)
    text = f"trial-000 was held up: {reason}; it goes on when the search does"
    assert {"kind": "note", "text": text} in search.events
    assert first.suggest("b")["trial"] == "trial-001", "and not again by this one"
    second = search.searcher(total=2)
    assert second.suggest("c")["trial"] == "trial-000"
    (trial, _) = search.ledger.trials()
    assert (trial.status, trial.reason) == ("running", None)


def test_a_search_in_which_all_is_held_up_ends_early(search):
    searcher = search.searcher(total=20)
    for name in "abc":
        searcher.suggest(name)
        searcher.on_trial_complete(name, {"end": "held up", "reason": "no", "done": True})
    assert searcher.suggest("d") == FINISHED
    assert not search.searcher(total=20).gives_up


def test_a_search_in_which_all_fails_ends_early(search):
    searcher = search.searcher(total=20)
    for name in "abc":
        searcher.suggest(name)
        searcher.on_trial_complete(name, {"end": "failed", "reason": "no", "done": True})
    assert searcher.gives_up
    assert searcher.suggest("d") == FINISHED


def test_failures_after_a_success_do_not_end_it(search):
    searcher = search.searcher(total=20)
    searcher.suggest("z")
    report(searcher, "z", 5, 40.0)
    for name in "abcd":
        searcher.suggest(name)
        searcher.on_trial_complete(name, {"end": "failed", "reason": "no", "done": True})
    assert searcher.suggest("e") != FINISHED


def test_a_search_goes_on_where_it_was(search):
    first = search.searcher(total=4)
    points = [from_yaml(first.suggest(name)["experiment"]).loss for name in "abc"]
    report(first, "a", 40, 60.0, done=True, end="finished")
    report(first, "b", 5, 30.0)
    second = search.searcher(total=4)  # the process was killed
    configs = [second.suggest(name) for name in "xyz"]
    assert [config["trial"] for config in configs] == ["trial-001", "trial-002", "trial-003"]
    assert [from_yaml(config["experiment"]).loss for config in configs[:2]] == points[1:]
    assert [config["reported"] for config in configs] == [5, 0, 0]
    assert second.suggest("w") == FINISHED
    assert second.trials["trial-001"].scores == {5: 30.0}


def test_more_trials_may_be_wanted_later(search):
    first = search.searcher(total=1)
    first.suggest("a")
    report(first, "a", 40, 60.0, done=True, end="finished")
    assert first.suggest("b") == FINISHED
    assert search.searcher(total=2).suggest("b")["trial"] == "trial-001"


def test_an_interruption_leaves_trials_to_go_on(search):
    searcher, stop_request = search.searcher(), StopRequest()
    stopper = StopOnRequest(searcher, stop_request)
    searcher.suggest("a")
    assert not stopper.stop_all()
    stop_request.stop("SIGINT")
    assert stopper.stop_all()
    searcher.on_trial_complete("a", {"done": True})
    assert search.ledger.trials()[0].status == "running"


def test_repeats_have_other_seeds_and_no_new_trials(search):
    search.ledger.save(Trial("trial-003-seed-2", 3, {"loss.tau": 0.5}, seed=2))
    searcher = search.searcher(space=False)
    config = searcher.suggest("a")
    experiment = from_yaml(config["experiment"])
    assert (experiment.train.seed, experiment.loss.tau) == (2, 0.5)
    assert experiment.tracking.run == "trial-003-seed-2"
    assert searcher.suggest("b") == FINISHED
