"""Greedy search, sampling, beam search, exact search and mask-predict, with constraints and penalties.

Shapes: N sentences of the batch, R rows (sentences still being decoded), W hypotheses per sentence, T target length,
S source length, V vocabulary size, P length of the longest prefix, K tokens considered for each hypothesis, M any
number, B prefixes of an exact search.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtkit.models.interface import SearchState, put

AnyState = TypeVar("AnyState", bound=SearchState)

# A step function takes the last token of each hypothesis (R, W) and the decoding state. It returns log-probabilities of
# the next token (R, W, V) and the state after the step. Log-probabilities are float32 or float64; those of forbidden
# tokens are -inf. The state passed in must not be used again.
Step = Callable[[Tensor, AnyState], tuple[Tensor, AnyState]]

# On devices other than a CPU, finished sentences are removed from the batch once at most this fraction of its rows is
# unfinished. Removing them after each step would be slower, since it copies the caches.
COMPACT_AT = 0.75

# While sentences are waiting, they replace finished sentences once the fraction of unfinished rows is at most this.
# Replacing does not copy the caches, but encoding very few new sentences at a time is slow.
REFILL_AT = 0.9


def size_above(count: int) -> int:
    """Returns the smallest size of a batch that is at least `count`; `size_below` says which sizes there are."""
    step = _step(count)
    return -(-count // step) * step


def size_below(count: int) -> int:
    """Returns the largest size of a batch that is at most `count`.

    On a CPU, batches have few different sizes: up to 16 sentences, any number; then, eight sizes between a power of 2
    and the next, such as 16, 18, 20, …, 32, 36, …. For each size, oneDNN makes a kernel for each layer, which takes a
    few hundred kilobytes.
    """
    step = _step(count)
    return count // step * step


def _step(count: int) -> int:
    """Returns the difference between sizes of a batch that are near `count`."""
    return 1 << max(0, count.bit_length() - 4)


def is_worth_removing(num_unfinished: int, num_rows: int, device: torch.device, waits: bool) -> bool:
    """Whether a search should remove or, if a sentence waits, replace the finished sentences of its `num_rows` rows.

    On a CPU, it should remove them as soon as a smaller batch has room for the unfinished ones, since only rows that
    move are copied.
    """
    if waits:
        return num_unfinished <= REFILL_AT * num_rows
    return size_above(num_unfinished) < num_rows if device.type == "cpu" else num_unfinished <= COMPACT_AT * num_rows


def rows_to_keep(unfinished: Tensor, device: torch.device) -> Tensor:
    """Returns the indices (R',) of the rows that remain when finished rows are removed, in the order to keep them.

    `unfinished`, (R,) bool on the CPU, is False for finished rows. The first R' rows keep their places, but unfinished
    rows from the end replace finished ones, so that few rows move. If the device is a CPU, R' is one of the sizes of
    `size_above`, so that a few finished rows may remain.
    """
    count = int(unfinished.sum())
    if device.type == "cpu":
        count = min(size_above(count), len(unfinished))
    kept = torch.arange(count)
    moved = unfinished[count:].nonzero()[:, 0] + count
    kept[(~unfinished[:count]).nonzero()[: len(moved), 0]] = moved
    return kept


class Waiting(Generic[AnyState]):
    """A queue of sentences that wait for free places in the batch of a search.

    A place becomes free when the search for a sentence is done. Sentence n may only be in a batch of at most `rooms[n]`
    sentences; `rooms` has a number, at least 1, for each of all N sentences. `begin` returns the decoding state of the
    given sentences before the first step, with one hypothesis each. `left`, if given, is called with the sentences that
    are done, each time before their places are given away.
    """

    def __init__(
        self,
        rooms: Sequence[int],
        begin: Callable[[range], AnyState],
        left: Callable[[list[int]], object] | None = None,
    ) -> None:
        self.sentences = range(len(rooms))  # that wait
        self.rooms = rooms
        self.begin = begin
        self.left = left

    def __len__(self) -> int:
        return len(self.sentences)

    def next(self, num_rows: int) -> range:
        """Returns the next sentences, as many as can be added to a batch of `num_rows` rows; they no longer wait."""
        count = 0
        while count < len(self) and num_rows + count < self.rooms[self.sentences[count]]:
            count += 1
        found, self.sentences = self.sentences[:count], self.sentences[count:]
        return found

    def take(self, rows: Tensor, unfinished: Tensor) -> tuple[Tensor, Tensor, AnyState] | None:
        """Gives free places to the next sentences; returns the places (R',), the sentences (R',) and their state.

        Returns `None` if the batch has no room for another sentence. `rows` (R,) holds the sentence of each row.
        `unfinished` (R,), on the CPU, is `False` for free places, which are rows whose search is done. It is modified:
        it becomes `True` for the places that are given away.
        """
        free = (~unfinished).nonzero()[:, 0]
        if self.left is not None:
            self.left(rows.cpu()[free].tolist())
        found = self.next(len(rows) - len(free))
        if not found:
            return None
        places = free[: len(found)]
        unfinished[places] = True
        return places.to(rows.device), torch.tensor(found, device=rows.device), self.begin(found)


@dataclass(frozen=True)
class Hypothesis:
    """A translation found by a search; a higher score is better.

    A search that finds no translation returns `NOTHING_FOUND` or `NOT_A_NUMBER`. Both have no tokens and a score of
    -inf.
    """

    tokens: list[int]  # without start token and end mark
    log_prob: float  # summed over the tokens and the end mark
    score: float  # log_prob after length and coverage penalties
    cut_short: bool = False  # whether a limit on steps ended an exact search, so that there may be a better hypothesis

    @property
    def found(self) -> bool:
        """Whether the search found a translation."""
        return self.score > float("-inf")


NOTHING_FOUND = Hypothesis([], float("-inf"), float("-inf"))  # the constraints forbid every complete hypothesis
NOT_A_NUMBER = Hypothesis([], float("nan"), float("-inf"))  # the model's log-probabilities are NaN


# Constraints forbid tokens by setting their log-probabilities to -inf.


NO_TOKEN = -1  # stands where there is no token


@dataclass(frozen=True)
class TokenHistory(Generic[AnyState]):
    """A decoding state, with the tokens of each hypothesis so far and the sentence that each row belongs to."""

    state: AnyState
    tokens: Tensor  # (R, W, T) without the start token, left-padded with NO_TOKEN; (R, 1, 0) before the first step
    sentences: Tensor  # (R,) the sentence of each row, as an index into all N sentences
    has_begun: Tensor  # (R,) False before the first step of the row, which reads the start token

    @classmethod
    def empty(cls, state: AnyState, sentences: Tensor) -> Self:
        """Returns the history before the first step of the given sentences (R,), with one hypothesis for each."""
        tokens = sentences.new_zeros(len(sentences), 1, 0)
        return cls(state, tokens, sentences, torch.zeros_like(sentences, dtype=torch.bool))

    def branch(self, parents: Tensor) -> Self:
        """Returns the history in which hypothesis w of row r continues hypothesis `parents[r, w]` of that row.

        `parents` is (R, W').
        """
        tokens = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        return type(self)(self.state.branch(parents), tokens, self.sentences, self.has_begun)

    def keep(self, sentences: Tensor) -> Self:
        """Returns the history of only those rows whose indices are in `sentences` (R',), in that order."""
        parts = (self.tokens[sentences], self.sentences[sentences], self.has_begun[sentences])
        return type(self)(self.state.keep(sentences), *parts)

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a history in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is the history of R' sentences before the first step, with one hypothesis each.
        """
        tokens = self.tokens.index_fill(0, places, NO_TOKEN)
        longest = int(_lengths(tokens).max())
        return type(self)(
            self.state.refill(places, fresh.state),
            tokens[:, :, tokens.shape[2] - longest :],
            put(self.sentences, places, fresh.sentences),
            put(self.has_begun, places, fresh.has_begun),
        )


def _lengths(tokens: Tensor) -> Tensor:
    """Returns the length (R,), in tokens, of the hypotheses of each row; all hypotheses of a row have the same length.

    `tokens` (R, W, T) holds the tokens of each hypothesis, left-padded with NO_TOKEN.
    """
    return (tokens[:, 0] != NO_TOKEN).sum(1)


# A constraint takes log-probabilities (R, W, V), the tokens so far (R, W, T) as in TokenHistory, and the sentence of
# each row (R,) as an index into all N sentences. It returns the log-probabilities (R, W, V) with -inf for the tokens
# that it forbids.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]


def constrained(step: Step[AnyState], constraints: Sequence[Constraint]) -> Step[TokenHistory[AnyState]]:
    """Returns a step function that calls `step` and applies the constraints, in order, to the log-probabilities."""

    def constrained_step(ids: Tensor, history: TokenHistory[AnyState]) -> tuple[Tensor, TokenHistory[AnyState]]:
        log_probs, state = step(ids, history.state)
        read = torch.where(history.has_begun[:, None], ids, NO_TOKEN)
        tokens = torch.cat([history.tokens, read[:, :, None]], dim=2)
        for constraint in constraints:
            log_probs = constraint(log_probs, tokens, history.sentences)
        return log_probs, TokenHistory(state, tokens, history.sentences, torch.ones_like(history.has_begun))

    return constrained_step


def never(forbidden: Sequence[int]) -> Constraint:
    """Returns a constraint that always forbids the given tokens."""

    def forbid_tokens(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        return log_probs.index_fill(2, torch.tensor(list(forbidden), device=log_probs.device), -torch.inf)

    return forbid_tokens


def min_length(minimum: Tensor, end: int) -> Constraint:
    """Returns a constraint that forbids the end mark as long as a hypothesis has fewer tokens than `minimum`.

    `minimum` (N,) holds a number for each sentence.
    """

    def forbid_end(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        too_short = _lengths(tokens) < minimum[sentences]  # (R,)
        log_probs = log_probs.clone()
        log_probs[:, :, end] = log_probs[:, :, end].masked_fill(too_short[:, None], -torch.inf)
        return log_probs

    return forbid_end


def no_repeat_ngram(size: int) -> Constraint:
    """Returns a constraint by which no hypothesis may contain an n-gram of `size` tokens twice.

    See Paulus et al. (2018), section 2.5.
    """

    def forbid_repetition(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        length = tokens.shape[2]
        if length < size:
            return log_probs
        ngrams = tokens.unfold(2, size, 1)  # (R, W, T - size + 1, size)
        last = tokens[:, :, None, length - size + 1 :]  # (R, W, 1, size - 1): the start of the next n-gram
        following = ngrams[:, :, :, -1]
        matches = (ngrams[:, :, :, :-1] == last).all(3) & (following != NO_TOKEN)
        limits = torch.zeros_like(following, dtype=log_probs.dtype)  # no log-probability is above 0
        limits = limits.masked_fill(matches, -torch.inf)
        return log_probs.scatter_reduce(2, following.clamp(min=0), limits, "amin")  # (R, W, V)

    return forbid_repetition


def begin_with(prefixes: Tensor, constraints: Sequence[Constraint]) -> Constraint:
    """Returns a constraint that forces each hypothesis to begin with the prefix for its sentence.

    `prefixes` is (N, P), padded with NO_TOKEN. `constraints` are applied only to the tokens after the prefix.
    """
    prefixes = F.pad(prefixes, (0, 1), value=NO_TOKEN)

    def force_prefix(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        free = log_probs
        for constraint in constraints:
            free = constraint(free, tokens, sentences)
        places = _lengths(tokens).clamp(max=prefixes.shape[1] - 1)
        forced = prefixes[sentences, places][:, None, None]  # (R, 1, 1)
        if not (forced != NO_TOKEN).any():
            return free
        others = torch.arange(log_probs.shape[2], device=log_probs.device) != forced
        return torch.where(forced == NO_TOKEN, free, log_probs.masked_fill(others, -torch.inf))

    return force_prefix


# Length penalties. The log-probability of a hypothesis is divided by its length penalty, since otherwise long
# hypotheses would have low scores.

# Penalties are clamped to this range. Outside it, a penalty could become 0 or infinity in fp32, and the quotient NaN.
SMALLEST_PENALTY, LARGEST_PENALTY = 1e-30, 1e30


class LengthPenalty(Protocol):
    """A function that returns the number by which the log-probability of a hypothesis is divided."""

    def __call__(self, length: Tensor, exponent: float) -> Tensor:
        """Returns the divisor for each hypothesis, in the shape of `length`; lengths include the end mark."""


def power(length: Tensor, exponent: float) -> Tensor:
    """Returns length^exponent, kept between SMALLEST_PENALTY and LARGEST_PENALTY.

    With exponent 1, the score of a hypothesis is its mean log-probability per token. With exponent 0, the score is the
    sum of the log-probabilities.
    """
    return (length**exponent).clamp(SMALLEST_PENALTY, LARGEST_PENALTY)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """Returns ((5 + length) / 6)^exponent, kept between SMALLEST_PENALTY and LARGEST_PENALTY.

    This is the length penalty of Wu et al. (2016), equation 14.
    """
    return (((5 + length) / 6) ** exponent).clamp(SMALLEST_PENALTY, LARGEST_PENALTY)


LENGTH_PENALTIES: dict[str, LengthPenalty] = {"power": power, "gnmt": gnmt}


# The coverage penalty of GNMT (Wu et al., 2016, equation 15): a translation should attend to every source token.

SMALLEST_ATTENTION = 1e-30  # smaller sums of attention are raised to this, since the logarithm of 0 is -inf


@dataclass(frozen=True)
class Coverage(Generic[AnyState]):
    """A decoding state, with the sum of the attention that each hypothesis has paid to each source token."""

    state: AnyState
    sums: Tensor  # (R, W, S) attention summed over the target tokens
    source_mask: Tensor  # (R, S), False for padding

    @classmethod
    def empty(cls, state: AnyState, source_mask: Tensor, dtype: torch.dtype) -> Self:
        """Returns the coverage before the first step, with one hypothesis per sentence and sums of zero."""
        return cls(state, torch.zeros_like(source_mask, dtype=dtype)[:, None], source_mask)

    def branch(self, parents: Tensor) -> Self:
        """Returns the coverage in which hypothesis w of row r continues hypothesis `parents[r, w]` of that row.

        `parents` is (R, W').
        """
        sums = self.sums.gather(1, parents[:, :, None].expand(-1, -1, self.sums.shape[2]))
        return type(self)(self.state.branch(parents), sums, self.source_mask)

    def keep(self, sentences: Tensor) -> Self:
        """Returns the coverage of only those rows whose indices are in `sentences` (R',), in that order."""
        return type(self)(self.state.keep(sentences), self.sums[sentences], self.source_mask[sentences])

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a coverage in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is the coverage of R' sentences before the first step, with one hypothesis each.
        """
        return type(self)(
            self.state.refill(places, fresh.state),
            put(self.sums, places, fresh.sums, dim=2),
            put(self.source_mask, places, fresh.source_mask, dim=1),
        )


def covering(step: Step[AnyState], attention: Callable[[AnyState], Tensor]) -> Step[Coverage[AnyState]]:
    """Returns a step function that calls `step` and also sums up the attention to each source token.

    `attention(state)` returns the attention weights (R, W, S) with which the next token is predicted, given the state
    after a step. So the sums already include the attention for the next token, even if that token is the end mark.
    """

    def covering_step(ids: Tensor, coverage: Coverage[AnyState]) -> tuple[Tensor, Coverage[AnyState]]:
        log_probs, state = step(ids, coverage.state)
        return log_probs, Coverage(state, coverage.sums + attention(state).to(coverage.sums), coverage.source_mask)

    return covering_step


def coverage_penalty(coverage: Coverage[AnyState], strength: float) -> Tensor:
    """Returns the coverage penalty (R, W), which is at most 0 and is added to the score.

    The penalty is `strength` times the sum, over the source tokens, of log(min(summed attention, 1)).
    """
    logs = coverage.sums.clamp(SMALLEST_ATTENTION, 1.0).log()
    return strength * logs.masked_fill(~coverage.source_mask[:, None], 0.0).sum(2)


# Greedy search and sampling, in which each hypothesis is extended independently of the others.

# A function that chooses the next tokens (R, W), given the log-probabilities (R, 1 or W, V), the sentence of each row
# (R,) as an index into all N sentences, and the number of tokens of its hypotheses so far (R,).
Choose = Callable[[Tensor, Tensor, Tensor], Tensor]


def greedy_search(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    waiting: Waiting[AnyState] | None = None,
) -> list[Hypothesis]:
    """Returns one hypothesis for each sentence, in order, built by taking the most probable token at each step.

    Of equally probable tokens, the one with the lowest id is taken. `start` (N,) holds the start tokens. `max_lengths`
    (N,) holds the maximum length of the hypothesis for each sentence, in tokens without the end mark. `end` is the id
    of the end mark. `state` is the decoding state of the sentences in the first batch; all other sentences are in
    `waiting`. The score of a hypothesis is its log-probability.
    """

    def likeliest(log_probs: Tensor, sentences: Tensor, lengths: Tensor) -> Tensor:
        return _argmax(log_probs)

    return [hypothesis for [hypothesis] in _extend(step, state, start, max_lengths, end, 1, likeliest, waiting)]


def sample_search(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    num_samples: int,
    draw: Callable[[Tensor, Tensor], Tensor],
    uniform: Callable[[Tensor, Tensor], Tensor],
    waiting: Waiting[AnyState] | None = None,
) -> list[list[Hypothesis]]:
    """Returns `num_samples` sampled hypotheses for each sentence, in the order of the samples.

    `draw(log_probs, uniform_numbers)` chooses the tokens of a step, as `Draw` does. `uniform(sentences, steps)` returns
    the random numbers that `draw` needs, as `UniformNumbers` does. The score of a hypothesis is its log-probability
    under the model, regardless of the temperature and the truncation that `draw` applies. The other arguments are as in
    `greedy_search`.
    """

    def drawn(log_probs: Tensor, sentences: Tensor, lengths: Tensor) -> Tensor:
        return draw(log_probs, uniform(sentences, lengths).to(log_probs.device, log_probs.dtype))

    return _extend(step, state, start, max_lengths, end, num_samples, drawn, waiting)


def _extend(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    num_hypotheses: int,
    choose: Choose,
    waiting: Waiting[AnyState] | None = None,
) -> list[list[Hypothesis]]:
    """Returns `num_hypotheses` hypotheses for each sentence; `choose` chooses their tokens, one at each step.

    A hypothesis is complete when it gets the end mark. A hypothesis of the maximum length always gets the end mark
    next. A hypothesis is not extended further once its log-probability is -inf or NaN; `NOTHING_FOUND` or
    `NOT_A_NUMBER` is then returned in its place. The other arguments are as in `greedy_search`.
    """
    if not len(start):
        return []
    device, shape = start.device, (len(start), num_hypotheses)
    longest = int(max_lengths.max())
    all_tokens = torch.full((*shape, longest + 1), end, device=device)  # (N, W, T)
    all_log_probs = torch.zeros(shape, device=device)  # (N, W)

    rows = torch.arange(len(start) - (len(waiting) if waiting else 0), device=device)  # (R,) the sentence of each row
    lengths = torch.zeros_like(rows)  # of the hypotheses, in tokens
    ids = start[rows, None]  # (R, 1) now, (R, W) from the first step on
    totals = all_log_probs[rows]  # (R, W) log-probabilities so far
    done = torch.zeros_like(totals, dtype=torch.bool)  # (R, W)
    new: list[Tensor] = []  # (R, W) the last tokens, which are not yet in all_tokens
    while len(rows):
        log_probs, state = step(ids, state)
        full = max_lengths[rows] <= lengths
        ids = torch.where(done | full[:, None], end, choose(log_probs, rows, lengths))
        gains = log_probs.expand(-1, num_hypotheses, -1).gather(2, ids[:, :, None])[:, :, 0]
        totals = torch.where(done, totals, totals + gains)
        new.append(ids)
        lengths = lengths + 1

        done = done | (ids == end) | ~(totals > -torch.inf)
        unfinished = (~done).any(1).cpu()  # waits for the device, once per step
        num_unfinished = int(unfinished.sum())
        if log_probs.shape[1] < num_hypotheses and (num_unfinished or waiting):  # the first step
            state = state.branch(torch.zeros_like(ids))
        if not is_worth_removing(num_unfinished, len(rows), device, bool(waiting)):
            continue

        # After the end mark of the longest hypothesis, only end marks follow.
        columns = (lengths[:, None] - torch.arange(len(new), 0, -1, device=device)).clamp(max=longest)
        all_tokens[rows[:, None], :, columns] = torch.stack(new, dim=1)
        new = []
        all_log_probs = all_log_probs.to(totals).index_copy(0, rows, totals)
        if waiting and (given := waiting.take(rows, unfinished)):
            places, taken, fresh = given
            state = state.refill(places, fresh)
            rows, ids = put(rows, places, taken), put(ids, places, start[taken, None])
            lengths, totals, done = (x.index_fill(0, places, 0) for x in (lengths, totals, done))
        if not unfinished.all():
            kept = rows_to_keep(unfinished, device).to(device)
            rows, lengths, ids, totals, done = rows[kept], lengths[kept], ids[kept], totals[kept], done[kept]
            state = state.keep(kept) if len(kept) else state

    return [
        [_hypothesis(tokens, total, end) for tokens, total in zip(all_of_one, totals_of_one, strict=True)]
        for all_of_one, totals_of_one in zip(all_tokens.tolist(), all_log_probs.tolist(), strict=True)
    ]


BLOCK = 64  # tokens in a block; on a CPU, the maxima of blocks of consecutive tokens are compared first
FEW_VALUES = 1 << 14  # up to this many log-probabilities are searched without blocks


def _argmax(x: Tensor) -> Tensor:
    """Returns the index (R, W) of the largest value of each row of `x` (R, W, V); of equal values, the first counts.

    On a CPU, `torch.argmax` over the whole vocabulary takes several times as long as `torch.amax`. So on a CPU,
    `torch.amax` first finds the block of tokens with the largest maximum. `torch.argmax` then searches only this block,
    and the tokens after the last whole block.
    """
    # Few values are searched directly: 8,000 values take 12 microseconds, no longer than the six operators below.
    num_blocks = x.shape[2] // BLOCK
    if x.device.type != "cpu" or num_blocks < 2 or x.numel() <= FEW_VALUES:
        return x.argmax(dim=2)
    blocks = torch.unflatten(x[:, :, : num_blocks * BLOCK], 2, (num_blocks, BLOCK))
    best = blocks.amax(3).argmax(2, keepdim=True)  # (R, W, 1)
    of_best = blocks.gather(2, best[:, :, :, None].expand(-1, -1, -1, BLOCK))[:, :, 0]  # (R, W, BLOCK)
    rest = x[:, :, num_blocks * BLOCK :]
    place = torch.cat([of_best, rest], dim=2).argmax(2)
    return torch.where(place < BLOCK, best[:, :, 0] * BLOCK + place, num_blocks * BLOCK + place - BLOCK)


def _topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the `k` largest values of each row of `x` (R, W, V), and their indices.

    Both are (R, W, k), largest first. On a CPU, a large vocabulary is divided into blocks. All of the `k` largest
    values are in the `k` blocks with the largest maxima or among the tokens after the last whole block, so only these
    are searched.
    """
    num_blocks, width = x.shape[2] // BLOCK, x.shape[2]
    if x.device.type != "cpu" or num_blocks < 2 * k:
        return x.topk(k, dim=2)
    rows = x.reshape(-1, width)
    blocks = torch.unflatten(rows[:, : num_blocks * BLOCK], 1, (num_blocks, BLOCK))
    best = blocks.amax(2).topk(k, dim=1).indices  # (R x W, k)
    tokens = (best[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
    rest = torch.arange(num_blocks * BLOCK, width).expand(len(rows), -1)
    tokens = torch.cat([tokens, rest], dim=1)
    values, places = rows.gather(1, tokens).topk(k, dim=1)
    return values.view(*x.shape[:2], k), tokens.gather(1, places).view(*x.shape[:2], k)


def _hypothesis(tokens: list[int], log_prob: float, end: int) -> Hypothesis:
    """Returns the hypothesis that consists of the tokens before the first end mark.

    Returns `NOTHING_FOUND` if `log_prob` is -inf, `NOT_A_NUMBER` if `log_prob` is NaN.
    """
    if log_prob > -torch.inf:
        return Hypothesis(tokens[: tokens.index(end)], log_prob, log_prob)
    return NOTHING_FOUND if log_prob == -torch.inf else NOT_A_NUMBER


# Drawing tokens by their probabilities.

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: the increment of SplitMix64's counter
CHUNK_ELEMENTS = 1 << 22  # the number of fp64 weights in memory at a time: 32 MB
FIRST = 128  # a nucleus is first looked for among this many of the most probable tokens


@dataclass(frozen=True)
class Draw:
    """Samples tokens from the model's distribution, optionally with a temperature and with truncation.

    With `top_k`, only the `top_k` most probable tokens are kept. With `top_p`, only the nucleus of the remaining tokens
    is kept: the smallest set of most probable tokens that reaches the fraction `top_p` of their total probability.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. (2020), section 3.1

    def __call__(self, log_probs: Tensor, uniform: Tensor) -> Tensor:
        """Returns sampled tokens (R, W).

        `log_probs` is (R, 1 or W, V); `uniform` (R, W) holds uniform random numbers in [0, 1). If all tokens are
        forbidden, a forbidden token is returned. The rows are processed in chunks to limit memory; this does not affect
        the result.
        """
        chunk_rows = max(1, CHUNK_ELEMENTS // (uniform.shape[1] * log_probs.shape[2]))
        chunks = zip(torch.split(log_probs, chunk_rows), torch.split(uniform, chunk_rows), strict=True)
        return torch.cat([self._draw_chunk(*chunk) for chunk in chunks])

    def _draw_chunk(self, log_probs: Tensor, uniform: Tensor) -> Tensor:
        """Returns sampled tokens (R, W) for one chunk of rows.

        `log_probs` is (R, 1 or W, V), `uniform` (R, W); both hold only the rows of the chunk.
        """
        order = None  # (R, W, K): the top_k tokens, most probable first; None without top_k
        # Tokens are sorted even if top_k exceeds V. With shortlists, V depends on the batch, but the order of the
        # tokens, and so the sample, must not.
        if self.top_k is not None:
            log_probs, order = log_probs.topk(min(self.top_k, log_probs.shape[2]), dim=2)
        weights = self._weights(log_probs)  # (R, W, K)
        if self.top_p is not None:
            smallest = _smallest_of_nucleus(weights.flatten(0, 1), self.top_p).view(*weights.shape[:2], 1)
            weights = weights.masked_fill(weights < smallest, 0.0)

        # Inverts the cumulative distribution: takes the first token at which it exceeds the random number. Such a token
        # never has weight 0.
        sums = weights.cumsum(2)
        total = sums[:, :, -1]
        share = uniform.to(sums).clamp(max=1 - torch.finfo(sums.dtype).eps) * total  # (R, W)
        sums = sums.expand(-1, share.shape[1], -1).contiguous()
        places = torch.searchsorted(sums, share[:, :, None].contiguous(), right=True).clamp(max=sums.shape[2] - 1)
        if order is not None:
            places = order.expand(-1, share.shape[1], -1).gather(2, places)
        return places[:, :, 0]

    def _weights(self, log_probs: Tensor) -> Tensor:
        """Returns weights (R, 1 or W, K) proportional to the probabilities of the tokens at the temperature.

        `log_probs` has the same shape. The largest of each K weights is 1 unless all these tokens are forbidden.
        """
        largest = log_probs.amax(2, keepdim=True).clamp(min=torch.finfo(log_probs.dtype).min)
        weights = ((log_probs - largest) / self.temperature).exp()
        return weights if weights.device.type == "mps" else weights.double()  # sums of many numbers need fp64


def _smallest_of_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Returns, for each row of `weights` (R, K), the smallest weight (R,) in the nucleus.

    The nucleus is the smallest set of largest weights whose sum reaches the fraction `top_p` of the sum of the row.
    Other weights that equal the smallest weight in this set belong to the nucleus, too.

    Most nuclei are small, so the nucleus is first looked for among the `FIRST` largest weights of a row. Only if these
    do not reach the fraction is the whole row sorted, which takes longer than a step of the model.
    """
    mass = top_p * weights.sum(1)  # (R,)
    first = weights.topk(min(FIRST, weights.shape[1]), dim=1).values
    smallest = _weight_reaching(mass, first)
    rest = (first.sum(1) < mass).nonzero()[:, 0]
    if len(rest):
        smallest[rest] = _weight_reaching(mass[rest], weights[rest].sort(dim=1, descending=True).values)
    return smallest


def _weight_reaching(mass: Tensor, weights: Tensor) -> Tensor:
    """Returns, for each row, the weight (R,) at which the cumulative sum of the weights reaches `mass` (R,).

    `weights` (R, K) are in descending order. If their sum is too small, returns the last weight of the row.
    """
    places = (weights.cumsum(1) < mass[:, None]).sum(1, keepdim=True).clamp(max=weights.shape[1] - 1)
    return weights.gather(1, places)[:, 0]


class UniformNumbers:
    """Random numbers for sampling, uniform in [0, 1).

    A number depends only on the seed, the source tokens of the sentence, the index of the sample and the step. So a
    sentence gets the same samples in any batch, and the first samples do not depend on how many samples are drawn. For
    a language model, the tokens of the prefix take the place of a source. The generator is SplitMix64 (Steele, Lea &
    Flood, 2014).
    """

    def __init__(self, seed: int, sentences: list[list[int]], num_samples: int) -> None:
        keys = np.array([_key(seed, sentence) for sentence in sentences], dtype=np.uint64)
        samples = np.arange(1, num_samples + 1, dtype=np.uint64)
        self.streams = _mixed(keys[:, None] + samples * GOLDEN)  # (N, W)

    def __call__(self, sentences: Tensor, steps: Tensor) -> Tensor:
        """Returns the numbers (R, W) for a step of each row, float64 on the CPU.

        `sentences` (R,) holds, for each row, the index of the sentence, and `steps` (R,) the number of the step, from
        0.
        """
        numbers = (steps.cpu().numpy() + 1).astype(np.uint64)[:, None]
        numbers = _mixed(self.streams[sentences.cpu().numpy()] + numbers * GOLDEN)
        return torch.from_numpy((numbers >> np.uint64(11)) * 2.0**-53)


def _key(seed: int, sentence: list[int]) -> int:
    """Returns a 64-bit hash of the seed and the tokens of a sentence; the hash is the same on every machine."""
    text = f"{seed} {' '.join(map(str, sentence))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies the output function of SplitMix64 to each number; multiplication is modulo 2^64."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


# One step of beam search: extending the hypotheses by one token. Hypotheses that are extended by the end mark have
# ended; those that are extended by another token stay alive.


@dataclass(frozen=True)
class Groups:
    """Settings of diverse beam search (Vijayakumar et al., 2018), which divides the beam into groups.

    At each step, the groups choose tokens one after another. For a later group, the log-probability of a token is
    lowered by `strength` times the number of hypotheses that earlier groups have extended by this token at this step
    (Hamming diversity). The lowered log-probabilities only rank the tokens: the returned log-probabilities and scores
    are those of the model.
    """

    number: int = 1  # of groups
    strength: float = 0.0


@dataclass(frozen=True)
class Continuations:
    """M hypotheses for each sentence, each extended by one token; each tensor is (R, M).

    The hypotheses of a sentence are sorted, best first; in diverse beam search, they are sorted within each group.
    """

    log_probs: Tensor  # of the hypotheses including the new token; -inf where there is no hypothesis
    parents: Tensor  # indices of the hypotheses that were extended
    tokens: Tensor  # the new tokens


def continue_beam(
    log_probs: Tensor, totals: Tensor, full: Tensor, end: int, beam_size: int, groups: Groups
) -> tuple[Continuations, Continuations]:
    """Extends hypotheses by one token; returns the best with the end mark, and the best with other tokens.

    Both results are (R, `beam_size`). `log_probs` (R, 1 or W, V) are the log-probabilities of the next token, `totals`
    (R, 1 or W) those of the hypotheses so far. `full` (R,) is `True` for sentences whose hypotheses have the maximum
    length: only the end mark, whose id is `end`, may follow.
    """
    if groups.number == 1:
        return _continue_group(log_probs, log_probs, totals, full, end, beam_size)
    width = beam_size // groups.number
    counts = log_probs.new_zeros(len(log_probs), log_probs.shape[2])  # (R, V) uses of each token by earlier groups
    ended, alive = [], []
    for group in range(groups.number):
        first = group * width if totals.shape[1] > 1 else 0  # before the first token, all groups share one hypothesis
        own = slice(first, first + width)
        ranked = log_probs[:, own] - groups.strength * counts[:, None]
        ends, lives = _continue_group(ranked, log_probs[:, own], totals[:, own], full, end, width)
        counts = counts.scatter_add(1, lives.tokens, (lives.log_probs > -torch.inf).to(counts.dtype))
        ended.append(Continuations(ends.log_probs, ends.parents + first, ends.tokens))
        alive.append(Continuations(lives.log_probs, lives.parents + first, lives.tokens))
    return _joined(ended), _joined(alive)


def _joined(groups: list[Continuations]) -> Continuations:
    """Returns the continuations of all groups, concatenated along the second dimension."""
    return Continuations(
        torch.cat([group.log_probs for group in groups], dim=1),
        torch.cat([group.parents for group in groups], dim=1),
        torch.cat([group.tokens for group in groups], dim=1),
    )


def _continue_group(
    ranked: Tensor, log_probs: Tensor, totals: Tensor, full: Tensor, end: int, width: int
) -> tuple[Continuations, Continuations]:
    """Extends the hypotheses of one group of diverse beam search by one token.

    Returns the W = `width` best continuations with the end mark, and the W best with other tokens; each is (R, W).
    `log_probs` holds the log-probabilities of the next tokens. In `ranked`, they are lowered for tokens that earlier
    groups took. Continuations are ranked by `ranked`; the log-probabilities that are returned come from `log_probs`.
    """
    scores, parents, tokens = _candidates(ranked, totals, full, end, width)  # (R, 2W)
    ends, real = tokens == end, scores > -torch.inf
    if ranked is not log_probs:
        gains = log_probs.flatten(1).gather(1, parents * log_probs.shape[2] + tokens)
        scores = (totals.gather(1, parents) + gains).masked_fill(scores == -torch.inf, -torch.inf)  # keeps NaN

    # Only the first W candidates may end. So a beam of size one is greedy search, and a hypothesis cannot end with an
    # improbable end mark while W continuations are better.
    ended = scores.masked_fill(~(ends & real), -torch.inf)[:, :width]
    # Of the candidates that do not end, the first W stay alive.
    places = (ends | ~real).byte().sort(dim=1, stable=True).indices[:, :width]
    alive = scores.masked_fill(ends, -torch.inf).gather(1, places)
    return (
        Continuations(ended, parents[:, :width], tokens[:, :width]),
        Continuations(alive, parents.gather(1, places), tokens.gather(1, places)),
    )


def _candidates(
    log_probs: Tensor, totals: Tensor, full: Tensor, end: int, beam_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the 2W best continuations, best first: their log-probabilities, parents and tokens, each (R, 2W).

    W is `beam_size`; the arguments are as in `continue_beam`. Since at most W of the 2W continuations end with the end
    mark, at least W end with another token. If a sentence has fewer than 2W continuations, for example because its
    hypotheses have the maximum length, the remaining log-probabilities are -inf.
    """
    # The best 2W continuations overall are among the best 2W of each hypothesis, so only those are added to the totals
    # and sorted.
    num_tokens = min(2 * beam_size, log_probs.shape[2])  # K
    gains, tokens = _topk(log_probs, num_tokens)  # (R, W, K)
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


# Stopping rules. After each step of beam search, they decide which sentences are done.


@dataclass(frozen=True)
class SearchProgress:
    """The progress of the search for each sentence, by which a stopping rule decides whether the sentence is done.

    Each tensor is (R,).
    """

    worst_kept: Tensor  # the score at rank num_best among the hypotheses that have ended; -inf while there are fewer
    best_possible: Tensor  # an upper bound on the final score of the hypotheses still alive; -inf if none is
    num_ended: Tensor  # the number of hypotheses that have ended so far


class Stopping(Protocol):
    """A rule that decides when the search for a sentence is done."""

    def __call__(self, progress: SearchProgress, beam_size: int) -> Tensor:
        """Returns a bool tensor (R,) that is `True` for sentences that are done."""


def exact(progress: SearchProgress, beam_size: int) -> Tensor:
    """Stopping rule: a sentence is done when no unfinished hypothesis can become one of its best.

    The best hypotheses are the first ones that `beam_search` returns, as many as its argument `num_best`.
    """
    return progress.worst_kept >= progress.best_possible


def count(progress: SearchProgress, beam_size: int) -> Tensor:
    """Stopping rule: a sentence is done when `beam_size` of its hypotheses have an end mark.

    A sentence is also done if no unfinished hypothesis can become one of its best, as in the rule `exact`.

    This is algorithm 1 of Kasai et al. (2022) with patience 1.
    """
    return (progress.num_ended >= beam_size) | exact(progress, beam_size)


# With "optimal", the result of beam search is only the first bound of `optimal_search`.
STOPPING: dict[str, Stopping] = {"exact": exact, "count": count, "optimal": exact}


# Mask-predict (Ghazvininejad et al. 2019, section 4), in which all tokens of a translation are predicted together.

# A function that predicts masked tokens. It takes the tokens of N translations (N, T) and a bool tensor (N, T) that is
# True for M masked tokens, and returns the most probable token for each of these and its log-probability, both (M,).
Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mask_predict(predict: Predict, lengths: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Returns the tokens (N, T) of N translations with the given `lengths` (N,), and their log-probabilities (N, T).

    `predict` is called `iterations` times: first with all tokens masked, then each time with only those tokens masked
    that have the lowest log-probabilities; the function `num_masked` says how many. The log-probability of a token is
    the one with which it was last predicted. Of tokens with equal log-probabilities, the leftmost is masked first. At
    positions after the end of a translation, both results are 0.
    """
    real = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]  # (N, T)
    tokens = torch.zeros_like(real, dtype=torch.int64)
    tokens[real], found = predict(tokens, real)
    log_probs = found.new_zeros(real.shape)
    log_probs[real] = found
    for iteration in range(1, iterations):
        order = log_probs.masked_fill(~real, torch.inf).sort(dim=1, stable=True).indices
        ranks = order.argsort(1)  # (N, T) rank of each token in its translation, 0 for the lowest log-probability
        masked = (ranks < num_masked(lengths, iteration, iterations)[:, None]) & real
        tokens[masked], log_probs[masked] = predict(tokens, masked)
    return tokens, log_probs


def num_masked(lengths: Tensor, iteration: int, iterations: int) -> Tensor:
    """Returns, for each translation, how many of its tokens are masked in iteration number `iteration`, from 0.

    The number is length x (iterations - iteration) / iterations, rounded down (Ghazvininejad et al. 2019, section 4.1),
    but at least 1, as in the code of that paper's authors.
    """
    return (lengths * (iterations - iteration) // iterations).clamp(min=1)


# Beam search.

ONE_GROUP = Groups()  # the beam is not divided


@dataclass(frozen=True)
class BeamStep:
    """What happened in one step of beam search, for functions that watch the search.

    Later steps may overwrite the tensors, so a function that watches must copy what it wants to keep.
    """

    rows: Tensor  # (R,) the sentence of each row
    log_probs: Tensor  # (R, 1 or W, V) of the next token
    totals: Tensor  # (R, 1 or W) log-probabilities of the hypotheses before the step; -inf: not alive
    full: Tensor  # (R,) whether the hypotheses have the maximum length, so that only the end mark may follow
    ended: Continuations  # (R, W)
    scores: Tensor  # (R, W) of `ended`
    alive: Continuations  # (R, W)


@dataclass(frozen=True)
class _Finished:
    """For each sentence, the best hypotheses with an end mark that have been found so far, best first.

    Each tensor has a row for each sentence, and as many columns as hypotheses are kept; `scores` and `log_probs` are
    -inf where there is no hypothesis yet.
    """

    scores: Tensor
    log_probs: Tensor
    nodes: Tensor  # the node of each hypothesis in the _Tree

    def merge(self, other: "_Finished") -> "_Finished":
        """Returns the best hypotheses of `self` and `other` together, as many per sentence as `self` has.

        Of hypotheses with equal scores, those of `self` come first.
        """
        num_best = self.scores.shape[1]
        scores, order = torch.cat([self.scores, other.scores], dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, :num_best]
        log_probs = torch.cat([self.log_probs, other.log_probs], dim=1).gather(1, order)
        return _Finished(scores[:, :num_best], log_probs, torch.cat([self.nodes, other.nodes], dim=1).gather(1, order))

    def keep(self, sentences: Tensor) -> "_Finished":
        """Returns the finished hypotheses of only those rows whose indices are in `sentences` (R',), in that order."""
        return _Finished(self.scores[sentences], self.log_probs[sentences], self.nodes[sentences])

    def store(self, rows: Tensor, finished: "_Finished") -> "_Finished":
        """Returns a copy in which the rows with the indices `rows` are replaced by the rows of `finished`."""
        return _Finished(
            self.scores.to(finished.scores).index_copy(0, rows, finished.scores),
            self.log_probs.to(finished.log_probs).index_copy(0, rows, finished.log_probs),
            self.nodes.index_copy(0, rows, finished.nodes),
        )


class _Tree:
    """All hypotheses of a search, as a tree.

    A node has a token and a parent node. The node represents the hypothesis that the parent represents, extended by the
    token. Node 0 is the empty hypothesis.
    """

    def __init__(self, device: torch.device) -> None:
        self.tokens = [torch.zeros(1, dtype=torch.int64, device=device)]
        self.parents = [torch.zeros(1, dtype=torch.int64, device=device)]
        self.size = 1

    def grow(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Adds a node for each parent (R, W) and its token (R, W); returns the new nodes (R, W)."""
        self.tokens.append(tokens.flatten())
        self.parents.append(parents.flatten())
        self.size += tokens.numel()
        return torch.arange(self.size - tokens.numel(), self.size, device=tokens.device).view_as(tokens)

    def trace(self, nodes: Tensor) -> list[list[int]]:
        """Returns, for each of the nodes (M,), the tokens of the hypothesis that the node represents."""
        tokens, parents = torch.cat(self.tokens).cpu(), torch.cat(self.parents).cpu()
        nodes = nodes.cpu()
        tokens[0] = -1  # the start has no token
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
    extra_score: Callable[[AnyState], Tensor] | None = None,
    groups: Groups = ONE_GROUP,
    watch: Callable[[BeamStep], None] | None = None,
    waiting: Waiting[AnyState] | None = None,
) -> list[list[Hypothesis]]:
    """Returns for each sentence, in order, its best hypotheses, best first: at least 1, at most `num_best + num_spare`.

    `start` (N,) holds the start tokens. `max_lengths` (N,) holds the maximum length of hypotheses for each sentence, in
    tokens without the end mark. `end` is the id of the end mark. `state` is the decoding state of the sentences in the
    first batch; all other sentences are in `waiting`.

    The score of a hypothesis is its log-probability divided by `length_penalty(length)`, where the length includes the
    end mark. `extra_score`, if given, is called with the decoding state after each step. It returns a number, at most
    0, for each hypothesis (R, W); the number is added to the score if the hypothesis gets the end mark at that step.

    `stopping` decides when the search for a sentence is done; this may be before the hypotheses have the maximum
    length. With the rule `exact`, the first `num_best` hypotheses are nevertheless those that a search up to the
    maximum length would find; the `num_spare` hypotheses after them may differ. The result for a sentence does not
    depend on the other sentences of the batch.

    `groups` are the settings of diverse beam search. `watch`, if given, is called after each step.

    Ties between continuations are broken in favour of the better parent hypothesis, then the more probable token, then
    the lower token id. At the cutoff of `torch.topk`, however, PyTorch decides which of the tied tokens are kept.
    """
    if not len(start):
        return []
    device = start.device
    longest = int(max_lengths.max())
    # penalties[n] is the penalty for n tokens and the end mark.
    penalties = length_penalty(torch.arange(1, longest + 2, dtype=torch.float64))
    none = torch.full((len(start), num_best + num_spare), -torch.inf, device=device)
    results = _Finished(none, none, torch.zeros_like(none, dtype=torch.int64))
    tree = _Tree(device)
    has_nan = torch.zeros(len(start), dtype=torch.bool, device=device)  # (N,) sentences with log-probabilities of NaN

    rows = torch.arange(len(start) - (len(waiting) if waiting else 0), device=device)  # (R,) the sentence of each row
    lengths = torch.zeros_like(rows)  # of the hypotheses, in tokens
    finished, num_ended = results.keep(rows), torch.zeros_like(rows)
    ids = start[rows, None]  # (R, 1) now, (R, W) from the first step on
    totals = torch.zeros_like(ids, dtype=torch.float32)  # (R, W) log-probabilities so far; -inf: not alive
    nodes = torch.zeros_like(ids)  # (R, W) nodes of the tree
    while len(rows):
        log_probs, state = step(ids, state)
        penalties = penalties.to(log_probs.dtype).to(device)
        full = max_lengths[rows] <= lengths
        ended, alive = continue_beam(log_probs, totals, full, end, beam_size, groups)  # (R, W)

        # Hypotheses that end.
        scores = ended.log_probs / penalties[lengths][:, None]
        if extra_score is not None:
            scores = scores + extra_score(state).gather(1, ended.parents)
        finished = finished.merge(_Finished(scores, ended.log_probs, nodes.gather(1, ended.parents)))
        num_ended = num_ended + (ended.log_probs > -torch.inf).sum(1)
        if watch is not None:
            watch(BeamStep(rows, log_probs, totals, full, ended, scores, alive))
        lengths = (lengths + 1).clamp(max=longest)

        # Hypotheses that stay alive.
        totals, ids = alive.log_probs, alive.tokens
        has_nan[rows] |= totals.isnan().any(1)
        nodes = tree.grow(nodes.gather(1, alive.parents), ids)

        # Sentences that are done. The bound on later scores relies on two facts: log-probabilities never increase, and
        # the largest penalty of all later lengths is that of the next length or that of the maximum length.
        largest_penalty = torch.maximum(penalties[lengths], penalties[max_lengths[rows]])  # (R,)
        best_possible = totals.amax(1) / largest_penalty
        done = stopping(SearchProgress(finished.scores[:, num_best - 1], best_possible, num_ended), beam_size)
        totals = totals.masked_fill(done[:, None], -torch.inf)
        unfinished = (~done).cpu()  # waits for the device, once per step
        num_unfinished = int(unfinished.sum())
        if num_unfinished or waiting:
            state = state.branch(alive.parents)
        if not is_worth_removing(num_unfinished, len(rows), device, bool(waiting)):
            continue

        results = results.store(rows, finished)
        if waiting and (given := waiting.take(rows, unfinished)):
            places, taken, fresh = given
            state = state.refill(places, fresh)
            rows, ids = put(rows, places, taken), put(ids, places, start[taken, None])
            lengths, num_ended, nodes = (x.index_fill(0, places, 0) for x in (lengths, num_ended, nodes))
            # In each group of the beam, one hypothesis is alive.
            totals = totals.index_fill(0, places, -torch.inf)
            totals[places[:, None], torch.arange(0, beam_size, beam_size // groups.number, device=device)] = 0.0
            finished = finished.store(places, results.keep(taken))
        if not unfinished.all():
            kept = rows_to_keep(unfinished, device).to(device)
            rows, lengths, num_ended, finished = rows[kept], lengths[kept], num_ended[kept], finished.keep(kept)
            ids, totals, nodes = ids[kept], totals[kept], nodes[kept]
            state = state.keep(kept) if len(kept) else state

    return _to_lists(results, tree, has_nan.tolist())


def _to_lists(results: _Finished, tree: _Tree, has_nan: list[bool]) -> list[list[Hypothesis]]:
    """Returns the hypotheses found for each sentence, best first.

    For a sentence without any hypothesis, the list holds only `NOT_A_NUMBER` if `has_nan` is `True` for the sentence,
    otherwise only `NOTHING_FOUND`.
    """
    num_kept = results.scores.shape[1]
    tokens = tree.trace(results.nodes.flatten())
    hypotheses = []
    for row, (scores, log_probs) in enumerate(zip(results.scores.tolist(), results.log_probs.tolist(), strict=True)):
        found = [
            Hypothesis(tokens[row * num_kept + place], log_probs[place], score)
            for place, score in enumerate(scores)
            if score > -torch.inf
        ]
        hypotheses.append(found or [NOT_A_NUMBER if has_nan[row] else NOTHING_FOUND])
    return hypotheses


# Exact search.

# A function that returns log-probabilities (B, V) of the token that follows each prefix. Its arguments are the index of
# the sentence, and prefixes (B, T) of equal length without start tokens.
Extend = Callable[[int, Tensor], Tensor]

EXTENDED_TOGETHER = 16  # the maximum of B; extending a few prefixes together takes little more time than extending one


def optimal_search(
    extend: Extend,
    found: Sequence[list[Hypothesis]],
    max_lengths: Sequence[int],
    end: int,
    length_penalty: Callable[[Tensor], Tensor],
    max_steps: int,
    num_best: int = 1,
    num_spare: int = 0,
) -> list[list[Hypothesis]]:
    """Returns for each sentence, in order, the best of all hypotheses that the maximum length allows, best first.

    This is the depth-first search of Stahlberg & Byrne (2019, "On NMT search errors and model errors"). It tries the
    most probable next token first. A prefix is pruned if none of its continuations can have a higher score than the
    `num_best`-th best hypothesis so far. `found` holds the hypotheses that another search has found for each sentence;
    they are the best so far at the start.

    The first `num_best` hypotheses that are returned for a sentence are the best that exist. Up to `num_spare` more
    follow; better ones than these may exist. The other arguments and the scores are as in `beam_search`.

    At most `max_steps` prefixes are extended for a sentence. If the search is incomplete after that, the hypotheses are
    the best ones found so far, and have `cut_short=True`.
    """
    results = []
    for sentence, (hypotheses, longest) in enumerate(zip(found, max_lengths, strict=True)):
        # divisors[n] is the penalty of n tokens and the end mark.
        divisors = length_penalty(torch.arange(1, longest + 2, dtype=torch.float64)).tolist()
        best = _Best([h for h in hypotheses if h.found], num_best, num_best + num_spare)
        is_whole = _search_depth_first(partial(extend, sentence), best, divisors, end, max_steps)
        results.append([replace(h, cut_short=not is_whole) for h in best.hypotheses or hypotheses])
    return results


class _Best:
    """The best hypotheses found so far for a sentence, best first.

    At most `num_kept` are kept. Only the first `num_best` determine which prefixes are pruned (see `bound`).
    """

    def __init__(self, hypotheses: list[Hypothesis], num_best: int, num_kept: int) -> None:
        self.hypotheses = hypotheses
        self.num_best = num_best
        self.num_kept = num_kept

    @property
    def bound(self) -> float:
        """The score that a hypothesis must exceed to become one of the `self.num_best` best.

        -inf while fewer than `self.num_best` hypotheses have been found.
        """
        return self.hypotheses[self.num_best - 1].score if len(self.hypotheses) >= self.num_best else -math.inf

    def add(self, hypothesis: Hypothesis) -> None:
        """Adds a hypothesis unless its score is -inf or it was added before; keeps only the best `self.num_kept`."""
        if hypothesis.found and all(hypothesis.tokens != other.tokens for other in self.hypotheses):
            ranked = sorted([*self.hypotheses, hypothesis], key=lambda each: -each.score)
            self.hypotheses = ranked[: self.num_kept]


def _search_depth_first(
    extend: Callable[[Tensor], Tensor], best: _Best, divisors: list[float], end: int, max_steps: int
) -> bool:
    """Searches depth first, and adds the hypotheses found to `best`; returns whether the search was complete.

    At most `max_steps` prefixes are extended. The search is incomplete if a remaining prefix could then still lead to
    a score above `best.bound`. `extend` maps prefixes (B, T) to log-probabilities (B, V) of the next token;
    `divisors[n]` is the length penalty of n tokens and the end mark.
    """
    longest = len(divisors) - 1
    # Log-probabilities never increase, and the largest penalty of all lengths from n on is that of n or that of the
    # maximum length. So the log-probability of a prefix of n tokens, divided by largest[n], is an upper bound of the
    # scores that the prefix can lead to.
    largest = [max(divisor, divisors[longest]) for divisor in divisors]
    stack: list[tuple[float, list[int]]] = [(0.0, [])]  # prefixes with their log-probabilities, the next one last
    num_steps = 0
    while stack:
        if num_steps == max_steps:
            return not any(log_prob / largest[len(tokens)] > best.bound for log_prob, tokens in stack)
        prefixes: list[tuple[float, list[int]]] = []
        length, most = len(stack[-1][1]), min(EXTENDED_TOGETHER, max_steps - num_steps)
        while stack and len(stack[-1][1]) == length and len(prefixes) < most:
            log_prob, tokens = stack.pop()
            if log_prob / largest[length] > best.bound:
                prefixes.append((log_prob, tokens))
        if not prefixes:
            continue
        num_steps += len(prefixes)
        log_probs = extend(torch.tensor([tokens for _, tokens in prefixes], dtype=torch.int64)).double().cpu()
        totals = log_probs + torch.tensor([log_prob for log_prob, _ in prefixes], dtype=torch.float64)[:, None]
        for (_, tokens), total in zip(prefixes, totals[:, end].tolist(), strict=True):
            best.add(Hypothesis(tokens, total, total / divisors[length]))
        if length == longest:
            continue
        totals[:, end] = -torch.inf
        for (_, tokens), of_prefix in zip(reversed(prefixes), totals.flip(0), strict=True):
            promising = (of_prefix / largest[length + 1] > best.bound).nonzero()[:, 0]
            gains, order = of_prefix[promising].sort(stable=True)
            next_tokens = promising[order].tolist()
            stack += [(gain, [*tokens, token]) for gain, token in zip(gains.tolist(), next_tokens, strict=True)]
    return True
