"""The tokenizer, which converts text to ids and back and can be trained, saved and loaded.

A normalisation rule is applied to text before a SentencePiece model segments it. Source and target each have a rule,
even if they share one model. A tokenizer is made by training SentencePiece models, from existing SentencePiece models,
or by adding pieces to another tokenizer.
"""

import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mtkit.config.data_and_model_settings import LEAST_WITH_BYTES, TokenizerConfig
from mtkit.errors import CheckpointError, ConfigError, DataError, SignalError
from mtkit.text.vocabulary import (
    BEGIN,
    END,
    NUM_SPECIAL,
    PAD,
    SPACE_MARK,
    UNKNOWN,
    UNKNOWN_TEXT,
    BulkEncoder,
    Encoded,
    MappedModel,
    ModelType,
    Piece,
    SegmentationSampler,
    SpecialIds,
    Specials,
    SubwordModel,
    bpe_dropout,
    charsmap_of,
    cuts_at_spaces,
    encodable,
    group_by_word,
    model_type_of,
    normalizer_of,
    pieces_of,
    rule_keeping,
    rule_marking_spaces,
    unigram_sampling,
    with_defined,
    with_normalizer,
    with_pieces,
    with_unknown,
    without_last_pieces,
)

FORMAT = 1
SETTINGS_FILE = "tokenizer.json"

# mtkit's own normalisation rules, by name: (the rule of SentencePiece that it changes, the character that it keeps).
# U+200C, the zero width non-joiner, is used within words in Persian, Telugu, Tamil and other languages.
RULES_KEEPING = {"nmt_nfkc_zwnj": ("nmt_nfkc", "\u200c")}


class Tokenizer:
    """Converts source and target text to ids, and ids back to text.

    Encoding adds no special tokens, and decoding leaves them out. If a text is encoded and then decoded, the result is
    the normalised text: with the normalisation rule of source or target applied, spaces stripped and collapsed, and
    SentencePiece's space marks (▁) turned into spaces. Unless the model has byte fallback, each word or run of
    characters for which there is no piece becomes <unk>.
    """

    def __init__(
        self,
        source_model: bytes,
        target_model: bytes,
        type_: ModelType,
        shared: bool,
        source_normalization: str,
        target_normalization: str,
        tags: Sequence[str] = (),
        vocabularies: tuple[Sequence[str], Sequence[str]] | None = None,
        specials: Specials | None = None,
        symbols: Sequence[str] = (),
    ) -> None:
        """Create a tokenizer from SentencePiece models, given as bytes.

        `type_` is the segmentation algorithm. `shared` tells whether source and target share one vocabulary. `tags` are
        words at the beginning of a source line that tell a multilingual model what to produce, such as <2de>. `symbols`
        are placeholders that may occur anywhere in source and target text. Each tag and each symbol is one piece.

        If mtkit trained the tokenizer, `vocabularies` and `specials` are `None`. With `shared=True`, `source_model` and
        `target_model` must then be the same.

        If mtkit did not train the tokenizer (`is_mapped`), the ids of pieces come from `vocabularies`: the pieces of
        source and target, each in the order of their ids. `specials` has the ids of the special tokens. The two models
        themselves normalise text, so `source_normalization` and `target_normalization` are "model".
        """
        self.specials = specials or Specials()
        self._source: _Model | MappedModel
        self._target: _Model | MappedModel
        if vocabularies is None:
            kind = _WordModel if type_ == "word" else _Model
            apart = symbols if type_ == "word" else ()
            self._source = kind(source_model, Normalizer(source_normalization, apart))
            self._target = kind(target_model, Normalizer(target_normalization, apart))
        else:
            self._source = MappedModel(source_model, vocabularies[0], self.specials.source, tags)
            self._target = MappedModel(target_model, vocabularies[1], self.specials.target, ())
        # If there is only one name, both models (or both vocabularies) are the same.
        files = dict(zip(_model_names(shared, vocabularies is not None), (source_model, target_model), strict=False))
        for name, vocabulary in zip(_vocabulary_names(shared), vocabularies or (), strict=False):
            files[name] = json.dumps(list(vocabulary), ensure_ascii=False).encode()
        self._models = files
        self._description = _Description(
            type=type_,
            shared=shared,
            source_normalization=source_normalization,
            target_normalization=target_normalization,
            sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            symbols=list(tags),
            own_symbols=list(symbols),
            specials=asdict(specials) if specials else {},
        )
        self.tags = tuple(tags)
        self.symbols = tuple(symbols)
        self._samplers: dict[tuple[_Model | MappedModel, float, int], SegmentationSampler] = {}
        self.source_vocab_size = self._source.vocab_size
        self.target_vocab_size = self._target.vocab_size
        # Whether text may be encoded as the unknown token, because the model has no byte fallback.
        self.source_shows_unknown = self._source.shows_unknown
        self.target_shows_unknown = self._target.shows_unknown
        self.hash = self._description.hash  # checksum of everything that affects the ids of a text

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        """Load the tokenizer that was saved in `directory`.

        Raises CheckpointError if the tokenizer is missing, damaged or of another format.
        """
        found = sorted(path for path in directory.glob("*") if path.is_file())
        return Tokenizer.from_files({path.name: path.read_bytes() for path in found}, directory)

    @staticmethod
    def from_files(files: Mapping[str, bytes], directory: Path) -> "Tokenizer":
        """Create a tokenizer from `files`, a mapping from file names to the contents of the files.

        Raises CheckpointError if a file is missing, damaged or of another format; `directory` is only used in the
        message.
        """
        description = _read_description(files, directory / SETTINGS_FILE)
        content = {name: _read_file(files, directory / name, sha256) for name, sha256 in description.sha256.items()}
        names = _model_names(description.shared, description.is_mapped)
        for name in names:
            _check_model(content[name], directory / name, description.is_mapped)
        models = [content[name] for name in names]
        vocabularies = None
        if description.is_mapped:
            read = [_read_vocabulary(content[name], directory / name) for name in _vocabulary_names(description.shared)]
            vocabularies = (read[0], read[-1])
        return Tokenizer(
            models[0],
            models[-1],
            type_=description.type,
            shared=description.shared,
            source_normalization=description.source_normalization,
            target_normalization=description.target_normalization,
            tags=description.symbols,
            vocabularies=vocabularies,
            specials=_specials(description.specials) if description.specials else None,
            symbols=description.own_symbols,
        )

    def save(self, directory: Path) -> None:
        """Save the tokenizer in `directory`, which is created if it is missing; `load` loads it again."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """The contents, by file name, of the files that `save` writes."""
        content = {"format": FORMAT, **self._description.content, "hash": self.hash}
        return {**self._models, SETTINGS_FILE: (json.dumps(content, indent=2) + "\n").encode()}

    def with_models(
        self,
        models: tuple[bytes, bytes],
        vocabularies: tuple[Sequence[str], Sequence[str]] | None,
        tags: Sequence[str],
    ) -> "Tokenizer":
        """A copy of this tokenizer with other models and tags.

        `models` are the SentencePiece models of source and target, as bytes. `vocabularies` are lists of the pieces of
        source and target; they are needed if mtkit did not train the tokenizer (`is_mapped`), and must be `None`
        otherwise.
        """
        description = self._description
        return Tokenizer(
            *models,
            type_=description.type,
            shared=description.shared,
            source_normalization=description.source_normalization,
            target_normalization=description.target_normalization,
            tags=tags,
            vocabularies=vocabularies,
            specials=self.specials if description.is_mapped else None,
            symbols=self.symbols,
        )

    @property
    def models(self) -> tuple[bytes, bytes]:
        """The SentencePiece models of source and target, as bytes.

        If source and target share one model, this model is given twice.
        """
        names = _model_names(self._description.shared, self._description.is_mapped)
        return self._models[names[0]], self._models[names[-1]]

    @property
    def type(self) -> ModelType:
        """The segmentation algorithm: unigram, bpe, word or char."""
        return self._description.type

    @property
    def is_shared(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self._description.shared

    @property
    def is_mapped(self) -> bool:
        """Whether mtkit did not train the tokenizer, so that the ids of pieces come from separate vocabularies.

        In a tokenizer that mtkit trained, the ids are those of its SentencePiece models.
        """
        return self._description.is_mapped

    def encode_source(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each source line; an empty list for a line that is blank after normalisation."""
        return self._source.encode(lines, num_threads)

    def encode_target(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each target line; an empty list for a line that is blank after normalisation."""
        return self._target.encode(lines, num_threads)

    def bulk_encode_source(self, lines: Sequence[str], num_threads: int = 1) -> Encoded:
        """The ids of each source line, computed faster and in less memory than by `encode_source`.

        This is meant for large amounts of text. If the tokenizer segments each word independently of other words, the
        ids of words are cached.
        """
        return self._bulk_source.encode(lines, num_threads)

    def bulk_encode_target(self, lines: Sequence[str], num_threads: int = 1) -> Encoded:
        """The ids of each target line, computed faster and in less memory than by `encode_target`.

        This is meant for large amounts of text. If the tokenizer segments each word independently of other words, the
        ids of words are cached.
        """
        return self._bulk_target.encode(lines, num_threads)

    @cached_property
    def _bulk_source(self) -> BulkEncoder:
        return _bulk_encoder(self._source, self.models[0])

    @cached_property
    def _bulk_target(self) -> BulkEncoder:
        return _bulk_encoder(self._target, self.models[1])

    def sample_source(self, texts: Sequence[str], alpha: float, nbest: int, seed: int) -> list[list[int]]:
        """The ids of each source text, segmented at random; the texts must come from `normalize_source`.

        For bpe, `alpha` is the probability that a merge is skipped (Provilkov et al. 2020), and `nbest` has no effect.

        For unigram, a segmentation of each word is sampled from the `nbest` best segmentations of the word or, with
        `nbest=-1`, from all of them. The sampling is in proportion to p ** `alpha`, where p is the probability of a
        segmentation under the model (Kudo 2018, section 3.2).

        The same arguments give the same ids.
        """
        return self._sampler(self._source, alpha, nbest)(texts, seed)

    def sample_target(self, texts: Sequence[str], alpha: float, nbest: int, seed: int) -> list[list[int]]:
        """The ids of each target text, segmented at random; the texts must come from `normalize_target`.

        `alpha`, `nbest` and `seed` mean what they mean for `sample_source`: for bpe, `alpha` is the probability that a
        merge is skipped; for unigram, it is the exponent of the probabilities of the `nbest` best segmentations.
        """
        return self._sampler(self._target, alpha, nbest)(texts, seed)

    def _sampler(self, model: "_Model | MappedModel", alpha: float, nbest: int) -> SegmentationSampler:
        """Returns a function that segments texts at random with `model`; equal arguments give the same function.

        `alpha` and `nbest` have the meaning that they have in `sample_source`.
        """
        if (model, alpha, nbest) not in self._samplers:
            defined = _user_defined(self.models[model is self._target])
            subwords = model.subword_model(tuple(dict.fromkeys((*self.tags, *defined))))
            unigram = self._description.type == "unigram"
            make_sampler = unigram_sampling(subwords, alpha, nbest) if unigram else bpe_dropout(subwords, alpha)
            self._samplers[model, alpha, nbest] = SegmentationSampler(make_sampler)
        return self._samplers[model, alpha, nbest]

    def decode_source(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of source ids; decoded bytes that are not UTF-8 become U+FFFD.

        Special tokens are left out, except that the unknown token is shown as <unk> if `source_shows_unknown` is true.
        """
        return self._source.decode(tokens)

    def decode_target(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        """The text of each row of target ids; decoded bytes that are not UTF-8 become U+FFFD.

        Special tokens are left out, except that the unknown token is shown as <unk> if `target_shows_unknown` is true.
        If `unknown_texts` is given, it has one list of texts for each row, and the n-th unknown token of a row is shown
        as the n-th text in the list for that row.
        """
        return self._target.decode(tokens, unknown_texts)

    def source_words(self, lines: Sequence[str]) -> list[list[str]]:
        """For each line, the word that each of its tokens belongs to.

        The list for a line has one word for each id that `encode_source` returns, so a word of three tokens is listed
        three times.
        """
        return [_word_of_each(row) for row in self._source.pieces_of_lines(lines)]

    def target_texts(self, lines: Sequence[str]) -> list[list[str]]:
        """For each line, the text of each of its tokens.

        The list for a line has one text for each id that `encode_target` returns. The text of a known token is its
        piece; the text of an unknown token is the part of the line that became this token. A space mark (▁) at the
        beginning of a text is left out.
        """
        return [[text.removeprefix(SPACE_MARK) for text in row] for row in self._target.pieces_of_lines(lines)]

    def source_pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece of each source id, as SentencePiece writes it, with the space mark ▁."""
        return self._source.pieces(tokens)

    def target_pieces(self, tokens: Sequence[int]) -> list[str]:
        """The piece of each target id, as SentencePiece writes it, with the space mark ▁."""
        return self._target.pieces(tokens)

    def source_sentencepiece(self) -> bytes:
        """A SentencePiece model, as bytes, that normalises source lines and segments them as `encode_source` does.

        In three rare cases, the model segments differently from `encode_source`:

        - If the text has a space mark (▁) beside a space, the model keeps the mark; `encode_source` takes both as one
          space.
        - If a symbol (a piece that is never split) is followed by a combining mark, the model keeps the symbol;
          `encode_source` normalises the line first, which joins symbol and mark.
        - For type word, the model makes one token of several consecutive unknown words; `encode_source` makes several.
        """
        return self._source.sentencepiece_model()

    def target_sentencepiece(self) -> bytes:
        """A SentencePiece model, as bytes, that normalises target lines and segments them as `encode_target` does.

        In the three rare cases that `source_sentencepiece` lists, the model segments differently from `encode_target`.
        """
        return self._target.sentencepiece_model()

    def source_scores(self) -> list[float]:
        """SentencePiece's scores of the source pieces, by id.

        For unigram, the scores are log-probabilities; for bpe, they are negative ranks of merges.
        """
        return self._source.scores()

    def target_scores(self) -> list[float]:
        """SentencePiece's scores of the target pieces, by id.

        For unigram, the scores are log-probabilities; for bpe, they are negative ranks of merges.
        """
        return self._target.scores()

    def normalize_source(self, line: str) -> str:
        """The source line after normalisation.

        Encoding and then decoding a line gives the same normalised line, except where tokens are unknown.
        """
        return self._source.normalizer(line)

    def normalize_target(self, line: str) -> str:
        """The target line after normalisation.

        Encoding and then decoding a line gives the same normalised line, except where tokens are unknown.
        """
        return self._target.normalizer(line)


def open_sentencepiece(path: Path) -> Any:
    """Loads the model file at `path` into SentencePiece's own processor, as other programs would."""
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


# Normalisation.


class Normalizer:
    """Normalises lines: applies one of the normalisation rules in the settings, then collapses spaces."""

    def __init__(self, rule_name: str, apart: Sequence[str] = ()) -> None:
        """`rule_name` is the name of a rule in the settings; each of the texts in `apart` gets spaces around it."""
        self._rule_name = rule_name
        self._rule = _rule(rule_name)
        longest_first = sorted(apart, key=len, reverse=True)
        self._apart = re.compile("|".join(map(re.escape, longest_first))) if apart else None

    def __call__(self, line: str) -> str:
        """Returns `line`, normalised."""
        text: str = self._rule.normalize(encodable(line))
        if self._apart:
            text = self._apart.sub(r" \g<0> ", text)
        if self._apart or SPACE_MARK in text:
            text = " ".join(word for word in text.replace(SPACE_MARK, " ").split(" ") if word)
        return text

    @property
    def spec(self) -> bytes:
        """The rule as an encoded NormalizerSpec, to be included in a SentencePiece model."""
        return rule_marking_spaces(normalizer_of(_model_with_rule(self._rule_name)))


def _rule(name: str) -> Any:
    """A SentencePieceNormalizer that applies the normalisation rule called `name`.

    The normalizer also collapses spaces. It does not replace spaces with space marks (▁).
    """
    options: dict[str, Any] = {"add_dummy_prefix": False, "escape_whitespaces": False, "remove_extra_whitespaces": True}
    if name in RULES_KEEPING:
        return sentencepiece.SentencePieceNormalizer(model_proto=_model_with_rule(name), **options)
    return sentencepiece.SentencePieceNormalizer(rule_name=name, **options)


@cache
def _model_with_rule(name: str) -> bytes:
    """A dummy SentencePiece model, as bytes, that includes the compiled rule called `name`.

    SentencePiece 0.2.1 offers no other way to get a compiled rule.
    """
    base, kept = RULES_KEEPING.get(name, (name, None))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a"]),
        model_writer=model,
        model_type="char",
        vocab_size=5,
        hard_vocab_limit=False,
        normalization_rule_name=base,
        num_threads=1,
        minloglevel=2,
    )
    rule = normalizer_of(model.getvalue())
    return with_normalizer(model.getvalue(), rule_keeping(rule, kept) if kept else rule)


# Models, each for one side.


class _Model:
    """A SentencePiece model that mtkit trained, with the normaliser for source lines or for target lines."""

    def __init__(self, model: bytes, normalizer: Normalizer) -> None:
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.normalizer = normalizer
        self.vocab_size: int = self._processor.vocab_size()
        self.shows_unknown = not any(map(self._processor.is_byte, range(self.vocab_size)))

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        texts = [self.normalizer(line) for line in lines]
        if len(texts) == 1:  # for a list, SentencePiece starts a thread, which takes longer than encoding a line
            return [self._processor.encode(texts[0], out_type=int)]
        ids: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        return ids

    def subword_model(self, symbols: tuple[str, ...]) -> SubwordModel:
        """The pieces for sampling segmentations, without special and byte pieces.

        `symbols` are pieces that must never be split.
        """
        processor = self._processor
        ids = {
            processor.id_to_piece(id_): id_
            for id_ in range(NUM_SPECIAL, self.vocab_size)
            if not (processor.is_byte(id_) or processor.is_unused(id_) or processor.is_control(id_))
        }
        scores = {piece: processor.get_score(id_) for piece, id_ in ids.items()}
        return SubwordModel(ids, scores, symbols, lambda word: processor.encode(word, out_type=int))

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line; a token without a piece is given as its text, not as <unk>."""
        pieces: list[list[str]] = self._processor.encode([self.normalizer(line) for line in lines], out_type=str)
        return pieces

    def decode(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        if not len(tokens):
            return []
        rows = [list(map(int, filter(self._is_text, row))) for row in tokens]
        if unknown_texts is None and len(rows) == 1 and rows[0]:
            return [self._processor.decode(rows[0])]  # without a thread, as in encode
        if unknown_texts is None:
            texts: list[str] = self._processor.decode(rows)
            return texts
        return [self._decode_with(row, unknown) for row, unknown in zip(rows, unknown_texts, strict=True)]

    def _decode_with(self, tokens: list[int], unknown_texts: Sequence[str]) -> str:
        text: str = self._processor.decode(with_unknown(tokens, self.pieces(tokens), UNKNOWN, unknown_texts))
        return text

    def _is_text(self, id_: int) -> bool:
        return id_ >= NUM_SPECIAL or (id_ == UNKNOWN and self.shows_unknown)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        pieces: list[str] = self._processor.id_to_piece([int(id_) for id_ in tokens])
        return pieces

    def scores(self) -> list[float]:
        return [self._processor.get_score(id_) for id_ in range(self.vocab_size)]

    def sentencepiece_model(self) -> bytes:
        """The model as bytes, with the normalisation rule of its side (source or target) included."""
        return with_normalizer(self._processor.serialized_model_proto(), self.normalizer.spec)


class _WordModel(_Model):
    """A model whose pieces are words.

    This class looks words up itself, since SentencePiece would merge several consecutive unknown words into one.
    """

    def __init__(self, model: bytes, normalizer: Normalizer) -> None:
        super().__init__(model, normalizer)
        self._words = [self._processor.id_to_piece(id_).removeprefix(SPACE_MARK) for id_ in range(self.vocab_size)]
        self._words[UNKNOWN] = UNKNOWN_TEXT
        self._ids = {word: id_ for id_, word in enumerate(self._words) if id_ >= NUM_SPECIAL}

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        texts = map(self.normalizer, lines)
        return [[self._ids.get(word, UNKNOWN) for word in text.split(" ") if word] for text in texts]

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        return [[f"{SPACE_MARK}{word}" for word in self.normalizer(line).split(" ") if word] for line in lines]

    def decode(
        self, tokens: Sequence[Sequence[int]], unknown_texts: Sequence[Sequence[str]] | None = None
    ) -> list[str]:
        shown = []
        for row, unknown in zip(tokens, unknown_texts or repeat(()), strict=False):
            texts = iter(unknown)
            words = [
                next(texts, UNKNOWN_TEXT) if id_ == UNKNOWN else self._words[id_] for id_ in row if self._is_text(id_)
            ]
            shown.append(" ".join(words))
        return shown


def _word_of_each(pieces: Sequence[str]) -> list[str]:
    """The word that each piece belongs to; `pieces` are the pieces of one line.

    The words have no space marks (▁).
    """
    groups = group_by_word(pieces)
    words: dict[int, str] = {}
    for group, piece in zip(groups, pieces, strict=True):
        words[group] = words.get(group, "") + piece
    return [words[group].replace(SPACE_MARK, " ").strip(" ") for group in groups]


def _user_defined(model: bytes) -> list[str]:
    """The texts of the user-defined pieces of a model, which SentencePiece never splits."""
    return [piece.text for piece in pieces_of(model) if piece.type == "user_defined"]


def _bulk_encoder(side: _Model | MappedModel, model: bytes) -> BulkEncoder:
    words_alone = isinstance(side, _Model) and not isinstance(side, _WordModel) and _segments_words_alone(model)
    return BulkEncoder(side.encode, side.vocab_size, words_alone)


@lru_cache(maxsize=2)  # one for each side
def _segments_words_alone(model: bytes) -> bool:
    """Whether SentencePiece segments each word of a line as if the word were the whole line.

    The model must meet all of these conditions:

    - Its type is bpe or char. For unigram, the sums of log-probabilities include the words earlier in the line. So if
      two segmentations of a word are about equally probable, rounding may decide differently in different lines.
    - It cuts text at spaces.
    - It has no compiled normalisation rule.
    - It has no piece with a space or a space mark (▁) after the first character.
    - It has a piece for the space mark. Without it, an unknown word and the space mark after the word might become one
      unknown token.
    """
    pieces = pieces_of(model)
    return (
        model_type_of(model) in ("bpe", "char")
        and cuts_at_spaces(model)
        and not charsmap_of(model)  # a rule that mtkit does not know might replace texts with spaces
        and not any(mark in piece.text[1:] for piece in pieces for mark in (SPACE_MARK, " "))
        and any(piece.text == SPACE_MARK and piece.type == "normal" for piece in pieces)
    )


# The files of a tokenizer.


@dataclass(frozen=True)
class _Description:
    """The content of tokenizer.json; each key of the file except `format` and `hash` is a field."""

    type: ModelType
    shared: bool
    source_normalization: str
    target_normalization: str
    sha256: dict[str, str]
    symbols: list[str] = field(default_factory=list)  # Tokenizer.tags
    own_symbols: list[str] = field(default_factory=list)  # Tokenizer.symbols
    specials: dict[str, Any] = field(default_factory=dict)  # only of a tokenizer that mtkit did not train

    @property
    def content(self) -> dict[str, Any]:
        """The content to write to tokenizer.json.

        Optional keys without a value are left out, since older versions of mtkit do not know these keys.
        """
        return {name: value for name, value in asdict(self).items() if value or name not in _OPTIONAL}

    @property
    def is_mapped(self) -> bool:
        """Whether mtkit did not train the tokenizer, so that the ids of pieces come from separate vocabularies."""
        return bool(self.specials)

    @property
    def hash(self) -> str:
        """SHA-256 checksum, in hex, of everything that affects the ids of a text."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()


_OPTIONAL = ("symbols", "own_symbols", "specials")


def _read_description(files: Mapping[str, bytes], path: Path) -> _Description:
    """Parse the content of tokenizer.json, which is `files[path.name]`.

    Raises CheckpointError if the file is missing, damaged or of another format.
    """
    if path.name not in files:
        raise CheckpointError(f"{path.parent}: no tokenizer here ({path.name} is missing); train or copy one")
    try:
        content = json.loads(files[path.name])
        found = content.pop("format")
        if found != FORMAT:
            raise CheckpointError(f"{path}: format {found!r} is unknown; this version of mtkit reads format {FORMAT}")
        expected = content.pop("hash")
        description = _Description(**content)
        TokenizerConfig.model_validate(
            {name: value for name, value in content.items() if name not in ("sha256", *_OPTIONAL)}
        )
        names = _model_names(description.shared, description.is_mapped)
        names += _vocabulary_names(description.shared) if description.is_mapped else []
        damaged = description.hash != expected or list(description.sha256.keys()) != names
        for symbols in (description.symbols, description.own_symbols):
            damaged |= not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols)
        damaged |= description.is_mapped and not all(
            isinstance(id_, int)
            for side in asdict(_specials(description.specials)).values()
            for id_ in _known_ids(side)
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        damaged = True
    if damaged:
        raise CheckpointError(f"{path}: damaged; copy it again or train the tokenizer again")
    return description


def _model_names(shared: bool, mapped: bool) -> list[str]:
    return ["tokenizer.model"] if shared and not mapped else ["source.model", "target.model"]


def _vocabulary_names(shared: bool) -> list[str]:
    """Names of the vocabulary files of a tokenizer that mtkit did not train; each file is a JSON list of pieces."""
    return ["vocabulary.json"] if shared else ["source_vocabulary.json", "target_vocabulary.json"]


def _specials(sides: dict[str, dict[str, Any]]) -> Specials:
    return Specials(**{side: SpecialIds(**ids) for side, ids in sides.items()})


def _known_ids(side: dict[str, Any]) -> list[Any]:
    """A list of the ids in `side`, which maps names of special tokens to ids; a begin id of `None` is left out."""
    return [id_ for name, id_ in side.items() if not (name == "begin" and id_ is None)]


def _read_vocabulary(content: bytes, path: Path) -> list[str]:
    """The pieces of a tokenizer that mtkit did not train, in the order of their ids.

    `content` is the content of the vocabulary file at `path`. Raises CheckpointError if the content is damaged.
    """
    try:
        pieces = json.loads(content)
    except (ValueError, RecursionError):
        pieces = None
    if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
        raise CheckpointError(f"{path}: damaged; copy it again")
    return pieces


def _read_file(files: Mapping[str, bytes], path: Path, sha256: str) -> bytes:
    """Returns `files[path.name]`, the content of a file.

    Raises CheckpointError if the file is missing or its checksum is not `sha256`.
    """
    if path.name not in files:
        raise CheckpointError(f"{path}: missing; copy it again or train the tokenizer again")
    model = files[path.name]
    if hashlib.sha256(model).hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: damaged or changed ({len(model):,} bytes that are not what {SETTINGS_FILE} tells of); "
            "copy it again or train the tokenizer again"
        )
    return model


def _check_model(model: bytes, path: Path, mapped: bool) -> None:
    """Raise CheckpointError if `model` is no SentencePiece model, or has other special ids than mtkit's.

    With `mapped=True`, mtkit did not train the tokenizer, and any special ids are accepted.
    """
    try:
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise CheckpointError(f"{path}: not a SentencePiece model") from None
    if mapped:
        return
    found = [processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()]
    if found != [PAD, UNKNOWN, BEGIN, END]:
        raise CheckpointError(
            f"{path}: its padding, unknown, begin and end ids are {found}; mtkit wants {[PAD, UNKNOWN, BEGIN, END]}"
        )


# Making tokenizers.

# SentencePiece stores positions within a word in 16 bits; longer words are truncated for training.
MAX_WORD_CHARACTERS = 16_000
MAX_SENTENCE_BYTES = 65_536  # more than MAX_WORD_CHARACTERS take in UTF-8, with the count of the word

# Puts a space in place of each character that has a special meaning when SentencePiece is trained.
UNTRAINABLE = str.maketrans(dict.fromkeys("\x00\t\u2585", " "))

# SentencePiece itself splits off only ASCII and full-width digits. Any other digit is put between two BOUNDARY
# characters, which no piece may cross.
OTHER_DIGIT = re.compile(r"(?![0-9\uff10-\uff19])\d")
BOUNDARY = "\ufdd1"  # a Unicode noncharacter, which no text contains

RESERVED = re.compile(r"<pad>|<unk>|<s>|</s>|<0x[0-9A-F]{2}>")

Lines = Callable[[], Iterable[str]]  # returns a new iterator at each call
Side = Literal["shared", "source", "target"]


@dataclass(frozen=True)
class VocabularyReport:
    """Figures about the training of one SentencePiece model."""

    side: Side
    type: str
    pieces_asked: int  # the vocabulary size in the settings
    pieces_made: int  # the vocabulary size of the model
    lines_seen: int  # lines that the model was trained on: the sample without its blank lines
    lines_offered: int  # all lines of the text


def train_tokenizer(
    source: Lines, target: Lines, settings: TokenizerConfig, directory: Path, tags: Sequence[str] = ()
) -> list[VocabularyReport]:
    """Train a tokenizer and save it in `directory`; returns a report for each SentencePiece model trained.

    If settings.shared is true, one model is trained on source and target text together. Otherwise, one model is trained
    on source text and one on target text. `source` and `target` are functions that return a new iterator over the lines
    at each call; each function is called twice. `tags` are words of the source that become one piece each, even if they
    do not occur in the lines. The same lines and settings give files with the same bytes. Raises ConfigError for
    unsuitable settings, tags and symbols, and DataError if there is no text.
    """
    for side, rule in (("source", settings.source_normalization), ("target", settings.target_normalization)):
        if rule == "model":
            raise ConfigError(
                f"tokenizer.{side}_normalization model is of tokenizers that come from elsewhere; a new one wants "
                "identity, nfkc, nmt_nfkc or nmt_nfkc_zwnj"
            )
    symbols = settings.symbols
    apart = symbols if settings.type == "word" else ()
    normalize_source = Normalizer(settings.source_normalization, apart)
    normalize_target = Normalizer(settings.target_normalization, apart)
    _check_tags(tags, normalize_source)
    check_symbols(symbols, {"source": normalize_source, "target": normalize_target})
    normalized_source, normalized_target = _normalized(source, normalize_source), _normalized(target, normalize_target)
    if settings.shared:
        model, report = _train_model(
            "shared", lambda: chain(normalized_source(), normalized_target()), settings, [*tags, *symbols]
        )
        models, reports = (model, model), [report]
    else:
        source_model, source_report = _train_model("source", normalized_source, settings, [*tags, *symbols])
        target_model, target_report = _train_model("target", normalized_target, settings, symbols)
        models, reports = (source_model, target_model), [source_report, target_report]
    Tokenizer(
        *models,
        type_=settings.type,
        shared=settings.shared,
        source_normalization=settings.source_normalization,
        target_normalization=settings.target_normalization,
        tags=tags,
        symbols=symbols,
    ).save(directory)
    return reports


def _check_tags(tags: Sequence[str], normalizer: Normalizer) -> None:
    """Raise ConfigError for tags that normalisation would change, or that are reserved names such as <s>."""
    for tag in tags:
        if normalizer(tag) != tag:
            raise ConfigError(
                f"tag {tag}: becomes {normalizer(tag) or 'nothing'} by tokenizer.source_normalization; "
                "take another tag, such as <2de>"
            )
        if RESERVED.fullmatch(tag):
            raise ConfigError(f"tag {tag}: every vocabulary has a piece of that name; take another, such as <2de>")


def check_symbols(symbols: Sequence[str], normalizers: Mapping[str, Callable[[str], str]]) -> None:
    """Raise ConfigError for symbols that normalisation would change, or that are reserved names such as <s>.

    `symbols` are texts that are never split. `normalizers` maps the name of each side (source or target) to a function
    that normalises a text.
    """
    for symbol in symbols:
        for side, normalizer in normalizers.items():
            if normalizer(symbol) != symbol:
                raise ConfigError(
                    f"tokenizer.symbols: {symbol} becomes {normalizer(symbol) or 'nothing'} by "
                    f"tokenizer.{side}_normalization; take another, such as <url>"
                )
        if RESERVED.fullmatch(symbol):
            raise ConfigError(
                f"tokenizer.symbols: every vocabulary has a piece of the name {symbol}; take another, such as <url>"
            )


def _train_model(
    side: Side, lines: Lines, settings: TokenizerConfig, symbols: Sequence[str]
) -> tuple[bytes, VocabularyReport]:
    """Train a SentencePiece model on `lines`; returns the model as bytes, and a report.

    `side` is "source", "target" or, for a model that source and target share, "shared". Raises DataError if all lines
    are blank, and ConfigError if the vocabulary size or coverage is too small.
    """
    num_lines = sum(1 for _ in lines())
    words, lines_seen = _count_words(_sample(lines(), num_lines, settings.sample_lines))
    if not words:
        raise DataError(f"the training {_text(side)} is empty or blank; a tokenizer needs some to be trained on")
    size_name, size = settings.size_of("target" if side == "target" else "source")
    try:
        model = _sentencepiece_model(words, settings, size, symbols)
    except RuntimeError as error:
        if "KeyboardInterrupt" in str(error):
            raise KeyboardInterrupt from None
        if found := re.search(r"SignalError: (\d+)", str(error)):
            raise SignalError(int(found[1])) from None
        too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if not too_small:
            raise
        raise ConfigError(
            f"tokenizer.{size_name} {size} is too small for the characters of the training "
            f"{_text(side)}; set it to {too_small[1]} or more, or lower tokenizer.character_coverage"
        ) from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces_made = processor.vocab_size()
    if settings.type != "word" and processor.piece_to_id(SPACE_MARK) == UNKNOWN:
        # Only type char leaves out characters within the coverage when the vocabulary is full.
        is_full = settings.type == "char" and pieces_made == size
        setting = f"{size_name} {size}" if is_full else f"character_coverage {settings.character_coverage}"
        raise ConfigError(
            f"tokenizer.{setting} leaves no piece for the space in the training {_text(side)}; set it higher"
        )
    return model, VocabularyReport(side, settings.type, size, pieces_made, lines_seen, num_lines)


def _sentencepiece_model(
    words: Mapping[str, int], settings: TokenizerConfig, size: int, symbols: Sequence[str]
) -> bytes:
    """Train a SentencePiece model; returns the model as bytes.

    `words` maps words to their counts. The model has at most `size` pieces. Each of `symbols` becomes a piece that is
    never split. Raises RuntimeError if SentencePiece fails.
    """
    model = io.BytesIO()
    # Within words, SentencePiece would replace characters that are not covered; such words would never match a text.
    coverage = 1.0 if settings.type == "word" else settings.character_coverage
    # Options are set only if they have an effect, so that models have the same bytes as with earlier versions of mtkit.
    options: dict[str, Any] = {} if settings.spells_bytes else {"unk_surface": UNKNOWN_TEXT}
    most_bytes = MAX_SENTENCE_BYTES
    if settings.split_digits and settings.type != "char":
        options |= {"split_digits": True, "pretokenization_delimiter": BOUNDARY}
        words = {OTHER_DIGIT.sub(rf"{BOUNDARY}\g<0>{BOUNDARY}", word): count for word, count in words.items()}
        most_bytes *= 1 + 2 * len(BOUNDARY.encode())
    sentencepiece.SentencePieceTrainer.train(
        # SentencePiece hides errors in this generator; only signals, such as Ctrl-C, can cause one.
        sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
        input_format="tsv",
        model_writer=model,
        model_type=settings.type,
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=coverage,
        byte_fallback=settings.spells_bytes,
        normalization_rule_name="identity",
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        user_defined_symbols=list(symbols),
        max_sentence_length=most_bytes,
        num_threads=1,  # the number is stored in the model, whose bytes must not depend on the machine
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _text(side: Side) -> str:
    return "text" if side == "shared" else f"{side} text"


def _count_words(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """Returns (the count of each word, the number of lines that are not blank).

    SentencePiece learns the same model from word counts as from lines, but needs less memory.
    """
    words: Counter[str] = Counter()
    num_lines = 0
    for line in lines:
        found = [word[:MAX_WORD_CHARACTERS] for word in line.translate(UNTRAINABLE).split(" ") if word]
        words.update(found)
        num_lines += bool(found)
    return words, num_lines


def _normalized(lines: Lines, normalizer: Normalizer) -> Lines:
    return lambda: map(normalizer, lines())


def _sample(lines: Iterable[str], num_lines: int, most: int) -> Iterator[str]:
    """Yields a uniform random sample of `lines`, in their order; the same lines always give the same sample.

    `num_lines` is the number of `lines`, `most` the largest size of the sample. The sample is drawn by Knuth's
    algorithm S (volume 2, section 3.4.2), since SentencePiece's own sampling is not reproducible.
    """
    rng = random.Random(0)
    wanted = min(most, num_lines)
    for index, line in enumerate(lines):
        if rng.random() * (num_lines - index) < wanted:
            wanted -= 1
            yield line


# Tokenizers from existing SentencePiece models (the setting tokenizer.model), whose pieces keep their ids.

# Names of the special tokens that are added to a model that lacks them.
PAD_TEXT, BEGIN_TEXT, END_TEXT = "<pad>", "<s>", "</s>"


def read_model(path: Path) -> bytes:
    """The content of the SentencePiece model file at `path`.

    Raises ConfigError if the file cannot be read or is no SentencePiece model.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"tokenizer.model {path}: no such file; wants a SentencePiece model") from None
    except IsADirectoryError:
        raise ConfigError(f"tokenizer.model {path}: is a folder; name the SentencePiece model in it") from None
    except OSError as error:
        raise ConfigError(f"tokenizer.model {path}: cannot be read: {error.strerror or error}") from None
    if not _is_model(content):
        beside = path.with_suffix(".model")
        if path.suffix == ".vocab":
            raise ConfigError(f"tokenizer.model {path}: is a list of pieces and no model; name {beside} instead")
        raise ConfigError(f"tokenizer.model {path}: is no SentencePiece model, or damaged; wants FILE.model")
    return content


def _is_model(content: bytes) -> bool:
    try:
        if not pieces_of(content):
            return False
        model_type_of(content)
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except (ValueError, RuntimeError):
        return False
    return True


def existing_tokenizer(
    source: Path, target: Path, shared: bool, tags: Sequence[str] = (), symbols: Sequence[str] = ()
) -> Tokenizer:
    """Create a tokenizer from the SentencePiece models in the files `source` and `target`.

    `shared` means that source and target share one vocabulary. `tags` are words that a source line may begin with;
    `symbols` are texts in source and target that are never split. If a model lacks tags, symbols, or the padding, begin
    or end token, these are added after the model's own pieces. Raises ConfigError for unsuitable models, tags and
    symbols.
    """
    for_target = [*tags, *symbols] if shared else symbols
    source_model, source_special = _completed(source, [*tags, *symbols])
    target_model, target_special = _completed(target, for_target)
    types = model_type_of(source_model), model_type_of(target_model)
    if types[0] != types[1]:
        raise ConfigError(
            f"tokenizer.model: {source} is of type {types[0]} and {target} of type {types[1]}; wants two of one type"
        )
    return Tokenizer(
        source_model,
        target_model,
        type_=types[0],
        shared=shared,
        source_normalization="model",
        target_normalization="model",
        tags=tags,
        vocabularies=([piece.text for piece in pieces_of(source_model)], [p.text for p in pieces_of(target_model)]),
        specials=Specials(source_special, target_special),
        symbols=symbols,
    )


def _completed(path: Path, symbols: Sequence[str]) -> tuple[bytes, SpecialIds]:
    """Reads the SentencePiece model at `path`, and adds special tokens and `symbols` that the model lacks.

    Returns the changed model as bytes, and the ids of its special tokens.
    """
    model = read_model(path)
    _check_whole(model, path, symbols)
    processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    used = [processor.unk_id()]
    new: list[Piece] = []
    pieces = {piece.text for piece in pieces_of(model)}
    for text, id_ in (
        (PAD_TEXT, processor.pad_id()),
        (BEGIN_TEXT, processor.bos_id()),
        (END_TEXT, processor.eos_id()),
    ):
        if id_ < 0 or id_ in used:
            while text in pieces or text in symbols:
                text = f"{text[:-1]}_>"
            id_ = processor.vocab_size() + len(new)
            new.append(Piece(text, 0.0, "control"))
        used.append(id_)
    unknown, pad, begin, end = used
    model = with_pieces(model, new) if new else model
    model = with_defined(model, symbols) if symbols else model
    return model, SpecialIds(pad, unknown, begin, end)


def _check_whole(model: bytes, path: Path, symbols: Sequence[str]) -> None:
    """Raise ConfigError if one of `symbols` cannot become a piece of its own in `model`.

    `path` is the file of the model, for messages.
    """
    if symbols and model_type_of(model) == "word":
        raise ConfigError(
            f"tokenizer.model {path}: is of type word, which can be given no tags and symbols; found {symbols[0]}"
        )
    types = {piece.text: piece.type for piece in pieces_of(model)}
    for symbol in symbols:
        if SPACE_MARK in symbol or types.get(symbol, "normal") not in ("normal", "user_defined"):
            what = "holds the mark of a space" if SPACE_MARK in symbol else "is no text to the model"
            raise ConfigError(f"tokenizer.model {path}: {symbol} {what}; take another tag or symbol")


def check_sampling(tokenizer: Tokenizer, settings: TokenizerConfig, bpe_dropout: float, alpha: float | None) -> None:
    """Raise ConfigError if the tokenizer cannot produce the random segmentations that the settings ask for.

    `bpe_dropout` and `alpha` are the values of training.bpe_dropout and training.unigram_alpha; if they are 0 and
    `None`, no random segmentations are asked for. Only tokenizers that mtkit did not train are checked. `settings` are
    the settings of the tokenizer; they are used to name the tokenizer in the message.
    """
    if not tokenizer.is_mapped or not (bpe_dropout or alpha is not None):
        return
    wanted, setting = ("bpe", f"bpe_dropout {bpe_dropout}") if bpe_dropout else ("unigram", f"unigram_alpha {alpha}")
    where = settings.model and ", ".join(dict.fromkeys(map(str, settings.models().values())))
    name = f"tokenizer.model {where}" if where else "the tokenizer of the model to start from"
    if tokenizer.type != wanted:
        raise ConfigError(f"training.{setting} wants a tokenizer of type {wanted}, and {name} is of {tokenizer.type}")
    if not all(cuts_at_spaces(model) for model in tokenizer.models):
        raise ConfigError(
            f"training.{setting} draws the pieces of each word by itself, and {name} does not cut text at its spaces; "
            "leave it out"
        )


def bundled_settings(settings: TokenizerConfig, tokenizer: Tokenizer) -> TokenizerConfig:
    """The tokenizer settings to store in a model bundle.

    Returns `settings` unchanged unless tokenizer.model names an existing SentencePiece model. In that case, the
    returned settings name no model; they give the type, the vocabulary size and other properties of `tokenizer`.
    """
    if settings.model is None:
        return settings
    return TokenizerConfig(
        type=tokenizer.type,
        vocab_size=max(tokenizer.source_vocab_size, tokenizer.target_vocab_size, LEAST_WITH_BYTES),
        byte_fallback=not tokenizer.target_shows_unknown,
        shared=tokenizer.is_shared,
        symbols=tokenizer.symbols,
        source_normalization="model",
        target_normalization="model",
    )


# Adding pieces to a tokenizer: characters of a new language, words to keep whole, tags.


def extended(tokenizer: Tokenizer, pieces: Sequence[str], tags: Sequence[str]) -> Tokenizer:
    """A copy of `tokenizer` with new pieces and tags; the old pieces keep their ids.

    The new pieces and tags come after the old pieces. A single character becomes an ordinary piece; a longer text
    becomes a piece that is never split. Tags are added to the source vocabulary only, unless source and target share
    one vocabulary. Raises ConfigError for pieces and tags that cannot be added.
    """
    _check_new(tokenizer, [*pieces, *tags])
    all_tags = (*tokenizer.tags, *tags)
    source_model, target_model = tokenizer.models
    if tokenizer.is_mapped:
        source = tokenizer.source_pieces(range(tokenizer.source_vocab_size))
        target = tokenizer.target_pieces(range(tokenizer.target_vocab_size))
        vocabularies = [*source, *pieces, *tags], [*target, *pieces, *(tags if tokenizer.is_shared else ())]
        return tokenizer.with_models((_with(source_model, pieces), _with(target_model, pieces)), vocabularies, all_tags)
    source_model = _with(source_model, [*pieces, *tags])
    target_model = source_model if tokenizer.is_shared else _with(target_model, pieces)
    return tokenizer.with_models((source_model, target_model), None, all_tags)


def without_last(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """A copy of `tokenizer` without the last `count` target pieces, which `extended` added.

    The copy encodes target text as the tokenizer did before the pieces were added. The copy must not be used for source
    text.
    """
    new = set(tokenizer.target_pieces(range(tokenizer.target_vocab_size - count, tokenizer.target_vocab_size)))
    model = tokenizer.models[1]
    texts = [piece.text for piece in pieces_of(model)]
    if not tokenizer.is_mapped:
        model = without_last_pieces(model, count)
        return tokenizer.with_models((model, model), None, ())
    kept = len(texts)  # the model may have had some of the pieces before, so fewer than `count` were added to it
    while texts[kept - 1] in new:
        kept -= 1
    vocabulary = tokenizer.target_pieces(range(tokenizer.target_vocab_size - count))
    return tokenizer.with_models((model, without_last_pieces(model, len(texts) - kept)), (vocabulary, vocabulary), ())


def fault_of_new(tokenizer: Tokenizer, piece: str) -> str | None:
    """An error message on why `piece`, a piece or tag, cannot be added to the tokenizer; `None` if it can be added."""
    return _fault(tokenizer, _known(tokenizer), piece)


def _check_new(tokenizer: Tokenizer, new: Sequence[str]) -> None:
    """Raise ConfigError if a piece in `new` cannot be added, or occurs twice."""
    known = _known(tokenizer)
    for piece in new:
        if fault := _fault(tokenizer, known, piece):
            raise ConfigError(fault)
        known.add(piece)


def _known(tokenizer: Tokenizer) -> set[str]:
    return {
        *tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
        *tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
    }


def _fault(tokenizer: Tokenizer, known: Container[str], piece: str) -> str | None:
    if not piece or SPACE_MARK in piece or any(character.isspace() for character in piece):
        return f"piece {piece!r}: is blank or holds a space; a piece is a part of a word"
    if (normal := tokenizer.normalize_source(piece)) != piece:
        return f"piece {piece}: becomes {normal or 'nothing'} when the tokenizer normalises it; take that"
    if piece in known:
        return f"piece {piece}: the vocabulary has it already; leave it out"
    if symbol := next((symbol for symbol in tokenizer.symbols if _splits(piece, symbol)), None):
        return f"piece {piece}: would split {symbol} of tokenizer.symbols, which is never split"
    return None


def _splits(piece: str, symbol: str) -> bool:
    """Whether `piece` contains `symbol`, or ends in the beginning of `symbol`.

    If the tokenizer found such a piece in a text, it might fail to find the symbol that the piece overlaps.
    """
    return symbol in piece or any(piece.endswith(symbol[:length]) for length in range(1, len(symbol)))


def _with(model: bytes, new: Sequence[str]) -> bytes:
    """`model` with the texts in `new` added as pieces, except those that are already pieces of `model`.

    A single character gets the lowest score, so that adding it does not change how other text is segmented.
    """
    old = pieces_of(model)
    least = min(piece.score for piece in old) - 1.0
    there = {piece.text for piece in old}
    return with_pieces(
        model,
        [
            Piece(text, least, "normal") if len(text) == 1 else Piece(text, 0.0, "user_defined")
            for text in new
            if text not in there
        ],
    )
