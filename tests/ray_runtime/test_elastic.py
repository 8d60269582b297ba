"""Which number of workers a cluster gets, and what the user is told when it has too little."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt

pytest.importorskip("ray")
from ray.train import ScalingConfig

from bcl_ray.ray_runtime.elastic import (
    MissingResourcesError,
    ScalingPolicy,
    shortage,
    worker_capacity,
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
    found = worker_count(run, nodes(*cpus), ONE_CPU)

    def fits(count: int) -> bool:
        return count <= sum(int(cpu) for cpu in cpus) and count + 1 <= sum(cpus)

    possible = [n for n in range(least, least * more + 1) if 48 % n == 0 and fits(n)]
    assert found == max(possible, default=0)


def test_what_is_missing_is_named_with_what_is_there():
    gpus = experiment("scale.workers=4")
    have = [{"CPU": 16.0, "GPU": 2.0}]
    assert shortage(gpus, have, {"CPU": 1.0, "GPU": 1.0}) == "4 GPU, and there are 2"
    assert shortage(gpus, [], ONE_CPU) == "5 CPU, and there are 0"
    assert shortage(gpus, nodes(1.0), ONE_CPU) == "5 CPU, and there is 1"


def test_a_fit_in_all_but_on_no_node_is_named_too():
    wide = experiment("scale.workers=2", "scale.cpus_per_worker=3")
    found = shortage(wide, nodes(2.0, 2.0, 2.0, 2.0), {"CPU": 3.0})
    assert found == "nodes with 3 CPU free for each of 2 workers"


class Clustered:
    """A cluster that a test makes larger and smaller, and a clock that it moves."""

    def __init__(self, monkeypatch, run):
        self.total, self.free, self.now = {}, {}, 100.0
        self.said, self.restarts = [], []
        monkeypatch.setattr(f"{ELASTIC}.usable_nodes", lambda: self.total)
        monkeypatch.setattr(f"{ELASTIC}.free_resources", lambda _: list(self.free.values()))
        monkeypatch.setattr(f"{ELASTIC}.time.monotonic", lambda: self.now)
        monkeypatch.setattr(f"{ELASTIC}.time_monotonic", lambda: self.now)
        monkeypatch.setattr(ScalingPolicy, "_maybe_send_resource_request", lambda _: None)
        workers = (run.scale.min_workers, run.scale.max_workers)
        config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0})
        self.policy = ScalingPolicy(
            config, run, self.said.append, lambda: self.restarts.append(self.now)
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


def test_what_others_hold_is_waited_for_a_moment_and_then_is_no_room(monkeypatch):
    cluster = Clustered(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[5], free=[3])
    assert cluster.starts() == 0
    cluster.now += 11
    assert cluster.starts() == 2
    cluster.have(total=[5], free=[0])
    assert cluster.starts() == 1, "the fewest wait in Ray's queue"


def test_workers_save_their_state_before_more_of_them_start(monkeypatch):
    cluster = Clustered(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[3])
    assert cluster.starts() == 2
    assert cluster.runs(2, since=cluster.now) == 0
    cluster.now += 61
    assert cluster.runs(2, since=100.0) == 0, "no node has come"
    cluster.have(total=[3, 2])
    assert cluster.runs(2, since=cluster.now) == 0, "they have just begun"
    assert cluster.runs(2, since=100.0) == 1
    assert cluster.runs(2, since=100.0) == 1, "asked once for each node"


def test_a_node_less_without_workers_of_ours_changes_nothing(monkeypatch):
    cluster = Clustered(monkeypatch, experiment("scale.workers=[1,4]"))
    cluster.have(total=[3, 2])
    assert cluster.starts() == 4
    cluster.have(total=[3])
    cluster.now += 61
    assert cluster.runs(4, since=100.0) == 0


def test_waiting_says_what_is_missing_and_ends(monkeypatch):
    cluster = Clustered(monkeypatch, experiment("scale.workers=2", "scale.wait_timeout=60"))
    cluster.have(total=[1])
    assert cluster.starts() == 0
    assert cluster.said == ["waiting up to 60 s for 3 CPU, and there is 1"]
    cluster.now += 61
    message = (
        r"^no workers after scale.wait_timeout \(60 s\): the run needs 3 CPU, and there is 1; "
    )
    with pytest.raises(MissingResourcesError, match=message):
        cluster.starts()
    assert len(cluster.said) == 1
