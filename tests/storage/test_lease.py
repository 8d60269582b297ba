"""One driver of a folder: on a local disk and on real S3 servers, by real processes that are killed
and frozen; and, on a clock that a test moves, in any order of events."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcl_ray.storage import files, lease, lease_record, lease_request
from bcl_ray.storage.fence import LeaseHeldError, LeaseLostError
from bcl_ray.storage.file_version import ChangedError, FileVersion
from bcl_ray.storage.lease_record import LEASE_FILE
from bcl_ray.storage.lease_request import LeaseRequest, acquire_lease
from bcl_ray.storage.versioned_file import versioned_file

SECONDS = 3.0  # that a lease lasts here
RENEWAL = 0.3  # seconds between renewals here
SHORT = [
    ("lease", "RENEWAL_SECONDS", RENEWAL),
    ("lease", "RENEWAL_RETRY_SECONDS", 0.1),
    ("lease", "MARGIN_SECONDS", 0.5),
    ("lease_request", "RENEWAL_SECONDS", RENEWAL),
    ("lease_request", "POLL_SECONDS", 0.1),
    ("lease_request", "SETTLE_SECONDS", 0.1),
    ("lease_request", "READ_BACK_SECONDS", 1.0),
]
# A driver: requests leases of folders at certain times, prints its number in each, and answers
# each line of its input.
DRIVER = """
import contextlib, sys, time
from bcl_ray.storage import fence, lease, lease_record, lease_request
for module, name, value in {short}:
    setattr({{"lease": lease, "lease_request": lease_request}}[module], name, value)
lease_record.LEASE_SECONDS = {seconds}
def say(*words):
    print(*words, flush=True)
def notify(text):
    say("notify", text)
with contextlib.ExitStack() as stack:
    for turn, folder in enumerate(sys.argv[1:]):
        time.sleep(max(0, {begin} + turn - time.time()))
        try:
            mine = stack.enter_context(
                lease_request.acquire_lease(folder, "run 'x'", notify, wait={wait})
            )
            say("number", mine.fence.number)
        except fence.LeaseHeldError as error:
            say("held", error)
    for command in sys.stdin:
        if command == "end\\n":
            break
        try:
            mine.check()
            say("ours", mine.valid)
        except fence.LeaseLostError as error:
            say("lost", error)
"""


@pytest.fixture
def short(monkeypatch):
    """Leases that last three seconds."""
    for module, name, value in SHORT:
        monkeypatch.setattr(f"bcl_ray.storage.{module}.{name}", value)
    monkeypatch.setattr(lease_record, "LEASE_SECONDS", SECONDS)


@pytest.fixture
def on_disk(tmp_path, short):
    """A folder on a disk, not created yet, for tests that do not depend on the store."""
    return str(tmp_path / "run")


@pytest.fixture
def driver():
    """Starts processes that request leases."""
    with ExitStack() as stack:

        def start(*folders, wait=False, begin=0.0, seconds=SECONDS):
            script = DRIVER.format(short=SHORT, seconds=seconds, wait=wait, begin=begin)
            return stack.enter_context(Driver(folders, script))

        yield start


class Driver:
    """A process that requests leases, and answers commands."""

    def __init__(self, folders, script):
        command = [sys.executable, "-c", script, *folders]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def next_line(self):
        """The next line of output, without messages for a person."""
        while (line := self.process.stdout.readline().strip()).startswith("notify"):
            pass
        return line

    def ask(self, command):
        self.process.stdin.write(f"{command}\n")
        return self.next_line()

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        """Whether the process ends on command."""
        self.process.stdin.write("end\n")
        return self.process.wait(20) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def quiet(text):
    """Ignore a message."""


def record_in(folder):
    return lease_record.parse_record(versioned_file(files.join(folder, LEASE_FILE)).read(), folder)


class AnyStore:
    """Tests of a folder on a disk and of one in a bucket."""

    def test_drivers_one_after_another_get_increasing_numbers(self, folder):
        for number in (1, 2, 3):
            with acquire_lease(folder, "run 'x'", quiet, wait=False) as mine:
                assert mine.fence.number == number
                mine.check()
                assert mine.valid
            assert record_in(folder).released
        assert files.list_files(folder).keys() - {f".{LEASE_FILE}.lock"} == {LEASE_FILE}

    @pytest.mark.slow
    def test_of_racing_processes_exactly_one_gets_each_folder(self, folder, driver):
        """The first folder was a dead driver's, and is taken over at once."""
        dead = driver(folder, seconds=600.0)
        assert dead.next_line() == "number 1"
        dead.signal(signal.SIGKILL)
        dead.process.wait()
        folders = [folder, *(f"{folder}-{turn}" for turn in range(4))]
        begin = time.time() + 5  # they import for seconds
        racing = [driver(*folders, begin=begin) for _ in range(3)]
        for number in (2, 1, 1, 1, 1):
            answers = sorted(one.next_line().split(" by ")[0] for one in racing)
            assert answers == ["held run 'x' is in use"] * 2 + [f"number {number}"]

    @pytest.mark.slow
    def test_a_frozen_driver_is_replaced_and_notices_when_it_thaws(self, folder, driver):
        frozen = driver(folder)
        assert frozen.next_line() == "number 1"
        frozen.signal(signal.SIGSTOP)
        begun = time.monotonic()
        with acquire_lease(folder, "run 'x'", quiet, wait=True) as mine:
            assert time.monotonic() - begun > SECONDS - RENEWAL
            assert mine.fence.number == 2
            frozen.signal(signal.SIGCONT)
            answer = frozen.ask("check")
            assert answer.startswith(
                "lost this driver, number 1, gave no sign of life for a while, and"
            )
            assert f"process {os.getpid()} of " in answer
            assert f"and changes nothing more in {folder}" in answer
            assert frozen.end()
            mine.check()
            assert record_in(folder).number == 2, "who lost it does not give it back"

    def test_after_the_lease_is_lost_ray_trains_filesystem_changes_nothing(self, folder):
        with acquire_lease(folder, "run 'x'", quiet, wait=False) as mine:
            for name in ("list.json", "checkpoint/state.pt"):
                files.write_bytes(files.join(folder, name), b"old")
            filesystem, path = files.atomic_filesystem(folder, mine.fence)
            record = dataclasses.replace(record_in(folder), token="another", number=2)  # noqa: S106
            file = versioned_file(files.join(folder, LEASE_FILE))
            while True:  # beside the thread that renews it
                with suppress(ChangedError):
                    file.replace(record.to_bytes(), file.read())
                    break
            with pytest.raises(LeaseLostError, match="number 2"):  # noqa: SIM117  (pyarrow's own block)
                with filesystem.open_output_stream(f"{path}/list.json") as stream:
                    stream.write(b"new")
            for change in (filesystem.delete_dir, filesystem.delete_file):
                with pytest.raises(LeaseLostError):
                    change(f"{path}/checkpoint")
            assert files.read_bytes(files.join(folder, "list.json")) == b"old"
            assert files.read_bytes(files.join(folder, "checkpoint", "state.pt")) == b"old"

    def test_a_store_without_conditional_writes_is_reported_once(self, folder, compares):
        messages = []
        with acquire_lease(folder, "run 'x'", messages.append, wait=False):
            pass
        text = "the store of run 'x' has no atomic conditional writes: a second driver that"
        assert [one.startswith(text) for one in messages] == ([] if compares else [True])

    def test_a_version_is_replaced_once(self, folder):
        file = versioned_file(files.join(folder, LEASE_FILE))
        assert file.read() is None
        first = file.replace(b"first", None)
        assert file.replace(b"first", None).data == b"first", "the same again, after a lost answer"
        for other in (None, FileVersion(b"other", first.tag[::-1])):
            with pytest.raises(ChangedError):
                file.replace(b"second", other)
        second = file.replace(b"second", first)
        assert file.read() == second
        file.remove(first)
        assert file.read() == second, "it is another's now"
        file.remove(second)
        assert files.list_files(folder).keys() - {f".{LEASE_FILE}.lock"} == set()
        with pytest.raises(ChangedError):
            file.replace(b"third", second)


class TestOnADisk(AnyStore):
    @pytest.fixture
    def folder(self, on_disk):
        return on_disk

    @pytest.fixture
    def compares(self):
        return True


class TestInABucket(AnyStore):
    @pytest.fixture
    def folder(self, bucket, short):
        return f"{bucket.uri}/run"

    @pytest.fixture
    def compares(self, bucket):
        return bucket.kind != "swift"


def test_the_error_for_a_second_driver_names_the_first_and_the_time_to_wait(on_disk, driver):
    first = driver(on_disk)
    assert first.next_line() == "number 1"
    pid = first.process.pid
    with (
        pytest.raises(
            LeaseHeldError,
            match=rf"run 'x' is in use by process {pid} of .*, since \d{{4}}-\d\d-\d\d .* UTC; "
            r"wait for it, or stop it. If it is dead, its lease runs out 3 s after its last",
        ),
        acquire_lease(on_disk, "run 'x'", quiet, wait=False),
    ):
        pass
    assert first.ask("check") == "ours True"


def test_check_free_refuses_like_acquire_and_leaves_nothing(on_disk, driver, tmp_path):
    LeaseRequest(str(tmp_path / "free"), "run 'y'", quiet).check_free(wait=False)
    assert not (tmp_path / "free").exists()
    first = driver(on_disk)
    assert first.next_line() == "number 1"
    with pytest.raises(LeaseHeldError, match="is in use by process"):
        LeaseRequest(on_disk, "run 'x'", quiet).check_free(wait=False)
    assert first.ask("check") == "ours True"


def elsewhere(folder, **changes):
    """Write the lease of a driver on another machine."""
    file = versioned_file(files.join(folder, LEASE_FILE))
    record = dataclasses.replace(lease_record.new_record(None), machine="another", **changes)
    file.replace(record.to_bytes(), file.read())


@pytest.mark.slow
def test_a_driver_that_died_on_another_machine_is_replaced_by_one_that_does_not_wait(
    on_disk, short
):
    elsewhere(on_disk, seconds=SECONDS)
    messages = []
    request, begun = LeaseRequest(on_disk, "run 'x'", messages.append), time.monotonic()
    request.check_free(wait=False)
    looked = time.monotonic()
    with request.acquire(wait=False) as mine:
        assert mine.fence.number == 2
    assert looked - begun >= SECONDS
    assert time.monotonic() - looked < SECONDS, "what was seen before counts"
    assert "waiting for a sign of life for 3 s" in messages[0]
    assert "was left by process" in messages[1]


@pytest.mark.slow
def test_a_live_driver_on_another_machine_is_not_replaced(on_disk, short):
    elsewhere(on_disk, seconds=SECONDS)
    beat = threading.Timer(1.5, elsewhere, [on_disk], {"seconds": SECONDS, "beats": 1})
    beat.start()
    begun = time.monotonic()
    with (
        pytest.raises(LeaseHeldError, match="is in use by"),
        acquire_lease(on_disk, "x", quiet, wait=False),
    ):
        pass
    assert time.monotonic() - begun < SECONDS
    beat.join()


@pytest.mark.slow
def test_a_waiting_driver_says_so_once_and_gets_the_folder_when_the_first_ends(on_disk, driver):
    first = driver(on_disk)
    assert first.next_line() == "number 1"
    second = driver(on_disk, wait=True)
    message = second.process.stdout.readline()
    assert message.startswith(f"notify run 'x' is in use by process {first.process.pid} of ")
    assert "waiting until it has ended, 120 s at most, or has given no sign of life for" in message
    time.sleep(SECONDS + 1)
    assert first.ask("check") == "ours True", "it is alive, and renews its lease"
    assert first.end()
    assert second.next_line() == "number 2"


@pytest.mark.slow
def test_a_live_driver_is_not_waited_for_indefinitely(on_disk, driver, monkeypatch):
    monkeypatch.setattr(lease_request, "WAIT_SECONDS", 1.0)
    first = driver(on_disk)
    assert first.next_line() == "number 1"
    alive = r"run 'x' is still in use by process .*, which is alive: stop it, or leave the work"
    with (
        pytest.raises(LeaseHeldError, match=alive),
        acquire_lease(on_disk, "run 'x'", quiet, wait=True),
    ):
        pass


@pytest.mark.slow
def test_a_driver_that_was_frozen_and_not_replaced_goes_on(on_disk, driver):
    frozen = driver(on_disk)
    assert frozen.next_line() == "number 1"
    frozen.signal(signal.SIGSTOP)
    time.sleep(1.5 * SECONDS)
    frozen.signal(signal.SIGCONT)
    time.sleep(3 * RENEWAL)
    assert frozen.ask("check") == "ours True"


def test_an_outage_longer_than_a_lease_does_not_end_a_driver_that_nobody_replaced(
    bucket, proxy, short
):
    with acquire_lease(f"{bucket.uri}/run", "run 'x'", quiet, wait=False) as mine:
        with proxy.outage():
            time.sleep(1.5 * SECONDS)
            assert not mine.valid
            assert mine.lost is None
        time.sleep(SECONDS)
        assert mine.valid
        mine.check()


def test_a_renewal_whose_answer_was_lost_is_known_as_our_own(bucket, proxy, short):
    with acquire_lease(f"{bucket.uri}/run", "run 'x'", quiet, wait=False) as mine:
        proxy.plan("lost_answer", times=3, method="PUT")
        time.sleep(SECONDS)
        assert proxy.met["lost_answer"] == 3
        assert mine.valid
    assert record_in(f"{bucket.uri}/run").released


def test_a_process_of_this_machine_is_dead_if_its_pid_is_gone_or_reused():
    own = lease_record.new_record(None)
    assert not own.is_dead
    assert dataclasses.replace(own, started="1").is_dead, "another process has the pid now"
    assert dataclasses.replace(own, pid=2**22 + 1).is_dead
    elsewhere = dataclasses.replace(own, pid=2**22 + 1, machine="another boot")
    assert not elsewhere.is_dead, "nobody can see it from here"
    child = subprocess.Popen(["sleep", "60"])
    zombie = dataclasses.replace(own, pid=child.pid, started=lease_record._start_time(child.pid))
    assert not zombie.is_dead
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert zombie.is_dead, "its parent has not noticed"
    child.wait()


def test_a_file_that_is_no_lease_is_refused(tmp_path):
    (tmp_path / LEASE_FILE).write_text(json.dumps({"number": 1}))
    with (
        pytest.raises(OSError, match="is not as bcl_ray wrote it: delete it, when no driver of"),
        acquire_lease(str(tmp_path), "run 'x'", quiet, wait=False),
    ):
        pass


class InMemory:
    """A versioned file in memory."""

    def __init__(self):
        self.now = None

    def read(self):
        return self.now

    def replace(self, data, old):
        if self.now not in (old, FileVersion(data)):
            raise ChangedError
        self.now = FileVersion(data)
        return self.now

    def replaces_atomically(self, own):
        return True


DRIVERS = st.integers(0, 2)
EVENTS = st.one_of(
    st.tuples(st.just("time"), st.floats(0, 40)),
    st.tuples(st.sampled_from(["renew", "request", "release"]), DRIVERS),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_in_any_order_of_events_at_most_one_driver_relies_on_its_lease(events):
    """All drivers share a clock here, but each sees the lease only at its own events."""
    file, now, requests, leases = InMemory(), [1000.0], {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (lease, lease_request):
            patch.setattr(module, "clock", lambda: now[0])
        patch.setattr(lease_request, "versioned_file", lambda uri: file)
        patch.setattr(lease_request.time, "sleep", lambda seconds: None)
        patch.setattr(lease.Lease, "_renew", lambda self: None)  # the test renews
        numbers = []
        for kind, what in events:
            if kind == "time":
                now[0] += what
            elif kind == "request" and what not in leases:
                request = requests.setdefault(what, LeaseRequest("uri", "run 'x'", quiet))
                with suppress(LeaseHeldError):
                    leases[what] = request._take(wait=False)
                    numbers.append(leases[what].fence.number)
                    del requests[what]
            elif kind == "renew" and what in leases:
                one = leases[what]
                one._write(dataclasses.replace(one._record, beats=one._record.beats + 1))
            elif kind == "release" and what in leases:
                leases.pop(what).release()
            assert sum(one.valid for one in leases.values()) <= 1
            leases = {name: one for name, one in leases.items() if one.lost is None}
        assert numbers == sorted(set(numbers))
