"""The encoder of one architecture with the decoder of another, such as Chen et al. (2018) found best."""

from dataclasses import replace

from torch import nn

from mtkit.batch import Rows
from mtkit.config.model_settings import MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied
from mtkit.models.recurrent import RecurrentDecoder, RecurrentEncoder, initialize_recurrent
from mtkit.models.transformer import TransformerDecoder, TransformerEncoder, initialize_transformer

Half = TransformerConfig | RecurrentConfig


class BridgedEncoder(nn.Module):
    """An encoder whose states are brought to the width of a decoder."""

    def __init__(self, encoder: TransformerEncoder | RecurrentEncoder, width: int, d_model: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = nn.Linear(width, d_model)
        self.final_widths = encoder.final_widths

    def forward(self, source: Rows) -> Memory:
        """States as wide as the decoder, and the last ones as they were."""
        memory: Memory = self.encoder(source)
        return replace(memory, states=self.bridge(memory.states))


def build_mixed(config: MixedConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """The model, its weights not yet set."""

    def table(half: Half, vocab_size: int) -> Embedding:
        return Embedding(vocab_size, half.d_model, half.scale_embeddings)

    source, target, output = tied(
        config.tie_embeddings,
        lambda: table(config.encoder, source_vocab_size),
        lambda: table(config.decoder, target_vocab_size),
        config.decoder.output_bias,
    )
    encoder = _encoder(config.encoder, source, config.decoder.d_model)
    decoder = _decoder(config.decoder, target, output, encoder.final_widths)
    limits = Limits(_longest(config.encoder), _longest(config.decoder))
    return TranslationModel(encoder, decoder, limits, config.decoder.start_token)


def _encoder(
    config: Half, embedding: Embedding, d_model: int
) -> TransformerEncoder | RecurrentEncoder | BridgedEncoder:
    encoder = (
        TransformerEncoder(config, embedding)
        if isinstance(config, TransformerConfig)
        else RecurrentEncoder(config, embedding)
    )
    return encoder if config.d_model == d_model else BridgedEncoder(encoder, config.d_model, d_model)


def _decoder(
    config: Half, embedding: Embedding, output: Output, final_widths: list[int]
) -> TransformerDecoder | RecurrentDecoder:
    if isinstance(config, TransformerConfig):
        return TransformerDecoder(config, embedding, output)
    return RecurrentDecoder(config, embedding, output, final_widths)


def _longest(config: Half) -> int | None:
    return min(config.position_limits.values(), default=None)


def initialize_mixed(model: nn.Module) -> None:
    """Each half as its own architecture has it."""
    initialize_recurrent(model)
    for half in model.modules():
        if isinstance(half, TransformerEncoder | TransformerDecoder):
            initialize_transformer(half)
