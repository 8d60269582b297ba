import json
import threading
import time

import pytest

from bcl_ray.tracking import journal
from bcl_ray.tracking.journal import Delivery, Journal, RefusedError

PATIENCE = 30  # seconds: far more than anything here takes


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(journal, "FIRST_PAUSE", 0.001)


class Target:
    """A target for entries that raises `faults` first, one per attempt."""

    def __init__(self, *faults):
        self.faults, self.taken, self.connections = list(faults), [], []

    def connect(self, begun):
        self.connections.append(begun)
        return self.write

    def write(self, entry):
        if self.faults:
            raise self.faults.pop(0)
        self.taken.append(entry["number"])


def record(path, target, numbers):
    delivery = Delivery(Journal(path), target.connect)
    for number in numbers:
        delivery.record({"number": number})
    return delivery


def test_entries_arrive_in_order_and_once(tmp_path):
    target = Target()
    assert record(tmp_path / "j", target, range(100)).drain_and_stop(PATIENCE)
    assert target.taken == list(range(100))
    assert len(target.connections) == 1


def test_another_process_begins_with_the_first_entry(tmp_path):
    record(tmp_path / "j", Target(), range(3)).drain_and_stop(PATIENCE)
    target = Target()
    assert record(tmp_path / "j", target, [3]).drain_and_stop(PATIENCE)
    assert target.taken == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", [OSError("gone"), TimeoutError(), RuntimeError("two\nlines")])
def test_whatever_the_target_raises_is_tried_again_with_a_new_connection(tmp_path, fault):
    target = Target(fault, fault)
    delivery = record(tmp_path / "j", target, range(3))
    assert delivery.drain_and_stop(PATIENCE)
    assert target.taken == [0, 1, 2]
    assert len(target.connections) == 3
    assert delivery.problem is None, "it was overcome"


def test_a_target_that_cannot_be_reached_is_tried_again(tmp_path):
    target, attempts = Target(), iter([OSError("down"), OSError("down"), None])

    def connect(begun):
        if fault := next(attempts):
            raise fault
        return target.write

    delivery = Delivery(Journal(tmp_path / "j"), connect)
    delivery.record({"number": 1})
    assert delivery.drain_and_stop(PATIENCE)
    assert target.taken == [1]


def test_what_is_refused_is_told_and_does_not_hold_up_the_rest(tmp_path):
    target = Target(RefusedError("number 0 is bad"))
    delivery = record(tmp_path / "j", target, range(3))
    assert not delivery.drain_and_stop(PATIENCE), "not everything was handed over"
    assert target.taken == [1, 2]
    assert delivery.problem == "number 0 is bad"


def test_a_target_that_is_down_to_the_end_is_told_with_its_reason(tmp_path):
    delivery = Delivery(Journal(tmp_path / "j"), Target(*[OSError("no\nroute")] * 10**5).connect)
    delivery.record({"number": 1})
    assert not delivery.drain_and_stop(0.1)
    assert delivery.problem == "OSError: no route"
    target = Target()
    assert Delivery(Journal(tmp_path / "j"), target.connect).drain_and_stop(PATIENCE)
    assert target.taken == [1], "a later process delivers it"


def test_a_target_that_never_answers_holds_nobody_up(tmp_path):
    answer = threading.Event()
    delivery = Delivery(Journal(tmp_path / "j"), lambda begun: lambda entry: answer.wait())
    begun = time.monotonic()
    for number in range(1000):
        delivery.record({"number": number})
    assert not delivery.drain_and_stop(0.1)
    assert time.monotonic() - begun < 10, "liveness, not speed"
    assert delivery.problem == "no answer within 0.1 s"
    assert len(Journal(tmp_path / "j").entries()) == 1000
    answer.set()


def test_entries_of_several_threads_arrive_in_the_order_of_the_journal(tmp_path, monkeypatch):
    target, append = Target(), Journal.append

    def slow(self, entry):
        append(self, entry)
        time.sleep(0.0001 * (entry["number"] % 3))  # time enough to be overtaken

    monkeypatch.setattr(Journal, "append", slow)
    delivery = Delivery(Journal(tmp_path / "j"), target.connect)

    def some(first):
        for number in range(first, first + 200):
            delivery.record({"number": number})

    threads = [threading.Thread(target=some, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert delivery.drain_and_stop(PATIENCE)
    assert len(target.taken) == 800
    assert target.taken == [entry["number"] for entry in Journal(tmp_path / "j").entries()]


def test_entries_have_the_time_of_their_recording_not_of_their_delivery(tmp_path):
    before = time.time()
    record(tmp_path / "j", Target(), [0]).drain_and_stop(PATIENCE)
    after = time.time()
    target = Target()
    record(tmp_path / "j", target, [1]).drain_and_stop(PATIENCE)
    assert before <= target.connections[0] <= after


def test_a_last_line_that_was_cut_short_is_left_out_and_what_follows_is_kept(tmp_path):
    record(tmp_path / "j", Target(), range(3)).drain_and_stop(PATIENCE)
    content = (tmp_path / "j").read_bytes()
    for length in range(content.index(b"\n") + 1, len(content)):
        (tmp_path / "j").write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert [entry["number"] for entry in Journal(tmp_path / "j").entries()] == [*range(whole)]
        again = Journal(tmp_path / "j")
        again.append({"number": 9})
        again.close()
        kept = [entry["number"] for entry in Journal(tmp_path / "j").entries()]
        assert kept == [*range(whole), 9]


def test_reading_a_journal_that_another_process_writes_leaves_it_alone(tmp_path):
    (tmp_path / "j").write_bytes(b'{"number": 0, "time": 1}\n{"number": 1, "ti')
    target = Target()
    assert Delivery(Journal(tmp_path / "j"), target.connect).drain_and_stop(PATIENCE)
    assert target.taken == [0]
    assert (tmp_path / "j").read_bytes().endswith(b'"ti')


@pytest.mark.parametrize("line", ["{", "3", "", "\x00\x00"], ids=repr)
def test_a_line_that_is_no_entry_is_refused_by_its_number(tmp_path, line):
    good = json.dumps({"number": 0, "time": 0})
    (tmp_path / "j").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(ValueError, match="j, line 2, is not an entry of a journal"):
        Journal(tmp_path / "j").entries()


def test_a_journal_without_a_file_is_empty_and_makes_none(tmp_path):
    assert Journal(tmp_path / "j").entries() == []
    assert Delivery(Journal(tmp_path / "j"), Target().connect).drain_and_stop(PATIENCE)
    assert list(tmp_path.iterdir()) == []


class Holder:
    """The part of a lease that a journal uses."""

    def __init__(self):
        self.valid, self.lost = True, None


def test_nothing_is_handed_on_while_another_driver_may_have_the_run(tmp_path):
    target, lease = Target(), Holder()
    lease.valid = False
    delivery = Delivery(Journal(tmp_path / "j"), target.connect, lease)
    delivery.record({"number": 0})
    time.sleep(0.2)
    assert target.connections == []
    lease.valid = True
    assert delivery.drain_and_stop(PATIENCE)
    assert target.taken == [0]


def test_a_driver_that_was_replaced_hands_on_and_records_nothing_more(tmp_path):
    target, lease = Target(), Holder()
    delivery = Delivery(Journal(tmp_path / "j"), target.connect, lease)
    lease.valid, lease.lost = False, OSError("another has it")
    begun = time.monotonic()
    delivery.record({"number": 0})
    assert not delivery.drain_and_stop(PATIENCE), "the entry was dropped"
    assert delivery.problem == "the run's folder does not answer, or another driver holds it"
    assert time.monotonic() - begun < PATIENCE / 2, "nor does it wait"
    assert target.connections == []
    assert Journal(tmp_path / "j").entries() == []
