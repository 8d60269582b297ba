"""Batches through tasks and actors: order, bounds, and actors that die."""

import contextlib
import os
import threading
import time

import numpy as np
import pytest

from tests.local_ray import local_ray_running

ray = pytest.importorskip("ray")
from bcl_ray.use.predict import labelling  # noqa: E402
from bcl_ray.use.predict.labelling import Labelling  # noqa: E402
from bcl_ray.use.predict.listing import Listing  # noqa: E402
from bcl_ray.use.predict.pool import ActorPool  # noqa: E402

pytestmark = pytest.mark.ray

POOL = ActorPool(2, {"CPU": 0.75}, {"CPU": 0.25}, readers=1)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    with local_ray_running():
        yield


def read(start, stop):
    return {"position": np.arange(start, stop), "error": np.full(stop - start, "")}


def positions(running):
    return [int(n) for block in running.blocks() for n in block["position"]]


def labelled(monkeypatch, actor, counts, *model, first=0):
    monkeypatch.setattr(labelling, "LabellerActor", actor)
    with contextlib.closing(Listing(iter(counts))) as listing:
        options = {"first": first, "batch_size": 4, "read": read, "model": model, "pool": POOL}
        with Labelling(listing, **options) as running:
            return positions(running)


def actor(body):
    """A class of actors that do something before they return each batch."""

    class Actor:
        def load(self, *model):
            self.model = model

        def label(self, batch):
            body(batch, *self.model)
            return batch

    return Actor


def test_batches_come_back_in_order_whichever_is_ready_first(monkeypatch):
    def body(batch):
        time.sleep(0.2 if batch["position"][0] % 16 == 0 else 0)

    assert labelled(monkeypatch, actor(body), [101]) == list(range(101))
    assert labelled(monkeypatch, actor(body), [101], first=96) == list(range(96, 101))


def test_an_actor_that_dies_is_replaced_and_its_batches_are_labelled_again(monkeypatch, tmp_path):
    def body(batch, folder):
        number = int(batch["position"][0])
        if number in (8, 40):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_EXCL))
                os._exit(1)

    assert labelled(monkeypatch, actor(body), [64], str(tmp_path)) == list(range(64))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_batch_that_kills_every_actor_ends_the_work(monkeypatch):
    def body(batch):
        if batch["position"][0] == 8:
            os._exit(1)

    with pytest.raises(ray.exceptions.RayActorError):
        labelled(monkeypatch, actor(body), [64])


def test_an_error_of_a_batch_is_raised_and_not_tried_again(monkeypatch):
    def body(batch):
        raise ValueError("the checkpoint was replaced")

    with pytest.raises(ValueError, match="the checkpoint was replaced"):
        labelled(monkeypatch, actor(body), [64])


def test_images_are_labelled_while_others_are_still_listed(monkeypatch):
    may_list = threading.Event()

    def counts():
        yield 10  # two whole batches; two images wait for the rest of theirs
        may_list.wait(60)
        yield 17

    monkeypatch.setattr(labelling, "LabellerActor", actor(lambda batch: None))
    with contextlib.closing(Listing(counts())) as listing:
        options = {"first": 0, "batch_size": 4, "read": read, "model": (), "pool": POOL}
        with Labelling(listing, **options) as running:
            blocks = running.blocks()
            assert [len(next(blocks)["position"]) for _ in range(2)] == [4, 4]
            may_list.set()
            assert [int(n) for block in blocks for n in block["position"]] == list(range(8, 17))


@pytest.mark.parametrize(
    ("pool", "actors", "cpus", "expected"),
    [
        (POOL, 1, 2, 1),
        (POOL, 2, 2, 2),
        (ActorPool(8, {"CPU": 0.25, "GPU": 1.0}, {"CPU": 1.0}, 16), 8, 96, 94),
        (ActorPool(8, {"CPU": 0.25, "GPU": 1.0}, {"CPU": 1.0}, 16), 8, 960, 128),
        (ActorPool(1, {"CPU": 0.25, "GPU": 1.0}, {"CPU": 1.0}, 16), 1, 1, 1),
    ],
)
def test_no_more_tasks_read_than_actors_need_and_cpus_are_there(pool, actors, cpus, expected):
    assert pool.max_readers(actors, cpus) == expected
