"""Folders of images, in the layouts in which people and public data sets have them.

The class of an image is the name of its folder: `<split>/<class>/<image>`. Where folders do not
tell classes, annotation files do (`annotation_reader`), for each split on its own: Tiny-ImageNet
has folders for training, and a file for validation.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from urllib.parse import unquote

import numpy as np

from bcl_ray.data.sources.annotation_reader import AnnotationReader, LabelledImage
from bcl_ray.data.sources.base import Source, SourceRequest, shorten
from bcl_ray.data.sources.class_names import in_order, numbered
from bcl_ray.data.sources.reading import file_split
from bcl_ray.data.sources.tree import SPLITS, Tree, list_tree, split_folders
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths

Images = dict[str, list[LabelledImage]]  # by split

# The sources that read other files, by the end of a file's name.
_OTHER_SOURCES = {
    ".arrow": "huggingface",
    "dataset_info.json": "huggingface",
    ".parquet": "parquet",
    ".tar": "webdataset",
}


def open_folder(request: SourceRequest) -> Source:
    """Open folders that hold a folder per class, or images and annotation files.

    Raises:
        ValueError: Images have no classes, or there are none for training or for evaluation.
        OSError: A folder cannot be read.
    """
    if request.splits:
        return _image_folders(request)
    path = request.required_path
    tree = list_tree(path)
    reader = AnnotationReader(tree, request)
    folders, notes = _class_folders(tree)
    labelled = _completed(folders, reader)
    if not labelled.get("train") or not (reader.used or labelled.keys() - {"train"}):
        raise UserError(_no_split_message(path, tree, reader.unread))
    if "train" in folders:
        classes = _train_folders(tree, labelled["train"])
    else:
        classes = _classes_of(labelled["train"], reader)
    if reader.used:
        notes.append(f"{shorten(sorted(reader.used))}: the classes of images")
    if len(labelled) == 1:
        notes.append("no image but those for training has a label, and evaluation needs some")
    notes += [*reader.unread, _unlabelled(tree, labelled), tree.left_out(reader.used)]
    return _source(tree.root, labelled, classes, request, notes)


def _image_folders(request: SourceRequest) -> Source:
    """Open the folders that --split gives, of which each holds a folder per class."""
    if "train" not in request.splits:
        raise UserError("source 'folder' needs --split train=FOLDER, or --from")
    trees = {split: [list_tree(root) for root in roots] for split, roots in request.splits.items()}
    base = _common([tree.root for of_split in trees.values() for tree in of_split])
    begin = len(paths.split_options(base)[0])
    images: Images = {}
    for split, of_split in trees.items():
        for tree in of_split:
            prefix = paths.split_options(paths.absolute(tree.root))[0][begin:].strip("/")
            prefix = unquote(prefix) if "://" in base else prefix
            for path in tree.images:
                name, slash, _ = path.partition("/")
                fault = None if slash else f"'{path}' is in no class folder"
                image = LabelledImage(f"{prefix}/{path}".lstrip("/"), name, fault)
                images.setdefault(split, []).append(image)
    classes = {name for tree in trees["train"] for name in _subfolders(tree.root)}
    notes = [tree.left_out(()) for of_split in trees.values() for tree in of_split]
    return _source(base, images, sorted(classes), request, notes)


def _common(roots: Sequence[str]) -> str:
    """The folder above all roots, absolute."""
    located = [paths.split_options(paths.absolute(root)) for root in roots]
    parts = [folder.rstrip("/").split("/") for folder, _ in located]
    options = {options for _, options in located}
    levels = zip(*parts, strict=False)
    same = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels)]
    # s3://bucket has three parts, of which the second is empty.
    if len(same) < (3 if "://" in roots[0] else 1) or len(options) > 1:
        raise UserError(f"{shorten(roots)} must be on one disk, or in one bucket: copy them there")
    return ("/".join(same) or "/") + options.pop()


def _subfolders(uri: str) -> list[str]:
    return [name for name in files.list_folders(uri) if not name.startswith(".")]


def _class_folders(tree: Tree) -> tuple[Images, list[str]]:
    """The images of splits with class folders, none if the training split has none; and notes."""
    by_top: dict[str, list[list[str]]] = {}
    for path in tree.images:
        if len(parts := path.split("/")) > 1:
            by_top.setdefault(parts[0], []).append(parts)
    splits = split_folders(by_top)
    images: Images = {}
    for top, split in splits.items():
        images.setdefault(split, []).extend(_of_folders(by_top[top]))
    classes = {image.class_name for image in images.get("train", ()) if image.fault is None}
    if not classes:
        return {}, []
    for split in [split for split in images if split != "train"]:
        names = {image.class_name for image in images[split] if image.fault is None}
        if not names or names == {"images"}:  # a folder of all classes
            del images[split]
    tops = {split: [f"{top}/" for top in splits if splits[top] == split] for split in images}
    notes = [
        f"{' and '.join(names)} are one split, '{split}'"
        for split, names in tops.items()
        if len(names) > 1
    ]
    return images, notes


def _of_folders(images: Sequence[list[str]]) -> Iterator[LabelledImage]:
    """Images of one split, by the parts of their paths; the split's folder holds class folders."""
    # Some archives have a folder in a folder of the same name: seg_train/seg_train.
    position = 2 if all(parts[1] == parts[0] for parts in images) else 1
    for parts in images:
        loose = len(parts) <= position + 1
        fault = f"'{parts[-1]}' is in no class folder" if loose else None
        yield LabelledImage("/".join(parts), parts[position] if not loose else "", fault)


def _train_folders(tree: Tree, train: Sequence[LabelledImage]) -> list[str]:
    """All class folders of the training split; an empty one is a class, which is then refused."""
    above = set()
    for image in train:
        if image.fault is None:
            parts = image.path.split("/")
            above.add("/".join(parts[: parts.index(image.class_name, 1)]))
    return sorted({name for top in above for name in _subfolders(files.file_in(tree.root, top))})


def _completed(folders: Images, reader: AnnotationReader) -> Images:
    """The images of class folders; for splits without them, those that annotation files name."""
    classes = {image.class_name for image in folders.get("train", ()) if image.fault is None}
    if len(classes) == 1 and reader.images.get("train"):
        folders.clear()
    tops = {path.partition("/")[0] for path in reader.tree.images if "/" in path}
    with_classes = {
        split
        for split, images in folders.items()
        if any(image.fault is None and image.class_name in classes for image in images)
    }
    if folders and set(split_folders(tops).values()) <= with_classes:
        return folders  # annotation files, which may be large, are not read
    annotated = {
        split: images for split, images in reader.images.items() if split not in with_classes
    }
    return folders | annotated


def _classes_of(train: Sequence[LabelledImage], reader: AnnotationReader) -> list[str]:
    """The classes of training images, in an annotation file's order if one has it, else sorted."""
    present = {image.class_name for image in train if image.fault is None}
    for annotations in reader.used.values():
        if present <= set(annotations.class_order):
            return [name for name in annotations.class_order if name in present]
    return in_order(present)


def _no_split_message(path: str, tree: Tree, unread: Sequence[str]) -> str:
    names = [name.lower() for name in tree.others]
    for ending, source in _OTHER_SOURCES.items():
        if any(name.endswith(ending) for name in names):
            return f"{path} holds no images in files, but {ending} files: use source '{source}'"
    tops = sorted({f"{name.partition('/')[0]}/" for name in tree.images if "/" in name})
    return (
        f"{path} must hold train/<class>/<image> and test/<class>/<image> (or val/), or images and "
        "a CSV or JSON file of their classes, whose columns --image-column and --label-column "
        f"name; it holds {shorten(tops) or 'no folder of images'}"
        f"{''.join(f'; {note}' for note in unread)}: name the folder of each split with --split "
        "NAME=FOLDER, or the images of each split in list files (source 'list')"
    )


def _unlabelled(tree: Tree, labelled: Images) -> str:
    """A note on images whose split and class are not known; empty if there are none."""
    known = {image.path for images in labelled.values() for image in images}
    tops = Counter(
        f"{path.partition('/')[0]}/" if "/" in path else "outside of folders"
        for path in tree.images
        if path not in known
    )
    counts = (f"{top} ({count:,} images)" for top, count in tops.items())
    return (
        f"left out, because nothing says their split and class: {shorten(counts, 9)}"
        if tops
        else ""
    )


def _source(
    root: str, images: Images, classes: Sequence[str], request: SourceRequest, notes: Sequence[str]
) -> Source:
    names, label_of = numbered(classes, request.classes)
    splits = {}
    for split in sorted(images, key=lambda name: [*SPLITS, name].index(name)):
        rows = images[split]
        faults = {row: image.fault for row, image in enumerate(rows) if image.fault is not None}
        faults |= {
            row: f"'{image.class_name}' is not a class of the training split"
            for row, image in enumerate(rows)
            if row not in faults and image.class_name not in label_of
        }
        labels = [
            -1 if row in faults else label_of[image.class_name] for row, image in enumerate(rows)
        ]
        image_paths = [image.path for image in rows]
        splits[split] = file_split(root, image_paths, np.array(labels, dtype=np.int64), faults)
    return Source("folder", names, splits, (root,), tuple(filter(None, notes)))
