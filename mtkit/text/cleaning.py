"""Which pairs are left out of training, and why. The home of regex, which knows the scripts of Unicode."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import regex

from mtkit.config.data_settings import DataConfig

# Each with the settings that decide it.
RULES: dict[str, tuple[str, ...]] = {
    "blank source": (),
    "blank target": (),
    "too short": ("min_length",),
    "too long": ("max_length",),
    "length ratio": ("max_length_ratio",),
    "identical": ("drop_identical",),
    "wrong script": ("source_script", "target_script"),
    "few letters": ("min_letters",),
    "duplicate": ("drop_duplicates",),  # found in mtkit.text.duplicates, among the pairs that stay
}
REASONS = tuple(RULES)

NUM_EXAMPLES = 3  # of each reason
EXAMPLE_WIDTH = 110
LEAST_WIDTH = 20  # of a side, though the names of files are long

_LETTER = regex.compile(r"\p{L}")
_LETTER_OR_MARK = regex.compile(r"[\p{L}\p{M}]")
_NOT_SPACE = regex.compile(r"\S")


def drop_reason(source: str, target: str, source_length: int, target_length: int, rules: DataConfig) -> str | None:
    """The first of REASONS to leave a pair out, or None to keep it.

    Lengths are in tokens, end marks not counted. A side of white space, or of nothing but what normalisation removes,
    is blank. The ratio is of the longer side to the shorter.
    """
    if not source_length or not source.strip():
        return "blank source"
    if not target_length or not target.strip():
        return "blank target"
    shorter, longer = sorted((source_length, target_length))
    if shorter < rules.min_length:
        return "too short"
    if longer > rules.max_length:
        return "too long"
    if rules.max_length_ratio is not None and longer > rules.max_length_ratio * shorter:
        return "length ratio"
    if rules.drop_identical and source.strip().casefold() == target.strip().casefold():
        return "identical"
    if not (_is_written_in(source, rules.source_script) and _is_written_in(target, rules.target_script)):
        return "wrong script"
    if rules.min_letters and min(share_of_letters(source), share_of_letters(target)) < rules.min_letters:
        return "few letters"
    return None


def _is_written_in(text: str, scripts: Sequence[str] | None) -> bool:
    """Whether half of the letters at least are of these scripts, or of those that all scripts share."""
    if not scripts:
        return True
    num_letters = len(_LETTER.findall(text))
    return 2 * len(_foreign_letter(tuple(scripts)).findall(text)) <= num_letters


@cache
def _foreign_letter(scripts: tuple[str, ...]) -> regex.Pattern[str]:
    """A letter of another script; such as the long vowel mark of both kana are Common and foreign to none."""
    known = "".join(rf"\p{{Script={script}}}" for script in scripts)
    return regex.compile(rf"[\p{{L}}--[{known}\p{{Script=Common}}\p{{Script=Inherited}}]]", regex.VERSION1)


def share_of_letters(text: str) -> float:
    """Letters, and the marks on them, among the characters that are not white space."""
    return len(_LETTER_OR_MARK.findall(text)) / max(len(_NOT_SPACE.findall(text)), 1)


def settings_behind(reasons: Iterable[str]) -> list[str]:
    """The names of the settings, in the data section, that decide these reasons."""
    return [name for reason in REASONS if reason in set(reasons) for name in RULES[reason]]


class Drops:
    """The pairs that were left out: how many for each reason, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path, line: int, source: str, target: str) -> None:
        """One more."""
        self.counts[reason] += 1
        if self.counts[reason] <= NUM_EXAMPLES:
            place = f"  {reason}: {path}:{line}: "
            width = max(LEAST_WIDTH, (EXAMPLE_WIDTH - len(place)) // 2)
            text = " ||| ".join(_on_one_line(side, width) for side in (source, target))
            self._examples.setdefault(reason, []).append(f"{place}{text}")

    def examples(self) -> list[str]:
        """A line for each of the first ones."""
        return [line for reason in REASONS for line in self._examples.get(reason, [])]

    def __str__(self) -> str:
        """The counts, in the order of the rules."""
        return ", ".join(f"{self.counts[reason]:,} {reason}" for reason in REASONS if self.counts[reason])


def _on_one_line(text: str, width: int) -> str:
    """What a terminal can show of it in so many characters."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
