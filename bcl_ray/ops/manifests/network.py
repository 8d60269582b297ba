"""Who may reach whom: NetworkPolicy objects."""

from urllib.parse import urlsplit

from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.pods import (
    CLIENT,
    DASHBOARD_PORT,
    MLFLOW_PORT,
    POSTGRESQL_PORT,
    RAY_ROLES,
    REDIS_PORT,
    ROLE,
    Plain,
    metadata,
)
from bcl_ray.ops.manifests.tracking import CLIENT_ROLE

METRICS_PORTS = (8080, 44217, 44227)  # KubeRay's of Ray; on the head autoscaler and dashboard too
Policy = tuple[str, Plain, list[Plain], list[Plain]]  # name, pods, who comes in, where they go


def network_policies(description: ClusterDescription) -> list[Plain]:
    """Nobody reaches anybody, but for what is listed here.

    A token guards Ray's ports as well; it is no encryption, which is a service mesh's or the
    network's to give.
    """
    policies = [*_ray(description), *_tracking(description)]
    if description.head.redis:
        policies += _redis()
    return [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata(description, name),
            "spec": {
                "podSelector": selector,
                "policyTypes": ["Ingress", "Egress"],
                **({"ingress": ingress} if ingress else {}),
                **({"egress": egress} if egress else {}),
            },
        }
        for name, selector, ingress, egress in policies
    ]


def _ray(description: ClusterDescription) -> list[Policy]:
    ray = [_from_roles(*RAY_ROLES)]
    to_mlflow = {"to": [_from_roles("mlflow")], "ports": _ports(MLFLOW_PORT)}
    operator = _namespace(description.kubernetes.operator_namespace)
    guests = [operator, _client(), _from_roles("submitter")]
    to_head = {"to": [_from_roles("head")], "ports": _ports(DASHBOARD_PORT)}
    return [
        ("default-deny", {}, [], []),
        (
            "ray",
            _roles(*RAY_ROLES),
            [{"from": ray}],
            [{"to": ray}, to_mlflow, *_outside(description), *_dns(description)],
        ),
        (
            "ray-head",
            _roles("head"),
            [{"from": guests, "ports": _ports(DASHBOARD_PORT)}],
            [{"ports": _ports(443, 6443)}],  # the Kubernetes API, for the autoscaler
        ),
        ("submitter", _roles("submitter"), [], [to_head, *_dns(description)]),
        *_monitoring(description),
    ]


def _monitoring(description: ClusterDescription) -> list[Policy]:
    namespace = description.kubernetes.monitoring_namespace
    if namespace is None:
        return []
    readers = {"from": [_namespace(namespace)], "ports": _ports(*METRICS_PORTS)}
    return [("metrics", _roles(*RAY_ROLES), [readers], [])]


def _tracking(description: ClusterDescription) -> list[Policy]:
    users = [_from_roles(*RAY_ROLES, CLIENT_ROLE), _client()]
    to_mlflow = {"to": [_from_roles("mlflow")], "ports": _ports(MLFLOW_PORT)}
    to_database = {"to": [_from_roles("postgresql")], "ports": _ports(POSTGRESQL_PORT)}
    from_mlflow = {"from": [_from_roles("mlflow")], "ports": _ports(POSTGRESQL_PORT)}
    return [
        (
            "mlflow",
            _roles("mlflow"),
            [{"from": users, "ports": _ports(MLFLOW_PORT)}],
            [to_database, *_outside(description), *_dns(description)],
        ),
        ("postgresql", _roles("postgresql"), [from_mlflow], []),
        (CLIENT_ROLE, _roles(CLIENT_ROLE), [], [to_mlflow, *_dns(description)]),
    ]


def _redis() -> list[Policy]:
    ports = _ports(REDIS_PORT)
    return [
        ("redis", _roles("redis"), [{"from": [_from_roles("head")], "ports": ports}], []),
        ("ray-head-to-redis", _roles("head"), [], [{"to": [_from_roles("redis")], "ports": ports}]),
    ]


def _client() -> Plain:
    return {"podSelector": {"matchLabels": {CLIENT: "true"}}}


def _outside(description: ClusterDescription) -> list[Plain]:
    """To the object store and to what gives out its credentials, but not to a node's metadata."""
    ports = {443}
    for address in (description.object_store.endpoint, description.tracking.uri):
        if address:
            parts = urlsplit(address)
            ports.add(parts.port or (443 if parts.scheme == "https" else 80))
    anywhere = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}
    return [{"to": [anywhere], "ports": _ports(*sorted(ports))}]


def _dns(description: ClusterDescription) -> list[Plain]:
    """To the cluster's DNS, and to each node's own cache of it where there is one."""
    dns = description.kubernetes.dns
    rules = [{"to": [_namespace(dns.namespace)], "ports": _dns_ports(*dns.ports)}]
    if dns.local_address:
        cache = {"ipBlock": {"cidr": f"{dns.local_address}/32"}}
        rules.append({"to": [cache], "ports": _dns_ports(53)})
    return rules


def _dns_ports(*ports: int) -> list[Plain]:
    return [{"protocol": protocol, "port": port} for port in ports for protocol in ("UDP", "TCP")]


def _namespace(name: str) -> Plain:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _roles(*roles: str) -> Plain:
    return {"matchExpressions": [{"key": ROLE, "operator": "In", "values": list(roles)}]}


def _from_roles(*roles: str) -> Plain:
    return {"podSelector": _roles(*roles)}


def _ports(*ports: int) -> list[Plain]:
    return [{"protocol": "TCP", "port": port} for port in ports]
