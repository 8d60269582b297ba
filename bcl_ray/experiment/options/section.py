"""What all sections of an experiment share: the base class, and types of fields."""

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from bcl_ray.machine.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of runs, models and whatever else names a folder."""
Share = Annotated[float, Field(ge=0, le=1)]


def _without_password(uri: str) -> str:
    user, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise UserError(
            "a URI must not hold a password, because it is shown and stored with the run: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for an MLflow server, or the "
            "object store's own variables, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_password)]


class OrNull:
    """Lets an option be null, which the type that a program sees does not show."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The schema of a value of the type, or of null."""
        return core_schema.nullable_schema(handler(source))


Value = TypeVar("Value")
Open = Annotated[Value, OrNull()]
"""An option that may be left open (null). `open_options.resolved` gives it the backbone's own value
before a run begins, so that all code of a run sees a value."""


class Section(BaseModel):
    """A frozen group of options that refuses unknown ones."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )
