"""What README and docs/ name is there: links, files, commands, options, metrics."""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import RECIPES
from tests.docs import pages
from tests.docs.pages import PAGES, ROOT

DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for link in pages.links(page):
        if re.match(r"https?://", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        exists = target.exists() and (not fragment or fragment in pages.anchors(target))
        if not exists:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_files_of_the_repository_that_a_page_names_exist(page):
    named = re.findall(
        r"(?<![\w/.~-])(?:bcl_ray|tests|benchmarks|examples|cluster|docs)/[\w./*-]*\w/?",
        page.read_text(),
    )
    assert [path for path in sorted(set(named)) if not any(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_modules_that_a_page_names_exist(page):
    missing = []
    for module in set(re.findall(r"\bbcl_ray(?:\.\w+)+", page.read_text())):
        parts = module.split(".")
        while len(parts) > 1 and not _is_module("/".join(parts)):
            parts.pop()
        first = module.split(".")[1]
        public = re.search(
            rf'^    "{first}":', (ROOT / "bcl_ray" / "__init__.py").read_text(), re.M
        )
        missing += [] if len(parts) > 1 or public else [module]
        if len(parts) > 1 and len(parts) < module.count(".") + 1:
            missing += [] if _defines("/".join(parts), module.split(".")[len(parts)]) else [module]
    assert not missing


def _is_module(path: str) -> bool:
    return (ROOT / f"{path}.py").exists() or (ROOT / path / "__init__.py").exists()


def _defines(path: str, name: str) -> bool:
    file = ROOT / f"{path}.py"
    return (
        re.search(
            rf"\b{name}\b", (file if file.exists() else ROOT / path / "__init__.py").read_text()
        )
        is not None
    )


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_commands_parse_and_their_overrides_fit_the_recipe(page):
    for words in pages.commands(page):
        parameters = _parsed(words)
        if "overrides" in parameters or "arguments" in parameters:
            _check_overrides(words)


def _parsed(words: Sequence[str]) -> dict[str, Any]:
    """Parameters of a command line, which is parsed and not run."""
    from typer.main import get_command

    from bcl_ray.cli import app

    command, rest = get_command(app), list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command '{name}' in: {' '.join(words)}"
        command = command.commands[name]
    context = command.make_context("bcl-ray", rest, resilient_parsing=False)
    if words[0] == "submit":  # it passes on what another command is to parse
        _parsed([word for word in words[1:] if word != "--with-code"])
    return dict(context.params)


def _check_overrides(words: Sequence[str]) -> None:
    overrides = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
    plugins = [word for word in overrides if word.startswith("plugins=")]
    if plugins:  # its module is not here, nor are the names that it adds: tests/e2e/test_plugins.py
        return
    recipe = next((word for word in words if word in RECIPES), "cifar100_lt")
    with_overrides(RECIPES[recipe](), overrides)


def test_options_in_the_prose_exist():
    """`section.field` and `section.field=value`, in code spans of any page."""
    sys.path.insert(0, str(ROOT / "docs"))
    import generated

    known = set(generated.fields())
    sections = {option.split(".")[0] for option in known if "." in option}
    unknown = []
    for page in PAGES:
        for option in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", pages.prose(page)):
            section, _, field = option.partition(".")
            if section in sections and field != "py" and option not in known:
                unknown.append(f"{pages.name(page)}: {option}")
    assert not unknown


METRIC = re.compile(
    r"(accuracy|calibration|images|loss|optim|scale|score|throughput|time|trials)/[a-z_]+"
)


def test_every_metric_that_the_code_logs_is_on_its_page():
    page = (ROOT / "docs" / "metrics.md").read_text()
    logged = {"nc1"}
    for file in (ROOT / "bcl_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                logged |= {node.value} if METRIC.fullmatch(node.value) else set()
    assert len(logged) > 15
    assert [name for name in sorted(logged) if f"`{name}`" not in page] == []


def test_every_measure_of_geometry_is_on_the_metrics_page():
    import numpy as np
    import torch

    from bcl_ray.method.geometry import geometry

    torch.manual_seed(0)
    labels = torch.arange(6).repeat_interleave(4)
    counts = np.array([200, 200, 50, 50, 5, 5])
    rows = {"classifier": torch.randn(6, 8), "prototype": torch.randn(6, 8)}
    found = geometry(torch.randn(24, 8), labels, counts, rows)
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = {re.sub("_(many|medium|few)$", "", name) for name in found}
    assert len(names) > 8
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_the_options_page_has_every_option():
    sys.path.insert(0, str(ROOT / "docs"))
    import generated

    page = generated.options()
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    both = {name.replace("views.classification.", "views.contrastive.") for name in named}
    assert named | both == set(generated.fields())


def test_the_recipes_page_has_every_recipe_and_only_options_that_exist():
    sys.path.insert(0, str(ROOT / "docs"))
    import generated

    page = generated.recipe_pages()
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(RECIPES)
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    assert named <= set(generated.fields())
    assert "| `loss.temperature` | `0.07` |" in page


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert [
        name for page in DOCS if (name := str(page.relative_to(ROOT / "docs"))) not in text
    ] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_the_network(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    found = list(tmp_path.rglob("*.html"))
    assert len(found) > len(DOCS) - 1
    for page in found:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:[^\"\s>]+)",
            page.read_text(),
        )
        assert not loaded, page
