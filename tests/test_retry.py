import errno
import logging

import pytest

from bcl_ray import retry


def failing(times):
    """Fails so often, then returns its number of calls."""
    calls = []

    def attempt():
        calls.append(None)
        if len(calls) <= times:
            raise OSError("down")
        return len(calls)

    return attempt


def test_faults_that_pass_are_outlasted_and_told(caplog, monkeypatch):
    monkeypatch.setattr(retry, "QUIET", 0.0)
    assert retry.persist(failing(3), "s3://b/f", lambda error: 20.0, lambda _: "SlowDown") == 4
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("bcl_ray.storage", logging.WARNING)
    ] * 2
    assert "s3://b/f: SlowDown, trying again for up to 20 s" in caplog.text
    assert "s3://b/f: works again, after " in caplog.text


def test_a_blip_is_not_told(caplog):
    assert retry.persist(failing(1), "f", lambda error: 20.0) == 2
    assert not caplog.records


def test_faults_that_stay_are_raised_at_once():
    attempt = failing(1)
    with pytest.raises(OSError, match="down"):
        retry.persist(attempt, "f", lambda error: 0.0)
    assert attempt() == 2  # the second call


def test_patience_ends():
    attempt = failing(1000)
    with pytest.raises(OSError, match="down"):
        retry.persist(attempt, "f", lambda error: 0.5)
    with pytest.raises(OSError, match="down"):
        attempt()  # not all of the thousand were tried


@pytest.mark.parametrize(("number", "worth"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_only_a_full_disk_is_waited_for(number, worth):
    assert (retry.local_patience(OSError(number, "x")) > 0) is worth
