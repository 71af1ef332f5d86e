"""Minimum Bayes risk: of many samples, the one that is most like all the others (Eikema & Aziz, 2020)."""

from collections import Counter
from collections.abc import Callable, Sequence


def elect(texts: Sequence[str], utility: Callable[[Sequence[str]], list[list[float]]]) -> list[tuple[str, float]]:
    """The different texts, each with its mean utility against all the other samples, best first.

    utility gives [h][r], that of text h where r is the reference. Of equals the one that stands first comes first. A
    text that was drawn more than once has itself among the others; one that is alone has nothing to be compared with.
    """
    counts = Counter(texts)
    different = list(counts)
    means = []
    for h, row in enumerate(utility(different)):
        total = sum(count * value for count, value in zip(counts.values(), row, strict=True)) - row[h]
        means.append(total / max(len(texts) - 1, 1))
    order = sorted(range(len(different)), key=lambda h: -means[h])
    return [(different[h], means[h]) for h in order]
