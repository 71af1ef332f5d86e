"""Vocabularies: special symbols, the bytes of a SentencePiece model, and its pieces under other ids."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from mtkit.text.segmentation import SPACE_MARK, Pieces, split_tags

PAD = 0  # fills a row; zero, so that a fresh array of zeros is padding
UNKNOWN = 1  # stands for what has no piece; no text is, where a tokenizer spells in bytes
BEGIN = 2  # the decoder starts from it, unless its model has another start token
END = 3  # ends every source and every target

NUM_SPECIAL = 4


@dataclass(frozen=True)
class SpecialIds:
    """The special ids of one side's vocabulary. A model from elsewhere keeps its own."""

    pad: int = PAD
    unknown: int = UNKNOWN
    begin: int | None = BEGIN  # Marian's vocabularies have none
    end: int = END

    @property
    def all(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(id_ for id_ in (self.pad, self.unknown, self.begin, self.end) if id_ is not None)

    @property
    def silent(self) -> tuple[int, ...]:
        """Those that no translation holds."""
        return tuple(id_ for id_ in self.all if id_ != self.end)


OWN = SpecialIds()  # every tokenizer that is trained here has these


@dataclass(frozen=True)
class Specials:
    """Those of both sides."""

    source: SpecialIds = OWN
    target: SpecialIds = OWN


# What a decoder may read first, by the names of the settings. Where it is zero, the row of pad stays zero (Marian).
START_TOKENS: dict[str, Callable[[SpecialIds], int | None]] = {
    "begin": lambda special: special.begin,
    "pad": lambda special: special.pad,
    "end": lambda special: special.end,
    "zero": lambda special: special.pad,
}


@dataclass(frozen=True)
class Marks:
    """What stands around sentences when a model reads them."""

    source_end: int = END
    start: int = BEGIN  # what the decoder reads first
    target_end: int = END


# The bytes of a SentencePiece model, read and edited.

PieceType = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]
ModelType = Literal["unigram", "bpe", "word", "char"]

PIECE_TYPES: dict[int, PieceType] = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user_defined",
    5: "unused",
    6: "byte",
}
MODEL_TYPES: dict[int, ModelType] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# The numbers of fields: of a model, of a piece, of how it was trained, of its normalisation.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, VOCAB_SIZE, MARK_BEHIND = 3, 4, 24
RULE_NAME, CHARSMAP, MARK_FIRST, SINGLE_SPACES, MARKS = 1, 2, 3, 4, 5

OWN_RULE = b"user_defined"  # what SentencePiece calls a rule that is none of its own

HAS_LEAF = 1 << 8  # in a unit of a compiled rule: a sequence of characters ends here

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a value is written
FIXED_WIDTH = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Piece:
    """A piece as SentencePiece has it."""

    text: str
    score: float
    type: PieceType = "normal"


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces by id."""
    return [_piece(field.value) for field in _fields(model) if field.number == PIECES]


def is_whole(model: bytes) -> bool:
    """Whether all parts that SentencePiece writes are there: a model that is cut off may lack the last ones."""
    return {PIECES, TRAINER, NORMALIZER} <= {field.number for field in _fields(model)}


def model_type_of(model: bytes) -> ModelType:
    """How the model cuts text."""
    number = _last_number(_message(model, TRAINER), MODEL_TYPE, default=1)
    if number not in MODEL_TYPES:
        raise ValueError(f"model type {number} is unknown")
    return MODEL_TYPES[number]


def normalizer_of(model: bytes) -> bytes:
    """What is done to text before it is cut: a NormalizerSpec; empty where the model has none."""
    return _message(model, NORMALIZER)


def charsmap_of(model: bytes) -> bytes:
    """The compiled rule of normalizer_of; empty where characters stay as they are."""
    return _message(normalizer_of(model), CHARSMAP)


def keeping(rule: bytes, text: str) -> bytes:
    """The NormalizerSpec with text left as it is, which the rule must replace by something else.

    A compiled rule is the size of a double-array trie (Darts-clone), the trie, and the replacements. Each unit of the
    trie holds the byte that leads to it, whether a sequence ends there, and where the next bytes are; so one bit
    decides whether a sequence is replaced.
    """
    charsmap = bytearray(_message(rule, CHARSMAP))
    place = 0
    offset = _offset(_unit(charsmap, 0))
    for byte in text.encode():
        place = offset ^ byte
        unit = _unit(charsmap, place)
        if unit & 0xFF != byte:
            raise ValueError(f"the rule does not know {text!r}")
        offset = place ^ _offset(unit)
    if not _unit(charsmap, place) & HAS_LEAF:
        raise ValueError(f"the rule does not replace {text!r}")
    struct.pack_into("<I", charsmap, 4 * place + 4, _unit(charsmap, place) & ~HAS_LEAF)
    rule = _replaced(rule, RULE_NAME, _field(RULE_NAME, OWN_RULE))
    return _replaced(rule, CHARSMAP, _field(CHARSMAP, bytes(charsmap)))


def marking_spaces(rule: bytes) -> bytes:
    """The NormalizerSpec that strips spaces, makes them single, and writes marks for them and before the first word."""
    for number in (MARK_FIRST, SINGLE_SPACES, MARKS):
        rule = _replaced(rule, number, _field(number, 1))
    return rule


def _unit(charsmap: bytearray, place: int) -> int:
    unit: int = struct.unpack_from("<I", charsmap, 4 * place + 4)[0]
    return unit


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def cuts_at_spaces(model: bytes, mark: str) -> bool:
    """Whether the pieces of a text are those of its words: one mark before each word, and none within a piece."""
    rule = normalizer_of(model)
    usual = all(_last_number(rule, number, default=1) for number in (MARK_FIRST, SINGLE_SPACES, MARKS))
    usual &= not _last_number(_message(model, TRAINER), MARK_BEHIND, default=0)
    return usual and not any(mark in piece.text[1:] for piece in pieces_of(model) if piece.type == "normal")


def with_normalizer(model: bytes, rule: bytes) -> bytes:
    """The model with another NormalizerSpec."""
    return _replaced(model, NORMALIZER, _field(NORMALIZER, rule))


def with_pieces(model: bytes, new: Sequence[Piece]) -> bytes:
    """The model with these pieces behind its own, and its size told anew."""
    old = [field.written for field in _fields(model) if field.number == PIECES]
    return _with_written(model, [*old, *(_field(PIECES, _written(piece)) for piece in new)])


def with_defined(model: bytes, texts: Sequence[str]) -> bytes:
    """The model that never splits these texts: pieces that it has change their type, others stand behind its own."""
    old = [field.written for field in _fields(model) if field.number == PIECES]
    pieces = pieces_of(model)
    places = {piece.text: place for place, piece in enumerate(pieces)}
    for text in texts:
        if (place := places.get(text)) is None:
            old.append(_field(PIECES, _written(Piece(text, 0.0, "user_defined"))))
        elif pieces[place].type != "user_defined":
            old[place] = _field(PIECES, _written(Piece(text, pieces[place].score, "user_defined")))
    return _with_written(model, old)


def _with_written(model: bytes, pieces: Sequence[bytes]) -> bytes:
    """The model with these pieces, as they are written, in the place of its own."""
    trainer = _replaced(_message(model, TRAINER), VOCAB_SIZE, _field(VOCAB_SIZE, len(pieces)))
    return _replaced(_replaced(model, PIECES, b"".join(pieces)), TRAINER, _field(TRAINER, trainer))


def without_last_pieces(model: bytes, count: int) -> bytes:
    """The model without so many of its last pieces: undoes with_pieces."""
    pieces = [field.written for field in _fields(model) if field.number == PIECES]
    kept = pieces[: len(pieces) - count]
    trainer = _replaced(_message(model, TRAINER), VOCAB_SIZE, _field(VOCAB_SIZE, len(kept)))
    return _replaced(_replaced(model, PIECES, b"".join(kept)), TRAINER, _field(TRAINER, trainer))


@dataclass(frozen=True)
class _Field:
    number: int
    value: int | bytes
    written: bytes  # the whole field


def _fields(message: bytes) -> Iterator[_Field]:
    """The fields of a message in their order."""
    place = 0
    while place < len(message):
        start = place
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, place = _varint(message, place)
        else:
            if kind == BYTES:
                width, place = _varint(message, place)
            elif kind in FIXED_WIDTH:
                width = FIXED_WIDTH[kind]
            else:
                raise ValueError(f"a field is written in way {kind}, which SentencePiece does not use")
            value = message[place : place + width]
            place += width
        if place > len(message) or not number:
            raise ValueError("the message is cut off or damaged")
        yield _Field(number, value, message[start:place])


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place after it."""
    value = 0
    for shift, byte in enumerate(message[place : place + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place + shift + 1
    raise ValueError("a number has no end")


def _message(message: bytes, number: int) -> bytes:
    """The bytes of a field; of several they are one message together."""
    return b"".join(_bytes(field.value) for field in _fields(message) if field.number == number)


def _last_number(message: bytes, number: int, default: int) -> int:
    """The number that a field holds; of several the last one counts."""
    *_, value = (default, *(field.value for field in _fields(message) if field.number == number))
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes are wanted")
    return value


def _piece(value: int | bytes) -> Piece:
    message = _bytes(value)
    text, score = b"", 0.0
    for field in _fields(message):
        if field.number == TEXT:
            text = _bytes(field.value)
        elif field.number == SCORE:
            written = _bytes(field.value)
            if len(written) != FIXED_WIDTH[FIXED32]:
                raise ValueError("a score is no number of 32 bits")
            (score,) = struct.unpack("<f", written)
    type_ = _last_number(message, TYPE, default=1)
    if type_ not in PIECE_TYPES:
        raise ValueError(f"piece type {type_} is unknown")
    return Piece(text.decode(), score, PIECE_TYPES[type_])


def _written(piece: Piece) -> bytes:
    """A piece as SentencePiece writes it, which leaves out that it is normal."""
    (type_,) = (number for number, name in PIECE_TYPES.items() if name == piece.type)
    score = _number(SCORE << 3 | FIXED32) + struct.pack("<f", piece.score)
    return _field(TEXT, piece.text.encode()) + score + (_field(TYPE, type_) if piece.type != "normal" else b"")


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3 | VARINT) + _number(value)
    return _number(number << 3 | BYTES) + _number(len(value)) + value


def _number(value: int) -> bytes:
    """The same in bytes as _varint reads."""
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _replaced(message: bytes, number: int, fields: bytes) -> bytes:
    """The message with fields in the place of all that have a number; at its end where there are none."""
    kept: list[bytes] = []
    place = None
    for field in _fields(message):
        if field.number != number:
            kept.append(field.written)
        elif place is None:
            place = len(kept)
    place = len(kept) if place is None else place
    return b"".join([*kept[:place], fields, *kept[place:]])


# SentencePiece models of tokenizers from elsewhere, whose pieces a vocabulary of its own gives other ids.

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
