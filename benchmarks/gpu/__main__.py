"""`python -m benchmarks.gpu`: see the package's docstring."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu import report
from benchmarks.gpu.supervise import Part, Settings, supervise

# Seconds of each on a GPU, and in the smoke test. The last one takes what the others leave.
PARTS: dict[str, tuple[str, float, float]] = {
    "machine": ("benchmarks.gpu.machine:run", 30, 120),
    "images": ("benchmarks.gpu.images:run", 45, 120),
    "tests": ("benchmarks.gpu.marked_tests:run", 50, 120),
    "loss": ("benchmarks.gpu.loss:run", 50, 120),
    "views": ("benchmarks.gpu.views:run", 40, 120),
    "steps": ("benchmarks.gpu.steps:run", 80, 120),
    "ray": ("benchmarks.gpu.through_ray:run", 75, 120),
    "training": ("benchmarks.gpu.training:run", 270, 120),
    "compile": ("benchmarks.gpu.steps:compiled", 400, 120),
    "study": ("benchmarks.gpu.study:run", 800, 120),
}
BY_ITSELF = "study"  # runs on a GPU only if --only names it: it takes the time of all others
SECONDS = (525, 560)  # of all together


def main() -> int:
    parser = argparse.ArgumentParser(
        description=gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--data", default="", help="folder of shards or Parquet files")
    parser.add_argument("--wheels", default="", help="folder of wheels of what is missing here")
    parser.add_argument("--out", default="gpu-results", help="folder for the results")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[], metavar="PART")
    parser.add_argument("--seconds", type=float, help="of all parts together")
    options = parser.parse_args()
    # As Ctrl-C does: parts are in process groups of their own, which would live on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = Path(options.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    named = options.only or [name for name in PARTS if options.smoke or name != BY_ITSELF]
    wanted = {name: row for name, row in PARTS.items() if name in named}
    parts = {
        name: Part(entry, tried if options.smoke else measured, name == "machine")
        for name, (entry, measured, tried) in wanted.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        if options.wheels:
            install(options.wheels, Path(scratch) / "site")
        device = "cpu" if options.smoke else "cuda"
        data = str(Path(options.data).absolute()) if options.data else ""
        settings = Settings(device, options.smoke, scratch, data)
        seconds = options.seconds or SECONDS[options.smoke]
        rows = supervise(parts, settings, out, seconds=seconds)
    print(f"\n{report.table(rows)}\n\n{out}/report.json")
    return int(any(row.outcome in report.BROKEN for row in rows))


def install(wheels: str, site: Path) -> None:
    """Put a folder's wheels where the parts find them first, without a network."""
    files = sorted(map(str, Path(wheels).glob("*.whl")))
    if not files:
        raise SystemExit(f"--wheels {wheels}: no *.whl there; `make gpu-wheels` downloads them")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-index", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([*pip, *options, *files], check=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), *([before] if before else [])])


if __name__ == "__main__":
    sys.exit(main())
