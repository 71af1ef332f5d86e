"""Commands that score translations, measure speed, draw pictures, write reports and run experiments."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from mtkit.commands.options import (
    ENGINES,
    EXAMPLE,
    PRECISIONS,
    BatchTokensOption,
    BeamSizeOption,
    ConfigArgument,
    DeviceOption,
    EngineOption,
    HiddenAlignmentHead,
    HiddenAlignmentLayer,
    HiddenAlignmentStep,
    HiddenAlignmentThreshold,
    LengthPenaltyOption,
    ModelArgument,
    PrecisionOption,
    QuietOption,
    SetOption,
    SettingsArgument,
    UsageError,
    WorkersOption,
    alignment_settings,
    choice,
    count,
    decoding_settings,
    language_pair,
    load_settings,
    minutes_above_0,
    one_standard_input,
    set_settings,
    tell_of_typing,
    typed,
    worker_count,
)
from mtkit.errors import MtkitError, say, whole_number
from mtkit.files import json_text

if TYPE_CHECKING:
    from mtkit.evaluation.evaluate import ScoredSet, Scoring

THIRDS = "thirds"


class EvaluateCommand(TyperCommand):
    """The command `evaluate`, which also accepts --by-length without a value.

    Typer has no options whose value may be left out, so this class adds the value.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; returns the arguments that are left over.

        --by-length without a value is read as --by-length=thirds.
        """
        given = [
            f"{arg}={THIRDS}" if arg == "--by-length" and not re.fullmatch("[0-9,]+", following) else arg
            for arg, following in pairwise([*args, ""])
        ]
        return super().parse_args(ctx, given)


def evaluate(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="Run directory, checkpoint or model bundle.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to translate, in the place of the test sets.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Its reference; several may be given.")
    ] = None,
    test_set: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of sacreBLEU, such as wmt14/full; may be repeated.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Put before each line of --source or --test-set.")
    ] = None,
    hypothesis: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Translations to score, or -; in the place of MODEL.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL|FILE", help="Compare with these; tells if it is significant."),
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="NAME", help="Of --against: bootstrap or randomization.")] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add bootstrap intervals of 95 %.")] = False,
    by_length: Annotated[
        str | None, typer.Option(metavar="[N,N,…]", help="Score thirds by source words, or up to N, ….")
    ] = None,
    languages: Annotated[
        str | None, typer.Option(metavar="PAIR", help="Such as en-de; for tokenizers and --test-set.")
    ] = None,
    target_language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of --hypothesis; picks BLEU's tokenizer.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="NAMES", help="Some of bleu,chrf,chrf++,ter.")] = None,
    tokenize: Annotated[
        str | None, typer.Option(metavar="NAME", help="BLEU's tokenizer in sacreBLEU, such as flores200.")
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Compare without case.")] = False,
    gold_alignments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score alignments instead; see mtkit align.")
    ] = None,
    alignment_layer: HiddenAlignmentLayer = None,
    alignment_head: HiddenAlignmentHead = None,
    alignment_threshold: HiddenAlignmentThreshold = None,
    alignment_step: HiddenAlignmentStep = "predicted",
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    decoding: SetOption = None,
    device: DeviceOption = None,
    workers: WorkersOption = "auto",
    engine: EngineOption = "torch",
    precision: PrecisionOption = "fp32",
    json: Annotated[bool, typer.Option("--json", help="JSON list of {test_set, metric, score, signature}.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model or a text: BLEU, chrF and TER.

    A MODEL is scored on its test sets, on --source or on --test-set. With --hypothesis, a given text is scored.
    Each score has its signature.
    """
    given = Given(model, hypothesis, against, source, tuple(reference or ()), tuple(test_set or ()), tag)
    overrides = [
        *set_settings(decoding),
        *decoding_settings(beam_size, length_penalty, None, device),
    ]
    num_workers = worker_count(workers)
    choice("--engine", engine, ENGINES)
    choice("--precision", precision, PRECISIONS)
    alignment = alignment_settings(
        gold_alignments is not None,
        "words",
        alignment_layer,
        alignment_head,
        alignment_threshold,
        alignment_step,
        wanted_by="--gold-alignments",
    )
    one_standard_input(*given.files, gold_alignments)
    _check_options(given, test, confidence, languages, target_language)
    chosen_test: Any = choice("--test", test or "bootstrap", ("bootstrap", "randomization"))
    codes = _language_codes(languages, target_language)
    edges = _edges(by_length)
    if model is not None:
        _check_model_options(given)
    else:
        _check_hypothesis_options(given, by_length, bool(overrides) or engine != "torch" or precision != "fp32")
    if typed(*given.files):
        tell_of_typing("for each line of the text that is to be scored")

    if alignment is not None and gold_alignments is not None:
        _check_alignment_options(given, confidence or lowercase or by_length is not None, metrics or tokenize)
        from mtkit.evaluation.evaluate import TestData, score_alignments

        assert model is not None
        data = TestData(given.source, given.references, tag=given.tag)
        _print_scores(score_alignments(model, overrides, data, gold_alignments, alignment, precision), json)
        return

    from mtkit.config.data_and_model_settings import LanguagesConfig
    from mtkit.evaluation.evaluate import Scoring

    scoring = Scoring(
        LanguagesConfig(**codes),
        lowercase,
        confidence,
        chosen_test,
        by_length is not None,
        edges,
        _metrics(metrics, tokenize),
        tokenize,
    )
    overrides += [f"languages.{side}={code!r}" for side, code in codes.items()]
    _print_scores(_scores(given, overrides, engine, scoring, precision, num_workers), json)


@dataclass(frozen=True)
class Given:
    """Those arguments and options of the command `evaluate` that determine what is scored."""

    model: Path | None
    hypothesis: Path | None
    against: Path | None
    source: Path | None
    references: tuple[Path, ...]
    test_sets: tuple[str, ...]
    tag: str | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the text files that were given; a path may be `-`, which is standard input."""
        paths = (self.source, *self.references, self.hypothesis, self.against)
        return tuple(path for path in paths if path is not None)


def _check_options(
    given: Given, test: str | None, confidence: bool, languages: str | None, target_language: str | None
) -> None:
    """Raise UsageError if options do not go together.

    These checks apply both to scoring a model and to scoring given translations. Each argument after `given` is the
    value of the option with the same name; for example, `test` is the value of --test.
    """
    if (given.model is None) == (given.hypothesis is None):
        raise UsageError("give either MODEL or --hypothesis")
    if test is not None and given.against is None:
        raise UsageError("--test goes with --against")
    if confidence and given.against is not None:
        raise UsageError("--confidence is of one system; --against gives intervals by itself, with --test bootstrap")
    if given.test_sets and (given.source is not None or given.references):
        raise UsageError("--test-set has its own source and reference")
    if target_language is not None and (given.model is not None or languages is not None):
        raise UsageError("--target-language goes with --hypothesis alone, and not with --languages")


def _check_alignment_options(given: Given, counts_words: bool, metrics: str | None) -> None:
    """Raise UsageError if the options are not valid for scoring alignments.

    `counts_words` tells whether --confidence, --lowercase or --by-length was given. `metrics` is the value of --metrics
    or, if that is missing, of --tokenize. None of these five options is allowed, since they are for scores of
    translations.
    """
    if given.model is None or given.source is None or len(given.references) != 1:
        raise UsageError("--gold-alignments goes with MODEL, --source and one --reference")
    if given.against is not None or counts_words or metrics:
        raise UsageError(
            "--gold-alignments has its own scores: no --against, --confidence, --by-length, --metrics, --tokenize or "
            "--lowercase"
        )


def _check_model_options(given: Given) -> None:
    """Raise UsageError if the options are not valid for scoring a model."""
    if (given.source is None) != (not given.references):
        raise UsageError("--source and --reference go together")
    if given.tag is not None and given.source is None and not given.test_sets:
        raise UsageError("--tag goes with --source or --test-set; those of the settings have their own")


def _check_hypothesis_options(given: Given, by_length: str | None, chooses: bool) -> None:
    """Raise UsageError if the options are not valid for scoring given translations.

    `by_length` is the value of --by-length. `chooses` tells whether any option for translating, such as --beam-size,
    was given; none is allowed, since nothing is translated.
    """
    if chooses or given.tag is not None:
        raise UsageError(
            "--hypothesis is translated already: no --beam-size, --length-penalty, --set, --device, --engine, "
            "--precision or --tag"
        )
    if not given.references and len(given.test_sets) != 1:
        raise UsageError("--hypothesis goes with --reference, or with one --test-set")
    if not given.test_sets and (given.source is None) == (by_length is not None):
        raise UsageError("--hypothesis goes with --source if it is scored --by-length, and only then")


def _language_codes(languages: str | None, target_language: str | None) -> dict[str, str]:
    """Returns the language codes that were given, under the keys "source" and "target"; empty if none was given."""
    if pair := language_pair(languages):
        return dict(zip(("source", "target"), pair, strict=True))
    return {"target": target_language} if target_language else {}


def _metrics(metrics: str | None, tokenize: str | None) -> tuple[str, ...]:
    """Returns the names in --metrics; empty if --metrics was not given.

    Raises MtkitError or UsageError if --metrics or --tokenize is not valid.
    """
    from mtkit.translation.scores import metric_names, require_tokenizer_name

    chosen = metric_names(metrics) if metrics is not None else ()
    if tokenize is not None:
        require_tokenizer_name(tokenize)
        if chosen and "bleu" not in chosen:
            raise UsageError("--tokenize is of BLEU, which --metrics leaves out")
    return chosen


def _scores(
    given: Given, overrides: Sequence[str], engine: str, scoring: "Scoring", precision: str, num_workers: int | None
) -> "list[ScoredSet]":
    from mtkit.evaluation.evaluate import TestData, score_models, score_texts

    data = TestData(given.source, given.references, given.test_sets, given.tag)
    if given.model is not None:
        return score_models(given.model, given.against, overrides, data, scoring, engine, precision, num_workers)
    assert given.hypothesis is not None
    return score_texts(given.hypothesis, given.against, data, scoring)


def _print_scores(scores: "Sequence[ScoredSet]", as_json: bool) -> None:
    from mtkit.evaluation.evaluate import legend, table

    if as_json:
        print(json_text([score.as_json() for score in scores], indent=1))
        return
    print(table(scores), end="")
    if marks := legend(scores):
        say(marks)


def _edges(text: str | None) -> tuple[int, ...]:
    """Returns the upper limits of the length buckets, in words, from the value of --by-length.

    Returns () if the value is "thirds" or `None`. Any other value must be a rising list of whole numbers, such as
    10,20,30; otherwise, raises MtkitError.
    """
    if text in (None, THIRDS):
        return ()
    assert text is not None
    parts = text.split(",")
    edges = tuple(number for number in map(whole_number, parts) if number is not None)
    if len(edges) != len(parts) or list(edges) != sorted(set(edges)):
        raise MtkitError(f"--by-length: found {text}, wants rising whole numbers such as 10,20,30")
    return edges


# Measurements of speed.

BENCH_EXAMPLE = "\b\nExample:\n  mtkit bench "

bench = typer.Typer(rich_markup_mode=None, help="Measure the speed of translation or of training.")

JsonFileOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="File for all figures as JSON.")]


@bench.command("translate", epilog=f"{BENCH_EXAMPLE}translate runs/demo data/demo/test.fr --rounds 3")
def bench_translate(
    model: ModelArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text to translate, plain or compressed.")],
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its translation; adds BLEU to the table.")
    ] = None,
    beam_size: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Beam sizes to measure; 1,5 by default. 1 is greedy.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME,NAME,…", help="Of fp32, bf16, fp16, int8, fp64 and auto.")
    ] = "fp32",
    engine: Annotated[str, typer.Option(metavar="NAME,NAME,…", help="Of torch, ctranslate2 and auto.")] = "torch",
    workers: Annotated[
        str, typer.Option(metavar="N,N,…", help="Numbers of processes that translate; also auto.")
    ] = "1",
    lines: Annotated[str, typer.Option(metavar="N", help="Translate only this many lines, the first.")] = "1000",
    rounds: Annotated[str, typer.Option(metavar="N", help="Rounds in which all take turns.")] = "5",
    minutes: Annotated[str, typer.Option(metavar="X", help="Begin no further round after this time.")] = "10",
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure how long a single line takes, one line at a time.")
    ] = False,
    length_penalty: LengthPenaltyOption = None,
    decoding: SetOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = None,
    json: JsonFileOption = None,
    quiet: QuietOption = False,
) -> None:
    """Translate a text several times, and print how fast that was.

    All combinations of beam size, precision, engine and number of workers are measured. Prints tokens per second from
    text to text and from ids to ids (median, smallest and largest), rows that the decoder computed for each token,
    start-up time and memory; with --latency, the milliseconds that a single line takes instead. If a combination is
    impossible, a line says why.
    """
    sizes = None if beam_size is None else [count("--beam-size", size) for size in _items("--beam-size", beam_size)]
    precisions = [choice("--precision", name, PRECISIONS) for name in _items("--precision", precision)]
    engines = [choice("--engine", name, ENGINES) for name in _items("--engine", engine)]
    processes = [worker_count(number) or "auto" for number in _items("--workers", workers)]
    limits = count("--lines", lines), count("--rounds", rounds), minutes_above_0(minutes)
    if any(setting.partition("=")[0] == "beam_size" for setting in decoding or []):
        raise UsageError("--set beam_size: say --beam-size, which may name several")
    if latency and (reference is not None or workers != "1"):
        name = "--workers" if reference is None else "--reference"
        raise UsageError(f"--latency: one process translates, and nothing is scored; leave out {name}")
    overrides = [
        *set_settings(decoding),
        *decoding_settings(None, length_penalty, batch_tokens, device),
    ]
    from mtkit.evaluation import bench as measures

    measures.check_json(json)
    ways = measures.variants(sizes or measures.default_beam_sizes(model), precisions, engines, processes)
    if latency:
        record = measures.bench_latency(model, file, ways, overrides, *limits)
        text = measures.latency_text(record)
    else:
        record = measures.bench_translation(model, file, ways, overrides, reference, *limits)
        text = measures.translation_text(record)
    print(text, end="")
    measures.write_json(json, record)


@bench.command("train", epilog=f"{BENCH_EXAMPLE}train configs/demo.yaml --minutes 0.2")
def bench_train(
    config: ConfigArgument,
    settings: SettingsArgument = None,
    minutes: Annotated[str, typer.Option(metavar="X", help="How long to train.")] = "0.5",
    random: Annotated[
        bool, typer.Option("--random", help="Train on sentences of made-up lengths, not on data.train.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print which operators of PyTorch take the time.")
    ] = False,
    json: JsonFileOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train for a short time, and print how fast that was.

    Prints tokens per second without padding, the shares of padding, the time of an update and its parts, memory, and
    how much of the machine's speed in matrix products the model uses. The run itself is only read; if it has no
    binarized data yet, the data is made in a temporary folder.
    """
    limit = minutes_above_0(minutes)
    from mtkit.config.load import load_config
    from mtkit.evaluation.bench import bench_training, check_json, training_text, write_json

    loaded = load_config(config, settings or [])
    check_json(json)
    record = bench_training(loaded, limit, random, profile)
    print(training_text(record), end="")
    write_json(json, record)


def _items(name: str, text: str) -> list[str]:
    """Returns the items of `text`, the comma-separated value of the option `name`.

    Raises MtkitError if an item occurs twice.
    """
    items = text.split(",")
    if len(set(items)) < len(items):
        raise MtkitError(f"{name}: found {text}, wants each item once")
    return items


# Pictures.

PLOT_EXAMPLE = "\b\nExample:\n  mtkit plot "

plot = typer.Typer(rich_markup_mode=None, help="Draw a picture as PNG or SVG.")

OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Picture; .png or .svg.")]


@plot.command(epilog=f"{PLOT_EXAMPLE}schedule --setting 512:4000 --setting 512:8000 --setting 256:4000 -o rates.svg")
def schedule(
    output: OutputOption,
    configs: Annotated[list[Path] | None, typer.Argument(metavar="[CONFIG]...", help="YAML files.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(metavar="D:W", help="d_model and warmup_steps of noam; may be repeated.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help="Updates to draw; by default those of the configs.")
    ] = None,
) -> None:
    """Draw the learning rate of each update."""
    from mtkit.config.training_settings import settled
    from mtkit.evaluation.plot import check_output, paper_schedule, plot_schedules, schedule_of

    check_output(output)
    loaded = [(path, load_settings(path, [])) for path in configs or []]
    num_steps = None if steps is None else count("--steps", steps)
    schedules = [schedule_of(path.stem, config, num_steps) for path, config in loaded]
    schedules += [paper_schedule(text) for text in setting or []]
    if not schedules:
        raise MtkitError("there is nothing to draw; name a CONFIG, or give --setting such as 512:4000")
    # Without a config, draw five times the longest warmup, which shows the rate rise and fall.
    drawn = [one.training for one in schedules]
    longest = max(
        [settled(one.max_steps) for one in drawn[: len(loaded)]] or [5 * settled(one.warmup_steps) for one in drawn]
    )
    plot_schedules(schedules, num_steps or longest, output)


@plot.command(epilog=f"{PLOT_EXAMPLE}positions configs/demo.yaml -o positions.png")
def positions(
    output: OutputOption,
    config: ConfigArgument,
    settings: SettingsArgument = None,
    length: Annotated[str, typer.Option(metavar="N", help="Positions to draw.")] = "100",
) -> None:
    """Draw the position encodings."""
    from mtkit.evaluation.plot import check_output, plot_positions, position_table

    check_output(output)
    plot_positions(position_table(load_settings(config, settings), count("--length", length)), output)


@plot.command(epilog=f"{PLOT_EXAMPLE}training runs/demo -o training.png")
def training(
    output: OutputOption,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; they may still be training.")],
    by: Annotated[str, typer.Option(metavar="NAME", help="step or minutes.")] = "step",
) -> None:
    """Draw loss, learning rate and BLEU of training runs."""
    from mtkit.evaluation.plot import check_output, plot_training, read_history

    check_output(output)
    if by not in ("step", "minutes"):
        raise MtkitError(f"--by: found {by}, wants one of step, minutes")
    plot_training([read_history(run) for run in runs], by, output)


@plot.command(epilog=f'{PLOT_EXAMPLE}attention runs/demo --source "Le chat dort." -o attention.png')
def attention(
    output: OutputOption,
    model: ModelArgument,
    source: Annotated[str, typer.Option(metavar="TEXT", help="A sentence.")],
    target: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its translation; by default the model's own.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="N", help="Only this layer, from 1.")] = None,
    head: Annotated[str | None, typer.Option(metavar="N", help="Only this head, from 1.")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="The mean over the heads.")] = False,
) -> None:
    """Draw how much each target piece attends to each source piece.

    Without --layer, --head and --mean there is a picture for every layer and head.
    """
    from mtkit.evaluation.plot import check_output

    check_output(output)
    if mean and head is not None:
        raise MtkitError("--mean is over the heads; leave out --head")
    chosen_layer = None if layer is None else count("--layer", layer)
    chosen_head = None if head is None else count("--head", head)
    from mtkit.evaluation.plot import attention_of, plot_attention
    from mtkit.translation.translator import load

    found = attention_of(load(model), source, target)
    pictures = found.of(chosen_layer, chosen_head, mean)
    columns = 1 if mean or head is not None else len(found.weights[0])
    plot_attention(found, pictures, columns, output)


# Pages.

PageOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write; .html.")]


def report(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Run directories, checkpoints or model bundles.")
    ],
    output: PageOption,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write a page on models side by side.

    The page has settings, training curves, scores with intervals and significance, sentences and their attention, the
    data, and the environment. Translations and scores that mtkit run has made are used; those that are missing are
    made now, if the test sets exist.
    """
    from mtkit.evaluation.report import report as write_report

    write_report(models, output, decoding_settings(None, None, None, device))


def explain(
    model: ModelArgument,
    source: Annotated[list[str], typer.Option(metavar="TEXT", help="A sentence; may be repeated.")],
    output: PageOption,
    beam_size: BeamSizeOption = None,
    length_penalty: LengthPenaltyOption = None,
    decoding: SetOption = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Write a page on how a model translates.

    The page steps through the translation: the probability of each token, the attention of every head, the hypotheses
    that the beam kept and dropped, and how each checkpoint of the run translates the sentences.
    """
    overrides = [
        *set_settings(decoding),
        *decoding_settings(beam_size, length_penalty, None, device),
    ]
    from mtkit.evaluation.explain import explain as write_explanation

    write_explanation(model, source, output, overrides)


if TYPE_CHECKING:
    from mtkit.experiment.run import Choice, Lab

# Experiments.

EXPERIMENT_EXAMPLE = "\b\nExample:\n  mtkit experiment "
FOLDER = Path("configs/lecture")
SIZES = ("toy", "small", "full")

experiment = typer.Typer(rich_markup_mode=None, help="Test claims by trainings with parts changed or taken out.")

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of experiments, or one file.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name, such as 02-bottleneck or 02, or file.")]
FolderOption = Annotated[Path, typer.Option("--folder", metavar="FOLDER", help="Folder of experiments.")]
RunsOption = Annotated[Path, typer.Option("--runs", "-o", metavar="FOLDER", help="Folder of the results.")]
RunsAlone = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Folder of the results.")]
SizeOption = Annotated[str | None, typer.Option(metavar="NAME", help="toy, small or full.")]
SeedsOption = Annotated[str | None, typer.Option(metavar="N", help="Seeds with which each variant is trained.")]
DataOption = Annotated[str | None, typer.Option(metavar="FOLDER", help="demo, or a folder of other text.")]
OnlyOption = Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Only these experiments.")]

RUNS = Path("runs/experiments")


def _lab(runs: Path, size: str | None, seeds: str | None, data: str | None) -> "Lab":
    """Returns a Lab, which reads and writes the results of experiments in the folder `runs`.

    The other arguments are the values of the options: `size` is toy, small or full, `seeds` is the number of seeds, and
    `data` is demo or a folder of text. If one of them is `None`, the value from the last `mtkit experiment run` is
    used. Raises MtkitError if `size` or `seeds` is not valid.
    """
    from mtkit.experiment.run import Lab

    return Lab(runs, _choice(runs, size, seeds, data))


def _choice(runs: Path, size: str | None, seeds: str | None, data: str | None) -> "Choice":
    from mtkit.experiment.run import Choice, last_choice

    last = last_choice(runs)
    chosen = last.size if size is None else choice("--size", size, SIZES)
    number = last.seeds if seeds is None else count("--seeds", seeds)
    return Choice(chosen, number, last.data if data is None else data)  # type: ignore[arg-type]


@experiment.command("list", epilog=f"{EXPERIMENT_EXAMPLE}list configs/lecture")
def list_(
    folder: FolderArgument,
    runs: RunsOption = RUNS,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """List experiments: claim, verdict, trainings done, minutes left on this machine, trainings shared."""
    from mtkit.experiment.run import listing, load_folder

    cards = load_folder(folder)
    for row in listing(cards, _lab(runs, size, seeds, data)):
        print(f"{row['name']}: {row['verdict']}")
        print(f"    {row['claim']}")
        print(f"    trainings done {row['done']}, shared {row['shared']}, minutes left {row['minutes left']}")


@experiment.command(epilog=f"{EXPERIMENT_EXAMPLE}show 02-bottleneck")
def show(
    name: NameArgument,
    folder: FolderOption = FOLDER,
    runs: RunsOption = RUNS,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """Show one experiment: claim, variants, predictions, controls and what came of them."""
    from mtkit.experiment.page import card_text
    from mtkit.experiment.run import card_named

    card = card_named(name, folder)
    print(card_text(card, _lab(runs, size, seeds, data)), end="")


@experiment.command(epilog=f"{EXPERIMENT_EXAMPLE}run configs/lecture --minutes 60 --only 01,02")
def run(
    folder: FolderArgument,
    minutes: Annotated[str, typer.Option(metavar="X", help="How long it may take.")] = "60",
    only: OnlyOption = None,
    size: SizeOption = "toy",
    seeds: SeedsOption = "1",
    data: DataOption = "demo",
    runs: RunsOption = RUNS,
    quiet: QuietOption = False,
) -> None:
    """Run experiments, as many as fit into the minutes.

    Experiments with the highest teaching value for their time come first; equal settings are trained once. The same
    command resumes where it stopped. Prints the verdicts.
    """
    begun = time.monotonic()
    limit = minutes_above_0(minutes)
    from mtkit.experiment.run import chosen_cards, load_folder
    from mtkit.experiment.run import run as run_cards

    cards = chosen_cards(load_folder(folder), only.split(",") if only else [], folder)
    lab = _lab(runs, size, seeds, data)
    try:
        run_cards(cards, lab, limit, begun)
    finally:
        for card in cards:
            print(f"{card.name}: {lab.verdict(card).text}", flush=True)


@experiment.command(epilog=f'{EXPERIMENT_EXAMPLE}predict 02-bottleneck "Attention gains most on long sentences."')
def predict(
    name: NameArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you expect, in your words.")],
    folder: FolderOption = FOLDER,
    runs: RunsOption = RUNS,
) -> None:
    """Write down what you expect, before there are results.

    The prediction is kept with its date and shown in the report. Once the experiment has results, predictions are
    refused.
    """
    from mtkit.experiment.run import add_prediction, card_named

    print(add_prediction(card_named(name, folder), _lab(runs, None, None, None), text))


@experiment.command("report", epilog=f"{EXPERIMENT_EXAMPLE}report configs/lecture -o lecture.html")
def experiment_report(
    folder: FolderArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write; .html.")],
    runs: RunsAlone = RUNS,
    only: OnlyOption = None,
    size: SizeOption = None,
    seeds: SeedsOption = None,
    data: DataOption = None,
) -> None:
    """Write a page on the experiments and what came of them.

    The page begins with all claims and verdicts. Each experiment follows, with its predictions, figures with intervals,
    picture and controls. A list at the end says from which runs each figure is.
    """
    from mtkit.experiment.page import write_report
    from mtkit.experiment.run import chosen_cards, load_folder

    cards = chosen_cards(load_folder(folder), only.split(",") if only else [], folder)
    write_report(cards, _lab(runs, size, seeds, data), folder, output)


@experiment.command(epilog=f"{EXPERIMENT_EXAMPLE}puzzle --seed 7 -o puzzle.html")
def puzzle(
    seed: Annotated[str, typer.Option(metavar="N", help="Number of the puzzle.")] = "1",
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Check an answer, such as "no positions", and train nothing.')
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page; by default puzzle-N.html.")
    ] = None,
    folder: FolderOption = FOLDER,
    runs: RunsAlone = RUNS,
    data: DataOption = "demo",
    quiet: QuietOption = False,
) -> None:
    """Train a small run that may have one fault, and draw what it does.

    The page has curves, translations and attention, but does not say what the fault is; --answer checks your guess.
    """
    number = count("--seed", seed)
    from mtkit.experiment.page import answered
    from mtkit.experiment.page import puzzle as make_puzzle

    if answer is not None:
        print(answered(number, answer))
        return
    from mtkit.experiment.run import load_folder

    path = output or Path(f"puzzle-{number}.html")
    make_puzzle(load_folder(folder), number, runs, path, data or "demo")
    print(path)


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module with `app`."""
    app.command(
        cls=EvaluateCommand,
        epilog=f"{EXAMPLE}evaluate runs/demo --source data/demo/valid.fr --reference data/demo/valid.en",
    )(evaluate)
    app.command(epilog=f"{EXAMPLE}report runs/demo -o report.html")(report)
    app.command(epilog=f'{EXAMPLE}explain runs/demo --source "Le chat dort." -o explain.html')(explain)
    app.add_typer(bench, name="bench")
    app.add_typer(plot, name="plot")
    app.add_typer(experiment, name="experiment")
