"""Whether a cluster grows; of those that do, tests/faults/test_autoscaling.py."""

import pytest

ray = pytest.importorskip("ray")
from bcl_ray.ray_runtime import autoscaler  # noqa: E402  (imports Ray)
from bcl_ray.ray_runtime.connection import connected, resources  # noqa: E402
from bcl_ray.ray_runtime.node_groups import VARIABLE, NodeGroup, to_text  # noqa: E402

pytestmark = pytest.mark.ray


def test_a_ray_of_our_own_does_not_grow_whatever_a_head_beside_it_says(monkeypatch):
    """Its autoscaler is there, and only looks: that is seen once it has said what it sees."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_enable_autoscaler_v2", "1")
    monkeypatch.setenv(VARIABLE, to_text([NodeGroup(3, {"CPU": 99})]))
    with connected() as found:
        assert (found.grows, found.limited, found.several_nodes) == (False, True, False)
        assert found.cpus == ray.cluster_resources()["CPU"]
        assert autoscaler.is_running(expected=True) is False
        assert autoscaler._internal_kv_get(autoscaler.DEBUG_AUTOSCALING_STATUS) is not None
        assert resources() == found


def test_waiting_says_once_for_what_and_ends_in_time():
    said: list[str] = []
    answers = iter(["2 CPU", "1 CPU", ""])
    assert autoscaler.wait_for_nodes(lambda: next(answers), 60, said.append)
    assert said == ["waiting up to 60 s for nodes: 2 CPU"]
    assert not autoscaler.wait_for_nodes(lambda: "1 CPU", 0.5, said.append)
    assert not autoscaler.wait_for_nodes(lambda: "1 CPU", 60, said.append, lambda: True)
