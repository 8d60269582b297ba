import subprocess

import numpy as np
import pytest

from bcl_ray import __version__
from bcl_ray.machine.versions import git_commit, versions


def git(folder, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    done = subprocess.run(
        ["git", *identity, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository of this project, with one commit and a tag."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "bcl-ray"\n')
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "v1")
    return tmp_path


def test_versions_are_those_of_the_installed_packages():
    tags = versions()
    assert tags["version.numpy"] == np.__version__
    assert tags["version.bcl-ray"] == __version__
    assert all(name.startswith("version.") or name == "git.commit" for name in tags)


def test_the_commit_is_that_of_the_checkout(checkout):
    assert git_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_a_changed_checkout_is_marked_dirty(checkout):
    (checkout / "pyproject.toml").write_text('[project]\nname = "bcl-ray"\nversion = "2"\n')
    assert git_commit(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_the_commit_of_another_project_is_not_recorded(checkout, tmp_path):
    installed = checkout / "lib" / "site-packages"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None, "installed below somebody's repository"
    (checkout / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert git_commit(checkout) is None, "part of somebody's repository"


def test_the_environment_of_a_git_hook_does_not_change_the_commit(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    commit = git_commit(checkout)
    monkeypatch.delenv("GIT_DIR")
    assert commit == git(checkout, "rev-parse", "HEAD")


def test_without_git_or_a_repository_there_is_no_commit(checkout, monkeypatch, tmp_path):
    assert git_commit(tmp_path / "nothing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(checkout) is None


def test_an_image_has_the_commit_that_it_was_built_from(monkeypatch, tmp_path):
    """The image has no repository: cluster/Dockerfile writes the commit beside the modules."""
    monkeypatch.setattr("bcl_ray.__file__", str(tmp_path / "bcl_ray" / "__init__.py"))
    (tmp_path / "bcl_ray").mkdir()
    assert "git.commit" not in versions()
    for text, commit in (("0123abc-dirty\n", "0123abc-dirty"), ("", None)):
        (tmp_path / "bcl_ray" / "commit.txt").write_text(text)
        assert versions().get("git.commit") == commit
