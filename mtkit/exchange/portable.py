"""A model as the exchange formats see it, the content of a tokenizer.json, and translations by transformers."""

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

from mtkit.config.settings import Config
from mtkit.text.vocabulary import DEFAULT_IDS, Piece, SpecialIds, charsmap_of, model_type_of, pieces_of

MARKER = "mtkit.json"  # marks a folder that an export wrote, so that another export may replace it

# The model.


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of one side."""

    pieces: list[str]  # by id, with ▁ for a space; special tokens included
    special: SpecialIds = DEFAULT_IDS
    sentencepiece: bytes = b""  # the model that normalises text and splits it into these pieces
    scores: list[float] = field(default_factory=list)  # of the pieces in SentencePiece, by id


@dataclass(frozen=True)
class PortableModel:
    """A model between mtkit and another library: the input of an export, the result of reading for an import."""

    config: Config
    weights: dict[str, Tensor]  # by mtkit's names, in float32; a shared matrix is stored once
    source: Vocabulary
    target: Vocabulary
    symbols: tuple[str, ...] = ()  # source words that are one piece each, such as language tags

    @property
    def loose_tags(self) -> tuple[str, ...]:
        """Tags unknown to SentencePiece, each a token before the pieces of a line."""
        known = {piece.text for piece in pieces_of(self.source.sentencepiece)}
        return tuple(tag for tag in self.symbols if tag not in known)


def reordered(model: PortableModel, source_order: Sequence[int], target_order: Sequence[int]) -> PortableModel:
    """Permute the ids of a model: id n of a side becomes what was id order[n].

    Embeddings, output layer, its bias and the special ids follow. Ids that an order leaves out are removed, which must
    not be special ones. A shared vocabulary takes the same order twice.
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


# tokenizer.json: a SentencePiece model in the terms of the library tokenizers.

SPACE_MARK = "\u2581"
NO_CHARACTER = "\ufdd0"  # reserved by Unicode, so in no text

MOST_SPACES = 1 << 16  # as good as all: SentencePiece removes every leading space

Part = dict[str, Any]


def tokenizer_json(vocabulary: Vocabulary, loose_tags: Sequence[str] = ()) -> Part:
    """The content of a tokenizer.json that encodes as the vocabulary does, appends the end mark, and decodes.

    transformers must be told to split special tokens, or text that is written like one becomes one. It differs from
    SentencePiece in rare cases. With a normalisation rule: several combining marks are put in Unicode's order, marks
    after a character that the rule removes join the character before it, and U+FDD0 is lost. BPE: a name such as </s>
    right after a symbol ends a piece. Unigram: of two orders of the same pieces whose scores differ by rounding alone,
    the other may be taken. Decoding with skip_special_tokens drops <unk>. loose_tags are tags unknown to SentencePiece.
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
    """A token that is found in text before normalisation, unless it is special and special tokens are split."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": special}


def _pieces(vocabulary: Vocabulary) -> list[Piece]:
    """The pieces by id; those unknown to SentencePiece are control pieces, which no text contains."""
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
        # The library looks up a character together with the combining marks after it, and drops marks that the rule
        # does not know there. So marks are kept apart while the rule is applied, and composed afterwards.
        parts += [
            _replace({"Regex": r"(?<=[\s\S])(?=[\p{M}\x{200c}\x{200d}\n])"}, NO_CHARACTER),
            {"type": "Precompiled", "precompiled_charsmap": charsmap},
            _replace({"String": NO_CHARACTER}, ""),
            {"type": "NFC"},
        ]
    parts += [
        _replace({"String": SPACE_MARK}, " "),
        # Only spaces: other white space is text.
        _replace({"Regex": r"\A +| +\z"}, ""),
        _replace({"Regex": " {2,}"}, " "),
        {"type": "Prepend", "prepend": " "},  # unlike Metaspace, which also prepends to an empty line
        _replace({"String": " "}, SPACE_MARK),
    ]
    if model_type_of(vocabulary.sentencepiece) == "unigram" and not _spells_bytes(pieces):
        # Replace an unknown character in the name of a special piece, so that the text is not taken for that piece.
        known = _characters(pieces)
        for name in _names(pieces):
            places = [place for place, character in enumerate(name) if character not in known]
            for place in places[:1]:
                before, character, behind = map(re.escape, (name[:place], name[place], name[place + 1 :]))
                parts.append(_replace({"Regex": f"(?<={before}){character}(?={behind})"}, NO_CHARACTER))
    return parts


def _pre_tokenizers(model_type: str, pieces: list[Piece]) -> list[Part]:
    """Splits text into words, each with its space mark, and isolates symbols, which the model then takes whole."""
    parts: list[Part] = [
        {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": "never", "split": True},
    ]
    alone = [re.escape(symbol) for symbol in sorted(_symbols(pieces), key=len, reverse=True)]
    if model_type == "unigram":
        # The library takes text that is the name of a special piece for that piece, if it cannot spell it.
        unspelled = sorted({character for name in _names(pieces) for character in name} - _characters(pieces))
        if unspelled and _spells_bytes(pieces):
            alone.append(f"[{''.join(map(re.escape, unspelled))}]")
    elif alone:
        # The library does so after a symbol, too.
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
    """User-defined pieces, which are never split."""
    return [piece.text for piece in pieces if piece.type == "user_defined"]


def _names(pieces: list[Piece]) -> list[str]:
    """The names of special pieces, which no text becomes that is written like them: </s>, <0x41>."""
    return [piece.text for piece in pieces if piece.type not in ("normal", "user_defined")]


def _characters(pieces: list[Piece]) -> set[str]:
    """The characters that the model can spell."""
    return {character for piece in pieces if piece.type == "normal" for character in piece.text}


def _spells_bytes(pieces: list[Piece]) -> bool:
    return any(piece.type == "byte" for piece in pieces)


def _unigram(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    worst = min([0.0, *(piece.score for piece in pieces if piece.type == "normal")])
    # A special piece must score worse than its name spelled character by character.
    never = worst * max(len(piece.text) + 1 for piece in pieces) - 1.0
    scores = [piece.score if piece.type in ("normal", "user_defined") else never for piece in pieces]
    return {
        "type": "Unigram",
        "unk_id": vocabulary.special.unknown,
        "vocab": [[piece.text, score] for piece, score in zip(pieces, scores, strict=True)],
        "byte_fallback": _spells_bytes(pieces),
    }


def _bpe(vocabulary: Vocabulary, pieces: list[Piece]) -> Part:
    """The BPE model. SentencePiece merges any pair that gives a piece, best score first; here such pairs are ranked."""
    scores = {piece.text: piece.score for piece in pieces if piece.type == "normal"}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.pieces[vocabulary.special.unknown],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _spells_bytes(pieces),
        "ignore_merges": bool(_symbols(pieces)),  # no merge makes a symbol
        "vocab": {piece.text: id_ for id_, piece in enumerate(pieces)},
        "merges": [
            [piece[:cut], piece[cut:]]
            for piece in sorted(scores, key=lambda piece: -scores[piece])
            for cut in range(1, len(piece))
            if piece[:cut] in scores and piece[cut:] in scores
        ],
    }


# Translations of an exported model by transformers, with which an export is checked.


@dataclass(frozen=True)
class Observed:
    """What a library made of some sentences; tokens are pieces, without special ones."""

    library: str  # its name and version
    translations: list[list[str]]  # by greedy search
    log_probs: list[list[float]]  # of each token of the given translations, and of the end mark


@dataclass(frozen=True)
class Texts:
    """A library's tokenizer, made of the exported files."""

    encode: Callable[[Sequence[str]], list[list[str]]]  # lines to pieces, without the end mark
    decode: Callable[[Sequence[Sequence[str]]], list[str]]  # pieces to lines


def most_tokens(source: Sequence[str]) -> int:
    """Most tokens that a translation may have, by the default of decoding."""
    return 2 * len(source) + 20


@torch.inference_mode()
def observe_with_transformers(
    directory: Path, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], silent: Sequence[str]
) -> Observed | None:
    """Translate with Hugging Face transformers; None where it is not installed.

    sources are translated, targets scored as their translations. silent pieces are never generated, nor what the
    checkpoint's generation_config.json forbids.
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
                max_length=most_tokens(source) + 2,  # the marks counted
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
    """The tokenizer that AutoTokenizer loads from a checkpoint; None where transformers is not installed."""
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
        # A row without an end mark gets one here, so that it differs from what is expected.
        rows = [row[:-1] if row[-1:] == [end] else [*row, end] for row in rows]
        return [[names[id_] for id_ in row] for row in rows]

    def decode(rows: Sequence[Sequence[str]]) -> list[str]:
        return [tokenizer.decode([*(theirs[piece] for piece in row), end], skip_special_tokens=True) for row in rows]

    return Texts(encode, decode)


def _transformers() -> Any:
    """The library, with its messages silenced; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a library's own at its import
            import transformers
    except ImportError:
        return None
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def _vocabularies(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The vocabularies of source and target: pieces to ids."""
    ours = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    apart = directory / "target_vocab.json"
    return ours, json.loads(apart.read_text(encoding="utf-8")) if apart.exists() else ours
