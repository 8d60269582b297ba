"""Random numbers keyed by what they are for: (seed, epoch, id, view), not by who draws them.

A counter-based generator: every number is a hash of its key. An image therefore gets the same
crop and the same colours in any batch, in any order, on any worker, and after any resume.
"""

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.permutation import mix

UInts = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: the golden ratio


def uniforms(
    seed: int, epoch: int, ids: NDArray[np.int64], view: int, count: int, *, stream: int = 0
) -> NDArray[np.float64]:
    """Independent uniform numbers in [0, 1) for every image, (N, count).

    The first numbers do not depend on count: asking for more later changes none of them.

    Args:
        ids: the images' stable numbers, (N,).
        stream: separates purposes that share (seed, epoch, id, view), such as crop and colour.
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, stream, epoch, view):
        key = mix(key + _STEP + _word(part))
    image = mix(mix(key + ids.astype(np.uint64)) + _STEP)  # (N,)
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    words = mix(image[:, None] + counters) >> np.uint64(11)  # (N, count): 53 bits, a double
    return words.astype(np.float64) * 2.0**-53


def _word(number: int) -> np.uint64:
    return np.uint64(number % 2**64)
