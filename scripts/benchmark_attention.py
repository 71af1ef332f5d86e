"""Times ways to compute attention in packed rows of short sentences, forward and backward.

    .venv/bin/python scripts/benchmark_attention.py [--precision bf16] [--batch-tokens 32768] [--json FILE]

Rows are packed as in training, from made-up sentences of about 28 tokens. Three kinds of attention are timed: that of
the encoder, that of the decoder to itself, and that of the decoder to the source. Each way is also compared with the
one that training uses, in fp32: the last column has the largest difference of an output, relative to the largest
output. What the device or this version of PyTorch cannot do is listed with the reason.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtkit.data.batches import Rows, padded_batch, plan_batches, ragged
from mtkit.evaluation.bench import machine_facts, random_lengths, synchronize
from mtkit.models.layers import additive, attention_weights
from mtkit.models.registry import DTYPES, pick_device

# In shapes: R rows, H heads, Q queries in a row, N keys in a row, K width of a head, T tokens without padding.

ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One kind of attention over a batch."""

    name: str
    queries: Rows  # (R, Q)
    keys: Rows  # (R, N)
    causal: bool
    tensors: tuple[Tensor, Tensor, Tensor]  # query (R, H, Q, K), key and value (R, H, N, K), leaves of the graph

    @property
    def mask(self) -> Tensor:
        """(R, 1, Q, N) bool: whether a query may attend to a key."""
        same = self.queries.segments[:, :, None] == self.keys.segments[:, None, :]
        if self.causal:
            same = same & (self.keys.positions[:, None, :] <= self.queries.positions[:, :, None])
        return same[:, None]


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """A way to compute attention: a function of query, key and value, for tensors in this layout."""

    attend: Attention
    is_flat: bool = False  # whether all sentences are in one row without padding, (T, H, K)


def masked(mask: Tensor, backend: SDPBackend | None = None) -> Way:
    """PyTorch's attention with a mask, by one of its backends or by the one that PyTorch chooses."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if backend is None:
            return F.scaled_dot_product_attention(query, key, value, mask)
        kernel: AbstractContextManager[object] = sdpa_kernel(backend)
        with kernel:
            return F.scaled_dot_product_attention(query, key, value, mask)

    return Way(attend)


def as_in_training(case: Case) -> Way:
    """The call that training makes: a bool mask, and the backend that PyTorch chooses."""
    return masked(case.mask)


def additive_mask(case: Case) -> Way:
    """The same with a mask of numbers that is made once, and whose rows begin at multiples of 16 numbers."""
    mask = additive(case.mask, case.tensors[0].dtype)
    padded = F.pad(mask, (0, -mask.shape[3] % 16))
    return masked(padded[..., : mask.shape[3]])


def by_backend(backend: SDPBackend) -> Callable[[Case], Way]:
    """A function that makes the way with a bool mask by this backend."""
    return lambda case: masked(case.mask, backend)


def plain_products(case: Case) -> Way:
    """Two matrix products with a softmax between them, as bf16 has it on a CPU."""
    mask = additive(case.mask, case.tensors[0].dtype)
    return Way(lambda query, key, value: attention_weights(query, key, mask, causal=False).to(value.dtype) @ value)


def flex(case: Case) -> Way:
    """Flex attention, compiled for this mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    queries, keys = case.queries, case.keys

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = queries.segments[row, query] == keys.segments[row, key]
        return same & (keys.positions[row, key] <= queries.positions[row, query]) if case.causal else same

    shape = (len(queries.ids), None, queries.ids.shape[1], keys.ids.shape[1])
    blocks = create_block_mask(sees, *shape, device=str(queries.ids.device))
    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return Way(lambda query, key, value: compiled(query, key, value, block_mask=blocks))


def variable_lengths(case: Case) -> Way:
    """Attention over sentences of different lengths in one row; has no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = zip(*(sentence_ends(rows) for rows in (case.queries, case.keys)), strict=True)
    window = (-1, 0) if case.causal else (-1, -1)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended: Tensor = varlen_attn(query, key, value, *ends, *longest, window_size=window)
        return attended

    return Way(attend, is_flat=True)


def sentence_ends(rows: Rows) -> tuple[Tensor, int]:
    """0 and the end of each sentence in a row of all tokens, int32; and the length of the longest sentence."""
    starts = (rows.positions[rows.mask] == 0).nonzero()[:, 0]
    ends = torch.cat([starts, rows.mask.sum()[None]])
    return ends.to(torch.int32), int(ends.diff().max())


WAYS: dict[str, Callable[[Case], Way]] = {
    "as in training": as_in_training,
    "additive mask": additive_mask,
    "math": by_backend(SDPBackend.MATH),
    "efficient": by_backend(SDPBackend.EFFICIENT_ATTENTION),
    "flash": by_backend(SDPBackend.FLASH_ATTENTION),
    "cudnn": by_backend(SDPBackend.CUDNN_ATTENTION),
    "plain products": plain_products,
    "flex": flex,
    "variable lengths": variable_lengths,
}


def cases(batch_tokens: int, num_heads: int, head_width: int, dtype: torch.dtype, device: torch.device) -> list[Case]:
    """The three kinds of attention of a Transformer, over a packed batch of at most `batch_tokens` tokens a side."""
    lengths = random_lengths(max(50, batch_tokens // 10), min(100, batch_tokens - 1), seed=1)
    source, target = (np.array(side) for side in lengths)
    plan = plan_batches(source + 1, target + 1, batch_tokens, np.random.default_rng(1), "packed")
    chosen = max((plan.batch(index) for index in range(len(plan))), key=len)
    sides = (ragged([[4] * length for length in side[chosen.pairs]]) for side in (source, target))
    batch = padded_batch(*sides, rows=chosen.rows).to(device)
    torch.manual_seed(1)

    def case(name: str, queries: Rows, keys: Rows, causal: bool = False) -> Case:
        shapes = [(len(rows.ids), num_heads, rows.ids.shape[1], head_width) for rows in (queries, keys, keys)]
        query, key, value = (torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes)
        return Case(name, queries, keys, causal, (query, key, value))

    return [
        case("encoder", batch.source, batch.source),
        case("decoder", batch.target, batch.target, causal=True),
        case("decoder to source", batch.target, batch.source),
    ]


def flat(x: Tensor, rows: Rows) -> Tensor:
    """The tokens of (R, H, L, K) without padding, (T, H, K)."""
    return x.transpose(1, 2)[rows.mask]


def measure(case: Case, make: Callable[[Case], Way], seconds: float) -> dict[str, Any]:
    """Time a way of attention, and compare it with plain products in fp32."""
    device = case.tensors[0].device
    begun = time.perf_counter()
    warnings.simplefilter("ignore")  # why a backend cannot, which the error says, too
    try:
        way = make(case)
        tensors = case.tensors
        if way.is_flat:
            sides = (case.queries, case.keys, case.keys)
            tensors = tuple(  # type: ignore[assignment]
                flat(x.detach(), rows).requires_grad_() for x, rows in zip(tensors, sides, strict=True)
            )
        output = way.attend(*tensors)
        towards = torch.randn_like(output)
        output.backward(towards)  # type: ignore[no-untyped-call]
        synchronize(device)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        return {"fault": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    first = time.perf_counter() - begun

    query, key, value = (x.detach().float() for x in case.tensors)
    wanted = flat(attention_weights(query, key, case.mask, causal=False) @ value, case.queries)
    found = output.detach().float() if way.is_flat else flat(output.detach().float(), case.queries)
    times = []
    for _ in range(ROUNDS):
        synchronize(device)
        begun, repeats = time.perf_counter(), 0
        while repeats < 1 or time.perf_counter() - begun < seconds / ROUNDS:
            way.attend(*tensors).backward(towards)  # type: ignore[no-untyped-call]
            repeats += 1
            if repeats % 10 == 0:
                synchronize(device)
        synchronize(device)
        times.append((time.perf_counter() - begun) / repeats)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    return {"milliseconds": 1000 * statistics.median(times), "first_seconds": first, "difference": difference}


def benchmark(
    device: torch.device,
    precision: str,
    batch_tokens: int = 16_384,
    num_heads: int = 8,
    head_width: int = 64,
    seconds: float = 1.0,
    wanted: list[str] | None = None,
) -> dict[str, Any]:
    """Measure all ways, or those wanted, in all cases, and print a table; returns what was measured."""
    results: dict[str, dict[str, Any]] = {}
    found = cases(batch_tokens, num_heads, head_width, DTYPES[precision], device)
    for case in found:
        shape = f"{len(case.queries.ids)} rows, {case.queries.ids.shape[1]} x {case.keys.ids.shape[1]} tokens"
        print(f"\n{case.name}: {shape}, {num_heads} heads of {head_width}, {precision}")
        print(f"{'':18}{'ms':>10}{'of training':>14}{'first s':>10}{'difference':>12}")
        results[case.name] = {}
        for name in wanted or WAYS:
            with warnings.catch_warnings():
                record = measure(case, WAYS[name], seconds)
            results[case.name][name] = record
            if "fault" in record:
                print(f"{name:18}{record['fault'][:80]}", flush=True)
                continue
            ratio = record["milliseconds"] / results[case.name]["as in training"]["milliseconds"]
            print(
                f"{name:18}{record['milliseconds']:10.3f}{ratio:14.2f}{record['first_seconds']:10.2f}"
                f"{record['difference']:12.1e}",
                flush=True,
            )
    return {**machine_facts(device), "precision": precision, "batch_tokens": batch_tokens, "attention": results}


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="per side, padding included")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way and case")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    record = benchmark(pick_device(given.device), given.precision, given.batch_tokens, seconds=given.seconds)
    if given.json:
        given.json.write_text(json.dumps(record, indent=2), "utf-8")


if __name__ == "__main__":
    main()
