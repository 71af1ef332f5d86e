"""SentencePiece models that are there already, made the tokenizer of a run. Their pieces keep their ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from mtkit.config.tokenizer_settings import LEAST_WITH_BYTES, TokenizerConfig
from mtkit.errors import ConfigError
from mtkit.model_proto import Piece, cuts_at_spaces, model_type_of, pieces_of, with_defined, with_pieces
from mtkit.symbols import SpecialIds, Specials
from mtkit.text.segmentation import SPACE_MARK
from mtkit.text.tokenizer import Tokenizer

# What the marks are called that a model may lack.
PAD_TEXT, BEGIN_TEXT, END_TEXT = "<pad>", "<s>", "</s>"


def read_model(path: Path) -> bytes:
    """The bytes of a SentencePiece model; any other file, and one that is missing, is a ConfigError."""
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
    """The tokenizer that SentencePiece models make, the same one for both sides where it is shared.

    tags are words of the source, symbols stand on both sides; what a model lacks of them, and of padding, begin and
    end mark, gets ids behind its own.
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
        symbols=tags,
        vocabularies=([piece.text for piece in pieces_of(source_model)], [p.text for p in pieces_of(target_model)]),
        specials=Specials(source_special, target_special),
        own_symbols=symbols,
    )


def _completed(path: Path, symbols: Sequence[str]) -> tuple[bytes, SpecialIds]:
    """The model with all that a tokenizer needs, and its special ids."""
    model = read_model(path)
    _check_symbols(model, path, symbols)
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


def _check_symbols(model: bytes, path: Path, symbols: Sequence[str]) -> None:
    """Refuse what a model cannot keep whole."""
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
    """Refuse to draw segmentations that a tokenizer from elsewhere would never make."""
    if not tokenizer.is_mapped or not (bpe_dropout or alpha is not None):
        return
    wanted, setting = ("bpe", f"bpe_dropout {bpe_dropout}") if bpe_dropout else ("unigram", f"unigram_alpha {alpha}")
    where = settings.model and ", ".join(dict.fromkeys(map(str, settings.models().values())))
    name = f"tokenizer.model {where}" if where else "the tokenizer of the model to start from"
    if tokenizer.type != wanted:
        raise ConfigError(f"training.{setting} wants a tokenizer of type {wanted}, and {name} is of {tokenizer.type}")
    if not all(cuts_at_spaces(model, SPACE_MARK) for model in tokenizer.models):
        raise ConfigError(
            f"training.{setting} draws the pieces of each word by itself, and {name} does not cut text at its spaces; "
            "leave it out"
        )


def handed_on(settings: TokenizerConfig, tokenizer: Tokenizer) -> TokenizerConfig:
    """The settings as a bundle has them: where a model was taken, what it is, and not where it lay."""
    if settings.model is None:
        return settings
    return TokenizerConfig(
        type=tokenizer.type,
        vocab_size=max(tokenizer.source_vocab_size, tokenizer.target_vocab_size, LEAST_WITH_BYTES),
        byte_fallback=not tokenizer.target_shows_unknown,
        shared=tokenizer.is_shared,
        symbols=tokenizer.own_symbols,
        source_normalization="model",
        target_normalization="model",
    )
