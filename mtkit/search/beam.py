"""Beam search: the likeliest prefixes side by side, and the best of what ends.

Letters: R rows (sentences in flight), W beam size, K candidates per hypothesis, V vocabulary size, N hypotheses kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkit.search.step import COMPACT_AT, NOTHING, AnyState, Hypothesis, Step


@dataclass(frozen=True)
class _Finished:
    """The best hypotheses that have ended, best first; -inf where there is none yet."""

    scores: Tensor  # (R, N)
    log_probs: Tensor  # (R, N)
    nodes: Tensor  # (R, N) where their last tokens stand in the tree

    def merge(self, other: "_Finished") -> "_Finished":
        """The N best of both; of equals, those that ended first."""
        num_best = self.scores.shape[1]
        scores, order = torch.cat([self.scores, other.scores], dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, :num_best]
        log_probs = torch.cat([self.log_probs, other.log_probs], dim=1).gather(1, order)
        return _Finished(scores[:, :num_best], log_probs, torch.cat([self.nodes, other.nodes], dim=1).gather(1, order))

    def keep(self, sentences: Tensor) -> "_Finished":
        return _Finished(self.scores[sentences], self.log_probs[sentences], self.nodes[sentences])

    def store(self, rows: Tensor, finished: "_Finished") -> "_Finished":
        """The same with other results for these rows."""
        return _Finished(
            self.scores.to(finished.scores).index_copy(0, rows, finished.scores),
            self.log_probs.to(finished.log_probs).index_copy(0, rows, finished.log_probs),
            self.nodes.index_copy(0, rows, finished.nodes),
        )


class _Tree:
    """All prefixes that were in a beam: each node knows its token and the node before it; node 0 is the start."""

    def __init__(self, device: torch.device) -> None:
        self.tokens = [torch.zeros(1, dtype=torch.int64, device=device)]
        self.parents = [torch.zeros(1, dtype=torch.int64, device=device)]
        self.size = 1

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """The nodes, (R, W), of these tokens after these nodes."""
        self.tokens.append(tokens.flatten())
        self.parents.append(parents.flatten())
        self.size += tokens.numel()
        return torch.arange(self.size - tokens.numel(), self.size, device=tokens.device).view_as(tokens)

    def trace(self, nodes: Tensor) -> list[list[int]]:
        """The tokens that lead to each of these nodes, (M,)."""
        tokens, parents = torch.cat(self.tokens).cpu(), torch.cat(self.parents).cpu()
        nodes = nodes.cpu()
        tokens[0] = -1  # no token stands at the start
        columns = []
        while nodes.any():
            columns.append(tokens[nodes])
            nodes = parents[nodes]
        if not columns:
            return [[] for _ in nodes]
        return [[token for token in row if token >= 0] for row in torch.stack(columns[::-1], dim=1).tolist()]


def beam_search(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    beam_size: int,
    length_penalty: Callable[[Tensor], Tensor],
    num_best: int = 1,
) -> list[list[Hypothesis]]:
    """Up to num_best hypotheses of each sentence, in order, best first, and at least one.

    start is (R,), max_lengths (R,): most tokens before the end mark; a hypothesis that has so many can only end. A
    score is log_prob / length_penalty(length), the end mark counted. A sentence is done when no hypothesis in its beam
    can still reach the worst of those it keeps, so that stopping early changes nothing; and it is not changed by what
    else is in the batch.

    Of equal candidates the one of the better hypothesis comes first, then the likelier token, then the lower one;
    only ties across the last place that top-k gives are left to it.
    """
    if not len(start):
        return []
    device = start.device
    longest = int(max_lengths.max())
    penalties = length_penalty(torch.arange(1, longest + 2, dtype=torch.float64))  # [n]: of n tokens and the end mark
    none = torch.full((len(start), num_best), -torch.inf, device=device)
    results = finished = _Finished(none, none, torch.zeros_like(none, dtype=torch.int64))
    tree = _Tree(device)

    rows = torch.arange(len(start), device=device)  # (R,) which sentence stands where
    ids = start[:, None]  # (R, 1) now, (R, W) from the first step on
    totals = torch.zeros_like(ids, dtype=torch.float32)  # log-probabilities so far, the best first; -inf: not alive
    nodes = torch.zeros_like(ids)
    length = 0  # of the hypotheses, in tokens
    while len(rows):
        log_probs, state = step(ids, state)
        penalties = penalties.to(log_probs.dtype).to(device)
        scores, parents, tokens = _candidates(log_probs, totals, max_lengths <= length, end, beam_size)  # (R, 2W)
        ends, real = tokens == end, scores > -torch.inf

        # What ends. Only among the first W: a beam of one is greedy, and a poor end does not push out better ones.
        ended = scores.masked_fill(~(ends & real), -torch.inf)[:, :beam_size]
        ended_nodes = nodes.gather(1, parents[:, :beam_size])
        finished = finished.merge(_Finished(ended / penalties[length], ended, ended_nodes))
        length += 1

        # What goes on: the first W of the others.
        places = (ends | ~real).byte().sort(dim=1, stable=True).indices[:, :beam_size]
        totals = scores.masked_fill(ends, -torch.inf).gather(1, places)
        parents, ids = parents.gather(1, places), tokens.gather(1, places)
        nodes = tree.grow(nodes.gather(1, parents), ids)

        # What is done: log-probabilities only fall, and the penalty is largest at one end of the lengths to come.
        largest_penalty = torch.maximum(penalties[min(length, longest)], penalties[max_lengths])  # (R,)
        done = finished.scores[:, -1] >= totals[:, 0] / largest_penalty
        totals = totals.masked_fill(done[:, None], -torch.inf)
        going = (~done).cpu()  # the one wait for the device
        num_going = int(going.sum())
        if num_going:
            state = state.branch(parents)
        if num_going <= COMPACT_AT * len(rows):
            results = results.store(rows, finished)
            kept = going.nonzero()[:, 0].to(device)
            rows, ids, totals, nodes = rows[kept], ids[kept], totals[kept], nodes[kept]
            max_lengths, finished, state = max_lengths[kept], finished.keep(kept), state.keep(kept)

    return _to_lists(results, tree)


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


def _to_lists(results: _Finished, tree: _Tree) -> list[list[Hypothesis]]:
    """The hypotheses that were found, and NOTHING for a sentence without."""
    num_best = results.scores.shape[1]
    tokens = tree.trace(results.nodes.flatten())
    hypotheses = []
    for row, (scores, log_probs) in enumerate(zip(results.scores.tolist(), results.log_probs.tolist(), strict=True)):
        found = [
            Hypothesis(tokens[row * num_best + place], log_probs[place], score)
            for place, score in enumerate(scores)
            if score > -torch.inf
        ]
        hypotheses.append(found or [NOTHING])
    return hypotheses
