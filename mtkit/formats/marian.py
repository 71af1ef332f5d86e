"""MarianMTModel of Hugging Face transformers: the layout of the OPUS-MT models (Tiedemann & Thottingal 2020).

V vocabulary size, D model width.
"""

from pathlib import Path

import torch
from torch import Tensor

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.formats.huggingface_config import TheirConfig, require, write_configs
from mtkit.formats.huggingface_weights import load_weights, our_weights, save_weights, their_weights
from mtkit.formats.portable import PortableModel, Vocabulary, reordered
from mtkit.symbols import SpecialIds

# Flags of config.json that make another model of it, by what all Marian models have.
OTHERS = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "add_bias_logits": False,
    "static_position_embeddings": True,
    "extra_pos_embeddings": 0,
}


def check_marian(config: Config) -> None:
    """Refuse what the layout cannot express."""
    require(config, "marian")


def in_marian_order(model: PortableModel) -> PortableModel:
    """The same model with the special ids where Marian's readers expect them: padding last, a model of theirs as it is.

    Where both sides have vocabularies of their own the one id of padding must be in both.
    """
    if _is_shared(model.config.model):
        order = _order(model.source, len(model.source.pieces) - 1)
        return reordered(model, order, order)
    pad = min(len(model.source.pieces), len(model.target.pieces)) - 1
    if model.source.special.pad == model.target.special.pad and model.target.special.pad > 0:
        return model
    return reordered(model, _order(model.source, pad), _order(model.target, pad))


def _order(vocabulary: Vocabulary, pad: int) -> list[int]:
    """End mark, unknown, all others as they are, padding at its place."""
    special, size = vocabulary.special, len(vocabulary.pieces)
    if special.pad == pad:
        return list(range(size))
    first = [special.end, special.unknown]
    others = [id_ for id_ in range(size) if id_ not in (*first, special.pad)]
    return [*(first + others)[:pad], special.pad, *(first + others)[pad:]]


def write_marian_weights(model: PortableModel, directory: Path) -> None:
    """Weights and configuration; the ids are those of the model."""
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    bias = torch.zeros(len(model.target.pieces))
    weights = {"decoder.output.bias": bias, **model.weights}  # Marian always has one
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
    """The model of a checkpoint; its vocabularies have special ids and sizes alone: pieces are in other files."""
    told = TheirConfig(directory)
    for key, wanted in OTHERS.items():
        told.require(key, wanted)
    shares, ties = told.flag("share_encoder_decoder_embeddings", True), told.flag("tie_word_embeddings", True)
    if shares and not ties:
        raise CheckpointError(
            f"{told.path}: tie_word_embeddings is false and share_encoder_decoder_embeddings true; mtkit imports what "
            "shares the output layer too"
        )
    weights, path = load_weights(directory)
    tie = "all" if shares else "decoder" if ties else "none"
    vocab_size = told.number("vocab_size")
    sizes = vocab_size, vocab_size if shares else told.number("decoder_vocab_size", vocab_size)
    pad, end = told.token("pad_token_id", min(sizes)), told.token("eos_token_id", sizes[1])
    if pad is None or end is None:
        key, what = ("pad_token_id", "padding") if pad is None else ("eos_token_id", "the end mark")
        raise CheckpointError(f"{told.path}: {key} is missing; wants the id of {what}")
    begin, start = told.token("bos_token_id", sizes[1]), told.token("decoder_start_token_id", sizes[1], pad)
    begin = None if begin in (end, pad) else begin
    config = told.settings(
        directory,
        {
            "norm_placement": "post",
            "tie_embeddings": tie,
            "output_bias": True,
            "start_token": _start(told, start, pad, end, begin, weights),
        },
    )
    assert isinstance(config.model, TransformerConfig)
    ours = our_weights(config.model, _without_positions(weights, path), path, sizes)
    source, target = (Vocabulary([""] * size, SpecialIds(pad, 1, begin, end)) for size in sizes)
    return PortableModel(config, ours, source, target)


def _start(
    told: TheirConfig, start: int | None, pad: int, end: int, begin: int | None, weights: dict[str, Tensor]
) -> str:
    """What the decoder reads first, by our names."""
    if start == pad:
        tables = ("model.decoder.embed_tokens.weight", "model.shared.weight", "lm_head.weight")
        table = next((weights[name] for name in tables if name in weights), None)
        is_table = table is not None and table.dim() == 2 and pad < len(table)
        return "zero" if table is not None and is_table and not table[pad].any() else "pad"
    if start is not None and start in (end, begin):
        return "end" if start == end else "begin"
    raise CheckpointError(
        f"{told.path}: decoder_start_token_id is {start}; wants pad_token_id, eos_token_id or bos_token_id"
    )


def _without_positions(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without the tables of sinusoids that older versions store; another table would be another model."""
    kept = {}
    for name, weight in weights.items():
        if not name.endswith(("embed_positions.weight", "embed_positions.weights")):
            kept[name] = weight
        elif weight.dim() != 2 or weight.shape[1] % 2 or not _are_sinusoids(weight):
            raise CheckpointError(f"{path}: {name} holds other positions than Marian's sinusoids")
    return kept


def _are_sinusoids(weight: Tensor) -> bool:
    # As near as bfloat16 comes: a table may have been stored in it.
    return torch.allclose(weight, _sinusoids(*weight.shape), rtol=0, atol=2**-8)


def _sinusoids(num_positions: int, d_model: int) -> Tensor:
    """(P, D): sines, then cosines, of p / 10000^(2i/D)."""
    waves = 10000.0 ** (-2 * torch.arange(d_model // 2, dtype=torch.float64) / d_model)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def _is_shared(config: object) -> bool:
    return isinstance(config, TransformerConfig) and config.tie_embeddings == "all"
