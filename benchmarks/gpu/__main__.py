"""`python -m benchmarks.gpu`: see the package's docstring."""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import gpu
from benchmarks.gpu import report
from benchmarks.gpu.supervise import Part, Settings, supervise

# Seconds of each on a GPU, and in the smoke test. The last one takes what the others leave.
PARTS = {
    "machine": ("benchmarks.gpu.machine:run", 30, 60),
    "images": ("benchmarks.gpu.images:run", 45, 60),
    "tests": ("benchmarks.gpu.marked_tests:run", 50, 60),
    "loss": ("benchmarks.gpu.loss:run", 50, 60),
    "views": ("benchmarks.gpu.views:run", 40, 60),
    "steps": ("benchmarks.gpu.steps:run", 80, 60),
    "ray": ("benchmarks.gpu.through_ray:run", 75, 100),
    "training": ("benchmarks.gpu.training:run", 270, 100),
    "compile": ("benchmarks.gpu.steps:compiled", 400, 100),
}
SECONDS = (525, 280)  # of all together


def main() -> int:
    parser = argparse.ArgumentParser(
        description=gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--data", default="", help="folder of shards or Parquet files")
    parser.add_argument("--out", default="gpu-results", help="folder for the results")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    out = Path(options.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    column = 2 if options.smoke else 1
    parts = {name: Part(row[0], row[column]) for name, row in PARTS.items()}
    parts = {name: parts[name] for name in PARTS if name in options.only}
    with tempfile.TemporaryDirectory() as scratch:
        device = "cpu" if options.smoke else "cuda"
        data = str(Path(options.data).absolute()) if options.data else ""
        settings = Settings(device, options.smoke, scratch, data)
        rows = supervise(parts, settings, out, seconds=SECONDS[options.smoke])
    print(f"\n{report.table(rows)}\n\n{out}/report.json")
    return int(any(row.outcome in report.BROKEN for row in rows))


if __name__ == "__main__":
    sys.exit(main())
