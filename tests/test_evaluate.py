import pytest
import torch

from bcl_ray import runs
from bcl_ray.checkpoint import State
from bcl_ray.parse import with_overrides
from bcl_ray.recipes import digits_lt
from bcl_ray.shards import read_manifest, write_shards
from bcl_ray.sources import open_source

pytest.importorskip("ray")
from bcl_ray import evaluate

RUN = runs.Run("runs/first", "0" * 32, "digest", "fingerprint")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


def state(path: str, class_names: list[str]) -> State:
    experiment = with_overrides(digits_lt(), [f"data.path={path}"])
    counts = [1] * len(class_names)
    text = experiment.to_yaml()
    return State(1, {}, {}, None, torch.zeros(3), [], text, "f", class_names, counts, "0" * 32)


def test_a_run_is_evaluated_on_its_own_data_or_on_other_shards_of_its_classes(digits):
    names = list(read_manifest(digits).class_names)
    _, own, _ = evaluate._checked(RUN, state(digits, names), None)
    assert own.data.path == digits
    _, other, manifest = evaluate._checked(RUN, state("gone", names), digits)
    assert other.data.path == digits
    assert list(manifest.class_names) == names


def test_shards_of_other_classes_are_refused_with_the_names_that_differ(digits):
    names = list(read_manifest(digits).class_names)
    message = r"^run 'first' learned other classes than .* has: nine|^run 'first' .*: 9, nine"
    with pytest.raises(ValueError, match=message):
        evaluate._checked(RUN, state(digits, [*names[:-1], "nine"]), None)
    with pytest.raises(ValueError, match="the same names in another order"):
        evaluate._checked(RUN, state(digits, names[::-1]), None)


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    run = runs.create(str(tmp_path / "runs" / "first"), digits_lt(), "f")
    with pytest.raises(ValueError, match=r"^run 'first' in .* has no checkpoint yet$"):
        evaluate.load_state(run)
