"""Training objectives: label-smoothed cross-entropy of one pass, or of two that must agree."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batch import NO_LABEL, Batch, Rows
from mtkit.models.interface import Output, TranslationModel

CHUNK_ELEMENTS = 1 << 21  # logits of a chunk: 8 MB in fp32, so that they stay in a processor's cache
DEVICE_CHUNK_TOKENS = 1 << 13  # on other devices: enough to keep them busy
DEVICE_CHUNK_ELEMENTS = 1 << 28  # 1 GB in fp32, however large the vocabulary


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

        chunk = chunk_tokens(features.device.type, 1, len(weight))
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
            _add_product(by_weight, by_logits, h)

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


def chunk_tokens(device: str, num_passes: int, vocab_size: int) -> int:
    """How many tokens, of so many passes each, have their logits in memory at once."""
    if device == "cpu":
        return max(1, CHUNK_ELEMENTS // (num_passes * vocab_size))
    return max(1, min(DEVICE_CHUNK_TOKENS, DEVICE_CHUNK_ELEMENTS // vocab_size) // num_passes)


def _add_product(by_weight: Tensor, by_logits: Tensor, h: Tensor) -> None:
    """Add by_logits' @ h of a chunk, (C, V) and (C, D), to by_weight (V, D) in its precision.

    In fp16 the sums over the tokens of a chunk do not fit into fp16's range, and no loss scale could help, since it
    comes only after them. bf16 has the range.
    """
    if by_logits.dtype == by_weight.dtype:
        by_weight.addmm_(by_logits.T, h)
    elif by_logits.dtype != torch.float16:
        by_weight += by_logits.T @ h
    elif by_logits.device.type == "cuda" and torch.version.hip is None:
        by_weight += torch.mm(by_logits.T, h, out_dtype=by_weight.dtype)
    else:
        by_weight.addmm_(by_logits.T.to(by_weight.dtype), h.to(by_weight.dtype))


@dataclass(frozen=True)
class Shares:
    """How the terms of a loss over two passes, p and q, add up."""

    likelihood: tuple[float, float]  # of the smoothed losses of p and of q
    divergence: tuple[float, float]  # of KL(p || q) and of KL(q || p), whose sum is the consistency
    weight: float  # of the consistency beside the loss


class _ConsistentCrossEntropy(torch.autograd.Function):
    """The same of two passes at once, and how far they differ.

    Where p = softmax(z), the gradient of KL(p || q) by z is p (log(p / q) - KL(p || q)), and that of KL(q || p) is
    p - q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        smoothing: float,
        shares: Shares,
        gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = features.dtype
        exact = torch.promote_types(dtype, torch.float32)
        table, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        mean_row = weight.to(exact).mean(0)  # (D,)
        by_features = torch.empty_like(features, dtype=exact) if gradient else None
        by_weight = torch.zeros_like(weight, dtype=exact) if gradient else None
        by_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and gradient else None
        likelihood, sum_lse, divergence = features.new_zeros(3, 2, dtype=exact)  # each for both passes

        chunk = chunk_tokens(features.device.type, 2, len(weight))
        for start in range(0, len(labels), chunk):
            h = features[:, start : start + chunk]  # (2, C, D)
            y = labels[start : start + chunk, None].expand(2, -1, 1)  # (2, C, 1)
            logits = F.linear(h.flatten(0, 1), table, added).view(2, -1, len(weight))  # (2, C, V)
            log_probs = F.log_softmax(logits, -1, dtype=exact)
            y_log_probs = log_probs.gather(2, y)
            likelihood += y_log_probs.sum((1, 2))
            sum_lse += (logits.gather(2, y).to(exact) - y_log_probs).sum((1, 2))
            log_ratio = log_probs[0] - log_probs[1]
            probs = log_probs.exp_()
            divergences = torch.stack([(probs[0] * log_ratio).sum(1), -(probs[1] * log_ratio).sum(1)])  # (2, C)
            divergence += divergences.sum(1)
            if by_features is None or by_weight is None:
                continue
            by_logits = _by_logits(probs, log_ratio, divergences, shares)
            for i in range(2):
                by_logits[i].scatter_add_(
                    1, y[i], y_log_probs.new_full(y[i].shape, (smoothing - 1) * shares.likelihood[i])
                )
            if by_bias is not None:
                by_bias += by_logits.sum((0, 1))
            by_logits = by_logits.to(dtype).flatten(0, 1)
            by_features[:, start : start + chunk] = (by_logits @ table).view(h.shape)
            _add_product(by_weight, by_logits, h.flatten(0, 1))

        first, second = shares.likelihood
        sums_h = features.to(exact).sum(1)  # (2, D)
        mean_log_probs = (sums_h * mean_row).sum(1) - sum_lse
        if bias is not None:
            mean_log_probs += len(labels) * bias.to(exact).mean()
        if by_features is not None and by_weight is not None:
            by_features[0] -= smoothing * first * mean_row
            by_features[1] -= smoothing * second * mean_row
            by_weight -= smoothing / len(weight) * (first * sums_h[0] + second * sums_h[1])
            if bias is not None and by_bias is not None:
                by_bias = (by_bias - smoothing / len(weight) * (first + second) * len(labels)).to(bias.dtype)
            ctx.save_for_backward(by_features.to(dtype), by_weight.to(weight.dtype), by_bias)
        losses = (smoothing - 1) * likelihood - smoothing * mean_log_probs
        loss = first * losses[0] + second * losses[1]
        negative_log_likelihood = -(first * likelihood[0] + second * likelihood[1])
        consistency = shares.divergence[0] * divergence[0] + shares.divergence[1] * divergence[1]
        ctx.mark_non_differentiable(loss, negative_log_likelihood, consistency)
        return loss + shares.weight * consistency, loss, negative_log_likelihood, consistency

    @staticmethod
    def backward(ctx: Any, by_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight, by_bias = ctx.saved_tensors
        by_bias = None if by_bias is None else by_bias * by_total
        return by_features * by_total, by_weight * by_total, by_bias, None, None, None, None


def _by_logits(probs: Tensor, log_ratio: Tensor, divergences: Tensor, shares: Shares) -> Tensor:
    """(2, C, V) gradients of all but the terms of the labels; log_ratio, which is log(p / q), changes its sign."""
    by_logits = torch.empty_like(probs)
    for this, other in ((0, 1), (1, 0)):
        # Of KL(this || other) and of KL(other || this).
        ours, theirs = (shares.weight * shares.divergence[i] for i in (this, other))
        part = torch.sub(log_ratio, divergences[this, :, None], out=by_logits[this])
        part.mul_(ours).add_(shares.likelihood[this] + theirs).mul_(probs[this]).sub_(probs[other], alpha=theirs)
        log_ratio.neg_()
    return by_logits


def label_smoothed_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums over real tokens of the smoothed loss and of the negative log-likelihood, in nats.

    features is (R, T, D), labels (R, T); padding counts for nothing. The smoothed mass is spread over all V tokens
    (Szegedy et al. 2016), not over the V - 1 wrong ones, so perplexities differ from tools that do that. Only the first
    sum has a gradient; no gradient of a gradient.
    """
    real = labels != NO_LABEL
    sums: tuple[Tensor, Tensor] = _SmoothedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        _autocast(features)[real],
        output.weight,
        output.bias,
        labels[real],
        smoothing,
        torch.is_grad_enabled(),
    )
    return sums


def consistent_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float, shares: Shares
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over real tokens of loss + weight x consistency, of the loss, the likelihood's negative and the consistency.

    features is (2, R, T, D), those of the passes p and q, and labels (R, T). Loss and likelihood are as above, those of
    both passes in their shares. Only the first sum has a gradient, and it flows into both passes.
    """
    real = labels != NO_LABEL
    sums: tuple[Tensor, Tensor, Tensor, Tensor] = _ConsistentCrossEntropy.apply(  # type: ignore[no-untyped-call]
        _autocast(features)[:, real],
        output.weight,
        output.bias,
        labels[real],
        smoothing,
        shares,
        torch.is_grad_enabled(),
    )
    return sums


def _autocast(features: Tensor) -> Tensor:
    device = features.device.type
    return features.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else features


# What an update makes smaller: the loss of a batch, of one pass through the model or of two that must agree.


@dataclass(frozen=True)
class BatchLoss:
    """Sums over the target tokens of a batch, in nats."""

    total: Tensor  # what the gradient is of
    sums: Tensor  # (2,) or (3,): smoothed loss and negative log-likelihood; the divergence of two passes; no gradient


def likelihood(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """One pass, and no other wish."""
    features = model(batch.source, batch.target)
    loss, nll = label_smoothed_cross_entropy(features, model.output, batch.labels, settings.label_smoothing)
    return BatchLoss(loss, torch.stack([loss.detach(), nll]))


def rdrop(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """R-Drop (Liang et al. 2021): what two passes p and q under different dropout say should agree.

    The paper's loss is CE(p) + CE(q) + alpha (KL(p || q) + KL(q || p)) / 2, and its code divides that by the tokens of
    one pass. This is half of it, so that the loss, its gradient and a learning rate keep the size they have without.
    """
    alpha = settings.consistency_weight or 5.0
    shares = Shares(likelihood=(0.5, 0.5), divergence=(0.5, 0.5), weight=alpha / 2)
    return _agreeing(model, _twice(batch.source), _twice(batch.target), batch.labels, settings.label_smoothing, shares)


def simcut(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """SimCut (Gao et al. 2022): a pass q that cannot see some tokens should agree with one, p, that sees them all.

    CE(p) + alpha KL(p || q), where gradients flow through both p and q, which the paper finds to matter. As in its
    code tokens are cut on both sides, and never the marks that begin a target and end a source.
    """
    alpha = settings.consistency_weight or 3.0
    shares = Shares(likelihood=(1.0, 0.0), divergence=(1.0, 0.0), weight=alpha)
    source = _twice(batch.source, cut_tokens(batch.source, settings.cutoff, model.marks.source_end))
    target = _twice(batch.target, cut_tokens(batch.target, settings.cutoff, model.marks.start))
    return _agreeing(model, source, target, batch.labels, settings.label_smoothing, shares)


OBJECTIVES: dict[str, Callable[[TranslationModel, Batch, TrainingConfig], BatchLoss]] = {
    "none": likelihood,
    "rdrop": rdrop,
    "simcut": simcut,
}


def cut_tokens(rows: Rows, share: float, mark: int) -> Tensor:
    """(R, L) bool: a share of the tokens, drawn one by one from PyTorch's generator, but never a side's mark."""
    drawn = torch.rand(rows.ids.shape, device=rows.ids.device) < share
    return drawn & rows.mask & (rows.ids != mark)


def _twice(rows: Rows, cut: Tensor | None = None) -> Rows:
    """The rows, and below them the same rows again, in which some tokens are cut; (2R, L)."""
    return replace(
        rows,
        ids=rows.ids.repeat(2, 1),
        segments=rows.segments.repeat(2, 1),
        positions=rows.positions.repeat(2, 1),
        cut=None if cut is None else torch.cat([torch.zeros_like(cut), cut]),
    )


def _halves(rows: Rows) -> list[Rows]:
    """What _twice joined."""
    parts = [rows.ids.chunk(2), rows.segments.chunk(2), rows.positions.chunk(2)]
    cuts = (None, None) if rows.cut is None else rows.cut.chunk(2)
    return [
        replace(rows, ids=ids, segments=segments, positions=positions, cut=cut)
        for ids, segments, positions, cut in zip(*parts, cuts, strict=True)
    ]


def _agreeing(
    model: TranslationModel, source: Rows, target: Rows, labels: Tensor, smoothing: float, shares: Shares
) -> BatchLoss:
    if model.drops_layers:  # the layers are drawn once a call, and each pass is to have its own
        features = torch.stack([model(*both) for both in zip(_halves(source), _halves(target), strict=True)])
    else:
        features = model(source, target).unflatten(0, (2, -1))  # (2, R, T, D)
    total, *parts = consistent_cross_entropy(features, model.output, labels, smoothing, shares)
    return BatchLoss(total, torch.stack(parts))
