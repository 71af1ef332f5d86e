"""The command line: data on stdout, the rest on stderr, one line for a mistake, and examples that work."""

import bz2
import gzip
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import mtkit
from mtkit.cli import app, main
from mtkit.commands.options import GROUPS
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.settings import Config, config_text
from mtkit.text.lines import COMPRESSIONS, open_to_write
from mtkit.text.tokenizer import Tokenizer
from tests.conftest import CorpusFiles, config_with, toy_settings, write_lines
from tests.exported import write_opus
from tests.translation.test_translator import random_translator, write_bundle

PROGRAM = [sys.executable, "-m", "mtkit"]
COMMANDS = ["new", "config", "estimate", "train-tokenizer", "binarize", "train", "run", "race", "distill", "translate"]
COMMANDS += ["generate"]
COMMANDS += ["score", "align", "evaluate", "bundle", "pack", "info", "check", "verify"]
COMMANDS += ["export", "extend", "import", "report", "explain", "doctor", "clean"]


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    error: str


Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """`mtkit ARGUMENTS < stdin`, in this process; None is a stdin that is closed."""

    def run(*arguments: object, stdin: bytes | None = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfdbinary.readouterr()
        return Result(int(end.value.code or 0), out.decode(), error.decode())

    return run


def shell(command: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """A command line in bash, where `mtkit` is this one, whose output is buffered as it is for most people.

    For commands that do not import PyTorch, which takes seconds.
    """
    program = f"mtkit() {{ '{sys.executable}' -m mtkit \"$@\"; }}"
    variables = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(["bash", "-c", f"{program}; {command}"], capture_output=True, env=variables, check=False)


# Help.


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_begins_with_a_verb_fits_a_screen_and_ends_with_an_example(call: Call, command: str | None) -> None:
    result = call(*([command] if command else []), "--help")
    assert (result.code, result.error) == (0, "")
    lines = result.out.splitlines()
    assert len(lines) <= (40 if command else 48)  # the list of commands may be a little longer
    assert max(map(len, lines)) <= 100
    verbs = {
        "Check",
        "Show",
        "Run",
        "Print",
        "Train",
        "Train,",
        "Encode",
        "Find",
        "Do",
        "Translate",
        "Continue",
        "Score",
        "Pack",
        "Tell",
        "Write",
        "Add",
        "Align",
        "Make",
    }
    assert lines[2].split()[0] in verbs
    assert lines[-2] == "  Example:"
    assert lines[-1].startswith(f"    mtkit {command or 'run'} ")


def test_help_names_every_command_with_a_whole_sentence(call: Call) -> None:
    out = call("--help").out
    assert {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands} == set(
        COMMANDS
    )
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\w.*\w\.$", out, re.MULTILINE)
    assert "..." not in out.replace("[ARGS]...", "")


def test_without_a_command_the_help_is_shown_as_an_error(call: Call) -> None:
    result = call()
    assert (result.code, result.out) == (2, "")
    assert result.error == call("--help").out


@pytest.fixture(scope="session")
def workplace(tiny_run: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where all that the examples name is there, and small."""
    root = tmp_path_factory.mktemp("workplace")
    shutil.copytree(tiny_run, root / "runs" / "demo")
    for name in ("valid", "test"):
        (root / "data" / "demo").mkdir(parents=True, exist_ok=True)
        for side, language in (("src", "fr"), ("tgt", "en")):
            shutil.copy(corpus_files.root / f"{name}.{side}", root / "data" / "demo" / f"{name}.{language}")
    settings = toy_settings(corpus_files, root / "runs" / "new")
    (root / "configs").mkdir()
    tiny = config_with(settings, training={"max_steps": 4, "validate_every": 2, "save_every": 2})
    (root / "configs" / "demo.yaml").write_text(config_text(tiny))
    write_opus(root / "opus-mt-fr-en", tiny_run)
    alone = Config(task="language_model", model=TransformerConfig(d_model=8, num_heads=1, d_ff=8, decoder_layers=1))
    tokenizer = Tokenizer.load(tiny_run / "tokenizer")
    write_bundle(root / "runs" / "language-model", tokenizer, alone, random_translator(tokenizer, alone).model)
    write_lines(root / "pairs.fr-en.tsv", list(map("\t".join, zip(*corpus_files.lines("train"), strict=True))))
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_each_command_works(
    call: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("mtkit.evaluation.estimate.NUM_UPDATES", 1)
    example = shlex.split(call(command, "--help").out.splitlines()[-1])
    # The trainings of verify take half a minute; they have a test of their own. A model of four updates has no BLEU.
    more = {"verify": ["--files-only"], "race": ["run_dir=runs/race", "--target", "0"]}
    result = call(*example[1:], *more.get(command, []))
    assert result.code == 0, result.error
    made = {"train-tokenizer": "runs/new/tokenizer", "binarize": "runs/new/data", "train": "runs/new/model"}
    if command in made:
        assert Path(made[command]).is_dir()
        assert result.out == ""
    elif command == "translate":
        assert Path("test.en").read_text().count("\n") == Path("data/demo/test.fr").read_text().count("\n")
    elif command in ("bundle", "export", "extend", "import"):
        assert any(Path(example[-1]).iterdir())
        assert result.out == ""
    elif command in ("report", "explain"):
        assert (Path(example[-1]).is_file(), result.out) == (True, "")
    elif command == "pack":
        assert (Path("demo.mtkit").is_file(), result.out) == (True, "")
    else:
        assert result.out
    assert "mtkit: error" not in result.error


# What comes out.


def test_a_race_ends_with_1_if_the_target_is_not_reached_and_with_2_if_there_is_none(
    call: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    lost = call("race", "configs/demo.yaml", "run_dir=runs/lost", "--target", "100", "--quiet")
    assert (lost.code, lost.out) == (1, "")
    told = r"mtkit: error: runs/lost: bleu \S+ at step \d did not reach the target 100: 4 updates and .*\n"
    assert re.fullmatch(told, lost.error.splitlines(keepends=True)[-1])
    assert call("race", "configs/demo.yaml").code == 2


def test_the_version_is_that_of_the_package(call: Call) -> None:
    assert call("--version") == Result(0, f"mtkit {mtkit.__version__}\n", "")
    assert subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout == (
        f"mtkit {mtkit.__version__}\n"
    )


def test_help_and_settings_do_not_wait_for_torch() -> None:
    # The first that imports one of them is found, since none is imported before it.
    code = """
import sys
from mtkit.cli import main
for command in ("--help", "translate --help", "config", "config --schema"):
    sys.argv = ["mtkit", *command.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code
    print(command, {"torch", "numpy", "sacrebleu", "sentencepiece"} & set(sys.modules) or "none", file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) > 300
    assert result.stderr.splitlines() == ["--help none", "translate --help none", "config none", "config --schema none"]


def test_translations_are_all_that_goes_to_stdout(call: Call, tiny_run: Path) -> None:
    source = b"one two\n\nthree \xff\n"
    result = call("translate", tiny_run, stdin=source)
    assert (result.code, result.out.count("\n")) == (0, 3)
    assert result.out.split("\n")[1] == ""
    assert result.error == "mtkit: warning: line 3 is not valid UTF-8; what could not be read was replaced\n"
    assert call("translate", tiny_run) == Result(0, "", "")


def test_a_file_standard_input_and_a_packed_file_give_the_same(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    source = b"one two\nthree\n"
    (tmp_path / "source").write_bytes(source)
    for ending in COMPRESSIONS:
        with open_to_write(tmp_path / f"source{ending}", tmp_path / f"source{ending}") as stream:
            stream.write(source)
    results = [
        call("translate", tiny_run, stdin=source),
        call("translate", tiny_run, tmp_path / "source"),
        *(call("translate", tiny_run, tmp_path / f"source{ending}") for ending in COMPRESSIONS),
    ]
    assert results[0].out.count("\n") == 2
    assert results == [results[0]] * (2 + len(COMPRESSIONS))
    assert call("translate", tiny_run, tmp_path / "source", "-o", tmp_path / "out") == Result(0, "", "")
    assert (tmp_path / "out").read_text() == results[0].out
    call("translate", tiny_run, tmp_path / "source", "-o", tmp_path / "source")
    assert (tmp_path / "source").read_text() == results[0].out


def test_packed_standard_input_is_unpacked_and_an_archive_refused(call: Call, tiny_run: Path) -> None:
    source = b"one two\nthree\n"
    wanted = call("translate", tiny_run, stdin=source)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("source", source)
    for packed in (gzip.compress(source), bz2.compress(source), archive.getvalue()):
        assert call("translate", tiny_run, stdin=packed) == wanted
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("more", source)
    told = "is a zip archive of 2 files, no text file; unpack it, and name the text files in it"
    refused = call("translate", tiny_run, stdin=archive.getvalue())
    assert refused == Result(1, "", f"mtkit: error: standard input: {told}\n")


def test_a_dash_is_standard_input_and_standard_output(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    source, target = b"one two\nthree\n", b"1 2\n3\n"
    files = {name: tmp_path / name for name in ("source", "target", "prefix")}
    for name, raw in (("source", source), ("target", target), ("prefix", b"9\n9\n")):
        files[name].write_bytes(raw)
    wanted = call("translate", tiny_run, stdin=source)
    assert call("translate", tiny_run, "-", "-o", "-", stdin=source) == wanted
    begun = call("translate", tiny_run, files["source"], "--prefix", files["prefix"])
    assert call("translate", tiny_run, files["source"], "--prefix", "-", stdin=b"9\n9\n") == begun != wanted
    scores = call("score", tiny_run, "--source", files["source"], "--target", files["target"])
    assert call("score", tiny_run, "--source", "-", "--target", files["target"], stdin=source) == scores
    assert call("score", tiny_run, "--source", files["source"], "--target", "-", stdin=target) == scores
    evaluated = call("evaluate", tiny_run, "--source", files["source"], "--reference", files["target"], "--json")
    for given, raw in ((("-", files["target"]), source), ((files["source"], "-"), target)):
        result = call("evaluate", tiny_run, "--source", given[0], "--reference", given[1], "--json", stdin=raw)
        name = "standard input" if given[0] == "-" else "source"
        assert json.loads(result.out) == [{**score, "test_set": name} for score in json.loads(evaluated.out)]
    assert not Path("-").exists()
    for arguments in (
        ("translate", tiny_run, "-", "--prefix", "-"),
        ("translate", tiny_run, "--prefix", "-"),
        ("score", tiny_run, "--source", "-", "--target", "-"),
        ("evaluate", "--hypothesis", "-", "--reference", "-"),
        ("evaluate", "--hypothesis", "-", "--against", "-", "--reference", files["target"]),
    ):
        told = "standard input, -, can be read once; name files for the others"
        error = f"mtkit: error: {told} (mtkit {arguments[0]} --help shows how)\n"
        assert call(*arguments) == Result(2, "", error)
    told = "a packed model goes into a FILE, where it appears whole; - is none (mtkit pack --help shows how)"
    assert call("pack", tiny_run, "-") == Result(2, "", f"mtkit: error: {told}\n")


def test_settings_may_come_by_standard_input(call: Call) -> None:
    wanted = call("config", "name=some")
    assert call("config", "-", stdin=b"name: some\n") == wanted
    assert call("config", "-", stdin=b"nam: some\n") == Result(
        1, "", "mtkit: error: standard input:1: unknown key 'nam'; did you mean 'name'?\n"
    )


def test_what_is_wrong_with_standard_input_is_told(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("1\n2\n")
    for raw, told in (
        (b"one\n", f"standard input has 1 line but {tmp_path / 'target'} has 2; line n must translate line n"),
        (b"one\n\xff\n", "standard input:2: not valid UTF-8 (byte 0xff at column 1); convert the file to UTF-8"),
    ):
        for command in (
            ("score", tiny_run, "--source", "-", "--target"),
            ("evaluate", "--hypothesis", "-", "--reference"),
        ):
            assert call(*command, tmp_path / "target", stdin=raw) == Result(1, "", f"mtkit: error: {told}\n")


def test_options_of_the_search_are_heard(call: Call, tiny_run: Path) -> None:
    source = b"one two three four\n"
    text = call("translate", tiny_run, stdin=source).out
    number, score = call("translate", tiny_run, "--scores", "--beam-size", 1, stdin=source).out.split("\t")[0], 0.0
    assert re.fullmatch(r"-\d+\.\d{4}", number)
    greedy, penalised = (
        float(
            call("translate", tiny_run, "--scores", "--beam-size", 1, "--length-penalty", p, stdin=source).out.split()[
                0
            ]
        )
        for p in (0, 1)
    )
    assert greedy < penalised < score
    best = call("translate", tiny_run, "--n-best", 2, stdin=source).out.splitlines()
    assert [line.split("\t")[0] for line in best] == ["1", "1"]
    assert best[0].split("\t")[2] == text.rstrip("\n")
    for option in (("--batch-tokens", 1), ("--precision", "fp64"), ("--device", "cpu")):
        assert call("translate", tiny_run, *option, stdin=source) == Result(0, text, "")


def test_samples_come_as_they_are_asked_for(call: Call, tiny_run: Path) -> None:
    source = b"one two three four\n\nfive six\n"
    options = ("translate", tiny_run, "--sample", "--temperature", 3, "--scores")
    first, again = (call(*options, "--seed", 1, stdin=source) for _ in range(2))
    assert (first.code, first.error, first.out.count("\n")) == (0, "", 3)
    assert first == again != call(*options, "--seed", 2, stdin=source)
    many = call("translate", tiny_run, "--sample", "--n-best", 9, "--top-k", 3, "--top-p", 0.9, stdin=source)
    assert [line.split("\t")[0] for line in many.out.splitlines()] == [*"1" * 9, "2", *"3" * 9]
    elected = call("translate", tiny_run, "--mbr", 8, "--scores", stdin=source).out.splitlines()
    assert [0 <= float(line.split("\t")[0]) <= 100 for line in elected] == [True] * 3
    refused = call("translate", tiny_run, "--mbr", 8, "--n-best", 9, stdin=source)
    assert refused.error == "mtkit: error: --n-best: found 9, wants at most the samples that elect, 8\n"
    assert call("translate", tiny_run, "--top-p", 0.9, stdin=source) == Result(
        1,
        "",
        "mtkit: error: decoding.top_p=0.9: decoding: top_p 0.9 is of samples; it goes with method sample or with "
        "mbr_samples\n",
    )


def test_prefixes_settings_and_ensembles_are_heard(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    source = b"one two three four\nfive six\n"
    text = call("translate", tiny_run, stdin=source).out
    (tmp_path / "prefix").write_text("9 9\n\n")
    begun = call("translate", tiny_run, "--prefix", tmp_path / "prefix", stdin=source).out.splitlines()
    assert begun[0].startswith("9 9")
    assert begun[1] == text.splitlines()[1]
    (tmp_path / "prefix").write_text("9 9\n")
    told = "mtkit: error: the prefixes end after 1, but there are more lines; line n of both belong together\n"
    assert call("translate", tiny_run, "--prefix", tmp_path / "prefix", stdin=source).error == told
    unlike = call("translate", tiny_run, "--set", "no_repeat_ngram=1", "--set", "min_length=9", stdin=source).out
    assert unlike != text
    assert all(len(line) >= 9 for line in unlike.splitlines())
    assert call("translate", tiny_run, "--ensemble", tiny_run, stdin=source) == Result(0, text, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_text_may_come_through_a_pipe_which_is_read_once(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    lines = {"source": "one two\nthree\n", "target": "1 2\n3\n"}
    for name, text in lines.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / "source", tmp_path / "target"]
    wanted = call("score", tiny_run, "--source", files[0], "--target", files[1], "--quiet")
    evaluated = call("evaluate", tiny_run, "--source", files[0], "--reference", files[1], "--quiet", "--json")
    pipe = tmp_path / "pipe" / "source"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    for command, option, result in (("score", "--target", wanted), ("evaluate", "--reference", evaluated)):
        writer = threading.Thread(target=pipe.write_text, args=(lines["source"],))
        writer.start()
        json_option = ["--json"] if command == "evaluate" else []
        assert call(command, tiny_run, "--source", pipe, option, files[1], "--quiet", *json_option) == result
        writer.join()


def test_a_translation_is_scored_as_the_search_scored_it(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("one two three four\n\nfive six\n")
    translated = call("translate", tiny_run, tmp_path / "source", "-o", tmp_path / "target", "--length-penalty", 0)
    assert translated.code == 0
    said = call("translate", tiny_run, tmp_path / "source", "--length-penalty", 0, "--scores").out.splitlines()
    files = ("--source", tmp_path / "source", "--target", tmp_path / "target")
    result = call("score", tiny_run, *files)
    assert (result.code, result.error) == (0, "")
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert len(rows) == 3
    assert int(rows[1][1]) == 1
    for n in (0, 2):
        log_prob, tokens, mean = float(rows[n][0]), int(rows[n][1]), float(rows[n][2])
        assert log_prob == pytest.approx(float(said[n].split("\t")[0]), abs=2e-4)
        assert mean == pytest.approx(log_prob / tokens, abs=1e-4)
    by_token = [json.loads(line) for line in call("score", tiny_run, *files, "--tokens").out.splitlines()]
    assert [len(pairs) for pairs in by_token] == [int(row[1]) for row in rows]
    for pairs, row in zip(by_token, rows, strict=True):
        assert pairs[-1][0] == "</s>"
        assert sum(value for _, value in pairs) == pytest.approx(float(row[0]), abs=1e-3)
    assert call("score", tiny_run, *files, "--ensemble", tiny_run).out == result.out
    (tmp_path / "target").write_text("1\n")
    assert call("score", tiny_run, *files) == Result(
        1,
        "",
        f"mtkit: error: {tmp_path / 'source'} has 3 lines but {tmp_path / 'target'} has 1; "
        "line n must translate line n\n",
    )
    assert call("score", tiny_run, "--source", "nowhere", "--target", "nowhere").error == (
        "mtkit: error: nowhere: no such file\n"
    )
    assert call("score", tiny_run, *files, "--precision", "fp8").error == (
        "mtkit: error: --precision: found fp8, wants one of fp32, bf16, fp16, int8, auto, fp64\n"
    )


def test_translate_and_evaluate_go_together_in_a_pipe(call: Call, tiny_run: Path, corpus_files: CorpusFiles) -> None:
    source, reference = corpus_files.root / "test.src", corpus_files.root / "test.tgt"
    translated = call("translate", tiny_run, stdin=source.read_bytes())
    piped = call("evaluate", "--hypothesis", "-", "--reference", reference, "--json", stdin=translated.out.encode())
    assert (translated.code, translated.error, piped.code, piped.error) == (0, "", 0, "")
    direct = call("evaluate", tiny_run, "--source", source, "--reference", reference, "--json")
    figures = [[score["score"] for score in json.loads(result.out)] for result in (piped, direct)]
    assert figures[0] == figures[1]


def test_config_prints_settings_that_load_again(call: Call, tmp_path: Path) -> None:
    result = call("config", "training.max_steps=7", "name=é")
    assert (result.code, result.error) == (0, "")
    (tmp_path / "again.yaml").write_text(result.out, encoding="utf-8")
    assert call("config", tmp_path / "again.yaml") == result
    assert "max_steps: 7" in result.out
    assert json.loads(call("config", "--schema").out)["properties"]["training"]


# Mistakes in the call.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["translate"], "Missing argument 'MODEL'."),
        (["train"], "Missing argument 'CONFIG'."),
        (["transalte"], "No such command 'transalte'."),
        (["translate", "model", "--beam", "5"], "No such option: --beam; say --beam-size N ("),
        (["translate", "model", "--beam_size", "5"], "No such option: --beam_size (Possible options: --beam-size) ("),
        (["translate", "model", "--gpu", "0"], "No such option: --gpu; say --device cuda, or --device cpu ("),
        (["translate", "--model", "x"], "No such option: --model; MODEL is an argument: mtkit translate MODEL FILE ("),
        (
            ["translate", "m", "-i", "x"],
            "No such option: -i; the file is an argument: mtkit translate MODEL FILE -o OUT",
        ),
        (["translate", "m", "f", "k=v"], "settings of decoding are given by --set, such as --set beam_size=3 ("),
        (["evaluate", "m", "--target", "x"], "No such option: --target; say --reference FILE ("),
        (["evaluate", "m", "a", "b"], "files are options: mtkit evaluate MODEL --source FILE --reference FILE ("),
        (["train", "--config", "x.yaml"], "No such option: --config; CONFIG is an argument: mtkit train CONFIG ("),
        (["train", "-h"], "No such option: -h; say --help ("),
        (["distill", "x.yaml"], "Missing option '--teacher'."),
        (["distill", "x.yaml", "--model", "m"], "No such option: --model; say --teacher MODEL ("),
        (["distill", "--config", "x.yaml"], "No such option: --config; CONFIG is an argument: mtkit distill CONFIG ("),
        (["decode", "model"], "No such command 'decode'. Say 'mtkit translate'. ("),
        (["average", "model"], "No such command 'average'. Say 'mtkit bundle RUN --step average'. ("),
        (["help"], "No such command 'help'. Say 'mtkit --help'. ("),
        (["train", "x.yaml", "--max-steps", "5"], "; settings are given without dashes: training.max_steps=… ("),
        (["run", "x.yaml", "--training.seed=5"], "; settings are given without dashes: training.seed=… ("),
        (
            ["train", "x.yaml", "--lr", "5"],
            "; settings are given without dashes, as section.key=value: did you mean 'training.learning_rate'? (",
        ),
        (["translate", "model", "--beam-size"], "Option '--beam-size' requires an argument."),
        (["translate", "m", "f", "more"], "the output is an option: mtkit translate MODEL FILE -o OUT ("),
        (["evaluate"], "give either MODEL or --hypothesis"),
        (["evaluate", "model", "--hypothesis", "text"], "give either MODEL or --hypothesis"),
        (["evaluate", "--hypothesis", "text"], "--hypothesis goes with --reference, or with one --test-set"),
        (
            ["evaluate", "--hypothesis", "text", "--reference", "text", "--source", "text"],
            "--hypothesis goes with --source if it is scored --by-length, and only then",
        ),
        (["plot"], "Missing command."),
        (["bench", "translate", "model"], "Missing argument 'FILE'."),
        (["bench", "train", "--config", "x.yaml"], "CONFIG is an argument: mtkit bench train CONFIG ("),
        (["evaluate", "model", "--source", "text"], "--source and --reference go together"),
        (["evaluate", "model", "--reference", "text"], "--source and --reference go together"),
        (["evaluate", "model", "--target-language", "en"], "--target-language goes with --hypothesis"),
        (
            ["evaluate", "--hypothesis", "a", "--reference", "b", "--beam-size", "2"],
            "--hypothesis is translated already",
        ),
    ],
)
def test_a_wrong_call_is_told_in_one_line_with_the_command_whose_help_shows_how_and_ends_with_2(
    call: Call, arguments: list[str], told: str
) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.error.startswith("mtkit: error: ")
    assert told in result.error
    command = "" if told.startswith("No such command") else f" {' '.join(arguments[: 1 + (arguments[0] in GROUPS)])}"
    assert result.error.endswith(f" (mtkit{command} --help shows how)\n")
    assert result.error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--beam-size", "0", "decoding.beam_size=0: found 0, wants a whole number, at least 1, at most 10000"),
        ("--beam-size", "many", "decoding.beam_size=many: found many, wants a whole number, at least 1, at most 10000"),
        ("--length-penalty", "x", "decoding.length_penalty=x: found x, wants a number, at least -10, at most 10"),
        ("--batch-tokens", "-1", "decoding.batch_tokens=-1: found -1, wants a whole number, at least 1"),
        ("--device", "gpu", "device=gpu: found gpu, wants one of auto, cpu, cuda, mps"),
        ("--precision", "fp8", "--precision: found fp8, wants one of fp32, bf16, fp16, int8, auto, fp64"),
        ("--n-best", "0", "--n-best: found 0, wants a whole number, at least 1"),
        ("--n-best", "²", "--n-best: found ², wants a whole number, at least 1"),
        ("--n-best", "9" * 5000, f"--n-best: found {'9' * 5000}, wants a whole number, at least 1"),
        ("--n-best", "9", "--n-best: found 9, wants at most the beam size, 2"),
        ("--top-k", "0", "decoding.top_k=0: found 0, wants a whole number, at least 1, or null"),
        ("--top-p", "2", "decoding.top_p=2: found 2, wants a number, more than 0, at most 1, or null"),
        ("--temperature", "0", "decoding.temperature=0: found 0, wants a number, at least 1e-09, at most 1000"),
        ("--seed", "-1", "decoding.seed=-1: found -1, wants a whole number, at least 0"),
        ("--mbr", "x", "decoding.mbr_samples=x: found x, wants a whole number, at least 0, at most 10000"),
        ("--set", "stopping=soon", "decoding.stopping=soon: found soon, wants one of exact, count, optimal"),
        ("--set", "stop=1", "decoding.stop=1: unknown key 'decoding.stop'; did you mean 'top_p'?"),
        ("--prefix", "nowhere", "nowhere: no such file"),
        (
            "--ensemble",
            "nowhere",
            "nowhere: no such directory; MODEL is a run directory, a checkpoint or a model bundle",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_line_and_ends_with_1(
    call: Call, tiny_run: Path, option: str, value: str, told: str
) -> None:
    assert call("translate", tiny_run, f"{option}={value}") == Result(1, "", f"mtkit: error: {told}\n")


def test_several_faults_of_a_file_are_a_line_each(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("training: {max_stesp: 3}\ndecoding: {beam_size: 0}\n")
    result = call("config", path)
    assert (result.code, result.out) == (1, "")
    assert result.error.splitlines() == [
        f"mtkit: error: {path}:1: unknown key 'training.max_stesp'; did you mean 'max_steps'?",
        f"mtkit: error: {path}:2: decoding.beam_size: found 0, wants a whole number, at least 1, at most 10000",
    ]


# Where it runs.


def test_a_reader_that_goes_away_is_no_error(call: Call, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("mtkit config", "mtkit --help"):
        result = shell(f"{command} | head -n 1")
        assert (result.returncode, result.stdout.count(b"\n"), result.stderr) == (0, 1, b"")
    # So little that it is only written at the end, when the reader has long gone.
    assert shell("mtkit --version | true").stderr == b""
    ours, theirs = os.pipe()
    os.close(ours)
    with suppress(BrokenPipeError), os.fdopen(theirs, "w") as gone:  # which is flushed at its end
        monkeypatch.setattr(sys, "stdout", gone)
        result = call("translate", tiny_run, "--beam-size", 1, stdin=b"one two three\n" * 2000)
    assert result == Result(1, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_told_in_one_line(
    call: Call, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "mtkit: error: No space left on device; make room and start again\n"
    for command in ("mtkit config", "mtkit --version"):
        result = shell(f"{command} > /dev/full")
        assert (result.returncode, result.stderr.decode()) == (1, told)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert call("translate", tiny_run, stdin=b"one\n") == Result(1, "", told)


def test_a_closed_stream_is_told_in_one_line(call: Call, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "mtkit: error: standard input is closed; give it some text, or a FILE\n"
    assert call("translate", tiny_run, stdin=None) == Result(1, "", told)
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where descriptor 1 is closed
    told = "mtkit: error: standard output is closed; send it somewhere, or write a file with -o\n"
    assert call("translate", tiny_run) == Result(1, "", told)


def test_text_is_utf8_in_the_plainest_locale(tmp_path: Path) -> None:
    named = tmp_path / "dé"
    named.write_text("name: é\n", encoding="utf-8")
    shown = shell(f"mtkit config '{named}' languages.source=ñ", LC_ALL="C")
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert {"name: é", "  source: ñ"} <= set(shown.stdout.decode("utf-8").splitlines())
    named.unlink()
    assert str(named) in shell(f"mtkit config '{named}'", LC_ALL="C").stderr.decode("utf-8")


def test_what_is_printed_is_utf8_where_python_would_have_ascii(call: Call, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: é\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = shell(f"mtkit config '{tmp_path / 'config.yaml'}'", **ascii_only)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode("utf-8") == call("config", tmp_path / "config.yaml").out
    odd = os.fsdecode(b"\xff")
    assert call("config", f"{tmp_path}/{odd}").error.count("\n") == 1


# Alignments.


def test_alignments_have_a_line_for_each_output_line(
    call: Call, tiny_run: Path, corpus_files: CorpusFiles, tmp_path: Path
) -> None:
    source, target = (corpus_files.root / f"test.{side}" for side in ("src", "tgt"))
    translated = call("translate", tiny_run, source, "-q", "--n-best", 2, "--alignments", tmp_path / "links")
    links = (tmp_path / "links").read_text("ascii").splitlines()
    assert len(links) == len(translated.out.splitlines()) == 48
    assert all(re.fullmatch(r"(\d+-\d+ ?)+", line) for line in links)
    aligned = call("align", tiny_run, "--source", source, "--target", target, "-q")
    scored = call("score", tiny_run, "--source", source, "--target", target, "-q", "--alignments", tmp_path / "scored")
    assert scored == call("score", tiny_run, "--source", source, "--target", target, "-q")
    assert (tmp_path / "scored").read_text("ascii") == aligned.out
    assert call("align", tiny_run, "--tsv", "-", "-q", stdin=b"four nine\t4 9\n\n").out.splitlines()[1] == ""

    gold = tmp_path / "gold"
    gold.write_text(aligned.out, "ascii")
    evaluated = ("evaluate", tiny_run, "--source", source, "--reference", target, "--gold-alignments", gold, "-q")
    rows = json.loads(call(*evaluated, "--json").out)
    assert [(row["system"], row["metric"], row["score"]) for row in rows[:3]] == [
        (str(tiny_run), "AER", 0.0),
        (str(tiny_run), "precision", 100.0),
        (str(tiny_run), "recall", 100.0),
    ]
    assert [row["system"] for row in rows[3:]] == ["diagonal"] * 3
    assert "layer:1|head:2|" in call(*evaluated, "--alignment-layer", 1, "--alignment-head", 2).out


def test_wrong_use_of_alignment_options_is_told(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    told = {
        ("translate", tiny_run, "--alignment-head", "2"): "go with --alignments FILE",
        ("translate", tiny_run, "--alignments", "-"): "--alignments goes into a FILE",
        ("evaluate", tiny_run, "--gold-alignments", "x"): "goes with MODEL, --source and one --reference",
        ("evaluate", tiny_run, "--gold-alignments", "x", "--source", "s", "--reference", "r", "--lowercase"): (
            "--gold-alignments has its own scores: no --against"
        ),
    }
    for arguments, text in told.items():
        result = call(*arguments)
        assert (result.code, result.out) == (2, "")
        assert text in result.error
    result = call("translate", tiny_run, "--alignments", tmp_path / "x", "--alignment-layer", "7")
    assert result == Result(1, "", "mtkit: error: --alignment-layer: found 7, wants mean or a number from 1 to 1\n")
