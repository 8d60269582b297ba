import errno
import logging

import pytest

from bcl_ray.storage import retry


def failing(times):
    """A function that fails a number of times, then returns its number of calls."""
    calls = []

    def attempt():
        calls.append(None)
        if len(calls) <= times:
            raise OSError("down")
        return len(calls)

    return attempt


def test_transient_faults_are_retried_and_logged(caplog, monkeypatch):
    monkeypatch.setattr(retry, "QUIET_SECONDS", 0.0)
    assert retry.retry(failing(3), "s3://b/f", lambda error: 20.0, lambda _: "SlowDown") == 4
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("bcl_ray.storage", logging.WARNING)
    ] * 2
    assert "s3://b/f: SlowDown, trying again for up to 20 s" in caplog.text
    assert "s3://b/f: works again, after " in caplog.text


def test_a_short_fault_is_not_logged(caplog):
    assert retry.retry(failing(1), "f", lambda error: 20.0) == 2
    assert not caplog.records


def test_permanent_faults_are_raised_at_once():
    attempt = failing(1)
    with pytest.raises(OSError, match="down"):
        retry.retry(attempt, "f", lambda error: 0.0)
    assert attempt() == 2  # the second call


@pytest.mark.slow
def test_retries_end():
    attempt = failing(1000)
    with pytest.raises(OSError, match="down"):
        retry.retry(attempt, "f", lambda error: 0.5)
    with pytest.raises(OSError, match="down"):
        attempt()  # not all of the thousand were tried


def test_denials_among_other_faults_do_not_end_retries_but_consecutive_ones_do(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    worth = {"throttled": 300.0, "denied": 30.0}

    def ends_at(*faults):
        """Seconds after which the retries end; there is one fault in ten seconds."""
        now[0], left = -10.0, list(faults)

        def attempt():
            now[0] += 10
            if left:
                raise OSError(left.pop(0))

        try:
            retry.retry(attempt, "f", lambda error: worth[str(error)])
        except OSError:
            return now[0]
        return None

    assert ends_at(*["throttled", "denied"] * 14) is None
    assert ends_at(*["throttled", "denied"] * 20) == 300
    assert ends_at("throttled", "denied", "denied", "denied", "denied") == 40
    assert ends_at("denied", "denied", "denied", "throttled", "denied") is None


@pytest.mark.parametrize(("number", "worth"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_only_a_full_disk_is_waited_for(number, worth):
    assert (retry.local_retry_seconds(OSError(number, "x")) > 0) is worth
