"""The command that runs another command on a cluster: submit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import bcl_ray
from bcl_ray.cli.job_log import follow_commands, follow_to_exit
from bcl_ray.cli.options import Address, CaFile, parse, with_recipe_as_override
from bcl_ray.display.terminal import console, print_line, quiet
from bcl_ray.machine.errors import UserError

if TYPE_CHECKING:
    from bcl_ray.ops.jobs.request import JobRequest

app = typer.Typer()

Kind = Literal["shard", "train", "evaluate", "predict", "search", "study"]
Words = tuple[str, ...]


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    kind: Annotated[Kind, typer.Argument(help="The command.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="The command's arguments.")
    ] = None,
    address: Address = None,
    ca_file: CaFile = None,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Send this bcl_ray along, and let the job use it.")
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Return as soon as the cluster has the job.")
    ] = False,
) -> None:
    """Run a command on a cluster, and follow it; Ctrl-C detaches, and the job goes on.

    Credentials are never sent: the cluster's nodes have their own.
    """
    from bcl_ray.machine.versions import check_same_versions, client_versions
    from bcl_ray.ops.jobs.client import JobClient, dashboard_address
    from bcl_ray.ops.jobs.package import pack
    from bcl_ray.ops.jobs.request import submit as send

    dashboard = dashboard_address(address)
    quiet()
    request = _request(kind, tuple(words or ()), dashboard)
    packed = pack(kind, request.words, with_code=with_code)
    cluster = JobClient(dashboard, ca_file)
    check_same_versions(client_versions(), cluster.versions())
    send(cluster, request, packed)
    screen = console()
    for line in (f"job      {request.name}  on {dashboard}", *request.notes):
        print_line(screen, line)
    if no_follow:
        screen.print(follow_commands(request.name, address), highlight=False, soft_wrap=True)
        return
    follow_to_exit(cluster, request.name, address, screen)


def _request(kind: Kind, words: Words, address: str) -> "JobRequest":
    """The request for a command; its arguments are parsed here as the job will parse them."""
    return REQUESTS[kind](parse(kind, words), words, address)


def _shard(options: dict[str, Any], words: Words, _: str) -> "JobRequest":
    from bcl_ray.ops.jobs.checks import check_uri
    from bcl_ray.ops.jobs.request import new_request

    check_uri("the target", options["target"])
    if options["origin"]:
        check_uri("--from", options["origin"])
    return new_request("shard", f"shard-{options['source']}", words, {"data": options["target"]})


def _train(options: dict[str, Any], words: Words, address: str) -> "JobRequest":
    from bcl_ray.ops.jobs.request import train_request

    if options["resume"]:
        return _resume(options, words)
    if not options["recipe"]:
        raise UserError("train needs a recipe's name or a YAML file, or --resume RUN")
    experiment = bcl_ray.recipe(options["recipe"], *(options["overrides"] or []))
    return train_request(options["recipe"], experiment, words, address)


def _resume(options: dict[str, Any], words: Words) -> "JobRequest":
    from bcl_ray.ops.jobs.request import resume_request
    from bcl_ray.runs import run_folder

    overrides = with_recipe_as_override(options["recipe"], options["overrides"])
    return resume_request(run_folder.resumed_uri(options["resume"], overrides), words)


def _evaluate(options: dict[str, Any], words: Words, _: str) -> "JobRequest":
    from bcl_ray.ops.jobs.checks import check_uri
    from bcl_ray.ops.jobs.request import new_request

    for name in options["names"]:
        _check_model(name, options["runs"])
    if options["data"]:
        check_uri("--data", options["data"])
    if options["out"]:
        raise UserError(
            "--out is a folder of the machine that evaluates, here one of the cluster's: leave "
            "it out, or evaluate on this machine"
        )
    first_model = options["names"][0].rstrip("/").rpartition("/")[2]
    return new_request(
        "evaluate", f"evaluate-{first_model}", words, {"run": " ".join(options["names"])}
    )


def _predict(options: dict[str, Any], words: Words, _: str) -> "JobRequest":
    from bcl_ray.ops.jobs.checks import check_uri
    from bcl_ray.ops.jobs.request import new_request

    _check_model(options["model"], options["runs"])
    check_uri("INPUT", options["images"])
    check_uri("OUTPUT", options["output"])
    images_name = options["images"].partition("?")[0].rstrip("/").rpartition("/")[2]
    record = {"run": options["model"], "data": options["images"], "output": options["output"]}
    return new_request("predict", f"predict-{images_name}", words, record)


def _search(options: dict[str, Any], words: Words, address: str) -> "JobRequest":
    from bcl_ray.api.searches import resolve_search
    from bcl_ray.cli.search import api_arguments
    from bcl_ray.ops.jobs.request import trials_request

    # Not restartable here: only the job may be able to read the folder of an earlier search.
    experiment, arguments = api_arguments(options | {"restartable": False})
    search = resolve_search(experiment, **arguments)
    recipe = None if experiment is None else options["recipe"]
    if not (options["name"] or options["resume"]):  # else the job would make up another name
        words = (*words, "--name", search.name)
    return trials_request(
        "search", search.name, recipe, [search.experiment], words=words, address=address
    )


def _study(options: dict[str, Any], words: Words, address: str) -> "JobRequest":
    from bcl_ray.api.studies import default_name
    from bcl_ray.ops.jobs.request import trials_request
    from bcl_ray.tuning.study_file import read_study

    file, name = options["file"], options["name"] or default_name(options["file"])
    study = read_study(file, options["overrides"] or ())
    for recipe in study.recipes:
        if recipe.endswith((".yaml", ".yml")):
            raise UserError(
                f"{file}: recipe {recipe} is a file, and only {file} itself is sent: begin with a "
                "recipe's name, and put its options into overrides"
            )
    if not options["name"]:  # the job has the file under another path
        words = (*words, "--name", name)
    experiments = [cell.experiment for cell in study.cells]
    return trials_request("study", name, str(file), experiments, words=words, address=address)


def _check_model(name: str, root: str) -> None:
    """Refuse a model in a folder of this machine; a model of the registry is left to the job."""
    from bcl_ray.ops.jobs.checks import check_uri

    if not name.startswith("models:"):
        check_uri("MODEL", name if "/" in name else root)


REQUESTS: dict[Kind, "Callable[[dict[str, Any], Words, str], JobRequest]"] = {
    "shard": _shard,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "search": _search,
    "study": _study,
}
"""For each command, a function of its options, its arguments and the dashboard's address."""
