"""What a command's exit status says: 2, a mistake that would come again; 1, what may pass."""

import errno

import pytest

from bcl_ray import cli
from bcl_ray.machine.errors import FailedError, UserError
from bcl_ray.storage import files, s3
from bcl_ray.storage.fence import LeaseHeldError, LeaseLostError, LeaseNotRenewedError
from bcl_ray.storage.s3.diagnosis import explain
from bcl_ray.storage.s3.location import Location

BUCKET = Location("bucket", "x", None, None)


def of_s3(text):
    return explain(OSError(text), "s3://bucket/x", BUCKET)


def of_access(text):
    problem = s3.TransientProblem(text) if text == "no answer" else text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3, "check_access", lambda *_: [problem])
        with pytest.raises((ValueError, OSError)) as raised:
            files.check_usable("s3://bucket/x", "read")
    return raised.value


def of_disk(number):
    with pytest.raises(OSError, match="no") as raised, files.explain_errors("/disk/x"):
        raise OSError(number, "no")
    return raised.value


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (2, UserError("optim.lr (-1) must be positive")),
        (1, FailedError("workers failed; continue with: bcl-ray train --resume a")),
        (2, FileNotFoundError("shards do not exist")),
        (2, ModuleNotFoundError("no ray")),
        (2, LeaseLostError("this run belongs to another driver now")),
        (2, of_disk(errno.EROFS)),
        (2, of_access("denied")),
        (2, of_s3("When reading: AWS Error ACCESS_DENIED during GetObject operation: no")),
        (2, of_s3("When reading: AWS Error NO_SUCH_BUCKET during GetObject operation: no")),
        (1, LeaseHeldError("in use by job 7")),
        (1, ConnectionRefusedError("no cluster")),
        (1, TimeoutError("no answer")),
        (1, of_disk(errno.ENOSPC)),
        (1, of_disk(errno.ESTALE)),
        (1, of_disk(errno.ETIMEDOUT)),
        (1, of_access("no answer")),
        (1, LeaseNotRenewedError("could not be renewed for 300 s")),
        (1, of_s3("When reading: AWS Error SLOW_DOWN during GetObject operation: no")),
        (1, of_s3("When reading: AWS Error NETWORK_CONNECTION during GetObject operation: curl")),
    ],
)
def test_mistakes_and_temporary_failures_have_different_statuses(
    monkeypatch, capsys, status, error
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr("sys.argv", ["bcl-ray"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == status
    assert str(error) in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    def fails(*_, **__):
        raise ValueError("shapes (3, 4) and (5,) do not broadcast\nat all")

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr("sys.argv", ["bcl-ray"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    (file,) = (tmp_path / "bcl_ray").iterdir()
    assert "in fails" in file.read_text()
    output = capsys.readouterr().err
    assert output.startswith(
        "bcl-ray: ValueError: shapes (3, 4) and (5,) do not broadcast at all ("
    )
    assert str(file) in output
    assert output.count("\n") == 1
    file.unlink()
    file.parent.rmdir()
    (tmp_path / "bcl_ray").write_text("no folder can be here")
    with pytest.raises(SystemExit):
        cli.main()
    assert "in fails" in capsys.readouterr().err
