"""Images for the benchmarks: pictures with the 1/f spectrum of natural ones, and shards of them."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bcl_ray.data.shards import Manifest, write_shards
from bcl_ray.data.sources import open_source


def pictures(count: int, width: int, height: int, seed: int = 0) -> Iterator[Image.Image]:
    """Random pictures whose amplitudes fall with frequency as natural images' do.

    Every 64th is the first again, shifted around: as hard to decode, and cheaper to make.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    falloff = 1 / np.maximum(frequency, 1 / max(width, height))
    made: list[np.ndarray] = []
    for number in range(count):
        if number < 64:
            noise = rng.standard_normal((3, height, width))
            image = np.fft.ifft2(np.fft.fft2(noise) * falloff).real
            image = (image - image.mean()) / image.std() * 50 + 128
            made.append(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        shift = (number // 64 * 7 % height, number // 64 * 11 % width)
        yield Image.fromarray(np.roll(made[number % 64], shift, axis=(0, 1)))


def encoded(image: Image.Image, kind: str) -> bytes:
    """A picture's file: JPEG at quality 90, or PNG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return buffer.getvalue()


def jpeg_shards(folder: Path, count: int, classes: int = 10) -> Manifest:
    """Shards of 500 x 375 JPEGs, every one a file of its own content."""
    names = []
    for number, image in enumerate(pictures(count, 500, 375)):
        file = folder / "source" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(image, "JPEG"))
        names.append(f"{file.name} {number % classes}\n")
    for split, lines in (("train", names), ("test", names[: 2 * classes])):
        (folder / f"{split}.txt").write_text("".join(lines))
    lists = {split: str(folder / f"{split}.txt") for split in ("train", "test")}
    source = open_source("list", str(folder / "source"), splits=lists)
    return write_shards(source, str(folder / "shards"))


def cifar_shards(folder: Path, count: int, classes: int = 10) -> Manifest:
    """Shards of 32 x 32 PNGs, `count` in all, with the classes of CIFAR-10-LT at factor 100."""
    shares = 100.0 ** (-np.arange(classes) / (classes - 1))
    sizes = np.maximum(1, count * shares / shares.sum()).astype(int)
    for split, counts in (("train", sizes), ("test", np.full(classes, 20))):
        for label, size in enumerate(counts):
            place = folder / "source" / split / f"class{label}"
            place.mkdir(parents=True)
            for number, image in enumerate(pictures(int(size), 32, 32, seed=label)):
                (place / f"{number}.png").write_bytes(encoded(image, "PNG"))
    return write_shards(open_source("folder", str(folder / "source")), str(folder / "shards"))


def join_files(folder: str, files: Sequence[str]) -> None:
    """Write the bytes of some files as one, named like the first, durably; check nothing."""
    with Path(folder, Path(files[0]).stem).open("wb") as out:
        for file in files:
            out.write(Path(file).read_bytes())
        out.flush()
        os.fsync(out.fileno())
