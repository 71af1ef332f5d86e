"""How a place in a sentence is told. R rows, L length, D model width, P places in a table."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(num_positions: int, d_model: int) -> Tensor:
    """(P, D): sin(p / 10000^(2i/D)) for i < D/2, then the cosines (Vaswani et al. 2017, section 3.5).

    The paper lets sines and cosines alternate; in halves it is the same up to a fixed permutation of the columns.
    """
    exponents = torch.arange(0, d_model, 2, dtype=torch.float64, device="cpu") / d_model
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class SinusoidalPositions(nn.Module):
    """Fixed waves; nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.register_buffer("table", sinusoids(256, d_model), persistent=False)
        self.table: Tensor

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        if longest > len(self.table):
            self.table = sinusoids(2 * longest, self.table.shape[1]).to(self.table)
        return F.embedding(positions, self.table)


class LearnedPositions(nn.Module):
    """A learned row for each place (Gehring et al. 2017)."""

    def __init__(self, d_model: int, max_positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, d_model))

    def initialize(self) -> None:
        """As small beside the tokens' unit variance as fairseq and BERT have it."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        assert longest <= len(self.weight), "callers keep to the model's limits"
        return F.embedding(positions, self.weight)
