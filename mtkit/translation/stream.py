"""Streams of lines: `mtkit translate`, `generate` and `score` read lines, and write results for each line, in order.

And canaries: sentences that are stored with a model, each together with the translation that this model gave. They
serve to check that the model gives the same translations on another machine.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, TypeVar

from mtkit.bundle.bundle import CANARIES, WEIGHTS, Bundle, Canary, all_sums, bundle_of, describe, not_finite
from mtkit.bundle.info import faults_of_files
from mtkit.bundle.opening import CheckpointStorage, find_model, tell
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import DataError, Meter, MtkitError, StoppedError, Warnings, is_shown
from mtkit.files import counted_when_ended, json_text, undone_when_ended
from mtkit.text.lines import (
    STANDARD_INPUT,
    InputStreams,
    count_lines,
    decode_lines,
    may_pause,
    named,
    open_to_read,
    open_to_write,
    path_may_pause,
    read_lines,
    read_pairs,
)
from mtkit.translation.alignments import Links, pharaoh
from mtkit.translation.decode import ScoredTranslation, log_probs_of
from mtkit.translation.translator import BREAKS, TranslatedLine, Translator, load_bundle

T = TypeVar("T")

# Translating.


def translate(
    translator: Translator,
    source: BinaryIO,
    out: BinaryIO,
    num_best: int = 1,
    with_scores: bool = False,
    line_buffered: bool = False,
    tag: str | None = None,
    prefixes: Path | Iterable[str] | None = None,
    num_lines: int | None = None,
    alignments: BinaryIO | None = None,
    part: range | None = None,
) -> None:
    """Translate each line of `source`, and write the translations to `out` as UTF-8.

    An output line is the translation or, if `with_scores` is true, `score TAB text`. If `num_best` is greater than 1,
    each input line gives up to `num_best` output lines `number TAB score TAB text`, where `number` is the number of the
    input line, from 1.

    `tag` is put before each input line. `prefixes` holds, for each input line, a text that the translation of the line
    must begin with; if `prefixes` is a path, the texts are read from that file.

    Bytes that are not UTF-8 are replaced, with a warning. Lines too long for the model are translated in parts, with a
    warning. Warnings are also printed for lines without a translation or with another problem. Unless `tag` is given,
    they are printed for lines whose tag is unknown or missing, too.

    Lines are translated in large groups or, if `line_buffered` is true, one at a time. If `source` is a pipe and no
    line arrives for a moment, the lines read so far are translated and flushed. The grouping does not affect the
    translations.

    `alignments`, if given, gets the word alignment of each output line, as a line in Pharaoh form.
    `translator.align_with` must then have been called.

    With `part`, only the lines of `source` with these indices, from 0, are translated. Even then, `prefixes` holds a
    text for each line of `source`, and line numbers in the output and in warnings are those in `source`.

    `num_lines`, if known, is the number of lines to translate, for the progress display. If a signal ends the program,
    raises StoppedError, which says how many lines were written. Raises the errors of `Translator.translate_lines`, too.
    """
    warnings = Warnings()
    first = 1 if part is None else part.start + 1

    def flush() -> None:
        for stream in (alignments, out):
            if stream is not None:
                stream.flush()

    with InputStreams(flush, line_buffered) as streams:
        decoded = streams.read(_part_of(decode_lines(source), part), may_pause(source), lambda line: len(line[0]))
        lines = _readable(decoded, str(getattr(source, "name", "source")), warnings, first)
        if tag is None:
            lines = _tags_checked(lines, str, translator, warnings, first)
        if isinstance(prefixes, Path):
            prefixes = streams.read(_part_of(read_lines(prefixes), part), path_may_pause(prefixes), len)
        elif prefixes is not None:
            prefixes = _part_of(iter(prefixes), part)
        with (
            counted_when_ended("translated") as written,
            Meter("translating", "lines", num_lines, hidden=line_buffered) as meter,
        ):
            translated = translator.translate_lines(lines, num_best, streams.answer_now, tag, prefixes, meter.add)
            for number, line in enumerate(translated, start=first):
                if line.num_parts > 1:
                    warnings.add("was too long for the model; translated in parts", number)
                _write_line(line, number, out, warnings, num_best, with_scores, line_buffered)
                if alignments is not None:
                    for best in line.translations if num_best > 1 else line.translations[:1]:
                        _write_links(best.alignment, alignments, line_buffered)
                written.number = number - first + 1
    out.flush()
    warnings.close()


def _write_line(
    line: TranslatedLine,
    number: int,
    out: BinaryIO,
    warnings: Warnings,
    num_best: int,
    with_scores: bool,
    line_buffered: bool,
) -> None:
    """Writes the output lines of input line `number`, and adds its notes to `warnings`."""
    for note in line.notes:
        warnings.add(note, number)
    out.write(_translation_text(line, number, num_best, with_scores).encode("utf-8"))
    if line_buffered:
        out.flush()


def _write_links(links: Links | None, out: BinaryIO, line_buffered: bool) -> None:
    out.write(f"{pharaoh(links or ())}\n".encode("ascii"))
    if line_buffered:
        out.flush()


def generate(
    translator: Translator,
    source: BinaryIO,
    out: BinaryIO,
    num_best: int = 1,
    with_scores: bool = False,
    line_buffered: bool = False,
    num_lines: int | None = None,
) -> None:
    """Continue each line of `source` with a language model, and write the line with its continuation to `out`.

    For a blank line, a whole text is generated. An output line is the text or, if `with_scores` is true, `score TAB
    text`; if `num_best` is greater than 1, `number TAB score TAB text`, where `number` is the number of the input line,
    from 1. `line_buffered` and `num_lines` are as in `translate`. Raises the errors of `Translator.generate_lines`,
    too.
    """
    warnings = Warnings()
    with InputStreams(out.flush, line_buffered) as streams:
        decoded = streams.read(decode_lines(source), may_pause(source), lambda line: len(line[0]))
        lines = _readable(decoded, str(getattr(source, "name", "source")), warnings)
        with (
            counted_when_ended("generated") as written,
            Meter("generating", "lines", num_lines, hidden=line_buffered) as meter,
        ):
            generated = translator.generate_lines(lines, num_best, streams.answer_now, meter.add)
            for number, line in enumerate(generated, start=1):
                _write_line(line, number, out, warnings, num_best, with_scores, line_buffered)
                written.number = number
    out.flush()
    warnings.close()


def list_next(translator: Translator, source: BinaryIO, out: BinaryIO, count: int) -> None:
    """Write the `count` pieces that most probably follow each line of `source`, most probable first, to `out`.

    There is an output line `number TAB probability TAB piece` for each piece, where `number` is the number of the input
    line, from 1. Raises the errors of `Translator.next_tokens`.
    """
    warnings = Warnings()
    lines = _readable(decode_lines(source), str(getattr(source, "name", "source")), warnings)
    for number, line in enumerate(lines, start=1):
        for piece, probability in translator.next_tokens([line], count)[0]:
            out.write(f"{number}\t{probability:.6f}\t{piece}\n".encode())
        out.flush()  # someone who types lines sees the pieces of each at once
    warnings.close()


def lines_to_come(file: Path | None) -> int | None:
    """Returns the number of lines in a file, for the progress display.

    Returns `None` if `file` is `None`, if the progress display is off, or if the file can be read only once, as is the
    case with standard input and pipes.
    """
    if file is None or file == STANDARD_INPUT or path_may_pause(file) or not is_shown():
        return None
    return count_lines(file)


def parted(number: int, count: int, num_lines: int) -> range:
    """Divides `num_lines` lines into `count` consecutive parts; returns the line indices of part `number`.

    Lines are counted from 0, parts from 1. The sizes of the parts differ by one line at most.
    """
    return range((number - 1) * num_lines // count, number * num_lines // count)


def _part_of(items: Iterator[T], part: range | None) -> Iterator[T]:
    """Yields the items whose indices are in `part`, or all items if `part` is `None`."""
    return items if part is None else islice(items, part.start, part.stop)


def _readable(lines: Iterable[tuple[str, bool]], name: str, warnings: Warnings, first: int = 1) -> Iterator[str]:
    """Yields the text of each line, and warns of replaced bytes and of carriage returns within a line.

    `lines` holds, for each line, its text, and `True` if bytes that are not UTF-8 were replaced in it; `first` is the
    number of the first line. Raises DataError if reading fails; the error message begins with `name`.
    """
    try:
        for number, (line, damaged) in enumerate(lines, start=first):
            if damaged:
                warnings.add("is not valid UTF-8; what could not be read was replaced", number)
            if "\r" in line.rstrip("\r"):
                warnings.add(
                    "has carriage returns within it, which end no line; text with the line ends of an old Mac must be "
                    "converted, for example with mac2unix",
                    number,
                )
            yield line
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None


def _tags_checked(
    items: Iterable[T], source_of: Callable[[T], str], translator: Translator, warnings: Warnings, first: int = 1
) -> Iterator[T]:
    """Yields the items unchanged, and warns of each item whose source, `source_of(item)`, has an unknown tag.

    If the model was trained with tags, also warns of sources without a tag. `first` is the number of the first item.
    """
    for number, item in enumerate(items, start=first):
        if fault := translator.tag_fault(source_of(item)):
            warnings.add(fault, number)
        yield item


def _translation_text(line: TranslatedLine, number: int, num_best: int, with_scores: bool) -> str:
    if num_best > 1:
        return "".join(f"{number}\t{best.score:.4f}\t{best.text}\n" for best in line.translations)
    if with_scores:
        return f"{line.translations[0].score:.4f}\t{line.text}\n"
    return f"{line.text}\n"


# Scoring given translations.

LONGEST_SHOWN = 40  # messages quote at most this many characters of a line
MOST_DIGITS = 18  # the maximum number of digits of a line number

LinesOf = Callable[[Path], Iterator[str]]  # yields the lines of a file


@dataclass(frozen=True)
class ParallelFiles:
    """A source file and a target file; line n of the target file is the translation of line n of the source file."""

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to read."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Yields (source line, translation); `lines_of` reads the lines of a file.

        Raises DataError if one file has more lines than the other.
        """
        return read_pairs(self.source, self.target, lines_of)


@dataclass(frozen=True)
class NBestList:
    """A source file, and an n-best list of translations as the target file.

    A line of the target file is `number TAB score TAB text`, or `number TAB text`; `number` is the number of the source
    line, from 1. `mtkit translate --n-best` writes the first of these forms. A source line may have any number of
    translations, and the list may be in any order. Scores are ignored.
    """

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to read."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Yields (source line, translation) in the order of the list; `lines_of` reads the lines of a file.

        All source lines are kept in memory. Raises DataError if a line of the list is malformed, or has the number of a
        source line that does not exist.
        """
        sources = list(lines_of(self.source))
        for number, line in enumerate(lines_of(self.target), start=1):
            yield self._pair(sources, f"{named(self.target)}:{number}", line)

    def _pair(self, sources: Sequence[str], where: str, line: str) -> tuple[str, str]:
        place, *rest = line.split("\t", 2)
        is_number = place.isascii() and place.isdigit() and len(place) <= MOST_DIGITS
        if not is_number or not rest or (len(rest) == 2 and not _is_number(rest[0])):
            raise DataError(
                f"{where}: found '{line[:LONGEST_SHOWN]}', wants the number of a source line, a score and a "
                "translation with tabs between, as translate --n-best writes them"
            )
        if not 1 <= int(place) <= len(sources):
            raise DataError(
                f"{where}: names source line {place}, and {named(self.source)} has lines 1 to {len(sources):,}"
            )
        return sources[int(place) - 1], rest[-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class PairsFile:
    """A file of pairs: each line consists of a source, a tab and the translation.

    Further columns are ignored. A blank line counts as a pair of blank texts.
    """

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to read: only `path`."""
        return (self.path,)

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Yields (source, translation) for each line; `lines_of` reads the lines of a file.

        Raises DataError if a line that is not blank has no tab.
        """
        for number, line in enumerate(lines_of(self.path), start=1):
            source, *rest = line.split("\t")
            if not rest and source.strip():
                raise DataError(f"{named(self.path)}:{number}: found no tab, wants a source, a tab and its translation")
            yield source, rest[0] if rest else ""


@dataclass(frozen=True)
class TargetFile:
    """A file whose lines a language model scores; it takes the place of a pair of files, since there is no source."""

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files to read: only `path`."""
        return (self.path,)

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Yields ("", line) for each line; `lines_of` reads the lines of a file."""
        return (("", line) for line in lines_of(self.path))


@dataclass
class Summary:
    """Totals over all lines of a scored text; the end of each line counts as one token and one character."""

    lines: int = 0
    tokens: int = 0
    characters: int = 0
    log_prob: float = 0.0

    def figures(self) -> dict[str, float]:
        """Returns the totals, the perplexity per token and per character, and the bits per token and per character.

        The keys are names such as "tokens" and "bits_per_token".
        """
        found: dict[str, float] = dict(vars(self))
        for unit, number in (("token", self.tokens), ("character", self.characters)):
            nats = -self.log_prob / max(number, 1)
            found[f"perplexity_per_{unit}"] = math.exp(nats) if nats < MOST_NATS else math.inf
            found[f"bits_per_{unit}"] = nats / math.log(2)
        return found

    def __str__(self) -> str:
        """Returns the totals, perplexities and bits of `figures` as text, with a line `name TAB number` for each."""
        shown = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in self.figures().items()}
        return "".join(f"{name}\t{value}\n" for name, value in shown.items())


MOST_NATS = 700  # the exponential of a larger number does not fit into a float


def score(
    translator: Translator,
    texts: ParallelFiles | NBestList | PairsFile | TargetFile,
    out: BinaryIO,
    by_token: bool = False,
    tag: str | None = None,
    line_buffered: bool = False,
    summarized: bool = False,
    alignments: BinaryIO | None = None,
) -> None:
    """Score given translations by their log-probability; write one line to `out` for each translation.

    A line is `log_prob TAB num_tokens TAB mean_log_prob`, where the end mark counts as a token. With `by_token`, a line
    is a JSON list of [piece, log_prob] pairs, in which a log-probability of minus infinity is null. With `summarized`,
    a Summary of all translations is written instead of these lines. If `alignments` is given, the word alignment of
    each translation is written to it as a line in Pharaoh form.

    Raises MtkitError if the model is a translation model and `texts` is a TargetFile, or if the model is a language
    model and `texts` is not a TargetFile.

    `tag` is put before each source. Without `tag`, warnings are printed for sources whose tag is unknown or missing. A
    path in `texts` may be `-`, which is standard input. `line_buffered`, pipes and signals are handled as in
    `translate`. Raises the errors of `Translator.score_lines` and of `texts.pairs`.
    """
    if isinstance(texts, TargetFile) and translator.config.task == "translation":
        raise MtkitError("score: a translation model wants the sources, too; give --source and --target, or --tsv")
    if not isinstance(texts, TargetFile) and translator.config.task != "translation":
        raise MtkitError("score: a language model reads no source; give --target alone")
    summary = Summary()

    def results_of(
        pairs: Iterable[tuple[str, str]], tag: str | None, at_once: Callable[[], bool]
    ) -> Iterable[ScoredTranslation]:
        return translator.score_lines(_characters_counted(pairs, summary), tag, at_once)

    def write(line: ScoredTranslation) -> None:
        summary.lines += 1
        summary.tokens += line.num_tokens
        summary.log_prob += line.log_prob
        if not summarized:
            out.write(_score_text(line, by_token).encode("utf-8"))
        if alignments is not None:
            _write_links(line.alignment, alignments, line_buffered)

    _each_pair(translator, texts, out, results_of, write, ("scored", "scoring"), tag, line_buffered)
    if summarized:
        out.write(str(summary).encode())
        out.flush()


def align(
    translator: Translator,
    texts: ParallelFiles | NBestList | PairsFile | TargetFile,
    out: BinaryIO,
    tag: str | None = None,
    line_buffered: bool = False,
) -> None:
    """Align given translations; write a line in Pharaoh form to `out` for each translation, such as "0-0 1-2".

    `translator.align_with` must have been called. The arguments, warnings and errors are as in `score`.
    """

    def write(links: Links) -> None:
        _write_links(links, out, line_buffered=False)

    _each_pair(translator, texts, out, translator.align_lines, write, ("aligned", "aligning"), tag, line_buffered)


def _each_pair(
    translator: Translator,
    texts: ParallelFiles | NBestList | PairsFile | TargetFile,
    out: BinaryIO,
    results_of: Callable[[Iterable[tuple[str, str]], str | None, Callable[[], bool]], Iterable[T]],
    write: Callable[[T], None],
    verbs: tuple[str, str],
    tag: str | None,
    line_buffered: bool,
) -> None:
    """Reads the pairs of `texts`, and calls `write` with the result for each pair, in order.

    `results_of(pairs, tag, at_once)` computes the results; `at_once()` says whether the pairs read so far must be
    processed now, instead of being gathered into larger batches. `verbs` names what is done to a pair, such as
    ("scored", "scoring"), for messages and the progress display.
    """
    if tag is not None:
        translator.require_tag(tag)
    warnings = Warnings()
    num_lines = None
    if not any(path == STANDARD_INPUT or path_may_pause(path) for path in texts.paths):  # can be read twice
        num_lines = sum(1 for _ in texts.pairs(read_lines))  # reports errors in the files before the work starts
    with InputStreams(out.flush, line_buffered) as streams:
        pairs = texts.pairs(lambda path: iter(streams.read(read_lines(path), path_may_pause(path), len)))
        if tag is None:
            pairs = _tags_checked(pairs, itemgetter(0), translator, warnings)
        results = results_of(pairs, tag, streams.answer_now)
        with (
            counted_when_ended(verbs[0]) as written,
            Meter(verbs[1], "lines", num_lines, hidden=line_buffered) as meter,
        ):
            for number, result in enumerate(meter.counting(results), start=1):
                write(result)
                written.number = number
                if line_buffered:
                    out.flush()
    out.flush()
    warnings.close()


def _characters_counted(pairs: Iterable[tuple[str, str]], summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields the pairs unchanged; adds to `summary` the number of characters in the targets, line ends included."""
    for source, target in pairs:
        summary.characters += len(target) + 1
        yield source, target


def _score_text(line: ScoredTranslation, by_token: bool) -> str:
    if by_token:
        pairs = [[piece, round(value, 4)] for piece, value in zip(line.pieces, line.log_probs, strict=True)]
        return f"{json_text(pairs)}\n"
    return f"{line.log_prob:.4f}\t{line.num_tokens}\t{line.mean:.4f}\n"


# Input and output files.


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Context manager that gives a binary stream of the text of a file, or of standard input if `path` is `-`.

    A compressed file is decompressed. Raises DataError if the file cannot be opened.
    """
    try:
        stream = open_to_read(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if may_pause(stream):
        yield stream  # not closed: that would block while a thread waits for the next line
        return
    with stream:
        yield stream


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Context manager that gives a binary stream to write the file `path`; the file appears only once it is complete.

    The stream writes to PATH.part, which is renamed to `path` if the block ends without an error. After an error,
    PATH.part is kept unless it is empty. If `path` is a device or a pipe, the stream writes to `path` directly. The
    suffix of `path` determines the compression. Raises MtkitError if `path` cannot be written.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                yield stream
            return
        if path.is_dir():
            raise MtkitError(f"{path}: is a directory; a file to write is wanted")
        whole = path.resolve()  # a link stays, and the file that it points to is replaced
        part = whole.with_name(f"{whole.name}.part")
        with _kept_if_it_holds_text(part), open_to_write(part, whole) as stream:
            if whole.exists():
                shutil.copymode(whole, part)
            yield stream
        part.replace(whole)
    except OSError as error:
        raise MtkitError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _kept_if_it_holds_text(part: Path) -> Iterator[None]:
    """Context manager that removes the file `part` if the block raises an exception and the file is empty.

    A file that holds text is kept. If the exception is a StoppedError, the message of the exception then says where the
    kept file is.
    """
    try:
        with undone_when_ended():
            yield
    except BaseException as error:
        if not part.exists():
            raise
        if _is_empty(part):
            part.unlink()
        elif isinstance(error, StoppedError):
            raise StoppedError(f"{error}, and kept in {part}", error.code) from None
        raise


def _is_empty(part: Path) -> bool:
    """Whether a file contains no text.

    A compressed file has some bytes even if it contains no text, so the size of the file does not tell.
    """
    try:
        with reading(part) as stream:
            return not stream.read(1)
    except DataError:  # truncated compressed data: something was written
        return False


# Making canaries and translating them again.

NUM_CANARIES = 8
BATCH_TOKENS = 4096

# The settings for translating canaries. They must never change: other settings may give other translations, and the
# canaries of existing bundles would fail. The length limit is tight because a model early in training may never
# generate the end mark.
GREEDY = DecodingConfig(beam_size=1, length_penalty=0.0, max_length_ratio=1.5, max_length_extra=10)
# The settings for models with method mask_predict. With one iteration, no token depends on another, as `gap` requires.
ONE_PASS = DecodingConfig(
    method="mask_predict", iterations=1, length_candidates=1, max_length_ratio=1.5, max_length_extra=10
)

# If the log-probabilities of two tokens differ by less than this, rounding may decide which of them the search chooses.
TIE = 1e-4


@dataclass(frozen=True)
class CanaryResult:
    """A canary (a stored source with its translation), and the result of checking a model with the canary.

    For the check, the model translates the stored source again; this gives the new translation.
    """

    canary: Canary
    source_tokens: list[int]  # the canary's source, as this tokenizer encodes it
    target_tokens: list[int]  # the new translation, without the end mark
    text: str  # the canary's target tokens, as this tokenizer decodes them
    log_prob: float  # of the canary's target tokens (not the new ones), computed with the model that is checked
    # At the first position where the two translations differ, log-probability of the new token minus log-probability of
    # the canary's token; 0 if they do not differ.
    gap: float

    @property
    def same_text(self) -> bool:
        """Whether the tokenizer encodes and decodes as when the canary was made.

        `True` if `source_tokens` and `text` are equal to the source tokens and the text stored in the canary.
        """
        return self.source_tokens == self.canary.source_tokens and self.text == self.canary.text

    @property
    def same_tokens(self) -> bool:
        """Whether the new translation has the same tokens as the stored translation."""
        return self.target_tokens == self.canary.target_tokens

    @property
    def is_tie(self) -> bool:
        """Whether the new translation differs from the stored one, but only because of a tie.

        Let t be the first position at which the two translations differ. There is a tie if the log-probabilities of
        their tokens at t differ by less than `TIE`.
        """
        return not self.same_tokens and abs(self.gap) < TIE

    @property
    def drift(self) -> float:
        """The absolute difference between `log_prob` and the log-probability stored in the canary."""
        return abs(self.log_prob - self.canary.log_prob)


def make_canaries(translator: Translator, lines: Sequence[str]) -> list[Canary]:
    """Choose up to `NUM_CANARIES` of the lines; return a canary (the line and its translation) for each chosen line.

    The chosen lines cover the range of lengths; the choice does not depend on the order of the lines. Blank lines, and
    lines too long for the model, are not chosen. A translation whose log-probability is infinite or NaN is left out.
    The translator must be on a CPU, in fp32. A language model has one canary, with a blank line as its source.
    """
    encoded = translator.tokenizer.encode_source(lines)
    fitting = sorted(
        {line: len(tokens) for line, tokens in zip(lines, encoded, strict=True) if _fits(translator, tokens)}.items(),
        key=lambda item: (item[1], item[0]),
    )
    last, count = len(fitting) - 1, min(NUM_CANARIES, len(fitting))
    sources = [fitting[round(last * i / max(count - 1, 1))][0] for i in range(count)]
    if not translator.model.reads_source:
        sources = [""]
    source_tokens = translator.tokenizer.encode_source(sources)
    target_tokens = _greedy_search(translator, source_tokens)
    log_probs = map(sum, log_probs_of(translator.model, source_tokens, target_tokens, BATCH_TOKENS))
    texts = _texts(translator, target_tokens)
    canaries = map(Canary, sources, source_tokens, target_tokens, log_probs, texts)
    return [canary for canary in canaries if abs(canary.log_prob) < float("inf")]  # else training failed


def translate_canaries(translator: Translator, canaries: Sequence[Canary]) -> list[CanaryResult]:
    """Translate the sources of the canaries again; return a result for each canary, in order.

    Raises DataError if a source or its stored translation is longer than the model accepts.
    """
    source_tokens = translator.tokenizer.encode_source([canary.source for canary in canaries])
    expected = [canary.target_tokens for canary in canaries]
    limits = translator.model.limits
    for number, sides in enumerate(zip(source_tokens, expected, strict=True), start=1):
        for side, limit in zip(sides, (limits.source, limits.target), strict=True):
            if limit is not None and len(side) >= limit:
                raise DataError(f"canary {number} has {len(side):,} tokens, and the model can take {limit - 1:,}")
    found = _greedy_search(translator, source_tokens)
    texts = _texts(translator, expected)
    log_probs_expected = log_probs_of(translator.model, source_tokens, expected, BATCH_TOKENS)
    log_probs_found = log_probs_of(translator.model, source_tokens, found, BATCH_TOKENS)
    columns = zip(canaries, source_tokens, found, texts, log_probs_expected, log_probs_found, strict=True)
    return [
        CanaryResult(canary, source, target, text, sum(old), _gap(canary.target_tokens, old, target, new))
        for canary, source, target, text, old, new in columns
    ]


def _gap(expected: list[int], old: list[float], found: list[int], new: list[float]) -> float:
    """Compares two translations, `expected` and `found`, at the first position where their tokens differ.

    Returns the log-probability of the token of `found` at this position minus that of the token of `expected`; returns
    0 if all tokens are equal. `old` holds the log-probabilities of the tokens of `expected` and of its end mark; `new`
    holds the log-probabilities of the tokens of `found` and of its end mark.
    """
    for place, (one, other) in enumerate(zip_longest(expected, found)):
        if one != other:
            return new[place] - old[place]
    return 0.0


def _greedy_search(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    decoding = ONE_PASS if translator.config.decoding.method == "mask_predict" else GREEDY
    config = translator.config.model_copy(update={"decoding": decoding})
    greedy = Translator(translator.model, translator.tokenizer, config, engine=translator.engine)
    return [hypotheses[0].tokens for hypotheses in greedy.search(tokens)] if tokens else []


def _texts(translator: Translator, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Decodes each row of target tokens to text; line breaks in the text are replaced by spaces."""
    return [BREAKS.sub(" ", text) for text in translator.tokenizer.decode_target(tokens)]


def _fits(translator: Translator, tokens: Sequence[int]) -> bool:
    return 0 < len(tokens) <= translator.max_source_length


# `mtkit check`: whether a bundle's files are unchanged, and whether its model still gives the translations that are
# stored in the canaries.

# The largest drift that is accepted per token, where the end mark counts as a token. In fp32, rounding causes less
# drift than this on any device.
MOST_DRIFT = 0.01


@dataclass(frozen=True)
class Report:
    """The result of checking a model with `check`, as lines of text."""

    lines: list[str]  # what was checked, and the results
    faults: list[str]  # what is wrong; empty if nothing is wrong


def check(model: Path, device: str | None = None) -> Report:
    """Compare the files of a model with their checksums; if all files match, translate the model's canaries again.

    Returns a report of the results and faults. Infinite or NaN weights count as a fault. The canaries are translated on
    `device`, by default the device in the model's settings. Raises MtkitError if the model cannot be read or loaded.
    """
    storage = find_model(model)
    tell(storage)
    description = describe(storage)
    sums = all_sums(storage)
    kind = "a checkpoint" if isinstance(storage, CheckpointStorage) else f"bundle format {description['format']}"
    lines = [f"{storage.path}: {kind}, written by mtkit {description.get('mtkit', '?')}"]
    if faults := faults_of_files(storage, description, sums):
        return Report(lines, faults)
    bundle = bundle_of(storage)
    bundle.require_own_tokenizer()
    if fault := not_finite(bundle.weights()):
        return Report(lines, [f"{bundle.path / WEIGHTS}: {fault}; train the model again"])
    if description["format"] == 1:
        lines.append(
            "format 1 records only the checksum of the tokenizer and the size of the weights, and both are right; it "
            "has no checksums of other files, and no canaries"
        )
        load_bundle(bundle, [f"device={device}"] if device else [])
        return Report(lines, [])
    size = sum(each.size for each in sums.values())
    lines.append(f"files: {len(sums)}, {size:,} bytes, all as they were written")
    canaries = bundle.canaries()
    translator = load_bundle(bundle, [f"device={device}"] if device else [])
    if not canaries:
        return Report([*lines, "canaries: none"], [])
    results = translate_canaries(translator, canaries)
    return Report(
        [*lines, *_canary_lines(results, translator.model.device.type)], list(_canary_faults(bundle, results))
    )


def _canary_lines(results: list[CanaryResult], device: str) -> Iterator[str]:
    drifts = [result.drift for result in results]
    num_same = sum(result.same_tokens for result in results)
    yield f"canaries: {num_same} of {len(results)} give the same tokens on {device}"
    yield f"log-probabilities: the largest difference is {max(drifts):.1e}, the mean {sum(drifts) / len(drifts):.1e}"
    for number, result in enumerate(results, start=1):
        if result.is_tie:
            yield f"canary {number}: a tie: its translation differs, and is as likely to within {abs(result.gap):.1e}"


def _canary_faults(bundle: Bundle, results: list[CanaryResult]) -> Iterator[str]:
    for number, result in enumerate(results, start=1):
        where = f"{bundle.path / CANARIES}: canary {number}"
        if not result.same_text:
            yield f"{where}: the tokenizer encodes or decodes it differently here"
        elif not result.same_tokens and not result.is_tie:
            yield f"{where}: the model's translation differs, and is likelier here by {result.gap:.1e}"
        elif not result.drift <= MOST_DRIFT * (len(result.canary.target_tokens) + 1):
            yield f"{where}: its log-probability is {result.log_prob:.4f}, and was {result.canary.log_prob:.4f}"
