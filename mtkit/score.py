"""Scoring given translations with a model: N pairs of lines in, N lines out."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from mtkit.likelihood import ScoredTranslation
from mtkit.messages import on_terminal
from mtkit.text.lines import read_pairs
from mtkit.text.packing import STANDARD_INPUT
from mtkit.translator import Translator


def score(
    translator: Translator, source: Path, target: Path, out: BinaryIO, by_token: bool = False, tag: str | None = None
) -> None:
    """Write how likely each line of target is as the translation of that line of source.

    A line is `log_prob TAB tokens TAB log_prob a token`, the end mark counted; by token it is a JSON list of
    [piece, log_prob]. A tag is put before each source line.
    """
    if tag is not None:
        translator.require_tag(tag)
    num_lines = None
    if STANDARD_INPUT not in (source, target) and source.is_file() and target.is_file():  # a pipe can be read but once
        num_lines = sum(1 for _ in read_pairs(source, target))  # what is wrong with them is told before work starts
    pairs = read_pairs(source, target)
    shown = tqdm(pairs, unit=" lines", total=num_lines, disable=not on_terminal(), smoothing=0)
    for line in _written(translator.score_lines(shown, tag), by_token):
        out.write(line.encode("utf-8"))
    out.flush()


def _written(lines: Iterable[ScoredTranslation], by_token: bool) -> Iterator[str]:
    for line in lines:
        if by_token:
            pairs = [[piece, round(value, 4)] for piece, value in zip(line.pieces, line.log_probs, strict=True)]
            yield f"{json.dumps(pairs, ensure_ascii=False)}\n"
        else:
            yield f"{line.log_prob:.4f}\t{line.num_tokens}\t{line.mean:.4f}\n"
