"""The Transformer of "Attention is all you need" (Vaswani et al. 2017), and the conditional masked language model.

Norms stand before or after each sublayer. The conditional masked language model (Ghazvininejad et al. 2019) is a
Transformer whose decoder has no causal mask: it reads the whole target, some of whose tokens are masked, and predicts
the masked tokens from the source and from the other tokens on both sides. The length of the target is predicted from
the source. In training, tokens are masked at random; in translation, `mask_predict` of mtkit/translation/search.py
chooses which tokens to mask.

Shapes: R rows (one sentence each, unless packed), S source length, T target length, L either S or T, N tokens in the
cache, W hypotheses per sentence, H heads, K width of a head (in `length_logits`: number of length classes), D model
width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mtkit.config.data_and_model_settings import SEES_LATER, MaskedConfig, QueryKeyNorm, Stack, TransformerConfig
from mtkit.data.batches import NO_LABEL, Batch, Rows
from mtkit.models.interface import (
    Embedding,
    Encoder,
    Limits,
    Memory,
    NoEncoder,
    Output,
    TranslationModel,
    keep_rows,
    put,
    tied_embeddings,
)
from mtkit.models.layers import (
    CONCATENATED,
    NORM_EPS,
    POSITIONS,
    AnyLayer,
    Cache,
    CrossAttention,
    FeedForward,
    LayerList,
    LearnedPositions,
    LinearBiases,
    RotaryPositions,
    Rotation,
    SelfAttention,
    additive,
    compute_dtype,
    draw_layers,
    dropout,
    with_zero_gradients,
)
from mtkit.text.vocabulary import PAD

# Parts that the encoder and the decoder both use: norms, sublayers and embedded rows.

# The values of the setting `norm`: LayerNorm (Ba et al. 2016), or RMSNorm, which neither centres nor shifts (Zhang &
# Sennrich 2019); with nn.Identity there is no norm.
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm] | type[nn.Identity]] = {
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "none": nn.Identity,
}


def make_norm(config: TransformerConfig) -> nn.Module:
    """Returns a new LayerNorm, RMSNorm or nn.Identity for vectors of the model width, as the setting `norm` says."""
    return NORMS[config.norm](config.d_model, eps=NORM_EPS)


def final_norm(config: TransformerConfig) -> nn.Module:
    """Returns the norm to apply after the last layer of a pre-norm model.

    For a post-norm model, whose layers end with a norm already, returns an `nn.Identity`.
    """
    return make_norm(config) if config.norm_placement == "pre" else nn.Identity()


def heads_of(config: TransformerConfig, side: Stack) -> int:
    """Returns the number of attention heads in each layer of the encoder or decoder (`side`)."""
    return (config.decoder_num_heads if side == "decoder" else None) or config.num_heads


def rotary_positions(config: TransformerConfig, side: Stack) -> RotaryPositions | None:
    """Returns rotary positions for the encoder or decoder (`side`); `None` if it has other position encodings."""
    is_rotary = config.positions_of(side) == "rotary"
    return RotaryPositions(config.d_model // heads_of(config, side)) if is_rotary else None


def linear_biases(config: TransformerConfig, side: Stack) -> LinearBiases | None:
    """Returns linear biases (ALiBi) for the encoder or decoder (`side`); `None` if it has other position encodings."""
    return LinearBiases(heads_of(config, side)) if config.positions_of(side) == "alibi" else None


class Sublayer(nn.Module):
    """The residual connection around a sublayer f, with norm and dropout.

    Computes x + dropout(f(norm(x))) in a pre-norm model (Xiong et al. 2020), and norm(x + dropout(f(x))) in a post-norm
    model. If the setting `ablate` lists the residual connection, `x +` is left out.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.norm_first = config.norm_placement == "pre"
        self.has_residual = "residual" not in config.ablate
        self.dropout = config.dropout

    def forward(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies the sublayer `function` with its residual connection to `x`, (R, L, D); the shape stays the same."""
        y = dropout(function(self.norm(x) if self.norm_first else x), self.dropout, self.training)
        x = x + y if self.has_residual else y
        return x if self.norm_first else self.norm(x)


class EmbeddedRows(nn.Module):
    """Token embeddings plus position embeddings, optionally normalised as in mBART, then dropout.

    Scalar and binary positions (CONCATENATED) are not added to the token embeddings, but concatenated to them; a linear
    layer then restores the width D.
    """

    def __init__(self, config: TransformerConfig, side: Stack, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        kind = config.positions_of(side)
        make_positions = POSITIONS[kind]
        self.positions = None if make_positions is None else make_positions(config)
        width = config.d_model + CONCATENATED[kind].width if kind in CONCATENATED else 0
        self.projection = nn.Linear(width, config.d_model) if width else None
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = config.dropout

    def forward(self, rows: Rows, length: int) -> Tensor:
        """Returns the embedded rows, (R, L, D); all positions must be less than `length`."""
        x = self.embed_tokens(rows)
        if self.positions is not None:
            codes = self.positions(rows.positions, length).to(x.dtype)
            x = x + codes if self.projection is None else self.projection(torch.cat([x, codes], dim=2))
        return dropout(self.norm(x), self.dropout, self.training)

    def embed_tokens(self, rows: Rows) -> Tensor:
        """Returns the token embeddings (R, L, D), without positions."""
        x: Tensor = self.embedding(rows)
        return x


def source_attention_mask(query_segments: Tensor, source: Rows) -> Tensor:
    """Returns a mask (R, 1, 1 or L, S) that is True where a query may attend to a source token.

    The source token must not be padding; in packed rows, it must also belong to the same segment as the query.
    `query_segments`, (R, L), holds the segment of each query. In packed rows, queries that are padding may attend to
    all source tokens: a softmax over no key would give NaN. The output for such queries is never used.
    """
    if not source.packed:
        return source.mask[:, None, None, :]
    query, key = query_segments[:, None, :, None], source.segments[:, None, None, :]
    return (query == key) | (query == 0)


def padding_mask(source: Rows, dtype: torch.dtype) -> Tensor | None:
    """Returns a mask (R, 1, 1, S) that hides the padding of source rows that are not packed.

    In training, the mask is a bool tensor, True for real tokens. Outside training, it has the given `dtype` and is to
    be added to attention scores: 0 for real tokens, -inf for padding. Outside training, if the device is a CPU and
    there is no padding, returns `None`. On other devices, the check for padding would make the CPU wait, so it is left
    out.
    """
    mask = source.mask[:, None, None, :]
    if torch.is_grad_enabled():
        return mask
    return None if mask.device.type == "cpu" and bool(mask.all()) else additive(mask, dtype)


def drawn_layers(layers: LayerList[AnyLayer], rate: float, training: bool) -> tuple[list[AnyLayer], list[Tensor]]:
    """Draws which layers a forward pass skips (LayerDrop); returns the layers to run and a list of unused parameters.

    In training, each layer is skipped with probability `rate`; otherwise, no layer is skipped. The unused parameters
    are those of the skipped layers; `with_zero_gradients` gives them gradients of zero.
    """
    drawn = draw_layers(len(layers), rate, training)
    taken = [layer for layer, stays in zip(layers, drawn, strict=True) if stays]
    left_out = [layer for layer, stays in zip(layers, drawn, strict=True) if not stays]
    return taken, [weight for layer in left_out for weight in layer.parameters()]


def recompute_layers(model: nn.Module) -> None:
    """Makes the backward pass recompute each layer of a Transformer, so that intermediate results need not be kept.

    This is activation checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"). Dropout draws
    the same random numbers again, so the gradient stays the same.
    """
    for stack in stacks_of(model):
        stack.recomputes = True


def call_layer(layer: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
    """Returns `layer(x, **arguments)`; in training, compiled code may take the place of this function."""
    y: Tensor = layer(x, **arguments)
    return y


LayerCall = Callable[..., Tensor]  # called as `call_layer` is


def stacks_of(model: nn.Module) -> list["TransformerEncoder | TransformerDecoder"]:
    """Returns a list of the Transformer encoders and decoders in a model, at most one of each."""
    return [module for module in model.modules() if isinstance(module, TransformerEncoder | TransformerDecoder)]


def through_layer(layer: Callable[[Tensor], Tensor], x: Tensor, recomputes: bool) -> Tensor:
    """Returns `layer(x)`; if `recomputes` is true, the backward pass recomputes the layer's intermediate results."""
    if not recomputes:
        return layer(x)
    y: Tensor = checkpoint(layer, x, use_reentrant=False)
    return y


def attention_settings(config: TransformerConfig, num_heads: int) -> tuple[int, int, float, bool, QueryKeyNorm, bool]:
    """Returns the arguments, in order, to construct a SelfAttention or CrossAttention with `num_heads` heads."""
    scaled = "attention_scale" not in config.ablate
    return config.d_model, num_heads, config.attention_dropout, config.attention_bias, config.query_key_norm, scaled


def is_not_later(rows: Rows) -> Tensor:
    """Returns a bool tensor (R, L, L) that is True where the key, in the last dimension, is not after the query.

    Tokens are compared by their positions, so the values for tokens of different segments mean nothing.
    """
    return rows.positions[:, None, :] <= rows.positions[:, :, None]


def distances(rows: Rows) -> Tensor:
    """Returns the distances (R, L, L), in tokens, between the tokens of a row.

    The values for tokens of different segments mean nothing.
    """
    return (rows.positions[:, None, :] - rows.positions[:, :, None]).abs()


def cached_distances(mask: Tensor) -> Tensor:
    """Returns the distances (R, T, N), in tokens, from each of T new tokens to each of all N tokens, cached or new.

    `mask`, (R, 1, T, N), comes from `TransformerState.advance`. For each new token, the mask is True at the tokens of
    the same hypothesis, up to the new token itself, and these tokens are in order. So the distance to a token is the
    number of True values after it. Where the mask is False, the distances mean nothing.
    """
    return mask[:, 0].long().flip(2).cumsum(2).flip(2) - 1


# The encoder.


class EncoderLayer(nn.Module):
    """An encoder layer: self-attention, then a feed-forward layer, which is missing if its width is 0."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(*attention_settings(config, config.num_heads))
        self.feed_forward = FeedForward(config, config.d_ff) if config.d_ff else None
        self.around_attention = Sublayer(config)
        self.around_feed_forward = Sublayer(config) if config.d_ff else None

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """Maps `x`, (R, S, D), to the layer's output of the same shape; `mask` is as in `attend`.

        `rotation` has the angles of rotary positions; it is `None` with other position encodings.
        """
        x = self.around_attention(x, lambda y: self.attention(y, mask, rotation=rotation))
        if self.around_feed_forward is not None:
            x = self.around_feed_forward(x, self.feed_forward)
        return x


class TransformerEncoder(nn.Module):
    """Embeds the source and encodes it with a stack of self-attention layers."""

    def __init__(self, config: TransformerConfig, embedding: Embedding) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, "encoder", embedding)
        self.rotary = rotary_positions(config, "encoder")
        self.biases = linear_biases(config, "encoder")
        self.is_causal = "encoder_causal" in config.ablate
        self.layers = LayerList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_dropout = config.layer_dropout
        self.residual_init = config.residual_init
        self.norm = final_norm(config)
        self.recomputes = False  # see recompute_layers
        self.call: LayerCall = call_layer  # calls a layer if gradients are computed; may be compiled
        self.final_widths: list[int] = []

    def forward(self, source: Rows) -> Memory:
        """Returns a memory that holds the states (R, S, D); the list `finals` of the memory is empty."""
        length = source.ids.shape[1]
        x = self.embedded(source, length)
        mask = source_attention_mask(source.segments, source)
        if self.is_causal:
            mask = mask & is_not_later(source)[:, None]
        if self.biases is not None:
            mask = self.biases(distances(source), mask, compute_dtype(x))
        rotation = None if self.rotary is None else self.rotary(source.positions, length, not source.packed)
        layers, unused = drawn_layers(self.layers, self.layer_dropout, self.training)
        x = with_zero_gradients(x, unused)
        recomputes = self.recomputes and torch.is_grad_enabled()
        call = self.call if torch.is_grad_enabled() else call_layer
        for layer in layers:
            x = through_layer(partial(call, layer, mask=mask, rotation=rotation), x, recomputes)
        return Memory(self.norm(x), finals=[])


# The decoder.


class DecoderLayer(nn.Module):
    """A decoder layer: self-attention, attention to the source, then a feed-forward layer.

    Attention to the source is missing in a language model, and if the setting `ablate` lists "cross_attention". The
    feed-forward layer is missing if its width is 0.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        num_heads = heads_of(config, "decoder")
        self.attention = SelfAttention(*attention_settings(config, num_heads))
        reads_source, d_ff = config.attends_to_source, config.width_of("decoder")
        self.source_attention = CrossAttention(*attention_settings(config, num_heads)) if reads_source else None
        self.feed_forward = FeedForward(config, d_ff) if d_ff else None
        self.around_attention = Sublayer(config)
        self.around_source_attention = Sublayer(config) if reads_source else None
        self.around_feed_forward = Sublayer(config) if d_ff else None

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns the keys and values, each (R, H, S, K), of the encoder's states `memory`, (R, S, D).

        Returns `None` if the layer has no attention to the source.
        """
        return None if self.source_attention is None else self.source_attention.project(memory)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        rotation: Rotation | None,
        memory: tuple[Tensor, Tensor] | None,
        source_mask: Tensor | None,
        watched: list[Tensor] | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Maps target tokens `x`, (R, T, D), to the layer's output of the same shape.

        If `cache` is given, the keys and values of these tokens are appended to the cache. If `watched` is a list, the
        weights of the attention to the source are appended to the list. `mask` comes from `TransformerState.advance`.
        `source_mask` comes from `source_attention_mask` or `padding_mask`; if it is `None`, no source token is hidden.
        `memory` holds the keys and values of the source, or is `None` without attention to the source. `rotation` has
        the angles of rotary positions; it is `None` with other position encodings. `factors` is as in
        `attend_with_factors`.
        """
        # If the cache has tokens, `mask=None` means that there is one new token, which attends to all of them.
        causal = mask is None and (cache is None or cache.length == 0)
        x = self.around_attention(x, lambda y: self.attention(y, mask, causal, cache, rotation, factors))
        attention, around = self.source_attention, self.around_source_attention
        if attention is not None and around is not None and memory is not None:
            x = around(x, lambda y: attention(y, *memory, source_mask, watched))
        if self.around_feed_forward is not None:
            x = self.around_feed_forward(x, self.feed_forward)
        return x


FEW_TOKENS = 16  # with fewer cached tokens than this, looking for unused tokens does not pay


@dataclass(frozen=True)
class TransformerState:
    """A decoding state: the keys and values of the source, and caches of the keys and values of all target tokens.

    The mask `ancestors` says which cached tokens belong to each hypothesis. `branch` changes only this mask; the caches
    stay as they are.
    """

    layers: list[DecoderLayer]  # the decoder's layers, without those that layer dropout skips
    unused: list[Tensor]  # tensors that get no gradient because of the skipped layers
    memory: list[tuple[Tensor, Tensor] | None]  # for each layer, keys and values of the source, each (R, H, S, K)
    source: Rows
    source_mask: Tensor | None  # hides padding of the source; None if there is none, or if rows are packed
    positions: Tensor  # (R,) int64: the number of tokens decoded so far, including the start token
    caches: list[Cache]
    watch: bool = False
    attention: list[Tensor] = field(default_factory=list)
    num_hypotheses: int = 1  # W
    ancestors: Tensor | None = None  # (R, W, N) bool; None: each cached token belongs to every hypothesis
    num_used: int = 0  # the number of tokens in the caches when unused ones were last removed
    length: int = 0  # an upper bound of `positions` that can be read without waiting for the device

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        ancestors = self.ancestors
        if ancestors is not None:
            ancestors = ancestors.gather(1, parents[:, :, None].expand(-1, -1, ancestors.shape[2]))
        after = replace(self, num_hypotheses=parents.shape[1], ancestors=ancestors)
        # Only on a CPU: `_without_unused` would wait for other devices.
        return after._without_unused() if parents.device.type == "cpu" else after

    def _without_unused(self) -> Self:
        """Returns a state with unused tokens removed from its caches if that saves much; otherwise, returns `self`.

        A cached token is unused if it no longer belongs to any hypothesis. Most hypotheses of a beam share all but
        their last tokens, so most cached tokens are soon unused. Since removing them copies the caches, they are only
        removed when the number N of cached tokens has about doubled. N is the same for all rows, so a row may keep some
        of its unused tokens.
        """
        ancestors = self.ancestors
        if ancestors is None or ancestors.shape[2] < 2 * self.num_used + FEW_TOKENS:
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
        memory: list[tuple[Tensor, Tensor] | None] = []
        for each in self.memory:
            if each is None:
                memory.append(None)
            else:
                key, value = keep_rows(sentences, *each)
                memory.append((key, value))
        return replace(
            self,
            memory=memory,
            source=Rows(source.ids[sentences], source.segments[sentences], source.positions[sentences], source.packed),
            source_mask=None if self.source_mask is None else self.source_mask[sentences],
            positions=self.positions[sentences],
            ancestors=None if self.ancestors is None else self.ancestors[sentences],
        )

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Returns a state in which the rows of `fresh` replace the rows with the indices `places`, (R',) int64.

        `fresh` is a state before the first step, with R' sentences of one hypothesis each. Other rows are unchanged.
        The caches are modified in place: in the replaced rows, old keys and values are set to zero, and the mask
        `ancestors` hides them from the new hypotheses.
        """
        for cache in self.caches:
            cache.clear(places)  # a hidden NaN would still make the weighted sum of the values NaN
        source = Rows(
            ids=put(self.source.ids, places, fresh.source.ids, dim=1),
            segments=put(self.source.segments, places, fresh.source.segments, dim=1),
            positions=put(self.source.positions, places, fresh.source.positions, dim=1),
        )
        memory: list[tuple[Tensor, Tensor] | None] = []
        dtype = None
        for old, new in zip(self.memory, fresh.memory, strict=True):
            if old is None or new is None:
                memory.append(None)
            else:
                memory.append((put(old[0], places, new[0], dim=2), put(old[1], places, new[1], dim=2)))
                dtype = compute_dtype(old[0])
        positions = put(self.positions, places, fresh.positions)
        return replace(
            self,
            memory=memory,
            source=source,
            source_mask=None if dtype is None else padding_mask(source, dtype),
            positions=positions,
            ancestors=self._all_ancestors().index_fill(0, places, False),
            length=int(positions.max()),
        )._without_unused()

    def advance(self, target: Rows) -> tuple[Self, Tensor | None]:
        """Returns a state that includes the tokens in `target`, and the attention mask of these tokens.

        The mask, (R, 1, T, N) bool, says which of the N tokens, cached or new, each of the T new tokens may attend to.
        A new token attends to the cached tokens of its hypothesis. It also attends to itself and to earlier new tokens
        of its own segment (sentence or hypothesis). This rule covers teacher forcing, packed rows and search steps. In
        place of a mask, `None` stands for attention to all tokens if there is one new token, else for a causal mask.

        The returned state has new `positions` and `ancestors`; the layers append to the caches of the state later.
        """
        num_hypotheses, num_tokens = self.num_hypotheses, target.ids.shape[1]
        assert num_hypotheses in (1, num_tokens), "one hypothesis takes any number of tokens, several take one each"
        if num_hypotheses == num_tokens:
            return self._advance_by_one()
        query, key = target.segments[:, :, None], target.segments[:, None, :]
        own = key == torch.arange(1, num_hypotheses + 1, device=key.device)[None, :, None]  # (R, W, T)

        mask, ancestors = None, self._all_ancestors()
        if self.length or target.packed:
            mask = (query == key) & (target.positions[:, None, :] <= target.positions[:, :, None])  # (R, T, T)
            mask = torch.cat([ancestors.expand(-1, num_tokens, -1), mask], dim=2)[:, None]

        after = replace(
            self,
            ancestors=torch.cat([ancestors, own], dim=2),
            positions=self.positions + target.mask.sum(1),
            length=self.length + num_tokens,
        )
        return after, mask

    def _advance_by_one(self) -> tuple[Self, Tensor | None]:
        """Returns a state that includes one new token of each hypothesis (a step of a search), and the attention mask.

        The mask is (R, 1, W, N). A new token may attend to itself and to the earlier tokens of its hypothesis, so the
        mask is the new `ancestors`. As long as each sentence has only ever had one hypothesis, the mask is `None`,
        which hides nothing.
        """
        ancestors = self.ancestors
        if self.num_hypotheses > 1 or ancestors is not None:
            own = torch.eye(self.num_hypotheses, dtype=torch.bool, device=self.positions.device)
            ancestors = torch.cat([self._all_ancestors(), own.expand(len(self.positions), -1, -1)], dim=2)
        after = replace(self, ancestors=ancestors, positions=self.positions + 1, length=self.length + 1)
        return after, None if ancestors is None else ancestors[:, None]

    def _all_ancestors(self) -> Tensor:
        """Returns the mask `ancestors` as a tensor (R, W, N), all True if the attribute is `None`."""
        if self.ancestors is not None:
            return self.ancestors
        shape = len(self.positions), self.num_hypotheses, self.length
        return torch.ones(shape, dtype=torch.bool, device=self.positions.device)


@dataclass(frozen=True)
class PrefixState:
    """The decoding state of a decoder whose tokens attend to later tokens; every step decodes all tokens so far anew.

    Such a decoder cannot use a cache, since the keys and values of a token change with each token that follows.
    """

    fresh: TransformerState  # the state before the first token; only its `positions` change
    shifted: bool  # whether the decoder reads the token before the one that it predicts
    tokens: Tensor | None = None  # (R, W, N); None before the first token
    num_hypotheses: int = 1  # W
    attention: list[Tensor] = field(default_factory=list)

    @property
    def positions(self) -> Tensor:
        """For each row, the number of tokens decoded so far per hypothesis, including the start token; (R,) int64."""
        return self.fresh.positions

    def branch(self, parents: Tensor) -> Self:
        """Returns a state whose hypothesis w of row r continues hypothesis `parents[r, w]`; `parents` is (R, W')."""
        tokens = self.tokens
        if tokens is not None:
            tokens = tokens.gather(1, parents[:, :, None].expand(-1, -1, tokens.shape[2]))
        return replace(self, tokens=tokens, num_hypotheses=parents.shape[1])

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64, in the order of the list."""
        tokens = None if self.tokens is None else self.tokens[sentences]
        return replace(self, fresh=self.fresh.keep(sentences), tokens=tokens)

    def refill(self, places: Tensor, fresh: Self) -> Self:
        """Raises NotImplementedError, since all rows must have the same number of tokens."""
        raise NotImplementedError

    def advance(self, target: Rows) -> tuple[Self, Rows]:
        """Returns a state that includes the tokens in `target`, and rows of all tokens so far.

        The rows are (R, W x N), and each hypothesis is a segment. The first call, which may be for teacher forcing,
        returns `target` itself as the rows.

        If the decoder's input is not shifted, the decoder predicts each token at the position of that token. All calls
        after the first then rotate each hypothesis by one position: [start, a, b] becomes [a, b, start], where the
        start token holds the place of the token that is not yet known.
        """
        num_rows, num_hypotheses = len(target.ids), self.num_hypotheses
        new = target.ids.view(num_rows, num_hypotheses, -1)
        tokens = new if self.tokens is None else torch.cat([self.tokens, new], dim=2)
        fresh = replace(self.fresh, positions=self.positions + target.mask.sum(1) // num_hypotheses)
        after = replace(self, fresh=fresh, tokens=tokens)
        if self.tokens is None:
            return after, target
        hypotheses, places = (torch.arange(n, device=new.device) for n in tokens.shape[1:])
        segments = (hypotheses[:, None] + 1).expand(tokens.shape).flatten(1)
        ids = (tokens if self.shifted else tokens.roll(-1, dims=2)).flatten(1)
        return after, Rows(ids, segments, places.expand(tokens.shape).flatten(1), packed=num_hypotheses > 1)


class TransformerDecoder(nn.Module):
    """Embeds the target and decodes it with a stack of layers that attend to earlier tokens and to the source."""

    def __init__(self, config: TransformerConfig, embedding: Embedding, output: Output) -> None:
        super().__init__()
        self.embedded = EmbeddedRows(config, "decoder", embedding)
        self.rotary = rotary_positions(config, "decoder")
        self.biases = linear_biases(config, "decoder")
        self.layers = LayerList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_dropout = config.layer_dropout
        self.residual_init = config.residual_init
        self.norm = final_norm(config)
        self.output = output
        self.recomputes = False  # see recompute_layers
        self.call: LayerCall = call_layer  # calls a layer if gradients are computed; may be compiled
        self.ablate = config.ablate

    @property
    def embedding(self) -> Embedding:
        """The target embedding."""
        return self.embedded.embedding

    @property
    def sees_later(self) -> bool:
        """Whether tokens attend to later tokens, so that a search cannot use a cache."""
        return any(name in self.ablate for name in SEES_LATER)

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> TransformerState | PrefixState:
        """Returns the state before the first token; with `watch=True`, this and all later states record attention."""
        layers, unused = drawn_layers(self.layers, self.layer_dropout, self.training)
        if unused or "cross_attention" in self.ablate:
            unused.append(memory.states)  # if no layer attends to it, it gets no gradient either
        state = TransformerState(
            layers,
            unused,
            memory=[layer.project(memory.states) for layer in layers],
            source=source,
            source_mask=None if source.packed else padding_mask(source, compute_dtype(memory.states)),
            positions=torch.zeros(len(source.ids), dtype=torch.int64, device=source.ids.device),
            caches=[Cache() for _ in layers],
            watch=watch,
        )
        return PrefixState(state, shifted="shift" not in self.ablate) if self.sees_later else state

    def forward(
        self, target: Rows, state: TransformerState | PrefixState
    ) -> tuple[Tensor, TransformerState | PrefixState]:
        """Returns features (R, T, D) and the new state; the feature vector of each token predicts the next token.

        If the setting `ablate` contains "shift", the feature vector of each token predicts, under teacher forcing, that
        token itself.
        """
        if isinstance(state, PrefixState):
            return self._decode_all(target, state)
        state, mask = state.advance(target)
        features, attention = self._decode(target, state, mask)
        return features, replace(state, attention=attention) if state.watch else state

    def _decode_all(self, target: Rows, state: PrefixState) -> tuple[Tensor, PrefixState]:
        """Returns the features (R, T, D) of the tokens in `target`, and the new state; decodes all tokens so far."""
        state, rows = state.advance(target)
        same = rows.segments[:, :, None] == rows.segments[:, None, :]
        mask, factors = same[:, None], None
        if "causal_mask_product" in self.ablate:
            factors = is_not_later(rows)[:, None]
        elif "causal_mask" not in self.ablate:
            mask = mask & is_not_later(rows)[:, None]
        fresh = replace(state.fresh, caches=[Cache() for _ in state.fresh.layers], length=rows.ids.shape[1])
        features, attention = self._decode(rows, fresh, mask, factors)

        def of_new(values: Tensor, dim: int) -> Tensor:
            by_hypothesis = torch.unflatten(values, dim, (state.num_hypotheses, -1))
            num_new = target.ids.shape[1] // state.num_hypotheses
            first = by_hypothesis.shape[dim + 1] - num_new
            return by_hypothesis.narrow(dim + 1, first, num_new).flatten(dim, dim + 1)

        return of_new(features, 1), replace(state, attention=[of_new(weights, 2) for weights in attention])

    def _decode(
        self, target: Rows, state: TransformerState, mask: Tensor | None, factors: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the features (R, T, D) of the tokens in `target`, and a list of attention weights.

        If `state.watch` is true, the list has the weights (R, H, T, S) of the attention to the source, one tensor per
        layer; otherwise, the list is empty. `state` must include the tokens in `target` already. `mask` is as
        `TransformerState.advance` returns it, and `factors` as in `attend_with_factors`.
        """
        is_packed = state.source.packed
        source_mask = source_attention_mask(target.segments, state.source) if is_packed else state.source_mask
        rotation = None
        if self.rotary is not None:
            from_start = state.length == target.ids.shape[1]  # false in a step of a search, except for the first one
            rotation = self.rotary(target.positions, state.length, from_start and not target.packed)
        x = with_zero_gradients(self.embedded(target, state.length), state.unused)
        if self.biases is not None:
            if mask is None and state.length > target.ids.shape[1]:
                mask = torch.ones(len(target.ids), 1, 1, state.length, dtype=torch.bool, device=x.device)
            elif mask is None:
                mask = ((target.segments[:, :, None] == target.segments[:, None, :]) & is_not_later(target))[:, None]
            is_whole = mask.shape[3] == target.ids.shape[1]
            mask = self.biases(distances(target) if is_whole else cached_distances(mask), mask, compute_dtype(x))
        if mask is not None and not torch.is_grad_enabled():  # a step of a search: converted once for all layers
            mask = additive(mask, compute_dtype(x))
        attention: list[Tensor] = []
        watched = attention if state.watch else None
        recomputes = self.recomputes and torch.is_grad_enabled()
        # `watched` grows with each layer, for which the compiler would have to compile each layer separately.
        call = self.call if torch.is_grad_enabled() and watched is None else call_layer
        for layer, cache, memory in zip(state.layers, state.caches, state.memory, strict=True):
            x = through_layer(
                partial(
                    call,
                    layer,
                    mask=mask,
                    cache=cache if call is call_layer and not recomputes else None,
                    rotation=rotation,
                    memory=memory,
                    source_mask=source_mask,
                    watched=watched,
                    factors=factors,
                ),
                x,
                recomputes,
            )
        return self.norm(x), attention


# The whole model.


def build_transformer(config: TransformerConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """Builds the Transformer that `config` describes, with uninitialised weights."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    encoder: Encoder = TransformerEncoder(config, source) if config.reads_source else NoEncoder(config.d_model)
    decoder = TransformerDecoder(config, target, output)
    limits = Limits(config.limit_of("encoder"), config.limit_of("decoder"))
    shifted = "shift" not in config.ablate
    return TranslationModel(encoder, decoder, limits, config.start_token, shifted)


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
    for stack in stacks_of(model):
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
    """Multiplies the last matrix of each sublayer by a factor that depends on the setting `residual_init`."""
    sublayers = [m for m in stack.modules() if isinstance(m, SelfAttention | CrossAttention | FeedForward)]
    factor = RESIDUAL_FACTORS[stack.residual_init](len(sublayers))
    for sublayer in sublayers:
        with torch.no_grad():
            sublayer.output.weight.mul_(factor)


# The conditional masked language model.

# A length class is a difference between the lengths of target and source, in tokens without end marks. Differences
# beyond this number count as this number.
MOST_DIFFERENCE = 128
NUM_LENGTHS = 2 * MOST_DIFFERENCE + 1  # K


class MaskedRows(EmbeddedRows):
    """Embedded rows in which masked tokens (`Rows.cut`) have a learned vector in place of their embeddings.

    The vector is not part of the embedding matrix, so the vocabulary needs no mask token, and the model can never
    generate a mask token.
    """

    def __init__(self, config: MaskedConfig, embedding: Embedding) -> None:
        super().__init__(config, "decoder", embedding)
        self.mask = nn.Parameter(torch.empty(config.d_model))

    def initialize(self) -> None:
        """Draws the vector for masked tokens from the distribution of the token embeddings."""
        nn.init.normal_(self.mask, std=len(self.mask) ** -0.5)

    def embed_tokens(self, rows: Rows) -> Tensor:
        """Returns the token embeddings (R, T, D), without positions; masked tokens have the learned vector."""
        x = super().embed_tokens(rows)
        return x if rows.cut is None else x + rows.cut[:, :, None] * (self.mask * self.embedding.scale)


@dataclass(frozen=True, kw_only=True)
class MaskedState(TransformerState):
    """A decoding state that depends on the source only: keys and values of the source, and logits of target lengths."""

    length_logits: Tensor  # (R, K)

    def keep(self, sentences: Tensor) -> Self:
        """Returns a state with only the rows listed in `sentences`, (R',) int64; a row may be listed several times."""
        return replace(super().keep(sentences), length_logits=self.length_logits[sentences])

    def advance(self, target: Rows) -> tuple[Self, Tensor]:
        """Returns a state with empty caches, and the attention mask, (R, 1, 1, T), which hides only padding."""
        assert not target.packed, "a masked decoder decodes one sentence a row"
        caches = [Cache() for _ in self.caches]
        return replace(self, caches=caches, length=target.ids.shape[1]), target.mask[:, None, None, :]


class MaskedDecoder(TransformerDecoder):
    """A Transformer decoder without a causal mask; it also predicts the length of the target."""

    def __init__(self, config: MaskedConfig, embedding: Embedding, output: Output) -> None:
        super().__init__(config, embedding, output)
        self.embedded = MaskedRows(config, embedding)
        self.lengths = Output(Embedding(NUM_LENGTHS, config.d_model, scaled=False), has_bias=True)

    def start(self, memory: Memory, source: Rows, watch: bool = False) -> MaskedState:
        """Returns the state for decoding, with logits of the target length; `watch` has no effect.

        The logits are computed from the mean of the encoder's states.
        """
        state = super().start(memory, source)
        states, real = memory.states, source.mask[:, :, None]
        mean = (states * real).sum(1, dtype=torch.promote_types(states.dtype, torch.float32)) / real.sum(1)  # (R, D)
        return MaskedState(**vars(state), length_logits=self.lengths(mean.to(states.dtype)))


class MaskedModel(TranslationModel):
    """A conditional masked language model: a Transformer that predicts all masked target tokens at once.

    `decode` takes a whole target with its end mark, but without a start token. The feature vector at each position
    predicts the token at that position, not the next one.
    """

    def encode(self, source: Rows, watch: bool = False) -> MaskedState:
        """Encodes the source; the returned state can be used for any number of calls of `decode`.

        Attention is not recorded, even with `watch=True`.
        """
        state = super().encode(source, watch)
        assert isinstance(state, MaskedState)
        return state

    def hide(self, batch: Batch, everything: bool = False) -> Batch:
        """Returns the batch with randomly masked target tokens; only masked tokens have labels.

        In a target of n tokens, k tokens are masked, where k is drawn uniformly from 1 to n (section 3.1 of the paper).
        With `everything`, all tokens are masked. The end mark is never masked. Outside training, the random numbers
        depend only on the shape of the batch, and the global random state is left unchanged.
        """
        is_token = F.pad(batch.target.mask[:, 1:], (0, 1))  # (R, T); the end mark is the last of the real positions
        masked = is_token if everything else is_token & self._drawn(is_token)
        target = replace(batch.target, ids=batch.labels.clamp(min=PAD), cut=masked)
        return replace(batch, target=target, labels=batch.labels.masked_fill(~masked, NO_LABEL))

    def _drawn(self, is_token: Tensor) -> Tensor:
        """Draws which tokens to mask; returns a bool tensor (R, T) that is True at these tokens.

        `is_token`, (R, T), is True at the tokens that may be masked. In rows without such tokens, the result is True at
        a place that must be ignored.
        """
        device = is_token.device
        generator = None if self.training else torch.Generator(device).manual_seed(0)
        shares = torch.rand(len(is_token), 1, device=device, generator=generator)
        num_masked = (shares * is_token.sum(1, keepdim=True)).long() + 1  # (R, 1)
        order = torch.rand(is_token.shape, device=device, generator=generator).masked_fill(~is_token, 2.0).argsort(1)
        return order.argsort(1) < num_masked

    def length_log_probs(self, state: MaskedState, lengths: Tensor) -> Tensor:
        """Returns the log-probability (R,) that the target of each row has the length given in `lengths` (R,).

        Lengths are in tokens, without the end mark. The result is in fp64 if the model is in fp64, else in
        fp32.
        """
        differences = (lengths - source_lengths(state)).clamp(-MOST_DIFFERENCE, MOST_DIFFERENCE)
        return log_softmax(state.length_logits).gather(1, differences[:, None] + MOST_DIFFERENCE)[:, 0]

    def likeliest_lengths(self, state: MaskedState, max_lengths: Tensor, num_lengths: int) -> tuple[Tensor, Tensor]:
        """Returns the N most probable target lengths, best first, and their log-probabilities, both (R, N).

        N is the smaller of `num_lengths` and `max_lengths.max() + 1`. Lengths are in tokens, without the end mark.
        `max_lengths`, (R,), holds the maximum length of each row: the probability of all greater lengths is added to
        that of the maximum. The probability of lengths below 1 is added to that of length 1. A log-probability of -inf
        marks an impossible length.
        """
        differences = torch.arange(-MOST_DIFFERENCE, MOST_DIFFERENCE + 1, device=max_lengths.device)
        lengths = (source_lengths(state)[:, None] + differences).clamp(min=1).minimum(max_lengths[:, None])  # (R, K)
        probs = log_softmax(state.length_logits).exp()
        of_lengths = probs.new_zeros(len(probs), int(max_lengths.max()) + 1).scatter_add(1, lengths, probs)
        probs, found = of_lengths.sort(dim=1, descending=True, stable=True)
        return found[:, :num_lengths], probs[:, :num_lengths].log()


def log_softmax(logits: Tensor) -> Tensor:
    """Returns the log-softmax over the last dimension, in fp64 if `logits` is in fp64, else in fp32."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def source_lengths(state: MaskedState) -> Tensor:
    """Returns the number of tokens of each source, (R,), without the end mark."""
    return state.source.mask.sum(1) - 1


def build_masked(config: MaskedConfig, source_vocab_size: int, target_vocab_size: int) -> MaskedModel:
    """Builds the model that `config` describes, with uninitialised weights."""

    def table(vocab_size: int) -> Embedding:
        return Embedding(vocab_size, config.d_model, config.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings, lambda: table(source_vocab_size), lambda: table(target_vocab_size), config.output_bias
    )
    limits = Limits(config.limit_of("encoder"), config.limit_of("decoder"))
    encoder, decoder = TransformerEncoder(config, source), MaskedDecoder(config, target, output)
    return MaskedModel(encoder, decoder, limits, config.start_token)


def initialize_masked(model: nn.Module) -> None:
    """Initialises the weights as `initialize_transformer` does, and draws the vector for masked tokens."""
    initialize_transformer(model)
    for module in model.modules():
        if isinstance(module, MaskedRows):
            module.initialize()
