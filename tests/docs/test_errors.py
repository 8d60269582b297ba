"""docs/errors.md: its commands say what the page shows, and its other messages are in the code."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcl_ray.cli import main
from tests.docs import pages
from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "errors.md"
SHOWN = [
    (shlex.split(command)[1:], message.strip())
    for command, _, message in (
        block.text.removeprefix("$ ").partition("\n")
        for block in pages.blocks(PAGE)
        if block.language == "console"
    )
]
TABLED = re.findall(r"^\| `(.+?)`(?: \(.*?\))? \|", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the tutorial's shards."""
    import bcl_ray

    made = tmp_path_factory.mktemp("errors")
    target = f"{made}/data/digits_lt"
    bcl_ray.shard("digits", target, profile="exponential", imbalance_factor=50)
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    SHOWN,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_says_what_the_page_shows(words, message, folder, monkeypatch, capsys):
    """The page may leave out the end of a list, which grows with the tables: "..."."""
    parts = [re.escape(part) for part in message.split("...")]
    assert re.fullmatch(".*".join(parts), said(words, folder, monkeypatch, capsys), re.DOTALL)


def said(words, folder, monkeypatch, capsys) -> str:
    """What a command that is refused says."""
    monkeypatch.chdir(folder)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["bcl-ray", *words])
    # The page shows what two CPUs say.
    monkeypatch.setattr("bcl_ray.machine.container.cpus", lambda: 2.0)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    return capsys.readouterr().err.strip()


def texts() -> Iterator[str]:
    """All strings of the code, with "..." for what is put into them."""
    for file in (ROOT / "bcl_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "..."
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_other_messages_are_in_the_code():
    code = "\n".join(texts())
    ours = [message for message in TABLED if not message.startswith("Failed to connect to GCS")]
    assert len(ours) > 15
    missing = [
        part
        for message in ours
        for part in re.split(r"\.\.\.|(?<=the local Ray)", message)
        if (words := part.strip(" ():;,'")) and words not in code
    ]
    assert missing == []
