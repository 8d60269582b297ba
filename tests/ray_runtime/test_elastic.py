"""Which number of workers a cluster gets, and what is said when it has too little."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt

pytest.importorskip("ray")
from ray.exceptions import RayActorError
from ray.train import ScalingConfig
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from bcl_ray.ray_runtime.elastic import (
    Failures,
    MissingResourcesError,
    RestartError,
    Scaling,
    chosen_workers,
    missing,
    places,
    restart_of,
)

ELASTIC = "bcl_ray.ray_runtime.elastic"
ONE_CPU = {"CPU": 1.0}


def experiment(*overrides: str):
    own = ["scale.cpus_per_worker=1", "scale.cpus_per_data_task=1"]
    return with_overrides(digits_lt(), [*own, *overrides])


def nodes(*cpus: float) -> list[dict[str, float]]:
    return [{"CPU": cpu, "memory": 1e9} for cpu in cpus]


def test_a_node_of_one_cpu_has_ten_places_of_a_tenth():
    assert places(nodes(1.0), {"CPU": 0.1}) == 10


def test_places_are_not_shared_between_nodes():
    assert places(nodes(1.5, 1.5), ONE_CPU) == 2


def test_the_scarcest_resource_counts():
    cluster = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}]
    assert places(cluster, {"CPU": 1.0, "GPU": 1.0}) == 2


def test_a_number_that_does_not_divide_the_global_batch_is_not_taken():
    elastic = experiment("optim.global_batch_size=32", "scale.workers=[1,4]")
    assert chosen_workers(elastic, nodes(4.0), ONE_CPU) == 2, "three would fit beside the stream"


def test_a_cpu_is_left_for_the_stream():
    elastic = experiment("scale.workers=[1,4]")
    assert chosen_workers(elastic, nodes(4.0), ONE_CPU) == 2
    assert chosen_workers(elastic, nodes(5.0), ONE_CPU) == 4


def test_fewer_places_than_the_least_is_no_number_at_all():
    assert chosen_workers(experiment("scale.workers=[2,4]"), nodes(2.0), ONE_CPU) == 0


@settings(deadline=None)
@given(
    cpus=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), max_size=6),
    least=st.sampled_from([1, 2, 4]),
    more=st.sampled_from([1, 2, 4]),
)
def test_the_number_is_the_largest_that_fits_and_divides_the_batch(cpus, least, more):
    run = experiment("optim.global_batch_size=48", f"scale.workers=[{least},{least * more}]")
    found = chosen_workers(run, nodes(*cpus), ONE_CPU)

    def fits(count: int) -> bool:
        return count <= sum(int(cpu) for cpu in cpus) and count + 1 <= sum(cpus)

    possible = [n for n in range(least, least * more + 1) if 48 % n == 0 and fits(n)]
    assert found == max(possible, default=0)


def test_what_is_missing_is_named_with_what_is_there():
    gpus = experiment("scale.workers=4")
    have = [{"CPU": 16.0, "GPU": 2.0}]
    assert missing(gpus, have, {"CPU": 1.0, "GPU": 1.0}) == "4 GPU, and there are 2"
    assert missing(gpus, [], ONE_CPU) == "5 CPU, and there are 0"
    assert missing(gpus, nodes(1.0), ONE_CPU) == "5 CPU, and there is 1"


def test_a_fit_in_all_but_on_no_node_is_named_too():
    wide = experiment("scale.workers=2", "scale.cpus_per_worker=3")
    found = missing(wide, nodes(2.0, 2.0, 2.0, 2.0), {"CPU": 3.0})
    assert found == "nodes with 3 CPU free for each of 2 workers"


@pytest.fixture
def failures():
    said: list[str] = []
    return Failures(FailureConfig(max_failures=1), said.append), said


def failed(error: Exception) -> WorkerGroupError:
    return WorkerGroupError("text", {1: UserExceptionWithTraceback(error, "traceback")})


def test_failures_are_counted_and_said_until_the_budget_is_spent(failures):
    policy, said = failures
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RETRY
    assert said == [
        "worker 1 failed (ValueError: x): starting again from the last checkpoint "
        "(0 more failures allowed)"
    ]
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RAISE


def test_what_follows_from_a_dead_worker_is_not_told_as_the_cause(failures):
    policy, said = failures
    lost = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "traceback")
    dead = WorkerHealthCheckFailedError("failed", RayActorError())
    policy.make_decision(WorkerGroupError("text", {0: lost, 1: dead}))
    assert said[0].startswith("worker 1 died: starting again")


def test_workers_that_saved_their_state_first_cost_no_failure(failures):
    policy, said = failures
    asked = failed(RestartError("a node is being taken away: everything up to step 7 is saved"))
    for _ in range(5):
        assert policy.make_decision(asked) == FailureDecision.RETRY
    assert policy.make_decision(failed(ValueError("x"))) == FailureDecision.RETRY
    assert said[0] == (
        "a node is being taken away: everything up to step 7 is saved; starting again on the nodes "
        "that there are"
    )
    assert restart_of(failed(ValueError("x"))) is None


class Clustered:
    """A cluster that a test makes larger and smaller, and a clock that it moves."""

    def __init__(self, monkeypatch, run):
        self.total, self.free, self.now = {}, {}, 100.0
        self.said, self.restarts = [], []
        monkeypatch.setattr(f"{ELASTIC}.usable_nodes", lambda: self.total)
        monkeypatch.setattr(f"{ELASTIC}.free_resources", lambda _: list(self.free.values()))
        monkeypatch.setattr(f"{ELASTIC}.time.monotonic", lambda: self.now)
        monkeypatch.setattr(f"{ELASTIC}.time_monotonic", lambda: self.now)
        monkeypatch.setattr(Scaling, "_maybe_send_resource_request", lambda _: None)
        workers = (run.scale.min_workers, run.scale.max_workers)
        config = ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1.0})
        self.policy = Scaling(config, run, self.said.append, lambda: self.restarts.append(self.now))

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


def test_workers_that_do_not_start_are_told_of_once(failures):
    policy, said = failures
    cause = "One of the worker actors failed to initialize:\n  File x\nOSError: No space left\n"
    for _ in range(9):
        error = ControllerError(WorkerGroupStartupFailedError(cause))
        assert policy.make_decision(error) == FailureDecision.RETRY
    assert said == ["workers did not start (OSError: No space left): trying again"]


def test_waiting_too_long_is_not_tried_again(failures):
    policy, _ = failures
    error = ControllerError(MissingResourcesError("no workers after 5 s"))
    assert policy.make_decision(error) == FailureDecision.RAISE
