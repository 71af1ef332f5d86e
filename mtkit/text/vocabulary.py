"""Special tokens, SentencePiece model files read and edited, and SentencePiece models with ids from elsewhere."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from mtkit.text.segmentation import SPACE_MARK, SubwordModel, split_tags

PAD = 0  # fills up rows; zero, so that an array of zeros is padding
UNKNOWN = 1  # text without a piece; never needed if the tokenizer falls back to bytes
BEGIN = 2  # first input of the decoder, unless the model has another start token
END = 3  # ends every source and every target

NUM_SPECIAL = 4


@dataclass(frozen=True)
class SpecialIds:
    """The special ids of one side's vocabulary; a tokenizer from elsewhere keeps its own."""

    pad: int = PAD
    unknown: int = UNKNOWN
    begin: int | None = BEGIN  # None in Marian's vocabularies, which have no begin token
    end: int = END

    @property
    def all(self) -> tuple[int, ...]:
        """The special ids that the vocabulary has."""
        return tuple(id_ for id_ in (self.pad, self.unknown, self.begin, self.end) if id_ is not None)

    @property
    def never_generated(self) -> tuple[int, ...]:
        """The special ids that no search may generate: all but the end token."""
        return tuple(id_ for id_ in self.all if id_ != self.end)


DEFAULT_IDS = SpecialIds()  # of every tokenizer that mtkit trains


@dataclass(frozen=True)
class Specials:
    """The special ids of both sides."""

    source: SpecialIds = DEFAULT_IDS
    target: SpecialIds = DEFAULT_IDS


# The decoder's start token, by its name in the settings. zero: pad, whose embedding stays zero (Marian).
START_TOKENS: dict[str, Callable[[SpecialIds], int | None]] = {
    "begin": lambda special: special.begin,
    "pad": lambda special: special.pad,
    "end": lambda special: special.end,
    "zero": lambda special: special.pad,
}


@dataclass(frozen=True)
class BoundaryTokens:
    """The ids of the tokens that begin and end the sentences that a model reads."""

    source_end: int = END
    start: int = BEGIN  # first input of the decoder
    target_end: int = END


# SentencePiece models, which are protobuf messages.

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

# Field numbers: of a ModelProto, a SentencePiece, a TrainerSpec and a NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, VOCAB_SIZE, MARK_AS_SUFFIX = 3, 4, 24
RULE_NAME, CHARSMAP, MARK_FIRST, SINGLE_SPACES, MARK_SPACES = 1, 2, 3, 4, 5

CUSTOM_RULE = b"user_defined"  # SentencePiece's name for any normalisation rule but its own

HAS_LEAF = 1 << 8  # flag in a unit of a compiled rule: a sequence of characters ends here

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FIXED_WIDTH = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Piece:
    """A piece of a SentencePiece model."""

    text: str
    score: float
    type: PieceType = "normal"


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces of a model, by id. Raises ValueError if the bytes are no model."""
    return [_decode_piece(field.value) for field in _fields(model) if field.number == PIECES]


def is_whole(model: bytes) -> bool:
    """Whether a model has all parts that SentencePiece writes; a truncated file may lack the last ones."""
    return {PIECES, TRAINER, NORMALIZER} <= {field.number for field in _fields(model)}


def model_type_of(model: bytes) -> ModelType:
    """The segmentation algorithm of a model."""
    number = _last_number(_submessage(model, TRAINER), MODEL_TYPE, default=1)
    if number not in MODEL_TYPES:
        raise ValueError(f"model type {number} is unknown")
    return MODEL_TYPES[number]


def normalizer_of(model: bytes) -> bytes:
    """The NormalizerSpec of a model, which says how text is normalised; empty if there is none."""
    return _submessage(model, NORMALIZER)


def charsmap_of(model: bytes) -> bytes:
    """The compiled normalisation rule of a model; empty if characters stay as they are."""
    return _submessage(normalizer_of(model), CHARSMAP)


def rule_keeping(rule: bytes, text: str) -> bytes:
    """The NormalizerSpec changed to leave text as it is. Raises ValueError if the rule does not replace text.

    A compiled rule is the size of a double-array trie (Darts-clone), the trie, and the replacements. Each unit of the
    trie holds the byte that leads to it, a flag that a sequence ends there, and where the next bytes are. Clearing that
    flag disables the replacement.
    """
    charsmap = bytearray(_submessage(rule, CHARSMAP))
    position = 0
    offset = _offset(_unit(charsmap, 0))
    for byte in text.encode():
        position = offset ^ byte
        unit = _unit(charsmap, position)
        if unit & 0xFF != byte:
            raise ValueError(f"the rule does not know {text!r}")
        offset = position ^ _offset(unit)
    if not _unit(charsmap, position) & HAS_LEAF:
        raise ValueError(f"the rule does not replace {text!r}")
    struct.pack_into("<I", charsmap, 4 * position + 4, _unit(charsmap, position) & ~HAS_LEAF)
    rule = _replace_fields(rule, RULE_NAME, _encode_field(RULE_NAME, CUSTOM_RULE))
    return _replace_fields(rule, CHARSMAP, _encode_field(CHARSMAP, bytes(charsmap)))


def rule_marking_spaces(rule: bytes) -> bytes:
    """The NormalizerSpec changed to collapse spaces and to write a space mark for each and before the first word."""
    for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES):
        rule = _replace_fields(rule, number, _encode_field(number, 1))
    return rule


def _unit(charsmap: bytearray, position: int) -> int:
    """A unit of the trie, which starts 4 bytes into the compiled rule."""
    unit: int = struct.unpack_from("<I", charsmap, 4 * position + 4)[0]
    return unit


def _offset(unit: int) -> int:
    """Where the next bytes of a unit are, as Darts-clone encodes it."""
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def cuts_at_spaces(model: bytes, mark: str) -> bool:
    """Whether a model segments each word by itself: one space mark before each word, none within a piece."""
    rule = normalizer_of(model)
    usual = all(_last_number(rule, number, default=1) for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES))
    usual &= not _last_number(_submessage(model, TRAINER), MARK_AS_SUFFIX, default=0)
    return usual and not any(mark in piece.text[1:] for piece in pieces_of(model) if piece.type == "normal")


def with_normalizer(model: bytes, rule: bytes) -> bytes:
    """The model with another NormalizerSpec."""
    return _replace_fields(model, NORMALIZER, _encode_field(NORMALIZER, rule))


def with_pieces(model: bytes, new: Sequence[Piece]) -> bytes:
    """The model with these pieces after its own."""
    old = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, [*old, *(_encode_field(PIECES, _encode_piece(piece)) for piece in new)])


def with_defined(model: bytes, texts: Sequence[str]) -> bytes:
    """The model changed to never split these texts: existing pieces change their type, others are added at the end."""
    old = [field.encoded for field in _fields(model) if field.number == PIECES]
    pieces = pieces_of(model)
    positions = {piece.text: position for position, piece in enumerate(pieces)}
    for text in texts:
        if (position := positions.get(text)) is None:
            old.append(_encode_field(PIECES, _encode_piece(Piece(text, 0.0, "user_defined"))))
        elif pieces[position].type != "user_defined":
            old[position] = _encode_field(PIECES, _encode_piece(Piece(text, pieces[position].score, "user_defined")))
    return _with_encoded(model, old)


def _with_encoded(model: bytes, pieces: Sequence[bytes]) -> bytes:
    """The model with these encoded pieces instead of its own, and its vocabulary size updated."""
    trainer = _replace_fields(_submessage(model, TRAINER), VOCAB_SIZE, _encode_field(VOCAB_SIZE, len(pieces)))
    return _replace_fields(_replace_fields(model, PIECES, b"".join(pieces)), TRAINER, _encode_field(TRAINER, trainer))


def without_last_pieces(model: bytes, count: int) -> bytes:
    """The model without its last pieces, count of them; undoes with_pieces."""
    pieces = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, pieces[: len(pieces) - count])


# The protobuf encoding.


@dataclass(frozen=True)
class _Field:
    number: int
    value: int | bytes
    encoded: bytes  # the encoded field, with its number


def _fields(message: bytes) -> Iterator[_Field]:
    """Yields the fields of a message in order. Raises ValueError if the message is damaged."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, position = _read_varint(message, position)
        else:
            if kind == BYTES:
                width, position = _read_varint(message, position)
            elif kind in FIXED_WIDTH:
                width = FIXED_WIDTH[kind]
            else:
                raise ValueError(f"a field is written in way {kind}, which SentencePiece does not use")
            value = message[position : position + width]
            position += width
        if position > len(message) or not number:
            raise ValueError("the message is cut off or damaged")
        yield _Field(number, value, message[start:position])


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A number written with seven bits per byte, lowest first, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position + shift + 1
    raise ValueError("a number has no end")


def _submessage(message: bytes, number: int) -> bytes:
    """The submessage in a field; if the field occurs several times, they are concatenated."""
    return b"".join(_require_bytes(field.value) for field in _fields(message) if field.number == number)


def _last_number(message: bytes, number: int, default: int) -> int:
    """The number in a field; the last one if the field occurs several times."""
    *_, value = (default, *(field.value for field in _fields(message) if field.number == number))
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value


def _require_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes are wanted")
    return value


def _decode_piece(value: int | bytes) -> Piece:
    message = _require_bytes(value)
    text, score = b"", 0.0
    for field in _fields(message):
        if field.number == TEXT:
            text = _require_bytes(field.value)
        elif field.number == SCORE:
            encoded = _require_bytes(field.value)
            if len(encoded) != FIXED_WIDTH[FIXED32]:
                raise ValueError("a score is no number of 32 bits")
            (score,) = struct.unpack("<f", encoded)
    type_ = _last_number(message, TYPE, default=1)
    if type_ not in PIECE_TYPES:
        raise ValueError(f"piece type {type_} is unknown")
    return Piece(text.decode(), score, PIECE_TYPES[type_])


def _encode_piece(piece: Piece) -> bytes:
    """An encoded piece; SentencePiece leaves out the type normal."""
    (type_,) = (number for number, name in PIECE_TYPES.items() if name == piece.type)
    score = _write_varint(SCORE << 3 | FIXED32) + struct.pack("<f", piece.score)
    return (
        _encode_field(TEXT, piece.text.encode())
        + score
        + (_encode_field(TYPE, type_) if piece.type != "normal" else b"")
    )


def _encode_field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _write_varint(number << 3 | VARINT) + _write_varint(value)
    return _write_varint(number << 3 | BYTES) + _write_varint(len(value)) + value


def _write_varint(value: int) -> bytes:
    """A number in the bytes that _read_varint reads."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _replace_fields(message: bytes, number: int, fields: bytes) -> bytes:
    """The message with encoded fields in place of all fields of that number; at the end if it has none."""
    kept: list[bytes] = []
    position = None
    for field in _fields(message):
        if field.number != number:
            kept.append(field.encoded)
        elif position is None:
            position = len(kept)
    position = len(kept) if position is None else position
    return b"".join([*kept[:position], fields, *kept[position:]])


# Tokenizers from elsewhere, such as Marian's: pieces by SentencePiece, ids by a separate vocabulary.

UNKNOWN_TEXT = "<unk>"  # shown for an unknown token


class MappedModel:
    """One side's SentencePiece model, which normalises text itself, and the vocabulary that gives its pieces ids."""

    def __init__(self, model: bytes, vocabulary: Sequence[str], special: SpecialIds, tags: Sequence[str]) -> None:
        """Tags are pieces of the vocabulary that a line may begin with."""
        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._vocabulary = list(vocabulary)
        self._ids = {piece: id_ for id_, piece in enumerate(vocabulary)}
        self._special = special
        pieces = list(map(self._processor.id_to_piece, range(self._processor.vocab_size())))
        self._tags = tuple(tag for tag in tags if tag not in pieces)  # the model finds its own pieces itself
        self.vocab_size = len(self._vocabulary)
        # SentencePiece's ids to the vocabulary's, for the pieces that both have.
        self._known = {id_: self._ids[piece] for id_, piece in enumerate(pieces) if piece in self._ids}
        # If all pieces have the same ids in both and there are no tags to find, SentencePiece's ids are used.
        self._keeps_ids = self._vocabulary[: len(pieces)] == pieces and not self._tags
        self._blank_may_have_pieces = not cuts_at_spaces(model, SPACE_MARK)
        self._hidden = {id_ for id_ in special.all if id_ != special.unknown}
        self.shows_unknown = not any(map(self._processor.is_byte, self._known))

    def normalizer(self, line: str) -> str:
        """The normalised line; tags at its beginning stay as they are."""
        tags, text = ("", encodable(line)) if self._keeps_ids else split_tags(encodable(line), self._tags)
        normal: str = self._processor.normalize(text).replace(SPACE_MARK, " ").strip(" ")
        return f"{tags} {normal}".strip(" ") if tags else normal

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        """The ids of each line, tags first; pieces that the vocabulary lacks are unknown."""
        if self._keeps_ids:
            return self._own_ids(list(map(encodable, lines)), num_threads)
        split = [split_tags(encodable(line), self._tags) for line in lines]
        # Pieces as text: a character that this side's model lacks may be in the vocabulary thanks to the other side.
        pieces = self._processor.encode([text for _, text in split], out_type=str, num_threads=num_threads)
        unknown = self._special.unknown
        return [
            [self._ids[tag] for tag in tags.split()] + [self._ids.get(piece, unknown) for piece in row]
            for (tags, _), row in zip(split, pieces, strict=True)
        ]

    def _own_ids(self, texts: list[str], num_threads: int) -> list[list[int]]:
        rows: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        if self._blank_may_have_pieces:  # a blank line has no ids, as everywhere
            rows = [row if self.normalizer(text) else [] for text, row in zip(texts, rows, strict=True)]
        return rows

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line; unknown ones as they are in the line."""
        split = [split_tags(encodable(line), self._tags) for line in lines]
        rows = self._processor.encode([text for _, text in split], out_type=str)
        return [[*tags.split(), *row] for (tags, _), row in zip(split, rows, strict=True)]

    def sentencepiece_model(self) -> bytes:
        """The model as given, since it includes its normalisation."""
        return self._model

    def scores(self) -> list[float]:
        """SentencePiece's scores by the ids of the vocabulary; 0 for pieces that SentencePiece lacks."""
        known = {ours: self._processor.get_score(id_) for id_, ours in self._known.items()}
        return [known.get(id_, 0.0) for id_ in range(self.vocab_size)]

    def subword_model(self, symbols: tuple[str, ...]) -> SubwordModel:
        """The pieces from which segmentations are sampled; symbols are never split."""
        processor, special = self._processor, set(self._special.all)
        own = {
            processor.id_to_piece(id_): id_
            for id_, ours in self._known.items()
            if ours not in special
            and not (processor.is_byte(id_) or processor.is_unused(id_) or processor.is_control(id_))
        }
        ids = {piece: self._known[id_] for piece, id_ in own.items()}
        scores = {piece: processor.get_score(id_) for piece, id_ in own.items()}
        return SubwordModel(ids, scores, symbols, lambda word: self.encode([word], 1)[0])

    def decode(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """The text of each row of ids, without special tokens; unknown ones as in their unknown_texts, else as <unk>.

        A model that falls back to bytes never shows unknown tokens.
        """
        if not len(tokens):
            return []
        rows = [[piece for id_ in map(int, row) for piece in self._shown(id_)] for row in tokens]
        if unknown_texts is not None and self.shows_unknown:
            kept = [[id_ for id_ in map(int, row) if id_ not in self._hidden] for row in tokens]
            rows = [
                with_unknown(row, self.pieces(row), self._special.unknown, unknown)
                for row, unknown in zip(kept, unknown_texts, strict=True)
            ]
        # SentencePiece 0.2.1 cannot decode a list whose first row is empty.
        found = iter(self._processor.decode([row for row in rows if row]) if any(rows) else ())
        # SentencePiece copies pieces that it lacks, with their space marks.
        return [next(found).replace(SPACE_MARK, " ").strip(" ") if row else "" for row in rows]

    def _shown(self, id_: int) -> Sequence[str]:
        """The pieces to decode for an id."""
        if id_ == self._special.unknown and self.shows_unknown:
            # In two pieces, since SentencePiece shows its own <unk> as a question mark.
            return UNKNOWN_TEXT[:1], UNKNOWN_TEXT[1:]
        return () if id_ in self._special.all else (self._vocabulary[id_],)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece of each id."""
        return [self._vocabulary[id_] for id_ in tokens]


def with_unknown(tokens: Sequence[int], pieces: Sequence[str], unknown: int, texts: Sequence[str]) -> list[str]:
    """The pieces of tokens for SentencePiece to decode, with texts instead of unknown ones.

    Texts are inserted character by character: a whole one might be a piece, such as <unk>, that decoding hides.
    """
    left = iter(texts)
    shown: list[str] = []
    for token, piece in zip(tokens, pieces, strict=True):
        shown += next(left, UNKNOWN_TEXT) if token == unknown else [piece]
    return shown


def encodable(line: str) -> str:
    """The line with lone surrogates, which UTF-8 cannot encode, replaced by question marks."""
    return line.encode("utf-8", errors="replace").decode("utf-8")
