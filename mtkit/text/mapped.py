"""SentencePiece models of tokenizers from elsewhere, whose pieces a vocabulary of its own gives other ids.

Marian's are such: text becomes pieces by the model of its side, and pieces become ids by vocab.json.
"""

from collections.abc import Sequence
from typing import Any

import sentencepiece

from mtkit.model_proto import cuts_at_spaces
from mtkit.symbols import SpecialIds
from mtkit.text.segmentation import SPACE_MARK, Pieces
from mtkit.text.splitting import split_tags

UNKNOWN_TEXT = "<unk>"  # what is shown for a token whose text nobody knows


class MappedModel:
    """A SentencePiece model that normalises by itself, and the vocabulary that its pieces are looked up in."""

    def __init__(self, model: bytes, vocabulary: Sequence[str], special: SpecialIds, tags: Sequence[str]) -> None:
        """Tags are pieces of the vocabulary that a line may begin with, and that the model does not know."""
        self._bytes = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._vocabulary = list(vocabulary)
        self._ids = {piece: id_ for id_, piece in enumerate(vocabulary)}
        self._special = special
        pieces = list(map(self._processor.id_to_piece, range(self._processor.vocab_size())))
        self._tags = tuple(tag for tag in tags if tag not in pieces)  # those that it knows it finds by itself
        self.vocab_size = len(self._vocabulary)
        # Ids of SentencePiece's own to those of the vocabulary; pieces that it lacks are left out.
        self._known = {id_: self._ids[piece] for id_, piece in enumerate(pieces) if piece in self._ids}
        # Where no piece has another id, and no tag is looked for, the ids are the model's own.
        self._keeps_ids = self._vocabulary[: len(pieces)] == pieces and not self._tags
        self._blank_may_have_pieces = not cuts_at_spaces(model, SPACE_MARK)
        self._silent = {id_ for id_ in special.all if id_ != special.unknown}
        self.shows_unknown = not any(map(self._processor.is_byte, self._known))

    def normalizer(self, line: str) -> str:
        """The line as the model sees it, what it begins with as a tag left as it is."""
        tags, text = ("", _encodable(line)) if self._keeps_ids else split_tags(_encodable(line), self._tags)
        normal: str = self._processor.normalize(text).replace(SPACE_MARK, " ").strip(" ")
        return f"{tags} {normal}".strip(" ") if tags else normal

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        """The ids of each line, tags first; what the vocabulary lacks is unknown."""
        if self._keeps_ids:
            return self._own_ids(list(map(_encodable, lines)), num_threads)
        split = [split_tags(_encodable(line), self._tags) for line in lines]
        # As text and not as ids: what this side's model has no piece for, the vocabulary may have from the other side.
        pieces = self._processor.encode([text for _, text in split], out_type=str, num_threads=num_threads)
        unknown = self._special.unknown
        return [
            [self._ids[tag] for tag in tags.split()] + [self._ids.get(piece, unknown) for piece in row]
            for (tags, _), row in zip(split, pieces, strict=True)
        ]

    def _own_ids(self, texts: list[str], num_threads: int) -> list[list[int]]:
        rows: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        if self._blank_may_have_pieces:  # but a blank line stays blank, as everywhere
            rows = [row if self.normalizer(text) else [] for text, row in zip(texts, rows, strict=True)]
        return rows

    def texts(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line, as the line has them where they are unknown."""
        split = [split_tags(_encodable(line), self._tags) for line in lines]
        rows = self._processor.encode([text for _, text in split], out_type=str)
        return [[*tags.split(), *row] for (tags, _), row in zip(split, rows, strict=True)]

    def normalizing(self) -> bytes:
        """The model as it came."""
        return self._bytes

    def scores(self) -> list[float]:
        """SentencePiece's, by the ids of the vocabulary; 0 where it does not know the piece."""
        known = {ours: self._processor.get_score(id_) for id_, ours in self._known.items()}
        return [known.get(id_, 0.0) for id_ in range(self.vocab_size)]

    def varied_pieces(self, symbols: tuple[str, ...]) -> Pieces:
        """What segmentations are drawn from; symbols are never split."""
        processor, special = self._processor, set(self._special.all)
        own = {
            processor.id_to_piece(id_): id_
            for id_, ours in self._known.items()
            if ours not in special
            and not (processor.is_byte(id_) or processor.is_unused(id_) or processor.is_control(id_))
        }
        ids = {piece: self._known[id_] for piece, id_ in own.items()}
        scores = {piece: processor.get_score(id_) for piece, id_ in own.items()}
        return Pieces(ids, scores, symbols, lambda word: self.encode([word], 1)[0])

    def decode(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """The text of each row of ids, special ones left out but for the unknown where it is shown."""
        if not len(tokens):
            return []
        rows = [[piece for id_ in map(int, row) for piece in self._shown(id_)] for row in tokens]
        if unknown_texts is not None and self.shows_unknown:
            kept = [[id_ for id_ in map(int, row) if id_ not in self._silent] for row in tokens]
            rows = [
                with_unknown(row, self.pieces(row), self._special.unknown, unknown)
                for row, unknown in zip(kept, unknown_texts, strict=True)
            ]
        # SentencePiece 0.2.1 decodes no list of which the first row is empty.
        found = iter(self._processor.decode([row for row in rows if row]) if any(rows) else ())
        # A piece that this side's model does not know is written as it is, its space mark too.
        return [next(found).replace(SPACE_MARK, " ").strip(" ") if row else "" for row in rows]

    def _shown(self, id_: int) -> Sequence[str]:
        """The pieces to be decoded."""
        if id_ == self._special.unknown and self.shows_unknown:
            return UNKNOWN_TEXT[:1], UNKNOWN_TEXT[1:]  # in two, since SentencePiece shows the whole as a question mark
        return () if id_ in self._special.all else (self._vocabulary[id_],)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece that each id stands for."""
        return [self._vocabulary[id_] for id_ in tokens]


def with_unknown(tokens: Sequence[int], pieces: Sequence[str], unknown: int, texts: Sequence[str]) -> list[str]:
    """The pieces of these tokens for SentencePiece to decode, with texts in the places of unknown ones.

    A text goes in character by character: as a whole it might be a piece, such as <unk>, that decoding does not show.
    """
    left = iter(texts)
    shown: list[str] = []
    for token, piece in zip(tokens, pieces, strict=True):
        shown += next(left, UNKNOWN_TEXT) if token == unknown else [piece]
    return shown


def _encodable(line: str) -> str:
    """Half of a surrogate pair has no UTF-8; it becomes a question mark."""
    return line.encode("utf-8", errors="replace").decode("utf-8")
