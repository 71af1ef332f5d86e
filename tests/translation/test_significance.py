"""The p-value of a comparison is what an exhaustive count over all swaps or all resamples gives."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sacrebleu.significance
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from mtkit.translation import scores
from mtkit.translation.scores import TESTS, SignificanceTest, paired_scores
from tests.evaluation.test_comparisons import Run, corpus, corrupted, run, write

__all__ = ["run"]  # a fixture

SACREBLEU = {"bleu": BLEU, "chrf": CHRF, "ter": TER}

REFERENCE = [
    "The cat sat on the mat with its kittens.",
    "A dog ran far away from the old house.",
    "It rains again today, as it did yesterday.",
    "Nobody knows what the fox has seen there.",
    "My neighbour paints the fence in bright green.",
    "Three letters came from the town this morning.",
]
# One word of every line but the fourth is wrong, so that many swaps give the same TER.
SYSTEM = [
    "The cat sat on the mat with its kitten.",
    "A dog ran far away from the old home.",
    "It rains again today, as it did yesterday.",
    "Nobody knows what the fox has seen there.",
    "My neighbour paints the fence in bright green.",
    "Three letters came from the town this morning.",
]
BASELINE = [
    "The cat sat on the mat with its kittens.",
    "A dog ran far away from an old house.",
    "It rains again today, as it has yesterday.",
    "Nobody knows what the fox has seen there.",
    "My neighbour paints a fence in bright green.",
    "Three letters come from the town this morning.",
]


def score(metric: str, lines: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return float(SACREBLEU[metric]().corpus_score(list(lines), [list(reference) for reference in references]).score)


def share_of_swaps(metric: str, system: list[str], baseline: list[str], references: list[list[str]]) -> float:
    """Of all 2^n ways to swap lines those after which the systems differ at least as much as before."""
    real = abs(score(metric, system, references) - score(metric, baseline, references))
    # A swap of equal lines changes nothing, so only the others count.
    ways = list(
        itertools.product(*((False, True) if s != b else (False,) for s, b in zip(system, baseline, strict=True)))
    )
    found = 0
    for way in ways:
        one, other = zip(
            *((b, s) if swap else (s, b) for swap, s, b in zip(way, system, baseline, strict=True)), strict=True
        )
        found += abs(score(metric, one, references) - score(metric, other, references)) >= real - 1e-9
    return found / len(ways)


def share_of_resamples(metric: str, system: list[str], baseline: list[str], references: list[list[str]]) -> float:
    """Of all n^n resamples those whose difference is above the mean by at least the real difference."""
    count = len(system)
    # Those of the same lines have the same scores.
    known: dict[tuple[int, ...], float] = {}
    differences = []
    for chosen in itertools.product(range(count), repeat=count):
        key = tuple(sorted(chosen))
        if key not in known:
            of_lines = [[reference[place] for place in key] for reference in references]
            one, other = (score(metric, [lines[place] for place in key], of_lines) for lines in (system, baseline))
            known[key] = abs(one - other)
        differences.append(known[key])
    mean = sum(differences) / len(differences)
    real = abs(score(metric, system, references) - score(metric, baseline, references))
    return sum(difference - mean >= real - 1e-9 for difference in differences) / len(differences)


@pytest.mark.parametrize("metric", list(SACREBLEU))
@pytest.mark.parametrize("references", [[REFERENCE], [REFERENCE, BASELINE[1:] + SYSTEM[:1]]])
def test_randomization_counts_every_swap_that_differs_at_least_as_much(
    metric: str, references: list[list[str]]
) -> None:
    [(_, found)] = paired_scores(SYSTEM, BASELINE, references, "en", "randomization", (metric,))
    wanted = share_of_swaps(metric, SYSTEM, BASELINE, references)
    assert 0.1 < wanted < 1
    assert found.p_value == pytest.approx(wanted, abs=0.02)  # four standard errors of 10,000 trials


@pytest.mark.parametrize("metric", list(SACREBLEU))
def test_bootstrap_counts_every_resample_that_exceeds_the_mean_at_least_as_much(metric: str) -> None:
    reference = REFERENCE[:4]
    # Better in one line and worse in another.
    system = [*SYSTEM[:1], *REFERENCE[1:4]]
    baseline = [REFERENCE[0], "A dog ran far away from an old home.", *REFERENCE[2:3], "Nobody knows what it saw."]
    wanted = share_of_resamples(metric, system, baseline, [reference])
    [(_, found)] = paired_scores(system, baseline, [reference], "en", "bootstrap", (metric,))
    assert wanted > 0.05
    least = 2.0 ** (1 - 3)  # three lines differ
    assert found.p_value == pytest.approx(max(wanted, least), abs=0.06)  # four standard errors of 1,000 resamples


@pytest.mark.parametrize("test", list(TESTS))
def test_p_values_are_sacrebleus_but_for_ties(test: SignificanceTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "NUM_TRIALS", 1000)

    def with_ties(statistics: "np.ndarray[tuple[int], np.dtype[np.float64]]", difference: float) -> float:
        return float((np.sum(statistics >= difference - 1e-9) + 1) / (len(statistics) + 1))

    monkeypatch.setattr(sacrebleu.significance, "_compute_p_value", with_ties)
    reference = corpus(1, 30)
    good, poor = corrupted(reference, 0.15, 3), corrupted(reference, 0.2, 4)
    references = [reference, corrupted(reference, 0.3, 5)]
    metrics = {name: of() for name, of in SACREBLEU.items()}
    _, wanted = PairedTest([("poor", poor), ("good", good)], metrics, references, TESTS[test], 1000)()
    for _, found in paired_scores(good, poor, references, "en", test):
        assert found.p_value == wanted[found.metric][1].p_value


@pytest.mark.parametrize("test", list(TESTS))
def test_a_system_does_not_differ_from_itself(run: Run, tmp_path: Path, test: SignificanceTest) -> None:
    system, reference = write(tmp_path / "system", SYSTEM), write(tmp_path / "reference", REFERENCE)
    for options in ([], ["--lowercase"], ["--reference", reference], ["--by-length", "--source", reference]):
        code, out, error = run(
            *("--hypothesis", system, "--against", system, "--reference", reference, "--test", test, *options)
        )
        assert code == 0
        assert error.splitlines() == [error.strip()]  # the legend alone
        assert "the difference is significant" in error
        assert out.count("(p = 1.0000)  nrefs") == len(out.splitlines()) / 2


@pytest.mark.parametrize("test", list(TESTS))
def test_different_lines_of_equal_score_do_not_differ(test: SignificanceTest) -> None:
    system = ["The cat sits on the mat.", "The cat sat on the mat.", ""]
    baseline = ["The cat sat on the mat.", "The cat sits on the mat.", ""]
    for _, found in paired_scores(system, baseline, [["The cat sat on the mat."] * 3], "en", test):
        assert found.p_value == 1
    # Blank lines alone, and lines that share nothing with the reference.
    for _, found in paired_scores(["", ""], ["", "Zzz"], [["", "One two three"]], "en", test, ("bleu", "chrf")):
        assert found.p_value == 1


@pytest.mark.parametrize("test", list(TESTS))
@pytest.mark.parametrize(("num_different", "least"), [(1, 1.0), (5, 0.0625)])
def test_few_lines_that_differ_are_never_significant(
    test: SignificanceTest, num_different: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "NUM_TRIALS", 1000)
    for reference in (REFERENCE[:num_different], REFERENCE):
        system = [*reference[:num_different], *REFERENCE[num_different : len(reference)]]
        baseline = [*("Other words stand here.",) * num_different, *REFERENCE[num_different : len(reference)]]
        for _, found in paired_scores(system, baseline, [reference], "en", test):
            assert found.p_value is not None
            assert found.p_value >= least


@pytest.mark.parametrize("test", list(TESTS))
def test_real_differences_are_found_still(test: SignificanceTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "NUM_TRIALS", 1000)
    reference = corpus(1)
    good, poor = corrupted(reference, 0.05, 2), corrupted(reference, 0.4, 3)
    for one, other, metrics in ((good, poor, ("bleu", "chrf", "ter")), (poor, good, ("bleu",))):
        for _, found in paired_scores(one, other, [reference], "en", test, metrics):
            assert found.p_value is not None
            assert found.p_value < 0.01
