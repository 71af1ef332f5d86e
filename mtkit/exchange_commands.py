"""`mtkit export` and `import`: models for other libraries, and from them."""

from pathlib import Path
from typing import Annotated

import typer

from mtkit.options import EXAMPLE, ModelArgument, choice, language_pair

FORMATS = ("ctranslate2", "marian", "m2m100")


def export(
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")],
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of CTranslate2: int8, int16, float16, bfloat16 and others.")
    ] = None,
) -> None:
    """Write a model in the files of another library.

    marian and m2m100 are of Hugging Face transformers. Where the library is installed, it opens what was written and
    translates the sentences that the model carries.
    """
    format_ = choice("--to", to, FORMATS)
    from mtkit.export import export

    export(model, format_, output, quantization)


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a Hugging Face checkpoint, such as OPUS-MT's.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL", help="The bundle to write.")],
    languages: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Such as fr-en, if the checkpoint does not tell.")
    ] = None,
) -> None:
    """Make a model of a Hugging Face Marian checkpoint, or of an export.

    Its ids and weights are kept, and no code in it is run.
    """
    pair = language_pair(languages)
    from mtkit.importing import import_model

    import_model(folder, output, pair)


def add_to(app: typer.Typer) -> None:
    """Make these commands of the program."""
    app.command(epilog=f"{EXAMPLE}export runs/demo --to ctranslate2 -o demo-ct2")(export)
    app.command(name="import", epilog=f"{EXAMPLE}import opus-mt-fr-en -o models/fr-en")(import_)
