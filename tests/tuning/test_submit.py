"""A search as a job, checked before it is sent."""

import re
import shlex

import pytest

from bcl_ray.cli import submit
from bcl_ray.cli.jobs import _resume_command
from bcl_ray.experiment.overrides import from_yaml
from bcl_ray.experiment.recipes import cifar10_lt, digits_lt
from bcl_ray.ops.jobs import checks
from bcl_ray.ops.jobs.package import pack
from bcl_ray.tuning.search_ledger import begin
from bcl_ray.tuning.settings import Extent, Settings

pytestmark = pytest.mark.ray  # Ray's client is imported, though no Ray is started

CLUSTER = "http://head.example:8265"
REMOTE = ("data.path=s3://bucket/shards", "tracking.runs=s3://bucket/runs")


@pytest.fixture(autouse=True)
def unseen(monkeypatch, tmp_path):
    """Object storage that cannot be reached from here."""

    def fail(uri):
        raise OSError(f"{uri}: no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(checks, "read_manifest", fail)


def job_request(*words):
    return submit._request("search", words, CLUSTER)


def test_a_job_is_named_after_its_search(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    words = ("cifar10_lt", *REMOTE, "--name", "night", "--trials", "40", "--searcher", "tpe")
    job = job_request(*words)
    assert re.fullmatch(r"night-\d{4}-\d{6}", job.name)
    assert job.words == (*words, "tracking.uri=http://mlflow.example:5000")
    assert job.metadata["kind"] == "search"
    assert job.metadata["run"] == "s3://bucket/runs/night"
    assert job.metadata["recipe"] == "cifar10_lt"
    assert job.notes == (
        "data not checked from here (s3://bucket/shards: no route); the job will check them",
    )


def test_a_search_goes_on_with_its_own_settings(tmp_path):
    remote = from_yaml(digits_lt().to_yaml().replace("data/digits_lt", "s3://bucket/shards"))
    begin(str(tmp_path / "night"), Settings(), Extent(), remote, "f" * 64)
    words = ("--resume", "night", f"tracking.runs=file://{tmp_path}")
    job = job_request(*words)
    assert job.words == words
    assert job.metadata["run"] == f"file://{tmp_path}/night"
    assert job.metadata["data"] == "s3://bucket/shards"
    assert "recipe" not in job.metadata


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits_lt", "--name", "a"), "data.path (data/digits_lt) is a path of this machine"),
        (("digits_lt", REMOTE[0], "--name", "a"), "tracking.runs (runs) is a path of this machine"),
        (("digits_lt", *REMOTE, "--name", "a", "--confirm", "3"), "--confirm 3 must be K,N"),
    ],
)
def test_what_cannot_work_is_refused_here(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        job_request(*words)


STUDY = """
recipe: digits_lt
axes:
  method: {ce: [loss.kind=ce], bcl: []}
"""


def test_a_study_is_sent_with_its_file_and_a_name(tmp_path):
    (tmp_path / "grid.yaml").write_text(STUDY)
    words = ("grid.yaml", *REMOTE)
    job = submit._request("study", words, CLUSTER)
    assert job.words == (*words, "--name", "grid")
    assert (job.metadata["kind"], job.metadata["recipe"]) == ("study", "grid.yaml")
    assert job.metadata["run"] == "s3://bucket/runs/grid"
    assert job.metadata["data"] == "s3://bucket/shards"
    packed = pack("study", job.words)
    assert packed.words[0] == "files/grid.yaml"
    assert set(packed.files) == {"jobs/study.py", "files/grid.yaml"}
    resume = _resume_command(job.metadata)
    assert resume == f"bcl-ray submit study {shlex.join(job.words)}"


def test_a_study_that_begins_with_another_file_is_not_sent_without_it(tmp_path):
    (tmp_path / "other.yaml").write_text(cifar10_lt().to_yaml())
    (tmp_path / "grid.yaml").write_text(
        "recipe: other.yaml\naxes: {method: {bcl: [], ce: [loss.kind=ce]}}\n"
    )
    with pytest.raises(ValueError, match=r"grid\.yaml: recipe other\.yaml is a file, and only"):
        submit._request("study", ("grid.yaml", *REMOTE), CLUSTER)


def test_a_study_of_paths_of_this_machine_is_refused(tmp_path):
    (tmp_path / "grid.yaml").write_text(STUDY)
    with pytest.raises(ValueError, match=r"data\.path \(data/digits_lt\) is a path of this"):
        submit._request("study", ("grid.yaml",), CLUSTER)
