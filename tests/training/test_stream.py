"""The batches of a stream are those of the plan, on a real local Ray."""

import logging
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
from bcl_ray.training import stream, tasks

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


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


def streamed(experiment, manifest, *, world_size=1, first_step=0):
    """Yield (epoch, global batch), joined from all workers' streams."""
    workers = []
    for rank in range(world_size):
        epochs = stream.training_batches(
            experiment, manifest, rank=rank, world_size=world_size, first_step=first_step
        )
        workers.append([(epoch, batch) for epoch, batches in epochs for batch in batches])
    for parts in zip(*workers, strict=True):
        columns = parts[0][1].keys()
        yield (
            parts[0][0],
            {name: np.concatenate([part[name] for _, part in parts]) for name in columns},
        )


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


def test_a_stream_in_many_small_segments_is_the_same_stream(experiment, manifest, monkeypatch):
    whole = [batch["ids"] for _, batch in streamed(experiment, manifest)]
    monkeypatch.setattr(tasks, "TASK_BYTES", 1)
    monkeypatch.setattr(stream, "SEGMENT_TASKS", 40)
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
    ids = [
        batch["ids"]
        for rank in range(world_size)
        for batch in stream.evaluation_batches(
            experiment, manifest, rank=rank, world_size=world_size
        )
    ]
    assert sorted(np.concatenate(ids)) == sorted(set(np.concatenate(ids)))
    assert len(np.concatenate(ids)) == manifest.splits["test"].rows == 360


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
    with pytest.raises(Exception, match=rf"image with id {table['id'][0].as_py()} "):
        list(stream.evaluation_batches(experiment, manifest, rank=0, world_size=1))


def test_data_tasks_do_not_import_torch(experiment, manifest):
    assert "torch" not in ray.get(ray.remote(_modules_after_a_task).remote(experiment, manifest))


def _modules_after_a_task(experiment, manifest):
    source = tasks.source_of(experiment, manifest, training=True)
    reads = list(epoch_plan(experiment, manifest, 0).reads())[:2]
    assert source.load(0, reads)["views"].shape[1:] == (3, 8, 8, 3)
    return sorted({name.partition(".")[0] for name in sys.modules})
