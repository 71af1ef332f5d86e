"""What an update makes smaller: the loss of a batch, of one pass through the model or of two that must agree.

R rows, L length of a row, T target length, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtkit.batch import Batch, Rows
from mtkit.config.training_settings import TrainingConfig
from mtkit.models.interface import TranslationModel
from mtkit.training.loss import Shares, consistent_cross_entropy, label_smoothed_cross_entropy


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
