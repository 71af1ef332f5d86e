"""Beam search: the likeliest prefixes side by side, and the best of what ends.

Letters: R rows (sentences in flight), W beam size, V vocabulary size, N hypotheses kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtkit.search.candidates import Groups, continue_beam
from mtkit.search.step import BROKEN, COMPACT_AT, NOTHING, AnyState, Hypothesis, Step
from mtkit.search.stopping import Progress, Stopping, exact

WHOLE = Groups()  # the beam is not divided


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
    *,
    num_spare: int = 0,
    stopping: Stopping = exact,
    bonus: Callable[[AnyState], Tensor] | None = None,
    groups: Groups = WHOLE,
) -> list[list[Hypothesis]]:
    """Up to num_best + num_spare hypotheses of each sentence, in order, best first, and at least one.

    start is (R,), max_lengths (R,): most tokens before the end mark; a hypothesis that has so many can only end. A
    score is log_prob / length_penalty(length), the end mark counted, and the bonus, never above 0, that a state gives
    to each of its hypotheses, (R, W), if it ends now. stopping tells when a sentence is done; the exact rule asks for
    the num_best, and stopping early by it changes none of them. No sentence is changed by what else is in the batch.

    Of equal candidates the one of the better hypothesis comes first, then the likelier token, then the lower one;
    only ties across the last place that top-k gives are left to it.
    """
    if not len(start):
        return []
    device = start.device
    longest = int(max_lengths.max())
    penalties = length_penalty(torch.arange(1, longest + 2, dtype=torch.float64))  # [n]: of n tokens and the end mark
    none = torch.full((len(start), num_best + num_spare), -torch.inf, device=device)
    results = finished = _Finished(none, none, torch.zeros_like(none, dtype=torch.int64))
    tree = _Tree(device)
    all_broken = torch.zeros(len(start), dtype=torch.bool, device=device)  # sentences whose log-probabilities are NaN

    rows = torch.arange(len(start), device=device)  # (R,) which sentence stands where
    num_ended = torch.zeros_like(rows)
    ids = start[:, None]  # (R, 1) now, (R, W) from the first step on
    totals = torch.zeros_like(ids, dtype=torch.float32)  # log-probabilities so far; -inf: not alive
    nodes = torch.zeros_like(ids)
    length = 0  # of the hypotheses, in tokens
    while len(rows):
        log_probs, state = step(ids, state)
        penalties = penalties.to(log_probs.dtype).to(device)
        ended, going_on = continue_beam(log_probs, totals, max_lengths <= length, end, beam_size, groups)  # (R, W)

        # What ends.
        scores = ended.log_probs / penalties[length]
        if bonus is not None:
            scores = scores + bonus(state).gather(1, ended.parents)
        finished = finished.merge(_Finished(scores, ended.log_probs, nodes.gather(1, ended.parents)))
        num_ended = num_ended + (ended.log_probs > -torch.inf).sum(1)
        length += 1

        # What goes on.
        totals, ids = going_on.log_probs, going_on.tokens
        all_broken[rows] |= totals.isnan().any(1)
        nodes = tree.grow(nodes.gather(1, going_on.parents), ids)

        # What is done: log-probabilities only fall, and the penalty is largest at one end of the lengths to come.
        largest_penalty = torch.maximum(penalties[min(length, longest)], penalties[max_lengths])  # (R,)
        best_possible = totals.amax(1) / largest_penalty
        done = stopping(Progress(finished.scores[:, num_best - 1], best_possible, num_ended), beam_size)
        totals = totals.masked_fill(done[:, None], -torch.inf)
        going = (~done).cpu()  # the one wait for the device
        num_going = int(going.sum())
        if num_going:
            state = state.branch(going_on.parents)
        if num_going <= COMPACT_AT * len(rows):
            results = results.store(rows, finished)
            kept = going.nonzero()[:, 0].to(device)
            rows, num_ended, ids, totals, nodes = rows[kept], num_ended[kept], ids[kept], totals[kept], nodes[kept]
            max_lengths, finished, state = max_lengths[kept], finished.keep(kept), state.keep(kept)

    return _to_lists(results, tree, all_broken.tolist())


def _to_lists(results: _Finished, tree: _Tree, broken: list[bool]) -> list[list[Hypothesis]]:
    """The hypotheses that were found; for a sentence without any, BROKEN or NOTHING."""
    num_kept = results.scores.shape[1]
    tokens = tree.trace(results.nodes.flatten())
    hypotheses = []
    for row, (scores, log_probs) in enumerate(zip(results.scores.tolist(), results.log_probs.tolist(), strict=True)):
        found = [
            Hypothesis(tokens[row * num_kept + place], log_probs[place], score)
            for place, score in enumerate(scores)
            if score > -torch.inf
        ]
        hypotheses.append(found or [BROKEN if broken[row] else NOTHING])
    return hypotheses
