"""Properties of the epoch plan over random layouts, and how well its batches are mixed."""

import hashlib
import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcl_ray.data.layout import Layout, evaluation_reads
from bcl_ray.data.plan import EpochPlan

MAX_WORKERS = 16
VERSIONS = (1, 2)


def layout_of(shard_rows, row_group_rows: int) -> Layout:
    return Layout(np.array(shard_rows, np.int64), row_group_rows)


layouts = st.builds(
    layout_of,
    st.lists(st.integers(0, 60), min_size=1, max_size=8),
    st.integers(1, 25),
)


@st.composite
def plans(draw, versions=VERSIONS) -> EpochPlan:
    layout = draw(layouts)
    assume(layout.rows > 0)
    batch = draw(
        st.sampled_from([b for b in (1, 2, 3, 6, 8, 12, 16, 24, 32, 48) if b <= layout.rows])
    )
    return plan_of(
        layout,
        batch,
        draw(st.integers(0, 2**32)),
        draw(st.integers(0, 500)),
        draw(st.sampled_from(versions)),
    )


def plan_of(
    layout: Layout, batch: int = 32, seed: int = 0, epoch: int = 0, version: int = 2
) -> EpochPlan:
    return EpochPlan(
        layout,
        seed=seed,
        epoch=epoch,
        global_batch_size=batch,
        max_workers=MAX_WORKERS,
        version=version,
    )


def group_rows(plan: EpochPlan, read) -> np.ndarray:
    """Positions in the split of what a read reads: slow, from the definition of a layout."""
    layout = plan.layout
    return sum(layout.shard_rows[: read.shard]) + read.row_group * layout.row_group_rows + read.rows


def rows_of(parts: list[dict[str, np.ndarray]]) -> list[int]:
    """The positions of a batch in pieces."""
    return np.concatenate([part["rows"] for part in parts]).tolist()


def worker_batches(
    plan: EpochPlan, rank: int = 0, workers: int = 1, first_step: int = 0, *, ramp: bool = False
) -> list:
    """A worker's batches as lists of positions, through the blocks that its reads become."""
    reads = plan.reads(rank, workers, first_step, ramp=ramp)
    blocks = ({"rows": group_rows(plan, read)} for read in reads)
    return [rows_of(parts) for parts in plan.batches(blocks, rank, workers, first_step, ramp=ramp)]


def batch_size(plan: EpochPlan) -> int:
    return plan.num_lanes * plan.rows_per_lane_and_step


def allowed_workers(plan: EpochPlan) -> list[int]:
    return [n for n in range(1, MAX_WORKERS + 1) if batch_size(plan) % n == 0]


@settings(deadline=None, max_examples=80)
@given(plan=plans())
def test_every_row_comes_once_but_for_an_incomplete_last_batch(plan):
    batches = worker_batches(plan)
    rows = list(itertools.chain(*batches))
    batch = batch_size(plan)
    assert len(batches) == plan.steps == plan.layout.rows // batch
    assert len(rows) == len(set(rows)) == plan.steps * batch
    assert set(rows) <= set(range(plan.layout.rows))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(plan=plans())
def test_every_number_of_workers_makes_the_same_global_batches(plan):
    whole = worker_batches(plan)
    for workers in allowed_workers(plan):
        parts = [worker_batches(plan, rank, workers) for rank in range(workers)]
        sizes = {len(part) for batches in parts for part in batches}
        assert sizes == {len(whole[0]) // workers}
        assert [len(batches) for batches in parts] == [plan.steps] * workers
        batches = [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]
        assert [sorted(batch) for batch in batches] == [sorted(batch) for batch in whole]


@settings(deadline=None, max_examples=50)
@given(plan=plans(), data=st.data())
def test_rows_of_a_step_are_its_global_batch(plan, data):
    step = data.draw(st.integers(0, plan.steps - 1))
    assert plan.rows(step).tolist() == worker_batches(plan)[step]


@settings(deadline=None, max_examples=50)
@given(plan=plans(), data=st.data())
def test_resuming_at_a_step_goes_on_as_if_undisturbed(plan, data):
    first = data.draw(st.integers(0, plan.steps))
    workers = data.draw(st.sampled_from(allowed_workers(plan)))
    rank, ramp = data.draw(st.integers(0, workers - 1)), data.draw(st.booleans())
    resumed = worker_batches(plan, rank, workers, first, ramp=ramp)
    assert resumed == worker_batches(plan, rank, workers)[first:]


@settings(deadline=None, max_examples=50)
@given(plan=plans(), data=st.data())
def test_resuming_reads_no_row_that_was_used_before(plan, data):
    first, ramp = data.draw(st.integers(0, plan.steps)), data.draw(st.booleans())
    read = sum(len(read.rows) for read in plan.reads(first_step=first, ramp=ramp))
    assert read == (plan.steps - first) * batch_size(plan)


@settings(deadline=None, max_examples=50)
@given(plan=plans(versions=(1,)), data=st.data())
def test_a_row_group_is_read_in_one_piece_but_where_lanes_begin(plan, data):
    """At most lanes - 1 row groups are cut in two, so at most lanes - 1 are read by two workers."""
    row_groups = int(plan.layout.first_groups[-1])
    workers = data.draw(st.sampled_from(allowed_workers(plan)))
    reads = [read for rank in range(workers) for read in plan.reads(rank, workers)]
    assert len(reads) <= row_groups + plan.num_lanes - 1


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(plan=plans(versions=(2,)), data=st.data())
def test_a_row_group_is_read_again_only_where_workers_or_windows_meet_in_it(plan, data):
    row_groups, group = int(plan.layout.first_groups[-1]), plan.layout.row_group_rows
    assume(plan.steps >= group)
    workers = data.draw(st.sampled_from(allowed_workers(plan)))
    reads = [read for rank in range(workers) for read in plan.reads(rank, workers)]
    assert len(reads) <= row_groups + workers * (plan.steps // group) - 1


@settings(deadline=None, max_examples=50)
@given(plan=plans(), ramp=st.booleans())
def test_reads_come_in_the_order_of_need_and_hold_rows_of_their_group(plan, ramp):
    reads = list(plan._cut.reads(range(plan.num_lanes), 0, ramp=ramp))
    order = [(one.read.step, one.shares[0][0]) for one in reads]
    assert order == sorted(order)
    for read, _ in reads:
        size = plan.layout.shard_rows[read.shard] - read.row_group * plan.layout.row_group_rows
        assert 0 < len(read.rows) <= min(size, plan.layout.row_group_rows)
        assert read.rows.min() >= 0
        assert read.rows.max() < min(size, plan.layout.row_group_rows)


@settings(deadline=None, max_examples=50)
@given(plan=plans(versions=(2,)))
def test_the_first_batch_waits_for_its_own_rows_and_the_second_for_four_batches(plan):
    reads = list(plan.reads(ramp=True))
    rows = [sum(len(read.rows) for read in reads if read.step == step) for step in (0, 1)]
    assert rows[0] == batch_size(plan)
    assert rows[1] <= 4 * batch_size(plan)


@pytest.mark.parametrize("version", VERSIONS)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_no_more_rows_are_open_than_the_plan_says(version, data):
    """Version 2 counts two windows, because the next one is read while one is used."""
    plan = data.draw(plans(versions=(version,)))
    workers = data.draw(st.sampled_from(allowed_workers(plan)))
    read_before = [0] * plan.steps
    for rank in range(workers):
        for read in plan.reads(rank, workers):
            read_before[read.step] += len(read.rows)
    batch = batch_size(plan)
    used = batch * np.arange(plan.steps)
    peak = (np.cumsum(read_before) - used).max()
    assert peak <= {1: plan.open_rows + batch, 2: plan.open_rows // 2}[version]


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(plan=plans())
def test_batches_take_one_block_per_read_so_that_epochs_share_a_stream(plan):
    stream = iter([{"rows": group_rows(plan, read)} for read in plan.reads()] * 2)
    first, second = ([rows_of(parts) for parts in plan.batches(stream)] for _ in range(2))
    assert first == second == worker_batches(plan)
    assert next(stream, None) is None


def evaluation_by_definition(layout: Layout, rank: int, workers: int) -> list[tuple[int, ...]]:
    """Shard, row group and rows of each read: a row group belongs to the owner of its middle."""
    reads, first = [], 0
    for shard, rows in enumerate(layout.shard_rows.tolist()):
        for row_group in range(-(-rows // layout.row_group_rows)):
            size = min(layout.row_group_rows, rows - row_group * layout.row_group_rows)
            owner = min((first + size / 2) * workers // layout.rows, workers - 1)
            if owner == rank:
                reads.append((shard, row_group, *range(size)))
            first += size
    return reads


@settings(deadline=None, max_examples=100)
@given(layout=layouts, workers=st.integers(1, 16))
def test_evaluation_reads_every_row_once_over_all_workers(layout, workers):
    rows = []
    for rank in range(workers):
        reads = list(evaluation_reads(layout, rank, workers))
        assert [(r.shard, r.row_group, *r.rows) for r in reads] == evaluation_by_definition(
            layout, rank, workers
        )
        assert [read.step for read in reads] == list(range(len(reads)))
        for read in reads:
            begin = sum(layout.shard_rows[: read.shard]) + read.row_group * layout.row_group_rows
            rows += (begin + read.rows).tolist()
    assert rows == list(range(layout.rows))


def test_evaluation_is_shared_evenly():
    layout = layout_of([1000] * 10, 10)
    shares = [sum(len(r.rows) for r in evaluation_reads(layout, rank, 16)) for rank in range(16)]
    assert max(shares) - min(shares) <= 10


LAYOUT = layout_of((200, 200, 199), 25)


def test_each_epoch_has_an_order_of_its_own():
    batches = [worker_batches(plan_of(LAYOUT, epoch=epoch)) for epoch in range(4)]
    for first, second in itertools.combinations(batches, 2):
        assert first != second
        assert {frozenset(batch) for batch in first}.isdisjoint(map(frozenset, second))


def test_an_order_depends_on_seed_and_epoch_only():
    assert worker_batches(plan_of(LAYOUT, epoch=3)) == worker_batches(plan_of(LAYOUT, epoch=3))
    assert worker_batches(plan_of(LAYOUT, seed=1)) != worker_batches(plan_of(LAYOUT, seed=0))
    # A seed and an epoch are two numbers: (1, 0) is not (0, 1).
    first, second = plan_of(LAYOUT, seed=1, epoch=0), plan_of(LAYOUT, seed=0, epoch=1)
    assert worker_batches(first) != worker_batches(second)


def test_other_rows_are_left_out_each_epoch():
    layout = layout_of((40, 40, 39), 5)
    everything = set(range(layout.rows))
    left = [
        everything - set(itertools.chain(*worker_batches(plan_of(layout, epoch=epoch))))
        for epoch in range(80)
    ]
    assert {len(rows) for rows in left} == {layout.rows % 32}
    assert set.union(*left) == everything


def test_rows_of_a_row_group_are_shuffled_anew_each_epoch():
    layout = layout_of((64,), 64)
    orders = [list(itertools.chain(*worker_batches(plan_of(layout, epoch=e)))) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert tuple(range(64)) not in {tuple(order) for order in orders}


@pytest.mark.parametrize(
    ("batch", "lanes"),
    [(1, 1), (2, 2), (12, 12), (30, 30), (32, 16), (256, 16), (250, 10), (34, 2)],
)
def test_lanes_of_version_1_are_the_fewest_that_all_allowed_workers_divide(batch, lanes):
    assert plan_of(layout_of([256], 8), batch, version=1).num_lanes == lanes


def test_fewer_rows_than_a_batch_are_refused():
    message = (
        "optim.global_batch_size (32) is more than the training split has rows (31): an epoch "
        "would have no step; lower it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_of(layout_of((31,), 8))


@pytest.mark.parametrize(
    ("version", "lanes", "rank", "workers"),
    [(1, 16, 0, 3), (1, 16, 0, 32), (1, 16, 2, 2), (2, 32, -1, 2), (2, 32, 0, 3), (2, 32, 0, 64)],
)
def test_workers_that_cannot_share_the_lanes_are_refused(version, lanes, rank, workers):
    message = f"worker {rank} of {workers} has no share of {lanes} lanes: scale.workers must divide"
    plan = plan_of(LAYOUT, version=version)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        next(plan.reads(rank, workers))


# Reads and batches of version 1, as of the commit before there was a version 2 (557c235).
@pytest.mark.parametrize(
    ("shards", "group", "seed", "epoch", "batch", "workers", "first_step", "digest"),
    [
        ([200, 200, 199], 25, 3, 0, 32, 1, 0, "f0769b13f827387f"),
        ([200, 200, 199], 25, 3, 0, 32, 4, 5, "d230260c73695f26"),
        ([1551] * 6 + [1550] * 2, 193, 0, 7, 256, 8, 0, "cdfc8ec316e8dace"),
        ([1220] * 30, 76, 1, 1, 720, 1, 0, "fadf27574a193d7c"),
    ],
)
def test_version_1_stays_what_it_was(
    shards, group, seed, epoch, batch, workers, first_step, digest
):
    plan = plan_of(layout_of(shards, group), batch, seed, epoch, version=1)
    found = hashlib.sha256()
    for rank in range(workers):
        for read, shares in plan._cut.reads(plan._lanes_of(rank, workers), first_step, ramp=False):
            numbers = (read.step, shares[0][0], read.shard, read.row_group, *read.rows)
            found.update(np.array(numbers, np.int64).tobytes())
        for batch_rows in worker_batches(plan, rank, workers, first_step):
            found.update(np.array(batch_rows, np.int64).tobytes())
    assert found.hexdigest()[:16] == digest


# How well batches are mixed. CIFAR-10-LT at imbalance factor 100: 12,406 rows in row groups of
# 193 (version 1) or of 48, as today's shards have, shuffled when they are written; B = 256.
COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), COUNTS))
GROUP_ROWS = {1: 193, 2: 48}
SEEDS = 12


def shards_of(number: int, version: int) -> Layout:
    return layout_of([len(part) for part in np.array_split(LABELS, number)], GROUP_ROWS[version])


def distance(values: np.ndarray, batches: np.ndarray) -> float:
    """Mean total variation between the histogram of each batch and that of everything."""
    everything = np.bincount(values) / len(values)
    parts = [
        np.bincount(values[batch], minlength=len(everything)) / len(batch) for batch in batches
    ]
    return float(np.abs(np.array(parts) - everything).sum(axis=1).mean() / 2)


def against_a_perfect_shuffle(values: np.ndarray, layout: Layout, version: int) -> float:
    """The distance of the plan's batches, divided by that of uniformly random batches."""
    ours, perfect = [], []
    for seed in range(SEEDS):
        plan = plan_of(layout, batch=256, seed=seed, version=version)
        ours.append(distance(values, np.array(worker_batches(plan))))
        rows = np.random.default_rng(seed).permutation(layout.rows)[: plan.steps * 256]
        perfect.append(distance(values, rows.reshape(plan.steps, 256)))
    return float(np.mean(ours) / np.mean(perfect))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shards", [1, 8, 64])
def test_classes_are_mixed_as_by_a_perfect_shuffle(shards, version):
    """Measured: 1.00 to 1.02 times the distance of uniformly random batches."""
    ratio = against_a_perfect_shuffle(LABELS, shards_of(shards, version), version)
    assert 0.95 < ratio < 1.05


@pytest.mark.parametrize(
    ("shards", "version", "measured"), [(8, 1, 3.15), (64, 1, 3.81), (8, 2, 0.10), (64, 2, 0.05)]
)
def test_shards_are_mixed_within_four_times_of_a_perfect_shuffle(shards, version, measured):
    """In version 1 a batch comes from about 17 row groups; in version 2 it has a row of each.

    Nothing is learned from a row's shard: what it means is in the next tests.
    """
    layout = shards_of(shards, version)
    shard = np.repeat(np.arange(shards), layout.shard_rows)
    ratio = against_a_perfect_shuffle(shard, layout, version)
    assert ratio == pytest.approx(measured, rel=0.1)


def meetings(plan: EpochPlan, workers: int) -> tuple[float, float]:
    """How likely two rows of a row group meet in a step of a worker: here, and by pure chance.

    Counted over all pairs of an epoch. By chance: of a perfect shuffle, whose first rows make the
    same number of batches.
    """
    layout, size = plan.layout, batch_size(plan) // workers
    sizes = layout.locate(np.arange(layout.first_groups[-1]))[-1]
    group = np.repeat(np.arange(len(sizes)), sizes)
    met = 0
    for rank in range(workers):
        for batch in worker_batches(plan, rank, workers):
            counts = np.bincount(group[batch])
            met += int((counts * (counts - 1)).sum())
    pairs = int((sizes * (sizes - 1)).sum())
    by_chance = plan.steps * workers * size * (size - 1) / (layout.rows * (layout.rows - 1))
    return met / pairs if pairs else 0.0, by_chance


def test_in_version_1_rows_of_a_row_group_meet_four_times_as_often_as_by_chance():
    """The price of contiguous reads: 16 of 193 rows at a time, 7.8 % against 2.1 %."""
    met, by_chance = np.mean(
        [
            meetings(plan_of(shards_of(1, 1), 256, seed, version=1), workers=1)
            for seed in range(SEEDS)
        ],
        axis=0,
    )
    assert met == pytest.approx(15 / 192, rel=0.05)
    assert met / by_chance == pytest.approx(3.8, rel=0.05)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    shards=st.integers(1, 4),
    rows=st.integers(50, 1200),
    group=st.integers(2, 120),
    workers=st.sampled_from([1, 2, 3, 4, 8, 16]),
    data=st.data(),
)
def test_rows_of_a_row_group_meet_at_most_twice_as_often_as_by_chance(
    shards, rows, group, workers, data
):
    """Twice only where an epoch is one batch and leaves half of the rows out; otherwise once.

    Never, in the batch of all workers, if an epoch has as many steps as a row group has rows.
    """
    batch = workers * data.draw(st.integers(2, max(2, rows // workers)))
    assume(batch <= rows)
    layout = layout_of([len(part) for part in np.array_split(np.arange(rows), shards)], group)
    plan = plan_of(layout, batch, seed=data.draw(st.integers(0, 99)))
    met, by_chance = meetings(plan, workers)
    assert met <= 2 * by_chance
    if plan.steps >= group:
        assert meetings(plan, 1)[0] == 0


@pytest.mark.parametrize(
    ("batch", "workers"), [(256, 1), (256, 8), (720, 1), (720, 16), (1920, 16), (1000, 8)]
)
def test_batches_of_a_data_set_in_numbers_mix_too(batch, workers):
    """12,406 rows in row groups of 48: 48 steps at B = 256, and 6 at B = 1,920."""
    met, by_chance = meetings(plan_of(shards_of(8, 2), batch), workers)
    assert met <= by_chance
