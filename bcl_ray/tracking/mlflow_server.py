"""What an MLflow server has wherever we start one: its settings, and accounts of its clients."""

import os
import sys

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of language models: eight more processes
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
ADMIN = "admin"
NAME, PASSWORD = "BCL_RAY_ACCOUNT_NAME", "BCL_RAY_ACCOUNT_PASSWORD"  # of an account to be made


def basic_auth(database: str) -> str:
    """Text of MLflow's `basic_auth.ini`: who has an account reads all, and owns what it creates.

    Args:
        database: of accounts, which may be that of runs; without a password.
    """
    settings = {"default_permission": "READ", "database_uri": database, "admin_username": ADMIN}
    return "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in settings.items()), ""])


def ensure_account(uri: str, name: str, password: str) -> bool:
    """Make an account, or give the one that exists this password.

    The administrator asks, as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD say; a server
    that does not answer yet is waited for, as long as MLflow's client does (four minutes).

    Args:
        uri: of a server that asks for a name and a password.
        name: of the account.
        password: at least 12 characters, as MLflow wants it.

    Returns:
        Whether the account is new.

    Raises:
        OSError: the server does not answer, or refuses.
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
    except MlflowException as error:  # its further lines may hold the database's row
        first = error.message.splitlines()[0]
        raise OSError(f"MLflow at {uri} did not make the account '{name}': {first}") from None
    return True


def main() -> None:
    """`-m bcl_ray.tracking.mlflow_server`: the account of this environment, on its server."""
    os.environ.update(SETTINGS)
    try:
        uri, name, password = (os.environ[key] for key in ("MLFLOW_TRACKING_URI", NAME, PASSWORD))
        new = ensure_account(uri, name, password)
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set")
    except OSError as error:
        sys.exit(str(error))
    sys.stdout.write(f"account '{name}' {'is made' if new else 'has this password'}\n")


if __name__ == "__main__":
    main()
