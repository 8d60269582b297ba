import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bcl_ray
from bcl_ray.ops.jobs import package as packaging
from bcl_ray.ops.jobs.package import entry_point, pack

ROOT = Path(bcl_ray.__file__).parents[1]
NAMES = st.text(string.ascii_letters + string.digits + "-_. ", min_size=1, max_size=12).filter(
    lambda name: name.strip(" .") == name
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(made, folder: Path) -> dict[str, str]:
    made.write(folder)
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text() for file in files}


@pytest.mark.parametrize("kind", ["shard", "train", "evaluate"])
def test_a_job_without_files_is_sent_its_entry_point_and_nothing_else(tmp_path, kind):
    (tmp_path / "data").mkdir()
    (tmp_path / ".git").write_text("x")
    made = pack(kind, ["cifar10_lt", "data.path=s3://bucket/x", "--best"])
    assert made.words == ("cifar10_lt", "data.path=s3://bucket/x", "--best")
    own = (ROOT / "jobs" / f"{kind}.py").read_text()
    assert written(made, tmp_path / "out") == {f"jobs/{kind}.py": own}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.dictionaries(
        st.tuples(st.sampled_from(["a", "b", "c/d"]), NAMES, st.sampled_from(packaging.SUFFIXES)),
        st.text(string.ascii_lowercase, max_size=20),
        min_size=1,
        max_size=6,
    ),
    option=st.sampled_from(["", "train=", "x.y="]),
)
def test_files_that_are_named_are_found_under_their_new_names(tmp_path_factory, contents, option):
    """Also where files of different folders have one name, or one file is named twice."""
    folder = tmp_path_factory.mktemp("here")
    paths = {}
    for (parent, name, suffix), text in contents.items():
        path = folder / parent / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths[path] = text
    made = pack("train", [option + str(path) for path in (*paths, *paths)])
    sent = written(made, folder / "out")
    assert len(sent) == 1 + len(paths)
    words = [word.removeprefix(option) for word in made.words]
    assert [sent[word] for word in words] == [*paths.values(), *paths.values()]
    assert not any(part.startswith(("/", "..")) for word in words for part in word.split("/"))


def test_words_that_name_no_file_to_send_stay_as_they_are(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    (tmp_path / "cifar10").write_bytes(b"x")
    words = ("gone.yaml", "photo.jpg", "cifar10", "s3://bucket/list.txt", "--runs")
    made = pack("shard", words)
    assert made.words == words
    assert list(made.files) == ["jobs/shard.py"]


def test_the_code_is_sent_on_request_without_what_is_hidden_or_compiled(tmp_path):
    sent = written(pack("train", [], with_code=True), tmp_path / "out")
    assert sent["bcl_ray/__init__.py"] == (ROOT / "bcl_ray" / "__init__.py").read_text()
    assert sent["bcl_ray/ops/jobs/package.py"]
    assert "bcl_ray/py.typed" in sent
    assert not any("__pycache__" in name or "/." in name for name in sent)
    assert {name.split("/")[0] for name in sent} == {"jobs", "bcl_ray"}


def test_more_than_can_be_sent_is_refused_with_the_largest_named(tmp_path, monkeypatch):
    monkeypatch.setattr(packaging, "LIMIT", 3 * 2**20)
    for name, mib in (("a.txt", 1), ("b.txt", 3), ("c.csv", 2), ("d.txt", 0)):
        (tmp_path / name).write_text("x" * mib * 2**20)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        pack("shard", ["a.txt", "train=b.txt", "c.csv", "d.txt"])
    assert str(error.value) == (
        "the job's working directory is 6 MiB, and at most 3 can be sent: b.txt (3 MiB), "
        "c.csv (2 MiB), a.txt (1 MiB) are the largest; put them where the cluster reads data, and "
        "name their URI"
    )
    pack("shard", ["c.csv"])


def test_the_limit_is_90_mib():
    assert packaging.LIMIT == 90 * 2**20


SECRETS = [
    "AKIAIOSFODNN7EXAMPLE",
    "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/x",
    "data.path=s3://me:sesame@bucket/x",
    "tracking.uri=http://me:sesame@mlflow:5000",
    "s3://bucket/x?secret_key=sesame",
    "data.path=s3://bucket/x?access_key=sesame&secret_key=sesame",
    "AWS_SECRET_ACCESS_KEY=sesame",
    "--token=sesame",
    "password: 'sesame'",
    '"api_key": "sesame"',
    "RAY_AUTH_TOKEN=sesame",
]


@pytest.mark.parametrize("word", SECRETS)
def test_what_looks_like_a_credential_is_refused_and_not_shown(tmp_path, word):
    (tmp_path / "mine.yaml").write_text(f"name: x\n{word}\n")
    for words, place in (([word], "argument 2 of train holds"), (["mine.yaml"], "mine.yaml holds")):
        with pytest.raises(ValueError, match="holds what looks like a credential") as error:
            pack("train", ["cifar10_lt", *words])
        assert str(error.value).startswith(place)
        assert "sesame" not in str(error.value)
        assert "wJalr" not in str(error.value)
        assert "AKIA" not in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        "imagenet_lt",
        "data.path=s3://bucket/tokens/x",
        "s3://bucket/x?endpoint_override=http://store:9000&region=eu-1",
        "tracking.uri=http://mlflow:5000",
        "tracking.run=first:second",
        "views.classification.crop=padded",
        "train.seed=3",
    ],
)
def test_ordinary_arguments_are_no_credentials(word):
    assert pack("train", [word]).words == (word,)


def test_every_recipe_can_be_sent_as_a_file(tmp_path):
    from bcl_ray.experiment.recipes import RECIPES

    for name, recipe in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(recipe().to_yaml())
        assert pack("train", [f"{name}.yaml"]).words == (f"files/{name}.yaml",)


def test_an_entry_point_calls_the_command_of_its_name():
    for file in (ROOT / "jobs").glob("*.py"):
        assert entry_point(file.stem) == file
        assert file.read_text().endswith(f'import main\n\nmain("{file.stem}")\n')


def test_an_unknown_kind_has_no_entry_point():
    with pytest.raises(ValueError, match=r"comes without jobs/bake\.py: install it again"):
        entry_point("bake")


def test_plugins_of_the_current_folder_are_sent_and_installed_ones_are_not(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "own" / "deep" / "loss.py").write_text("y = 2\n")
    (tmp_path / "recipe.yaml").write_text("plugins: [own.deep.loss, numpy]\n")
    made = pack("train", ["recipe.yaml", "plugins=[mine]"])
    sent = written(made, tmp_path / "out")
    assert sent["mine.py"] == "x = 1\n"
    assert sent["own/deep/loss.py"] == "y = 2\n"
    assert not any("numpy" in name for name in sent)
    assert "mine.py" in pack("shard", ["two", "s3://x/y", "--plugin", "mine"]).files
    (tmp_path / "mine.py").write_text("password = 'hunter22'\n")
    with pytest.raises(ValueError, match=r"mine.py holds what looks like a credential"):
        pack("train", ["digits_lt", "plugins=[mine]"])
