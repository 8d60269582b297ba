"""Sharding by all nodes of a Ray cluster, and by all CPUs of this machine."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import bcl_ray
from bcl_ray.api import data
from bcl_ray.data.shards import read_manifest, verify_shards
from bcl_ray.storage import files

ON_SWIFT = pytest.mark.parametrize("s3_server", ["swift"], indirect=True)
ROWS = 600


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The same images as files with a list, and as Parquet; one of them is damaged."""
    folder = tmp_path_factory.mktemp("images")
    contents, lines = [], []
    for row in range(ROWS):
        file = folder / f"{row}.png"
        Image.fromarray(np.full((3, 3), row % 256, np.uint8)).save(file)
        contents.append(file.read_bytes() if row != 70 else b"")
        file.write_bytes(contents[-1])
        lines.append(f"{row}.png {row % 3}\n")
    (folder / "train.txt").write_text("".join(lines))
    table = pa.table({"image": contents, "label": [row % 3 for row in range(ROWS)]})
    pq.write_table(table, folder / "train.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def two_nodes():
    """A Ray of two nodes with one CPU each, to which this process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def shard(source: str, folder: Path | str, target: Path | str, **options):
    where = {"list": f"{folder}/train.txt", "parquet": f"{folder}/train.parquet"}[source]
    options = {"on_bad_image": "skip", "seed": 5} | options
    return bcl_ray.shard(source, str(target), path=str(folder), splits={"train": where}, **options)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """What one process of this machine writes, by source."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        for source in ("list", "parquet"):
            # From where nodes see them, too: the manifest is of the same source.
            shard(source, f"file://{images}", folder / source, cpus=1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", ["list", "parquet"])
def test_all_cpus_write_the_bytes_of_one(images, alone, tmp_path, source, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(data, "ROWS_PER_PROCESS", 100)
    shard(source, f"file://{images}", tmp_path / source, cpus=3)
    assert hashes(tmp_path / source) == hashes(alone / source)
    assert len(hashes(tmp_path / source)) == 11, (
        "eight shards, the bad image, the two files of the manifest"
    )


def test_where_jobs_are_sent_to_a_dashboard_this_machine_shards_and_says_so(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    bcl_ray.shard("digits", str(tmp_path))
    assert read_manifest(str(tmp_path)).splits["test"].rows == 360
    assert "sharding on this machine; `bcl-ray submit shard ...`" in capsys.readouterr().err


@ON_SWIFT
def test_several_processes_shard_from_and_to_a_bucket(bucket, images, alone, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(data, "ROWS_PER_PROCESS", 100)
    few = "".join(f"{row}.png {row % 3}\n" for row in range(60))
    files.write_bytes(f"{bucket.uri}/in/train.txt", few.encode())
    for name in ("train.parquet", *(f"{row}.png" for row in range(60))):
        files.write_bytes(f"{bucket.uri}/in/{name}", (images / name).read_bytes())
    for source in ("list", "parquet"):
        there, here = f"{bucket.uri}/{source}", tmp_path / source
        manifest = shard(source, f"{bucket.uri}/in", there, cpus=2)
        assert verify_shards(there) == []
        assert not files.list_files(f"{there}/progress")
        assert manifest.splits["train"].rows == (60 if source == "list" else ROWS - 1)
        shard(source, f"{bucket.uri}/in", here, cpus=1)
        assert list(files.list_files(there)) == list(files.list_files(str(here)))
        for path in here.iterdir():
            assert files.read_bytes(f"{there}/{path.name}") == path.read_bytes()


@pytest.mark.ray
@pytest.mark.parametrize("source", ["list", "parquet"])
def test_two_nodes_write_the_bytes_of_one_process(two_nodes, images, alone, tmp_path, source):
    shard(source, f"file://{images}", f"file://{tmp_path}/{source}")
    assert hashes(tmp_path / source) == hashes(alone / source)


@pytest.mark.ray
def test_paths_of_one_machine_are_refused_on_two_nodes(two_nodes, images, tmp_path):
    with pytest.raises(ValueError, match=r"the source \(/.*\) is a path of this machine, and the"):
        shard("list", images, f"file://{tmp_path}/target")
    with pytest.raises(ValueError, match=r"TARGET \(/.*target\) is a path of this machine, and"):
        shard("list", f"file://{images}", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.ray
def test_an_error_of_a_task_is_the_error_of_the_command(two_nodes, images, tmp_path):
    with pytest.raises(ValueError, match=r"1 of 600 rows are bad.*\n  train row 70, 70\.png: the"):
        shard("list", f"file://{images}", f"file://{tmp_path}/target", on_bad_image="stop")
    from bcl_ray.ray_runtime.cluster_map import map_on_cluster

    with pytest.raises(ZeroDivisionError):
        list(map_on_cluster(divide, [1, 0]))


def divide(number):
    return 1 / number
