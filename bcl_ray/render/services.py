"""What stands beside Ray: accounts, MLflow, its database, Redis."""

from bcl_ray.render.description import Description
from bcl_ray.render.pods import (
    DATABASE_SECRET,
    MLFLOW_PORT,
    POSTGRESQL_PORT,
    REDIS_PORT,
    REDIS_SECRET,
    ROLE,
    SHARED_CLAIM,
    Plain,
    container_security,
    metadata,
    pod_security,
    resources,
    secret_variable,
    shared_path,
    store_secret,
    store_variables,
    variables,
)

POSTGRESQL, REDIS = "postgres:17.6", "redis:7.4.5"
DATABASE_USER = 999  # of both images
ACCOUNTS, ACCOUNTS_PATH = "mlflow-accounts", "/etc/mlflow"


def namespace(description: Description) -> Plain:
    """The namespace; Kubernetes refuses pods in it that ask for privileges."""
    labels = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
    }
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": description.name, "labels": labels},
    }


def service_accounts(description: Description) -> list[Plain]:
    """The head's, and everybody else's; both may use the object store, as an IAM role."""
    role = description.object_store.role_arn
    annotations: Plain = {"annotations": {"eks.amazonaws.com/role-arn": role}} if role else {}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata(description, name, **annotations),
            "automountServiceAccountToken": False,
        }
        for name in ("ray-head", "ray")
    ]


def allowed_hosts(description: Description) -> list[str]:
    """Host headers that MLflow answers: its service's names with and without port, and loopback.

    MLflow compares the whole header, port included, and knows no service's name by itself.
    """
    name = description.name
    names = ["mlflow", f"mlflow.{name}", f"mlflow.{name}.svc", f"mlflow.{name}.svc.cluster.local"]
    return [
        *(host for found in names for host in (found, f"{found}:{MLFLOW_PORT}")),
        *(host for found in ("localhost", "127.0.0.1") for host in (found, f"{found}:*")),
    ]


def mlflow(description: Description) -> list[Plain]:
    """The tracking server: any number may run, for its state is in PostgreSQL and in S3."""
    labels = {ROLE: "mlflow"}
    database = f"postgresql://mlflow@postgresql.{description.name}.svc.cluster.local/mlflow"
    path = shared_path(description)
    secret = description.tracking.secret
    volumes: list[Plain] = [{"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}}]
    mounts: list[Plain] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    if path:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": SHARED_CLAIM}})
        mounts.append({"name": "shared", "mountPath": path})
    if secret:
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
            *(["--app-name=basic-auth"] if secret else []),
        ],
        "env": [
            *variables(
                {
                    "HOME": "/tmp",  # noqa: S108
                    # libpq takes the password from PGPASSWORD: it is in no command line
                    "MLFLOW_BACKEND_STORE_URI": database,
                    "MLFLOW_ARTIFACTS_DESTINATION": f"{description.object_store.uri}/mlflow",
                    **store_variables(description),
                }
            ),
            secret_variable("PGPASSWORD", DATABASE_SECRET, "password"),
            *(_account_variables(secret) if secret else []),
        ],
        **store_secret(description),
        "ports": [{"name": "http", "containerPort": MLFLOW_PORT}],
        "resources": resources("1", "2Gi"),
        "securityContext": container_security(read_only=True),
        # /health is exempt from the check of the Host header, which is the pod's address here.
        "startupProbe": _probe(period=5, failures=60),
        "readinessProbe": _probe(period=10, failures=3),
        "livenessProbe": _probe(period=20, failures=6),
        "volumeMounts": mounts,
    }
    pod = {
        "serviceAccountName": "ray",
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [server],
        "volumes": volumes,
    }
    if description.image.pull_secret:
        pod["imagePullSecrets"] = [{"name": description.image.pull_secret}]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(description, "mlflow", "mlflow"),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    accounts = [_accounts(description, database)] if secret else []
    return [deployment, _service(description, "mlflow", MLFLOW_PORT), *accounts]


def _account_variables(secret: str) -> list[Plain]:
    """Of a server that asks who wants something: its first account, which may make others."""
    return [
        *variables({"MLFLOW_AUTH_CONFIG_PATH": f"{ACCOUNTS_PATH}/basic_auth.ini"}),
        secret_variable("MLFLOW_AUTH_ADMIN_USERNAME", secret, "username"),
        secret_variable("MLFLOW_AUTH_ADMIN_PASSWORD", secret, "password"),
        secret_variable("MLFLOW_FLASK_SERVER_SECRET_KEY", secret, "session"),
    ]


def _accounts(description: Description, database: str) -> Plain:
    """MLflow's settings of accounts, which are in the database of runs."""
    settings = f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\n"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(description, ACCOUNTS),
        "data": {"basic_auth.ini": settings},
    }


def postgresql(description: Description) -> list[Plain]:
    """MLflow's database, on a disk that outlives its pod."""
    ready = {"exec": {"command": ["pg_isready", "-h", "127.0.0.1", "-U", "mlflow"]}}
    server = {
        "name": "postgresql",
        "image": POSTGRESQL,
        "env": [
            *variables(
                {
                    "POSTGRES_USER": "mlflow",
                    "POSTGRES_DB": "mlflow",
                    "PGDATA": "/var/lib/postgresql/data/pgdata",
                }
            ),
            secret_variable("POSTGRES_PASSWORD", DATABASE_SECRET, "password"),
        ],
        "ports": [{"name": "postgresql", "containerPort": POSTGRESQL_PORT}],
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**ready, "periodSeconds": 20, "timeoutSeconds": 5, "failureThreshold": 6},
    }
    scratch = {"run": "/var/run/postgresql", "tmp": "/tmp"}  # noqa: S108
    return _database(description, server, "/var/lib/postgresql/data", POSTGRESQL_PORT, scratch)


def redis(description: Description) -> list[Plain]:
    """What the head's control store writes to, so that another head can take over."""
    # The password comes by standard input: it is in no command line.
    start = (
        "printf 'requirepass %s\\nappendonly yes\\ndir /data\\n' \"$REDIS_PASSWORD\""
        " | exec redis-server -"
    )
    ping = 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli ping | grep PONG'
    ready = {"exec": {"command": ["sh", "-c", ping]}}
    server = {
        "name": "redis",
        "image": REDIS,
        "command": ["sh", "-c", start],
        "env": [secret_variable("REDIS_PASSWORD", REDIS_SECRET, "password")],
        "ports": [{"name": "redis", "containerPort": REDIS_PORT}],
        "readinessProbe": {**ready, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**ready, "periodSeconds": 20, "timeoutSeconds": 5, "failureThreshold": 6},
    }
    return _database(description, server, "/data", REDIS_PORT, {"tmp": "/tmp"})  # noqa: S108


def shared_claim(description: Description, *, mode: str = "ReadWriteMany") -> Plain:
    """The volume of `object_store.uri: file://...`."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(description, SHARED_CLAIM),
        "spec": {
            "accessModes": [mode],
            "resources": {"requests": {"storage": f"{description.tracking.storage_gib}Gi"}},
        },
    }


def _probe(*, period: int, failures: int) -> Plain:
    return {
        "httpGet": {"path": "/health", "port": MLFLOW_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _service(description: Description, role: str, port: int, *, headless: bool = False) -> Plain:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(description, role, role),
        "spec": {
            "type": "ClusterIP",
            **({"clusterIP": "None"} if headless else {}),
            "selector": {ROLE: role},
            "ports": [{"name": "http" if role == "mlflow" else role, "port": port}],
        },
    }


def _database(
    description: Description, server: Plain, data: str, port: int, scratch: dict[str, str]
) -> list[Plain]:
    """A StatefulSet of one, with a disk at `data` and empty folders at `scratch`."""
    role = server["name"]
    labels = {ROLE: role}
    storage_class = description.kubernetes.storage_class
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            **({"storageClassName": storage_class} if storage_class else {}),
            "resources": {"requests": {"storage": f"{description.tracking.storage_gib}Gi"}},
        },
    }
    mounts = [{"name": "data", "mountPath": data}]
    mounts += [{"name": name, "mountPath": path} for name, path in scratch.items()]
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": pod_security(DATABASE_USER),
        "terminationGracePeriodSeconds": 60,
        "containers": [
            {
                **server,
                "resources": resources("1", "1Gi"),
                "securityContext": container_security(read_only=True),
                "volumeMounts": mounts,
            }
        ],
        "volumes": [{"name": name, "emptyDir": {}} for name in scratch],
    }
    statefulset = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(description, role, role),
        "spec": {
            "serviceName": role,
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            "volumeClaimTemplates": [claim],
        },
    }
    return [statefulset, _service(description, role, port, headless=True)]
