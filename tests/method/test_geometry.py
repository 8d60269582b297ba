"""Geometry against slow definitions, and where the answer is known: simplex, collapse, noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bcl_ray.method.geometry import class_means, geometry
from bcl_ray.method.sample import (
    MAX_CLASSES,
    Sample,
    gather_sample,
    is_sampled,
    sample_shares,
)
from tests import oracles

COUNTS = [500, 300, 150, 60, 15, 9, 4]  # three classes with many images, one medium, three few
K = len(COUNTS)
METRICS = {"nc1", "equinorm", "equiangular", "maximal_angle", "alignment", "uniformity"}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(labels: list[int], width: int, seed: int = 0) -> Tensor:
    """Vectors that scatter around a point of their class."""
    return noise(K, width, seed=seed)[labels] + 0.5 * noise(len(labels), width, seed=seed + 1)


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, K - 1), min_size=2, max_size=30).filter(
        lambda y: len(set(y)) > 1
    ),
    width=st.integers(3, 12),
    seed=st.integers(0, 1000),
)
def test_every_metric_is_its_definition(labels, width, seed):
    vectors, rows = spread(labels, width, seed), noise(K, width, seed=seed + 2)
    found = geometry(vectors, torch.tensor(labels), COUNTS, {"row": rows})
    expected = oracles.geometry(vectors, labels, COUNTS, rows)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_on_an_exact_simplex_all_is_ideal():
    corners = oracles.simplex(K, 9)
    labels = torch.arange(K).repeat(5)
    found = geometry(3 * corners[labels], labels, COUNTS, {"row": 7 * corners})
    for name, value in found.items():
        if "cosine" in name:
            assert value == pytest.approx(-1 / (K - 1))
        elif not name.startswith("uniformity"):
            assert value == pytest.approx(0, abs=1e-7), name
    distance = 2 + 2 / (K - 1)
    pairs = 5 * K * (5 * K - 1)
    same = 5 * K * 4
    expected = math.log((same + (pairs - same) * math.exp(-2 * distance)) / pairs)
    assert found["uniformity"] == pytest.approx(expected, rel=1e-5)


def test_where_the_centre_lies_and_how_long_vectors_are_changes_no_angle():
    labels = torch.arange(K).repeat(6)
    vectors = spread(labels.tolist(), 10)
    first = geometry(vectors, labels, COUNTS, {})
    moved = geometry(9 * vectors + 5, labels, COUNTS, {})
    for name in first:
        if not name.startswith(("alignment", "uniformity")):
            assert moved[name] == pytest.approx(first[name], rel=1e-6), name


def test_the_number_of_a_class_s_images_is_not_its_weight():
    corners = oracles.simplex(K, 9)
    labels = torch.tensor([0] * 50 + [1] * 20 + list(range(2, K)))
    found = geometry(corners[labels], labels, COUNTS, {})
    assert found["equinorm"] == pytest.approx(0, abs=1e-7)
    assert found["maximal_angle"] == pytest.approx(0, abs=1e-7)


def test_a_representation_that_has_collapsed_to_a_point_has_no_angles():
    labels = torch.arange(K).repeat(4)
    found = geometry(torch.ones(len(labels), 5), labels, COUNTS, {"row": noise(K, 5)})
    assert {name.partition("_")[0] for name in found} == {"alignment", "uniformity"}
    assert found["alignment"] == pytest.approx(0, abs=1e-7)
    assert found["uniformity"] == pytest.approx(0, abs=1e-6)


def test_of_random_features_only_chance_remains():
    """Random directions in 512 dimensions are almost orthogonal."""
    labels = torch.arange(K).repeat(100)
    found = geometry(noise(len(labels), 512), labels, COUNTS, {"row": noise(K, 512, seed=3)})
    assert found["alignment"] == pytest.approx(2, abs=0.02)
    assert found["uniformity"] == pytest.approx(-4, abs=0.05)
    assert found["tail_tail_cosine"] == pytest.approx(-1 / (K - 1), abs=0.1)
    assert found["row_distance"] == pytest.approx(math.sqrt(2), abs=0.05)
    # Each of the K - 1 directions of the means has 512 / (100 K) of variance, and S_W is 1.
    assert found["nc1"] == pytest.approx(100 * (K - 1) / 512, rel=0.1)


def test_merging_tail_classes_shows_in_the_tail_alone():
    corners = oracles.simplex(K, 9)
    corners[5], corners[6] = corners[4] + 0.05 * noise(9), corners[4] + 0.05 * noise(9, seed=1)
    labels = torch.arange(K).repeat(5)
    found = geometry(corners[labels], labels, COUNTS, {})
    assert found["tail_tail_cosine"] > 0.9
    assert found["head_head_cosine"] < 0


def test_a_group_without_classes_has_no_metric():
    labels = torch.arange(3).repeat(5)  # the three head classes
    found = geometry(spread(labels.tolist(), 6), labels, COUNTS, {})
    assert {name for name in found if "tail" in name or name.endswith("_few")} == set()
    assert found.keys() >= METRICS | {"head_head_cosine", "nc1_many"}


def test_one_class_alone_has_neither_angles_nor_errors():
    found = geometry(noise(5, 4), torch.zeros(5, dtype=torch.int64), COUNTS, {})
    assert found.keys() == {"alignment", "alignment_many", "uniformity", "uniformity_many"}


def test_a_sample_has_about_equally_many_of_each_class_and_all_of_small_ones():
    counts = np.array([4000, 1000, 300, 20, 3])
    labels = np.repeat(np.arange(5), counts)
    ids = np.arange(len(labels))
    shares = sample_shares(counts, counts, 500)
    of_class = np.bincount(labels[is_sampled(ids, labels, shares)], minlength=5)
    assert of_class[3:].tolist() == [20, 3]
    assert np.abs(of_class[:3] - 100).max() < 40


def test_of_many_classes_512_are_sampled_evenly_by_size():
    sizes = np.random.default_rng(0).permutation(np.arange(1, 8143))
    shares = sample_shares(np.full(8142, 3), sizes, 4096)
    taken = np.sort(sizes[shares > 0])
    assert len(taken) == MAX_CLASSES
    assert np.diff(taken).max() <= 17
    assert taken[[0, -1]].tolist() == [1, 8142]


def test_whether_an_image_is_sampled_depends_on_itself_alone():
    ids, labels, shares = np.arange(100), np.arange(100) % 3, np.array([0.2, 0.5, 1.0])
    whole = is_sampled(ids, labels, shares)
    order = np.random.default_rng(0).permutation(100)
    assert (is_sampled(ids[order], labels[order], shares) == whole[order]).all()
    assert whole[labels == 2].all()
    assert 0 < whole[labels == 0].sum() < 15


def test_parts_of_a_sample_come_in_any_order():
    ids = torch.arange(20)
    parts = [
        Sample(some, some % 3, some[:, None].float(), some[:, None].float())
        for some in ids.split(7)
    ]
    first, second = gather_sample(parts), gather_sample(parts[::-1])
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert sorted(first.ids.tolist()) == ids.tolist()


def test_class_means_are_of_the_classes_that_are_there():
    classes, means = class_means(torch.tensor([[1.0], [3], [5]]), torch.tensor([4, 4, 1]))
    assert classes.tolist() == [1, 4]
    assert means.tolist() == [[5], [2]]
