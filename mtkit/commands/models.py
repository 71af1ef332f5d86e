"""`mtkit bundle`, `pack`, `info`, `check`, `export`, `import` and `extend`: commands that make or inspect models."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mtkit.commands.options import EXAMPLE, DeviceOption, ModelArgument, QuietOption, UsageError, choice, language_pair
from mtkit.errors import CheckpointError, say
from mtkit.files import json_text


def bundle(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory; it may still be training.")],
    step: Annotated[
        str,
        typer.Option(metavar="N", help="A step, best (so far), or average, which training would try at its end."),
    ] = "best",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="MODEL", help="The bundle to write; else RUN/bundles/step-N."),
    ] = None,
) -> None:
    """Write a model from the checkpoints of a run.

    Training need not be finished, and is not disturbed.
    """
    from mtkit.training.records import bundle

    say(str(bundle(run, step, output)))


def pack(
    model: ModelArgument,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="What to write, such as model.mtkit.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file, as an option.")
    ] = None,
) -> None:
    """Pack a model into one file.

    The file is a MODEL, too, and always the same for the same model.
    """
    if (file is None) == (output is None):
        raise UsageError("name the FILE to write, once")
    from mtkit.bundle.info import pack

    target = file or output
    assert target is not None
    if str(target) == "-":
        raise UsageError("a packed model goes into a FILE, where it appears whole; - is none")
    say(f"{target}: {pack(model, target):,} bytes")


def info(
    model: ModelArgument, json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False
) -> None:
    """Show what a model is and what it was trained on."""
    from mtkit.bundle.info import info_json, info_of, info_text

    found = info_of(model)
    print(json_text(info_json(found), indent=1) if json else info_text(found))


def check(model: ModelArgument, device: DeviceOption = None) -> None:
    """Check that a model is whole and works on this machine.

    All files are compared with their checksums; then the sentences stored in the model are translated again.
    """
    from mtkit.translation.canaries import check

    report = check(model, device)
    print("\n".join(report.lines))
    if report.faults:
        sys.stdout.flush()
        raise CheckpointError("\n".join(report.faults))


# Export, import, and extension of vocabularies.

FORMATS = ("ctranslate2", "marian", "m2m100")


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")],
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of CTranslate2: int8, int16, float16, bfloat16 and others.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write a model as files of another library.

    marian and m2m100 are formats of Hugging Face transformers. If the library is installed, it loads the files and
    translates the sentences stored in the model.
    """
    format_ = choice("--to", to, FORMATS)
    from mtkit.exchange.export import export

    export(model, format_, output, quantization)


def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a Hugging Face checkpoint or of Marian's files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="The bundle to write.")],
    languages: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Such as fr-en, if the checkpoint does not say.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Make a model from a Hugging Face or Marian checkpoint.

    A Hugging Face checkpoint is a MarianMTModel, such as those of OPUS-MT, or one that mtkit export wrote. A checkpoint
    of Marian itself is a folder with an .npz and its vocabularies, such as an archive of OPUS-MT; if there are several
    .npz, name one of them or a decoder.yml. Ids and weights are kept, and no code is run.
    """
    pair = language_pair(languages)
    from mtkit.exchange.importing import import_model

    import_model(folder, output, pair)


def extend(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="The bundle to write.")],
    piece: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A new piece; may be repeated.")] = None,
    pieces: Annotated[Path | None, typer.Option(metavar="FILE", help="New pieces, one a line.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="Word that a source may begin with, such as <2xx>.")
    ] = None,
) -> None:
    """Add pieces to a model's vocabulary.

    Translations stay as they are; training that starts from the new model learns the new pieces.
    """
    from mtkit.text.lines import read_lines

    new = [*(piece or []), *(line for line in (read_lines(pieces) if pieces else []) if line)]
    if not new and not tag:
        raise UsageError("name what is new, by --piece, --pieces or --tag")
    from mtkit.exchange.importing import extend

    extend(model, output, new, tag or [])


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(epilog=f"{EXAMPLE}bundle runs/demo --step best -o models/demo")(bundle)
    app.command(epilog=f"{EXAMPLE}pack runs/demo demo.mtkit")(pack)
    app.command(epilog=f"{EXAMPLE}info runs/demo")(info)
    app.command(epilog=f"{EXAMPLE}check runs/demo")(check)
    app.command(epilog=f"{EXAMPLE}export runs/demo --to ctranslate2 -o demo-ct2")(export)
    app.command(epilog=f"{EXAMPLE}extend runs/demo --piece Ĝ -o models/larger")(extend)
    app.command(name="import", epilog=f"{EXAMPLE}import opus-mt-fr-en -o models/fr-en")(import_)
