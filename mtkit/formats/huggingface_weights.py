"""Weights and settings of Hugging Face's encoder-decoders: the names of tensors both ways, and how files are read.

BART's children (Marian, M2M100) all have these names. Queries, keys and values stand apart there and in one matrix
here, so what is cut on the way out is joined on the way in, byte for byte.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkit.config.model_settings import TransformerConfig
from mtkit.errors import CheckpointError
from mtkit.formats.tensors import not_finite

WEIGHTS, INDEX, PICKLED, PICKLED_INDEX, CONFIG, GENERATION = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "config.json",
    "generation_config.json",
)

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

# Embeddings, by what shares a matrix: our name and theirs. What else they may store of it is the same once more.
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

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish"}  # by our names
ACTIVATIONS_READ = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu"}


LFS_POINTER = b"version https://git-lfs.github.com/spec/"

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # all that float32 holds unchanged


def names_of(config: TransformerConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our weights, and those that it is made of there, in order; the output bias is left out."""
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
    """Of one of their weights; sizes are those of the vocabularies of source and target."""
    is_source = ".encoder." in name
    module, kind = name.split(".")[-2:]
    d_model, d_ff = config.d_model, config.d_ff if is_source else config.decoder_d_ff or config.d_ff
    vocab_size = sizes[0] if is_source else sizes[1]
    rows = {"fc1": d_ff, "shared": vocab_size, "embed_tokens": vocab_size, "lm_head": vocab_size}.get(module, d_model)
    columns = {"fc2": d_ff}.get(module, d_model)
    return (rows,) if kind == "bias" or "norm" in module else (rows, columns)


def their_weights(config: TransformerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights by the names that they have there."""
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
    """Their weights by our names; what is missing, left over or does not fit is told with the path.

    sizes are those of the vocabularies of source and target.
    """
    left = dict(weights)
    for copy, original in COPIES[config.tie_embeddings].items():
        if original not in left and copy in left:
            left[original] = left[copy]  # an older version may store the copy alone
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
        if bias.dim() == 2 and bias.shape[1] < sizes[1]:  # transformers pads embeddings alone
            bias = torch.nn.functional.pad(bias, (0, sizes[1] - bias.shape[1]))
        _require_shape(path, theirs_bias, bias, (1, sizes[1]))
        found[ours] = bias[0]
    if left:
        raise CheckpointError(f"{path}: holds {sorted(left)[0]}, which no model of its config.json has")
    return found


def _require_shape(path: Path, name: str, weight: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(weight.shape) != wanted:
        raise CheckpointError(f"{path}: {name} is {tuple(weight.shape)}, its config.json asks for {wanted}")


def save_weights(weights: Mapping[str, Tensor], directory: Path) -> None:
    """As transformers reads them."""
    save_file(dict(weights), directory / WEIGHTS, metadata={"format": "pt"})


def load_weights(directory: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a checkpoint in float32, and the file that tells of them. No code in it is run."""
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


def require_fetched(path: Path) -> None:
    """Refuse the pointer that Git LFS leaves in the place of a file it has not fetched."""
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError:
        return  # told as missing by who reads it
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` or download it"
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    require_fetched(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or missing: {error}; copy the checkpoint again") from None


def _shards(path: Path) -> dict[str, str]:
    """The file that holds each of the weights; all lie beside the index."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in [*shards.values(), *([] if shards else [None])]
    ):
        raise CheckpointError(f"{path}: damaged; copy the checkpoint again")
    return shards


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """With PyTorch's reader that knows tensors alone; what it says of failures may be the advice to run code."""
    require_fetched(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the checkpoint again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever a damaged or hostile file makes of a reader
        raise CheckpointError(
            f"{path}: is cut off or damaged, or holds more than tensors, and mtkit runs no code of a checkpoint; "
            f"copy it again, or save the model as {WEIGHTS}"
        ) from None
    if not isinstance(content, dict) or not all(map(_is_plain, content, content.values())):
        raise CheckpointError(f"{path}: holds no table of tensors; copy the checkpoint again")
    return {name: weight.detach() for name, weight in content.items()}


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {  # by the file that is looked for, in this order
    WEIGHTS: _load_safetensors,
    INDEX: _load_safetensors,
    PICKLED: _load_pickled,
    PICKLED_INDEX: _load_pickled,
}


def _is_plain(name: object, weight: object) -> bool:
    """Whether it is a named tensor whose numbers are all there."""
    return (
        isinstance(name, str)
        and isinstance(weight, Tensor)
        and weight.layout == torch.strided
        and weight.device.type == "cpu"
    )


def read_json(path: Path) -> dict[str, Any]:
    """An object; missing or damaged is a CheckpointError."""
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
    """An object, its keys in order, as transformers writes it."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
