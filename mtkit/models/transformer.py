"""The Transformer of "Attention is all you need" (Vaswani et al. 2017), with its norm before or after each sublayer.

R rows, S source length, T target length, N tokens in a cache, W hypotheses of a sentence, H heads, K width of a head,
D model width.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from mtkit.config.model_settings import TransformerConfig
from mtkit.data.batch import Rows
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied
from mtkit.models.layers import (
    ADDED,
    Cache,
    CrossAttention,
    FeedForward,
    LearnedPositions,
    RotaryPositions,
    Rotation,
    SelfAttention,
    draw_layers,
    dropout,
    with_zero_gradients,
)

# LayerNorm (Ba et al. 2016), or RMSNorm, which neither centres nor shifts (Zhang & Sennrich 2019).
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}

NORM_EPS = 1e-5  # what Marian's, M2M100's and CTranslate2's layers use


def make_norm(config: TransformerConfig) -> nn.Module:
    """A norm over the width of the model."""
    return NORMS[config.norm](config.d_model, eps=NORM_EPS)


def final_norm(config: TransformerConfig) -> nn.Module:
    """After the last layer: with the norm before each sublayer the sum that leaves it has not been normalised yet."""
    return make_norm(config) if config.norm_placement == "pre" else nn.Identity()


def rotary_positions(config: TransformerConfig, num_heads: int) -> RotaryPositions | None:
    """What turns queries and keys of so many heads, where positions are told so."""
    return RotaryPositions(config.d_model // num_heads) if config.positions == "rotary" else None


class Sublayer(nn.Module):
    """x + dropout(f(norm(x))), or norm(x + dropout(f(x))) where the norm comes after (Xiong et al. 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.norm_first = config.norm_placement == "pre"
        self.dropout = config.dropout

    def forward(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(R, L, D) to the same."""
        y = function(self.norm(x) if self.norm_first else x)
        x = x + dropout(y, self.dropout, self.training)
        return x if self.norm_first else self.norm(x)


class EmbeddedRows(nn.Module):
    """What the first layer reads: tokens and their places, and on wish a norm of both, as mBART has it."""

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        added = ADDED[config.positions]
        self.positions = None if added is None else added(config)
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = config.dropout

    def forward(self, rows: Rows, longest: int) -> Tensor:
        """(R, L, D); no position reaches longest."""
        x = self.embedding(rows)
        if self.positions is not None:
            x = x + self.positions(rows.positions, longest).to(x.dtype)
        return dropout(self.norm(x), self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(
            config.d_model, config.num_heads, config.attention_dropout, config.attention_bias
        )
        self.feed_forward = FeedForward(config, config.d_ff)
        self.around_attention = Sublayer(config)
        self.around_feed_forward = Sublayer(config)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """(R, S, D) to the same."""
        x = self.around_attention(x, lambda y: self.attention(y, mask, rotation=rotation))
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


class TransformerEncoder(nn.Module):
    """Embeds the source and lets its tokens look at each other, layer by layer."""

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, embedding)
        self.rotary = rotary_positions(config, config.num_heads)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_dropout = config.layer_dropout
        self.norm = final_norm(config)
        self.final_widths: list[int] = []

    def forward(self, source: Rows) -> Memory:
        """States (R, S, D)."""
        longest = source.ids.shape[1]
        x = self.embedded(source, longest)
        mask = _source_mask(source.segments, source)
        rotation = None if self.rotary is None else self.rotary(source.positions, longest)
        layers, unused = _drawn(self.layers, self.layer_dropout, self.training)
        x = with_zero_gradients(x, unused)
        for layer in layers:
            x = layer(x, mask, rotation)
        return Memory(self.norm(x), finals=[])


def _drawn(layers: nn.ModuleList, rate: float, training: bool) -> tuple[list[nn.Module], list[Tensor]]:
    """The layers that take part in a pass, and the weights of those that do not."""
    drawn = draw_layers(len(layers), rate, training)
    taken = [layer for layer, stays in zip(layers, drawn, strict=True) if stays]
    left = [layer for layer, stays in zip(layers, drawn, strict=True) if not stays]
    return taken, [weight for layer in left for weight in layer.parameters()]


def _source_mask(query_segments: Tensor, source: Rows) -> Tensor:
    """(R, 1, 1 or L, S): which source tokens each of L tokens may look at.

    Padding may look anywhere, since what it sees is never used, and a row without a single key would give NaN.
    """
    if not source.packed:
        return source.mask[:, None, None, :]
    query, key = query_segments[:, None, :, None], source.segments[:, None, None, :]
    return (query == key) | (query == 0)


class TransformerState:
    """The source's keys and values, once for each sentence, and an append-only cache of the target's.

    A beam's history is the ancestor mask: which cached tokens are a hypothesis' own. Branching permutes that mask and
    moves nothing else.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        unused: list[Tensor],
        memory: list[tuple[Tensor, Tensor]],
        source: Rows,
        watch: bool = False,
    ) -> None:
        self.layers = layers  # those of the decoder that take part: all of them but in training with layer dropout
        self.unused = unused  # what would have no gradient because of those that do not
        self.memory = memory  # for each layer, keys and values of the source, (R, H, S, K)
        self.watch = watch
        self.attention: list[Tensor] = []
        self.source = source
        self.caches = [Cache() for _ in memory]
        self.num_hypotheses = 1
        self.ancestors: Tensor | None = None  # (R, W, N) bool; None before the first token
        self.positions = torch.zeros(len(source.ids), dtype=torch.int64, device=source.ids.device)
        self.longest = 0  # bound on positions, kept beside them so that nobody waits for the device

    def branch(self, parents: Tensor) -> Self:
        """Hypothesis w of sentence r goes on from parents[r, w]; (R, W') int64."""
        self.num_hypotheses = parents.shape[1]
        if self.ancestors is not None:
            self.ancestors = self.ancestors.gather(1, parents[:, :, None].expand(-1, -1, self.ancestors.shape[2]))
        return self

    def keep(self, sentences: Tensor) -> Self:
        """Only these sentences, in that order."""
        self.memory = [(k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.memory]
        source = self.source
        self.source = Rows(
            source.ids[sentences], source.segments[sentences], source.positions[sentences], source.packed
        )
        self.positions = self.positions[sentences]
        if self.ancestors is not None:
            self.ancestors = self.ancestors[sentences]
        for cache in self.caches:
            cache.keep(sentences)
        return self

    def advance(self, target: Rows) -> Tensor | None:
        """Take in these tokens; (R, 1, T, N) bool, which cached or new tokens each may look at; None is causal.

        One rule serves teacher forcing, packed rows and every step of a search: a token sees those of its own segment
        (sentence, or hypothesis) that do not stand after it, and its hypothesis' ancestors.
        """
        query, key = target.segments[:, :, None], target.segments[:, None, :]
        num_hypotheses, num_tokens = self.num_hypotheses, target.ids.shape[1]
        assert num_hypotheses in (1, num_tokens), "one hypothesis takes any number of tokens, several take one each"
        own = key == torch.arange(1, num_hypotheses + 1, device=key.device)[None, :, None]  # (R, W, T)

        mask = None
        if self.ancestors is not None or target.packed:
            mask = (query == key) & (target.positions[:, None, :] <= target.positions[:, :, None])  # (R, T, T)
            if self.ancestors is not None:
                mask = torch.cat([self.ancestors.expand(-1, num_tokens, -1), mask], dim=2)
            mask = mask[:, None]

        self.ancestors = own if self.ancestors is None else torch.cat([self.ancestors, own], dim=2)
        self.positions = self.positions + target.mask.sum(1) // num_hypotheses
        self.longest += num_tokens // num_hypotheses
        return mask


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, and a feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        num_heads = config.decoder_num_heads or config.num_heads
        sizes = (config.d_model, num_heads, config.attention_dropout, config.attention_bias)
        self.attention = SelfAttention(*sizes)
        self.source_attention = CrossAttention(*sizes)
        self.feed_forward = FeedForward(config, config.decoder_d_ff or config.d_ff)
        self.around_attention = Sublayer(config)
        self.around_source_attention = Sublayer(config)
        self.around_feed_forward = Sublayer(config)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        cache: Cache,
        rotation: Rotation | None,
        memory: tuple[Tensor, Tensor],
        source_mask: Tensor,
        watched: list[Tensor] | None = None,
    ) -> Tensor:
        """(R, T, D) to the same; the weights of the attention to the source are added to what is watched."""
        x = self.around_attention(x, lambda y: self.attention(y, mask, mask is None, cache, rotation))
        x = self.around_source_attention(x, lambda y: self.source_attention(y, *memory, source_mask, watched))
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


class TransformerDecoder(nn.Module):
    """Embeds the target and lets each token look at those before it and at the source, layer by layer."""

    def __init__(self, config: TransformerConfig, embedding: Embedding, output: Output) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, embedding)
        self.rotary = rotary_positions(config, config.decoder_num_heads or config.num_heads)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_dropout = config.layer_dropout
        self.norm = final_norm(config)
        self.output = output

    @property
    def embedding(self) -> Embedding:
        """Of the target."""
        return self.embedded.embedding

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> TransformerState:
        """The state before the first token. With watch it will tell its attention."""
        layers, unused = _drawn(self.layers, self.layer_dropout, self.training)
        if unused:
            unused.append(memory.states)  # if no layer at all is left, nothing else reads it
        projected = [layer.source_attention.project(memory.states) for layer in layers]  # type: ignore[union-attr, operator]
        return TransformerState(layers, unused, projected, source, watch)

    def forward(self, target: Rows, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """(R, T, D) features of the next tokens, and the state after them."""
        mask = state.advance(target)
        source_mask = _source_mask(target.segments, state.source)
        rotation = None if self.rotary is None else self.rotary(target.positions, state.longest)
        x = with_zero_gradients(self.embedded(target, state.longest), state.unused)
        state.attention = []
        watched = state.attention if state.watch else None
        for layer, cache, memory in zip(state.layers, state.caches, state.memory, strict=True):
            x = layer(x, mask, cache, rotation, memory, source_mask, watched)
        return self.norm(x), state


def build_transformer(config: TransformerConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """The model, its weights not yet set."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    longest = config.max_positions if config.positions == "learned" else None
    encoder = TransformerEncoder(config, source)
    decoder = TransformerDecoder(config, target, output)
    return TranslationModel(encoder, decoder, Limits(longest, longest), config.start_token)


def initialize_transformer(model: nn.Module) -> None:
    """Uniform after Glorot & Bengio (2010), biases zero, as the Transformer's first implementation has it.

    Queries, keys and values are drawn as the one matrix they are stored in, which makes them smaller by sqrt(2), as in
    fairseq; so are a gate and what it lets through.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Embedding | LearnedPositions | Output):
            module.initialize()
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
