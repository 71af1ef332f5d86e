"""The command line: each command reads its arguments, calls one function, prints."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mtkit.errors import StoppedError, MtkitError

app = typer.Typer(
    name="mtkit",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Train neural machine translation models and translate with them.",
)

# What a wrong call raises; typer carries its parent inside and exports it under no name.
UsageError: Any = typer.BadParameter.__mro__[1]

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over those of the file.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory or model bundle.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start training anew; what was trained is deleted.")]


def _version(shown: bool) -> None:
    if shown:
        from mtkit import __version__

        print(f"mtkit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train neural machine translation models and translate with them.

    CONFIG is a YAML file, MODEL a run directory or a model bundle.

    Example: mtkit run configs/demo.yaml
    """


@app.command()
def config(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file; without it, the defaults.")
    ] = None,
    settings: SettingsArgument = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of settings files instead.")] = False,
) -> None:
    """Print all settings with their meanings, as YAML that can be used again.

    Example: mtkit config configs/demo.yaml training.max_steps=100
    """
    import json

    from mtkit.config.load import load_config
    from mtkit.config.show import config_schema, config_text

    if schema:
        print(json.dumps(config_schema(), indent=2))
    else:
        print(config_text(load_config(config, settings or [])), end="")


@app.command()
def train_tokenizer(config: ConfigArgument, settings: SettingsArgument = None) -> None:
    """Train the tokenizer on the training corpora.

    Example: mtkit train-tokenizer configs/demo.yaml
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_tokenizer

    run_tokenizer(load_config(config, settings or []))


@app.command()
def binarize(config: ConfigArgument, settings: SettingsArgument = None) -> None:
    """Encode the corpora to memory-mapped ids, and report what was dropped.

    Example: mtkit binarize configs/demo.yaml
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_binarize

    run_binarize(load_config(config, settings or []))


@app.command()
def train(config: ConfigArgument, settings: SettingsArgument = None, fresh: FreshOption = False) -> None:
    """Train, going on where the run stopped; first do what is missing.

    Example: mtkit train configs/demo.yaml training.max_minutes=2
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_train

    run_train(load_config(config, settings or []), fresh)


@app.command()
def run(config: ConfigArgument, settings: SettingsArgument = None, fresh: FreshOption = False) -> None:
    """Do every stage that is missing or out of date, then evaluate.

    Example: mtkit run configs/demo.yaml
    """
    from mtkit.config.load import load_config
    from mtkit.evaluate import table
    from mtkit.pipeline import run_all

    scores = run_all(load_config(config, settings or []), fresh)
    if scores:
        print(table(scores), end="")


@app.command()
def translate(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Text file, or .gz; else standard input.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else standard output.")] = None,
    beam_size: Annotated[str | None, typer.Option(help="Hypotheses kept at each step; 1 is greedy.")] = None,
    length_penalty: Annotated[str | None, typer.Option(help="Exponent of the length penalty.")] = None,
    n_best: Annotated[str, typer.Option(help="Translations of each line, as number, score and text.")] = "1",
    batch_tokens: Annotated[str | None, typer.Option(help="Most sentences x longest source x beam of a batch.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp64.")] = "fp32",
    scores: Annotated[bool, typer.Option("--scores", help="Write the score before each translation.")] = False,
) -> None:
    """Translate standard input or a file, line by line.

    Example: mtkit translate runs/demo < data/demo/test.fr
    """
    from mtkit.translator import load

    overrides = _decoding(beam_size, length_penalty, batch_tokens, device)
    num_best = _count("--n-best", n_best)
    with _source(file) as source:
        translator = load(model, overrides, _choice("--precision", precision, ("fp32", "bf16", "fp64")))
        if num_best > translator.config.decoding.beam_size:
            raise MtkitError(
                f"--n-best: found {num_best}, wants at most the beam size, {translator.config.decoding.beam_size}"
            )
        _translate(translator, source, output, num_best, scores)


def _translate(translator: Any, source: Any, output: Path | None, num_best: int, scores: bool) -> None:
    from mtkit.translate import translate

    at_once = source.isatty()
    if output is None:
        translate(translator, source, sys.stdout.buffer, num_best, scores, at_once)
        return
    try:
        with output.open("wb") as out:
            translate(translator, source, out, num_best, scores, at_once)
    except OSError as error:
        raise MtkitError(f"{output}: cannot be written: {error.strerror}") from None


@app.command()
def evaluate(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Run directory or model bundle.")] = None,
    source: Annotated[Path | None, typer.Option(help="Text to translate, in the place of the test sets.")] = None,
    reference: Annotated[list[Path] | None, typer.Option(help="Its reference; several may be given.")] = None,
    hypothesis: Annotated[Path | None, typer.Option(help="Translations to score, or -; in the place of MODEL.")] = None,
    target_language: Annotated[
        str, typer.Option(help="Language of the hypothesis, which picks BLEU's tokenizer.")
    ] = "",
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Compare without case.")] = False,
    beam_size: Annotated[str | None, typer.Option(help="Hypotheses kept at each step; 1 is greedy.")] = None,
    length_penalty: Annotated[str | None, typer.Option(help="Exponent of the length penalty.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model on its test sets or on these files: BLEU, chrF and TER with their signatures.

    Example: mtkit evaluate runs/demo --source data/demo/valid.fr --reference data/demo/valid.en
    """
    import json as json_text

    from mtkit.evaluate import table

    overrides = _decoding(beam_size, length_penalty, None, device)
    scores = _scores(model, source, reference or [], hypothesis, target_language, lowercase, overrides)
    if json:
        print(json_text.dumps([score.as_json() for score in scores], indent=1, ensure_ascii=False))
    else:
        print(table(scores), end="")


def _scores(
    model: Path | None,
    source: Path | None,
    references: list[Path],
    hypothesis: Path | None,
    target_language: str,
    lowercase: bool,
    overrides: list[str],
) -> list[Any]:
    if (model is None) == (hypothesis is None):
        raise UsageError("give either MODEL or --hypothesis")
    if hypothesis is not None:
        if not references or source is not None:
            raise UsageError("--hypothesis goes with --reference, and not with --source")
        return _scores_of_file(hypothesis, references, target_language, lowercase)
    if (source is None) != (not references):
        raise UsageError("--source and --reference go together")

    from mtkit.config.settings import TestSetConfig
    from mtkit.evaluate import evaluate, test_sets
    from mtkit.translator import load

    assert model is not None
    translator = load(model, overrides)
    if source is not None:
        sets = {source.name: TestSetConfig(source=source, target=tuple(references))}
    else:
        sets = test_sets(translator.config)
    return [score for name, test_set in sets.items() for score in evaluate(translator, name, test_set, lowercase)]


def _scores_of_file(hypothesis: Path, references: list[Path], target_language: str, lowercase: bool) -> list[Any]:
    from mtkit.evaluate import evaluate_file
    from mtkit.text.lines import decode_lines, read_lines

    if str(hypothesis) == "-":
        lines = [line for line, _ in decode_lines(sys.stdin.buffer)]
        return evaluate_file("standard input", lines, references, target_language, lowercase)
    return evaluate_file(hypothesis.name, list(read_lines(hypothesis)), references, target_language, lowercase)


def _decoding(
    beam_size: str | None, length_penalty: str | None, batch_tokens: str | None, device: str | None
) -> list[str]:
    """Options as settings, so that they are checked and told of as those are."""
    given = {
        "decoding.beam_size": beam_size,
        "decoding.length_penalty": length_penalty,
        "decoding.batch_tokens": batch_tokens,
        "device": device,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _count(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise MtkitError(f"{name}: found {value}, wants a whole number, at least 1")
    return int(value)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise MtkitError(f"{name}: found {value}, wants one of {', '.join(choices)}")
    return value


def _source(file: Path | None) -> Any:
    from mtkit.text.lines import open_binary

    return sys.stdin.buffer if file is None else open_binary(file)


def main() -> NoReturn:
    """Run the command line; every error the user can mend is told in mtkit's words."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="mtkit", standalone_mode=False)
    except StoppedError as error:
        _tell(str(error))
        return 130
    except MtkitError as error:
        _tell(str(error))
        return 1
    except UsageError as error:
        if not arguments:
            print(error.format_message())  # the help
        else:
            _tell(f"{error.format_message()} (mtkit --help shows how)")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; so that Python does not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _tell(message: str) -> None:
    for line in message.splitlines():
        print(f"mtkit: error: {line}", file=sys.stderr)
