"""The names of a source's classes, and the labels that follow from them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bcl_ray.data.sources.base import Rows, Source, lines_of, read_text, shorten
from bcl_ray.machine.errors import UserError


def read_class_names(uri: str) -> tuple[str, ...]:
    """The lines of a file: line k + 1 is the name of class k.

    Raises:
        ValueError: A line is empty, or the file is not UTF-8 text.
        OSError: The file cannot be read.
    """
    names = tuple(line.strip() for line in lines_of(read_text(uri).rstrip()))
    if "" in names:
        label = names.index("")
        raise UserError(f"line {label + 1} of {uri} is empty: it must name class {label}")
    return names


def numbers_as_names(train_labels: Rows) -> tuple[str, ...]:
    """The numbers up to the largest label, for classes that nothing names.

    Raises:
        ValueError: There are more classes than images.
    """
    largest = int(train_labels.max(initial=-1))
    if largest >= len(train_labels):
        raise UserError(
            f"label {largest} stands for {largest + 1} classes, and there are only "
            f"{len(train_labels)} training images: some class has none"
        )
    return tuple(str(label) for label in range(largest + 1))


def numbered(
    classes: Sequence[str], names_file: str | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of classes, and the label of each class as the source calls it.

    Args:
        classes: Classes as the source calls them, in order.
        names_file: File of names in the order of labels, for classes with these names or numbers.
    """
    if names_file is None:
        return tuple(classes), {name: label for label, name in enumerate(classes)}
    names = read_class_names(names_file)
    repeated = [name for name in classes if names.count(name) > 1]
    if repeated:
        raise UserError(
            f"{names_file} has several lines {shorten(map(repr, repeated))}, so that the labels of "
            "these classes are not clear: leave one line of each"
        )
    if set(classes) <= set(names):
        return names, {name: label for label, name in enumerate(names)}
    if all(name.isdecimal() for name in classes):
        return names, {str(label): label for label in range(len(names))}
    missing = sorted(set(classes) - set(names))
    raise UserError(f"{names_file} has no line {shorten(map(repr, missing))}, and images have it")


def in_order(classes: Iterable[str]) -> list[str]:
    """Classes in the order of their names; numbers come first, in the order of their values."""
    return sorted(set(classes), key=lambda name: (not name.isdecimal(), _number(name), name))


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 0


def with_unique_names(source: Source) -> Source:
    """A source whose classes are told apart by their names, as results and MLflow need it.

    The label is added to a name that occurs more than once: ImageNet has two classes "crane".
    """
    times = Counter(source.class_names)
    if len(times) == len(source.class_names):
        return source
    taken, names = set(times), []
    for label, name in enumerate(source.class_names):
        unique = name
        while times[name] > 1 and unique in taken:
            unique = f"{unique} ({label})"
        taken.add(unique)
        names.append(unique)
    repeated = [name for name in times if times[name] > 1]
    note = (
        f"{len(repeated)} class names occur more than once ({shorten(map(repr, repeated))}): their "
        "labels are added to them"
    )
    return replace(source, class_names=tuple(names), notes=(*source.notes, note))
