"""What imports and exports share.

These are the class PortableModel, the content of a tokenizer.json, and translation with Hugging Face transformers.
"""

import base64
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.config.model_settings import STACKS, Stack, TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.text.vocabulary import DEFAULT_IDS, Piece, SpecialIds, charsmap_of, model_type_of, pieces_of

MARKER = "mtkit.json"  # the file that marks a folder as written by an export, which another export may replace

# The model.


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of the source or of the target."""

    pieces: list[str]  # by id, with ▁ for a space; includes special tokens
    special: SpecialIds = DEFAULT_IDS
    sentencepiece: bytes = b""  # the SentencePiece model (file content) that normalises and splits text
    scores: list[float] = field(default_factory=list)  # SentencePiece's scores of the pieces, by id; may be empty


@dataclass(frozen=True)
class PortableModel:
    """A model in no particular file format: what an export writes to files, and what an import reads from files."""

    config: Config
    weights: dict[str, Tensor]  # by mtkit's names, in float32; a shared matrix is stored once
    source: Vocabulary
    target: Vocabulary
    symbols: tuple[str, ...] = ()  # source words that are one piece each, such as language tags

    @property
    def loose_tags(self) -> tuple[str, ...]:
        """The tags that are not pieces of the SentencePiece model; at the start of a line, such a tag is one token."""
        known = {piece.text for piece in pieces_of(self.source.sentencepiece)}
        return tuple(tag for tag in self.symbols if tag not in known)


def reordered(model: PortableModel, source_order: Sequence[int], target_order: Sequence[int]) -> PortableModel:
    """Returns `model` with its ids permuted: new id n stands for the piece that had the old id `order[n]`.

    `order` is `source_order` for the source and `target_order` for the target. The rows of embeddings, output layer and
    output bias are permuted too, and the special ids are changed accordingly. Old ids that are missing from `order` are
    removed, so `order` must contain all special ids. For a shared vocabulary, both orders must be equal.
    """
    sizes = len(model.source.pieces), len(model.target.pieces)
    if list(source_order) == list(range(sizes[0])) and list(target_order) == list(range(sizes[1])):
        return model
    orders = {
        "encoder.embedded.embedding.weight": source_order,
        "decoder.embedded.embedding.weight": target_order,
        "decoder.output.table.weight": target_order,
        "decoder.output.bias": target_order,
    }
    weights = {
        name: weight[list(orders[name])].contiguous() if name in orders else weight
        for name, weight in model.weights.items()
    }
    source, target = _reordered(model.source, source_order), _reordered(model.target, target_order)
    return replace(model, weights=weights, source=source, target=target)


def _reordered(vocabulary: Vocabulary, order: Sequence[int]) -> Vocabulary:
    place = {id_: number for number, id_ in enumerate(order)}
    special = vocabulary.special
    return replace(
        vocabulary,
        pieces=[vocabulary.pieces[id_] for id_ in order],
        scores=[vocabulary.scores[id_] for id_ in order] if vocabulary.scores else [],
        special=SpecialIds(
            place[special.pad],
            place[special.unknown],
            None if special.begin is None else place[special.begin],
            place[special.end],
        ),
    )


def require_known_parts(config: TransformerConfig) -> None:
    """Raises CheckpointError if the model has an option that no export format fully supports.

    Such options are norms of queries and keys, ablated parts, separate positions for encoder and decoder, positions of
    the kinds alibi, scalar and binary, and missing norms or feed-forward layers. CTranslate2, for example, has norms of
    queries and keys in self-attention, but not in the attention to the source.
    """
    if config.query_key_norm:
        raise CheckpointError("model.query_key_norm is true; CTranslate2 and the others want false")
    if config.ablate:
        raise CheckpointError(
            f"model.ablate is {', '.join(config.ablate)}; CTranslate2 and the others want models with all their parts"
        )
    if config.encoder_positions is not None or config.decoder_positions is not None:
        found = " and ".join(config.positions_of(side) for side in STACKS)
        raise CheckpointError(
            f"model.encoder_positions and decoder_positions are {found}; CTranslate2 and the others want null"
        )
    if config.positions in ("alibi", "scalar", "binary"):
        raise CheckpointError(
            f"model.positions is {config.positions}; CTranslate2 and the others want sinusoidal, learned, rotary or "
            "none"
        )
    if config.norm == "none":
        raise CheckpointError("model.norm is none; CTranslate2 and the others want norms")
    sides: dict[str, Stack] = {"d_ff": "encoder", "decoder_d_ff": "decoder"}
    for name, side in sides.items():
        if not config.width_of(side):
            name = name if getattr(config, name) == 0 else "d_ff"
            raise CheckpointError(f"model.{name} is 0; CTranslate2 and the others want feed-forward layers")


# tokenizer.json, a file of the library tokenizers, which can express a SentencePiece model.

SPACE_MARK = "\u2581"
NO_CHARACTER = "\ufdd0"  # a noncharacter in Unicode, so it occurs in no text

MOST_SPACES = 1 << 16  # Strip needs a number; SentencePiece removes all leading spaces

Part = dict[str, Any]


def tokenizer_json(vocabulary: Vocabulary, loose_tags: Sequence[str] = ()) -> Part:
    """Returns the content of a tokenizer.json that encodes and decodes as SentencePiece does and appends the end mark.

    `loose_tags` are the tags that the SentencePiece model lacks. In Hugging Face transformers, split_special_tokens
    must be true; otherwise, text that is written like a special token becomes that token. In rare cases, the
    tokenizer.json and SentencePiece differ:

    - With a normalisation rule, several combining marks in a row are put in Unicode's order, and U+FDD0 is lost. If the
      rule removes a character, combining marks after the removed character join the character before it.
    - With BPE, text written like a special piece, such as </s>, may directly follow a user-defined piece. Then the
      first character of that text becomes a piece of its own.
    - With unigram, two segmentations of a word may have the same pieces in different orders. Their scores then differ
      by rounding errors at most, and SentencePiece may choose one segmentation, the tokenizer.json the other.
    - Decoding with skip_special_tokens drops <unk>.
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
    """Returns the entry for the token `content` in the list added_tokens of a tokenizer.json.

    Added tokens are found in text before the text is normalised. If split_special_tokens is true, special tokens
    (`special`) are not found in text.
    """
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": special}


def _pieces(vocabulary: Vocabulary) -> list[Piece]:
    """Returns the pieces of `vocabulary` in the order of their ids.

    Pieces that the SentencePiece model lacks become control pieces. No text is ever encoded as a control piece.
    """
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
        # The library looks up a character together with the combining marks after it, and drops the marks if the rule
        # does not list that combination. So marks are separated from it while the rule is applied, and composed after.
        parts += [
            _replace({"Regex": r"(?<=[\s\S])(?=[\p{M}\x{200c}\x{200d}\n])"}, NO_CHARACTER),
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            _replace({"String": NO_CHARACTER}, ""),
            {"type": "NFC"},
        ]
    parts += [
        _replace({"String": SPACE_MARK}, " "),
        # Only spaces are removed; other white space is part of the text.
        _replace({"Regex": r"\A +| +\z"}, ""),
        _replace({"Regex": " {2,}"}, " "),
        {"type": "Prepend", "prepend": " "},  # unlike Metaspace, which also prepends to an empty line
        _replace({"String": " "}, SPACE_MARK),
    ]
    if model_type_of(vocabulary.sentencepiece) == "unigram" and not _spells_bytes(pieces):
        # In text written like a special piece, replace one character that no piece has, so that the library does not
        # encode the text as that piece.
        known = _characters(pieces)
        for name in _names(pieces):
            places = [place for place, character in enumerate(name) if character not in known]
            for place in places[:1]:
                before, character, behind = map(re.escape, (name[:place], name[place], name[place + 1 :]))
                parts.append(_replace({"Regex": f"(?<={before}){character}(?={behind})"}, NO_CHARACTER))
    return parts


def _pre_tokenizers(model_type: str, pieces: list[Piece]) -> list[Part]:
    """Returns the pre-tokenizers of a tokenizer.json.

    The pre-tokenizers split text into words, each with its space mark (▁), and separate user-defined pieces from the
    text around them.
    """
    parts: list[Part] = [
        {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": True},
    ]
    alone = [re.escape(symbol) for symbol in sorted(_symbols(pieces), key=len, reverse=True)]
    if model_type == "unigram":
        # The library encodes text written like a special piece as that piece if no other pieces can spell the text.
        unspelled = sorted({character for name in _names(pieces) for character in name} - _characters(pieces))
        if unspelled and _spells_bytes(pieces):
            alone.append(f"[{''.join(map(re.escape, unspelled))}]")
    elif alone:
        # With BPE, the library does so where the text directly follows a user-defined piece.
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
    """Returns the texts of user-defined pieces, which are never split."""
    return [piece.text for piece in pieces if piece.type == "user_defined"]


def _names(pieces: list[Piece]) -> list[str]:
    """Returns the texts of special pieces, such as </s> and <0x41>.

    Text that happens to be written like a special piece must not be encoded as that piece.
    """
    return [piece.text for piece in pieces if piece.type not in ("normal", "user_defined")]


def _characters(pieces: list[Piece]) -> set[str]:
    """Returns the characters that occur in normal pieces."""
    return {character for piece in pieces if piece.type == "normal" for character in piece.text}


def _spells_bytes(pieces: list[Piece]) -> bool:
    return any(piece.type == "byte" for piece in pieces)


def _unigram(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    worst = min([0.0, *(piece.score for piece in pieces if piece.type == "normal")])
    # A special piece must score worse than its text spelled one character at a time.
    never = worst * max(len(piece.text) + 1 for piece in pieces) - 1.0
    scores = [piece.score if piece.type in ("normal", "user_defined") else never for piece in pieces]
    return {
        "type": "Unigram",
        "unk_id": vocabulary.special.unknown,
        "vocab": [[piece.text, score] for piece, score in zip(pieces, scores, strict=True)],
        "byte_fallback": _spells_bytes(pieces),
    }


def _bpe(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    """Returns the BPE model of a tokenizer.json.

    SentencePiece merges any two neighbouring pieces whose concatenation is a piece, best score first. So the list of
    merges has all pairs of pieces whose concatenation is a piece, ordered by the score of the concatenation.
    """
    scores = {piece.text: piece.score for piece in pieces if piece.type == "normal"}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.pieces[vocabulary.special.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _spells_bytes(pieces),
        "ignore_merges": bool(_symbols(pieces)),  # for user-defined pieces, which no merge produces
        "vocab": {piece.text: id_ for id_, piece in enumerate(pieces)},
        "merges": [
            [piece[:cut], piece[cut:]]
            for piece in sorted(scores, key=lambda piece: -scores[piece])
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ],
    }


# Translation with an exported model in Hugging Face transformers, to check the export.


@dataclass(frozen=True)
class Observed:
    """What another library computed: translations of some sources, and log-probabilities of given translations."""

    library: str  # its name and version
    translations: list[list[str]]  # pieces without special tokens, found by greedy search
    log_probs: list[list[float]]  # of each token of each given translation, and of its end mark


@dataclass(frozen=True)
class Texts:
    """Two functions that encode and decode text with another library's tokenizer, loaded from exported files."""

    encode: Callable[[Sequence[str]], list[list[str]]]  # lines to pieces, without the end mark
    decode: Callable[[Sequence[Sequence[str]]], list[str]]  # pieces to lines


def most_tokens(source: Sequence[str]) -> int:
    """Returns how many tokens a translation of `source` may have under the default decoding settings."""
    return 2 * len(source) + 20


@torch.inference_mode()
def observe_with_transformers(
    directory: Path, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], silent: Sequence[str]
) -> Observed | None:
    """Translates `sources` with Hugging Face transformers by greedy search, and scores `targets` as translations.

    Returns `None` if Hugging Face transformers is not installed. Each source and each target is a list of pieces. Each
    target is scored as a translation of the source at the same index.

    The pieces in `silent` are never generated. The constraints in generation_config.json, such as no_repeat_ngram_size,
    apply.
    """
    transformers = _transformers()
    if transformers is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32
        ).eval()
        ours, theirs = _vocabularies(directory)
        config = model.config
        translations, log_probs = [], []
        names = {id_: piece for piece, id_ in theirs.items()}
        marks = {config.pad_token_id, config.eos_token_id, config.decoder_start_token_id}
        for source, target in zip(sources, targets, strict=True):
            ids = torch.tensor([[*(ours[piece] for piece in source), config.eos_token_id]])
            generated = model.generate(
                ids,
                num_beams=1,
                do_sample=False,
                max_length=most_tokens(source) + 2,  # counts the start token and the end mark
                bad_words_ids=[[theirs[piece]] for piece in silent],
                forced_eos_token_id=config.eos_token_id,
            )
            translations.append([names[id_] for id_ in generated[0].tolist() if id_ not in marks])
            labels = [*(theirs[piece] for piece in target), config.eos_token_id]
            read = torch.tensor([[config.decoder_start_token_id, *labels[:-1]]])
            logits = model(input_ids=ids, decoder_input_ids=read).logits[0].log_softmax(-1)
            log_probs.append(logits[range(len(labels)), labels].tolist())
    return Observed(f"transformers {transformers.__version__}", translations, log_probs)


def texts_of_transformers(directory: Path) -> Texts | None:
    """Returns the tokenizer that AutoTokenizer of Hugging Face transformers loads from the checkpoint in `directory`.

    Returns `None` if Hugging Face transformers is not installed.
    """
    transformers = _transformers()
    if transformers is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ours, theirs = _vocabularies(directory)
    names, end = {id_: piece for piece, id_ in ours.items()}, tokenizer.eos_token_id

    def encode(lines: Sequence[str]) -> list[list[str]]:
        rows = [tokenizer(line).input_ids for line in lines]
        # To a row without an end mark, add one that is not cut off, so that the comparison shows a difference.
        rows = [row[:-1] if row[-1:] == [end] else [*row, end] for row in rows]
        return [[names[id_] for id_ in row] for row in rows]

    def decode(rows: Sequence[Sequence[str]]) -> list[str]:
        return [tokenizer.decode([*(theirs[piece] for piece in row), end], skip_special_tokens=True) for row in rows]

    return Texts(encode, decode)


def _transformers() -> Any:
    """Returns the Python module of Hugging Face transformers, silenced; `None` if the library is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the library while it is imported
            import transformers
    except ImportError:
        return None
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def _vocabularies(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the vocabularies of source and target, each as {piece: id}."""
    ours = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    apart = directory / "target_vocab.json"
    return ours, json.loads(apart.read_text(encoding="utf-8")) if apart.exists() else ours
