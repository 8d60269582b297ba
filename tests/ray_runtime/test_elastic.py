"""Which number of workers a cluster gets, and what the user is told when it has too little."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt

pytest.importorskip("ray")
from ray.train import ScalingConfig

from bcl_ray.ray_runtime.capacity import worker_capacity
from bcl_ray.ray_runtime.elastic import (
    MissingResourcesError,
    ScalingPolicy,
    shortage,
    worker_count,
)

ELASTIC = "bcl_ray.ray_runtime.elastic"
ONE_CPU = {"CPU": 1.0}


def experiment(*overrides: str):
    own = ["scale.cpus_per_worker=1", "scale.cpus_per_data_task=1"]
    return with_overrides(digits_lt(), [*own, *overrides])


def nodes(*cpus: float) -> list[dict[str, float]]:
    return [{"CPU": cpu, "memory": 1e9} for cpu in cpus]


def test_a_node_of_one_cpu_has_room_for_ten_workers_of_a_tenth():
    assert worker_capacity(nodes(1.0), {"CPU": 0.1}) == 10


def test_a_worker_is_not_split_between_nodes():
    assert worker_capacity(nodes(1.5, 1.5), ONE_CPU) == 2


def test_the_scarcest_resource_counts():
    cluster = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    assert worker_capacity(cluster, {"CPU": 1.0, "GPU": 1.0}) == 2


def test_a_number_that_does_not_divide_the_global_batch_is_not_taken():
    elastic = experiment("optim.global_batch_size=32", "scale.workers=[1,4]")
    assert worker_count(elastic, nodes(4.0), ONE_CPU) == 2, "three would fit beside the stream"


def test_a_cpu_is_left_for_the_stream():
    elastic = experiment("scale.workers=[1,4]")
    assert worker_count(elastic, nodes(4.0), ONE_CPU) == 2
    assert worker_count(elastic, nodes(5.0), ONE_CPU) == 4


def test_fewer_workers_than_the_least_is_no_number_at_all():
    assert worker_count(experiment("scale.workers=[2,4]"), nodes(2.0), ONE_CPU) == 0


@settings(deadline=None)
@given(
    cpus=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), max_size=6),
    least=st.sampled_from([1, 2, 4]),
    more=st.sampled_from([1, 2, 4]),
)
def test_the_number_is_the_largest_that_fits_and_divides_the_batch(cpus, least, more):
    run = experiment("optim.global_batch_size=48", f"scale.workers=[{least},{least * more}]")
    count = worker_count(run, nodes(*cpus), ONE_CPU)

    def fits(count: int) -> bool:
        return count <= sum(int(cpu) for cpu in cpus) and count + 1 <= sum(cpus)

    possible = [n for n in range(least, least * more + 1) if 48 % n == 0 and fits(n)]
    assert count == max(possible, default=0)


def test_a_shortage_names_what_is_missing_and_what_is_present():
    options = experiment("scale.workers=4")
    present = [{"CPU": 16.0, "GPU": 2.0}]
    assert shortage(options, present, {"CPU": 1.0, "GPU": 1.0}) == "4 GPU, and there are 2"
    assert shortage(options, [], ONE_CPU) == "5 CPU, and there are 0"
    assert shortage(options, nodes(1.0), ONE_CPU) == "5 CPU, and there is 1"


def test_workers_that_fit_in_total_but_on_no_node_are_a_shortage():
    options = experiment("scale.workers=2", "scale.cpus_per_worker=3")
    text = shortage(options, nodes(2.0, 2.0, 2.0, 2.0), {"CPU": 3.0})
    assert text == "nodes with 3 CPU free for each of 2 workers"


class FakeCluster:
    """A cluster whose nodes and clock a test sets."""

    def __init__(self, monkeypatch, run):
        self.total, self.free, self.now = {}, {}, 100.0
        self.messages, self.restarts = [], []
        monkeypatch.setattr(f"{ELASTIC}.usable_nodes", lambda: self.total)
        monkeypatch.setattr(f"{ELASTIC}.free_resources", lambda _: list(self.free.values()))
        monkeypatch.setattr(f"{ELASTIC}.time.monotonic", lambda: self.now)
        monkeypatch.setattr(f"{ELASTIC}.time_monotonic", lambda: self.now)
        monkeypatch.setattr(ScalingPolicy, "_maybe_send_resource_request", lambda _: None)
        workers = (run.scale.min_workers, run.scale.max_workers)
        config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0})
        self.policy = ScalingPolicy(
            config, run, self.messages.append, lambda: self.restarts.append(self.now)
        )

    def have(self, total, free=None):
        self.total = {f"node{i}": {"CPU": float(cpus)} for i, cpus in enumerate(total)}
        values = total if free is None else free
        self.free = {f"node{i}": {"CPU": float(cpus)} for i, cpus in enumerate(values)}

    def starts(self):
        decision = self.policy.make_decision_for_non_running_worker_group()
        return getattr(decision, "num_workers", 0)

    def runs(self, workers, since):
        state = SimpleNamespace(num_workers=workers, start_time=since)
        self.policy.make_decision_for_running_worker_group(
            worker_group_state=state, worker_group_status=None
        )
        return len(self.restarts)


def test_resources_in_use_are_waited_for_only_a_moment(monkeypatch):
    cluster = FakeCluster(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[5], free=[3])
    assert cluster.starts() == 0
    cluster.now += 11
    assert cluster.starts() == 2
    cluster.have(total=[5], free=[0])
    assert cluster.starts() == 1, "the smallest number waits in Ray's queue"


def test_workers_save_their_state_before_more_of_them_start(monkeypatch):
    cluster = FakeCluster(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[3])
    assert cluster.starts() == 2
    assert cluster.runs(2, since=cluster.now) == 0
    cluster.now += 61
    assert cluster.runs(2, since=100.0) == 0, "no new node"
    cluster.have(total=[3, 2])
    assert cluster.runs(2, since=cluster.now) == 0, "the workers have just started"
    assert cluster.runs(2, since=100.0) == 1
    assert cluster.runs(2, since=100.0) == 1, "one request per new node"


def test_losing_a_node_without_workers_changes_nothing(monkeypatch):
    cluster = FakeCluster(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[3, 2])
    assert cluster.starts() == 4
    cluster.have(total=[3])
    cluster.now += 61
    assert cluster.runs(4, since=100.0) == 0


def test_waiting_says_what_is_missing_and_ends(monkeypatch):
    cluster = FakeCluster(monkeypatch, experiment("scale.workers=2", "scale.wait_timeout=60"))
    cluster.have(total=[1])
    assert cluster.starts() == 0
    assert cluster.messages == ["waiting up to 60 s for 3 CPU, and there is 1"]
    cluster.now += 61
    message = (
        r"^no workers after scale.wait_timeout \(60 s\): the run needs 3 CPU, and there is 1; "
    )
    with pytest.raises(MissingResourcesError, match=message):
        cluster.starts()
    assert len(cluster.messages) == 1
