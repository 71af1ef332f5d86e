"""Translating a stream of lines: N lines in, N lines out, whatever is in them."""

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from tqdm import tqdm

from mtkit.text.lines import decode_lines
from mtkit.translator import TranslatedLine, Translator

NUM_NAMED = 10  # damaged or split lines that are named; the rest are counted


def translate(
    translator: Translator,
    source: BinaryIO,
    out: BinaryIO,
    num_best: int = 1,
    with_scores: bool = False,
    at_once: bool = False,
) -> None:
    """Translate each line of one stream to a line of the other.

    With scores, a line is `score TAB text`; with num_best over 1, each line gives several `number TAB score TAB text`.
    Undecodable bytes are replaced and lines too long for the model are translated in parts, with a warning.
    """
    warnings = Warnings()
    lines = _counted(decode_lines(source), warnings)
    shown = tqdm(lines, unit=" lines", disable=at_once or not sys.stderr.isatty(), smoothing=0)
    for number, line in enumerate(translator.translate_lines(shown, num_best, at_once), start=1):
        if line.num_parts > 1:
            warnings.add("was too long for the model; translated in parts", number)
        out.write(_written(line, number, num_best, with_scores).encode("utf-8"))
        if at_once:
            out.flush()
    out.flush()
    warnings.close()


def _counted(lines: Iterable[tuple[str, bool]], warnings: "Warnings") -> Iterator[str]:
    for number, (line, damaged) in enumerate(lines, start=1):
        if damaged:
            warnings.add("is not valid UTF-8; what could not be read was replaced", number)
        yield line


def _written(line: TranslatedLine, number: int, num_best: int, with_scores: bool) -> str:
    if num_best > 1:
        return "".join(f"{number}\t{best.score:.4f}\t{best.text}\n" for best in line.translations)
    if with_scores:
        return f"{line.translations[0].score:.4f}\t{line.text}\n"
    return f"{line.text}\n"


class Warnings:
    """Names the first lines of each kind on stderr, and counts the rest."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> None:
        """Line number, from 1, is so."""
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= NUM_NAMED:
            tqdm.write(f"mtkit: warning: line {number:,} {what}", file=sys.stderr)

    def close(self) -> None:
        """Tell of the lines that were not named."""
        for what, count in self.counts.items():
            if count > NUM_NAMED:
                tqdm.write(f"mtkit: warning: and so with {count - NUM_NAMED:,} more: it {what}", file=sys.stderr)
