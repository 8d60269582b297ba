import numpy as np

from bcl_ray.display.tables import draw_long_tail


def heights(lines: list[str]) -> list[int]:
    """Eighths of a character that each column is high."""
    bars = [line.partition("│")[2] for line in lines[:-1]]
    width = max(map(len, bars))
    cells = np.array([[" ▁▂▃▄▅▆▇█".index(mark) for mark in bar.ljust(width)] for bar in bars])
    return cells.sum(0).tolist()


def test_columns_are_in_proportion_to_class_sizes_and_fall():
    assert heights(draw_long_tail([12, 48, 0, 24, 1])) == [48] * 6 + [24] * 6 + [12] * 6 + [1] * 6


def test_many_classes_share_columns_by_their_mean():
    counts = np.repeat([480, 240, 10], [2, 2, 116])
    drawn = heights(draw_long_tail(np.random.default_rng(0).permutation(counts).tolist()))
    assert drawn == [48, 24, *[1] * 58]


def test_the_scale_names_the_largest_class_and_the_number_of_classes():
    lines = draw_long_tail([1500, 3])
    assert lines[0].startswith("1,500 │")
    assert lines[5].startswith("    0 │")
    assert lines[6] == "      └ 2 classes, from the largest to the smallest"


def test_a_single_class_and_an_empty_one_can_be_drawn():
    assert set(heights(draw_long_tail([7]))) == {48}
    assert draw_long_tail([0])
