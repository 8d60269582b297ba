"""The images of a folder with their classes and splits, as its annotation files say."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import NamedTuple

from bcl_ray.data.sources.annotations import FORMATS, AnnotatedRow, Annotations
from bcl_ray.data.sources.base import SourceRequest, read_text
from bcl_ray.data.sources.tree import Tree, split_of, split_of_path
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files


class LabelledImage(NamedTuple):
    """An image of a split, the name of its class, and why it cannot be used."""

    path: str
    class_name: str
    fault: str | None = None


@dataclass(frozen=True)
class AnnotationReader:
    """Reads the annotation files of a tree, which are in its root, or one folder below."""

    tree: Tree
    request: SourceRequest
    used: dict[str, Annotations] = field(default_factory=dict)
    """The files that name images of the tree."""
    unread: list[str] = field(default_factory=list)
    """Notes on files that cannot be read."""

    @cached_property
    def images(self) -> dict[str, list[LabelledImage]]:
        """The images of each split, in the order of the files and their lines.

        Raises:
            ValueError: Two files name the same image for one split.
            OSError: A file cannot be read.
        """
        by_split: dict[str, dict[str, _Claims]] = {}
        for file in self.tree.others:
            # Files deeper than one folder, and Kaggle's sample submissions, whose classes are
            # made up.
            if file.count("/") > 1 or "submission" in file.lower():
                continue
            for image, class_name, split in self._rows_of(file):
                named_split = (split_of(split) or split) if split else split_of_path(file)
                path, fault = self._locate(file, image, named_split)
                row_split = named_split or split_of(path.partition("/")[0]) or "train"
                of_split = by_split.setdefault(row_split, {})
                claims = of_split.setdefault(path, _Claims(file, [], fault))
                if claims.file != file:
                    raise UserError(
                        f"{self.tree.root}: both {claims.file} and {file} say which class {path} "
                        "is of: remove one of them"
                    )
                if class_name not in claims.class_names:
                    claims.class_names.append(class_name)
        return {
            split: [_image(path, claims) for path, claims in images.items()]
            for split, images in by_split.items()
        }

    def _rows_of(self, file: str) -> Sequence[AnnotatedRow]:
        parse = FORMATS.get(PurePosixPath(file).suffix.lower())
        if parse is None:
            return ()
        uri = files.file_in(self.tree.root, file)
        try:
            found = parse(read_text(uri), self.request)
        except UserError as error:
            self.unread.append(str(error))
            return ()
        except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
            self.unread.append(f"{uri} cannot be read ({type(error).__name__}: {error})")
            return ()
        # A file belongs to the images if it names some; otherwise it is about something else.
        if found is None or not any(self._find(file, row.image) for row in found.rows[:100]):
            return ()
        self.used[file] = found
        return found.rows

    def _locate(self, file: str, image: str, split: str | None) -> tuple[str, str | None]:
        """The path of an image; and if several images fit, a text that says so."""
        found = self._find(file, image)
        if len(found) > 1 and split is not None:
            found = [path for path in found if split_of(path.partition("/")[0]) == split] or found
        if not found:  # no such image: reading it will give the fault
            return f"{file.rpartition('/')[0]}/{image}".strip("/"), None
        fault = f"'{image}' may be {found[0]} or {found[1]}" if len(found) > 1 else None
        return found[0], fault

    def _find(self, file: str, image: str) -> list[str]:
        """The images that a file's entry may mean.

        The one beside the file, otherwise all whose paths end with the entry.
        """
        name = image.replace("\\", "/").removeprefix("./")
        folder = file.rpartition("/")[0]
        beside = f"{folder}/{name}".lstrip("/")
        candidates = self._by_name.get(name.rpartition("/")[2], [])
        if beside in candidates:
            return [beside]
        parts = name.split("/")
        # An absolute path of another machine: drop folders from its front until it fits.
        for first in range(1, len(parts)) if name.startswith("/") else (0,):
            ending = "/".join(parts[first:])
            if found := [path for path in candidates if _ends_with(path, ending)]:
                return found
        return []

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Images by their names, with and without extension."""
        found: dict[str, list[str]] = {}
        for path in self.tree.images:
            pure = PurePosixPath(path)
            for name in {pure.name, pure.stem}:
                found.setdefault(name, []).append(path)
        return found


def _ends_with(path: str, ending: str) -> bool:
    """Whether a path, with or without its extension, ends with the parts of `ending`."""
    without = PurePosixPath(path).with_suffix("")
    return any(f"/{form}".endswith(f"/{ending}") for form in (path, without))


class _Claims(NamedTuple):
    """What a file says of an image."""

    file: str
    class_names: list[str]
    fault: str | None


def _image(path: str, claims: _Claims) -> LabelledImage:
    names = claims.class_names
    if len(names) == 1:
        return LabelledImage(path, names[0], claims.fault)
    return LabelledImage(
        path, "", f"it has annotations of {len(names)} classes ({', '.join(names[:5])})"
    )
