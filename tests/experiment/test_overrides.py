import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcl_ray.experiment.choices import BACKBONES
from bcl_ray.experiment.overrides import from_file, from_stored, from_yaml, with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, digits_lt


def one_line(start: str) -> str:
    """A pattern: one line that starts so."""
    return rf"\A{re.escape(start)}[^\n]*\Z"


def test_overrides_are_applied_in_order():
    changed = with_overrides(cifar10_lt(), ["optim.lr=0.3", "loss.tau=0", "optim.lr=0.2"])
    assert (changed.optim.lr, changed.loss.tau) == (0.2, 0.0)
    assert changed.data == cifar10_lt().data


@pytest.mark.parametrize(
    ("override", "section", "option", "value"),
    [
        ("optim.lr=1e-3", "optim", "lr", 0.001),  # YAML 1.1 reads 1e-3 as text
        ("train.epochs=20", "train", "epochs", 20),
        ("train.compile=true", "train", "compile", True),
        ("optim.milestones=[1e2, 150]", "optim", "milestones", (100.0, 150.0)),
        ("tracking.run=null", "tracking", "run", None),
        ("tracking.run='7'", "tracking", "run", "7"),
        ("tracking.run=007", "tracking", "run", "007"),
        ("tracking.run=no", "tracking", "run", "no"),
        ("train.epochs=010", "train", "epochs", 10),  # YAML 1.1 reads it as 8
        ("train.compile=off", "train", "compile", False),
        ("data.plan=1", "data", "plan", 1),
        ("data.path=data/digits v1 #2", "data", "path", "data/digits v1 #2"),
        ("data.path=a: b", "data", "path", "a: b"),
        ("data.path=&x y", "data", "path", "&x y"),
        ("data.path=2026-01-01", "data", "path", "2026-01-01"),
        ("data.path=[x]", "data", "path", "[x]"),
        ("data.path=~", "data", "path", "~"),
        ('data.path=" x"', "data", "path", " x"),
        ("data.path='it''s'", "data", "path", "it's"),
        ("tracking.uri=http://host:5000/?a=b", "tracking", "uri", "http://host:5000/?a=b"),
        ("data.path=s3://bucket/prefix", "data", "path", "s3://bucket/prefix"),
    ],
)
def test_an_override_is_yaml_of_the_options_type(override, section, option, value):
    changed = getattr(getattr(with_overrides(cifar10_lt(), [override]), section), option)
    assert changed == value
    assert type(changed) is type(value)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_a_text_arrives_as_it_is_typed_or_is_refused_with_the_spelling_that_does(text):
    if text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""):
        text = f"({text})"
    try:
        changed = with_overrides(cifar10_lt(), [f"tracking.experiment={text}"])
    except ValueError as error:
        assert text != text.strip()
        (override,) = shlex.split(str(error).partition("remove it, or write ")[2])
        changed = with_overrides(cifar10_lt(), [override])
    assert changed.tracking.experiment == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300), st.integers(0))
def test_numbers_arrive_in_every_spelling(number, integer):
    for spelled in (repr(number), f"{number:.17e}", f" {number!r} "):
        assert with_overrides(cifar10_lt(), [f"loss.tau={spelled}"]).loss.tau == number
    for spelled in (str(integer), f"{integer:05d}", f"{integer:_d}"):
        assert with_overrides(cifar10_lt(), [f"train.seed={spelled}"]).train.seed == integer


def test_a_number_in_a_file_where_a_text_belongs_asks_for_quotes():
    text = cifar10_lt().to_yaml().replace("experiment: ", "experiment: 7 #")
    message = "tracking.experiment=7: input should be a valid string; put it in quotes"
    with pytest.raises(ValueError, match=one_line(message)):
        from_yaml(text)


def test_overrides_reach_nested_sections():
    changed = with_overrides(cifar10_lt(), ["views.contrastive.grayscale=0.5"])
    assert changed.views.contrastive.grayscale == 0.5
    assert changed.views.classification == cifar10_lt().views.classification


def test_overrides_are_judged_together():
    changed = with_overrides(cifar10_lt(), ["scale.workers=3", "optim.global_batch_size=255"])
    assert (changed.scale.workers, changed.optim.global_batch_size) == (3, 255)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "loss.temprature=0.2",
            "no option 'loss.temprature': section 'loss' has no field 'temprature'; did you mean "
            "'temperature'?",
        ),
        (
            "los.tau=1",
            "no option 'los.tau': an experiment has no field 'los'; did you mean 'loss'?",
        ),
        (
            "views.contrastive.grey=1",
            "no option 'views.contrastive.grey': section 'views.contrastive' has no field 'grey'; "
            "known: crop, scale, ratio, padding, flip, policy, jitter, jitter_probability, "
            "grayscale, blur, cutout",
        ),
        (
            "loss.tau.x=1",
            "no option 'loss.tau.x': section 'loss.tau' has no field 'x'; known: none",
        ),
        ("loss=1", "'loss' is a section; set loss.<field>=value"),
        ("loss.tau", "override 'loss.tau' must have the form section.field=value"),
        ("optim.lr=[", "optim.lr=[: the value is not YAML; quote it"),
        ("optim.lr=fast", "optim.lr=fast: input should be a valid number, unable to parse string"),
        ("optim.lr=inf", "optim.lr=inf: input should be a finite number"),
        ("optim.lr=1:30", "optim.lr=1:30: input should be a valid number, unable to parse string"),
        ("optim.lr=1 # x", "optim.lr=1 # x: the value must not go on with '# x'; quote it, or"),
        ("loss.kind=bcl #x", "loss.kind 'bcl #x' must be one of ce, "),
        ("data.path='x' #'", "data.path='x' #': the value must not go on with '#''; quote it"),
        (
            "data.path= x",
            "data.path: the value ' x' begins or ends with white space: remove it, or write "
            "'data.path=\" x\"'",
        ),
        ("loss.temperature=0", "loss.temperature=0: input should be greater than 0"),
        ("scale.workers=0", "scale.workers=0: input should be greater than or equal to 1"),
        (
            "model.backbone=resnet99",
            f"model.backbone 'resnet99' must be one of {', '.join(BACKBONES.names)}; "
            "did you mean 'resnet8'?",
        ),
        ("data.path=null", "data.path=None: input should be a valid string"),
        ("views.mean=[1, 2]", "views.mean has too few values: there is none at position 2"),
    ],
)
def test_a_mistaken_override_is_one_line_that_names_the_option(override, message):
    with pytest.raises(ValueError, match=one_line(message)):
        with_overrides(cifar10_lt(), [override])


def test_a_file_may_leave_out_what_has_a_default(tmp_path):
    file = tmp_path / "mine.yaml"
    text = cifar10_lt().to_yaml()
    file.write_text(text[: text.index("scale:\n  workers")])
    assert from_file(file) == cifar10_lt()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "mine.yaml is not valid YAML: while parsing a flow node"),
        ("- a", "mine.yaml must be a YAML mapping of sections, got list"),
        ("", "mine.yaml must be a YAML mapping of sections, got NoneType"),
        (
            "name: x",
            "mine.yaml: option 'data' is missing; `bcl-ray recipes show` prints complete ones",
        ),
    ],
)
def test_a_file_that_is_no_experiment_is_named(text, message):
    with pytest.raises(ValueError, match=one_line(message)):
        from_yaml(text, origin="mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  tau:",
            "  taw:",
            "mine.yaml: no option 'loss.taw': section 'loss' has no field 'taw'; did you mean "
            "'tau'?",
        ),
        (
            "    cutout:",
            "    cutoff:",
            "mine.yaml: no option 'views.classification.cutoff': section 'views.classification' "
            "has no field 'cutoff'; did you mean 'cutout'?",
        ),
        (
            "  feature_dim: 128\n",
            "",
            "mine.yaml: option 'model.feature_dim' is missing; `bcl-ray recipes show` prints "
            "complete ones",
        ),
        ("name: cifar10_lt", "nom: cifar10_lt", "mine.yaml: option 'name' is missing"),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_option(old, new, message):
    with pytest.raises(ValueError, match=one_line(message)):
        from_yaml(cifar10_lt().to_yaml().replace(old, new, 1), origin="mine.yaml")


# Written by `recipes show digits_lt` at 557c235, before there was data.plan.
OLD = (Path(__file__).parent / "digits_lt_of_plan_1.yaml").read_text()


def test_a_stored_experiment_without_data_plan_has_plan_1_and_its_old_digest():
    stored = from_stored(OLD)
    assert stored == with_overrides(digits_lt(), ["data.plan=1"])
    assert stored.digest() == "3dcce026e380"
    assert from_stored(stored.to_yaml()) == stored


def test_a_file_of_a_person_without_data_plan_has_the_default():
    assert from_yaml(OLD) == digits_lt()
    assert digits_lt().data.plan == 2
    assert digits_lt().digest() != from_stored(OLD).digest()


def test_a_stored_experiment_that_was_mangled_is_refused_as_any_file():
    with pytest.raises(ValueError, match=one_line("run.yaml must be a YAML mapping of sections")):
        from_stored("- a", origin="run.yaml")
    with pytest.raises(ValueError, match=one_line("run.yaml: option 'name' is missing")):
        from_stored("data: 3", origin="run.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.yaml: no such file or directory; name a YAML file"):
        from_file(tmp_path / "gone.yaml")
    with pytest.raises(ValueError, match=r": is a directory; name a YAML file"):
        from_file(tmp_path)
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"picture.yaml is not UTF-8 text: name a YAML file"):
        from_file(tmp_path / "picture.yaml")
