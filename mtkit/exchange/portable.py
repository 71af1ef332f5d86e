"""A model as the export formats need it, and how another library translates with what was exported."""

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

MARKER = "mtkit.json"  # tells a folder that an export wrote, which another may replace


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of one side, in the order of their ids."""

    pieces: list[str]  # as SentencePiece writes them, ▁ for a space; those of the special ids among them
    special: SpecialIds = DEFAULT_IDS
    sentencepiece: bytes = b""  # a model that normalises text by itself as that side wants it, and gives these pieces
    scores: list[float] = field(default_factory=list)  # SentencePiece's, by id


@dataclass(frozen=True)
class PortableModel:
    """All that an export needs; what an import finds."""

    config: Config
    weights: dict[str, Tensor]  # by mtkit's own names, float32; what is shared stands once
    source: Vocabulary
    target: Vocabulary
    symbols: tuple[str, ...] = ()  # words of the source that are one piece each, such as the tags of languages
    card: str = ""  # the text of the model card

    @property
    def loose_tags(self) -> tuple[str, ...]:
        """Tags that SentencePiece does not know: a token of its own before the pieces of a line."""
        known = {piece.text for piece in pieces_of(self.source.sentencepiece)}
        return tuple(tag for tag in self.symbols if tag not in known)


def reordered(model: PortableModel, source_order: Sequence[int], target_order: Sequence[int]) -> PortableModel:
    """The same model with id n of a side being what was id order[n]; a shared vocabulary has one order.

    Ids that an order leaves out are gone; special ones must not be.
    Embeddings, output layer and its bias go along, and so do the special ids.
    """
    own = range(len(model.source.pieces)), range(len(model.target.pieces))
    if list(source_order) == list(own[0]) and list(target_order) == list(own[1]):
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


# A SentencePiece model in the words of the library tokenizers: the content of a tokenizer.json.

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


# What another library makes of an exported model: the proof of an export, where that library is installed.


@dataclass(frozen=True)
class Observed:
    """Of some sentences, what the library did with them; tokens are told as pieces, without marks."""

    library: str  # its name and version
    translations: list[list[str]]  # greedily
    log_probs: list[list[float]]  # of each token of the given translations, and of the end mark


@dataclass(frozen=True)
class Texts:
    """How a library's tokenizer reads lines and writes translations, with the exported files."""

    encode: Callable[[Sequence[str]], list[list[str]]]  # pieces of each line, the end mark left out
    decode: Callable[[Sequence[Sequence[str]]], list[str]]  # of each row of pieces


def most_tokens(source: Sequence[str]) -> int:
    """How long a translation may get: what decoding allows unless told otherwise."""
    return 2 * len(source) + 20


@torch.inference_mode()
def observe_with_transformers(
    directory: Path, sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]], silent: Sequence[str]
) -> Observed | None:
    """What Hugging Face transformers makes of a checkpoint; None where it is not installed.

    sources are translated without what is silent; targets are translations whose log-probabilities are asked for. The
    checkpoint's generation_config.json decides what else a translation may not hold.
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
            said = model.generate(
                ids,
                num_beams=1,
                do_sample=False,
                max_length=most_tokens(source) + 2,  # the marks counted
                bad_words_ids=[[theirs[piece]] for piece in silent],
                forced_eos_token_id=config.eos_token_id,
            )
            translations.append([names[id_] for id_ in said[0].tolist() if id_ not in marks])
            labels = [*(theirs[piece] for piece in target), config.eos_token_id]
            read = torch.tensor([[config.decoder_start_token_id, *labels[:-1]]])
            logits = model(input_ids=ids, decoder_input_ids=read).logits[0].log_softmax(-1)
            log_probs.append(logits[range(len(labels)), labels].tolist())
    return Observed(f"transformers {transformers.__version__}", translations, log_probs)


def texts_of_transformers(directory: Path) -> Texts | None:
    """The tokenizer that AutoTokenizer makes of a checkpoint; None where transformers is not installed."""
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
        # A row that does not end with the mark gets one more, so that it differs from what is wanted.
        rows = [row[:-1] if row[-1:] == [end] else [*row, end] for row in rows]
        return [[names[id_] for id_ in row] for row in rows]

    def decode(rows: Sequence[Sequence[str]]) -> list[str]:
        return [tokenizer.decode([*(theirs[piece] for piece in row), end], skip_special_tokens=True) for row in rows]

    return Texts(encode, decode)


def _transformers() -> Any:
    """The library, which says nothing of its own accord; None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of a library at import are not ours to mend
            import transformers
    except ImportError:
        return None
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def _vocabularies(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Pieces to ids, of both sides."""
    ours = json.loads((directory / "vocab.json").read_text(encoding="utf-8"))
    apart = directory / "target_vocab.json"
    return ours, json.loads(apart.read_text(encoding="utf-8")) if apart.exists() else ours
