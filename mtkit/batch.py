"""Rows of tokens, and the batch that a model is trained on.

Letters: R rows, L length of a row, S and T the lengths of source and target rows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

NO_LABEL = -1  # no token, whatever the vocabulary


@dataclass(frozen=True)
class Rows:
    """Token ids with the sentence each belongs to and its place in it.

    A padded batch is a packed one with one sentence a row. Tokens may look at each other where segments are equal.
    """

    ids: Tensor  # (R, L) int64
    segments: Tensor  # (R, L) int64: 1, 2, … number the sentences of a row; 0 is padding
    positions: Tensor  # (R, L) int64: the place in the sentence, from 0; 0 where padded
    packed: bool = False  # whether any row holds more than one sentence
    cut: Tensor | None = None  # (R, L) bool: tokens whose embedding is zero; None is none

    @property
    def mask(self) -> Tensor:
        """(R, L), True where a token is real."""
        return self.segments != 0

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device; the copy does not wait where memory is pinned."""
        return replace(
            self,
            ids=self.ids.to(device, non_blocking=True),
            segments=self.segments.to(device, non_blocking=True),
            positions=self.positions.to(device, non_blocking=True),
            cut=None if self.cut is None else self.cut.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Batch:
    """Sentence pairs; a pair lies in the same row, with the same segment number, on both sides."""

    source: Rows  # ends with the end mark
    target: Rows  # what the decoder reads: the start mark and all tokens but the end mark
    labels: Tensor  # (R, T) int64: what it should say at each place; NO_LABEL where padded
    num_pairs: int
    source_tokens: int  # real tokens, end marks counted
    target_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(
            self,
            source=self.source.to(device),
            target=self.target.to(device),
            labels=self.labels.to(device, non_blocking=True),
        )

    @property
    def padding(self) -> float:
        """Share of the places that hold no token."""
        places = self.source.ids.numel() + self.target.ids.numel()
        return 1 - (self.source_tokens + self.target_tokens) / places
