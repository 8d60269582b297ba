"""No description that passes its own checks renders into what KubeRay, Kueue or we refuse."""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.ops.manifests import ClusterDescription, read, render
from bcl_ray.ops.manifests.job_sections import RUN_NAME
from tests.cluster.conftest import ROOT
from tests.cluster.rendered import documents
from tests.cluster.rules import violations

FOLDER = ROOT / "cluster"
EXAMPLE = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
WORDS = st.sampled_from([None, "", "digits", "--trials 3", "'a b' \"c\nd\" $HOME #", "ü: {"])
RECIPE_NAMES = st.sampled_from(["a", "a-", "a_", "A.", "1", "x" * 60, "x" * 40 + "-"])
NODES = st.integers(0, 3)


def pattern(text, longest):
    return st.from_regex(text, fullmatch=True).filter(lambda found: len(found) <= longest)


def sections(draw):
    """Fields that the description leaves free, by section."""
    least, added = draw(NODES), draw(NODES)
    stores = [
        {},
        {"roles": None, "secret": "s3", "endpoint": "http://ceph.lan:7480"},
        {"roles": None, "uri": "file:///mnt/shared", "sources": []},
    ]
    return {
        "head": {"redis": draw(st.booleans())},
        "data": {"min_nodes": least, "max_nodes": least + added, "spot": draw(st.booleans())},
        "gpu": {
            "gpus": draw(st.integers(0, 8)),
            "cpus": draw(st.integers(2, 64)),
            "steady_nodes": draw(st.integers(2, 40)),
            "spot_nodes": draw(NODES),
        },
        "job": {
            "run": draw(pattern(RUN_NAME, 63)),
            "overrides": [f"name={draw(RECIPE_NAMES)}"],
            "workers": draw(st.sampled_from([1, 2, [1, 4]])),
            "retries": draw(st.integers(0, 10)),
            "wait_minutes": draw(st.integers(1, 1000)),
            "hours": draw(st.integers(1, 1000)),
            "keep_minutes": draw(st.integers(1, 1000)),
            "notice_seconds": draw(st.integers(30, 3600)),
        },
        "object_store": draw(st.sampled_from(stores)),
        "tracking": {
            "secret": draw(st.sampled_from([None, "mlflow"])),
            "uri": draw(st.sampled_from([None, "https://mlflow.example.com"])),
        },
        "kubernetes": {
            "spot_taint": draw(st.sampled_from([None, "spot"])),
            "scratch_class": draw(st.sampled_from([None, "ssd"])),
            "monitoring_namespace": draw(st.sampled_from([None, "watchers"])),
        },
    }


@st.composite
def descriptions(draw):
    content = copy.deepcopy(EXAMPLE)
    for section, fields in sections(draw).items():
        content[section] |= fields
    content["name"] = draw(pattern(r"[a-z]([-a-z0-9]*[a-z0-9])?", 40))
    content["ray_version"] = draw(st.sampled_from(["2.52.0", "2.60.0", "10.0.1"]))
    content["jobs"] = {kind: draw(WORDS) for kind in ("shard", "search", "evaluate", "predict")}
    content["queue"] = draw(
        st.none() | st.builds(lambda it: {"cluster_queue": "q", "elastic": it}, st.booleans())
    )
    return ClusterDescription.model_validate(content)


def broken_rules(description):
    return [
        violation
        for file, text in render("kuberay", description).items()
        if file.endswith(".yaml") and not file.endswith("kustomization.yaml")
        for found in documents(text)
        for violation in violations(found)
    ]


def test_the_examples_break_no_rule():
    for file in FOLDER.glob("*.yaml"):
        assert broken_rules(read(file)) == [], file


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(descriptions())
def test_no_description_that_is_accepted_breaks_a_rule(description):
    assert broken_rules(description) == []
