"""Whatever a parser is given, it reads it rightly or refuses it in one line; seeded.

The parsers are those of what people bring: images, list files, overrides, paths and URIs.
"""

import io
import itertools
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcl_ray.data.decode import FORMATS, decode, is_for_opencv
from bcl_ray.data.image_check import checked_size, checker_settings, image_fault
from bcl_ray.data.sources import parse_list
from bcl_ray.experiment.options import Experiment
from bcl_ray.experiment.overrides import from_yaml, with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.machine.errors import UserError
from bcl_ray.storage import files, paths
from bcl_ray.tracking.connection import mlflow_uri, sqlite_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]  # Pillow's

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=500)
ANY = st.text(st.characters(exclude_categories=["Cs"]))
# Characters that mean something to one of the parsers, or to those behind them.
SPECIAL = st.text(st.sampled_from("/?#%&=:@+'\"\\[]{}|>!*,-~. \t\n\r\0\ufeff\u2028aA0é"))
TEXT = ANY | SPECIAL


def refusal(call: typing.Callable[[], object]) -> str | None:
    """Why something is refused; other errors than a user's mistake are raised."""
    try:
        call()
    except UserError as error:
        return str(error)
    return None


def one_line(text: str) -> bool:
    return bool(text) and len(text.split("\n")) == 1


# Images


def encoded(kind: str, mode: str) -> bytes:
    rows, columns = np.mgrid[:9, :13]
    pixels = np.stack([20 * rows, 15 * columns, 255 - 9 * rows - columns], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(file, kind)
    return file.getvalue()


SEEDS = [
    encoded(kind, mode)
    for kind, mode in itertools.product(FORMATS, ("RGB", "L", "RGBA"))
    if (kind, mode) not in {("JPEG", "RGBA"), ("PPM", "RGBA")}
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image of which bytes were changed, removed, doubled or taken from another one."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        piece = draw(st.binary(max_size=4)) or draw(st.sampled_from(SEEDS))[at:]
        content[at : at + draw(st.integers(0, 8))] = piece
    return bytes(content)


@seeded
@given(damaged() | st.binary())
def test_images_are_decoded_to_the_size_of_their_header_or_refused(content):
    with checker_settings():
        fault = image_fault(content, 10_000)
        if fault is not None:
            assert one_line(fault)
            return
        width, height = checked_size(content, 10_000)
        pixels = decode(content)
        assert pixels.shape == (height, width, 3)
        if not is_for_opencv(content):
            with Image.open(io.BytesIO(content)) as theirs:
                assert (pixels == np.asarray(theirs.convert("RGB"))).all()


# Lists


@seeded
@given(TEXT)
def test_each_line_of_a_list_is_an_image_or_a_fault(text):
    names, labels, faults = parse_list(text, origin="list.txt")
    assert len(names) == len(labels)
    for row, name in enumerate(names):
        assert (labels[row] == -1 and one_line(faults[row])) if row in faults else name in text


@seeded
@given(SPECIAL, st.integers(0, 99))
def test_a_name_in_a_list_is_the_file_s(name, label):
    stripped = name.strip()
    if stripped and "\n" not in name and "\r" not in name and "\ufeff" not in name:
        names, labels, faults = parse_list(f"{stripped} {label}\n", origin="list.txt")
        assert (names, labels.tolist(), faults) == ([stripped], [label], {})


# Overrides


def options(section: typing.Any, above: str = "") -> typing.Iterator[str]:
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from options(field.annotation, f"{above}{name}.")
        else:
            yield above + name


NAMES = sorted(options(Experiment))
NUMBERS = st.floats() | st.integers() | st.lists(st.floats(0, 9) | st.integers(0, 9), max_size=4)


@seeded
@given(st.sampled_from(NAMES) | TEXT, TEXT | NUMBERS.map(str))
def test_an_override_is_taken_or_refused_in_one_line(name, value):
    changed = []
    reason = refusal(lambda: changed.append(with_overrides(digits_lt(), [f"{name}={value}"])))
    if reason is None:
        assert from_yaml(changed[0].to_yaml()) == changed[0]
    else:
        assert one_line(reason)


# Paths and URIs


@pytest.fixture(scope="module")
def region():
    """A region in the environment: without one, each bucket's is asked of AWS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_REGION", "us-east-1")
        yield


@pytest.mark.usefixtures("region")
@seeded
@given(st.sampled_from(["", "s3://", "file://", "s3://bucket/", "file:///", "s3:", "~"]), TEXT)
def test_a_path_or_uri_is_resolved_or_refused(scheme, text):
    uri = scheme + text
    if uri.startswith(("gs:", "hdfs:")):
        return
    reason = refusal(lambda: files.resolve(uri))
    if reason is not None:
        assert reason
        return
    assert paths.name(files.join(uri, "a")) == "a"
    assert files.resolve(files.join(uri, "a"))[1].rstrip("/").endswith("a")
    assert files.resolve(paths.parent(files.join(uri, "a", "b")))[1].endswith("a")


@seeded
@given(TEXT)
def test_mlflow_s_database_is_in_the_folder_of_the_runs(folder):
    if "://" in folder or "\0" in folder:
        return
    uris = []
    if refusal(lambda: uris.append(mlflow_uri(None, folder))) is None:
        assert str(sqlite_file(uris[0])) == f"{paths.absolute(folder).rstrip('/')}/mlflow.db"
        assert mlflow_uri(uris[0], "runs") == uris[0]
