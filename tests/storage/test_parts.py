"""Parts of an upload on a server in memory: how many at once, in which order, and their errors."""

import threading

import pytest

from bcl_ray.storage.s3 import parts as module
from bcl_ray.storage.s3 import uploads
from bcl_ray.storage.s3.location import Location
from bcl_ray.storage.s3.parts import PARALLEL_PARTS

SECONDS = 20  # until a test fails that waits for a thread
LOCATION = Location("bucket", "key", None, None)


class Server:
    """Has one object; `gate` holds up the answers to parts."""

    def __init__(self):
        self.object: bytes | None = None
        self.parts: dict[int, bytes] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.fails: set[int] = set()
        self.aborted = False
        self._lock, self._inside, self.most_at_once = threading.Lock(), 0, 0
        self.arrived = threading.Semaphore(0)

    def put_object(self, Body, **_):
        self.object = Body

    def create_multipart_upload(self, **_):
        return {"UploadId": "1"}

    def upload_part(self, PartNumber, Body, **_):
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        self.arrived.release()
        assert self.gate.wait(SECONDS)
        with self._lock:
            self._inside -= 1
        if PartNumber in self.fails:
            raise OSError(f"part {PartNumber} is broken")
        assert not self.aborted, "it would stay"
        self.parts[PartNumber] = Body
        return {"ETag": f"tag {PartNumber}"}

    def complete_multipart_upload(self, MultipartUpload, **_):
        listed = MultipartUpload["Parts"]
        assert [part["ETag"] for part in listed] == [f"tag {p['PartNumber']}" for p in listed]
        self.object = b"".join(self.parts[part["PartNumber"]] for part in listed)

    def abort_multipart_upload(self, **_):
        self.aborted = True
        self.parts.clear()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    for one in (module, uploads):
        monkeypatch.setattr(one, "client", lambda *_, **__: server)
    monkeypatch.setattr(uploads, "PART_BYTES", 10)
    return server


def write(data, piece=None):
    with uploads.open_upload(LOCATION, lambda attempt: attempt()) as sink:
        for start in range(0, len(data), piece or max(1, len(data))):
            sink.write(data[start : start + (piece or len(data))])
        assert sink.tell() == len(data)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 21, 95, 200])
@pytest.mark.parametrize("piece", [None, 1, 7, 10, 33])
def test_an_object_is_what_was_written_in_any_pieces(server, size, piece):
    data = bytes(range(size))
    write(data, piece)
    assert server.object == data
    assert all(len(part) == 10 for part in list(server.parts.values())[:-1])


def test_parts_are_sent_at_once_but_no_more_of_them_than_may_be_in_memory(server):
    server.gate.clear()
    writing = threading.Thread(target=write, args=(bytes(95),))
    writing.start()
    for _ in range(PARALLEL_PARTS):
        assert server.arrived.acquire(timeout=SECONDS), "they wait for each other"
    assert not server.arrived.acquire(timeout=0.2), "one more has been sent"
    server.gate.set()
    writing.join(SECONDS)
    assert server.object == bytes(95)
    assert server.most_at_once == PARALLEL_PARTS


@pytest.mark.parametrize("number", [1, 3, 10])
def test_the_error_of_any_part_is_raised_and_nothing_is_left(server, number):
    server.fails = {number}
    with pytest.raises(OSError, match=f"part {number} is broken"):
        write(bytes(95))
    assert server.aborted
    assert server.parts == {}
    assert server.object is None


def test_an_upload_is_aborted_only_after_its_last_part_has_ended(server):
    server.gate.clear()
    sink = uploads.Upload(LOCATION, lambda attempt: attempt())
    sink.write(bytes(35))
    assert server.arrived.acquire(timeout=SECONDS)
    aborting = threading.Thread(target=sink.parts.abort)
    aborting.start()
    aborting.join(0.2)
    assert not server.aborted
    server.gate.set()
    aborting.join(SECONDS)
    assert server.aborted
    assert server.parts == {}


def test_a_part_that_is_repeated_gives_up_when_the_upload_is_aborted(server):
    refusals, refused = [], threading.Event()

    def repeated(attempt):
        while True:
            try:
                return attempt()
            except InterruptedError:
                refusals.append(1)
                raise
            except OSError:
                refused.set()

    server.fails = {1}
    sink = uploads.Upload(LOCATION, repeated)
    sink.write(bytes(11))
    assert refused.wait(SECONDS)
    sink.parts.abort()
    assert refusals == [1]
