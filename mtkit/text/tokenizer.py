"""Text to ids and back: the home of sentencepiece.

Each side's text is normalised by its own rule before any model sees it, so one model can serve two sides. The models
leave text as it is ("identity") and spell in bytes what has no piece, so no text is unknown to them.
"""

import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mtkit.config.settings import TokenizerConfig
from mtkit.errors import CheckpointError, ConfigError, DataError
from mtkit.symbols import BEGIN, END, NUM_SPECIAL, PAD, UNKNOWN

FORMAT = 1
SETTINGS_FILE = "tokenizer.json"

# SentencePiece holds a place in a word in 16 bits; what goes beyond is cut off for training.
MAX_WORD_CHARACTERS = 16_000
MAX_SENTENCE_BYTES = 65_536  # more than such a word and its count

# The mark that SentencePiece writes spaces as, and characters that mean something else to its training.
SPACE_MARK = "\u2581"
UNTRAINABLE = str.maketrans(dict.fromkeys("\x00\t\u2585", " "))

Lines = Callable[[], Iterable[str]]  # gives a fresh iterator at each call
Side = Literal["shared", "source", "target"]


@dataclass(frozen=True)
class Vocabulary:
    """What came out of training a model."""

    side: Side
    pieces_asked: int
    pieces_made: int
    lines_seen: int
    lines_offered: int


def train_tokenizer(source: Lines, target: Lines, settings: TokenizerConfig, directory: Path) -> list[Vocabulary]:
    """Train one model on both sides, or one each, into a directory that Tokenizer.load reads.

    The same lines and settings give the same bytes. Each side is read twice for each model that it trains.
    """
    normalized_source = _normalized(source, _Normalizer(settings.source_normalization))
    normalized_target = _normalized(target, _Normalizer(settings.target_normalization))
    if settings.shared:
        model, report = _train_model("shared", lambda: chain(normalized_source(), normalized_target()), settings)
        models, reports = (model, model), [report]
    else:
        source_model, source_report = _train_model("source", normalized_source, settings)
        target_model, target_report = _train_model("target", normalized_target, settings)
        models, reports = (source_model, target_model), [source_report, target_report]
    Tokenizer(
        *models,
        shared=settings.shared,
        source_normalization=settings.source_normalization,
        target_normalization=settings.target_normalization,
    ).save(directory)
    return reports


class Tokenizer:
    """Encodes and decodes both sides.

    No special token is added or shown. Decoding what was encoded gives the normalised text: the side's rule is
    applied, spaces are stripped and made single, and the mark that SentencePiece writes spaces as is a space.
    """

    def __init__(
        self,
        source_model: bytes,
        target_model: bytes,
        shared: bool,
        source_normalization: str,
        target_normalization: str,
    ) -> None:
        """From the bytes of SentencePiece models; both are the same one where it is shared."""
        self._source = _Model(source_model, _Normalizer(source_normalization))
        self._target = _Model(target_model, _Normalizer(target_normalization))
        # Where one model is shared, there is one name, and both models are the same.
        models = dict(zip(_model_names(shared), (source_model, target_model), strict=False))
        self._models = models
        self._description = _Description(
            type="bpe",
            shared=shared,
            source_normalization=source_normalization,
            target_normalization=target_normalization,
            sha256={name: hashlib.sha256(model).hexdigest() for name, model in models.items()},
        )
        self.source_vocab_size = self._source.vocab_size
        self.target_vocab_size = self._target.vocab_size
        self.hash = self._description.hash  # of all that decides an encoding

    @staticmethod
    def load(directory: Path) -> "Tokenizer":
        """The tokenizer that a directory holds; a missing, damaged or foreign one is a CheckpointError."""
        description = _read_description(directory / SETTINGS_FILE)
        models = [_read_model(directory / name, sha256) for name, sha256 in description.sha256.items()]
        return Tokenizer(
            models[0],
            models[-1],
            shared=description.shared,
            source_normalization=description.source_normalization,
            target_normalization=description.target_normalization,
        )

    def save(self, directory: Path) -> None:
        """Write the files that load reads; the directory is made if need be."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, model in self._models.items():
            (directory / name).write_bytes(model)
        content = {"format": FORMAT, **asdict(self._description), "hash": self.hash}
        (directory / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def encode_source(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each line; a line that normalises to nothing has none."""
        return self._source.encode(lines, num_threads)

    def encode_target(self, lines: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """The ids of each line; a line that normalises to nothing has none."""
        return self._target.encode(lines, num_threads)

    def decode_source(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, special ones left out; bytes that are no UTF-8 become U+FFFD."""
        return self._source.decode(tokens)

    def decode_target(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, special ones left out; bytes that are no UTF-8 become U+FFFD."""
        return self._target.decode(tokens)

    def target_pieces(self, tokens: Sequence[int]) -> list[str]:
        """How the vocabulary writes each id, special ones too."""
        return self._target.pieces(tokens)

    def normalize_source(self, line: str) -> str:
        """What encoding and decoding a line gives."""
        return self._source.normalizer(line)

    def normalize_target(self, line: str) -> str:
        """What encoding and decoding a line gives."""
        return self._target.normalizer(line)


class _Normalizer:
    """One of SentencePiece's rules, then single spaces."""

    def __init__(self, rule_name: str) -> None:
        self._rule: Any = sentencepiece.SentencePieceNormalizer(
            rule_name=rule_name, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
        )

    def __call__(self, line: str) -> str:
        # Half of a surrogate pair has no UTF-8; it becomes a question mark.
        text: str = self._rule.normalize(line.encode("utf-8", errors="replace").decode("utf-8"))
        if SPACE_MARK in text:
            text = " ".join(word for word in text.replace(SPACE_MARK, " ").split(" ") if word)
        return text


class _Model:
    """A SentencePiece model and the normalisation of the side that it serves."""

    def __init__(self, model: bytes, normalizer: _Normalizer) -> None:
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.normalizer = normalizer
        self.vocab_size: int = self._processor.vocab_size()

    def encode(self, lines: Sequence[str], num_threads: int) -> list[list[int]]:
        texts = [self.normalizer(line) for line in lines]
        ids: list[list[int]] = self._processor.encode(texts, out_type=int, num_threads=num_threads)
        return ids

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        if not len(tokens):
            return []
        texts: list[str] = self._processor.decode([[int(id_) for id_ in row if id_ >= NUM_SPECIAL] for row in tokens])
        return texts

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(int(id_)) for id_ in tokens]


@dataclass(frozen=True)
class _Description:
    """The content of tokenizer.json but for its format and hash."""

    type: str
    shared: bool
    source_normalization: str
    target_normalization: str
    sha256: dict[str, str]

    @property
    def hash(self) -> str:
        """One checksum over the models and all that is done to text before them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _read_description(path: Path) -> _Description:
    """The checked content of tokenizer.json."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no tokenizer here ({path.name} is missing); train or copy one")
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("format")
        if found != FORMAT:
            raise CheckpointError(f"{path}: format {found!r} is unknown; this version of mtkit reads format {FORMAT}")
        expected = content.pop("hash")
        description = _Description(**content)
        TokenizerConfig.model_validate({name: value for name, value in content.items() if name != "sha256"})
        damaged = description.hash != expected or list(description.sha256) != _model_names(description.shared)
    except (ValueError, TypeError, KeyError, AttributeError):
        damaged = True
    if damaged:
        raise CheckpointError(f"{path}: damaged; copy it again or train the tokenizer again")
    return description


def _model_names(shared: bool) -> list[str]:
    return ["tokenizer.model"] if shared else ["source.model", "target.model"]


def _read_model(path: Path, sha256: str) -> bytes:
    """The bytes of a model that is whole and has the project's special ids."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy it again or train the tokenizer again")
    model = path.read_bytes()
    if hashlib.sha256(model).hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: damaged or changed ({len(model):,} bytes that are not what {SETTINGS_FILE} tells of); "
            "copy it again or train the tokenizer again"
        )
    try:
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise CheckpointError(f"{path}: not a SentencePiece model") from None
    found = [processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id()]
    if found != [PAD, UNKNOWN, BEGIN, END]:
        raise CheckpointError(
            f"{path}: its padding, unknown, begin and end ids are {found}; mtkit wants {[PAD, UNKNOWN, BEGIN, END]}"
        )
    return model


def _train_model(side: Side, lines: Lines, settings: TokenizerConfig) -> tuple[bytes, Vocabulary]:
    """The bytes of a model, and what came out."""
    num_lines = sum(1 for _ in lines())
    words, lines_seen = _count_words(_sample(lines(), num_lines, settings.sample_lines))
    if not words:
        raise DataError(f"the training {_text(side)} is empty or blank; a tokenizer needs some to be trained on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # No Python runs inside, so nothing can go wrong there that SentencePiece would hide.
            sentence_iterator=map("{}\t{}".format, words.keys(), words.values()),
            input_format="tsv",
            model_writer=model,
            model_type=settings.type,
            vocab_size=settings.vocab_size,
            hard_vocab_limit=False,
            character_coverage=settings.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            max_sentence_length=MAX_SENTENCE_BYTES,
            num_threads=1,  # it stands in the model, whose bytes must not tell machines apart
            minloglevel=2,
        )
    except RuntimeError as error:
        too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if not too_small:
            raise
        raise ConfigError(
            f"tokenizer.vocab_size {settings.vocab_size} is too small for the characters of the training "
            f"{_text(side)}; set it to {too_small[1]} or more, or lower tokenizer.character_coverage"
        ) from None
    pieces_made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()
    return model.getvalue(), Vocabulary(side, settings.vocab_size, pieces_made, lines_seen, num_lines)


def _text(side: Side) -> str:
    return "text" if side == "shared" else f"{side} text"


def _count_words(lines: Iterable[str]) -> tuple[Counter[str], int]:
    """How often each word stands in the lines, and how many lines have any.

    SentencePiece learns the same from these as from the lines, in less memory.
    """
    words: Counter[str] = Counter()
    num_lines = 0
    for line in lines:
        found = [word[:MAX_WORD_CHARACTERS] for word in line.translate(UNTRAINABLE).split(" ") if word]
        words.update(found)
        num_lines += bool(found)
    return words, num_lines


def _normalized(lines: Lines, normalizer: _Normalizer) -> Lines:
    return lambda: map(normalizer, lines())


def _sample(lines: Iterable[str], num_lines: int, most: int) -> Iterator[str]:
    """At most so many lines, each as likely, in their order (Knuth, volume 2, algorithm 3.4.2 S).

    SentencePiece's own sample is another one each time.
    """
    chance = random.Random(0)
    wanted = min(most, num_lines)
    for place, line in enumerate(lines):
        if chance.random() * (num_lines - place) < wanted:
            wanted -= 1
            yield line
