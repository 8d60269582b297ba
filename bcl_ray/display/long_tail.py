"""A small plot of class sizes, of characters."""

from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 60, 6  # characters
_BLOCKS = " ▁▂▃▄▅▆▇█"


def draw_long_tail(class_counts: Sequence[int]) -> list[str]:
    """Lines of a plot: training images of each class, from the largest class to the smallest.

    A column is a class, or the mean of as many as fit; a class with images is always to be seen.

    Args:
        class_counts: Training images of each class, (K,).
    """
    counts = np.sort(np.asarray(class_counts))[::-1]
    columns = [part.mean() for part in np.array_split(counts, min(WIDTH, len(counts)))]
    heights = np.ceil(np.array(columns) / max(counts.max(), 1) * 8 * HEIGHT).astype(int)
    heights = np.repeat(heights, max(1, WIDTH // 2 // len(columns)))
    scale = [f"{counts.max():,}", *[""] * (HEIGHT - 2), "0"]
    margin = max(map(len, scale))
    lines = []
    for row, label in enumerate(scale):
        filled = np.clip(heights - 8 * (HEIGHT - 1 - row), 0, 8)
        blocks = "".join(_BLOCKS[eighths] for eighths in filled)
        lines.append(f"{label:>{margin}} │{blocks}".rstrip())
    return [*lines, f"{'':{margin}} └ {len(counts):,} classes, from the largest to the smallest"]
