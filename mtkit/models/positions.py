"""How a place in a sentence is told.

R rows, L length, D model width, H heads, K width of a head, P places in a table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.model_settings import TransformerConfig

# What wave i of all D/2 divides a place by, as a power of 10000: 2i/D as in the paper, or i/(D/2 - 1), with which the
# last one is 10000 itself, as in the paper's first implementation, fairseq and M2M100.
EXPONENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "paper": lambda i: i / len(i),
    "tensor2tensor": lambda i: i / max(len(i) - 1, 1),
}

# How (P, D/2) sines and as many cosines stand beside each other.
LAYOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "halves": lambda sines, cosines: torch.cat([sines, cosines], dim=1),
    "interleaved": lambda sines, cosines: torch.stack([sines, cosines], dim=2).flatten(1),
}


def sinusoids(num_positions: int, d_model: int, layout: str = "halves", exponent: str = "paper") -> Tensor:
    """(P, D): sin(p / 10000^(2i/D)) for i < D/2, then the cosines (Vaswani et al. 2017, section 3.5).

    The paper lets sines and cosines alternate; in halves it is the same up to a fixed permutation of the columns.
    """
    exponents = EXPONENTS[exponent](torch.arange(d_model // 2, dtype=torch.float64, device="cpu"))
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * 10000.0**-exponents
    return LAYOUTS[layout](angles.sin(), angles.cos()).float()


class SinusoidalPositions(nn.Module):
    """Fixed waves; nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", self.waves(256), persistent=False)
        self.table: Tensor

    def waves(self, num_positions: int) -> Tensor:
        """(P, D): the rows of so many places, of which the first may stand further down in the table of all."""
        config = self.config
        first = config.sinusoid_first
        rows = sinusoids(first + num_positions, config.d_model, config.sinusoid_layout, config.sinusoid_exponent)
        return rows[first:].contiguous()

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        if longest > len(self.table):
            self.table = self.waves(2 * longest).to(self.table)
        return F.embedding(positions, self.table)


class LearnedPositions(nn.Module):
    """A learned row for each place (Gehring et al. 2017)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.d_model))

    def initialize(self) -> None:
        """As small beside the tokens' unit variance as fairseq and BERT have it."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        assert longest <= len(self.weight), "callers keep to the model's limits"
        return F.embedding(positions, self.weight)


@dataclass(frozen=True)
class Rotation:
    """Turns queries and keys by angles that grow with their places (Su et al. 2021, equation 34)."""

    sines: Tensor  # (R, 1, L, K/2)
    cosines: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(R, H, L, K) to the same.

        Column i turns with column i + K/2; the paper pairs neighbours, which is the same up to a fixed permutation of
        the columns of queries and keys.
        """
        first, second = x.chunk(2, -1)
        turned = torch.cat(
            [first * self.cosines - second * self.sines, second * self.cosines + first * self.sines], dim=-1
        )
        return turned.to(x.dtype)


class RotaryPositions(nn.Module):
    """The angles of all places; nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        # Not a buffer: a model in bf16 turns by angles in fp32, else far places would be told wrongly.
        self.table = sinusoids(256, head_width)

    def forward(self, positions: Tensor, longest: int) -> Rotation:
        """The rotation for (R, L) places below longest."""
        if longest > len(self.table):
            self.table = sinusoids(2 * longest, self.table.shape[1])
        self.table = self.table.to(positions.device)
        sines, cosines = F.embedding(positions, self.table)[:, None].chunk(2, -1)
        return Rotation(sines, cosines)


# What each kind adds to the embeddings. Rotary positions come in by the attention instead, and without any the decoder
# knows an order only by which tokens it has seen, and the encoder none.
ADDED: dict[str, Callable[[TransformerConfig], nn.Module] | None] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": None,
    "none": None,
}
