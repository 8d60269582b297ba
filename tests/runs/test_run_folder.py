import json
import re
from pathlib import Path

import pytest
from pyarrow import fs

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.runs import run_folder
from bcl_ray.storage import files, paths
from bcl_ray.storage.files import filesystems

FINGERPRINT = "a" * 64


@pytest.fixture(params=["path", "file", "remote"])
def root(request, tmp_path, monkeypatch):
    """A folder of runs: a path, a file:// URI, and a URI of a remote store."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    local = files.resolve

    def resolve(uri):
        if not uri.startswith("test://"):
            return local(uri)
        path = uri.removeprefix("test://").partition("?")[0]
        store.create_dir(path.rpartition("/")[0])  # an object store has no folders to miss
        return store, path

    monkeypatch.setattr(filesystems, "resolve", resolve)
    folder = tmp_path / "my runs"
    return {"path": str(folder), "file": folder.as_uri(), "remote": "test://my runs"}[request.param]


def changed(*overrides):
    return with_overrides(digits_lt(), overrides)


def test_a_run_is_opened_as_it_was_created(root):
    uri = run_folder.run_uri("first", root)
    run = run_folder.create(uri, digits_lt(), FINGERPRINT)
    assert run_folder.open_run(uri) == (run, digits_lt())
    assert run.name == "first"
    assert re.fullmatch("[0-9a-f]{32}", run.uid)
    assert (
        run.uid
        != run_folder.create(run_folder.run_uri("second", root), digits_lt(), FINGERPRINT).uid
    )


def test_a_run_that_was_moved_is_the_same_run(tmp_path):
    run = run_folder.create(str(tmp_path / "old"), digits_lt(), FINGERPRINT)
    (tmp_path / "old").rename(tmp_path / "new")
    moved, _ = run_folder.open_run(str(tmp_path / "new"))
    assert (moved.uid, moved.uri) == (run.uid, str(tmp_path / "new"))


def test_a_run_from_before_there_was_plan_2_resumes_with_plan_1(root):
    """Its experiment.yaml has no data.plan, and its digest is the one of then (557c235)."""
    uri = run_folder.run_uri("old", root)
    text = (Path(__file__).parents[1] / "experiment" / "digits_lt_of_plan_1.yaml").read_bytes()
    files.write_bytes(files.join(uri, run_folder.EXPERIMENT_FILE), text)
    content = {"uid": "0" * 32, "digest": "3dcce026e380", "fingerprint": FINGERPRINT}
    files.write_bytes(files.join(uri, run_folder.RUN_FILE), json.dumps(content).encode())
    run, experiment = run_folder.open_run(uri)
    assert experiment.data.plan == 1
    run_folder.check_resumable(run, experiment, FINGERPRINT)
    with pytest.raises(ValueError, match=r"\(data.plan was 1, now 2\): only data.path"):
        run_folder.check_resumable(run, changed("data.plan=2"), FINGERPRINT)
    again, changes = run_folder.with_original_defaults(uri, digits_lt())
    assert "data.plan=1" in changes
    run_folder.check_resumable(run, again, FINGERPRINT)


def test_only_options_that_a_run_does_not_know_are_set_back_when_it_goes_on(root):
    uri = run_folder.run_uri("first", root)
    run = run_folder.create(uri, digits_lt(), FINGERPRINT)
    changed_options = changed("optim.kind=adamw")
    assert run_folder.with_original_defaults(uri, changed_options) == (changed_options, [])
    with pytest.raises(ValueError, match=r"\(optim.kind was sgd, now adamw\)"):
        run_folder.check_resumable(run, changed_options, FINGERPRINT)
    file = files.join(uri, run_folder.EXPERIMENT_FILE)
    older = files.read_bytes(file).replace(b"  validation_split: null\n", b"")
    files.write_bytes(file, older)
    again, changes = run_folder.with_original_defaults(uri, changed("data.validation_split=val"))
    assert changes == ["data.validation_split=null"]
    run_folder.check_resumable(run, again, FINGERPRINT)


def test_a_run_of_today_keeps_the_options_that_it_is_continued_with(root):
    uri = run_folder.run_uri("first", root)
    run_folder.create(uri, digits_lt(), FINGERPRINT)
    assert run_folder.with_original_defaults(uri, changed("optim.lr=0.2"))[1] == []


def test_a_name_that_is_taken_by_the_same_experiment_offers_to_resume(root):
    uri = run_folder.run_uri("first", root)
    run_folder.create(uri, digits_lt(), FINGERPRINT)
    with pytest.raises(
        ValueError, match="with this configuration: go on with --resume "
    ) as refusal:
        run_folder.create(uri, changed("scale.workers=1"), FINGERPRINT)
    assert f"--resume {uri}, or give" in str(refusal.value)


def test_a_name_that_is_taken_by_another_experiment_asks_for_another_name(root):
    uri = run_folder.run_uri("first", root)
    run = run_folder.create(uri, digits_lt(), FINGERPRINT)
    with pytest.raises(ValueError, match=r"run 'first' exists") as refusal:
        run_folder.create(uri, changed("optim.lr=0.2"), FINGERPRINT)
    assert "with another configuration: give the new run another name" in str(refusal.value)
    assert "--resume" not in str(refusal.value)
    assert f"exists in {root} with" in str(refusal.value)
    assert run_folder.open_run(uri) == (run, digits_lt()), "nothing was overwritten"


def test_a_run_without_its_json_file_may_begin_again(root):
    uri = run_folder.run_uri("first", root)
    files.write_bytes(
        files.join(uri, run_folder.EXPERIMENT_FILE), changed("optim.lr=9").to_yaml().encode()
    )
    run = run_folder.create(uri, digits_lt(), FINGERPRINT)
    assert run_folder.open_run(uri) == (run, digits_lt())


def test_a_folder_without_a_run_is_refused(root):
    with pytest.raises(ValueError, match=r"nothing holds no run \(no run.json\): name one that"):
        run_folder.open_run(run_folder.run_uri("nothing", root))


def test_an_experiment_that_was_edited_is_refused_by_file_and_digest(root):
    uri = run_folder.run_uri("first", root)
    run = run_folder.create(uri, digits_lt(), FINGERPRINT)
    other = changed("optim.lr=0.2")
    files.write_bytes(files.join(uri, run_folder.EXPERIMENT_FILE), other.to_yaml().encode())
    with pytest.raises(ValueError, match="is not what run 'first' began with") as refusal:
        run_folder.open_run(uri)
    assert run.digest in str(refusal.value)
    assert other.digest() in str(refusal.value)
    assert f"{uri}/experiment.yaml" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"uid": "a"}', b'{"colour": 1}'], ids=str)
def test_a_run_file_that_was_edited_is_refused_by_name(tmp_path, content):
    (tmp_path / run_folder.RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/run.json is not as"):
        run_folder.open_run(str(tmp_path))


def test_a_resume_may_change_scale_tracking_and_where_the_data_lies(root):
    run = run_folder.create(run_folder.run_uri("first", root), digits_lt(), FINGERPRINT)
    moved = changed("scale.workers=1", "tracking.experiment=x", "data.path=elsewhere")
    run_folder.check_resumable(run, moved, FINGERPRINT)
    moved = changed("data.residency=device")
    run_folder.check_resumable(run, moved, FINGERPRINT)
    with pytest.raises(ValueError, match=r"only data.path, data.residency, scale\.\* and ") as one:
        run_folder.check_resumable(run, changed("train.epochs=41", "loss.kind=ce"), FINGERPRINT)
    differing = "(loss.kind was bcl, now ce, train.epochs was 40, now 41)"
    assert f"run 'first' was begun with another configuration {differing}: " in str(one.value)


def test_a_resume_with_other_data_is_refused(root):
    run = run_folder.create(run_folder.run_uri("first", root), digits_lt(), FINGERPRINT)
    with pytest.raises(ValueError, match="data/digits_lt holds other data") as refusal:
        run_folder.check_resumable(run, digits_lt(), "b" * 64)
    assert "bbbbbbbbbbbb" in str(refusal.value)
    assert "aaaaaaaaaaaa" in str(refusal.value)


def test_a_run_is_named_by_name_or_by_folder():
    assert run_folder.run_uri("first", "runs") == "runs/first"
    assert run_folder.run_uri("elsewhere/first", "runs") == "elsewhere/first"
    assert run_folder.run_uri("s3://bucket/first", "runs") == "s3://bucket/first"
    assert run_folder.run_uri("first", "s3://b/runs?region=x") == "s3://b/runs/first?region=x"


@pytest.mark.parametrize(
    "uri",
    ["runs/first", "runs/first/", "first", "/a/first", "s3://b/first", "s3://b/first?region=x/y"],
)
def test_a_runs_name_is_that_of_its_folder(uri):
    assert run_folder.Run(uri, "", "", "").name == "first"


def test_a_default_name_may_be_given_as_a_name():
    name = run_folder.default_name(digits_lt())
    assert re.fullmatch(r"digits_lt-\d{4}-\d{6}", name)
    assert changed(f"tracking.run={name}").tracking.run == name


def test_a_local_run_keeps_its_journal_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b"
    for uri in ("a b", str(folder), folder.as_uri()):
        assert run_folder.local_folder(run_folder.Run(uri, "uid", "", "")) == folder


def test_a_remote_run_keeps_its_journal_in_the_cache(monkeypatch, tmp_path):
    run = run_folder.Run("s3://bucket/first", "uid", "", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert run_folder.local_folder(run) == tmp_path / ".cache" / "bcl_ray" / "uid"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert run_folder.local_folder(run) == Path("/scratch/bcl_ray/uid")


def test_for_a_user_without_a_home_the_error_names_the_variables(monkeypatch):
    """As in a container whose passwd does not list the user."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    with pytest.raises(OSError, match=r"^user 54321 has no home: set HOME, or XDG_CACHE_HOME, to"):
        run_folder.local_folder(run_folder.Run("s3://bucket/first", "uid", "", ""))


def test_a_run_in_the_default_folder_is_referred_to_by_name_others_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = run_folder.create(str(tmp_path / "runs" / "first"), digits_lt(), FINGERPRINT)
    assert run_folder.reference(ours) == "first"
    other = run_folder.create(str(tmp_path / "kept" / "first"), digits_lt(), FINGERPRINT)
    assert run_folder.reference(other) == "kept/first"


def test_a_runs_parent_keeps_the_options_of_its_uri():
    assert paths.parent("s3://b/runs/first?region=x") == "s3://b/runs?region=x"
    assert paths.parent("/data/runs/first") == "/data/runs"


def test_absolute_paths_mean_the_same_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    located = run_folder.with_absolute_paths(changed("tracking.runs=s3://bucket/runs"))
    assert located.data.path == f"{tmp_path}/data/digits_lt"
    assert located.tracking.runs == "s3://bucket/runs"
    assert located.digest() == digits_lt().digest()


def made(run, *folders):
    for name in folders:
        files.write_bytes(files.join(run.uri, name, "state.pt"), b"weights")


def test_keep_only_best_keeps_the_best_checkpoint_and_the_history(root):
    run = run_folder.create(run_folder.run_uri("lost", root), digits_lt(), FINGERPRINT)
    made(run, "checkpoint_00000001_a", "checkpoint_00000002_b", "best_00000001")
    history = [{"epoch": 0.0, "accuracy/all": 50.0}]
    run_folder.keep_only_best(run, "lost", history)
    assert files.list_folders(run.uri) == ["best_00000001"]
    made(run, "checkpoint_00000002_b")  # as if it had been killed on the way
    run_folder.keep_only_best(run, "lost", [])
    assert files.list_folders(run.uri) == ["best_00000001"]
    assert run_folder.saved_history(run) == history
    with pytest.raises(
        ValueError, match=r"^run 'lost' lost, and its last checkpoint was removed: t"
    ):
        run_folder.check_resumable(run, digits_lt(), FINGERPRINT)


def test_keep_only_best_deletes_nothing_without_a_best_checkpoint(root):
    run = run_folder.create(run_folder.run_uri("young", root), digits_lt(), FINGERPRINT)
    made(run, "checkpoint_00000001_a")
    run_folder.keep_only_best(run, "lost", [])
    assert files.list_folders(run.uri) == ["checkpoint_00000001_a"]
    assert run_folder.why_only_best(run) is None
    run_folder.check_resumable(run, digits_lt(), FINGERPRINT)
