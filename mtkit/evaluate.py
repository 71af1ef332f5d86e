"""Scoring translations of raw text against raw references."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mtkit.config.settings import Config, TestSetConfig
from mtkit.errors import ConfigError, DataError
from mtkit.scores import corpus_scores, looks_tokenized
from mtkit.text.lines import read_lines
from mtkit.translator import Translator


@dataclass(frozen=True)
class ScoredSet:
    """One figure of one test set."""

    test_set: str
    metric: str
    score: float
    signature: str

    def as_json(self) -> dict[str, Any]:
        """For `mtkit evaluate --json`."""
        return asdict(self)


def test_sets(config: Config) -> dict[str, TestSetConfig]:
    """The test sets of the settings, with the paths where their files lie."""
    if not config.data.test:
        raise ConfigError("there is no test set: name one in data.test, or give --source and --reference")
    return {
        name: TestSetConfig(
            source=config.data_path(test_set.source), target=tuple(map(config.data_path, test_set.target))
        )
        for name, test_set in config.data.test.items()
    }


def evaluate(
    translator: Translator, name: str, test_set: TestSetConfig, lowercase: bool = False, save_to: Path | None = None
) -> list[ScoredSet]:
    """Translate a test set and score it; the translations are kept where save_to says."""
    sources, references = read_test_set(test_set)
    bar = tqdm(sources, unit=" lines", desc=name, leave=False, disable=not sys.stderr.isatty())
    lines = list(translator.translate_lines(bar))
    if num_split := sum(line.num_parts > 1 for line in lines):
        _warn(f"{name}: lines too long for the model, and so translated in parts: {num_split:,}")
    hypotheses = [line.text for line in lines]
    if save_to is not None:
        save_to.parent.mkdir(parents=True, exist_ok=True)
        save_to.write_text("".join(f"{line}\n" for line in hypotheses), encoding="utf-8", newline="\n")
    return score_lines(name, hypotheses, references, translator.config.languages.target, lowercase)


def read_test_set(test_set: TestSetConfig) -> tuple[list[str], list[list[str]]]:
    """The source and the references; DataError if a file cannot be read or their numbers of lines differ."""
    sources = list(read_lines(test_set.source))
    references = _read_references(test_set.target)
    _check_counts(str(test_set.source), len(sources), test_set.target, references)
    return sources, references


def evaluate_file(
    name: str, hypotheses: Sequence[str], reference_paths: Sequence[Path], target_language: str, lowercase: bool = False
) -> list[ScoredSet]:
    """Score translations that are there already."""
    references = _read_references(reference_paths)
    _check_counts(name, len(hypotheses), reference_paths, references)
    return score_lines(name, hypotheses, references, target_language, lowercase)


def score_lines(
    name: str, hypotheses: Sequence[str], references: Sequence[Sequence[str]], target_language: str, lowercase: bool
) -> list[ScoredSet]:
    """BLEU, chrF and TER with their signatures; text that looks tokenised is warned of."""
    for what, lines in (("translation", hypotheses), *(("reference", reference) for reference in references)):
        if warning := looks_tokenized(lines):
            _warn(f"{name}, {what}: {warning}")
    scores = corpus_scores(hypotheses, references, target_language, lowercase=lowercase)
    return [ScoredSet(name, score.metric, score.score, score.signature) for score in scores]


def table(scores: Sequence[ScoredSet]) -> str:
    """The scores as lines of text."""
    name_width = max(len(score.test_set) for score in scores)
    metric_width = max(len(score.metric) for score in scores)
    return "".join(
        f"{score.test_set:{name_width}}  {score.metric:{metric_width}}  {score.score:6.2f}  {score.signature}\n"
        for score in scores
    )


def _warn(text: str) -> None:
    print(f"mtkit: warning: {text}", file=sys.stderr)


def _read_references(paths: Sequence[Path]) -> list[list[str]]:
    return [list(read_lines(path)) for path in paths]


def _check_counts(name: str, num_lines: int, paths: Sequence[Path], references: Sequence[Sequence[str]]) -> None:
    for path, reference in zip(paths, references, strict=True):
        if len(reference) != num_lines:
            raise DataError(
                f"{name} has {num_lines:,} lines but {path} has {len(reference):,}; line n must translate line n"
            )
