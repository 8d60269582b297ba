"""`load_model` returns a plain module with the same predictions as an evaluation."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import bcl_ray
from bcl_ray.use.models import open_model


@pytest.fixture(scope="module")
def model(trained):
    return bcl_ray.load_model("first", runs=trained.root)


@pytest.fixture(scope="module")
def pictures():
    """Ten digits as PIL images, and their labels."""
    bunch = load_digits()
    arrays = np.rint(bunch.images[:10] * 255 / 16).astype(np.uint8)
    return [Image.fromarray(array) for array in arrays], bunch.target[:10]


def test_it_labels_pictures_of_any_kind_alike(model, pictures):
    images, labels = pictures
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    found = [model.label(kind, top=3) for kind in (images, encoded, arrays, np.stack(arrays))]
    assert found[0] == found[1] == found[2] == found[3]
    names = [best[0][0] for best in found[0]]
    assert np.mean([name == str(label) for name, label in zip(names, labels, strict=True)]) >= 0.8
    assert all(0 <= p <= 1 for best in found[0] for _, p in best)
    assert all(best[0][1] >= best[1][1] >= best[2][1] for best in found[0])


def test_no_more_classes_are_named_than_there_are(model, pictures):
    named = model.label(pictures[0], top=20)
    assert {len(best) for best in named} == {10}
    assert [best[:3] for best in named] == model.label(pictures[0], top=3)


def test_of_no_pictures_there_are_no_labels(model):
    assert model.label([]) == []


def test_logits_and_embeddings_are_those_of_the_network(model, trained, pictures):
    images = model.prepare(pictures[0])
    assert images.shape == (10, 3, 8, 8)
    network = open_model("first", trained.root).network(torch.device("cpu"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.views.mean, model.views.std))
    with torch.no_grad():
        normalised = (images - mean) / std
        torch.testing.assert_close(model(images), network.classifier(network.embed(normalised)))
        torch.testing.assert_close(model.embed(images), network.embed(normalised))
        probabilities = model.probabilities(images)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(10))
    expected = (model(images) / 1.25).softmax(1)  # the run's temperature
    torch.testing.assert_close(probabilities, expected.detach())
    assert model.class_names == [str(k) for k in range(10)]


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)]
)
def test_what_is_no_image_is_refused(model, wrong):
    with pytest.raises(ValueError, match="an image must be a PIL image, encoded bytes, or uint8"):
        model.prepare([wrong])


def test_an_unknown_model_is_refused(trained):
    with pytest.raises(ValueError, match="'second' is no model"):
        bcl_ray.load_model("second", runs=trained.root)
