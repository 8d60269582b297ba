"""The command that sends a command to a cluster: submit."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bcl_ray
from bcl_ray.cli.jobs import Address, CaFile, attend, how_to_come_back
from bcl_ray.display.terminal import console, quiet
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.ops.jobs.request import JobRequest

app = typer.Typer()


class Kind(StrEnum):
    """Commands that a cluster runs."""

    shard = "shard"
    train = "train"
    evaluate = "evaluate"
    predict = "predict"
    search = "search"


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    kind: Annotated[Kind, typer.Argument(help="The command.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="The command's arguments.")
    ] = None,
    address: Address = None,
    ca_file: CaFile = None,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Send this bcl_ray along, and run that.")
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Return as soon as the cluster has the job.")
    ] = False,
) -> None:
    """Run a command on a cluster, and follow it; Ctrl-C detaches, and the job goes on.

    Credentials are never sent: the cluster's nodes have their own.
    """
    from bcl_ray.machine.versions import client_versions, differing
    from bcl_ray.ops.jobs.client import JobClient, address_of
    from bcl_ray.ops.jobs.package import package
    from bcl_ray.ops.jobs.request import submit as send

    where = address_of(address)
    quiet()
    request = _request(kind, tuple(words or ()), where)
    sent = package(kind.value, request.words, with_code=with_code)
    cluster = JobClient(where, ca_file)
    differing(client_versions(), cluster.versions())
    send(cluster, request, sent)
    screen = console()
    for line in (f"job      {request.name}  on {where}", *request.notes):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    if no_follow:
        screen.print(how_to_come_back(request.name, address), highlight=False, soft_wrap=True)
        return
    attend(cluster, request.name, address, screen)


def _request(kind: Kind, words: tuple[str, ...], address: str) -> "JobRequest":
    """The request of a command, which is parsed as the command line parses it here."""
    from bcl_ray.cli import app as commands
    from bcl_ray.ops.jobs.request import check_uri, named

    group: Any = typer.main.get_command(commands)
    options = group.commands[kind.value].make_context(kind.value, list(words)).params
    if kind is Kind.shard:
        check_uri("the target", options["target"])
        if options["origin"]:
            check_uri("--from", options["origin"])
        return named(kind.value, f"shard-{options['source']}", words, data=options["target"])
    if kind is Kind.evaluate:
        for name in options["names"]:
            _check_model(name, options["runs"])
        if options["data"]:
            check_uri("--data", options["data"])
        if options["out"]:
            raise UserError(
                "--out is a folder of the machine that evaluates, here one of the cluster's: leave "
                "it out, or evaluate on this machine"
            )
        first = options["names"][0].rstrip("/").rpartition("/")[2]
        return named(kind.value, f"evaluate-{first}", words, run=" ".join(options["names"]))
    if kind is Kind.search:
        return _searching(options, words, address)
    if kind is Kind.predict:
        _check_model(options["model"], options["runs"])
        check_uri("INPUT", options["images"])
        check_uri("OUTPUT", options["output"])
        label = options["images"].partition("?")[0].rstrip("/").rpartition("/")[2]
        about = {"run": options["model"], "data": options["images"], "output": options["output"]}
        return named(kind.value, f"predict-{label}", words, **about)
    return _resuming(options, words) if options["resume"] else _training(options, words, address)


def _check_model(name: str, root: str) -> None:
    """Refuse a model of this machine; one of the registry is looked up by the job."""
    from bcl_ray.ops.jobs.request import check_uri

    if not name.startswith("models:"):
        check_uri("MODEL", name if "/" in name else root)


def _training(options: dict[str, Any], words: tuple[str, ...], address: str) -> "JobRequest":
    from bcl_ray.ops.jobs.request import training

    if not options["recipe"]:
        raise UserError("train needs a recipe's name or a YAML file, or --resume RUN")
    experiment = bcl_ray.recipe(options["recipe"], *(options["overrides"] or []))
    return training(options["recipe"], experiment, words, address)


def _searching(options: dict[str, Any], words: tuple[str, ...], address: str) -> "JobRequest":
    from bcl_ray.api.searches import wanted
    from bcl_ray.cli.search import arguments
    from bcl_ray.ops.jobs.request import searching

    # Whether it was begun before is looked up by the job, which can read its store.
    asked = wanted(*arguments(options | {"restartable": False}))
    recipe = options["recipe"]
    known = recipe if recipe and "=" not in recipe else None
    if not (options["name"] or options["resume"]):  # the job would take the time of its own start
        words = (*words, "--name", asked.name)
    return searching(asked.name, known, asked.experiment, words, address)


def _resuming(options: dict[str, Any], words: tuple[str, ...]) -> "JobRequest":
    from bcl_ray.experiment.options import TrackingConfig
    from bcl_ray.ops.jobs.request import resuming
    from bcl_ray.runs import run_folder

    changes = [options["recipe"] or "", *(options["overrides"] or [])]
    roots = [text.partition("=")[2] for text in changes if text.startswith("tracking.runs=")]
    uri = run_folder.run_uri(options["resume"], roots[-1] if roots else TrackingConfig().runs)
    return resuming(uri, words)
