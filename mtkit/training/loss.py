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


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, since only then are the logits at hand.

    With z = W h and q = softmax(z), the loss of a token is lse(z) - (1 - s) z_y - s mean(z). Its gradient by h is
    W'q - (1 - s) W_y - s mean(W), so that the V-wide part of the work is one log-softmax.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        dtype = features.dtype
        table = weight.to(dtype)
        mean_row = weight.float().mean(0)  # (D,)
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        by_features = torch.empty_like(features, dtype=torch.float32) if wants_gradient else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_gradient else None
        likelihood = features.new_zeros((), dtype=torch.float32)
        mean_log_prob = features.new_zeros((), dtype=torch.float32)

        chunk = max(1, CHUNK_ELEMENTS // len(weight)) if features.device.type == "cpu" else 1 << 13
        for start in range(0, len(features), chunk):
            h, y = features[start : start + chunk], labels[start : start + chunk, None]
            logits = F.linear(h, table)  # (C, V)
            log_probs = F.log_softmax(logits, -1, dtype=torch.float32)
            y_log_probs = log_probs.gather(1, y)
            lse = logits.gather(1, y).float() - y_log_probs
            likelihood += y_log_probs.sum()
            mean_log_prob += (h.float() @ mean_row).sum() - lse.sum()
            if by_features is None or by_weight is None:
                continue
            probs = log_probs.exp_().to(dtype)
            by_features[start : start + chunk] = probs @ table
            if dtype == torch.float32:
                by_weight.addmm_(probs.T, h)
            else:
                by_weight += probs.T @ h

        if by_features is not None and by_weight is not None:
            h = features.float()
            by_features -= (1 - smoothing) * weight.float()[labels] + smoothing * mean_row
            by_weight.index_add_(0, labels, h, alpha=smoothing - 1)
            by_weight -= smoothing / len(weight) * h.sum(0)
            ctx.save_for_backward(by_features.to(dtype), by_weight.to(weight.dtype))
        negative_log_likelihood = -likelihood
        ctx.mark_non_differentiable(negative_log_likelihood)
        return (1 - smoothing) * negative_log_likelihood - smoothing * mean_log_prob, negative_log_likelihood

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_features, by_weight = ctx.saved_tensors
        return by_features * by_loss, by_weight * by_loss, None, None


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
        features[real], output.weight, labels[real], smoothing
    )
    return sums
