"""The tokenizer, which converts text to ids and back and can be saved and loaded.

The text of each side is normalised by that side's own rule before the SentencePiece model segments it, so one model can
serve both sides.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any

import sentencepiece

from mtkit.config.data_settings import TokenizerConfig
from mtkit.errors import CheckpointError
from mtkit.text.segmentation import (
    SPACE_MARK,
    BulkEncoder,
    Encoded,
    SegmentationSampler,
    SubwordModel,
    bpe_dropout,
    group_by_word,
    unigram_sampling,
)
from mtkit.text.vocabulary import (
    BEGIN,
    END,
    NUM_SPECIAL,
    PAD,
    UNKNOWN,
    UNKNOWN_TEXT,
    MappedModel,
    ModelType,
    SpecialIds,
    Specials,
    charsmap_of,
    cuts_at_spaces,
    encodable,
    model_type_of,
    normalizer_of,
    pieces_of,
    rule_keeping,
    rule_marking_spaces,
    with_normalizer,
    with_unknown,
)

FORMAT = 1
SETTINGS_FILE = "tokenizer.json"

# Normalisation rules that are like one of SentencePiece's rules but keep one character: (that rule, the character).
# U+200C, the zero width non-joiner, is used within words in Persian, Telugu, Tamil and other languages.
RULES_KEEPING = {"nmt_nfkc_zwnj": ("nmt_nfkc", "\u200c")}


class Tokenizer:
    """Converts text to ids and back, for both sides.

    Encoding adds no special tokens, and decoding leaves them out. Decoding the ids of a text returns the normalised
    text: with the side's normalisation rule applied, spaces stripped and collapsed, and SentencePiece's space marks (▁)
    turned into spaces. Unless the model has byte fallback, each word or run of characters for which there is no piece
    becomes <unk>.
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

        For a shared tokenizer that mtkit trained, both models must be the same. `tags` are words that a source line may
        begin with and that tell a multilingual model what to produce. `symbols` are placeholders that may occur
        anywhere on both sides. Each tag and each symbol is one piece.

        A tokenizer that mtkit did not train (`is_mapped`) has its own ids for the pieces: `vocabularies` are the pieces
        of source and target in the order of their ids, and `specials` has the ids of the special tokens. In that case,
        the two models themselves normalise text, and `source_normalization` and `target_normalization` are "model".
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

        Raises the errors that `load` raises; `directory` is only used in error messages.
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

        `vocabularies` are the new vocabularies of a tokenizer that mtkit did not train (`is_mapped`); for any other
        tokenizer, `vocabularies` must be `None`.
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
        """The SentencePiece models of source and target, as bytes; the same model twice if both sides share it."""
        names = _model_names(self._description.shared, self._description.is_mapped)
        return self._models[names[0]], self._models[names[-1]]

    @property
    def type(self) -> ModelType:
        """The segmentation algorithm: unigram, bpe, word or char."""
        return self._description.type

    @property
    def is_shared(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self._description.shared

    @property
    def is_mapped(self) -> bool:
        """Whether the tokenizer has its own ids for the pieces, that is, was not trained by mtkit.

        The ids of any other tokenizer are those of its SentencePiece models.
        """
        return self._description.is_mapped

    def encode_source(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each source line; an empty list for a line that is blank after normalisation."""
        return self._source.encode(lines, num_threads)

    def encode_target(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each target line; an empty list for a line that is blank after normalisation."""
        return self._target.encode(lines, num_threads)

    def bulk_encode_source(self, lines: Sequence[str], num_threads: int = 1) -> Encoded:
        """The ids that `encode_source` returns, for large amounts of text: much faster, and in less memory.

        A word that came before is looked up, if the tokenizer segments words by themselves.
        """
        return self._bulk_source.encode(lines, num_threads)

    def bulk_encode_target(self, lines: Sequence[str], num_threads: int = 1) -> Encoded:
        """The ids that `encode_target` returns, as `bulk_encode_source` gives them."""
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

        For unigram, a segmentation is sampled in proportion to p ** `alpha`, where p is its probability under the model
        (Kudo 2018, section 3.2): from the `nbest` best segmentations or, with `nbest=-1`, from all of them.

        The same arguments give the same ids.
        """
        return self._sampler(self._source, alpha, nbest)(texts, seed)

    def sample_target(self, texts: Sequence[str], alpha: float, nbest: int, seed: int) -> list[list[int]]:
        """The ids of each target text, segmented at random as `sample_source` does.

        The texts must come from `normalize_target`.
        """
        return self._sampler(self._target, alpha, nbest)(texts, seed)

    def _sampler(self, model: "_Model | MappedModel", alpha: float, nbest: int) -> SegmentationSampler:
        """The sampler of segmentations for these arguments; equal arguments give the same sampler again."""
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
        """The text of each row of target ids, decoded as `decode_source` does.

        If `unknown_texts` is given, it has one list of texts for each row, and the n-th unknown token of a row is shown
        as the n-th text in the list for that row.
        """
        return self._target.decode(tokens, unknown_texts)

    def source_words(self, lines: Sequence[str]) -> list[list[str]]:
        """For each line, the words to which its tokens belong: one word for each id that `encode_source` returns."""
        return [_word_of_each(row) for row in self._source.pieces_of_lines(lines)]

    def target_texts(self, lines: Sequence[str]) -> list[list[str]]:
        """For each line, the texts of its tokens: one text for each id that `encode_target` returns.

        The text of a known token is its piece; the text of an unknown token is the part of the line that became this
        token. A space mark (▁) at the beginning of a text is left out.
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
        """A SentencePiece model for target lines, like that of `source_sentencepiece` for source lines."""
        return self._target.sentencepiece_model()

    def source_scores(self) -> list[float]:
        """SentencePiece's scores of the source pieces, by id.

        For unigram, the scores are log-probabilities; for bpe, they are negative ranks of merges.
        """
        return self._source.scores()

    def target_scores(self) -> list[float]:
        """SentencePiece's scores of the target pieces, by id; `source_scores` explains the scores."""
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
        """`rule_name` is the name of a rule in the settings; spaces are put around the texts in `apart`."""
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
    """SentencePiece's normalizer for the rule called `name`; it collapses spaces and writes no space marks (▁)."""
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
    """A SentencePiece model that mtkit trained, together with the normalisation of the side that uses it."""

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
        """The pieces for sampling segmentations, without special and byte pieces; `symbols` are never split."""
        processor = self._processor
        ids = {
            processor.id_to_piece(id_): id_
            for id_ in range(NUM_SPECIAL, self.vocab_size)
            if not (processor.is_byte(id_) or processor.is_unused(id_) or processor.is_control(id_))
        }
        scores = {piece: processor.get_score(id_) for piece, id_ in ids.items()}
        return SubwordModel(ids, scores, symbols, lambda word: processor.encode(word, out_type=int))

    def pieces_of_lines(self, lines: Sequence[str]) -> list[list[str]]:
        """The pieces of each line; an unknown piece is given as its text, not as <unk>."""
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
        """The model as bytes, with the normalisation of its side included."""
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
    """For each piece of a line, the word that the piece belongs to, without space marks (▁)."""
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
    """Whether SentencePiece segments each word of a line as if it were the whole line.

    True only for bpe and char, and only if the model cuts text at its spaces, has no compiled normalisation rule, and
    has no piece with a space or a space mark (▁) after its first character. The model must also have a piece for the
    space mark: without one, an unknown token might include the mark and the unknown word before it. For unigram, it is
    not certain: the sums of log-probabilities are rounded, so that two segmentations of a word that are about as
    probable may change places.
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
    """The content of tokenizer.json: for each key except `format` and `hash`, a field of the same name."""

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
        """Whether the tokenizer has its own ids for the pieces, that is, was not trained by mtkit."""
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
    """The values of the special ids of one side; if the begin id is `None`, it is left out."""
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
    """The content `files[path.name]`; raises CheckpointError if it is missing or has a checksum other than `sha256`."""
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
    """Raise CheckpointError if `model` is no SentencePiece model, or if its special ids are not mtkit's.

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
