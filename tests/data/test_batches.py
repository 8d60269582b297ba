"""The thread that prefetches batches."""

import itertools
import time

import pytest

from bcl_ray.data.batches import prefetch


def test_what_the_producer_raises_reaches_the_consumer():
    def items():
        yield 1
        raise ValueError("broken pipe")

    made = prefetch(items(), 2)
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken pipe"):
        next(made)


def test_a_consumer_that_leaves_stops_the_producer():
    closed = []

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    made = prefetch(items(), 2)
    assert next(made) == 0
    made.close()
    for _ in range(100):
        if closed:
            break
        time.sleep(0.05)
    assert closed
