"""Files that say which class images are of: COCO's JSON, records, and plain lists.

`FORMATS` is a table of them. A new format is a function that finds its rows in a file's text, and
returns None for other files with that extension.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bcl_ray.data.sources.base import SourceRequest, lines_of

# Columns with such names, in this order of preference.
IMAGE_COLUMNS = (
    "image", "file_name", "filename", "file", "filepath", "file_path", "image_path", "img_path",
    "path", "img", "image_name", "image_id", "img_id", "imageid", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = (
    "class_name", "label_name", "category_name", "label", "class", "category", "species", "breed",
    "target", "classname", "class_id", "label_id", "category_id",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data_set")


class AnnotatedRow(NamedTuple):
    """An image as an annotation file names it, its class, and its split where the file says it."""

    image: str
    class_name: str
    split: str | None = None


@dataclass(frozen=True)
class Annotations:
    """The images of an annotation file."""

    rows: Sequence[AnnotatedRow]
    class_order: Sequence[str] = ()
    """Classes in the order of their labels, where the file has one."""


def _coco(text: str, request: SourceRequest) -> Annotations | None:
    """Images, annotations and categories, as COCO and iNaturalist have them; or a list of records.

    An image that has no annotation is not labelled.
    """
    content = json.loads(text)
    if isinstance(content, list):
        return _of_records(content, request)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        return None
    images = {image["id"]: str(image["file_name"]) for image in content["images"]}
    categories = sorted(content.get("categories", []), key=lambda category: category["id"])
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    if len(set(names.values())) < len(names):
        names = {number: f"{name} ({number})" for number, name in names.items()}
    rows = [
        AnnotatedRow(
            images[one["image_id"]], names.get(one["category_id"], str(one["category_id"]))
        )
        for one in content["annotations"]
        if "category_id" in one
    ]
    return Annotations(rows, tuple(names.values())) if rows else None


def _delimited(text: str, request: SourceRequest) -> Annotations | None:
    """A table with a header: a column of images, and one of classes or one for each class."""
    delimiter = max(",\t;", key=lines_of(text[:100_000])[0].count)
    return _of_records(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), request)


def _records(text: str, request: SourceRequest) -> Annotations | None:
    """JSON records, one in each line."""
    return _of_records((json.loads(line) for line in lines_of(text) if line.strip()), request)


def _of_records(records: Iterable[Mapping[str, Any]], request: SourceRequest) -> Annotations | None:
    rows = [{_column_name(str(key)): value for key, value in record.items()} for record in records]
    if not rows:
        return None
    columns = list(rows[0])

    def find(option: str, default: str, known: Sequence[str]) -> str | None:
        """The column that is asked for; by default the first of those that are known."""
        wanted = known if option == default else [_column_name(option)]
        return next((name for name in wanted if name in columns), None)

    image = find(request.image_column, SourceRequest.image_column, IMAGE_COLUMNS)
    label = find(request.label_column, SourceRequest.label_column, LABEL_COLUMNS)
    split = find("split", "split", SPLIT_COLUMNS)
    if image is None:
        return None
    if label is None:
        return _of_classes(rows, image, [column for column in columns if column != image])
    return Annotations(
        [
            AnnotatedRow(str(row[image]).strip(), str(row[label]).strip(), _split_in(row, split))
            for row in rows
            if row.get(image) not in (None, "") and row.get(label) not in (None, "")
        ]
    )


def _column_name(text: str) -> str:
    return re.sub(r"[\s-]+", "_", text.strip().lower())


def _split_in(row: Mapping[str, Any], column: str | None) -> str | None:
    value = None if column is None else row.get(column)
    return None if value is None else str(value)


def _of_classes(
    rows: Sequence[Mapping[str, Any]], image: str, classes: Sequence[str]
) -> Annotations | None:
    """Rows with a column of zeros and ones for each class, as Roboflow writes them."""
    cells = [[str(row[name]).strip().removesuffix(".0") for name in classes] for row in rows]
    if not classes or any(cell not in ("0", "1") for row in cells for cell in row):
        return None
    named = [
        AnnotatedRow(str(row[image]).strip(), name)
        for row, ones in zip(rows, cells, strict=True)
        for name, one in zip(classes, ones, strict=True)
        if one == "1"
    ]
    return Annotations(named, classes)


def _plain(text: str, _: SourceRequest) -> Annotations | None:
    """Lines of an image and a class, as in Tiny-ImageNet's val_annotations.txt.

    What follows a second tab, the box, is left out.
    """
    rows = []
    for line in lines_of(text):
        fields = line.strip().split("\t") if "\t" in line.strip() else line.strip().rsplit(None, 1)
        if len(fields) >= 2:
            rows.append(AnnotatedRow(fields[0], fields[1]))
        elif line.strip():
            return None
    return Annotations(rows)


FORMATS: dict[str, Callable[[str, SourceRequest], Annotations | None]] = {
    ".json": _coco,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".jsonl": _records,
    ".txt": _plain,
}
