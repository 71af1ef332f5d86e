"""How much of a text a tokenizer does not know."""

from collections import Counter
from collections.abc import Iterable, Sequence

from mtkit.symbols import UNKNOWN


class UnknownShares:
    """Counts the unknown among the tokens of several texts."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()

    def see(self, name: str, rows: Iterable[Sequence[int]], unknown: int = UNKNOWN) -> None:
        """Sentences of the text of that name; unknown is the id of what is."""
        for row in rows:
            self._tokens[name] += len(row)
            self._unknown[name] += row.count(unknown)

    def shares(self) -> dict[str, float]:
        """The share of each text, in the order in which they were first seen."""
        return {name: self._unknown[name] / max(count, 1) for name, count in self._tokens.items()}


def describe_unknown(shares: dict[str, float]) -> str:
    """The shares in words: "1.2% of the training source, 0.5% of the training target"."""
    return ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
