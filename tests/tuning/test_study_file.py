"""The file of a study: the cells that it makes, and what it refuses."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.machine.errors import UserError
from bcl_ray.tuning.study_file import KEYS, parse_study, read_study
from tests.docs.test_pages import _parsed

STUDIES = sorted((Path(__file__).parents[2] / "jobs" / "studies").glob("*.yaml"))
CONTENT = {
    "recipe": "digits_lt",
    "overrides": ["train.epochs=3", "optim.lr=0.5"],
    "axes": {
        "method": {"ce": ["loss.kind=ce"], "bcl": []},
        "lr": {"low": ["optim.lr=0.1"], "same": None},
    },
}


def parse(*overrides, **changes):
    return parse_study(CONTENT | changes, "a.yaml", overrides)


def test_cells_are_the_product_of_the_axes_in_order():
    study = parse(seeds=2)
    assert [cell.name for cell in study.cells] == ["ce-low", "ce-same", "bcl-low", "bcl-same"]
    assert study.cells[1].labels == {"method": "ce", "lr": "same"}
    assert (study.axes, study.seeds) == (("method", "lr"), (0, 1))
    assert study.cells[0].run_name(1) == "ce-low-seed-1"


def test_later_overrides_win():
    cells = {cell.name: cell.experiment for cell in parse("train.epochs=7").cells}
    assert {name: e.optim.lr for name, e in cells.items() if name.startswith("ce")} == {
        "ce-low": 0.1,
        "ce-same": 0.5,
    }
    assert {experiment.train.epochs for experiment in cells.values()} == {7}
    assert cells["ce-low"].loss.kind == "ce"
    assert cells["bcl-same"].loss == digits_lt().loss


def test_a_label_may_name_another_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(digits_lt().to_yaml().replace("name: digits_lt", "name: mine"))
    other = {"recipe": str(file), "overrides": ["loss.kind=scl"]}
    study = parse(axes={"method": {"bcl": [], "mine": other}}, overrides=["tracking.runs=here"])
    experiment = study.cells[1].experiment
    assert (experiment.name, experiment.loss.kind) == ("mine", "scl")
    assert {cell.experiment.tracking.runs for cell in study.cells} == {"here"}


def test_every_label_is_compared_with_the_first_unless_pairs_are_given():
    assert parse().compare == (("bcl", "ce"),)
    assert parse(compare=[["ce", "bcl"]]).compare == (("ce", "bcl"),)


def test_without_a_number_there_is_one_seed():
    assert parse().seeds == (0,)
    assert parse(seeds=[4, 2]).seeds == (4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": "digits_lt"}, "a.yaml: there is no key 'recipes': there are recipe, "),
        ({"recipe": "digits"}, "a.yaml: cell ce-low: 'digits' is no recipe and no .yaml file"),
        ({"recipe": None}, "a.yaml: recipe must be a recipe's name or a YAML file, got None"),
        ({"overrides": "a=1"}, "a.yaml: overrides must be a list of section.field=value, got a=1"),
        ({"overrides": ["train.seed=1"]}, "overrides: train.seed=1 cannot be set: seeds has them"),
        ({"overrides": ["tracking.run=a"]}, "tracking.run=a cannot be set: runs are named by"),
        ({"overrides": ["optim.lrr=1"]}, "a.yaml: cell ce-low: no option 'optim.lrr'"),
        ({"axes": None}, "a.yaml: axes must map each axis to its labels"),
        ({"axes": {"m": ["ce"]}}, "a.yaml: axes.m must map labels to lists of overrides"),
        ({"axes": {"m": {"a b": []}}}, "a.yaml: axes.m: label 'a b' must consist of letters"),
        ({"axes": {"m": {"a": "x"}}}, "a.yaml: axes.m.a must be a list of section.field=value"),
        ({"axes": {"m": {"a": {"recip": 1}}}}, "a.yaml: axes.m.a has no key 'recip': there are"),
        (
            {"axes": {"m": {"a": ["tracking.runs=x"]}}},
            "a.yaml: axes.m.a: tracking.runs=x is of the whole study: move it to overrides",
        ),
        (
            {"axes": {"a": {"x": [], "x-y": []}, "b": {"y-z": [], "z": []}}},
            "a.yaml: axes: two cells would be called 'x-y-z': rename a label",
        ),
        ({"seeds": 0}, "a.yaml: seeds (0) must be a number of seeds, or a list of different ones"),
        ({"seeds": [1, 1]}, "a.yaml: seeds ([1, 1]) must be a number of seeds"),
        ({"seeds": True}, "a.yaml: seeds (True) must be a number of seeds"),
        ({"compare": [["bcl", "x"]]}, "compare: ['bcl', 'x'] must be two of the labels of method"),
        ({"compare": [["bcl", "bcl"]]}, "compare: ['bcl', 'bcl'] must be two of the labels"),
        ({"shards": ["x"]}, "a.yaml: shards must map data.path to a command"),
    ],
)
def test_a_mistake_names_file_key_value_and_rule(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file or directory; name a YAML file"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"a: [", "is not valid YAML"),
        (b"- a", "must be a mapping with some of the keys recipe"),
    ],
)
def test_a_file_that_is_none_is_named(text, message, tmp_path):
    file = tmp_path / "study.yaml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read_study(file)
    assert str(file) in str(error.value)


WORDS = st.text(string.ascii_letters + string.digits + "._- =:[]'\n", max_size=8)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(KEYS), ANYTHING)
def test_any_value_of_a_key_is_taken_or_refused_in_one_line(key, value):
    try:
        study = parse(**{key: value})
    except UserError as error:
        message = str(error)
    else:
        assert len({cell.name for cell in study.cells}) == len(study.cells)
        return
    assert message.startswith("a.yaml: ")


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_studies_of_this_project_can_be_read(file):
    study = read_study(file)
    assert len(study.cells) > 1
    digests = [(c.experiment.digest(), c.experiment.data.path) for c in study.cells]
    assert len(set(digests)) == len(digests), "two cells are the same"
    for cell in study.cells:
        command = study.shards[cell.experiment.data.path]
        words = command.split()
        assert words[:2] == ["bcl-ray", "shard"]
        assert _parsed(words[1:])["target"] == cell.experiment.data.path
