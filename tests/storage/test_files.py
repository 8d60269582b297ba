import contextlib
import errno
import os
import pickle
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pyarrow import fs

from bcl_ray.storage import files, retry
from bcl_ray.storage.fence import LeaseLostError
from bcl_ray.storage.files import filesystems


@pytest.fixture
def other_store(tmp_path, monkeypatch):
    """A remote filesystem, like that of an object store, for URIs of test://."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    local = files.resolve

    def resolve(uri):
        return (store, uri.removeprefix("test://")) if uri.startswith("test://") else local(uri)

    monkeypatch.setattr(filesystems, "resolve", resolve)
    return "test://"


def test_bytes_are_read_as_written_for_every_kind_of_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("deep/er/file", f"{tmp_path}/a b", f"file://{tmp_path}/x"):
        files.write_bytes(uri, b"old")
        files.write_bytes(uri, b"new")
        assert files.exists(uri)
        assert files.read_bytes(uri) == b"new"
    assert files.list_files(str(tmp_path)) == {"a b": 3, "x": 3}


def test_other_stores_are_read_and_written(other_store):
    bucket = other_store
    files.write_bytes(f"{bucket}file", b"12")
    assert files.list_files(other_store) == {"file": 2}
    assert files.read_bytes(f"{bucket}file") == b"12"
    files.delete(f"{bucket}file")
    assert not files.exists(f"{bucket}file")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    uri = str(tmp_path / "file")
    files.write_bytes(uri, b"old")

    def fail():
        with files.open_write(uri) as sink:
            sink.write(b"half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files.read_bytes(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    uri = str(tmp_path / "file")
    files.write_bytes(uri, b"old")
    with Path(uri).open("rb") as slow_reader:
        with files.open_write(uri) as sink:
            sink.write(b"new")
            sink.flush()
            assert files.read_bytes(uri) == b"old"
        assert files.read_bytes(uri) == b"new"
        assert slow_reader.read() == b"old"


def test_written_files_follow_the_umask(tmp_path):
    files.write_bytes(str(tmp_path / "file"), b"")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        ("folder", "folder/a/b"),
        ("folder/", "folder/a/b"),
        ("what?", "what?/a/b"),
        ("/", "/a/b"),
        ("", "a/b"),
        ("file:///", "file:///a/b"),
        ("s3://bucket/p", "s3://bucket/p/a/b"),
        ("s3://bucket?scheme=http", "s3://bucket/a/b?scheme=http"),
    ],
)
def test_join_keeps_a_uris_options_at_the_end(uri, joined):
    assert files.join(uri, "a", "b") == joined


def test_folders_that_are_linked_in_circles_are_walked_once(tmp_path):
    for one, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "1.png").touch()
        (tmp_path / one / "to").symlink_to(tmp_path / other)
    found = list(files.walk(str(tmp_path)))
    for one in "abc":
        assert [path for path in found if path.startswith(one)] == [
            f"{one}/1.png",
            f"{one}/to/1.png",
            f"{one}/to/to/1.png",
            f"{one}/to/to/to",  # leads back
        ]
    assert [list(files.walk(str(tmp_path), path)) for path in found] == [
        found[n + 1 :] for n in range(len(found))
    ]


def test_missing_files_are_named(tmp_path):
    uri = str(tmp_path / "gone")
    for access in (files.read_bytes, files.delete):
        with pytest.raises(FileNotFoundError, match=f"{uri} does not exist: check its spelling"):
            access(uri)
    assert files.list_files(uri) == {}
    assert not files.exists(uri)


def test_unknown_schemes_are_refused():
    with pytest.raises(ValueError, match="'ftp://host/x' is not a URI that pyarrow opens"):
        files.resolve("ftp://host/x")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError(13, "Permission denied"), PermissionError, "access to s3://b is denied"),
        (OSError("AWS Error ACCESS_DENIED during GetObject"), PermissionError, "credentials"),
        (pa.ArrowException("bad"), pa.ArrowException, "bad"),
        (OSError(28, "No space left\non device"), OSError, "s3://b: .*No space left on device"),
    ],
)
def test_errors_are_explained(error, kind, message):
    with pytest.raises(kind, match=message), files.explain_errors("s3://b"):
        raise error


def test_a_folder_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"{tmp_path}/file/x: "):
        files.write_bytes(f"{tmp_path}/file/x", b"")


def test_of_racing_creators_of_a_local_file_one_wins(tmp_path):
    def create(uri, number, start):
        start.wait()
        try:
            files.create_bytes(uri, b"%d" % number)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            uri, start = str(tmp_path / f"deep/{turn}"), threading.Barrier(8)
            racing = [pool.submit(create, uri, number, start) for number in range(8)]
            (winner,) = (one.result() for one in racing if one.result() is not None)
            assert files.read_bytes(uri) == b"%d" % winner
    assert len(list((tmp_path / "deep").iterdir())) == 20
    with pytest.raises(FileExistsError, match=f"{uri} exists already"):
        files.create_bytes(uri, b"")


def test_other_stores_create_files(other_store):
    files.create_bytes(f"{other_store}file", b"1")
    with pytest.raises(FileExistsError, match="test://file exists already"):
        files.create_bytes(f"{other_store}file", b"2")
    assert files.read_bytes(f"{other_store}file") == b"1"


@pytest.mark.parametrize("error", [LeaseLostError("lost"), FileNotFoundError("image.png")])
def test_errors_of_the_block_that_writes_to_another_store_pass(other_store, error):
    with pytest.raises(type(error)) as raised, files.open_write(f"{other_store}file"):
        raise error
    assert raised.value is error


def test_errors_of_another_store_are_explained(other_store, monkeypatch):
    with pytest.raises(FileNotFoundError, match="test://none/file does not exist"):
        files.write_bytes(f"{other_store}none/file", b"")

    class Sink:
        closed = False

        def write(self, data):
            raise PermissionError("no")

        def close(self):
            raise PermissionError("no more")

    store = SimpleNamespace(open_output_stream=lambda path: Sink())
    monkeypatch.setattr(filesystems, "resolve", lambda uri: (store, uri))
    with pytest.raises(PermissionError, match=r"access to test://file is denied: .*no more"):
        files.write_bytes("test://file", b"1")
    with pytest.raises(PermissionError, match="access to test://file is denied"):
        files.write_bytes("test://file", b"")


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that is full until the returned time: a write stores half of its bytes, then none."""
    moment = time.monotonic() + 1.5
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.halves = file, 1

        def write(self, data):
            if time.monotonic() < moment:
                self.halves -= 1
                if self.halves < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return self.file.write(data[: len(data) // 2])
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def open_full(self, mode="r", **options):
        file = opened(self, mode, **options)
        return Full(file) if mode == "xb" else file

    monkeypatch.setattr(Path, "open", open_full)
    return moment


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_logged(tmp_path, full_disk, caplog):
    data = os.urandom(1 << 20)
    files.write_bytes(f"{tmp_path}/file", data)
    assert time.monotonic() >= full_disk
    assert (tmp_path / "file").read_bytes() == data
    assert f"{tmp_path}/file: No space left on device, trying again for up to 300 s" in (
        caplog.text.replace("[Errno 28] ", "")
    )


def test_a_disk_that_stays_full_raises_the_error_with_its_errno(tmp_path, full_disk, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.3)
    with pytest.raises(OSError, match=f"{tmp_path}/file: the disk is full: make room") as raised:
        files.write_bytes(f"{tmp_path}/file", bytes(1 << 20))
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def permit():
    """A guard that allows everything."""


def test_the_atomic_filesystem_leaves_the_old_file_or_the_whole_new_one(tmp_path):
    """A kill while Ray Train writes its list of checkpoints leaves the old list."""
    filesystem, path = files.atomic_filesystem(str(tmp_path / "list.json"), permit)
    filesystem = pickle.loads(pickle.dumps(filesystem))  # noqa: S301  (for the controller)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"old")

    class KilledError(BaseException):
        pass

    with contextlib.suppress(KilledError), filesystem.open_output_stream(path) as stream:
        stream.write(b"n")
        stream.flush()
        assert (tmp_path / "list.json").read_bytes() == b"old"
        raise KilledError
    assert (tmp_path / "list.json").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
