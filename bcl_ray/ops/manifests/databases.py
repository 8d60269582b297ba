"""PostgreSQL behind MLflow, and Redis behind Ray's head."""

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import (
    DATABASE_SECRET,
    POSTGRESQL_PORT,
    REDIS_PORT,
    REDIS_SECRET,
    ROLE,
    Plain,
    container_security,
    metadata,
    pod,
    resources,
    secret_variable,
    service,
    variables,
)

POSTGRESQL, REDIS = "postgres:17.6", "redis:7.4.5"
DATABASE_USER = 999  # of both images


def postgresql(description: ClusterDescription) -> list[Plain]:
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


def redis(description: ClusterDescription) -> list[Plain]:
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


def _database(
    description: ClusterDescription, server: Plain, data: str, port: int, scratch: dict[str, str]
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
    container = {
        **server,
        "resources": resources(1, "1Gi"),
        "securityContext": container_security(read_only=True),
        "volumeMounts": mounts,
    }
    template = pod(
        description,
        [container],
        account=None,
        user=DATABASE_USER,
        terminationGracePeriodSeconds=60,
        volumes=[{"name": name, "emptyDir": {}} for name in scratch],
    )
    statefulset = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(description, role, role),
        "spec": {
            "serviceName": role,
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": template},
            "volumeClaimTemplates": [claim],
        },
    }
    return [statefulset, service(description, role, port, headless=True)]
