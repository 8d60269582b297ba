"""The display of a study, here and from the log of a job."""

import io

from rich.console import Console

from bcl_ray.cli.job_log import show_log
from bcl_ray.display.study import StudyDisplay
from bcl_ray.runs.events import to_line

BEGIN = {
    "kind": "study",
    "study": "digits",
    "folder": "runs/digits",
    "file": "digits.yaml",
    "data": ["data/digits_lt"],
    "cells": 2,
    "seeds": [0, 1],
    "trials": 4,
    "slots": 2,
    "epochs": 40,
    "metric": "accuracy/all",
    "tracking_uri": "sqlite:////runs/mlflow.db",
}
ROW = {"method": "bcl", "seeds": "2", "all": "91.20 ± 1.40", "tail cosine": "0.1", "minutes": "1.0"}
RESULT = {
    "kind": "result",
    "study": "digits",
    "folder": "runs/digits",
    "summary": [ROW | {"hardware": "2 CPUs", "commit": "0123456789"}],
    "differences": [{"method": "bcl - ce", "seeds": "2", "all": "3.10 ± 0.90"}],
    "one_seed": True,
    "failed": {"ce-seed-1": "loss is not finite"},
    "tracked": True,
    "problem": None,
}


def trial(name, status, *, old=False, epochs=0, score=None):
    cell, seed = name.split("-seed-")
    return {
        "kind": "trial",
        "trial": name,
        "number": 0,
        "seed": int(seed),
        "point": {"method": cell},
        "status": status,
        "epochs": epochs,
        "score": score,
        "seconds": 9.0,
        "reason": None,
        **({"old": True} if old else {}),
    }


EVENTS = [
    BEGIN,
    trial("ce-seed-0", "finished", old=True, epochs=40, score=80.0),
    trial("bcl-seed-0", "running"),
    trial("bcl-seed-0", "finished", epochs=40, score=91.2),
    RESULT,
]


def shown():
    screen = io.StringIO()
    with StudyDisplay(Console(file=screen, width=120)) as follow:
        for event in EVENTS:
            follow(event)
    return screen.getvalue()


def test_a_line_per_run_of_this_process_counts_those_of_earlier_ones():
    lines = shown().splitlines()
    assert lines[:4] == [
        "study    digits  in runs/digits",
        "file     digits.yaml, data/digits_lt",
        "runs     4: 2 cells, each with seeds 0, 1; 2 at once, up to 40 epochs",
        "MLflow   sqlite:////runs/mlflow.db",
    ]
    assert lines[4] == "  2/4  bcl-seed-0  finished  40/40 epochs   91.20  method=bcl"
    assert "ce-seed-0" not in shown()


def test_the_end_has_tables_without_what_is_too_wide_and_says_what_is_missing():
    text = shown()
    assert "91.20 ± 1.40" in text
    assert "3.10 ± 0.90" in text
    assert "0123456789" not in text
    assert "tail cosine" not in text
    assert "one seed has no interval" in text
    assert "failed   ce-seed-1: loss is not finite" in text


def test_the_log_of_a_job_shows_the_same():
    screen = io.StringIO()
    show_log(map(to_line, EVENTS), Console(file=screen, width=120))
    assert screen.getvalue() == shown()
