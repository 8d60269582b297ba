"""Figures show the right values, and no text in them covers another."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from bcl_ray.data.longtail import shot_groups
from bcl_ray.report.figures.calibration import reliability
from bcl_ray.report.figures.classes import accuracy_by_class
from bcl_ray.report.figures.confusion import confusion
from bcl_ray.report.figures.curves import accuracy_over_epochs, geometry_over_epochs
from bcl_ray.report.figures.mistakes import Mistake, mistake_grid
from bcl_ray.report.figures.representation import class_cosines
from bcl_ray.report.figures.search import search_figure
from bcl_ray.report.figures.style import SHOT_COLORS, png
from bcl_ray.report.importance import CHANCE, importance
from tests.odd_names import ODD_NAMES

LONG = "a_class_with_a_very_long_name_"


class Case:
    """Made-up predictions for a data set."""

    def __init__(self, classes: int, largest: int, smallest: int) -> None:
        random = np.random.default_rng(classes)
        self.counts = np.geomspace(largest, smallest, classes).round().astype(int)
        self.names = [f"{LONG}{k}" for k in range(classes)]
        self.labels = np.repeat(np.arange(classes), 20)
        wrong = random.random(len(self.labels)) < 0.4
        self.predicted = np.where(wrong, random.integers(0, classes, len(wrong)), self.labels)
        hit = np.bincount(self.labels[self.labels == self.predicted], minlength=classes)
        self.accuracy = 100 * hit / 20
        self.means = random.normal(size=(classes, 16)).astype(np.float32)
        images = random.integers(1, 100, 15).astype(float)
        self.bins = np.stack([images, images * np.linspace(0.1, 0.97, 15), images * 0.5], axis=1)
        self.history = [
            {"epoch": float(epoch), **(self.record(random) if epoch % 5 == 4 else {})}
            for epoch in range(40)
        ]

    def record(self, random) -> dict[str, float]:
        names = [f"accuracy/{group}" for group in ("all", *shot_groups(self.counts))]
        for space in ("geometry", "geometry/train", "geometry/features", "geometry/train_features"):
            for metric in ("nc1", "alignment", "uniformity", "maximal_angle"):
                names += [f"{space}/{metric}{group}" for group in ("", "_many", "_medium", "_few")]
            pairs = ("head_head", "head_tail", "tail_tail")
            names += [f"{space}/{pair}_cosine" for pair in pairs]
            names += [f"{space}/classifier_distance", f"{space}/prototype_distance_few"]
        return {name: 60 * random.random() for name in names}

    def drawn(self) -> dict[str, Figure]:
        calibrated = self.bins * [1, 0.8, 1]
        of_classes = (self.counts, self.names)
        pixels = np.zeros((8, 8, 3), np.uint8)
        mistake = Mistake(pixels, self.names[-1], "few", self.names[0], "many", 0.987)
        return {
            "classes": accuracy_by_class(self.accuracy, *of_classes),
            "epochs": accuracy_over_epochs(self.history),
            "confusion": confusion(self.labels, self.predicted, *of_classes),
            "reliability": reliability(self.bins, calibrated, 1.4),
            "cosines": class_cosines(self.means, *of_classes, vectors="features"),
            "features": geometry_over_epochs(self.history, 10, space="feature"),
            "embeddings": geometry_over_epochs(self.history, 10, space="embedding"),
            "mistakes": mistake_grid([mistake] * 11),
        }


CASES = {
    "10 classes": Case(10, 142, 2),
    "100 classes": Case(100, 500, 5),
    "few alone": Case(12, 9, 2),
}


def visible_texts(figure: Figure) -> list[tuple[str, object]]:
    """The texts that are drawn, with their boxes."""
    figure.draw_without_rendering()
    outside = set()
    for axes in figure.axes:  # labels of ticks beyond the limits are not drawn
        for axis in (axes.xaxis, axes.yaxis):
            shown = {id(tick) for tick in axis._update_ticks() if axes.axison}
            for tick in (*axis.majorTicks, *axis.minorTicks):
                if id(tick) not in shown:
                    outside |= {id(tick.label1), id(tick.label2)}
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in outside:
            box = text.get_window_extent()
            box.slanted = text.get_rotation() % 90 != 0  # its box is larger than the text
            found.append((text.get_text(), box))
    return found


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel or two."""
    found = []
    for (first, box), (second, other) in itertools.combinations(visible_texts(figure), 2):
        width = min(box.x1, other.x1) - max(box.x0, other.x0)
        height = min(box.y1, other.y1) - max(box.y0, other.y0)
        if min(width, height) > 1.5 and not (box.slanted and other.slanted):
            found.append((first, second))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_no_text_covers_another_or_leaves_the_figure(case):
    for name, figure in CASES[case].drawn().items():
        assert overlaps(figure) == [], name
        for text, box in visible_texts(figure):
            assert min(box.x0, box.y0) >= -1, (name, text)
            assert box.x1 <= figure.bbox.x1 + 1, (name, text)
            assert box.y1 <= figure.bbox.y1 + 1, (name, text)


@pytest.mark.slow
def test_a_class_s_name_is_no_mathematics_whatever_it_has_in_it():
    case = Case(12, 140, 2)
    case.names = [*ODD_NAMES[:11], "\n$x$ \ty\r"]
    for name, figure in case.drawn().items():
        assert png(figure).startswith(b"\x89PNG"), name
        assert all(text.get_text().isprintable() for text in figure.findobj(Text)), name
        named = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert not any(text.get_parse_math() for text in named), name


def test_a_group_has_the_same_colour_in_every_figure():
    case = CASES["100 classes"]
    wanted = {color.upper() for color in SHOT_COLORS.values()}
    for figure in (
        accuracy_over_epochs(case.history),
        geometry_over_epochs(case.history, 10, space="feature"),
    ):
        lines = [line for axes in figure.axes for line in axes.lines]
        assert {to_hex(line.get_color()).upper() for line in lines} >= wanted
    counts = case.counts
    bars = accuracy_by_class(case.accuracy, counts, case.names).axes[0].patches
    found = [to_hex(bar.get_facecolor()).upper() for bar in bars]
    for group, members in shot_groups(counts).items():
        assert {found[k] for k in members} == {SHOT_COLORS[group].upper()}


@pytest.mark.parametrize("name", CASES)
def test_the_predictions_for_a_group_sum_to_all_of_its_images(name):
    case = CASES[name]
    figure = confusion(case.labels, case.predicted, case.counts, case.names)
    axes = figure.axes[0]
    ends: dict[float, float] = {}
    for bar in axes.patches:
        ends[round(bar.get_y(), 2)] = ends.get(round(bar.get_y(), 2), 0) + bar.get_width()
    assert list(ends.values()) == pytest.approx([100] * len(ends))


def test_the_class_that_absorbs_most_tail_mistakes_is_on_top_with_their_true_classes():
    counts, names = np.array([500, 50, 5, 4]), ["cat", "dog", "emu", "fox"]
    labels = np.array([2] * 10 + [3] * 10 + [0] * 10)
    predicted = np.array([2] * 3 + [0] * 6 + [1] + [3] * 8 + [0] * 2 + [1] * 10)
    axes = confusion(labels, predicted, counts, names).axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog (50)", "cat (500)"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 / 9, 800 / 9])
    assert [text.get_text() for text in axes.texts] == [" from emu (1)", " from emu (6), fox (2)"]
    assert axes.get_title("left").endswith("(9 mistakes)")


def test_a_network_without_mistakes_on_the_tail_can_be_drawn():
    labels = np.arange(4)
    axes = confusion(labels, labels, [500, 50, 5, 4], list("abcd")).axes[1]
    assert axes.texts[0].get_text() == "no mistakes"


def test_a_class_without_images_is_in_no_mean():
    figure = accuracy_by_class([80, 60, np.nan, 20], [500, 50, 10, 5], list("abcd"))
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == ["many 80.0 %", "medium 60.0 %", "few 20.0 %"]
    assert "53.3 %" in figure.axes[1].get_title("left")


def test_of_thousands_of_classes_the_trend_is_shown():
    counts = np.geomspace(1000, 2, 400).astype(int)
    names = [LONG] * 400
    figure = accuracy_by_class(np.linspace(90, 10, 400), counts, names)
    line = figure.axes[1].lines[0]
    np.testing.assert_allclose(line.get_ydata(), np.linspace(89, 11, 40), atol=0.2)
    assert overlaps(figure) == []


def test_reliability_names_the_calibration_error():
    bins = np.zeros((15, 3))
    bins[14], bins[7] = [80, 78, 60], [20, 10, 10]
    labels = reliability(bins, None, 1.0).axes[0].get_legend().get_texts()
    assert labels[-1].get_text() == "before: calibration error 18.0 %"


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_line_of_the_simplex_is_where_its_cosines_are(classes):
    corners = np.eye(classes, dtype=np.float32)
    names = [str(k) for k in range(classes)]
    axes = class_cosines(corners, [200] * classes, names, vectors="corners").axes[1]
    assert axes.lines[-1].get_xdata()[0] == pytest.approx(-1 / (classes - 1))
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    filled = [bar for bar in bars if bar.get_height()]
    assert sum(bar.get_height() for bar in filled) == pytest.approx(100)  # all pairs are there
    for bar in filled:  # rounding may bring some to the other side of a bar's edge
        assert abs(bar.get_x() + bar.get_width() / 2 + 1 / (classes - 1)) <= bar.get_width()


def trials(number: int) -> list[dict]:
    random = np.random.default_rng(0)
    rows = []
    for trial in range(number):
        row = {
            "trial": trial,
            "loss.temperature": float(np.exp(random.uniform(-4, 0))),
            "loss.tau": float(random.uniform(0, 2)),
            "loss.anchor_mean": str(random.choice(["class", "instance"])),
            "stopped": trial % 4 == 3,
        }
        row["accuracy/few"] = 50 - 9 * abs(np.log(row["loss.temperature"] / 0.1))
        rows.append(row)
    return rows


OPTIONS = ["loss.temperature", "loss.tau", "loss.anchor_mean"]
SCALES = {"loss.temperature": "log", "loss.anchor_mean": "category"}


def test_the_option_that_matters_is_the_most_important():
    shares = importance(trials(40), "accuracy/few", OPTIONS)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.__getitem__) == "loss.temperature"
    assert shares["loss.temperature"] > 5 * shares[CHANCE]


def test_of_few_trials_nothing_is_said_to_be_important():
    assert importance(trials(7), "accuracy/few", OPTIONS) == {}


@pytest.mark.parametrize("number", [0, 3, 40])
def test_a_search_of_any_size_is_drawn_without_overlap(number):
    rows = [*trials(number), {"trial": 99, "loss.tau": 1.0, "accuracy/few": None}]  # it failed
    figure = search_figure(rows, "accuracy/few", OPTIONS, SCALES)
    assert overlaps(figure) == []
    texts = visible_texts(figure)
    assert any(text.startswith(f"accuracy/few of {number} trials") for text, _ in texts)


def test_drawing_leaves_no_figure_and_no_window_behind():
    script = (
        "import sys\n"
        "from bcl_ray.report.figures.curves import accuracy_over_epochs\n"
        "from bcl_ray.report.figures.style import png\n"
        "png(accuracy_over_epochs([{'epoch': 0, 'accuracy/all': 1.0}]))\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
