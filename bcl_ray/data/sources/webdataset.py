"""Tars of WebDataset: files of one key, `<key>.jpg` and `<key>.cls` or `<key>.json`, are a sample.

The headers of tars are read once. Images are then read from where they lie, in any order.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from bcl_ray.data.sources.annotations import LABEL_COLUMNS
from bcl_ray.data.sources.base import Source, SourceRequest, SourceSplit
from bcl_ray.data.sources.class_names import (
    in_order,
    numbered,
    numbers_as_names,
    read_class_names,
)
from bcl_ray.data.sources.reading import FileParts, read_ahead
from bcl_ray.data.sources.tree import SPLITS, is_image_name, split_of_path
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

# What is read at a time: a request to a store takes as long as some images.
LOCAL_BUFFER, REMOTE_BUFFER = 1 << 14, 1 << 20


class TarImage(NamedTuple):
    """An image in a tar."""

    name: str
    start: int
    """Its first byte in the tar."""
    size: int
    label: str | None
    """Number or name of its class; None if the sample has none."""


def open_webdataset(request: SourceRequest) -> Source:
    """Open the tars of a folder, which have their split in their names, or those of each split.

    Raises:
        ValueError: There are no tars for training, or one is damaged or compressed.
        OSError: A tar cannot be read.
    """
    by_split = {
        split: [tar for uri in uris for tar in _expanded(uri)]
        for split, uris in (request.splits or _tars(request.required_path)).items()
    }
    if "train" not in by_split:
        raise UserError("source 'webdataset' needs --split train=TAR, or tars named train-*.tar")
    samples = {
        split: list(read_ahead(lambda tar: list(_images(tar, request)), tars))
        for split, tars in by_split.items()
    }
    found = [sample.label for tar in samples["train"] for sample in tar if sample.label is not None]
    label_of: dict[str, int] = {}  # empty where classes are numbers, which are labels then
    if all(label.isdecimal() for label in found):
        numbers = np.array([int(label) for label in found], dtype=np.int64)
        classes = request.classes or _classes_beside(by_split)
        names = read_class_names(classes) if classes else numbers_as_names(numbers)
    else:
        names, label_of = numbered(in_order(found), request.classes)
    splits = {
        split: _tar_split(by_split[split], of_split, label_of)
        for split, of_split in samples.items()
    }
    locations = {paths.parent(tar) for tars in by_split.values() for tar in tars}
    return Source(request.name, names, splits, tuple(sorted(locations)))


def _tars(path: str) -> dict[str, list[str]]:
    """The tars of a folder, by the split that their names have, or the folders that they are in."""
    if paths.ends_with(path, ".tar"):
        return {"train": [path]}
    found: dict[str, list[str]] = {}
    for file in files.walk(path):
        if file.endswith(".tar"):
            split = split_of_path(file)
            if split is None:
                raise UserError(
                    f"{path}: the name of {file} has no split, such as in train-000000.tar: name "
                    "the tars with --split train=TAR; train-{000000..000099}.tar stands for 100"
                )
            found.setdefault(split, []).append(files.file_in(path, file))
    return {split: found[split] for split in SPLITS if split in found}


def _expanded(uri: str) -> list[str]:
    """The names that train-{000..099}.tar stands for."""
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", uri)
    if match is None:
        return [uri]
    before, first, last, after = match.groups()
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _classes_beside(by_split: dict[str, list[str]]) -> str | None:
    folder = paths.parent(by_split["train"][0]) or "."
    return next((files.join(folder, n) for n in files.list_files(folder) if n in _CLASSES), None)


_CLASSES = ("classes.txt", "classnames.txt")


def _images(uri: str, request: SourceRequest) -> Iterator[TarImage]:
    """The images of a tar, in its order."""
    filesystem, path = files.resolve(uri)
    with files.explain_errors(uri), filesystem.open_input_file(path) as handle:
        buffer = REMOTE_BUFFER if "://" in uri else LOCAL_BUFFER
        try:
            with tarfile.open(fileobj=io.BufferedReader(handle, buffer), mode="r:") as tar:
                members = (member for member in tar if member.isfile() and _has_key(member))
                for _, sample in groupby(members, lambda member: _key_and_extension(member)[0]):
                    yield from _image_of(tar, sample, request)
        except tarfile.TarError as error:
            raise UserError(f"{uri} is no whole, uncompressed tar: {error}") from None


def _image_of(
    tar: tarfile.TarFile, sample: Iterable[tarfile.TarInfo], request: SourceRequest
) -> Iterator[TarImage]:
    """The image of a sample and its class; nothing if the sample has no image."""
    images, label = [], None
    for member in sample:
        extension = _key_and_extension(member)[1]
        if is_image_name(member.name):
            images.append(member)
        elif extension in ("cls", "json"):
            label = _label(tar.extractfile(member), extension, request) or label
    # Of an image and its masks, that is the image which has no other suffix.
    plain = (member for member in images if "." not in _key_and_extension(member)[1])
    if (image := next(plain, images[0] if images else None)) is not None:
        yield TarImage(image.name, image.offset_data, image.size, label)


def _key_and_extension(member: tarfile.TarInfo) -> tuple[str, str]:
    """The key, which ends at the first dot of the file's own name; and what follows."""
    folder, slash, file = member.name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def _has_key(member: tarfile.TarInfo) -> bool:
    """Whether a file belongs to a sample; one that macOS adds begins with a dot."""
    return member.name.rpartition("/")[2][:1] not in ("", ".")


def _label(file: Any, extension: str, request: SourceRequest) -> str | None:
    text = file.read().decode("utf-8-sig", errors="replace").strip()
    if extension == "cls":
        return text or None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    columns = (request.label_column, "cls", *LABEL_COLUMNS)
    values = (record.get(name) for name in columns if isinstance(record, dict))
    return next((str(value) for value in values if isinstance(value, str | int)), None)


def _tar_split(
    tars: Sequence[str], samples: Sequence[Sequence[TarImage]], label_of: dict[str, int]
) -> SourceSplit:
    rows = [sample for of_tar in samples for sample in of_tar]
    numbers = np.repeat(np.arange(len(tars)), [len(of_tar) for of_tar in samples])
    starts = np.array([sample.start for sample in rows], dtype=np.int64)
    sizes = np.array([sample.size for sample in rows], dtype=np.int64)
    labels = np.full(len(rows), -1, dtype=np.int64)
    faults = {}
    for row, sample in enumerate(rows):
        if sample.label is None:
            faults[row] = "its sample has no class: a .cls, or a .json with a field 'label'"
        elif not label_of and re.fullmatch(r"-?[0-9]{1,9}", sample.label):
            labels[row] = int(sample.label)
        elif sample.label in label_of:
            labels[row] = label_of[sample.label]
        else:
            faults[row] = f"'{sample.label}' is not a class of the training split"
    uris = tuple(map(paths.absolute, tars))
    return SourceSplit(
        labels,
        lambda chosen: FileParts(uris, numbers[chosen], starts[chosen], sizes[chosen]),
        where=lambda row: f"{tars[numbers[row]]}: {rows[row].name}",
        faults=faults,
        random_access=True,
    )
