"""Training objectives: label-smoothed cross-entropy, alone, with guided alignment, or with a consistency loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import NO_LABEL, Batch, Rows
from mtkit.models.interface import SLICE_ELEMENTS, Output, TranslationModel
from mtkit.models.layers import compute_dtype
from mtkit.models.masked import MaskedModel

# In shapes: R rows (sentences), T target length, D model width, V vocabulary size, N target tokens without padding,
# C tokens of a chunk, P passes, 1 or 2.

# On a CPU, each matrix product is computed for one chunk of tokens at a time. Everything between two matrix products,
# such as the softmax, is computed for one slice of the chunk at a time.
CHUNK_ELEMENTS = 1 << 22  # logits of a chunk: 8 MB in bf16
LEAST_LOG_PROB = -87.0  # a probability whose logarithm is less has fewer digits in bf16 and fp32, or is 0
DEVICE_CHUNK_TOKENS = 1 << 13  # tokens of a chunk on other devices, summed over the passes: enough to keep them busy
DEVICE_CHUNK_ELEMENTS = 1 << 28  # logits of a chunk on other devices: at most 1 GB in fp32


@dataclass(frozen=True)
class Shares:
    """The weights of the terms of a loss; the loss is computed from one forward pass (p) or from two (p and q)."""

    cross_entropy: tuple[float, ...]  # weight of the label-smoothed cross-entropy of each pass
    divergence: tuple[float, float] = (0.0, 0.0)  # weights of KL(p || q) and KL(q || p) in the consistency loss
    weight: float = 0.0  # weight of the consistency loss in the total, where the cross-entropy has weight 1


ONE_PASS = Shares(cross_entropy=(1.0,))


def label_smoothed_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Returns the label-smoothed cross-entropy and the negative log-likelihood, summed over the target tokens, in nats.

    `features` is (R, T, D), `labels` (R, T); padding (NO_LABEL) does not count. The smoothing mass is spread over all V
    tokens of the vocabulary (Szegedy et al. 2016). Some tools spread the mass over the V - 1 wrong tokens instead; the
    losses of such tools cannot be compared with mtkit's. Only the cross-entropy has a gradient; second derivatives are
    not supported.
    """
    loss, _, negative_log_likelihood, _ = consistent_cross_entropy(features[None], output, labels, smoothing, ONE_PASS)
    return loss, negative_log_likelihood


def consistent_cross_entropy(
    features: Tensor, output: Output, labels: Tensor, smoothing: float, shares: Shares, places: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns four losses, each summed over the target tokens, in nats.

    They are the total loss, the cross-entropy, the negative log-likelihood and the consistency loss; the total is
    cross-entropy + `shares.weight` x consistency loss. `features` is (P, R, T, D), the features of P forward passes;
    `labels` is (R, T). `places` is `Batch.places`: the indices, in the flattened `labels`, of all labels but padding.
    Without it, they are computed here, and the CPU has to wait for a GPU.

    Cross-entropy and negative log-likelihood are as in `label_smoothed_cross_entropy`, summed over the passes with the
    weights in `shares.cross_entropy`. The consistency loss of two passes is the sum of their KL divergences in both
    directions, with the weights in `shares.divergence`; for one pass, the consistency loss is 0. Only the total has a
    gradient, which reaches all passes.
    """
    flat = labels.flatten()
    if places is None:
        places = (flat != NO_LABEL).nonzero()[:, 0]
    sums: tuple[Tensor, Tensor, Tensor, Tensor] = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        features.to(compute_dtype(features)).flatten(1, 2)[:, places],
        output.weight,
        output.bias,
        flat[places],
        smoothing,
        shares,
        torch.is_grad_enabled(),
    )
    return sums


class _CrossEntropy(torch.autograd.Function):
    """The label-smoothed cross-entropy of one or two forward passes, computed in little memory.

    For two passes, this class also computes the KL divergence between them, in both directions.

    `forward` computes the gradients too, chunk by chunk, so that only the logits of one chunk are in memory at a time.

    Let z = W h + b be the logits of a token with label y, p = softmax(z), lse(z) = log sum exp(z), and s the smoothing.
    The cross-entropy is lse(z) - (1 - s) z_y - s mean(z). Its gradient with respect to h is
    W'(p - (1 - s) e_y) - s mean(W), where e_y is 1 at y and 0 elsewhere; its gradient with respect to b is
    p - (1 - s) e_y - s/V, where V is the vocabulary size. All of this needs only one log-softmax over V. Let q be the
    distribution of the other pass. The gradients with respect to z are p (log(p / q) - KL(p || q)) for KL(p || q)
    and p - q for KL(q || p). Sums are in fp64 if the features are in fp64, else in fp32.
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
        # One pass on a CPU: PyTorch's softmax overwrites the logits with probabilities, which is all that the gradient
        # needs, and the log-probability of a label is the logarithm of its probability. In bf16, that is exact to 0.002
        # nats; it does not enter the gradient.
        in_place = wants_gradient and num_passes == 1 and features.device.type == "cpu" and dtype != torch.float16
        part = chunk if in_place else slice_tokens(features.device.type, num_passes, len(weight))
        # Memory that is used again is faster than new memory, which a CPU has to map page by page.
        elements_per_token = num_passes * len(weight)
        all_logits = features.new_empty(min(chunk, num_tokens) * elements_per_token)
        memory = features.new_empty(0 if in_place else min(part, num_tokens) * elements_per_token, dtype=exact)
        for start in range(0, num_tokens, chunk):
            h = features[:, start : start + chunk].flatten(0, 1)  # (P x C, D)
            logits = all_logits[: len(h) * len(weight)].view(-1, len(weight))  # (P x C, V)
            if added is None:
                torch.mm(h, table.T, out=logits)
            else:
                torch.addmm(added, h, table.T, out=logits)
            chunk_labels = labels[start : start + chunk]
            slices = torch.split(logits.view(num_passes, -1, len(weight)), part, dim=1)
            for z, slice_labels in zip(slices, torch.split(chunk_labels, part), strict=True):  # (P, C', V) and (C',)
                y = slice_labels[:, None].expand(num_passes, -1, 1)  # (P, C', 1)
                if in_place:
                    y_logits = z.gather(2, y).to(exact)
                    y_log_probs = torch.softmax(z, -1, out=z).gather(2, y).to(exact).log_()
                    improbable = y_log_probs.flatten() < LEAST_LOG_PROB
                    is_any = np.zeros((), dtype=bool)
                    torch.any(improbable, out=torch.from_numpy(is_any))  # nothing is read from a device
                    if is_any:
                        rare = F.linear(h[improbable], table, added).to(exact).log_softmax(-1)
                        y_log_probs[0, improbable] = rare.gather(1, slice_labels[improbable, None])
                    log_likelihood += y_log_probs.sum((1, 2))
                    sum_lse += (y_logits - y_log_probs).sum((1, 2))
                    z.scatter_add_(2, y, z.new_full(y.shape, smoothing - 1))
                    if by_bias is not None:
                        by_bias += z.sum((0, 1), dtype=exact)
                    continue
                log_probs = _log_softmax(z, memory)
                y_log_probs = log_probs.gather(2, y)
                log_likelihood += y_log_probs.sum((1, 2))
                sum_lse += (z.gather(2, y).to(exact) - y_log_probs).sum((1, 2))
                if num_passes == 2:
                    log_ratio = log_probs[0] - log_probs[1]
                    probs = log_probs.exp_()
                    divergences = torch.stack([(probs[0] * log_ratio).sum(1), -(probs[1] * log_ratio).sum(1)])
                    divergence += divergences.sum(1)  # `divergences` is (2, C')
                if by_weight is None:
                    continue
                by_logits = _by_logits(probs, log_ratio, divergences, shares) if num_passes == 2 else log_probs.exp_()
                for i, share in enumerate(shares.cross_entropy):
                    by_logits[i].scatter_add_(1, y[i], y_log_probs.new_full(y[i].shape, (smoothing - 1) * share))
                if by_bias is not None:
                    by_bias += by_logits.sum((0, 1))
                z.copy_(by_logits)
            if by_features is not None and by_weight is not None:  # `logits` now holds the gradient by the logits
                by_features[:, start : start + chunk] = (logits @ table).view(num_passes, -1, h.shape[1])
                _add_product(by_weight, logits, h)

        sums_h = features.to(exact).sum(1)  # (P, D)
        mean_log_probs = (sums_h * mean_row).sum(1) - sum_lse  # not with @, which would round under autocast
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
    """Returns the weighted sum of `of_passes`, (P, ...), over its first dimension, the forward passes.

    The weights are `shares.cross_entropy`.
    """
    first, *others = (share * value for share, value in zip(shares.cross_entropy, of_passes, strict=True))
    total: Tensor = sum(others, first)
    return total


def _by_logits(probs: Tensor, log_ratio: Tensor, divergences: Tensor, shares: Shares) -> Tensor:
    """Returns the gradient of the total loss with respect to the logits, (2, C, V), except for two terms.

    The two terms come from the labels and from the smoothing; the caller adds them. `probs` (2, C, V) holds p and q,
    `log_ratio` (C, V) is log(p / q), and `divergences` (2, C) holds KL(p || q) and KL(q || p). To save memory,
    `log_ratio` is negated in place, twice, so that it has its old values in the end.
    """
    by_logits = torch.empty_like(probs)
    for this, other in ((0, 1), (1, 0)):
        # The weights of KL(this || other) and of KL(other || this).
        ours, theirs = (shares.weight * shares.divergence[i] for i in (this, other))
        part = torch.sub(log_ratio, divergences[this, :, None], out=by_logits[this])
        part.mul_(ours).add_(shares.cross_entropy[this] + theirs).mul_(probs[this]).sub_(probs[other], alpha=theirs)
        log_ratio.neg_()
    return by_logits


def _add_product(by_weight: Tensor, by_logits: Tensor, h: Tensor) -> None:
    """Add `by_logits.T @ h` to `by_weight` (V, D) in place; `by_logits` is (P x C, V), `h` is (P x C, D).

    The product sums over tokens, and such sums may exceed the range of fp16. If `by_logits` is in fp16, the product is
    therefore computed in the precision of `by_weight`. The loss scale cannot prevent such an overflow, since the loss
    is scaled later. bf16 has enough range.
    """
    if by_logits.dtype == by_weight.dtype:
        by_weight.addmm_(by_logits.T, h)
    elif by_logits.dtype != torch.float16:
        by_weight += by_logits.T @ h
    elif by_logits.device.type == "cuda" and torch.version.hip is None:
        by_weight += torch.mm(by_logits.T, h, out_dtype=by_weight.dtype)
    else:
        by_weight.addmm_(by_logits.T.to(by_weight.dtype), h.to(by_weight.dtype))


def _log_softmax(logits: Tensor, memory: Tensor) -> Tensor:
    """Returns the log-softmax of `logits` in the dtype of `memory`; on a CPU, the result is written into `memory`."""
    if logits.device.type != "cpu":
        return F.log_softmax(logits, -1, dtype=memory.dtype)
    log_probs = memory[: logits.numel()].view(logits.shape)
    return torch.log_softmax(log_probs.copy_(logits), -1, out=log_probs)


def slice_tokens(device: str, num_passes: int, vocab_size: int) -> int:
    """Returns the number of tokens for which the softmax is computed at a time.

    On a CPU, this is fewer tokens than `chunk_tokens` returns; on other devices, as many.
    """
    if device == "cpu":
        return max(1, SLICE_ELEMENTS // (num_passes * vocab_size))
    return chunk_tokens(device, num_passes, vocab_size)


def chunk_tokens(device: str, num_passes: int, vocab_size: int) -> int:
    """Returns the number of tokens whose logits are in memory at a time.

    Each token has `num_passes` x `vocab_size` logits.
    """
    if device == "cpu":
        return max(1, CHUNK_ELEMENTS // (num_passes * vocab_size))
    return max(1, min(DEVICE_CHUNK_TOKENS, DEVICE_CHUNK_ELEMENTS // vocab_size) // num_passes)


# Training objectives: the loss of a batch, computed from one forward pass or from two with a consistency loss.


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, summed over its target tokens, in nats."""

    total: Tensor  # the training objective, with a gradient
    sums: Tensor  # cross-entropy and negative log-likelihood (2,), with consistency if two passes (3,); no gradient


def cross_entropy(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """Returns the label-smoothed cross-entropy of one forward pass, plus that of guided alignment, if it is set.

    For a masked model, returns what `masked_cross_entropy` returns.
    """
    if isinstance(model, MaskedModel):
        return masked_cross_entropy(model, batch, settings.label_smoothing)
    guide = settings.guided_alignment is not None and batch.alignment is not None
    features, state = model.decode(batch.target, model.encode(batch.source, watch=guide))
    total, loss, nll, _ = consistent_cross_entropy(
        features[None], model.output, batch.labels, settings.label_smoothing, ONE_PASS, batch.places
    )
    if guide:
        total = total + settings.guided_alignment_weight * alignment_cross_entropy(state.attention, batch, settings)
    return BatchLoss(total, torch.stack([loss, nll]))


LEAST_WEIGHT = 1e-8  # attention weights below this count as this, so that their logarithm is finite


def alignment_cross_entropy(attention: Sequence[Tensor], batch: Batch, settings: TrainingConfig) -> Tensor:
    """Returns the cross-entropy of one attention head with given alignments, summed over the aligned target tokens.

    `attention` has weights (R, H, T, S) for each layer. As in Garg et al. (2019), the head's weights for
    the step that predicts a target token should be spread evenly over the source tokens aligned with it; tokens without
    links count for nothing. The paper computes these weights in a second pass of the decoder, which sees the whole
    target. Here they come from the pass that predicts, whose head sees only the tokens before.
    """
    assert batch.alignment is not None
    weights = attention[settings.guided_layer(len(attention)) - 1][:, settings.guided_alignment_head - 1]  # (R, T, S)
    links = batch.alignment
    chosen = weights[links.rows, links.targets, links.sources]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    return -(links.shares * chosen.clamp(min=LEAST_WEIGHT).log()).sum()


def masked_cross_entropy(model: MaskedModel, batch: Batch, smoothing: float) -> BatchLoss:
    """Returns the loss of a conditional masked language model (Ghazvininejad et al. 2019, section 3).

    The loss is the label-smoothed cross-entropy of the masked tokens, plus the negative log-likelihood of the target
    lengths. The cross-entropy is multiplied by the number of all tokens and divided by the number of masked tokens, so
    that the mean over all target tokens is the mean over masked tokens. Each length counts as one token, in place of
    the end mark, which is not predicted.
    """
    hidden, state = model.hide(batch), model.encode(batch.source)
    features, _ = model.decode(hidden.target, state)
    total, loss, nll, _ = consistent_cross_entropy(features[None], model.output, hidden.labels, smoothing, ONE_PASS)
    factor = (batch.target_tokens - batch.num_pairs) / (hidden.labels != NO_LABEL).sum().clamp(min=1)
    lengths = -model.length_log_probs(state, (batch.labels != NO_LABEL).sum(1) - 1).sum()
    sums = torch.stack([loss, nll]) * factor + lengths.detach()
    return BatchLoss(total * factor + lengths, sums)


def rdrop(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """R-Drop (Liang et al. 2021): two passes p and q under different dropout should agree.

    The paper's loss is CE(p) + CE(q) + alpha (KL(p || q) + KL(q || p)) / 2; the authors' code divides this loss by the
    number of tokens of one pass. The loss here is half of the paper's loss. Loss and gradient then have the same scale
    as without R-Drop, so that the same learning rate fits. alpha is the setting `consistency_weight`, 5 by default.
    """
    alpha = settings.consistency_weight or 5.0
    shares = Shares(cross_entropy=(0.5, 0.5), divergence=(0.5, 0.5), weight=alpha / 2)
    return _two_passes(model, _twice(batch.source), _twice(batch.target), batch, settings.label_smoothing, shares)


def simcut(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """SimCut (Gao et al. 2022): a pass q with some embeddings set to zero should agree with an ordinary pass p.

    The loss is CE(p) + alpha KL(p || q). The gradient goes through both p and q; the paper finds that this matters. As
    in the paper's code, source and target embeddings are set to zero, except for two tokens that always keep their
    embeddings: the end token of the source and the start token of the target. alpha is the setting
    `consistency_weight`, 3 by default.
    """
    alpha = settings.consistency_weight or 3.0
    shares = Shares(cross_entropy=(1.0, 0.0), divergence=(1.0, 0.0), weight=alpha)
    source = _twice(batch.source, cut_tokens(batch.source, settings.cutoff, model.boundaries.source_end))
    target = _twice(batch.target, cut_tokens(batch.target, settings.cutoff, model.boundaries.start))
    return _two_passes(model, source, target, batch, settings.label_smoothing, shares)


OBJECTIVES: dict[str, Callable[[TranslationModel, Batch, TrainingConfig], BatchLoss]] = {
    "none": cross_entropy,
    "rdrop": rdrop,
    "simcut": simcut,
}


def cut_tokens(rows: Rows, share: float, mark: int) -> Tensor:
    """Returns a random mask (R, L), which is True for tokens whose embeddings are to be set to zero.

    Each token is True with probability `share`, except that padding and the token `mark` are always False.
    """
    drawn = torch.rand(rows.ids.shape, device=rows.ids.device) < share
    return drawn & rows.mask & (rows.ids != mark)


def _twice(rows: Rows, cut: Tensor | None = None) -> Rows:
    """Returns `rows` (R, L) followed by a second copy of the same rows, (2R, L) in all.

    If a mask `cut` (R, L) is given, the embeddings of tokens where `cut` is True are set to zero in the second copy.
    """
    return replace(
        rows,
        ids=rows.ids.repeat(2, 1),
        segments=rows.segments.repeat(2, 1),
        positions=rows.positions.repeat(2, 1),
        cut=None if cut is None else torch.cat([torch.zeros_like(cut), cut]),
    )


def _halves(rows: Rows) -> list[Rows]:
    """Splits `rows`, (2R, L), into the first R rows and the last R rows; undoes `_twice`."""
    parts = [rows.ids.chunk(2), rows.segments.chunk(2), rows.positions.chunk(2)]
    cuts = (None, None) if rows.cut is None else rows.cut.chunk(2)
    return [
        replace(rows, ids=ids, segments=segments, positions=positions, cut=cut)
        for ids, segments, positions, cut in zip(*parts, cuts, strict=True)
    ]


def _two_passes(
    model: TranslationModel, source: Rows, target: Rows, batch: Batch, smoothing: float, shares: Shares
) -> BatchLoss:
    """Returns the loss of two forward passes, one for the first half of the rows and one for the second half.

    `source` and `target` are results of `_twice`, (2R, L), for the rows of `batch`, whose labels serve for both halves.
    """
    if model.drops_layers:  # a call draws the layers to drop once, and each pass needs a draw of its own
        features = torch.stack([model(*both) for both in zip(_halves(source), _halves(target), strict=True)])
    else:
        features = model(source, target).unflatten(0, (2, -1))  # (2, R, T, D)
    total, *parts = consistent_cross_entropy(features, model.output, batch.labels, smoothing, shares, batch.places)
    return BatchLoss(total, torch.stack(parts))
