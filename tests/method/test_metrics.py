"""Metrics against torchmetrics and slow definitions, and sums of counts."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from bcl_ray.data.keyed import Stream, uniforms
from bcl_ray.method.metrics import (
    TEMPERATURES,
    EvaluationCounts,
    best_temperature,
    calibrated_bins,
    class_accuracy,
    count_batch,
    empty_counts,
    evaluation_metrics,
    expected_calibration_error,
    shot_accuracy,
)
from tests import oracles

K = 6


def predictions(num_images: int = 500, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are correct for about half of an unbalanced test set."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([8.0, 4, 2, 2, 1, 1])
    labels = torch.multinomial(weights, num_images, replacement=True, generator=generator)
    logits = torch.randn(num_images, K, generator=generator)
    logits[torch.arange(num_images), labels] += 1
    return logits * 2, labels


def counted(logits: Tensor, labels: Tensor, first: int = 0) -> EvaluationCounts:
    """Counts of images whose ids begin at `first`."""
    return count_batch(logits, labels, np.arange(first, first + len(labels)))


def test_accuracies_are_torchmetrics():
    logits, labels = predictions()
    counts = counted(logits, labels)
    of_class = MulticlassAccuracy(num_classes=K, average="none")(logits, labels)
    torch.testing.assert_close(
        class_accuracy(counts.correct, counts.total), 100 * of_class.double()
    )
    macro = MulticlassAccuracy(num_classes=K, average="macro")(logits, labels)
    shots = shot_accuracy(counts.correct, counts.total, torch.full((K,), 50))
    assert shots["accuracy/all"] == pytest.approx(100 * macro.item())


def test_calibration_error_is_torchmetrics_and_the_definition():
    logits, labels = predictions()
    error = expected_calibration_error(counted(logits, labels).bins)
    theirs = MulticlassCalibrationError(num_classes=K, n_bins=15, norm="l1")(logits, labels)
    assert error == pytest.approx(100 * theirs.item(), rel=1e-5)
    confidence, predicted = logits.softmax(1).max(1)
    slow = oracles.expected_calibration_error(
        confidence.tolist(), (predicted == labels).tolist(), 15
    )
    assert error == pytest.approx(slow, rel=1e-5)


def test_full_confidence_belongs_to_the_last_bin():
    bins = counted(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 0])).bins
    assert bins[-1].tolist() == [2, 2, 1]
    assert expected_calibration_error(bins) == pytest.approx(50)


def test_counts_add_up_over_batches():
    logits, labels = predictions()
    parts = empty_counts(K, "cpu")
    for start in range(0, 500, 77):
        parts = parts + counted(logits[start : start + 77], labels[start : start + 77], start)
    whole = counted(logits, labels)
    assert parts.total.sum() == 500
    for name in vars(whole):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_counts_are_their_own_sum_over_one_worker():
    counts = counted(*predictions())
    assert torch.equal(counts.over_workers().bins, counts.bins)


def test_counts_stay_exact_beyond_what_float32_can_count():
    counts = empty_counts(K, "cpu")
    counts.total.fill_(2**24)
    logits, labels = predictions(1)
    assert (counts + counted(logits, labels)).total[labels[0]] == 2**24 + 1


@pytest.mark.parametrize(
    ("class_counts", "expected"),
    [
        # By class: 90, 70, 50, 30, 20, 10 per cent.
        ([500, 101, 100, 20, 19, 5], {"all": 45, "many": 80, "medium": 40, "few": 15}),
        ([500, 500, 500, 500, 500, 500], {"all": 45, "many": 45}),
        ([100, 100, 100, 20, 20, 1], {"all": 45, "medium": 52, "few": 10}),
    ],
)
def test_shot_groups_average_over_classes_and_an_empty_group_is_left_out(class_counts, expected):
    total = torch.tensor([100.0, 10, 10, 10, 10, 10])
    correct = torch.tensor([90.0, 7, 5, 3, 2, 1])
    shots = shot_accuracy(correct, total, torch.tensor(class_counts))
    assert shots == pytest.approx({f"accuracy/{name}": value for name, value in expected.items()})


def test_a_class_without_test_images_is_in_no_mean():
    total, correct = torch.tensor([10.0, 0, 10, 0]), torch.tensor([8.0, 0, 4, 0])
    shots = shot_accuracy(correct, total, torch.tensor([500, 500, 50, 5]))
    assert shots == pytest.approx({"accuracy/all": 60, "accuracy/many": 80, "accuracy/medium": 40})
    assert class_accuracy(correct, total).isnan().tolist() == [False, True, False, True]


def test_evaluation_reports_every_metric():
    logits, labels = predictions()
    metrics = evaluation_metrics(counted(logits, labels), [500, 101, 100, 20, 19, 5])
    assert metrics.keys() == {
        "accuracy/all",
        "accuracy/many",
        "accuracy/medium",
        "accuracy/few",
        "calibration/ece",
        "calibration/ece_calibrated",
        "calibration/temperature",
        "loss/nll",
    }
    nll = torch.nn.functional.cross_entropy(logits, labels)
    assert metrics["loss/nll"] == pytest.approx(nll.item(), rel=1e-5)


def test_half_precision_logits_are_widened():
    logits, labels = predictions()
    half = logits.bfloat16()
    assert torch.equal(counted(half, labels).bins, counted(half.float(), labels).bins)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_least_nll(scale):
    logits, labels = predictions(2000)
    logits = logits * scale
    found = best_temperature(counted(logits, labels).tempered_nll.sum(0))
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert found == pytest.approx(log_temperature.exp().item(), rel=0.01)


def test_the_temperature_of_a_network_that_is_always_right_is_the_lowest():
    counts = counted(torch.eye(K).repeat(9, 1), torch.arange(K).repeat(9))
    assert best_temperature(counts.tempered_nll.sum(0)) == TEMPERATURES[0]


def test_counts_at_a_temperature_are_those_of_divided_logits():
    logits, labels = predictions()
    counts = counted(logits, labels)
    place = 25
    divided = counted(logits / TEMPERATURES[place], labels)
    torch.testing.assert_close(counts.tempered_bins[:, place].sum(0), divided.bins)
    torch.testing.assert_close(counts.tempered_nll[:, place].sum(), divided.nll)


def test_each_half_is_calibrated_by_the_other():
    """If the halves are wrong in opposite directions, neither's temperature fits the other."""
    logits, labels = predictions(4000)
    first = torch.from_numpy(uniforms(0, 0, np.arange(4000), 0, 1, stream=Stream.HALVES) < 0.5)
    assert abs(first.sum() - 2000) < 200
    fitted = calibrated_bins(counted(logits, labels))
    crossed = calibrated_bins(counted(torch.where(first, logits * 4, logits / 4), labels))
    assert fitted[:, 0].sum() == crossed[:, 0].sum() == 4000
    assert expected_calibration_error(fitted) < 5
    assert expected_calibration_error(crossed) > 30


def test_calibration_lowers_the_error_of_overconfident_logits():
    logits, labels = predictions(4000)
    metrics = evaluation_metrics(counted(logits * 5, labels), [500, 101, 100, 20, 19, 5])
    assert metrics["calibration/ece"] > 20
    assert metrics["calibration/ece_calibrated"] < 5


def test_too_few_images_for_two_halves_have_no_calibrated_error():
    counts = counted(*(part[:1] for part in predictions()))
    assert calibrated_bins(counts) is None
    assert "calibration/ece_calibrated" not in evaluation_metrics(counts, [500] * K)
