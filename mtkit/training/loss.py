"""Label-smoothed cross-entropy whose (tokens x vocabulary) logits never exist all at once.

N tokens, C tokens of a chunk, D model width, V vocabulary size.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.symbols import PAD

CHUNK_ELEMENTS = 1 << 21  # logits of a chunk: 8 MB in fp32, so that they stay in a processor's cache


class Output(Protocol):
    """The last layer of a model."""

    @property
    def weight(self) -> Tensor:
        """(V, D)."""

    @property
    def bias(self) -> Tensor | None:
        """(V,), or none."""


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, since only then are the logits at hand.

    With z = W h + b and q = softmax(z), the loss of a token is lse(z) - (1 - s) z_y - s mean(z). Its gradient by h is
    W'(q - (1 - s) e_y) - s mean(W), so that the V-wide part of the work is one log-softmax; by b it is
    q - (1 - s) e_y - s/V. Sums are in fp32, or in fp64 where the features are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        smoothing: float,
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = features.dtype
        exact = torch.promote_types(dtype, torch.float32)
        table, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        mean_row = weight.to(exact).mean(0)  # (D,)
        by_features = torch.empty_like(features, dtype=exact) if wants_gradient else None
        by_weight = torch.zeros_like(weight, dtype=exact) if wants_gradient else None
        by_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wants_gradient else None
        likelihood = features.new_zeros((), dtype=exact)
        sum_lse = features.new_zeros((), dtype=exact)

        chunk = max(1, CHUNK_ELEMENTS // len(weight)) if features.device.type == "cpu" else 1 << 13
        for start in range(0, len(features), chunk):
            h, y = features[start : start + chunk], labels[start : start + chunk, None]
            logits = F.linear(h, table, added)  # (C, V)
            log_probs = F.log_softmax(logits, -1, dtype=exact)
            y_log_probs = log_probs.gather(1, y)
            likelihood += y_log_probs.sum()
            sum_lse += (logits.gather(1, y).to(exact) - y_log_probs).sum()
            if by_features is None or by_weight is None:
                continue
            by_logits = log_probs.exp_().scatter_(1, y, y_log_probs.exp() - (1 - smoothing))
            if by_bias is not None:
                by_bias += by_logits.sum(0)
            by_logits = by_logits.to(dtype)
            by_features[start : start + chunk] = by_logits @ table
            if dtype == exact:
                by_weight.addmm_(by_logits.T, h)
            else:
                by_weight += by_logits.T @ h

        sum_h = features.to(exact).sum(0)  # (D,)
        mean_log_prob = (sum_h * mean_row).sum() - sum_lse  # not by @, which autocast would round
        if bias is not None:
            mean_log_prob += len(features) * bias.to(exact).mean()
        if by_features is not None and by_weight is not None:
            by_features -= smoothing * mean_row
            by_weight -= smoothing / len(weight) * sum_h
            if bias is not None and by_bias is not None:
                by_bias = (by_bias - smoothing / len(weight) * len(features)).to(bias.dtype)
            ctx.save_for_backward(by_features.to(dtype), by_weight.to(weight.dtype), by_bias)
        negative_log_likelihood = -likelihood
        ctx.mark_non_differentiable(negative_log_likelihood)
        return (1 - smoothing) * negative_log_likelihood - smoothing * mean_log_prob, negative_log_likelihood

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight, by_bias = ctx.saved_tensors
        by_bias = None if by_bias is None else by_bias * by_loss
        return by_features * by_loss, by_weight * by_loss, by_bias, None, None, None


def label_smoothed_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums over real tokens of the smoothed loss and of the negative log-likelihood, in nats.

    features is (R, T, D), labels (R, T); padding counts for nothing. The smoothed mass is spread over all V tokens
    (Szegedy et al. 2016), not over the V - 1 wrong ones, so perplexities differ from tools that do that. Only the first
    sum has a gradient; no gradient of a gradient.
    """
    real = labels != PAD
    device = features.device.type
    if torch.is_autocast_enabled(device):
        features = features.to(torch.get_autocast_dtype(device))
    sums: tuple[Tensor, Tensor] = _SmoothedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        features[real], output.weight, output.bias, labels[real], smoothing, torch.is_grad_enabled()
    )
    return sums
