"""Several models that speak as one: at each step the mean of their probabilities (Hansen & Salamon, 1990).

R rows, S source length, T target length, Q tokens decoded last, W hypotheses of a sentence, V vocabulary size.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from mtkit.batch import Rows
from mtkit.models.interface import Limits, State, TranslationModel


class EnsembleState:
    """The states of the members, which go the same way."""

    def __init__(self, states: list[State]) -> None:
        self.states = states
        self.positions = states[0].positions
        self.attention = _mean_attention(states)

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""
        return type(self)([state.branch(parents) for state in self.states])

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        return type(self)([state.keep(sentences) for state in self.states])


class Ensemble:
    """Models of one vocabulary, as a model: what it gives in the place of features are log-probabilities already."""

    def __init__(self, members: Sequence[TranslationModel]) -> None:
        self.members = members
        self.limits = Limits(
            _least([member.limits.source for member in members]), _least([member.limits.target for member in members])
        )
        self.marks = members[0].marks
        self.special = members[0].special
        self.device = members[0].device
        self.dtype = members[0].dtype

    @property
    def untrained(self) -> list[int]:
        """The last tokens of the vocabulary, where no training of any member has seen them."""
        return min((member.untrained for member in self.members), key=len)

    @property
    def elements_per_token(self) -> int:
        """How many numbers predict one token: the vocabulary of every member."""
        return sum(member.elements_per_token for member in self.members)

    def encode(self, source: Rows, watch: bool = False) -> State:
        """The state from which decoding starts, one hypothesis a sentence; with watch it will tell its attention."""
        return EnsembleState([member.encode(source, watch) for member in self.members])

    def decode(self, target: Rows, state: State) -> tuple[Tensor, State]:
        """(R, T, V) log-probabilities of what follows each target token, and the state after the last."""
        assert isinstance(state, EnsembleState)
        states, log_probs = [], []
        for member, own in zip(self.members, state.states, strict=True):
            features, own = member.decode(target, own)
            logits = member.output(features)
            log_probs.append((logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1))
            states.append(own)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(self.members))
        return mean, EnsembleState(states)

    def output(self, log_probs: Tensor) -> Tensor:
        """The same: a log-softmax leaves log-probabilities as they are."""
        return log_probs


def _mean_attention(states: list[State]) -> list[Tensor]:
    """One layer of one head, (R, 1, Q, S): the mean of the members' last layers; none if a member has no attention."""
    if not all(state.attention for state in states):
        return []
    return [torch.stack([state.attention[-1].mean(1, keepdim=True) for state in states]).mean(0)]


def _least(limits: list[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
