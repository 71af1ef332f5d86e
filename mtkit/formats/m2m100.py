"""M2M100ForConditionalGeneration of Hugging Face transformers (Fan et al. 2021): fairseq's Transformer, norms first."""

from pathlib import Path

from mtkit.config.model_settings import TransformerConfig
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError
from mtkit.formats.huggingface_config import TheirConfig, require, write_configs
from mtkit.formats.huggingface_weights import load_weights, our_weights, save_weights, their_weights
from mtkit.formats.portable import PortableModel, Vocabulary, reordered
from mtkit.symbols import SpecialIds

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3  # fairseq's; readers of this layout count places from PAD


def check_m2m100(config: Config) -> None:
    """Refuse what the layout cannot express."""
    require(config, "m2m100")


def in_m2m100_order(model: PortableModel) -> PortableModel:
    """The same model with fairseq's special ids first; one that has them is as it is."""
    special, size = model.source.special, len(model.source.pieces)
    if special.begin is None:
        raise CheckpointError("the vocabulary has no begin mark; M2M100 files want one")
    first = [special.begin, special.pad, special.end, special.unknown]
    order = [*first, *(id_ for id_ in range(size) if id_ not in first)]
    return reordered(model, order, order)


def write_m2m100_weights(model: PortableModel, directory: Path) -> None:
    """Weights and configuration; the ids are those of the model."""
    config = model.config.model
    assert isinstance(config, TransformerConfig)
    save_weights(their_weights(config, model.weights), directory)
    write_configs(model, directory, {"architectures": ["M2M100ForConditionalGeneration"], "model_type": "m2m_100"})


def read_m2m100(directory: Path) -> PortableModel:
    """The model of a checkpoint; its vocabularies have special ids and sizes alone: pieces are in other files."""
    told = TheirConfig(directory)
    told.require("tie_word_embeddings", True)
    told.require("pad_token_id", PAD)
    vocab_size = told.number("vocab_size")
    end, begin = told.token("eos_token_id", vocab_size, END), told.token("bos_token_id", vocab_size)
    start = told.token("decoder_start_token_id", vocab_size, END)
    if end is None:
        raise CheckpointError(f"{told.path}: eos_token_id is missing; wants the id of the end mark")
    if start is None or start not in (begin, end):
        raise CheckpointError(f"{told.path}: decoder_start_token_id is {start}; wants eos_token_id or bos_token_id")
    config = told.settings(
        directory,
        {
            "scale_embeddings": told.flag("scale_embedding", True),
            "tie_embeddings": "all",
            "start_token": "end" if start == end else "begin",
            "sinusoid_exponent": "tensor2tensor",
            "sinusoid_first": 2,
        },
    )
    assert isinstance(config.model, TransformerConfig)
    weights, path = load_weights(directory)
    weights = {name: weight for name, weight in weights.items() if "embed_positions" not in name}  # all have the same
    ours = our_weights(config.model, weights, path, (vocab_size, vocab_size))
    special = SpecialIds(PAD, UNKNOWN, None if begin == end else begin, end)
    side = Vocabulary([""] * vocab_size, special)
    return PortableModel(config, ours, side, side)
