"""New pieces for a tokenizer that is there: a new language's characters, a word to keep whole, a tag."""

from collections.abc import Container, Sequence

from mtkit.errors import ConfigError
from mtkit.model_proto import Piece, pieces_of, with_pieces, without_last_pieces
from mtkit.text.segmentation import SPACE_MARK
from mtkit.text.tokenizer import Tokenizer


def extended(tokenizer: Tokenizer, pieces: Sequence[str], tags: Sequence[str]) -> Tokenizer:
    """The same tokenizer with these after the pieces it has, so that all others keep their ids.

    A character stands for itself where it had no piece; what is longer is never split again. Tags are words of the
    source, and of both sides where they share a vocabulary. What cannot be one is a ConfigError.
    """
    _check(tokenizer, [*pieces, *tags])
    symbols = (*tokenizer.symbols, *tags)
    source_model, target_model = tokenizer.models
    if tokenizer.is_mapped:
        source = tokenizer.source_pieces(range(tokenizer.source_vocab_size))
        target = tokenizer.target_pieces(range(tokenizer.target_vocab_size))
        vocabularies = [*source, *pieces, *tags], [*target, *pieces, *(tags if tokenizer.is_shared else ())]
        return tokenizer.changed((_with(source_model, pieces), _with(target_model, pieces)), vocabularies, symbols)
    source_model = _with(source_model, [*pieces, *tags])
    target_model = source_model if tokenizer.is_shared else _with(target_model, pieces)
    return tokenizer.changed((source_model, target_model), None, symbols)


def without_last(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """A tokenizer whose target side lacks the last pieces that extended added, so many of them.

    It spells target text as the tokenizer did before it had them; only its target side is to be used.
    """
    new = set(tokenizer.target_pieces(range(tokenizer.target_vocab_size - count, tokenizer.target_vocab_size)))
    model = tokenizer.models[1]
    texts = [piece.text for piece in pieces_of(model)]
    if not tokenizer.is_mapped:
        model = without_last_pieces(model, count)
        return tokenizer.changed((model, model), None, ())
    kept = len(texts)  # a model from elsewhere may have had some of the pieces already
    while texts[kept - 1] in new:
        kept -= 1
    vocabulary = tokenizer.target_pieces(range(tokenizer.target_vocab_size - count))
    return tokenizer.changed((model, without_last_pieces(model, len(texts) - kept)), (vocabulary, vocabulary), ())


def fault_of_new(tokenizer: Tokenizer, piece: str) -> str | None:
    """Why a piece or tag cannot be added: no text could hold it after normalisation, or it is there already."""
    return _fault(tokenizer, _known(tokenizer), piece)


def _check(tokenizer: Tokenizer, new: Sequence[str]) -> None:
    """Refuse what cannot be added."""
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
    if symbol := next((symbol for symbol in tokenizer.own_symbols if _splits(piece, symbol)), None):
        return f"piece {piece}: would split {symbol} of tokenizer.symbols, which is never split"
    return None


def _splits(piece: str, symbol: str) -> bool:
    """Whether a text can hold a piece and a symbol that share characters, so that only the piece is found."""
    return symbol in piece or any(piece.endswith(symbol[:length]) for length in range(1, len(symbol)))


def _with(model: bytes, new: Sequence[str]) -> bytes:
    """A SentencePiece model that knows these, too; a character is worth less than all else, so it changes nothing."""
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
