"""Writes and reads the weights of Hugging Face's MarianMTModel and M2M100.

In shapes, P is the number of positions, D the model width and V the vocabulary size.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkit.bundle.storage import not_finite
from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.exchange.huggingface_config import (
    TheirConfig,
    read_json,
    require_expressible,
    require_fetched,
    write_configs,
)
from mtkit.exchange.portable import PortableModel, Vocabulary, reordered
from mtkit.text.vocabulary import SpecialIds

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

    A shared vocabulary that already ends with padding is not changed.

    If source and target have separate vocabularies, padding gets the same id in both: the last id of the smaller
    vocabulary. No id changes if padding already has the same id in both vocabularies, unless that id is 0. Models
    imported from Marian usually need no change.
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

    The end mark comes first, then <unk>, then all other ids; padding is inserted at index `pad`. If padding already has
    the id `pad`, the order does not change.
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
