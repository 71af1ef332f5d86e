"""Paired tests: how likely a difference as large as that of two systems is if neither is better than the other.

Seed, resamples and signatures are those of the sacrebleu command, and so are p-values unless there are ties: sacreBLEU
2.6 counts only resamples that differ by more than the systems do, and so finds a system to differ from itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import estimate_ci

from mtkit.errors import MtkitError

Test = Literal["bootstrap", "randomization"]

# The names that signatures have for them.
TESTS: dict[Test, str] = {"bootstrap": "bs", "randomization": "ar"}

# As many as the command draws.
NUM_RESAMPLES = 1000
NUM_TRIALS = 10_000
TRIALS_AT_ONCE = 100  # bounds the memory

LONGEST_SHOWN = 40  # characters of a wrong seed that a message shows

# Scores, from 0 to 100, that are closer than this differ by rounding alone.
TOLERANCE = 1e-9

# N lines of the test set, K statistics of a line from which the metric computes its score.
Statistics = NDArray[np.float64]  # (N, K)


@dataclass(frozen=True)
class Figures:
    """The score of one system, with its bootstrap mean and interval where the test has them."""

    score: float
    mean: float | None = None
    interval: float | None = None  # half the width of what 95 % of the resamples lie in


@dataclass(frozen=True)
class Comparison:
    """Two systems under one metric."""

    metric: str  # sacreBLEU's name, such as BLEU or chrF2
    signature: str
    baseline: Figures
    system: Figures
    p_value: float


def resampling_seed() -> int | None:
    """The seed that the sacrebleu command takes, too; None draws other resamples each time."""
    text = _seed_text()
    if text == "none":
        return None
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if seed < 0:
        raise MtkitError(
            f"SACREBLEU_SEED: found {text[:LONGEST_SHOWN]!r}, wants a whole number, at least 0, or none; or unset it"
        )
    return seed


def _seed_text() -> str:
    return os.environ.get("SACREBLEU_SEED", "12345").lower()


def compare(
    metric: Metric, baseline: Sequence[str], system: Sequence[str], references: Sequence[Sequence[str]], test: Test
) -> Comparison:
    """Test whether the scores of two systems differ.

    The p-value is 1 where the scores are equal, and never below smallest_p_value.
    """
    metric._ref_cache = metric._cache_references(references)
    extracted = [metric._extract_corpus_statistics(lines, None) for lines in (baseline, system)]
    results = [metric._aggregate_and_compute(statistics) for statistics in extracted]
    first, second = (np.array(statistics, dtype=np.float64) for statistics in extracted)
    scores = (float(results[0].score), float(results[1].score))
    generator = np.random.default_rng(resampling_seed())
    if test == "bootstrap":
        figures, p_value = _bootstrap(metric, first, second, scores, generator)
    else:
        figures, p_value = _randomization(metric, first, second, scores, generator)
    signature = metric.get_signature()
    signature.update("seed", _seed_text())
    signature.update(TESTS[test], NUM_RESAMPLES if test == "bootstrap" else NUM_TRIALS)
    p_value = max(p_value, smallest_p_value(first, second))
    return Comparison(results[0].name, signature.format(), *figures, p_value)


def _bootstrap(
    metric: Metric,
    baseline: Statistics,
    system: Statistics,
    scores: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[tuple[Figures, Figures], float]:
    chosen = generator.choice(len(baseline), size=(NUM_RESAMPLES, len(baseline)), replace=True)
    first, second = (resampled_scores(metric, statistics, chosen) for statistics in (baseline, system))
    (mean, interval), (other_mean, other_interval) = estimate_ci(first), estimate_ci(second)
    figures = (
        Figures(scores[0], float(mean), float(interval)),
        Figures(scores[1], float(other_mean), float(other_interval)),
    )
    return figures, bootstrap_p_value(first, second, abs(scores[0] - scores[1]))


def _randomization(
    metric: Metric,
    baseline: Statistics,
    system: Statistics,
    scores: tuple[float, float],
    generator: np.random.Generator,
) -> tuple[tuple[Figures, Figures], float]:
    figures = (Figures(scores[0]), Figures(scores[1]))
    difference = abs(scores[0] - scores[1])
    if difference <= TOLERANCE:  # every trial would count
        return figures, 1.0
    swapped = generator.integers(2, size=(NUM_TRIALS, len(baseline)), dtype=bool)
    differences = swapped_differences(metric, baseline, system, swapped)
    return figures, randomization_p_value(differences, difference)


def resampled_scores(metric: Metric, statistics: Statistics, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B,) scores of B resamples of the test set, whose lines chosen (B, N) holds."""
    # sacreBLEU sums in single precision, which its means and intervals show.
    single = statistics.astype(np.float32)
    return np.array([metric._compute_score_from_stats(single[lines].sum(0)).score for lines in chosen])


def bootstrap_p_value(baseline: NDArray[np.float64], system: NDArray[np.float64], difference: float) -> float:
    """Of paired bootstrap resampling (Koehn, 2004), from the scores (B,) of both systems and their real difference.

    Counts the resamples whose difference exceeds the mean difference of all resamples by at least the real difference
    (Riezler & Maxwell, 2005), and adds one to both counts. Equal scores have no difference to explain: 1.
    """
    if difference <= TOLERANCE:
        return 1.0
    differences = np.abs(baseline.astype(np.float64) - system.astype(np.float64))
    return _share(differences - differences.mean(), difference)


def swapped_differences(
    metric: Metric, baseline: Statistics, system: Statistics, swapped: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(B,) differences of the two systems after B trials, which swap the lines that swapped (B, N) marks."""
    total = baseline.sum(0) + system.sum(0)
    differences = []
    for start in range(0, len(swapped), TRIALS_AT_ONCE):
        trials = swapped[start : start + TRIALS_AT_ONCE]
        first = trials @ baseline + ~trials @ system
        for one, other in zip(first, total - first, strict=True):
            scores = [metric._compute_score_from_stats(statistics).score for statistics in (one, other)]
            differences.append(abs(scores[0] - scores[1]))
    return np.array(differences)


def randomization_p_value(differences: NDArray[np.float64], difference: float) -> float:
    """Of paired approximate randomization (Riezler & Maxwell, 2005): the trials that differ at least as much.

    One is added to both counts.
    """
    return _share(differences, difference)


def smallest_p_value(baseline: Statistics, system: Statistics) -> float:
    """2^(1-M) where M lines have different statistics, at most 1.

    If neither system is better, each line could as well have come out the other way round; of the 2^M ways the one
    found and its mirror image differ at least as much as the systems do. Bootstrap resamples of few lines vary too
    little, and without this bound would call a difference in one line significant. With fifteen such lines or more it
    changes nothing.
    """
    num_different = int((baseline != system).any(1).sum())
    return min(1.0, 2.0 ** (1 - num_different))


def _share(statistics: NDArray[np.float64], difference: float) -> float:
    at_least = int((statistics >= difference - TOLERANCE).sum())
    return (at_least + 1) / (len(statistics) + 1)
