"""The bytes of a SentencePiece model: read and changed as a protocol buffer, field by field.

SentencePiece can train and use a model, but not change one, and its protocol buffer wants a package of its own. What
is not named here is kept byte for byte. Numbers of fields and types are those of sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is written

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of a model
PIECE, SCORE, TYPE = 1, 2, 3  # of a piece
MODEL_TYPE, VOCAB_SIZE = 3, 4  # of what a model was trained with

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of a piece
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Piece:
    """A piece of a vocabulary."""

    text: str
    score: float
    type: int = NORMAL


@dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    content: bytes  # of a varint, the varint; of bytes, without their length

    def written(self) -> bytes:
        length = _varint(len(self.content)) if self.kind == BYTES else b""
        return _varint(self.number << 3 | self.kind) + length + self.content


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces of a model by their ids; ValueError if it is none."""
    return [_piece(field.content) for field in _fields(model) if (field.number, field.kind) == (PIECES, BYTES)]


def type_of(model: bytes) -> str:
    """unigram, bpe, word or char; ValueError if it is no model."""
    for field in _fields(model):
        if (field.number, field.kind) == (TRAINER, BYTES):
            for inner in _fields(field.content):
                if (inner.number, inner.kind) == (MODEL_TYPE, VARINT):
                    number = _number(inner.content)
                    if number not in MODEL_TYPES:
                        raise ValueError(f"model type {number} is unknown")
                    return MODEL_TYPES[number]
    return MODEL_TYPES[1]  # what SentencePiece leaves out because it is the default


def normalizer_of(model: bytes) -> bytes:
    """The rule of normalisation, as bytes; none where the model has none."""
    return b"".join(field.content for field in _fields(model) if (field.number, field.kind) == (NORMALIZER, BYTES))


def with_normalizer(model: bytes, rule: bytes) -> bytes:
    """The same model with another rule of normalisation."""
    fields = [field for field in _fields(model) if field.number != NORMALIZER]
    place = next((i for i, field in enumerate(fields) if field.number > NORMALIZER), len(fields))
    return _joined([*fields[:place], _Field(NORMALIZER, BYTES, rule), *fields[place:]])


def with_pieces(model: bytes, new: Sequence[Piece]) -> bytes:
    """The same model with these pieces after those it has."""
    fields = list(_fields(model))
    count = sum(field.number == PIECES for field in fields) + len(new)
    added = [_Field(PIECES, BYTES, _written(piece)) for piece in new]
    last = max((i for i, field in enumerate(fields) if field.number == PIECES), default=-1) + 1
    fields = [*fields[:last], *added, *fields[last:]]
    return _joined([_with_size(field, count) if field.number == TRAINER else field for field in fields])


def _with_size(trainer: _Field, vocab_size: int) -> _Field:
    fields = [
        _Field(VOCAB_SIZE, VARINT, _varint(vocab_size)) if field.number == VOCAB_SIZE else field
        for field in _fields(trainer.content)
    ]
    return _Field(trainer.number, trainer.kind, _joined(fields))


def _piece(content: bytes) -> Piece:
    text, score, type_ = "", 0.0, NORMAL
    for field in _fields(content):
        if (field.number, field.kind) == (PIECE, BYTES):
            text = field.content.decode("utf-8")
        elif (field.number, field.kind) == (SCORE, FIXED32):
            [score] = struct.unpack("<f", field.content)
        elif (field.number, field.kind) == (TYPE, VARINT):
            type_ = _number(field.content)
    return Piece(text, score, type_)


def _written(piece: Piece) -> bytes:
    type_ = [_Field(TYPE, VARINT, _varint(piece.type))] if piece.type != NORMAL else []
    text = _Field(PIECE, BYTES, piece.text.encode("utf-8"))
    return _joined([text, _Field(SCORE, FIXED32, struct.pack("<f", piece.score)), *type_])


def _fields(message: bytes) -> Iterator[_Field]:
    place = 0
    while place < len(message):
        tag, place = _read_varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _, end = _read_varint(message, place)
        elif kind in (FIXED32, FIXED64):
            end = place + (4 if kind == FIXED32 else 8)
        elif kind == BYTES:
            length, place = _read_varint(message, place)
            end = place + length
        else:
            raise ValueError(f"a field of kind {kind} is none of a SentencePiece model")
        if end > len(message) or not number:
            raise ValueError("the bytes are cut off or are no SentencePiece model")
        yield _Field(number, kind, message[place:end])
        place = end


def _joined(fields: Sequence[_Field]) -> bytes:
    return b"".join(field.written() for field in fields)


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise ValueError("the bytes are cut off or are no SentencePiece model")


def _number(content: bytes) -> int:
    return _read_varint(content, 0)[0]


def _varint(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
