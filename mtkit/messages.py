"""Lines for the user, on stderr."""

import sys

from tqdm import tqdm

NUM_NAMED = 10  # lines of each kind that a warning names; the rest are counted


def on_terminal() -> bool:
    """Whether somebody watches stderr, so that a progress bar is of use."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def say(text: str) -> None:
    """Print a line on stderr, above any progress bar.

    A line that cannot be printed is dropped: the reader of a pipe may have gone, a terminal may be closed, the disk of
    a log file may be full, and none of that is a reason to end.
    """
    if sys.stderr is None:
        return
    try:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):  # ValueError: stderr is closed
        pass


def counted(number: int, noun: str) -> str:
    """A number with what it counts, whose plural ends in s: 1 pair, 2,000 pairs."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Warnings:
    """Names the first lines of each kind on stderr, and counts the rest."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, what: str, number: int) -> None:
        """Line number, from 1, is so."""
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= NUM_NAMED:
            say(f"mtkit: warning: line {number:,} {what}")

    def close(self) -> None:
        """Tell of the lines that were not named."""
        for what, count in self.counts.items():
            if count > NUM_NAMED:
                say(f"mtkit: warning: and so with {count - NUM_NAMED:,} more: it {what}")
