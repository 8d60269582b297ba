"""Data sets of Hugging Face: as `save_to_disk` writes them, and as the hub has them, in Parquet."""

import json
import re
from dataclasses import replace
from typing import Any

from bcl_ray.data.sources.base import Source, SourceRequest, read_text, shorten
from bcl_ray.data.sources.parquet import tables
from bcl_ray.data.sources.tree import split_of
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files


def open_huggingface(request: SourceRequest) -> Source:
    """Open a data set's folder, or files of each split.

    Raises:
        ValueError: The folder holds no such data set, or several.
        OSError: A file cannot be read.
    """
    if request.splits:
        return tables(request.splits, request)
    path = request.required_path
    names = files.list_files(path)
    if "dataset_dict.json" in names:
        splits = _read_json(files.join(path, "dataset_dict.json")).get("splits", [])
        found = {name: _saved_files(files.join(path, name)) for name in splits}
    elif "state.json" in names:
        split = _read_json(files.join(path, "state.json")).get("_split")
        found = {split or "train": _saved_files(path)}
    else:
        found = _hub_files(path)
    named: dict[str, list[str]] = {}
    for name in found:
        named.setdefault(_split_name(name), []).append(name)
    merged = {
        split: [uri for name in names for uri in found[name]] for split, names in named.items()
    }
    source = tables(merged, request)
    notes = [
        f"{', '.join(names)} are one split, {split}: --split NAME=FILE takes some of them"
        for split, names in named.items()
        if len(names) > 1
    ]
    return replace(source, notes=(*source.notes, *notes))


def _split_name(name: str) -> str:
    return "validation" if split_of(name) == "val" else name


def _read_json(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(uri))
    except json.JSONDecodeError as error:
        raise UserError(f"{uri} is not JSON ({error}): save the data set again") from None
    return content if isinstance(content, dict) else {}


def _saved_files(folder: str) -> list[str]:
    """The files of one split that `save_to_disk` wrote, in their order."""
    uri = files.join(folder, "state.json")
    state = _read_json(uri)
    if state.get("_indices_data_files"):
        raise UserError(f"{uri}: only some rows are meant; save it after `flatten_indices()`")
    return [files.join(folder, str(file["filename"])) for file in state.get("_data_files", [])]


def _hub_files(path: str) -> dict[str, list[str]]:
    """Parquet files by split, named `<split>-*.parquet`, or in a folder with the split's name."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in files.walk(path):
        if not file.endswith(".parquet"):
            continue
        *folders, name = file.split("/")
        match = re.fullmatch(r"([A-Za-z_]\w*?)(-\d+.*)?\.parquet", name)
        split = match[1] if match else (folders.pop() if folders else "train")
        found.setdefault("/".join(folders), {}).setdefault(split, []).append(
            files.file_in(path, file)
        )
    if len(found) != 1:
        problem = (
            f"several ({shorten(sorted(found))}): name one of the folders" if found else "none"
        )
        raise UserError(
            f"{path} must hold one data set of Hugging Face (dataset_dict.json, state.json, or "
            f"Parquet files such as train-00000-of-00001.parquet), and it holds {problem}"
        )
    return found.popitem()[1]
