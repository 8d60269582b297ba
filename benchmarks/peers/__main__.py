"""The stream against other loaders: `python -m benchmarks.peers`, about five minutes on two cores.

Images per second and memory of this project through Ray, and of what else PyPI has for the same
work: the same 1,000 JPEGs, three random crops of 224 px of each, uint8 batches of 32, two worker
processes or threads on two cores, a consumer that does nothing. Every side runs in processes of its
own, all in turn, in several rounds; ratios are of sides of one round. Where other work runs on the
machine, CPU time per image says more than images per second. The peers are installed into a virtual
environment that is thrown away, or kept in `--environment`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import print_table
from benchmarks.images import jpeg_shards
from benchmarks.peers import BATCH, IMAGES, SIZE, VIEWS, WORKERS
from benchmarks.peers.environment import PRESENT, environment, failure, install
from benchmarks.peers.usage import peak_bytes

SECONDS = 180  # for one side in one round
MOST_DIFFERENCE = 1.5  # of mean and deviation of all pixels, of 255
COLUMNS = ["loader", "versions", "images/s", "CPU, ms/image", "MiB"]


@dataclass
class Side:
    """One loader, and what was found."""

    title: str
    distributions: tuple[str, ...]
    """Whose versions the table names."""
    requirement: str | None = None
    """What must be installed for it; None if this project's environment has it all."""
    python: Path = PRESENT
    failed: str | None = None
    results: list[dict[str, float]] = field(default_factory=list)
    versions: str = ""

    def median(self, name: str) -> float:
        """Median of the rounds' results."""
        return statistics.median(result[name] for result in self.results)

    def last(self) -> str:
        """The latest result, in one line."""
        if self.failed:
            return f"{self.title}: failed: {self.failed}"
        result = self.results[-1]
        usage = f"{result['cpu'] * 1000:.1f} ms of CPU each, {result['bytes'] / 2**20:.0f} MiB"
        return f"{self.title}: {result['rate']:.0f} images/s, {usage}"


def sides() -> dict[str, Side]:
    """All sides, by the names of their modules."""
    vision = ("torch", "torchvision")
    return {
        "project": Side("this project", ("ray",)),
        "data_loader": Side("torch DataLoader, torchvision v2", vision),
        "mosaic": Side(
            "MosaicML Streaming, torchvision v2",
            ("mosaicml-streaming",),
            "mosaicml-streaming==0.13.0",
        ),
        "web": Side("WebDataset, torchvision v2", ("webdataset",), "webdataset==1.0.2"),
        "dali": Side("DALI, CPU pipeline", ("nvidia-dali-cuda130",), "nvidia-dali-cuda130==2.4.0"),
        "ray_data": Side("Ray Data map_batches, torchvision v2", ("ray",)),
    }


def prepare(all_sides: Mapping[str, Side], folder: Path, packages: Path) -> None:
    """Make the images, install the peers, and write each side's format."""
    jpeg_shards(folder, IMAGES)
    for name, side in all_sides.items():
        if side.requirement:
            side.python = environment(packages)
            side.failed = install(side.python, [side.requirement])
        side.failed = side.failed or failure(command(side, "write", name, folder), SECONDS)


def command(side: Side, action: str, name: str, folder: Path) -> list[str]:
    """The command of a side's process."""
    module = ["-W", "ignore", "-m", "benchmarks.peers.side"]
    return [str(side.python), *module, action, name, str(folder), *side.distributions]


def measure(name: str, side: Side, folder: Path) -> None:
    """One round of one side; a failure ends its part in the benchmark."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(side, "read", name, folder), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            peak = peak_bytes(process, SECONDS)
            output, _ = process.communicate()
        except TimeoutError as error:
            process.kill()
            side.failed = str(error)
            return
        errors.seek(0)
        if process.returncode:
            side.failed = (errors.read().strip().splitlines() or ["no message"])[-1]
            return
    result = json.loads(output.strip().splitlines()[-1])
    side.versions = result.pop("versions")
    side.results.append({**result, "bytes": peak})


def check_same_images(found: Mapping[str, Side]) -> None:
    """End the benchmark if the pixels of two sides are not alike: they did not do the same work."""
    for name in ("mean", "deviation"):
        values = {side.title: side.median(name) for side in found.values()}
        if max(values.values()) - min(values.values()) > MOST_DIFFERENCE:
            sys.exit(f"pixels of different sides differ in their {name}: {values}")


def rows(all_sides: Mapping[str, Side]) -> Iterator[list[str]]:
    """Rows of the table; in parentheses, this project's result as a multiple of the row's."""
    ours = all_sides["project"]
    for side in all_sides.values():
        if side.failed:
            yield [side.title, side.requirement or "", f"failed: {side.failed}", "", ""]
            continue
        units = (("rate", 1), ("cpu", 1e3), ("bytes", 2**-20))
        yield [
            side.title,
            side.versions,
            *(f"{side.median(n) * unit:,.4g} ({ratio(ours, side, n):.2f})" for n, unit in units),
        ]


def ratio(ours: Side, side: Side, name: str) -> float:
    """Median of the rounds' ratios: this project's result to a side's."""
    pairs = zip(ours.results, side.results, strict=True)
    return statistics.median(mine[name] / theirs[name] for mine, theirs in pairs)


def main() -> None:
    """Measure all sides in turn, every second round in reverse, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--environment", type=Path, help="keep the peers' packages in this folder")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    all_sides = sides()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(all_sides, folder, given.environment or folder / "packages")
        for number in range(given.rounds):
            for module, side in list(all_sides.items())[:: -1 if number % 2 else 1]:
                if not side.failed:
                    measure(module, side, folder)
                    print(f"round {number + 1}: {side.last()}", flush=True)
    found = {module: side for module, side in all_sides.items() if not side.failed}
    if "project" not in found:
        sys.exit(f"this project's side failed: {all_sides['project'].failed}")
    check_same_images(found)
    title = f"{IMAGES:,} JPEGs to {VIEWS} x {SIZE} px, batches of {BATCH}, {WORKERS} workers"
    print_table(title, COLUMNS, list(rows(all_sides)))
    ours = found.pop("project")
    best = min(ratio(ours, side, "rate") for side in found.values())
    cpu = max(ratio(ours, side, "cpu") for side in found.values())
    print(f"CPU time per image, to the least of the others: {cpu:.2f}")
    print(f"ratio to the fastest of the others: {best:.2f} (goal above 1)")


if __name__ == "__main__":
    main()
