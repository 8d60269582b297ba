"""Which trials the schedulers of Ray Tune stop, without Tune."""

from dataclasses import dataclass

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.tuning.schedulers import first_rung, make_scheduler
from bcl_ray.tuning.trials import Trial

pytest.importorskip("ray")

TRAIN = with_overrides(digits_lt(), ["train.epochs=45", "train.eval_every=5"]).train


@dataclass(eq=False)
class Tunes:
    """A trial as Tune has it."""

    number: int

    @property
    def trial_id(self):
        return f"id-{self.number}"

    @property
    def config(self):
        return {"number": self.number}


def scheduler(name="asha", find_trial=lambda _: None, earlier=()):
    return make_scheduler(name, TRAIN, find_trial, earlier)


def run(schedule, trial, score, until=45):
    """Epochs after which a trial is stopped, or all of them."""
    schedule.on_trial_add(None, trial)
    result = {}
    for epochs in range(5, until + 1, 5):
        result = {"epochs": epochs, "score": score}
        if schedule.on_trial_result(None, trial, result) == "STOP":
            break
    schedule.on_trial_complete(None, trial, result)
    return result["epochs"]


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [(40, 5, 5), (200, 1, 8), (200, 5, 10), (90, 1, 4), (4, 2, 2), (1, 1, 1), (3, 5, 3)],
)
def test_the_first_rung_is_an_evaluation_early_on(epochs, every, expected):
    changes = [f"train.epochs={epochs}", f"train.eval_every={every}"]
    assert first_rung(with_overrides(digits_lt(), changes).train) == expected


def test_asha_stops_what_is_worse_at_a_rung():
    asha = scheduler()
    assert run(asha, Tunes(1), 60) == 45
    assert run(asha, Tunes(2), 50) == 5
    assert run(asha, Tunes(3), 70) == 45


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_the_published_values_come_to_their_end(name):
    schedule = scheduler(name)
    for number in range(1, 6):
        run(schedule, Tunes(number), 90)
    assert run(schedule, Tunes(0), 10) == 45
    # HyperBand draws a bracket for each, the last of which stops nothing.
    assert min(run(schedule, Tunes(number), 10) for number in range(9, 25)) < 45


def test_none_stops_nothing():
    none = scheduler("none")
    assert [run(none, Tunes(number), 90 - number) for number in range(4)] == [45] * 4


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_resumed_scheduler_remembers(name):
    earlier = [
        Trial(
            f"trial-{n:03d}", n, {}, scores={e: 2.0 * e for e in range(5, 50, 5)}, status="finished"
        )
        for n in range(5)
    ]
    earlier.append(Trial("trial-005", 5, {}, status="failed"))
    by_number = {trial.number: trial for trial in earlier}
    resumed, fresh = scheduler(name, by_number.get, earlier), scheduler(name)
    new = [Tunes(number) for number in range(6, 16)]  # HyperBand deals out brackets by chance
    assert min(run(resumed, trial, 5) for trial in new) < 45
    assert min(run(fresh, trial, 5) for trial in new) == 45
    good = Tunes(16)
    resumed.on_trial_add(None, good)
    for epochs in range(5, 45, 5):  # as good as those before, at each of their epochs
        again = resumed.on_trial_result(None, good, {"epochs": epochs, "score": 2.0 * epochs})
        assert again == "CONTINUE"


def test_running_trials_below_the_median_go_on_after_a_resume_until_they_are_judged_anew():
    running = [
        Trial(
            f"trial-{n:03d}", n, {}, scores=dict.fromkeys(range(5, 25 if n > 1 else 20, 5), 9.0 * n)
        )
        for n in (5, 4, 3, 2, 1, 0)
    ]
    median = scheduler("median", {trial.number: trial for trial in running}.get)
    for trial in running:
        median.on_trial_add(None, Tunes(trial.number))
    worst = {"epochs": 20, "score": 1.0}
    assert median.on_trial_result(None, Tunes(1), worst) == "STOP"
    assert median.on_trial_result(None, Tunes(0), worst) == "CONTINUE"


def test_a_trial_that_goes_on_is_not_judged_again_where_it_was():
    """It passed the first rung; what others have done there since cannot stop it any more."""
    before = Trial("trial-003", 3, {}, scores={5: 10.0, 10: 12.0}, status="running")
    earlier = [Trial("trial-001", 1, {}, scores={5: 80.0}, status="stopped")]
    by_number = {1: earlier[0], 3: before}
    asha = scheduler("asha", by_number.get, earlier)
    asha.on_trial_add(None, Tunes(3))
    assert asha.on_trial_result(None, Tunes(3), {"epochs": 15, "score": 13.0}) == "CONTINUE"


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_steps_without_a_score_and_failures_change_nothing(name):
    schedule = scheduler(name)
    schedule.on_trial_add(None, Tunes(1))
    assert schedule.on_trial_result(None, Tunes(1), {"waiting": True}) == "CONTINUE"
    schedule.on_trial_complete(None, Tunes(1), {"end": "failed", "reason": "x"})
    assert run(schedule, Tunes(2), 10) == 45
