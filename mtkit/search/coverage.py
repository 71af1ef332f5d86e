"""The coverage penalty of GNMT (Wu et al., 2016, equation 15): a translation should look at the whole source.

Letters: R rows (sentences in flight), W hypotheses of each, S source length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self

import torch
from torch import Tensor

from mtkit.search.step import AnyState, Step

LEAST = 1e-30  # attention so small that its logarithm would be none


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
    logs = covered.sums.clamp(LEAST, 1.0).log()
    return strength * logs.masked_fill(~covered.real[:, None], 0.0).sum(2)
