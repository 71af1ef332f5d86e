"""Multi-head attention (Vaswani et al. 2017, section 3.2) through PyTorch's fused kernels, and its cache.

R rows, Q queries and N keys of a row, H heads, K width of a head, D model width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.models.positions import Rotation


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
