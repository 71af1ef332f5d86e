"""When a sentence is done: what beam search asks after each step.

Letters: R rows (sentences in flight).
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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
