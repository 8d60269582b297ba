import shutil
import subprocess

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

from bcl_ray.cli import app
from bcl_ray.render import TARGETS, kuberay, network, render, rules, services
from bcl_ray.render.files import TARGETS as ALL
from tests.cluster import schemas
from tests.cluster.conftest import ROOT

OVERLAYS = ("kind", "gpu", "gpu-queue")


def documents(text):
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


@pytest.fixture(scope="session")
def kustomized():
    """What kustomize makes of each overlay in the tree."""
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
    from typer.testing import CliRunner

    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["cluster", "render", "slurm", "--out", str(tmp_path)])
    assert done.stdout.replace("\n", "") == str(tmp_path / "train.sbatch")
    assert (tmp_path / "train.sbatch").stat().st_mode & 0o111, "it can be run"
    assert ALL == TARGETS


def test_every_file_fits_its_schema(description):
    for name, text in render("kuberay", description).items():
        for found in documents(text):
            assert schemas.errors(found) == [], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_compose_into_what_schemas_and_rules_accept(kustomized, overlay):
    assert [text for found in kustomized[overlay] for text in schemas.errors(found)] == []
    assert [text for found in kustomized[overlay] for text in rules.complaints(found)] == []


def test_the_kind_overlay_asks_for_no_gpu_no_bucket_and_no_more_than_a_laptop(kustomized):
    text = yaml.safe_dump_all(
        [found for found in kustomized["kind"] if found["kind"] != "ServiceAccount"]
    )
    for absent in ("nvidia.com/gpu", "s3://", "nodeSelector"):
        assert absent not in text
    (mlflow,) = (found for found in kustomized["kind"] if found["kind"] == "Deployment")
    container = mlflow["spec"]["template"]["spec"]["containers"][0]
    variables = {item["name"]: item.get("value") for item in container["env"]}
    assert variables["MLFLOW_ARTIFACTS_DESTINATION"] == "file:///shared/mlflow"
    assert variables["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql://mlflow@postgresql.")
    (cluster,) = (found for found in kustomized["kind"] if found["kind"] == "RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
    assert sum(int(limit["cpu"]) for limit in limits) <= 4
    assert sum(int(limit["memory"].removesuffix("Gi")) for limit in limits) <= 12


def test_a_queue_admits_the_whole_job_at_once(description):
    spec = kuberay.ray_job(description)["spec"]["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is False
    sizes = {
        group["groupName"]: (group["minReplicas"], group["replicas"], group["maxReplicas"])
        for group in spec["workerGroupSpecs"]
    }
    assert sizes == {"data": (2, 2, 2), "steady": (1, 1, 1), "spot": (3, 3, 3)}


def test_only_steady_nodes_carry_the_label_that_rank_zero_asks_for(description):
    spec = kuberay.ray_cluster(description)["spec"]
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

    def key(name):
        return {"secretKeyRef": {"name": "mlflow", "key": name}}

    deployment, _, accounts = services.mlflow(description)
    (server,) = deployment["spec"]["template"]["spec"]["containers"]
    found = variables_of(server)
    assert "--app-name=basic-auth" in server["args"]
    assert found["MLFLOW_AUTH_ADMIN_PASSWORD"] == key("password")
    assert found["MLFLOW_FLASK_SERVER_SECRET_KEY"] == key("session")
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
    spec = kuberay.ray_cluster(description)["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert variables_of(container)["MLFLOW_TRACKING_USERNAME"] == key("username")
        assert variables_of(container)["MLFLOW_TRACKING_PASSWORD"] == key("password")


def test_without_a_secret_mlflow_asks_nobody(description):
    tracking = description.tracking.model_copy(update={"secret": None})
    open_to_all = description.model_copy(update={"tracking": tracking})
    text = "".join(render("kuberay", open_to_all).values())
    for absent in ("basic-auth", "MLFLOW_AUTH", "MLFLOW_TRACKING_PASSWORD", "mlflow-accounts"):
        assert absent not in text


def test_mlflow_answers_its_services_names_with_and_without_port_and_nobody_elses(description):
    """By MLflow's own check of the Host header."""
    hosts = services.allowed_hosts(description)
    for name in ("mlflow", "mlflow.bcl-ray", "mlflow.bcl-ray.svc.cluster.local", "localhost"):
        assert is_allowed_host_header(hosts, name), name
        assert is_allowed_host_header(hosts, f"{name}:5000"), name
    for name in ("evil.example", "mlflow.evil.example:5000", "mlflow:5001", "10.0.0.1:5000"):
        assert not is_allowed_host_header(hosts, name), name
    argument = f"--allowed-hosts={','.join(hosts)}"
    assert (
        argument
        in services.mlflow(description)[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    )
    uri = kuberay.ray_cluster(description)["spec"]["headGroupSpec"]["template"]["spec"]
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
    ],
)
def test_network_policies_let_through_what_is_needed_and_no_more(
    description, source, target, port, answer
):
    head = description.head.model_copy(update={"redis": True})
    policies = network.network_policies(description.model_copy(update={"head": head}))
    assert allowed(policies, source, target, port) is answer


@pytest.mark.parametrize(
    ("section", "update"),
    [
        ("head", {"redis": True}),
        ("object_store", {"role_arn": None, "secret": "s3", "endpoint": "http://ceph.lan:7480"}),
        ("object_store", {"uri": "file:///mnt/shared"}),
        ("gpu", {"spot_nodes": 0, "steady_nodes": 4}),
        ("data", {"max_nodes": 0}),
        ("tracking", {"uri": "https://mlflow.example.com"}),
        ("image", {"pull_secret": "registry"}),
        ("kubernetes", {"storage_class": "gp3", "spot_taint": "spot"}),
        ("queue", {"elastic": True}),
        ("job", {"workers": (1, 4)}),
    ],
    ids=str,
)
def test_every_option_renders_into_valid_files(description, section, update):
    changed = getattr(description, section).model_copy(update=update)
    files = render("kuberay", description.model_copy(update={section: changed}))
    for name, text in files.items():
        for found in documents(text):
            assert schemas.errors(found) == [], name
    text = "".join(files.values())
    for value in update.values():
        if isinstance(value, str):
            assert value in text


def test_without_a_queue_nothing_speaks_of_kueue(description):
    files = render("kuberay", description.model_copy(update={"queue": None}))
    assert "kueue" not in "".join(files.values())
    assert "overlays/gpu-queue/rayjob.yaml" not in files
