"""The study jobs/studies/gpu.yaml on one card: its runs side by side, each in a process.

A ResNet-32 fills a small part of an H100, so that several runs take little longer than one. They
run by the code of a worker (`training.train`), without Ray. Afterwards, where scipy is:

    python -m benchmarks.gpu.study gpu-study/report.json results/gpu

writes summary.csv, differences.csv and runs.csv, as `bcl-ray study` does.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bcl_ray.experiment.metric_names import GROUPS, accuracy
from bcl_ray.experiment.overrides import from_stored, with_overrides
from bcl_ray.machine.versions import git_commit
from bcl_ray.tuning.study_cells import Study
from bcl_ray.tuning.study_file import read_study
from bcl_ray.tuning.trials import Trial
from benchmarks.gpu.images import prepared
from benchmarks.gpu.report import FAILED, LATE, OK, Row
from benchmarks.gpu.supervise import ROOT, Settings
from benchmarks.gpu.training import TINY, train

FILE = ROOT / "jobs" / "studies" / "gpu.yaml"
SIDE_BY_SIDE = {True: 2, False: 9}  # processes at once, in the smoke test and on a GPU
PUBLISHED = {"bcl_instance": 51.9}  # accuracy of a cell in per cent
POLL = 0.5  # seconds


def study_of(settings: Settings, shards: str) -> Study:
    """The study on these shards; tiny in the smoke test."""
    tiny = [*TINY, "train.eval_every=1"] if settings.smoke else []
    study = read_study(FILE, [f"data.path={shards}", *tiny])
    seeds = study.seeds[:1] if settings.smoke else study.seeds
    return Study(study.file, study.overrides, study.cells, seeds, study.compare)


def run(settings: Settings) -> Iterator[Row]:
    """Start as many runs as fit, the first seed of all methods first, and wait for them."""
    shards, _, mark = prepared(settings)
    study = study_of(settings, shards)
    waiting = [(cell, seed) for seed in study.seeds for cell in study.cells]
    most = min(SIDE_BY_SIDE[settings.smoke], max(2, len(os.sched_getaffinity(0)) - 1))
    running: dict[Path, subprocess.Popen[bytes]] = {}
    finished: list[Trial] = []
    while waiting or running:
        while waiting and len(running) < most:
            cell, seed = waiting.pop(0)
            trial = Trial(cell.run_name(seed), 0, dict(cell.labels), seed)
            experiment = with_overrides(cell.experiment, [f"train.seed={seed}"]).to_yaml()
            file = Path(settings.scratch) / f"{trial.name}.json"
            told = {"settings": asdict(settings), "trial": asdict(trial), "experiment": experiment}
            file.write_text(json.dumps(told))
            # Threads of many processes would wait for each other.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", __name__, str(file)]
            running[file] = subprocess.Popen(command, cwd=ROOT, env=environment)
        time.sleep(POLL)
        for file in [file for file, process in running.items() if process.poll() is not None]:
            status = running.pop(file).returncode
            if status != 0:
                note = f"status {status}; log.txt has its output"
                yield Row("", file.stem, outcome=FAILED, note=note)
                continue
            content = json.loads(file.read_text())
            scores = {int(epochs): score for epochs, score in content["trial"]["scores"].items()}
            trial = Trial(**content["trial"] | {"scores": scores})
            finished += [trial] if trial.status == "finished" else []
            yield _row(trial, content, mark)
    yield from _means(study, finished, settings)


def _row(trial: Trial, detail: dict[str, object], mark: str) -> Row:
    named = {group: trial.metrics.get(accuracy(group)) for group in GROUPS}
    shown = "  ".join(f"{group} {value:.1f}" for group, value in named.items() if value is not None)
    outcome = OK if trial.status == "finished" else LATE
    what = f"{trial.name}, {trial.epochs} epochs{mark}"
    note = f"accuracy, %: {shown}"
    return Row("", what, trial.seconds, "s", outcome=outcome, note=note, detail=detail)


def _means(study: Study, finished: list[Trial], settings: Settings) -> Iterator[Row]:
    """Mean accuracy of each method over the seeds that finished."""
    for cell in study.cells:
        values = [t.metrics[accuracy("all")] for t in finished if t.point == cell.labels]
        if not values:
            continue
        mean, what = sum(values) / len(values), f"{cell.name}, mean over seeds ({len(values)})"
        row = Row("", what, mean, "%")
        if published := PUBLISHED.get(cell.name):
            goal, ratio = settings.goal(1.0), mean / published
            row = Row("", what, mean, "%", published, "published", ratio, goal)
        yield row


def train_one(file: Path) -> None:
    """What one process does: train what a file says, and write the result into it."""
    content = json.loads(file.read_text())
    settings = Settings(**content["settings"])
    experiment, trial = from_stored(content["experiment"]), Trial(**content["trial"])
    _, manifest, _ = prepared(settings)
    trained = train("device", experiment, manifest, settings)
    ended = len(trained.epochs) == experiment.train.epochs
    trial.status = "finished" if ended else "stopped"
    trial.metrics = {accuracy(group): value for group, value in trained.accuracy.items()}
    trial.scores, trial.seconds = trained.scores, trained.seconds
    trial.commit = git_commit(ROOT)
    trial.hardware = _hardware(settings)
    file.write_text(json.dumps({"trial": asdict(trial), "losses": trained.losses}))


def _hardware(settings: Settings) -> str:
    import torch  # noqa: PLC0415  only the processes that train need it

    card = torch.cuda.get_device_name(0) if settings.device == "cuda" else "CPU"
    return f"{card}, shared by up to {SIDE_BY_SIDE[settings.smoke]} runs"


def write_tables(report: Path, folder: Path) -> None:
    """Tables of a report's runs, as files under `results/`."""
    from bcl_ray.tuning import study_tables  # noqa: PLC0415  it needs scipy

    details = [row["detail"] for row in json.loads(report.read_text())["rows"]]
    trials = [Trial(**detail["trial"]) for detail in details if "trial" in detail]
    for trial in trials:
        trial.scores = {int(epochs): score for epochs, score in trial.scores.items()}
    study = read_study(FILE)
    cells = study_tables.runs_of_cells(study, trials)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in study_tables.tables(study, cells).items():
        (folder / f"{name}.csv").write_text(study_tables.as_csv(rows))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train_one(Path(sys.argv[1]))
    else:
        write_tables(Path(sys.argv[1]), Path(sys.argv[2]))
