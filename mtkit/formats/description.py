"""bundle.json: what a bundle is, with checksums of its other files and one over itself."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkit.errors import CheckpointError

FORMAT = 2  # 1 had no checksums but the tokenizer's, no statistics of lengths and no canaries

MOST_PIECES = 1 << 31


@dataclass(frozen=True)
class Table:
    """Any names, each with something of this kind."""

    of: Any


# What a description must tell for the model to be loaded.
NEEDED = {"weights_bytes", "tokenizer_sha256", "source_vocab_size", "target_vocab_size"}

LENGTHS = {"mean": float, "longest": int, "quantiles": Table(int)}

# What it may tell, and of which kind that is; other keys are free. A number is finite and not negative.
KINDS = {
    "mtkit": str,
    "name": str,
    "languages": {"source": str, "target": str},
    "num_parameters": int,
    "weights_bytes": int,
    "tokenizer_sha256": str,
    "source_vocab_size": int,
    "target_vocab_size": int,
    "training": {
        "steps": int,
        "minutes": float,
        "pairs_seen": int,
        "averaged_steps": [int],
        "changes": [{"step": int, "pairs": int, "settings": Table(list)}],
        "choice": str,
        "data": {
            "num_pairs": int,
            "source_tokens": int,
            "target_tokens": int,
            "dropped": Table(int),
            "unknown": Table(float),
            "files": [{"name": str, "fingerprint": str}],
            "corpora": [int],
            "lengths": {"pairs": int, "measured": int, "source": LENGTHS, "target": LENGTHS},
        },
    },
    "files": Table({"bytes": int, "sha256": str}),
}


def sealed(content: dict[str, Any]) -> bytes:
    """The bytes of bundle.json, which end with a checksum over all else in it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def read_description(data: bytes, path: Path) -> dict[str, Any]:
    """What bundle.json tells, without its checksum; path, where it lies, begins the CheckpointError if it is damaged.

    Since format 2 it is byte for byte as mtkit wrote it.
    """
    try:
        content = json.loads(data)
        found = content["format"]
        is_whole = type(found) is int and found > 0
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise _damaged(path)
    if found > FORMAT:
        raise CheckpointError(
            f"{path.parent}: a bundle of format {found}; this version of mtkit reads format {FORMAT} and older: "
            "install a newer one"
        )
    is_sealed = content.pop("sha256", None) is not None
    if is_sealed != (found > 1) or (is_sealed and sealed(content) != data):
        raise _damaged(path)
    if not content.keys() >= NEEDED or not _fits(content, KINDS) or not _are_sizes(content):
        raise _damaged(path)
    return dict(content)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: damaged; copy the model again")


def _are_sizes(content: dict[str, Any]) -> bool:
    return all(0 < content[f"{side}_vocab_size"] < MOST_PIECES for side in ("source", "target"))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: a type, a list of a kind, keys each with a kind, or any keys of one kind."""
    if isinstance(kind, Table):
        return isinstance(value, dict) and all(_fits(each, kind.of) for each in value.values())
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value[key], kind[key]) for key in kind.keys() & value.keys())
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(each, kind[0]) for each in value)
    if kind in (str, list):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return math.isfinite(value) and value >= 0
