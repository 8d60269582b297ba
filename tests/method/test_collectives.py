"""Real processes on gloo: any number of workers computes what one worker computes.

Four processes start once and form groups of 1, 2, 3 and 4; each worker of each group leaves a
report of all that it found, and the tests compare reports. The reference is this process alone.
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bcl_ray.experiment import recipes
from bcl_ray.experiment.options import Experiment
from bcl_ray.method.collectives import (
    GradientSum,
    _buckets,
    broadcast_initial_state,
    gather_rows,
    gather_with_grad,
    rank,
    sum_over_workers,
)
from bcl_ray.method.evaluation import Evaluation, evaluate, geometry_metrics
from bcl_ray.method.learner import Learner, NonFiniteLossError
from bcl_ray.method.loop import loss_share, train_epoch
from bcl_ray.method.model import TwoBranch

pytestmark = pytest.mark.slow  # workers are processes

K, V, B = 4, 2, 12  # B divides by every number of workers
SIZES = (1, 2, 3, 4)
CLASS_COUNTS = np.array([50, 20, 7, 3])
LABELS = torch.tensor([0, 0, 1, 0, 3, 0, 1, 0, 0, 1, 0, 0])  # class 2 is absent, 3 is one image

LOSSES = {
    "balanced": {},
    "balanced, class mean": {"anchor_mean": "class"},
    "balanced, tau 0": {"tau": 0.0},
    "balanced, class mean, tau 0": {"anchor_mean": "class", "tau": 0.0},
    "supervised": {"kind": "scl"},
    "supervised, class mean": {"kind": "scl", "anchor_mean": "class"},
    "contrastive only": {"classification_weight": 0.0},
    "classification only": {"kind": "logit_adjusted"},
}


def experiment(batch_norm: str = "per_worker", **loss: Any) -> Experiment:
    base = recipes.digits_lt()
    model = {"width": 4, "hidden_dim": 8, "feature_dim": 6, "batch_norm": batch_norm}
    return base.model_copy(
        update={
            "model": base.model.model_copy(update=model),
            "loss": base.loss.model_copy(update=loss),
            "train": base.train.model_copy(update={"epochs": 2}),
        }
    )


def part(worker: int, workers: int) -> slice:
    size = B // workers
    return slice(worker * size, (worker + 1) * size)


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(child)


def double_model(of: Experiment, *, norm: bool) -> TwoBranch:
    torch.manual_seed(0)
    model = TwoBranch(of.model, K)
    if not norm:
        without_batch_norm(model)
    return model.double()


def one_step(of: Experiment, here: slice, *, norm: bool, bucket_bytes: int) -> dict[str, Any]:
    """Loss and gradients of a training step, before the optimiser changes the weights."""
    model = double_model(of, norm=norm)
    gradients = GradientSum(model, bucket_bytes)
    generator = torch.Generator().manual_seed(1)
    shape = (1 + of.num_contrastive, B, 3, 8, 8)
    views = torch.randn(shape, generator=generator, dtype=torch.float64)[:, here]
    prior = torch.from_numpy(np.log(CLASS_COUNTS / CLASS_COUNTS.sum()))
    share, terms = loss_share(model(views), LABELS[here], prior, of.loss)
    share.backward()
    gradients.finish(terms)
    return {
        "share": share.detach(),
        "terms": terms,
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "state": model.state_dict(),
    }


def gathered(here: slice) -> dict[str, Tensor]:
    """Each worker weights all pieces differently; the axis is not the first in memory."""
    values = (
        torch.arange(5.0 * B, dtype=torch.float64)
        .view(5, B)
        .T.clone(memory_format=torch.preserve_format)
    )
    piece = values[here].requires_grad_()
    joined = gather_with_grad(piece, 0)
    weights = torch.arange(float(B), dtype=torch.float64)[:, None] + 1
    share = sum((joined.square() * weights / (image + 1)).sum() for image in range(B)[here])
    share.backward()
    return {
        "joined": joined.detach(),
        "grad": piece.grad,
        "labels": gather_with_grad(LABELS[here], 0),
    }


class Unreached(nn.Module):
    """A model with parameters of two dtypes, and some that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(3))
        self.used = nn.Parameter(torch.arange(4.0))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.wide = nn.Parameter(torch.arange(2.0, dtype=torch.float64))
        self.last = nn.Parameter(torch.ones(5))


def unreached(here: slice, bucket_bytes: int) -> dict[str, Tensor | None]:
    model = Unreached()
    gradients = GradientSum(model, bucket_bytes)
    for _ in range(2):  # a second step finds everything as the first one did
        model.zero_grad(set_to_none=True)
        share = sum(
            image * (model.used.square().sum() + model.wide.sum()) for image in range(B)[here]
        )
        share.backward()
        gradients.finish(torch.zeros(1))
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def sent_during_backward(bucket_bytes: int) -> list[int]:
    """The number of buckets whose sums start before `finish`, for each of three steps."""
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    gradients, sent = GradientSum(model, bucket_bytes), []
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        sent.append(len(gradients._pending))
        gradients.finish(torch.zeros(1))
    return sent


def batches(here: slice, steps: int = 3) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    views = generator.integers(0, 256, (steps, B, 1 + V, 8, 8, 3), np.uint8)
    ids = np.arange(B)
    return [
        {"views": view[here], "labels": LABELS.numpy()[here], "ids": ids[here]} for view in views
    ]


def trained(here: slice, batch_norm: str) -> dict[str, Any]:
    learner = Learner(experiment(batch_norm), CLASS_COUNTS, 3, torch.device("cpu"))
    images = sum(step.images for step in train_epoch(learner, batches(here), epoch=0))
    return {"model": learner.model.state_dict(), "sums": learner.sums, "images": images}


def kept_statistics(here: slice, batch_norm: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Buffers of a backbone in evaluation mode, before and after a training step."""
    torch.manual_seed(0)
    learner = Learner(experiment(batch_norm), CLASS_COUNTS, 3, torch.device("cpu"))
    buffers = {n: b for n, b in learner.model.backbone.named_buffers() if b.is_floating_point()}
    for buffer in buffers.values():
        buffer.uniform_(0.5, 1.5)
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    learner.begin_epoch(0)
    learner.model.backbone.eval()
    views = torch.randn(1 + V, len(range(B)[here]), 3, 8, 8)
    learner.model(views).features.sum().backward()
    learner.gradients.finish(torch.zeros(1))
    return before, buffers


def broken_on_one_worker(here: slice) -> str:
    """The message that a worker gets when the weights of the last one turn into NaN."""
    learner = Learner(experiment(), CLASS_COUNTS, 3, torch.device("cpu"))
    try:
        for step in train_epoch(learner, batches(here), epoch=0):
            if step.step == 1 and here.stop == B:
                learner.model.classifier.weight.data.fill_(torch.nan)
    except NonFiniteLossError as error:
        return str(error)
    return "no error"


def signalled_by_one_worker(here: slice) -> list[tuple[int, list[str]]]:
    """A worker's signals at each step, if the last worker gives one from its second step on."""
    learner = Learner(experiment(), CLASS_COUNTS, 3, torch.device("cpu"))

    def signals() -> frozenset[str]:
        return frozenset({"restart"} if here.stop == B and learner.step >= 1 else ())

    steps = train_epoch(learner, batches(here), epoch=0, signals=signals)
    return [(step.step, sorted(step.signals)) for step in steps]


def begun_apart(worker: int) -> dict[str, Any]:
    """A worker's weights after it began with different ones, channels_last, and its warnings."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("bcl_ray.method.collectives").addHandler(handler)
    found = {}
    for name, seed in {"apart": 100 + (worker > 1), "together": 7}.items():
        torch.manual_seed(seed)
        model = TwoBranch(experiment().model, K).to(memory_format=torch.channels_last)
        with torch.no_grad():
            model.backbone[1].running_mean.fill_(seed)
        broadcast_initial_state(model)
        found[name] = model.state_dict()
    logging.getLogger("bcl_ray.method.collectives").removeHandler(handler)
    return {"begun": found, "said": said}


def evaluated(workers: int) -> tuple[Evaluation, dict[str, float]]:
    """Seven images: three workers have one, two and four, and of four the last has none."""
    cuts = {1: [0, 7], 2: [0, 3, 7], 3: [0, 1, 3, 7], 4: [0, 1, 3, 7, 7]}[workers]
    here = slice(cuts[rank()], cuts[rank() + 1])
    of = experiment()
    torch.manual_seed(0)
    model = TwoBranch(of.model, K)
    images = [{**batch, "views": batch["views"][:, :1]} for batch in batches(slice(0, 7), 1)]
    mine = [{name: value[here] for name, value in batch.items()} for batch in images]
    found = evaluate(
        model,
        mine if here.start < here.stop else [],
        experiment=of,
        class_counts=CLASS_COUNTS,
        rows=7,
        device=torch.device("cpu"),
        shares=np.ones(K),
    )
    return found, geometry_metrics(model, found.sample, CLASS_COUNTS)


def report(worker: int, workers: int) -> dict[str, Any]:
    """Run all checks in one worker of a group."""
    here = part(worker, workers)
    steps = {
        name: one_step(experiment(**loss), here, norm=False, bucket_bytes=2000)
        for name, loss in LOSSES.items()
    }
    sync = experiment("sync", anchor_mean="class")
    return {
        **steps,
        "one bucket": one_step(experiment(), here, norm=False, bucket_bytes=2**20),
        "sync": one_step(sync, here, norm=True, bucket_bytes=2000),
        "per_worker": one_step(experiment(), here, norm=True, bucket_bytes=2000),
        "gathered": gathered(here),
        "unreached": [unreached(here, size) for size in (1, 16, 2**20)],
        "sent": [sent_during_backward(size) for size in (1, 2**20)],
        "summed": sum_over_workers(torch.tensor(worker + 1.0)),
        "trained": trained(here, "per_worker"),
        "trained, sync": trained(here, "sync"),
        "kept": [kept_statistics(here, norm) for norm in ("frozen", "per_worker")],
        "broken": broken_on_one_worker(here),
        "signalled": signalled_by_one_worker(here),
        "evaluated": evaluated(workers),
        "rows": rows_of_some(worker),
        **begun_apart(worker),
    }


def process(number: int, sizes: tuple[int, ...], folder: str) -> None:
    torch.set_num_threads(1)
    for workers in sizes:
        if number >= workers:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet{workers}",
            rank=number,
            world_size=workers,
            timeout=timedelta(seconds=60),  # workers that disagree fail, and do not hang
        )
        torch.save(report(number, workers), Path(folder) / f"{workers}-{number}.pt")
        dist.destroy_process_group()


def start(folder: Path, *sizes: int) -> dict[int, list[dict[str, Any]]]:
    """The results of all workers, for groups of these sizes."""
    torch.multiprocessing.spawn(process, (sizes, str(folder)), nprocs=max(sizes))
    return {
        workers: [
            torch.load(folder / f"{workers}-{worker}.pt", weights_only=False)
            for worker in range(workers)
        ]
        for workers in sizes
    }


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    return start(tmp_path_factory.mktemp("groups"), *SIZES)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return report(0, 1)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(params=SIZES, ids=lambda workers: f"{workers} workers")
def workers(request, groups) -> list[dict[str, Any]]:
    return groups[request.param]


def assert_close(got: Any, expected: Any, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol / 100)


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_workers_shares_and_gradients_are_those_of_one(loss, workers, alone):
    expected = alone[loss]
    assert_close(sum(worker[loss]["share"] for worker in workers), expected["share"])
    for worker in workers:
        assert_close(worker[loss]["terms"], expected["terms"])
        assert worker[loss]["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in worker[loss]["gradients"].items():
            assert_close(gradient, expected["gradients"][name])


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_contrastive_branch_stays_without_gradient(loss, workers):
    unreached = {
        "classification only": {"feature_projection", "prototype_projection"},
        "supervised": {"prototype_projection"},
        "supervised, class mean": {"prototype_projection"},
    }.get(loss, set())
    for worker in workers:
        gradients = worker[loss]["gradients"]
        found = {name.split(".")[0] for name, gradient in gradients.items() if gradient is None}
        assert found == unreached


def test_terms_of_a_share_add_up_to_the_loss(alone):
    total, classification, contrastive = alone["balanced"]["terms"]
    assert contrastive > 0
    assert_close(total, classification + 0.5 * contrastive)
    assert alone["classification only"]["terms"][2] == 0


def test_synced_batch_norm_is_torchs_own_on_the_whole_batch(workers):
    torchs = experiment("per_worker", anchor_mean="class")
    expected = one_step(torchs, slice(0, B), norm=True, bucket_bytes=1)
    for worker in workers:
        for kind in ("terms", "gradients", "state"):
            assert_close(worker["sync"][kind], expected[kind], rtol=1e-8)


def test_running_statistics_are_the_mean_of_the_workers_own(workers):
    here = [part(number, len(workers)) for number in range(len(workers))]
    own = [one_step(experiment(), one, norm=True, bucket_bytes=1)["state"] for one in here]
    names = [name for name in own[0] if "running" in name]
    assert names
    for worker in workers:
        for name in names:
            mean = torch.stack([state[name] for state in own]).mean(0)
            assert_close(worker["per_worker"]["state"][name], mean)


def test_statistics_that_training_does_not_change_keep_every_bit(workers):
    for worker in workers:
        for before, after in worker["kept"]:
            assert before
            assert_same(after, before)


@pytest.mark.parametrize("case", ["per_worker", "sync", "trained", "trained, sync"])
def test_every_workers_state_is_the_runs_state(case, workers):
    first = workers[0][case]
    for worker in workers[1:]:
        for kind in first.keys() - {"share"}:
            assert_same(worker[case][kind], first[kind])


def test_gather_joins_in_the_order_of_ranks_and_sums_gradients(workers, alone):
    for number, worker in enumerate(workers):
        assert_same(worker["gathered"]["joined"], alone["gathered"]["joined"])
        assert_same(worker["gathered"]["labels"], LABELS)
        here = part(number, len(workers))
        assert_close(worker["gathered"]["grad"], alone["gathered"]["grad"][here])


def test_gather_alone_is_the_identity():
    tensor = torch.ones(3, requires_grad=True)
    assert gather_with_grad(tensor, 0) is tensor
    assert sum_over_workers(tensor) is tensor


def test_sum_over_workers_sums(workers):
    for worker in workers:
        assert worker["summed"] == sum(range(1, len(workers) + 1))


def test_the_size_of_buckets_changes_nothing(workers):
    for worker in workers:
        assert_close(worker["balanced"]["gradients"], worker["one bucket"]["gradients"], 1e-13)


def test_gradients_travel_while_backward_still_runs(workers):
    expected = [[3, 3, 3], [1, 1, 1]] if len(workers) > 1 else [[0, 0, 0], [0, 0, 0]]
    assert all(worker["sent"] == expected for worker in workers)


def test_parameters_that_the_loss_does_not_reach_stay_without_gradient(workers):
    total = B * (B - 1) / 2
    for worker in workers:
        for gradients in worker["unreached"]:
            assert gradients["first"] is gradients["frozen"] is gradients["last"] is None
            assert_close(gradients["used"], 2 * total * torch.arange(4.0), rtol=1e-6)
            assert_close(gradients["wide"], torch.full((2,), total, dtype=torch.float64))


@pytest.mark.parametrize(
    ("bucket_bytes", "sizes"), [(1, [1, 1, 1, 1]), (30, [1, 1, 2]), (2**20, [1, 1, 2])], ids=str
)
def test_buckets_hold_one_type_each_and_every_trained_parameter_once(bucket_bytes, sizes):
    model = Unreached()
    buckets = _buckets(model.parameters(), bucket_bytes)
    assert [len(bucket) for bucket in buckets] == sizes
    expected = [model.last, model.wide, model.used, model.first]  # from last to first
    assert [id(one) for bucket in buckets for one in bucket] == [id(one) for one in expected]


def test_a_bucket_is_full_when_it_has_its_bytes():
    layers = nn.Sequential(*(nn.Linear(4, 1, bias=False) for _ in range(5)))  # 16 bytes each
    assert [len(bucket) for bucket in _buckets(layers.parameters(), 32)] == [2, 2, 1]
    assert [len(bucket) for bucket in _buckets(layers.parameters(), 33)] == [3, 2]


def test_training_steps_are_those_of_one_worker(workers, alone):
    expected = alone["trained, sync"]
    for worker in workers:
        assert worker["trained"]["images"] == 3 * B
        assert_close(worker["trained, sync"]["sums"], expected["sums"], rtol=1e-4)


@pytest.mark.slow
def test_a_fresh_set_of_workers_repeats_every_bit(groups, tmp_path):
    again = start(tmp_path, 3)[3]
    for first, second in zip(groups[3], again, strict=True):
        for told in ("broken", "signalled", "said"):
            assert second.pop(told) == first[told]
        for case, found in second.items():
            assert_same(found, first[case])


def test_a_loss_that_breaks_on_one_worker_stops_all_at_the_same_step(workers):
    messages = {worker["broken"] for worker in workers}
    assert len(messages) == 1
    assert messages.pop().startswith("step 2: the loss (loss/total nan")


def test_evaluation_counts_uneven_and_empty_parts(workers, alone):
    expected, geometry = alone["evaluated"]
    for worker in workers:
        found, of_worker = worker["evaluated"]
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
        np.testing.assert_allclose(found.class_accuracy, expected.class_accuracy)
        for got, whole in zip(found.predictions, expected.predictions, strict=True):
            torch.testing.assert_close(got, whole)  # every image once, in the order of ids
        assert torch.equal(found.sample.ids, expected.sample.ids)
        assert of_worker == pytest.approx(geometry, rel=1e-4)


def test_rows_of_unequal_workers_are_gathered_in_order(workers):
    for worker in workers:
        expected = torch.arange(sum(range(len(workers)))).float()
        assert_same(worker["rows"], torch.stack([expected, -expected], dim=1))


def rows_of_some(worker: int) -> torch.Tensor:
    """As many rows as the worker's number, numbered through."""
    first = sum(range(worker))
    rows = torch.arange(first, first + worker).float()
    return gather_rows(torch.stack([rows, -rows], dim=1))


def test_what_one_worker_signals_all_learn_at_the_same_step(groups, alone):
    expected = [(1, []), (2, []), (3, ["restart"])]
    assert alone["signalled"] == expected
    for reports in groups.values():
        assert [report["signalled"] for report in reports] == [expected] * len(reports)


def test_every_worker_begins_with_the_first_one_s_weights(workers, alone):
    for found in workers:
        for name in ("apart", "together"):
            assert_same(found["begun"][name], alone["begun"][name])


def test_workers_that_would_begin_with_other_weights_are_named_once(workers):
    said = [found["said"] for found in workers]
    others = ", ".join(str(worker) for worker in range(2, len(workers)))
    expected = [f"the initial weights of workers {others} differ from those of worker 0"] * bool(
        others
    )
    assert [text[: len(expected[0])] for text in said[0]] == expected
    assert not any(said[1:])
