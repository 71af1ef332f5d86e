"""Writes models for CTranslate2 without using the library; checks the written models by translating with the library.

The file model.bin is a list of named arrays, in version 6 of CTranslate2's binary format and in the form that revision
7 of CTranslate2's TransformerSpec wants. In shapes, V is the vocabulary size, D the model width and P the number of
positions.
"""

import json
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError
from mtkit.exchange.portable import Observed, PortableModel, most_tokens, require_no_query_key_norm

BINARY_VERSION, NAME, REVISION = 6, "TransformerSpec", 7
DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # the index of a type is its number in model.bin

ACTIVATIONS = {"relu": 0, "silu": 2, "gelu": 3, "reglu": 0, "swiglu": 2, "geglu": 3}
GATED = ("reglu", "geglu", "swiglu")
NORM_EPS = 1e-5  # the epsilon of mtkit's norms
LEAST_POSITIONS = 1024  # least rows of a table of sinusoids, which CTranslate2 does not extend

UNCONSTRAINED = DecodingConfig()

Variables = dict[str, Tensor]  # by CTranslate2's names; scalars are tensors of dimension 0

# Maps each quantization to two types: that of matrices, and that of all other float arrays. If the second is None, the
# other arrays keep their type. The types are the same as in CTranslate2's own converter.
QUANTIZATIONS: dict[str, tuple[str, str | None]] = {
    "int8": ("int8", None),
    "int8_float32": ("int8", "float32"),
    "int8_float16": ("int8", "float16"),
    "int8_bfloat16": ("int8", "bfloat16"),
    "int16": ("int16", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
}


def check_ctranslate2(config: Config) -> None:
    """Raises CheckpointError if the model is not a Transformer, or has settings that CTranslate2 does not support."""
    model = config.model
    if not isinstance(model, TransformerConfig):
        raise CheckpointError(
            f"model.architecture is {model.architecture}; CTranslate2 and the others take Transformers alone"
        )
    require_no_query_key_norm(model)


def write_ctranslate2(model: PortableModel, directory: Path, quantization: str | None = None) -> None:
    """Writes `model` to the folder `directory` as files for CTranslate2, and adds the SentencePiece models.

    `quantization` is a key of QUANTIZATIONS; `None` keeps the weights in float32.
    """
    variables = variables_of(model)
    aliases = _aliases(variables)
    if quantization is not None:
        variables = _quantized({n: v for n, v in variables.items() if n not in aliases}, *QUANTIZATIONS[quantization])
    _write_binary(directory / "model.bin", {n: v for n, v in variables.items() if n not in aliases}, aliases)
    _write_json(directory / "config.json", _config(model))
    if model.source.pieces == model.target.pieces:
        _write_json(directory / "shared_vocabulary.json", model.source.pieces)
    else:
        _write_json(directory / "source_vocabulary.json", model.source.pieces)
        _write_json(directory / "target_vocabulary.json", model.target.pieces)
    for name, side in (("source.spm", model.source), ("target.spm", model.target)):
        if side.sentencepiece:
            (directory / name).write_bytes(side.sentencepiece)


def variables_of(model: PortableModel) -> Variables:
    """Returns {name: value} for all arrays and scalars of a CTranslate2 model.

    A matrix that is shared appears under several names.
    """
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    weights = model.weights
    shared = weights["encoder.embedded.embedding.weight"]
    target = shared if config.tie_embeddings == "all" else weights["decoder.embedded.embedding.weight"]
    output = weights["decoder.output.table.weight"] if config.tie_embeddings == "none" else target
    places = most_positions(model.config)
    found: Variables = {
        "encoder/embeddings_0/weight": shared,
        "encoder/embeddings_merge": _scalar(0, "int8"),
        "encoder/multi_query_attention": _scalar(0, "int8"),
        "decoder/embeddings/weight": target,
        "decoder/projection/weight": output,
        "decoder/alignment_layer": _scalar(-1, "int16"),
        "decoder/alignment_heads": _scalar(1, "int16"),
        **{
            f"decoder/{flag}": _scalar(0, "int8")
            for flag in ("alibi", "alibi_use_positive_positions", "scale_alibi", "start_from_zero_embedding")
        },
    }
    if config.output_bias:
        found["decoder/projection/bias"] = weights["decoder.output.bias"]
    for side, depth, heads in (
        ("encoder", config.encoder_layers, config.num_heads),
        ("decoder", config.decoder_layers, config.decoder_num_heads or config.num_heads),
    ):
        found |= _stack(config, weights, side, heads, places)
        for number in range(depth):
            found |= _layer(config, weights, side, number)
    return found


def _stack(config: TransformerConfig, weights: Mapping[str, Tensor], side: str, heads: int, places: int) -> Variables:
    """Returns CTranslate2's arrays and scalars of the encoder or decoder (`side`), but not those of the layers.

    `heads` is the number of attention heads. `places` is the number of positions in a table of positions that is
    computed, not learned.
    """
    found = {
        f"{side}/num_heads": _scalar(heads, "int16"),
        f"{side}/pre_norm": _scalar(config.norm_placement == "pre", "int8"),
        f"{side}/activation": _scalar(ACTIVATIONS[config.activation], "int8"),
        f"{side}/scale_embeddings": _scalar(config.scale_embeddings, "int8"),
    }
    if config.norm_placement == "pre":
        found |= _norm(weights, f"{side}.norm", f"{side}/layer_norm")
    if config.embedding_norm:
        found |= _norm(weights, f"{side}.embedded.norm", f"{side}/layernorm_embedding")
    table = POSITIONS[config.positions](config, weights.get(f"{side}.embedded.positions.weight"), places)
    return found if table is None else found | {f"{side}/position_encodings/encodings": table}


def _layer(config: TransformerConfig, weights: Mapping[str, Tensor], side: str, number: int) -> Variables:
    ours, theirs = f"{side}.layers.{number}", f"{side}/layer_{number}"
    found = {
        **_linear(weights, f"{ours}.attention.query_key_value", f"{theirs}/self_attention/linear_0"),
        **_linear(weights, f"{ours}.attention.output", f"{theirs}/self_attention/linear_1"),
        **_norm(weights, f"{ours}.around_attention.norm", f"{theirs}/self_attention/layer_norm"),
        **_linear(weights, f"{ours}.feed_forward.output", f"{theirs}/ffn/linear_1"),
        **_norm(weights, f"{ours}.around_feed_forward.norm", f"{theirs}/ffn/layer_norm"),
    }
    inner = _linear(weights, f"{ours}.feed_forward.inner", "")
    for name, value in inner.items():
        if config.activation in GATED:
            gate, rest = value.chunk(2)
            found |= {f"{theirs}/ffn/linear_0{name}": gate, f"{theirs}/ffn/linear_0_noact{name}": rest}
        else:
            found[f"{theirs}/ffn/linear_0{name}"] = value
    if config.positions == "rotary":
        found |= {
            f"{theirs}/self_attention/rotary_dim": _scalar(0, "int32"),  # all of a head
            f"{theirs}/self_attention/rotary_interleave": _scalar(0, "int8"),
            f"{theirs}/self_attention/rotary_base": _scalar(10000.0, "float32"),
        }
    if side == "decoder":
        found |= {
            **_linear(weights, f"{ours}.source_attention.query", f"{theirs}/attention/linear_0"),
            **_linear(weights, f"{ours}.source_attention.key_value", f"{theirs}/attention/linear_1"),
            **_linear(weights, f"{ours}.source_attention.output", f"{theirs}/attention/linear_2"),
            **_norm(weights, f"{ours}.around_source_attention.norm", f"{theirs}/attention/layer_norm"),
        }
    return found


def _linear(weights: Mapping[str, Tensor], ours: str, theirs: str) -> Variables:
    found = {f"{theirs}/weight": weights[f"{ours}.weight"]}
    return found | {f"{theirs}/bias": weights[f"{ours}.bias"]} if f"{ours}.bias" in weights else found


def _norm(weights: Mapping[str, Tensor], ours: str, theirs: str) -> Variables:
    found = {f"{theirs}/gamma": weights[f"{ours}.weight"]}
    return found | {f"{theirs}/beta": weights[f"{ours}.bias"]} if f"{ours}.bias" in weights else found


def _sinusoids(config: TransformerConfig, _: Tensor | None, places: int) -> Tensor:
    """Returns the table (P, D) of sinusoidal position encodings for the first P positions; P is `places`."""
    waves = torch.arange(config.d_model // 2, dtype=torch.float64)
    last = len(waves) if config.sinusoid_exponent == "paper" else max(len(waves) - 1, 1)
    positions = torch.arange(config.sinusoid_first, config.sinusoid_first + places, dtype=torch.float64)
    angles = positions[:, None] * 10000.0 ** -(waves / last)
    sines, cosines = angles.sin(), angles.cos()
    if config.sinusoid_layout == "halves":
        return torch.cat([sines, cosines], dim=1).float()
    return torch.stack([sines, cosines], dim=2).flatten(1).float()


# For each value of model.positions, a function that returns the table (P, D) that is added to embeddings. Rotary
# positions have no table. A model without positions gets a table of zeros, since CTranslate2 would otherwise add
# sinusoids.
POSITIONS: dict[str, Callable[[TransformerConfig, Tensor | None, int], Tensor | None]] = {
    "sinusoidal": _sinusoids,
    "learned": lambda config, weight, places: weight,
    "rotary": lambda config, weight, places: None,
    "none": lambda config, weight, places: torch.zeros(places, config.d_model),
}


def most_positions(config: Config) -> int:
    """Returns the number of positions (P) of tables of sinusoids, which is the most tokens of a row."""
    return max(LEAST_POSITIONS, _longest(config))


def _longest(config: Config) -> int:
    """Returns the most tokens, including the end mark, that a translation of the longest allowed source may have."""
    return config.decoding.max_length(config.data.max_length) + 1


def _scalar(value: float, dtype: str) -> Tensor:
    return torch.tensor(value).to(getattr(torch, dtype))


def _aliases(variables: Variables) -> dict[str, str]:
    """Returns {name: name of the original} for every array that is a copy of another array.

    Of several equal arrays, the one whose name is alphabetically first counts as the original, and the others as
    copies.
    """
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], list[str]] = {}
    for name in sorted(variables):
        value = variables[name]
        if not value.dim():
            continue
        like = first.setdefault((value.dtype, tuple(value.shape), value.flatten()[0].item()), [])
        same = next((other for other in like if torch.equal(variables[other], value)), None)
        if same is None:
            like.append(name)
        else:
            aliases[name] = same
    return aliases


def _quantized(variables: Variables, matrices: str, others: str | None) -> Variables:
    """Returns `variables`, converted to other types.

    Matrices, which are the arrays whose names end in /weight, get the type `matrices`. Other arrays get the type
    `others`, or do not change if `others` is `None`. Scalars never change.

    If `matrices` is an integer type, scales are added under the name of the matrix followed by _scale. An int8 matrix
    has one scale for each row; an int16 matrix has a single scale.
    """
    found = {}
    for name, value in variables.items():
        if not value.dim():
            found[name] = value
        elif name.endswith("/weight"):
            found |= {f"{name}{end}": part for end, part in _quantized_matrix(value, matrices).items()}
        else:
            found[name] = value if others is None else value.to(getattr(torch, others))
    return found


def _quantized_matrix(value: Tensor, kind: str) -> dict[str, Tensor]:
    matrix: NDArray[np.float32] = value.numpy()
    if kind == "int8":
        largest = np.abs(matrix).max(axis=1)
        largest[largest == 0] = 127.0
        largest = np.maximum(largest, np.float32(127.0) / np.finfo(np.float32).max)  # so that no scale is infinite
        scales: Any = np.float32(127.0) / largest
        return {
            "": torch.from_numpy(np.rint(matrix * scales[:, None]).astype(np.int8)),
            "_scale": torch.from_numpy(scales),
        }
    if kind == "int16":  # values use 10 bits, so that sums of products fit into 32 bits
        scale = np.float32(2**10 / np.abs(matrix).max())
        limits = np.iinfo(np.int16)
        rounded = np.rint(matrix * scale).clip(limits.min, limits.max).astype(np.int16)
        return {"": torch.from_numpy(rounded), "_scale": torch.tensor(scale)}
    return {"": value.to(getattr(torch, kind))}


def _write_binary(path: Path, variables: Variables, aliases: Mapping[str, str]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<I", BINARY_VERSION) + _text(NAME) + struct.pack("<II", REVISION, len(variables)))
        for name, value in sorted(variables.items()):
            content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.dim() else _bytes(value)
            shape = struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape)
            dtype = DTYPES.index(str(value.dtype).removeprefix("torch."))
            file.write(_text(name) + shape + struct.pack("<BI", dtype, len(content)))
            file.write(content)
        file.write(struct.pack("<I", len(aliases)))
        for alias, name in sorted(aliases.items()):
            file.write(_text(alias) + _text(name))


def _bytes(scalar: Tensor) -> bytes:
    return scalar[None].view(torch.uint8).numpy().tobytes()


def _text(text: str) -> bytes:
    content = text.encode() + b"\0"
    return struct.pack("<H", len(content)) + content


def _config(model: PortableModel) -> dict[str, Any]:
    special, pieces = model.target.special, model.target.pieces
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    begin = special.end if special.begin is None else special.begin
    start = {"begin": begin, "end": special.end}.get(config.start_token, special.pad)
    return {
        "add_source_bos": False,
        "add_source_eos": True,
        "bos_token": pieces[begin],
        "decoder_start_token": pieces[start],
        "eos_token": pieces[special.end],
        "layer_norm_epsilon": NORM_EPS,
        "multi_query_attention": False,
        "unk_token": pieces[special.unknown],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def library() -> Any:
    """Returns the Python module of CTranslate2; `None` if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of the library while it is imported
            import ctranslate2
    except ImportError:
        return None
    return ctranslate2


def observe_with_ctranslate2(
    directory: Path,
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    silent: Sequence[str],
    decoding: DecodingConfig = UNCONSTRAINED,
) -> Observed | None:
    """Translates `sources` with CTranslate2 by greedy search, and scores `targets` as translations of `sources`.

    Returns `None` if CTranslate2 is not installed. Each source and each target is a list of pieces. The exported model
    is in `directory`. The search obeys min_length and no_repeat_ngram of `decoding`, and never generates the pieces in
    `silent`.
    """
    ctranslate2 = library()
    if ctranslate2 is None:
        return None
    translator = ctranslate2.Translator(str(directory), device="cpu")
    tokens, given = [list(source) for source in sources], [list(target) for target in targets]
    generated = [
        translator.translate_batch(
            [source],
            beam_size=1,
            min_decoding_length=min(decoding.min_length, most_tokens(source)),  # the library's default is 1
            max_decoding_length=most_tokens(source),
            no_repeat_ngram_size=decoding.no_repeat_ngram,
            suppress_sequences=[[piece] for piece in silent],
        )[0]
        for source in tokens
    ]
    scored = translator.score_batch(tokens, given)
    return Observed(
        f"ctranslate2 {ctranslate2.__version__}",
        [result.hypotheses[0] for result in generated],
        [list(result.log_probs) for result in scored],
    )
