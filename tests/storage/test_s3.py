"""Storage on real S3 servers, undisturbed and behind a proxy with faults."""

import itertools
import logging
import multiprocessing
import os
import pickle
import socket
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest

from bcl_ray.data.shards import read_manifest, verify_shards, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.storage import files, s3
from bcl_ray.storage.fence import LeaseHeldError
from bcl_ray.storage.s3 import access as check
from bcl_ray.storage.s3 import faults, objects, uploads
from tests.data.test_shards import balanced

ALL = {"list", "read", "write", "delete"}
ON_SWIFT = pytest.mark.parametrize("s3_server", ["swift"], indirect=True)
ON_CEPH = pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)


@pytest.fixture
def small_parts(monkeypatch):
    """The smallest parts that a store accepts."""
    monkeypatch.setattr(uploads, "PART_BYTES", 5 << 20)
    return 5 << 20


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.6)
    monkeypatch.setattr(faults, "DENIED_RETRY_SECONDS", 0.6)


def uploads_of(bucket):
    return s3.stale_uploads(bucket.uri, timedelta(seconds=-5))  # Swift rounds their time up


# Files


def test_all_files_come_page_by_page_in_the_order_of_their_bytes(bucket, monkeypatch):
    monkeypatch.setattr(objects, "PAGE_KEYS", 3)
    names = ["a-b.jpg", "a/1.jpg", "a/deep/er/x", "a0", "b c/ü#?.png", "b c/%41+.png", "é"]
    for name in [*names, ".hidden/x", "a/.thumb", "folder/"]:
        key = {"Bucket": bucket.uri.removeprefix("s3://"), "Key": f"all/{name}"}
        bucket.client.put_object(**key, Body=b"" if name == "folder/" else name.encode())
    listed = list(files.walk(f"{bucket.uri}/all"))
    assert listed == sorted(names, key=str.encode)
    assert list(files.walk(f"{bucket.uri}/al")) == []
    for number, name in enumerate(listed):
        assert list(files.walk(f"{bucket.uri}/all", name)) == listed[number + 1 :]
    for name in listed:
        assert files.read_bytes(files.file_in(f"{bucket.uri}/all", name)) == name.encode()


def test_files_live_in_a_bucket_as_in_a_folder(bucket):
    uri = f"{bucket.uri}/a/deep"
    for data in (b"old", b"new one"):
        files.write_bytes(f"{uri}/file", data)
        assert files.read_bytes(f"{uri}/file") == data
    files.write_bytes(f"{uri}/empty", b"")
    assert files.read_bytes(f"{uri}/empty") == b""
    assert files.list_files(uri) == {"empty": 0, "file": 7}
    assert files.list_folders(f"{bucket.uri}/a") == ["deep"]
    assert files.exists(uri)
    files.check_file(f"{uri}/file")
    with pytest.raises(IsADirectoryError, match=f"{uri} is a folder, not a file"):
        files.check_file(uri)
    files.delete(f"{uri}/file")
    assert not files.exists(f"{uri}/file")
    files.delete_folder(f"{bucket.uri}/a")
    files.delete_folder(f"{bucket.uri}/a")
    assert files.list_files(uri) == {}
    assert files.list_folders(f"{bucket.uri}/a") == []


@ON_SWIFT  # Ceph has the same keys
def test_keys_with_empty_parts_are_images_or_named(bucket):
    """A tool that joins paths carelessly makes them, and pyarrow does not open them."""
    keys = ["train/cat//1.png", "train/cat/2.png", "train//3.png", "test/cat///4.png", "/test/5"]
    keys.append("train/cat/6.png/")
    for key in [*keys, "train/bee/", "train/cat/sub//"]:
        content = key.encode() if key in keys else b""
        name = bucket.uri.removeprefix("s3://")
        bucket.client.put_object(Bucket=name, Key=f"in/{key}", Body=content)
    assert sorted(files.walk(f"{bucket.uri}/in")) == sorted(keys)
    source = open_source("folder", f"{bucket.uri}/in")
    assert source.class_names == ("bee", "cat")
    for split, expected in (("train", [keys[2], keys[0], keys[1], keys[5]]), ("test", [keys[3]])):
        images = source.splits[split]
        rows = np.arange(len(images.labels))
        assert [images.where(row) for row in rows] == expected
        assert list(images.read(rows)) == [key.encode() for key in expected]
    assert source.splits["train"].faults == {0: "'' is not a class of the training split"}


def test_missing_files_and_buckets_are_named(bucket):
    uri = f"{bucket.uri}/gone"
    for access in (files.read_bytes, files.delete, files.check_file):
        with pytest.raises(FileNotFoundError, match=f"^{uri} does not exist: check its spelling"):
            access(uri)
    other = f"{bucket.uri}-none"
    for write in (files.write_bytes, files.create_bytes):
        with pytest.raises(FileNotFoundError, match=f"there is no bucket '{other[5:]}' at http"):
            write(f"{other}/file", b"")


def test_the_uri_may_contain_the_endpoint(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    server = bucket.server.endpoint.removeprefix("http://")
    uri = f"{bucket.uri}?scheme=http&endpoint_override={server}"
    files.write_bytes(files.join(uri, "file"), b"12")
    assert files.read_bytes(files.join(uri, "file")) == b"12"
    assert bucket.server.endpoint not in os.environ.values()


def test_readers_see_one_version_of_an_object_that_is_being_replaced(bucket):
    versions = [b"a" * 100, b"b" * 300]
    files.write_bytes(f"{bucket.uri}/file", versions[0])
    stopped = threading.Event()

    def replace() -> None:
        for version in itertools.cycle(versions):
            if stopped.is_set():
                return
            files.write_bytes(f"{bucket.uri}/file", version)
            time.sleep(0.05)  # else no reading would come to an end between two of them

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        seen = {files.read_bytes(f"{bucket.uri}/file") for _ in range(30)}
    finally:
        stopped.set()
        writer.join()
    assert seen <= set(versions)


def test_large_objects_appear_whole(bucket, small_parts):
    uri = f"{bucket.uri}/large"
    files.write_bytes(uri, b"old")
    data = os.urandom(3 * small_parts + 7)
    with files.open_write(uri) as sink:
        for start in range(0, len(data), 1 << 20):
            sink.write(data[start : start + (1 << 20)])
            if start == 12 << 20:
                assert len(uploads_of(bucket)) == 1  # parts are there, and not to be seen
                assert files.read_bytes(uri) == b"old"
    assert files.read_bytes(uri) == data
    assert uploads_of(bucket) == []


def test_a_failed_block_leaves_neither_object_nor_parts(bucket, small_parts):
    def fail():
        with files.open_write(f"{bucket.uri}/large") as sink:
            sink.write(bytes(2 * small_parts))
            assert len(uploads_of(bucket)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert uploads_of(bucket) == []
    assert bucket.keys() == []


def test_a_part_that_fails_leaves_neither_object_nor_parts(bucket, proxy, impatient, small_parts):
    proxy.plan("slow_down", times=1000, method="PUT")  # each part, and not what begins or aborts
    with pytest.raises(OSError, match="is too busy or broken"):
        files.write_bytes(f"{bucket.uri}/large", bytes(8 * small_parts))
    proxy.calm()
    assert uploads_of(bucket) == []
    assert bucket.keys() == []


@pytest.mark.parametrize("parts", [0, 0.5, 2, 5.3])
def test_a_server_copies_objects_of_any_size(bucket, proxy, small_parts, monkeypatch, parts):
    monkeypatch.setattr(uploads, "COPIED_BYTES", small_parts)
    source, target = f"{bucket.uri}/one/ü #", f"{bucket.uri}/other/copy"
    data = os.urandom(int(parts * small_parts))
    files.write_bytes(source, data)
    files.write_bytes(target, b"old")
    downloads = [method for method, _ in proxy.requests].count("GET")
    files.copy(source, target)
    assert [method for method, _ in proxy.requests].count("GET") == downloads, "no byte comes here"
    assert files.read_bytes(target) == data
    files.delete(source)
    assert files.read_bytes(target) == data
    assert uploads_of(bucket) == []


def test_a_copy_survives_faults_and_names_what_is_missing(bucket, proxy):
    files.write_bytes(f"{bucket.uri}/one", b"data")
    proxy.plan("slow_down", times=2, method="PUT")
    proxy.plan("lost_answer", method="PUT")
    files.copy(f"{bucket.uri}/one", f"{bucket.uri}/two")
    assert files.read_bytes(f"{bucket.uri}/two") == b"data"
    assert proxy.met == {"slow_down": 2, "lost_answer": 1}
    with pytest.raises(FileNotFoundError, match=f"{bucket.uri}/none does not exist"):
        files.copy(f"{bucket.uri}/none", f"{bucket.uri}/two")
    assert files.read_bytes(f"{bucket.uri}/two") == b"data"


def test_a_file_is_copied_into_a_bucket_and_out_of_it(bucket, tmp_path):
    (tmp_path / "here").write_bytes(b"data")
    files.copy(str(tmp_path / "here"), f"{bucket.uri}/there")
    files.copy(f"{bucket.uri}/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"data"


def test_stale_uploads_are_listed_and_aborted(bucket):
    name = s3.parse_uri(bucket.uri).bucket
    begun = bucket.client.create_multipart_upload(Bucket=name, Key="runs/left")
    (upload,) = uploads_of(bucket)
    assert (upload.uri, upload.upload_id) == (f"{bucket.uri}/runs/left", begun["UploadId"])
    assert s3.stale_uploads(bucket.uri, timedelta(hours=1)) == []
    s3.abort_uploads(bucket.uri, [upload])
    s3.abort_uploads(bucket.uri, [upload])
    assert uploads_of(bucket) == []


def test_a_command_lists_and_aborts_stale_uploads(bucket):
    from typer.testing import CliRunner

    from bcl_ray.cli import app

    def command(*options):
        done = CliRunner().invoke(app, ["uploads", bucket.uri, *options], catch_exceptions=False)
        return done.output.splitlines()

    assert command() == ["no upload is unfinished"]
    name = s3.parse_uri(bucket.uri).bucket
    for key in ("runs/a", "runs/b"):
        bucket.client.create_multipart_upload(Bucket=name, Key=key)
    time.sleep(2)  # Swift rounds their time up
    assert command() == ["no upload is unfinished"], "a day old, by default"
    *listed, last = command("--older-than", "0")
    assert sorted(line.split()[-1] for line in listed) == [f"{bucket.uri}/runs/{x}" for x in "ab"]
    assert last == "2 uploads unfinished, and cost space (--abort ends them)"
    assert command("--older-than", "0", "--abort")[-1] == "2 uploads aborted"
    assert uploads_of(bucket) == []


def test_shards_in_a_bucket_equal_those_in_a_folder(bucket, tmp_path):
    source = balanced(8)
    there, here = f"{bucket.uri}/digits", str(tmp_path / "digits")
    assert write_shards(source, there) == write_shards(source, here)
    assert verify_shards(there) == []
    assert list(files.list_files(there)) == list(files.list_files(here))
    with pytest.raises(ValueError, match="already holds a data set"):
        write_shards(source, there)


def test_a_missing_bucket_is_named_when_shards_are_written_and_read(bucket):
    for access in (lambda uri: write_shards(balanced(8), uri), verify_shards):
        with pytest.raises(ValueError, match=f"there is no bucket '{bucket.uri[5:]}-none'"):
            access(f"{bucket.uri}-none/digits")
        with pytest.raises(ValueError, match="it is not a data set"):
            verify_shards(f"{bucket.uri}/digits")


def test_of_two_writers_of_shards_the_second_is_refused(bucket):
    there, refused = f"{bucket.uri}/digits", []

    def other(stage, *_):
        if stage == "writing train" and not refused:
            with pytest.raises(LeaseHeldError, match=f"^{there} is in use by process") as raised:
                write_shards(balanced(8), there, seed=1)
            refused.append(raised)

    manifest = write_shards(balanced(8), there, progress=other)
    assert refused
    assert read_manifest(there) == manifest
    assert verify_shards(there) == []


def test_shards_that_two_writers_have_mixed_are_no_data_set(bucket):
    """On a store without atomic conditional writes, where neither writer sees the other's lease."""
    there = f"{bucket.uri}/digits"

    def other(stage, *_):
        if stage == "writing train":
            files.write_bytes(f"{there}/manifest.json", b"another's")

    with pytest.raises(ValueError, match=r"another `bcl-ray shard` has written to s3://.* mixed"):
        write_shards(balanced(8), there, progress=other)


# Created if absent


def test_a_file_is_created_once(bucket):
    uri = f"{bucket.uri}/manifest"
    files.create_bytes(uri, b"first")
    for data in (b"second", b"first"):
        with pytest.raises(FileExistsError, match=f"{uri} exists already"):
            files.create_bytes(uri, data)
    assert files.read_bytes(uri) == b"first"


@ON_CEPH
def test_of_racing_creators_one_wins(bucket):
    def create(uri, number, start):
        start.wait()
        try:
            files.create_bytes(uri, b"%d" % number)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            uri, start = f"{bucket.uri}/{turn}", threading.Barrier(8)
            racing = [pool.submit(create, uri, number, start) for number in range(8)]
            winners = [one.result() for one in racing if one.result() is not None]
            assert len(winners) == 1
            assert files.read_bytes(uri) == b"%d" % winners[0]


def test_a_creator_whose_answer_was_lost_recognizes_its_own_object(bucket, proxy):
    proxy.plan("lost_answer", method="PUT")
    files.create_bytes(f"{bucket.uri}/file", b"mine")
    assert files.read_bytes(f"{bucket.uri}/file") == b"mine"
    assert proxy.met["lost_answer"] == 1


def test_without_conditional_writes_the_object_is_looked_up_first(bucket, proxy):
    proxy.plan("no_conditions", method="PUT")
    files.create_bytes(f"{bucket.uri}/file", b"first")
    assert proxy.met["no_conditions"] == 1
    with pytest.raises(FileExistsError):
        files.create_bytes(f"{bucket.uri}/file", b"second")


# Transient faults


@pytest.mark.parametrize(
    ("fault", "method", "times"),
    [
        ("slow_down", "", 4),
        ("internal_error", "", 3),
        ("denied", "", 3),
        ("reset", "", 4),
        ("slow_first_byte", "", 2),
        ("truncated", "GET", 3),
        ("lost_answer", "", 3),
    ],
)
def test_transient_faults_are_retried(bucket, proxy, fault, method, times):
    uri, data = f"{bucket.uri}/f", os.urandom(100_000)
    proxy.delay = 1.0
    proxy.plan(fault, times=times, method=method)
    files.write_bytes(uri, data)
    assert files.read_bytes(uri) == data
    assert files.list_files(bucket.uri) == {"f": 100_000}
    assert proxy.met[fault] == times


def test_the_filesystem_for_ray_train_retries_denials_too(bucket, proxy):
    """What Ray Train does: write a snapshot, look it up, read it, delete a checkpoint."""
    filesystem, path = files.resolve(f"{bucket.uri}/run/snapshot.json")
    filesystem = pickle.loads(pickle.dumps(filesystem))  # noqa: S301
    for step in ("write", "look", "remove"):
        proxy.plan("denied", times=2)
        if step == "write":
            with filesystem.open_output_stream(path) as sink:
                sink.write(b"{}")
        elif step == "look":
            assert filesystem.get_file_info(path).size == 2
        else:
            filesystem.delete_dir(path.rpartition("/")[0])
    assert proxy.met["denied"] == 6
    assert not files.exists(f"{bucket.uri}/run/snapshot.json")


def test_a_large_upload_survives_faults_in_its_parts(bucket, proxy, small_parts):
    uri, data = f"{bucket.uri}/large", os.urandom(2 * small_parts + 1)
    with files.open_write(uri) as sink:
        sink.write(data[: small_parts + 1])
        proxy.plan("slow_down", times=2)
        proxy.plan("reset", times=2)
        sink.write(data[small_parts + 1 :])
        proxy.plan("lost_answer", method="POST")  # of its completion
    assert files.read_bytes(uri) == data
    assert proxy.met == {"slow_down": 2, "reset": 2, "lost_answer": 1}
    assert uploads_of(bucket) == []


def test_a_deletion_whose_answer_was_lost_is_no_error(bucket, proxy):
    files.write_bytes(f"{bucket.uri}/f", b"")
    proxy.plan("lost_answer", times=3, method="DELETE")
    files.delete(f"{bucket.uri}/f")
    assert files.list_files(bucket.uri) == {}


def test_an_outage_is_outlasted_and_logged_once(bucket, proxy, caplog, monkeypatch):
    files.write_bytes(f"{bucket.uri}/f", b"data")
    with proxy.outage_for(3):
        assert files.read_bytes(f"{bucket.uri}/f") == b"data"
    said = [record.getMessage() for record in caplog.records if record.name == "bcl_ray.storage"]
    assert len(said) == 2
    assert said[0].startswith(f"{bucket.uri}/f: Could not connect to the endpoint URL, ")
    assert said[0].endswith("trying again for up to 300 s")
    assert said[1].startswith(f"{bucket.uri}/f: works again, after ")


@pytest.mark.slow
@ON_SWIFT
def test_ray_trains_filesystem_outlasts_an_outage_too(bucket, proxy):
    """By our functions, and by the filesystem that Ray Train writes checkpoints with."""
    data = os.urandom(1 << 20)
    files.write_bytes(f"{bucket.uri}/f", data)
    filesystem, path = pickle.loads(pickle.dumps(files.resolve(bucket.uri)))  # noqa: S301

    def write():
        with filesystem.open_output_stream(f"{path}/checkpoint") as sink:
            sink.write(data)

    def read():
        with filesystem.open_input_file(f"{path}/f") as file:
            return file.read()

    with ThreadPoolExecutor(4) as pool, proxy.outage_for(10):
        ours = pool.submit(files.read_bytes, f"{bucket.uri}/f")
        creating = pool.submit(files.create_bytes, f"{bucket.uri}/manifest", data)
        theirs, writing = pool.submit(read), pool.submit(write)
        assert ours.result() == theirs.result() == data
        creating.result(), writing.result()
    assert files.list_files(bucket.uri) == dict.fromkeys(["checkpoint", "f", "manifest"], 1 << 20)


# Permanent faults


def test_retries_end(bucket, proxy, impatient):
    proxy.plan("slow_down", times=1000)
    with pytest.raises(OSError, match=r"/f: http.* is too busy or broken, and was so each time"):
        files.write_bytes(f"{bucket.uri}/f", b"")
    with proxy.outage(), pytest.raises(OSError, match=r"does not answer: check AWS_ENDPOINT_URL"):
        files.read_bytes(f"{bucket.uri}/f")


def test_denial_is_retried_then_explained(bucket, proxy, impatient):
    proxy.plan("denied", times=1000)
    for access, permission in (
        (files.read_bytes, "must not read there: allow s3:GetObject"),
        (files.list_files, "must not list there: allow s3:ListBucket"),
        (lambda uri: files.write_bytes(uri, b""), "must not write there: allow s3:PutObject"),
    ):
        before = proxy.met["denied"]
        with pytest.raises(PermissionError, match=f"access denied, these credentials {permission}"):
            access(f"{bucket.uri}/f")
        assert proxy.met["denied"] > before + 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("expired_token", "the credentials' session token has expired: renew it"),
        ("clock_skew", "this machine's clock is wrong"),
    ],
)
def test_faults_of_credentials_are_raised_at_once(bucket, proxy, fault, message):
    """Also where the response to a HEAD request has no text."""
    proxy.plan(fault, times=1000)
    for access in (files.read_bytes, files.list_files, files.delete_folder):
        before = proxy.met[fault]
        with pytest.raises(PermissionError, match=message):
            access(f"{bucket.uri}/f")
        assert proxy.met[fault] - before <= 4  # the SDK sets its clock, and tries once more


def test_wrong_credentials_are_refused_and_no_secret_is_shown(bucket, monkeypatch, caplog):
    right, wrong = os.environ["AWS_SECRET_ACCESS_KEY"], "not-the-right-secret"
    caplog.set_level(logging.DEBUG)
    shown = [pickle.dumps(files.resolve(bucket.uri)[0])]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    began = time.monotonic()
    for access in (
        files.read_bytes,
        files.list_files,
        lambda uri: files.write_bytes(uri, b""),
        lambda uri: files.create_bytes(uri, b""),
    ):
        with pytest.raises(PermissionError, match="the secret key is wrong") as raised:
            access(f"{bucket.uri}/f")
        shown.append("".join(traceback.format_exception(raised.value)).encode())
        shown.append(repr(raised.value.__cause__.__dict__).encode())
    assert time.monotonic() - began < 10
    shown += [pickle.dumps(files.resolve(bucket.uri)[0]), caplog.text.encode()]
    shown += ["\n".join(s3.check_access(bucket.uri, ALL)).encode()]
    assert not any(secret.encode() in text for secret in (right, wrong) for text in shown)


@pytest.mark.parametrize("uri", ["s3://id:hidden@b/f", "s3://b/f?secret_key=hidden&access_key=id"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(ValueError, match="must not hold credentials") as raised:
        files.resolve(uri)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3:///f", "names no bucket"), ("s3://b/f?regoin=x", "has no option regoin: there are")],
)
def test_malformed_uris_are_refused(uri, message):
    with pytest.raises(ValueError, match=message):
        files.resolve(uri)


# Clients


def test_a_changed_environment_takes_effect_at_once(bucket, monkeypatch):
    first = files.resolve(bucket.uri)[0]
    assert files.resolve(f"{bucket.uri}/other")[0] is first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "renewed")
    assert files.resolve(bucket.uri)[0] is not first


def _read_in_child(uri, answers):
    answers.put(files.read_bytes(uri))


def test_a_forked_child_reads_with_a_client_of_its_own(bucket):
    files.write_bytes(f"{bucket.uri}/f", b"data")
    assert files.read_bytes(f"{bucket.uri}/f") == b"data"
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=_read_in_child, args=(f"{bucket.uri}/f", answers))
    child.start()
    try:
        assert answers.get(timeout=20) == b"data"
    finally:
        child.kill()


# Checks before the start


def test_a_usable_bucket_has_no_problems_and_is_left_clean(bucket):
    files.write_bytes(f"{bucket.uri}/data/f", b"data")
    assert s3.check_access(f"{bucket.uri}/runs", ALL) == []
    assert s3.check_access(f"{bucket.uri}/data", {"list", "read"}) == []
    assert s3.check_access(bucket.uri, {"read"}) == []
    assert bucket.keys() == ["data/f"]


def test_an_object_that_is_only_read_must_be_there(bucket):
    files.write_bytes(f"{bucket.uri}/weights.pt", b"data")
    assert s3.check_access(f"{bucket.uri}/weights.pt", {"read"}) == []
    (problem,) = s3.check_access(f"{bucket.uri}/weight.pt", {"read"})
    assert problem.startswith(f"{bucket.uri}/weight.pt: does not exist: check its spelling")


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="action 'wirte' must be one of list, read, write"):
        s3.check_access("s3://b", {"wirte"})


def test_a_missing_bucket_is_a_problem(bucket):
    (problem,) = s3.check_access(f"{bucket.uri}-none/runs", ALL)
    assert problem.startswith(f"{bucket.uri}-none/runs: there is no bucket ")


def test_each_denied_action_is_named(bucket, proxy):
    files.write_bytes(f"{bucket.uri}/data/f", b"data")
    for action, method in (("read", "GET"), ("write", "PUT"), ("delete", "DELETE")):
        proxy.plan("denied", times=1000, method=method)
        (problem,) = s3.check_access(f"{bucket.uri}/data", {action, "write"})
        assert f"must not {action} there" in problem
        proxy.calm()
    proxy.plan("denied", times=1000, method="GET")
    (problem,) = s3.check_access(f"{bucket.uri}/data", ALL)
    assert "must not list there: allow s3:ListBucket" in problem


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired_token", ["token has expired"]),
        ("clock_skew", ["clock is wrong"]),
        ("wrong_date", ["clock is 100", "s ahead of the server's"]),
        ("no_trailers", ["set AWS_REQUEST_CHECKSUM_CALCULATION=when_required on every machine"]),
    ],
)
def test_the_check_reports_faults(bucket, proxy, fault, words):
    proxy.plan(fault, times=1000, method="PUT" if fault == "no_trailers" else "")
    (problem,) = s3.check_access(f"{bucket.uri}/runs", ALL)
    assert all(word in problem for word in words)


@ON_CEPH
def test_the_check_reports_a_store_that_does_not_accept_checksums(bucket, monkeypatch):
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    (problem,) = s3.check_access(f"{bucket.uri}/runs", ALL)
    assert "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required on every machine" in problem
    assert bucket.keys() == []


@ON_SWIFT
def test_the_check_reports_endpoints_that_do_not_answer_in_time(bucket, proxy, monkeypatch):
    assert sum(check.TIMEOUTS) < check.CHECK_SECONDS == 15
    monkeypatch.setattr(check, "TIMEOUTS", check.Timeouts(connect=1.0, silence=2.0))
    proxy.plan("swallow", times=1000)
    began = time.monotonic()
    (problem,) = s3.check_access(bucket.uri, ALL)
    assert f"{proxy.endpoint} does not answer" in problem
    (problem,) = s3.check_access(bucket.uri, ALL, seconds=1)
    assert f"{proxy.endpoint} has not answered within 1 s" in problem
    with socket.create_server(("127.0.0.1", 0), backlog=0) as hole:
        address = f"127.0.0.1:{hole.getsockname()[1]}"
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # with its queue full, it drops packets
            one.setblocking(False)
            one.connect_ex(hole.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        (problem,) = s3.check_access(bucket.uri, ALL)
        assert f"http://{address} does not answer" in problem
        for one in waiting:
            one.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{proxy.port}")
    (problem,) = s3.check_access(bucket.uri, ALL)
    assert "does not answer as an S3 server: check AWS_ENDPOINT_URL, its scheme" in problem
    assert time.monotonic() - began < 15


@ON_SWIFT
def test_the_check_reports_missing_credentials(bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    (problem,) = s3.check_access(bucket.uri, ALL)
    assert "no credentials were found on this machine" in problem
