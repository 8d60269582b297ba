"""Validation data, held out from the training split."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.data.shards import verify_shards, write_shards
from bcl_ray.data.shards.holdout import _part, hold_out, own_validation, validation_counts
from bcl_ray.data.sources import SourceSplit, open_source
from bcl_ray.experiment.options import DataConfig


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    target = str(tmp_path_factory.mktemp("digits") / "whole")
    write_shards(open_source("digits"), target, profile="exponential", imbalance_factor=50)
    return target


def rows(folder, split):
    """Image by (id, label)."""
    found = {}
    for file in sorted(folder.glob(f"{split}-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            found[row["id"], row["label"]] = row["image"]
    return found


def test_two_parts_make_the_whole_and_share_nothing(digits, tmp_path):
    manifest = hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0)
    whole = rows(Path(digits), "train")
    train, validation = (rows(tmp_path / "cut", name) for name in ("train", "validation"))
    assert train | validation == whole
    assert not train.keys() & validation.keys()
    assert set(manifest.splits) == {"train", "validation"}, "no test images are near"
    assert verify_shards(str(tmp_path / "cut")) == []


def test_other_splits_are_kept_whole_if_asked_for(digits, tmp_path):
    manifest = hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0, keep_others=True)
    assert list(manifest.splits) == ["train", "validation", "test"]
    assert rows(tmp_path / "cut", "test") == rows(Path(digits), "test")
    with pytest.raises(ValueError, match="has a split 'validation': set "):
        hold_out(str(tmp_path / "cut"), str(tmp_path / "twice"), 0.2, seed=0, keep_others=True)


def test_the_training_split_may_have_another_name(digits, tmp_path):
    manifest = hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0, split="test")
    train, validation = (rows(tmp_path / "cut", name) for name in ("train", "validation"))
    assert train | validation == rows(Path(digits), "test")
    assert list(manifest.splits) == ["train", "validation"]


def test_both_parts_have_the_profile_of_the_whole(digits, tmp_path):
    manifest = hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0)
    assert manifest.splits["validation"].class_counts == (28, 18, 12, 8, 5, 3, 2, 1, 1, 1)
    assert manifest.splits["train"].class_counts == (114, 73, 47, 30, 19, 13, 8, 5, 3, 1)


def test_the_seed_decides_which_images(digits, tmp_path):
    made = [hold_out(digits, str(tmp_path / str(i)), 0.2, seed) for i, seed in enumerate((0, 0, 1))]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert rows(tmp_path / "0", "validation").keys() != rows(tmp_path / "2", "validation").keys()


@given(st.lists(st.integers(0, 5000), min_size=1), st.floats(0.01, 0.99))
def test_every_class_of_two_images_is_in_both_parts(counts, fraction):
    counts = np.array(counts)
    cut = validation_counts(counts, fraction)
    several = counts >= 2
    assert (cut[several] >= 1).all()
    assert (cut[several] < counts[several]).all()
    assert (cut[~several] == 0).all()
    assert (
        np.abs(cut - fraction * counts)[counts > 1 / min(fraction, 1 - fraction)] <= 0.5 + 1e-6
    ).all()


def test_what_cannot_be_held_out_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match=r"the validation share \(1\) must be above 0 and below 1"):
        hold_out(digits, str(tmp_path / "cut"), 1.0, seed=0)
    with pytest.raises(ValueError, match="has no split 'training': it has train, test"):
        hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0, split="training")
    assert not (tmp_path / "cut").exists()


def test_a_validation_split_of_its_own_is_found(digits, tmp_path):
    cut = hold_out(digits, str(tmp_path / "cut"), 0.2, seed=0)
    assert own_validation(cut, DataConfig(path="")) == "validation"
    assert own_validation(cut, DataConfig(path="", eval_split="validation")) is None, (
        "the winner is tested on it"
    )


def test_a_part_has_the_faults_of_its_own_rows():
    labels = np.arange(6)
    whole = SourceSplit(labels, lambda rows: rows, str, ids=labels, faults={1: "a", 4: "b"})
    part = _part(whole, np.array([0, 2, 4, 5]))
    assert part.faults == {2: "b"}
    assert part.where(2) == "4"
