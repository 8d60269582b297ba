import io
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bcl_ray.display.run import RunDisplay
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES, cifar10_lt
from bcl_ray.runs import events
from bcl_ray.runs.budget import Budget
from bcl_ray.runs.events import MARK, EventWriter, from_line, receiver, to_line

WORDS = st.text(st.characters(exclude_categories=["Cs"]))
BUDGETS = st.builds(Budget, **{field.name: st.integers(0, 10**12) for field in fields(Budget)})
BEGIN = {
    "kind": "begin",
    "run": "mine",
    "folder": "s3://bucket/runs/mine",
    "tracking_uri": "http://mlflow:5000",
    "budget": Budget(**{field.name: 3 for field in fields(Budget)}),
    "experiment": cifar10_lt(),
    "classes": 10,
}
SPECIAL = ("kind", "history", "records", "budget", "experiment")
STEP = {"kind": "step", "epoch": 0, "step": 7, "steps": 48}


@given(
    run=WORDS,
    recipe=st.sampled_from(list(RECIPES)),
    seed=st.integers(0, 10**6),
    budget=BUDGETS,
)
def test_a_begin_event_is_restored_from_its_line(run, recipe, seed, budget):
    experiment = with_overrides(RECIPES[recipe](), [f"train.seed={seed}"])
    event = {**BEGIN, "run": run, "experiment": experiment, "budget": budget}
    line = to_line(event)
    assert "\n" not in line
    assert from_line(line) == ("", event)


@given(
    content=st.dictionaries(
        WORDS.filter(lambda name: name not in SPECIAL),
        WORDS | st.integers() | st.floats(allow_nan=False) | st.none() | st.lists(st.integers()),
    )
)
def test_any_other_event_is_restored_from_its_line(content):
    event = {**content, "kind": "note"}
    assert from_line(to_line(event)) == ("", event)


def test_a_line_keeps_the_last_record_and_no_history():
    event = {"kind": "start", "records": [{"epoch": 0.0}, {"epoch": 1.0}], "history": [{}] * 9}
    assert from_line(to_line(event))[1] == {"kind": "start", "records": [{"epoch": 1.0}]}


@given(WORDS.filter(lambda text: MARK not in text))
def test_a_line_without_an_event_is_text(text):
    assert from_line(text) == (text, None)


@given(WORDS.filter(lambda text: MARK not in text))
def test_text_before_an_event_on_its_line_is_kept(text):
    assert from_line(text + to_line(STEP)) == (text, STEP)


@pytest.mark.parametrize("tail", ["", "{", "[]", "3", "{}", '{"kind": 3}', '{"budget": {"x": 1}}'])
def test_a_malformed_event_is_text(tail):
    assert from_line(MARK + tail) == (MARK + tail, None)


def test_the_writer_prints_lines_with_the_time_and_skips_steps_in_close_succession(capsys):
    with EventWriter() as teller:
        for step in range(100):
            teller({**STEP, "step": step})
        teller({"kind": "note", "text": "two\nlines"})
    printed = [from_line(line)[1] for line in capsys.readouterr().out.splitlines()]
    assert [(event["kind"], event.get("step")) for event in printed] == [
        ("step", 0),
        ("note", None),
    ]
    assert all(0 <= event["at"] < 60 for event in printed)


@pytest.mark.parametrize(("value", "kind"), [(None, RunDisplay), ("json", EventWriter)])
def test_the_environment_chooses_between_a_display_and_lines(monkeypatch, value, kind):
    monkeypatch.delenv(events.SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(events.SWITCH, value)
    assert isinstance(receiver(RunDisplay(Console(file=io.StringIO()))), kind)


def test_an_unknown_switch_is_refused(monkeypatch):
    monkeypatch.setenv(events.SWITCH, "yaml")
    with pytest.raises(ValueError, match="BCL_RAY_EVENTS is 'yaml': it must be json, or not set"):
        events.requested()


def test_a_past_event_is_shown_with_its_own_time():
    text = io.StringIO()
    with RunDisplay(Console(file=text, width=120)) as follower:
        line = to_line(
            {
                "kind": "start",
                "workers": 2,
                "step": 0,
                "precision": "tf32",
                "records": [],
                "at": 321.4,
            }
        )
        follower(from_line(line)[1])
    assert text.getvalue() == "2 workers started, 321 s after the command, in tf32\n"
