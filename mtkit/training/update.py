"""One update of the weights: objective, gradient, clipping, optimizer, loss scaling, moving average.

Objectives are label-smoothed cross-entropy, alone, with guided alignment, or with a consistency loss, and the loss of
conditional masked language models. This module also compiles layers, and finds the largest batch that fits into the
memory of a device. The letters in shapes are explained below the imports.
"""

import copy
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.bundle.opening import FIRST_SCALE, Progress, Update
from mtkit.config.training_settings import LEAST_BATCH_TOKENS, TrainingConfig, settled
from mtkit.data.batches import (
    NO_LABEL,
    ORDER,
    Batch,
    Feed,
    PlannedBatch,
    Ragged,
    Rows,
    batches_from,
    batching_of,
    made_batch,
    padded_batch,
)
from mtkit.errors import MtkitError, is_out_of_memory, say, working
from mtkit.files import Stop
from mtkit.models.interface import SLICE_ELEMENTS, Output, TranslationModel
from mtkit.models.layers import BLOCK_ROWS, compute_dtype, draw_from, padded_rows, random_generator
from mtkit.models.registry import mixed_precision, return_freed_memory
from mtkit.models.transformer import MaskedModel, call_layer, recompute_layers, stacks_of
from mtkit.training.distributed import ALONE, GradientSum, Ranks
from mtkit.training.optimizers import AveragedWeights, make_optimizer
from mtkit.translation.workers import free_memory

# In shapes: R rows, S source length, T target length, L either of the two, D model width, H attention heads,
# V vocabulary size, N target tokens without padding, C tokens of a chunk, P forward passes, 1 or 2.

# On a CPU, each matrix product is computed for one chunk of tokens at a time. Everything between two matrix products,
# such as the softmax, is computed for one slice of the chunk at a time.
CHUNK_ELEMENTS = 1 << 22  # logits of a chunk: 8 MB in bf16
LEAST_LOG_PROB = -87.0  # below this logarithm, a probability is subnormal in bf16 and fp32, so less precise, or 0
DEVICE_CHUNK_TOKENS = 1 << 13  # tokens of a chunk on other devices, summed over the passes: enough to keep them busy
DEVICE_CHUNK_ELEMENTS = 1 << 28  # logits of a chunk on other devices: at most 1 GB in fp32


@dataclass(frozen=True)
class Shares:
    """How much each term of a loss counts: cross-entropies and, if there are two forward passes, KL divergences.

    With two passes, p and q are the distributions that the first and the second pass predict.
    """

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
    `labels` is (R, T). `places` is `Batch.places`: the indices, in the flattened `labels`, of all labels that are not
    padding. If `places` is `None`, the indices are computed here, and the CPU has to wait for a GPU.

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
    Let e_y be 1 at y and 0 elsewhere, and mean(W) the mean of the V rows of W. Then the cross-entropy is

        lse(z) - (1 - s) z_y - s mean(z)

    with the gradients

        W'(p - (1 - s) e_y) - s mean(W)  with respect to h
        p - (1 - s) e_y - s/V            with respect to b

    All of this needs only one log-softmax over V. With two passes, let q be the distribution of the other pass. The
    gradients of the divergences with respect to z are

        p (log(p / q) - KL(p || q))  for KL(p || q)
        p - q                        for KL(q || p)

    Sums are in fp64 if the features are in fp64, else in fp32.
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
        # One pass on a CPU: PyTorch's softmax overwrites the logits with probabilities, and the gradient needs nothing
        # else. The log-probability of a label, which only the loss needs, is the logarithm of its probability. In bf16,
        # this logarithm is exact to 0.002 nats.
        in_place = wants_gradient and num_passes == 1 and features.device.type == "cpu" and dtype != torch.float16
        if in_place and dtype == torch.bfloat16 and num_tokens > BLOCK_ROWS:
            features = padded_rows(features[0])[None]  # so that products have few different shapes, as in `Linear`
        table, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        mean_row = weight.to(exact).mean(0)  # (D,)
        by_features = torch.empty_like(features, dtype=exact) if wants_gradient else None
        by_weight = torch.zeros_like(weight, dtype=exact) if wants_gradient else None
        by_bias = torch.zeros_like(bias, dtype=exact) if bias is not None and wants_gradient else None
        log_likelihood, sum_lse = features.new_zeros(2, num_passes, dtype=exact)
        divergence = features.new_zeros(2, dtype=exact)  # KL(p || q) and KL(q || p)

        chunk = chunk_tokens(features.device.type, num_passes, len(weight))
        part = chunk if in_place else slice_tokens(features.device.type, num_passes, len(weight))
        # Memory that is used again is faster than new memory, which a CPU has to map page by page.
        elements_per_token = num_passes * len(weight)
        all_logits = features.new_empty(min(chunk, features.shape[1]) * elements_per_token)
        memory = features.new_empty(0 if in_place else min(part, num_tokens) * elements_per_token, dtype=exact)
        for start in range(0, num_tokens, chunk):
            h = features[:, start : start + chunk].flatten(0, 1)  # (P x C, D)
            logits = all_logits[: len(h) * len(weight)].view(-1, len(weight))  # (P x C, V)
            if added is None:
                torch.mm(h, table.T, out=logits)
            else:
                torch.addmm(added, h, table.T, out=logits)
            chunk_labels = labels[start : start + chunk]
            of_labels = logits.view(num_passes, -1, len(weight))[:, : len(chunk_labels)]
            slices = torch.split(of_labels, part, dim=1)
            for z, slice_labels in zip(slices, torch.split(chunk_labels, part), strict=True):  # (P, C', V) and (C',)
                y = slice_labels[:, None].expand(num_passes, -1, 1)  # (P, C', 1)
                if in_place:
                    y_logits = z.gather(2, y).to(exact)
                    y_probs = torch.softmax(z, -1, out=z).gather(2, y)
                    y_log_probs = y_probs.to(exact).log()
                    improbable = y_log_probs.flatten() < LEAST_LOG_PROB
                    is_any = np.zeros((), dtype=bool)
                    torch.any(improbable, out=torch.from_numpy(is_any))  # nothing is read from a device
                    if is_any:
                        rare = F.linear(h[improbable], table, added).to(exact).log_softmax(-1)
                        y_log_probs[0, improbable] = rare.gather(1, slice_labels[improbable, None])
                    log_likelihood += y_log_probs.sum((1, 2))
                    sum_lse += (y_logits - y_log_probs).sum((1, 2))
                    # Not by `scatter_`, which copies all of a bf16 tensor to fp32 and back on a CPU.
                    z[0].index_put_((torch.arange(len(y_probs[0])), slice_labels), y_probs.flatten() + (smoothing - 1))
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
            ctx.save_for_backward(by_features[:, :num_tokens].to(dtype), by_weight.to(weight.dtype), by_bias)
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

    `chunk_tokens` returns the number of tokens whose logits are in memory at a time. On a CPU, the softmax is computed
    for only some of these tokens at a time; on other devices, for all of them.
    """
    if device == "cpu":
        return max(1, SLICE_ELEMENTS // (num_passes * vocab_size))
    return chunk_tokens(device, num_passes, vocab_size)


def chunk_tokens(device: str, num_passes: int, vocab_size: int) -> int:
    """Returns the number of tokens whose logits are in memory at a time.

    Each token has `num_passes` x `vocab_size` logits. On a CPU, the result is a multiple of BLOCK_ROWS, unless even
    BLOCK_ROWS tokens have too many logits.
    """
    if device == "cpu":
        most = CHUNK_ELEMENTS // (num_passes * vocab_size)
        return max(1, most - most % BLOCK_ROWS if most > BLOCK_ROWS else most)
    return max(1, min(DEVICE_CHUNK_TOKENS, DEVICE_CHUNK_ELEMENTS // vocab_size) // num_passes)


# Training objectives: the loss of a batch, computed from one forward pass or from two with a consistency loss.


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch, summed over its target tokens, in nats."""

    total: Tensor  # the training objective, with a gradient
    # Cross-entropy and negative log-likelihood, (2,), and with two passes also the consistency loss, (3,); no gradient.
    sums: Tensor


def cross_entropy(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """Returns the label-smoothed cross-entropy of one forward pass, plus the weighted loss of guided alignment, if set.

    The loss of guided alignment is part of `BatchLoss.total`, but not of `BatchLoss.sums`. For a masked model, the loss
    is that of `masked_cross_entropy` instead: the loss of a conditional masked language model.
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


LEAST_WEIGHT = 1e-8  # smaller attention weights are raised to this, so that their logarithm is finite


def alignment_cross_entropy(attention: Sequence[Tensor], batch: Batch, settings: TrainingConfig) -> Tensor:
    """Returns the cross-entropy of `batch.alignment` and one attention head, summed over target tokens, in nats.

    `attention` has the attention weights (R, H, T, S) of each decoder layer; the settings say which layer and head. As
    in Garg et al. (2019), the head is trained to attend evenly to all source tokens that are aligned with the target
    token that is predicted. Target tokens without alignment links do not count. The paper computes the attention in a
    second pass of the decoder, which sees the whole target. Here the attention comes from the pass that predicts the
    target, in which the head sees only earlier target tokens.
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
    lengths. The end mark is not predicted; in the number of target tokens, the length of the target takes its place.
    The cross-entropy is multiplied by the number of target tokens without end marks, and divided by the number of
    masked tokens. Its mean over all these target tokens is then its mean over the masked tokens.
    """
    hidden, state = model.hide(batch), model.encode(batch.source)
    features, _ = model.decode(hidden.target, state)
    total, loss, nll, _ = consistent_cross_entropy(features[None], model.output, hidden.labels, smoothing, ONE_PASS)
    factor = (batch.target_tokens - batch.num_pairs) / (hidden.labels != NO_LABEL).sum().clamp(min=1)
    lengths = -model.length_log_probs(state, (batch.labels != NO_LABEL).sum(1) - 1).sum()
    sums = torch.stack([loss, nll]) * factor + lengths.detach()
    return BatchLoss(total * factor + lengths, sums)


def rdrop(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """Returns the loss of R-Drop (Liang et al. 2021): two passes p and q with different dropout should agree.

    The paper's loss is CE(p) + CE(q) + alpha (KL(p || q) + KL(q || p)) / 2; the authors' code divides this loss by the
    number of tokens of one pass. The loss here is half of the paper's loss. Loss and gradient then have the same scale
    as without R-Drop, so that the same learning rate fits. alpha is the setting `consistency_weight`, 5 by default.
    """
    alpha = settings.consistency_weight or 5.0
    shares = Shares(cross_entropy=(0.5, 0.5), divergence=(0.5, 0.5), weight=alpha / 2)
    return _two_passes(model, _twice(batch.source), _twice(batch.target), batch, settings.label_smoothing, shares)


def simcut(model: TranslationModel, batch: Batch, settings: TrainingConfig) -> BatchLoss:
    """Returns the loss of SimCut (Gao et al. 2022): pass q, with some embeddings zeroed, should agree with pass p.

    The loss is CE(p) + alpha KL(p || q). The gradient goes through both p and q; the paper finds that this matters. In
    pass q, the embeddings of a random fraction (the setting `cutoff`) of the source and target tokens are zero. As in
    the paper's code, the end token of the source and the start token of the target are never chosen. alpha is the
    setting `consistency_weight`, 3 by default.
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
    drawn = torch.rand(rows.ids.shape, device=rows.ids.device, generator=random_generator()) < share
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


# One update.

# Loss scaling, which keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018, section 3.2).


class LossScaler:
    """PyTorch's dynamic loss scale: an overflow halves it; 2,000 updates in a row without an overflow double it.

    In precisions other than fp16, this class does nothing. Checkpoints store the scale and the number of updates since
    the scale changed.
    """

    def __init__(self, device: torch.device, precision: str, scale: float, updates: int) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": updates})

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns the loss multiplied by the scale; `backward` is to be called on this product."""
        return self._scaler.scale(loss)

    @property
    def is_enabled(self) -> bool:
        """Whether the loss is scaled, as in fp16."""
        return self._scaler.is_enabled()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale; to be called once in each update, before the gradients are read."""
        self._scaler.unscale_(optimizer)

    def adapt(self) -> None:
        """Lower the scale if `unscale` found an overflow; raise it after 2,000 updates without an overflow."""
        self._scaler.update()

    @property
    def scale(self) -> float:
        """The current scale; in precisions other than fp16, this is always FIRST_SCALE and has no effect."""
        return self.state[0]

    @property
    def state(self) -> tuple[float, int]:
        """What a checkpoint stores: the scale, and the number of updates since the scale changed.

        In precisions other than fp16, the two are always FIRST_SCALE and 0.
        """
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


# The update.


@dataclass
class TrainState:
    """Everything that changes during training; a checkpoint holds all of it."""

    model: TranslationModel
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    average: AveragedWeights | None = None


class Updater:
    """Updates the weights of a model, one step of the optimizer at a time."""

    def __init__(
        self,
        state: TrainState,
        settings: TrainingConfig,
        scaler: LossScaler,
        ranks: Ranks = ALONE,
        splits: bool = False,
    ) -> None:
        if settings.recompute:
            recompute_layers(state.model)
        if is_compiled(settings, state.model.device, state.progress.precision):
            compile_layers(state.model, settings, state.progress.precision)
        # The settings alone do not tell: the model may be a copy of a compiled model, or compiling may have failed.
        self._is_compiled = any(isinstance(stack.call, CompiledCall) for stack in stacks_of(state.model))
        self.splits = splits
        self.state = state
        self.settings = settings
        self.scaler = scaler
        self.ranks = ranks
        self._gradients = GradientSum(state.model, ranks) if ranks.are_many else None
        self._threads: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by numbers of PyTorch threads and of parts
        self.batch: Batch | None = None  # the current batch: if memory runs out, the error message says its shape

    def update(self, batches: Sequence[Batch], step: int, rate: float, tokens: int | None = None) -> Update:
        """Make update number `step` with learning rate `rate`; returns the statistics of the update.

        The loss is summed over all batches of all ranks, then divided by the number of target tokens in these batches,
        which is `tokens`; if `tokens` is `None`, the ranks count them. If the loss or the gradient is not finite, the
        weights stay unchanged.

        If PyTorch has several threads on a CPU, a batch may be divided into parts, which are computed at the same time,
        each by a thread of its own.

        If memory runs out in a forward or backward pass, the error of PyTorch is raised, unless the updater was made
        with `splits=True`. With `splits=True`, each batch is divided into two halves, a warning is shown, and the
        gradient is computed again from the halves. This is repeated until memory suffices; the error is raised only if
        memory runs out with single rows. The other ranks wait meanwhile, and gradients that this rank has already sent
        to them are not sent again. Dropout draws other random numbers for the halves than for the whole batch, but the
        expected value of the gradient stays the same.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        if tokens is None:
            tokens = int(self.ranks.sums([sum(batch.target_tokens for batch in batches)])[0])
        parts = list(batches)
        while (computed := self._passes_if_memory_lasts(parts, step, tokens)) is None:
            if self._gradients:
                self._gradients.begin_again()
            state.optimizer.zero_grad(set_to_none=True)
            if state.model.device.type == "cuda":
                torch.cuda.empty_cache()
            whole = max(parts, key=lambda batch: batch.target.ids.numel())
            parts = [half for batch in parts for half in batch.parts(min(2, len(batch.labels)))]
            say(
                f"mtkit: warning: out of memory in step {step:,}, with {len(whole.labels):,} rows of "
                f"{whole.source.ids.shape[1]:,} source and {whole.target.ids.shape[1]:,} target tokens; the gradient "
                "is computed from smaller batches instead. With a lower training.batch_tokens, no time is lost",
                always=True,  # since the other ranks may have more memory
            )
        total, padding = computed
        if self._gradients:
            total, padding = self._gradients.finish(total, padding)
        return self._step(total, padding, tokens, step, rate)

    def _passes_if_memory_lasts(self, batches: Sequence[Batch], step: int, tokens: int) -> tuple[Tensor, float] | None:
        """Returns the result of `_passes`, or `None` if memory ran out and the batches can be divided.

        Batches can be divided if the updater was made with `splits=True` and at least one batch has several rows. Any
        error except a lack of memory is raised, and so is a lack of memory if the batches cannot be divided.
        """
        try:
            return self._passes(batches, step, tokens)
        except (MemoryError, RuntimeError) as error:
            if not self.splits or not is_out_of_memory(error) or all(len(batch.labels) == 1 for batch in batches):
                raise
        return None  # not in the except block: until that ends, the error keeps the tensors of the passes in memory

    def _passes(self, batches: Sequence[Batch], step: int, tokens: int) -> tuple[Tensor, float]:
        """Computes the gradient of loss / `tokens`; returns the losses and the padding.

        The losses are `BatchLoss.sums` (cross-entropy, negative log-likelihood and, with two passes, consistency loss),
        summed over the batches. The padding is the fraction of positions that are padding, averaged over the batches.
        """
        state, settings = self.state, self.settings
        sums = []
        for number, batch in enumerate(batches):
            self.batch = batch
            # Each batch has a seed of its own, so that checkpoints need not hold a random state. The ranks take the
            # batches in turn, so `place` is the number of the batch in the update, whatever the number of ranks.
            place = number * self.ranks.count + self.ranks.rank
            if (num_parts := self._num_parts(batch)) > 1:
                sums.append(self._passes_of_parts(batch.parts(num_parts), step, place, tokens))
                continue
            seed_device(state.model.device, random_seed(settings.seed, step, place))
            if self._gradients and number == len(batches) - 1:
                self._gradients.begin()
            loss = self._loss(batch.to(state.model.device), tokens)
            loss.total.backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sums)
        return torch.stack(sums).sum(0), sum(batch.padding for batch in batches) / len(batches)

    def _loss(self, batch: Batch, tokens: int, alone: bool = True) -> BatchLoss:
        """Returns the loss of a batch; its `total` is divided by `tokens` and multiplied by the loss scale.

        `alone=False` means that other threads compute losses at the same time.
        """
        state, settings = self.state, self.settings
        with mixed_precision(state.model.device, state.progress.precision, keeps_casts=alone):
            loss = OBJECTIVES[settings.consistency](state.model, batch, settings)
        return replace(loss, total=self.scaler.scaled(loss.total / tokens))

    def _num_parts(self, batch: Batch) -> int:
        """Returns how many parts of a batch are computed at the same time; 1 means that the batch stays whole.

        The number depends only on the batch, the model, the settings, the number of PyTorch's threads, and whether
        each thread is bound to a core.
        """
        model, settings, num_threads = self.state.model, self.settings, torch.get_num_threads()
        if model.device.type != "cpu" or num_threads == 1 or threads_are_bound():
            return 1
        # The random numbers of compiled code, and of layers that are computed again, come from PyTorch's default
        # generator, which all threads share. The loss of a masked model is not a sum over its rows.
        if settings.recompute or self._is_compiled or self.scaler.is_enabled or isinstance(model, MaskedModel):
            return 1
        most = min(len(batch.labels), batch.labels.numel() // LEAST_PART_TOKENS, MOST_PARTS)
        return next((number for number in range(most, 1, -1) if num_threads % number == 0), 1)

    def _passes_of_parts(self, parts: Sequence[Batch], step: int, place: int, tokens: int) -> Tensor:
        """Computes the parts of a batch at the same time, and adds up their gradients; returns `BatchLoss.sums`.

        The returned losses are those of the whole batch. The gradient is that of loss / `tokens`. `place` is the number
        of the batch in the update; together, `step` and `place` seed the random numbers. Each part draws its random
        numbers from a generator of its own, and the gradients are added in the order of the parts, so the result does
        not depend on which thread is done first.
        """
        if (key := (torch.get_num_threads(), len(parts))) not in self._threads:
            self._threads[key] = part_threads(len(parts))
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.requires_grad]

        def passes(part: Batch, number: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            generator = torch.Generator()
            draw_from(generator.manual_seed(random_seed(self.settings.seed, step, place, number)))
            loss = self._loss(part, tokens, alone=False)
            return loss.sums, torch.autograd.grad(loss.total, parameters, allow_unused=True)

        pool = self._threads[key]
        futures = [pool.submit(passes, part, number) for number, part in enumerate(parts)]
        sums, gradients = zip(*results_of(futures), strict=True)
        for parameter, *of_parts in zip(parameters, *gradients, strict=True):
            add_gradients(parameter, [gradient for gradient in of_parts if gradient is not None])
        return torch.stack(sums).sum(0)

    def _step(self, total: Tensor, padding: float, tokens: int, step: int, rate: float) -> Update:
        """Clips the gradient, then updates the weights and their average; returns the statistics of the update.

        `total` and `padding` are the losses and the padding that `_passes` returns, combined over all ranks. The
        optimizer has the learning rate already: `tokens` and `rate` are only stored in the statistics. If the loss or
        the gradient is not finite, the weights stay unchanged.
        """
        state, settings = self.state, self.settings
        self.scaler.unscale(state.optimizer)
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        device_norm = nn.utils.get_total_norm(gradients)
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, device_norm)
        # All that is read from the device in an update, at once: reading waits until the device has done its work.
        smoothed, nll, *consistency, norm = torch.cat([total, device_norm[None]]).tolist()
        update = Update(smoothed, nll, tokens, norm, rate, padding, *consistency)
        if update.is_finite:
            with mixed_precision(state.model.device, state.progress.precision):  # for muon's matrix products
                state.optimizer.step()
            if state.average is not None:
                state.average.update(step)
        self.scaler.adapt()
        state.optimizer.zero_grad(set_to_none=True)
        return update


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the random numbers that a forward pass on `device` draws."""
    if device.type == "cpu":
        # torch.manual_seed is slower: it seeds every kind of device, and formats the call stack for each unused one.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def random_seed(seed: int, step: int, *places: int) -> int:
    """Returns the seed for the forward pass of a batch, or of a part of a batch.

    `places` are the number of the batch in the update and, for a part, the number of the part in the batch. The seed
    depends on the arguments alone, so a resumed run draws the same random numbers as an uninterrupted one.
    """
    return int(np.random.SeedSequence([seed, step, *places]).generate_state(1, np.uint64)[0] >> np.uint64(1))


# Parts of a batch, which threads compute at the same time on a CPU. Without parts, PyTorch divides each operator among
# its threads, and after each operator all threads wait for the slowest one.

LEAST_PART_TOKENS = 400  # minimum number of target positions in a part; batches of 500 gained nothing on two cores
MOST_PARTS = 8  # maximum number of parts, since each part has gradients of its own in memory

Result = TypeVar("Result")


def threads_are_bound() -> bool:
    """Returns whether the environment variables of OpenMP bind each of its threads to a core.

    The variables are interpreted as by the OpenMP library in PyTorch for Linux. If OpenMP binds its threads, all
    threads that Python starts are bound to the core of the main thread. The threads that compute the parts of a batch
    would then wait for each other.
    """
    names = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
    first = next(filter(None, map(os.environ.get, names)), "false")  # the others count only without OMP_PROC_BIND
    return first.lower() != "false"


def add_gradients(parameter: nn.Parameter, gradients: list[Tensor]) -> None:
    """Adds the tensors in `gradients` to the gradient of `parameter`, in the order of the list.

    The tensors in `gradients` are not changed, since autograd may return the same tensor for another parameter too.
    """
    if parameter.grad is None and gradients:
        first = gradients.pop(0)
        parameter.grad = first + gradients.pop(0) if gradients else first.clone()
    for gradient in gradients:
        assert parameter.grad is not None
        parameter.grad += gradient


def results_of(futures: list[Future[Result]]) -> list[Result]:
    """Waits until all futures are done; returns their results in order, or raises the first of their errors.

    The list `futures` is empty afterwards. Otherwise, there would be a reference cycle after an error: a future holds
    its error, the traceback of the error holds the local variables of this function, and the list would hold the
    futures. All results of the threads would then stay in memory until garbage is collected.
    """
    wait(futures)
    results = []
    try:
        while futures:
            results.append(futures.pop(0).result())
    finally:
        futures.clear()
    return results


def part_threads(num_parts: int) -> ThreadPoolExecutor:
    """Returns a pool of `num_parts` threads, each of which uses an equal share of PyTorch's threads."""
    num_threads = torch.get_num_threads()
    barrier = threading.Barrier(num_parts)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a new thread sets the number of that thread to the default
        torch.set_num_threads(num_threads // num_parts)  # for this thread alone
        barrier.wait()

    pool = ThreadPoolExecutor(num_parts, thread_name_prefix="part")
    try:
        wait([pool.submit(begin) for _ in range(num_parts)])
    finally:
        barrier.abort()  # if a thread could not begin, the others must not wait for it, or Python would not exit
        torch.set_num_threads(num_threads)  # `begin` has also changed the default for threads that start later
    return pool


# Compiled layers.

BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile


def is_compiled(settings: TrainingConfig, device: torch.device, precision: str) -> bool:
    """Returns whether training compiles the layers, as the setting `compile` says.

    "auto" means yes on a GPU if rows are packed and matrix products are computed in bf16 or fp16. All batches then have
    about the same shape. The many small operations between the matrix products are expected to take much of the time,
    and the compiler fuses these operations. This rule has not been measured on a GPU yet. On a CPU, "auto" means no:
    users may lack a C++ compiler, and matrix products take most of the time.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    return device.type == "cuda" and settings.batching == "packed" and precision in ("bf16", "fp16")


def compile_layers(model: TranslationModel, settings: TrainingConfig, precision: str) -> None:
    """Compiles the layers of a Transformer, by a forward and a backward pass over a made-up batch.

    All encoder layers share compiled code, and so do all decoder layers (regional compilation). The code is compiled
    with dynamic shapes, so it serves batches of any shape. Nothing is compiled later: the code depends only on the
    model, the settings, the device and the software versions. So a resumed run computes the same as an uninterrupted
    one. If there is no code for the arguments of a layer, the layer is called uncompiled. This happens for rows of one
    token, for example, and if no gradients are computed, as in validation.

    If the layers cannot be compiled, a warning says so, and they stay uncompiled. In both cases, the gradients of the
    model are removed; the random state and the names of the parameters stay the same.
    """
    stacks = stacks_of(model)
    if any(isinstance(stack.call, CompiledCall) for stack in stacks):  # a copy of a model that was compiled
        return
    batch = example_batch(model, is_packed=settings.batching == "packed")
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with working("compiling layers"), warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")  # advice on settings of the compiler
            compiled = CompiledCall(BACKEND)
            for stack in stacks:
                stack.call = compiled
            _pass_through(model, batch.to(model.device), settings, precision)
            compiled.is_complete = True
    except (ImportError, MemoryError, OSError, RuntimeError) as error:  # RuntimeError: most errors of the compiler, too
        for stack in stacks:
            stack.call = call_layer
        lines = (line.strip() for line in str(error).splitlines() if not line.endswith(" raised:"))
        reason = f"{type(error).__name__}: {next(filter(None, lines), 'no reason given')}"
        say(f"mtkit: warning: training goes on without compiled layers (training.compile), since that failed: {reason}")
    finally:
        model.zero_grad(set_to_none=True)


class CompiledCall:
    """Calls a layer as `call_layer` of mtkit.models.transformer does, but with compiled code.

    Until `is_complete` is set, a call compiles the code that it lacks. After that, a layer is called uncompiled if
    there is no code for its arguments. For only one row, or only one token in each row, layers are always called
    uncompiled.
    """

    def __init__(self, backend: str | Callable[..., Any]) -> None:
        # A new function for each model, since PyTorch keeps only a few compiled versions of a function.
        own = FunctionType(call_layer.__code__.replace(), call_layer.__globals__, call_layer.__name__)
        self._call = torch.compile(own, dynamic=True, backend=backend)
        self.is_complete = False  # whether all code is compiled; until then, calls compile what is missing

    def __call__(self, layer: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        """Returns `layer(x, **arguments)` for `x` of shape (R, S, D) or (R, T, D)."""
        if min(x.shape[:2]) < 2:  # torch.compile makes separate code for a dimension of size 1
            return call_layer(layer, x, **arguments)
        with torch.compiler.set_stance("eager_on_recompile" if self.is_complete else "default"):
            y: Tensor = self._call(layer, x, **arguments)
        return y


# The made-up batch: the lengths of its sentences, with end marks, and its number of rows; about 4,000 tokens on each
# side. These numbers are primes, so that no two dimensions of the batch and the model are equal: the compiler would
# assume that they are always equal. The numbers do not depend on settings, so that code in PyTorch's cache on disk is
# for the same sizes.
SOURCE_LENGTH, TARGET_LENGTH, NUM_ROWS = 29, 31, 127
PACKED_ROWS, ROW_SENTENCES = 37, 4


def example_batch(model: TranslationModel, is_packed: bool) -> Batch:
    """Returns a made-up batch for the model; with `is_packed`, rows hold several sentences."""
    num_rows, in_row = (PACKED_ROWS, ROW_SENTENCES) if is_packed else (NUM_ROWS, 1)
    limits = model.limits
    target_length = min(TARGET_LENGTH, limits.target or TARGET_LENGTH)
    source_length = min(SOURCE_LENGTH, limits.source or SOURCE_LENGTH, max(1, target_length - 1))

    def sentences(length: int, token: int) -> Ragged:
        lengths: NDArray[np.int64] = np.full(num_rows * in_row, length - 1)
        return Ragged(np.full(lengths.sum(), token), lengths)

    bounds = model.boundaries
    source = sentences(source_length if model.reads_source else 1, bounds.source_end)
    rows = np.repeat(np.arange(num_rows), in_row)
    return padded_batch(source, sentences(target_length, bounds.target_end), bounds, rows)


def _pass_through(model: TranslationModel, batch: Batch, settings: TrainingConfig, precision: str) -> None:
    """Makes a forward and a backward pass without layer dropout, so that all layers take part."""
    stacks = stacks_of(model)
    rates, was_training = [stack.layer_dropout for stack in stacks], model.training
    try:
        model.train()
        for stack in stacks:
            stack.layer_dropout = 0.0
        with mixed_precision(model.device, precision):
            loss = OBJECTIVES[settings.consistency](model, batch, settings)
        loss.total.backward()  # type: ignore[no-untyped-call]
    finally:
        model.train(was_training)
        for stack, rate in zip(stacks, rates, strict=True):
            stack.layer_dropout = rate


# How much memory there is, and how much was used.


def peak_memory(device: torch.device) -> int | None:
    """Returns the largest amount of memory used so far, in bytes; `None` if the system does not tell.

    On a GPU, this is the memory that tensors took on the GPU. On other devices, it is the resident memory of this
    process, which includes Python, PyTorch and the memory-mapped weights.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not by getrusage, whose peak includes that of the process that started this one.
    return _own_memory("VmHWM:")


def forget_peak(device: torch.device) -> None:
    """Reset the peak that `peak_memory` returns to the memory in use now, if the system allows it.

    Memory that earlier work has freed is returned to the system first, so it does not count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets VmHWM


def resident_memory() -> int | None:
    """Returns the resident memory of this process now, in bytes; `None` if the system does not tell."""
    return _own_memory("VmRSS:")


def _own_memory(name: str) -> int | None:
    try:
        words = Path("/proc/self/status").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return int(words[words.index(name) + 1]) * 1024 if name in words else None


def memory_at_hand(device: torch.device, num_processes: int = 1) -> int | None:
    """Returns how much memory of the device this process can have: what it uses now plus what is free, in bytes.

    On a CPU, the free memory is divided by `num_processes`. Returns `None` if the system does not tell how much there
    is, and for devices that are neither a CPU nor a CUDA GPU.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    own = resident_memory()
    return None if device.type != "cpu" or own is None else free_memory() // num_processes + own


# The largest batches of a training run.

PLANNED_BATCHES = 5000  # the number of batches among which the largest are sought

# The quantities with which the memory of an update grows: the number of positions, and the number of attention scores
# between the positions of a row. Each function takes the number of rows, the source length and the target length.
SIZES: tuple[Callable[[int, int, int], int], ...] = (
    lambda rows, source, target: rows * (source + target),
    lambda rows, source, target: rows * max(source, target) ** 2,
)


def largest_batches(feed: Feed, num_batches: int = PLANNED_BATCHES) -> list[Batch]:
    """Returns the batch with the most positions (including padding), and the batch with the most attention scores.

    The two are chosen among the first `num_batches` batches of the first epoch. If one batch has the most of both, it
    is returned once. If sampled segmentations make a chosen batch too large, the batch is split, and its parts are
    returned (see `micro_batches`). Only the chosen batches are made; all other batches are only planned.
    """
    corpus, settings = feed.corpus, feed.config.training
    lengths = [np.asarray(side) + 1 for side in (corpus.source_lengths, corpus.target_lengths)]
    planned = batches_from(
        0,
        lengths[0],
        lengths[1],
        settled(settings.batch_tokens),
        settings.seed,
        feed.mixture,
        batching=batching_of(settings.batching, ORDER),
    )
    consumed, most = 0, [0] * len(SIZES)
    largest: dict[int, tuple[int, PlannedBatch]] = {}  # by the number of the size; with the pairs before the batch
    for epoch, chosen in islice(planned, num_batches):
        if epoch:
            break
        rows = int(chosen.rows[-1]) + 1
        source, target = (int(np.bincount(chosen.rows, side[chosen.pairs]).max()) for side in lengths)
        for number, size in enumerate(SIZES):
            if (found := size(rows, source, target)) > most[number]:
                most[number], largest[number] = found, (consumed, chosen)
        consumed += len(chosen)
    made = {
        consumed: made_batch(corpus, settings, chosen, consumed, feed.sampling, feed.boundaries)
        for consumed, chosen in largest.values()
    }
    return [part for parts in made.values() for part in parts]


# The largest batch that fits.

# Larger batches make training no faster. On one core of an EPYC, with the settings of
# configs/multi30k-en-de-transformer.yaml and updates of 8,192 tokens, training processed 1,480 target tokens per second
# of processor time in batches of 1,024 tokens, 1,615 in batches of 2,048, 1,677 in batches of 4,096, and 1,645 in
# batches of 8,192 (medians of five updates, which differ by at most a fifth; for 1,024, the mean of two). A GPU that
# processes a million tokens per second takes as long for 65,536 tokens as eager PyTorch takes to launch the operations
# of an update; this has not been measured on a GPU yet.
MOST_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536, "mps": 16_384}
# The fraction of the memory that must stay free, for later batches of other shapes, and for validations. On a CPU, the
# peak memory of training in bf16 has doubled during the first eighty updates.
MARGIN = {"cpu": 0.5, "cuda": 0.15, "mps": 0.15}


@dataclass(frozen=True)
class FoundBatch:
    """The number that replaces "auto" in training.batch_tokens, and the memory that batches of this size need."""

    tokens: int  # the number that replaces "auto"
    bytes_needed: float  # memory at the peak of an update; 0 if the system does not tell
    bytes_at_hand: int | None  # `memory_at_hand` before the search; None if the system does not tell

    def told(self) -> str:
        """Returns text for a message: the batch size in tokens and, if known, the memory that the batches need."""
        told = f"training.batch_tokens auto: {self.tokens:,}"
        if self.bytes_at_hand is None:
            return told
        needed, at_hand = self.bytes_needed / 1e9, self.bytes_at_hand / 1e9
        return f"{told}, which takes {needed:.1f} of the {at_hand:.1f} GB of memory at hand"


def find_batch_tokens(
    model: TranslationModel, feed: Feed, precision: str, stop: Stop, ranks: Ranks = ALONE
) -> FoundBatch:
    """Returns the largest `batch_tokens` that fits into memory, and the memory that it takes.

    The sizes that are tried divide an update (setting `update_tokens`) into equal batches. They go from
    LEAST_BATCH_TOKENS to MOST_BATCH_TOKENS, each about twice the size before. For each size, an update of a copy of
    `model` is made with the largest batches of that size. A size fits if the fraction MARGIN of the memory stays free;
    the smallest size fits if memory does not run out. On a CPU, a size that is expected not to fit is not tried. All
    ranks return the same size, which fits in every rank. `model` and `feed` stay unchanged. Raises MtkitError if memory
    runs out with the smallest size.
    """
    settings, device = feed.config.training, model.device
    at_hand = memory_at_hand(device, ranks.local_count)
    limit = min(ranks.gather(math.inf if at_hand is None else at_hand)) * (1 - MARGIN[device.type])
    trial = copy.deepcopy(model).train()
    state = TrainState(trial, make_optimizer(trial, settings, device), Progress(precision=precision))
    scaler = LossScaler(device, precision, 1.0, 0)  # so that no update overflows, and the optimizer gets its state
    updater = Updater(state, settings.model_copy(update={"compile": "off"}), scaler)  # a copy stays compiled
    # Training does not need the copy of the model, but several ranks need as much for the gradients that they send.
    unneeded = 0 if ranks.are_many else sum(parameter.nbytes for parameter in trial.parameters())
    tried, needed, longest = 0, 0.0, feed.config.data.max_length + 1
    for size in _sizes(settings.tokens_per_update // ranks.count, longest, MOST_BATCH_TOKENS[device.type]):
        stop.check()
        # A system may end a process that takes too much memory of a CPU, so no size is tried that will not fit.
        if tried and device.type == "cpu" and needed * size / tried > limit:
            break
        found = _peak(updater, with_batch_tokens(feed, size), is_first=not tried) - unneeded
        found = max(ranks.gather(found))
        if tried and (found > limit or found == math.inf):
            break
        if found == math.inf:
            raise MtkitError(
                f"out of memory with training.batch_tokens auto: there is not even room for {size:,} tokens; wants "
                "training.recompute, a lower data.max_length, or a smaller model"
            )
        tried, needed = size, found
    del trial, state, scaler, updater
    forget_peak(device)
    return FoundBatch(tried, needed, at_hand)


def _sizes(share: int, longest: int, most: int) -> Iterator[int]:
    """Yields batch sizes, in tokens and in ascending order, each of which divides `share` into equal batches.

    `share` is the number of tokens that one rank processes in an update. The sizes are about LEAST_BATCH_TOKENS, twice
    that, and so on up to `most`, but not below `longest`, the size of the longest pair.
    """
    parts, fewest = share // max(LEAST_BATCH_TOKENS, longest), max(1, math.ceil(share / most))
    while parts > fewest:
        yield share // parts
        parts = max(fewest, (parts + 1) // 2)
    yield max(longest, share // fewest)


def with_batch_tokens(feed: Feed, size: int) -> Feed:
    """Returns a copy of the feed that makes batches of `size` tokens."""
    training = feed.config.training.model_copy(update={"batch_tokens": size})
    return replace(feed, config=feed.config.model_copy(update={"training": training}))


def _peak(updater: Updater, feed: Feed, is_first: bool) -> float:
    """Returns the largest amount of memory used during an update, in bytes.

    Returns infinity if memory runs out, and 0 if the system does not tell. The update consists of the largest batches
    and of the first of them once more, so that each batch is processed while gradients of another batch are in memory.
    With `is_first`, another update is made before, so that the state of the optimizer is in memory too.
    """
    device, batches = updater.state.model.device, largest_batches(feed)
    try:
        if is_first:
            updater.update(batches, 1, 0.0)
        forget_peak(device)
        updater.update([*batches, batches[0]], 1, 0.0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return peak_memory(device) or 0
