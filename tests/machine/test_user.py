"""Users as containers have them: a number without a name or a home, and folders of all lengths."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bcl_ray.machine import user
from bcl_ray.machine.errors import UserError

NUMBER = 54321
NO_HOME = f"user {NUMBER} has no home: set HOME to a folder that "
UNSHARE = ["unshare", "--user", f"--map-user={NUMBER}", f"--map-group={NUMBER}"]


def run_as_nobody(command: list[str], folder: Path, **variables: str) -> str:
    """What a command prints for a user without an entry in /etc/passwd."""
    if subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("this system has no user namespaces, in which a user may have any number")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*UNSHARE, sys.executable, *command],
        env=environment | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "home", "temporary"),
    [
        ({"TMPDIR": "/tmp/" + "x" * 60}, f"✗ HOME here {NO_HOME}", "✗ TMPDIR here TMPDIR (/tmp/xx"),
        (
            {"HOME": "/proc", "RAY_TMPDIR": "/tmp/" + "x" * 60},
            "✗ HOME here HOME (/proc) cannot be written to (",
            "✗ TMPDIR here RAY_TMPDIR (/tmp/xx",
        ),
        ({"HOME": "/tmp"}, "✓ HOME here /tmp", "✓ TMPDIR here /tmp"),
    ],
    ids=["none", "not writable", "good"],
)
def test_doctor_sees_the_home_and_the_temporary_folder(tmp_path, variables, home, temporary):
    said = run_as_nobody(["-m", "bcl_ray", "doctor"], tmp_path, **variables)
    found = [" ".join(line.split()) for line in said.splitlines()]
    assert [line for line in found if line.startswith(home)], said
    assert [line for line in found if line.startswith(temporary)], said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, NO_HOME),
        ({"HOME": "/proc"}, "the local Ray does not start: HOME (/proc) cannot be written to ("),
        (
            {"HOME": "/tmp", "RAY_TMPDIR": "/tmp/" + "x" * 60},
            "the local Ray does not start: RAY_TMPDIR (/tmp/xxx",
        ),
        (
            {"HOME": "/tmp", "TMPDIR": "/tmp/" + "x" * 60},
            "the local Ray does not start: TMPDIR (/tmp/xxx",
        ),
    ],
    ids=["no home", "home not writable", "long RAY_TMPDIR", "long TMPDIR"],
)
def test_a_training_says_what_is_wrong_with_the_user(tmp_path, variables, message):
    shard = "shard digits data --profile exponential --imbalance-factor 50 --cpus 1"
    run_as_nobody(["-m", "bcl_ray", *shard.split()], tmp_path, **variables)
    train = "train digits_lt data.path=data train.epochs=1 scale.workers=1"
    said = run_as_nobody(["-m", "bcl_ray", *train.split()], tmp_path, **variables)
    assert said.splitlines()[-1].startswith(f"bcl-ray: {message}"), said


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_longest_temporary_folder_leaves_room_for_ray_s_sockets(
    tmp_path, monkeypatch, variable
):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    most = user.SOCKET_BYTES - len(
        "/ray/session_2026-11-29_22-17-10_054125_4194304/sockets/plasma_store"
    )
    monkeypatch.setenv(variable, "/tmp/" + "ü" * ((most - 5) // 2))
    user.check_temporary_folder()
    monkeypatch.setenv(variable, "/tmp/" + "ü" * ((most - 5) // 2 + 1))
    with pytest.raises(
        UserError, match=rf"^{variable} \(/tmp/ü+\) has \d+ bytes, .* for {most}: set"
    ):
        user.check_temporary_folder()


def test_a_home_that_does_not_exist_is_good_where_it_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "not" / "yet"))
    assert user.check_home() == str(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "not").touch()
    with pytest.raises(
        UserError, match=r"HOME \(.*\) cannot be written to \(Not a directory\): set"
    ):
        user.check_home()
