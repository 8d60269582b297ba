"""Whether a cluster grows; tests/faults/test_autoscaling.py has clusters that do."""

import pytest

ray = pytest.importorskip("ray")
from bcl_ray.ray_runtime import autoscaler  # noqa: E402  (imports Ray)
from bcl_ray.ray_runtime.connection import connected, resources  # noqa: E402
from bcl_ray.ray_runtime.node_groups import VARIABLE, NodeGroup, to_text  # noqa: E402

pytestmark = pytest.mark.ray


def test_a_local_ray_does_not_grow_whatever_the_environment_says(monkeypatch):
    """Its autoscaler only observes, which its status shows once it is published."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_enable_autoscaler_v2", "1")
    monkeypatch.setenv(VARIABLE, to_text([NodeGroup(3, {"CPU": 99})]))
    with connected() as cluster:
        assert (cluster.grows, cluster.limited, cluster.several_nodes) == (False, True, False)
        assert cluster.cpus == ray.cluster_resources()["CPU"]
        assert autoscaler.is_running(expected=True) is False
        assert autoscaler._internal_kv_get(autoscaler.DEBUG_AUTOSCALING_STATUS) is not None
        assert resources() == cluster


def test_waiting_reports_the_shortage_once_and_ends_in_time():
    messages: list[str] = []
    answers = iter(["2 CPU", "1 CPU", ""])
    assert autoscaler.wait_for_nodes(lambda: next(answers), 60, messages.append)
    assert messages == ["waiting up to 60 s for nodes: 2 CPU"]
    assert not autoscaler.wait_for_nodes(lambda: "1 CPU", 0.5, messages.append)
    assert not autoscaler.wait_for_nodes(lambda: "1 CPU", 60, messages.append, lambda: True)
