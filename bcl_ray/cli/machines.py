"""Commands on machines: a cluster on this one, files for real ones, and a doctor for both."""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.exceptions

from bcl_ray.display.terminal import console
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.ops.doctor.finding import Finding
    from bcl_ray.ops.local import LocalCluster

app = typer.Typer()
cluster_app = typer.Typer(
    help="Clusters: one on this machine, and files for real ones.", no_args_is_help=True
)
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
    from bcl_ray.ops.manifests import commands, read, render, write

    described = read(description)
    for kind, words in commands(described).items():
        _check_command(kind, words)
    files = render(target.value, described)
    for path in write(files, out or Path("cluster") / target.value):
        typer.echo(path)


def _check_command(kind: str, words: list[str]) -> None:
    """Refuse a job that the command line would refuse on the cluster.

    Raises:
        ValueError: naming the field, and what is wrong.
    """
    from bcl_ray.cli import app as commands

    group: Any = typer.main.get_command(commands)
    try:
        group.commands[kind].make_context(kind, list(words))
    except typer.exceptions.TyperException as error:
        raise UserError(f"jobs.{kind}: bcl-ray {kind}: {error.format_message()}") from None


Folder = Annotated[
    Path | None,
    typer.Option(help="Of the cluster; else BCL_RAY_CLUSTER, else ~/.cache/bcl_ray/cluster."),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="As `cluster status` prints it.")]


class ServerName(StrEnum):
    """What of a cluster can be stopped and started again."""

    s3 = "s3"
    mlflow = "mlflow"
    head = "head"


def _local(folder: Path | None) -> "LocalCluster":
    try:
        from bcl_ray.ops.local import LocalCluster
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: pip install 'bcl-ray[local]' has what a cluster on "
            "one machine needs"
        ) from None
    return LocalCluster(folder)


@cluster_app.command("up")
def cluster_up(
    workers: Annotated[int, typer.Option(help="Nodes beside the head; a third for data.")] = 3,
    folder: Folder = None,
    store: Annotated[
        str, typer.Option(help="S3: swift, or s3://BUCKET/PREFIX of one that is there.")
    ] = "swift",
    database: Annotated[str, typer.Option(help="Behind MLflow: sqlite or postgres.")] = "sqlite",
    auth: Annotated[
        bool, typer.Option("--auth", help="MLflow asks for a password, which `environment` has.")
    ] = False,
    cpus: Annotated[int, typer.Option(help="CPUs that each node says it has.")] = 2,
    store_mib: Annotated[int, typer.Option(help="Ray's object store on each node, MiB.")] = 512,
    port: Annotated[int, typer.Option(help="First of 20 ports.")] = 9600,
) -> None:
    """Start a cluster on this machine: Ray head and nodes, an S3 server, an MLflow server."""
    cluster = _local(folder)
    with console().status("starting, which takes half a minute"):
        cluster.up(
            workers,
            store=store,
            database=database,
            auth=auth,
            port=port,
            cpus=cpus,
            store_mib=store_mib,
            say=lambda text: typer.echo(f"{text}", err=True),
        )
    there = cluster.environment()
    nodes = [name for name in cluster.nodes() if name != "head"]
    for name, text in (
        ("dashboard", there["RAY_ADDRESS"]),
        ("nodes", f"{', '.join(nodes)} ({cpus} CPUs each)"),
        ("store", f"{there['BCL_RAY_STORE']} at {there.get('AWS_ENDPOINT_URL', 'AWS')}"),
        ("MLflow", there["MLFLOW_TRACKING_URI"]),
        ("to use it", f"source {cluster.folder}/environment"),
    ):
        typer.echo(f"{name:<10} {text}")


@cluster_app.command("status")
def cluster_status(folder: Folder = None) -> None:
    """Every process of the cluster: name, pid, address, and whether it runs."""
    from rich.table import Table

    cluster = _local(folder)
    table = Table(box=None, pad_edge=False, header_style="")
    for column in ("name", "pid", "address", "state"):
        table.add_column(column, justify="right" if column == "pid" else "left")
    rows = cluster.status()
    for row in rows:
        table.add_row(row.name, str(row.pid), row.address, "up" if row.alive else "down")
    console().print(table if rows else f"no cluster is in {cluster.folder}")


@cluster_app.command("down")
def cluster_down(
    folder: Folder = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete S3 and MLflow's data too.")] = False,
) -> None:
    """End the cluster; what is in its S3 and MLflow stays for the next time."""
    _local(folder).down(wipe=wipe)


@cluster_app.command("kill-node")
def cluster_kill_node(node: Node, folder: Folder = None) -> None:
    """Kill a node with all that runs on it, as a power cut would."""
    _local(folder).kill_node(node)


@cluster_app.command("add-node")
def cluster_add_node(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name: data-2, train-3.")],
    folder: Folder = None,
    group: Annotated[str | None, typer.Option(help="data or train; else by its name.")] = None,
) -> None:
    """Start one more node, or one that was killed."""
    _local(folder).add_node(node, group)


@cluster_app.command("drain-node")
def cluster_drain_node(
    node: Node,
    folder: Folder = None,
    notice: Annotated[int, typer.Option(min=1, help="Seconds until it ends.")] = 30,
) -> None:
    """Give notice that a node ends, as a cloud does of a spot machine; then it is killed."""
    _local(folder).drain_node(node, notice)


@cluster_app.command("stop")
def cluster_stop(
    part: Annotated[ServerName, typer.Argument(help="What to stop; the head is killed.")],
    folder: Folder = None,
) -> None:
    """Stop a part of the cluster; `start` brings it back with what it had."""
    cluster = _local(folder)
    stops = {ServerName.s3: cluster.stop_s3, ServerName.mlflow: cluster.stop_mlflow}
    stops.get(part, cluster.kill_head)()


@cluster_app.command("start")
def cluster_start(
    part: Annotated[ServerName, typer.Argument(help="What to start again.")], folder: Folder = None
) -> None:
    """Start a part that was stopped."""
    cluster = _local(folder)
    starts = {ServerName.s3: cluster.start_s3, ServerName.mlflow: cluster.start_mlflow}
    starts.get(part, cluster.start_head)()


@app.command()
def doctor(
    store: Annotated[
        str | None, typer.Option(help="s3://BUCKET/FOLDER that runs use.", envvar="BCL_RAY_STORE")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="The MLflow server.", envvar="MLFLOW_TRACKING_URI")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The dashboard; else RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else none."),
    ] = None,
    ca_file: Annotated[str | None, typer.Option(help="Certificates to trust for https.")] = None,
    on_nodes: Annotated[bool, typer.Option("--on-nodes", hidden=True)] = False,
) -> None:
    """Look at all that a run needs, here and on every node; exit status 1 if something is wrong."""
    if on_nodes:  # the job by which this command asks the nodes
        from bcl_ray.ops.doctor.cluster import show
        from bcl_ray.ops.doctor.nodes import examine_nodes

        for finding in examine_nodes(store, mlflow):
            print(show(finding), flush=True)  # noqa: T201 (for the one who reads the job's log)
        return
    bad = 0
    for finding in _findings(address, ca_file, store, mlflow):
        bad += not finding.good
        mark = "✓" if finding.good else "✗"
        typer.echo(f"{mark} {finding.subject:<10} {finding.where:<10} {finding.text}")
    if bad:
        raise typer.Exit(1)


def _findings(
    address: str | None, ca_file: str | None, store: str | None, mlflow: str | None
) -> "Iterator[Finding]":
    from bcl_ray.ops.doctor.machine import examine

    yield from examine("here", store, mlflow, {})
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if named and named.startswith(("http://", "https://")):
        from bcl_ray.ops.doctor.cluster import examine_cluster

        yield from examine_cluster(named.rstrip("/"), ca_file, store, mlflow)
    elif named:
        from bcl_ray.ops.doctor.finding import merged
        from bcl_ray.ops.doctor.nodes import examine_nodes

        yield from merged(examine_nodes(store, mlflow))
