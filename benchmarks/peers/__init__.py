"""What every side of `python -m benchmarks.peers` is given, and must deliver.

A side is a module of this package with two functions: `write`, which makes its format of the JPEG
files in `folder/source`, and `batches`, which delivers uint8 batches without end, of BATCH images,
each with VIEWS random crops of SIZE x SIZE pixels, flipped with probability 0.5: channels first,
(N, VIEWS, 3, SIZE, SIZE), or last. It uses WORKERS processes or threads to make them.
"""

IMAGES = 1000
BATCH = 32
VIEWS = 3
SIZE = 224
SCALE = (0.08, 1.0)
"""Smallest and largest share of an image's area in a crop."""
RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a crop."""
WORKERS = 2
PREFETCH = 2
"""Batches that each worker makes ahead of time."""
