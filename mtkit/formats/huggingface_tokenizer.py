"""Tokenizers as Hugging Face transformers has them: files that it reads, and those of Marian read back.

A MarianTokenizer cuts text by SentencePiece models and looks the pieces up in vocab.json. The one for M2M100 is a
tokenizer.json, which does the same by rules of its own library.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.errors import CheckpointError
from mtkit.formats.portable import PortableModel, Vocabulary

SPACE_MARK = "\u2581"
MAX_LENGTH = 512  # tokens that Hugging Face's Marian has places for
SOURCE_MODEL, TARGET_MODEL, VOCABULARY, TARGET_VOCABULARY = (
    "source.spm",
    "target.spm",
    "vocab.json",
    "target_vocab.json",
)


@dataclass(frozen=True)
class ReadTokenizer:
    """What the files of a tokenizer tell."""

    source_pieces: list[str]
    target_pieces: list[str]  # the same where it is shared
    shared: bool
    source_model: bytes
    target_model: bytes
    tags: tuple[str, ...]  # pieces that a line may begin with, such as >>fra<<
    languages: tuple[str, str] | None


@dataclass(frozen=True)
class PieceRules:
    """What a tokenizer.json must know of a SentencePiece model."""

    type: str  # bpe, unigram or char
    charsmap: bytes  # of the normalisation; none changes nothing
    plain: tuple[str, ...]  # pieces of text in the order of their ids, no bytes and nothing special among them
    spells_bytes: bool


def write_marian_tokenizer(model: PortableModel, directory: Path, shared: bool) -> None:
    """The files of a MarianTokenizer; ids are the places of the model's pieces."""
    _write_models(model, directory)
    _write_vocabularies(model, directory, shared)
    settings = {**_settings(model), "tokenizer_class": "MarianTokenizer", "separate_vocabs": not shared}
    _write_json(directory / "tokenizer_config.json", {**settings, "sp_model_kwargs": {}})
    _write_json(directory / "special_tokens_map.json", _special_tokens(model))


def write_m2m100_tokenizer(model: PortableModel, directory: Path, rules: PieceRules) -> None:
    """A tokenizer.json, and beside it what mtkit reads back; both sides have one vocabulary."""
    _write_models(model, directory)
    _write_vocabularies(model, directory, shared=True)
    _write_json(directory / "tokenizer.json", _tokenizer_json(model.source, rules))
    _write_json(
        directory / "tokenizer_config.json",
        {**_settings(model), "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
    )
    _write_json(directory / "special_tokens_map.json", _special_tokens(model))


def read_tokenizer(directory: Path) -> ReadTokenizer:
    """The tokenizer of a checkpoint; what is missing or damaged is a CheckpointError."""
    shared = not (directory / TARGET_VOCABULARY).exists()
    source_pieces = _read_vocabulary(directory / VOCABULARY)
    target_pieces = source_pieces if shared else _read_vocabulary(directory / TARGET_VOCABULARY)
    settings = _read_settings(directory / "tokenizer_config.json")
    languages = (settings.get("source_lang"), settings.get("target_lang"))
    tags = tuple(piece for piece in source_pieces if piece.startswith(">>") and piece.endswith("<<"))
    return ReadTokenizer(
        source_pieces,
        target_pieces,
        shared,
        _read_bytes(directory / SOURCE_MODEL),
        _read_bytes(directory / TARGET_MODEL),
        tags,
        (languages[0], languages[1]) if isinstance(languages[0], str) and isinstance(languages[1], str) else None,
    )


def _write_models(model: PortableModel, directory: Path) -> None:
    (directory / SOURCE_MODEL).write_bytes(model.source.sentencepiece)
    (directory / TARGET_MODEL).write_bytes(model.target.sentencepiece)


def _write_vocabularies(model: PortableModel, directory: Path, shared: bool) -> None:
    sides = {VOCABULARY: model.source} | ({} if shared else {TARGET_VOCABULARY: model.target})
    for name, side in sides.items():
        _write_json(directory / name, {piece: id_ for id_, piece in enumerate(side.pieces)})


def _special_tokens(model: PortableModel) -> dict[str, str]:
    """By the names that transformers has for them."""
    special, pieces = model.target.special, model.target.pieces
    named = {"eos_token": special.end, "unk_token": special.unknown, "pad_token": special.pad}
    if special.begin is not None:
        named["bos_token"] = special.begin
    return {name: pieces[id_] for name, id_ in named.items()}


def _settings(model: PortableModel) -> dict[str, Any]:
    languages = model.config.languages
    return {
        "source_lang": languages.source,
        "target_lang": languages.target,
        "model_max_length": MAX_LENGTH,
        **_special_tokens(model),
    }


def _tokenizer_json(vocabulary: Vocabulary, rules: PieceRules) -> dict[str, Any]:
    """As the library tokenizers reads it: normalise, part at spaces, cut each word into pieces, end with </s>."""
    special, pieces = vocabulary.special, vocabulary.pieces
    end = pieces[special.end]
    normalizers: list[dict[str, Any]] = []
    if rules.charsmap:
        charsmap = base64.b64encode(rules.charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    normalizers += [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(id_, pieces[id_]) for id_ in sorted(set(special.all))],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "always", "split": True},
        "post_processor": _ending(end, special.end),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _unigram(vocabulary, rules) if rules.type == "unigram" else _bpe(vocabulary, rules),
    }


def _added_token(id_: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": content, **plain, "special": True}


def _ending(end: str, id_: int) -> dict[str, Any]:
    """Each sequence has the end mark behind it."""
    mark = {"SpecialToken": {"id": end, "type_id": 0}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [one, mark],
        "pair": [one, mark, two, mark],
        "special_tokens": {end: {"id": end, "ids": [id_], "tokens": [end]}},
    }


def _unigram(vocabulary: Vocabulary, rules: PieceRules) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": vocabulary.special.unknown,
        "vocab": [[piece, score] for piece, score in zip(vocabulary.pieces, vocabulary.scores, strict=True)],
        "byte_fallback": rules.spells_bytes,
    }


def _bpe(vocabulary: Vocabulary, rules: PieceRules) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.pieces[vocabulary.special.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": rules.spells_bytes,
        "ignore_merges": False,
        "vocab": {piece: id_ for id_, piece in enumerate(vocabulary.pieces)},
        "merges": _merges(vocabulary, rules.plain) if rules.type == "bpe" else [],
    }


def _merges(vocabulary: Vocabulary, plain: Sequence[str]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, in the order in which SentencePiece merges: by the whole's score."""
    scores = dict(zip(vocabulary.pieces, vocabulary.scores, strict=True))
    known = set(plain)
    by_score = sorted((piece for piece in plain if len(piece) > 1), key=lambda piece: -scores[piece])
    return [
        [piece[:cut], piece[cut:]]
        for piece in by_score
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _read_vocabulary(path: Path) -> list[str]:
    """The pieces by their ids."""
    content = _read_json(path)
    ids = list(content.values())
    if not ids or not all(type(id_) is int for id_ in ids) or sorted(ids) != list(range(len(ids))):
        raise CheckpointError(f"{path}: wants the ids 0 to {max(len(ids) - 1, 0)}, one for each piece, and has others")
    pieces = [""] * len(ids)
    for piece, id_ in content.items():
        pieces[id_] = piece
    return pieces


def _read_settings(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_bytes(path))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; copy the checkpoint again")
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise CheckpointError(f"{path}: missing; wants all files of the checkpoint's tokenizer") from None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
