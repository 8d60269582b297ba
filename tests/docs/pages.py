"""What tests of the documentation read: its pages, their links, paths and commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(
            ROOT / name
            for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "cluster/README.md")
        ),
        ROOT / "benchmarks" / "README.md",
    ]
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def name(page: Path) -> str:
    """How tests name a page."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks."""
    for found in FENCE.finditer(page.read_text()):
        yield Block(page, found[2], found[3])


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings have, as MkDocs and GitHub make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip()
        found |= {slug.replace(" ", "-"), re.sub(r"[- ]+", "-", slug)}
    return found


def links(page: Path) -> list[str]:
    """Targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """The `bcl-ray` commands in a page's shell blocks, as words after `bcl-ray`."""
    for block in blocks(page):
        if block.language in ("", "bash"):  # console: docs/errors.md, see test_errors.py
            yield from _commands(block.text)


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        command = re.match(r" *(?:\$ )?bcl-ray (.*)", line)
        if command and not {"...", "·"} & set(command[1].split()):
            words = shlex.split(command[1], comments=True)
            yield [word for word in words if word not in ("&", "<", ">")]
