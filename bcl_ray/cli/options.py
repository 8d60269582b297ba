"""Options and arguments that several commands share."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from bcl_ray.experiment.table import Table

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.FIELD=VALUE]...", help="Changes to the experiment, in order."),
]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of the run, or path or URI of its folder.")
]
Runs = Annotated[str, typer.Option("--runs", help="Folder or URI that holds runs.")]
Last = Annotated[
    bool | None,
    typer.Option(
        "--last/--best",
        help="The run's last checkpoint, or its best; by default the best if it was selected on "
        "validation data, otherwise the last.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard, http(s)://HOST:8265; by default RAY_API_SERVER_ADDRESS or "
        "RAY_ADDRESS."
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        help="Certificates to trust for https; by default REQUESTS_CA_BUNDLE or SSL_CERT_FILE."
    ),
]


def parse(kind: str, words: Sequence[str]) -> dict[str, Any]:
    """The options and arguments of a command, by name.

    Raises:
        typer.exceptions.TyperException: The command does not parse.
    """
    from bcl_ray.cli import app

    group: Any = typer.main.get_command(app)
    options: dict[str, Any] = group.commands[kind].make_context(kind, list(words)).params
    return options


def with_recipe_as_override(recipe: str | None, overrides: list[str] | None) -> list[str]:
    """The overrides of a command with --resume, whose first argument is one too."""
    return [*([recipe] if recipe else []), *(overrides or [])]


def one_of(table: Table[Any]) -> Callable[[typer.Context, str | None], str | None]:
    """A callback that refuses names that a table does not have, while the command is parsed.

    With --plugin, the name may be one that a plugin adds: then the command itself checks it.
    """

    def check(context: typer.Context, name: str | None) -> str | None:
        if name is not None and not context.params.get("plugin") and name not in table.names:
            raise typer.BadParameter(f"'{name}' is not one of {', '.join(table.names)}")
        return name

    return check
