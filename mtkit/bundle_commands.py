"""`mtkit bundle`, `pack`, `info` and `check`: a model as a thing that travels."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mtkit.errors import CheckpointError
from mtkit.json_text import json_text
from mtkit.messages import say
from mtkit.options import EXAMPLE, DeviceOption, ModelArgument, UsageError


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory; training may be going on.")],
    step: Annotated[
        str,
        typer.Option(metavar="N", help="A step, best (so far), or average: what training would try at its end."),
    ] = "best",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MODEL", help="The bundle to write; else RUN/bundles/step-N."),
    ] = None,
) -> None:
    """Write a model from the checkpoints of a run.

    Training need not be finished, and is not disturbed.
    """
    from mtkit.bundling import bundle

    say(str(bundle(run, step, output)))


def pack(
    model: ModelArgument,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="What to write, such as model.mtkit.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The same.")] = None,
) -> None:
    """Pack a model into one file.

    The file is a MODEL, too. The same model gives the same bytes.
    """
    if (file is None) == (output is None):
        raise UsageError("name the FILE to write, once")
    from mtkit.pack import pack

    target = file or output
    assert target is not None
    if str(target) == "-":
        raise UsageError("a packed model goes into a FILE, where it appears whole; - is none")
    say(f"{target}: {pack(model, target):,} bytes")


def info(
    model: ModelArgument, json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False
) -> None:
    """Tell what a model is and what it learnt from."""
    from mtkit.info import info_json, info_of, info_text

    found = info_of(model)
    print(json_text(info_json(found), indent=1) if json else info_text(found))


def check(model: ModelArgument, device: DeviceOption = None) -> None:
    """Tell whether a model is whole and works here.

    All files are compared with their checksums; then sentences that the model carries are translated again.
    """
    from mtkit.check import check

    report = check(model, device)
    print("\n".join(report.lines))
    if report.faults:
        sys.stdout.flush()
        raise CheckpointError("\n".join(report.faults))


def add_to(app: typer.Typer) -> None:
    """Make these commands of the program."""
    app.command(epilog=f"{EXAMPLE}bundle runs/demo --step best -o models/demo")(bundle)
    app.command(epilog=f"{EXAMPLE}pack runs/demo demo.mtkit")(pack)
    app.command(epilog=f"{EXAMPLE}info runs/demo")(info)
    app.command(epilog=f"{EXAMPLE}check runs/demo")(check)
