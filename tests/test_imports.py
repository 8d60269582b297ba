"""Who may import whom: modules in the order the data flows, Ray and MLflow only at the edges."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bcl_ray"

# A module imports only modules above it. After the name: the frameworks that it may import.
ORDER = {
    "config": "",
    "parse": "",
    "recipes": "",
    "longtail": "",
    "retry": "",
    "s3": "",
    "storage": "",
    "versions": "",
    "swap": "",
    "fence": "",
    "lease": "",
    "container": "",
    "pixels": "",
    "sources": "",
    "shards": "",
    "permutation": "",
    "plan": "",
    "budget": "",
    "batches": "",
    "views": "torch",
    "tasks": "",
    "distributed": "torch",
    "precision": "torch",
    "batch_norm": "torch",
    "model": "torch",
    "weights": "torch",
    "losses": "torch",
    "optim": "torch",
    "metrics": "torch",
    "geometry": "torch",
    "residency": "torch",
    "checkpoint": "torch",
    "runs": "",
    "findings": "",
    "inputs": "",
    "tables": "",
    "outputs": "",
    "learner": "torch",
    "inference": "torch",
    "loop": "torch",
    "node_groups": "",
    "autoscaler": "ray",
    "cluster": "ray",
    "access": "ray",
    "controller": "ray",
    "elastic": "ray",
    "data": "ray",
    "feed": "ray torch",
    "probe": "ray torch",
    "journal": "",
    "note": "",
    "mlflow_model": "mlflow torch",
    "mlflow_run": "mlflow",
    "tracking": "",
    "mlflow_server": "mlflow",
    "registry": "mlflow torch",
    "models": "ray torch",
    "labeller": "torch",
    "figures": "matplotlib",
    "report": "",
    "results": "",
    "summary": "",
    "mailbox": "ray",
    "stopping": "",
    "watch": "ray torch",
    "system": "ray",
    "worker": "ray torch",
    "train": "ray",
    "evaluate": "ray torch",
    "predict": "ray",
    "export": "torch",
    "events": "",
    "display": "",
    "search": "ray",
    "allocation": "ray",
    "submit": "ray",
    "doctor": "ray torch",
    "local": "ray",
    "render": "",
    "compare": "ray mlflow torch",
    "ui": "",
    "cli": "",
    "__main__": "",
}
FRAMEWORKS = {"ray", "mlflow", "torch", "matplotlib"}
EXTRA = FRAMEWORKS | {"torchvision", "sklearn", "boto3"}  # all of bcl-ray[train]
RAY = {  # these, and no others, need Ray
    "access",
    "submit",
    "autoscaler",
    "cluster",
    "controller",
    "elastic",
    "data",
    "feed",
    "probe",
    "mailbox",
    "watch",
    "system",
    "worker",
    "train",
    "search",
    "evaluate",
    "predict",
}
MLFLOW = {"mlflow_model", "mlflow_run", "tracking", "registry", "compare", "train", "evaluate"}

DRAWING = {"figures", "report", "results", "summary"}  # these need matplotlib


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]


def imported(file: Path) -> set[str]:
    """Full names that a file imports, in its functions too; `if TYPE_CHECKING` imports nothing."""
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(file.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        todo += ast.iter_child_nodes(node)
    return names


def test_the_order_lists_every_module():
    assert {module_of(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_modules_above_it(file):
    own = module_of(file)
    above = list(ORDER)[: list(ORDER).index(own) + 1]
    ours = {name.split(".")[1] for name in imported(file) if name.startswith("bcl_ray.")}
    assert ours - {"__version__"} <= set(above)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_the_frameworks_it_is_marked_with(file):
    found = {name.partition(".")[0] for name in imported(file)}
    assert found & FRAMEWORKS <= set(ORDER[module_of(file)].split())


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


def importing(modules: set[str]) -> str:
    return "".join(f"import bcl_ray.{name}\n" for name in ORDER if name in modules - {"__main__"})


def test_the_middle_trains_without_ray_and_mlflow():
    """Every module but the edges, and a training step, on a machine that has torch alone."""
    script = """
import bcl_ray.views.device
import numpy as np
import torch
from bcl_ray.learner import Learner
from bcl_ray.loop import train_epoch
from bcl_ray.recipes import digits_lt

learner = Learner(digits_lt(), np.full(10, 5), 2, torch.device("cpu"))
batch = {
    "views": np.zeros((32, 3, 8, 8, 3), np.uint8),
    "labels": np.arange(32) % 10,
    "ids": np.arange(32),
}
print([step.step for step in train_epoch(learner, [batch, batch], epoch=0)])
"""
    middle = set(ORDER) - RAY - MLFLOW
    assert run_without({"ray", "mlflow"}, importing(middle) + script) == "[1, 2]\n"


def test_what_surrounds_the_middle_imports_without_any_framework():
    """Experiments, shards, plan, budget, runs and the command line need none of bcl-ray[train]."""
    torch = {name for name, marks in ORDER.items() if "torch" in marks} - {"views"}
    run_without(EXTRA, importing(set(ORDER) - RAY - MLFLOW - torch - DRAWING))


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


def test_data_tasks_import_no_torch():
    """It would cost seconds in each of their processes; ray.data itself imports none either."""
    script = "import bcl_ray.data, sys\nprint('torch' in sys.modules)"
    assert run_without({"mlflow"}, script) == "False\n"
    run_without(EXTRA, "import bcl_ray.views.host")
