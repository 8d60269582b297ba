import itertools
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.data.permutation import Permutation

sizes = st.integers(1, 3000)
keys = st.tuples(st.integers(0, 2**40), st.integers(0, 1000))


@settings(deadline=None, max_examples=60)
@given(size=sizes, key=keys)
def test_every_number_has_one_position(size, key):
    order = Permutation(size, key).at(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(size=sizes, key=keys)
def test_positions_invert_at(size, key):
    permutation, numbers = Permutation(size, key), np.arange(size)
    np.testing.assert_array_equal(permutation.positions(permutation.at(numbers)), numbers)
    np.testing.assert_array_equal(permutation.at(permutation.positions(numbers)), numbers)


def test_a_number_does_not_depend_on_what_else_is_asked_for():
    permutation = Permutation(1000, (5, 2))
    np.testing.assert_array_equal(
        permutation.at([7, 900]), permutation.at(np.arange(1000))[[7, 900]]
    )


def test_all_orders_of_four_are_equally_likely():
    """Chi-square with 23 degrees of freedom: above 49.7 once in a thousand; it is 17.8."""
    seen = Counter(
        tuple(Permutation(4, (seed, 0)).at(np.arange(4)).tolist()) for seed in range(2400)
    )
    expected = 2400 / 24
    orders = itertools.permutations(range(4))
    assert sum((seen[order] - expected) ** 2 / expected for order in orders) < 49.7


def test_neighbours_are_as_far_apart_as_in_a_shuffle():
    """Mean distance of two random places of n: n / 3; its deviation here is 0.3 % of n."""
    size = 10_000
    order = Permutation(size, (0, 0)).at(np.arange(size))
    assert abs(np.abs(np.diff(order)).mean() / size - 1 / 3) < 0.01


def test_epochs_have_unrelated_orders():
    size = 10_000
    first, second = (Permutation(size, (0, epoch)).at(np.arange(size)) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04  # four deviations of 1 / sqrt(n)
    assert (first == second).sum() <= 6  # on average 1


def test_tens_of_millions_need_no_array():
    permutation = Permutation(13_000_000, (0, 0))
    assert set(vars(permutation)) == {"size", "_rows", "_columns", "_keys"}
    assert permutation.positions(permutation.at([12_999_999])).tolist() == [12_999_999]
