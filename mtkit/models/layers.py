"""Layers of a Transformer: positions, attention and its cache, feed-forward layers, dropout and layer dropout.

Shapes: R rows, L length, Q queries, N keys, S source length, H heads, K width of a head, D model width, P positions.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import QueryKeyNorm, TransformerConfig
from mtkit.models.interface import keep_rows

# Positions.

# The exponents of the D/2 sinusoids; sinusoid i has the wavelength 2 pi * 10000^exponent. In the paper (Vaswani et al.
# 2017), the exponent is 2i/D. In the paper's first implementation (tensor2tensor), in fairseq and in M2M100, the
# exponent is i/(D/2 - 1), which is 1 for the last sinusoid.
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
    """Returns the sinusoidal embeddings (P, D) of P positions, from `first` on (Vaswani et al. 2017, section 3.5).

    By default, the row of position p holds sin(p / 10000^(2i/D)) for i < D/2, then the cosines of the same angles. The
    paper interleaves sines and cosines instead, as `layout="interleaved"` does; this only permutes the columns.
    With `exponent="tensor2tensor"`, the exponent is i / (D/2 - 1) instead of 2i/D.
    """
    exponents = EXPONENTS[exponent](torch.arange(d_model // 2, dtype=torch.float64, device="cpu"))
    positions = torch.arange(first, first + num_positions, dtype=torch.float64, device="cpu")
    angles = positions[:, None] * 10000.0**-exponents
    return LAYOUTS[layout](angles.sin(), angles.cos()).float()


class SinusoidalPositions(nn.Module):
    """Sinusoidal position embeddings, in a table that is neither learned nor saved, and grows for longer sentences."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("table", self.make_table(256), persistent=False)
        self.table: Tensor

    def make_table(self, num_positions: int) -> Tensor:
        """Returns the embeddings (P, D) of P positions, numbered from the value of the setting `sinusoid_first`."""
        config = self.config
        return sinusoids(
            num_positions, config.d_model, config.sinusoid_layout, config.sinusoid_exponent, config.sinusoid_first
        )

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Returns the embeddings (R, L, D) of `positions` (R, L), all of which must be less than `length`."""
        table = self.table
        if length > len(table):
            table = self.table = self.make_table(2 * length).to(table)
        return F.embedding(positions, table)


class LearnedPositions(nn.Module):
    """Learned position embeddings, one for each of `max_positions` positions (Gehring et al. 2017)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.max_positions, config.d_model))

    def initialize(self) -> None:
        """Draws the embeddings from a normal distribution with standard deviation 0.02, as in fairseq and BERT.

        The standard deviation of token embeddings is much larger: it is 1 if the setting `scale_embeddings` is true.
        """
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Returns the embeddings (R, L, D) of `positions` (R, L), all of which must be less than `max_positions`.

        `length` is not used.
        """
        return F.embedding(positions, self.weight)


@dataclass(frozen=True)
class Rotation:
    """Rotates queries and keys by angles proportional to their positions (Su et al. 2021, equation 34)."""

    # In training, one sine and cosine per pair of columns, (R, 1, L, K/2). Otherwise, one per column, (R, 1, L, K), and
    # the sines of the first K/2 columns are negated.
    sines: Tensor
    cosines: Tensor
    matrices: Tensor | None = (
        None  # (L, K, K); given if all rows have the same positions and matrix products are faster
    )

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates queries or keys `x`, (R, H, L, K); the result has the same shape.

        Columns i and i + K/2 form a pair that is rotated together. The paper pairs neighbouring columns instead, which
        differs only by a fixed permutation of the columns of queries and keys.
        """
        if self.matrices is not None:
            rows, heads, length, width = x.shape
            by_position = x.permute(2, 0, 1, 3).reshape(length, rows * heads, width) @ self.matrices.to(x.dtype)
            return by_position.view(length, rows, heads, width).permute(1, 2, 0, 3)
        if self.sines.shape[-1] == x.shape[-1]:
            return torch.addcmul(x * self.cosines, x.roll(x.shape[-1] // 2, -1), self.sines).to(x.dtype)
        rotated: Tensor = _Rotate.apply(x, self.sines, self.cosines)  # type: ignore[no-untyped-call]
        return rotated


class _Rotate(torch.autograd.Function):
    """Rotates the pairs of columns of `x`, (R, H, L, K), by the angles of a `Rotation`.

    The gradient is rotated back by the same angles, so `x` need not be kept. Second derivatives are not supported.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sines: Tensor, cosines: Tensor) -> Tensor:
        ctx.save_for_backward(sines, cosines)
        return _rotated(x, sines, cosines)

    @staticmethod
    def backward(ctx: Any, by_rotated: Tensor) -> tuple[Tensor, None, None]:
        sines, cosines = ctx.saved_tensors
        return _rotated(by_rotated, -sines, cosines), None, None


def _rotated(x: Tensor, sines: Tensor, cosines: Tensor) -> Tensor:
    """Rotates the pairs of columns of `x`, (R, H, L, K); the result has the shape and the dtype of `x`.

    `sines` and `cosines`, (R, 1, L, K/2), are of the angles of the pairs. The rotation is computed in the dtype of
    `sines` or of `x`, whichever is more precise.
    """
    exact = torch.promote_types(x.dtype, sines.dtype)
    sines, cosines = sines.to(exact), cosines.to(exact)
    first, second = x.to(exact).chunk(2, -1)
    if torch.compiler.is_compiling():
        return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1).to(x.dtype)
    rotated = torch.empty(x.shape, dtype=exact, device=x.device)
    new_first, new_second = rotated.chunk(2, -1)
    # Products are written to their places at once: joining them afterwards would take as long again.
    torch.mul(first, cosines, out=new_first).addcmul_(second, sines, value=-1)
    torch.mul(second, cosines, out=new_second).addcmul_(first, sines)
    return rotated.to(x.dtype)


class RotaryPositions(nn.Module):
    """Rotary position encoding; the table of sines and cosines is neither learned nor saved, and grows as needed."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        # Not a buffer, so that it stays in fp32 when the model is cast to bf16, which would round the angles of high
        # positions.
        self.table = sinusoids(256, head_width)

    def forward(self, positions: Tensor, length: int, consecutive: bool = False) -> Rotation:
        """Returns the rotation for `positions` (R, L), all of which must be less than `length`.

        `consecutive=True` says that the positions in each row are 0, 1, 2 and so on, except for padding. In training on
        a CPU, the vectors at each position are then multiplied by a rotation matrix, which halves the time of rotation.
        """
        table = self.table
        if length > len(table):
            table = sinusoids(2 * length, table.shape[1])
        self.table = table = table.to(positions.device)
        sines, cosines = F.embedding(positions, table)[:, None].chunk(2, -1)
        if not torch.is_grad_enabled():  # the tensors of a search step are small, so the number of operators matters
            return Rotation(torch.cat([-sines, sines], -1), torch.cat([cosines, cosines], -1))
        if not consecutive or positions.device.type != "cpu":
            return Rotation(sines, cosines)
        sine, cosine = (part.diag_embed() for part in table[: positions.shape[1]].chunk(2, -1))  # (L, K/2, K/2)
        matrices = torch.cat([torch.cat([cosine, sine], 2), torch.cat([-sine, cosine], 2)], 1)
        return Rotation(sines, cosines, matrices)


class LinearBiases(nn.Module):
    """Linear biases, ALiBi (Press et al. 2022), which lower attention scores in proportion to the distance of the key.

    Heads are numbered from 1 to H. Head h lowers the score by 2^(-8h/H) times the distance, in tokens, between query
    and key. The paper has decoders only. In an encoder, a key after the query is treated like a key at the same
    distance before the query.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        # Not a buffer, so that it stays in fp32 when the model is cast to bf16.
        self.slopes = torch.tensor([2 ** (-8 * head / num_heads) for head in range(1, num_heads + 1)], device="cpu")

    def forward(self, distances: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns what to add to attention scores, (R, H, Q, N), as `dtype`: the biases, or -inf where `mask` is False.

        `distances`, (R, Q, N), holds the distance from each query to each key, in tokens. `mask` is (R, 1, 1 or Q, N);
        where `mask` is True, the distance must be at least 0.
        """
        self.slopes = self.slopes.to(distances.device)
        biases = (distances[:, None] * -self.slopes[:, None, None]).to(dtype)
        return biases.masked_fill(~mask, float("-inf"))


# Position codes that are concatenated to the token embeddings; a linear layer restores the width of the model.

POSITION_SCALE = 100  # so that the positions of most sentences lie between 0 and 1, much like embeddings
POSITION_BITS = 16  # more than any sentence needs


class ScalarPositions(nn.Module):
    """Encodes a position as a single number: the position divided by POSITION_SCALE (100)."""

    width = 1

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Returns the codes (R, L, 1) of `positions` (R, L); `length` is not used."""
        return positions[:, :, None] / POSITION_SCALE


class BinaryPositions(nn.Module):
    """Encodes a position as a binary number, with one column for each bit, lowest bit first."""

    width = POSITION_BITS

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Returns the codes (R, L, POSITION_BITS) of `positions` (R, L), lowest bit first; `length` is not used."""
        return (positions[:, :, None] >> torch.arange(POSITION_BITS, device=positions.device)) & 1


CONCATENATED: dict[str, type[ScalarPositions] | type[BinaryPositions]] = {
    "scalar": ScalarPositions,
    "binary": BinaryPositions,
}

# For each value of the setting `positions`, the module whose output is added to the token embeddings or, if it is in
# CONCATENATED, concatenated to them; or None. Rotary positions and linear biases are applied in the attention instead.
# With "none", the encoder has no information about the order of tokens, and the decoder knows only which tokens came
# before.
POSITIONS: dict[str, Callable[[TransformerConfig], nn.Module] | None] = {
    "sinusoidal": SinusoidalPositions,
    "learned": LearnedPositions,
    "rotary": None,
    "alibi": None,
    **CONCATENATED,
    "none": None,
}


# Dropout (Srivastava et al. 2014). On a CPU, mtkit's own dropout is used, which takes 16 random bits per value from the
# fastest of NumPy's generators. PyTorch's dropout draws floats, which takes six times as long. In compiled code, it is
# used nevertheless, since the compiler fuses it with neighbouring operations.

LEVELS = 1 << 16  # on a CPU, the rate is rounded to a multiple of 1 / LEVELS, but never to 0 or 1


class _Random(threading.local):
    """Holds a separate generator of random numbers for each thread; `None` stands for PyTorch's default generator."""

    generator: torch.Generator | None = None


_random = _Random()


def draw_from(generator: torch.Generator | None) -> None:
    """Makes forward passes in this thread draw their random numbers from `generator`, a generator on the CPU.

    With `None`, forward passes use PyTorch's default generator again, which all threads share.
    """
    _random.generator = generator


def random_generator() -> torch.Generator | None:
    """Returns the generator on the CPU from which this thread draws; `None` stands for PyTorch's default generator."""
    return _random.generator


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Sets each value of `x` to zero with probability `rate`, and divides the other values by 1 - `rate`.

    The division keeps the expected value. Outside training, or if `rate` is 0, returns `x` itself.
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    # The seed is drawn from PyTorch's generator, so that the same state of that generator gives the same dropout.
    seed = np.empty(1, dtype=np.int64)
    torch.from_numpy(seed).random_(generator=random_generator())  # writes into `seed`
    words = torch.from_numpy(np.random.SFC64(seed).random_raw((x.numel() + 3) // 4))
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    factor = torch.empty(x.shape, dtype=x.dtype, device="cpu")
    torch.ge(drawn, dropped - LEVELS // 2, out=factor)  # writes 0 or 1, without a tensor of bools between
    return x * factor.mul_(LEVELS / (LEVELS - dropped))


# Linear layers. In bf16 on a CPU, matrix products are computed by oneDNN, which generates machine code for each new
# shape. This takes some 3 ms on an Intel Xeon with AMX. Nearly every batch has a different number of tokens, so without
# padding, a seventh of the time of training goes into generating code. Therefore, in training, rows of zeros are
# appended until the number of rows is a multiple of BLOCK_ROWS. Then there are few shapes, and oneDNN keeps their code.

BLOCK_ROWS = 64


class Linear(nn.Linear):
    """A linear layer; in bf16 training on a CPU, its input is padded, so that matrix products have few shapes."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x`, (…, I), to (…, O)."""
        is_padded = (
            x.device.type == "cpu"
            and torch.is_grad_enabled()
            and compute_dtype(x) == torch.bfloat16
            and x.numel() > BLOCK_ROWS * x.shape[-1]
            and not torch.compiler.is_compiling()
        )
        if not is_padded:
            return super().forward(x)
        y: Tensor = _PaddedLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class _PaddedLinear(torch.autograd.Function):
    """A linear layer that computes in bf16, with the rows of its input padded by `padded_rows`.

    Input, weights and bias may be in fp32; the gradient of each has the same dtype. Second derivatives are not
    supported.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, matrix = padded_rows(x.flatten(0, -2)), weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, matrix)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        y = F.linear(rows, matrix, None if bias is None else bias.to(torch.bfloat16))
        return y[: x.numel() // x.shape[-1]].view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        flat = by_y.flatten(0, -2)
        by_rows = padded_rows(flat)
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = torch.mm(by_rows, matrix)[: len(flat)].view(*by_y.shape[:-1], -1).to(x_dtype)
        if ctx.needs_input_grad[1]:
            by_weight = torch.mm(by_rows.t(), rows).to(weight_dtype)
        if ctx.needs_input_grad[2]:
            by_bias = by_rows.sum(0, dtype=bias_dtype)
        return by_x, by_weight, by_bias


def padded_rows(rows: Tensor) -> Tensor:
    """Returns `rows`, (N, D), in bf16, with rows of zeros appended until their number is a multiple of BLOCK_ROWS."""
    num_rows = len(rows)
    if num_rows % BLOCK_ROWS == 0:
        return rows.to(torch.bfloat16)
    padded = rows.new_empty(num_rows + -num_rows % BLOCK_ROWS, rows.shape[1], dtype=torch.bfloat16)
    padded[:num_rows] = rows
    padded[num_rows:] = 0
    return padded


# Multi-head attention (Vaswani et al. 2017, section 3.2), with PyTorch's fused kernels or, if faster, plain products.

NORM_EPS = 1e-5  # of all norms, as in Marian, M2M100 and CTranslate2


class HeadNorm(nn.RMSNorm):
    """RMSNorm of queries or keys over the width of a head (Henry et al. 2020; Dehghani et al. 2023, section 2).

    The learned gains are shared by all heads. Attention scores are still scaled by 1 / sqrt(K).
    """

    def __init__(self, head_width: int) -> None:
        super().__init__(head_width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x`, (R, H, L, K), in the dtype of the gains; returns the result in the dtype of `x`."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class HeadLayerNorm(nn.LayerNorm):
    """LayerNorm of queries or keys over the width of a head, with gains but without biases (Dehghani et al. 2023).

    The learned gains are shared by all heads. Attention scores are still scaled by 1 / sqrt(K). On a CPU, PyTorch
    computes a LayerNorm by one operator, an RMSNorm by several: in training, `HeadNorm` takes more than twice as long.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__(head_width, eps=NORM_EPS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x`, (R, H, L, K), in the dtype of the gains; returns the result in the dtype of `x`."""
        in_order = x.transpose(1, 2)  # as `split_heads` has it in memory
        if x.device.type != "cpu":  # on a CPU, PyTorch's operator takes values in bf16 with gains in fp32
            in_order = in_order.to(self.weight.dtype)
        return super().forward(in_order).to(x.dtype).transpose(1, 2)


# For each value of the setting `query_key_norm`, a function that makes a norm, given the width of a head.
HEAD_NORMS: dict[QueryKeyNorm, Callable[[int], nn.Module]] = {
    False: lambda head_width: nn.Identity(),
    True: HeadNorm,
    "layer": HeadLayerNorm,
}


def head_norms(d_model: int, num_heads: int, kind: QueryKeyNorm) -> tuple[nn.Module, nn.Module]:
    """Returns a norm for queries and one for keys; `kind` is the setting `query_key_norm`."""
    make = HEAD_NORMS[kind]
    return make(d_model // num_heads), make(d_model // num_heads)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshapes `x` from (R, L, D) to (R, H, L, K), where K = D / H."""
    rows, length, width = x.shape
    return x.view(rows, length, num_heads, width // num_heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, rate: float) -> Tensor:
    """Returns the attention-weighted sums of the values, with the heads concatenated: (R, Q, D).

    `query` is (R, H, Q, K); `key` and `value` are (R, H, N, K). `mask` is (R, 1, 1 or Q, N): a bool tensor that is True
    where a query may attend to a key, or the result of `additive`. With `mask=None`, a query may attend to all keys.
    With `mask=None` and `causal=True`, a query may attend only to keys up to its own position. `causal=True` must not
    be combined with a mask. `rate` is the dropout rate of the attention weights.
    """
    if query.device.type == "cpu" and _is_faster_unfused(query, rate):
        attended = _attend_unfused(query, key, value, mask, causal, rate)
    else:
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, mask, rate, is_causal=causal)
    joined: Tensor = attended.transpose(1, 2).flatten(2)
    return joined


def attend_with_factors(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factors: Tensor, rate: float
) -> Tensor:
    """Returns what `attend` returns, (R, Q, D), but with attention scores that are multiplied by `factors`.

    `factors`, (R, 1, Q, N), are applied before the softmax. A factor of 0 does not hide a key, since the softmax gives
    a score of 0 a weight above 0; only `mask` hides keys. All other arguments are as in `attend`.
    """
    weights = dropout(attention_weights(query, key, mask, False, factors), rate, rate > 0)
    joined: Tensor = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
    return joined


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which linear layers compute: that of autocast if it is enabled, else the dtype of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


FEW_SENTENCES = 4


def _is_faster_unfused(query: Tensor, rate: float) -> bool:
    """Whether, on a CPU, plain matrix products are faster than PyTorch's `scaled_dot_product_attention`.

    Plain products are faster in these cases:

    - in bf16, because of the backward pass: 13 ms instead of 59 ms;
    - with dropout, for which PyTorch has no fused kernel and draws random numbers slowly: 27 ms instead of 35 ms;
    - in the steps of a search for more than FEW_SENTENCES sentences: a step has few queries, and the fused kernel takes
      about as long for few queries as for many.

    Otherwise, the fused kernel is faster: in fp32, 20 ms instead of 24 ms. It is also faster in a search step for few
    sentences, since only the number of operators matters: 11 microseconds instead of 29 for one sentence with one
    hypothesis.

    The times were measured with torch 2.13 on one core of an EPYC, for 100 rows of 40 tokens and 4 heads of width 64.
    """
    is_step = not torch.is_grad_enabled() and query.shape[2] <= 8
    return rate > 0 or query.dtype == torch.bfloat16 or (is_step and query.shape[0] > FEW_SENTENCES)


def _attend_unfused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, rate: float
) -> Tensor:
    """Returns the attention-weighted sums of the values, (R, H, Q, K), computed without the fused kernel.

    The arguments are as in `attend`.
    """
    weights = attention_weights(query, key, mask, causal).to(value.dtype)
    attended: Tensor = dropout(weights, rate, rate > 0) @ value
    return attended


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, factors: Tensor | None = None
) -> Tensor:
    """Returns the attention weights (R, H, Q, N), which sum to 1 over the N keys.

    `query`, `key`, `mask` and `causal` are as in `attend`. If `factors`, (R, 1, Q, N), is given, the scores are
    multiplied by `factors` before they are masked.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if factors is not None:
        scores = scores * factors
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores + additive(mask, scores.dtype)
    weights: Tensor = scores.softmax(-1)
    return weights


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what to add to attention scores: 0 where the bool tensor `mask` is True, -inf where it is False.

    The result has the shape of `mask` and the given `dtype`. A `mask` of another dtype than bool must be additive
    already, and is returned unchanged.
    """
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


SMALLEST_CAPACITY = 16  # tokens for which a cache makes room when the second token is appended


class Cache:
    """The keys and values of all tokens decoded so far; `append` adds the keys and values of new tokens in place.

    Keys and values are never moved from one hypothesis to another: `TransformerState.ancestors` says which tokens
    belong to which hypothesis.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None  # (R, H, capacity, K)
        self.values: Tensor | None = None
        self.length = 0  # N

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values of new tokens, (R, H, Q, K); returns the keys and values of all N tokens.

        The returned tensors are (R, H, N, K); their dtype is that of the first tokens.
        """
        end = self.length + key.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = key, value  # no copy: teacher forcing appends only once
        else:
            if end > self.keys.shape[2]:
                capacity = max(2 * end, SMALLEST_CAPACITY)
                self.keys = _grow(self.keys, self.length, capacity)
                self.values = _grow(self.values, self.length, capacity)
            self.keys[:, :, self.length : end] = key
            self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, tokens: Tensor) -> None:
        """Keeps only some tokens of each row: those whose indices are listed in `tokens`, (R, N') int64."""
        if self.keys is not None and self.values is not None:
            places = tokens[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
            self.keys, self.values = self.keys.gather(2, places), self.values.gather(2, places)
            self.length = tokens.shape[1]

    def keep(self, sentences: Tensor) -> None:
        """Keeps only the rows listed in `sentences`, (R',) int64, in the order of the list; see `keep_rows`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = keep_rows(sentences, self.keys, self.values)

    def clear(self, places: Tensor) -> None:
        """Sets all keys and values of the rows `places`, (R',) int64, to zero."""
        if self.keys is not None and self.values is not None:
            self.keys.index_fill_(0, places, 0.0)
            self.values.index_fill_(0, places, 0.0)


def _grow(old: Tensor, length: int, capacity: int) -> Tensor:
    """Returns a tensor with room for `capacity` tokens, which starts with the first `length` tokens of `old`.

    The memory after these tokens is not initialised.
    """
    new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
    new[:, :, :length] = old[:, :, :length]
    return new


def _times(query: Tensor, factor: float) -> Tensor:
    return query if factor == 1.0 else query * factor


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of a row."""

    BLOCKS: ClassVar = {"query_key_value": 3}  # number of matrices stacked in this one; Muon treats each separately

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        bias: bool = True,
        query_key_norm: QueryKeyNorm = False,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.factor = 1.0 if scaled else (d_model // num_heads) ** 0.5  # undoes the scaling of the scores
        self.is_normalized = query_key_norm is not False
        self.in_fp64 = False  # see `attend_in_fp64`
        self.query_key_value = Linear(d_model, 3 * d_model, bias)
        self.output = Linear(d_model, d_model, bias)
        self.query_norm, self.key_norm = head_norms(d_model, num_heads, query_key_norm)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Returns the output of the attention for the tokens `x`; both are (R, Q, D).

        `mask` and `causal` are as in `attend`. If the settings say so, queries and keys are normalised. If `rotation`
        is given, queries and keys are then rotated. If `cache` is given, the keys and values of the tokens are then
        appended to the cache, and the tokens attend to all tokens in the cache. `factors` is as in
        `attend_with_factors`.
        """
        query, key, value = self._heads(x, rotation)
        if self.in_fp64:
            query = query.double()
            if cache is None or cache.length == 0:  # otherwise, writing to the cache converts them
                key, value = key.double(), value.double()
        if cache is not None:
            key, value = cache.append(key, value)
        query, rate = _times(query, self.factor), self.dropout if self.training else 0.0
        if factors is None:
            attended = attend(query, key, value, mask, causal, rate)
        else:
            attended = attend_with_factors(query, key, value, mask, factors, rate)
        output: Tensor = self.output(attended.to(x.dtype) if self.in_fp64 else attended)
        return output

    def _heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the queries, keys and values of the tokens `x`, (R, Q, D); all three are (R, H, Q, K).

        Queries and keys are normalised if the settings say so, and rotated if `rotation` is given.
        """
        if torch.is_grad_enabled() or self.is_normalized:
            query, key, value = (split_heads(part, self.num_heads) for part in self.query_key_value(x).chunk(3, -1))
            query, key = self.query_norm(query), self.key_norm(key)
            return (query, key, value) if rotation is None else (rotation(query), rotation(key), value)
        # All heads at once, with fewer operators. In training, gradients would be laid out in another way.
        heads = split_heads(self.query_key_value(x), 3 * self.num_heads)  # (R, 3H, Q, K)
        if rotation is None:
            query, key, value = heads.chunk(3, 1)
        else:
            query, key = rotation(heads[:, : -self.num_heads]).chunk(2, 1)
            value = heads[:, -self.num_heads :]
        return query, key, value


class CrossAttention(nn.Module):
    """Multi-head attention of target tokens to the source; `project` computes the source's keys and values once."""

    BLOCKS: ClassVar = {"key_value": 2}

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        bias: bool = True,
        query_key_norm: QueryKeyNorm = False,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.factor = 1.0 if scaled else (d_model // num_heads) ** 0.5  # undoes the scaling of the scores
        self.in_fp64 = False  # see `attend_in_fp64`
        self.query = Linear(d_model, d_model, bias)
        self.key_value = Linear(d_model, 2 * d_model, bias)
        self.output = Linear(d_model, d_model, bias)
        self.query_norm, self.key_norm = head_norms(d_model, num_heads, query_key_norm)

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and the values, each (R, H, S, K), of the encoder's states `memory`, (R, S, D).

        The keys are normalised if the settings say so.
        """
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(memory).chunk(2, -1))
        key = self.key_norm(key)
        if torch.is_grad_enabled():
            return key, value
        if self.in_fp64:
            key, value = key.double(), value.double()
        return key.contiguous(), value.contiguous()  # a search multiplies with them in every step

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, watched: list[Tensor] | None = None
    ) -> Tensor:
        """Returns the output of the attention for the target tokens `x`; both are (R, Q, D).

        `key` and `value` come from `project`; `mask` is as in `attend`. If `watched` is a list, the attention weights
        (R, H, Q, S) are appended to the list.
        """
        query = _times(self.query_norm(split_heads(self.query(x), self.num_heads)), self.factor)
        if self.in_fp64:
            query = query.double()
        if watched is not None:
            watched.append(attention_weights(query, key, mask, causal=False))
        attended = attend(query, key, value, mask, False, self.dropout if self.training else 0.0)
        output: Tensor = self.output(attended.to(x.dtype) if self.in_fp64 else attended)
        return output


def attend_in_fp64(model: nn.Module) -> None:
    """Makes all attention of a Transformer compute in fp64, from queries and keys to the weighted sums of values.

    The model must be in fp32, and must not be trained afterwards. Attention sums over the keys of a row, whose number
    depends on the other rows of the batch. In fp32, the last bits of such a sum depend on how many keys there are, even
    if all additional keys have weight 0. If the sums are computed in fp64 and then rounded to fp32, they are the same
    in any batch, except very rarely.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.in_fp64 = True


# Feed-forward layers.


def relu(x: Tensor) -> Tensor:
    """Returns max(x, 0); if no gradient is computed, the result overwrites `x`, which saves new memory."""
    return F.relu(x, inplace=not torch.is_grad_enabled())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": F.gelu,
    "silu": F.silu,
}

# The activations of gates. A gate is one half of the inner layer; it is multiplied with the other half (Shazeer 2020).
GATES: dict[str, Callable[[Tensor], Tensor]] = {"reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu}


class FeedForward(nn.Module):
    """Two linear layers with an activation, or a gate, between them (Vaswani et al. 2017, equation 2).

    With a gate, the matrix of the inner layer has 2 d_ff rows: first the d_ff rows that give the gate, then the d_ff
    rows that give the values to multiply by the gate.
    """

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.is_gated = config.activation in GATES
        self.BLOCKS = {"inner": 2 if self.is_gated else 1}
        self.inner = Linear(config.d_model, 2 * d_ff if self.is_gated else d_ff)
        self.output = Linear(d_ff, config.d_model)
        self.activation = (GATES if self.is_gated else ACTIVATIONS)[config.activation]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x`, (R, L, D), to an output of the same shape."""
        y: Tensor = self.output(dropout(self.activate(self.inner(x)), self.dropout, self.training))
        return y

    def activate(self, inner: Tensor) -> Tensor:
        """Applies the activation or the gate to `inner`, the inner layer's output; returns (R, L, d_ff).

        `inner` is (R, L, d_ff) or, with a gate, (R, L, 2 d_ff).
        """
        if not self.is_gated:
            return self.activation(inner)
        gate, value = inner.chunk(2, -1)
        return self.activation(gate) * value


# Stacks of layers, and layer dropout (LayerDrop, Fan et al. 2020), which skips whole layers at random in training.

AnyLayer = TypeVar("AnyLayer", bound=nn.Module)


class LayerList(nn.ModuleList, Generic[AnyLayer]):
    """A ModuleList whose modules all have the type `AnyLayer`, so that type checkers know the type of each module."""

    def __init__(self, layers: Iterable[AnyLayer]) -> None:
        super().__init__(layers)

    def __iter__(self) -> Iterator[AnyLayer]:
        return cast("Iterator[AnyLayer]", super().__iter__())


def draw_layers(num_layers: int, rate: float, training: bool) -> list[bool]:
    """Draws which layers take part in a forward pass; returns, for each layer, True if it does.

    In training, each layer is skipped with probability `rate`; outside training, no layer is skipped. The random
    numbers are drawn on the CPU: numbers drawn on a GPU would make the CPU wait for the GPU.
    """
    if not training or rate == 0.0:
        return [True] * num_layers
    drawn: list[bool] = (torch.rand(num_layers, device="cpu", generator=random_generator()) >= rate).tolist()
    return drawn


class _ZeroGradients(torch.autograd.Function):
    """Returns `x` unchanged; the backward pass gives each tensor in `unused` a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, unused: Sequence[Tensor]) -> Tensor:
    """Returns `x` unchanged; the backward pass through the result gives each tensor in `unused` a gradient of zeros.

    `unused` holds, for example, the weights of layers that layer dropout skips. Without a gradient, a tensor would
    cause two problems. The optimizer would skip it, so its optimizer state would be missing from a checkpoint or would
    have counted fewer updates. In distributed training, ranks that skip different layers would wait for each other's
    gradients.
    """
    if not unused:
        return x
    result: Tensor = _ZeroGradients.apply(x, *unused)  # type: ignore[no-untyped-call]
    return result
