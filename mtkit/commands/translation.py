"""`mtkit translate` and `mtkit score`: commands that translate text and score translations."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from mtkit.commands.options import (
    ENGINES,
    EXAMPLE,
    PRECISIONS,
    BatchTokensOption,
    BeamSizeOption,
    DeviceOption,
    EngineOption,
    EnsembleOption,
    LengthPenaltyOption,
    LineBufferedOption,
    ModelArgument,
    PrecisionOption,
    QuietOption,
    TagOption,
    UsageError,
    WorkersOption,
    choice,
    count,
    decoding_settings,
    given,
    one_standard_input,
    opened,
    standard_output,
    tell_of_typing,
    typed,
    worker_count,
)
from mtkit.errors import MtkitError


def translate(
    model: ModelArgument,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Text file, plain or compressed; else, or for -, stdin."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write, as FILE.part until the end; without it, or for -, standard output.",
        ),
    ] = None,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    n_best: Annotated[
        str, typer.Option(metavar="N", help="Translations of each line, as number, score and text, separated by tabs.")
    ] = "1",
    sample: Annotated[bool, typer.Option("--sample", help="Sample translations by their probability.")] = False,
    temperature: Annotated[
        str | None, typer.Option(metavar="X", help="Of samples; below 1 favours likelier ones.")
    ] = None,
    top_k: Annotated[str | None, typer.Option(metavar="N", help="Sample from this many likeliest tokens.")] = None,
    top_p: Annotated[
        str | None, typer.Option(metavar="P", help="Sample from the likeliest tokens that hold this share.")
    ] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Seed of samples.")] = None,
    mbr: Annotated[str | None, typer.Option(metavar="N", help="Choose among N samples by minimum Bayes risk.")] = None,
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its line n begins the translation of line n.")
    ] = None,
    ensemble: EnsembleOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of decoding, such as stopping=count."),
    ] = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = "auto",
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "torch",
    tag: TagOption = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write the score and a tab before each translation.")
    ] = False,
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Translate standard input or a file, line by line.

    N lines in, N lines out, in order; a blank line gives a blank line.
    """
    overrides = [
        *(f"decoding.{setting}" for setting in settings or []),
        *decoding_settings(beam_size, length_penalty, batch_tokens, device),
        *(["decoding.method=sample"] if sample else []),
        *given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, mbr_samples=mbr),
    ]
    num_best = count("--n-best", n_best)
    num_workers = worker_count(workers)
    one_standard_input(file or Path("-"), prefix)
    with opened(file) as source, ExitStack() as open_to_the_end:
        from mtkit.exchange.engine import load
        from mtkit.translation.workers import Opening, with_workers

        chosen_engine = choice("--engine", engine, ENGINES)
        opening = Opening(model, tuple(overrides), choice("--precision", precision, PRECISIONS), tuple(ensemble or ()))
        translator = load(opening.path, opening.overrides, opening.precision, opening.ensemble, chosen_engine)
        translator = open_to_the_end.enter_context(with_workers(translator, opening, num_workers))
        _check_num_best(num_best, translator.config.decoding)
        if tag is not None:
            translator.require_tag(tag)
        at_once = line_buffered or source.isatty()
        if source.isatty():
            tell_of_typing("to have it translated")
        _translate(translator, file, source, output, num_best, scores, at_once, tag, prefix)


MOST_SAMPLES = 10_000


def _check_num_best(num_best: int, decoding: Any) -> None:
    """Raise MtkitError if --n-best is more than the number of translations that the decoding settings allow."""
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


def score(
    model: ModelArgument,
    source: Annotated[Path | None, typer.Option(metavar="FILE", help="Text file, plain or packed, or -.")] = None,
    target: Annotated[Path | None, typer.Option(metavar="FILE", help="Its translation, line by line, or -.")] = None,
    n_best: Annotated[
        bool, typer.Option("--n-best", help="--target has the format of translate --n-best: number, score and text.")
    ] = False,
    tsv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of both: source, tab and translation on each line, or -."),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="For each line, write a JSON list of [piece, log-probability].")
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

    Each output line has the log-probability, the number of tokens, and the log-probability per token, separated by
    tabs; the end mark counts as a token.
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


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(epilog=f"{EXAMPLE}translate runs/demo data/demo/test.fr -o test.en")(translate)
    app.command(epilog=f"{EXAMPLE}score runs/demo --source data/demo/test.fr --target data/demo/test.en")(score)
