"""Sharding: `python -m benchmarks.shard [FOLDER]`, about three minutes on two cores.

Images per second of sharding with one process and with one for each CPU, against a script that
reads the same files and writes the same bytes without checks, in as many processes. Goals: 0.7 of
the script, and 1.8 times as much with two processes as with one. What a check and a write cost per
image gives the time for 10^8 images on 16 nodes, with the assumptions that are printed.
"""

import functools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bcl_ray.data.image_check import checker_settings, image_fault
from bcl_ray.data.shards import MAX_PIXELS, write_shards
from bcl_ray.data.sources import Source, open_source
from bcl_ray.machine import container
from bcl_ray.machine.parallel import run_in_processes
from benchmarks import alternate, print_table
from benchmarks.images import encoded, join_files, pictures

IMAGES, FILE_IMAGES, ROUNDS = 4096, 256, 3
# Assumptions of the extrapolation: nodes of 96 CPUs with a network of 25 Gbit/s, and an
# object store that is as fast as all of their networks together.
NODES, NODE_CPUS, NODE_BYTES, LARGE = 16, 96, 25e9 / 8, 10**8


def jpeg_files(folder: Path) -> Source:
    """A source of 500 x 375 JPEGs, each a file with content of its own."""
    names = []
    for number, image in enumerate(pictures(IMAGES, 500, 375)):
        (folder / f"{number}.jpg").write_bytes(encoded(image, "JPEG"))
        names.append(f"{number}.jpg {number % 10}\n")
    (folder / "train.txt").write_text("".join(names))
    return open_source("list", str(folder), splits={"train": str(folder / "train.txt")})


def new_targets(folder: Path) -> Iterator[str]:
    """Names of new folders; the one before is deleted."""
    number = 0
    while True:
        target = folder / f"target{number}"
        target.mkdir()
        yield str(target)
        shutil.rmtree(target)
        number += 1


def check_ms(folder: Path) -> float:
    """Milliseconds of CPU that the check of an image takes."""
    images = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:FILE_IMAGES]]
    begun = time.process_time()
    with checker_settings():
        assert not any(image_fault(image, MAX_PIXELS) for image in images)
    return 1e3 * (time.process_time() - begun) / len(images)


def extrapolated(cpu_ms: float, mean_bytes: float) -> list[list[str]]:
    """Hours for LARGE images: by CPUs, and by the network, which carries each image three times."""
    cpu = LARGE * cpu_ms / 1e3 / (NODES * NODE_CPUS) / 3600
    network = 3 * LARGE * mean_bytes / (NODES * NODE_BYTES) / 3600
    return [
        [f"{LARGE:,} images, {NODES} x {NODE_CPUS} CPUs, by CPU", f"{cpu:.2f} h"],
        ["the same by the network, 25 Gbit/s a node", f"{network:.2f} h"],
    ]


def main() -> None:
    cpus = int(container.cpus())
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as name:
        folder = Path(name, "source")
        folder.mkdir()
        source = jpeg_files(folder)
        mean_bytes = sum(path.stat().st_size for path in folder.glob("*.jpg")) / IMAGES
        targets = new_targets(Path(name))
        files = [str(folder / f"{number}.jpg") for number in range(IMAGES)]
        groups = [files[i : i + FILE_IMAGES] for i in range(0, IMAGES, FILE_IMAGES)]
        write = functools.partial(write_shards, source, shard_bytes=int(FILE_IMAGES * mean_bytes))
        with run_in_processes(cpus) as run:

            def script() -> None:
                target = next(targets)
                join = functools.partial(join_files, target)
                assert len(list(run(join, groups))) == len(groups)

            fast, plain = alternate(lambda: write(next(targets), run=run), script, ROUNDS)
            _, slow = alternate(
                lambda: write(next(targets), run=run), lambda: write(next(targets)), ROUNDS
            )
        begun = time.process_time()
        write(next(targets))
        cpu_ms = 1e3 * (time.process_time() - begun) / IMAGES
        rows = [
            [f"shard, {cpus} processes", f"{IMAGES / fast:,.0f} images/s"],
            ["shard, one process", f"{IMAGES / slow:,.0f} images/s"],
            [f"script without checks, {cpus} processes", f"{IMAGES / plain:,.0f} images/s"],
            ["check of an image, CPU", f"{check_ms(folder):.2f} ms"],
            ["check and write of an image, CPU", f"{cpu_ms:.2f} ms"],
            ["bytes of an image", f"{mean_bytes:,.0f}"],
            *extrapolated(cpu_ms, mean_bytes),
        ]
        print_table("sharding of 500 x 375 JPEGs", ("", "measured"), rows)
        print(f"{cpus} processes against one: {slow / fast:.2f}")
        print(f"against the script without checks: {plain / fast:.2f}")


if __name__ == "__main__":
    main()
