"""Samples are the same for any number of workers, and an evaluation leaves the network as it is."""

import numpy as np
import pytest
import torch

pytest.importorskip("ray")
from bcl_ray.data.layout import Layout, evaluation_reads
from bcl_ray.data.shards import read_manifest, write_shards
from bcl_ray.data.sources import open_source
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.sample import is_sampled, sample_shares
from bcl_ray.training import evaluator as module
from bcl_ray.training.evaluator import Evaluator
from bcl_ray.training.tasks import Task, source_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits"))
    write_shards(open_source("digits"), folder, profile="exponential", imbalance_factor=50)
    return with_overrides(digits_lt(), [f"data.path={folder}"]), read_manifest(folder)


def make(digits, **options) -> Evaluator:
    experiment, manifest = digits
    counts = np.array(manifest.splits["train"].class_counts)
    return Evaluator(experiment, manifest, counts, CPU, **options)


def test_images(digits) -> list[dict[str, np.ndarray]]:
    """The whole evaluation split, in batches as Ray Data makes them."""
    experiment, manifest = digits
    split = manifest.splits["test"]
    layout = Layout.of(split)
    source = source_of(experiment, manifest, training=False)
    portions = tuple((read,) for read in evaluation_reads(layout))
    return list(source.load(Task(0, portions)))


test_images.__test__ = False


def sampled_ids(evaluator: Evaluator) -> np.ndarray:
    return np.concatenate([batch["ids"] for batch in evaluator._training_sample])


@pytest.mark.parametrize("images", [100, 2048])
def test_the_training_sample_is_the_same_for_any_number_of_workers(digits, monkeypatch, images):
    monkeypatch.setattr(module, "TRAINED_IMAGES", images)
    whole = np.sort(sampled_ids(make(digits)))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module, "world_size", lambda: 3)
        parts.append(sampled_ids(make(digits)))
    assert np.array_equal(np.sort(np.concatenate(parts)), whole)
    assert len(np.unique(whole)) == len(whole)
    if images == 2048:  # more than the split has
        assert len(whole) == digits[1].splits["train"].rows


def test_the_training_sample_has_evaluation_views_and_all_of_the_tail(digits, monkeypatch):
    monkeypatch.setattr(module, "TRAINED_IMAGES", 100)
    batches = make(digits)._training_sample
    assert {batch["views"].shape[1:] for batch in batches} == {(1, 8, 8, 3)}
    labels = np.concatenate([batch["labels"] for batch in batches])
    counts = np.array(digits[1].splits["train"].class_counts)
    small = np.flatnonzero(counts <= 10)
    assert np.array_equal(np.bincount(labels, minlength=10)[small], counts[small])
    assert np.bincount(labels)[0] < 30


def test_only_some_row_groups_of_a_large_split_are_read(digits, monkeypatch):
    total = sum(shard.bytes for shard in digits[1].splits["train"].shards)
    monkeypatch.setattr(module, "READ_BYTES", total // 2)
    some = sampled_ids(make(digits))
    assert 0 < len(some) < digits[1].splits["train"].rows


def test_an_evaluation_changes_neither_weights_nor_statistics_nor_random_numbers(digits):
    torch.manual_seed(0)
    model = TwoBranch(digits[0].model, 10)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    make(digits).evaluate(model, test_images(digits))
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", ["bcl", "ce"])
def test_an_evaluation_measures_both_splits_and_features_where_the_loss_has_some(digits, kind):
    experiment = with_overrides(digits[0], [f"loss.kind={kind}"])
    model = TwoBranch(experiment.model, 10)
    seen = []
    evaluator = make((experiment, digits[1]), watched=lambda items: seen.append(1) or iter(items))
    metrics = evaluator.evaluate(model, test_images(digits)).metrics
    expected = {"geometry/nc1", "geometry/train/nc1", "geometry/classifier_distance_few"}
    features = {"geometry/features/nc1", "geometry/train_features/prototype_distance"}
    assert metrics.keys() >= expected
    assert (metrics.keys() >= features) == (kind == "bcl")
    assert metrics["images/evaluated"] == 360
    assert len(seen) == 3  # watched: test images, reading, training images
    without = evaluator.evaluate(model, test_images(digits), trained=False).metrics
    assert not any("train" in name for name in without)
    same = [name for name in without if name in metrics]
    assert {name: metrics[name] for name in same} == without


def test_findings_are_one_row_per_image_and_the_means_of_the_sample(digits):
    model = TwoBranch(digits[0].model, 10)
    evaluator = make(digits)
    evaluation = evaluator.evaluate(model, test_images(digits), trained=False)
    findings = evaluator.findings(evaluation, epoch=3)
    assert len(findings.ids) == len(np.unique(findings.ids)) == 360
    right = (findings.labels == findings.predicted).mean()
    assert 100 * right == pytest.approx(
        evaluation.metrics["accuracy/all"]
    )  # all classes have the same number
    assert findings.embeddings.shape == (10, model.classifier.weight.shape[1])
    assert findings.about["epoch"] == 3
    assert findings.about["fingerprint"] == digits[1].fingerprint
    assert np.sum(findings.about["bins"], axis=0)[0] == 360
    assert (findings.second != findings.predicted).all()


def test_the_sample_of_classes_in_another_order_has_the_right_shares(digits):
    """Images of shards with another order of classes are sampled by the model's labels."""
    experiment, manifest = digits
    labels = np.arange(10)[::-1].copy()
    batches = [{**batch, "labels": labels[batch["labels"]]} for batch in test_images(digits)]
    evaluator = make(digits)
    model = TwoBranch(experiment.model, 10)
    evaluation = evaluator.evaluate(model, batches, labels=labels, trained=False)
    counts = np.array(manifest.splits["test"].class_counts)[labels]
    shares = sample_shares(counts, evaluator.class_counts, module.EVALUATED_IMAGES)
    ids = np.concatenate([batch["ids"] for batch in batches])
    expected = is_sampled(ids, np.concatenate([batch["labels"] for batch in batches]), shares)
    assert len(evaluation.sample.ids) == expected.sum()
