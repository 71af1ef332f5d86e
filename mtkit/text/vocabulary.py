"""Special tokens, reading and editing of SentencePiece model files, and models with a separate vocabulary."""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sentencepiece

from mtkit.text.segmentation import SPACE_MARK, SubwordModel, split_tags

PAD = 0  # fills up short rows; 0, so that an array of zeros is padding
UNKNOWN = 1  # replaces text that has no piece; not needed if the tokenizer falls back to bytes
BEGIN = 2  # first input of the decoder, unless the model has another start token
END = 3  # last token of every source and every target

NUM_SPECIAL = 4


@dataclass(frozen=True)
class SpecialIds:
    """The ids of the special tokens of one side.

    A tokenizer that mtkit did not train may have other ids than these defaults.
    """

    pad: int = PAD
    unknown: int = UNKNOWN
    begin: int | None = BEGIN  # None in Marian's vocabularies, which have no begin token
    end: int = END

    @property
    def all(self) -> tuple[int, ...]:
        """All special ids of this side; if the begin id is `None`, it is left out."""
        return tuple(id_ for id_ in (self.pad, self.unknown, self.begin, self.end) if id_ is not None)

    @property
    def never_generated(self) -> tuple[int, ...]:
        """The special ids that search must never generate: all special ids except that of the end token."""
        return tuple(id_ for id_ in self.all if id_ != self.end)


DEFAULT_IDS = SpecialIds()  # the special ids of every tokenizer that mtkit trains


@dataclass(frozen=True)
class Specials:
    """The special ids of source and target."""

    source: SpecialIds = DEFAULT_IDS
    target: SpecialIds = DEFAULT_IDS


# For each start token of the decoder that the settings can name, a function that returns the token's id. "zero" is the
# padding token with an embedding that stays zero (Marian).
START_TOKENS: dict[str, Callable[[SpecialIds], int | None]] = {
    "begin": lambda special: special.begin,
    "pad": lambda special: special.pad,
    "end": lambda special: special.end,
    "zero": lambda special: special.pad,
}


@dataclass(frozen=True)
class BoundaryTokens:
    """The ids of the tokens that a model expects at the beginning and end of sentences, and where it expects them."""

    source_end: int = END
    start: int = BEGIN  # first input of the decoder
    target_end: int = END
    shifted: bool = True  # False: the input of the decoder has no start token; each input is what it should predict


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

# Field numbers in protobuf messages. Of the four lines below, the first has the fields of ModelProto, the second those
# of SentencePiece, the third those of TrainerSpec, and the fourth those of NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
TEXT, SCORE, TYPE = 1, 2, 3
MODEL_TYPE, VOCAB_SIZE, MARK_AS_SUFFIX = 3, 4, 24
RULE_NAME, CHARSMAP, MARK_FIRST, SINGLE_SPACES, MARK_SPACES = 1, 2, 3, 4, 5

CUSTOM_RULE = b"user_defined"  # SentencePiece's name for every normalisation rule that is not built in

HAS_LEAF = 1 << 8  # flag in a unit of a compiled rule: a sequence that the rule replaces ends here

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
FIXED_WIDTH = {FIXED64: 8, FIXED32: 4}


@dataclass(frozen=True)
class Piece:
    """A piece of a SentencePiece model."""

    text: str
    score: float
    type: PieceType = "normal"


def pieces_of(model: bytes) -> list[Piece]:
    """The pieces of `model`, in the order of their ids; raises ValueError if the bytes are no SentencePiece model."""
    return [_decode_piece(field.value) for field in _fields(model) if field.number == PIECES]


def is_whole(model: bytes) -> bool:
    """Whether a model has pieces, a TrainerSpec and a NormalizerSpec; a truncated file may lack some of these."""
    return {PIECES, TRAINER, NORMALIZER} <= {field.number for field in _fields(model)}


def model_type_of(model: bytes) -> ModelType:
    """The segmentation algorithm of a model; raises ValueError if mtkit does not know the algorithm."""
    number = _last_number(_submessage(model, TRAINER), MODEL_TYPE, default=1)
    if number not in MODEL_TYPES:
        raise ValueError(f"model type {number} is unknown")
    return MODEL_TYPES[number]


def normalizer_of(model: bytes) -> bytes:
    """The encoded NormalizerSpec of a model, which defines how text is normalised; empty if there is none."""
    return _submessage(model, NORMALIZER)


def charsmap_of(model: bytes) -> bytes:
    """The compiled normalisation rule of a model, which maps characters to others; empty if there is none."""
    return _submessage(normalizer_of(model), CHARSMAP)


def rule_keeping(rule: bytes, text: str) -> bytes:
    """Returns the NormalizerSpec `rule`, changed so that it no longer replaces `text`.

    Raises ValueError if the rule does not replace `text` in the first place.

    A compiled rule consists of the size of a double-array trie (Darts-clone), the trie, and the replacements. Each unit
    of the trie contains the byte that leads to this unit, a flag that tells whether a text that the rule replaces
    ends there, and the offset of the units for the next bytes. Clearing the flag disables the replacement.
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
    """Returns the NormalizerSpec `rule`, changed to collapse spaces and mark words.

    The changed rule replaces each space by a space mark (▁), and puts another space mark before the first word.
    """
    for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES):
        rule = _replace_fields(rule, number, _encode_field(number, 1))
    return rule


def _unit(charsmap: bytearray, position: int) -> int:
    """The 32-bit unit at `position` in the trie, which starts 4 bytes into the compiled rule."""
    unit: int = struct.unpack_from("<I", charsmap, 4 * position + 4)[0]
    return unit


def _offset(unit: int) -> int:
    """Decodes a unit of the trie: returns the offset of the units for the next bytes."""
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def cuts_at_spaces(model: bytes) -> bool:
    """Whether a SentencePiece model segments each word separately.

    The model does so if its normaliser puts exactly one space mark (▁) before each word, and no piece has a space mark
    after its first character.
    """
    rule = normalizer_of(model)
    usual = all(_last_number(rule, number, default=1) for number in (MARK_FIRST, SINGLE_SPACES, MARK_SPACES))
    usual &= not _last_number(_submessage(model, TRAINER), MARK_AS_SUFFIX, default=0)
    return usual and not any(SPACE_MARK in piece.text[1:] for piece in pieces_of(model) if piece.type == "normal")


def with_normalizer(model: bytes, rule: bytes) -> bytes:
    """Returns `model` with its NormalizerSpec replaced by `rule`."""
    return _replace_fields(model, NORMALIZER, _encode_field(NORMALIZER, rule))


def with_pieces(model: bytes, new: Sequence[Piece]) -> bytes:
    """Returns `model` with the pieces in `new` added after its own pieces."""
    old = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, [*old, *(_encode_field(PIECES, _encode_piece(piece)) for piece in new)])


def with_defined(model: bytes, texts: Sequence[str]) -> bytes:
    """Returns `model`, changed so that it never splits any of `texts`.

    Each text becomes a piece of type "user_defined": a text that is already a piece gets this type, and any other text
    is added after the last piece.
    """
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
    """Returns `model` with the encoded `pieces` in place of its own, and its vocabulary size updated."""
    trainer = _replace_fields(_submessage(model, TRAINER), VOCAB_SIZE, _encode_field(VOCAB_SIZE, len(pieces)))
    return _replace_fields(_replace_fields(model, PIECES, b"".join(pieces)), TRAINER, _encode_field(TRAINER, trainer))


def without_last_pieces(model: bytes, count: int) -> bytes:
    """Returns `model` without its last `count` pieces; undoes `with_pieces`."""
    pieces = [field.encoded for field in _fields(model) if field.number == PIECES]
    return _with_encoded(model, pieces[: len(pieces) - count])


# The protobuf encoding.


class _Field(NamedTuple):  # a model has tens of thousands, and a dataclass takes four times as long to make
    number: int
    value: int | bytes
    encoded: bytes  # the complete encoded field, with its number


def _fields(message: bytes) -> Iterator[_Field]:
    """Yields the fields of an encoded message in order; raises ValueError if the message is damaged."""
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
    """Reads the number stored as a varint at `position`; returns the number, and the position after the varint.

    A varint has seven bits of the number in each byte, lowest first. Raises ValueError if the varint does not end.
    """
    if position < len(message) and (first := message[position]) < 0x80:  # as most are, and reading these is fast
        return first, position + 1
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position + shift + 1
    raise ValueError("a number has no end")


def _submessage(message: bytes, number: int) -> bytes:
    """The encoded submessage in field `number`; if the field occurs several times, its contents are concatenated."""
    return b"".join(_require_bytes(field.value) for field in _fields(message) if field.number == number)


def _last_number(message: bytes, number: int, default: int) -> int:
    """The integer in field `number`; `default` if the field is missing, the last one if it occurs several times."""
    *_, value = (default, *(field.value for field in _fields(message) if field.number == number))
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value


def _require_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes are wanted")
    return value


def _decode_piece(value: int | bytes) -> Piece:
    text, score = b"", 0.0
    type_: int | bytes = 1
    for field in _fields(_require_bytes(value)):
        if field.number == TEXT:
            text = _require_bytes(field.value)
        elif field.number == SCORE:
            encoded = _require_bytes(field.value)
            if len(encoded) != FIXED_WIDTH[FIXED32]:
                raise ValueError("a score is no number of 32 bits")
            (score,) = struct.unpack("<f", encoded)
        elif field.number == TYPE:
            type_ = field.value
    if not isinstance(type_, int):
        raise ValueError(f"field {TYPE} is no number")
    if type_ not in PIECE_TYPES:
        raise ValueError(f"piece type {type_} is unknown")
    return Piece(text.decode(), score, PIECE_TYPES[type_])


def _encode_piece(piece: Piece) -> bytes:
    """`piece` as an encoded message; the type "normal" is left out, as in SentencePiece's own files."""
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
    """`value` encoded as a varint; `_read_varint` is the inverse."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _replace_fields(message: bytes, number: int, fields: bytes) -> bytes:
    """Returns `message` with all fields of number `number` replaced by `fields`, which are already encoded.

    If the message has no such field, `fields` are added at the end.
    """
    kept: list[bytes] = []
    position = None
    for field in _fields(message):
        if field.number != number:
            kept.append(field.encoded)
        elif position is None:
            position = len(kept)
    position = len(kept) if position is None else position
    return b"".join([*kept[:position], fields, *kept[position:]])


# Tokenizers that mtkit did not train: SentencePiece cuts text into pieces, and a separate vocabulary assigns
# ids to the pieces.

UNKNOWN_TEXT = "<unk>"  # what is shown for an unknown token


class MappedModel:
    """The model of one side of a tokenizer that mtkit did not train, such as Marian's.

    It consists of a SentencePiece model, which normalises text itself, and a vocabulary that assigns ids to the pieces.
    """

    def __init__(self, model: bytes, vocabulary: Sequence[str], special: SpecialIds, tags: Sequence[str]) -> None:
        """`model` is a SentencePiece model as bytes; `vocabulary` lists the pieces in the order of their ids.

        `tags` are pieces of the vocabulary that a line may begin with.
        """
        self._model = model
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._vocabulary = list(vocabulary)
        self._ids = {piece: id_ for id_, piece in enumerate(vocabulary)}
        self._special = special
        pieces = list(map(self._processor.id_to_piece, range(self._processor.vocab_size())))
        self._tags = tuple(tag for tag in tags if tag not in pieces)  # SentencePiece finds tags that are its own pieces
        self.vocab_size = len(self._vocabulary)
        # Maps SentencePiece's ids to those of the vocabulary, for the pieces that both have.
        self._known = {id_: self._ids[piece] for id_, piece in enumerate(pieces) if piece in self._ids}
        # If all pieces have the same ids in both and there are no tags to find, SentencePiece's ids are used.
        self._keeps_ids = self._vocabulary[: len(pieces)] == pieces and not self._tags
        self._blank_may_have_pieces = not cuts_at_spaces(model)
        self._hidden = {id_ for id_ in special.all if id_ != special.unknown}
        self.shows_unknown = not any(map(self._processor.is_byte, self._known))

    def normalizer(self, line: str) -> str:
        """The normalised line; tags at its beginning are not changed."""
        tags, text = ("", encodable(line)) if self._keeps_ids else split_tags(encodable(line), self._tags)
        normal: str = self._processor.normalize(text).replace(SPACE_MARK, " ").strip(" ")
        return f"{tags} {normal}".strip(" ") if tags else normal

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        """The ids of each line, tags first; a piece that is not in the vocabulary becomes the unknown token."""
        if self._keeps_ids:
            return self._own_ids(list(map(encodable, lines)), num_threads)
        split = [split_tags(encodable(line), self._tags) for line in lines]
        # Encode to pieces as text, not as ids: a character that is no piece of this side's model may still be in the
        # vocabulary, if both sides share it.
        pieces = self._processor.encode([text for _, text in split], out_type=str, num_threads=num_threads)
        unknown = self._special.unknown
        return [
            [self._ids[tag] for tag in tags.split()] + [self._ids.get(piece, unknown) for piece in row]
            for (tags, _), row in zip(split, pieces, strict=True)
        ]

    def _own_ids(self, texts: list[str], num_threads: int) -> list[list[int]]:
        rows: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        if self._blank_may_have_pieces:  # a blank line must have no ids, as with every tokenizer
            rows = [row if self.normalizer(text) else [] for text, row in zip(texts, rows, strict=True)]
        return rows

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line, tags first; an unknown piece is given as its text, not as <unk>."""
        split = [split_tags(encodable(line), self._tags) for line in lines]
        rows = self._processor.encode([text for _, text in split], out_type=str)
        return [[*tags.split(), *row] for (tags, _), row in zip(split, rows, strict=True)]

    def sentencepiece_model(self) -> bytes:
        """The SentencePiece model as bytes, unchanged, with the model's own normalisation."""
        return self._model

    def scores(self) -> list[float]:
        """SentencePiece's scores of the pieces in the vocabulary, by id; 0 for pieces that SentencePiece lacks."""
        known = {ours: self._processor.get_score(id_) for id_, ours in self._known.items()}
        return [known.get(id_, 0.0) for id_ in range(self.vocab_size)]

    def subword_model(self, symbols: tuple[str, ...]) -> SubwordModel:
        """The pieces for sampling segmentations, without special and byte pieces; `symbols` are never split."""
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
        """The text of each row of ids; of the special tokens, only unknown tokens are shown.

        Unknown tokens are shown as <unk>. If `unknown_texts` is given, it has one list of texts for each row, and the
        n-th unknown token of a row is shown as the n-th text in the list for that row. A model with byte fallback never
        shows unknown tokens.
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
        # SentencePiece copies pieces that it lacks to the text, with their space marks.
        return [next(found).replace(SPACE_MARK, " ").strip(" ") if row else "" for row in rows]

    def _shown(self, id_: int) -> Sequence[str]:
        """The pieces to decode for an id; none if the id is a special token that is not to be shown.

        Of the special tokens, only the unknown token is shown, and only if `shows_unknown` is true.
        """
        if id_ == self._special.unknown and self.shows_unknown:
            # In two pieces, since SentencePiece shows its own <unk> as a question mark.
            return UNKNOWN_TEXT[:1], UNKNOWN_TEXT[1:]
        return () if id_ in self._special.all else (self._vocabulary[id_],)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece of each id."""
        return [self._vocabulary[id_] for id_ in tokens]


def with_unknown(tokens: Sequence[int], pieces: Sequence[str], unknown: int, texts: Sequence[str]) -> list[str]:
    """Returns the pieces of `tokens` for SentencePiece to decode, with `texts` in place of unknown tokens, in order.

    `unknown` is the id of the unknown token. If there are too few texts, the remaining unknown tokens become <unk>.
    Texts are inserted character by character, since a complete text might equal a piece that decoding hides, such as
    <unk>.
    """
    left = iter(texts)
    shown: list[str] = []
    for token, piece in zip(tokens, pieces, strict=True):
        shown += next(left, UNKNOWN_TEXT) if token == unknown else [piece]
    return shown


def encodable(line: str) -> str:
    """`line` with question marks in place of lone surrogates, which UTF-8 cannot encode."""
    return line.encode("utf-8", errors="replace").decode("utf-8")
