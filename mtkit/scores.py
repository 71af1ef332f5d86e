"""BLEU, chrF and TER, exactly as the sacrebleu command gives them: the home of sacreBLEU (Post, 2018)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from mtkit.bleu import bleu
from mtkit.errors import DataError, MtkitError
from mtkit.significance import NUM_RESAMPLES, Test, compare, resampling_seed
from mtkit.text.processed import findings


@dataclass(frozen=True)
class Score:
    """A figure and what is needed to compare it with others."""

    metric: str  # sacreBLEU's name, such as BLEU or chrF2
    score: float  # 0 to 100, and more for TER, where less is better
    signature: str
    mean: float | None = None  # of bootstrap resamples of the test set
    interval: float | None = None  # half the width of what 95 % of them lie in
    p_value: float | None = None  # how probable so large a difference is if both systems are alike


INSTEAD = "choose another with --tokenize, or leave BLEU out of --metrics"


def _bleu(target_language: str, lowercase: bool, tokenizer: str | None) -> Metric:
    return bleu(target_language, tokenizer, lowercase, instead=INSTEAD)


def _chrf(_: str, lowercase: bool, __: str | None) -> Metric:
    return CHRF(lowercase=lowercase)


def _chrf_plus_plus(_: str, lowercase: bool, __: str | None) -> Metric:
    return CHRF(lowercase=lowercase, word_order=2)


def _ter(_: str, __: bool, ___: str | None) -> Metric:
    return TER()  # lowercases unless told otherwise


# From the target language, whether case is ignored, and the name of BLEU's tokenizer or None.
METRICS: dict[str, Callable[[str, bool, str | None], Metric]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "chrf++": _chrf_plus_plus,
    "ter": _ter,
}


def check_language(target_language: str) -> None:
    """An MtkitError if BLEU of that language needs a tokenizer that is not installed (asked before training)."""
    bleu(target_language)


def metric_names(text: str) -> tuple[str, ...]:
    """The metrics of --metrics, such as bleu,chrf++."""
    names = tuple(name.strip().lower() for name in text.split(","))
    if not set(names) <= set(METRICS) or len(set(names)) < len(names):
        raise MtkitError(f"--metrics: found {text}, wants some of {','.join(METRICS)}, each once")
    return names


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    target_language: str,
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    lowercase: bool = False,
    names: Sequence[str] = (),
    confidence: bool = False,
    tokenizer: str | None = None,
) -> list[Score]:
    """Scores of raw text, a list of lines for each reference, with sacreBLEU's defaults.

    target_language picks BLEU's tokenizer unless one is named. An empty reference line is a reference that says
    nothing, as it is to the sacrebleu command. names are those of the references, for messages. With confidence each
    score has a mean and an interval by bootstrap resampling (Koehn, 2004).
    """
    _check_lengths(hypotheses, references, names)
    if confidence:
        resampling_seed()  # a wrong one is a traceback of sacreBLEU's
    stripped, stripped_references = _stripped(hypotheses), [_stripped(reference) for reference in references]
    scores = []
    for name in metrics:
        metric = METRICS[name](target_language, lowercase, tokenizer)
        result = metric.corpus_score(stripped, stripped_references, NUM_RESAMPLES if confidence else 1)
        # sacreBLEU shows them in no other way than as text, rounded.
        mean, interval = (float(result._mean), float(result._ci)) if confidence else (None, None)
        scores.append(Score(result.name, result.score, metric.get_signature().format(), mean, interval))
    return scores


def paired_scores(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[Sequence[str]],
    target_language: str,
    test: Test = "bootstrap",
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    lowercase: bool = False,
    tokenizer: str | None = None,
) -> list[tuple[Score, Score]]:
    """For each metric the scores of the baseline and of the hypotheses, the latter with the p-value of the difference.

    Paired bootstrap resampling (Koehn, 2004) gives means and intervals too; paired approximate randomization (Riezler
    & Maxwell, 2005) is the test that rejects less often what is true. See mtkit.significance for what is counted.
    """
    for lines in (hypotheses, baseline):
        _check_lengths(lines, references, ())
    texts = _stripped(baseline), _stripped(hypotheses), [_stripped(reference) for reference in references]
    pairs = []
    for name in metrics:
        compared = compare(METRICS[name](target_language, lowercase, tokenizer), *texts, test)
        first, second = compared.baseline, compared.system
        pairs.append(
            (
                Score(compared.metric, first.score, compared.signature, first.mean, first.interval),
                Score(
                    compared.metric, second.score, compared.signature, second.mean, second.interval, compared.p_value
                ),
            )
        )
    return pairs


def count_words(lines: Sequence[str], language: str) -> list[int]:
    """Words of each line, as sacreBLEU's tokenizer for that language parts them; punctuation counts."""
    tokenizer = bleu(language).tokenizer
    return [len(tokenizer(line.strip()).split()) for line in lines]


def _check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]) -> None:
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


def _stripped(lines: Sequence[str]) -> list[str]:
    """Without white space at the ends, which the command strips and tokenizers need not."""
    return [line.rstrip() for line in lines]


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
    "bleu": lambda target_language: bleu(
        target_language, effective_order=True, instead="set decoding.mbr_utility: chrf"
    ),
}


def looks_processed(lines: Sequence[str]) -> str | None:
    """A warning when many lines are tokenised, escaped or still cut into subwords, which makes BLEU meaningless."""
    found = next(iter(findings(enumerate(lines, start=1))), None)
    if found is None:
        return None
    num_lines = f"{found.num_lines:,} line{'' if found.num_lines == 1 else 's'}"
    return (
        f'{found.count:,} of {num_lines} look {found.sign.kind}, such as "{found.excerpt}"; scores are of plain text, '
        f"so turn it into that first: {found.sign.cure} < FILE"
    )


def _lines(lines: Sequence[str]) -> str:
    return f"{len(lines):,} line{'' if len(lines) == 1 else 's'}"
