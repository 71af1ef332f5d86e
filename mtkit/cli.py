"""The command line: each command reads its arguments, calls one function, prints."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from mtkit.errors import DataError, MtkitError, StoppedError
from mtkit.plot_commands import plot

EXAMPLE = "\b\nExample:\n  mtkit "  # how the help of each command ends; \b keeps its lines as they are

app = typer.Typer(
    name="mtkit",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

app.add_typer(plot, name="plot")
PRECISIONS = ("fp32", "bf16", "fp64")

# What a wrong call raises; typer carries its parent inside and exports it under no name.
UsageError: Any = typer.BadParameter.__mro__[1]

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings over those of the file.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory or model bundle.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start training anew; what was trained is deleted.")]
# Numbers and choices are read as text: mtkit checks them itself, so that every message is in its own words.
BeamSizeOption = Annotated[str | None, typer.Option(metavar="N", help="Hypotheses kept at each step; 1 is greedy.")]
LengthPenaltyOption = Annotated[str | None, typer.Option(metavar="X", help="Exponent of the length penalty.")]
BatchTokensOption = Annotated[
    str | None, typer.Option(metavar="N", help="Most sentences x longest source x beam of a batch.")
]
EnsembleOption = Annotated[
    list[Path] | None, typer.Option(metavar="MODEL", help="Another model that speaks along; more may be given.")
]
PrecisionOption = Annotated[str, typer.Option(metavar="NAME", help="fp32, bf16 or fp64.")]
DeviceOption = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]


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

    CONFIG is a YAML file, MODEL a run directory or a model bundle.
    """


@app.command(epilog=f"{EXAMPLE}config configs/demo.yaml training.max_steps=100")
def config(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file; without it, the defaults.")
    ] = None,
    settings: SettingsArgument = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of settings files instead.")] = False,
) -> None:
    """Print all settings with their meanings.

    What is printed is YAML that can be used again.
    """
    import json

    from mtkit.config.load import load_config
    from mtkit.config.show import config_schema, config_text

    settings = settings or []
    if config is not None and "=" in str(config) and not config.exists():
        config, settings = None, [str(config), *settings]  # the file was left out, not the settings
    if schema:
        print(json.dumps(config_schema(), indent=2))
    else:
        print(config_text(load_config(config, settings)), end="")


@app.command(epilog=f"{EXAMPLE}train-tokenizer configs/demo.yaml")
def train_tokenizer(config: ConfigArgument, settings: SettingsArgument = None) -> None:
    """Train the tokenizer on the training corpora."""
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_tokenizer

    run_tokenizer(load_config(config, settings or []))


@app.command(epilog=f"{EXAMPLE}binarize configs/demo.yaml")
def binarize(config: ConfigArgument, settings: SettingsArgument = None) -> None:
    """Encode the corpora to memory-mapped ids.

    What is left out is counted and reported. The tokenizer is trained first if it is missing.
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_binarize

    run_binarize(load_config(config, settings or []))


@app.command(epilog=f"{EXAMPLE}train configs/demo.yaml training.max_minutes=2")
def train(config: ConfigArgument, settings: SettingsArgument = None, fresh: FreshOption = False) -> None:
    """Train, going on where the run stopped.

    What is missing of tokenizer and data is made first. Ctrl-C saves the state and stops.
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_train

    run_train(load_config(config, settings or []), fresh)


@app.command(epilog=f"{EXAMPLE}run configs/demo.yaml")
def run(config: ConfigArgument, settings: SettingsArgument = None, fresh: FreshOption = False) -> None:
    """Do all that is out of date, then evaluate.

    The stages are train-tokenizer, binarize, train and evaluate; the scores are printed.
    """
    from mtkit.config.load import load_config
    from mtkit.evaluate import table
    from mtkit.pipeline import run_all

    scores = run_all(load_config(config, settings or []), fresh)
    if scores:
        print(table(scores), end="")


@app.command(epilog=f"{EXAMPLE}translate runs/demo data/demo/test.fr -o test.en")
def translate(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Text file, or .gz, .xz, .zst; else standard input.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here, at the end; until then to FILE.part. Else to standard output.",
        ),
    ] = None,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    n_best: Annotated[
        str, typer.Option(metavar="N", help="Translations of each line, as number, score and text with tabs between.")
    ] = "1",
    sample: Annotated[bool, typer.Option("--sample", help="Draw translations by their probabilities.")] = False,
    temperature: Annotated[str | None, typer.Option(metavar="X", help="Of samples; below 1 likelier ones.")] = None,
    top_k: Annotated[str | None, typer.Option(metavar="N", help="Sample from so many likeliest tokens.")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="P", help="Sample from the likeliest of this mass.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="All chance of samples comes from it.")] = None,
    mbr: Annotated[str | None, typer.Option(metavar="N", help="Let N samples elect the translation.")] = None,
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Line n of it begins the translation of line n.")
    ] = None,
    ensemble: EnsembleOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of decoding, such as stopping.")
    ] = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="Put before each line, for models of several languages: <2de>.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write the score and a tab before each translation.")
    ] = False,
) -> None:
    """Translate standard input or a file, line by line.

    N lines in, N lines out, in order; a blank line gives a blank one.
    """
    overrides = [
        *(f"decoding.{setting}" for setting in settings or []),
        *_decoding(beam_size, length_penalty, batch_tokens, device),
        *(["decoding.method=sample"] if sample else []),
        *_given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, mbr_samples=mbr),
    ]
    num_best = _count("--n-best", n_best)
    with _source(file) as source:
        from mtkit.text.lines import read_lines
        from mtkit.translator import load

        translator = load(model, overrides, _choice("--precision", precision, PRECISIONS), ensemble or [])
        _check_num_best(num_best, translator.config.decoding)
        if tag is not None:
            translator.require_tag(tag)
        _translate(translator, source, output, num_best, scores, tag, read_lines(prefix) if prefix else None)


def _check_num_best(num_best: int, decoding: Any) -> None:
    """A search has no more to give than it keeps; samples may be any number."""
    if decoding.mbr_samples:
        most, what = decoding.mbr_samples, "the samples that elect"
    elif decoding.draws:
        return
    else:
        most, what = decoding.beam_size, "the beam size"
    if num_best > most:
        raise MtkitError(f"--n-best: found {num_best}, wants at most {what}, {most}")


def _translate(
    translator: Any,
    source: Any,
    output: Path | None,
    num_best: int,
    scores: bool,
    tag: str | None,
    prefixes: Iterator[str] | None,
) -> None:
    from mtkit.translate import translate, writing

    at_once = source.isatty()
    if output is None:
        translate(translator, source, _standard_output(), num_best, scores, at_once, tag, prefixes)
        return
    with writing(output) as out:
        translate(translator, source, out, num_best, scores, at_once, tag, prefixes)


def _standard_output() -> Any:
    if sys.stdout is None:
        raise MtkitError("standard output is closed; send it somewhere, or write a file with -o")
    return sys.stdout.buffer


@app.command(epilog=f"{EXAMPLE}score runs/demo --source data/demo/test.fr --target data/demo/test.en")
def score(
    model: ModelArgument,
    source: Annotated[Path, typer.Option(metavar="FILE", help="Text, or .gz.")],
    target: Annotated[Path, typer.Option(metavar="FILE", help="Its translation, line by line.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Write a JSON list of [piece, log-probability] for each line instead.")
    ] = False,
    ensemble: EnsembleOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Score given translations by their log-probability.

    Each line tells log-probability, tokens, and log-probability a token, with tabs between; the end mark counts.
    """
    from mtkit.score import score
    from mtkit.translator import load

    overrides = _decoding(None, None, batch_tokens, device)
    translator = load(model, overrides, _choice("--precision", precision, PRECISIONS), ensemble or [])
    score(translator, source, target, _standard_output(), tokens)


class EvaluateCommand(TyperCommand):
    """Takes --by-length without its value, too, which typer has no way to say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left over."""
        given = [
            f"{arg}={THIRDS}" if arg == "--by-length" and not re.fullmatch("[0-9,]+", following) else arg
            for arg, following in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, given)


THIRDS = "thirds"


@app.command(
    cls=EvaluateCommand,
    epilog=f"{EXAMPLE}evaluate runs/demo --source data/demo/valid.fr --reference data/demo/valid.en",
)
def evaluate(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="Run directory or model bundle.")] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to translate, in the place of the test sets.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Its reference; several may be given.")
    ] = None,
    test_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of sacreBLEU, such as wmt14/full; several may be given.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="Put before each line of --source or --test-set.")
    ] = None,
    hypothesis: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Translations to score, or -; in the place of MODEL.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL|FILE", help="Compare with these; tells if the difference is significant."),
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="NAME", help="Of --against: bootstrap or randomization.")] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add bootstrap intervals of 95 %.")] = False,
    by_length: Annotated[
        str | None, typer.Option(metavar="[N,N,…]", help="Score thirds by words of the source, or up to N, up to N, ….")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Such as en-de; picks tokenizers and the text of --test-set.")
    ] = None,
    target_language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Language of --hypothesis, which picks BLEU's tokenizer.")
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Compare without case.")] = False,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    device: DeviceOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of {test_set, metric, score, signature}.")
    ] = False,
) -> None:
    """Score a model or a text: BLEU, chrF and TER.

    A model is scored on its test sets, on --source or on --test-set, a text by --hypothesis. Each score has its
    signature.
    """
    import json as json_text

    overrides = _decoding(beam_size, length_penalty, None, device)
    if (model is None) == (hypothesis is None):
        raise UsageError("give either MODEL or --hypothesis")
    if test is not None and against is None:
        raise UsageError("--test goes with --against")
    if confidence and against is not None:
        raise UsageError("--confidence is of one system; --against gives intervals by itself, with --test bootstrap")
    if test_set and (source is not None or reference):
        raise UsageError("--test-set has its own source and reference")
    if target_language is not None and (model is not None or languages is not None):
        raise UsageError("--target-language goes with --hypothesis alone, and not with --languages")
    chosen_test: Any = _choice("--test", test or "bootstrap", ("bootstrap", "randomization"))
    pair = _pair(languages) or ({"target": target_language} if target_language else {})
    edges = _edges(by_length)
    if model is not None:
        if (source is None) != (not reference):
            raise UsageError("--source and --reference go together")
        if tag is not None and source is None and not test_set:
            raise UsageError("--tag goes with --source or --test-set; those of the settings have their own")
    else:
        if overrides or tag is not None:
            raise UsageError("--hypothesis is translated already: no --beam-size, --length-penalty, --device or --tag")
        if not reference and len(test_set or []) != 1:
            raise UsageError("--hypothesis goes with --reference, or with one --test-set")
        if not test_set and (source is None) == (by_length is not None):
            raise UsageError("--hypothesis goes with --source if it is scored --by-length, and only then")

    from mtkit.config.data_settings import LanguagesConfig
    from mtkit.evaluate import Material, Scoring, score_models, score_texts, table

    scoring = Scoring(LanguagesConfig(**pair), lowercase, confidence, chosen_test, by_length is not None, edges)
    material = Material(source, tuple(reference or ()), tuple(test_set or ()), tag)
    if model is not None:
        overrides += [f"languages.{side}={code!r}" for side, code in pair.items()]
        scores = score_models(model, against, overrides, material, scoring)
    else:
        assert hypothesis is not None
        lines = _standard_input() if str(hypothesis) == "-" else None
        scores = score_texts(hypothesis, against, lines, material, scoring)
    if json:
        print(json_text.dumps([score.as_json() for score in scores], indent=1, ensure_ascii=False))
    else:
        print(table(scores), end="")


def _standard_input() -> list[str]:
    from mtkit.text.lines import decode_lines

    lines = []
    with _source(None) as stream:
        for number, (line, damaged) in enumerate(decode_lines(stream), start=1):
            if damaged:
                raise DataError(f"standard input:{number}: not valid UTF-8; convert it to UTF-8")
            lines.append(line)
    return lines


def _edges(text: str | None) -> tuple[int, ...]:
    """The bucket edges of --by-length."""
    if text in (None, THIRDS):
        return ()
    assert text is not None
    parts = text.split(",")
    edges = tuple(int(part) for part in parts if part.isascii() and part.isdigit())
    if len(edges) != len(parts) or list(edges) != sorted(set(edges)):
        raise MtkitError(f"--by-length: found {text}, wants rising whole numbers such as 10,20,30")
    return edges


def _pair(languages: str | None) -> dict[str, str]:
    """The codes of --languages."""
    if languages is None:
        return {}
    source, _, target = languages.partition("-")
    if not source or not target or "-" in target:
        raise MtkitError(f"--languages: found {languages}, wants the codes of source and target, such as en-de")
    return {"source": source, "target": target}


def _decoding(
    beam_size: str | None, length_penalty: str | None, batch_tokens: str | None, device: str | None
) -> list[str]:
    """Options as settings, so that they are checked and told of as those are."""
    found = _given(beam_size=beam_size, length_penalty=length_penalty, batch_tokens=batch_tokens)
    return found if device is None else [*found, f"device={device}"]


def _given(**settings: str | None) -> list[str]:
    """Those settings of decoding that have a value."""
    return [f"decoding.{name}={value}" for name, value in settings.items() if value is not None]


def _count(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise MtkitError(f"{name}: found {value}, wants a whole number, at least 1")
    return int(value)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise MtkitError(f"{name}: found {value}, wants one of {', '.join(choices)}")
    return value


@contextmanager
def _source(file: Path | None) -> Iterator[Any]:
    """A file, or standard input, which stays open."""
    if file is not None:
        from mtkit.translate import reading

        with reading(file) as stream:
            yield stream
    elif sys.stdin is None:
        raise DataError("standard input is closed; give it some text, or a FILE")
    else:
        yield sys.stdin.buffer


def main() -> NoReturn:
    """Run the command line; every error the user can mend is told in mtkit's words."""
    if isinstance(sys.stdout, TextIOWrapper):
        # UTF-8 whatever the locale; names of files that are not UTF-8 go out as they came in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="mtkit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except StoppedError as error:
        _tell(str(error))
        return 130
    except MtkitError as error:
        _tell(str(error))
        return 1
    except UsageError as error:
        if not arguments:
            print(error.format_message(), file=sys.stderr)  # the help
        else:
            _tell(f"{error.format_message()} (mtkit --help shows how)")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _tell(f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror or error}")
        # Who reads the output has gone, or the disk is full; without this Python would complain again at its exit.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _tell(message: str) -> None:
    for line in message.splitlines():
        print(f"mtkit: error: {line}", file=sys.stderr)
