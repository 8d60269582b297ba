"""How many trials run at once, and which resources of ended trials are overdue."""

import pytest

from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.ray_runtime.connection import Resources
from bcl_ray.tuning.capacity import DRIVER_BYTES, data_cpus, trial_capacity
from bcl_ray.tuning.placement_groups import HeldGroup, overdue_groups

GIB = 2**30


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    target = str(tmp_path_factory.mktemp("digits") / "digits")
    write_shards(open_source("digits"), target)
    return read_manifest(target)


def cluster(nodes=1, cpus=8.0, gpus=0.0, store=64 * GIB, **options):
    node = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return Resources(nodes * cpus, nodes * gpus, store, (node,) * nodes, **options)


def experiment(*changes):
    base = ("scale.workers=1", "scale.cpus_per_worker=1", "scale.cpus_per_data_task=1")
    return with_overrides(digits_lt(), [*base, *changes])


@pytest.mark.parametrize(
    ("changes", "resources", "expected"),
    [
        ((), cluster(cpus=8), 4),  # a worker and a data task each
        (("scale.data_cpus=3",), cluster(cpus=8), 2),
        (("scale.workers=2",), cluster(cpus=8), 2),
        (("scale.cpus_per_worker=0.5", "scale.cpus_per_data_task=0.5"), cluster(cpus=2), 2),
        ((), cluster(cpus=64, gpus=4), 4),
        (("scale.gpus_per_worker=0.5",), cluster(cpus=64, gpus=4), 8),
        (("scale.gpus_per_worker=0.25",), cluster(nodes=2, cpus=8, gpus=1), 8),
        (("scale.gpus_per_worker=0.3",), cluster(cpus=64, gpus=1), 3),
        (("scale.device=cpu",), cluster(cpus=64, gpus=4), 32),
        (("scale.workers=2",), cluster(nodes=4, cpus=32, gpus=1), 2),
        # No worker of 3 CPUs fits twice on a node of 4.
        (("scale.cpus_per_worker=3",), cluster(nodes=3, cpus=4), 3),
    ],
)
def test_as_many_trials_as_there_is_room_for(manifest, changes, resources, expected):
    assert trial_capacity(experiment(*changes), manifest, resources, 100 * DRIVER_BYTES) == expected


def test_drivers_need_memory_and_batches_a_store(manifest):
    assert trial_capacity(experiment(), manifest, cluster(cpus=64), 3.5 * DRIVER_BYTES) == 3
    store = 3 * 2**20
    assert (
        trial_capacity(experiment(), manifest, cluster(cpus=64, store=store), 99 * DRIVER_BYTES)
        < 32
    )


@pytest.mark.parametrize(
    ("changes", "resources", "message"),
    [
        ((), cluster(cpus=1.5), "for lack of CPUs: it needs 1 worker of 1 CPU, and 1 CPUs for"),
        (("scale.cpus_per_worker=3",), cluster(nodes=2, cpus=2), "for lack of nodes"),
    ],
)
def test_no_room_for_one_is_told(manifest, changes, resources, message):
    with pytest.raises(ValueError, match=f"the cluster has no room for one trial, {message}"):
        trial_capacity(experiment(*changes), manifest, resources, 9 * DRIVER_BYTES)


def test_trials_share_the_cpus_for_data():
    assert data_cpus(experiment(), cpus=16, trials=4) == 3
    assert data_cpus(experiment(), cpus=8, trials=4) == 1
    assert data_cpus(experiment("scale.cpus_per_data_task=0.5"), cpus=7, trials=4) == 0.5
    assert data_cpus(experiment("scale.data_cpus=2"), cpus=64, trials=4) == 2


def test_a_gpu_is_shared_by_one_worker_runs_alone():
    with pytest.raises(ValueError, match=r"scale.gpus_per_worker \(0.5\) must be 1 with more than"):
        experiment("scale.workers=2", "scale.gpus_per_worker=0.5")


def test_groups_of_ended_runs_are_overdue_after_a_while():
    groups = [HeldGroup("a", "trial-000", 10.0), HeldGroup("b", "trial-001", 20.0)]
    starts = {"trial-000": 5.0, "trial-001": 15.0}
    assert overdue_groups(groups, starts, {"trial-000": 100.0}, now=129.0) == []
    assert overdue_groups(groups, starts, {"trial-000": 100.0}, now=131.0) == groups[:1]


def test_so_are_groups_from_before_their_run_began_once_more():
    """The driver of a trial died, and its run goes on in another process."""
    groups = [HeldGroup("a", "trial-000", 10.0), HeldGroup("b", "trial-000", 55.0)]
    assert overdue_groups(groups[:1], {"trial-000": 50.0}, {}, now=79.0) == []
    assert overdue_groups(groups[:1], {"trial-000": 50.0}, {}, now=81.0) == groups[:1]
    assert overdue_groups(groups, {"trial-000": 50.0}, {}, now=81.0) == groups[:1]
