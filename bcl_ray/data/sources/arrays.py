"""Sources whose images are arrays of pixels: the digits of scikit-learn, and CIFAR."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bcl_ray.data.sources.base import Content, Rows, Source, SourceRequest, SourceSplit
from bcl_ray.data.sources.parquet import parquet, parquet_files
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import paths

DIGITS_TEST_PER_CLASS = 36


def digits(request: SourceRequest | None = None) -> Source:
    """The 1,797 handwritten digits of scikit-learn, as gray PNGs of 8 x 8 pixels, 0 to 255.

    The test split is a fixed random choice of 36 images per class; the train split has the others.

    Raises:
        ValueError: The request has a path.
    """
    if request is not None and request.path is not None:
        raise UserError("source 'digits' comes with scikit-learn: leave out --from")
    from sklearn.datasets import load_digits  # noqa: PLC0415

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    random = np.random.default_rng(0)  # fixed, so that the test split is always the same
    is_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        is_test[random.choice(rows, DIGITS_TEST_PER_CLASS, replace=False)] = True
    splits = {
        split: _array_split(pixels[chosen], labels[chosen])
        for split, chosen in (("train", ~is_test), ("test", is_test))
    }
    return Source("digits", tuple(str(label) for label in range(10)), splits)


def open_cifar(request: SourceRequest) -> Source:
    """Open CIFAR-10 or CIFAR-100.

    The request's path is a folder with the files that torchvision downloads, or with Parquet files.
    Without one, torchvision downloads them.

    Raises:
        ValueError: The files are damaged, missing, or have another number of classes.
        OSError: The files cannot be downloaded or read.
    """
    name, path = request.name, request.path
    root = Path(path).expanduser() if path else paths.user_cache()
    folder = root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    if path is not None and not folder.is_dir():
        return _cifar_parquet(name, path, folder.name)

    from torchvision import datasets  # noqa: PLC0415

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = root if path else root / "bcl-ray"
    splits = {}
    for split in ("train", "test"):
        try:  # torchvision compares MD5 sums before it opens a pickle
            data = dataset(root, train=split == "train", download=path is None)
        except RuntimeError as error:
            raise UserError(f"{folder}: {error}; delete it and leave out --from") from None
        except OSError as error:
            raise OSError(
                f"{name} could not be fetched or read ({error}): unpack it elsewhere and name the "
                f"folder that holds {folder.name} with --from"
            ) from error
        splits[split] = _array_split(data.data, np.asarray(data.targets, dtype=np.int64))
    return Source(name, tuple(data.classes), splits)


def _cifar_parquet(name: str, path: str, folder_name: str) -> Source:
    num_classes = int(name.removeprefix("cifar"))
    source = parquet(parquet_files(path, hint=f" (and no folder {folder_name})"))
    if len(source.class_names) != num_classes:
        raise UserError(
            f"{path} has {len(source.class_names)} classes and {name} has {num_classes}: "
            "use the source that fits, or 'parquet'"
        )
    # CIFAR's images are in random order, and published subsets are the first n of each class.
    splits = {
        split: replace(content, already_shuffled=True) for split, content in source.splits.items()
    }
    return Source(name, source.class_names, splits, source.locations)


@dataclass(frozen=True)
class ArrayImages:
    """Images from an array of pixels, uint8 (N, H, W) or (N, H, W, 3); iterating encodes PNGs."""

    pixels: NDArray[np.uint8]

    def __iter__(self) -> Iterator[Content]:
        for image in self.pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield buffer.getvalue()


def _array_split(pixels: NDArray[np.uint8], labels: Rows) -> SourceSplit:
    return SourceSplit(
        labels,
        lambda rows: ArrayImages(pixels[rows]),
        where=lambda row: f"image {row}",
        random_access=True,
    )
