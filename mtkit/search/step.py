"""Building blocks of a search step: the step function, constraints, length penalties and the coverage penalty.

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

# Maps the last token of each hypothesis (R, W) to the log-probabilities of the next (R, W, V), in float32 or float64,
# with -inf for forbidden tokens. Also returns the state after the step; the state passed in must not be used again.
Step = Callable[[Tensor, AnyState], tuple[Tensor, AnyState]]

# Finished sentences leave the batch once the share of unfinished ones has fallen to this: moving caches takes time.
COMPACT_AT = 0.75


@dataclass(frozen=True)
class Hypothesis:
    """A translation found by a search; a higher score is better.

    If the search found none, the tokens are empty and the score is -inf: see NOTHING_FOUND and NOT_A_NUMBER.
    """

    tokens: list[int]  # without start token and end mark
    log_prob: float  # sum over the tokens and the end mark
    score: float  # after length and coverage penalties

    @property
    def found(self) -> bool:
        """Whether the search reached an end mark."""
        return self.score > float("-inf")


NOTHING_FOUND = Hypothesis([], float("-inf"), float("-inf"))  # the constraints forbid every complete hypothesis
NOT_A_NUMBER = Hypothesis([], float("nan"), float("-inf"))  # the model's log-probabilities are NaN


# Constraints: tokens that a hypothesis may not continue with, whatever their probability.


@dataclass(frozen=True)
class TokenHistory(Generic[AnyState]):
    """A state that also records the tokens of each hypothesis and which sentence each row holds."""

    state: AnyState
    tokens: Tensor  # (R, W, 1 + T), from the start token on; (R, 1, 0) before the first step
    sentences: Tensor  # (R,) indices into the batch as it was at the start

    @classmethod
    def empty(cls, state: AnyState, num_sentences: int, device: torch.device) -> Self:
        """Returns the history before the first step."""
        tokens = torch.zeros(num_sentences, 1, 0, dtype=torch.int64, device=device)
        return cls(state, tokens, torch.arange(num_sentences, device=device))

    def branch(self, parents: Tensor) -> Self:
        """Returns the state in which hypothesis w of sentence r continues parents[r, w]; parents is (R, W')."""
        tokens = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        return type(self)(self.state.branch(parents), tokens, self.sentences)

    def keep(self, sentences: Tensor) -> Self:
        """Returns the state of these rows only, in this order; sentences is (R',)."""
        return type(self)(self.state.keep(sentences), self.tokens[sentences], self.sentences[sentences])


# Maps log-probabilities (R, W, V), the tokens so far without the start token (R, W, T), and the sentence of each row
# (R,), as an index into the batch as it was at the start, to log-probabilities that are -inf for forbidden tokens.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]


def constrained(step: Step[AnyState], constraints: Sequence[Constraint]) -> Step[TokenHistory[AnyState]]:
    """Returns a step that applies the constraints to the log-probabilities, in the given order."""

    def constrained_step(ids: Tensor, history: TokenHistory[AnyState]) -> tuple[Tensor, TokenHistory[AnyState]]:
        log_probs, state = step(ids, history.state)
        history = TokenHistory(state, torch.cat([history.tokens, ids[:, :, None]], dim=2), history.sentences)
        for constraint in constraints:
            log_probs = constraint(log_probs, history.tokens[:, :, 1:], history.sentences)
        return log_probs, history

    return constrained_step


def never(forbidden: Sequence[int]) -> Constraint:
    """Forbids these tokens everywhere."""

    def forbid_tokens(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        return log_probs.index_fill(2, torch.tensor(list(forbidden), device=log_probs.device), -torch.inf)

    return forbid_tokens


def min_length(minimum: Tensor, end: int) -> Constraint:
    """Forbids the end mark before a hypothesis has this many tokens; minimum is (N,)."""

    def forbid_end(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        too_short = tokens.shape[2] < minimum[sentences]  # (R,)
        log_probs = log_probs.clone()
        log_probs[:, :, end] = log_probs[:, :, end].masked_fill(too_short[:, None], -torch.inf)
        return log_probs

    return forbid_end


def no_repeat_ngram(size: int) -> Constraint:
    """Forbids tokens that would repeat an n-gram of this size (Paulus et al., 2018, section 2.5)."""

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
    """Forces each hypothesis to begin with its sentence's prefix, and applies the other constraints after it.

    prefixes is (N, P), padded with -1. The other constraints do not apply to the prefix itself.
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


# Length penalties: a log-probability is divided by one, so that a hypothesis is not worse merely for being longer.

# Penalties are clamped to this range: outside it, fp32 would hold 0 or infinity, and the quotient would be no number.
SMALLEST_PENALTY, LARGEST_PENALTY = 1e-30, 1e30


class LengthPenalty(Protocol):
    """Divisor of a log-probability, a function of the length (end mark included) and an exponent."""

    def __call__(self, length: Tensor, exponent: float) -> Tensor:
        """Returns the divisor for each length, in the shape of length."""


def power(length: Tensor, exponent: float) -> Tensor:
    """length^p: an exponent of 1 gives the mean log-probability per token, 0 the sum."""
    return (length**exponent).clamp(SMALLEST_PENALTY, LARGEST_PENALTY)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """((5 + length) / 6)^p (Wu et al., 2016, equation 14)."""
    return (((5 + length) / 6) ** exponent).clamp(SMALLEST_PENALTY, LARGEST_PENALTY)


LENGTH_PENALTIES: dict[str, LengthPenalty] = {"power": power, "gnmt": gnmt}


# The coverage penalty of GNMT (Wu et al., 2016, equation 15): a translation should attend to the whole source.

SMALLEST_ATTENTION = 1e-30  # smaller sums of attention are raised to this, since the logarithm of 0 is -inf


@dataclass(frozen=True)
class Coverage(Generic[AnyState]):
    """A state that also sums the attention of each hypothesis to each source token."""

    state: AnyState
    sums: Tensor  # (R, W, S)
    source_mask: Tensor  # (R, S), True where a source token is real

    @classmethod
    def empty(cls, state: AnyState, source_mask: Tensor, dtype: torch.dtype) -> Self:
        """Returns the coverage before the first step."""
        return cls(state, torch.zeros_like(source_mask, dtype=dtype)[:, None], source_mask)

    def branch(self, parents: Tensor) -> Self:
        """Returns the state in which hypothesis w of sentence r continues parents[r, w]; parents is (R, W')."""
        sums = self.sums.gather(1, parents[:, :, None].expand(-1, -1, self.sums.shape[2]))
        return type(self)(self.state.branch(parents), sums, self.source_mask)

    def keep(self, sentences: Tensor) -> Self:
        """Returns the state of these rows only, in this order; sentences is (R',)."""
        return type(self)(self.state.keep(sentences), self.sums[sentences], self.source_mask[sentences])


def covering(step: Step[AnyState], attention: Callable[[AnyState], Tensor]) -> Step[Coverage[AnyState]]:
    """Returns a step that also sums the attention (R, W, S) of the state after it.

    That attention belongs to the prediction of the next token. So the sums cover all tokens up to and including the
    next one, which is the end mark where a hypothesis ends.
    """

    def covering_step(ids: Tensor, coverage: Coverage[AnyState]) -> tuple[Tensor, Coverage[AnyState]]:
        log_probs, state = step(ids, coverage.state)
        return log_probs, Coverage(state, coverage.sums + attention(state).to(coverage.sums), coverage.source_mask)

    return covering_step


def coverage_penalty(coverage: Coverage[AnyState], strength: float) -> Tensor:
    """(R, W), never above 0: strength x the sum over the source of log(min(summed attention, 1))."""
    logs = coverage.sums.clamp(SMALLEST_ATTENTION, 1.0).log()
    return strength * logs.masked_fill(~coverage.source_mask[:, None], 0.0).sum(2)
