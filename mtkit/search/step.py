"""What a search needs from a model, and what it finds.

Letters: R rows (sentences in flight), W hypotheses of each, V vocabulary size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

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
