"""From a description to files: one dict of relative path to text per target."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bcl_ray.ops.manifests import (
    aws,
    databases,
    kuberay,
    network,
    policies,
    rules,
    services,
    slurm,
    tracking,
)
from bcl_ray.ops.manifests.description import ClusterDescription
from bcl_ray.ops.manifests.jobs import WITHOUT_WORKERS, Jobs, job_name, kinds
from bcl_ray.ops.manifests.pods import Plain, shared_path

TARGETS = ("kuberay", "aws", "slurm")
NOTE = "Rendered by `bcl-ray cluster render {}` from the cluster's description: change that."


def render(target: str, description: ClusterDescription) -> dict[str, str]:
    """The files of a target, which have been checked.

    Args:
        target: one of TARGETS.
        description: of the cluster.

    Returns:
        Text by path, relative to the target's folder.

    Raises:
        ValueError: the description lacks what the target needs, or the files would be refused.
    """
    if target == "aws":
        text = as_yaml([aws.ray_up(description)], target)
        return {"cluster.yaml": text, **aws.iam(description)}
    if target == "slurm":
        return {"train.sbatch": slurm.script(description, NOTE.format(target))}
    return _kuberay(description)


def write(files: dict[str, str], folder: Path) -> list[Path]:
    """Write files into a folder; returns their paths. What else lies there stays."""
    written = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)
        written.append(path)
    return written


def as_yaml(objects: Sequence[Any], target: str) -> str:
    """YAML documents under a note on where they come from."""
    dump = yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, width=100, default_flow_style=False
    )
    return f"# {NOTE.format(target)}\n{dump}"


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out again, where PyYAML would refer to the first; long text as lines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Nothing refers to anything."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _kuberay(description: ClusterDescription) -> dict[str, str]:
    objects = {f"base/{name}": found for name, found in _base(description).items()}
    overlays = {"gpu": description.model_copy(update={"queue": None}), "kind": _tiny(description)}
    if description.queue:
        overlays["gpu-queue"] = description
    for name, variant in overlays.items():
        standing = name == "gpu"
        files = _overlay(variant, standing=standing)
        objects |= {f"overlays/{name}/{file}": content for file, content in files.items()}
    kustomizations = {
        f"{folder}/kustomization.yaml": [_kustomization(folder, objects, description)]
        for folder in ("base", *(f"overlays/{name}" for name in overlays))
    }
    for content in objects.values():
        rules.check(content)
    all_objects = {**objects, **kustomizations}
    texts = {name: as_yaml(all_objects[name], "kuberay") for name in sorted(all_objects)}
    if description.object_store.roles:
        documents = policies.policies(description, policies.ON_KUBERNETES)
        texts |= policies.files(documents)
    return texts


def _base(description: ClusterDescription) -> dict[str, list[Plain]]:
    files = {
        "namespace.yaml": [services.namespace(description)],
        "serviceaccounts.yaml": services.service_accounts(description),
        "networkpolicies.yaml": network.network_policies(description),
    }
    if description.tracking.uri is None:
        files["mlflow.yaml"] = tracking.mlflow(description)
        files["postgresql.yaml"] = databases.postgresql(description)
    if description.head.redis:
        files["redis.yaml"] = databases.redis(description)
    return files


def _overlay(variant: ClusterDescription, *, standing: bool) -> dict[str, list[Plain]]:
    """What depends on the nodes.

    Args:
        standing: with a cluster that stays, beside those that jobs bring.
    """
    files = {
        f"jobs/{kind}.yaml": [
            kuberay.ray_job(variant, kind),
            *_budgets(variant, job_name(variant, kind), workers=kind not in WITHOUT_WORKERS),
        ]
        for kind in kinds(variant)
    }
    if variant.queue:
        files["localqueue.yaml"] = [kuberay.local_queue(variant)]
    if standing:
        budgets = _budgets(variant, variant.name)
        files["raycluster.yaml"] = [kuberay.ray_cluster(variant), *budgets]
    if shared_path(variant):
        tiny = variant.job.recipe == "digits_lt"
        mode = "ReadWriteOnce" if tiny else "ReadWriteMany"
        files["shared.yaml"] = [services.shared_claim(variant, mode=mode)]
    return files


def _budgets(variant: ClusterDescription, cluster: str, *, workers: bool = True) -> list[Plain]:
    kept = {"head": 1, **({"steady": variant.gpu.steady_nodes} if workers else {})}
    return [kuberay.disruption_budget(variant, cluster, role, pods) for role, pods in kept.items()]


def _kustomization(
    folder: str, files: dict[str, list[Plain]], description: ClusterDescription
) -> Plain:
    """A job is no part of it: it is submitted by itself, each time anew."""
    names = [name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/")]
    found: Plain = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(name for name in names if not name.startswith("jobs/")),
    }
    if folder != "base":
        found["resources"] = ["../../base", *found["resources"]]
    if folder == "overlays/kind" and description.tracking.uri is None:
        found["patches"] = _kind_patches(description)
    return found


def _tiny(description: ClusterDescription) -> ClusterDescription:
    """The same on one machine without GPUs and without S3: a volume that its one node mounts."""
    head, data, gpu, job = description.head, description.data, description.gpu, description.job
    small = {"cpus": 1, "memory_gib": 3, "scratch_gib": 5}
    training = {"recipe": "digits_lt", "run": "digits-lt-1", "workers": 2, "overrides": ()}
    training |= {"keep_minutes": 1}  # there is no room for two clusters
    jobs = Jobs(
        shard="digits --profile exponential --imbalance-factor 50",
        predict="file:///shared/shards/digits_lt",
    )
    updates = {
        "head": head.model_copy(update=small),
        "data": data.model_copy(update={**small, "memory_gib": 2, "min_nodes": 0, "max_nodes": 1}),
        "gpu": gpu.model_copy(update={**small, "gpus": 0, "steady_nodes": 1, "spot_nodes": 1}),
        "job": job.model_copy(update=training),
        "jobs": jobs,
        "object_store": description.object_store.model_copy(
            update={"uri": "file:///shared", "secret": None, "sources": ()}
        ),
        "kubernetes": description.kubernetes.model_copy(
            update={
                **{f"{nodes}_selector": {} for nodes in ("steady", "spot", "services")},
                **dict.fromkeys(("spot_taint", "scratch_class", "storage_class")),
            }
        ),
        "queue": None,
    }
    return description.model_copy(update=updates)


def _kind_patches(description: ClusterDescription) -> list[Plain]:
    """MLflow's artifacts go to the shared volume, and services to the one node, with half a CPU."""
    pod = tracking.mlflow(_tiny(description))[0]["spec"]["template"]["spec"]
    server, name = pod["containers"][0], "MLFLOW_ARTIFACTS_DESTINATION"
    half = {kind: {"cpu": "500m"} for kind in ("limits", "requests")}
    server = {
        "name": "mlflow",
        "resources": half,
        "env": [variable for variable in server["env"] if variable["name"] == name],
        "volumeMounts": server["volumeMounts"],
    }
    database, anywhere = {"name": "postgresql", "resources": half}, {"nodeSelector": None}
    own = {**anywhere, "containers": [server], "volumes": pod["volumes"]}
    patches = [
        _patch("apps/v1", "Deployment", "mlflow", own),
        _patch("apps/v1", "StatefulSet", "postgresql", {**anywhere, "containers": [database]}),
    ]
    if description.tracking.secret:
        patches.append(_patch("batch/v1", "Job", tracking.CLIENT_ROLE, anywhere))
    return patches


def _patch(version: str, kind: str, name: str, pod: Plain) -> Plain:
    content = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}},
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False)
    return {"target": {"kind": kind, "name": name}, "patch": text}
