"""Every number that RESULTS.md and README claim as measured stands in a CSV that a study wrote."""

import csv
import io
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import ROOT

NUMBER = re.compile(r"(?<![\w.,/-])[-−]?\d+(?:\.\d+)?(?![\w./-]|,\d)")
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)")
# Columns that claim nothing that this project has measured.
NOT_OURS = ("published", "source", "command", "runs", "network, epochs", "data", "study")
MEASURED = ("Quickstart", "Your own images")  # of README
CSV = sorted((ROOT / "results").glob("*/*.csv"))


def claimed_numbers(text: str) -> Iterator[str]:
    """Numbers in the cells of tables, but for columns of NOT_OURS; and decimals in sentences.

    Paragraphs that speak of published numbers are left out.
    """
    for paragraph in text.split("\n\n"):
        if "ublished" not in paragraph and not paragraph.startswith("|"):
            found = NUMBER.findall(CODE.sub("", paragraph))
            yield from (number for number in found if "." in number)
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in CODE.sub("", line).strip("|").split("|")]
        if not header:
            header = [cell.lower() for cell in cells]
            continue
        for name, cell in zip(header, cells, strict=True):
            if name not in NOT_OURS:
                yield from NUMBER.findall(cell)


def untraced(text: str, content: str) -> list[str]:
    """Claimed numbers that no number of the CSV rounds to."""
    known = [float(number) for number in NUMBER.findall(content.replace(",", " "))]
    missing = []
    for number in claimed_numbers(text):
        digits = len(number.partition(".")[2])
        value = float(number.replace("−", "-"))
        if not any(abs(round(one, digits) - value) < 10**-9 for one in known):
            missing.append(number)
    return missing


def measured_in_readme() -> str:
    """The sections of README that have results of studies."""
    text = (ROOT / "README.md").read_text()
    return "".join(
        section
        for title, section in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
        if title in MEASURED
    )


@pytest.mark.parametrize("page", ["RESULTS.md", "README.md"])
def test_every_measured_number_stands_in_a_file_under_results(page):
    text = (ROOT / page).read_text() if page == "RESULTS.md" else measured_in_readme()
    assert untraced(text, " ".join(file.read_text() for file in CSV)) == []


def test_a_number_that_no_file_has_is_found():
    table = "| method | all | published |\n|---|---|---|\n| bcl | 51.93 ± 0.41 | 99.9 |\n"
    content = "method,seeds,all,all ±\nbcl,3,51.9312,0.4061\n"
    assert untraced(table, content) == []
    assert untraced(table.replace("51.93", "52.04"), content) == ["52.04"]
    assert untraced(table.replace("0.41", "0.31"), content) == ["0.31"]
    assert untraced("Its mean is 51.93.\n\nPublished is 60.1.\n\nOr 52.1 %", content) == ["52.1"]
    assert untraced("| all |\n|---|\n| −0.07 |", "a\n-0.071") == []
    assert untraced("| all |\n|---|\n| 0.07 |", "a\n-0.071") == ["0.07"]


def test_files_under_results_are_those_of_studies():
    for file in CSV:
        assert file.name in ("summary.csv", "differences.csv", "runs.csv"), file
        columns = next(csv.reader(io.StringIO(file.read_text())))
        assert {"seeds", "seed"} & set(columns), file
        assert "all" in columns, file
        assert file.stat().st_size < 100_000, file


def test_a_file_under_results_names_the_commit_and_the_hardware_of_each_run():
    for file in CSV:
        if file.name == "runs.csv":
            for row in csv.DictReader(io.StringIO(file.read_text())):
                assert row["hardware"], file
                assert re.match(r"[0-9a-f]{40}", row["commit"]), file
