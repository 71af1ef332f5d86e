"""Validation and test sentences that stand in the training text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldOut:
    """A validation or test set, its lines known by their hashes; blank sources are not looked for."""

    name: str
    num_lines: int
    sources: list[int]
    pairs: list[tuple[int, ...]]  # for each source, one hash per reference


class Search:
    """Looks for held-out lines among those of the training text, in memory that the held-out lines decide."""

    def __init__(self, sets: list[HeldOut]) -> None:
        self._held_out = sets
        self._wanted = {digest for one in sets for digest in one.sources}
        self._wanted_pairs = {digest for one in sets for pair in one.pairs for digest in pair}
        self._found: set[int] = set()
        self._found_pairs: set[int] = set()

    def see(self, source: str, target: str) -> None:
        """A pair of the training text."""
        digest = hash(source)
        if digest in self._wanted:
            self._found.add(digest)
            self._found_pairs |= {hash((source, target))} & self._wanted_pairs

    def warnings(self) -> Iterator[str]:
        """A line for each set of which something was seen."""
        for one in self._held_out:
            num_found = sum(digest in self._found for digest in one.sources)
            num_pairs = sum(not self._found_pairs.isdisjoint(pair) for pair in one.pairs)
            if num_found:
                yield (
                    f"warning: {num_found:,} of {one.num_lines:,} sources of {one.name} stand in the training data, "
                    f"{num_pairs:,} of them with the same translation"
                )


def held_out(name: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> HeldOut:
    """A set from its sources and the references of each."""
    num_lines = 0
    sources, pairs = [], []
    for source, references in rows:
        num_lines += 1
        if source.strip():
            sources.append(hash(source))
            pairs.append(tuple(hash((source, reference)) for reference in references))
    return HeldOut(name, num_lines, sources, pairs)
