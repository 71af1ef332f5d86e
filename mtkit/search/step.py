"""The parts of a search step: the step function, constraints, length penalties and the coverage penalty.

Shapes: R rows (sentences still being decoded), W hypotheses per sentence, T target tokens so far, S source length,
V vocabulary size, N sentences of the whole batch, P length of the longest prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from mtkit.models.interface import SearchState

AnyState = TypeVar("AnyState", bound=SearchState)

# A step function takes the last token of each hypothesis (R, W) and the decoding state. It returns log-probabilities of
# the next token (R, W, V) and the state after the step. Log-probabilities are float32 or float64; those of forbidden
# tokens are -inf. The state passed in must not be used again.
Step = Callable[[Tensor, AnyState], tuple[Tensor, AnyState]]

# Finished sentences are removed from the batch once at most this fraction of its rows is unfinished. Removing them
# after each step would be slower, since removing copies the caches.
COMPACT_AT = 0.75


@dataclass(frozen=True)
class Hypothesis:
    """A translation found by a search; a higher score is better.

    A search that finds no translation returns `NOTHING_FOUND` or `NOT_A_NUMBER`. Both have no tokens and a score of
    -inf.
    """

    tokens: list[int]  # without start token and end mark
    log_prob: float  # summed over the tokens and the end mark
    score: float  # log_prob after length and coverage penalties

    @property
    def found(self) -> bool:
        """Whether the search found a translation."""
        return self.score > float("-inf")


NOTHING_FOUND = Hypothesis([], float("-inf"), float("-inf"))  # the constraints forbid every complete hypothesis
NOT_A_NUMBER = Hypothesis([], float("nan"), float("-inf"))  # the model's log-probabilities are NaN


# Constraints forbid tokens by setting their log-probabilities to -inf.


@dataclass(frozen=True)
class TokenHistory(Generic[AnyState]):
    """A decoding state, with the tokens of each hypothesis so far and the sentence that each row belongs to."""

    state: AnyState
    tokens: Tensor  # (R, W, 1 + T), the start token first; (R, 1, 0) before the first step
    sentences: Tensor  # (R,) the sentence of each row, as an index into the original batch

    @classmethod
    def empty(cls, state: AnyState, num_sentences: int, device: torch.device) -> Self:
        """Returns the history before the first step, with one hypothesis for each sentence."""
        tokens = torch.zeros(num_sentences, 1, 0, dtype=torch.int64, device=device)
        return cls(state, tokens, torch.arange(num_sentences, device=device))

    def branch(self, parents: Tensor) -> Self:
        """Returns the history in which hypothesis w of row r continues hypothesis `parents[r, w]` of that row.

        `parents` is (R, W').
        """
        tokens = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        return type(self)(self.state.branch(parents), tokens, self.sentences)

    def keep(self, sentences: Tensor) -> Self:
        """Returns the history of only those rows whose indices are in `sentences` (R',), in that order."""
        return type(self)(self.state.keep(sentences), self.tokens[sentences], self.sentences[sentences])


# A constraint takes log-probabilities (R, W, V), the tokens so far without the start token (R, W, T), and the sentence
# of each row (R,) as an index into the original batch. It returns the log-probabilities (R, W, V) with -inf for the
# tokens that it forbids.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]


def constrained(step: Step[AnyState], constraints: Sequence[Constraint]) -> Step[TokenHistory[AnyState]]:
    """Returns a step function that calls `step` and applies the constraints, in order, to the log-probabilities."""

    def constrained_step(ids: Tensor, history: TokenHistory[AnyState]) -> tuple[Tensor, TokenHistory[AnyState]]:
        log_probs, state = step(ids, history.state)
        history = TokenHistory(state, torch.cat([history.tokens, ids[:, :, None]], dim=2), history.sentences)
        for constraint in constraints:
            log_probs = constraint(log_probs, history.tokens[:, :, 1:], history.sentences)
        return log_probs, history

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
        too_short = tokens.shape[2] < minimum[sentences]  # (R,)
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
        matches = (ngrams[:, :, :, :-1] == last).all(3)
        following = ngrams[:, :, :, -1]
        limits = torch.zeros_like(following, dtype=log_probs.dtype)  # no log-probability is above 0
        return log_probs.scatter_reduce(2, following, limits.masked_fill(matches, -torch.inf), "amin")  # (R, W, V)

    return forbid_repetition


def begin_with(prefixes: Tensor, constraints: Sequence[Constraint]) -> Constraint:
    """Returns a constraint that forces each hypothesis to begin with the prefix for its sentence.

    `prefixes` is (N, P), padded with -1. `constraints` are applied only to the tokens after the prefix.
    """

    def force_prefix(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        free = log_probs
        for constraint in constraints:
            free = constraint(free, tokens, sentences)
        length = tokens.shape[2]
        if length >= prefixes.shape[1]:
            return free
        forced = prefixes[sentences, length][:, None, None]  # (R, 1, 1)
        others = torch.arange(log_probs.shape[2], device=log_probs.device) != forced
        return torch.where(forced < 0, free, log_probs.masked_fill(others, -torch.inf))

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
    """Returns length^exponent.

    With exponent 1, the score of a hypothesis is its mean log-probability per token. With exponent 0, the score is the
    sum of the log-probabilities.
    """
    return (length**exponent).clamp(SMALLEST_PENALTY, LARGEST_PENALTY)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """Returns the length penalty ((5 + length) / 6)^exponent (Wu et al., 2016, equation 14)."""
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


def covering(step: Step[AnyState], attention: Callable[[AnyState], Tensor]) -> Step[Coverage[AnyState]]:
    """Returns a step function that calls `step` and also sums up the attention to each source token.

    `attention(state)` returns, for the state after a step, the weights (R, W, S) that were used to predict the next
    token. So the sums after a step include the attention for the next token, even if that token is the end mark.
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
