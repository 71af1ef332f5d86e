"""Writes and reads files of Hugging Face's MarianMTModel and M2M100: weights, tokenizers, vocabularies of Marian.

In shapes, P is the number of positions, D the model width and V the vocabulary size.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkit.bundle.bundle import not_finite
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError
from mtkit.exchange.portable import (
    PortableModel,
    TheirConfig,
    Vocabulary,
    added_token,
    read_json,
    reordered,
    require_expressible,
    require_fetched,
    tokenizer_json,
    write_configs,
)
from mtkit.text.vocabulary import Piece, SpecialIds, cuts_at_spaces, is_whole, model_type_of, pieces_of

# Names and shapes of weights: "ours" are those of mtkit, "theirs" those of Hugging Face transformers.

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

SELF_ATTENTION = {
    "attention.query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.out_proj",),
    "around_attention.norm": ("self_attn_layer_norm",),
}
SOURCE_ATTENTION = {
    "source_attention.query": ("encoder_attn.q_proj",),
    "source_attention.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "source_attention.output": ("encoder_attn.out_proj",),
    "around_source_attention.norm": ("encoder_attn_layer_norm",),
}
FEED_FORWARD = {
    "feed_forward.inner": ("fc1",),
    "feed_forward.output": ("fc2",),
    "around_feed_forward.norm": ("final_layer_norm",),
}

# For each value of tie_embeddings, EMBEDDINGS maps mtkit's names of the embedding matrices to the names in Hugging Face
# transformers. A checkpoint may store such a matrix again under a second name. COPIES maps each second name to the name
# in EMBEDDINGS.
EMBEDDINGS = {
    "all": {"encoder.embedded.embedding.weight": "model.shared.weight"},
    "decoder": {
        "encoder.embedded.embedding.weight": "model.encoder.embed_tokens.weight",
        "decoder.embedded.embedding.weight": "model.decoder.embed_tokens.weight",
    },
    "none": {
        "encoder.embedded.embedding.weight": "model.encoder.embed_tokens.weight",
        "decoder.embedded.embedding.weight": "model.decoder.embed_tokens.weight",
        "decoder.output.table.weight": "lm_head.weight",
    },
}
COPIES = {
    "all": dict.fromkeys(
        ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
        "model.shared.weight",
    ),
    "decoder": {"lm_head.weight": "model.decoder.embed_tokens.weight"},
    "none": {},
}
OUTPUT_BIAS = ("decoder.output.bias", "final_logits_bias")

KINDS = ("weight", "bias")

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # the types whose values float32 represents exactly


def names_of(config: TransformerConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (name in mtkit, names in Hugging Face transformers) for each weight of a model, except the output bias.

    A weight with several names in Hugging Face transformers is the concatenation of the weights with these names.
    """
    yield from ((ours, (theirs,)) for ours, theirs in EMBEDDINGS[config.tie_embeddings].items())
    layer = SELF_ATTENTION | FEED_FORWARD
    stacks = (("encoder", config.encoder_layers, layer), ("decoder", config.decoder_layers, layer | SOURCE_ATTENTION))
    for side, depth, modules in stacks:
        for number in range(depth):
            place = f"{side}.layers.{number}"
            for (ours, theirs), kind in product(modules.items(), KINDS):
                yield f"{place}.{ours}.{kind}", tuple(f"model.{place}.{name}.{kind}" for name in theirs)
        if config.norm_placement == "pre":
            yield from ((f"{side}.norm.{kind}", (f"model.{side}.layer_norm.{kind}",)) for kind in KINDS)


def shape_of(name: str, config: TransformerConfig, sizes: tuple[int, int]) -> tuple[int, ...]:
    """Returns the shape that the Hugging Face weight called `name` must have in a model with the settings `config`.

    `sizes` are the sizes of the source and target vocabularies.
    """
    is_source = ".encoder." in name
    module, kind = name.split(".")[-2:]
    d_model, d_ff = config.d_model, config.d_ff if is_source else config.decoder_d_ff or config.d_ff
    vocab_size = sizes[0] if is_source else sizes[1]
    rows = {"fc1": d_ff, "shared": vocab_size, "embed_tokens": vocab_size, "lm_head": vocab_size}.get(module, d_model)
    columns = {"fc2": d_ff}.get(module, d_model)
    return (rows,) if kind == "bias" or "norm" in module else (rows, columns)


def their_weights(config: TransformerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `weights`, converted from mtkit's names and shapes to those of Hugging Face transformers."""
    found = {}
    for ours, theirs in names_of(config):
        for name, part in zip(theirs, weights[ours].chunk(len(theirs)), strict=True):
            found[name] = part.contiguous()
    ours, theirs_bias = OUTPUT_BIAS
    if ours in weights:
        found[theirs_bias] = weights[ours][None].contiguous()  # (1, V)
    return found


def our_weights(
    config: TransformerConfig, weights: dict[str, Tensor], path: Path, sizes: tuple[int, int]
) -> dict[str, Tensor]:
    """Returns `weights`, converted from the names and shapes of Hugging Face transformers to mtkit's.

    `sizes` are the sizes of the source and target vocabularies. Raises CheckpointError if a weight is missing, does not
    belong to the model or has a wrong shape; the message begins with `path`.
    """
    left = dict(weights)
    for copy, original in COPIES[config.tie_embeddings].items():
        if original not in left and copy in left:
            left[original] = left[copy]  # an older transformers may store only the copy
        if copy in left and not torch.equal(left.pop(copy), left[original]):
            raise CheckpointError(f"{path}: {copy} is not {original}; the settings say that they share one matrix")
    found = {}
    for ours, theirs in names_of(config):
        parts = []
        for name in theirs:
            if name not in left:
                raise CheckpointError(f"{path}: holds no {name}, which its config.json asks for")
            _require_shape(path, name, left[name], shape_of(name, config, sizes))
            parts.append(left.pop(name))
        found[ours] = torch.cat(parts) if len(parts) > 1 else parts[0]
    ours, theirs_bias = OUTPUT_BIAS
    if config.output_bias:
        bias = left.pop(theirs_bias, torch.zeros(1, sizes[1]))
        if bias.dim() == 2 and bias.shape[1] < sizes[1]:  # transformers pads embeddings, but not the bias
            bias = torch.nn.functional.pad(bias, (0, sizes[1] - bias.shape[1]))
        _require_shape(path, theirs_bias, bias, (1, sizes[1]))
        found[ours] = bias[0]
    if left:
        raise CheckpointError(f"{path}: holds {sorted(left)[0]}, which no model of its config.json has")
    return found


def _require_shape(path: Path, name: str, weight: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(weight.shape) != wanted:
        raise CheckpointError(f"{path}: {name} is {tuple(weight.shape)}, its config.json asks for {wanted}")


# Files of weights.


def save_weights(weights: Mapping[str, Tensor], directory: Path) -> None:
    """Writes `weights` to the file model.safetensors in `directory`, as Hugging Face transformers does."""
    save_file(dict(weights), directory / WEIGHTS, metadata={"format": "pt"})


def load_weights(directory: Path) -> tuple[dict[str, Tensor], Path]:
    """Returns the tensors of a checkpoint in float32, and the path of the file that contains or lists the tensors.

    A checkpoint that is split into several files has an index, which lists the tensors. No code in the checkpoint is
    run. Raises CheckpointError if weights are missing, damaged or not finite.
    """
    path = next((directory / name for name in READERS if (directory / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{directory}: holds no weights; wants one of {', '.join(READERS)}")
    read = READERS[path.name]
    if path.name in (INDEX, PICKLED_INDEX):
        weights: dict[str, Tensor] = {}
        shards = _shards(path)
        for file in sorted({*shards.values()}):
            weights |= read(directory / file)
        if missing := sorted(shards.keys() - weights.keys()):
            raise CheckpointError(
                f"{directory / shards[missing[0]]}: holds no {missing[0]}, which {path.name} says; "
                "copy the checkpoint again"
            )
    else:
        weights = read(path)
    for name, weight in weights.items():
        if weight.dtype not in FLOATS:
            kinds = " and ".join(str(kind).removeprefix("torch.") for kind in FLOATS)
            found = str(weight.dtype).removeprefix("torch.")
            raise CheckpointError(f"{path}: {name} is {found}; mtkit imports {kinds}")
    if fault := not_finite(weights):
        raise CheckpointError(f"{path}: {fault}; take a checkpoint whose training did not fail")
    return {name: weight.float() for name, weight in weights.items()}, path


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    require_fetched(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or missing: {error}; copy the checkpoint again") from None


def _shards(path: Path) -> dict[str, str]:
    """Returns {weight name: file name} from `path`, the index of a checkpoint that is split into several files.

    Raises CheckpointError if the index is damaged, or names a file outside the folder of the index.
    """
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in [*shards.values(), *([] if shards else [None])]
    ):
        raise CheckpointError(f"{path}: damaged; copy the checkpoint again")
    return shards


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """Returns the tensors in a pickle file, loaded by torch.load with weights_only=True.

    Raises CheckpointError if the file cannot be loaded or has other content. PyTorch's message may advise the user to
    load the file in a way that runs code, so the error does not quote this message.
    """
    require_fetched(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the checkpoint again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged or hostile file may raise anything
        raise CheckpointError(
            f"{path}: is cut off or damaged, or holds more than tensors, and mtkit runs no code of a checkpoint; "
            f"copy it again, or save the model as {WEIGHTS}"
        ) from None
    if not isinstance(content, dict) or not all(map(_is_plain, content, content.values())):
        raise CheckpointError(f"{path}: holds no table of tensors; copy the checkpoint again")
    return {name: weight.detach() for name, weight in content.items()}


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {  # by file name; the first file that exists is read
    WEIGHTS: _load_safetensors,
    INDEX: _load_safetensors,
    PICKLED: _load_pickled,
    PICKLED_INDEX: _load_pickled,
}


def _is_plain(name: object, weight: object) -> bool:
    """Whether `name` is a string, and `weight` a dense tensor on the CPU with enough storage for all its elements."""
    return (
        isinstance(name, str)
        and isinstance(weight, Tensor)
        and weight.layout == torch.strided
        and weight.device.type == "cpu"
        and weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
    )


# MarianMTModel, the layout of the OPUS-MT models (Tiedemann & Thottingal 2020).

# Keys of config.json that change the architecture, with the values that they have in all Marian models.
OTHERS = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": True,
    "extra_pos_embeddings": 0,
}


def check_marian(config: Config) -> None:
    """Raises CheckpointError if the files of a MarianMTModel cannot express the model that `config` describes."""
    require_expressible(config, "marian")


def in_marian_order(model: PortableModel) -> PortableModel:
    """Returns `model` with the ids in the usual order of Marian models: end mark 0, <unk> 1, padding last.

    If source and target have separate vocabularies, padding gets the same id in both: the last id of the smaller
    vocabulary.

    No id changes if padding already has a suitable id. In a shared vocabulary, this is the last id. In separate
    vocabularies, it is any id except 0 that padding has in both. Models imported from Marian usually need no change.
    """
    if _is_shared(model.config.model):
        order = _order(model.source, len(model.source.pieces) - 1)
        return reordered(model, order, order)
    pad = min(len(model.source.pieces), len(model.target.pieces)) - 1
    if model.source.special.pad == model.target.special.pad and model.target.special.pad > 0:
        return model
    return reordered(model, _order(model.source, pad), _order(model.target, pad))


def _order(vocabulary: Vocabulary, pad: int) -> list[int]:
    """Returns the ids of `vocabulary` in a new order, in which padding is at index `pad`.

    The end mark comes first, then <unk>, then all other ids in their old order. If padding already has the id `pad`,
    the order does not change at all.
    """
    special, size = vocabulary.special, len(vocabulary.pieces)
    if special.pad == pad:
        return list(range(size))
    first = [special.end, special.unknown]
    others = [id_ for id_ in range(size) if id_ not in (*first, special.pad)]
    return [*(first + others)[:pad], special.pad, *(first + others)[pad:]]


def write_marian_weights(model: PortableModel, directory: Path) -> None:
    """Writes `model` to `directory` as the weights and configuration files of a MarianMTModel, without changing ids."""
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    bias = torch.zeros(len(model.target.pieces))
    weights = {"decoder.output.bias": bias, **model.weights}  # a MarianMTModel always has this bias
    save_weights(their_weights(config, weights), directory)
    write_configs(
        model,
        directory,
        {
            "architectures": ["MarianMTModel"],
            "model_type": "marian",
            "decoder_vocab_size": len(model.target.pieces),
            "share_encoder_decoder_embeddings": _is_shared(config),
            "add_final_layer_norm": False,
            "normalize_before": False,
            "normalize_embedding": False,
            "static_position_embeddings": True,
        },
    )


def read_marian(directory: Path) -> PortableModel:
    """Returns the MarianMTModel in `directory`; raises CheckpointError if the model cannot be imported.

    In the vocabularies of the returned model, every piece is an empty string: the texts of the pieces are in other
    files, which are not read here.
    """
    theirs = TheirConfig(directory)
    for key, wanted in OTHERS.items():
        theirs.require(key, wanted)
    shares, ties = theirs.flag("share_encoder_decoder_embeddings", True), theirs.flag("tie_word_embeddings", True)
    if shares and not ties:
        raise CheckpointError(
            f"{theirs.path}: tie_word_embeddings is false and share_encoder_decoder_embeddings true; mtkit imports "
            "what shares the output layer too"
        )
    weights, path = load_weights(directory)
    tie = "all" if shares else "decoder" if ties else "none"
    vocab_size = theirs.number("vocab_size")
    sizes = vocab_size, vocab_size if shares else theirs.number("decoder_vocab_size", vocab_size)
    pad, end = theirs.token("pad_token_id", min(sizes)), theirs.token("eos_token_id", sizes[1])
    if pad is None or end is None:
        key, what = ("pad_token_id", "padding") if pad is None else ("eos_token_id", "the end mark")
        raise CheckpointError(f"{theirs.path}: {key} is missing; wants the id of {what}")
    begin, start = theirs.token("bos_token_id", sizes[1]), theirs.token("decoder_start_token_id", sizes[1], pad)
    begin = None if begin in (end, pad) else begin
    config = theirs.settings(
        directory,
        {
            "norm_placement": "post",
            "tie_embeddings": tie,
            "output_bias": True,
            "start_token": _start(theirs, start, pad, end, begin, weights),
        },
    )
    assert isinstance(config.model, TransformerConfig)
    ours = our_weights(config.model, _without_positions(weights, path), path, sizes)
    source, target = (Vocabulary([""] * size, SpecialIds(pad, 1, begin, end)) for size in sizes)
    return PortableModel(config, ours, source, target)


def _start(
    theirs: TheirConfig, start: int | None, pad: int, end: int, begin: int | None, weights: dict[str, Tensor]
) -> str:
    """Returns the value of mtkit's setting model.start_token: "pad", "zero", "end" or "begin".

    "zero" means that the decoder starts with padding, and that the embedding of padding is all zeros. `start` is the id
    of the start token. Raises CheckpointError if `start` is none of the ids `pad`, `end` and `begin`.
    """
    if start == pad:
        tables = ("model.decoder.embed_tokens.weight", "model.shared.weight", "lm_head.weight")
        table = next((weights[name] for name in tables if name in weights), None)
        is_table = table is not None and table.dim() == 2 and pad < len(table)
        return "zero" if table is not None and is_table and not table[pad].any() else "pad"
    if start is not None and start in (end, begin):
        return "end" if start == end else "begin"
    raise CheckpointError(
        f"{theirs.path}: decoder_start_token_id is {start}; wants pad_token_id, eos_token_id or bos_token_id"
    )


def _without_positions(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns `weights` without the tables of positions that older versions of Hugging Face transformers stored.

    Raises CheckpointError if such a table does not consist of Marian's sinusoids.
    """
    kept = {}
    for name, weight in weights.items():
        if not name.endswith(("embed_positions.weight", "embed_positions.weights")):
            kept[name] = weight
        elif weight.dim() != 2 or weight.shape[1] % 2 or not _are_sinusoids(weight):
            raise CheckpointError(f"{path}: {name} holds other positions than Marian's sinusoids")
    return kept


def _are_sinusoids(weight: Tensor) -> bool:
    # The tolerance is the precision of bfloat16, in which a table may be stored.
    return torch.allclose(weight, _sinusoids(*weight.shape), rtol=0, atol=2**-8)


def _sinusoids(num_positions: int, d_model: int) -> Tensor:
    """Returns the table (P, D) of Marian's sinusoidal position encodings.

    The row of position p has the sines of p / 10000^(2i/D) for i from 0 to D/2 - 1, then the cosines of these angles.
    """
    waves = 10000.0 ** (-2 * torch.arange(d_model // 2, dtype=torch.float64) / d_model)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _is_shared(config: object) -> bool:
    return isinstance(config, TransformerConfig) and config.tie_embeddings == "all"


# M2M100ForConditionalGeneration (Fan et al. 2021): fairseq's Transformer with norms before sublayers.

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3  # fairseq's ids; the position of the first token is PAD + 1


def check_m2m100(config: Config) -> None:
    """Raises CheckpointError if the files of M2M100 cannot express the model that `config` describes."""
    require_expressible(config, "m2m100")


def in_m2m100_order(model: PortableModel) -> PortableModel:
    """Returns `model` with the special ids of fairseq: begin mark 0, padding 1, end mark 2, <unk> 3; other ids follow.

    Raises CheckpointError if the vocabulary has no begin mark.
    """
    special, size = model.source.special, len(model.source.pieces)
    if special.begin is None:
        raise CheckpointError("the vocabulary has no begin mark; M2M100 files want one")
    first = [special.begin, special.pad, special.end, special.unknown]
    order = [*first, *(id_ for id_ in range(size) if id_ not in first)]
    return reordered(model, order, order)


def write_m2m100_weights(model: PortableModel, directory: Path) -> None:
    """Writes `model` to `directory` as the weights and configuration files of M2M100, without changing ids."""
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    save_weights(their_weights(config, model.weights), directory)
    write_configs(model, directory, {"architectures": ["M2M100ForConditionalGeneration"], "model_type": "m2m_100"})


def read_m2m100(directory: Path) -> PortableModel:
    """Returns the M2M100 model in `directory`; raises CheckpointError if the model cannot be imported.

    In the vocabularies of the returned model, every piece is an empty string: the texts of the pieces are in other
    files, which are not read here.
    """
    theirs = TheirConfig(directory)
    theirs.require("tie_word_embeddings", True)
    theirs.require("pad_token_id", PAD)
    vocab_size = theirs.number("vocab_size")
    end, begin = theirs.token("eos_token_id", vocab_size, END), theirs.token("bos_token_id", vocab_size)
    start = theirs.token("decoder_start_token_id", vocab_size, END)
    if end is None:
        raise CheckpointError(f"{theirs.path}: eos_token_id is missing; wants the id of the end mark")
    if start is None or start not in (begin, end):
        raise CheckpointError(f"{theirs.path}: decoder_start_token_id is {start}; wants eos_token_id or bos_token_id")
    config = theirs.settings(
        directory,
        {
            "scale_embeddings": theirs.flag("scale_embedding", True),
            "tie_embeddings": "all",
            "start_token": "end" if start == end else "begin",
            "sinusoid_exponent": "tensor2tensor",
            "sinusoid_first": 2,
        },
    )
    assert isinstance(config.model, TransformerConfig)
    weights, path = load_weights(directory)
    weights = {n: w for n, w in weights.items() if "embed_positions" not in n}  # sinusoids, equal in all models
    ours = our_weights(config.model, weights, path, (vocab_size, vocab_size))
    special = SpecialIds(PAD, UNKNOWN, None if begin == end else begin, end)
    side = Vocabulary([""] * vocab_size, special)
    return PortableModel(config, ours, side, side)


# Writing Hugging Face's tokenizer files.

SOURCE_MODEL, TARGET_MODEL = "source.spm", "target.spm"
VOCABULARY, TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
SETTINGS, SPECIAL_TOKENS, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"

ADDED_TOKENS = "added_tokens.json"
TAG = re.compile(r"[<\[_>]\S*[>\]_<]")  # the form that an added token must have to become a tag
SPECIAL = ("<pad>", "<unk>", "</s>", "<s>", "<mask>")

MAX_LENGTH = 512  # tokens, as in OPUS-MT's models; an exported model has at least as many positions

# The special tokens that are assumed if no file names them.
NAMES = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>"}


def write_marian_tokenizer(model: PortableModel, directory: Path) -> None:
    """Writes the files of a MarianTokenizer for `model` to `directory`.

    The tokenizer encodes and decodes as mtkit does, except in the cases that `Tokenizer.source_sentencepiece` lists and
    in three more:

    - At the start of a line, text between >> and << is one token without a space mark (▁) before it.
    - Unknown text that is written like a special token becomes that token.
    - Decoding with skip_special_tokens drops <unk>, and strips white space of all kinds.

    If a MarianTokenizer would misread some tags, that is, encode them to other ids than mtkit does, the files of
    `write_m2m100_tokenizer` are written instead.

    Raises ConfigError in these cases:

    - A MarianTokenizer would misread some tags, and `write_m2m100_tokenizer` cannot write the model, for example
      because its vocabulary is not shared.
    - The special tokens of source and target differ.
    - The model has a tokenizer of type `word`. A MarianTokenizer would encode several unknown words in a row as a
      single <unk>.
    """
    _require_no_words(model)
    shared = model.source.pieces == model.target.pieces
    if tags := misread_tags(model):
        if not shared:
            raise ConfigError(
                f"tag {tags[0]}: a MarianTokenizer would read it as other ids, and with tokenizer.shared false no "
                "other tokenizer there reads the model; export --to ctranslate2, or train with tags such as <2xx>"
            )
        write_m2m100_tokenizer(model, directory)
        return
    names = [[side.pieces[id_] for id_ in side.special.all] for side in (model.source, model.target)]
    if names[0] != names[1]:
        raise ConfigError(
            f"the special tokens of the source are {' '.join(names[0])}, those of the target {' '.join(names[1])}; "
            "Hugging Face's Marian wants the same for both, --to ctranslate2 takes them as they are"
        )
    _write_vocabularies(model, directory, shared)
    settings = {"separate_vocabs": not shared, "sp_model_kwargs": {}}
    _write_settings(model, directory, "MarianTokenizer", settings)


def misread_tags(model: PortableModel) -> list[str]:
    """Returns the tags that a MarianTokenizer would encode to other ids than mtkit does.

    There are two kinds of such tags:

    - Tags written like >>eng<<, if the SentencePiece model has them: they would lose the space mark (▁) before them.
    - Tags written in another way, if the SentencePiece model lacks them: they would be split into pieces.
    """
    pieces = pieces_of(model.source.sentencepiece)
    known = [piece.text for piece in pieces if piece.type == "user_defined" and _is_language(piece.text)]
    return [*known, *(tag for tag in model.loose_tags if not _is_language(tag))]


def write_m2m100_tokenizer(model: PortableModel, directory: Path) -> None:
    """Writes a tokenizer.json, a file of tokenizer settings, and the vocabulary files that mtkit needs for an import.

    With these files, AutoTokenizer encodes as `Tokenizer.encode_source` does and appends the end mark, except in the
    cases that `tokenizer_json` lists and in two more:

    - A tag that the SentencePiece model lacks is one token anywhere in a line.
    - Target texts are normalised by the rule of the source.

    Raises ConfigError in each of three cases: the tokenizer has type `word`, the vocabulary is not shared, or the
    SentencePiece model does not split text at spaces.
    """
    _require_no_words(model)
    if model.source.pieces != model.target.pieces:
        raise ConfigError(
            "tokenizer.shared false: M2M100 has one vocabulary for both sides; train with tokenizer.shared true"
        )
    if not cuts_at_spaces(model.source.sentencepiece):
        raise ConfigError(
            "the SentencePiece model of this tokenizer does not cut text at its spaces, as a tokenizer.json does; "
            "--to ctranslate2 and --to marian take it as it is"
        )
    _write_vocabularies(model, directory, shared=True)
    _write(directory / TOKENIZER, tokenizer_json(model.source, model.loose_tags))
    _write_settings(model, directory, "PreTrainedTokenizerFast", {})


def _require_no_words(model: PortableModel) -> None:
    if "word" in (model_type_of(model.source.sentencepiece), model_type_of(model.target.sentencepiece)):
        raise ConfigError(
            "tokenizer.type word: Hugging Face's tokenizers make one token of several unknown words in a row; "
            "train with tokenizer.type bpe, unigram or char"
        )


def _write_vocabularies(model: PortableModel, directory: Path, shared: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SOURCE_MODEL).write_bytes(model.source.sentencepiece)
    (directory / TARGET_MODEL).write_bytes(model.target.sentencepiece)
    _write(directory / VOCABULARY, {piece: id_ for id_, piece in enumerate(model.source.pieces)})
    if not shared:
        _write(directory / TARGET_VOCABULARY, {piece: id_ for id_, piece in enumerate(model.target.pieces)})


def _write_settings(model: PortableModel, directory: Path, tokenizer_class: str, more: Mapping[str, Any]) -> None:
    special, pieces = model.source.special, model.source.pieces
    names = {"eos_token": special.end, "unk_token": special.unknown, "pad_token": special.pad}
    tokens = {name: pieces[id_] for name, id_ in names.items()}
    _write(directory / SPECIAL_TOKENS, tokens)
    settings = {
        "tokenizer_class": tokenizer_class,
        "source_lang": model.config.languages.source,
        "target_lang": model.config.languages.target,
        "model_max_length": MAX_LENGTH,
        **tokens,
        # Text that is written like a special token is encoded as any other text.
        "split_special_tokens": True,
        # Decoding keeps spaces before punctuation.
        "clean_up_tokenization_spaces": False,
        **more,
    }
    if loose := [tag for tag in model.loose_tags if not _is_language(tag)]:
        if words := [tag for tag in loose if not TAG.fullmatch(tag)]:
            raise ConfigError(
                f"tag {words[0]}: SentencePiece does not know it, and transformers would cut it out of lines wherever "
                "it stands; export --to ctranslate2"
            )
        settings["added_tokens_decoder"] = {
            str(pieces.index(token)): added_token(token, special=token in tokens.values())
            for token in (*tokens.values(), *loose)
        }
    _write(directory / SETTINGS, settings)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# Reading Hugging Face's tokenizer files.


@dataclass(frozen=True)
class MarianVocabulary:
    """The vocabularies, languages and tags in the files of a MarianTokenizer, or in Marian's own files."""

    source: Vocabulary
    target: Vocabulary
    shared: bool
    languages: tuple[str | None, str | None]  # codes of source and target; None if the files do not name the language
    symbols: tuple[str, ...]  # tags, such as >>fra<<, that the SentencePiece model lacks
    defined: tuple[str, ...]  # user-defined pieces of the source's SentencePiece model, such as mtkit's own tags


def read_marian_vocabulary(directory: Path) -> MarianVocabulary:
    """Returns the vocabularies of the MarianTokenizer in `directory`.

    Raises CheckpointError if a file is missing, damaged or contradicts another file.
    """
    _require_parts(directory)
    settings = _read(directory / SETTINGS) if (directory / SETTINGS).exists() else {}
    if (directory / SPECIAL_TOKENS).exists():
        settings = {**_read(directory / SPECIAL_TOKENS), **settings}
    separate = settings.get("separate_vocabs") is True
    names = VOCABULARY, TARGET_VOCABULARY if separate else VOCABULARY
    source, target = (
        _read_side(directory / name, directory / model, settings)
        for name, model in zip(names, (SOURCE_MODEL, TARGET_MODEL), strict=True)
    )
    added = _added_tokens(directory, settings, source.pieces)
    source = _with_added(source, added)
    target = target if separate else _with_added(target, added)
    known = {piece.text: piece.type for piece in pieces_of(source.sentencepiece)}
    defined = tuple(text for text, kind in known.items() if kind == "user_defined")
    return MarianVocabulary(
        source,
        target,
        shared=not separate,
        languages=(_text(settings.get("source_lang")), _text(settings.get("target_lang"))),
        symbols=tuple(
            piece for piece in source.pieces if (_is_language(piece) and piece not in defined) or piece in added
        ),
        defined=defined,
    )


def _require_parts(directory: Path) -> None:
    """Raises CheckpointError if `directory` has a tokenizer.json, but lacks other files that mtkit needs."""
    missing = [name for name in (VOCABULARY, SOURCE_MODEL, TARGET_MODEL) if not (directory / name).exists()]
    if missing and (directory / TOKENIZER).exists():
        raise CheckpointError(
            f"{directory}: its tokenizer is {TOKENIZER} alone, which mtkit does not read; copy {', '.join(missing)} "
            "here from the folder that the model was loaded from"
        )


def _added_tokens(directory: Path, settings: Mapping[str, Any], pieces: Sequence[str]) -> list[str]:
    """Returns the tokens that were added to the tokenizer, in the order of their ids; mtkit uses these tokens as tags.

    Hugging Face transformers finds an added token anywhere in a line; mtkit finds a tag only at the start of a line.
    `pieces` are the pieces of the vocabulary, by id. Raises CheckpointError in three cases:

    - The id of an added token contradicts `pieces`.
    - The ids beyond the end of `pieces` have gaps.
    - A token with an id beyond the end of `pieces` is not written like a tag, such as <2eo>.
    """
    path = directory / ADDED_TOKENS
    added: dict[str, Any] = _read(path) if path.exists() else {}
    decoder = settings.get("added_tokens_decoder")
    for id_, token in decoder.items() if isinstance(decoder, dict) else ():
        content = _text(token)
        if content is not None and id_.isdecimal():
            added.setdefault(content, int(id_))
            path = path if path.exists() else directory / SETTINGS
    ids = {piece: id_ for id_, piece in enumerate(pieces)}
    found: dict[int, str] = {}
    for content, id_ in added.items():
        if type(id_) is not int or ids.get(content, id_) != id_ or (id_ < len(pieces) and pieces[id_] != content):
            raise CheckpointError(f"{path}: gives {content!r} the id {id_!r}, and {VOCABULARY} says otherwise")
        if id_ >= len(pieces) or (TAG.fullmatch(content) and content not in SPECIAL):
            found[id_] = content
    for place, id_ in enumerate(sorted(id_ for id_ in found if id_ >= len(pieces)), start=len(pieces)):
        if id_ != place:
            raise CheckpointError(f"{path}: gives {found[id_]!r} the id {id_}, and no token has the id {place}")
        if not TAG.fullmatch(found[id_]):
            raise CheckpointError(
                f"{path}: transformers cuts the added token {found[id_]!r} out of lines wherever it stands, which "
                "mtkit cannot do; it reads added tokens such as <2eo> or [eo], as tags"
            )
    return [found[id_] for id_ in sorted(found)]


def _with_added(side: Vocabulary, added: Sequence[str]) -> Vocabulary:
    new = [token for token in added if token not in side.pieces]
    return replace(side, pieces=[*side.pieces, *new], scores=[*side.scores, *(0.0 for _ in new)])


def _is_language(piece: str) -> bool:
    """Whether `piece` is written >>…<<, which a MarianTokenizer treats as a language tag at the start of a line."""
    return piece.startswith(">>") and piece.endswith("<<")


def _read_side(vocabulary: Path, model: Path, settings: Mapping[str, Any]) -> Vocabulary:
    pieces = _read_pieces(vocabulary)
    found = _read_model(model)
    scores = _scores(model, found)
    ids = {piece: id_ for id_, piece in enumerate(pieces)}

    def named(name: str) -> int:
        token = _text(settings.get(name)) or NAMES[name]
        if token not in ids:
            raise CheckpointError(f"{vocabulary}: has no {token}, which is the {name} of this tokenizer")
        return ids[token]

    special = SpecialIds(
        pad=named("pad_token"),
        unknown=named("unk_token"),
        begin=ids.get(_text(settings.get("bos_token")) or NAMES["bos_token"]),
        end=named("eos_token"),
    )
    return Vocabulary(pieces, special, found, [scores.get(piece, 0.0) for piece in pieces])


def _text(token: Any) -> str | None:
    """Returns the text of `token`, which is a string or an object with a "content"; `None` for any other value."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_pieces(path: Path) -> list[str]:
    """Returns the pieces of a vocab.json, ordered by id; raises CheckpointError if an id is missing or occurs twice."""
    content = _read(path)
    if not content:
        raise CheckpointError(f"{path}: is empty; wanted is an id for each piece")
    by_id: dict[int, str] = {}
    for piece, id_ in content.items():
        if type(id_) is not int:
            raise CheckpointError(f"{path}: the id of {piece!r} is {id_!r}; wanted is a number from 0 on")
        if id_ in by_id:
            raise CheckpointError(f"{path}: {by_id[id_]!r} and {piece!r} have both the id {id_}; wanted is one each")
        by_id[id_] = piece
    missing = next((id_ for id_ in range(len(by_id)) if id_ not in by_id), None)
    if missing is not None:
        raise CheckpointError(f"{path}: no piece has the id {missing}; wanted are all from 0 to {len(by_id) - 1}")
    return [by_id[id_] for id_ in range(len(by_id))]


def _read_model(path: Path) -> bytes:
    require_fetched(path)
    try:
        return path.read_bytes()
    except OSError:
        raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None


def _scores(path: Path, model: bytes) -> dict[str, float]:
    try:
        pieces = pieces_of(model)
    except ValueError:
        pieces = []
    if not pieces:
        raise CheckpointError(f"{path}: not a SentencePiece model; copy it again")
    if not is_whole(model):
        raise CheckpointError(f"{path}: the SentencePiece model is cut off after its pieces; copy it again")
    return {piece.text: piece.score for piece in pieces}


def _read(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; raises CheckpointError if the file is missing, damaged or has a key twice."""
    require_fetched(path)
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError:
        raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; copy it again")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of a JSON object as a dict; raises ValueError if a key occurs more than once."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in content if keys.count(key) > 1)!r} stands there more than once")
    return content


# Reading Marian's vocabularies: SentencePiece models, or lists of pieces with SentencePiece models that split text.

END_PIECE, UNKNOWN_PIECE, PAD_PIECE = "</s>", "<unk>", "<pad>"
OLDER = {0: ("eos", END_PIECE), 1: ("UNK", UNKNOWN_PIECE)}  # by id, the token's name in Nematus and in Marian
MAPPINGS = (".yml", ".yaml", ".json")
SENTENCEPIECE, FACTORED = ".spm", ".fsv"
SIDES = ("source", "src"), ("target", "trg", "tgt")

# The escape sequences of double-quoted YAML, except those with character codes.
ESCAPES = dict(zip("0abtnvfreN_LP", "\0\a\b\t\n\v\f\r\x1b\x85\xa0\u2028\u2029", strict=True))
ESCAPES |= {character: character for character in '\t "/\\'}
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def read_vocabularies(
    directory: Path, named: Sequence[Path], sizes: tuple[int, int]
) -> tuple[Vocabulary, Vocabulary, list[Path]]:
    """Returns Marian's vocabularies of source and target, and the files that they were read from.

    Padding is added to each vocabulary as the last piece. `named` are the vocabulary files that a decoder.yml names; if
    `named` is empty, `directory` is searched for them. `sizes` are the vocabulary sizes of the model, without padding.
    Raises CheckpointError if a file is missing or damaged, or if its number of pieces is not the one in `sizes`.
    """
    paths = list(named) or _find(directory)
    source, target = (
        _read_marian_side(path, directory / model, size)
        for path, model, size in zip(paths, (SOURCE_MODEL, TARGET_MODEL), sizes, strict=True)
    )
    models = [directory / SOURCE_MODEL, directory / TARGET_MODEL]
    used = [model for path, model in zip(paths, models, strict=True) if path.suffix != SENTENCEPIECE]
    return source, target, list(dict.fromkeys([*paths, *used]))


def _find(directory: Path) -> list[Path]:
    """Returns the paths of the source and target vocabularies in `directory`.

    If there is one vocabulary, both paths are the same. If there are two, one file name must contain a word that means
    source, and the other file name a word that means target (see SIDES). In any other case, raises CheckpointError.
    """
    found = sorted(filter(_is_vocabulary, directory.iterdir()))
    if len(found) == 1:
        return found * 2
    sides = [[path for path in found if any(word in _words(path) for word in words)] for words in SIDES]
    if len(found) == 2 and [len(side) for side in sides] == [1, 1] and sides[0] != sides[1]:
        return [sides[0][0], sides[1][0]]
    names = ", ".join(path.name for path in found) or "none"
    raise CheckpointError(
        f"{directory}: which files are the vocabularies of source and target is not told (found: {names}); name them "
        "in a decoder.yml with models and vocabs"
    )


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", path.name.lower())


def _is_vocabulary(path: Path) -> bool:
    if path.name in (SOURCE_MODEL, TARGET_MODEL):
        return False
    return path.suffix in (SENTENCEPIECE, FACTORED, ".vocab") or (path.suffix in MAPPINGS and "vocab" in _words(path))


def _read_marian_side(path: Path, model: Path, size: int) -> Vocabulary:
    """Returns the vocabulary in the file at `path`, with padding added as the last piece.

    `size` is the number of pieces without padding. `model` is the path of the SentencePiece model that splits text; if
    the vocabulary file is a SentencePiece model itself, `model` is not read. Raises CheckpointError if a file is
    missing, damaged or of an unsupported kind, or if the vocabulary does not have `size` pieces.
    """
    if path.suffix == FACTORED:
        raise CheckpointError(f"{path}: a factored vocabulary; mtkit imports those of .yml and .spm files")
    if path.suffix == SENTENCEPIECE:
        sentencepiece, known = _read_marian_model(path)
        pieces = [piece.text for piece in known]
        special = _special_of_model(path, known)
    else:
        sentencepiece, known = _read_marian_model(model)
        pieces = _renamed(_read_mapping(path) if path.suffix in MAPPINGS else _read_lines(path))[:size]
        special = _special_of_pieces(path, pieces)
    if len(pieces) != size:
        raise CheckpointError(
            f"{path}: has {len(pieces):,} pieces, and the model's option dim-vocabs tells {size:,}; wanted is the "
            "vocabulary that it was trained with"
        )
    pad = PAD_PIECE
    while pad in pieces:
        pad = f"<{pad}>"
    scores = {piece.text: piece.score for piece in known}
    pieces.append(pad)
    end, unknown = special
    return Vocabulary(pieces, SpecialIds(size, unknown, None, end), sentencepiece, [scores.get(p, 0.0) for p in pieces])


def _read_marian_model(path: Path) -> tuple[bytes, list[Piece]]:
    """Returns the content and the pieces of a SentencePiece model file.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError:
        other = next(iter(path.parent.glob(f"{path.stem}.bpe")), None)
        raise CheckpointError(
            f"{path}: missing; the vocabulary tells ids, and this model how text is cut"
            + (f". {other.name} is of subword-nmt, which mtkit does not read" if other else "; copy it there")
        ) from None
    try:
        pieces = pieces_of(content)
    except ValueError:
        pieces = []
    if not pieces:
        raise CheckpointError(f"{path}: not a SentencePiece model; copy it again")
    return content, pieces


def _special_of_model(path: Path, pieces: Sequence[Piece]) -> tuple[int, int]:
    """Returns the ids of the end mark and of <unk> in a SentencePiece model.

    Raises CheckpointError if the end mark or <unk> is missing.
    """
    end = [id_ for id_, piece in enumerate(pieces) if piece.type == "control" and piece.text == END_PIECE]
    unknown = [id_ for id_, piece in enumerate(pieces) if piece.type == "unknown"]
    if not end or not unknown:
        raise CheckpointError(
            f"{path}: has no {END_PIECE if not end else UNKNOWN_PIECE}, which Marian's vocabularies have"
        )
    return end[0], unknown[0]


def _special_of_pieces(path: Path, pieces: Sequence[str]) -> tuple[int, int]:
    """Returns the ids of </s> and <unk> in a list of pieces; raises CheckpointError if </s> or <unk> is missing."""
    for name in (END_PIECE, UNKNOWN_PIECE):
        if name not in pieces:
            raise CheckpointError(f"{path}: has no {name}, which Marian's vocabularies have")
    return pieces.index(END_PIECE), pieces.index(UNKNOWN_PIECE)


def _renamed(pieces: list[str]) -> list[str]:
    """Renames the special pieces in `pieces` from Nematus's names, eos and UNK, to Marian's; returns the same list."""
    for id_, (older, name) in OLDER.items():
        if len(pieces) > id_ and pieces[id_] == older and name not in pieces:
            pieces[id_] = name
    return pieces


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; copy it again") from None


def _read_lines(path: Path) -> list[str]:
    """Returns the pieces in a file that has one piece on each line; raises CheckpointError if a piece occurs twice."""
    pieces = [line.removesuffix("\r") for line in _read_text(path).removesuffix("\n").split("\n")]
    if len(set(pieces)) < len(pieces):
        twice = next(piece for piece in pieces if pieces.count(piece) > 1)
        raise CheckpointError(f"{path}: {twice!r} stands there more than once; wanted is one piece a line")
    return pieces


def _read_mapping(path: Path) -> list[str]:
    """Returns the pieces of a YAML or JSON file that maps each piece to its id, ordered by id.

    Raises CheckpointError if the file is damaged, an id is missing, or an id or piece occurs twice.
    """
    text = _read_text(path)
    entries = _json_entries(text, path) if text.lstrip().startswith("{") else _yaml_entries(text, path)
    by_id: dict[int, str] = {}
    seen: set[str] = set()
    for piece, id_ in entries:
        if id_ in by_id or piece in seen:
            raise CheckpointError(f"{path}: {piece!r} or its id {id_} stands there more than once; wanted is one each")
        by_id[id_] = piece
        seen.add(piece)
    missing = next((id_ for id_ in range(len(by_id)) if id_ not in by_id), None)
    if missing is not None:
        raise CheckpointError(f"{path}: no piece has the id {missing}; wanted are all from 0 to {len(by_id) - 1}")
    return [by_id[id_] for id_ in range(len(by_id))]


def _json_entries(text: str, path: Path) -> list[tuple[str, int]]:
    try:
        entries: list[tuple[str, int]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; copy it again") from None
    if not all(isinstance(entry, tuple) and type(entry[1]) is int for entry in entries):
        raise CheckpointError(f"{path}: wanted is an id for each piece, a number from 0 on")
    return entries


def _yaml_entries(text: str, path: Path) -> list[tuple[str, int]]:
    """Returns (piece, id) for each entry of the YAML mapping `text`.

    An entry is one line `piece: id`, or two lines `? piece` and `: id`. A piece is always text, even where YAML would
    read another type: `no`, `1.0` or `~`. Raises CheckpointError for other lines.
    """
    entries, key = [], None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line in ("---", "...", "{}"):
            continue
        if key is None and line.startswith("? "):
            key = line[2:]  # its id is on the next line
            continue
        written, colon, id_ = (key, line[:1], line[1:]) if key is not None else line.rpartition(":")
        piece = _scalar(written.strip(" "))
        if colon != ":" or piece is None or not re.fullmatch(r" *[0-9]{1,9} *", id_):
            raise CheckpointError(f"{path}:{number}: found {line[:80]!r}; wanted is a piece, a colon and its id")
        entries.append((piece, int(id_)))
        key = None
    return entries


def _scalar(written: str) -> str | None:
    """Returns the text of a YAML scalar without its quotes; `None` if its quotes or escape sequences are wrong."""
    quote = written[:1]
    if quote not in ("'", '"') or len(written) == 1:
        return written
    inner = written[1:-1]
    if len(written) < 2 or not written.endswith(quote):
        return None
    if quote == "'":
        return inner.replace("''", "'")
    try:
        return _ESCAPED.sub(_unescaped, inner)
    except (KeyError, ValueError, OverflowError):
        return None


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else ESCAPES[match[4]]
