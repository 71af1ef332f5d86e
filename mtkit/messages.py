"""Lines for the user, on stderr."""

import sys

from tqdm import tqdm


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
