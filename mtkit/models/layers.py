"""Layers of a Transformer: positions, attention with its cache, feed-forward, dropout and layer dropout.

Shapes: R rows, L length, Q queries, N keys, S source length, H heads, K width of a head, D model width, P positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.model_settings import TransformerConfig

# Positions.

# Sinusoid i of D/2 has the wavelength 2 pi * 10000^exponent. The exponent is 2i/D as in the paper, or i/(D/2 - 1), so
# that the last one is 1, as in the paper's first implementation, fairseq and M2M100.
EXPONENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "paper": lambda i: i / len(i),
    "tensor2tensor": lambda i: i / max(len(i) - 1, 1),
}

# How the columns of sines (P, D/2) and cosines (P, D/2) are arranged.
LAYOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "halves": lambda sines, cosines: torch.cat([sines, cosines], dim=1),
    "interleaved": lambda sines, cosines: torch.stack([sines, cosines], dim=2).flatten(1),
}


def sinusoids(
    num_positions: int, d_model: int, layout: str = "halves", exponent: str = "paper", first: int = 0
) -> Tensor:
    """Sinusoidal positions (P, D): sin(p / 10000^(2i/D)) for i < D/2, then cosines (Vaswani et al. 2017, section 3.5).

    The paper interleaves sines and cosines; halves differ from that only by a fixed permutation of the columns.
    """
    exponents = EXPONENTS[exponent](torch.arange(d_model // 2, dtype=torch.float64, device="cpu"))
    positions = torch.arange(first, first + num_positions, dtype=torch.float64, device="cpu")
    angles = positions[:, None] * 10000.0**-exponents
    return LAYOUTS[layout](angles.sin(), angles.cos()).float()


class SinusoidalPositions(nn.Module):
    """Sinusoidal positions: nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", self.make_table(256), persistent=False)
        self.table: Tensor

    def make_table(self, num_positions: int) -> Tensor:
        """The embeddings (P, D) of the first positions; position 0 has the row of sinusoid_first."""
        config = self.config
        return sinusoids(
            num_positions, config.d_model, config.sinusoid_layout, config.sinusoid_exponent, config.sinusoid_first
        )

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Embeddings (R, L, D) of positions (R, L), all below length."""
        if length > len(self.table):
            self.table = self.make_table(2 * length).to(self.table)
        return F.embedding(positions, self.table)


class LearnedPositions(nn.Module):
    """Learned positions: an embedding for each (Gehring et al. 2017)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.d_model))

    def initialize(self) -> None:
        """Draws from a normal distribution, small beside the unit variance of the tokens, as in fairseq and BERT."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Embeddings (R, L, D) of positions (R, L), all below length."""
        assert length <= len(self.weight), "callers keep to the model's limits"
        return F.embedding(positions, self.weight)


@dataclass(frozen=True)
class Rotation:
    """Rotates queries and keys by angles proportional to their positions (Su et al. 2021, equation 34)."""

    sines: Tensor  # (R, 1, L, K/2)
    cosines: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(R, H, L, K) to (R, H, L, K).

        Column i is rotated together with column i + K/2. The paper pairs neighbouring columns, which is the same up to
        a fixed permutation of the columns of queries and keys.
        """
        first, second = x.chunk(2, -1)
        rotated = torch.cat(
            [first * self.cosines - second * self.sines, second * self.cosines + first * self.sines], dim=-1
        )
        return rotated.to(x.dtype)


class RotaryPositions(nn.Module):
    """Rotary positions: nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        # Not a buffer: it stays in fp32 where the model is cast to bf16, which would round the angles of far positions.
        self.table = sinusoids(256, head_width)

    def forward(self, positions: Tensor, length: int) -> Rotation:
        """The rotation for positions (R, L), all below length."""
        if length > len(self.table):
            self.table = sinusoids(2 * length, self.table.shape[1])
        self.table = self.table.to(positions.device)
        sines, cosines = F.embedding(positions, self.table)[:, None].chunk(2, -1)
        return Rotation(sines, cosines)


# The module that is added to the token embeddings. Rotary positions act in the attention instead. Without positions the
# encoder knows nothing of the order of tokens, and the decoder only which tokens came before.
POSITIONS: dict[str, Callable[[TransformerConfig], nn.Module] | None] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": None,
    "none": None,
}


# Dropout (Srivastava et al. 2014). On a CPU it draws 16 bits per value, several times faster than PyTorch's floats.

LEVELS = 1 << 16  # the rate is rounded to a multiple of 1 / LEVELS, but never to 0 or 1


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Returns x with a fraction rate of its values set to zero and the others scaled up, which keeps the mean."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    factor = (drawn >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
    return x * factor


# Multi-head attention (Vaswani et al. 2017, section 3.2), by PyTorch's fused kernels where they are faster.


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(R, L, D) to (R, H, L, K)."""
    rows, length, width = x.shape
    return x.view(rows, length, num_heads, width // num_heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """The attended values of all heads, (R, Q, D).

    query is (R, H, Q, K), key and value (R, H, N, K), mask (R, 1, 1 or Q, N), True where a query may attend to a key.
    """
    if query.device.type == "cpu" and dropout == 0 and _is_faster_unfused(query):
        attended = _attend_unfused(query, key, value, mask, causal)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
    joined: Tensor = attended.transpose(1, 2).flatten(2)
    return joined


def _is_faster_unfused(query: Tensor) -> bool:
    """Whether plain products beat the fused kernel on a CPU (measured with torch 2.13, EPYC, one core).

    They do in bf16, because of the backward pass: 13 ms against 59 for 100 rows of 40 tokens, 4 heads of width 64. In
    fp32 the fused kernel wins, 20 ms against 24, except for the few queries of a search step, which cost it about as
    much as many.
    """
    return query.dtype == torch.bfloat16 or (query.shape[2] <= 8 and not torch.is_grad_enabled())


def _attend_unfused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The attended values (R, H, Q, K), by two matrix products instead of the fused kernel."""
    attended: Tensor = attention_weights(query, key, mask, causal).to(value.dtype) @ value
    return attended


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The attention weights (R, H, Q, N) of each query over the keys."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    weights: Tensor = scores.softmax(-1)
    return weights


class Cache:
    """The keys and values of all tokens so far; appended in place, and never moved when a beam branches."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # (R, H, capacity, K)
        self.values: Tensor | None = None
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends a key and a value, each (R, H, Q, K), and returns all keys and values, each (R, H, N, K)."""
        end = self.length + key.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = key, value  # no copy: under teacher forcing this is all there ever is
        else:
            if end > self.keys.shape[2]:
                self.keys = _grow(self.keys, self.length, 2 * end)
                self.values = _grow(self.values, self.length, 2 * end)
            self.keys[:, :, self.length : end] = key
            self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, sentences: Tensor) -> None:
        """Keeps these rows only, in this order; sentences is (R',)."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, sentences)
            self.values = self.values.index_select(0, sentences)


def _grow(old: Tensor, length: int, capacity: int) -> Tensor:
    """Room for so many tokens, of which the first length are copied."""
    new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
    new[:, :, :length] = old[:, :, :length]
    return new


class SelfAttention(nn.Module):
    """Attention of tokens to each other."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias)
        self.output = nn.Linear(d_model, d_model, bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """(R, Q, D) to (R, Q, D). With a cache, attends to the earlier tokens too.

        With a rotation, rotates queries and keys; cached keys are already rotated.
        """
        query, key, value = (split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, -1))
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attend(query, key, value, mask, causal, self.dropout if self.training else 0.0)
        output: Tensor = self.output(attended)
        return output


class CrossAttention(nn.Module):
    """Attention of target tokens to the source, whose keys and values are projected once."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model, bias)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias)
        self.output = nn.Linear(d_model, d_model, bias)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (R, H, S, K), of the encoder's states (R, S, D)."""
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(memory).chunk(2, -1))
        return key, value

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, watched: list[Tensor] | None = None
    ) -> Tensor:
        """(R, Q, D) to (R, Q, D); appends the attention weights (R, H, Q, S) to watched, unless it is None."""
        query = split_heads(self.query(x), self.num_heads)
        if watched is not None:
            watched.append(attention_weights(query, key, mask, causal=False))
        attended = attend(query, key, value, mask, False, self.dropout if self.training else 0.0)
        output: Tensor = self.output(attended)
        return output


# Feed-forward layers.

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

# Activations of the gate, which multiplies the other half of the inner layer (Shazeer 2020).
GATES: dict[str, Callable[[Tensor], Tensor]] = {"reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu}


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (Vaswani et al. 2017, equation 2), which may be a gate.

    A gated inner layer is one matrix of 2 d_ff rows: first the gate, then the values that it multiplies.
    """

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.is_gated = config.activation in GATES
        self.inner = nn.Linear(config.d_model, 2 * d_ff if self.is_gated else d_ff)
        self.output = nn.Linear(d_ff, config.d_model)
        self.activation = (GATES if self.is_gated else ACTIVATIONS)[config.activation]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(R, L, D) to (R, L, D)."""
        y: Tensor = self.output(dropout(self.activate(self.inner(x)), self.dropout, self.training))
        return y

    def activate(self, inner: Tensor) -> Tensor:
        """The activation, (R, L, d_ff), of the inner layer's output, which is twice as wide where it is gated."""
        if not self.is_gated:
            return self.activation(inner)
        gate, value = inner.chunk(2, -1)
        return self.activation(gate) * value


# Stacks of layers, and layer dropout (LayerDrop, Fan et al. 2020): training leaves out whole layers of a pass.

AnyLayer = TypeVar("AnyLayer", bound=nn.Module)


class LayerList(nn.ModuleList, Generic[AnyLayer]):
    """A ModuleList whose modules all have one known type."""

    def __init__(self, layers: Iterable[AnyLayer]) -> None:
        super().__init__(layers)

    def __iter__(self) -> Iterator[AnyLayer]:
        return cast("Iterator[AnyLayer]", super().__iter__())


def draw_layers(num_layers: int, rate: float, training: bool) -> list[bool]:
    """Draws whether each layer takes part in this pass; on the CPU, so as not to wait for the device."""
    if not training or rate == 0.0:
        return [True] * num_layers
    drawn: list[bool] = (torch.rand(num_layers, device="cpu") >= rate).tolist()
    return drawn


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, unused: Sequence[Tensor]) -> Tensor:
    """Returns x unchanged; in the backward pass the unused tensors get gradients of zeros.

    An optimizer skips tensors without a gradient: its state for them would be missing from a checkpoint, or count fewer
    updates than for the others. And ranks that drew different layers would wait for each other's gradients.
    """
    if not unused:
        return x
    result: Tensor = _ZeroGradients.apply(x, *unused)  # type: ignore[no-untyped-call]
    return result
