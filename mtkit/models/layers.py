"""The layers of a Transformer: positions, dropout, attention with its cache, feed-forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.model_settings import TransformerConfig

# What wave i of all D/2 divides a place by, as a power of 10000: 2i/D as in the paper, or i/(D/2 - 1), with which the
# last one is 10000 itself, as in the paper's first implementation, fairseq and M2M100.
EXPONENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "paper": lambda i: i / len(i),
    "tensor2tensor": lambda i: i / max(len(i) - 1, 1),
}

# How (P, D/2) sines and as many cosines stand beside each other.
LAYOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "halves": lambda sines, cosines: torch.cat([sines, cosines], dim=1),
    "interleaved": lambda sines, cosines: torch.stack([sines, cosines], dim=2).flatten(1),
}


def sinusoids(num_positions: int, d_model: int, layout: str = "halves", exponent: str = "paper") -> Tensor:
    """(P, D): sin(p / 10000^(2i/D)) for i < D/2, then the cosines (Vaswani et al. 2017, section 3.5).

    The paper lets sines and cosines alternate; in halves it is the same up to a fixed permutation of the columns.
    """
    exponents = EXPONENTS[exponent](torch.arange(d_model // 2, dtype=torch.float64, device="cpu"))
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * 10000.0**-exponents
    return LAYOUTS[layout](angles.sin(), angles.cos()).float()


class SinusoidalPositions(nn.Module):
    """Fixed waves; nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", self.waves(256), persistent=False)
        self.table: Tensor

    def waves(self, num_positions: int) -> Tensor:
        """(P, D): the rows of so many places, of which the first may stand further down in the table of all."""
        config = self.config
        first = config.sinusoid_first
        rows = sinusoids(first + num_positions, config.d_model, config.sinusoid_layout, config.sinusoid_exponent)
        return rows[first:].contiguous()

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        if longest > len(self.table):
            self.table = self.waves(2 * longest).to(self.table)
        return F.embedding(positions, self.table)


class LearnedPositions(nn.Module):
    """A learned row for each place (Gehring et al. 2017)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.d_model))

    def initialize(self) -> None:
        """As small beside the tokens' unit variance as fairseq and BERT have it."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor, longest: int) -> Tensor:
        """(R, L) places below longest to (R, L, D)."""
        assert longest <= len(self.weight), "callers keep to the model's limits"
        return F.embedding(positions, self.weight)


@dataclass(frozen=True)
class Rotation:
    """Turns queries and keys by angles that grow with their places (Su et al. 2021, equation 34)."""

    sines: Tensor  # (R, 1, L, K/2)
    cosines: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(R, H, L, K) to the same.

        Column i turns with column i + K/2; the paper pairs neighbours, which is the same up to a fixed permutation of
        the columns of queries and keys.
        """
        first, second = x.chunk(2, -1)
        turned = torch.cat(
            [first * self.cosines - second * self.sines, second * self.cosines + first * self.sines], dim=-1
        )
        return turned.to(x.dtype)


class RotaryPositions(nn.Module):
    """The angles of all places; nothing is learned or saved, and the table grows with the longest sentence seen."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        # Not a buffer: a model in bf16 turns by angles in fp32, else far places would be told wrongly.
        self.table = sinusoids(256, head_width)

    def forward(self, positions: Tensor, longest: int) -> Rotation:
        """The rotation for (R, L) places below longest."""
        if longest > len(self.table):
            self.table = sinusoids(2 * longest, self.table.shape[1])
        self.table = self.table.to(positions.device)
        sines, cosines = F.embedding(positions, self.table)[:, None].chunk(2, -1)
        return Rotation(sines, cosines)


# What each kind adds to the embeddings. Rotary positions come in by the attention instead, and without any the decoder
# knows an order only by which tokens it has seen, and the encoder none.
ADDED: dict[str, Callable[[TransformerConfig], nn.Module] | None] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": None,
    "none": None,
}


# Dropout (Srivastava et al. 2014), on a CPU several times faster than PyTorch's, which draws a float a value.

LEVELS = 1 << 16  # the rate is rounded to so many; one above 0 never to none, and none to all


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """X with a share of its values zero and the others scaled up, so that their mean stays."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    factor = (drawn >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
    return x * factor


# LayerDrop (Fan et al. 2020): whole layers are left out of a pass in training.


def draw_layers(num_layers: int, rate: float, training: bool) -> list[bool]:
    """Which layers take part in this pass; drawn by the host's generator, so that no device is waited for."""
    if not training or rate == 0.0:
        return [True] * num_layers
    drawn: list[bool] = (torch.rand(num_layers, device="cpu") >= rate).tolist()
    return drawn


class _Unused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, ...]:
        return by_x, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, unused: Sequence[Tensor]) -> Tensor:
    """X, of which tensors that took no part have a gradient of zeros.

    Without one an optimizer would pass them by: their memory would be missing from a checkpoint, or count fewer updates
    than that of the others; and ranks that drew different layers would wait for each other's gradients.
    """
    if not unused:
        return x
    result: Tensor = _Unused.apply(x, *unused)  # type: ignore[no-untyped-call]
    return result


# Multi-head attention (Vaswani et al. 2017, section 3.2) through PyTorch's fused kernels, and its cache.


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(R, L, D) to (R, H, L, K)."""
    rows, length, width = x.shape
    return x.view(rows, length, num_heads, width // num_heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """(R, H, Q, K) mixed values as (R, Q, D); mask is (R, 1, 1 or Q, N), True where a query may look."""
    if query.device.type == "cpu" and dropout == 0 and _is_faster_in_parts(query):
        mixed = _attend_in_parts(query, key, value, mask, causal)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
    joined: Tensor = mixed.transpose(1, 2).flatten(2)
    return joined


def _is_faster_in_parts(query: Tensor) -> bool:
    """Where the fused kernel of the CPU loses to plain products (torch 2.13, EPYC, one core).

    In bf16 its backward pass does: 59 ms against 13 for 100 rows of 40 tokens, 4 heads of width 64; in fp32 it wins, 20
    against 24. The few queries of a search step cost it about as much as many.
    """
    return query.dtype == torch.bfloat16 or (query.shape[2] <= 8 and not torch.is_grad_enabled())


def _attend_in_parts(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """(R, H, Q, K): the same as the fused kernel, product by product."""
    mixed: Tensor = attention_weights(query, key, mask, causal).to(value.dtype) @ value
    return mixed


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """(R, H, Q, N): how much each query looks at each key."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    weights: Tensor = scores.softmax(-1)
    return weights


class Cache:
    """Keys and values of all tokens so far. They are appended in place and never moved, whatever a beam does."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # (R, H, capacity, K)
        self.values: Tensor | None = None
        self.length = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these (R, H, Q, K) last; each is (R, H, N, K)."""
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
        """Only these rows, in that order."""
        if self.keys is not None and self.values is not None:
            self.keys = self.keys.index_select(0, sentences)
            self.values = self.values.index_select(0, sentences)


def _grow(old: Tensor, length: int, capacity: int) -> Tensor:
    new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
    new[:, :, :length] = old[:, :, :length]
    return new


class SelfAttention(nn.Module):
    """Tokens look at each other."""

    BLOCKS: ClassVar = {"query_key_value": 3}  # matrices that consist of several, for optimizers that treat each alone

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
        """(R, Q, D) to the same; with a cache, all earlier tokens are looked at too.

        With a rotation queries and keys are turned by it; what the cache holds has been turned already.
        """
        query, key, value = (split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, -1))
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if cache is not None:
            key, value = cache.append(key, value)
        mixed: Tensor = self.output(attend(query, key, value, mask, causal, self.dropout if self.training else 0.0))
        return mixed


class CrossAttention(nn.Module):
    """Target tokens look at the source, whose keys and values are projected once."""

    BLOCKS: ClassVar = {"key_value": 2}

    def __init__(self, d_model: int, num_heads: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(d_model, d_model, bias)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias)
        self.output = nn.Linear(d_model, d_model, bias)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(R, S, D) to keys and values (R, H, S, K)."""
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(memory).chunk(2, -1))
        return key, value

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, watched: list[Tensor] | None = None
    ) -> Tensor:
        """(R, Q, D) to the same; the weights, (R, H, Q, S), are added to what is watched."""
        query = split_heads(self.query(x), self.num_heads)
        if watched is not None:
            watched.append(attention_weights(query, key, mask, causal=False))
        dropout = self.dropout if self.training else 0.0
        mixed: Tensor = self.output(attend(query, key, value, mask, False, dropout))
        return mixed


# The feed-forward layers and their nonlinearities. R rows, L length, D model width.

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

# Of the gate, by which the other half of the inner layer is multiplied (Shazeer 2020).
GATES: dict[str, Callable[[Tensor], Tensor]] = {"reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu}


class FeedForward(nn.Module):
    """Two linear layers with a nonlinearity between (Vaswani et al. 2017, equation 2), or a gate.

    A gated inner layer is one matrix of 2 d_ff rows: those of the gate, then those of what it lets through.
    """

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.is_gated = config.activation in GATES
        self.BLOCKS = {"inner": 2 if self.is_gated else 1}
        self.inner = nn.Linear(config.d_model, 2 * d_ff if self.is_gated else d_ff)
        self.output = nn.Linear(d_ff, config.d_model)
        self.activation = (GATES if self.is_gated else ACTIVATIONS)[config.activation]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(R, L, D) to the same."""
        y: Tensor = self.output(dropout(self.activate(self.inner(x)), self.dropout, self.training))
        return y

    def activate(self, inner: Tensor) -> Tensor:
        """What the inner layer gives, (R, L, d_ff), or twice as wide where it is gated, to (R, L, d_ff)."""
        if not self.is_gated:
            return self.activation(inner)
        gate, value = inner.chunk(2, -1)
        return self.activation(gate) * value
