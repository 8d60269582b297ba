"""The private parts of Ray that are used exist, and have these parameters."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bcl_ray
from bcl_ray.ray_runtime import internals
from bcl_ray.ray_runtime.internals import METHODS, PRIVATE

PACKAGE = Path(bcl_ray.__file__).parent


# In a process of its own: here Ray may have made actors of these classes, which changes them.
SCRIPT = """
import importlib, inspect, json
from bcl_ray.ray_runtime import internals
def parameters(of):
    try:
        return [name for name in inspect.signature(of).parameters if name != "self"]
    except TypeError:  # a constant
        return None
parts = {name: parameters(getattr(internals, name)) for name in internals.PRIVATE}
methods = []
for owner, method in internals.METHODS:
    module, _, public = owner.rpartition(".")
    holder = getattr(importlib.import_module(module) if module else internals, public)
    methods.append(parameters(getattr(holder, method)))
print(json.dumps([parts, methods]))
"""


@pytest.fixture(scope="module")
def installed():
    """Parameters of the private parts, by name, and of the methods, in their order."""
    command = [sys.executable, "-c", SCRIPT]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("name", PRIVATE)
def test_each_private_part_is_there(installed, name):
    expected = PRIVATE[name]
    assert expected.why
    if expected.parameters is not None:
        assert installed[0][name] == list(expected.parameters)


def test_each_method_has_its_parameters(installed):
    found = dict(zip(METHODS, map(tuple, installed[1]), strict=True))
    assert found == METHODS


def test_ray_knows_the_option_of_a_task():
    import ray

    assert ray.remote(**internals.generator_limit(-1))(lambda: None)
    with pytest.raises(ValueError, match="_unknown"):
        ray.remote(_unknown=-1)(lambda: None)


def test_ray_data_asks_for_its_limits_at_an_interval():
    assert internals.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == 1


def test_what_a_type_checker_sees_is_what_is_imported():
    tree = ast.parse(Path(internals.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: part.module for part in block.body for alias in part.names}
    assert seen == {name: private.module for name, private in PRIVATE.items()}


def test_an_unknown_name_is_none_of_them():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        internals.nothing  # noqa: B018


def is_private(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "ray" and any(
        part.startswith("_") or part.startswith("internal") for part in parts[1:]
    )


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_other_module_imports_a_private_part_of_ray(file):
    if file == Path(internals.__file__):
        return
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")
        assert not any(map(is_private, names)), f"line {node.lineno}"
