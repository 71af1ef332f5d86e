"""One step of a search: what it needs of a model, what it forbids, and what counts against a hypothesis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


class State(Protocol):
    """All that a model needs to go on, for R sentences with W hypotheses each."""

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64, W' may differ (1 to W at the start)."""

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, (R',) int64, in that order."""


AnyState = TypeVar("AnyState", bound=State)

# (R, W) ids -> (R, W, V) log-probabilities in float32 or float64, -inf where a token is forbidden, and the state that
# goes on; the state that went in is used up.
Step = Callable[[Tensor, AnyState], tuple[Tensor, AnyState]]

COMPACT_AT = 0.75  # done sentences leave the batch when no more than this share is going: moving caches costs, too


@dataclass(frozen=True)
class Hypothesis:
    """What a search says; better when the score is higher.

    Where nothing was found there are no tokens and the score is -inf: NOTHING or BROKEN below.
    """

    tokens: list[int]  # without start and end mark
    log_prob: float  # sum over the tokens and the end mark
    score: float  # after the length penalty

    @property
    def found(self) -> bool:
        """Whether the search reached an end."""
        return self.score > float("-inf")


NOTHING = Hypothesis([], float("-inf"), float("-inf"))  # every way to an end is forbidden
BROKEN = Hypothesis([], float("nan"), float("-inf"))  # the model gave NaN in the place of log-probabilities


# What a hypothesis may not say next, whatever the model thinks.


@dataclass(frozen=True)
class Said(Generic[AnyState]):
    """A state that remembers which sentence stands where and what its hypotheses have read."""

    state: AnyState
    tokens: Tensor  # (R, W, 1 + T), the start mark first; nothing before the first step
    sentences: Tensor  # (R,) their places in the batch as it started

    @classmethod
    def nothing(cls, state: AnyState, num_sentences: int, device: torch.device) -> Self:
        """Before the first step."""
        tokens = torch.zeros(num_sentences, 1, 0, dtype=torch.int64, device=device)
        return cls(state, tokens, torch.arange(num_sentences, device=device))

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""
        tokens = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, self.tokens.shape[2]))
        return type(self)(self.state.branch(parents), tokens, self.sentences)

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        return type(self)(self.state.keep(sentences), self.tokens[sentences], self.sentences[sentences])


# (R, W, V) log-probabilities, (R, W, T) tokens that were said, the start mark not among them, and (R,) sentences by
# their places in the batch as it started, to log-probabilities that are -inf where a token is forbidden.
Constraint = Callable[[Tensor, Tensor, Tensor], Tensor]


def constrained(step: Step[AnyState], constraints: Sequence[Constraint]) -> Step[Said[AnyState]]:
    """A step whose log-probabilities have gone through the constraints, one after the other."""

    def constrained_step(ids: Tensor, said: Said[AnyState]) -> tuple[Tensor, Said[AnyState]]:
        log_probs, state = step(ids, said.state)
        said = Said(state, torch.cat([said.tokens, ids[:, :, None]], dim=2), said.sentences)
        for constraint in constraints:
            log_probs = constraint(log_probs, said.tokens[:, :, 1:], said.sentences)
        return log_probs, said

    return constrained_step


def never(forbidden: Sequence[int]) -> Constraint:
    """None of these tokens."""

    def forbid_them(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        return log_probs.index_fill(2, torch.tensor(list(forbidden), device=log_probs.device), -torch.inf)

    return forbid_them


def min_length(least: Tensor, end: int) -> Constraint:
    """No end before so many tokens; least is (N,)."""

    def forbid_the_end(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        too_short = tokens.shape[2] < least[sentences]  # (R,)
        log_probs = log_probs.clone()
        log_probs[:, :, end] = log_probs[:, :, end].masked_fill(too_short[:, None], -torch.inf)
        return log_probs

    return forbid_the_end


def no_repeat_ngram(size: int) -> Constraint:
    """No so many tokens in a row twice (Paulus et al., 2018, section 2.5)."""

    def forbid_what_followed(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        num_said = tokens.shape[2]
        if num_said < size:
            return log_probs
        ngrams = tokens.unfold(2, size, 1)  # (R, W, T - size + 1, size)
        last = tokens[:, :, None, num_said - size + 1 :]  # (R, W, 1, size - 1)
        begun = (ngrams[:, :, :, :-1] == last).all(3)  # those that begin as the hypothesis ends
        follows = ngrams[:, :, :, -1]
        limits = torch.zeros_like(follows, dtype=log_probs.dtype).masked_fill(
            begun, -torch.inf
        )  # no log_prob is above 0
        return log_probs.scatter_reduce(2, follows, limits, "amin")  # (R, W, V)

    return forbid_what_followed


def begin_with(prefixes: Tensor, after: Sequence[Constraint]) -> Constraint:
    """First the prefix of each sentence and nothing else, then whatever the other constraints allow.

    prefixes is (N, P), -1 after the last token of each. A prefix stands above the other constraints.
    """

    def force_the_prefix(log_probs: Tensor, tokens: Tensor, sentences: Tensor) -> Tensor:
        free = log_probs
        for constraint in after:
            free = constraint(free, tokens, sentences)
        place = tokens.shape[2]
        if place >= prefixes.shape[1]:
            return free
        wanted = prefixes[sentences, place][:, None, None]  # (R, 1, 1)
        others = torch.arange(log_probs.shape[2], device=log_probs.device) != wanted
        return torch.where(wanted < 0, free, log_probs.masked_fill(others, -torch.inf))

    return force_the_prefix


# What a log-probability is divided by, so that a longer hypothesis is not worse for its length alone.

# A divisor beyond these is replaced by them: fp32 would hold it as 0 or infinity, and a quotient would be no number.
LEAST_PENALTY, MOST = 1e-30, 1e30


class LengthPenalty(Protocol):
    """By length, which counts the end mark, and exponent."""

    def __call__(self, length: Tensor, exponent: float) -> Tensor:
        """The divisor of each length."""


def power(length: Tensor, exponent: float) -> Tensor:
    """length^p: an exponent of 1 gives the mean log-probability, 0 the sum."""
    return (length**exponent).clamp(LEAST_PENALTY, MOST)


def gnmt(length: Tensor, exponent: float) -> Tensor:
    """((5 + length) / 6)^p (Wu et al., 2016, equation 14)."""
    return (((5 + length) / 6) ** exponent).clamp(LEAST_PENALTY, MOST)


LENGTH_PENALTIES: dict[str, LengthPenalty] = {"power": power, "gnmt": gnmt}


# The coverage penalty of GNMT (Wu et al., 2016, equation 15): a translation should look at the whole source.

LEAST_ATTENTION = 1e-30  # attention so small that its logarithm would be none


@dataclass(frozen=True)
class Covered(Generic[AnyState]):
    """A state that remembers how much each hypothesis has looked at each source token."""

    state: AnyState
    sums: Tensor  # (R, W, S)
    real: Tensor  # (R, S), False where padded

    @classmethod
    def nothing(cls, state: AnyState, real: Tensor, dtype: torch.dtype) -> Self:
        """Before the first step."""
        return cls(state, torch.zeros_like(real, dtype=dtype)[:, None], real)

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""
        sums = self.sums.gather(1, parents[:, :, None].expand(-1, -1, self.sums.shape[2]))
        return type(self)(self.state.branch(parents), sums, self.real)

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        return type(self)(self.state.keep(sentences), self.sums[sentences], self.real[sentences])


def covering(step: Step[AnyState], attention: Callable[[AnyState], Tensor]) -> Step[Covered[AnyState]]:
    """The same step, which adds up the attention, (R, W, S), of the state it leads to.

    That is how the next token looks at the source, so the sums are over all tokens and the one to come, which is the
    end mark where a hypothesis ends.
    """

    def covering_step(ids: Tensor, covered: Covered[AnyState]) -> tuple[Tensor, Covered[AnyState]]:
        log_probs, state = step(ids, covered.state)
        return log_probs, Covered(state, covered.sums + attention(state).to(covered.sums), covered.real)

    return covering_step


def coverage_penalty(covered: Covered[AnyState], strength: float) -> Tensor:
    """(R, W), never above 0: strength x the sum over the source of log(min(attention, 1))."""
    logs = covered.sums.clamp(LEAST_ATTENTION, 1.0).log()
    return strength * logs.masked_fill(~covered.real[:, None], 0.0).sum(2)
