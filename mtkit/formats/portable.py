"""A model as other formats write it: settings, weights, and the vocabularies piece by piece.

V vocabulary size, D model width.
"""

from dataclasses import dataclass, field

from torch import Tensor

from mtkit.config.settings import Config
from mtkit.symbols import OWN, SpecialIds


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of one side, in the order of their ids."""

    pieces: list[str]  # as SentencePiece writes them, ▁ for a space; those of the special ids among them
    special: SpecialIds = OWN
    sentencepiece: bytes = b""  # a model that normalises text by itself as that side wants it, and gives these pieces
    scores: list[float] = field(default_factory=list)  # SentencePiece's, by id


@dataclass(frozen=True)
class PortableModel:
    """All that an export needs; what an import finds."""

    config: Config
    weights: dict[str, Tensor]  # by mtkit's own names, float32; what is shared stands once
    source: Vocabulary
    target: Vocabulary
    symbols: tuple[str, ...] = ()  # words of the source that are one piece each, such as the tags of languages
    card: str = ""  # the text of the model card
