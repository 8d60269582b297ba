"""From a description to files: one dict of relative path to text per target."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bcl_ray.render import aws, kuberay, network, rules, services, slurm
from bcl_ray.render.description import Description
from bcl_ray.render.pods import Plain, resources, shared_path

TARGETS = ("kuberay", "aws", "slurm")
NOTE = "Rendered by `bcl-ray cluster render {}` from the cluster's description: change that."


def render(target: str, description: Description) -> dict[str, str]:
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
        return {"cluster.yaml": text}
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


def _kuberay(description: Description) -> dict[str, str]:
    files = {f"base/{name}": objects for name, objects in _base(description).items()}
    overlays = {"gpu": description.model_copy(update={"queue": None}), "kind": _tiny(description)}
    if description.queue:
        overlays["gpu-queue"] = description
    for name, variant in overlays.items():
        files |= {f"overlays/{name}/{file}": found for file, found in _overlay(variant).items()}
    kustomizations = {
        f"{folder}/kustomization.yaml": [_kustomization(folder, files, description)]
        for folder in ("base", *(f"overlays/{name}" for name in overlays))
    }
    for found in files.values():
        rules.check(found)
    texts = {**files, **kustomizations}
    return {name: as_yaml(texts[name], "kuberay") for name in sorted(texts)}


def _base(description: Description) -> dict[str, list[Plain]]:
    files = {
        "namespace.yaml": [services.namespace(description)],
        "serviceaccounts.yaml": services.service_accounts(description),
        "networkpolicies.yaml": network.network_policies(description),
    }
    if description.tracking.uri is None:
        files["mlflow.yaml"] = services.mlflow(description)
        files["postgresql.yaml"] = services.postgresql(description)
    if description.head.redis:
        files["redis.yaml"] = services.redis(description)
    return files


def _overlay(variant: Description) -> dict[str, list[Plain]]:
    """What depends on the nodes; with a queue there is no standing cluster beside the jobs."""
    job, gpu = kuberay.job_name(variant), variant.gpu
    clusters = [job] if variant.queue else [variant.name, job]
    budgets = [
        kuberay.disruption_budget(variant, cluster, role, pods)
        for cluster in clusters
        for role, pods in (("head", 1), ("steady", gpu.steady_nodes))
    ]
    files = {"disruption.yaml": budgets, "rayjob.yaml": [kuberay.ray_job(variant)]}
    if variant.queue:
        files["localqueue.yaml"] = [kuberay.local_queue(variant)]
    else:
        files["raycluster.yaml"] = [kuberay.ray_cluster(variant)]
    if shared_path(variant):
        tiny = variant.job.recipe == "digits_lt"
        mode = "ReadWriteOnce" if tiny else "ReadWriteMany"
        files["shared.yaml"] = [services.shared_claim(variant, mode=mode)]
    return files


def _kustomization(folder: str, files: dict[str, list[Plain]], description: Description) -> Plain:
    """A job is no part of it: it is submitted by itself, each time anew."""
    names = [name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/")]
    found: Plain = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(set(names) - {"rayjob.yaml"}),
    }
    if folder != "base":
        found["resources"] = ["../../base", *found["resources"]]
    if folder == "overlays/kind" and description.tracking.uri is None:
        found["patches"] = _kind_patches(description)
    return found


def _tiny(description: Description) -> Description:
    """The same on one machine without GPUs and without S3: a volume that its one node mounts."""
    head, data, gpu, job = description.head, description.data, description.gpu, description.job
    small = {"cpus": 1, "memory_gib": 3}
    return description.model_copy(
        update={
            "head": head.model_copy(update=small),
            "data": data.model_copy(update={**small, "min_nodes": 0, "max_nodes": 1}),
            "gpu": gpu.model_copy(update={**small, "gpus": 0, "steady_nodes": 1, "spot_nodes": 1}),
            "job": job.model_copy(
                update={"recipe": "digits_lt", "run": "digits-lt-1", "workers": 2, "overrides": ()}
            ),
            "object_store": description.object_store.model_copy(
                update={"uri": "file:///shared", "secret": None}
            ),
            "kubernetes": description.kubernetes.model_copy(
                update={"steady_selector": {}, "spot_selector": {}, "spot_taint": None}
            ),
            "queue": None,
        }
    )


def _kind_patches(description: Description) -> list[Plain]:
    """MLflow's artifacts go to the shared volume, and its pods are small."""
    pod = services.mlflow(_tiny(description))[0]["spec"]["template"]["spec"]
    server, name = pod["containers"][0], "MLFLOW_ARTIFACTS_DESTINATION"
    small = {"resources": resources("500m", "1Gi")}
    server = {
        "name": "mlflow",
        **small,
        "env": [variable for variable in server["env"] if variable["name"] == name],
        "volumeMounts": server["volumeMounts"],
    }
    return [
        _patch("Deployment", "mlflow", {"containers": [server], "volumes": pod["volumes"]}),
        _patch("StatefulSet", "postgresql", {"containers": [{"name": "postgresql", **small}]}),
    ]


def _patch(kind: str, name: str, pod: Plain) -> Plain:
    content = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"template": {"spec": pod}},
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False)
    return {"target": {"kind": kind, "name": name}, "patch": text}
