"""Tables of the terminal: markup in cells, and runs compared over seeds."""

import io

from rich.console import Console

from bcl_ray.display.tables import build_table, comparison_table
from bcl_ray.use.compare import Row


def rendered(table) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue()


def test_markup_in_cells_and_titles_is_shown_as_it_is():
    table = build_table(("run", "all"), [("a[bold]b", "1")], text=("run",), title="[red]x")
    assert "a[bold]b" in rendered(table)
    assert "[red]x" in rendered(table)


def test_a_table_without_a_title_has_no_frame():
    text = rendered(build_table(("job", "took"), [("a", "10"), ("b", "9")], text=("job",)))
    assert [line.rstrip() for line in text.splitlines()] == ["job  took", "a      10", "b       9"]


def test_a_comparison_has_the_deviation_over_seeds_and_the_epochs_if_they_differ():
    first = {"epoch": 4.0, "accuracy/all": 80.0}
    rows = [
        Row(("a", "b"), "loss.kind=ce", (first, {**first, "accuracy/all": 82.0}), ({}, {})),
        Row(("c",), "loss.kind=bcl", ({**first, "epoch": 9.0},), ({},)),
    ]
    text = rendered(comparison_table(rows))
    assert "epoch" in text
    assert "81.0 ± 1.4" in text
    assert "epoch" not in rendered(comparison_table(rows[:1]))
