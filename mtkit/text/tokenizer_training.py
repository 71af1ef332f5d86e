"""Creates tokenizers: trains SentencePiece models, takes over existing models, and adds pieces to a tokenizer."""

import io
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from mtkit.config.data_settings import LEAST_WITH_BYTES, TokenizerConfig
from mtkit.errors import ConfigError, DataError, SignalError
from mtkit.text.segmentation import SPACE_MARK
from mtkit.text.tokenizer import Normalizer, Tokenizer
from mtkit.text.vocabulary import (
    BEGIN,
    END,
    PAD,
    UNKNOWN,
    UNKNOWN_TEXT,
    Piece,
    SpecialIds,
    Specials,
    cuts_at_spaces,
    model_type_of,
    pieces_of,
    with_defined,
    with_pieces,
    without_last_pieces,
)

# SentencePiece stores positions within a word in 16 bits; longer words are truncated for training.
MAX_WORD_CHARACTERS = 16_000
MAX_SENTENCE_BYTES = 65_536  # more than a word of that length takes in UTF-8, with its count

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

    If settings.shared is true, one model is trained on both sides, else one on each side. `source` and `target` are
    functions that return a new iterator over the lines at each call; each function is called twice. The same lines and
    settings give files with the same bytes. `tags` are words of the source that become one piece each, even if they do
    not occur in the lines. Raises ConfigError for unsuitable settings, tags and symbols, and DataError if there is no
    text.
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
    """Raise ConfigError for symbols that a side's normalisation would change, or that are reserved names such as <s>.

    `normalizers` maps the name of each side to its normalisation function.
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
    """Train the SentencePiece model of one side, or of both (side "shared"); returns the model as bytes, and a report.

    Raises DataError if all lines are blank, and ConfigError if the vocabulary size or coverage is too small.
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
    """Train a SentencePiece model on words with their counts; returns the model as bytes.

    Raises RuntimeError if SentencePiece fails.
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
    """Yields a uniform random sample of at most `most` of the `num_lines` lines, in order; always the same sample.

    The sample is drawn by Knuth's algorithm S (volume 2, section 3.4.2), since SentencePiece's own sampling is not
    reproducible.
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
    """Create a tokenizer from the SentencePiece models in two files.

    `shared` means that both sides share one vocabulary. `tags` are words of the source; `symbols` occur on both sides.
    Tags, symbols, and padding, begin and end tokens that a model lacks are added after the model's own pieces. Raises
    ConfigError for unsuitable models, tags and symbols.
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
    """Reads a model, and adds missing special tokens and symbols; returns the model as bytes, and its special ids."""
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
    """Raise ConfigError for symbols that the model in the file at `path` cannot keep as one piece."""
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

    Only tokenizers that mtkit did not train are checked. `bpe_dropout=0` and `alpha=None` ask for no random
    segmentations.
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

    If the setting tokenizer.model names an existing SentencePiece model, this setting is left out. Instead, the type,
    the vocabulary size and other settings are those of `tokenizer`.
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
    """A copy of `tokenizer` with new pieces and tags added after its own pieces, which keep their ids.

    A single character becomes an ordinary piece; a longer text becomes a piece that is never split. Tags are added to
    the source vocabulary only, unless both sides share one vocabulary. Raises ConfigError for pieces and tags that
    cannot be added.
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

    The copy encodes target text as the tokenizer did before these pieces were added. The source side of the copy must
    not be used.
    """
    new = set(tokenizer.target_pieces(range(tokenizer.target_vocab_size - count, tokenizer.target_vocab_size)))
    model = tokenizer.models[1]
    texts = [piece.text for piece in pieces_of(model)]
    if not tokenizer.is_mapped:
        model = without_last_pieces(model, count)
        return tokenizer.with_models((model, model), None, ())
    kept = len(texts)  # a model from elsewhere may have had some of the pieces before, so fewer were added
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
    """Whether, in some text, `piece` could overlap an occurrence of `symbol`, so that the symbol would not be found."""
    return symbol in piece or any(piece.endswith(symbol[:length]) for length in range(1, len(symbol)))


def _with(model: bytes, new: Sequence[str]) -> bytes:
    """`model` with the pieces in `new` added, except those that `model` already has.

    Single characters get the lowest score, so that they do not change how other text is segmented.
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
