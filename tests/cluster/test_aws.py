import copy

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from bcl_ray.render import render
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
    assert set(profiles.values()) == {"bcl-ray"}
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "AWS_ACCESS_KEY_ID" not in FILE.read_text()


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
