"""Names of tables on the command line, which are refused while it is parsed."""

from collections.abc import Callable
from typing import Any

import typer

from bcl_ray.experiment.choices import Table


def one_of(table: Table[Any]) -> Callable[[typer.Context, str | None], str | None]:
    """A check for an option or argument that takes a name of a table.

    Where --plugin is given the name may be one of its, and the command itself looks.
    """

    def check(context: typer.Context, name: str | None) -> str | None:
        if name is not None and not context.params.get("plugin") and name not in table.names:
            raise typer.BadParameter(f"'{name}' is not one of {', '.join(table.names)}")
        return name

    return check
