"""The names in `import bcl_ray`, and what importing them costs."""

import subprocess
import sys

import pytest

import bcl_ray
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.machine.errors import UserError


def test_everything_that_is_named_is_there():
    assert sorted(bcl_ray.__all__) == bcl_ray.__all__
    assert all(callable(getattr(bcl_ray, name)) and getattr(bcl_ray, name).__doc__
               for name in bcl_ray.__all__)  # fmt: skip
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bcl_ray.nothing  # noqa: B018


def test_no_name_is_hidden_by_a_package_of_the_same_name():
    script = (
        "import importlib, pkgutil, bcl_ray\n"
        "for room in pkgutil.iter_modules(bcl_ray.__path__):\n"
        "    if room.name != '__main__':\n"
        "        importlib.import_module(f'bcl_ray.{room.name}')\n"
        "assert all(callable(getattr(bcl_ray, name)) for name in bcl_ray.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_recipe_is_changed_as_on_the_command_line(tmp_path):
    experiment = bcl_ray.recipe("digits_lt", "train.epochs=3", "loss.kind=scl")
    assert (experiment.train.epochs, experiment.loss.kind) == (3, "scl")
    file = tmp_path / "mine.yaml"
    file.write_text(experiment.to_yaml())
    assert bcl_ray.recipe(str(file)) == experiment
    assert bcl_ray.recipe(f"file://{file}") == experiment
    assert bcl_ray.recipe("digits_lt") == digits_lt()
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"^file://.*picture.yaml is not UTF-8 text: name a YAML"):
        bcl_ray.recipe(f"file://{tmp_path}/picture.yaml")
    with pytest.raises(ValueError, match="'digit_lt' is no recipe"):
        bcl_ray.recipe("digit_lt")


def test_shards_are_written_and_planned_for(tmp_path):
    manifest = bcl_ray.shard(
        "digits", str(tmp_path / "digits"), profile="exponential", imbalance_factor=50
    )
    assert max(manifest.splits["train"].class_counts) == 142
    budget, _ = bcl_ray.plan(bcl_ray.recipe("digits_lt", f"data.path={tmp_path}/digits"))
    assert budget.eval_images == 360
    with pytest.raises(ValueError, match="must be divisible"):
        bcl_ray.plan(bcl_ray.recipe("digits_lt", f"data.path={tmp_path}/digits", "scale.workers=3"))


def test_what_would_be_left_aside_is_refused():
    experiment = bcl_ray.recipe("digits_lt")
    with pytest.raises(ValueError, match="train needs an experiment, or resume=RUN"):
        bcl_ray.train()
    with pytest.raises(ValueError, match="experiment and resume exclude each other"):
        bcl_ray.train(experiment, resume="first")
    with pytest.raises(ValueError, match="must be divisible by"):
        bcl_ray.train(experiment, overrides=["scale.workers=3"])
    with pytest.raises(ValueError, match="a search has no option 'trails': there are space, "):
        bcl_ray.search(experiment, trails=3)
