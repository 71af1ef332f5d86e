"""Translation of test sets, and scores of the translations of one system or of two systems that are compared."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from mtkit import __version__
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.errors import DataError, Meter, MtkitError, counted, say, working
from mtkit.exchange.engines import load
from mtkit.preparation.sources import SetFiles, fetch, test_sets
from mtkit.text.lines import named, read_lines, read_pairs
from mtkit.text.parallel import tagged
from mtkit.translation.alignments import AlignmentSettings, alignment_scores, diagonal, read_gold
from mtkit.translation.scores import (
    INSTEAD,
    NUM_RESAMPLES,
    Score,
    SignificanceTest,
    bleu,
    corpus_scores,
    count_words,
    looks_processed,
    paired_scores,
    resampling_seed,
    tokenizer_of,
    unspaced,
)
from mtkit.translation.translator import Translator
from mtkit.translation.workers import Opening, with_workers

# The significance level of the sacrebleu command. Like that command, `table` marks p-values up to this level with `*`.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ScoredSet:
    """A score on a test set or on one of its length buckets.

    A length bucket consists of the lines of the test set whose source length is in a given range.
    """

    test_set: str
    metric: str
    score: float
    signature: str
    system: str | None = None  # the name of the system, if two systems are compared
    min_words: int | None = None  # the lower limit of the bucket; None if the test set is not split
    max_words: int | None = None  # the upper limit; None also for the last bucket, which has no upper limit
    lines: int | None = None  # the number of lines in the bucket
    mean: float | None = None  # over bootstrap resamples of the test set
    interval: float | None = None  # half-width of the 95 % confidence interval
    p_value: float | None = None  # of the difference between this score and that of the other system
    precision: str | None = None  # in which a model translated; None: fp32, or there were only texts

    def as_json(self) -> dict[str, Any]:
        """Returns the fields that are not `None` as a dict, for `mtkit evaluate --json`."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def words(self) -> str:
        """The range of source lengths in the bucket, such as "1-10 words"; "" for a score on a whole test set."""
        return "" if self.min_words is None else _words(self.min_words, self.max_words)


@dataclass(frozen=True)
class Scoring:
    """How translations are scored."""

    languages: LanguagesConfig  # the target language selects BLEU's tokenizer; the source language, how words are split
    lowercase: bool = False
    confidence: bool = False  # whether to add bootstrap means and intervals if only one system is scored
    test: SignificanceTest = "bootstrap"  # the significance test, if two systems are compared
    by_length: bool = False  # whether to split the test set into buckets by the number of words in the source
    edges: tuple[int, ...] = ()  # maximum number of words in each bucket but the last; empty: three similar buckets
    metrics: tuple[str, ...] = ()  # keys of METRICS; empty: bleu, chrf and, unless by_length is true, ter
    tokenizer: str | None = None  # BLEU's tokenizer, by its name in sacreBLEU; None: that for the target language

    @property
    def chosen_metrics(self) -> tuple[str, ...]:
        """The metrics to compute, as keys of `METRICS`."""
        return self.metrics or (("bleu", "chrf") if self.by_length else ("bleu", "chrf", "ter"))


@dataclass(frozen=True)
class System:
    """A system's name, and its translations of a test set."""

    name: str
    lines: Sequence[str]


@dataclass(frozen=True)
class TestData:
    """The test data: either a source file and references, or test sets of sacreBLEU.

    If neither is given, the test sets in the settings of the model are used.
    """

    source: Path | None = None
    references: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()  # names of test sets of sacreBLEU
    tag: str | None = None  # put before each source line


# Scoring models and texts, as `mtkit evaluate` does.


def score_models(
    model: Path,
    against: Path | None,
    overrides: Sequence[str],
    data: TestData,
    scoring: Scoring,
    engine: str = "torch",
    precision: str = "fp32",
    num_workers: int | None = 1,
) -> list[ScoredSet]:
    """Translate the test data with a model, or with two models that are compared, and score the translations.

    The second model is `against`; if that is `None`, only the first model is scored. The languages are those of the
    first model. `overrides` are settings such as decoding.beam_size=1. The overrides, `engine` (such as "torch") and
    `precision` (such as "bf16") apply to both models. `num_workers` is the number of processes that translate; `None`
    chooses it for this machine. Raises MtkitError if a model, the test data or a setting is wrong or missing. Where
    possible, the error is raised before anything is translated.
    """
    _require_seed(scoring, against)
    with ExitStack() as opened:
        systems = []
        for path in (model, against):
            if path is not None:
                opening = Opening(path, tuple(overrides), precision)
                translator = load(path, overrides, precision, engine=engine)
                systems.append((str(path), opened.enter_context(with_workers(translator, opening, num_workers))))
        scores = _score_systems(systems, data, scoring)
    if precision == "fp32":
        return scores
    used = {name: translator.precision for name, translator in systems}
    return [replace(score, precision=used[score.system or str(model)]) for score in scores]


def _score_systems(systems: Sequence[tuple[str, Translator]], data: TestData, scoring: Scoring) -> list[ScoredSet]:
    config = systems[0][1].config
    scoring = replace(scoring, languages=config.languages)
    _require_tokenizers(scoring)
    if data.source is not None:
        name = named(data.source, data.source.name)
        sets = {name: SetFiles(data.source, data.references, data.tag)}
    elif data.names:
        sets = {name: fetch(name, config.languages, data.tag) for name in data.names}
    else:
        sets = test_sets(config)
    return evaluate_models(systems, sets, scoring)


def score_texts(hypothesis: Path, against: Path | None, data: TestData, scoring: Scoring) -> list[ScoredSet]:
    """Score the translations in the file `hypothesis`; compare them with those in the file `against`.

    If `against` is `None`, only `hypothesis` is scored. The references are those that `data` names. Raises MtkitError
    if a file or a scoring option is wrong or missing.
    """
    _require_seed(scoring, against)
    _require_tokenizers(scoring)
    name = named(hypothesis, hypothesis.name)
    systems = [System(named(path), list(read_lines(path))) for path in (hypothesis, against) if path is not None]
    source, references = data.source, data.references
    if data.names:
        [name] = data.names
        files = fetch(name, scoring.languages)
        source, references = files.source, files.target
    elif against is not None:
        name = named(references[0], references[0].name)
    return evaluate_texts(name, systems, references, scoring, source)


def _require_seed(scoring: Scoring, against: Path | None) -> None:
    """Raises MtkitError if the scoring needs a seed and the environment variable SACREBLEU_SEED is invalid.

    A seed is needed for confidence intervals, and to compare with `against`. Called before anything is translated.
    """
    if scoring.confidence or against is not None:
        resampling_seed()


def _require_tokenizers(scoring: Scoring) -> None:
    """Raises MtkitError if a tokenizer of BLEU that the scoring needs is not available."""
    if "bleu" in scoring.chosen_metrics:
        bleu(scoring.languages.target, scoring.tokenizer, instead=INSTEAD)
    if scoring.by_length:
        bleu(scoring.languages.source)


# Scoring alignments.


def score_alignments(
    model: Path,
    overrides: Sequence[str],
    data: TestData,
    gold_path: Path,
    settings: AlignmentSettings,
    precision: str = "fp32",
) -> list[ScoredSet]:
    """Align the source with its one reference, and score the alignments of words against gold alignments.

    Returns the alignment error rate, precision and recall of the model and of a diagonal baseline (see
    `alignment_scores`). Raises MtkitError if a file, a setting or the model is wrong or missing.
    """
    assert data.source is not None
    pairs = list(read_pairs(data.source, data.references[0]))
    gold = read_gold(gold_path, pairs)
    translator = load(model, overrides, precision)
    translator.align_with(settings)
    with Meter("aligning", "lines", len(pairs), announced=True) as meter:
        found = list(meter.counting(translator.align_lines(pairs, data.tag)))
    heads = "|".join(f"{name}:{getattr(settings, name) or 'auto'}" for name in ("layer", "head", "step"))
    share = "" if settings.threshold is None else f"|threshold:{settings.threshold:g}"
    signature = f"{heads}{share}|pairs:{len(pairs)}|version:{__version__}"
    baseline = [diagonal(len(source.split()), len(target.split())) for source, target in pairs]
    rows = []
    for system, links, how in ((str(model), found, signature), ("diagonal", baseline, "")):
        scores = alignment_scores(links, gold)
        for metric, score in (("AER", scores.error_rate), ("precision", scores.precision), ("recall", scores.recall)):
            rows.append(ScoredSet(named(data.source, data.source.name), metric, score, how, system))
    return rows


# Translating test sets.


def evaluate(translator: Translator, name: str, test_set: SetFiles, save_to: Path | None = None) -> list[ScoredSet]:
    """Translate the test set called `name` and return the scores of the translations.

    The translations are written to the file `save_to`, if that is given. Raises MtkitError if the model does not know
    the tag of the test set; DataError if a file of the test set is unreadable, or if the files differ in their number
    of lines.
    """
    _require_tag(translator, name, test_set.tag)
    sources, references = read_test_set(test_set)
    system = System(name, translate_set(translator, name, sources, test_set.tag))
    if save_to is not None:
        save_to.parent.mkdir(parents=True, exist_ok=True)
        save_to.write_text("".join(f"{line}\n" for line in system.lines), encoding="utf-8", newline="\n")
    return score_set(name, system, references, Scoring(translator.config.languages))


def evaluate_models(
    systems: Sequence[tuple[str, Translator]], sets: Mapping[str, SetFiles], scoring: Scoring
) -> list[ScoredSet]:
    """Translate and score test sets with one model, or with two models that are compared.

    `systems` holds the name and the translator of each model; `sets` holds test sets by name. Before anything is
    translated, raises MtkitError if a model does not know the tag of a test set, and DataError if a file is unreadable
    or the files of a test set differ in their number of lines.
    """
    for name, test_set in sets.items():
        for system, translator in systems:
            _require_tag(translator, f"{system}, {name}", _tag(translator, name, test_set))
    texts = {name: read_test_set(test_set) for name, test_set in sets.items()}
    scores = []
    for name, test_set in sets.items():
        sources, references = texts[name]
        translated = [
            System(system, translate_set(translator, name, sources, _tag(translator, name, test_set)))
            for system, translator in systems
        ]
        scores += score_set(name, translated[0], references, scoring, sources, *translated[1:])
    return scores


def _tag(translator: Translator, name: str, test_set: SetFiles) -> str | None:
    """Returns the tag to put before the sources of a test set; `None` for no tag.

    If the model's own settings have a test set called `name`, its tag is used, else the tag of `test_set`.
    """
    own = translator.config.data.test.get(name)
    return own.tag if own else test_set.tag


def _require_tag(translator: Translator, where: str, tag: str | None) -> None:
    """Raises MtkitError, with a message that begins with `where`, if the model does not know `tag`."""
    if tag is not None:
        try:
            translator.require_tag(tag)
        except MtkitError as error:
            raise MtkitError(f"{where}: {error}") from None


def translate_set(translator: Translator, name: str, sources: Sequence[str], tag: str | None = None) -> list[str]:
    """Return the translations of `sources`; warn of problems with tags and with translations.

    If `tag` is given, it is put before each source that is not blank. `name` is the name of the test set, for messages.
    """
    tagged_sources = [tagged(line, tag) for line in sources]
    _warn_of_tags(translator, name, tagged_sources)
    with Meter("translating", f"lines of {name}", len(tagged_sources), announced=True) as meter:
        lines = list(translator.translate_lines(tagged_sources, done=meter.add))
    if num_split := sum(line.num_parts > 1 for line in lines):
        _warn(f"{name}: lines too long for the model, and so translated in parts: {num_split:,}")
    for note, count in Counter(note for line in lines for note in line.notes).items():
        _warn(f"{name}: {count:,} of {counted(len(lines), 'line')}, each of which {note}")
    return [line.text for line in lines]


def _warn_of_tags(translator: Translator, name: str, lines: Sequence[str]) -> None:
    """Warns of lines whose tag is missing or unknown; for each kind of problem, names the first line."""
    faults: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        if fault := translator.tag_fault(line):
            faults.setdefault(fault, []).append(number)
    for fault, numbers in faults.items():
        more = f"; the same for {counted(len(numbers) - 1, 'more line')}" if len(numbers) > 1 else ""
        _warn(f"{name}: line {numbers[0]:,} {fault}{more}")


def read_test_set(test_set: SetFiles) -> tuple[list[str], list[list[str]]]:
    """Return the lines of the source and the lines of each reference.

    Raises DataError if a file is unreadable, or if the files have different numbers of lines.
    """
    sources = list(read_lines(test_set.source))
    references = _read_references(test_set.target)
    _check_counts(named(test_set.source), len(sources), test_set.target, references)
    return sources, references


def _read_references(paths: Sequence[Path]) -> list[list[str]]:
    return [list(read_lines(path)) for path in paths]


def _check_counts(name: str, num_lines: int, paths: Sequence[Path], references: Sequence[Sequence[str]]) -> None:
    for path, reference in zip(paths, references, strict=True):
        if len(reference) != num_lines:
            raise DataError(
                f"{name} has {counted(num_lines, 'line')} but {named(path)} has {len(reference):,}; "
                "line n must translate line n"
            )


# Scoring translations.


def evaluate_texts(
    name: str,
    systems: Sequence[System],
    reference_paths: Sequence[Path],
    scoring: Scoring,
    source_path: Path | None = None,
) -> list[ScoredSet]:
    """Score existing translations of the test set called `name`.

    `systems` holds the translations of one system, or of two systems, which are then compared. `source_path` is needed
    if `scoring.by_length` is true. Raises DataError if a file is unreadable, or if the files have different numbers of
    lines.
    """
    references = _read_references(reference_paths)
    for system in systems:
        _check_counts(system.name, len(system.lines), reference_paths, references)
    sources = None
    if source_path is not None:
        sources = list(read_lines(source_path))
        _check_counts(named(source_path), len(sources), reference_paths, references)
    return score_set(name, systems[0], references, scoring, sources, *systems[1:])


def score_set(
    name: str,
    system: System,
    references: Sequence[Sequence[str]],
    scoring: Scoring,
    sources: Sequence[str] | None = None,
    against: System | None = None,
) -> list[ScoredSet]:
    """Score one system on the test set called `name`, or compare it with the second system `against`, if given.

    Returns a score for each metric and system. If `scoring.by_length` is true, there is one for each length bucket that
    is not empty, instead of one for the whole set; this needs `sources`. Warns of text that looks tokenised, and of
    text without spaces between words if BLEU's tokenizer cannot segment it.
    """
    systems = [system] if against is None else [system, against]
    texts = [("translation" if against is None else one.name, one.lines) for one in systems]
    for what, lines in (*texts, *(("reference", reference) for reference in references)):
        if warning := looks_processed(lines):
            _warn(f"{name}, {what}: {warning}")
    _warn_of_unspaced(name, references, scoring, sources)
    if not scoring.by_length:
        return list(_scored(name, system, references, scoring, against))
    assert sources is not None
    counts = count_words(sources, scoring.languages.source)
    scores: list[ScoredSet] = []
    for bucket in buckets(counts, scoring.edges):
        details = {"min_words": bucket.least, "max_words": bucket.most, "lines": len(bucket.places)}
        if not bucket.places:
            _warn(f"{name}: no source has {_words(bucket.least, bucket.most)}")
            continue
        parts = [_at(bucket.places, reference) for reference in references]
        chosen = [System(one.name, _at(bucket.places, one.lines)) for one in systems]
        other = chosen[1] if against is not None else None
        scores += _scored(name, chosen[0], parts, scoring, other, details)
    return scores


def _warn_of_unspaced(
    name: str, references: Sequence[Sequence[str]], scoring: Scoring, sources: Sequence[str] | None
) -> None:
    tokenizer = scoring.tokenizer or tokenizer_of(scoring.languages.target)
    for reference in references if "bleu" in scoring.chosen_metrics else ():
        if found := unspaced(reference, tokenizer):
            advice = found.advice("give --tokenize flores200 or char, or other metrics such as --metrics chrf")
            _warn(
                f"{name}, reference: {found.script} text has no spaces between words, and BLEU's tokenizer {tokenizer} "
                f"takes whole phrases for words, so BLEU tells little; {advice}"
            )
            break
    if scoring.by_length and sources is not None:
        tokenizer = tokenizer_of(scoring.languages.source)
        if found := unspaced(sources, tokenizer):
            code = f"{found.language}-{scoring.languages.target}" if found.language else None
            _warn(
                f"{name}, source: {found.script} text has no spaces between words, so its phrases are counted as words"
                + (f"; name the language of the source, such as --languages {code}" if code else "")
            )


def _at(places: Sequence[int], lines: Sequence[str]) -> list[str]:
    return [lines[place] for place in places]


def _scored(
    name: str,
    system: System,
    references: Sequence[Sequence[str]],
    scoring: Scoring,
    against: System | None = None,
    details: Mapping[str, Any] | None = None,
) -> Iterator[ScoredSet]:
    how: dict[str, Any] = {
        "target_language": scoring.languages.target,
        "metrics": scoring.chosen_metrics,
        "lowercase": scoring.lowercase,
        "tokenizer": scoring.tokenizer,
    }
    if against is None:
        with working(f"resampling {name}") if scoring.confidence else nullcontext():
            scores = corpus_scores(system.lines, references, confidence=scoring.confidence, **how)
        yield from (_row(name, None, score, details) for score in scores)
        return
    with working(f"comparing {system.name} with {against.name} on {name}"):
        pairs = paired_scores(system.lines, against.lines, references, test=scoring.test, **how)
    for baseline, score in pairs:
        yield _row(name, system.name, score, details)
        yield _row(name, against.name, baseline, details)


def _row(test_set: str, system: str | None, score: Score, details: Mapping[str, Any] | None) -> ScoredSet:
    return ScoredSet(test_set=test_set, system=system, **asdict(score), **(details or {}))


# Length buckets.


@dataclass(frozen=True)
class Bucket:
    """A length bucket: the lines whose sources have at least `least` and at most `most` words."""

    least: int
    most: int | None  # None if there is no upper limit
    places: list[int]  # indices of its lines in the test set


def buckets(counts: Sequence[int], edges: Sequence[int] = ()) -> list[Bucket]:
    """Divide lines into length buckets; `counts` holds the number of words in each line.

    `edges` holds, for each bucket except the last, the maximum number of words in a line. If `edges` is empty, there
    are usually three buckets with similar numbers of lines. Lines of equal length always share a bucket, so if most
    lines are equally long, there may be only one or two buckets.
    """
    if not edges:
        ordered = sorted(counts)
        thirds = {ordered[(len(ordered) * third - 1) // 3] for third in (1, 2)} if ordered else set()
        edges = sorted(thirds - {max(counts, default=0)})
    limits = [-1, *edges, max([*counts, *edges], default=0) + 1]
    return [
        Bucket(
            least=above + 1,
            most=most if number < len(edges) else None,
            places=[place for place, count in enumerate(counts) if above < count <= most],
        )
        for number, (above, most) in enumerate(pairwise(limits))
    ]


# Showing scores.


def table(scores: Sequence[ScoredSet]) -> str:
    """Returns the scores as text in aligned columns, one score per line."""
    rows = [
        (
            score.test_set,
            score.words,
            counted(score.lines, "line") if score.lines is not None else "",
            score.system or "",
            score.metric,
            f"{score.score:6.2f}",
            f"(μ = {score.mean:.2f} ± {score.interval:.2f})" if score.mean is not None else "",
            _p_value(score),
            score.signature,
        )
        for score in scores
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def legend(scores: Sequence[ScoredSet]) -> str:
    """Returns a line that explains the symbols in `table(scores)`; "" if the table has no symbols."""
    marks = []
    if any(score.mean is not None for score in scores):
        marks.append(f"μ ± : mean of {NUM_RESAMPLES:,} bootstrap resamples, and the interval with 95 % of them")
    if any(score.p_value is not None for score in scores):
        marks.append(
            "p: probability of a difference at least this large if neither system is better; "
            f"*: p is at most {SIGNIFICANT}, the difference is significant"
        )
    return "; ".join(marks)


def _words(least: int, most: int | None) -> str:
    return f"{least}+ words" if most is None else f"{least}-{most} words"


def _p_value(score: ScoredSet) -> str:
    if score.p_value is None:
        return ""
    return f"(p = {score.p_value:.4f}){'' if score.p_value > SIGNIFICANT else '*'}"


def _warn(text: str) -> None:
    say(f"mtkit: warning: {text}")
