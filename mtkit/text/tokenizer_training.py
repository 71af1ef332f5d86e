"""From lines to a tokenizer: SentencePiece models, the same for the same lines and settings.

The models leave text as it is ("identity"), since each side's rule is applied before. Most spell in bytes what has no
piece, so no text is unknown to them.
"""

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mtkit.config.tokenizer_settings import TokenizerConfig
from mtkit.errors import ConfigError, DataError, SignalError
from mtkit.symbols import BEGIN, END, PAD, UNKNOWN
from mtkit.text.mapped import UNKNOWN_TEXT
from mtkit.text.segmentation import SPACE_MARK
from mtkit.text.tokenizer import Normalizer, Tokenizer

# SentencePiece holds a place in a word in 16 bits; what goes beyond is cut off for training.
MAX_WORD_CHARACTERS = 16_000
MAX_SENTENCE_BYTES = 65_536  # more than such a word and its count

# Characters that mean something else to its training.
UNTRAINABLE = str.maketrans(dict.fromkeys("\x00\t\u2585", " "))

# SentencePiece splits digits of ASCII and those of full width itself; no piece reaches over a boundary.
OTHER_DIGIT = re.compile(r"(?![0-9\uff10-\uff19])\d")
BOUNDARY = "\ufdd1"  # which Unicode keeps out of text

RESERVED = re.compile(r"<pad>|<unk>|<s>|</s>|<0x[0-9A-F]{2}>")

Lines = Callable[[], Iterable[str]]  # gives a fresh iterator at each call
Side = Literal["shared", "source", "target"]


@dataclass(frozen=True)
class Vocabulary:
    """What came out of training a model."""

    side: Side
    type: str
    pieces_asked: int
    pieces_made: int
    lines_seen: int
    lines_offered: int


def train_tokenizer(
    source: Lines, target: Lines, settings: TokenizerConfig, directory: Path, tags: Sequence[str] = ()
) -> list[Vocabulary]:
    """Train one model on both sides, or one each, into a directory that Tokenizer.load reads.

    The same lines and settings give the same bytes. Each side is read twice for each model that it trains. tags are
    words of the source that are one piece each, wherever they stand, and need not stand in the lines.
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
        symbols=tags,
        own_symbols=symbols,
    ).save(directory)
    return reports


def _check_tags(tags: Sequence[str], normalizer: Normalizer) -> None:
    """Refuse tags that no text could hold after normalisation, and those that mean something else."""
    for tag in tags:
        if normalizer(tag) != tag:
            raise ConfigError(
                f"tag {tag}: becomes {normalizer(tag) or 'nothing'} by tokenizer.source_normalization; "
                "take another tag, such as <2de>"
            )
        if RESERVED.fullmatch(tag):
            raise ConfigError(f"tag {tag}: every vocabulary has a piece of that name; take another, such as <2de>")


def check_symbols(symbols: Sequence[str], normalizers: Mapping[str, Callable[[str], str]]) -> None:
    """The same for symbols of both sides; normalizers are those of the sides."""
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
) -> tuple[bytes, Vocabulary]:
    """The bytes of a model, and what came out."""
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
        # Only char leaves out characters that the coverage asks for.
        is_full = settings.type == "char" and pieces_made == size
        setting = f"{size_name} {size}" if is_full else f"character_coverage {settings.character_coverage}"
        raise ConfigError(
            f"tokenizer.{setting} leaves no piece for the space in the training {_text(side)}; set it higher"
        )
    return model, Vocabulary(side, settings.type, size, pieces_made, lines_seen, num_lines)


def _sentencepiece_model(
    words: Mapping[str, int], settings: TokenizerConfig, size: int, symbols: Sequence[str]
) -> bytes:
    """What SentencePiece makes of words and how often they stand in the text; it tells problems as RuntimeErrors."""
    model = io.BytesIO()
    # Words whose rare letters SentencePiece blots out would be known by nobody.
    coverage = 1.0 if settings.type == "word" else settings.character_coverage
    # Left at their defaults where they mean nothing, so that models of an earlier mtkit have the same bytes.
    options: dict[str, Any] = {} if settings.spells_bytes else {"unk_surface": UNKNOWN_TEXT}
    most_bytes = MAX_SENTENCE_BYTES
    if settings.split_digits and settings.type != "char":
        options |= {"split_digits": True, "pretokenization_delimiter": BOUNDARY}
        words = {OTHER_DIGIT.sub(rf"{BOUNDARY}\g<0>{BOUNDARY}", word): count for word, count in words.items()}
        most_bytes *= 1 + 2 * len(BOUNDARY.encode())
    sentencepiece.SentencePieceTrainer.train(
        # Nothing can go wrong in there that SentencePiece would hide, but for Ctrl-C.
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
        num_threads=1,  # it stands in the model, whose bytes must not tell machines apart
        minloglevel=2,
        **options,
    )
    return model.getvalue()


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


def _normalized(lines: Lines, normalizer: Normalizer) -> Lines:
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
