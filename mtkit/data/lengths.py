"""How long the sentences of a corpus are, told at a cost that does not grow with it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkit.data.manifest import SideManifest

QUANTILES = (1, 5, 50, 95, 99)  # per cent
MOST_PAIRS = 1_000_000  # that are measured; of more, blocks that are spread over all
BLOCK_PAIRS = 1000


def length_statistics(
    manifests: dict[str, SideManifest], offsets: dict[str, NDArray[np.int64]], most_pairs: int = MOST_PAIRS
) -> dict[str, Any]:
    """Of each side, in tokens without end marks: the mean and the longest of all pairs, and quantiles.

    The quantiles are those of as many pairs as `measured` says; offsets are where each sentence begins, and the end.
    """
    num_pairs = len(next(iter(offsets.values()))) - 1
    blocks = _blocks(num_pairs, most_pairs)
    found: dict[str, Any] = {"pairs": num_pairs, "measured": sum(end - begin for begin, end in blocks)}
    for side, places in offsets.items():
        lengths = np.concatenate([np.diff(places[begin : end + 1]) for begin, end in blocks])
        # What is told of a length is a length that is there.
        values = np.percentile(lengths, QUANTILES, method="inverted_cdf") if len(lengths) else []
        found[side] = {
            "mean": round(manifests[side].num_tokens / max(num_pairs, 1), 2),
            "quantiles": {f"{q}%": int(value) for q, value in zip(QUANTILES, values, strict=False)},
            "longest": manifests[side].longest,
        }
    return found


def _blocks(num_pairs: int, most_pairs: int) -> list[tuple[int, int]]:
    """Begins and ends of what is measured: everything, or blocks at even distances."""
    if num_pairs <= most_pairs:
        return [(0, num_pairs)]
    begins = np.linspace(0, num_pairs - BLOCK_PAIRS, most_pairs // BLOCK_PAIRS).astype(int).tolist()
    return [(begin, begin + BLOCK_PAIRS) for begin in begins]
