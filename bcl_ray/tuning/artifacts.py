"""The files of a result, where people look for them."""

from collections.abc import Mapping
from pathlib import Path

from bcl_ray.storage import files
from bcl_ray.tracking.tracker import Tracker


def publish(contents: Mapping[str, bytes], uri: str, folder: Path, tracker: Tracker) -> None:
    """Write files to a folder or URI, to a local folder, and to MLflow.

    Args:
        contents: Content of each file, by its path below the folder.
        uri: The folder.
        folder: Local folder, from which MLflow gets its copy.
        tracker: Tracker of the MLflow run.
    """
    for name, content in contents.items():
        files.write_bytes(files.join(uri, name), content)
        files.write_bytes(str(folder / name), content)
        tracker.artifact(folder / name, str(Path(name).parent) if "/" in name else "")
