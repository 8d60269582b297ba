"""The command that checks machines: doctor."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from bcl_ray.cli.options import Address, CaFile

if TYPE_CHECKING:
    from bcl_ray.ops.doctor.finding import Finding

app = typer.Typer()


@app.command()
def doctor(
    store: Annotated[
        str | None,
        typer.Option(help="s3://BUCKET/FOLDER where runs read and write.", envvar="BCL_RAY_STORE"),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="URI of the MLflow server.", envvar="MLFLOW_TRACKING_URI")
    ] = None,
    address: Address = None,
    ca_file: CaFile = None,
    on_nodes: Annotated[bool, typer.Option("--on-nodes", hidden=True)] = False,
) -> None:
    """Check all that a run needs, here and on every node; exit status 1 if something is wrong."""
    if on_nodes:  # this process is the job that the command has sent to check the nodes
        from bcl_ray.ops.doctor.cluster import to_log_line
        from bcl_ray.ops.doctor.nodes import examine_nodes

        for finding in examine_nodes(store, mlflow):
            print(to_log_line(finding), flush=True)  # noqa: T201 (the command reads the job's log)
        return
    problems = 0
    for finding in _findings(address, ca_file, store, mlflow):
        problems += not finding.good
        mark = "✓" if finding.good else "✗"
        typer.echo(f"{mark} {finding.subject:<10} {finding.where:<10} {finding.text}")
    if problems:
        raise typer.Exit(1)


def _findings(
    address: str | None, ca_file: str | None, store: str | None, mlflow: str | None
) -> "Iterator[Finding]":
    from bcl_ray.ops.doctor.machine import examine

    yield from examine("here", store, mlflow, {})
    cluster = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if cluster and cluster.startswith(("http://", "https://")):
        from bcl_ray.ops.doctor.cluster import examine_cluster
        from bcl_ray.ops.jobs.client import dashboard_address

        yield from examine_cluster(dashboard_address(address), ca_file, store, mlflow)
    elif cluster:  # an address for drivers: this process can reach Ray itself
        from bcl_ray.ops.doctor.finding import merge
        from bcl_ray.ops.doctor.nodes import examine_nodes

        yield from merge(examine_nodes(store, mlflow))
