"""What a message about a wrong call of a command adds: what to type instead, and whose --help tells more."""

from collections.abc import Collection, Sequence
from typing import Any

# Commands of fairseq, OpenNMT, Marian, Sockeye and JoeyNMT, and what people type for want of a better word.
COMMANDS = {
    "translate": "generate interactive decode decoder infer inference predict onmt_translate fairseq-generate marian",
    "binarize": "preprocess prepare prepare-data encode fairseq-preprocess",
    "train-tokenizer": "build-vocab build_vocab vocab learn-bpe learn_bpe spm_train tokenize tokenizer",
    "train CONFIG": "resume continue fit finetune fine-tune onmt_train fairseq-train",
    "evaluate": "test validate bleu sacrebleu metrics",
    "score": "rescore scorer force-decode",
    "bundle RUN --step average": "average average-checkpoints average_checkpoints",
    "export": "convert ct2 ctranslate2 release_model",
    "config": "settings init show-config",
    "config --schema": "schema",
    "--help": "help",
    "info": "show describe",
}
TRAINING = ("config", "train-tokenizer", "binarize", "train", "run")  # commands whose argument is CONFIG

# What other options mean here. The names are separated by spaces, - stands for _.
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


def told_of_wrong_call(error: Any, arguments: Sequence[str]) -> str:
    """The line about what typer calls a usage error: what is wrong, what to type instead, where to read more."""
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
    """The command as it was typed; `plot` has commands of its own."""
    return " ".join(["mtkit", *arguments[: 2 if arguments[:1] == ["plot"] else 1]])


def _for_option(command: str, option: str) -> str:
    name = option.lstrip("-").replace("_", "-")
    if name == "h":
        return "say --help"
    if command in TRAINING:
        for advice, names in _CONFIG.items():
            if name in names.split():
                return advice.format(command)
        from mtkit.config.load import advice_on_option

        return advice_on_option(option).removeprefix("; ")
    return next((advice for advice, names in _MORE.get(command, {}).items() if name in names.split()), "")


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
