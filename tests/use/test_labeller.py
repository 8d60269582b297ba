"""Batches of views through a network, without Ray."""

import numpy as np
import pytest
import torch

from bcl_ray.data.views.device import normalise
from bcl_ray.data.views.host import eval_views
from bcl_ray.runs import checkpoint
from bcl_ray.use.models import open_checkpoint
from bcl_ray.use.predict.labeller import Labeller
from tests.trained import rows_of

SIZE = 24


@pytest.fixture(scope="module")
def model(trained):
    return open_checkpoint(trained.checkpoint, "first")


@pytest.fixture(scope="module")
def views(trained, model):
    images = rows_of(trained.shards, "test")["image"].to_pylist()[:SIZE]
    return eval_views(images, model.experiment.views)


def labeller(model, **options) -> Labeller:
    return Labeller(model.uri, model.sha256, **{"top": 10, "embeddings": False, **options})


def batch(views, unreadable=()) -> dict[str, np.ndarray]:
    error = np.array(["broken" if row in unreadable else "" for row in range(len(views))])
    return {"id": np.arange(len(views)), "views": views, "error": error}


def test_probabilities_are_the_softmax_of_calibrated_logits_the_likeliest_first(model, views):
    columns = labeller(model)(batch(views))
    with torch.no_grad():
        images = normalise(torch.from_numpy(views), model.experiment.views)[0]
        network = model.network(torch.device("cpu"))
        expected = (network.classifier(network.embed(images)) / 1.25).softmax(1)
    order = expected.argsort(dim=1, descending=True)
    assert columns["classes"].tolist() == order.tolist()
    assert columns["probabilities"] == pytest.approx(expected.gather(1, order).numpy(), abs=1e-6)
    assert columns["probabilities"].sum(1) == pytest.approx(1, abs=1e-5)
    assert columns["id"].tolist() == list(range(SIZE))
    assert "views" not in columns


def test_fewer_classes_are_the_first_of_all(model, views):
    whole, few = labeller(model)(batch(views)), labeller(model, top=3)(batch(views))
    assert (few["classes"] == whole["classes"][:, :3]).all()


def test_embeddings_are_the_backbones(model, views):
    columns = labeller(model, embeddings=True)(batch(views))
    with torch.no_grad():
        images = normalise(torch.from_numpy(views), model.experiment.views)[0]
        expected = model.network(torch.device("cpu")).embed(images)
    assert columns["embedding"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_an_unreadable_image_is_left_out_and_changes_no_other(model, views):
    columns = labeller(model, embeddings=True)(batch(views, unreadable=(0, 5)))
    readable = [row for row in range(SIZE) if row not in (0, 5)]
    alone = labeller(model, embeddings=True)(batch(views[readable]))
    for name in ("classes", "probabilities", "embedding"):
        assert (columns[name][readable] == alone[name]).all(), name
        assert not columns[name][[0, 5]].any(), name


def test_a_batch_of_nothing_but_unreadable_images_passes(model, views):
    columns = labeller(model, embeddings=True)(batch(views[:2], unreadable=(0, 1)))
    assert columns["classes"].shape == (2, 10)
    assert columns["embedding"].shape == (2, 64)


def test_a_checkpoint_that_was_replaced_is_refused(model, tmp_path):
    checkpoint.save(model.state, tmp_path)
    with pytest.raises(ValueError, match=r"was replaced since this began: begin again in another"):
        Labeller(str(tmp_path), "0" * 64, top=1, embeddings=False)
