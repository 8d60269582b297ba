"""What can be imported without Ray, MLflow or PyTorch. `make check` looks at the order of rooms."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bcl_ray"
# All of bcl-ray[train].
EXTRA = {"ray", "mlflow", "torch", "matplotlib", "torchvision", "sklearn", "boto3"}
# Rooms and modules that train, wherever they run.
MIDDLE = ("machine", "storage", "experiment", "data", "runs", "method", "report")
# What surrounds them, and needs no framework at all.
BARE = (
    "machine",
    "storage",
    "experiment",
    "data",
    "runs",
    "cli",
    "api",
    "display",
    "ops.doctor.finding",
    "ops.doctor.machine",
    "ops.local",
    "ops.manifests",
    "ops.slurm",
    "ray_runtime.node_groups",
    "ray_runtime.stopping",
    "tracking.journal",
    "tracking.mlflow_server",
    "tracking.run_page",
    "tracking.ui",
)
HEAVY = {  # of those, the modules that need PyTorch, or Ray
    "data.views.device",
    "data.views.operations",
    "data.views.resident",
    "data.views.transfer",
    "ops.local.node",
    "runs.checkpoint",
}


def modules(*rooms: str) -> list[str]:
    """Names below bcl_ray of all modules in these rooms; a module stands for itself."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files]
    names = [name.removesuffix(".__init__") for name in names]
    found = [
        name
        for name in names
        if any(name == room or name.startswith(f"{room}.") for room in rooms)
        and not name.endswith("__main__")
    ]
    for room in rooms:
        assert any(name == room or name.startswith(f"{room}.") for name in found), room
    return found


def run_without(blocked: set[str], script: str) -> str:
    """Run a script in an interpreter in which some packages cannot be imported."""
    refuse = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {sorted(blocked)}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", refuse + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_blocks():
    with pytest.raises(AssertionError, match="ray is blocked"):
        run_without({"ray"}, "import ray")


def importing(names: list[str]) -> str:
    return "".join(f"import bcl_ray.{name}\n" for name in names)


@pytest.mark.slow
def test_the_middle_trains_without_ray_and_mlflow():
    """Every module but the edges, and a training step, on a machine that has torch alone."""
    script = """
import bcl_ray.data.views.device
import numpy as np
import torch
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.experiment.recipes import digits_lt

learner = Learner(digits_lt(), np.full(10, 5), 2, torch.device("cpu"))
batch = {
    "views": np.zeros((32, 3, 8, 8, 3), np.uint8),
    "labels": np.arange(32) % 10,
    "ids": np.arange(32),
}
print([step.step for step in train_epoch(learner, [batch, batch], epoch=0)])
"""
    assert run_without({"ray", "mlflow"}, importing(modules(*MIDDLE)) + script) == "[1, 2]\n"


def test_what_surrounds_the_middle_imports_without_any_framework():
    """Experiments, shards, plan, budget, runs and the command line need none of bcl-ray[train]."""
    run_without(EXTRA, importing([name for name in modules(*BARE) if name not in HEAVY]))


def test_help_recipes_and_plan_work_without_any_framework():
    script = (
        "from bcl_ray.cli import main\n"
        "for command in ('--help', 'recipes show cifar10_lt', 'plan cifar10_lt data.path=gone'):\n"
        "    sys.argv = ['bcl-ray', *command.split()]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        print('status', stop.code)\n"
    )
    found = [line for line in run_without(EXTRA, script).splitlines() if line.startswith("status")]
    assert found == ["status 0", "status 0", "status 2"]


@pytest.mark.slow
def test_data_tasks_import_no_torch():
    """It would cost seconds in each of their processes; ray.data itself imports none either."""
    script = "import bcl_ray.training.stream, sys\nprint('torch' in sys.modules)"
    assert run_without({"mlflow"}, script) == "False\n"
    run_without(EXTRA, "import bcl_ray.data.views.host")


def test_no_two_public_classes_share_a_name():
    where: dict[str, list[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}
