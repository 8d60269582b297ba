"""A fault that changes the number of workers."""

import pytest

# Relative, of a loss: sums in another order, over 100 steps at a high rate (0.024 was seen).
ROUNDING = 0.05
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_elastic_workers_go_on_with_fewer_and_compute_the_same_to_rounding(drill):
    """Of three nodes with two CPUs, two train, and one when one of them is lost."""
    job = drill.start("elastic", "scale.workers=[1,2]", "scale.cpus_per_worker=2")
    job.wait_for_mid_epoch()
    drill.cluster.kill_node(drill.node_of_workers())
    job.succeed()
    assert "2 workers started, " in job.output
    assert "1 worker started at step" in job.output
    assert "32 images each; global batch (32) and lr stay the same" in job.output
    state, expected = job.state(), drill.undisturbed()
    drill.check_counted(state)
    drill.check_tracked(job)
    assert {record["scale/workers"] for record in state.history} == {1, 2}
    for record, other in zip(state.history, expected.history, strict=True):
        assert record["optim/lr"] == other["optim/lr"]
        assert record["loss/total"] == pytest.approx(other["loss/total"], rel=ROUNDING)
