"""Commands on clusters: one on this machine, and files for real ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
import typer.exceptions

from bcl_ray.cli.options import parse
from bcl_ray.display.terminal import console
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.ops.local import LocalCluster

app = typer.Typer()
cluster_app = typer.Typer(
    help="Clusters: one on this machine, and files for real ones.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster")

Target = Literal["kuberay", "aws", "slurm"]  # ops.manifests.TARGETS, whose import is slow
Part = Literal["s3", "mlflow", "head"]
Folder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the cluster; by default BCL_RAY_CLUSTER or ~/.cache/bcl_ray/cluster."
    ),
]
Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Name of the node, as `cluster status` prints it.")
]


@cluster_app.command("render")
def cluster_render(
    target: Annotated[Target, typer.Argument(help="Kind of cluster.")],
    description: Annotated[Path, typer.Option(help="Description of the cluster.")] = Path(
        "cluster/cluster.yaml"
    ),
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; by default cluster/<target>.")
    ] = None,
) -> None:
    """Write a cluster's files for Kubernetes, EC2 or Slurm, from one description of it."""
    from bcl_ray.ops.manifests import commands, read, render, write

    described = read(description)
    for kind, words in commands(described).items():
        _check_command(kind, words)
    files = render(target, described)
    for path in write(files, out or Path("cluster") / target):
        typer.echo(path)


def _check_command(kind: str, words: list[str]) -> None:
    """Refuse a job whose command the cluster would refuse.

    Raises:
        ValueError: The command does not parse; names the field, and the mistake.
    """
    try:
        parse(kind, words)
    except typer.exceptions.TyperException as error:
        raise UserError(f"jobs.{kind}: bcl-ray {kind}: {error.format_message()}") from None


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
    workers: Annotated[
        int, typer.Option(help="Nodes beside the head; about a third is for data.")
    ] = 3,
    folder: Folder = None,
    store: Annotated[
        str, typer.Option(help="Object store: swift, or s3://BUCKET/PREFIX of an existing one.")
    ] = "swift",
    database: Annotated[
        str, typer.Option(help="Database behind MLflow: sqlite or postgres.")
    ] = "sqlite",
    auth: Annotated[
        bool,
        typer.Option("--auth", help="Let MLflow ask for a password, which `environment` has."),
    ] = False,
    cpus: Annotated[int, typer.Option(help="Number of CPUs that each node declares.")] = 2,
    store_mib: Annotated[
        int, typer.Option(help="Size of Ray's object store on each node, MiB.")
    ] = 512,
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
            notify=lambda text: typer.echo(text, err=True),
        )
    environment = cluster.environment()
    nodes = [name for name in cluster.nodes() if name != "head"]
    for name, text in (
        ("dashboard", environment["RAY_ADDRESS"]),
        ("nodes", f"{', '.join(nodes)} ({cpus} CPUs each)"),
        (
            "store",
            f"{environment['BCL_RAY_STORE']} at {environment.get('AWS_ENDPOINT_URL', 'AWS')}",
        ),
        ("MLflow", environment["MLFLOW_TRACKING_URI"]),
        ("to use it", f"source {cluster.folder}/environment"),
    ):
        typer.echo(f"{name:<10} {text}")


@cluster_app.command("status")
def cluster_status(folder: Folder = None) -> None:
    """List the cluster's processes: name, pid, address, state, and training workers on nodes."""
    from bcl_ray.display.tables import build_table

    cluster = _local(folder)
    processes = cluster.status()
    if not processes:
        typer.echo(f"no cluster is in {cluster.folder}")
        return
    workers = cluster.training_workers()
    rows = [
        (
            process.name,
            str(process.pid),
            process.address,
            "up" if process.alive else "down",
            str(workers.get(process.name, "")) if process.alive else "",
        )
        for process in processes
    ]
    columns = ("name", "pid", "address", "state", "training workers")
    console().print(build_table(columns, rows, text=("name", "address", "state")))


@cluster_app.command("down")
def cluster_down(
    folder: Folder = None,
    wipe: Annotated[
        bool, typer.Option("--wipe", help="Delete the data of S3 and MLflow too.")
    ] = False,
) -> None:
    """End the cluster; the data of its S3 and MLflow stay for the next time."""
    cluster = _local(folder)
    alive = [process.name for process in cluster.status() if process.alive]
    existed = cluster.folder.exists()
    cluster.down(wipe=wipe)
    ended = f"ended {', '.join(alive)}" if alive else f"no cluster was up in {cluster.folder}"
    data = f"the data of S3 and MLflow stay in {cluster.folder}"
    if wipe:
        data = f"deleted {cluster.folder} with all data"
    typer.echo(f"{ended}; {data}" if existed else ended)


@cluster_app.command("kill-node")
def cluster_kill_node(node: Node, folder: Folder = None) -> None:
    """Kill a node with everything that runs on it, as a power cut would."""
    cluster = _local(folder)
    workers = cluster.training_workers().get(node, 0)
    cluster.kill_node(node)
    typer.echo(
        f"killed node {node} (training workers on it: {workers}); "
        f"`bcl-ray cluster add-node {node}` starts it again"
    )


@cluster_app.command("add-node")
def cluster_add_node(
    node: Annotated[
        str, typer.Argument(metavar="NODE", help="Name of the node, such as data-2 or train-3.")
    ],
    folder: Folder = None,
    group: Annotated[
        str | None, typer.Option(help="data or train; by default the one in its name.")
    ] = None,
) -> None:
    """Start one more node, or one that was killed."""
    _local(folder).add_node(node, group)
    typer.echo(f"started node {node}")


@cluster_app.command("drain-node")
def cluster_drain_node(
    node: Node,
    folder: Folder = None,
    notice: Annotated[int, typer.Option(min=1, help="Seconds until the node is killed.")] = 30,
) -> None:
    """Announce the end of a node, as a cloud does for a spot machine; then kill it."""
    cluster = _local(folder)
    cluster.drain_node(node, notice)
    typer.echo(f"announced the end of node {node}, in {notice} s")


@cluster_app.command("stop")
def cluster_stop(
    part: Annotated[Part, typer.Argument(help="Part to stop; the head is killed.")],
    folder: Folder = None,
) -> None:
    """Stop a part of the cluster; `start` brings it back with its data."""
    _local(folder).stop(part)
    typer.echo(f"stopped {part}; `bcl-ray cluster start {part}` starts it again")


@cluster_app.command("start")
def cluster_start(
    part: Annotated[Part, typer.Argument(help="Part to start again.")], folder: Folder = None
) -> None:
    """Start a part of the cluster that was stopped."""
    _local(folder).start(part)
    typer.echo(f"started {part}")
