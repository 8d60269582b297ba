"""Files that others load: each is read here without the package, as far as its format allows."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bcl_ray.use import export
from bcl_ray.use.formats import FORMATS, format_of
from bcl_ray.use.models import open_model

pytestmark = pytest.mark.slow

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SUFFIXES = (".safetensors", ".pt2", ".onnx")


@pytest.fixture(scope="module")
def model(trained):
    return open_model("first", trained.root)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Each format's file."""
    folder = tmp_path_factory.mktemp("exports")
    for suffix in SUFFIXES:
        written = export.export(model, str(folder / f"model{suffix}"))
        assert written.difference <= written.allowed < 0.01
        assert written.images == 16
    return folder


@pytest.fixture(scope="module")
def expected(model):
    from bcl_ray.method.model import Classifier

    views = model.experiment.views
    own = Classifier(model.network(torch.device("cpu")), views.mean, views.std).eval()
    with torch.no_grad():
        return own(IMAGES).numpy()


def test_weights_are_in_safetensors_by_name_with_what_rebuilds_the_network(model, files):
    with safe_open(files / "model.safetensors", "pt") as content:
        strings, names = content.metadata(), set(content.keys())
        weight = content.get_tensor("classifier.weight")
    assert torch.equal(weight, model.state.model["classifier.weight"])
    assert not any("projection" in name for name in names)
    assert json.loads(strings["class_names"]) == model.class_names
    assert json.loads(strings["class_counts"]) == model.state.class_counts
    assert (strings["temperature"], strings["image_size"]) == ("1.25", "8")
    assert json.loads(strings["network"])["backbone"] == "resnet8"


def test_a_program_runs_on_torch_alone_for_any_number_of_images(files, expected):
    extra = {export.PROGRAM_FILE: ""}
    program = torch.export.load(files / "model.pt2", extra_files=extra).module()
    for count in (1, 5):
        logits = program(IMAGES[:count]).detach().numpy()
        assert logits == pytest.approx(expected[:count], abs=1e-4)
    assert json.loads(extra[export.PROGRAM_FILE])["temperature"] == "1.25"


def test_onnx_runs_on_its_runtime_for_any_number_of_images(model, files, expected):
    import onnxruntime

    session = onnxruntime.InferenceSession(files / "model.onnx")
    for count in (1, 5):
        (logits,) = session.run(["logits"], {"images": IMAGES[:count].numpy()})
        assert logits == pytest.approx(expected[:count], abs=1e-4)
    strings = session.get_modelmeta().custom_metadata_map
    assert json.loads(strings["class_names"]) == model.class_names


@pytest.mark.parametrize("wrong", [lambda logits: logits + 0.1, lambda logits: logits * np.nan])
def test_a_file_that_says_something_else_is_not_written(model, tmp_path, monkeypatch, wrong):
    right = export.load_safetensors

    def load(file):
        run = right(file)
        return lambda images: wrong(run(images))

    monkeypatch.setattr(export, "load_safetensors", load)
    target = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=r"was not written: read back, its logits differ by up to"):
        export.export(model, str(target))
    assert not list(tmp_path.iterdir())


def test_another_suffix_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"^FILE 'm.pth' must end in one of .safetensors, .pt2, "):
        format_of("m.pth")
    lacking = replace(FORMATS[".onnx"], packages=("onnx", "no_such_package"))
    monkeypatch.setitem(FORMATS._entries, ".onnx", lacking)
    message = r"^FILE 'm.onnx' needs no_such_package: pip install 'bcl-ray\[onnx\]'$"
    with pytest.raises(ValueError, match=message):
        format_of("m.onnx")
