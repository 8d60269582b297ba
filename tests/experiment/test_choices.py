"""Tables of names: what is built in exists, what is not is refused, and plugins add to them."""

import pickle
import re
import subprocess
import sys

import pytest

from bcl_ray.experiment.choices import BACKBONES, LOSSES, SOURCES, Loss, load_plugins
from bcl_ray.experiment.options import LossConfig
from bcl_ray.experiment.overrides import from_yaml, with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.experiment.table import Choice, Table, code
from bcl_ray.tuning.choices import SCHEDULERS, SEARCHERS
from bcl_ray.use.formats import FORMATS

TABLES = [LOSSES, BACKBONES, SOURCES, SEARCHERS, SCHEDULERS, FORMATS]


@pytest.fixture
def own(monkeypatch):
    """A plugin in the current folder may be imported, and is forgotten after the test."""
    for table in (LOSSES, BACKBONES, SOURCES):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def references(entry: Choice):
    kinds = ("classification", "contrastive", "build", "open", "make", "write", "load")
    return [getattr(entry, kind) for kind in kinds if getattr(entry, kind, None) is not None]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.option)
def test_every_entry_has_a_text_and_stands_for_code_that_is_there(table):
    for entry in table:
        assert entry.text
        assert "\n" not in entry.text
        assert references(entry)
        assert all(callable(code(reference)) for reference in references(entry))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.option)
def test_an_unknown_name_is_refused_with_the_nearest_one(table):
    wrong = f"{table.names[0]}x"
    message = f"{table.option} '{wrong}' must be one of {', '.join(table.names)}; did you mean "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        table.checked(wrong)


def test_what_a_loss_uses_are_options_of_a_loss():
    assert all(set(loss.uses) <= set(LossConfig.model_fields) for loss in LOSSES)


def test_one_name_stands_for_one_thing():
    table = Table("loss.kind", Loss("a", "one"))
    table.add(Loss("a", "one"))
    with pytest.raises(ValueError, match=r"^loss.kind 'a' exists already \(one\): give yours an"):
        table.add(Loss("a", "two"))
    assert table.described() == "a: one"


@pytest.mark.usefixtures("own")
def test_an_experiment_brings_the_modules_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from bcl_ray.experiment.choices import LOSSES, Loss\nLOSSES.add(Loss('mine', 'my own'))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^loss.kind 'mine' must be one of ce, "):
        with_overrides(digits_lt(), ["loss.kind=mine"])
    experiment = with_overrides(digits_lt(), ["loss.kind=mine", "plugins=[my_losses]"])
    assert from_yaml(experiment.to_yaml()) == experiment
    assert not experiment.loss.is_contrastive
    pickled = pickle.dumps(experiment)
    code_of_another_process = "import pickle, sys; e = pickle.load(sys.stdin.buffer); "
    code_of_another_process += "assert e.num_contrastive == 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code_of_another_process], input=pickled, check=True)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ("[no_such_module]", "plugins: module 'no_such_module' cannot be imported (ModuleNotFound"),
        ("[broken]", "plugins: module 'broken' cannot be imported (ZeroDivisionError: division "),
        ("mine", "plugins (mine) must be a list of modules: [my_package.my_module]"),
        ("3", "plugins (3) must be a list of modules"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch, plugins, message):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        with_overrides(digits_lt(), [f"plugins={plugins}"])


def test_no_plugin_is_no_import():
    before = list(sys.path)
    load_plugins([])
    assert sys.path == before
