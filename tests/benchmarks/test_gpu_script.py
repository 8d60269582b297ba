"""`make gpu-smoke`: the script for a GPU, on this CPU, and what it does with what goes wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import report
from benchmarks.gpu.report import Row
from benchmarks.gpu.supervise import Part, Settings, supervise

ROOT = Path(__file__).parents[2]


def rows_of(rows, part):
    return {row.what: row for row in rows if row.part == part}


def supervised(tmp_path, seconds=60.0, **parts):
    settings = Settings("cpu", smoke=True, scratch=str(tmp_path))
    named = {name: Part(f"tests.gpu_parts:{name}", *rest) for name, rest in parts.items()}
    return supervise(named, settings, tmp_path, seconds=seconds)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_part_gives_its_rows_on_a_cpu(tmp_path):
    """Also where pytest's options come from the environment and name a plugin."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "--reruns 1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-4000:]
    found = json.loads((tmp_path / "report.json").read_text())
    assert {row["part"] for row in found["rows"]} == set(script.PARTS)
    outcomes = {row["what"]: row["outcome"] for row in found["rows"]}
    assert set(outcomes.values()) == {"ok", "skipped"}
    skipped = [what for what, outcome in outcomes.items() if outcome == "skipped"]
    assert all("never wait" in what or "px" in what or "gpu" in what for what in skipped)
    assert {"version.torch", "version.python", "card", "date", "seconds"} <= found.keys()
    assert "NOT CIFAR" in done.stdout
    assert "SYNTHETIC" in done.stdout.partition("epochs, seed 1")[2].splitlines()[0]
    trained = next(row for row in found["rows"] if row["what"].startswith("3 epochs, seed 0"))
    assert 0 <= trained["detail"]["accuracy"]["all"] <= 100
    assert (tmp_path / "table.txt").read_text() in done.stdout


@pytest.mark.slow
def test_a_part_that_hangs_is_killed_with_what_it_started_and_the_others_still_run(tmp_path):
    begun = time.monotonic()
    rows = supervised(tmp_path, hangs=(8.0,), works=(60.0,))
    assert time.monotonic() - begun < 60
    hung = rows_of(rows, "hangs")
    assert hung.pop("before it hung").outcome == report.OK
    assert [row.outcome for row in hung.values()] == [report.LATE]
    assert rows_of(rows, "works")["worked"].outcome == report.OK
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_failures_are_rows_that_name_the_error(tmp_path):
    rows = supervised(tmp_path, raises=(60.0,), finds_nothing=(60.0,), misses=(60.0,))
    failed = rows_of(rows, "raises")
    assert failed.pop("before it failed").outcome == report.OK
    (row,) = failed.values()
    assert (row.outcome, "ValueError: no such thing" in row.note) == (report.FAILED, True)
    assert rows_of(rows, "finds_nothing")["found nothing"].outcome == report.FAILED
    assert rows_of(rows, "misses")["was slow"].outcome == report.MISSED
    kept = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["outcome"] for row in kept] == [row.outcome for row in rows]
    assert "FAILED" in (tmp_path / "table.txt").read_text()


@pytest.mark.slow
def test_the_time_of_all_parts_bounds_each_and_what_is_left_is_told(tmp_path):
    rows = supervised(
        tmp_path, seconds=20.0, looks_at_the_clock=(60.0,), hangs=(60.0,), works=(9.0,)
    )
    assert 0 < rows_of(rows, "looks_at_the_clock")["left"].value < 18
    assert rows_of(rows, "works")["not begun"].outcome == report.LATE


def test_nothing_follows_a_required_part_that_fails(tmp_path):
    rows = supervised(tmp_path, raises=(60.0, True), works=(60.0,))
    assert {row.part for row in rows} == {"raises"}


@pytest.mark.parametrize(
    ("outcome", "status"), [("ok", 0), ("skipped", 0), ("missed", 0), ("failed", 1), ("late", 1)]
)
def test_the_exit_status_tells_of_errors_and_not_of_goals(monkeypatch, tmp_path, outcome, status):
    monkeypatch.setattr(script, "supervise", lambda *_, **__: [Row("a", "b", outcome=outcome)])
    monkeypatch.setattr(sys, "argv", ["gpu", "--smoke", "--out", str(tmp_path)])
    assert script.main() == status


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_ends(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no CUDA device: `make gpu-smoke` tries everything on the CPU" in done.stdout
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 1


def test_a_folder_without_wheels_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"no \*.whl there; `make gpu-wheels` downloads them"):
        script.install(str(tmp_path), tmp_path / "site")


@pytest.mark.slow
def test_it_needs_no_more_than_its_lists_of_wheels_say():
    """What the parts import in this process, but for Ray's, is torch's machine and wheels.txt."""
    script_text = (
        "import sys\n"
        "import benchmarks.gpu.__main__\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))\n"
        "from benchmarks.gpu import feeds, images, loss, marked_tests, steps, study, training\n"
        "from benchmarks.gpu import views\n"
        "print(sorted({'ray', 'mlflow', 'rich', 'boto3', 'psutil', 'typer'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script_text], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_a_row_shows_three_digits_and_judges_its_goal():
    assert [report.shown(n) for n in (0.0, 0.01234, 1.2345, 123.45, 123456.7)] == [
        "0", "0.0123", "1.23", "123", "123,457",
    ]  # fmt: skip
    assert report.shown(None) == report.shown(float("nan")) == "-"
    judged = [Row("a", "b", ratio=ratio, goal=0.9).outcome for ratio in (None, 0.89, 0.9)]
    assert judged == ["missed", "missed", "ok"]
