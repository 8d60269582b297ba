"""Random numbers that depend on their purpose and (seed, epoch, id, view), not on who draws them.

This is a counter-based generator: every number is a hash of its key. So an image gets the same crop
and the same colours in any batch, in any order, on any worker, and after any resume.
"""

import enum

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment: 2**64 divided by the golden ratio

# Multipliers of SplitMix64's finaliser. Steele, Lea and Flood, "Fast Splittable Pseudorandom
# Number Generators", OOPSLA 2014.
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@enum.unique
class Stream(enum.IntEnum):
    """A purpose of random numbers: those of different streams are independent.

    A new purpose gets a new number. With other numbers, all views and samples would be others.
    """

    CROP = 0
    JITTER = 1
    GRAYSCALE = 2
    POLICY = 3
    CUTOUT = 4
    BLUR = 5
    SAMPLE = 7
    HALVES = 8
    """In which half of the images an image is counted, see `bcl_ray.method.metrics`."""


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit words: a bijection in which every input bit affects every output bit."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))


def uniforms(
    seed: int, epoch: int, ids: NDArray[np.int64], view: int, count: int, *, stream: Stream
) -> NDArray[np.float64]:
    """Independent uniform numbers in [0, 1) for every image, (N, count).

    The first numbers do not depend on `count`: a larger count only adds numbers.

    Args:
        ids: The images' stable ids, (N,).
        count: Numbers per image.
        stream: What the numbers are for.
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, stream, epoch, view):
        key = mix(key + _STEP + np.uint64(part % 2**64))
    image = mix(mix(key + ids.astype(np.uint64)) + _STEP)  # (N,)
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    words = mix(image[:, None] + counters) >> np.uint64(11)  # (N, count): the 53 bits of a double
    return words.astype(np.float64) * 2.0**-53
