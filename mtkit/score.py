"""Scoring given translations with a model: N translations in, N lines out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mtkit.ending import counted_when_ended
from mtkit.errors import DataError
from mtkit.json_text import json_text
from mtkit.likelihood import ScoredTranslation
from mtkit.messages import Warnings
from mtkit.progress import Meter
from mtkit.text.arriving import Arrivals
from mtkit.text.lines import named, read_lines, read_pairs
from mtkit.text.packing import STANDARD_INPUT, path_may_pause
from mtkit.translator import Translator

LONGEST_SHOWN = 40  # characters of a line that a message shows
MOST_DIGITS = 18  # of a line number

LinesOf = Callable[[Path], Iterator[str]]


@dataclass(frozen=True)
class ParallelFiles:
    """Line n of target translates line n of source."""

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations."""
        return read_pairs(self.source, self.target, lines_of)


@dataclass(frozen=True)
class NBestList:
    """Lines of target are `number TAB score TAB text`, as `translate --n-best` writes them, or `number TAB text`.

    The number is that of the source line, from 1. A source may have any number of translations, in any order; the
    scores are not looked at.
    """

    source: Path
    target: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read; the source is held in memory."""
        return self.source, self.target

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations, in the order of the list."""
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


@dataclass(frozen=True)
class PairsFile:
    """Each line is a source, a tab and its translation; further columns are not looked at. A blank line is a pair."""

    path: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """What is read."""
        return (self.path,)

    def pairs(self, lines_of: LinesOf) -> Iterator[tuple[str, str]]:
        """Sources and translations."""
        for number, line in enumerate(lines_of(self.path), start=1):
            source, *rest = line.split("\t")
            if not rest and source.strip():
                raise DataError(f"{named(self.path)}:{number}: found no tab, wants a source, a tab and its translation")
            yield source, rest[0] if rest else ""


def score(
    translator: Translator,
    texts: ParallelFiles | NBestList | PairsFile,
    out: BinaryIO,
    by_token: bool = False,
    tag: str | None = None,
    line_buffered: bool = False,
) -> None:
    """Write how likely each translation is; a path of the texts may be `-`, standard input.

    A line is `log_prob TAB tokens TAB log_prob a token`, the end mark counted; by token it is a JSON list of
    [piece, log_prob], where null is the log-probability of what is impossible. A tag is put before each source line.
    Translations from a pipe are scored as mtkit.translate.translate() translates lines from there.
    """
    if tag is not None:
        translator.require_tag(tag)
    warnings = Warnings()
    num_lines = None
    if not any(path == STANDARD_INPUT or path_may_pause(path) for path in texts.paths):  # those can be read but once
        num_lines = sum(1 for _ in texts.pairs(read_lines))  # what is wrong with them is told before work starts
    with Arrivals(out.flush, line_buffered) as arrivals:
        pairs = texts.pairs(lambda path: iter(arrivals.of(read_lines(path), path_may_pause(path), len)))
        if tag is None:
            pairs = _watched(pairs, translator, warnings)
        scored = translator.score_lines(pairs, tag, arrivals.answer_now)
        with (
            counted_when_ended("scored") as written,
            Meter("scoring", "lines", num_lines, hidden=line_buffered) as meter,
        ):
            for written.number, line in enumerate(_written(meter.counting(scored), by_token), start=1):
                out.write(line.encode("utf-8"))
                if line_buffered:
                    out.flush()
    out.flush()
    warnings.close()


def _watched(pairs: Iterable[tuple[str, str]], translator: Translator, warnings: Warnings) -> Iterator[tuple[str, str]]:
    """The pairs; sources that do not begin with a tag as they should are warned of."""
    for number, (source, target) in enumerate(pairs, start=1):
        if fault := translator.tag_fault(source):
            warnings.add(fault, number)
        yield source, target


def _written(lines: Iterable[ScoredTranslation], by_token: bool) -> Iterator[str]:
    for line in lines:
        if by_token:
            pairs = [[piece, round(value, 4)] for piece, value in zip(line.pieces, line.log_probs, strict=True)]
            yield f"{json_text(pairs)}\n"
        else:
            yield f"{line.log_prob:.4f}\t{line.num_tokens}\t{line.mean:.4f}\n"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
