"""Arguments and options that several commands share, and advice on wrong commands, arguments and options."""

import math
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtkit.errors import MtkitError, inform, show_progress, whole_number

if TYPE_CHECKING:
    from mtkit.config.settings import Config
    from mtkit.translation.alignments import AlignmentSettings

EXAMPLE = "\b\nExample:\n  mtkit "  # begins the last lines of a command's help; \b keeps line breaks

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto", "fp64")
ENGINES = ("torch", "ctranslate2", "auto")

# The error for wrong usage. Typer does not export it, but does export its subclass BadParameter.
UsageError: Any = typer.BadParameter.__mro__[1]


def _be_quiet(quiet: bool) -> bool:
    """Callback of --quiet: turns progress off for the whole process, so that commands need not pass the option on."""
    show_progress(not quiet)
    return quiet


ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory, checkpoint or model bundle.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Start training anew; the old run is deleted once the new one has a checkpoint.")
]
ChangeOption = Annotated[
    bool, typer.Option("--change", help="Resume with changed settings that affect the weights from here on.")
]
DevicesOption = Annotated[
    str | None, typer.Option(metavar="N", help="Train on N devices of this machine; torchrun takes more machines.")
]
BeamSizeOption = Annotated[str | None, typer.Option(metavar="N", help="Hypotheses kept at each step; 1 is greedy.")]
LengthPenaltyOption = Annotated[str | None, typer.Option(metavar="X", help="Exponent of the length penalty.")]
ShortlistOption = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Search only likely target tokens; auto: lists of 50."),
]
BatchTokensOption = Annotated[
    str | None, typer.Option(metavar="N", help="Largest batch: sentences x source x beam size.")
]
EnsembleOption = Annotated[
    list[Path] | None, typer.Option(metavar="MODEL", help="Another model to translate with; may be repeated.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="fp32 (default), bf16, fp16, int8, fp64 or auto.", show_default=False),
]
EngineOption = Annotated[str, typer.Option(metavar="NAME", help="torch, ctranslate2 or auto.")]
TagOption = Annotated[
    str | None,
    typer.Option("--tag", metavar="TAG", help="Word to put before each line, such as <2de>."),
]
LineBufferedOption = Annotated[bool, typer.Option("--line-buffered", help="Answer each line before reading the next.")]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=_be_quiet,
        help="No progress on stderr; warnings still come.",
    ),
]
WorkersOption = Annotated[
    str, typer.Option(metavar="N", show_default=False, help="Processes that translate; auto by default.")
]
DeviceOption = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]

# Options that say how word alignments are read off attention. Commands that have many options hide these from --help;
# `mtkit align --help` shows them.


def _alignment_option(name: str, metavar: str, help_text: str) -> tuple[Any, Any]:
    """Returns two versions of the option --alignment-`name`: one that --help shows, and one that --help hides."""
    shown, hidden = (
        typer.Option(f"--alignment-{name}", metavar=metavar, help=help_text, hidden=hidden) for hidden in (False, True)
    )
    return shown, hidden


_UNITS = _alignment_option("units", "NAME", "What is linked: words, or pieces.")
_LAYER = _alignment_option("layer", "N|mean", "Decoder layer that is read, from 1.")
_HEAD = _alignment_option("head", "N|mean", "Attention head that is read, from 1.")
_THRESHOLD = _alignment_option("threshold", "X", "Link all with at least this weight, not only the best.")
_STEP = _alignment_option("step", "NAME", "Step that predicts a token, or the next, which reads it.")
AlignmentUnits = Annotated[str, _UNITS[0]]
HiddenAlignmentUnits = Annotated[str, _UNITS[1]]
AlignmentLayer = Annotated[str | None, _LAYER[0]]
HiddenAlignmentLayer = Annotated[str | None, _LAYER[1]]
AlignmentHead = Annotated[str | None, _HEAD[0]]
HiddenAlignmentHead = Annotated[str | None, _HEAD[1]]
AlignmentThreshold = Annotated[str | None, _THRESHOLD[0]]
HiddenAlignmentThreshold = Annotated[str | None, _THRESHOLD[1]]
AlignmentStep = Annotated[str, _STEP[0]]
HiddenAlignmentStep = Annotated[str, _STEP[1]]


def alignment_settings(
    wanted: bool,
    units: str,
    layer: str | None,
    head: str | None,
    threshold: str | None,
    step: str,
    wanted_by: str = "--alignments",
) -> "AlignmentSettings | None":
    """Returns the settings that the --alignment options give; `None` if `wanted` is false.

    `wanted_by` is the option that asks for alignments, and `wanted` tells whether the user gave it. Raises UsageError
    if `wanted` is false, but the user gave an --alignment option such as --alignment-layer.
    """
    from mtkit.translation.alignments import AlignmentSettings, parse_settings

    settings = parse_settings(units, layer, head, threshold, step)
    if not wanted and settings != AlignmentSettings():
        units_too = "units, -" if wanted_by == "--alignments" else ""  # gold alignments are between words
        raise UsageError(f"--alignment-{units_too}layer, -head, -threshold and -step go with {wanted_by} FILE")
    return settings if wanted else None


def load_settings(config: Path | None, settings: Sequence[str] | None) -> "Config":
    """Returns the settings of the YAML file `config`; the key=value settings in `settings` override the file.

    If `config` is `None`, the defaults take the place of the file. If `training.start_from` names a model, settings
    that are not given are taken from that model.
    """
    from mtkit.config.load import load_config

    found = load_config(config, settings or [])
    if found.training.start_from is None:
        return found
    from mtkit.bundle.opening import carried_over  # imported here, since it imports torch

    return carried_over(found)


def decoding_settings(
    beam_size: str | None, length_penalty: str | None, batch_tokens: str | None, device: str | None
) -> list[str]:
    """Returns the options that were given, as key=value settings such as "decoding.beam_size=5" and "device=cpu".

    In this form, the options pass through the same checks as settings, and errors have the same messages.
    """
    found = given(beam_size=beam_size, length_penalty=length_penalty, batch_tokens=batch_tokens)
    return found if device is None else [*found, f"device={device}"]


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting of decoding, such as stopping=count."),
]


def set_settings(settings: list[str] | None) -> list[str]:
    """Returns the values of --set as settings of decoding, such as "decoding.beam_size=1".

    In the values, the prefix "decoding." may be left out.
    """
    return [f"decoding.{setting.removeprefix('decoding.')}" for setting in settings or []]


def given(**settings: str | None) -> list[str]:
    """Returns the decoding settings that are not `None`, each as "decoding.NAME=VALUE"."""
    return [f"decoding.{name}={value}" for name, value in settings.items() if value is not None]


def count(name: str, value: str) -> int:
    """The value of the option `name` as an integer; raises MtkitError unless it is a whole number of at least 1."""
    number = whole_number(value)
    if not number:
        raise MtkitError(f"{name}: found {value}, wants a whole number, at least 1")
    return number


def minutes_above_0(text: str) -> float:
    """Returns the value of --minutes; raises MtkitError if it is not a number above 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise MtkitError(f"--minutes: found {text}, wants a number, more than 0")
    return minutes


def worker_count(value: str) -> int | None:
    """Returns the number of processes in the value of --workers, or `None` for auto.

    Raises MtkitError if the value is neither auto nor a whole number of at least 1.
    """
    if value == "auto":
        return None
    number = whole_number(value)
    if not number:
        raise MtkitError(f"--workers: found {value}, wants a whole number, at least 1, or auto")
    return number


def choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return the value of the option `name`; raises MtkitError if the value is not one of the choices."""
    if value not in choices:
        raise MtkitError(f"{name}: found {value}, wants one of {', '.join(choices)}")
    return value


# A language code as in BCP 47: a language (one code, or two as in zh-yue), then optionally a script, a region and
# variants.
_CODE = re.compile(
    r"[a-z]{2,3}(-[a-z]{3})?(-[a-z]{4})?(-([a-z]{2}|\d{3}))?(-([a-z0-9]{5,8}|\d[a-z0-9]{3}))*", re.IGNORECASE
)


def language_pair(text: str | None) -> tuple[str, str] | None:
    """Split the value of --languages, such as en-de or en-zh-CN, into the source and the target code.

    Returns `None` if the option was not given. Raises MtkitError if the value is not a pair of codes, or could mean
    several pairs.
    """
    if text is None:
        return None
    parts = text.split("-")
    pairs = [("-".join(parts[:cut]), "-".join(parts[cut:])) for cut in range(1, len(parts))]
    if len(parts) > 2:
        pairs = [pair for pair in pairs if all(_is_code(code, not text.isupper()) for code in pair)]
    if len(pairs) > 1:
        meanings = " or ".join(f"{source} to {target}" for source, target in pairs)
        wanted = "-".join(code.replace("-", "_") for code in pairs[0])
        raise MtkitError(
            f"--languages: found {text}, which may mean {meanings}; join the parts of a code by underscores: {wanted}"
        )
    if not pairs or not all(pairs[0]):
        raise MtkitError(f"--languages: found {text}, wants the codes of source and target, such as en-de or en-zh-CN")
    return pairs[0]


def _is_code(code: str, case_tells: bool) -> bool:
    """Whether `code` is a language code, such as en or zh-CN.

    With `case_tells`, capitals mark a region, so a code whose first part is in capitals, such as CN, is rejected.
    """
    language = code.partition("-")[0]
    return _CODE.fullmatch(code) is not None and not (case_tells and language.isupper())


@contextmanager
def opened(file: Path | None) -> Iterator[Any]:
    """Context manager that opens a file and gives a binary stream.

    If `file` is `None` or `-`, it gives standard input instead, and does not close it at the end.
    """
    from mtkit.text.lines import STANDARD_INPUT
    from mtkit.translation.stream import reading

    with reading(file or STANDARD_INPUT) as stream:
        yield stream


def one_standard_input(*files: Path | None) -> None:
    """Raise UsageError if more than one of the files is `-`, since standard input can be read only once."""
    if sum(str(file) == "-" for file in files) > 1:
        raise UsageError("standard input, -, can be read once; name files for the others")


def typed(*files: Path) -> bool:
    """Whether the user types one of the files: the file is `-`, and standard input is a terminal."""
    return any(str(file) == "-" for file in files) and sys.stdin is not None and sys.stdin.isatty()


def tell_of_typing(what: str) -> None:
    """Print how to enter lines on a terminal, where the program would otherwise wait without any sign.

    The message is "type a line and press Enter", followed by `what`, such as "to have it translated".
    """
    end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
    inform(f"type a line and press Enter {what}; {end} ends")


def standard_output() -> Any:
    """Returns the binary stream of standard output; raises MtkitError if standard output is closed."""
    if sys.stdout is None:
        raise MtkitError("standard output is closed; send it somewhere, or write a file with -o")
    return sys.stdout.buffer


# Advice on wrong commands, options and arguments.

# Maps each command of mtkit to words that people may try instead, such as commands of fairseq, OpenNMT, Marian, Sockeye
# and JoeyNMT.
COMMANDS = {
    "translate": "interactive decode decoder infer inference predict onmt_translate fairseq-generate marian",
    "binarize": "preprocess prepare prepare-data encode fairseq-preprocess",
    "train-tokenizer": "build-vocab build_vocab vocab learn-bpe learn_bpe spm_train tokenize tokenizer",
    "train CONFIG": "resume continue fit finetune fine-tune onmt_train fairseq-train",
    "evaluate": "test validate bleu sacrebleu metrics",
    "score": "rescore scorer force-decode",
    "align": "aligner alignment alignments force-align fast_align eflomal awesome-align",
    "bundle RUN --step average": "average average-checkpoints average_checkpoints",
    "export": "convert ct2 ctranslate2 release_model",
    "distill": "distillation knowledge-distillation kd forward-translate",
    "new": "init create quickstart",
    "estimate": "plan dry-run requirements",
    "config": "settings show-config",
    "config --schema": "schema",
    "--help": "help",
    "info": "show describe",
    "bench": "benchmark speed profile",
}
GROUPS = ("bench", "plot", "experiment")  # commands with subcommands, such as `mtkit plot schedule`
# Commands whose argument is CONFIG.
TRAINING = ("config", "estimate", "train-tokenizer", "binarize", "train", "run", "race", "distill", "bench train")

# For each command, maps a piece of advice to the options of other toolkits that call for this advice. The options are
# written without leading dashes, and with - in place of _.
_MODEL = "m model models checkpoint path ckpt"
_MORE = {
    "translate": {
        "MODEL is an argument: mtkit translate MODEL FILE": _MODEL,
        "the file is an argument: mtkit translate MODEL FILE -o OUT": "i s f input src source file text",
        "say --device cuda, or --device cpu": "gpu gpus cuda gpuid gpu-id cpu",
        "say --beam-size N": "b k beam beams num-beams",
        "say --length-penalty X": "lenpen alpha normalize length-penalty-alpha",
        "say --n-best N": "nbest num-return-sequences",
        "say --batch-tokens N, in padded tokens": "batch-size mini-batch max-tokens batch max-batch-size",
        "say --precision bf16": "fp16 half bf16 amp",
        "say --precision int8": "int8 quantize compute-type",
        "say --workers N": "num-workers jobs j threads num-threads cpu-threads",
    },
    "distill": {
        "say --teacher MODEL": _MODEL,
        "say --output FOLDER": "out out-dir output-dir folder",
        "say --beam-size N": "b k beam beams num-beams",
        "say --length-penalty X": "lenpen alpha normalize length-penalty-alpha",
        "say --batch-tokens N, in padded tokens": "batch-size mini-batch max-tokens batch max-batch-size",
    },
    "evaluate": {
        "MODEL is an argument: mtkit evaluate MODEL": _MODEL,
        "say --reference FILE": "target tgt trg ref refs references r gold",
        "say --hypothesis FILE": "hyp hyps hypotheses sys system prediction predictions pred output",
        "say --source FILE": "src s input",
        "say --device cuda, or --device cpu": "gpu gpus cuda cpu",
    },
    "score": {
        "MODEL is an argument: mtkit score MODEL --source F --target F": _MODEL,
        "say --source FILE": "src s",
        "say --target FILE": "tgt trg reference ref hyp hypothesis",
    },
}
_CONFIG = {"CONFIG is an argument: mtkit {} CONFIG": "c f config config-file conf"}
_ARGUMENTS = {
    "translate": "the output is an option: mtkit translate MODEL FILE -o OUT",
    "evaluate": "files are options: mtkit evaluate MODEL --source FILE --reference FILE",
    "score": "files are options: mtkit score MODEL --source FILE --target FILE",
}


def usage_message(error: Any, arguments: Sequence[str]) -> str:
    """Returns the message for a usage error of typer: what is wrong, what to type instead, and which --help to read.

    `arguments` is what the user typed after `mtkit`.
    """
    context = error.ctx
    path = context.command_path if context else _path(arguments)
    command = path.removeprefix("mtkit").strip()
    option = getattr(error, "option_name", None)
    message = error.format_message()
    if option is not None:
        if advice := _for_option(command, option):
            message = f"{error.message}; {advice}"
    elif message.startswith("No such command"):
        message += _for_command(arguments, getattr(context.command, "commands", {}) if command else {})
    elif message.startswith("Got unexpected extra"):
        message += _for_argument(command, arguments)
    return f"{message} ({path} --help shows how)"


def _path(arguments: Sequence[str]) -> str:
    """Returns the command as it was typed, such as "mtkit train" or, with a subcommand, "mtkit bench train".

    `arguments` is what the user typed after `mtkit`.
    """
    return " ".join(["mtkit", *arguments[: 2 if arguments and arguments[0] in GROUPS else 1]])


def _for_option(command: str, option: str) -> str:
    name = option.lstrip("-").replace("_", "-")
    if name == "h":
        return "say --help"
    for advice, names in _MORE.get(command, {}).items():
        if name in names.split():
            return advice
    if command in TRAINING:
        for advice, names in _CONFIG.items():
            if name in names.split():
                return advice.format(command)
        from mtkit.config.load import advice_on_option

        return advice_on_option(option).removeprefix("; ")
    return ""


def _for_command(arguments: Sequence[str], others: Collection[str]) -> str:
    if others:
        return f" It is one of {', '.join(others)}."
    typed = arguments[0]
    meant = next((command for command, names in COMMANDS.items() if typed in names.split()), None)
    return f" Say 'mtkit {meant}'." if meant else ""


def _for_argument(command: str, arguments: Sequence[str]) -> str:
    if command in _ARGUMENTS and any("=" in argument and argument[:1] != "-" for argument in arguments):
        return "; settings of decoding are given by --set, such as --set beam_size=3" if command == "translate" else ""
    return f"; {_ARGUMENTS[command]}" if command in _ARGUMENTS else ""
