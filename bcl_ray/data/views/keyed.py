"""Random numbers that depend on their purpose (seed, epoch, id, view), not on who draws them.

This is a counter-based generator: every number is a hash of its key. So an image gets the same crop
and the same colours in any batch, in any order, on any worker, and after any resume.
"""

import numpy as np
from numpy.typing import NDArray

from bcl_ray.data.permutation import mix

_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: 2**64 divided by the golden ratio


def uniforms(
    seed: int, epoch: int, ids: NDArray[np.int64], view: int, count: int, *, stream: int = 0
) -> NDArray[np.float64]:
    """Independent uniform numbers in [0, 1) for every image, (N, count).

    The first numbers do not depend on `count`: a larger count only adds numbers.

    Args:
        ids: The images' stable ids, (N,).
        count: Numbers per image.
        stream: Distinguishes purposes with the same (seed, epoch, id, view): crop, colour, ...
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, stream, epoch, view):
        key = mix(key + _STEP + np.uint64(part % 2**64))
    image = mix(mix(key + ids.astype(np.uint64)) + _STEP)  # (N,)
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    words = mix(image[:, None] + counters) >> np.uint64(11)  # (N, count): the 53 bits of a double
    return words.astype(np.float64) * 2.0**-53
