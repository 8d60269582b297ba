from dataclasses import replace

import numpy as np
import pytest
import torch

from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs.checkpoint import State

pytest.importorskip("ray")
from bcl_ray.use import evaluate
from bcl_ray.use.models import OpenModel


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


def model(path: str, class_names: list[str]) -> OpenModel:
    experiment = with_overrides(digits_lt(), [f"data.path={path}"])
    counts = [1] * len(class_names)
    text = experiment.to_yaml()
    state = State(1, {}, {}, None, torch.zeros(3), [], text, "f", class_names, counts, "0" * 32)
    return OpenModel("first", "runs/first/best_1", "0" * 64, state, experiment)


def test_a_model_is_evaluated_on_its_own_data_or_on_other_shards_of_its_classes(digits):
    names = list(read_manifest(digits).class_names)
    own, _, labels = evaluate._evaluation_data(model(digits, names), None, None)
    assert own.data.path == digits
    assert labels.tolist() == list(range(10))
    other, manifest, _ = evaluate._evaluation_data(model("gone", names), digits, None)
    assert other.data.path == digits
    assert list(manifest.class_names) == names


def test_a_split_that_the_shards_lack_is_refused_with_those_they_have(digits):
    names = list(read_manifest(digits).class_names)
    with pytest.raises(
        ValueError, match=rf"^--split 'x' is not in {digits}: there is train, test$"
    ):
        evaluate._evaluation_data(model(digits, names), None, "x")


def test_results_are_of_the_split_for_results_not_of_the_one_that_selected(digits):
    names = list(read_manifest(digits).class_names)
    opened = model(digits, names)
    selected = with_overrides(opened.experiment, ["data.validation_split=train"])
    assert selected.data.monitored_split == "train"
    found, _, _ = evaluate._evaluation_data(replace(opened, experiment=selected), None, None)
    assert found.data.monitored_split == "test"


def test_classes_in_another_order_or_fewer_of_them_are_found_by_name():
    where = "'m' cannot be evaluated on d"
    assert evaluate.label_map(["a", "b", "c"], ["c", "a"], where=where).tolist() == [2, 0]
    assert evaluate.label_map(["a", "b", "a"], ["a", "b", "a"], where=where).tolist() == [0, 1, 2]


def test_shards_of_other_classes_are_refused_with_the_names_that_differ(digits):
    names = list(read_manifest(digits).class_names)
    message = f"^'first' cannot be evaluated on {digits}: 1 of the data's 10 classes are not among"
    with pytest.raises(ValueError, match=message + r" the model's 10: 9$"):
        evaluate._evaluation_data(model(digits, [*names[:-1], "nine"]), None, None)
    many = [f"class {number}" for number in range(12)]
    shown = ", ".join(many[:10])
    with pytest.raises(ValueError, match=rf"12 of the data's 13 .* model's 1: {shown}, \.\.\.$"):
        evaluate.label_map(["a"], ["a", *many], where="")


@pytest.mark.parametrize("data", [["b", "a"], ["a", "a"]], ids=str)
def test_names_that_occur_twice_tell_nothing(data):
    with pytest.raises(ValueError, match="and 'a' occurs twice in one of them"):
        evaluate.label_map(["a", "b", "a"], data, where="")


def test_labels_become_the_models_and_the_rest_of_a_batch_stays():
    batch = {"labels": np.array([1, 0, 1]), "ids": np.array([7, 8, 9])}
    (relabelled,) = evaluate._relabelled([batch], np.array([5, 2]))
    assert relabelled["labels"].tolist() == [2, 5, 2]
    assert relabelled["ids"] is batch["ids"]


def test_models_of_one_name_are_called_as_they_were_given_and_none_is_named_twice():
    one = model("data", ["a"])
    other = replace(one, uri="s3://b/first/best_1")
    renamed = evaluate._with_unique_names([one, other], ["s3://a/first", "s3://b/first"])
    assert [m.name for m in renamed] == ["s3://a/first", "s3://b/first"]
    with pytest.raises(ValueError, match=r"^'first' and 'runs/first' are one checkpoint, runs/fir"):
        evaluate._with_unique_names([one, one], ["first", "runs/first"])
