"""One step of a beam: which continuations end, and which go on.

Letters: R rows (sentences in flight), W beam size or width of a group, K candidates per hypothesis, M continuations,
V vocabulary size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Diverse beam search (Vijayakumar et al., 2018): the beam is divided, and later groups avoid what others say.

    At each step a token is ranked by its log-probability less strength for each hypothesis of an earlier group that
    goes on with it at this step (their Hamming diversity). Only the ranking is changed, not what is reported.
    """

    number: int = 1
    strength: float = 0.0


@dataclass(frozen=True)
class Continuations:
    """Hypotheses one token longer, the better first in each group; each (R, M)."""

    log_probs: Tensor  # -inf where there is none
    parents: Tensor  # hypotheses that they go on from
    tokens: Tensor


def continue_beam(
    log_probs: Tensor, totals: Tensor, full: Tensor, end: int, beam_size: int, groups: Groups
) -> tuple[Continuations, Continuations]:
    """What ends and what goes on, each (R, beam_size); log_probs is (R, 1 or W, V), totals (R, 1 or W).

    full (R,) tells the sentences whose hypotheses can only end.
    """
    if groups.number == 1:
        return _continue_group(log_probs, log_probs, totals, full, end, beam_size)
    width = beam_size // groups.number
    said = log_probs.new_zeros(len(log_probs), log_probs.shape[2])  # (R, V) how many have said each token
    ended, going = [], []
    for group in range(groups.number):
        first = group * width if totals.shape[1] > 1 else 0  # before the first token all groups share one hypothesis
        own = slice(first, first + width)
        ranked = log_probs[:, own] - groups.strength * said[:, None]
        ends, goes = _continue_group(ranked, log_probs[:, own], totals[:, own], full, end, width)
        said = said.scatter_add(1, goes.tokens, (goes.log_probs > -torch.inf).to(said.dtype))
        ended.append(Continuations(ends.log_probs, ends.parents + first, ends.tokens))
        going.append(Continuations(goes.log_probs, goes.parents + first, goes.tokens))
    return _joined(ended), _joined(going)


def _joined(groups: list[Continuations]) -> Continuations:
    return Continuations(
        torch.cat([group.log_probs for group in groups], dim=1),
        torch.cat([group.parents for group in groups], dim=1),
        torch.cat([group.tokens for group in groups], dim=1),
    )


def _continue_group(
    ranked: Tensor, log_probs: Tensor, totals: Tensor, full: Tensor, end: int, width: int
) -> tuple[Continuations, Continuations]:
    """What ends and what goes on of one group, each (R, W), chosen by the ranked in the place of the log_probs."""
    scores, parents, tokens = _candidates(ranked, totals, full, end, width)  # (R, 2W)
    ends, real = tokens == end, scores > -torch.inf
    if ranked is not log_probs:
        gains = log_probs.flatten(1).gather(1, parents * log_probs.shape[2] + tokens)
        scores = (totals.gather(1, parents) + gains).masked_fill(scores == -torch.inf, -torch.inf)  # NaN stays

    # Only among the first W: a beam of one is greedy, and a poor end does not push out better ones.
    ended = scores.masked_fill(~(ends & real), -torch.inf)[:, :width]
    # The first W of the others.
    places = (ends | ~real).byte().sort(dim=1, stable=True).indices[:, :width]
    going = scores.masked_fill(ends, -torch.inf).gather(1, places)
    return (
        Continuations(ended, parents[:, :width], tokens[:, :width]),
        Continuations(going, parents.gather(1, places), tokens.gather(1, places)),
    )


def _candidates(
    log_probs: Tensor, totals: Tensor, full: Tensor, end: int, beam_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The 2W best continuations: log-probabilities, hypotheses they go on from, and tokens, each (R, 2W), best first.

    log_probs is (R, W, V), totals (R, W), and full (R,) tells the sentences whose hypotheses can only end. Twice the
    width, so that W prefixes go on even if as many candidates end here. What is missing is -inf.
    """
    # The best 2W are among the best 2W of each hypothesis; only these are ever added up and sorted.
    num_tokens = min(2 * beam_size, log_probs.shape[2])  # K
    gains, tokens = log_probs.topk(num_tokens, dim=2)  # (R, W, K)
    tokens, order = tokens.sort(dim=2)
    gains, order = gains.gather(2, order).sort(dim=2, descending=True, stable=True)
    tokens = tokens.gather(2, order)

    only_end = F.pad(log_probs[:, :, end : end + 1], (0, num_tokens - 1), value=-torch.inf)
    gains = torch.where(full[:, None, None], only_end, gains)
    tokens = torch.where(full[:, None, None], end, tokens)

    scores = (totals[:, :, None] + gains).flatten(1)  # (R, W * K)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, : 2 * beam_size], order[:, : 2 * beam_size]
    missing = 2 * beam_size - order.shape[1]
    parents, tokens = order // num_tokens, tokens.flatten(1).gather(1, order)
    if missing:
        scores = F.pad(scores, (0, missing), value=-torch.inf)
        parents, tokens = F.pad(parents, (0, missing)), F.pad(tokens, (0, missing), value=end)
    return scores, parents, tokens
