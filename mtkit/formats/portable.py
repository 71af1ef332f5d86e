"""A model as other formats write it: settings, weights, and the vocabularies piece by piece.

V vocabulary size, D model width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from mtkit.config.settings import Config
from mtkit.model_proto import pieces_of
from mtkit.symbols import OWN, SpecialIds

MARKER = "mtkit.json"  # tells a folder that an export wrote, which another may replace


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

    @property
    def loose_tags(self) -> tuple[str, ...]:
        """Tags that SentencePiece does not know: a token of its own before the pieces of a line."""
        known = {piece.text for piece in pieces_of(self.source.sentencepiece)}
        return tuple(tag for tag in self.symbols if tag not in known)


def reordered(model: PortableModel, source_order: Sequence[int], target_order: Sequence[int]) -> PortableModel:
    """The same model with id n of a side being what was id order[n]; a shared vocabulary has one order.

    Ids that an order leaves out are gone; special ones must not be.
    Embeddings, output layer and its bias go along, and so do the special ids.
    """
    own = range(len(model.source.pieces)), range(len(model.target.pieces))
    if list(source_order) == list(own[0]) and list(target_order) == list(own[1]):
        return model
    orders = {
        "encoder.embedded.embedding.weight": source_order,
        "decoder.embedded.embedding.weight": target_order,
        "decoder.output.table.weight": target_order,
        "decoder.output.bias": target_order,
    }
    weights = {
        name: weight[list(orders[name])].contiguous() if name in orders else weight
        for name, weight in model.weights.items()
    }
    source, target = _reordered(model.source, source_order), _reordered(model.target, target_order)
    return replace(model, weights=weights, source=source, target=target)


def _reordered(vocabulary: Vocabulary, order: Sequence[int]) -> Vocabulary:
    place = {id_: number for number, id_ in enumerate(order)}
    special = vocabulary.special
    return replace(
        vocabulary,
        pieces=[vocabulary.pieces[id_] for id_ in order],
        scores=[vocabulary.scores[id_] for id_ in order] if vocabulary.scores else [],
        special=SpecialIds(
            place[special.pad],
            place[special.unknown],
            None if special.begin is None else place[special.begin],
            place[special.end],
        ),
    )
