"""What `bcl-ray train` does, through Ray Train's TorchTrainer, where Ray can be imported."""

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar100_lt
from benchmarks.gpu.images import prepared
from benchmarks.gpu.report import SKIPPED, Row
from benchmarks.gpu.supervise import Settings
from benchmarks.gpu.training import GROUPS, TINY

EPOCHS = 3


def run(settings: Settings) -> Iterator[Row]:
    if importlib.util.find_spec("ray") is None:
        yield Row("", "bcl-ray train", outcome=SKIPPED, note="no Ray here: see wheels-ray.txt")
        return
    shards, _, mark = prepared(settings)
    options = {
        "data.path": shards,
        "train.epochs": EPOCHS,
        "train.eval_every": EPOCHS,
        "scale.workers": 1,
        "scale.device": settings.device,
        "scale.max_failures": 0,
        "scale.wait_timeout": 60,
        "tracking.runs": str(Path(settings.scratch) / "runs"),
        "tracking.report": "false",
    }
    named = [f"{name}={value}" for name, value in options.items()]
    tiny = [*TINY, f"train.epochs={EPOCHS}"] if settings.smoke else []
    experiment = with_overrides(cifar100_lt(), [*named, *tiny])
    outcome = _fit(experiment)
    last = outcome["history"][-1]
    shown = "  ".join(
        f"{group} {last[f'accuracy/{group}']:.1f}"
        for group in GROUPS
        if f"accuracy/{group}" in last
    )
    yield Row(
        "",
        f"bcl-ray train, {EPOCHS} epochs{mark}",
        last["throughput/images_per_second"],
        "images/s",
        note=f"accuracy, %: {shown}; waiting for data {last['time/data_share']:.0f} %",
        detail={"history": outcome["history"], "problem": outcome["problem"]},
    )


def _fit(experiment: Any) -> Any:
    from bcl_ray.display.terminal import quiet  # noqa: PLC0415
    from bcl_ray.training import driver  # noqa: PLC0415  it needs Ray

    quiet()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if importlib.util.find_spec("mlflow") is None:
        driver.MLFLOW_PATIENCE = 1.0  # its journal is kept; nobody will come for it
    return driver.fit(experiment, follow=lambda event: print(event, flush=True))
