"""How a recurrent decoder looks at the source: one head, and a choice of what tells that a token fits.

R rows, Q queries of a row, S source length, D model width.
"""

import torch
from torch import Tensor, nn


class DotScore(nn.Module):
    """The product of query and source state (Luong et al. 2015, equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        return states

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, S)."""
        return query @ keys.transpose(1, 2)


class GeneralScore(DotScore):
    """The same with a learned matrix between the two (Luong et al. 2015, equation 8)."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        # A bias would add the same to the score of every token, which changes no weight.
        self.key = nn.Linear(d_model, d_model, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        keys: Tensor = self.key(states)
        return keys


class AdditiveScore(nn.Module):
    """v · tanh(W query + U state) (Bahdanau et al. 2015, appendix A.1.2).

    The query is the decoder's state of this step, as with the other scores; in the paper it is that of the step before.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model)
        self.score = nn.Linear(d_model, 1, bias=False)

    def keys(self, states: Tensor) -> Tensor:
        """(R, S, D), made once for each sentence."""
        keys: Tensor = self.key(states)
        return keys

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """(R, Q, D) to (R, Q, S)."""
        pairs = torch.tanh(self.query(query)[:, :, None] + keys[:, None])  # (R, Q, S, D)
        scores: Tensor = self.score(pairs)[..., 0]
        return scores


SCORES: dict[str, type[DotScore | AdditiveScore]] = {
    "additive": AdditiveScore,
    "dot": DotScore,
    "general": GeneralScore,
}


def mix(scores: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The states (R, S, D) mixed for each query, (R, Q, D), by weights that come back too, (R, Q, S).

    scores are (R, Q, S); mask is (R, S), True where a source token is real.
    """
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
    return weights.to(states.dtype) @ states, weights
