"""The batches of a stream are those of the plan, on a real local Ray."""

import itertools
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.data.views import host
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.training import stream, supplier, tasks
from bcl_ray.training.deliveries import Assignment
from bcl_ray.training.stream import SupplierClient
from bcl_ray.training.supplier_placement import own_supplier
from bcl_ray.training.tasks import packed
from tests.local_ray import local_ray_running

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray

TRAINING, EVALUATION = frozenset(("training",)), frozenset(("evaluation",))


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with local_ray_running():
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


@pytest.fixture(scope="module")
def experiment(shards):
    return with_overrides(digits_lt(), [f"data.path={shards}", "train.epochs=2"])


@pytest.fixture(scope="module")
def manifest(shards):
    return read_manifest(shards)


@pytest.fixture(scope="module")
def train_rows(shards, manifest):
    files = [f"{shards}/{shard.file}" for shard in manifest.splits["train"].shards]
    return pa.concat_tables([pq.read_table(file) for file in files])


def assignment(experiment, manifest, world_size=1, **options):
    return Assignment(experiment, manifest, range(world_size), world_size, **options)


def streamed(experiment, manifest, *, world_size=1, first_step=0):
    """Yield (epoch, global batch), joined from all workers' batches, of one shared supplier."""
    whole = assignment(experiment, manifest, world_size, purposes=TRAINING, first_step=first_step)
    workers = [
        pairs(
            stream.training_batches(
                experiment,
                manifest,
                client,
                world_size=world_size,
                first_step=first_step,
            )
        )
        for client in clients_of(whole)
    ]
    for parts in zip(*workers, strict=True):
        columns = parts[0][1].keys()
        yield (
            parts[0][0],
            {name: np.concatenate([part[name] for _, part in parts]) for name in columns},
        )


class SmallExecutions(supplier.Supplier):
    """A supplier whose tasks have one block, of one read, and whose executions have 40 tasks."""

    def __init__(self, *args):
        tasks.BLOCK_BYTES, supplier.EXECUTION_TASKS = 1, 40
        super().__init__(*args)


def clients_of(whole):
    shared = own_supplier(whole)
    return [SupplierClient(shared, rank) for rank in whole.ranks]


def pairs(epochs):
    return ((epoch, batch) for epoch, batches in epochs for batch in batches)


def evaluated(experiment, manifest, clients):
    """The batches of one evaluation, of all workers, which take turns."""
    workers = [
        stream.evaluation_batches(experiment, manifest, client, world_size=len(clients))
        for client in clients
    ]
    return [
        batch
        for batches in itertools.zip_longest(*workers)
        for batch in batches
        if batch is not None
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_are_the_plans_rows_with_their_keyed_views(
    experiment, manifest, train_rows, world_size
):
    batches = list(streamed(experiment, manifest, world_size=world_size))
    plans = [epoch_plan(experiment, manifest, epoch) for epoch in range(2)]
    assert [epoch for epoch, _ in batches] == [0] * plans[0].steps + [1] * plans[1].steps
    for (epoch, batch), step in zip(batches, 2 * [*range(plans[0].steps)], strict=True):
        rows = train_rows.take(plans[epoch].rows(step))
        ids = rows["id"].to_numpy()
        assert (batch["ids"] == ids).all()
        assert (batch["labels"] == rows["label"].to_numpy()).all()
        expected = host.train_views(
            rows["image"].to_pylist(), ids, experiment.views, num_contrastive=2, seed=0, epoch=epoch
        )
        assert (batch["views"] == expected).all()


def test_blocks_of_one_read_in_many_executions_give_the_same_stream(
    experiment, manifest, monkeypatch
):
    whole = [batch["ids"] for _, batch in streamed(experiment, manifest)]
    monkeypatch.setattr(tasks, "BLOCK_BYTES", 1)
    monkeypatch.setattr(supplier, "Supplier", SmallExecutions)
    pieces = [batch["ids"] for _, batch in streamed(experiment, manifest)]
    assert np.array_equal(whole, pieces)


def test_a_stream_that_starts_in_mid_epoch_is_the_tail_of_the_whole_one(experiment, manifest):
    steps = epoch_plan(experiment, manifest, 0).steps
    whole = list(streamed(experiment, manifest))
    tail = list(streamed(experiment, manifest, world_size=2, first_step=steps + 3))
    assert [epoch for epoch, _ in tail] == [1] * (steps - 3)
    for (_, expected), (_, batch) in zip(whole[steps + 3 :], tail, strict=True):
        assert (batch["ids"] == expected["ids"]).all()
        assert (batch["views"] == expected["views"]).all()


def test_a_run_that_is_complete_has_no_batches_left(experiment, manifest):
    steps = epoch_plan(experiment, manifest, 0).steps
    assert not list(streamed(experiment, manifest, first_step=2 * steps))


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_streams_every_row_once_over_all_workers(experiment, manifest, world_size):
    whole = assignment(experiment, manifest, world_size, purposes=EVALUATION, evaluate_first=True)
    batches = evaluated(experiment, manifest, clients_of(whole))
    ids = np.concatenate([batch["ids"] for batch in batches])
    assert sorted(ids) == sorted(set(ids))
    assert len(ids) == manifest.splits["test"].rows == 360


def test_one_supplier_serves_training_and_evaluations_in_turn(experiment, manifest):
    """Two epochs on two workers, each evaluated, after the evaluation of an epoch before."""
    steps = epoch_plan(experiment, manifest, 0).steps
    experiment = with_overrides(experiment, ["train.epochs=3", "train.eval_every=1"])
    clients = clients_of(assignment(experiment, manifest, 2, first_step=steps, evaluate_first=True))
    workers = [
        pairs(stream.training_batches(experiment, manifest, client, world_size=2, first_step=steps))
        for client in clients
    ]
    expected = [batch["ids"] for _, batch in streamed(experiment, manifest, first_step=steps)]
    for begin in (0, steps):
        assert sum(len(b["ids"]) for b in evaluated(experiment, manifest, clients)) == 360
        for ids in expected[begin : begin + steps]:
            parts = [next(worker)[1]["ids"] for worker in workers]
            assert np.array_equal(np.concatenate(parts), ids)
    assert sum(len(b["ids"]) for b in evaluated(experiment, manifest, clients)) == 360
    assert [next(worker, None) for worker in workers] == [None, None]


def test_a_broken_image_stops_the_stream_and_is_named(shards, tmp_path):
    folder = tmp_path / "broken"
    source = open_source("digits")
    write_shards(source, str(folder), profile="exponential", imbalance_factor=50)
    manifest = read_manifest(str(folder))
    file = folder / manifest.splits["test"].shards[0].file
    table = pq.read_table(file)
    images = [b"not an image", *table["image"].to_pylist()[1:]]
    rows = manifest.splits["test"].row_group_rows
    table = table.set_column(1, table.schema.field("image"), pa.array(images, pa.binary()))
    pq.write_table(table, file, row_group_size=rows)
    experiment = with_overrides(digits_lt(), [f"data.path={folder}"])
    broken = assignment(experiment, manifest, purposes=EVALUATION, evaluate_first=True)
    with pytest.raises(Exception, match=rf"image with id {table['id'][0].as_py()} "):
        evaluated(experiment, manifest, clients_of(broken))


def test_data_tasks_do_not_import_torch(experiment, manifest):
    assert "torch" not in ray.get(ray.remote(_modules_after_a_task).remote(experiment, manifest))


def _modules_after_a_task(experiment, manifest):
    source = tasks.source_of(experiment, manifest, training=True)
    reads = tuple(epoch_plan(experiment, manifest, 0).reads())
    blocks = source.load(tasks.Task(0, (reads[:2], reads[2:3])))
    assert [packed(block).num_rows for block in blocks] == [1, 1]
    return sorted({name.partition(".")[0] for name in sys.modules})
