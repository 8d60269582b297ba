import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.data.longtail import class_counts_for, log_prior, select_rows, shot_groups


@pytest.mark.parametrize(
    ("num_classes", "largest", "factor", "total", "smallest"),
    [
        (100, 500, 100, 10_847, 5),
        (100, 500, 50, 12_608, 10),
        (100, 500, 10, 19_573, 50),
        (10, 5000, 100, 12_406, 50),
        (10, 5000, 50, 13_996, 100),
        (10, 5000, 10, 20_431, 500),
    ],
)
def test_exponential_profile_has_the_published_totals(
    num_classes, largest, factor, total, smallest
):
    counts = class_counts_for(
        "exponential", [largest] * num_classes, imbalance_factor=factor, max_per_class=None
    )
    assert (counts.sum(), counts[0], counts[-1]) == (total, largest, smallest)


@given(largest=st.integers(1, 3000), num_classes=st.integers(2, 40), step=st.booleans())
@settings(deadline=None)
def test_rounding_never_takes_an_image_from_an_exact_share(largest, num_classes, step):
    # 49 * (1 / 49) is 0.9999999999999999 in floating point.
    counts = class_counts_for(
        "step" if step else "exponential",
        [largest] * num_classes,
        imbalance_factor=largest,
        max_per_class=None,
    )
    assert counts[-1] == 1
    assert (np.diff(counts) <= 0).all()


def test_step_profile_halves_the_classes():
    counts = class_counts_for("step", [90] * 5, imbalance_factor=30, max_per_class=60)
    assert counts.tolist() == [60, 60, 2, 2, 2]


def test_natural_profile_is_all_there_is_up_to_the_cap():
    options = {"imbalance_factor": None}
    assert class_counts_for("natural", [7, 3, 9], max_per_class=None, **options).tolist() == [
        7,
        3,
        9,
    ]
    assert class_counts_for("natural", [7, 3, 9], max_per_class=5, **options).tolist() == [5, 3, 5]


@pytest.mark.parametrize(
    ("profile", "available", "factor", "largest", "message"),
    [
        ("exponential", [9, 9], 0.5, None, r"imbalance_factor \(0.5\) must be at least 1"),
        ("exponential", [9, 9], None, None, r"imbalance_factor \(None\) must be at least 1"),
        ("exponential", [9, 9], float("nan"), None, r"imbalance_factor \(nan\) must be at least 1"),
        ("step", [9, 9], 10, None, r"leaves class 1 without images.*can be at most 9"),
        ("exponential", [9, 2], 3, 9, "asks for 3 images of class 1, and the source has 2"),
        ("exponential", [9, 9], 3, 12, "asks for 12 images of class 0, and the source has 9"),
        ("natural", [9, 9], None, 0, r"max_per_class \(0\) must be at least 1"),
        ("linear", [9, 9], 3, None, "profile 'linear' must be exponential, step or natural"),
    ],
)
def test_impossible_profiles_are_refused(profile, available, factor, largest, message):
    with pytest.raises(ValueError, match=message):
        class_counts_for(profile, available, imbalance_factor=factor, max_per_class=largest)


@pytest.mark.parametrize("already_shuffled", [True, False])
def test_a_larger_imbalance_keeps_a_subset(already_shuffled):
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    available = np.bincount(labels)
    kept = []
    for factor in (2, 10, 50):
        counts = class_counts_for(
            "exponential", available, imbalance_factor=factor, max_per_class=150
        )
        rows = select_rows(labels, counts, seed=3, already_shuffled=already_shuffled)
        assert np.bincount(labels[rows]).tolist() == counts.tolist()
        assert (np.diff(rows) > 0).all()
        kept.append(set(rows.tolist()))
    assert kept[0] > kept[1] > kept[2]


def test_ordered_sources_are_sampled_and_random_ones_cut():
    labels = np.zeros(1000, dtype=np.int64)
    counts = np.array([100])
    cut = select_rows(labels, counts, seed=0, already_shuffled=True)
    sampled = select_rows(labels, counts, seed=0, already_shuffled=False)
    other = select_rows(labels, counts, seed=1, already_shuffled=False)
    assert cut.tolist() == list(range(100))
    assert sampled.max() > 900
    assert sampled.tolist() != other.tolist()


def test_rows_outside_the_classes_are_never_kept():
    labels = np.array([-1, 0, 2, 1, -1, 0])
    rows = select_rows(labels, np.array([2, 1]), seed=0, already_shuffled=False)
    assert rows.tolist() == [1, 3, 5]


def test_shot_groups_have_the_published_borders():
    groups = shot_groups([101, 100, 20, 19])
    assert {name: classes.tolist() for name, classes in groups.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3],
    }


def test_an_empty_shot_group_is_left_out():
    assert list(shot_groups([5000, 500])) == ["many"]


def test_log_prior_is_the_log_of_the_frequency():
    assert np.exp(log_prior([6, 3, 1])).tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_log_prior_refuses_an_empty_class():
    with pytest.raises(ValueError, match=r"1 classes without training images \(first: 1\)"):
        log_prior([6, 0, 1])


def test_without_a_maximum_every_class_can_follow_the_profile():
    counts = class_counts_for("exponential", [8, 10, 3], imbalance_factor=4, max_per_class=None)
    assert counts.tolist() == [8, 4, 2]
    counts = class_counts_for("step", [20, 9, 2, 30], imbalance_factor=3, max_per_class=None)
    assert counts.tolist() == [8, 8, 2, 2]
