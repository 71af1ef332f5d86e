"""Arguments and options that several commands share, and how the text given to them is read.

Numbers and choices come as text: mtkit checks them itself, so that every message is in its own words.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mtkit.arguments import whole_number
from mtkit.errors import MtkitError
from mtkit.progress import inform, show_progress

EXAMPLE = "\b\nExample:\n  mtkit "  # how the help of each command ends; \b keeps its lines as they are

PRECISIONS = ("fp32", "bf16", "fp64")

# What a wrong call raises; typer carries its parent inside and exports it under no name.
UsageError: Any = typer.BadParameter.__mro__[1]


def _be_quiet(quiet: bool) -> bool:
    """Progress is a matter of the whole process, so no command has to hand the option on."""
    show_progress(not quiet)
    return quiet


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings over those of the file.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory, checkpoint or model bundle.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start training anew; the old run goes once the new one has a checkpoint.")
]
ChangeOption = Annotated[
    bool, typer.Option("--change", help="Go on with settings that change what the run becomes, from here on.")
]
BeamSizeOption = Annotated[str | None, typer.Option(metavar="N", help="Hypotheses kept at each step; 1 is greedy.")]
LengthPenaltyOption = Annotated[str | None, typer.Option(metavar="X", help="Exponent of the length penalty.")]
BatchTokensOption = Annotated[
    str | None, typer.Option(metavar="N", help="Most sentences x longest source x beam of a batch.")
]
EnsembleOption = Annotated[
    list[Path] | None, typer.Option(metavar="MODEL", help="Another model that speaks along; more may be given.")
]
PrecisionOption = Annotated[str, typer.Option(metavar="NAME", help="fp32, bf16 or fp64.")]
TagOption = Annotated[
    str | None,
    typer.Option("--tag", metavar="TAG", help="Put before each line, for models of several languages: <2de>."),
]
LineBufferedOption = Annotated[
    bool, typer.Option("--line-buffered", help="Answer each line before the next is read, however fast they come.")
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_be_quiet,
        help="No progress on stderr; warnings and results still come.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]


def decoding_settings(
    beam_size: str | None, length_penalty: str | None, batch_tokens: str | None, device: str | None
) -> list[str]:
    """Options as settings, so that they are checked and told of as those are."""
    found = given(beam_size=beam_size, length_penalty=length_penalty, batch_tokens=batch_tokens)
    return found if device is None else [*found, f"device={device}"]


def given(**settings: str | None) -> list[str]:
    """Those settings of decoding that have a value."""
    return [f"decoding.{name}={value}" for name, value in settings.items() if value is not None]


def count(name: str, value: str) -> int:
    """A whole number, at least 1; name is the option that it was given to."""
    number = whole_number(value)
    if not number:
        raise MtkitError(f"{name}: found {value}, wants a whole number, at least 1")
    return number


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of the choices; name is the option that it was given to."""
    if value not in choices:
        raise MtkitError(f"{name}: found {value}, wants one of {', '.join(choices)}")
    return value


# As in BCP 47: a language, which may be two codes as in zh-yue, a script, a region, variants.
_CODE = re.compile(
    r"[a-z]{2,3}(-[a-z]{3})?(-[a-z]{4})?(-([a-z]{2}|\d{3}))?(-([a-z0-9]{5,8}|\d[a-z0-9]{3}))*", re.IGNORECASE
)


def language_pair(text: str | None) -> tuple[str, str] | None:
    """The codes of --languages, if it was given; either may have a script and a region, as in en-zh-CN."""
    if text is None:
        return None
    parts = text.split("-")
    pairs = [("-".join(parts[:cut]), "-".join(parts[cut:])) for cut in range(1, len(parts))]
    if len(parts) > 2:
        pairs = [pair for pair in pairs if all(_is_code(code, not text.isupper()) for code in pair)]
    if len(pairs) > 1:
        meanings = " or ".join(f"{source} to {target}" for source, target in pairs)
        wanted = "-".join(code.replace("-", "_") for code in pairs[0])
        raise MtkitError(
            f"--languages: found {text}, which may mean {meanings}; join the parts of a code by underscores: {wanted}"
        )
    if not pairs or not all(pairs[0]):
        raise MtkitError(f"--languages: found {text}, wants the codes of source and target, such as en-de or en-zh-CN")
    return pairs[0]


def _is_code(code: str, case_tells: bool) -> bool:
    """Whether it is the code of a language; where case tells, one in capitals is a region and begins none."""
    language = code.partition("-")[0]
    return _CODE.fullmatch(code) is not None and not (case_tells and language.isupper())


@contextmanager
def opened(file: Path | None) -> Iterator[Any]:
    """A file to read, or standard input, which stays open: without a file, or for `-`."""
    from mtkit.text.packing import STANDARD_INPUT
    from mtkit.translate import reading

    with reading(file or STANDARD_INPUT) as stream:
        yield stream


def one_standard_input(*files: Path | None) -> None:
    """A UsageError if more than one of the files is `-`, which can be read once; None is no file."""
    if sum(str(file) == "-" for file in files) > 1:
        raise UsageError("standard input, -, can be read once; name files for the others")


def typed(*files: Path) -> bool:
    """Whether one of the files is `-` and somebody types standard input."""
    return any(str(file) == "-" for file in files) and sys.stdin is not None and sys.stdin.isatty()


def tell_of_typing(what: str) -> None:
    """Say that standard input is a terminal, where nothing happens until somebody types."""
    end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
    inform(f"type a line and press Enter {what}; {end} ends")


def standard_output() -> Any:
    """Where bytes go; an error if it is closed."""
    if sys.stdout is None:
        raise MtkitError("standard output is closed; send it somewhere, or write a file with -o")
    return sys.stdout.buffer
