"""Properties of the epoch plan over random layouts, and how well its batches are mixed."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcl_ray.data.layout import Layout, evaluation_reads
from bcl_ray.data.plan import EpochPlan, num_lanes

MAX_WORKERS = 16

layouts = st.builds(
    Layout,
    shard_rows=st.lists(st.integers(0, 60), min_size=1, max_size=8).map(tuple),
    row_group_rows=st.integers(1, 25),
)


@st.composite
def plans(draw) -> EpochPlan:
    layout = draw(layouts)
    assume(layout.rows > 0)
    batch = draw(
        st.sampled_from([b for b in (1, 2, 3, 6, 8, 12, 16, 24, 32, 48) if b <= layout.rows])
    )
    return plan_of(layout, batch, draw(st.integers(0, 2**32)), draw(st.integers(0, 500)))


def plan_of(layout: Layout, batch: int = 32, seed: int = 0, epoch: int = 0) -> EpochPlan:
    return EpochPlan(
        layout, seed=seed, epoch=epoch, global_batch_size=batch, max_workers=MAX_WORKERS
    )


def group_rows(plan: EpochPlan, read) -> np.ndarray:
    """Positions in the split of what a read reads: slow, from the definition of a layout."""
    layout = plan.layout
    return sum(layout.shard_rows[: read.shard]) + read.row_group * layout.row_group_rows + read.rows


def rows_of(parts: list[dict[str, np.ndarray]]) -> list[int]:
    """The positions of a batch in pieces."""
    return np.concatenate([part["rows"] for part in parts]).tolist()


def worker_batches(plan: EpochPlan, rank: int = 0, workers: int = 1, first_step: int = 0) -> list:
    """A worker's batches as lists of positions, through the blocks that its reads become."""
    blocks = ({"rows": group_rows(plan, r)} for r in plan.reads(rank, workers, first_step))
    return [rows_of(parts) for parts in plan.batches(blocks, rank, workers, first_step)]


def allowed_workers(plan: EpochPlan) -> list[int]:
    batch = plan.lanes * plan.rows_per_lane_and_step
    return [workers for workers in range(1, MAX_WORKERS + 1) if batch % workers == 0]


@settings(deadline=None, max_examples=80)
@given(plan=plans())
def test_every_row_comes_once_but_for_an_incomplete_last_batch(plan):
    batches = worker_batches(plan)
    rows = list(itertools.chain(*batches))
    batch = plan.lanes * plan.rows_per_lane_and_step
    assert len(batches) == plan.steps == plan.layout.rows // batch
    assert len(rows) == len(set(rows)) == plan.steps * batch
    assert set(rows) <= set(range(plan.layout.rows))


@settings(deadline=None, max_examples=25)
@given(plan=plans())
def test_every_number_of_workers_makes_the_same_global_batches(plan):
    whole = worker_batches(plan)
    for workers in allowed_workers(plan):
        parts = [worker_batches(plan, rank, workers) for rank in range(workers)]
        sizes = {len(part) for batches in parts for part in batches}
        assert sizes == {len(whole[0]) // workers}
        assert [len(batches) for batches in parts] == [plan.steps] * workers
        assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


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
    rank = data.draw(st.integers(0, workers - 1))
    resumed = worker_batches(plan, rank, workers, first)
    assert resumed == worker_batches(plan, rank, workers)[first:]


@settings(deadline=None, max_examples=50)
@given(plan=plans(), data=st.data())
def test_resuming_reads_no_row_that_was_used_before(plan, data):
    first = data.draw(st.integers(0, plan.steps))
    read = sum(len(read.rows) for read in plan.reads(first_step=first))
    assert read == (plan.steps - first) * plan.lanes * plan.rows_per_lane_and_step


@settings(deadline=None, max_examples=80)
@given(plan=plans(), data=st.data())
def test_a_row_group_is_read_in_one_piece_but_where_lanes_begin(plan, data):
    """At most lanes - 1 row groups are cut in two, so at most lanes - 1 are read by two workers."""
    row_groups = sum(-(-rows // plan.layout.row_group_rows) for rows in plan.layout.shard_rows)
    workers = data.draw(st.sampled_from(allowed_workers(plan)))
    reads = [read for rank in range(workers) for read in plan.reads(rank, workers)]
    assert len(reads) <= row_groups + plan.lanes - 1


@settings(deadline=None, max_examples=50)
@given(plan=plans())
def test_reads_come_in_the_order_of_need_and_hold_rows_of_their_group(plan):
    reads = list(plan.reads())
    assert [read[:2] for read in reads] == sorted(read[:2] for read in reads)
    for read in reads:
        size = plan.layout.shard_rows[read.shard] - read.row_group * plan.layout.row_group_rows
        assert 0 < len(read.rows) <= min(size, plan.layout.row_group_rows)
        assert read.rows.min() >= 0
        assert read.rows.max() < min(size, plan.layout.row_group_rows)


@settings(deadline=None, max_examples=50)
@given(plan=plans())
def test_batches_take_one_block_per_read_so_that_epochs_share_a_stream(plan):
    stream = iter([{"rows": group_rows(plan, read)} for read in plan.reads()] * 2)
    first, second = ([rows_of(parts) for parts in plan.batches(stream)] for _ in range(2))
    assert first == second == worker_batches(plan)
    assert next(stream, None) is None


@settings(deadline=None, max_examples=100)
@given(layout=layouts, workers=st.integers(1, 16))
def test_evaluation_reads_every_row_once_over_all_workers(layout, workers):
    rows = []
    for rank in range(workers):
        for read in evaluation_reads(layout, rank, workers):
            begin = sum(layout.shard_rows[: read.shard]) + read.row_group * layout.row_group_rows
            rows += (begin + read.rows).tolist()
    assert rows == list(range(layout.rows))


def test_evaluation_is_shared_evenly():
    layout = Layout((1000,) * 10, 10)
    shares = [sum(len(r.rows) for r in evaluation_reads(layout, rank, 16)) for rank in range(16)]
    assert max(shares) - min(shares) <= 10


LAYOUT = Layout((200, 200, 199), 25)


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
    layout = Layout((40, 40, 39), 5)
    everything = set(range(layout.rows))
    left = [
        everything - set(itertools.chain(*worker_batches(plan_of(layout, epoch=epoch))))
        for epoch in range(80)
    ]
    assert {len(rows) for rows in left} == {layout.rows % 32}
    assert set.union(*left) == everything


def test_rows_of_a_row_group_are_shuffled_anew_each_epoch():
    layout = Layout((64,), 64)
    orders = [list(itertools.chain(*worker_batches(plan_of(layout, epoch=e)))) for e in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert tuple(range(64)) not in {tuple(order) for order in orders}


@pytest.mark.parametrize(
    ("batch", "lanes"),
    [(1, 1), (2, 2), (12, 12), (30, 30), (32, 16), (256, 16), (250, 10), (34, 2)],
)
def test_lanes_are_the_fewest_that_all_allowed_workers_divide(batch, lanes):
    assert num_lanes(batch, MAX_WORKERS) == lanes


def test_fewer_rows_than_a_batch_are_refused():
    message = (
        "optim.global_batch_size (32) is more than the training split has rows (31): an epoch "
        "would have no step; lower it"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plan_of(Layout((31,), 8))


@pytest.mark.parametrize(("rank", "workers"), [(0, 3), (0, 32), (2, 2), (-1, 2)])
def test_workers_that_cannot_share_the_lanes_are_refused(rank, workers):
    message = f"worker {rank} of {workers} has no share of 16 lanes: scale.workers must divide"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        next(plan_of(LAYOUT).reads(rank, workers))


# How well batches are mixed. CIFAR-10-LT at imbalance factor 100: 12,406 rows in row groups of
# 193, shuffled as shards are when they are written, B = 256, 16 lanes.
COUNTS = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), COUNTS))
SEEDS = 12


def shards_of(number: int) -> Layout:
    return Layout(tuple(len(part) for part in np.array_split(LABELS, number)), 193)


def distance(values: np.ndarray, batches: np.ndarray) -> float:
    """Mean total variation between the histogram of each batch and that of everything."""
    everything = np.bincount(values) / len(values)
    parts = [
        np.bincount(values[batch], minlength=len(everything)) / len(batch) for batch in batches
    ]
    return float(np.abs(np.array(parts) - everything).sum(axis=1).mean() / 2)


def against_a_perfect_shuffle(values: np.ndarray, layout: Layout) -> float:
    """The distance of the plan's batches, divided by that of uniformly random batches."""
    ours, perfect = [], []
    for seed in range(SEEDS):
        plan = plan_of(layout, batch=256, seed=seed)
        ours.append(distance(values, np.array(worker_batches(plan))))
        rows = np.random.default_rng(seed).permutation(layout.rows)[: plan.steps * 256]
        perfect.append(distance(values, rows.reshape(plan.steps, 256)))
    return float(np.mean(ours) / np.mean(perfect))


@pytest.mark.parametrize("shards", [1, 8, 64])
def test_classes_are_mixed_as_by_a_perfect_shuffle(shards):
    """Measured: 1.02, 1.01 and 1.00 times the distance of uniformly random batches."""
    assert 0.95 < against_a_perfect_shuffle(LABELS, shards_of(shards)) < 1.05


@pytest.mark.parametrize(("shards", "measured"), [(8, 3.15), (64, 3.81)])
def test_shards_are_mixed_within_four_times_of_a_perfect_shuffle(shards, measured):
    """A batch comes from about 17 row groups, so it is further from all shards than a shuffle's.

    Nothing is learned from a row's shard: what it means is in the next test.
    """
    layout = shards_of(shards)
    shard = np.repeat(np.arange(shards), layout.shard_rows)
    ratio = against_a_perfect_shuffle(shard, layout)
    assert ratio == pytest.approx(measured, rel=0.1)
    assert ratio < 4


def test_rows_of_a_row_group_meet_four_times_as_often_as_in_a_perfect_shuffle():
    """The price of contiguous reads: 16 of 193 rows at a time, 7.8 % against 2.1 %."""
    layout = shards_of(1)
    group = np.arange(layout.rows) // layout.row_group_rows
    met = []
    for seed in range(SEEDS):
        for batch in worker_batches(plan_of(layout, batch=256, seed=seed)):
            counts = np.bincount(group[batch])
            met.append((counts * (counts - 1)).sum() / 2)
    pairs = (np.bincount(group) * (np.bincount(group) - 1)).sum() / 2
    per_epoch = np.mean(met) * (layout.rows // 256) / pairs
    assert per_epoch == pytest.approx(15 / 192, rel=0.05)
    assert per_epoch / (255 / (layout.rows - 1)) == pytest.approx(3.8, rel=0.05)
