"""`mtkit doctor` and `mtkit clean`: commands that examine parallel text and write a mended copy of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtkit.commands.options import EXAMPLE, QuietOption, UsageError, language_pair

if TYPE_CHECKING:
    from mtkit.doctor.examine import Examination

TextArgument = Annotated[
    list[str],
    typer.Argument(metavar="CONFIG|FILES", help="YAML file (then KEY=VALUE …), two files, or one: tabs, .tmx, .jsonl."),
]
LanguagesOption = Annotated[
    str | None, typer.Option(metavar="PAIR", help="Such as fr-en: the sides of TMX and JSON lines.")
]


def doctor(
    text: TextArgument,
    languages: LanguagesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the findings as an HTML page.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Find faults in parallel text.

    Prints where they are, what they cost and what mends them. With CONFIG, the training text is examined, and searched
    for validation and test pairs. The exit code is 1 if something should be mended before training.
    """
    from mtkit.files import json_text
    from mtkit.report.diagnosis import as_html, as_text
    from mtkit.report.page import require_page, write_page

    if output is not None:
        require_page(output, "doctor")
    diagnosis = _examination(text, languages).run()
    print(json_text(diagnosis.as_json(), indent=2) + "\n" if json else as_text(diagnosis), end="")
    if output is not None:
        write_page(output, as_html(diagnosis))
    if diagnosis.stopping:
        raise typer.Exit(1)


def clean(
    text: TextArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="New folder for the cleaned text.")],
    languages: LanguagesOption = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Leave this kind of fault alone; may be repeated.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write a mended copy of parallel text.

    Pairs that cannot be mended are left out. The faults are those that mtkit doctor finds, and KIND is the name that it
    prints in brackets. FOLDER/cleaned.json records what was changed.
    """
    from mtkit.doctor.clean import clean as write_cleaned
    from mtkit.doctor.clean import require_new

    require_new(output, keep or ())
    cleaned, _ = write_cleaned(_examination(text, languages), output, keep or ())
    print(cleaned)
    for files in cleaned.files.values():
        print("\n".join(files))


def _examination(text: Sequence[str], languages: str | None) -> "Examination":
    """The examination of what the arguments name: the corpora of a YAML file, or one or two files of text."""
    from mtkit.config.data_settings import LanguagesConfig
    from mtkit.doctor.examine import Examination, held_out_of_settings, parts_of_files, parts_of_settings

    if Path(text[0]).suffix.lower() in (".yaml", ".yml"):
        from mtkit.config.load import load_config
        from mtkit.text.parallel import with_patterns_expanded

        if languages is not None:
            raise UsageError("--languages is for files; the languages of CONFIG are its settings")
        config = with_patterns_expanded(load_config(Path(text[0]), list(text[1:])))
        return Examination(parts_of_settings(config), held_out_of_settings(config), config.languages)
    if len(text) > 2:
        raise UsageError(f"found {len(text)} files, wants two: the source and the target")
    pair = language_pair(languages)
    codes = LanguagesConfig(source=pair[0], target=pair[1]) if pair else None
    return Examination(parts_of_files([Path(file) for file in text], pair), (), codes)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(epilog=f"{EXAMPLE}doctor data/demo/valid.fr data/demo/valid.en")(doctor)
    app.command(epilog=f"{EXAMPLE}clean data/demo/valid.fr data/demo/valid.en -o cleaned")(clean)
