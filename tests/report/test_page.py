"""HTML pages in one file."""

import base64
import re
from html.parser import HTMLParser

from bcl_ray.report.figures.style import make_figure, png
from bcl_ray.report.page import PageSection, PageTable, page

VOID = {"meta", "img", "link", "br"}


class Reader(HTMLParser):
    """Collects elements and text; fails if tags are not nested correctly."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def test_a_page_holds_its_images_and_refers_to_nothing_outside():
    figure, _ = make_figure(2, 1)
    sections = [PageSection("one", figures=[(figure, 'a "figure"'), (png(figure), "bytes")])]
    html = page("report", sections)
    images = [about for tag, about in read(html).found if tag == "img"]
    assert [about["alt"] for about in images] == ['a "figure"', "bytes"]
    for about in images:
        kind, _, data = about["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
        assert about["width"] == "214"  # 2 inches at 150 dpi
    assert not re.search(r"https?://|href=|@import|url\(", html)


def test_what_a_class_is_called_is_shown_and_not_run():
    evil = "<script>alert('1')</script>"
    table = PageTable([evil, "n"], [[evil, 1]])
    html = page(evil, [PageSection(evil, [evil], table=table)])
    reader = read(html)
    assert [tag for tag, _ in reader.found].count("script") == 1  # ours, which sorts
    assert "".join(reader.text).count(evil) == 6  # title, heading, heading, text, head, cell


def test_numbers_are_right_aligned_rounded_and_sortable_by_their_value():
    table = PageTable(["class", "images", "accuracy"], [["a", 12000, 66.666], ["b", 5, None]])
    reader = read(page("t", [PageSection("", table=table)]))
    cells = [about for tag, about in reader.found if tag == "td"]
    assert [about.get("class") for about in cells] == [None, "number", "number"] * 2
    assert cells[1]["data-value"] == "12000"
    text = "".join(reader.text)
    assert "12,000" in text
    assert "66.7" in text
    assert "-" in text
