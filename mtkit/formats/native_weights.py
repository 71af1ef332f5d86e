"""The tensors of a model of Marian by mtkit's names.

V vocabulary size, D model width.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.formats.native_options import MarianOptions

# The bias of padding, which Marian has no token for: so small that the softmax makes it nothing, in fp16 as well.
NEVER = -1e4

# Our modules, by the places of theirs; W or b stands for the gap.
LINEARS = {
    "attention.query_key_value": ("self_{}q", "self_{}k", "self_{}v"),
    "attention.output": ("self_{}o",),
    "source_attention.query": ("context_{}q",),
    "source_attention.key_value": ("context_{}k", "context_{}v"),
    "source_attention.output": ("context_{}o",),
    "feed_forward.inner": ("ffn_{}1",),
    "feed_forward.output": ("ffn_{}2",),
}
NORMS = {
    "around_attention.norm": "self_Wo",
    "around_source_attention.norm": "context_Wo",
    "around_feed_forward.norm": "ffn_ffn",
}
OF_SOURCE = "source_attention"  # stands in the names of what an encoder's layer has not


class _Taken:
    """Tensors that are taken one by one, each with the shape that it must have."""

    def __init__(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        self.path = path
        self.left = dict(weights)

    def take(self, name: str, shape: tuple[int, ...], default: float | None = None) -> Tensor:
        """A tensor, which is taken once; the default fills it where it is not stored and may be missing."""
        if name not in self.left:
            if default is not None:
                return torch.full(shape, default)
            raise CheckpointError(f"{self.path}: holds no {name}, which its options ask for")
        weight = self.left.pop(name)
        if tuple(weight.shape) != shape:
            raise CheckpointError(f"{self.path}: {name} is {tuple(weight.shape)}, its options ask for {shape}")
        return weight

    def finish(self) -> None:
        """Nothing may be left: what is not known would be another model."""
        if self.left:
            raise CheckpointError(f"{self.path}: holds {min(self.left)}, which mtkit's Transformer has no place for")


def our_weights(options: MarianOptions, config: Config, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors by our names, those of padding added: a row of zeros, which the decoder starts from."""
    taken = _Taken(options.path, weights)
    found = _embeddings(options, taken)
    model = config.model
    assert isinstance(model, TransformerConfig)
    norm = (model.d_model, 0.0 if options.flag("transformer-no-affine") else None)
    for side, depth in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        for number in range(depth):
            found |= dict(_layer(options, taken, side, number))
        if model.norm_placement == "pre":
            found |= _norm(taken, f"{side}_top", "", f"{side}.norm", *norm)
        if options.embedding_norm:
            found |= _norm(taken, f"{side}_emb", "_pre", f"{side}.embedded.norm", *norm)
    taken.finish()
    return found


def _embeddings(options: MarianOptions, taken: _Taken) -> dict[str, Tensor]:
    """Embeddings, output layer and its bias."""
    (source_size, target_size), width, ties = options.vocab_sizes, options.number("dim-emb"), options.ties
    found = {}
    if options.flag("tied-embeddings-all") or options.flag("tied-embeddings-src"):
        source = target = taken.take("Wemb", (target_size, width))
    else:
        source = taken.take("encoder_Wemb", (source_size, width))
        target = taken.take("decoder_Wemb", (target_size, width))
    found["encoder.embedded.embedding.weight"] = _padded(source)
    if ties != "all":
        found["decoder.embedded.embedding.weight"] = _padded(target)
    if ties == "none":
        older = "decoder_ff_logit_out_W" in taken.left
        output = (
            taken.take("decoder_ff_logit_out_W", (width, target_size)).T
            if older
            else taken.take("decoder_ff_logit_out_Wt", (target_size, width))
        )
        found["decoder.output.table.weight"] = _padded(output)
    missing = 0.0 if options.flag("output-omit-bias") else None
    bias = taken.take("decoder_ff_logit_out_b", (1, target_size), missing)[0]
    found["decoder.output.bias"] = torch.cat([bias, torch.full((1,), NEVER)])
    return found


def _padded(table: Tensor) -> Tensor:
    """(V, D) with a row of zeros below."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _layer(options: MarianOptions, taken: _Taken, side: str, number: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one layer."""
    width, d_ff = options.number("dim-emb"), options.number("transformer-dim-ffn")
    if side == "decoder":
        d_ff = options.number("transformer-decoder-dim-ffn", 0) or d_ff
    ours, theirs = f"{side}.layers.{number}", f"{side}_l{number + 1}"
    missing = 0.0 if options.flag("transformer-no-bias") else None
    slope = options.slope
    scales = {"feed_forward.inner": (slope, slope), "feed_forward.output": (1 / slope, 1.0)}
    for module, parts in LINEARS.items():
        if side == "encoder" and OF_SOURCE in module:
            continue
        rows, columns = {"feed_forward.inner": (width, d_ff), "feed_forward.output": (d_ff, width)}.get(
            module, (width, width)
        )
        names = [f"{theirs}_{part}" for part in parts]
        of_weight, of_bias = scales.get(module, (1.0, 1.0))
        weight = [taken.take(name.format("W"), (rows, columns)).T for name in names]
        bias = [taken.take(name.format("b"), (1, columns), missing)[0] for name in names]
        yield f"{ours}.{module}.weight", (torch.cat(weight) * of_weight).contiguous()
        yield f"{ours}.{module}.bias", torch.cat(bias) * of_bias
    suffix = "_pre" if options.placement == "pre" else ""
    default = 0.0 if options.flag("transformer-no-affine") else None
    for module, name in NORMS.items():
        if side == "decoder" or OF_SOURCE not in module:
            yield from _norm(taken, f"{theirs}_{name}", suffix, f"{ours}.{module}", width, default).items()


def _norm(taken: _Taken, theirs: str, suffix: str, ours: str, width: int, default: float | None) -> dict[str, Tensor]:
    """Scale and shift of a norm; where they may be missing, those that change nothing."""
    return {
        f"{ours}.weight": taken.take(f"{theirs}_ln_scale{suffix}", (1, width), None if default is None else 1.0)[0],
        f"{ours}.bias": taken.take(f"{theirs}_ln_bias{suffix}", (1, width), default)[0],
    }
