"""What lies below a folder: images, other files, and which folders are which split."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bcl_ray.data.sources.base import shorten
from bcl_ray.data.sources.reading import read_ahead
from bcl_ray.storage import files

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names that a split has in public data sets, by its name here."""
_SPLIT_OF = {alias: split for split, aliases in SPLITS.items() for alias in aliases}

# Whether a file with another extension, or none, is an image, its first bytes tell.
_IMAGES = re.compile(
    r"avif|bmp|dib|gif|heic|heif|j2k|jfif|jp2|jpe|jpeg|jpg|jxl|pbm|pgm|png|pnm|ppm|tif|tiff|webp"
)
_NO_IMAGES = re.compile(
    r"csv|db|html|ini|json|jsonl|log|mat|md|npy|npz|parquet|pdf|pkl|py|svg|tar|tsv|txt|xml|ya?ml|zip"
)
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP"
    rb"|\0\0\0\x0cjP  |.{4}ftyp(?:avi[fs]|hei[cx]|mif1)|P[1-6]\s",
    re.DOTALL,
)


@dataclass(frozen=True)
class Tree:
    """The files below a folder, by their paths relative to it, in the order of folders and names.

    What has a name that begins with a dot is left out.
    """

    root: str
    """Folder or URI."""
    images: tuple[str, ...]
    others: tuple[str, ...]

    def left_out(self, used: Collection[str]) -> str:
        """A note on files that are no images, by extension; empty without such files."""
        kinds = Counter(_extension(path) for path in self.others if path not in used)
        counts = (
            f"{count:,} {f'.{kind}' if kind else 'without extension'}"
            for kind, count in kinds.most_common()
        )
        return f"left out, because they are no images: {shorten(counts, 9)}" if kinds else ""


def list_tree(root: str) -> Tree:
    """List a folder; a folder in it that holds all else is taken for it, as archives have one.

    Raises:
        ValueError: A name is not UTF-8.
        OSError: The folder cannot be read.
    """
    found = sorted(files.walk(root), key=lambda path: path.split("/"))
    if not found and not files.exists(root):
        raise FileNotFoundError(f"{root} does not exist: check its spelling")
    while len(tops := {path.partition("/")[0] for path in found}) == 1:
        (top,) = tops
        if top.lower() in _SPLIT_OF or not any(path.count("/") > 1 for path in found):
            break
        root, found = files.file_in(root, top), [path[len(top) + 1 :] for path in found]
    is_image = {path: is_image_name(path) for path in found}
    unknown = [
        path for path in found if not (is_image[path] or _NO_IMAGES.fullmatch(_extension(path)))
    ]
    is_image |= zip(unknown, _look_into(root, unknown), strict=True)
    return Tree(
        root,
        tuple(path for path in found if is_image[path]),
        tuple(path for path in found if not is_image[path]),
    )


def is_image_name(path: str) -> bool:
    """Whether a file's extension is one of images."""
    return _IMAGES.fullmatch(_extension(path)) is not None


def _extension(path: str) -> str:
    """What follows the last dot of a name, in small letters; empty without one.

    Keys in S3 may end in a slash.
    """
    name, dot, extension = path.rstrip("/").rpartition("/")[2].rpartition(".")
    return extension.lower() if name and dot else ""


def _look_into(root: str, names: Iterable[str]) -> Iterable[bool]:
    """Whether files begin as images do."""

    def begins_as_image(name: str) -> bool:
        try:
            return _SIGNATURE.match(files.read_listed(root, name, 16)) is not None
        except (FileNotFoundError, files.NoFileError):
            return True  # the check of the images says what it is

    return read_ahead(begins_as_image, names)


def split_of(name: str) -> str | None:
    """The split that a name stands for, or has as its only split's name among its words.

    train2017 and seg_train are training data; train_val2018 is not clear.
    """
    words = [name.lower()] if name.lower() in _SPLIT_OF else re.findall("[a-z]+", name.lower())
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return splits.pop() if len(splits) == 1 else None


def split_of_path(path: str) -> str | None:
    """The split that a part of a path names; the last part that names one counts."""
    return next((split for part in reversed(path.split("/")) if (split := split_of(part))), None)


def split_folders(names: Collection[str]) -> dict[str, str]:
    """The split of each folder that is one: by its whole name, or by words where none is `train`.

    So `train_masks` beside `train` is none.
    """
    exact = {name: _SPLIT_OF[name.lower()] for name in names if name.lower() in _SPLIT_OF}
    if "train" in exact.values():
        return exact
    return {name: split for name in names if (split := split_of(name)) is not None}
