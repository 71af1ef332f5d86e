"""A SentencePiece model in the words of the library tokenizers: the content of a tokenizer.json.

Its parts run in order: normalizer, pre_tokenizer, model, post_processor; the decoder runs alone.
"""

import base64
import re
from collections.abc import Sequence
from typing import Any

from mtkit.formats.portable import Vocabulary
from mtkit.model_proto import Piece, charsmap_of, model_type_of, pieces_of

SPACE_MARK = "\u2581"
NO_CHARACTER = "\ufdd0"  # that Unicode keeps out of text

MOST_SPACES = 1 << 16  # SentencePiece removes every space that a text begins with

Part = dict[str, Any]


def tokenizer_json(vocabulary: Vocabulary, loose_tags: Sequence[str] = ()) -> Part:
    """What encodes as the vocabulary's tokenizer does, ends each line with its end, and decodes.

    Transformers must be told to split special tokens, or what is written like one is one. The same but for these: with
    a rule, several combining marks come in the order of Unicode, marks behind what the rule takes away join what stands
    before it, and U+FDD0 is lost; a name such as </s> right behind a symbol ends a piece of bpe; and of unigram, where
    two orders of the same pieces differ by rounding alone, it may take the other one. Decoding with skip_special_tokens
    leaves <unk> out. loose_tags are pieces that SentencePiece does not know.
    """
    pieces = _pieces(vocabulary)
    model_type = model_type_of(vocabulary.sentencepiece)
    end = vocabulary.special.end
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, **added_token(piece, special=id_ in vocabulary.special.all)}
            for id_, piece in enumerate(vocabulary.pieces)
            if id_ in vocabulary.special.all or piece in loose_tags
        ],
        "normalizer": _sequence("normalizers", _normalizers(vocabulary, pieces)),
        "pre_tokenizer": _sequence("pretokenizers", _pre_tokenizers(model_type, pieces)),
        "post_processor": _ending(vocabulary.pieces[end], end),
        "decoder": _sequence(
            "decoders",
            [
                _replace({"String": SPACE_MARK}, " "),
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": MOST_SPACES, "stop": 0},
            ],
        ),
        "model": _unigram(vocabulary, pieces) if model_type == "unigram" else _bpe(vocabulary, pieces),
    }


def added_token(content: str, special: bool) -> Part:
    """A token that is found in text before anything else is done to it, unless it is special and those are split."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": special}


def _pieces(vocabulary: Vocabulary) -> list[Piece]:
    """By id; what SentencePiece does not know is no text either."""
    known = {piece.text: piece for piece in pieces_of(vocabulary.sentencepiece)}
    return [known.get(text, Piece(text, 0.0, "control")) for text in vocabulary.pieces]


def _sequence(name: str, parts: list[Part]) -> Part:
    return {"type": "Sequence", name: parts}


def _replace(pattern: dict[str, str], content: str) -> Part:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(vocabulary: Vocabulary, pieces: list[Piece]) -> list[Part]:
    charsmap = base64.b64encode(charsmap_of(vocabulary.sentencepiece)).decode("ascii")
    parts: list[Part] = []
    if charsmap:
        # The library looks up a character together with the marks behind it, and drops those that the rule does not
        # know there. So they stand apart while the rule is applied, and are composed then.
        parts += [
            _replace({"Regex": r"(?<=[\s\S])(?=[\p{M}\x{200c}\x{200d}\n])"}, NO_CHARACTER),
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            _replace({"String": NO_CHARACTER}, ""),
            {"type": "NFC"},
        ]
    parts += [
        _replace({"String": SPACE_MARK}, " "),
        # Spaces alone: other white space is text.
        _replace({"Regex": r"\A +| +\z"}, ""),
        _replace({"Regex": " {2,}"}, " "),
        {"type": "Prepend", "prepend": " "},  # unlike that of Metaspace, not before nothing
        _replace({"String": " "}, SPACE_MARK),
    ]
    if model_type_of(vocabulary.sentencepiece) == "unigram" and not _spells_bytes(pieces):
        # What is unknown is so whatever it is, and then no name either.
        known = _characters(pieces)
        for name in _names(pieces):
            places = [place for place, character in enumerate(name) if character not in known]
            for place in places[:1]:
                before, character, behind = map(re.escape, (name[:place], name[place], name[place + 1 :]))
                parts.append(_replace({"Regex": f"(?<={before}){character}(?={behind})"}, NO_CHARACTER))
    return parts


def _pre_tokenizers(model_type: str, pieces: list[Piece]) -> list[Part]:
    """Words, each with its mark; in them symbols stand alone, which a model then takes whole."""
    parts: list[Part] = [
        {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": True},
    ]
    alone = [re.escape(symbol) for symbol in sorted(_symbols(pieces), key=len, reverse=True)]
    if model_type == "unigram":
        # The library takes text that is a name for the piece of that name, if it cannot spell it.
        unspelled = sorted({character for name in _names(pieces) for character in name} - _characters(pieces))
        if unspelled and _spells_bytes(pieces):
            alone.append(f"[{''.join(map(re.escape, unspelled))}]")
    elif alone:
        # It takes what stands behind a symbol for a piece too, if it is the name of one.
        before, behind = (f"(?{look}{'|'.join(alone)}{more})" for look, more in (("<=", ""), ("=", r"|\z")))
        alone += [f"{before}{re.escape(name[0])}(?={re.escape(name[1:])}{behind})" for name in _names(pieces)]
    if alone:
        parts.append({"type": "Split", "pattern": {"Regex": "|".join(alone)}, "behavior": "Isolated", "invert": False})
    return parts


def _ending(end: str, id_: int) -> Part:
    text, mark = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, mark],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}, mark],
        "special_tokens": {end: {"id": end, "ids": [id_], "tokens": [end]}},
    }


def _symbols(pieces: list[Piece]) -> list[str]:
    """The pieces that text is never split in."""
    return [piece.text for piece in pieces if piece.type == "user_defined"]


def _names(pieces: list[Piece]) -> list[str]:
    """Of the pieces that stand for no text that is written like them: </s>, <0x41>."""
    return [piece.text for piece in pieces if piece.type not in ("normal", "user_defined")]


def _characters(pieces: list[Piece]) -> set[str]:
    """Those that a model can spell with."""
    return {character for piece in pieces if piece.type == "normal" for character in piece.text}


def _spells_bytes(pieces: list[Piece]) -> bool:
    return any(piece.type == "byte" for piece in pieces)


def _unigram(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    worst = min([0.0, *(piece.score for piece in pieces if piece.type == "normal")])
    # What is no text must be worse than its name spelled character by character.
    never = worst * max(len(piece.text) + 1 for piece in pieces) - 1.0
    scores = [piece.score if piece.type in ("normal", "user_defined") else never for piece in pieces]
    return {
        "type": "Unigram",
        "unk_id": vocabulary.special.unknown,
        "vocab": [[piece.text, score] for piece, score in zip(pieces, scores, strict=True)],
        "byte_fallback": _spells_bytes(pieces),
    }


def _bpe(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    """SentencePiece merges whatever gives a piece, the best score first; here each way to do so has a rank."""
    scores = {piece.text: piece.score for piece in pieces if piece.type == "normal"}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.pieces[vocabulary.special.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _spells_bytes(pieces),
        "ignore_merges": bool(_symbols(pieces)),  # a symbol is no merge of anything
        "vocab": {piece.text: id_ for id_, piece in enumerate(pieces)},
        "merges": [
            [piece[:cut], piece[cut:]]
            for piece in sorted(scores, key=lambda piece: -scores[piece])
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ],
    }
