"""Commands on machines: cluster render."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
cluster_app = typer.Typer(help="Clusters: files for real ones.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


class Target(StrEnum):
    """What files are rendered for."""

    kuberay = "kuberay"
    aws = "aws"
    slurm = "slurm"


@cluster_app.command("render")
def cluster_render(
    target: Annotated[Target, typer.Argument(help="What to write for.")],
    description: Annotated[Path, typer.Option(help="Description of the cluster.")] = Path(
        "cluster/cluster.yaml"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; none: cluster/<target>.")
    ] = None,
) -> None:
    """Write a cluster's files for Kubernetes, EC2 or Slurm, from one description of it."""
    from bcl_ray.render import read, render, write

    files = render(target.value, read(description))
    for path in write(files, out or Path("cluster") / target.value):
        typer.echo(path)
