"""The files of a target, from a description of a cluster."""

from collections.abc import Callable
from pathlib import Path

from bcl_ray.ops.manifests import aws, kuberay, slurm
from bcl_ray.ops.manifests.description import ClusterDescription

RENDERERS: dict[str, Callable[[ClusterDescription], dict[str, str]]] = {
    "kuberay": kuberay.manifests,
    "aws": aws.ray_up,
    "slurm": slurm.sbatch,
}
TARGETS = tuple(RENDERERS)
NOTE = "# Rendered by `bcl-ray cluster render {}`: change the description, not this file.\n"


def render(target: str, description: ClusterDescription) -> dict[str, str]:
    """The files of a target.

    Args:
        target: One of TARGETS.
        description: The cluster.

    Returns:
        Text by path, relative to the target's folder.

    Raises:
        ValueError: The description lacks what the target needs.
    """
    files = RENDERERS[target](description)
    note = NOTE.format(target)
    return {file: note + text if file.endswith(".yaml") else text for file, text in files.items()}


def write(files: dict[str, str], folder: Path) -> list[Path]:
    """Write files into a folder, whose other files stay; returns their paths."""
    written = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)
        written.append(path)
    return written
