"""The command line: registers the commands, runs one, and turns errors into one line and an exit code."""

import errno
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mtkit.commands import models as bundle_commands
from mtkit.commands import models as exchange_commands
from mtkit.commands.evaluate import EvaluateCommand, evaluate
from mtkit.commands.options import (
    EXAMPLE,
    PRECISIONS,
    BatchTokensOption,
    BeamSizeOption,
    ChangeOption,
    ConfigArgument,
    DeviceOption,
    EnsembleOption,
    FreshOption,
    LengthPenaltyOption,
    LineBufferedOption,
    ModelArgument,
    PrecisionOption,
    QuietOption,
    SettingsArgument,
    TagOption,
    UsageError,
    choice,
    count,
    decoding_settings,
    given,
    one_standard_input,
    opened,
    standard_output,
    tell_of_typing,
    told_of_wrong_call,
    typed,
)
from mtkit.commands.plot import plot
from mtkit.errors import CheckpointError, MtkitError, SignalError, StoppedError, is_out_of_memory, say
from mtkit.files import NOTHING_HALF, ended_by_signal

STOPPED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what writing ends with where there is no room

app = typer.Typer(
    name="mtkit",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

app.add_typer(plot, name="plot")


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
    from mtkit.config.settings import config_schema, config_text

    settings = settings or []
    if config is not None and "=" in str(config) and not config.exists():
        config, settings = None, [str(config), *settings]  # the file was left out, not the settings
    if schema:
        print(json.dumps(config_schema(), indent=2))
        return
    found = load_config(config, settings)
    if found.training.start_from is not None:
        from mtkit.bundle.opening import carried_over  # here, since all else goes without torch

        found = carried_over(found)
    print(config_text(found), end="")


@app.command(epilog=f"{EXAMPLE}train-tokenizer configs/demo.yaml")
def train_tokenizer(config: ConfigArgument, settings: SettingsArgument = None, quiet: QuietOption = False) -> None:
    """Train the tokenizer on the training corpora."""
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_tokenizer

    run_tokenizer(load_config(config, settings or []))


@app.command(epilog=f"{EXAMPLE}binarize configs/demo.yaml")
def binarize(config: ConfigArgument, settings: SettingsArgument = None, quiet: QuietOption = False) -> None:
    """Encode the corpora to memory-mapped ids.

    What is left out is counted and reported. The tokenizer is trained first if it is missing.
    """
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_binarize

    run_binarize(load_config(config, settings or []))


@app.command(epilog=f"{EXAMPLE}train configs/demo.yaml training.max_minutes=2")
def train(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    fresh: FreshOption = False,
    change: ChangeOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train, going on where the run stopped.

    What is missing of tokenizer and data is made first. Ctrl-C saves the state and stops; SIGUSR1 saves it and goes on.
    """
    _require_one_way(fresh, change)
    from mtkit.config.load import load_config
    from mtkit.pipeline import run_train

    run_train(load_config(config, settings or []), fresh, change)


def _require_one_way(fresh: bool, change: bool) -> None:
    if fresh and change:
        raise UsageError("--fresh starts anew and --change goes on; give one of them")


@app.command(epilog=f"{EXAMPLE}run configs/demo.yaml")
def run(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    fresh: FreshOption = False,
    change: ChangeOption = False,
    quiet: QuietOption = False,
) -> None:
    """Do all that is out of date, then evaluate.

    The stages are train-tokenizer, binarize, train and evaluate; the scores are printed.
    """
    _require_one_way(fresh, change)
    from mtkit.config.load import load_config
    from mtkit.evaluation.evaluate import table
    from mtkit.pipeline import run_all

    scores = run_all(load_config(config, settings or []), fresh, change)
    if scores:
        print(table(scores), end="")


@app.command(epilog=f"{EXAMPLE}verify runs/demo")
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="Run directory or YAML file.")],
    settings: SettingsArgument = None,
    files_only: Annotated[bool, typer.Option("--files-only", help="Only read the files of the run.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Tell whether a run is whole and resumes exactly.

    All files of the run are compared with their checksums. Then a few updates are trained twice in a temporary folder,
    once with kills, and both must leave the same to the bit. The run itself is only read.
    """
    from mtkit.training.verify import verify, verify_settings

    faults = []
    for report in verify(verify_settings(run, settings or []), files_only):
        for line in report.lines:
            print(line, flush=True)
        faults += report.faults
    if faults:
        raise CheckpointError("\n".join(faults))


@app.command(epilog=f"{EXAMPLE}translate runs/demo data/demo/test.fr -o test.en")
def translate(
    model: ModelArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Text file, packed or not; else, or for -, standard input.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here, at the end; until then to FILE.part. Else, or for -, to standard output.",
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
    tag: TagOption = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write the score and a tab before each translation.")
    ] = False,
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Translate standard input or a file, line by line.

    N lines in, N lines out, in order; a blank line gives a blank one.
    """
    overrides = [
        *(f"decoding.{setting}" for setting in settings or []),
        *decoding_settings(beam_size, length_penalty, batch_tokens, device),
        *(["decoding.method=sample"] if sample else []),
        *given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, mbr_samples=mbr),
    ]
    num_best = count("--n-best", n_best)
    one_standard_input(file or Path("-"), prefix)
    with opened(file) as source:
        from mtkit.translation.translator import load

        translator = load(model, overrides, choice("--precision", precision, PRECISIONS), ensemble or [])
        _check_num_best(num_best, translator.config.decoding)
        if tag is not None:
            translator.require_tag(tag)
        at_once = line_buffered or source.isatty()
        if source.isatty():
            tell_of_typing("to have it translated")
        _translate(translator, file, source, output, num_best, scores, at_once, tag, prefix)


MOST_SAMPLES = 10_000


def _check_num_best(num_best: int, decoding: Any) -> None:
    """A search has no more to give than it keeps."""
    if decoding.mbr_samples:
        most, what = decoding.mbr_samples, "the samples that elect"
    elif decoding.draws:
        most, what = MOST_SAMPLES, "as many samples of a line as mtkit draws"
    else:
        most, what = decoding.beam_size, "the beam size"
    if num_best > most:
        raise MtkitError(f"--n-best: found {num_best}, wants at most {what}, {most}")


def _translate(
    translator: Any,
    file: Path | None,
    source: Any,
    output: Path | None,
    num_best: int,
    scores: bool,
    at_once: bool,
    tag: str | None,
    prefixes: Path | None,
) -> None:
    from mtkit.translation.stream import lines_to_come, translate, writing

    num_lines = lines_to_come(file)
    if output is None or str(output) == "-":
        translate(translator, source, standard_output(), num_best, scores, at_once, tag, prefixes, num_lines)
        return
    with writing(output) as out:
        translate(translator, source, out, num_best, scores, at_once, tag, prefixes, num_lines)


@app.command(epilog=f"{EXAMPLE}score runs/demo --source data/demo/test.fr --target data/demo/test.en")
def score(
    model: ModelArgument,
    source: Annotated[Path | None, typer.Option(metavar="FILE", help="Text, packed or not, or -.")] = None,
    target: Annotated[Path | None, typer.Option(metavar="FILE", help="Its translation, line by line, or -.")] = None,
    n_best: Annotated[
        bool, typer.Option("--n-best", help="--target is as translate --n-best writes it: number, score and text.")
    ] = False,
    tsv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead: source, tab and translation in each line, or -.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Write a JSON list of [piece, log-probability] for each line instead.")
    ] = False,
    tag: TagOption = None,
    ensemble: EnsembleOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score given translations by their log-probability.

    Each line tells log-probability, tokens, and log-probability a token, with tabs between; the end mark counts.
    """
    _require_texts(source, target, tsv, n_best)
    from mtkit.translation.stream import NBestList, PairsFile, ParallelFiles, score
    from mtkit.translation.translator import load

    texts: ParallelFiles | NBestList | PairsFile
    if tsv is not None:
        texts = PairsFile(tsv)
    else:
        assert source is not None
        assert target is not None
        texts = NBestList(source, target) if n_best else ParallelFiles(source, target)
    overrides = decoding_settings(None, None, batch_tokens, device)
    translator = load(model, overrides, choice("--precision", precision, PRECISIONS), ensemble or [])
    at_once = line_buffered or typed(*texts.paths)
    if typed(*texts.paths):
        tell_of_typing("to have it scored" if tsv is not None else "of the text that is to be scored")
    score(translator, texts, standard_output(), tokens, tag, at_once)


def _require_texts(source: Path | None, target: Path | None, tsv: Path | None, n_best: bool) -> None:
    if tsv is not None and (source is not None or target is not None or n_best):
        raise UsageError("--tsv goes without --source, --target and --n-best; each of its lines has both sides")
    if tsv is None and (source is None or target is None):
        raise UsageError("give --source and --target, or --tsv")
    one_standard_input(source, target)


app.command(
    cls=EvaluateCommand,
    epilog=f"{EXAMPLE}evaluate runs/demo --source data/demo/valid.fr --reference data/demo/valid.en",
)(evaluate)
bundle_commands.add_to(app)
exchange_commands.add_to(app)


def main() -> NoReturn:
    """Run the command line; every error the user can mend is told in mtkit's words."""
    if sys.stderr is None:
        # Closed: the first file to be opened would get its number, and whatever a library writes to stderr.
        sys.stderr = os.fdopen(_opened_null(2), "w", encoding="utf-8")
    if isinstance(sys.stdout, TextIOWrapper):
        # UTF-8 whatever the locale; names of files that are not UTF-8 go out as they came in.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    with ended_by_signal():
        code = _run(sys.argv[1:])
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        # Who reads stderr has gone; Python would fail to write the rest at its exit, and change the exit code.
        _opened_null(sys.stderr.fileno())
    sys.exit(code)


def _opened_null(descriptor: int) -> int:
    """The null device under a descriptor of that number."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    return descriptor


def _run(arguments: list[str]) -> int:
    try:
        result = app(arguments, prog_name="mtkit", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        if result == STOPPED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except StoppedError as error:
        _tell(str(error))
        return error.code
    except MtkitError as error:
        _tell(str(error))
        return 1
    except UsageError as error:
        if not arguments:
            say(error.format_message())  # the help
        else:
            _tell(told_of_wrong_call(error, arguments))
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
        # Who reads the output has gone, or the disk is full; without this Python would complain again at its exit.
        if sys.stdout is not None:
            _opened_null(sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _tell(message: str) -> None:
    for line in message.splitlines():
        say(f"mtkit: error: {line}")
