"""BLEU, chrF and TER with signatures, and paired significance tests.

This is the only module that uses the metrics of sacreBLEU.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from portalocker.exceptions import LockException
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import estimate_ci
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
from sacrebleu.utils import SACREBLEU_DIR, download_file

from mtkit.errors import DataError, MtkitError, counted, say
from mtkit.text.parallel import findings

# BLEU and its tokenizers.

DEFAULT_TOKENIZER = "13a"

# sacreBLEU's tokenizers for languages that DEFAULT_TOKENIZER does not suit, by ISO 639 code of two or three letters.
# All Chinese languages are written in the characters that the tokenizer "zh" separates.
_TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
}

_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}  # the extra of mtkit that installs the packages of a tokenizer

# The tokenizers "spm" and "flores101" have the same model and signature, but sacreBLEU warns that "spm" is deprecated.
_RENAMED = {"spm": "flores101"}


def tokenizer_of(language: str) -> str:
    """Returns the name of sacreBLEU's tokenizer for a language.

    The language code may include a script or region, as in zh-CN and zho_Hans.
    """
    return _TOKENIZERS.get(re.split("[-_]", language.lower())[0], DEFAULT_TOKENIZER)


def require_tokenizer_name(name: str) -> None:
    """Raises MtkitError if sacreBLEU has no tokenizer with this name."""
    if name not in BLEU.TOKENIZERS:
        near = get_close_matches(name, BLEU.TOKENIZERS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise MtkitError(f"--tokenize: found {name}{meant}, wants one of {', '.join(BLEU.TOKENIZERS)}")


def check_language(target_language: str) -> None:
    """Raises MtkitError if BLEU's tokenizer for the language is not available; called before training."""
    bleu(target_language)


def bleu(
    language: str,
    tokenizer: str | None = None,
    lowercase: bool = False,
    effective_order: bool = False,
    instead: str = "",
) -> BLEU:
    """Returns sacreBLEU's BLEU metric with the given tokenizer, by default the one for the language.

    Raises MtkitError if the tokenizer needs a package that is not installed, or a model that cannot be downloaded or
    read. The error message ends with `instead`, which names an alternative, such as "choose another with --tokenize".
    """
    name = tokenizer or tokenizer_of(language)
    name = _RENAMED.get(name, name)
    or_else = f", or {instead}" if instead else ""
    with _model_of(name, or_else):
        try:
            # force=True silences sacreBLEU's warning about tokenised text; looks_processed() gives a better one.
            return BLEU(lowercase=lowercase, tokenize=name, force=True, effective_order=effective_order)
        except RuntimeError as error:
            if name not in _EXTRAS:
                raise
            of_language = f" of '{language}'" if tokenizer is None else ""
            raise MtkitError(
                f"BLEU{of_language} needs the tokenizer {name}, which is not installed; install it with: "
                f"pip install 'mtkit[{_EXTRAS[name]}]'{or_else}"
            ) from error


@contextmanager
def _model_of(tokenizer: str, or_else: str) -> Iterator[None]:
    """Context manager that first downloads the SentencePiece model of a tokenizer if the model file is missing.

    Does nothing if the tokenizer needs no model. Raises MtkitError if the download fails, or if the code in the `with`
    block cannot read the model; the error message ends with `or_else`.
    """
    if tokenizer not in SPM_MODELS:
        yield
        return
    url = SPM_MODELS[tokenizer]["url"]
    path = Path(SACREBLEU_DIR, "models", url.rpartition("/")[2])
    if not path.exists():
        say(f"downloading the model of BLEU's tokenizer {tokenizer} from {url}")
        try:
            with _silent():
                download_file(url, str(path))
        except (OSError, HTTPException, LockException, SystemExit) as error:
            raise MtkitError(
                f"BLEU's tokenizer {tokenizer} needs a model that cannot be downloaded from {url} ({error}); "
                f"save it as {path}{or_else}"
            ) from None
    try:
        yield
    except (OSError, RuntimeError):
        raise MtkitError(
            f"BLEU's tokenizer {tokenizer} cannot read its model {path}; delete it to download it again{or_else}"
        ) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Context manager that silences sacreBLEU's log."""
    logger = logging.getLogger("sacrebleu")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


# Metrics. Scores and signatures are the same as those of the sacrebleu command (Post, 2018).

NUM_RESAMPLES = 1000  # the default of the sacrebleu command
LONGEST_SHOWN = 40  # messages quote at most this many characters of a wrong seed

# The alternatives that `mtkit evaluate` names if BLEU's tokenizer is not available.
INSTEAD = "choose another with --tokenize, or leave BLEU out of --metrics"


@dataclass(frozen=True)
class Score:
    """A corpus score and its signature; also a confidence interval and a p-value, if those were computed."""

    metric: str  # as sacreBLEU names it, such as BLEU or chrF2
    score: float  # 0 to 100; TER, where lower is better, may exceed 100
    signature: str
    mean: float | None = None  # over bootstrap resamples of the test set
    interval: float | None = None  # half-width of the 95 % confidence interval
    p_value: float | None = None  # of the difference between this score and that of a baseline


def _bleu(target_language: str, lowercase: bool, tokenizer: str | None) -> Metric:
    return bleu(target_language, tokenizer, lowercase, instead=INSTEAD)


def _chrf(_: str, lowercase: bool, __: str | None) -> Metric:
    return CHRF(lowercase=lowercase)


def _chrf_plus_plus(_: str, lowercase: bool, __: str | None) -> Metric:
    return CHRF(lowercase=lowercase, word_order=2)


def _ter(_: str, __: bool, ___: str | None) -> Metric:
    return TER()  # lowercases by default


# The arguments of these functions are the target language, whether to lowercase, and the name of BLEU's tokenizer, or
# None for the default.
METRICS: dict[str, Callable[[str, bool, str | None], Metric]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "chrf++": _chrf_plus_plus,
    "ter": _ter,
}


def metric_names(text: str) -> tuple[str, ...]:
    """Parses the value of --metrics, such as "bleu,chrf++"; returns the metric names, which are keys of `METRICS`.

    Raises MtkitError if a name is unknown or repeated.
    """
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
    """Score hypotheses against references with sacreBLEU's defaults; returns a Score for each metric, in order.

    `hypotheses` and each item of `references` are lists of lines of raw text. `metrics` are keys of `METRICS`. The
    target language determines BLEU's tokenizer unless `tokenizer` names one. An empty line of a reference counts as an
    empty reference, as in the sacrebleu command. In error messages, the references are called by the names in `names`.
    With `confidence`, a score has a mean and a confidence interval from bootstrap resampling (Koehn, 2004).

    Raises DataError if there are no lines, or if the numbers of lines differ; MtkitError if BLEU's tokenizer is not
    available, or if `confidence` is true and the environment variable SACREBLEU_SEED is invalid.
    """
    _check_lengths(hypotheses, references, names)
    if confidence:
        resampling_seed()  # raises a readable error if the seed is wrong; sacreBLEU would not
    stripped, stripped_references = _stripped(hypotheses), [_stripped(reference) for reference in references]
    scores = []
    for name in metrics:
        metric = METRICS[name](target_language, lowercase, tokenizer)
        result = metric.corpus_score(stripped, stripped_references, NUM_RESAMPLES if confidence else 1)
        # These attributes are private, but the public attributes give the mean and the interval only as rounded text.
        mean, interval = (float(result._mean), float(result._ci)) if confidence else (None, None)
        scores.append(Score(result.name, result.score, metric.get_signature().format(), mean, interval))
    return scores


def validation_score(hypotheses: Sequence[str], references: Sequence[str], metric: str, target_language: str) -> float:
    """Returns the BLEU or chrF score, from 0 to 100, of the translated validation text.

    Checkpoints are chosen by this score.
    """
    return corpus_scores(hypotheses, [references], target_language, (metric,))[0].score


def sentence_scores(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns the sentence-level chrF, from 0 to 100, of each hypothesis; BLEU tells little about one sentence."""
    metric = CHRF()
    rows = zip(_stripped(hypotheses), *map(_stripped, references), strict=True)
    return [metric.sentence_score(hypothesis, own).score for hypothesis, *own in rows]


def count_words(lines: Sequence[str], language: str) -> list[int]:
    """Returns the number of words in each line, as BLEU's tokenizer for the language counts them.

    Punctuation marks that the tokenizer separates count as words.
    """
    tokenizer = bleu(language).tokenizer
    return [len(tokenizer(line.strip()).split()) for line in lines]


def resampling_seed() -> int | None:
    """Returns the seed for resampling, which the environment variable SACREBLEU_SEED sets, as in the sacrebleu command.

    The default seed is 12345. If the variable is "none", the seed is `None`: resamples then differ each time. Raises
    MtkitError if the variable is neither "none" nor a whole number of at least 0.
    """
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


def _check_lengths(hypotheses: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    assert references
    if not hypotheses:
        raise DataError("there is nothing to score: the hypothesis has no lines")
    for number, reference in enumerate(references):
        if len(reference) != len(hypotheses):
            name = names[number] if names else str(number + 1)
            raise DataError(
                f"hypothesis has {counted(len(hypotheses), 'line')} but the reference {name} has "
                f"{counted(len(reference), 'line')}; line n must translate line n"
            )


def _stripped(lines: Sequence[str]) -> list[str]:
    """Returns the lines without trailing white space.

    Not all tokenizers ignore trailing white space. The sacrebleu command strips trailing white space, too.
    """
    return [line.rstrip() for line in lines]


# Statistics of single lines; from their sums, the BLEU of several lines is computed. Shapes: N lines, K statistics per
# line, B sums.


def bleu_statistics(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], target_language: str
) -> "Statistics":
    """Returns the statistics from which BLEU is computed, (N, K), a row for each line: lengths and numbers of n-grams.

    Raises DataError if there are no lines, or if the numbers of lines differ; MtkitError if BLEU's tokenizer is not
    available.
    """
    _check_lengths(hypotheses, references, ())
    metric = bleu(target_language)
    metric._ref_cache = metric._cache_references([_stripped(reference) for reference in references])
    return np.array(metric._extract_corpus_statistics(_stripped(hypotheses), None), dtype=np.float64)


def bleu_of(sums: "Statistics") -> NDArray[np.float64]:
    """Returns the BLEU scores (B,), from 0 to 100, of B sets of lines, given the summed statistics of each set.

    Each row of `sums`, (B, K), is a sum of rows that `bleu_statistics` returned. The scores are those that
    `corpus_scores` computes for the same lines.
    """
    metric = bleu("")  # the tokenizer has done its part already
    return np.array([metric._compute_score_from_stats([round(x) for x in row]).score for row in sums.tolist()])


# Paired significance tests of the difference between two systems.
#
# Shapes: N lines of the test set, K statistics per line from which a metric computes its score, B resamples or trials.

SignificanceTest = Literal["bootstrap", "randomization"]

# Names of the tests in sacreBLEU's signatures.
TESTS: dict[SignificanceTest, str] = {"bootstrap": "bs", "randomization": "ar"}

NUM_TRIALS = 10_000  # the default of the sacrebleu command
TRIALS_AT_ONCE = 100  # the number of trials computed together, limited to save memory

# Scores, from 0 to 100, count as equal if they differ by at most this amount, since rounding explains the difference.
TOLERANCE = 1e-9

Statistics = NDArray[np.float64]  # (N, K)


def paired_scores(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[Sequence[str]],
    target_language: str,
    test: SignificanceTest = "bootstrap",
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
    lowercase: bool = False,
    tokenizer: str | None = None,
) -> list[tuple[Score, Score]]:
    """Returns, for each metric, the score of the baseline and the score of the hypotheses.

    The second score has the p-value of the difference between the two. With paired bootstrap resampling (Koehn, 2004),
    both scores also have a mean and a confidence interval. Paired approximate randomization (Riezler & Maxwell, 2005)
    makes fewer type I errors than bootstrap resampling. Raises the errors of `corpus_scores`.
    """
    for lines in (hypotheses, baseline):
        _check_lengths(lines, references, ())
    texts = _stripped(baseline), _stripped(hypotheses), [_stripped(reference) for reference in references]
    return [compare(METRICS[name](target_language, lowercase, tokenizer), *texts, test) for name in metrics]


def compare(
    metric: Metric,
    baseline: Sequence[str],
    system: Sequence[str],
    references: Sequence[Sequence[str]],
    test: SignificanceTest,
) -> tuple[Score, Score]:
    """Returns the score of the baseline, and the score of the system with the p-value of their difference.

    With the test "bootstrap", both scores also have a mean and a confidence interval. The p-value is 1 if the scores
    are equal, and never below the result of `smallest_p_value`. The lines must not have trailing white space. Raises
    MtkitError if the environment variable SACREBLEU_SEED is invalid.
    """
    metric._ref_cache = metric._cache_references(references)
    extracted = [metric._extract_corpus_statistics(lines, None) for lines in (baseline, system)]
    results = [metric._aggregate_and_compute(statistics) for statistics in extracted]
    first, second = (np.array(statistics, dtype=np.float64) for statistics in extracted)
    scores = [float(result.score) for result in results]
    difference = abs(scores[0] - scores[1])
    generator = np.random.default_rng(resampling_seed())
    signature = metric.get_signature()
    signature.update("seed", _seed_text())
    if test == "bootstrap":
        intervals, p_value = _bootstrap(metric, first, second, difference, generator)
        signature.update(TESTS[test], NUM_RESAMPLES)
    else:
        intervals = [(None, None), (None, None)]
        p_value = _randomization(metric, first, second, difference, generator)
        signature.update(TESTS[test], NUM_TRIALS)
    p_value = max(p_value, smallest_p_value(first, second))
    name, text = results[0].name, signature.format()
    return Score(name, scores[0], text, *intervals[0]), Score(name, scores[1], text, *intervals[1], p_value)


def _bootstrap(
    metric: Metric, baseline: Statistics, system: Statistics, difference: float, generator: np.random.Generator
) -> tuple[list[tuple[float | None, float | None]], float]:
    """Returns ([(mean, interval) of the baseline, (mean, interval) of the system], p-value of the difference).

    Means, intervals and the p-value are computed by paired bootstrap resampling. A mean is the mean score over the
    resamples, and an interval is the half-width of the 95 % confidence interval. `difference` is the absolute
    difference between the scores of the two systems on the whole test set.
    """
    chosen = generator.choice(len(baseline), size=(NUM_RESAMPLES, len(baseline)), replace=True)
    first, second = (resampled_scores(metric, statistics, chosen) for statistics in (baseline, system))
    intervals: list[tuple[float | None, float | None]] = []
    for scores in (first, second):
        mean, interval = estimate_ci(scores)
        intervals.append((float(mean), float(interval)))
    return intervals, bootstrap_p_value(first, second, difference)


def _randomization(
    metric: Metric, baseline: Statistics, system: Statistics, difference: float, generator: np.random.Generator
) -> float:
    if difference <= TOLERANCE:  # every trial differs at least as much
        return 1.0
    swapped = generator.integers(2, size=(NUM_TRIALS, len(baseline)), dtype=bool)
    return randomization_p_value(swapped_differences(metric, baseline, system, swapped), difference)


def resampled_scores(metric: Metric, statistics: Statistics, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the scores (B,) of B resamples of the test set.

    `statistics` (N, K) holds the statistics of each line of a translation, from which the metric is computed;
    `chosen[b]` (N,) holds the indices of the lines in resample b.
    """
    # Single precision, as in sacreBLEU, so that means and intervals are the same.
    single = statistics.astype(np.float32)
    return np.array([metric._compute_score_from_stats(single[lines].sum(0)).score for lines in chosen])


def bootstrap_p_value(baseline: NDArray[np.float64], system: NDArray[np.float64], difference: float) -> float:
    """Returns the p-value of the difference between two systems by paired bootstrap resampling (Koehn, 2004).

    `baseline` and `system` are the scores (B,) of the two systems on B resamples of the test set; `difference` is the
    absolute difference of their scores on the test set itself. If `difference` is 0, returns 1.

    Otherwise, let d be the absolute difference of the two scores on a resample, m the mean of d over all resamples, and
    c the number of resamples with d - m >= `difference` (Riezler & Maxwell, 2005). Returns (c + 1) / (B + 1).
    """
    if difference <= TOLERANCE:
        return 1.0
    differences = np.abs(baseline.astype(np.float64) - system.astype(np.float64))
    return _share(differences - differences.mean(), difference)


def swapped_differences(
    metric: Metric, baseline: Statistics, system: Statistics, swapped: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Returns the absolute differences (B,) between the scores of two systems in B trials of approximate randomization.

    `baseline` and `system` (N, K) are the statistics of each line of their outputs. Trial b swaps line n between the
    two outputs if `swapped[b, n]` is `True`.
    """
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
    """Returns the p-value of paired approximate randomization (Riezler & Maxwell, 2005).

    `differences` (B,) are the absolute differences of the two systems' scores in B trials; `difference` is the absolute
    difference between their scores when no lines are swapped. The p-value is the fraction of trials whose difference is
    at least `difference`, with add-one smoothing: (c + 1) / (B + 1) for c such trials.
    """
    return _share(differences, difference)


def smallest_p_value(baseline: Statistics, system: Statistics) -> float:
    """Returns a lower bound for the p-value: min(1, 2^(1-M)) if the systems differ in the statistics of M lines.

    Under the null hypothesis, each of these M lines could equally well have been swapped between the systems. This
    gives 2^M equally likely outcomes. At least two of them have a difference as large as the observed one: the observed
    outcome, and the outcome with all lines swapped. So the p-value cannot be below 2 / 2^M.

    Bootstrap resampling needs this bound, because its resamples vary too little if few lines differ: even a difference
    in a single line would be significant. If M is 15 or more, the bound has no effect.
    """
    num_different = int((baseline != system).any(1).sum())
    return min(1.0, 2.0 ** (1 - num_different))


def _share(statistics: NDArray[np.float64], difference: float) -> float:
    """Returns the fraction of the statistics that are at least `difference`, with add-one smoothing.

    If c of n statistics are at least `difference`, returns (c + 1) / (n + 1).
    """
    at_least = int((statistics >= difference - TOLERANCE).sum())
    return (at_least + 1) / (len(statistics) + 1)


# Utility for minimum Bayes risk decoding.


class Utility:
    """Scores texts against one another at sentence level, with the same results as sacreBLEU's `sentence_score`."""

    def __init__(self, metric: str, target_language: str) -> None:
        self._metric = UTILITIES[metric](target_language)

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns a matrix whose entry [h][r] is the score (from 0 to 100) of text h with text r as the reference."""
        # The steps of sentence_score, but the slowest step, counting n-grams, is done only once per reference.
        prepared = [self._metric._preprocess_segment(text.rstrip()) for text in texts]
        references = [self._metric._extract_reference_info([text]) for text in prepared]
        return [[self._score(text, reference) for reference in references] for text in prepared]

    def _score(self, text: str, reference: dict[str, Any]) -> float:
        statistics = self._metric._compute_segment_statistics(text, reference)
        return float(self._metric._compute_score_from_stats(statistics).score)


# For each value of decoding.mbr_utility, a function that makes the metric for a target language.
UTILITIES: dict[str, Callable[[str], Metric]] = {
    "chrf": lambda _: CHRF(),
    "bleu": lambda target_language: bleu(
        target_language, effective_order=True, instead="set decoding.mbr_utility: chrf"
    ),
}


# Text for which BLEU is meaningless, since the text is tokenised or has no spaces between words.


def looks_processed(lines: Sequence[str]) -> str | None:
    """Returns the text of a warning if many lines look tokenised, escaped or split into subwords, else `None`."""
    found = next(iter(findings(enumerate(lines, start=1))), None)
    if found is None:
        return None
    return (
        f"{found.count:,} of {counted(found.num_lines, 'line')} look {found.sign.kind}, "
        f'such as "{found.excerpt}"; scores are of plain text, so turn it into that first: {found.sign.cure} < FILE'
    )


# Character ranges of scripts that are written without spaces between words.
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_SCRIPTS = {
    "Chinese": _HAN,
    "Japanese": _KANA,
    "Thai": "\u0e00-\u0e7f",
    "Lao": "\u0e80-\u0eff",
    "Khmer": "\u1780-\u17ff",
    "Burmese": "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",
    "Tibetan": "\u0f00-\u0fff",
    "Tai": "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf",
    "Javanese": "\ua980-\ua9df",
    "Balinese": "\u1b00-\u1b7f",
}
_LANGUAGE_OF = {"Chinese": "zh", "Japanese": "ja"}

# For some tokenizers, the characters that the tokenizer separates or segments into words. The tokenizers in _ANY_SCRIPT
# handle any script.
_SEPARATED = {"zh": _HAN, "ja-mecab": _HAN + _KANA}
_ANY_SCRIPT = {"char", *SPM_MODELS}

# Text counts as written without spaces if at least this fraction of its letters belongs to scripts without spaces.
_LARGE_SHARE = 0.25
# Text counts as segmented into words if at least this fraction of neighbouring characters is separated by spaces.
_SPACED_SHARE = 0.1
# Japanese mixes kana with Chinese characters. Text counts as Japanese if kana are at least this fraction of its kana
# and Chinese characters taken together.
_KANA_SHARE = 0.1
_MOST_LINES = 2_000  # the maximum number of lines inspected


@dataclass(frozen=True)
class Unspaced:
    """A script without spaces between words, found in a text that BLEU's tokenizer cannot segment."""

    script: str
    language: str | None  # the code of the language written in it; None if sacreBLEU has no tokenizer for it

    def advice(self, otherwise: str) -> str:
        """Returns advice for the user, which ends with `otherwise`, such as "choose another with --tokenize".

        The advice is to name the language. If sacreBLEU has no tokenizer for the language, the advice is `otherwise`
        alone.
        """
        if self.language is None:
            return f"sacreBLEU has no tokenizer of its own for it: {otherwise}"
        return (
            f"name the language, such as {self.language} (--target-language or --languages of mtkit evaluate, "
            f"languages.target in the settings), or {otherwise}"
        )


def unspaced(lines: Sequence[str], tokenizer: str) -> Unspaced | None:
    """Returns the script of the lines if it has no spaces between words and BLEU's `tokenizer` cannot segment it.

    Otherwise returns `None`. Only the first `_MOST_LINES` lines are inspected.
    """
    if tokenizer in _ANY_SCRIPT:
        return None
    separated = _SEPARATED.get(tokenizer, "")
    scripts = {script: chars for script, chars in _SCRIPTS.items() if chars not in separated}
    text = "\n".join(lines[:_MOST_LINES])
    missed = "".join(scripts.values())
    counts = {script: len(re.findall(f"[{chars}]", text)) for script, chars in scripts.items()}
    total = sum(counts.values())
    if not total or total < _LARGE_SHARE * len(re.findall(rf"[{missed}]|[^\W\d_]", text)):
        return None
    num_joined = len(re.findall(f"[{missed}](?=[{missed}])", text))
    num_spaced = len(re.findall(rf"[{missed}][^\S\n]+(?=[{missed}])", text))
    if num_spaced >= _SPACED_SHARE * (num_spaced + num_joined):
        return None
    is_japanese = counts.get("Japanese", 0) >= _KANA_SHARE * total
    script = "Japanese" if is_japanese else max(counts, key=lambda name: counts[name])
    return Unspaced(script, _LANGUAGE_OF.get(script))
