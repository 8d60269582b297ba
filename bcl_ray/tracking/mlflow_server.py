"""Settings of every MLflow server that this project starts, and accounts on it."""

import os
import sys

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes, for language models alone
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
ADMIN = "admin"
# Environment variables with the name and the password of an account to create.
NAME, PASSWORD = "BCL_RAY_ACCOUNT_NAME", "BCL_RAY_ACCOUNT_PASSWORD"


def basic_auth(database: str) -> str:
    """Text of MLflow's `basic_auth.ini`: accounts may read everything, and own what they create.

    Args:
        database: URI of the database of accounts, without a password; may be that of the runs.
    """
    settings = {"default_permission": "READ", "database_uri": database, "admin_username": ADMIN}
    return "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in settings.items()), ""])


def ensure_account(uri: str, name: str, password: str) -> bool:
    """Create an account, or set the password of an existing one.

    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD must be those of the administrator. If the
    server does not answer yet, MLflow's client waits for it for up to four minutes.

    Args:
        uri: URI of a server with accounts.
        name: Name of the account.
        password: At least 12 characters, as MLflow requires.

    Returns:
        Whether the account is new.

    Raises:
        OSError: The server does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415  (takes seconds)
    from mlflow.server import get_app_client  # noqa: PLC0415

    client = get_app_client("basic-auth", tracking_uri=uri)
    try:
        try:
            client.create_user(name, password)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            client.update_user_password(name, password)
            return False
    except MlflowException as error:  # other lines may contain the row of the database
        first_line = error.message.splitlines()[0]
        raise OSError(f"MLflow at {uri} did not create account '{name}': {first_line}") from None
    return True


def main() -> None:
    """Run `python -m bcl_ray.tracking.mlflow_server`: create the account in the environment."""
    os.environ.update(SETTINGS)
    try:
        uri, name, password = (os.environ[key] for key in ("MLFLOW_TRACKING_URI", NAME, PASSWORD))
        is_new = ensure_account(uri, name, password)
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set")
    except OSError as error:
        sys.exit(str(error))
    sys.stdout.write(f"account '{name}': {'created' if is_new else 'password set'}\n")


if __name__ == "__main__":
    main()
