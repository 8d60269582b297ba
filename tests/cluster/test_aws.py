import copy
import subprocess

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bcl_ray.ops.manifests import aws, render
from tests.cluster.conftest import ROOT
from tests.cluster.test_rules import broken

FILE = ROOT / "cluster" / "aws" / "cluster.yaml"


@pytest.fixture
def config():
    return yaml.safe_load(FILE.read_text())


def accept(config):
    """Ray's own check, as `ray up` makes it before it asks AWS for anything."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_up_accepts_the_file(config):
    prepared = accept(config)
    assert set(prepared["available_node_types"]) == {"head", "data", "steady", "spot"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_wrokers", 3, "max_wrokers"),
        ("head_node_type", "heda", "head_node_type"),
        ("available_node_types.spot.max_worker", 3, "max_worker"),
        ("available_node_types.spot.resources.GPU", "one", "one"),
        ("docker.imge", "x", "imge"),
        ("provider.type", "awz", "awz"),
    ],
)
def test_ray_up_refuses_a_broken_file(config, path, value, message):
    with pytest.raises(Exception, match=message):
        accept(broken(config, path, value))


def test_the_head_takes_no_work_and_spot_nodes_are_spot(config):
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["steady"]["resources"] == types["spot"]["resources"] == {"CPU": 7, "GPU": 1}
    markets = {
        name: kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on demand")
        for name, kind in types.items()
    }
    assert markets == {"head": "on demand", "steady": "on demand", "data": "spot", "spot": "spot"}


def test_nodes_have_roles_instead_of_keys_and_the_token_comes_from_a_file(config):
    types = config["available_node_types"]
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in types.items()
    }
    assert profiles.pop("head") == "bcl-ray-head", "which alone may start instances"
    assert set(profiles.values()) == {"bcl-ray-worker"}
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "AWS_ACCESS_KEY_ID" not in FILE.read_text()


def ran(line, tmp_path, **programs):
    """Run a shell line on a path of given programs; its status and what it said."""
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", line],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("nvidia_smi", "status"),
    [("echo 580.95.05", 0), ("echo 610.10", 0), ("echo 570.133.20", 1), ("exit 9", 1)],
)
def test_a_gpu_node_with_an_older_driver_does_not_start(config, tmp_path, nvidia_smi, status):
    for name, kind in config["available_node_types"].items():
        lines = kind.get("initialization_commands", [])
        assert bool(lines) == (name in ("steady", "spot"))
        for line in lines:
            found, said = ran(line, tmp_path, **{"nvidia-smi": nvidia_smi})
            assert found == status, said
            assert ("is not r580 or later, which CUDA 13 wants: set aws" in said) == bool(status)


def test_the_least_driver_is_that_of_the_cuda_that_our_pytorch_brings():
    cuda = (ROOT / "constraints.txt").read_text().partition("\ncuda-toolkit==")[2]
    assert int(cuda.partition(".")[0]) == aws.CUDA, "look up the driver that NVIDIA asks for"


def test_disks_have_room_for_the_image_and_for_temporary_files(config, description):
    sizes = {
        name: kind["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
        for name, kind in config["available_node_types"].items()
    }
    assert sizes == {"head": 100 + 200, "data": 100 + 50, "steady": 100 + 50, "spot": 100 + 50}


def test_nodes_log_in_to_a_registry_before_they_pull(description, tmp_path):
    ecr = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    image = {"cpu": f"{ecr}/bcl-ray:1-cpu", "gpu": f"{ecr}/bcl-ray:1-gpu"}
    variant = description.model_copy(update={"image": description.image.model_copy(update=image)})
    files = render("aws", variant)
    config = yaml.safe_load(files["cluster.yaml"])
    accept(config)
    (line,) = config["initialization_commands"]
    for kind in ("steady", "spot"):
        assert config["available_node_types"][kind]["initialization_commands"][0] == line
    programs = {"aws": 'echo "$@"', "docker": 'echo "$@ of $(cat)"'}
    assert ran(line, tmp_path, **programs) == (
        0,
        f"login --username AWS --password-stdin {ecr} of ecr get-login-password "
        "--region eu-central-1\n",
    )
    for role in ("head", "worker"):
        assert "ecr:BatchGetImage" in files[f"policies/{role}.json"]
        assert "ecr:" not in render("aws", description)[f"policies/{role}.json"]
    own = description.aws.model_copy(
        update={"login": ("get-it | docker login --password-stdin h",)}
    )
    config = yaml.safe_load(
        render("aws", description.model_copy(update={"aws": own}))["cluster.yaml"]
    )
    assert config["initialization_commands"] == list(own.login)


def test_the_artifacts_uri_is_one_word_of_the_head_s_command(description):
    store = description.object_store.model_copy(update={"uri": "s3://bucket/a&b;c"})
    files = render("aws", description.model_copy(update={"object_store": store}))
    (line,) = (
        line
        for line in yaml.safe_load(files["cluster.yaml"])["head_start_ray_commands"]
        if "mlflow server" in line
    )
    assert " --artifacts-destination 's3://bucket/a&b;c/mlflow' " in line


def test_what_aws_needs_is_asked_for(description):
    with pytest.raises(ValueError, match=r"no section aws: add aws.security_group_ids"):
        render("aws", description.model_copy(update={"aws": None}))
    store = description.object_store.model_copy(update={"instance_profile": None})
    with pytest.raises(ValueError, match=r"object_store.instance_profile is missing"):
        render("aws", description.model_copy(update={"object_store": store}))


def test_what_slurm_needs_is_asked_for(description):
    with pytest.raises(ValueError, match=r"no section slurm: add slurm.nodes"):
        render("slurm", description.model_copy(update={"slurm": None}))
    wide = description.slurm.model_copy(update={"gpus_per_node": 4})
    with pytest.raises(ValueError, match=r"^job.workers \(4\) must be slurm.nodes x .* \(8\), a w"):
        render("slurm", description.model_copy(update={"slurm": wide}))
