"""BLEU, chrF and TER, exactly as the sacrebleu command gives them: the home of sacreBLEU (Post, 2018)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from mtkit.errors import DataError, MtkitError


@dataclass(frozen=True)
class Score:
    """A figure and what is needed to compare it with others."""

    metric: str  # sacreBLEU's name, such as BLEU or chrF2
    score: float  # 0 to 100, and more for TER, where less is better
    signature: str


# sacreBLEU has tokenizers of their own for these languages, and knows them by two letters.
_TWO_LETTERS = {"zho": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}


def _bleu(target_language: str, lowercase: bool, effective_order: bool = False) -> Metric:
    language = re.split("[-_]", target_language.lower())[0]
    language = _TWO_LETTERS.get(language, language)
    try:
        # looks_tokenized warns instead of force.
        return BLEU(lowercase=lowercase, trg_lang=language, force=True, effective_order=effective_order)
    except RuntimeError as error:  # MeCab is not installed
        raise MtkitError(
            f"BLEU of '{target_language}' needs a tokenizer that is not installed; install it with: "
            f"pip install 'sacrebleu[{language}]', or choose another metric"
        ) from error


def check_language(target_language: str) -> None:
    """An MtkitError if BLEU of that language needs a tokenizer that is not installed (asked before training)."""
    _bleu(target_language, lowercase=False)


def _chrf(_: str, lowercase: bool) -> Metric:
    return CHRF(lowercase=lowercase)


def _ter(_: str, __: bool) -> Metric:
    return TER()  # lowercases unless told otherwise


METRICS: dict[str, Callable[[str, bool], Metric]] = {"bleu": _bleu, "chrf": _chrf, "ter": _ter}


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    target_language: str,
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    lowercase: bool = False,
    names: Sequence[str] = (),
) -> list[Score]:
    """Scores of raw text, a list of lines for each reference, with sacreBLEU's defaults.

    target_language picks BLEU's tokenizer. An empty reference line is a reference that says nothing, as it is to the
    sacrebleu command. names are those of the references, for messages.
    """
    assert references
    if not hypotheses:
        raise DataError("there is nothing to score: the hypothesis has no lines")
    for number, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            name = names[number] if names else str(number + 1)
            raise DataError(
                f"hypothesis has {_lines(hypotheses)} but the reference {name} has {_lines(reference)}; "
                "line n must translate line n"
            )
    # The command strips the ends of lines, which tokenizers need not do.
    stripped = [line.rstrip() for line in hypotheses]
    stripped_references = [[line.rstrip() for line in reference] for reference in references]
    scores = []
    for name in metrics:
        metric = METRICS[name](target_language, lowercase)
        result = metric.corpus_score(stripped, stripped_references)
        scores.append(Score(result.name, result.score, metric.get_signature().format()))
    return scores


def validation_score(hypotheses: Sequence[str], references: Sequence[str], metric: str, target_language: str) -> float:
    """The figure that a checkpoint is chosen by; higher is better, for bleu and chrf."""
    return corpus_scores(hypotheses, [references], target_language, (metric,))[0].score


class Utility:
    """What one text is worth where another is the reference, as sacreBLEU scores single sentences: 0 to 100."""

    def __init__(self, metric: str, target_language: str) -> None:
        self._metric = UTILITIES[metric](target_language)

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """[h][r]: of text h, with text r as its reference, whose n-grams are counted once."""
        # What sentence_score does, in its parts: most of its time goes into the n-grams of the reference.
        prepared = [self._metric._preprocess_segment(text.rstrip()) for text in texts]
        references = [self._metric._extract_reference_info([text]) for text in prepared]
        return [[self._score(text, reference) for reference in references] for text in prepared]

    def _score(self, text: str, reference: dict[str, Any]) -> float:
        statistics = self._metric._compute_segment_statistics(text, reference)
        return float(self._metric._compute_score_from_stats(statistics).score)


UTILITIES: dict[str, Callable[[str], Metric]] = {
    "chrf": lambda _: CHRF(),
    "bleu": lambda target_language: _bleu(target_language, lowercase=False, effective_order=True),
}


_TOKENIZED = re.compile(r" \.$| ,(?= )| n't\b|&(?:apos|quot|amp|lt|gt|#91|#93|#124);")
_SEGMENTED = re.compile(r"▁|@@(?: |$)")
_LARGE_SHARE = 0.2


def looks_tokenized(lines: Sequence[str]) -> str | None:
    """A warning when many hypotheses are tokenised or still cut into subwords, which makes BLEU meaningless.

    Spaces before ? ! ; and : are good French and no sign of it.
    """
    full = [line.rstrip() for line in lines if line.strip()]
    for sign, what in ((_SEGMENTED, "cut into subwords"), (_TOKENIZED, "tokenised")):
        found = [match for match in map(sign.search, full) if match]
        if found and len(found) > _LARGE_SHARE * len(full):
            return (
                f'{len(found):,} of {_lines(full)} look {what}, such as "{_excerpt(found[0])}"; '
                "scores are of plain text, so turn it into that first"
            )
    return None


def _excerpt(match: re.Match[str]) -> str:
    """What stands around a match."""
    return match.string[max(0, match.start() - 20) : match.end() + 20].strip()


def _lines(lines: Sequence[str]) -> str:
    return f"{len(lines):,} line{'' if len(lines) == 1 else 's'}"
