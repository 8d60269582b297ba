"""The display of a search."""

import io

import pytest
from rich.console import Console

from bcl_ray.display.search import SearchDisplay, seconds_left
from bcl_ray.display.terminal import duration
from bcl_ray.report.seeds import mean_and_deviation, spread
from bcl_ray.runs.events import from_line, to_line

BEGIN = {
    "kind": "search",
    "search": "one",
    "folder": "runs/one",
    "recipe": "digits_lt",
    "data": "data/digits_lt",
    "trials": 3,
    "slots": 2,
    "workers": "1 worker",
    "epochs": 40,
    "searcher": "random",
    "scheduler": "asha",
    "metric": "accuracy/all",
    "space": ["loss.tau: 0 to 2, uniform", "loss.temperature: 0.03 to 0.5, log uniform"],
    "tracking_uri": "sqlite:////runs/mlflow.db",
}
WINNER = {
    "kind": "winner",
    "search": "one",
    "metric": "accuracy/all",
    "trial": "trial-001",
    "score": 72.5,
    "published": 70.0,
    "point": {"loss.tau": 0.5},
    "confirmed": {},
    "test": {"accuracy/all": (71.25, 0.0), "accuracy/few": (40.0, 0.0), "loss/nll": (1.0, 0.0)},
    "recipe": "runs/one/winner.yaml",
    "tracked": True,
    "problem": None,
}


def trial(number, status, epochs=0, score=None, **more):
    event = {"kind": "trial", "trial": f"trial-{number:03d}", "number": number, "status": status}
    event |= {"point": {"loss.tau": 0.5 * number}, "epochs": epochs, "score": score}
    return event | {"seconds": 9.0, "reason": None} | more


EVENTS = [
    BEGIN,
    trial(0, "running"),
    trial(1, "running"),
    trial(1, "running", 5, 60.0),
    trial(2, "failed", reason="step 3: the loss [nan] is not finite"),
    trial(1, "finished", 40, 72.5),
    trial(0, "stopped", 5, 50.0),
    WINNER,
]


def shown(events, **options):
    screen = io.StringIO()
    with SearchDisplay(Console(file=screen, width=120, **options)) as follow:
        for event in events:
            follow(event)
    return screen.getvalue()


def test_a_log_has_a_line_per_trial_that_ends():
    lines = shown(EVENTS).splitlines()
    assert lines[:9] == [
        "search   one  in runs/one",
        "recipe   digits_lt, data/digits_lt",
        "trials   3 of 40 epochs, 2 at once, 1 worker each",
        "options  searcher random, scheduler asha, metric accuracy/all on validation data",
        "space    loss.tau: 0 to 2, uniform",
        "         loss.temperature: 0.03 to 0.5, log uniform",
        "MLflow   sqlite:////runs/mlflow.db",
        "  1/3  trial-002  failed     0/40 epochs       -  tau=1.0  (step 3: the loss [nan] is not "
        "finite)",
        "  2/3  trial-001  finished  40/40 epochs   72.50  tau=0.5",
    ]


def test_the_end_names_the_winner():
    lines = [line.rstrip() for line in shown(EVENTS).splitlines()]
    assert lines[-8:] == [
        "trial-001  finished      40         72.50  0.5",
        "trial-000  stopped        5         50.00  0.0",
        "trial-002  failed         0             -  1.0",
        "winner   trial-001: loss.tau=0.5",
        "         accuracy/all 72.50 on validation data, 70.00 with the published values",
        "         one run each, so half a point means nothing: --confirm 3,3",
        "test     accuracy all 71.2  few 40.0  (once, at the end)",
        "next     bcl-ray train runs/one/winner.yaml",
    ]


def test_seeds_are_told_with_their_spread():
    confirmed = {"trial-001": [71.0, 73.0], "trial-000": [70.0]}
    test = {"accuracy/all": (71.25, 0.52)}
    text = shown([BEGIN, {**WINNER, "score": 72.0, "confirmed": confirmed, "test": test}])
    assert "72.00 on validation data over other seeds, 70.00 with the published values" in text
    assert "seeds    trial-001: 72.00 ± 1.41 with 2 other seeds" in text
    assert "seeds    trial-000: 70.00 with 1 other seeds" in text
    assert "test     accuracy all 71.2 ± 0.5  (once, at the end)" in text
    assert "--confirm" not in text


def test_repeats_are_counted_among_all_that_is_to_run():
    before = [trial(number, "finished", 40, 70.0) for number in range(3)]
    name = "trial-000-seed-1"
    repeat = [{**trial(0, status, 40, 71.0), "trial": name} for status in ("running", "finished")]
    lines = shown([BEGIN, *before, {"kind": "confirm", "runs": 4}, *repeat]).splitlines()
    assert lines[-2] == "confirm  4 runs with other seeds"
    assert lines[-1].startswith("  4/7  trial-000-seed-1  finished")


def test_repeats_of_an_earlier_process_are_no_trials_of_this_one():
    old = trial(0, "finished", 40, 70.0, old=True)
    repeat = {**old, "trial": "trial-000-seed-1", "seed": 1}
    text = shown([BEGIN, old, repeat, trial(1, "finished", 40, 71.0)])
    assert "  3/4  trial-001  finished" in text


def test_a_journal_that_mlflow_did_not_take_is_told():
    text = shown([BEGIN, {**WINNER, "tracked": False, "problem": "no answer"}])
    assert "MLflow did not accept everything (no answer)" in text


def test_a_terminal_has_a_table_while_trials_run():
    text = shown(EVENTS[:4], force_terminal=True)
    assert "0 of 3 trials" in text
    assert "trial-001" in text


def test_all_of_it_can_be_followed_from_another_machine():
    there = [from_line(to_line({**event, "at": 3.0}))[1] for event in EVENTS]
    assert shown(there) == shown(EVENTS)


def test_trials_of_an_earlier_process_are_counted_but_not_told_again():
    text = shown([BEGIN, trial(0, "finished", 40, 70.0, old=True), trial(1, "stopped", 5, 60.0)])
    assert "trial-000  finished" not in text
    assert "  2/3  trial-001  stopped" in text


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], None),
        (["running", "running"], None),
        (["finished"], 9 * 100.0),
        (["finished", "failed", "running"], 8 * 50.0),
        (["finished"] * 10, 0.0),
    ],
)
def test_the_rest_takes_as_long_as_what_was(statuses, expected):
    trials = [trial(number, status) for number, status in enumerate(statuses)]
    assert seconds_left(trials, elapsed=100.0, total=10) == expected


def test_trials_of_an_earlier_process_say_nothing_about_speed():
    trials = [trial(n, "finished", old=True) for n in range(5)] + [trial(5, "finished")]
    assert seconds_left(trials, elapsed=100.0, total=10) == 400.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (59.4, "59 s"), (90, "2 min"), (3599, "60 min"), (5400, "1.5 h")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_spread_needs_two():
    assert spread(*mean_and_deviation([70.0]), 2) == "70.00"
    assert spread(*mean_and_deviation([70.0, 72.0, 74.0]), 2) == "72.00 ± 2.00"
