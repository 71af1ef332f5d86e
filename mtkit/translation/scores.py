"""BLEU, chrF and TER with signatures, and significance tests; the home of sacreBLEU."""

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

from mtkit.errors import DataError, MtkitError, say
from mtkit.text.oddities import findings

DEFAULT_TOKENIZER = "13a"

# The languages that have a tokenizer of their own, by the code of two or three letters. Chinese languages share the
# characters that the tokenizer zh separates.
_TOKENIZERS = {
    **dict.fromkeys(("zh", "zho", "chi", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
}

_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}  # of mtkit, which install what the tokenizer needs

# The same model and signature, but a warning before it.
_SAME = {"spm": "flores101"}


def tokenizer_of(language: str) -> str:
    """SacreBLEU's tokenizer for a language, whose code may have a script and a region: zh, zh-CN, zho_Hans."""
    return _TOKENIZERS.get(re.split("[-_]", language.lower())[0], DEFAULT_TOKENIZER)


def require_tokenizer_name(name: str) -> None:
    """An MtkitError if sacreBLEU has no tokenizer of that name."""
    if name not in BLEU.TOKENIZERS:
        near = get_close_matches(name, BLEU.TOKENIZERS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise MtkitError(f"--tokenize: found {name}{meant}, wants one of {', '.join(BLEU.TOKENIZERS)}")


def bleu(
    language: str,
    tokenizer: str | None = None,
    lowercase: bool = False,
    effective_order: bool = False,
    instead: str = "",
) -> BLEU:
    """BLEU with the named tokenizer, or else the one for the language.

    An MtkitError if the tokenizer needs something that is not installed and cannot be downloaded; instead is what else
    the user may do then.
    """
    name = tokenizer or tokenizer_of(language)
    name = _SAME.get(name, name)
    or_else = f", or {instead}" if instead else ""
    with _model_of(name, or_else):
        try:
            # looks_processed warns instead of force.
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
    """Downloads the SentencePiece model of a tokenizer that has one, and tells in one line what goes wrong with it."""
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
    """Keeps sacreBLEU's log off stderr."""
    logger = logging.getLogger("sacrebleu")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled


# Characters of scripts that put no spaces between words.
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

# The characters that a tokenizer separates or cuts into words; some do so with any script.
_SEPARATED = {"zh": _HAN, "ja-mecab": _HAN + _KANA}
_ANY_SCRIPT = {"char", *SPM_MODELS}

_LARGE_SHARE = 0.25  # of the letters
# Segmented text has a space after every few characters; where spaces part phrases, there are fewer.
_SPACED_SHARE = 0.1
_KANA_SHARE = 0.1  # Japanese mixes kana with Chinese characters
_MOST_LINES = 2_000


@dataclass(frozen=True)
class Unspaced:
    """Text without spaces between words, whose phrases a tokenizer takes for words."""

    script: str
    language: str | None  # code of the language that has a tokenizer of its own

    def advice(self, otherwise: str) -> str:
        """What to do: name the language if that helps, or else what the caller offers."""
        if self.language is None:
            return f"sacreBLEU has no tokenizer of its own for it: {otherwise}"
        return (
            f"name the language, such as {self.language} (--target-language or --languages of mtkit evaluate, "
            f"languages.target in the settings), or {otherwise}"
        )


def unspaced(lines: Sequence[str], tokenizer: str) -> Unspaced | None:
    """What text it is if it has no spaces between words and the tokenizer needs them."""
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


# Paired tests: how likely a difference as large as that of two systems is if neither is better than the other.

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


# BLEU, chrF and TER, exactly as the sacrebleu command gives them: the home of sacreBLEU (Post, 2018).


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
    & Maxwell, 2005) is the test that rejects less often what is true. Comparison tells what is counted.
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
