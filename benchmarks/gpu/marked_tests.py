"""The tests that are marked gpu, in this Python, whatever plugins of pytest are here."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.report import FAILED, OK, SKIPPED, Row
from benchmarks.gpu.supervise import Settings

ROOT = Path(__file__).parents[2]
NEEDED = ("pytest", "hypothesis")


def run(_: Settings) -> Iterator[Row]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield Row("", "tests marked gpu", outcome=SKIPPED, note=f"no {', '.join(missing)} here")
        return
    files = [f for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in f.read_text()]
    # Options of pyproject.toml and PYTEST_ADDOPTS name plugins that may not be here; conftest.py
    # needs Ray's parts.
    options = ["-o", "addopts=", "--noconftest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    names = [str(file.relative_to(ROOT)) for file in files]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *names],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr, flush=True)
    summary = done.stdout.strip().rpartition("\n")[2].strip("= ")
    passed, skipped = (_count(summary, kind) for kind in ("passed", "skipped"))
    outcome = FAILED if done.returncode else OK if passed else SKIPPED
    note = f"{skipped} skipped: they need a GPU" if skipped else ""
    yield Row("", "tests marked gpu", passed, "passed", outcome=outcome, note=note or summary)


def _count(summary: str, kind: str) -> int:
    found = re.search(rf"(\d+) {kind}", summary)
    return int(found[1]) if found else 0
