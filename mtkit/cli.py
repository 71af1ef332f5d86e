"""The command line: registers the commands, runs the one that the user typed, and turns errors into exit codes."""

import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer

from mtkit.commands import evaluation, models, training
from mtkit.commands.options import (
    EXAMPLE,
    UsageError,
    usage_message,
)
from mtkit.errors import ERROR, MtkitError, SignalError, StoppedError, is_out_of_memory, say
from mtkit.files import NOTHING_HALF, ended_by_signal

STOPPED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errno values that mean that there is no space to write

app = typer.Typer(
    name="mtkit",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _version(shown: bool) -> None:
    if shown:
        from mtkit import __version__

        print(f"mtkit {__version__}")
        raise typer.Exit


@app.callback(epilog=f"{EXAMPLE}run configs/demo.yaml")
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train neural machine translation models and translate with them.

    CONFIG is a YAML file, MODEL a run directory, a checkpoint in it or a model bundle; the run may still be training.
    """


for group in (training, models, evaluation):
    group.add_to(app)


def main() -> NoReturn:
    """Run the command line and exit.

    Errors that the user can fix become a message on stderr and an exit code, not a traceback.
    """
    if sys.stderr is None:
        # Stderr is closed, so descriptor 2 is free. The next file to be opened would get this descriptor, and libraries
        # that write to stderr would write into that file.
        sys.stderr = os.fdopen(_opened_null(2), "w", encoding="utf-8")
    if isinstance(sys.stdout, TextIOWrapper):
        # Write UTF-8 in any locale; file names that are not valid UTF-8 are written with their original bytes.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    with ended_by_signal():
        code = _run(sys.argv[1:])
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        # The reader of stderr is gone; at exit, Python would fail to write the rest and change the exit code.
        _opened_null(sys.stderr.fileno())
    sys.exit(code)


def _opened_null(descriptor: int) -> int:
    """Make `descriptor`, a file descriptor, refer to the null device from now on; return `descriptor`."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    return descriptor


@cache
def _command() -> Callable[..., Any]:
    return typer.main.get_command(app)


def _run(arguments: list[str]) -> int:
    try:
        result = _command()(arguments, prog_name="mtkit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        if result == STOPPED:  # typer returns this for a KeyboardInterrupt
            raise KeyboardInterrupt
    except StoppedError as error:
        _tell(str(error))
        return error.code
    except MtkitError as error:
        _tell(str(error))
        return 1
    except UsageError as error:
        if not arguments:
            say(error.format_message())  # the help text
        else:
            _tell(usage_message(error, arguments))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _tell(f"stopped by SIGINT {NOTHING_HALF}")
        return STOPPED
    except SignalError as error:
        _tell(f"stopped by {error.name} {NOTHING_HALF}")
        return error.code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = next(iter(str(error).splitlines()), "")
        _tell(
            f"out of memory{f' ({first})' if first else ''}; a smaller decoding.batch_tokens (--batch-tokens) or "
            "decoding.beam_size (--beam-size) takes less, and so does a smaller model"
        )
        return 1
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}"
            _tell(what + ("; make room and start again" if error.errno in FULL else ""))
        # The reader of stdout is gone, or the disk is full; at exit, Python would fail to write the rest and complain.
        if sys.stdout is not None:
            _opened_null(sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _tell(message: str) -> None:
    for line in message.splitlines():
        say(f"{ERROR}{line}")
