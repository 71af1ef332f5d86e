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

# R rows (sentences), T target length, D model width, V vocabulary size, N real target tokens, C tokens of a chunk,
# P passes, 1 or 2.

CHUNK_ELEMENTS = 1 << 21  # logits of a chunk: 8 MB in fp32, so that they stay in a processor's cache
DEVICE_CHUNK_TOKENS = 1 << 13  # tokens of a chunk on other devices: enough to keep them busy
DEVICE_CHUNK_ELEMENTS = 1 << 28  # at most 1 GB of logits in fp32, however large the vocabulary


@dataclass(frozen=True)
class Shares:
    """The weights of the terms of a loss over one pass p, or over two passes p and q."""

    cross_entropy: tuple[float, ...]  # of the label-smoothed cross-entropy of each pass
    divergence: tuple[float, float] = (0.0, 0.0)  # of KL(p || q) and of KL(q || p), whose sum is the consistency
    weight: float = 0.0  # of the consistency beside the cross-entropy


ONE_PASS = Shares(cross_entropy=(1.0,))


def label_smoothed_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Sums over real tokens of the label-smoothed cross-entropy and of the negative log-likelihood, in nats.

    features is (R, T, D), labels (R, T); padding does not count. The smoothed mass is spread over all V tokens
    (Szegedy et al. 2016), not over the V - 1 wrong ones, so perplexities differ from tools that do that. Only the first
    sum has a gradient, and that gradient has none of its own.
    """
    loss, _, negative_log_likelihood, _ = consistent_cross_entropy(features[None], output, labels, smoothing, ONE_PASS)
    return loss, negative_log_likelihood


def consistent_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float, shares: Shares
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over real tokens, in nats, of the loss of two passes (or one) and its parts.

    These are cross-entropy + weight x consistency, cross-entropy, negative log-likelihood, and consistency. features is
    (P, R, T, D), those of the passes p and q; labels is (R, T). Cross-entropy and likelihood are as above, added up
    over the passes by their shares. Only the first sum has a gradient, which is by all passes.
    """
    real = labels != NO_LABEL
    sums: tuple[Tensor, Tensor, Tensor, Tensor] = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
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


class _CrossEntropy(torch.autograd.Function):
    """Label-smoothed cross-entropy of one pass or two, and how far two diverge, in little memory.

    The gradients are computed in the forward pass, chunk by chunk, so that the logits never exist all at once.

    With z = W h + b and p = softmax(z), the cross-entropy of a token is lse(z) - (1 - s) z_y - s mean(z), where y is
    its label and s the smoothing. Its gradient by h is W'(p - (1 - s) e_y) - s mean(W), so that only one log-softmax
    has to be computed over V; by b it is p - (1 - s) e_y - s/V. The gradient of KL(p || q) by z is
    p (log(p / q) - KL(p || q)), and that of KL(q || p) is p - q. Sums are in fp32, or in fp64 if the features are.
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
        wants_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_passes, num_tokens, _ = features.shape
        dtype = features.dtype
        exact = torch.promote_types(dtype, torch.float32)
        table, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        mean_row = weight.to(exact).mean(0)  # (D,)
        by_features = torch.empty_like(features, dtype=exact) if wants_gradient else None
        by_weight = torch.zeros_like(weight, dtype=exact) if wants_gradient else None
        by_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wants_gradient else None
        log_likelihood, sum_lse = features.new_zeros(2, num_passes, dtype=exact)
        divergence = features.new_zeros(2, dtype=exact)  # KL(p || q) and KL(q || p)

        chunk = chunk_tokens(features.device.type, num_passes, len(weight))
        for start in range(0, num_tokens, chunk):
            h = features[:, start : start + chunk]  # (P, C, D)
            y = labels[start : start + chunk, None].expand(num_passes, -1, 1)  # (P, C, 1)
            logits = F.linear(h.flatten(0, 1), table, added).view(num_passes, -1, len(weight))  # (P, C, V)
            log_probs = F.log_softmax(logits, -1, dtype=exact)
            y_log_probs = log_probs.gather(2, y)
            log_likelihood += y_log_probs.sum((1, 2))
            sum_lse += (logits.gather(2, y).to(exact) - y_log_probs).sum((1, 2))
            if num_passes == 2:
                log_ratio = log_probs[0] - log_probs[1]
                probs = log_probs.exp_()
                divergences = torch.stack([(probs[0] * log_ratio).sum(1), -(probs[1] * log_ratio).sum(1)])  # (2, C)
                divergence += divergences.sum(1)
            if by_features is None or by_weight is None:
                continue
            by_logits = log_probs.exp_() if num_passes == 1 else _by_logits(probs, log_ratio, divergences, shares)
            for i, share in enumerate(shares.cross_entropy):
                by_logits[i].scatter_add_(1, y[i], y_log_probs.new_full(y[i].shape, (smoothing - 1) * share))
            if by_bias is not None:
                by_bias += by_logits.sum((0, 1))
            by_logits = by_logits.to(dtype).flatten(0, 1)
            by_features[:, start : start + chunk] = (by_logits @ table).view(h.shape)
            _add_product(by_weight, by_logits, h.flatten(0, 1))

        sums_h = features.to(exact).sum(1)  # (P, D)
        mean_log_probs = (sums_h * mean_row).sum(1) - sum_lse  # not by @, which autocast would round
        if bias is not None:
            mean_log_probs += num_tokens * bias.to(exact).mean()
        if by_features is not None and by_weight is not None:
            for i, share in enumerate(shares.cross_entropy):
                by_features[i] -= smoothing * share * mean_row
            by_weight -= smoothing / len(weight) * _sum(shares, sums_h)
            if bias is not None and by_bias is not None:
                by_bias = (by_bias - smoothing / len(weight) * sum(shares.cross_entropy) * num_tokens).to(bias.dtype)
            ctx.save_for_backward(by_features.to(dtype), by_weight.to(weight.dtype), by_bias)
        cross_entropy = _sum(shares, (smoothing - 1) * log_likelihood - smoothing * mean_log_probs)
        negative_log_likelihood = -_sum(shares, log_likelihood)
        consistency = shares.divergence[0] * divergence[0] + shares.divergence[1] * divergence[1]
        ctx.mark_non_differentiable(cross_entropy, negative_log_likelihood, consistency)
        return cross_entropy + shares.weight * consistency, cross_entropy, negative_log_likelihood, consistency

    @staticmethod
    def backward(ctx: Any, by_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        by_features, by_weight, by_bias = ctx.saved_tensors
        by_bias = None if by_bias is None else by_bias * by_total
        return by_features * by_total, by_weight * by_total, by_bias, None, None, None, None


def _sum(shares: Shares, of_passes: Tensor) -> Tensor:
    """The sum of values (P, ...) over the passes, each times the share of its cross-entropy."""
    first, *others = (share * value for share, value in zip(shares.cross_entropy, of_passes, strict=True))
    total: Tensor = sum(others, first)
    return total


def _by_logits(probs: Tensor, log_ratio: Tensor, divergences: Tensor, shares: Shares) -> Tensor:
    """The gradients (2, C, V) of all terms except those of the labels; log_ratio is log(p / q).

    To save memory, the signs in log_ratio are flipped in place.
    """
    by_logits = torch.empty_like(probs)
    for this, other in ((0, 1), (1, 0)):
        # Of KL(this || other) and of KL(other || this).
        ours, theirs = (shares.weight * shares.divergence[i] for i in (this, other))
        part = torch.sub(log_ratio, divergences[this, :, None], out=by_logits[this])
        part.mul_(ours).add_(shares.cross_entropy[this] + theirs).mul_(probs[this]).sub_(probs[other], alpha=theirs)
        log_ratio.neg_()
    return by_logits


def _add_product(by_weight: Tensor, by_logits: Tensor, h: Tensor) -> None:
    """Add by_logits' @ h of a chunk, (C, V) and (C, D), to by_weight (V, D), in the precision of by_weight.

    Sums over the tokens of a chunk may exceed the range of fp16, and the loss scale cannot help, since it is applied
    later; bf16 has enough range.
    """
    if by_logits.dtype == by_weight.dtype:
        by_weight.addmm_(by_logits.T, h)
    elif by_logits.dtype != torch.float16:
        by_weight += by_logits.T @ h
    elif by_logits.device.type == "cuda" and torch.version.hip is None:
        by_weight += torch.mm(by_logits.T, h, out_dtype=by_weight.dtype)
    else:
        by_weight.addmm_(by_logits.T.to(by_weight.dtype), h.to(by_weight.dtype))


def chunk_tokens(device: str, num_passes: int, vocab_size: int) -> int:
    """How many tokens are computed at once, if each has the logits of so many passes."""
    if device == "cpu":
        return max(1, CHUNK_ELEMENTS // (num_passes * vocab_size))
    return max(1, min(DEVICE_CHUNK_TOKENS, DEVICE_CHUNK_ELEMENTS // vocab_size) // num_passes)


# Training objectives: the loss of a batch, of one pass through the model or of two that must agree.


@dataclass(frozen=True)
class BatchLoss:
    """Sums over the target tokens of a batch, in nats."""

    total: Tensor  # the objective, of which the gradient is taken
    sums: Tensor  # (2,) cross-entropy, negative log-likelihood; (3,) with the consistency of two passes; no gradient


def cross_entropy(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """The label-smoothed cross-entropy of one pass."""
    features = model(batch.source, batch.target)
    loss, nll = label_smoothed_cross_entropy(features, model.output, batch.labels, settings.label_smoothing)
    return BatchLoss(loss, torch.stack([loss.detach(), nll]))


def rdrop(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """R-Drop (Liang et al. 2021): two passes p and q under different dropout should agree.

    The paper's loss is CE(p) + CE(q) + alpha (KL(p || q) + KL(q || p)) / 2, and its code divides that by the tokens of
    one pass. This is half of it, so that the loss and its gradient are as large as without R-Drop, and suit the same
    learning rate.
    """
    alpha = settings.consistency_weight or 5.0
    shares = Shares(cross_entropy=(0.5, 0.5), divergence=(0.5, 0.5), weight=alpha / 2)
    return _two_passes(
        model, _twice(batch.source), _twice(batch.target), batch.labels, settings.label_smoothing, shares
    )


def simcut(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """SimCut (Gao et al. 2022): a pass q in which some tokens are cut should agree with a pass p that sees them all.

    The loss is CE(p) + alpha KL(p || q), with gradients through both p and q, which the paper finds to matter. As in
    its code, tokens are cut on both sides, but never the marks that begin a target and end a source.
    """
    alpha = settings.consistency_weight or 3.0
    shares = Shares(cross_entropy=(1.0, 0.0), divergence=(1.0, 0.0), weight=alpha)
    source = _twice(batch.source, cut_tokens(batch.source, settings.cutoff, model.boundaries.source_end))
    target = _twice(batch.target, cut_tokens(batch.target, settings.cutoff, model.boundaries.start))
    return _two_passes(model, source, target, batch.labels, settings.label_smoothing, shares)


OBJECTIVES: dict[str, Callable[[TranslationModel, Batch, TrainingConfig], BatchLoss]] = {
    "none": cross_entropy,
    "rdrop": rdrop,
    "simcut": simcut,
}


def cut_tokens(rows: Rows, share: float, mark: int) -> Tensor:
    """Which tokens are cut, (R, L) bool: each with probability share, but never the mark of the side."""
    drawn = torch.rand(rows.ids.shape, device=rows.ids.device) < share
    return drawn & rows.mask & (rows.ids != mark)


def _twice(rows: Rows, cut: Tensor | None = None) -> Rows:
    """The rows twice, one copy below the other, (2R, L); some tokens of the second copy are cut."""
    return replace(
        rows,
        ids=rows.ids.repeat(2, 1),
        segments=rows.segments.repeat(2, 1),
        positions=rows.positions.repeat(2, 1),
        cut=None if cut is None else torch.cat([torch.zeros_like(cut), cut]),
    )


def _halves(rows: Rows) -> list[Rows]:
    """The two copies that _twice joined."""
    parts = [rows.ids.chunk(2), rows.segments.chunk(2), rows.positions.chunk(2)]
    cuts = (None, None) if rows.cut is None else rows.cut.chunk(2)
    return [
        replace(rows, ids=ids, segments=segments, positions=positions, cut=cut)
        for ids, segments, positions, cut in zip(*parts, cuts, strict=True)
    ]


def _two_passes(
    model: TranslationModel, source: Rows, target: Rows, labels: Tensor, smoothing: float, shares: Shares
) -> BatchLoss:
    """The loss of two passes over doubled rows."""
    if model.drops_layers:  # dropped layers are drawn once a call, and each pass needs its own draw
        features = torch.stack([model(*both) for both in zip(_halves(source), _halves(target), strict=True)])
    else:
        features = model(source, target).unflatten(0, (2, -1))  # (2, R, T, D)
    total, *parts = consistent_cross_entropy(features, model.output, labels, smoothing, shares)
    return BatchLoss(total, torch.stack(parts))
