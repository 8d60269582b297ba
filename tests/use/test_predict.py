"""Whole predictions on a real Ray: folders, shards and S3, killed and repeated."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from bcl_ray.data.longtail import shot_groups
from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import Source, SourceSplit, open_source
from bcl_ray.use.evaluate import evaluate_models
from bcl_ray.use.models import open_model
from bcl_ray.use.predict.outputs import Summary
from bcl_ray.use.predict.request import PredictionOptions
from tests.local_ray import local_ray_running
from tests.s3_servers import Bucket, free_block
from tests.trained import rows_of

ray = pytest.importorskip("ray")
from bcl_ray.ray_runtime.connection import Resources  # noqa: E402
from bcl_ray.storage import files  # noqa: E402  (imports Ray)
from bcl_ray.use.predict import job, pipeline, pool  # noqa: E402

pytestmark = pytest.mark.ray

SMALL = {"batch_size": 16, "part_size": 64}
BROKEN = {
    "1/cut.png": "does not decode (50 bytes",
    "2/text.jpg": "it is none of JPEG, PNG",
    "empty.png": "the image is empty",
}


@pytest.fixture(scope="module")
def swift(tmp_path_factory):
    """OpenStack Swift, in the environment of this module and its Ray."""
    from bcl_ray.ops.local.swift import Swift

    server = Swift(tmp_path_factory.mktemp("swift"), free_block(Swift.num_ports))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        try:
            server.start()
            for name, value in server.environment().items():
                patch.setenv(name, value)
            yield server
        finally:
            server.processes.kill(*server.processes.names())


@pytest.fixture(scope="module", autouse=True)
def local_ray(swift):
    with local_ray_running():
        yield


@pytest.fixture
def bucket():
    bucket = Bucket("s3://labels", "swift", None)
    bucket.client.create_bucket(Bucket="labels")
    return bucket


def best_of(trained):
    return open_model("first", trained.root, last=False)


@pytest.fixture(scope="module")
def evaluated(trained):
    ((_, metrics),) = evaluate_models([best_of(trained)], ["first"])
    return metrics


def label(
    trained, images, target, follow=lambda event: None, resume=False, split=None, **options
) -> Summary:
    chosen = PredictionOptions(**{**SMALL, **options})
    where = (str(images), str(target))
    model = open_model("first", trained.root)
    return job.predict(model, *where, chosen, split=split, resume=resume, follow=follow)


def rows(target) -> list[dict]:
    return pq.read_table(Path(target) / "parquet").to_pylist()


def files_of(target) -> dict[str, bytes]:
    """All of an output but its listing of where things are."""
    paths = [file for file in Path(target).rglob("*") if file.is_file()]
    contents = {str(file.relative_to(target)): file.read_bytes() for file in paths}
    return {name: data for name, data in contents.items() if name != "request.json"}


@pytest.fixture(scope="module")
def labelled(trained, tmp_path_factory):
    """The test images of the shards, labelled."""
    target = tmp_path_factory.mktemp("labelled") / "out"
    return target, label(trained, trained.shards, target, csv=True)


def test_predictions_of_a_split_agree_with_evaluation_exactly(trained, labelled, evaluated):
    names = read_manifest(trained.shards).class_names
    hits = {name: [] for name in names}
    for row in rows(labelled[0]):
        hits[row["true_class"]].append(row["class_1"] == row["true_class"])
    accuracy = np.array([np.mean(hits[name]) for name in names])
    assert 100 * accuracy.mean() == pytest.approx(evaluated["accuracy/all"], abs=1e-9)
    assert evaluated["accuracy/all"] > 40  # it has learned something that could differ
    counts = read_manifest(trained.shards).splits["train"].class_counts
    for group, members in shot_groups(counts).items():
        expected = evaluated[f"accuracy/{group}"]
        assert 100 * accuracy[members].mean() == pytest.approx(expected, abs=1e-9)


def test_every_row_of_the_split_is_labelled_once_in_its_order(trained, labelled):
    target, summary = labelled
    assert [row["id"] for row in rows(target)] == rows_of(trained.shards, "test")["id"].to_pylist()
    assert (summary.images, summary.unreadable) == (360, 0)
    assert sum(summary.groups.values()) == 360
    assert len(list((target / "parquet").iterdir())) == 6  # of 64


@pytest.mark.long
def test_a_killed_job_leaves_whole_parts_and_goes_on_with_them(trained, labelled, tmp_path):
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "bcl_ray", "predict", "first", trained.shards, str(target)]
    command += ["--runs", trained.root, "--csv", "--batch-size", "16", "--part-size", "64"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    first = target / "parquet" / "part-000000.parquet"
    while not first.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file.name: file.stat().st_mtime_ns for file in (target / "parquet").glob("part-*")}
    assert 0 < len(before) < 6
    assert not (target / "summary.json").exists()
    with pytest.raises(ValueError, match="go on with --resume, or choose another folder"):
        label(trained, trained.shards, target, csv=True)
    events = []
    label(trained, trained.shards, target, csv=True, resume=True, follow=events.append)
    start_event = next(event for event in events if event["kind"] == "predicting")
    assert start_event["done"] == 64 * len(before)
    assert files_of(target) == files_of(labelled[0])
    for name, written in before.items():
        assert (target / "parquet" / name).stat().st_mtime_ns == written


def test_what_is_complete_is_only_summed_up_again(trained, labelled):
    target, summary = labelled
    before = files_of(target)
    assert label(trained, trained.shards, target, csv=True, resume=True) == summary
    assert files_of(target) == before


@pytest.mark.parametrize("gpus", [25, math.inf])
def test_what_is_complete_needs_no_actors_of_any_cluster(trained, labelled, monkeypatch, gpus):
    target, summary = labelled  # whose last part is short
    resources = cluster(8, gpus)
    monkeypatch.setattr(job, "connected", lambda: contextlib.nullcontext(resources))
    events = []
    again = label(trained, trained.shards, target, csv=True, resume=True, follow=events.append)
    assert again == summary
    assert not [event for event in events if "-" in event.get("device", "")]


def png(image: bytes) -> bytes:
    return cv2.imencode(".png", cv2.imdecode(np.frombuffer(image, np.uint8), 1))[1].tobytes()


def test_a_prefix_of_s3_is_labelled_twice_the_same_and_three_broken_files_are_named(
    trained, labelled, bucket, tmp_path
):
    some = rows_of(trained.shards, "test").slice(0, 12).to_pylist()
    images = {f"{row['label']}/{row['id']}#ü.png": png(row["image"]) for row in some}
    images |= {"1/cut.png": png(some[0]["image"])[:50], "2/text.jpg": b"hello", "empty.png": b""}
    for name, data in images.items():
        key = {"Bucket": bucket.uri.removeprefix("s3://"), "Key": f"new/{name}"}
        bucket.client.put_object(**key, Body=data)
    summaries = [
        label(trained, f"{bucket.uri}/new", f"{bucket.uri}/{out}", batch_size=4, part_size=8)
        for out in ("one", "two")
    ]
    assert summaries[0] == summaries[1]
    assert (summaries[0].images, summaries[0].unreadable) == (15, 3)
    for name, reason in summaries[0].first:
        assert reason.startswith(BROKEN.pop(name))
    parts = files.list_files(f"{bucket.uri}/one/parquet")
    assert list(parts) == ["part-000000.parquet", "part-000001.parquet"]
    by_path = {}
    for part in parts:
        one, two = (files.read_bytes(f"{bucket.uri}/{n}/parquet/{part}") for n in ("one", "two"))
        assert one == two
        (tmp_path / part).write_bytes(one)
        by_path |= {row["path"]: row for row in pq.read_table(tmp_path / part).to_pylist()}
    assert list(by_path) == sorted(images, key=str.encode)
    from_shards = {row["id"]: row["class_1"] for row in rows(labelled[0])}
    for row in some:
        path = f"{row['label']}/{row['id']}#ü.png"
        assert by_path[path]["class_1"] == from_shards[row["id"]]


def relabelled(order: list[int], folder: str) -> str:
    """Shards of the digits in `order`, as classes 0 and up, with their names."""
    digits = open_source("digits")
    splits = {}
    for name, split in digits.splits.items():
        rows = np.flatnonzero(np.isin(split.labels, order))
        labels = np.array([order.index(label) for label in split.labels[rows]])

        def read(positions, split=split, rows=rows):
            return split.read(rows[positions])

        splits[name] = SourceSplit(labels, read, where=str, already_shuffled=True, ids=rows)
    write_shards(Source("some", tuple(digits.class_names[n] for n in order), splits), folder)
    return folder


def test_evaluation_finds_classes_by_name_in_another_order_and_fewer(
    trained, labelled, evaluated, tmp_path
):
    data = relabelled([7, 3, 9, 0, 1, 2, 4, 5, 6, 8], str(tmp_path / "order"))
    ((_, other),) = evaluate_models([best_of(trained)], ["first"], data=data)
    for name in ("accuracy/all", "accuracy/few", "calibration/ece", "loss/nll"):
        assert other.get(name) == pytest.approx(evaluated.get(name), abs=1e-5), name
    data = relabelled([8, 2], str(tmp_path / "fewer"))
    ((_, two),) = evaluate_models([best_of(trained)], ["first"], data=data)
    hits = {"8": [], "2": []}
    for row in rows(labelled[0]):
        if row["true_class"] in hits:
            hits[row["true_class"]].append(row["class_1"] == row["true_class"])
    expected = 50 * sum(np.mean(hit) for hit in hits.values())
    assert two["accuracy/all"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, r"--top \(0\) must be at least 1"),
        ({"part_size": 40}, r"--part-size \(40\) must be a multiple of --batch-size \(16\)"),
        ({"split": "val"}, r"--split 'val' is not in .*: there is train, test"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(trained, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        label(trained, trained.shards, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_input_is_refused(trained):
    with pytest.raises(ValueError, match=r"^OUTPUT \(.*/out\) lies in INPUT, and would be label"):
        label(trained, trained.shards, f"{trained.shards}/out")


def test_a_person_is_told_when_nothing_comes_back(monkeypatch):
    monkeypatch.setattr(pipeline, "LATE_SECONDS", 0.05)
    notes, arrivals = [], []

    def arrived():
        arrivals.append(len(notes))

    def blocks(*pauses):
        for pause in pauses:
            time.sleep(pause)
            yield {}

    assert list(pipeline.with_late_notice(blocks(0.5, 0), notes.append, arrived)) == [{}, {}]
    assert [event["text"][:40] for event in notes] == ["no image came back within 0.05 s: others"]
    assert arrivals == [1], "once, with the first"
    assert list(pipeline.with_late_notice(blocks(0), notes.append, arrived)) == [{}]
    time.sleep(0.2)
    assert len(notes) == 1


def test_a_folder_without_files_is_refused(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no files: name a folder of images"):
        label(trained, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match=r"--split is for shards, and .*empty holds no manifest"):
        label(trained, tmp_path / "empty", tmp_path / "out", split="test")


def cluster(cpus, gpus, **more):
    return Resources(cpus, gpus, 2.0**30, (), **more)


@pytest.mark.parametrize(
    ("resources", "batches", "options", "expected"),
    [
        (cluster(8, 2), 99, {}, (2, "GPU")),
        (cluster(8, 2), 1, {}, (1, "GPU")),  # no more than there is work for
        (cluster(8, 2), 99, {"gpus": 1}, (1, "GPU")),
        (cluster(8, 2), 99, {"gpus": 0}, (8, "CPU")),
        (cluster(8, 0), 99, {"cpus": 3}, (3, "CPU")),
        (cluster(0.5, 0), 99, {}, (1, "CPU")),
        (cluster(math.inf, math.inf, grows=True), 99, {"gpus": 5}, (5, "GPU")),
        (cluster(math.inf, math.inf, grows=True), 99, {"gpus": 0, "cpus": 4}, (4, "CPU")),
    ],
)
def test_actors_follow_from_the_cluster_the_work_and_options(resources, batches, options, expected):
    plan = pool.plan_pool(resources, batches, options.get("gpus"), options.get("cpus"))
    assert (plan.actors, "GPU" if "GPU" in plan.actor else "CPU") == expected


@pytest.mark.parametrize(
    ("resources", "options", "message"),
    [
        (cluster(8, 2), {"gpus": 3}, r"--gpus \(3\) is more than the cluster can have \(2\)"),
        (cluster(8, 2), {"gpus": -1}, r"--gpus \(-1\) must be at least 0"),
        (cluster(8, 0), {"cpus": 0}, r"--cpus \(0\) must be at least 1"),
        (cluster(math.inf, math.inf, grows=True), {}, "give --gpus, or set BCL_RAY_MAX_NODES"),
        (cluster(math.inf, math.inf, grows=True), {"gpus": 0}, "give --cpus, or set BCL_RAY_MAX"),
    ],
)
def test_a_number_of_actors_that_cannot_be_is_refused(resources, options, message):
    with pytest.raises(ValueError, match=message):
        pool.plan_pool(resources, 99, options.get("gpus"), options.get("cpus"))
