"""Sampling: tokens drawn by their probabilities.

Letters: R rows (sentences in flight), W samples of each, T longest sample with its end mark, V vocabulary size,
K tokens that are left to draw from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtkit.search.step import BROKEN, COMPACT_AT, NOTHING, AnyState, Hypothesis, Step

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: steps of a counter that is to be mixed
CHUNK_ELEMENTS = 1 << 22  # fp64 weights that are drawn from at once: 32 MB
FIRST = 128  # tokens in which a nucleus is looked for before all are


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: at a temperature, from the k likeliest, from the likeliest of mass p of those."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None  # Holtzman et al. (2020), section 3.1

    def __call__(self, log_probs: Tensor, chances: Tensor) -> Tensor:
        """(R, W) tokens for (R, 1 or W, V) log-probabilities and (R, W) chances from 0 to 1, 1 not among them.

        Where all is forbidden, some forbidden token. Sentences are drawn for by themselves, some at a time.
        """
        most = max(1, CHUNK_ELEMENTS // (chances.shape[1] * log_probs.shape[2]))
        parts = zip(torch.split(log_probs, most), torch.split(chances, most), strict=True)
        return torch.cat([self._drawn(*part) for part in parts])

    def _drawn(self, log_probs: Tensor, chances: Tensor) -> Tensor:
        """The same, all at once."""
        order = None  # (R, W, K): the tokens, where only some are left
        if self.top_k is not None and self.top_k < log_probs.shape[2]:
            log_probs, order = log_probs.topk(self.top_k, dim=2)
        weights = self._weights(log_probs)  # (R, W, K)
        if self.top_p is not None:
            least = _least_of_nucleus(weights.flatten(0, 1), self.top_p).view(*weights.shape[:2], 1)
            weights = weights.masked_fill(weights < least, 0.0)

        # The place where the weights so far first pass a share of all; never one of no weight.
        sums = weights.cumsum(2)
        total = sums[:, :, -1]
        share = chances.to(sums).clamp(max=1 - torch.finfo(sums.dtype).eps) * total  # (R, W)
        sums = sums.expand(-1, share.shape[1], -1).contiguous()
        places = torch.searchsorted(sums, share[:, :, None].contiguous(), right=True).clamp(max=sums.shape[2] - 1)
        if order is not None:
            places = order.expand(-1, share.shape[1], -1).gather(2, places)
        return places[:, :, 0]

    def _weights(self, log_probs: Tensor) -> Tensor:
        """Probabilities at this temperature, but for a factor: the likeliest has 1."""
        largest = log_probs.amax(2, keepdim=True).clamp(min=torch.finfo(log_probs.dtype).min)
        weights = ((log_probs - largest) / self.temperature).exp()
        return weights if weights.device.type == "mps" else weights.double()  # sums of many small numbers


def _least_of_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """The smallest weight, (R,), that the nucleus of mass p holds; tokens as likely as that one belong to it, too.

    weights is (R, K). To sort a whole vocabulary takes longer than a model's step, and most nuclei are small.
    """
    enough = top_p * weights.sum(1)  # (R,)
    first = weights.topk(min(FIRST, weights.shape[1]), dim=1).values
    least = _where_enough(first, enough)
    rest = (first.sum(1) < enough).nonzero()[:, 0]
    if len(rest):
        least[rest] = _where_enough(weights[rest].sort(dim=1, descending=True).values, enough[rest])
    return least


def _where_enough(falling: Tensor, enough: Tensor) -> Tensor:
    """(R,): of weights (R, K), the largest first, the one with which their sum is enough."""
    places = (falling.cumsum(1) < enough[:, None]).sum(1, keepdim=True).clamp(max=falling.shape[1] - 1)
    return falling.gather(1, places)[:, 0]


class Chances:
    """A number from 0 to 1 for each (sentence, sample, step): a function of these and the seed alone.

    So a sample is the same in every batch and order, and the first of many samples is the one that is drawn alone. A
    sentence is known by its tokens; the numbers are mixed from a counter (SplitMix64: Steele, Lea & Flood, 2014).
    """

    def __init__(self, seed: int, sentences: list[list[int]], num_samples: int) -> None:
        keys = np.array([_key(seed, sentence) for sentence in sentences], dtype=np.uint64)
        samples = np.arange(1, num_samples + 1, dtype=np.uint64)
        self.streams = _mixed(keys[:, None] + samples * GOLDEN)  # (N, W)

    def __call__(self, sentences: Tensor, step: int) -> Tensor:
        """(R, W) float64 on the CPU, for sentences (R,) by their places in the batch."""
        numbers = _mixed(self.streams[sentences.cpu().numpy()] + np.full(1, step + 1, dtype=np.uint64) * GOLDEN)
        return torch.from_numpy((numbers >> np.uint64(11)) * 2.0**-53)


def _key(seed: int, sentence: list[int]) -> int:
    """64 bits of a seed and tokens, the same on every machine."""
    text = f"{seed} {' '.join(map(str, sentence))}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64; products wrap around."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def sample_search(
    step: Step[AnyState],
    state: AnyState,
    start: Tensor,
    max_lengths: Tensor,
    end: int,
    num_samples: int,
    draw: Callable[[Tensor, Tensor], Tensor],
    chances: Callable[[Tensor, int], Tensor],
) -> list[list[Hypothesis]]:
    """So many samples of each sentence, in the order they were drawn; a score is the model's own log-probability.

    start is (R,), max_lengths (R,): most tokens before the end mark. A sample that has so many can only end.
    """
    if not len(start):
        return []
    shape = (len(start), num_samples)
    all_tokens = torch.full((*shape, int(max_lengths.max()) + 1), end, device=start.device)  # (R, W, T)
    all_log_probs = torch.zeros(shape, device=start.device)  # (R, W), all sentences

    rows = torch.arange(len(start), device=start.device)  # (R,) which sentence stands where
    ids = start[:, None]  # (R, 1) now, (R, W) from the first step on
    log_prob = all_log_probs
    done = torch.zeros(shape, dtype=torch.bool, device=start.device)
    length = 0  # of the samples, in tokens
    while len(rows):
        log_probs, state = step(ids, state)
        drawn = draw(log_probs, chances(rows, length).to(log_probs.device, log_probs.dtype))  # (R, W)
        ids = torch.where(done | (max_lengths <= length)[:, None], end, drawn)
        gains = log_probs.expand(-1, num_samples, -1).gather(2, ids[:, :, None])[:, :, 0]
        log_prob = torch.where(done, log_prob, log_prob + gains)
        all_tokens[rows, :, length] = ids
        length += 1

        done = done | (ids == end) | ~(log_prob > -torch.inf)
        going = (~done).any(1).cpu()  # the one wait for the device
        if length == 1 and going.any():
            state = state.branch(torch.zeros_like(ids))
        if going.sum() <= COMPACT_AT * len(rows):
            all_log_probs = all_log_probs.to(log_prob).index_copy(0, rows, log_prob)
            kept = going.nonzero()[:, 0].to(start.device)
            rows, ids, log_prob, done = rows[kept], ids[kept], log_prob[kept], done[kept]
            max_lengths, state = max_lengths[kept], state.keep(kept)

    samples = []
    for all_of_one, totals in zip(all_tokens.tolist(), all_log_probs.tolist(), strict=True):
        samples.append([_sample(tokens, total, end) for tokens, total in zip(all_of_one, totals, strict=True)])
    return samples


def _sample(tokens: list[int], total: float, end: int) -> Hypothesis:
    if total > -torch.inf:
        return Hypothesis(tokens[: tokens.index(end)], total, total)
    return NOTHING if total == -torch.inf else BROKEN
