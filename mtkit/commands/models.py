"""Commands that use, make or inspect a model.

These are `mtkit translate`, `generate`, `score`, `align`, `bundle`, `pack`, `info`, `check`, `export`, `import` and
`extend`.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtkit.commands.options import (
    ENGINES,
    EXAMPLE,
    PRECISIONS,
    AlignmentHead,
    AlignmentLayer,
    AlignmentStep,
    AlignmentThreshold,
    AlignmentUnits,
    BatchTokensOption,
    BeamSizeOption,
    DeviceOption,
    EngineOption,
    EnsembleOption,
    HiddenAlignmentHead,
    HiddenAlignmentLayer,
    HiddenAlignmentStep,
    HiddenAlignmentThreshold,
    HiddenAlignmentUnits,
    LengthPenaltyOption,
    LineBufferedOption,
    ModelArgument,
    PrecisionOption,
    QuietOption,
    SetOption,
    ShortlistOption,
    TagOption,
    UsageError,
    WorkersOption,
    alignment_settings,
    choice,
    count,
    decoding_settings,
    given,
    language_pair,
    one_standard_input,
    opened,
    set_settings,
    standard_output,
    tell_of_typing,
    typed,
    worker_count,
)
from mtkit.errors import CheckpointError, MtkitError, say, whole_number
from mtkit.files import json_text

if TYPE_CHECKING:
    from mtkit.translation.alignments import AlignmentSettings
    from mtkit.translation.stream import NBestList, PairsFile, ParallelFiles, TargetFile

AlignmentsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write word alignments; see mtkit align --help."),
]
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Text file, plain or compressed; else, or for -, stdin.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write, FILE.part until the end; or -.",
    ),
]
TemperatureOption = Annotated[str | None, typer.Option(metavar="X", help="Of samples; below 1 favours likelier ones.")]
TopKOption = Annotated[str | None, typer.Option(metavar="N", help="Sample from this many likeliest tokens.")]
TopPOption = Annotated[str | None, typer.Option(metavar="P", help="Sample from the likeliest that hold this share.")]
SeedOption = Annotated[str | None, typer.Option(metavar="N", help="Seed of samples.")]


def translate(
    model: ModelArgument,
    file: FileArgument = None,
    output: OutputOption = None,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    n_best: Annotated[str, typer.Option(metavar="N", help="N best a line: number, score, text.")] = "1",
    sample: Annotated[bool, typer.Option("--sample", help="Sample translations by their probability.")] = False,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    mbr: Annotated[str | None, typer.Option(metavar="N", help="Choose among N samples by minimum Bayes risk.")] = None,
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its line n begins the translation of line n.")
    ] = None,
    ensemble: EnsembleOption = None,
    language_model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="A language model that takes part in the search."),
    ] = None,
    settings: SetOption = None,
    shortlist: ShortlistOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = "auto",
    precision: PrecisionOption = "fp32",
    engine: EngineOption = "torch",
    tag: TagOption = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Write the score and a tab before each translation.")
    ] = False,
    alignments: AlignmentsOption = None,
    alignment_units: HiddenAlignmentUnits = "words",
    alignment_layer: HiddenAlignmentLayer = None,
    alignment_head: HiddenAlignmentHead = None,
    alignment_threshold: HiddenAlignmentThreshold = None,
    alignment_step: HiddenAlignmentStep = "predicted",
    line_buffered: LineBufferedOption = False,
    part: Annotated[
        str | None, typer.Option("--part", metavar="K/N", help="Only this part of FILE's lines, such as 2/8.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Translate text: N lines in, N lines out, in order."""
    overrides = [
        *set_settings(settings),
        *decoding_settings(beam_size, length_penalty, batch_tokens, device),
        *(["decoding.method=sample"] if sample else []),
        *given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, mbr_samples=mbr, shortlist=shortlist),
    ]
    if language_model is None and any(each.startswith("decoding.language_model_weight=") for each in overrides):
        raise UsageError("--set language_model_weight weighs a language model; name one by --language-model")
    num_best = count("--n-best", n_best)
    num_workers = worker_count(workers)
    alignment = _alignment(
        alignments, alignment_units, alignment_layer, alignment_head, alignment_threshold, alignment_step
    )
    one_standard_input(file or Path("-"), prefix)
    lines = None if part is None else _part(part, file)
    with opened(file) as source, ExitStack() as open_to_the_end:
        from mtkit.exchange.engines import load
        from mtkit.translation.workers import Opening, with_workers

        chosen_engine = choice("--engine", engine, ENGINES)
        run_precision = choice("--precision", precision, PRECISIONS)
        opening = Opening(model, tuple(overrides), run_precision, tuple(ensemble or ()), language_model, alignment)
        translator = load(
            opening.path, opening.overrides, opening.precision, opening.ensemble, chosen_engine, language_model
        )
        if alignment is not None:
            translator.align_with(alignment)
        translator = open_to_the_end.enter_context(with_workers(translator, opening, num_workers))
        _check_num_best(num_best, translator.config.decoding)
        if tag is not None:
            translator.require_tag(tag)
        at_once = line_buffered or source.isatty()
        if source.isatty():
            tell_of_typing("to have it translated")
        _translate(translator, file, source, output, num_best, scores, at_once, tag, prefix, alignments, lines)


MOST_SAMPLES = 10_000


def _check_num_best(num_best: int, decoding: Any) -> None:
    """Raise MtkitError if --n-best is more than the number of translations that the decoding settings allow."""
    if decoding.mbr_samples:
        most, what = decoding.mbr_samples, "the samples that elect"
    elif decoding.draws:
        most, what = MOST_SAMPLES, "as many samples of a line as mtkit draws"
    else:
        what = "length_candidates" if decoding.method == "mask_predict" else "the beam size"
        most = decoding.num_hypotheses
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
    alignments: Path | None,
    part: range | None,
) -> None:
    from mtkit.translation.stream import lines_to_come, translate, writing

    num_lines = lines_to_come(file) if part is None else len(part)
    with ExitStack() as files:
        links = None if alignments is None else files.enter_context(writing(alignments))
        out = standard_output() if output is None or str(output) == "-" else files.enter_context(writing(output))
        translate(translator, source, out, num_best, scores, at_once, tag, prefixes, num_lines, links, part)


def _part(text: str, file: Path | None) -> range:
    """Returns the indices, from 0, of the lines of `file` to translate.

    `text` is the value of --part, such as 2/8 for the second of eight parts. Raises MtkitError if `text` is not of this
    form, or if the lines of the file cannot be counted beforehand.
    """
    from mtkit.text.lines import STANDARD_INPUT, count_lines, path_may_pause
    from mtkit.translation.stream import parted

    number, _, parts = map(whole_number, text.partition("/"))
    if not number or not parts or number > parts:
        raise MtkitError(f"--part: found {text}, wants K/N, such as 2/8 for the second of eight parts")
    if file is None or file == STANDARD_INPUT or path_may_pause(file):
        raise MtkitError(f"--part {text}: wants a FILE, whose lines can be counted before they are translated")
    return parted(number, parts, count_lines(file))


def _alignment(
    file: Path | None, units: str, layer: str | None, head: str | None, threshold: str | None, step: str
) -> "AlignmentSettings | None":
    """Returns the settings for reading alignments off attention; `None` if `file` is `None`.

    `file` is the value of --alignments, and the other arguments are the values of options such as --alignment-units.
    Raises UsageError if `file` is `-`, or if one of these other options is given without `file`.
    """
    if str(file) == "-":
        raise UsageError("--alignments goes into a FILE; standard output, -, has the other results")
    return alignment_settings(file is not None, units, layer, head, threshold, step)


def generate(
    model: ModelArgument,
    file: FileArgument = None,
    output: OutputOption = None,
    next_: Annotated[
        str | None,
        typer.Option("--next", metavar="N", help="List the N likeliest next tokens: line number, probability, piece."),
    ] = None,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    n_best: Annotated[
        str, typer.Option(metavar="N", help="Texts for each line, as number, score and text, separated by tabs.")
    ] = "1",
    sample: Annotated[bool, typer.Option("--sample", help="Sample texts by their probability.")] = False,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    scores: Annotated[bool, typer.Option("--scores", help="Write the score and a tab before each text.")] = False,
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Continue lines with a language model.

    The lines come from standard input or a file. An empty line is continued from nothing. Beam search finds likely
    texts; --sample draws varied ones.
    """
    overrides = [
        *set_settings(settings),
        *decoding_settings(beam_size, length_penalty, batch_tokens, device),
        *(["decoding.method=sample"] if sample else []),
        *given(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
    ]
    num_best = count("--n-best", n_best)
    num_next = None if next_ is None else count("--next", next_)
    if num_next and (num_best > 1 or sample or scores):
        raise UsageError("--next lists single tokens; it goes without --n-best, --sample and --scores")
    with opened(file) as source, ExitStack() as open_to_the_end:
        from mtkit.translation.stream import generate, lines_to_come, list_next, writing
        from mtkit.translation.translator import load

        translator = load(model, overrides, choice("--precision", precision, PRECISIONS))
        translator.require_task("language_model")
        _check_num_best(num_best, translator.config.decoding)
        if source.isatty():
            tell_of_typing("to have it continued")
        is_file = output is not None and str(output) != "-"
        out = open_to_the_end.enter_context(writing(output)) if output and is_file else standard_output()
        if num_next:
            list_next(translator, source, out, num_next)
        else:
            at_once = line_buffered or source.isatty()
            generate(translator, source, out, num_best, scores, at_once, lines_to_come(file))


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
    summary: Annotated[
        bool, typer.Option("--summary", help="Write perplexities and bits of the whole text instead of its lines.")
    ] = False,
    tag: TagOption = None,
    ensemble: EnsembleOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    alignments: AlignmentsOption = None,
    alignment_units: HiddenAlignmentUnits = "words",
    alignment_layer: HiddenAlignmentLayer = None,
    alignment_head: HiddenAlignmentHead = None,
    alignment_threshold: HiddenAlignmentThreshold = None,
    alignment_step: HiddenAlignmentStep = "predicted",
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score given translations by their log-probability.

    Each output line has the log-probability, the number of tokens, and the log-probability per token, separated by
    tabs; the end mark counts as a token. A language model wants --target alone.
    """
    if summary and (tokens or alignments is not None):
        raise UsageError("--summary is of the whole text; it goes without --tokens and --alignments")
    texts = _texts(source, target, tsv, n_best)
    alignment = _alignment(
        alignments, alignment_units, alignment_layer, alignment_head, alignment_threshold, alignment_step
    )
    from mtkit.translation.stream import score, writing
    from mtkit.translation.translator import load

    overrides = decoding_settings(None, None, batch_tokens, device)
    translator = load(model, overrides, choice("--precision", precision, PRECISIONS), ensemble or [])
    at_once = line_buffered or typed(*texts.paths)
    if typed(*texts.paths):
        tell_of_typing("to have it scored" if tsv is not None else "of the text that is to be scored")
    with ExitStack() as files:
        links = None
        if alignment is not None and alignments is not None:
            translator.align_with(alignment)
            links = files.enter_context(writing(alignments))
        score(translator, texts, standard_output(), tokens, tag, at_once, summary, links)


def align(
    model: ModelArgument,
    source: Annotated[Path | None, typer.Option(metavar="FILE", help="Text file, plain or packed, or -.")] = None,
    target: Annotated[Path | None, typer.Option(metavar="FILE", help="Its translation, line by line, or -.")] = None,
    tsv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of both: source, tab and translation on each line, or -."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; without it, or for -, standard output."),
    ] = None,
    alignment_units: AlignmentUnits = "words",
    alignment_layer: AlignmentLayer = None,
    alignment_head: AlignmentHead = None,
    alignment_threshold: AlignmentThreshold = None,
    alignment_step: AlignmentStep = "predicted",
    tag: TagOption = None,
    ensemble: EnsembleOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = "fp32",
    line_buffered: LineBufferedOption = False,
    quiet: QuietOption = False,
) -> None:
    """Align the words of given translations by attention.

    Each output line has links such as 0-0 1-2: the number of a source word and of a target word, both from 0. White
    space separates words. Without --alignment-layer and --alignment-head, links are read from the head that guided
    alignment trained or, without guided alignment, from the mean over all heads of all layers.
    """
    if source is None and tsv is None:
        raise UsageError("give --source and --target, or --tsv")
    texts = _texts(source, target, tsv, n_best=False)
    alignment = alignment_settings(
        True, alignment_units, alignment_layer, alignment_head, alignment_threshold, alignment_step
    )
    assert alignment is not None
    from mtkit.translation.stream import align, writing
    from mtkit.translation.translator import load

    overrides = decoding_settings(None, None, batch_tokens, device)
    translator = load(model, overrides, choice("--precision", precision, PRECISIONS), ensemble or [])
    translator.align_with(alignment)
    at_once = line_buffered or typed(*texts.paths)
    if typed(*texts.paths):
        tell_of_typing("to have it aligned" if tsv is not None else "of the text that is to be aligned")
    with ExitStack() as files:
        out = standard_output() if output is None or str(output) == "-" else files.enter_context(writing(output))
        align(translator, texts, out, tag, at_once)


def _texts(
    source: Path | None, target: Path | None, tsv: Path | None, n_best: bool
) -> "ParallelFiles | NBestList | PairsFile | TargetFile":
    """Returns the texts that the options name; raises UsageError if the options do not go together.

    `source`, `target` and `tsv` are paths of files. With `n_best`, the file `target` has several translations of each
    line of `source`. Without `source`, `target` is text for a language model.
    """
    _require_texts(source, target, tsv, n_best)
    from mtkit.translation.stream import NBestList, PairsFile, ParallelFiles, TargetFile

    if tsv is not None:
        return PairsFile(tsv)
    assert target is not None
    if source is None:
        return TargetFile(target)
    return NBestList(source, target) if n_best else ParallelFiles(source, target)


def _require_texts(source: Path | None, target: Path | None, tsv: Path | None, n_best: bool) -> None:
    if tsv is not None and (source is not None or target is not None or n_best):
        raise UsageError("--tsv goes without --source, --target and --n-best; each of its lines has both sides")
    if tsv is None and (target is None or (source is None and n_best)):
        raise UsageError("give --source and --target, or --tsv; a language model wants --target alone")
    one_standard_input(source, target)


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

    The file can be used as MODEL. The same model always gives the same bytes.
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
    from mtkit.translation.stream import check

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
    from mtkit.exchange.formats import export

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
    from mtkit.exchange.formats import import_model

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
    from mtkit.exchange.formats import extend

    extend(model, output, new, tag or [])


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(epilog=f"{EXAMPLE}translate runs/demo data/demo/test.fr -o test.en")(translate)
    app.command(epilog=f"{EXAMPLE}generate runs/language-model data/demo/test.en --sample")(generate)
    app.command(epilog=f"{EXAMPLE}score runs/demo --source data/demo/test.fr --target data/demo/test.en")(score)
    app.command(epilog=f"{EXAMPLE}align runs/demo --source data/demo/test.fr --target data/demo/test.en")(align)
    app.command(epilog=f"{EXAMPLE}bundle runs/demo --step best -o models/demo")(bundle)
    app.command(epilog=f"{EXAMPLE}pack runs/demo demo.mtkit")(pack)
    app.command(epilog=f"{EXAMPLE}info runs/demo")(info)
    app.command(epilog=f"{EXAMPLE}check runs/demo")(check)
    app.command(epilog=f"{EXAMPLE}export runs/demo --to ctranslate2 -o demo-ct2")(export)
    app.command(epilog=f"{EXAMPLE}extend runs/demo --piece Ĝ -o models/larger")(extend)
    app.command(name="import", epilog=f"{EXAMPLE}import opus-mt-fr-en -o models/fr-en")(import_)
