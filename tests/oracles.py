"""Slow definitions, written from the paper with loops over anchors and classes. No tricks.

Axes as in bcl_ray.method.losses. Everything should be float64.
"""

import math

import torch
from torch import Tensor


def balanced_contrastive(
    features: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    temperature: float,
    anchor_mean: str = "instance",
) -> Tensor:
    """Zhu et al. 2022: each class's part of the denominator is a mean over what is in the sum."""
    views = [(view, image) for view in range(len(features)) for image in range(len(labels))]
    terms: dict[int, list[Tensor]] = {}
    for anchor in views:
        z, own = features[anchor], int(labels[anchor[1]])
        denominator, positives = torch.zeros((), dtype=z.dtype), []
        for k in range(len(prototypes)):
            members = [features[key] for key in views if labels[key[1]] == k and key != anchor]
            members.append(prototypes[k])
            denominator = denominator + sum((z @ u / temperature).exp() for u in members) / len(
                members
            )
            if k == own:
                positives = members
        numerator = sum(z @ u / temperature for u in positives) / len(positives)
        terms.setdefault(own, []).append(denominator.log() - numerator)
    return _mean_over(terms, anchor_mean)


def supervised_contrastive(
    features: Tensor, labels: Tensor, temperature: float, anchor_mean: str = "instance"
) -> Tensor:
    """Khosla et al. 2020, equation 2."""
    views = [(view, image) for view in range(len(features)) for image in range(len(labels))]
    terms: dict[int, list[Tensor]] = {}
    for anchor in views:
        z, own = features[anchor], int(labels[anchor[1]])
        others = [key for key in views if key != anchor]
        denominator = sum((z @ features[key] / temperature).exp() for key in others)
        positives = [key for key in others if labels[key[1]] == own]
        log_shares = [
            ((z @ features[key] / temperature).exp() / denominator).log() for key in positives
        ]
        terms.setdefault(own, []).append(-sum(log_shares) / len(positives))
    return _mean_over(terms, anchor_mean)


def _mean_over(terms: dict[int, list[Tensor]], anchor_mean: str) -> Tensor:
    if anchor_mean == "class":
        return torch.stack([torch.stack(of_class).mean() for of_class in terms.values()]).mean()
    return torch.stack([term for of_class in terms.values() for term in of_class]).mean()


def balanced_contrastive_as_published(
    features: Tensor, prototypes: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """The steps of the authors' code, by matrices: one-hot counts, per-pair divisors, a mask.

    A second opinion that shares no structure with the loops above.
    """
    anchors = features.flatten(0, 1)
    columns = torch.cat([anchors, prototypes])
    targets = torch.cat([labels.repeat(len(features)), torch.arange(len(prototypes))])
    counts = torch.eye(len(prototypes), dtype=features.dtype)[targets].sum(0)
    not_self = 1 - torch.eye(len(anchors), len(columns), dtype=features.dtype)
    positive = (targets[: len(anchors), None] == targets).to(features.dtype) * not_self
    similarity = anchors @ columns.T / temperature - 1 / temperature
    divisors = counts[targets].expand(len(anchors), -1) - positive
    denominator = (similarity.exp() * not_self / divisors).sum(1, keepdim=True)
    log_shares = similarity - denominator.log()
    return -((positive * log_shares).sum(1) / positive.sum(1)).mean()


def logit_adjusted_cross_entropy(
    logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float
) -> Tensor:
    """Menon et al. 2021, equation 10, one image at a time."""
    losses = []
    for row, y in zip(logits, labels.tolist(), strict=True):
        weights = [(row[k] + tau * log_prior[k]).exp() for k in range(len(row))]
        losses.append(-(weights[y] / sum(weights)).log())
    return torch.stack(losses).mean()


def simplex(num_classes: int, width: int) -> Tensor:
    """K unit vectors at equal angles that sum to zero: a regular simplex, (K, width)."""
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    corners = centred / centred.norm(dim=1, keepdim=True)
    return torch.nn.functional.pad(corners, (0, width - num_classes))


def loss_at_the_simplex(num_classes: int, temperature: float) -> float:
    """Balanced contrastive loss of collapsed classes at the corners of a regular simplex."""
    spread = num_classes / (num_classes - 1)
    return math.log1p((num_classes - 1) * math.exp(-spread / temperature))


def learning_rates_of_a_cosine(lr: float, epochs: int) -> list[float]:
    """The authors' per-epoch cosine, epoch by epoch."""
    return [lr * 0.5 * (1 + math.cos(math.pi * (e + 1) / (epochs + 1))) for e in range(epochs)]


def expected_calibration_error(confidences: list[float], hits: list[bool], bins: int) -> float:
    """Guo et al. 2017, equation 3, in per cent: bins are (low, high]."""
    error = 0.0
    for number in range(bins):
        inside = [
            (confidence, hit)
            for confidence, hit in zip(confidences, hits, strict=True)
            if number / bins < confidence <= (number + 1) / bins
        ]
        if inside:
            confidence = sum(pair[0] for pair in inside) / len(inside)
            accuracy = sum(pair[1] for pair in inside) / len(inside)
            error += len(inside) / len(hits) * abs(accuracy - confidence)
    return 100 * error


def geometry(
    vectors: Tensor, labels: list[int], counts: list[int], rows: Tensor
) -> dict[str, float]:
    """Neural collapse, alignment and uniformity by loops over classes and pairs.

    Args:
        counts: training images of each class, which make the shot groups.
        rows: what should point to the class means, one per class of all.
    """
    classes = sorted(set(labels))
    of = {k: [v for v, y in zip(vectors, labels, strict=True) if y == k] for k in classes}
    mean = {k: sum(of[k]) / len(of[k]) for k in classes}
    centre = sum(mean.values()) / len(classes)
    centred = {k: mean[k] - centre for k in classes}
    between = sum(torch.outer(m, m) for m in centred.values()) / len(classes)
    inverse = torch.linalg.pinv(between, rtol=1e-10, hermitian=True)
    size = {k: "many" if counts[k] > 100 else "few" if counts[k] < 20 else "medium" for k in of}
    groups = {"": classes}
    groups |= {f"_{g}": [k for k in classes if size[k] == g] for g in ("many", "medium", "few")}
    norms = torch.stack([m.norm() for m in centred.values()])
    every = [_cosine(centred[j], centred[k]) for j in classes for k in classes if j < k]
    found = {
        "equinorm": float(norms.std(correction=0) / norms.mean()),
        "equiangular": float(torch.tensor(every).std(correction=0)),
    }
    for name, group in groups.items():
        traces, alignments = [], []
        for k in group:
            n = len(of[k])
            if n > 1:
                scatter = sum(torch.outer(v - mean[k], v - mean[k]) for v in of[k]) / (n - 1)
                traces.append(float((scatter @ inverse).trace()))
                unit = [v / v.norm() for v in of[k]]
                pairs = [(unit[i] - unit[j]) for i in range(n) for j in range(n) if i < j]
                alignments.append(sum(float(d @ d) for d in pairs) / len(pairs))
        if traces:
            found[f"nc1{name}"] = sum(traces) / len(traces) / len(classes)
            found[f"alignment{name}"] = sum(alignments) / len(alignments)
        pairs = [_cosine(centred[j], centred[k]) for j in group for k in group if j < k]
        if pairs:
            ideal = -1 / (len(classes) - 1)
            found[f"maximal_angle{name}"] = sum(abs(c - ideal) for c in pairs) / len(pairs)
        if group:
            images = [(v / v.norm(), 1 / len(of[k])) for k in group for v in of[k]]
            weights, kernels = 0.0, 0.0
            for i, (x, a) in enumerate(images):
                for j, (y, b) in enumerate(images):
                    if i != j:
                        weights += a * b
                        kernels += a * b * math.exp(-2 * float((x - y) @ (x - y)))
            if weights:
                found[f"uniformity{name}"] = math.log(kernels / weights)
            w = torch.stack([rows[k] for k in group])
            m = torch.stack([centred[k] for k in group])
            found[f"row_distance{name}"] = float((w / w.norm() - m / m.norm()).norm())
    sides = {"head": groups["_many"], "tail": groups["_few"]}
    for first, second in (("head", "head"), ("head", "tail"), ("tail", "tail")):
        cosines = [
            _cosine(centred[j], centred[k])
            for j in sides[first]
            for k in sides[second]
            if j < k or first != second
        ]
        if cosines:
            found[f"{first}_{second}_cosine"] = sum(cosines) / len(cosines)
    return found


def _cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))
