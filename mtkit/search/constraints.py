"""What a hypothesis may not say next, whatever the model thinks.

A constraint changes the log-probabilities of a step; the search does not know of it. What it must remember of each
hypothesis goes along in the state, so it follows the branching of a beam.

Letters: N sentences of the batch as it started, R rows (sentences in flight), W hypotheses of each, T tokens they have
said, P longest prefix, V vocabulary size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Self

import torch
from torch import Tensor

from mtkit.search.step import AnyState, Step


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
