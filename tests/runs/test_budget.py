import re

import pytest

from bcl_ray.data.plan import epoch_plan
from bcl_ray.data.shards import Manifest, ProfileInfo, ShardInfo, Split, read_manifest
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, imagenet_lt
from bcl_ray.runs.budget import Budget, budget, check_store, this_machine


def split_of(*shard_rows: int, row_group_rows: int = 48) -> Split:
    shards = tuple(
        ShardInfo(file=f"part-{i}.parquet", rows=rows, bytes=3000 * rows, sha256="0" * 64)
        for i, rows in enumerate(shard_rows)
    )
    return Split(
        rows=sum(shard_rows),
        class_counts=(sum(shard_rows),),
        row_group_rows=row_group_rows,
        shards=shards,
    )


def manifest_of(**splits: Split) -> Manifest:
    return Manifest(
        format_version=1,
        class_names=("thing",),
        splits=splits,
        source="fake",
        profile=ProfileInfo(name="natural", imbalance_factor=None, max_per_class=None, seed=0),
        fingerprint="0" * 64,
    )


CIFAR = manifest_of(train=split_of(6203, 6203), test=split_of(10_000))


def budget_of(*overrides: str, cpus: float | None = None, manifest: Manifest = CIFAR) -> Budget:
    return budget(with_overrides(cifar10_lt(), overrides), manifest, cpus)


def test_a_cifar_run_in_numbers():
    """12,406 images in batches of 256, three views of 32 x 32 pixels, by hand.

    An epoch of 48 steps is one window. Two of them and six tasks would be more than two epochs.
    """
    assert budget_of("scale.workers=2", cpus=8) == Budget(
        steps_per_epoch=48,
        steps=48 * 200,
        images_per_epoch=12_288,
        left_out=118,
        eval_images=10_000,
        bytes_per_epoch=3000 * 12_406,
        batch_bytes=128 * 3 * 3072,
        plan=2,
        mixing="images of a row group (48) never meet in a batch",
        worker_cpus=2.0,
        data_cpus=6.0,
        store_bytes=3 * 3072 * (2 * 12_406 + 4 * 256),
        readers=1,
        reads_per_epoch=2 * 130,
    )


@pytest.mark.parametrize(
    ("overrides", "readers"),
    [([], 1), (["optim.global_batch_size=720"], 4), (["optim.global_batch_size=4096"], 17)],
)
def test_row_groups_are_read_by_as_many_workers_as_an_epoch_is_short_of_steps(overrides, readers):
    needs = budget_of(*overrides)
    assert (needs.readers, needs.reads_per_epoch) == (readers, 260 * readers)


@pytest.mark.parametrize("override", ["loss.kind=ce", "loss.contrastive_weight=0"])
def test_views_that_no_loss_contrasts_cost_nothing(override):
    one_view = budget_of(override)
    assert (one_view.batch_bytes, budget_of().batch_bytes) == (256 * 3072, 256 * 3 * 3072)


TASKS_ROWS = 3 * (2**25 // (3 * 3072))  # of three tasks for two CPUs, of 32 MiB each


def test_the_store_holds_two_windows_running_tasks_and_batches_ahead():
    """48 steps and row groups of 10 are four windows of 12 steps."""
    small_groups = manifest_of(train=split_of(12_406, row_group_rows=10), test=split_of(10))
    needs = budget_of("scale.data_cpus=2", manifest=small_groups).store_bytes
    assert needs == 3 * 3072 * (2 * 256 * 12 + TASKS_ROWS + 4 * 256)


def test_the_store_of_plan_1_holds_a_row_group_of_each_lane():
    needs = budget_of("data.plan=1", "scale.data_cpus=2").store_bytes
    assert needs == 3 * 3072 * (16 * 48 + TASKS_ROWS + 4 * 256)


def test_data_tasks_that_fit_exactly_are_not_one_fewer_for_an_error_of_rounding():
    assert int(0.3 / 0.1) == 2
    options = ("data.plan=1", "scale.data_cpus=0.3", "scale.cpus_per_data_task=0.1")
    assert budget_of(*options).store_bytes == 3 * 3072 * (16 * 48 + TASKS_ROWS + 4 * 256)


def test_no_more_than_two_epochs_of_images_are_in_flight():
    small = manifest_of(train=split_of(300), test=split_of(10))
    assert budget_of(manifest=small).store_bytes == 3 * 3072 * (600 + 4 * 256)


def test_more_workers_need_smaller_batches_and_the_same_store():
    one, four = (budget_of(f"scale.workers={n}", "scale.data_cpus=2") for n in (1, 4))
    assert four.batch_bytes * 4 == one.batch_bytes
    assert four.store_bytes == one.store_bytes


@pytest.mark.parametrize(
    ("overrides", "cpus", "left"),
    [
        (["scale.workers=2"], 4.0, 2.0),
        (["scale.workers=2", "scale.data_cpus=1.5"], 4.0, 1.5),
        (["scale.workers=2", "scale.data_cpus=1.5"], None, 1.5),
        (["scale.workers=2"], None, None),
    ],
)
def test_data_get_the_cpus_of_the_option_or_all_that_workers_leave(overrides, cpus, left):
    assert budget_of(*overrides, cpus=cpus).data_cpus == left


@pytest.mark.parametrize(
    ("overrides", "cpus", "message"),
    [
        (
            ["scale.workers=2"],
            2.0,
            "scale.workers (2) x scale.cpus_per_worker (1) leave 0 of 2 CPUs for data, which "
            "needs 0.66: lower one of them, or scale.data_cpus and scale.cpus_per_data_task",
        ),
        (
            ["scale.workers=2", "scale.cpus_per_worker=0.5", "scale.data_cpus=1.5"],
            2.0,
            "scale.workers (2) x scale.cpus_per_worker (0.5) leave 1 of 2 CPUs for data, which "
            "needs 1.5",
        ),
        (
            ["scale.workers=4"],
            2.0,
            "scale.workers (4) x scale.cpus_per_worker (1) leave 0 of 2 CPUs for data",
        ),
    ],
)
def test_a_run_without_a_cpu_for_data_is_refused(overrides, cpus, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        budget_of(*overrides, cpus=cpus)


def test_a_batch_that_the_workers_cannot_share_is_refused():
    message = "optim.global_batch_size (256) must be divisible by scale.workers (3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        budget_of("scale.workers=3")


def test_too_few_rows_for_a_batch_are_refused():
    few = manifest_of(train=split_of(255), test=split_of(10))
    message = "optim.global_batch_size (256) is more than the training split has rows (255)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        budget_of(manifest=few)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("data.train_split", "choose one of these"),
        ("data.eval_split", "use data.eval_split=test"),
        ("data.validation_split", "`bcl-ray shards hold-out` cuts one, and null is for none"),
    ],
)
def test_an_unknown_split_is_refused_with_the_remedy(option, remedy):
    message = f"{option} is 'val', which the data set does not have: it has train, test; {remedy}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        budget_of(f"{option}=val")


def test_a_folder_without_manifest_is_refused(tmp_path):
    message = f"{tmp_path} holds no manifest.json, so it is not a data set; write one with"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_manifest(str(tmp_path))


TESTED = "data.validation_split=null"
IMAGENET = manifest_of(
    train=split_of(115_846, row_group_rows=38), test=split_of(50_000, row_group_rows=38)
)


def test_batches_in_flight_that_overflow_the_store_are_refused():
    """ImageNet-LT: two windows of 42 steps, 4 tasks of 74 rows, 4 batches of 256, 3 x 224 x 224."""
    needs = budget(with_overrides(imagenet_lt(), [TESTED]), IMAGENET, None)
    assert needs.store_bytes == 451_584 * (2 * 256 * 42 + 4 * 74 + 4 * 256)
    check_store(needs, needs.store_bytes)
    message = (
        "batches in flight need 9.6 GiB of object store, the cluster has 8.0 GiB: lower "
        "scale.prefetch_batches, views.image_size or optim.global_batch_size (smaller windows), "
        "or set data.plan=1, which mixes less"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_store(needs, 2**33)
    old = budget(with_overrides(imagenet_lt(), [TESTED, "data.plan=1"]), IMAGENET, None)
    with pytest.raises(ValueError, match=r"lower scale.prefetch_batches, views.image_size or data"):
        check_store(old, 2**28)


@pytest.mark.parametrize(
    ("before", "remedy"),
    [
        ("scale.prefetch_batches=4", "scale.prefetch_batches=1"),
        ("views.image_size=224", "views.image_size=112"),
        ("data.plan=2", "optim.global_batch_size=128"),
        ("data.plan=2", "data.plan=1"),
        ("data.plan=1", "data.max_workers=8"),
    ],
)
def test_the_remedies_for_a_full_store_work(before, remedy):
    def needs(*overrides: str) -> int:
        return budget(
            with_overrides(imagenet_lt(), [TESTED, *overrides]), IMAGENET, None
        ).store_bytes

    assert needs(before, remedy) < needs(before)


@pytest.mark.parametrize(
    ("overrides", "group", "mixing"),
    [
        ([], 48, "images of a row group (48) never meet in a batch"),
        (
            ["data.plan=1"],
            48,
            "images of a row group (48) meet in batches, as they do in data.plan=1",
        ),
        (
            ["optim.global_batch_size=720", "scale.workers=16"],
            48,
            "an epoch has fewer steps (17) than a row group has images (48): up to 4 workers "
            "read each row group; on fewer workers its images meet, as often as by chance; "
            "better: optim.global_batch_size=256",
        ),
        (
            ["scale.workers=[2,16]"],
            193,
            "an epoch has fewer steps (48) than a row group has images (193): up to 5 workers "
            "read each row group; on fewer workers its images meet, as often as by chance; "
            "better: optim.global_batch_size=64 or shards that are written again (row groups of "
            "48)",
        ),
        (
            ["optim.global_batch_size=4096", "scale.workers=1024"],
            48,
            "an epoch has fewer steps (3) than a row group has images (48): up to 17 workers "
            "read each row group; on fewer workers its images meet, as often as by chance; "
            "better: fewer workers",
        ),
    ],
)
def test_a_batch_that_mixes_at_a_price_is_named_with_the_nearest_that_does_not(
    overrides, group, mixing
):
    data = manifest_of(train=split_of(6203, 6203, row_group_rows=group), test=split_of(10))
    assert budget_of(*overrides, manifest=data).mixing == mixing


@pytest.mark.parametrize(("batch", "steps"), [(256, 48), (258, 48), (259, 47)])
def test_the_largest_batch_that_mixes_freely_is_the_one_that_is_named(batch, steps):
    needs = budget_of(f"optim.global_batch_size={batch}")
    assert needs.steps_per_epoch == steps
    assert ("better: optim.global_batch_size=258" in needs.mixing) == (batch > 258)


def test_the_plan_follows_from_the_options_and_the_manifest():
    plan = epoch_plan(with_overrides(cifar10_lt(), ["train.seed=3"]), CIFAR, epoch=5)
    assert (plan.steps, plan.num_lanes) == (48, 256)
    assert plan.layout.shard_rows.tolist() == [6203, 6203]
    again = epoch_plan(with_overrides(cifar10_lt(), ["train.seed=3"]), CIFAR, epoch=5)
    other = epoch_plan(cifar10_lt(), CIFAR, epoch=5)
    assert plan.rows(7).tolist() == again.rows(7).tolist() != other.rows(7).tolist()


def test_this_machine_has_cpus_and_memory():
    cpus, store = this_machine()
    assert cpus >= 1
    assert store > 2**26
