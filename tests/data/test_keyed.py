import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.data import keyed


@pytest.mark.parametrize("changed", ["seed", "epoch", "view", "stream", "id"])
def test_uniforms_are_uniform_and_neighbouring_keys_are_independent(changed):
    base = {"seed": 3, "epoch": 5, "view": 1, "stream": 0}
    ids = np.arange(20_000)
    near = dict(base) if changed == "id" else base | {changed: base[changed] + 1}
    first = keyed.uniforms(ids=ids, count=4, **base)
    second = keyed.uniforms(ids=ids + (changed == "id"), count=4, **near)
    for numbers in (first, second):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        chi_square = ((counts - 800) ** 2 / 800).sum()
        assert 51 < chi_square < 166  # 99 degrees of freedom: all but 2 in 100,000 either side
        assert numbers.mean() == pytest.approx(0.5, abs=0.005)
        assert numbers.var() == pytest.approx(1 / 12, abs=0.002)
    correlations = np.corrcoef(np.concatenate([first, second], axis=1).T) - np.eye(8)
    assert np.abs(correlations).max() < 0.035  # five standard deviations


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True),
    st.integers(0, 2**70),
    st.randoms(),
)
def test_uniforms_follow_their_ids_through_any_order_and_subset(ids, seed, random):
    ids = np.array(ids, np.int64)
    chosen = np.array(random.sample(range(len(ids)), random.randint(1, len(ids))))
    whole = keyed.uniforms(seed, 2, ids, 1, 5, stream=keyed.Stream.POLICY)
    part = keyed.uniforms(seed, 2, ids[chosen], 1, 3, stream=keyed.Stream.POLICY)
    assert (part == whole[chosen, :3]).all()


def test_every_part_of_the_key_matters():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    numbers = [
        keyed.uniforms(seed, epoch, np.array([7]), view, 1, stream=stream).item()
        for seed, epoch, view, stream in keys
    ]
    assert len(set(numbers)) == len(keys)
