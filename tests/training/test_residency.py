"""Batches from images on a device are those of the stream, bit for bit."""

import functools
import io

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bcl_ray.data.decode import decode
from bcl_ray.data.layout import Layout
from bcl_ray.data.plan import EpochPlan, epoch_plan
from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.data.views import eval_views, resident, train_views
from bcl_ray.data.views.transfer import Sender
from bcl_ray.experiment.options import ViewConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, cifar100_lt, digits_lt
from bcl_ray.method.learner import Learner
from bcl_ray.method.loop import train_epoch
from bcl_ray.ray_runtime.elastic import worker_count
from bcl_ray.runs.budget import budget
from bcl_ray.training import residency, resident_images
from tests.trained import rows_of

CPU = torch.device("cpu")
LAUNCHES = 30  # of a batch's crops, at most


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def noise(images, size, seed=0):
    """Pixels of all values, so that every rounding error shows."""
    return np.random.default_rng(seed).integers(0, 256, (images, size, size, 3), np.uint8)


def on_cpu(pixels):
    count = len(pixels)
    return resident_images.ResidentImages(
        torch.from_numpy(pixels), np.arange(count) % 10, np.arange(count) * 7
    )


def plans_of(experiment, rows):
    options = {"global_batch_size": experiment.optim.global_batch_size, "max_workers": 4}
    seed = experiment.train.seed
    return functools.cache(
        lambda epoch: EpochPlan(Layout((rows,), 50), seed=seed, epoch=epoch, **options)
    )


def epochs_of(experiment, images, *, rank=0, world_size=1, first_step=0):
    feed = object.__new__(residency.ResidentFeed)  # without shards
    feed._experiment, feed._images = experiment, images
    feed._plans = plans_of(experiment, len(images.ids))
    feed._rank, feed._world_size = rank, world_size
    sender = Sender(CPU, experiment.views, experiment.train.seed)
    return feed.training(sender, first_step)


# Crops


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.integers(4, 40),
    st.integers(0, 2**32),
    st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    st.integers(0, 4),
    st.sampled_from([0, 0.5, 1]),
    st.permutations(["resized", "padded"]),
)
def test_crops_on_a_device_are_the_hosts_bit_for_bit(
    size, seed, scale, ratio, padding, flip, kinds
):
    one, other = (
        ViewConfig(crop=crop, scale=scale, ratio=ratio, padding=padding, flip=flip)
        for crop in kinds
    )
    update = {"image_size": size, "eval_resize": size, "classification": one, "contrastive": other}
    config = cifar10_lt().views.model_copy(update=update)
    pixels, rows = noise(6, size, seed), np.array([5, 0, 3, 3, 1])
    drawn = resident.draw_table_crops(rows * 11, config, num_views=3, seed=seed, epoch=2)
    ours = resident.apply_crops(*(torch.from_numpy(array) for array in (pixels, rows, drawn)))
    files = [encoded(pixels[row]) for row in rows]
    theirs = train_views(files, rows * 11, config, num_contrastive=2, seed=seed, epoch=2)
    assert (ours.numpy() == theirs).all()


@pytest.mark.parametrize("size", [5, 32, 33, 64])
def test_every_height_and_width_is_resized_as_opencv_does(size):
    assert resident.is_exact(noise(4, size))


def test_an_opencv_that_resizes_differently_is_refused(monkeypatch):
    """Even if only one value of one pixel differs."""

    def off(*options, **named):
        result = cv2_resize(*options, **named)
        result[-1, -1, 0] ^= 1
        return result

    cv2_resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", off)
    with pytest.raises(resident_images.UnsupportedError, match=r"data\.residency=stream"):
        resident_images.check_crops(on_cpu(noise(4, 8)), cifar100_lt())


def test_bicubic_crops_are_refused_on_a_device():
    bicubic = with_overrides(cifar100_lt(), ["views.interpolation=bicubic"])
    with pytest.raises(resident_images.UnsupportedError, match=r"'bicubic' has no equal on a dev"):
        resident_images.check_crops(on_cpu(noise(4, 8)), bicubic)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [cifar10_lt, cifar100_lt])
def test_batches_of_real_cifar_are_the_hosts_over_epochs(recipe, shared_data):
    table = pq.read_table(shared_data / "cifar100-lt" / "train.parquet").slice(0, 600)
    files = table["image"].to_pylist()
    labels = table["label"].to_numpy().astype(np.int64)
    pixels = np.stack([decode(file) for file in files])
    images = resident_images.ResidentImages(
        torch.from_numpy(pixels), labels, np.arange(600) * 3 + 1
    )
    experiment = with_overrides(recipe(), ["train.epochs=3", "optim.warmup_epochs=1"])
    steps = 0
    for epoch, batches in epochs_of(experiment, images):
        for step, sent in enumerate(batches):
            rows = plans_of(experiment, 600)(epoch).rows(step)
            ids = images.ids[rows]
            options = {"num_contrastive": 2, "seed": 0, "epoch": epoch}
            theirs = train_views([files[row] for row in rows], ids, experiment.views, **options)
            part = {"views": theirs, "labels": labels[rows], "ids": ids}
            expected = Sender(CPU, experiment.views).send_training([part], epoch)
            assert sent.passes == expected.passes
            for name, tensor in expected.tensors.items():
                assert torch.equal(sent.tensors[name], tensor), name
            steps += 1
    assert steps == 3 * 2


def test_a_batch_of_crops_runs_on_a_fake_gpu_in_few_launches_and_reads_nothing_back():
    resident._tables.cache_clear()  # they would be made on the fake device
    views = cifar100_lt().views
    drawn = resident.draw_table_crops(np.arange(16), views, num_views=3, seed=0, epoch=0)
    try:
        with FakeTensorMode(), Launches() as launches:
            images = torch.empty(50, 32, 32, 3, dtype=torch.uint8, device="cuda:0")
            rows = torch.zeros(16, dtype=torch.int64, device="cuda:0")
            crops = torch.empty(drawn.shape, dtype=torch.int64, device="cuda:0")
            resident._tables(32, images.device)
            launches.count = 0
            made = resident.apply_crops(images, rows, crops)
    finally:
        resident._tables.cache_clear()
    assert (made.device, made.dtype) == (torch.device("cuda:0"), torch.uint8)
    assert made.shape == (16, 3, 32, 32, 3)
    assert 0 < launches.count <= LAUNCHES


class Launches(TorchDispatchMode):
    """Counts the kernels that a GPU would launch; views of tensors launch none."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


# Batches


def test_workers_share_a_batch_and_a_resume_goes_on_in_mid_epoch():
    experiment = with_overrides(
        cifar10_lt(),
        ["optim.global_batch_size=8", "train.epochs=2", "optim.warmup_epochs=0"],
    )
    experiment = with_overrides(experiment, ["scale.workers=1"])
    images = on_cpu(noise(70, 32))

    def batches(**options):
        epochs = epochs_of(experiment, images, **options)
        return [(epoch, sent.tensors) for epoch, batches in epochs for sent in batches]

    whole = batches()
    halves = [batches(rank=rank, world_size=2, first_step=11) for rank in range(2)]
    assert [epoch for epoch, _ in whole] == [0] * 8 + [1] * 8
    assert len(halves[0]) == len(halves[1]) == 16 - 11
    for (epoch, tensors), *parts in zip(whole[11:], *halves, strict=True):
        assert {number for number, _ in parts} == {epoch}
        ids = torch.cat([part["ids"] for _, part in parts])
        for name in ("views", "labels", "ids"):  # equal but for their order
            joined = torch.cat([part[name] for _, part in parts])
            assert torch.equal(tensors[name][tensors["ids"].argsort()], joined[ids.argsort()])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return folder


def options_of(digits, *overrides):
    return with_overrides(digits_lt(), [f"data.path={digits}", "train.epochs=2", *overrides])


def test_evaluation_has_every_image_once_in_the_streams_order_and_batches(digits):
    experiment, manifest = options_of(digits), read_manifest(digits)
    ids = []
    for rank in range(3):
        options = {"rank": rank, "world_size": 3}
        opened = residency.ResidentFeed(experiment, manifest, CPU, **options)
        first, again = list(opened.evaluation()), list(opened.evaluation())
        assert [len(sent.host["ids"]) for sent in first] == [len(s.host["ids"]) for s in again]
        for sent in first:
            assert (sent.tensors["ids"].numpy() == sent.host["ids"]).all()
            assert (sent.tensors["labels"].numpy() == sent.host["labels"]).all()
            assert sent.tensors["views"].shape[1:] == (1, 8, 8, 3)
        ids += [sent.host["ids"] for sent in first]
    table = rows_of(digits, "test")
    assert (np.concatenate(ids) == table["id"].to_numpy()).all()
    opened = residency.ResidentFeed(experiment, manifest, CPU)
    views = torch.cat([sent.tensors["views"] for sent in opened.evaluation()])
    assert (views.numpy() == eval_views(table["image"].to_pylist(), experiment.views)).all()


def test_training_from_shards_is_training_from_the_hosts_views(digits):
    experiment, manifest = options_of(digits, "train.epochs=1"), read_manifest(digits)
    counts = np.array(manifest.splits["train"].class_counts)
    plan = epoch_plan(experiment, manifest, 0)
    ours, theirs = (Learner(experiment, counts, plan.steps, CPU) for _ in range(2))
    opened = residency.ResidentFeed(experiment, manifest, CPU)
    for epoch, batches in opened.training(ours.sender, 0):
        for _ in train_epoch(ours, batches, epoch=epoch):
            pass
    for _ in train_epoch(theirs, hosts_batches(experiment, plan), epoch=0):
        pass
    assert ours.step == theirs.step == plan.steps
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, theirs.model.state_dict()[name]), name


def hosts_batches(experiment, plan):
    table = rows_of(experiment.data.path, "train")
    for step in range(plan.steps):
        some = table.take(plan.rows(step))
        ids, labels = some["id"].to_numpy(), some["label"].to_numpy().astype(np.int64)
        options = {"num_contrastive": 2, "seed": 0, "epoch": 0}
        views = train_views(some["image"].to_pylist(), ids, experiment.views, **options)
        yield {"views": views, "labels": labels, "ids": ids}


# What a device cannot hold


def test_crops_of_images_of_another_size_are_refused_before_anything_starts(digits):
    overrides = ["views.image_size=6", "views.eval_resize=6", "data.residency=device"]
    padded = options_of(digits, *overrides)
    manifest = read_manifest(digits)
    resident_images.check_residency(padded, manifest)
    resized = with_overrides(padded, ["views.contrastive.crop=resized"])
    with pytest.raises(
        resident_images.UnsupportedError,
        match=r"id \d+ has 8 x 8 pixels.*views\.contrastive\.crop 'resized'.*views\.image_size "
        r"\(6 x 6\).*data\.residency=stream",
    ):
        resident_images.check_residency(resized, manifest)
    resident_images.check_residency(with_overrides(resized, ["data.residency=stream"]), manifest)
    resident_images.check_residency(with_overrides(resized, ["loss.kind=ce"]), manifest)


def test_padded_crops_are_the_hosts_for_images_of_any_size(digits):
    experiment = options_of(digits, "views.image_size=6", "views.eval_resize=7")
    manifest = read_manifest(digits)
    plan = epoch_plan(experiment, manifest, 0)
    opened = residency.ResidentFeed(experiment, manifest, CPU)
    sender = Sender(CPU, experiment.views, experiment.train.seed)
    [(_, batches), *_] = ((e, list(b)) for e, b in opened.training(sender, 0))
    for sent, part in zip(batches, hosts_batches(experiment, plan), strict=True):
        assert (sent.tensors["views"].numpy() == part["views"]).all()


def test_images_on_a_device_need_no_cpus_for_data_tasks(digits):
    manifest = read_manifest(digits)
    resident_run = options_of(digits, "data.residency=device", "scale.cpus_per_worker=1")
    streamed_run = with_overrides(resident_run, ["data.residency=stream"])
    two, needs = [{"CPU": 2.0}], {"CPU": 1.0}
    assert worker_count(resident_run, two, needs) == 2
    assert worker_count(streamed_run, two, needs) == 0
    run_budget = budget(resident_run, manifest, 2)
    rows = sum(manifest.splits[name].rows for name in ("train", "test"))
    assert (run_budget.data_cpus, run_budget.store_bytes) == (0, 0)
    assert run_budget.resident_bytes == 3 * 8 * 8 * (rows - 360 // 2)
    with pytest.raises(ValueError, match="CPUs for data"):
        budget(streamed_run, manifest, 2)
