"""The command line, up to where Ray would start."""

import json
import logging
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from bcl_ray.cli import main
from bcl_ray.data.shards import read_manifest
from bcl_ray.experiment.recipes import RECIPES

HEAVY = ("ray", "torch", "mlflow", "numpy", "pydantic", "pyarrow", "cv2", "PIL", "yaml")
SCRIPT = Path(sys.executable).with_name("bcl-ray")


@pytest.fixture
def bcl_ray(monkeypatch, capsys):
    """Call the command line in this process: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bcl-ray", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capsys.readouterr())

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("BCL_RAY_TRACEBACK", raising=False)
    yield call
    logging.captureWarnings(False)  # commands that run a training turn it on


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("shards") / "digits"
    options = ["--profile", "exponential", "--imbalance-factor", "50"]
    command = [sys.executable, "-m", "bcl_ray", "shard", "digits", str(target), *options]
    subprocess.run(command, check=True, capture_output=True)
    return target


def outside(*command: str | Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from bcl_ray.cli import main\n"
        "sys.argv = ['bcl-ray', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    sys.stderr.write(' '.join(set({HEAVY}) & set(sys.modules)))\n"
    )
    status, out, err = outside(sys.executable, "-c", script)
    assert (status, err) == (0, "")
    assert "Usage: bcl-ray" in out


@pytest.mark.parametrize(
    "command",
    ["shard", "shards show", "plan", "train", "evaluate", "predict", "export", "sync", "study"],
)
def test_every_command_has_help(bcl_ray, command):
    status, out, _ = bcl_ray(*command.split(), "--help")
    assert status == 0
    assert f"Usage: bcl-ray {command}" in out


def test_the_module_is_the_script():
    assert outside(SCRIPT, "recipes", "list") == outside(
        sys.executable, "-m", "bcl_ray", "recipes", "list"
    )


@pytest.mark.parametrize(
    ("words", "completed"),
    [("bcl-ray sh", ["shard", "shards"]), ("bcl-ray train --resu", ["--resume"])],
)
def test_a_shell_completes(words, completed):
    position = str(len(words.split()) - 1)
    _, out, _ = outside(
        SCRIPT, _BCL_RAY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position
    )
    assert out.split() == completed


def test_a_shells_completion_can_be_installed():
    status, out, _ = outside(SCRIPT, _BCL_RAY_COMPLETE="source_bash")
    assert status == 0
    assert re.search(r"complete .*-F \w+ bcl-ray", out)


MISTAKES = [
    ("recipes show cifar10lt", "'cifar10lt' is no recipe and no .yaml file: did you mean"),
    ("plan nonsense", "'nonsense' is no recipe and no .yaml file: there are digits_lt, cifar10_lt"),
    ("plan gone.yaml", "gone.yaml: no such file or directory; name a YAML file"),
    (
        "plan digits_lt loss.temprature=1",
        "no option 'loss.temprature': section 'loss' has no field 'temprature'; did you mean "
        "'temperature'?",
    ),
    ("plan digits_lt optim.lr=-1", "optim.lr=-1: input should be greater than 0"),
    ("plan digits_lt optim.lr", "override 'optim.lr' must have the form section.field=value"),
    (
        "plan digits_lt scale.workers=3",
        "optim.global_batch_size (32) must be divisible by scale.workers (3)",
    ),
    ("plan digits_lt data.path=gone", "gone holds no manifest.json, so it is not a data set"),
    ("plan digits_lt data.path={digits} data.eval_split=val", "data.eval_split is 'val', which"),
    (
        "plan digits_lt data.path={digits} optim.global_batch_size=512",
        "optim.global_batch_size (512) is more than the training split has rows (392)",
    ),
    (
        "plan digits_lt data.path={digits} scale.cpus_per_worker=9999",
        "scale.workers (2) x scale.cpus_per_worker (9999) leave 0 of",
    ),
    (
        "plan digits_lt data.path={digits} scale.prefetch_batches=999999999",
        "batches in flight need ",
    ),
    ("train", "train needs a recipe's name or a YAML file, or --resume RUN"),
    ("train nonsense", "'nonsense' is no recipe and no .yaml file"),
    ("train digits_lt data.path=gone", "gone holds no manifest.json, so it is not a data set"),
    (
        "train digits_lt data.path={digits} scale.cpus_per_worker=9999",
        "scale.workers (2) x scale.cpus_per_worker (9999) leave 0 of",
    ),
    ("train --resume gone", "runs/gone holds no run (no run.json): name one that"),
    ("train --resume gone tracking.runs=there", "there/gone holds no run (no run.json)"),
    ("evaluate gone --runs there", "'gone' is no model: there/gone holds neither a run nor a"),
    ("predict gone images out", "'gone' is no model: runs/gone holds neither a run nor a"),
    ("predict models:/digits images out", "'models:/digits' must be models:/NAME@ALIAS or"),
    ("export gone model.pt2", "'gone' is no model: runs/gone holds neither a run nor a"),
    ("export gone model.pth", "FILE 'model.pth' must end in one of .safetensors, .pt2, .onnx"),
    ("sync gone", "runs/gone holds no run (no run.json)"),
    ("shards show gone", "gone holds no manifest.json, so it is not a data set"),
    ("shards verify gone", "gone holds no manifest.json, so it is not a data set"),
    ("shard digits {digits}", "{digits} already holds a data set: choose another target"),
    ("shard list x --from . --split train", "--split 'train' must be NAME=FILE, such as"),
    ("shard list x --from . --split =a", "--split '=a' must be NAME=FILE, such as"),
    ("shard digits x --profile natural --imbalance-factor 5", "imbalance_factor does nothing for"),
    ("shard folder x", "source 'folder' needs --from"),
    ("shard folder x --from gone", "gone does not exist: check its spelling"),
    ("shard digits x --profile step", "imbalance_factor (None) must be at least 1"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_status_2(
    bcl_ray, digits, tmp_path, monkeypatch, command, message
):
    monkeypatch.chdir(tmp_path)
    status, out, err = bcl_ray(*command.format(digits=digits).split())
    assert (status, out) == (2, "")
    assert err.startswith(f"bcl-ray: {message.format(digits=digits)}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nor was anything begun


@pytest.mark.parametrize("command", ["nonsense", "shard nonsense x", "plan --nonsense", "evaluate"])
def test_a_mistyped_command_has_status_2_and_no_traceback(bcl_ray, command):
    status, _, err = bcl_ray(*command.split())
    assert status == 2
    assert "Usage: bcl-ray" in err
    assert "Traceback" not in err


def test_a_variable_of_the_environment_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bcl-ray", "plan", "nonsense"])
    monkeypatch.setenv("BCL_RAY_TRACEBACK", "1")
    with pytest.raises(ValueError, match="'nonsense' is no recipe"):
        main()


def test_a_missing_library_is_one_line_with_what_to_install(bcl_ray, digits, monkeypatch):
    monkeypatch.delitem(sys.modules, "bcl_ray.training.driver", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = bcl_ray("train", "digits_lt", f"data.path={digits}")
    assert status == 2
    assert err.endswith(": pip install 'bcl-ray[train]' has all that a run needs\n")
    assert err.count("\n") == 1


def test_recipes_are_listed_with_a_line_each(bcl_ray):
    status, out, _ = bcl_ray("recipes", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shown_recipe_is_read_as_the_same_experiment(bcl_ray, tmp_path, recipe):
    file = tmp_path / "mine.yaml"
    overrides = ["optim.lr=0.123", "tracking.run=mine", "views.classification.flip=0.25"]
    _, shown, _ = bcl_ray("recipes", "show", recipe, *overrides)
    file.write_text(shown)
    assert bcl_ray("recipes", "show", str(file)) == (0, shown, "")
    assert "lr: 0.123" in shown


def test_a_shown_recipe_is_planned_like_the_recipe(bcl_ray, digits, tmp_path):
    overrides = [f"data.path={digits}", "optim.global_batch_size=64", "train.epochs=3"]
    _, shown, _ = bcl_ray("recipes", "show", "digits_lt", *overrides)
    (tmp_path / "mine.yaml").write_text(shown)
    from_recipe = bcl_ray("plan", "digits_lt", *overrides, "--json")
    assert bcl_ray("plan", str(tmp_path / "mine.yaml"), "--json") == from_recipe
    planned = json.loads(from_recipe[1])
    assert planned["steps_per_epoch"] == 392 // 64
    assert planned["steps"] == 3 * (392 // 64)
    assert planned["left_out"] == 392 % 64
    assert planned["eval_images"] == 360


def test_a_plan_is_shown_as_a_table(bcl_ray, digits):
    status, out, _ = bcl_ray("plan", "digits_lt", f"data.path={digits}")
    assert status == 0
    for line in ("12 of 32 images", "480 in 40 epochs", "384 (8 left out", "1 for workers"):
        assert line in out


def test_a_plan_for_another_cluster_ignores_this_machine(bcl_ray, digits, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://far:10001")
    command = ["plan", "digits_lt", f"data.path={digits}", "scale.cpus_per_worker=9999", "--json"]
    status, out, _ = bcl_ray(*command)
    assert status == 0
    assert json.loads(out)["data_cpus"] is None


def test_digits_are_sharded_shown_and_verified(bcl_ray, digits):
    status, out, _ = bcl_ray("shards", "show", str(digits), "--json")
    manifest = json.loads(out)
    assert status == 0
    assert manifest["source"] == "digits"
    assert manifest["splits"]["train"]["class_counts"][0] == 142
    assert manifest["splits"]["test"]["rows"] == 360
    status, out, _ = bcl_ray("shards", "show", str(digits))
    assert status == 0
    assert manifest["fingerprint"] in out
    shards = sum(split["shards"] for split in manifest["splits"].values())
    message = f"{digits}: {shards} shards match the manifest\n"
    assert bcl_ray("shards", "verify", str(digits)) == (0, message, "")


def test_a_factor_alone_means_exponential_and_the_end_says_how_to_go_on(bcl_ray, tmp_path):
    target = tmp_path / "my digits"
    status, out, _ = bcl_ray("shard", "digits", str(target), "--imbalance-factor", "50")
    assert status == 0
    profile = read_manifest(str(target)).profile
    assert (profile.name, profile.imbalance_factor) == ("exponential", 50)
    assert "142 │███\n" in out
    assert out.endswith(
        f"next: bcl-ray plan digits_lt 'data.path={target}'\n"
        f"      bcl-ray train digits_lt 'data.path={target}' tracking.run=first\n"
    )


def test_a_job_that_sharded_says_how_its_submitter_goes_on(bcl_ray, tmp_path, monkeypatch):
    monkeypatch.setenv("BCL_RAY_CLIENT", "{}")
    status, out, _ = bcl_ray("shard", "digits", str(tmp_path / "digits"))
    assert status == 0
    assert f"next: bcl-ray plan digits_lt data.path={tmp_path}/digits\n" in out
    assert f"      bcl-ray submit train digits_lt data.path={tmp_path}/digits " in out


def test_what_is_left_out_of_a_folder_is_said(bcl_ray, tmp_path):
    for name in ("train/a/1.png", "valid/a/2.png", "extra/a/3.png", "train/a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name, "PNG")
    command = ("shard", "folder", str(tmp_path / "out"), "--from", str(tmp_path))
    status, out, err = bcl_ray(*command)
    assert status == 0
    assert "nothing says their split and class: extra/ (1 images)" in err
    assert "bcl-ray: left out, because they are no images: 1 .txt" in err
    assert "data.eval_split=val tracking.run=first" in out


@pytest.mark.parametrize("pixels", ["0", "-5"])
def test_a_limit_of_pixels_that_admits_no_image_is_refused(bcl_ray, tmp_path, pixels):
    status, _, err = bcl_ray("shard", "digits", str(tmp_path / "new"), "--max-pixels", pixels)
    assert status == 2
    assert "Invalid value for '--max-pixels'" in err
    assert not (tmp_path / "new").exists()


def test_a_target_is_shown_by_its_name_even_if_it_looks_like_markup(
    bcl_ray, digits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a[bold]b").symlink_to(digits)
    status, out, _ = bcl_ray("shards", "show", "a[bold]b")
    assert status == 0
    assert "a[bold]b  (digits)" in out


def test_verify_shows_its_progress(bcl_ray, digits, monkeypatch):
    seen = []

    @contextmanager
    def recorded():
        yield lambda *state: seen.append(state)

    monkeypatch.setattr("bcl_ray.cli.data.progress_bars", recorded)
    assert bcl_ray("shards", "verify", str(digits))[0] == 0
    assert seen[-1] == ("verifying test", 360, 360)


def test_verify_names_the_shard_that_differs(bcl_ray, tmp_path):
    target = tmp_path / "digits"
    assert bcl_ray("shard", "digits", str(target))[0] == 0
    damaged = sorted(target.rglob("test-*.parquet"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    status, out, err = bcl_ray("shards", "verify", str(target))
    assert (status, out) == (2, "")
    assert err.startswith(f"bcl-ray: {target} does not match its manifest:\n")
    assert damaged.name in err
