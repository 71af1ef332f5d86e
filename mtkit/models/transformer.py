"""The Transformer of "Attention is all you need" (Vaswani et al. 2017), with norms before or after each sublayer.

Shapes: R rows (one sentence each, unless packed), S source length, T target length, L either S or T, N tokens in the
cache, W hypotheses per sentence, H heads, K width of a head, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from mtkit.config.model_settings import TransformerConfig
from mtkit.data.batches import Rows
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied_embeddings
from mtkit.models.layers import (
    NORM_EPS,
    POSITIONS,
    AnyLayer,
    Cache,
    CrossAttention,
    FeedForward,
    LayerList,
    LearnedPositions,
    RotaryPositions,
    Rotation,
    SelfAttention,
    additive,
    compute_dtype,
    draw_layers,
    dropout,
    with_zero_gradients,
)

# Parts that the encoder and the decoder both use: norms, sublayers and embedded rows.

# The values of the setting `norm`: LayerNorm (Ba et al. 2016), or RMSNorm, which neither centres nor shifts (Zhang &
# Sennrich 2019).
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def make_norm(config: TransformerConfig) -> nn.Module:
    """Returns a new LayerNorm or RMSNorm over the model width, as the setting `norm` says."""
    return NORMS[config.norm](config.d_model, eps=NORM_EPS)


def final_norm(config: TransformerConfig) -> nn.Module:
    """Returns the norm after the last layer of a pre-norm model; for a post-norm model, an `nn.Identity`.

    The layers of a post-norm model end with a norm already.
    """
    return make_norm(config) if config.norm_placement == "pre" else nn.Identity()


def rotary_positions(config: TransformerConfig, num_heads: int) -> RotaryPositions | None:
    """Returns the rotary position encoding for `num_heads` heads; `None` if the settings name another encoding."""
    return RotaryPositions(config.d_model // num_heads) if config.positions == "rotary" else None


class Sublayer(nn.Module):
    """The residual connection around a sublayer f, with norm and dropout.

    Computes x + dropout(f(norm(x))) in a pre-norm model (Xiong et al. 2020), and norm(x + dropout(f(x))) in a post-norm
    model.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.norm_first = config.norm_placement == "pre"
        self.dropout = config.dropout

    def forward(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies the sublayer `function` with its residual connection to `x`, (R, L, D); the shape stays the same."""
        y = function(self.norm(x) if self.norm_first else x)
        x = x + dropout(y, self.dropout, self.training)
        return x if self.norm_first else self.norm(x)


class EmbeddedRows(nn.Module):
    """Token embeddings plus position embeddings, optionally normalised as in mBART, then dropout."""

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        make_positions = POSITIONS[config.positions]
        self.positions = None if make_positions is None else make_positions(config)
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = config.dropout

    def forward(self, rows: Rows, length: int) -> Tensor:
        """Returns the embedded rows, (R, L, D); all positions must be less than `length`."""
        x = self.embedding(rows)
        if self.positions is not None:
            x = x + self.positions(rows.positions, length).to(x.dtype)
        return dropout(self.norm(x), self.dropout, self.training)


def source_attention_mask(query_segments: Tensor, source: Rows) -> Tensor:
    """Returns a mask (R, 1, 1 or L, S) that is True where a query may attend to a source token.

    The source token must not be padding; in packed rows, it must also belong to the same segment as the query.
    `query_segments`, (R, L), holds the segment of each query. In packed rows, queries that are padding may attend to
    everything: the output for such queries is never used, and a softmax over no key would give NaN.
    """
    if not source.packed:
        return source.mask[:, None, None, :]
    query, key = query_segments[:, None, :, None], source.segments[:, None, None, :]
    return (query == key) | (query == 0)


def drawn_layers(layers: LayerList[AnyLayer], rate: float, training: bool) -> tuple[list[AnyLayer], list[Tensor]]:
    """Draws layer dropout; returns the layers that take part in a forward pass, and the weights of the others."""
    drawn = draw_layers(len(layers), rate, training)
    taken = [layer for layer, stays in zip(layers, drawn, strict=True) if stays]
    left_out = [layer for layer, stays in zip(layers, drawn, strict=True) if not stays]
    return taken, [weight for layer in left_out for weight in layer.parameters()]


def attention_settings(config: TransformerConfig, num_heads: int) -> tuple[int, int, float, bool, bool]:
    """Returns the arguments with which SelfAttention and CrossAttention are built for `num_heads` heads."""
    return config.d_model, num_heads, config.attention_dropout, config.attention_bias, config.query_key_norm


# The encoder.


class EncoderLayer(nn.Module):
    """An encoder layer: self-attention, then a feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(*attention_settings(config, config.num_heads))
        self.feed_forward = FeedForward(config, config.d_ff)
        self.around_attention = Sublayer(config)
        self.around_feed_forward = Sublayer(config)

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Maps `x`, (R, S, D), to the layer's output of the same shape; `mask` says which tokens may be attended to."""
        x = self.around_attention(x, lambda y: self.attention(y, mask, rotation=rotation))
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


class TransformerEncoder(nn.Module):
    """Embeds the source and encodes it with a stack of self-attention layers."""

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, embedding)
        self.rotary = rotary_positions(config, config.num_heads)
        self.layers = LayerList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_dropout = config.layer_dropout
        self.residual_init = config.residual_init
        self.norm = final_norm(config)
        self.final_widths: list[int] = []

    def forward(self, source: Rows) -> Memory:
        """Returns a memory that holds the states (R, S, D); the list `finals` of the memory is empty."""
        length = source.ids.shape[1]
        x = self.embedded(source, length)
        mask = source_attention_mask(source.segments, source)
        rotation = None if self.rotary is None else self.rotary(source.positions, length, not source.packed)
        layers, unused = drawn_layers(self.layers, self.layer_dropout, self.training)
        x = with_zero_gradients(x, unused)
        for layer in layers:
            x = layer(x, mask, rotation)
        return Memory(self.norm(x), finals=[])


# The decoder.


class DecoderLayer(nn.Module):
    """A decoder layer: self-attention, attention to the source, then a feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        num_heads = config.decoder_num_heads or config.num_heads
        self.attention = SelfAttention(*attention_settings(config, num_heads))
        self.source_attention = CrossAttention(*attention_settings(config, num_heads))
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
        """Maps target tokens `x`, (R, T, D), to the layer's output of the same shape.

        The keys and values of these tokens are appended to `cache`. If `watched` is a list, the weights of the
        attention to the source are appended to the list. `mask` comes from `TransformerState.advance`, and `memory`
        holds the keys and values of the source.
        """
        x = self.around_attention(x, lambda y: self.attention(y, mask, mask is None, cache, rotation))
        x = self.around_source_attention(x, lambda y: self.source_attention(y, *memory, source_mask, watched))
        y: Tensor = self.around_feed_forward(x, self.feed_forward)
        return y


FEW_TOKENS = 16  # cached tokens for which it does not pay to look for unused ones


@dataclass(frozen=True)
class TransformerState:
    """A decoding state: the keys and values of the source, and caches of the keys and values of all target tokens.

    The mask `ancestors` says which cached tokens belong to each hypothesis. `branch` changes only this mask; the caches
    stay as they are.
    """

    layers: list[DecoderLayer]  # the decoder's layers, without those that layer dropout skips
    unused: list[Tensor]  # tensors that get no gradient because of the skipped layers
    memory: list[tuple[Tensor, Tensor]]  # for each layer, keys and values of the source, each (R, H, S, K)
    source: Rows
    positions: Tensor  # (R,) int64: the number of tokens decoded so far, including the start token
    caches: list[Cache]
    watch: bool = False
    attention: list[Tensor] = field(default_factory=list)
    num_hypotheses: int = 1  # W
    ancestors: Tensor | None = None  # (R, W, N) bool; None before the first token
    num_used: int = 0  # the number of tokens in the caches when unused ones were last removed
    length: int = 0  # an upper bound of `positions` that can be read without waiting for the device

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        ancestors = self.ancestors
        if ancestors is not None:
            ancestors = ancestors.gather(1, parents[:, :, None].expand(-1, -1, ancestors.shape[2]))
        return replace(self, num_hypotheses=parents.shape[1], ancestors=ancestors)._without_unused()

    def _without_unused(self) -> Self:
        """Returns a state whose caches hold no token that belongs to no hypothesis any more, if that saves much.

        Most hypotheses of a beam share all but their last tokens, so most cached tokens soon belong to no hypothesis.
        Tokens are removed when the number N of cached tokens has about doubled, since removing them copies the caches;
        and only on a CPU, since other devices would have to be waited for. N is the same for all rows.
        """
        ancestors = self.ancestors
        if ancestors is None or ancestors.device.type != "cpu" or ancestors.shape[2] < 2 * self.num_used + FEW_TOKENS:
            return self
        used = ancestors.any(1)  # (R, N)
        num_used = max(int(used.sum(1).max()), 1)
        if num_used < ancestors.shape[2]:
            tokens = used.byte().argsort(dim=1, descending=True, stable=True)[:, :num_used]
            for cache in self.caches:
                cache.select(tokens)
            ancestors = ancestors.gather(2, tokens[:, None].expand(-1, ancestors.shape[1], -1))
        return replace(self, ancestors=ancestors, num_used=num_used)

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""
        for cache in self.caches:  # in place, since there may not be enough memory for a second copy of all caches
            cache.keep(sentences)
        source = self.source
        return replace(
            self,
            memory=[(key.index_select(0, sentences), value.index_select(0, sentences)) for key, value in self.memory],
            source=Rows(source.ids[sentences], source.segments[sentences], source.positions[sentences], source.packed),
            positions=self.positions[sentences],
            ancestors=None if self.ancestors is None else self.ancestors[sentences],
        )

    def advance(self, target: Rows) -> tuple[Self, Tensor | None]:
        """Returns a state that includes the tokens in `target`, and the attention mask of these tokens.

        The mask, (R, 1, T, N) bool, says which of the N tokens, cached or new, each new token may attend to; `None`
        stands for a causal mask. A new token attends to the cached tokens of its hypothesis. A new token also attends
        to those new tokens that belong to its own segment (sentence or hypothesis) and do not come after it. This rule
        covers teacher forcing, packed rows and search steps. The returned state has new `positions` and `ancestors`;
        the layers append to the caches of the state later.
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

        after = replace(
            self,
            ancestors=own if self.ancestors is None else torch.cat([self.ancestors, own], dim=2),
            positions=self.positions + target.mask.sum(1) // num_hypotheses,
            length=self.length + num_tokens // num_hypotheses,
        )
        return after, mask


class TransformerDecoder(nn.Module):
    """Embeds the target and decodes it with a stack of layers that attend to earlier tokens and to the source."""

    def __init__(self, config: TransformerConfig, embedding: Embedding, output: Output) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, embedding)
        self.rotary = rotary_positions(config, config.decoder_num_heads or config.num_heads)
        self.layers = LayerList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_dropout = config.layer_dropout
        self.residual_init = config.residual_init
        self.norm = final_norm(config)
        self.output = output

    @property
    def embedding(self) -> Embedding:
        """The target embedding."""
        return self.embedded.embedding

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> TransformerState:
        """Returns the state before the first token; with `watch=True`, this and all later states record attention."""
        layers, unused = drawn_layers(self.layers, self.layer_dropout, self.training)
        if unused:
            unused.append(memory.states)  # if all layers are skipped, it gets no gradient either
        return TransformerState(
            layers,
            unused,
            memory=[layer.source_attention.project(memory.states) for layer in layers],
            source=source,
            positions=torch.zeros(len(source.ids), dtype=torch.int64, device=source.ids.device),
            caches=[Cache() for _ in layers],
            watch=watch,
        )

    def forward(self, target: Rows, state: TransformerState) -> tuple[Tensor, TransformerState]:
        """Returns features (R, T, D) and the new state; the feature vector of each token predicts the next token."""
        state, mask = state.advance(target)
        source_mask = source_attention_mask(target.segments, state.source)
        rotation = None
        if self.rotary is not None:
            from_start = state.length == target.ids.shape[1]  # false in a step of a search, except for the first one
            rotation = self.rotary(target.positions, state.length, from_start and not target.packed)
        x = with_zero_gradients(self.embedded(target, state.length), state.unused)
        if mask is not None and not torch.is_grad_enabled():  # a step of a search: converted once for all layers
            mask, source_mask = additive(mask, compute_dtype(x)), additive(source_mask, compute_dtype(x))
        attention: list[Tensor] = []
        watched = attention if state.watch else None
        for layer, cache, memory in zip(state.layers, state.caches, state.memory, strict=True):
            x = layer(x, mask, cache, rotation, memory, source_mask, watched)
        return self.norm(x), replace(state, attention=attention)


# The whole model.


def build_transformer(config: TransformerConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """Builds the Transformer that `config` describes, with uninitialised weights."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    longest = min(config.position_limits.values(), default=None)
    encoder = TransformerEncoder(config, source)
    decoder = TransformerDecoder(config, target, output)
    return TranslationModel(encoder, decoder, Limits(longest, longest), config.start_token)


def initialize_transformer(model: nn.Module) -> None:
    """Draws Glorot-uniform weights (Glorot & Bengio 2010) and sets biases to zero, as in tensor2tensor.

    In self-attention, the three matrices that give queries, keys and values are drawn as a single matrix, which makes
    their weights smaller by a factor of sqrt(2), as in fairseq. In the attention to the source, the two matrices that
    give keys and values are likewise drawn as one, and so are the two halves of a gated feed-forward layer. Finally,
    the last matrix of each sublayer is multiplied by a factor that depends on the setting `residual_init`
    (RESIDUAL_FACTORS).
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
    for stack in model.modules():
        if isinstance(stack, TransformerEncoder | TransformerDecoder):
            multiply_residual_outputs(stack)


# For each value of `residual_init`, a function that returns a factor for a stack, given its number of sublayers. The
# initial weights of each sublayer's last matrix are multiplied by the factor. "zero", as in Zhang et al. (2019, "Fixup
# initialization"), makes each sublayer of a pre-norm model the identity at first. With "scaled", as in GPT-2 (Radford
# et al. 2019, section 2.3), the variance of a stack's output does not grow with the depth of the stack.
RESIDUAL_FACTORS: dict[str, Callable[[int], float]] = {
    "default": lambda num_sublayers: 1.0,
    "zero": lambda num_sublayers: 0.0,
    "scaled": lambda num_sublayers: num_sublayers**-0.5,
}


def multiply_residual_outputs(stack: "TransformerEncoder | TransformerDecoder") -> None:
    """Multiplies the last matrix of each sublayer by the factor in RESIDUAL_FACTORS for the setting `residual_init`."""
    sublayers = [m for m in stack.modules() if isinstance(m, SelfAttention | CrossAttention | FeedForward)]
    factor = RESIDUAL_FACTORS[stack.residual_init](len(sublayers))
    for sublayer in sublayers:
        with torch.no_grad():
            sublayer.output.weight.mul_(factor)
