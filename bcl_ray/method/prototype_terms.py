"""The prototypes' part of the balanced contrastive loss, with little memory.

Axes: A anchors, K classes, D feature width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bcl_ray.method.precision import at_least_float32


def prototype_terms(
    anchors: Tensor,
    prototypes: Tensor,
    anchor_labels: Tensor,
    own_log_divisor: Tensor,
    class_log_divisors: Tensor,
    *,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """The log of the prototypes' part of each anchor's denominator, and its own similarity.

    Its own similarity is that to the prototype of the anchor's class.

    Args:
        anchors: Unit-norm features, (A, D), in float32 or float64.
        prototypes: Unit-norm, (K, D).
        anchor_labels: Class of each anchor, (A,), int64 in [0, K).
        own_log_divisor: Log of the divisor of each anchor's own class, (A,).
        class_log_divisors: Log of each class's divisor for anchors of other classes, (K,).
        temperature: Divides the similarities; > 0.

    Returns:
        For anchor i of class y, log(sum_k exp(s_ik) / divisor_ik) and s_iy, (A,) each, where s_ik
        is the similarity to prototype k divided by the temperature. Gradients flow only into
        `anchors` and `prototypes`.
    """
    terms: tuple[Tensor, Tensor] = _PrototypeTerms.apply(
        anchors,
        at_least_float32(prototypes),
        anchor_labels,
        own_log_divisor,
        class_log_divisors,
        temperature,
    )
    return terms


class _PrototypeTerms(torch.autograd.Function):
    """Keeps one (K, A) buffer, where plain operations would hold several at their peak.

    Similarities become exponentials in place. Backward needs no other buffer: the softmax is this
    one times a factor per anchor, which is applied to the (A, D) side of each product.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        anchors: Tensor,
        prototypes: Tensor,
        own: Tensor,
        own_log_divisor: Tensor,
        class_log_divisors: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        # (K, A) rather than (A, K): its three products are a quarter faster on a CPU (measured).
        block = torch.addmm(
            -class_log_divisors[:, None], prototypes, anchors.T, alpha=1 / temperature
        )
        row = own[None]  # (1, A)
        to_own = block.gather(0, row) + class_log_divisors[row]
        block.scatter_(0, row, to_own - own_log_divisor)
        highest = block.amax(0)
        total = block.sub_(highest).exp_().sum(0)
        ctx.save_for_backward(anchors, prototypes, own, block, total)
        ctx.temperature = temperature
        return highest + total.log(), to_own[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, grad_own: Tensor) -> tuple[Tensor | None, ...]:
        anchors, prototypes, own, block, total = ctx.saved_tensors
        sum_factor = (grad_sum / (total * ctx.temperature))[:, None]
        own_factor = (grad_own / ctx.temperature)[:, None]
        grad_anchors = (block.T @ prototypes).mul_(sum_factor)
        grad_anchors.addcmul_(prototypes[own], own_factor)
        grad_prototypes = block @ (anchors * sum_factor)
        grad_prototypes.index_add_(0, own, anchors * own_factor)
        return grad_anchors, grad_prototypes, None, None, None, None
