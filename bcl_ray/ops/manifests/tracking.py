"""MLflow's server on Kubernetes, and the accounts of those who ask it."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import (
    DATABASE_SECRET,
    MLFLOW_ACCOUNT,
    MLFLOW_PORT,
    ROLE,
    SHARED_CLAIM,
    Plain,
    container_security,
    metadata,
    pod,
    resources,
    secret_variable,
    service,
    shared_path,
    store_secret,
    store_variables,
    tracking_uri,
    variables,
)
from bcl_ray.tracking import mlflow_server

ACCOUNTS, ACCOUNTS_PATH = "mlflow-accounts", "/etc/mlflow"
CLIENT_ROLE = "mlflow-account"  # of the pod that makes the account of Ray's pods
MEMORY = "1536Mi"  # two workers take 650 MiB: tests/cluster/test_mlflow_memory.py


def allowed_hosts(description: ClusterDescription) -> list[str]:
    """Host headers that MLflow answers: its service's names with and without port, and loopback.

    MLflow compares the whole header, port included, and knows no service's name by itself.
    """
    name = description.name
    names = ["mlflow", f"mlflow.{name}", f"mlflow.{name}.svc", f"mlflow.{name}.svc.cluster.local"]
    return [
        *(host for found in names for host in (found, f"{found}:{MLFLOW_PORT}")),
        *(host for found in ("localhost", "127.0.0.1") for host in (found, f"{found}:*")),
    ]


def mlflow(description: ClusterDescription) -> list[Plain]:
    """The tracking server: any number may run, for its state is in PostgreSQL and in S3."""
    labels = {ROLE: "mlflow"}
    database = f"postgresql://mlflow@postgresql.{description.name}.svc.cluster.local/mlflow"
    path = shared_path(description)
    asks = description.tracking.secret is not None
    volumes: list[Plain] = [{"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}}]
    mounts: list[Plain] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if path:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": SHARED_CLAIM}})
        mounts.append({"name": "shared", "mountPath": path})
    if asks:
        volumes.append({"name": "accounts", "configMap": {"name": ACCOUNTS}})
        mounts.append({"name": "accounts", "mountPath": ACCOUNTS_PATH, "readOnly": True})
    server = {
        "name": "mlflow",
        "image": description.image.cpu,
        "command": ["mlflow", "server"],
        "args": [
            "--host=0.0.0.0",
            f"--port={MLFLOW_PORT}",
            "--workers=2",
            f"--allowed-hosts={','.join(allowed_hosts(description))}",
            *(["--app-name=basic-auth"] if asks else []),
        ],
        "env": [
            *variables(
                {
                    "HOME": "/tmp",  # noqa: S108
                    # libpq takes the password from PGPASSWORD: it is in no command line
                    "MLFLOW_BACKEND_STORE_URI": database,
                    "MLFLOW_ARTIFACTS_DESTINATION": f"{description.object_store.uri}/mlflow",
                    **mlflow_server.SETTINGS,
                    **store_variables(description),
                }
            ),
            secret_variable("PGPASSWORD", DATABASE_SECRET, "password"),
            *(_admin_variables(description) if asks else []),
        ],
        **store_secret(description),
        "ports": [{"name": "http", "containerPort": MLFLOW_PORT}],
        "resources": resources(1, MEMORY),
        "securityContext": container_security(read_only=True),
        # /health is exempt from the check of the Host header, which is the pod's address here.
        "startupProbe": _probe(period=5, failures=60),
        "readinessProbe": _probe(period=10, failures=3),
        "livenessProbe": _probe(period=20, failures=6),
        "volumeMounts": mounts,
    }
    template = pod(description, [server], account=MLFLOW_ACCOUNT, volumes=volumes)
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(description, "mlflow", "mlflow"),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": template},
        },
    }
    accounts = [_accounts(description, database), _client(description)] if asks else []
    return [deployment, service(description, "mlflow", MLFLOW_PORT), *accounts]


def _admin_variables(description: ClusterDescription) -> list[Plain]:
    """Of a server that asks who wants something: its administrator, who makes other accounts."""
    secret = description.tracking.admin_secret
    return [
        *variables({"MLFLOW_AUTH_CONFIG_PATH": f"{ACCOUNTS_PATH}/basic_auth.ini"}),
        secret_variable("MLFLOW_AUTH_ADMIN_USERNAME", secret, "username"),
        secret_variable("MLFLOW_AUTH_ADMIN_PASSWORD", secret, "password"),
        secret_variable("MLFLOW_FLASK_SERVER_SECRET_KEY", secret, "session"),
    ]


def _accounts(description: ClusterDescription, database: str) -> Plain:
    """MLflow's settings of accounts, which are in the database of runs."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(description, ACCOUNTS),
        "data": {"basic_auth.ini": mlflow_server.basic_auth(database)},
    }


def _client(description: ClusterDescription) -> Plain:
    """A Job that makes the account of Ray's pods, or gives it the password of its secret.

    It waits for the server, and goes an hour after its end: one that is there cannot be changed.
    """
    tracking = description.tracking
    assert tracking.secret is not None
    container = {
        "name": "account",
        "image": description.image.cpu,
        "command": ["python", "-m", "bcl_ray.tracking.mlflow_server"],
        "env": [
            *variables({"HOME": "/tmp", "MLFLOW_TRACKING_URI": tracking_uri(description)}),  # noqa: S108
            secret_variable("MLFLOW_TRACKING_USERNAME", tracking.admin_secret, "username"),
            secret_variable("MLFLOW_TRACKING_PASSWORD", tracking.admin_secret, "password"),
            secret_variable(mlflow_server.NAME, tracking.secret, "username"),
            secret_variable(mlflow_server.PASSWORD, tracking.secret, "password"),
        ],
        "resources": resources("200m", "512Mi"),
        "securityContext": container_security(read_only=True),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    template = pod(
        description,
        [container],
        restartPolicy="OnFailure",
        volumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(description, CLIENT_ROLE, CLIENT_ROLE),
        "spec": {
            "backoffLimit": 6,
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": {ROLE: CLIENT_ROLE}}, "spec": template},
        },
    }


def _probe(*, period: int, failures: int) -> Plain:
    return {
        "httpGet": {"path": "/health", "port": MLFLOW_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
