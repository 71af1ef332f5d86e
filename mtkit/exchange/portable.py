"""Code shared by imports and exports, and the settings of Hugging Face's encoder-decoder models.

The shared code is the class PortableModel, the content of a tokenizer.json, and translation with Hugging Face
transformers. The settings are those in config.json and generation_config.json.
"""

import base64
import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit.config.data_and_model_settings import STACKS, AnyModelConfig, MaskedConfig, Stack, TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError
from mtkit.text.vocabulary import DEFAULT_IDS, Piece, SpecialIds, charsmap_of, model_type_of, pieces_of

MARKER = "mtkit.json"  # the file that marks a folder as written by an export, which another export may replace

# The model.


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of the source or of the target, with its special ids and its SentencePiece model."""

    pieces: list[str]  # by id, with ▁ for a space; includes special tokens
    special: SpecialIds = DEFAULT_IDS
    sentencepiece: bytes = b""  # the SentencePiece model (file content) that normalises and splits text
    scores: list[float] = field(default_factory=list)  # SentencePiece's scores of the pieces, by id; may be empty


@dataclass(frozen=True)
class PortableModel:
    """A model in a form that depends on no file format; exports write it to files, imports read it from files."""

    config: Config
    weights: dict[str, Tensor]  # by mtkit's names, in float32; a shared matrix is stored once
    source: Vocabulary
    target: Vocabulary
    symbols: tuple[str, ...] = ()  # words of source text that are one piece each, such as language tags

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
        found = str(config.query_key_norm).lower()
        raise CheckpointError(f"model.query_key_norm is {found}; CTranslate2 and the others want false")
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

    - With a normalisation rule, the tokenizer.json puts several combining marks in a row into Unicode's canonical
      order, and drops U+FDD0. If the rule removes a character, the combining marks after this character join the
      character before it.
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
        # does not list that combination. So the marks are separated from the character while the rule is applied, and
        # composed with it afterwards.
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
        # The library encodes text written like a special piece as that piece if it cannot segment the text otherwise.
        unspelled = sorted({character for name in _names(pieces) for character in name} - _characters(pieces))
        if unspelled and _spells_bytes(pieces):
            alone.append(f"[{''.join(map(re.escape, unspelled))}]")
    elif alone:
        # With BPE, the library encodes text written like a special piece as that piece if the text directly follows a
        # user-defined piece.
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
    log_probs: list[list[float]]  # for each given translation, of each token and of the end mark


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

    Returns the translations and the log-probabilities of the targets, or `None` if Hugging Face transformers is not
    installed. Each source and each target is a list of pieces. Each target is scored as a translation of the source at
    the same index.

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
        # If a row has no end mark, add one that is not cut off, so that the comparison shows a difference.
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


# config.json and generation_config.json.

CONFIG, GENERATION = "config.json", "generation_config.json"

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish"}  # mtkit's names to theirs
ACTIVATIONS_READ = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"silu": "silu"}  # theirs to mtkit's

# JSON files.

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def require_fetched(path: Path) -> None:
    """Raises CheckpointError if the file at `path` is a Git LFS pointer, the placeholder for a file not yet fetched."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return  # the caller reads the file next and reports the error
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` or download it"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises CheckpointError if the file is missing or damaged, or if its content is not a JSON object.
    """
    require_fetched(path)
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; wants the folder of a Hugging Face checkpoint") from None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is no JSON object; copy the checkpoint again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` to a JSON file with sorted keys and an indent of 2, as Hugging Face transformers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# Writing.

FIRST_BYTE = "<0x00>"  # only in vocabularies with byte fallback
LEAST_POSITIONS = 512  # least max_position_embeddings of an exported model

# The part of WANTED that is the same for both layouts of Hugging Face's files, marian and m2m100.
_BOTH: dict[str, Collection[Any]] = {
    "norm": ("layer",),
    "activation": ("relu", "gelu", "silu"),
    "attention_bias": (True,),
    "positions": ("sinusoidal",),
    "sinusoid_layout": ("halves",),
    "embedding_norm": (False,),
}
# The settings that a model must have to be exported. For each layout (a value of --to), this maps the names of settings
# to the values that files of that layout can express.
WANTED: dict[str, dict[str, Collection[Any]]] = {
    "marian": {
        "norm_placement": ("post",),
        **_BOTH,
        "sinusoid_exponent": ("paper",),
        "sinusoid_first": (0,),
    },
    "m2m100": {
        "norm_placement": ("pre",),
        **_BOTH,
        "sinusoid_exponent": ("tensor2tensor",),
        "sinusoid_first": (2,),
        "tie_embeddings": ("all",),
        "output_bias": (False,),
        "start_token": ("begin", "end"),  # not pad, since M2M100 gives padding no position
    },
}
NAMES = {"marian": "Marian", "m2m100": "M2M100"}


def require_expressible(config: Config, layout: str) -> None:
    """Raises CheckpointError if Hugging Face's files of the kind `layout` cannot express the model.

    `layout` is "marian" or "m2m100", a value of the option --to. The message names the setting that the files cannot
    express, and the other values of --to that support this setting.
    """
    model: AnyModelConfig = config.model
    if not isinstance(model, TransformerConfig) or isinstance(model, MaskedConfig):
        raise CheckpointError(
            f"model.architecture is {model.architecture}; {NAMES[layout]} files hold Transformers, as do the others"
        )
    require_known_parts(model)
    for setting, values in WANTED[layout].items():
        found = getattr(model, setting)
        if found not in values:
            listed = " or ".join(_shown(value) for value in values)
            others = [name for name, wanted in WANTED.items() if found in wanted.get(setting, (found,))]
            takers = " and ".join(f"--to {name}" for name in ("ctranslate2", *others))
            raise CheckpointError(
                f"model.{setting} is {_shown(found)}; {NAMES[layout]} files want {listed}; "
                f"{takers} {'take' if others else 'takes'} it so"
            )


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def write_configs(model: PortableModel, directory: Path, own: dict[str, Any]) -> None:
    """Writes config.json and generation_config.json to `directory`.

    `own` holds the entries of config.json that are specific to the model's architecture, Marian or M2M100. All other
    entries are the same for both architectures.
    """
    config, special = model.config, model.target.special
    transformer = config.model
    assert isinstance(transformer, TransformerConfig)
    start = {"begin": special.begin, "end": special.end}.get(transformer.start_token, special.pad)
    ids = {
        "bos_token_id": special.begin,
        "eos_token_id": special.end,
        "pad_token_id": special.pad,
        "decoder_start_token_id": start,
        "forced_eos_token_id": special.end,
    }
    write_json(
        directory / CONFIG,
        {
            **ids,
            "activation_dropout": transformer.activation_dropout,
            "activation_function": ACTIVATIONS[transformer.activation],
            "attention_dropout": transformer.attention_dropout,
            "d_model": transformer.d_model,
            "decoder_attention_heads": transformer.decoder_num_heads or transformer.num_heads,
            "decoder_ffn_dim": transformer.decoder_d_ff or transformer.d_ff,
            "decoder_layerdrop": transformer.layer_dropout,
            "decoder_layers": transformer.decoder_layers,
            "dropout": transformer.dropout,
            "dtype": "float32",
            "encoder_attention_heads": transformer.num_heads,
            "encoder_ffn_dim": transformer.d_ff,
            "encoder_layerdrop": transformer.layer_dropout,
            "encoder_layers": transformer.encoder_layers,
            "init_std": 0.02,
            "is_encoder_decoder": True,
            "max_position_embeddings": _positions(config),
            "scale_embedding": transformer.scale_embeddings,
            "tie_word_embeddings": transformer.tie_embeddings != "none",
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": len(model.source.pieces),
            **own,
        },
    )
    write_json(
        directory / GENERATION,
        {
            **ids,
            "bad_words_ids": [[id_] for id_ in silent_ids(model)],
            "early_stopping": config.decoding.stopping == "count",
            "length_penalty": config.decoding.length_penalty,
            "max_length": _positions(config),
            "num_beams": 1 if config.decoding.method == "sample" else config.decoding.beam_size,
            **_constraints(config.decoding, start == special.end),
            **_sampling(config.decoding),
        },
    )


def _constraints(decoding: DecodingConfig, starts_with_end: bool) -> dict[str, int]:
    """Returns min_length and no_repeat_ngram as generation settings of Hugging Face transformers.

    In Hugging Face transformers, the start token counts as part of the translation, so min_length is increased by 1. If
    the start token is the end mark (`starts_with_end`), a no_repeat_ngram of 1 would forbid any other end mark, so
    no_repeat_ngram is then left out.
    """
    found = {}
    if decoding.min_length:
        found["min_length"] = decoding.min_length + 1
    if decoding.no_repeat_ngram and not (starts_with_end and decoding.no_repeat_ngram == 1):
        found["no_repeat_ngram_size"] = decoding.no_repeat_ngram
    return found


def _sampling(decoding: DecodingConfig) -> dict[str, Any]:
    """Returns the generation settings for sampling; an empty dict if decoding.method is not `sample`.

    Without top_k, Hugging Face transformers samples from the 50 most probable tokens, so top_k is always given. A top_k
    of 0 means that tokens are sampled from the whole vocabulary.
    """
    if decoding.method != "sample":
        return {}
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_k": decoding.top_k or 0,
        "top_p": 1.0 if decoding.top_p is None else decoding.top_p,
    }


# Decoding settings that no export format can express.
_NOWHERE = (
    "length_penalty_form",
    "coverage_penalty",
    "diversity_groups",
    "diversity_strength",
    "seed",
    "mbr_samples",
    "mbr_utility",
    "language_model_weight",
    "shortlist",
)
# Sampling settings, which are exported only if decoding.method is "sample". MBR decoding uses them too, but no format
# supports MBR decoding.
_SAMPLING = ("temperature", "top_k", "top_p")


def not_carried(config: Config, to: str) -> list[str]:
    """Returns a text such as "decoding.seed 1" for each decoding setting that an export to the format `to` loses."""
    decoding, default = config.decoding, DecodingConfig()
    names = _NOWHERE if decoding.method == "sample" else (*_NOWHERE, *_SAMPLING)
    lost = [name for name in names if getattr(decoding, name) != getattr(default, name)]
    if to != "ctranslate2" and decoding.no_repeat_ngram == 1 and getattr(config.model, "start_token", "") == "end":
        lost.append("no_repeat_ngram")  # in transformers it would forbid the end mark, which is the start token
    if decoding.stopping == "optimal":
        lost += ["stopping", *(["search_steps"] if decoding.search_steps != default.search_steps else [])]
    if decoding.unknown == "copy":
        lost.append("unknown")
    return [f"decoding.{name} {getattr(decoding, name)}" for name in lost]


def silent_ids(model: PortableModel) -> list[int]:
    """Returns the target ids that are never generated: padding, the begin mark, and in some models <unk>.

    <unk> is never generated if decoding.unknown is `ban` or if the vocabulary has byte fallback.
    """
    vocabulary = model.target
    is_shown = FIRST_BYTE not in vocabulary.pieces and model.config.decoding.unknown != "ban"
    shown = vocabulary.special.unknown if is_shown else None
    return [id_ for id_ in vocabulary.special.never_generated if id_ != shown]


def _positions(config: Config) -> int:
    """Returns the most tokens that a sentence may have, including the end mark.

    This number is data.max_length + 1, but at least LEAST_POSITIONS.
    """
    return max(LEAST_POSITIONS, config.data.max_length + 1)


# Reading.

# Generation settings that mtkit does not have, each with the values (besides null) that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "diversity_penalty": (0.0,),
    "do_sample": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "max_time": (),
    "min_p": (0.0,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0.0,),
    "repetition_penalty": (1.0,),
    "sequence_bias": ([], {}),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "typical_p": (1.0,),
}
# The sampling settings, each with a function that returns whether mtkit accepts a value.
SAMPLING: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: type(value) in (int, float) and 1e-9 <= value <= 1000,
    "top_k": lambda value: _is_count(value),
    "top_p": lambda value: type(value) in (int, float) and 0 < value <= 1,
}
LONGEST_SHOWN = 60  # most characters of a value that a message shows


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _one(value: Any) -> Any:
    """Returns the element of a list of length 1; returns any other value unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _row(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _rows(value: Any) -> list[list[Any]]:
    return [_row(each) for each in _row(value)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class TheirConfig:
    """The config.json and generation_config.json of a checkpoint.

    A method that finds a wrong value raises a CheckpointError that names the file, the key and the value.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / CONFIG
        self.content = read_json(self.path)
        generation = directory / GENERATION
        self.generation = read_json(generation) if generation.exists() else {}

    def number(self, key: str, default: int | None = None) -> int:
        """Returns the non-negative integer under `key` in config.json; `default` if the value is null or missing."""
        value = self.content.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants a whole number")
        return value

    def token(self, key: str, vocab_size: int, default: int | None = None) -> int | None:
        """Returns the token id under `key` in config.json, where the value is the id itself or a list of one id.

        Returns `default` if the key is missing, and `None` if the value is null.
        """
        value = _one(self.content.get(key, default))
        if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants one id below {vocab_size}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Returns the boolean under `key` in config.json; `default` if the key is missing."""
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} is {value!r}, wants true or false")
        return value

    def require(self, key: str, wanted: object) -> None:
        """Raises CheckpointError if the value under `key` in config.json is not `wanted`.

        mtkit supports no other value than `wanted`. A missing key is accepted.
        """
        value = self.content.get(key, wanted)
        if value != wanted:
            raise CheckpointError(
                f"{self.path}: {key} is {json.dumps(value)}; mtkit imports {json.dumps(wanted)} alone"
            )

    def rate(self, key: str) -> float:
        """Returns the dropout rate under `key` in config.json, or 0 if the rate is missing or invalid.

        Dropout does not affect translations, so an invalid rate raises no error.
        """
        value = self.content.get(key, 0.0)
        return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.0

    @property
    def activation(self) -> str:
        """The name that mtkit has for the activation function; raises CheckpointError if mtkit lacks the function."""
        value = self.content.get("activation_function")
        if not isinstance(value, str) or value not in ACTIVATIONS_READ:
            raise CheckpointError(
                f"{self.path}: activation_function is {value!r}; mtkit imports {', '.join(ACTIVATIONS_READ)}"
            )
        return ACTIVATIONS_READ[value]

    def generation_value(self, key: str) -> Any:
        """Returns the generation setting `key` from generation_config.json, else from config.json; else `None`."""
        return self.generation.get(key, self.content.get(key))

    def settings(self, directory: Path, model: dict[str, Any]) -> Config:
        """Returns mtkit's settings for the checkpoint; raises CheckpointError if mtkit does not support the model.

        `model` has the model settings that differ between Marian and M2M100. The setting `name` is set to the name of
        the folder `directory`.
        """
        self._check_generation()
        beam_size, length_penalty = self.generation_value("num_beams"), self.generation_value("length_penalty")
        heads, d_ff = self.number("encoder_attention_heads"), self.number("encoder_ffn_dim")
        decoder_heads, decoder_d_ff = self.number("decoder_attention_heads"), self.number("decoder_ffn_dim")
        settings = {
            "name": directory.resolve().name or "imported",
            "data": {"max_length": max(1, min(self.number("max_position_embeddings", 1024) - 1, 1023))},
            "model": {
                "architecture": "transformer",
                "d_model": self.number("d_model"),
                "num_heads": heads,
                "d_ff": d_ff,
                "encoder_layers": self.number("encoder_layers"),
                "decoder_layers": self.number("decoder_layers"),
                **({"decoder_num_heads": decoder_heads} if decoder_heads != heads else {}),
                **({"decoder_d_ff": decoder_d_ff} if decoder_d_ff != d_ff else {}),
                "activation": self.activation,
                "scale_embeddings": self.flag("scale_embedding", False),
                "dropout": self.rate("dropout"),
                "attention_dropout": self.rate("attention_dropout"),
                "activation_dropout": self.rate("activation_dropout"),
                **model,
            },
            "tokenizer": {"shared": model["tie_embeddings"] == "all"},
            "decoding": {
                **({"beam_size": beam_size} if type(beam_size) is int and beam_size > 0 else {}),
                **({"length_penalty": float(length_penalty)} if type(length_penalty) in (int, float) else {}),
                **({"stopping": "count"} if self.generation_value("early_stopping") is True else {}),
                **self._constraints(),
                **self._sampling(),
            },
        }
        try:
            return Config.model_validate_json(json.dumps(settings))
        except ValueError as error:
            _, setting, problem, *_ = (line.strip() for line in str(error).splitlines())
            problem = problem.partition(" [type=")[0]
            message = problem.removeprefix("Value error, ")  # a message with this prefix names the setting itself
            if message == problem:
                message = f"{setting.replace('model.transformer.', 'model.')}: {problem}"
            raise CheckpointError(f"{self.path}: {message}") from None

    def _constraints(self) -> dict[str, int]:
        """Returns mtkit's decoding settings min_length and no_repeat_ngram, each only if the checkpoint sets it.

        In Hugging Face transformers, min_length counts the start token, so 1 is subtracted.
        """
        found = {}
        least, new, ngram = (
            self.generation_value(key) for key in ("min_length", "min_new_tokens", "no_repeat_ngram_size")
        )
        shortest = new if _is_count(new) else least - 1 if _is_count(least) else 0
        if shortest > 0:
            found["min_length"] = shortest
        if _is_count(ngram) and ngram > 0:
            found["no_repeat_ngram"] = ngram
        return found

    @property
    def _samples(self) -> bool:
        """Whether the checkpoint's settings make Hugging Face transformers sample without beam search.

        Sampling with beam search does not count, since mtkit cannot combine the two.
        """
        return self.generation_value("do_sample") is True and self.generation_value("num_beams") in (None, 1)

    def _sampling(self) -> dict[str, Any]:
        """Returns mtkit's decoding settings for sampling; an empty dict if the checkpoint does not ask for sampling.

        In Hugging Face transformers, a missing top_k means 50, and a top_k of 0 means that tokens are sampled from the
        whole vocabulary.
        """
        if not self._samples:
            return {}
        found: dict[str, Any] = {"method": "sample"}
        values = {key: self.generation_value(key) for key in SAMPLING if SAMPLING[key](self.generation_value(key))}
        if "temperature" in values:
            found["temperature"] = values["temperature"]
        if top_k := values.get("top_k", 50):
            found["top_k"] = top_k
        if values.get("top_p", 1) < 1:
            found["top_p"] = values["top_p"]
        return found

    def ignored(self, silent: Collection[int]) -> list[str]:
        """Returns a text such as "epsilon_cutoff 0.1" for each generation setting that mtkit cannot carry over.

        Only settings that affect translations are returned. `silent` has the ids that mtkit never generates; settings
        that only forbid these ids are left out.
        """
        found = {key: value for key in NEUTRAL if (value := self.generation_value(key)) not in (None, *NEUTRAL[key])}
        words = [word for word in _rows(found.pop("bad_words_ids", [])) if not (len(word) == 1 and word[0] in silent)]
        suppressed = [id_ for id_ in _row(found.pop("suppress_tokens", [])) if id_ not in silent]
        end = _one(self.content.get("eos_token_id"))
        if _one(found.get("forced_eos_token_id")) == end:
            found.pop("forced_eos_token_id", None)  # at the maximum length, it ends translations as mtkit does
        for key in ("min_length", "min_new_tokens", "no_repeat_ngram_size"):
            if (value := self.generation_value(key)) is not None and not _is_count(value):
                found[key] = value
        if self._samples:
            found.pop("do_sample")
            wrong = (key for key, is_right in SAMPLING.items() if not is_right(self.generation_value(key)))
            found |= {key: value for key in wrong if (value := self.generation_value(key)) is not None}
        found |= {"bad_words_ids": words} if words else {}
        found |= {"suppress_tokens": suppressed} if suppressed else {}
        return [f"{key} {_short(value)}" for key, value in sorted(found.items())]

    def bans(self, id_: int) -> bool:
        """Whether the checkpoint's generation settings forbid the token `id_`."""
        words, suppressed = (self.generation_value(key) or [] for key in ("bad_words_ids", "suppress_tokens"))
        return [id_] in _rows(words) or id_ in _row(suppressed)

    def _check_generation(self) -> None:
        """Raises CheckpointError if the checkpoint forces a first token, or if its files contradict each other.

        A contradiction is that config.json and generation_config.json give a special token different ids.
        """
        if (forced := self.generation_value("forced_bos_token_id")) is not None:
            raise CheckpointError(f"{self.path}: forced_bos_token_id is {forced!r}; mtkit forces no first token")
        for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
            here, there = _one(self.content.get(key)), _one(self.generation.get(key))
            if here is not None and there is not None and here != there:
                raise CheckpointError(f"{self.path}: {key} is {here!r}, and {there!r} in {GENERATION}; make them agree")
