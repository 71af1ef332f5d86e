"""Canaries: sentences that a bundle carries with their translations, to tell elsewhere whether it sings as it did."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from mtkit.errors import CheckpointError


@dataclass(frozen=True)
class Canary:
    """A source, and what the model said of it: greedily, in fp32 on a CPU."""

    source: str
    source_tokens: list[int]
    target_tokens: list[int]  # without the end mark
    log_prob: float  # of target_tokens and the end mark
    text: str


def canaries_text(canaries: Sequence[Canary]) -> bytes:
    """As canaries.json holds them."""
    return (json.dumps([asdict(canary) for canary in canaries], indent=1) + "\n").encode()


def read_canaries(data: bytes, where: str, source_vocab_size: int, target_vocab_size: int) -> list[Canary]:
    """Those of canaries.json; where begins the CheckpointError if it is damaged, or has ids that no vocabulary has."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    names = {field.name for field in fields(Canary)}
    if not isinstance(content, list) or not all(isinstance(each, dict) and each.keys() == names for each in content):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    canaries = [Canary(**each) for each in content]
    if not all(
        isinstance(canary.source, str)
        and isinstance(canary.text, str)
        and isinstance(canary.log_prob, int | float)
        and math.isfinite(canary.log_prob)
        and _are_ids(canary.source_tokens, source_vocab_size)
        and _are_ids(canary.target_tokens, target_vocab_size)
        for canary in canaries
    ):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    return canaries


def _are_ids(tokens: Any, vocab_size: int) -> bool:
    return isinstance(tokens, list) and all(type(token) is int and 0 <= token < vocab_size for token in tokens)
