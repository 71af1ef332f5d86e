"""Pairs that stood before, known by digests of 128 bits: 16 bytes of memory for each pair seen."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

NUM_SHARDS = 64  # by the first bits of a digest, so that merging copies little at a time
DIGEST_BYTES = 16  # two of a hundred million pairs fall together once in 10^22 corpora

# Sorted digests; NumPy leaves out zeros at the end of such texts, and so it does on both sides of a comparison.
Digests = NDArray[np.bytes_]


class Seen:
    """The pairs seen so far."""

    def __init__(self) -> None:
        self._shards: list[list[Digests]] = [[] for _ in range(NUM_SHARDS)]  # each of fewer arrays the longer they are

    def add(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """See these pairs; which of them were new, the first of equal ones among them."""
        digests = np.array([_digest(*pair) for pair in pairs], dtype=f"S{DIGEST_BYTES}")
        found, places = np.unique(digests, return_index=True)
        bounds = np.array([bytes([256 // NUM_SHARDS * shard]) for shard in range(NUM_SHARDS)], dtype=found.dtype)
        starts = [*np.searchsorted(found, bounds).tolist(), len(found)]
        is_new = np.zeros(len(pairs), dtype=np.bool_)
        for shard, levels in enumerate(self._shards):
            here = slice(starts[shard], starts[shard + 1])
            fresh = _unknown(found[here], levels)
            is_new[places[here][fresh]] = True
            _insert(found[here][fresh], levels)
        return is_new.tolist()


def _digest(source: str, target: str) -> bytes:
    # No line holds a line feed, so no two pairs make the same text.
    return blake2b(f"{source}\n{target}".encode(), digest_size=DIGEST_BYTES).digest()


def _unknown(digests: Digests, levels: Sequence[Digests]) -> NDArray[np.bool_]:
    """Which of some digests stand in no level."""
    unknown = np.ones(len(digests), dtype=np.bool_)
    for level in levels:
        places = np.searchsorted(level, digests)
        unknown &= level[np.minimum(places, len(level) - 1)] != digests
    return unknown


def _insert(digests: Digests, levels: list[Digests]) -> None:
    """Add sorted digests; levels of like size become one, so that each digest is copied a logarithm of times."""
    if not len(digests):
        return
    levels.append(digests)
    while len(levels) > 1 and len(levels[-2]) < 2 * len(levels[-1]):
        merged = np.concatenate([levels.pop(), levels.pop()])
        merged.sort(kind="stable")  # finds the two runs, and merges them
        levels.append(merged)
