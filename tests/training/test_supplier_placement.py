"""Suppliers of a run: which there are, which CPUs they get from Ray, and what they deliver."""

import itertools
import pickle
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.data.layout import evaluation_reads, split_layout
from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.training import tasks
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.tasks import packed, unpacked

pytest.importorskip("ray")
from bcl_ray.training import supplier_placement as module
from benchmarks.supply import CLUSTERS, cpus_of_executions

SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return with_overrides(digits_lt(), [f"data.path={folder}", "train.epochs=3"])


@pytest.mark.parametrize(("nodes", "cpus", "workers", "each"), CLUSTERS)
def test_suppliers_get_nine_tenths_of_the_cpus_that_workers_leave(nodes, cpus, workers, each):
    names = [str(node) for node in range(nodes)]
    free = dict.fromkeys(names, cpus - workers / nodes * each)
    suppliers = len(module.grouped_nodes(names, free))
    given_cpus = cpus_of_executions(nodes, cpus, workers, each, suppliers)
    assert given_cpus >= 0.9 * (nodes * cpus - workers * each)


def test_one_execution_per_worker_would_get_no_cpus_on_a_cluster_of_8_nodes():
    assert cpus_of_executions(8, 48, 64, 1, executions=64) == 0


@given(st.integers(1, 40), st.lists(st.floats(0, 200), min_size=1, max_size=50))
def test_groups_have_every_node_once_and_no_smaller_size_would_use_the_cpus(workers, free):
    names = [str(node) for node in range(workers)]
    groups = module.grouped_nodes(names, dict(enumerate(free)))
    assert list(itertools.chain(*groups)) == names
    for size in range(1, len(groups[0])):
        assert module.used_share(free, -(-workers // size)) < module.USED_SHARE


def test_data_tasks_run_on_nodes_of_their_workers_and_on_nodes_without_any():
    assert module.allowed_nodes(["a", "b"], ["a", "b"]) == {}
    assert module.allowed_nodes(["a"], ["a", "c", "b"]) == {"ray.io/node-id": "!in(b,c)"}


@given(
    st.lists(
        st.tuples(SHAPES, st.sampled_from(["uint8", "int64", "float32"])), min_size=1, max_size=3
    )
)
def test_a_block_comes_out_of_its_table_as_it_went_in(columns):
    rng = np.random.default_rng(0)
    batch = {
        f"column{number}": rng.integers(0, 255, shape).astype(dtype)
        for number, (shape, dtype) in enumerate(columns)
    }
    table = packed(batch)
    assert table.num_rows == 1
    result = unpacked(table)
    assert result.keys() == batch.keys()
    for name, array in batch.items():
        assert result[name].dtype == array.dtype
        assert np.array_equal(result[name], array)


def test_a_block_is_not_copied_out_of_its_table():
    table = packed({"views": np.arange(12, dtype=np.uint8).reshape(3, 4)})
    start = table["views"].chunk(0).buffers()[2].address
    assert unpacked(table)["views"].__array_interface__["data"][0] == start


@given(
    rows=st.lists(st.integers(1, 9), max_size=12),
    most_rows=st.integers(1, 20),
    most_reads=st.integers(0, 5),
)
def test_portions_keep_all_reads_in_order_and_are_as_large_as_allowed(rows, most_rows, most_reads):
    reads = [tasks.Read(0, 0, number, np.arange(count)) for number, count in enumerate(rows)]
    portions = list(tasks._portions(reads, most_rows, most_reads))
    assert [read.row_group for portion in portions for read in portion] == list(range(len(rows)))

    def is_allowed(portion):
        return sum(len(r.rows) for r in portion) <= most_rows and len(portion) <= most_reads

    assert all(len(portion) == 1 or is_allowed(portion) for portion in portions)
    for portion, following in itertools.pairwise(portions):
        assert not is_allowed((*portion, following[0]))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_batches_of_one_size_have_the_rows_of_all_blocks_in_order(sizes, rows):
    ids = np.arange(sum(sizes))
    blocks = [{"ids": part} for part in np.split(ids, np.cumsum(sizes)[:-1])] if sizes else []
    batches = [tasks.joined(parts)["ids"] for parts in tasks.rebatched(blocks, rows)]
    assert np.array_equal(np.concatenate([ids[:0], *batches]), ids)
    assert [len(batch) for batch in batches[:-1]] == [rows] * (len(batches) - 1)


@pytest.mark.parametrize("evaluate_first", [False, True])
def test_deliveries_are_all_reads_of_the_run_in_the_order_of_need(experiment, evaluate_first):
    """Two workers, from the fourth step of the second epoch on, evaluated at the end."""
    manifest = read_manifest(experiment.data.path)
    experiment = with_overrides(experiment, ["train.eval_every=3"])
    steps = epoch_plan(experiment, manifest, 0).steps
    first = steps if evaluate_first else steps + 3
    whole = Assignment(
        experiment,
        manifest,
        range(2),
        2,
        first_step=first,
        evaluate_first=evaluate_first,
    )
    with patch.object(tasks, "BLOCK_BYTES", 5000):
        deliveries = list(whole.deliveries())
    for rank in range(2):
        reads = {
            purpose: [
                (delivery.task.epoch, *read[:3], read.rows.tolist())
                for delivery in deliveries
                if (delivery.rank, delivery.purpose) == (rank, purpose)
                for portion in delivery.task.portions
                for read in portion
            ]
            for purpose in ("training", "evaluation")
        }
        expected = [
            (epoch, *read[:3], read.rows.tolist())
            for epoch, begin, ramp in ((1, first - steps, True), (2, 0, False))
            for read in epoch_plan(experiment, manifest, epoch).reads(rank, 2, begin, ramp=ramp)
        ]
        assert reads["training"] == expected
        layout = split_layout(experiment, manifest, "evaluation")
        once = [(0, *read[:3], read.rows.tolist()) for read in evaluation_reads(layout, rank, 2)]
        assert reads["evaluation"] == once * (2 if evaluate_first else 1)
    purposes = [purpose for purpose, _ in itertools.groupby(d.purpose for d in deliveries)]
    assert purposes == ["evaluation"] * evaluate_first + ["training", "evaluation"]
    epochs = [d.task.epoch for d in deliveries if d.purpose == "training"]
    assert epochs == sorted(epochs)
    for epoch in (1, 2):
        needed = [
            delivery.task.portions[0][0].step
            for delivery in deliveries
            if delivery.purpose == "training" and delivery.task.epoch == epoch
        ]
        assert needed == sorted(needed)


def test_a_task_is_a_few_kilobytes_whatever_the_number_of_shards(experiment):
    manifest = read_manifest(experiment.data.path)
    whole = Assignment(experiment, manifest, range(1), 1)
    assert max(len(pickle.dumps(d.task)) for d in whole.deliveries()) < 50_000


def test_workers_take_turns_where_many_tasks_are_needed_for_one_step(experiment):
    """Otherwise the first worker's blocks would fill the supplier, which the others wait for."""
    manifest = read_manifest(experiment.data.path)
    with patch.object(tasks, "BLOCK_BYTES", 1):
        deliveries = list(Assignment(experiment, manifest, range(4), 4).deliveries())
    training = [d for d in deliveries if d.purpose == "training"]
    step = lambda d: (d.task.epoch, d.task.portions[0][0].step)  # noqa: E731
    for _, group in itertools.groupby(training, key=step):
        counts = np.zeros(4, int)
        sizes = [d.rank for d in group]
        shortest = min(sizes.count(rank) for rank in range(4))
        for rank in sizes[: 4 * shortest]:
            counts[rank] += 1
            assert counts.max() - counts.min() <= 1


def test_of_evaluations_whose_images_are_kept_only_the_first_is_delivered(experiment):
    manifest = read_manifest(experiment.data.path)
    experiment = with_overrides(experiment, ["train.eval_every=1"])
    for first, expected in ((False, ["training", "evaluation"]), (True, ["evaluation"])):
        whole = Assignment(
            experiment, manifest, range(2), 2, evaluate_first=first, evaluates_once=True
        )
        purposes = [p for p, _ in itertools.groupby(d.purpose for d in whole.deliveries())]
        assert purposes == [*expected, "training"]
