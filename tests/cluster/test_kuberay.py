import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from typer.main import get_command
from typer.testing import CliRunner

from bcl_ray.cli import app
from bcl_ray.ops.manifests import TARGETS, render
from bcl_ray.ops.manifests.entrypoints import COMMANDS, job_name
from bcl_ray.ops.manifests.files import TARGETS as ALL
from bcl_ray.ops.manifests.platforms import Dns
from bcl_ray.tracking import mlflow_server
from tests.cluster import pod_rules, rules, schemas
from tests.cluster.conftest import ROOT
from tests.cluster.rendered import documents, objects, ray_cluster, ray_job
from tests.cluster.rendered import mlflow_server as mlflow_container

OVERLAYS = ("kind", "gpu", "gpu-queue")
JOBS = ROOT / "cluster" / "kuberay" / "overlays" / "kind" / "jobs"


def yaml_files(description):
    return {
        name: text
        for name, text in render("kuberay", description).items()
        if name.endswith(".yaml")
    }


@pytest.fixture(scope="session")
def kustomized():
    """What kustomize makes of each overlay in the tree, and the jobs beside it."""
    tool = next((name for name in ("kustomize", "kubectl") if shutil.which(name)), None)
    if tool is None:
        pytest.skip("NOT COMPOSED: neither kustomize nor kubectl is on the path")
    command = ["kustomize", "build"] if tool == "kustomize" else ["kubectl", "kustomize"]
    return {
        name: documents(
            subprocess.run(
                [*command, ROOT / "cluster" / "kuberay" / "overlays" / name],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for name in OVERLAYS
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_examples_in_the_tree_are_current(description, target):
    """`bcl-ray cluster render TARGET` would change nothing, and nothing else lies there."""
    folder = ROOT / "cluster" / target
    files = {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert files == render(target, description)


def test_the_command_writes_the_files_and_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["cluster", "render", "slurm", "--out", str(tmp_path)])
    assert done.stdout.replace("\n", "") == str(tmp_path / "train.sbatch")
    assert (tmp_path / "train.sbatch").stat().st_mode & 0o111, "it can be run"
    assert ALL == TARGETS


@pytest.mark.slow
def test_every_file_fits_its_schema(description):
    for name, text in yaml_files(description).items():
        for found in documents(text):
            assert schemas.errors(found) == [], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_compose_into_what_schemas_and_rules_accept(kustomized, overlay):
    assert [text for found in kustomized[overlay] for text in schemas.errors(found)] == []
    assert [text for found in kustomized[overlay] for text in rules.violations(found)] == []


def test_the_kind_overlay_asks_for_no_gpu_and_no_bucket(kustomized):
    jobs = [found for file in sorted(JOBS.glob("*.yaml")) for found in documents(file.read_text())]
    assert {"shard", "train"} <= {file.stem for file in JOBS.glob("*.yaml")}
    found = [*kustomized["kind"], *jobs]
    text = yaml.safe_dump_all([one for one in found if one["kind"] != "ServiceAccount"])
    for absent in ("nvidia.com/gpu", "s3://", "nodeSelector"):
        assert absent not in text
    (mlflow,) = (found for found in kustomized["kind"] if found["kind"] == "Deployment")
    variables = variables_of(mlflow["spec"]["template"]["spec"]["containers"][0])
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"] == "file:///shared/mlflow"
    assert variables["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://mlflow@postgresql.")


def test_a_queue_admits_the_whole_job_at_once(description):
    spec = ray_job(description)["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    sizes = {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in spec["workerGroupSpecs"]
    }
    assert sizes == {"data": (2, 2, 2), "steady": (1, 1, 1), "spot": (3, 3, 3)}


def test_only_steady_nodes_carry_the_label_that_rank_zero_asks_for(description):
    spec = ray_cluster(description)["spec"]
    found = {
        group["groupName"]: (group["labels"], group["template"]["spec"]["nodeSelector"])
        for group in spec["workerGroupSpecs"]
    }
    on_demand = {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    spot = {"eks.amazonaws.com/capacityType": "SPOT"}
    assert found["steady"] == ({"bcl-ray.io/market": "steady"}, on_demand)
    assert found["spot"] == ({"bcl-ray.io/market": "spot"}, spot)


def variables_of(container):
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def test_mlflow_asks_for_a_password_that_ray_s_pods_have_and_no_file(
    description, tmp_path, monkeypatch
):
    from mlflow.server.auth.config import read_auth_config

    def key(name, of="mlflow"):
        return {"secretKeyRef": {"name": of, "key": name}}

    _, _, accounts, job = objects(description, "base/mlflow.yaml")
    server = mlflow_container(description)
    found = variables_of(server)
    assert "--app-name=basic-auth" in server["args"]
    assert found["MLFLOW_AUTH_ADMIN_PASSWORD"] == key("password", of="mlflow-admin")
    assert found["MLFLOW_FLASK_SERVER_SECRET_KEY"] == key("session", of="mlflow-admin")
    mounted = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    settings = tmp_path / "basic_auth.ini"
    assert found["MLFLOW_AUTH_CONFIG_PATH"] == f"{mounted['accounts']}/{settings.name}"
    settings.write_text(accounts["data"][settings.name])
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(settings))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "from the secret")
    taken = read_auth_config()
    assert (taken.admin_password, taken.database_uri) == (
        "from the secret",
        found["MLFLOW_BACKEND_STORE_URI"],
    )
    spec = ray_cluster(description)["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert variables_of(container)["MLFLOW_TRACKING_USERNAME"] == key("username")
        assert variables_of(container)["MLFLOW_TRACKING_PASSWORD"] == key("password")
        assert "mlflow-admin" not in yaml.safe_dump(group)
    (maker,) = job["spec"]["template"]["spec"]["containers"]
    assert variables_of(maker) == {
        "HOME": "/tmp",
        "MLFLOW_TRACKING_URI": "http://mlflow.bcl-ray.svc.cluster.local:5000",
        "MLFLOW_TRACKING_USERNAME": key("username", of="mlflow-admin"),
        "MLFLOW_TRACKING_PASSWORD": key("password", of="mlflow-admin"),
        mlflow_server.NAME: key("username"),
        mlflow_server.PASSWORD: key("password"),
    }


def test_mlflow_has_our_settings_wherever_it_is_started(description):
    server = mlflow_container(description)
    assert mlflow_server.SETTINGS.items() <= variables_of(server).items()
    on_the_head = yaml.safe_load(render("aws", description)["cluster.yaml"])
    (start,) = (line for line in on_the_head["head_start_ray_commands"] if "mlflow" in line)
    for name, value in mlflow_server.SETTINGS.items():
        assert f"{name}={value} " in start.partition("nohup")[0]


def test_without_a_secret_mlflow_asks_nobody(description):
    tracking = description.tracking.model_copy(update={"secret": None})
    open_to_all = description.model_copy(update={"tracking": tracking})
    text = "".join(render("kuberay", open_to_all).values())
    for absent in ("basic-auth", "MLFLOW_AUTH", "MLFLOW_TRACKING_PASSWORD", "kind: Job\n"):
        assert absent not in text


def test_mlflow_answers_its_services_names_with_and_without_port_and_nobody_elses(description):
    """By MLflow's own check of the Host header."""
    option = "--allowed-hosts="
    (argument,) = (a for a in mlflow_container(description)["args"] if a.startswith(option))
    hosts = argument.removeprefix(option).split(",")
    for name in ("mlflow", "mlflow.bcl-ray", "mlflow.bcl-ray.svc.cluster.local", "localhost"):
        assert is_allowed_host_header(hosts, name), name
        assert is_allowed_host_header(hosts, f"{name}:5000"), name
    for name in ("evil.example", "mlflow.evil.example:5000", "mlflow:5001", "10.0.0.1:5000"):
        assert not is_allowed_host_header(hosts, name), name
    uri = ray_cluster(description)["spec"]["headGroupSpec"]["template"]["spec"]
    variables = variables_of(uri["containers"][0])
    host = variables["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert is_allowed_host_header(hosts, host), "the address that drivers use"


def allowed(policies, source, target, port):
    """Whether pods of one role reach a port of another's, as NetworkPolicy is defined."""

    def selects(selector, role):
        expressions = selector.get("matchExpressions", [])
        labels = selector.get("matchLabels", {})
        return all(role in each["values"] for each in expressions) and not labels

    def passes(direction, here, peer_key, there):
        mine = [each["spec"] for each in policies if selects(each["spec"]["podSelector"], here)]
        assert mine, "a pod that no policy selects is open to all"
        return any(
            port in [each["port"] for each in rule.get("ports", [{"port": port}])]
            and (
                peer_key not in rule
                or any(
                    selects(peer["podSelector"], there)
                    for peer in rule[peer_key]
                    if "podSelector" in peer
                )
            )
            for spec in mine
            for rule in spec.get(direction, [])
        )

    return passes("egress", source, "to", target) and passes("ingress", target, "from", source)


@pytest.mark.parametrize(
    ("source", "target", "port", "answer"),
    [
        ("spot", "head", 6379, True),
        ("head", "data", 10002, True),
        ("submitter", "head", 8265, True),
        ("submitter", "head", 6379, False),
        ("head", "mlflow", 5000, True),
        ("mlflow", "postgresql", 5432, True),
        ("head", "postgresql", 5432, False),
        ("submitter", "mlflow", 5000, False),
        ("mlflow", "head", 8265, False),
        ("head", "redis", 6379, True),
        ("data", "redis", 6379, False),
        ("mlflow", "redis", 6379, False),
        ("mlflow-account", "mlflow", 5000, True),
        ("mlflow-account", "postgresql", 5432, False),
    ],
)
def test_network_policies_let_through_what_is_needed_and_no_more(
    description, source, target, port, answer
):
    head = description.head.model_copy(update={"redis": True})
    with_redis = description.model_copy(update={"head": head})
    policies = objects(with_redis, "base/networkpolicies.yaml")
    assert allowed(policies, source, target, port) is answer


@pytest.mark.parametrize(
    ("section", "update"),
    [
        ("head", {"redis": True}),
        ("object_store", {"roles": None, "secret": "s3", "endpoint": "http://ceph.lan:7480"}),
        ("object_store", {"uri": "file:///mnt/shared", "roles": None}),
        ("gpu", {"spot_nodes": 0, "steady_nodes": 4}),
        ("data", {"max_nodes": 0}),
        ("tracking", {"uri": "https://mlflow.example.com"}),
        ("image", {"pull_secret": "registry"}),
        ("image", {"pull_secret": "yes"}),
        ("kubernetes", {"storage_class": "gp3", "spot_taint": "spot", "scratch_class": "ssd"}),
        ("kubernetes", {"monitoring_namespace": "watchers"}),
        ("queue", {"elastic": True}),
        ("queue", {"cluster_queue": "007"}),
        ("job", {"workers": (1, 4)}),
    ],
    ids=str,
)
def test_every_option_renders_into_valid_files(description, section, update):
    changed = getattr(description, section).model_copy(update=update)
    files = yaml_files(description.model_copy(update={section: changed}))
    for name, text in files.items():
        for found in documents(text):
            assert schemas.errors(found) == [], name
    text = "".join(files.values())
    for value in update.values():
        if isinstance(value, str):
            assert value in text


@pytest.mark.parametrize("recipe", ["imagenet_lt", "digits_lt"])
def test_pods_on_any_node_mount_the_shared_volume_except_on_one_machine(description, recipe):
    store = description.object_store.model_copy(
        update={"uri": "file:///mnt/shared", "roles": None, "storage_gib": 500}
    )
    job = description.job.model_copy(update={"recipe": recipe, "overrides": ()})
    changed = description.model_copy(update={"object_store": store, "job": job})
    found = {
        overlay: objects(changed, f"overlays/{overlay}/shared.yaml")[0]["spec"]
        for overlay in OVERLAYS
    }
    modes = {overlay: spec["accessModes"] for overlay, spec in found.items()}
    many = ["ReadWriteMany"]
    assert modes == {"kind": ["ReadWriteOnce"], "gpu": many, "gpu-queue": many}
    sizes = {name: spec["resources"]["requests"]["storage"] for name, spec in found.items()}
    assert sizes == {"kind": "20Gi", "gpu": "500Gi", "gpu-queue": "500Gi"}


def test_without_a_queue_nothing_speaks_of_kueue(description):
    files = render("kuberay", description.model_copy(update={"queue": None}))
    assert "kueue" not in "".join(files.values())
    assert not [name for name in files if name.startswith("overlays/gpu-queue/")]


def test_each_command_has_a_job_that_the_command_line_takes(description):
    """And that runs where its shards, its run and its model are."""
    group = get_command(app)
    for kind in COMMANDS:
        job = ray_job(description, kind)["spec"]
        words = shlex.split(job["entrypoint"])
        command, *words = words[words.index("bcl-ray") + 1 :]
        assert command == kind
        options = group.commands[kind].make_context(kind, list(words)).params
        assert options.get("restartable", options.get("resume")) in (True, None), "it is repeated"
        assert any("s3://example-bucket/bcl-ray/" in word for word in words)
        assert job["submitterPodTemplate"]["metadata"]["labels"]["bcl-ray.io/role"] == "submitter"
        assert bool(job["rayClusterSpec"]["workerGroupSpecs"]) == (kind != "shard")


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ({"predict": ""}, "jobs.predict: bcl-ray predict: Missing argument 'OUTPUT'"),
        ({"search": "--trails 3"}, "jobs.search: bcl-ray search: No such option: --trails"),
        ({"shard": "imagenet"}, "jobs.shard: bcl-ray shard: Invalid value for 'SOURCE"),
        ({"shard": "list --from 'x"}, "cannot be split into words (no closing quotation)"),
    ],
)
def test_a_job_that_its_command_would_refuse_is_not_written(tmp_path, jobs, message):
    content = yaml.safe_load((ROOT / "cluster" / "cluster.yaml").read_text()) | {"jobs": jobs}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    words = ["cluster", "render", "kuberay", "--description", str(file), "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=re.escape(message)):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert [file.name for file in tmp_path.iterdir()] == ["cluster.yaml"]


def test_a_job_s_name_carries_its_run_and_kubernetes_takes_it(description):
    """An ended RayJob of the same name would never be started again."""

    def name(run, kind="train"):
        job = description.job.model_copy(update={"run": run})
        return job_name(description.model_copy(update={"job": job}), kind)

    assert name("imagenet-lt-1") == "train-imagenet-lt-1"
    assert name("imagenet-lt-1", "search") == "search-imagenet-lt-1"
    assert name("imagenet-lt-1", "shard") == "shard-imagenet-lt"
    runs = ["a", "1", "a.b", "a-b", "a..b", "x" * 63, "x" * 62 + "y", "x" * 41 + "-y", "0.1"]
    names = [name(run, kind) for run in runs for kind in ("train", "evaluate")]
    assert len(set(names)) == len(names)
    for recipe in ("mine", "mine-", "mine_", "Mine", "x" * 60):
        job = description.job.model_copy(update={"overrides": (f"name={recipe}",)})
        names.append(job_name(description.model_copy(update={"job": job}), "shard"))
    assert len(set(names[-5:])) == 4, "mine- and mine_ are one to Kubernetes"
    for found in names:
        assert len(found) <= 47
        assert rules.DNS_LABEL.fullmatch(found)


def test_each_kind_of_pod_has_a_service_account_and_none_of_them_ray_s_rights(description):
    found_objects = [one for text in yaml_files(description).values() for one in documents(text)]
    accounts = {
        found["metadata"]["name"]: found["metadata"].get("annotations", {})
        for found in found_objects
        if found["kind"] == "ServiceAccount"
    }
    arn = "arn:aws:iam::123456789012:role/bcl-ray-{}"
    assert accounts == {
        "ray-head": {"eks.amazonaws.com/role-arn": arn.format("head")},
        "ray-worker": {"eks.amazonaws.com/role-arn": arn.format("worker")},
        "mlflow": {"eks.amazonaws.com/role-arn": arn.format("mlflow")},
        "submitter": {},
    }
    pods = [pod for found in found_objects for pod in pod_rules.pod_specs(found)]
    used = {
        (container["name"], pod.get("serviceAccountName"), pod["automountServiceAccountToken"])
        for pod in pods
        for container in pod["containers"]
        if "automountServiceAccountToken" in pod
    }
    assert used == {
        ("ray-head", "ray-head", True),
        ("ray-worker", "ray-worker", False),
        ("ray-job-submitter", "submitter", False),
        ("mlflow", "mlflow", False),
        ("account", "submitter", False),
        ("postgresql", None, False),
    }


def test_services_run_on_the_nodes_that_are_named(description):
    selector = description.kubernetes.services_selector
    assert selector
    found = {
        container["name"]: pod["nodeSelector"]
        for name, text in yaml_files(description).items()
        if not name.startswith("overlays/kind/")
        for found in documents(text)
        for pod in pod_rules.pod_specs(found)
        if "nodeSelector" in pod
        for container in pod["containers"]
    }
    for name in ("mlflow", "postgresql", "account", "ray-job-submitter"):
        assert found[name] == selector


@pytest.mark.parametrize("storage_class", [None, "fast"])
def test_head_and_workers_write_temporary_files_to_a_volume_of_their_size(
    description, storage_class
):
    kubernetes = description.kubernetes.model_copy(update={"scratch_class": storage_class})
    variant = description.model_copy(update={"kubernetes": kubernetes})
    spec = ray_cluster(variant)["spec"]
    for group, size in ((spec["headGroupSpec"], 200), (spec["workerGroupSpecs"][1], 50)):
        pod = group["template"]["spec"]
        (volume,) = (each for each in pod["volumes"] if each["name"] == "ray-logs")
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert mounts["/tmp"] == mounts["/tmp/ray"] == "ray-logs"
        if storage_class is None:
            assert volume["emptyDir"] == {"sizeLimit": f"{size}Gi"}
            asked = container["resources"]["requests"]["ephemeral-storage"]
            assert int(asked.removesuffix("Gi")) > size
        else:
            claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
            assert claim["storageClassName"] == "fast"
            assert claim["resources"]["requests"]["storage"] == f"{size}Gi"
            assert "ephemeral-storage" not in container["resources"]["requests"]


def test_network_policies_follow_a_cluster_s_dns_and_monitoring(description):
    dns = Dns(namespace="openshift-dns", ports=(5353,), local_address="169.254.20.10")
    kubernetes = description.kubernetes.model_copy(
        update={"dns": dns, "monitoring_namespace": "monitoring"}
    )
    policies = {
        found["metadata"]["name"]: found["spec"]
        for found in objects(
            description.model_copy(update={"kubernetes": kubernetes}),
            "base/networkpolicies.yaml",
        )
    }

    def namespace(name):
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    def both(port):
        return [{"protocol": protocol, "port": port} for protocol in ("UDP", "TCP")]

    for name in ("ray", "submitter", "mlflow", "mlflow-account"):
        egress = policies[name]["egress"]
        assert {"to": [namespace("openshift-dns")], "ports": both(5353)} in egress
        cache = {"ipBlock": {"cidr": "169.254.20.10/32"}}
        assert {"to": [cache], "ports": both(53)} in egress
    (metrics,) = policies["metrics"]["ingress"]
    assert metrics["from"] == [namespace("monitoring")]
    assert {"protocol": "TCP", "port": 8080} in metrics["ports"]
    plain = [
        found["metadata"]["name"] for found in objects(description, "base/networkpolicies.yaml")
    ]
    assert "metrics" not in plain
