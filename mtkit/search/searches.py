"""Greedy search, sampling and beam search."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtkit.search.step import BROKEN, COMPACT_AT, NOTHING, AnyState, Hypothesis, Step


def greedy_search(
    step: Step[AnyState], state: AnyState, start: Tensor, max_lengths: Tensor, end: int
) -> list[Hypothesis]:
    """The hypothesis of each sentence, in order; its score is its log-probability.

    start is (R,), max_lengths (R,): most tokens before the end mark. A hypothesis that has so many can only end. Of
    equally likely tokens the lowest is taken.
    """
    if not len(start):
        return []
    all_tokens = torch.full((len(start), int(max_lengths.max()) + 1), end, device=start.device)  # (R, T)
    all_log_probs = torch.zeros(len(start), device=start.device)  # (R,), all sentences

    rows = torch.arange(len(start), device=start.device)  # (R,) which sentence stands where
    ids, log_prob, done = start, all_log_probs, torch.zeros_like(start, dtype=torch.bool)
    length = 0  # of the hypotheses, in tokens
    while len(rows):
        log_probs, state = step(ids[:, None], state)
        best = log_probs[:, 0].argmax(dim=1)  # (R,) from (R, V)
        ids = torch.where(done | (max_lengths <= length), end, best)
        gain = log_probs[:, 0].gather(1, ids[:, None])[:, 0]
        log_prob = torch.where(done, log_prob, log_prob + gain)
        all_tokens[rows, length] = ids
        length += 1

        done = done | (ids == end) | ~(log_prob > -torch.inf)
        going = (~done).cpu()  # the one wait for the device
        if going.sum() <= COMPACT_AT * len(rows):
            all_log_probs = all_log_probs.to(log_prob).index_copy(0, rows, log_prob)
            kept = going.nonzero()[:, 0].to(start.device)
            rows, ids, log_prob, done = rows[kept], ids[kept], log_prob[kept], done[kept]
            max_lengths, state = max_lengths[kept], state.keep(kept)

    hypotheses = []
    for tokens, total in zip(all_tokens.tolist(), all_log_probs.tolist(), strict=True):
        if total > -torch.inf:
            hypotheses.append(Hypothesis(tokens[: tokens.index(end)], total, total))
        else:
            hypotheses.append(NOTHING if total == -torch.inf else BROKEN)
    return hypotheses


# Sampling: tokens drawn by their probabilities.

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: steps of a counter that is to be mixed
CHUNK_ELEMENTS = 1 << 22  # fp64 weights that are drawn from at once: 32 MB
FIRST = 128  # tokens in which a nucleus is looked for before all are


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: at a temperature, from the k likeliest, from the likeliest of mass p of those."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. (2020), section 3.1

    def __call__(self, log_probs: Tensor, chances: Tensor) -> Tensor:
        """(R, W) tokens for (R, 1 or W, V) log-probabilities and (R, W) chances from 0 to 1, 1 not among them.

        Where all is forbidden, some forbidden token. Sentences are drawn for by themselves, some at a time.
        """
        most = max(1, CHUNK_ELEMENTS // (chances.shape[1] * log_probs.shape[2]))
        parts = zip(torch.split(log_probs, most), torch.split(chances, most), strict=True)
        return torch.cat([self._drawn(*part) for part in parts])

    def _drawn(self, log_probs: Tensor, chances: Tensor) -> Tensor:
        """The same, all at once."""
        order = None  # (R, W, K): the tokens, where only some are left
        if self.top_k is not None and self.top_k < log_probs.shape[2]:
            log_probs, order = log_probs.topk(self.top_k, dim=2)
        weights = self._weights(log_probs)  # (R, W, K)
        if self.top_p is not None:
            least = _least_of_nucleus(weights.flatten(0, 1), self.top_p).view(*weights.shape[:2], 1)
            weights = weights.masked_fill(weights < least, 0.0)

        # The place where the weights so far first pass a share of all; never one of no weight.
        sums = weights.cumsum(2)
        total = sums[:, :, -1]
        share = chances.to(sums).clamp(max=1 - torch.finfo(sums.dtype).eps) * total  # (R, W)
        sums = sums.expand(-1, share.shape[1], -1).contiguous()
        places = torch.searchsorted(sums, share[:, :, None].contiguous(), right=True).clamp(max=sums.shape[2] - 1)
        if order is not None:
            places = order.expand(-1, share.shape[1], -1).gather(2, places)
        return places[:, :, 0]

    def _weights(self, log_probs: Tensor) -> Tensor:
        """Probabilities at this temperature, but for a factor: the likeliest has 1."""
        largest = log_probs.amax(2, keepdim=True).clamp(min=torch.finfo(log_probs.dtype).min)
        weights = ((log_probs - largest) / self.temperature).exp()
        return weights if weights.device.type == "mps" else weights.double()  # sums of many small numbers


def _least_of_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The smallest weight, (R,), that the nucleus of mass p holds; tokens as likely as that one belong to it, too.

    weights is (R, K). To sort a whole vocabulary takes longer than a model's step, and most nuclei are small.
    """
    enough = top_p * weights.sum(1)  # (R,)
    first = weights.topk(min(FIRST, weights.shape[1]), dim=1).values
    least = _where_enough(first, enough)
    rest = (first.sum(1) < enough).nonzero()[:, 0]
    if len(rest):
        least[rest] = _where_enough(weights[rest].sort(dim=1, descending=True).values, enough[rest])
    return least


def _where_enough(falling: Tensor, enough: Tensor) -> Tensor:
    """(R,): of weights (R, K), the largest first, the one with which their sum is enough."""
    places = (falling.cumsum(1) < enough[:, None]).sum(1, keepdim=True).clamp(max=falling.shape[1] - 1)
    return falling.gather(1, places)[:, 0]


class Chances:
    """A number from 0 to 1 for each (sentence, sample, step): a function of these and the seed alone.

    So a sample is the same in every batch and order, and the first of many samples is the one that is drawn alone. A
    sentence is known by its tokens; the numbers are mixed from a counter (SplitMix64: Steele, Lea & Flood, 2014).
    """

    def __init__(self, seed: int, sentences: list[list[int]], num_samples: int) -> None:
        keys = np.array([_key(seed, sentence) for sentence in sentences], dtype=np.uint64)
        samples = np.arange(1, num_samples + 1, dtype=np.uint64)
        self.streams = _mixed(keys[:, None] + samples * GOLDEN)  # (N, W)

    def __call__(self, sentences: Tensor, step: int) -> Tensor:
        """(R, W) float64 on the CPU, for sentences (R,) by their places in the batch."""
        numbers = _mixed(self.streams[sentences.cpu().numpy()] + np.full(1, step + 1, dtype=np.uint64) * GOLDEN)
        return torch.from_numpy((numbers >> np.uint64(11)) * 2.0**-53)


def _key(seed: int, sentence: list[int]) -> int:
    """64 bits of a seed and tokens, the same on every machine."""
    text = f"{seed} {' '.join(map(str, sentence))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64; products wrap around."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def sample_search(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    num_samples: int,
    draw: Callable[[Tensor, Tensor], Tensor],
    chances: Callable[[Tensor, int], Tensor],
) -> list[list[Hypothesis]]:
    """So many samples of each sentence, in the order they were drawn; a score is the model's own log-probability.

    start is (R,), max_lengths (R,): most tokens before the end mark. A sample that has so many can only end.
    """
    if not len(start):
        return []
    shape = (len(start), num_samples)
    all_tokens = torch.full((*shape, int(max_lengths.max()) + 1), end, device=start.device)  # (R, W, T)
    all_log_probs = torch.zeros(shape, device=start.device)  # (R, W), all sentences

    rows = torch.arange(len(start), device=start.device)  # (R,) which sentence stands where
    ids = start[:, None]  # (R, 1) now, (R, W) from the first step on
    log_prob = all_log_probs
    done = torch.zeros(shape, dtype=torch.bool, device=start.device)
    length = 0  # of the samples, in tokens
    while len(rows):
        log_probs, state = step(ids, state)
        drawn = draw(log_probs, chances(rows, length).to(log_probs.device, log_probs.dtype))  # (R, W)
        ids = torch.where(done | (max_lengths <= length)[:, None], end, drawn)
        gains = log_probs.expand(-1, num_samples, -1).gather(2, ids[:, :, None])[:, :, 0]
        log_prob = torch.where(done, log_prob, log_prob + gains)
        all_tokens[rows, :, length] = ids
        length += 1

        done = done | (ids == end) | ~(log_prob > -torch.inf)
        going = (~done).any(1).cpu()  # the one wait for the device
        if length == 1 and going.any():
            state = state.branch(torch.zeros_like(ids))
        if going.sum() <= COMPACT_AT * len(rows):
            all_log_probs = all_log_probs.to(log_prob).index_copy(0, rows, log_prob)
            kept = going.nonzero()[:, 0].to(start.device)
            rows, ids, log_prob, done = rows[kept], ids[kept], log_prob[kept], done[kept]
            max_lengths, state = max_lengths[kept], state.keep(kept)

    samples = []
    for all_of_one, totals in zip(all_tokens.tolist(), all_log_probs.tolist(), strict=True):
        samples.append([_sample(tokens, total, end) for tokens, total in zip(all_of_one, totals, strict=True)])
    return samples


def _sample(tokens: list[int], total: float, end: int) -> Hypothesis:
    if total > -torch.inf:
        return Hypothesis(tokens[: tokens.index(end)], total, total)
    return NOTHING if total == -torch.inf else BROKEN


# One step of a beam: which continuations end, and which go on.


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


# When a sentence is done: what beam search asks after each step.


@dataclass(frozen=True)
class Progress:
    """Where the search for each sentence stands; every tensor is (R,)."""

    worst_kept: Tensor  # score of the worst of the best hypotheses that are wanted; -inf while there are fewer
    best_possible: Tensor  # no hypothesis that goes on can score higher; -inf where none does
    num_ended: Tensor  # hypotheses that have ended so far


class Stopping(Protocol):
    """A rule for the end of a search."""

    def __call__(self, progress: Progress, beam_size: int) -> Tensor:
        """(R,) True where a sentence is done."""


def exact(progress: Progress, beam_size: int) -> Tensor:
    """When nothing that goes on can still be among the best: a search to the longest length would find the same."""
    return progress.worst_kept >= progress.best_possible


def count(progress: Progress, beam_size: int) -> Tensor:
    """When as many hypotheses have ended as the beam is wide: patience 1 in Kasai et al. (2022), algorithm 1."""
    return (progress.num_ended >= beam_size) | exact(progress, beam_size)


STOPPING: dict[str, Stopping] = {"exact": exact, "count": count}


# Beam search: the likeliest prefixes side by side, and the best of what ends.

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
