"""Benchmarks count what they say, tell it in tables that fit, and change nothing in the run that they measure."""

import hashlib
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mtkit
from mtkit.cli import main
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.settings import Config, config_text
from mtkit.data.batches import micro_batches, padded_batch, ragged
from mtkit.data.corpus import Corpus
from mtkit.errors import MtkitError
from mtkit.evaluation import bench
from mtkit.evaluation.bench import (
    WARM_UP,
    Ids,
    Variant,
    bench_training,
    bench_translation,
    counting_rows,
    memory_of_all,
    random_lengths,
    training_text,
    transformer_flops,
    useful_rows,
    variants,
    with_ids,
)
from mtkit.exchange import engines
from mtkit.models.registry import new_model
from mtkit.translation import workers
from mtkit.translation.scores import corpus_scores
from mtkit.translation.translator import Translator
from tests.conftest import CorpusFiles
from tests.runs import RECURRENT


@dataclass(frozen=True)
class Result:
    """What `mtkit ARGUMENTS` left."""

    code: int
    out: str
    error: str


Call = Callable[..., Result]


@pytest.fixture(scope="module")
def call() -> Call:
    """A function that runs `mtkit ARGUMENTS` in this process."""

    def run(*arguments: object) -> Result:
        out, error = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
            patch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
        return Result(int(end.value.code or 0), out.getvalue(), error.getvalue())

    return run


@pytest.fixture(autouse=True, scope="module")
def products_are_timed_shortly() -> Any:
    """The peak of matrix products is not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "PEAK_SIZES", {"cpu": (256,), "cuda": (1024,), "mps": (1024,)})
        patch.setattr(bench, "PEAK_SECONDS", 0.01)
        yield


def content(run: Path) -> dict[str, str]:
    """The checksum of each file of a run directory."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def example_of(call: Call, command: str) -> list[str]:
    """The arguments of the example at the end of the help of `mtkit bench COMMAND`."""
    program, *arguments = shlex.split(call("bench", command, "--help").out.splitlines()[-1])
    assert program == "mtkit"
    return arguments


def test_beams_are_measured_unless_the_model_has_none():
    with_beams = Path(__file__).parents[1] / "bundles" / "format-2"
    assert bench.default_beam_sizes(with_beams) == [1, 5]
    assert bench.load_arguments(with_beams, Variant(5), ["a=1"])["overrides"] == ["a=1", "decoding.beam_size=5"]
    assert bench.load_arguments(with_beams, Variant(None), ["a=1"])["overrides"] == ["a=1"]


@pytest.mark.parametrize("command", ["translate", "train"])
def test_help_begins_with_a_verb_fits_a_screen_and_ends_with_an_example(call: Call, command: str) -> None:
    lines = call("bench", command, "--help").out.splitlines()
    assert lines[2].split()[0] in ("Translate", "Train")
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert lines[-2] == "  Example:"


# Translating.


# What is told of a fresh process, for tests that are not about it: to start one takes seconds.
FRESH = {"start_seconds": 2.0, "load_seconds": 1.0, "peak_bytes": 10**9}


@dataclass(frozen=True)
class Measured:
    """A measurement of the tiny run by `mtkit bench translate`."""

    record: dict[str, Any]
    table: str
    run: Path
    unchanged: bool


@pytest.fixture(scope="module")
def measured(
    call: Call, tiny_run: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    """What the example of `mtkit bench translate` measures on the tiny run, with a reference and beam sizes 1 and 2."""
    root = tmp_path_factory.mktemp("bench")
    (root / "runs").mkdir()
    (root / "data" / "demo").mkdir(parents=True)
    (root / "runs" / "demo").symlink_to(tiny_run)
    shutil.copy(corpus_files.root / "test.src", root / "data" / "demo" / "test.fr")
    before = content(tiny_run)
    options = ["--reference", corpus_files.root / "test.tgt", "--beam-size", "1,2", "--json", root / "bench.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(bench, "_fresh", lambda *_: FRESH)
        result = call(*example_of(call, "translate"), *options, "--quiet")
    assert (result.code, result.error) == (0, "")
    record = json.loads((root / "bench.json").read_text("utf-8"))
    return Measured(record, result.out, tiny_run, content(tiny_run) == before)


def test_every_variant_is_measured_and_the_figures_agree(measured: Measured, corpus_files: CorpusFiles) -> None:
    record = measured.record
    sources, references = corpus_files.lines("test")
    assert (record["lines"], record["rounds"]) == (24, 3)
    assert [(found["beam_size"], found["precision"]) for found in record["variants"]] == [(1, "fp32"), (2, "fp32")]
    for found in record["variants"]:
        translator = mtkit.load(measured.run, [f"decoding.beam_size={found['beam_size']}"])
        texts = translator.translate(sources)
        tokens = sum(len(tokens) for tokens in translator.tokenizer.encode_target(texts))
        assert found["output_tokens"] == tokens
        for rates in (found["text_to_text"], found["ids_to_ids"]):
            assert len(rates["seconds"]) == record["rounds"]
            speeds = rates["tokens_per_second"]
            assert 0 < speeds["smallest"] <= speeds["median"] <= speeds["largest"]
            assert speeds["largest"] == pytest.approx(tokens / min(rates["seconds"]))
            assert rates["lines_per_second"]["median"] / speeds["median"] == pytest.approx(24 / tokens)
        [score] = corpus_scores(texts, [references], "digits", ("bleu",))
        assert found["bleu"] == {"score": score.score, "signature": score.signature}
        assert {name: found[name] for name in FRESH} == FRESH


def test_a_beam_computes_more_rows_for_a_token_and_useful_rows_are_a_part_of_all(measured: Measured) -> None:
    greedy, beam = measured.record["variants"]
    assert 1 <= greedy["rows_per_token"] < beam["rows_per_token"]
    assert all(0 < found["useful_rows"] <= 1 for found in (greedy, beam))


def test_the_tables_fit_and_have_the_figures_of_the_json(measured: Measured) -> None:
    assert max(map(len, measured.table.splitlines())) <= 100
    for found in measured.record["variants"]:
        rows = [row.split() for row in measured.table.splitlines() if row.split()[:1] == [str(found["beam_size"])]]
        speeds, costs = rows
        assert speeds[1:4] == costs[1:4] == ["fp32", "torch", "1"]
        assert speeds[4] == f"{found['text_to_text']['tokens_per_second']['median']:,.0f}"
        assert costs[4] == f"{found['rows_per_token']:.2f}"
        assert costs[-1] == f"{found['bleu']['score']:.2f}"
    assert measured.record["variants"][0]["bleu"]["signature"] in measured.table


def test_measuring_changes_nothing_in_the_run(measured: Measured) -> None:
    assert measured.unchanged


@pytest.mark.parametrize("beam_size", [1, 3])
def test_rows_are_counted_in_every_step_and_counting_changes_no_translation(tiny_run: Path, beam_size: int) -> None:
    translator = mtkit.load(tiny_run, [f"decoding.beam_size={beam_size}"])
    lines = ["one two three", "four", ""]
    translations = translator.translate(lines)
    tokenizer = translator.tokenizer
    ids = Ids(tokenizer)
    with with_ids(translator, ids), counting_rows(translator) as rows:
        assert translator.translate(lines) == translations
    assert translator.tokenizer is tokenizer
    assert ids.sources == dict(zip(lines, tokenizer.encode_source(lines), strict=True))
    assert tokenizer.decode_target(ids.outputs) == translations
    lengths = [len(output) for output in ids.outputs if output]
    if beam_size == 1:  # a sentence that has ended leaves at once if there are at most four
        assert rows.number == useful_rows(lengths, 1)
    assert rows.number >= useful_rows(lengths, beam_size)


def test_from_ids_to_ids_there_is_no_text_and_the_same_search(tiny_run: Path, monkeypatch: Any) -> None:
    translator = mtkit.load(tiny_run)
    lines = ["one two three", "four", "", " ".join(["five"] * 40)]  # the last is translated in parts
    ids = Ids(translator.tokenizer)
    with with_ids(translator, ids), counting_rows(translator) as rows:
        translations = translator.translate(lines)
    assert translations[0]
    ids.replays = True
    for name in ("encode_source", "decode_target"):
        monkeypatch.delattr(type(ids.tokenizer), name)
    with with_ids(translator, ids), counting_rows(translator) as again:
        assert not any(text.strip() for text in translator.translate(lines))
    assert again == rows


def test_no_round_begins_after_the_limit(tiny_run: Path, corpus_files: CorpusFiles, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "_fresh", lambda *_: {**FRESH, "peak_bytes": None})
    record = bench_translation(
        tiny_run, corpus_files.root / "test.src", variants([1], ["fp32"]), num_lines=5, rounds=1000, minutes=1e-6
    )
    assert (record["lines"], record["rounds"]) == (5, 1)
    assert "      -  " in bench.translation_text(record)  # neither peak nor BLEU


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--beam-size", "1,0"], "--beam-size: found 0, wants a whole number, at least 1"),
        (["--beam-size", "1,,2"], "--beam-size: found , wants a whole number, at least 1"),
        (["--beam-size", "2,2"], "--beam-size: found 2,2, wants each item once"),
        (["--precision", "fp32,fp8"], "--precision: found fp8, wants one of fp32, bf16, fp16, int8, auto, fp64"),
        (["--engine", "torch,marian"], "--engine: found marian, wants one of torch, ctranslate2, auto"),
        (["--workers", "1,none"], "--workers: found none, wants a whole number, at least 1, or auto"),
        (["--set", "stopping=never"], "decoding.stopping=never: found never, wants"),
        (["--lines", "0"], "--lines: found 0, wants a whole number, at least 1"),
        (["--rounds", "few"], "--rounds: found few, wants a whole number, at least 1"),
        (["--minutes", "0"], "--minutes: found 0, wants a number, more than 0"),
        (["--minutes", "nan"], "--minutes: found nan, wants a number, more than 0"),
        (["--json", "no/bench.json"], "--json: no/bench.json: there is no folder no; "),
        (["--json", "."], "--json: .: is a folder; "),
        (["--reference", "short"], "text has 2 lines but short has 1; line n must translate line n"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    call: Call, tiny_run: Path, tmp_path: Path, monkeypatch: Any, options: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("one two\nthree\n")
    Path("short").write_text("1 2\n")
    result = call("bench", "translate", tiny_run, "text", *options)
    assert (result.code, result.out) == (1, "")
    assert result.error.startswith(f"mtkit: error: {told}")
    assert result.error.count("\n") == 1


def test_engines_and_workers_are_measured_and_what_is_impossible_says_why(
    call: Call, tiny_run: Path, corpus_files: CorpusFiles, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("ctranslate2")
    monkeypatch.setattr(workers, "FEW_CHARACTERS", 0)  # so that even these lines go to workers
    started = []
    start = workers._Crew._started
    fresh = bench._fresh

    def seldom_fresh(model: Path, measured: Any, *arguments: Any) -> dict[str, Any]:
        return fresh(model, measured, *arguments) if measured.has_workers else FRESH

    monkeypatch.setattr(bench, "_fresh", seldom_fresh)
    monkeypatch.setattr(workers._Crew, "_started", lambda crew: started.append(crew) or start(crew))  # type: ignore[func-returns-value]
    shutil.copytree(tiny_run / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    options = ["--engine", "torch,ctranslate2", "--workers", "1,2", "--beam-size", "1", "--rounds", "2"]
    for side in ("src", "tgt"):
        shutil.copy(corpus_files.root / f"test.{side}", side)
    files = ["src", "--reference", "tgt", "--json", "json"]
    result = call("bench", "translate", "model", *files, *options, "--quiet")
    assert (result.code, result.error) == (0, "")
    assert len(started) == 3  # in the warm-up and in both rounds
    one, two, other, impossible = json.loads(Path("json").read_text("utf-8"))["variants"]
    combinations = [(found["engine"], found["workers"]) for found in (one, two, other, impossible)]
    assert combinations == [("torch", 1), ("torch", 2), ("ctranslate2", 1), ("ctranslate2", 2)]

    assert one["bleu"] == two["bleu"]
    assert other["bleu"]["score"] == pytest.approx(one["bleu"]["score"], abs=5)
    assert one["rows_per_token"] == two["rows_per_token"] >= 1
    assert other["rows_per_token"] is other["useful_rows"] is None
    assert one["ids_to_ids"]
    assert other["ids_to_ids"]
    assert two["ids_to_ids"] is None
    assert 0 < two["load_seconds"] < two["start_seconds"]
    if sys.platform == "linux":
        translator = engines.load("model", ["decoding.beam_size=1"], engine="ctranslate2")
        assert all(50e6 < peak < 5e9 for peak in (two["peak_bytes"], bench.own_peak(translator, translator)))

    assert set(impossible) == {"beam_size", "precision", "engine", "workers", "fault"}
    assert impossible["fault"].startswith("workers 2: CTranslate2 has workers of its own; ")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    [row] = [line for line in lines if line.split()[:4] == ["1", "fp32", "ct2", "2"]]
    assert impossible["fault"].startswith(" ".join(row.split()[4:]))


def test_latency_is_that_of_calls_with_one_line_in_an_order_that_all_variants_share(
    call: Call, tiny_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("one two three\n\nfour\nfive six\nseven\n")
    Path("model").symlink_to(tiny_run / "model")
    monkeypatch.setattr(bench, "WARM_UP_LINES", 2)
    given: dict[int, list[str]] = {1: [], 2: []}
    translate = Translator.translate

    def noting(translator: Translator, lines: list[str]) -> list[str]:
        [line] = lines
        given[translator.config.decoding.beam_size].append(line)
        return translate(translator, lines)

    monkeypatch.setattr(Translator, "translate", noting)
    options = ["--latency", "--beam-size", "1,2", "--lines", "4", "--rounds", "3", "--json", "json"]
    result = call("bench", "translate", "model", "text", *options, "--quiet")
    assert (result.code, result.error) == (0, "")
    warm_up, *rounds = given[1][:2], given[1][2:5], given[1][5:8], given[1][8:]
    assert all(sorted(one) == ["five six", "four", "one two three"] for one in rounds)
    assert warm_up == rounds[0][:2]
    assert rounds[0] != rounds[1] or rounds[0] != rounds[2]
    assert given[1] == given[2]

    record = json.loads(Path("json").read_text("utf-8"))
    assert (record["lines"], record["rounds"]) == (3, 3)
    assert max(map(len, result.out.splitlines())) <= 100
    for found in record["variants"]:
        median, late = found["latency"]["median"], found["latency"]["percentile_99"]
        assert 0 < median["milliseconds"] <= late["milliseconds"]
        [row] = [line.split() for line in result.out.splitlines() if line.split()[:1] == [str(found["beam_size"])]]
        shown = [(f"{part['milliseconds']:,.1f}", str(part["output_tokens"])) for part in (median, late)]
        assert row == [str(found["beam_size"]), "fp32", "torch", *shown[0], *shown[1]]


def test_a_percentile_is_the_time_that_as_many_calls_did_not_exceed() -> None:
    calls = [(number / 1000, 2 * number) for number in range(1, 201)]
    assert bench._percentile(calls[::-1], 50) == {"milliseconds": 100.0, "output_tokens": 200}
    assert bench._percentile(calls[::-1], 99) == {"milliseconds": 198.0, "output_tokens": 396}
    assert bench._percentile(calls[:1], 99) == {"milliseconds": 1.0, "output_tokens": 2}


@pytest.mark.parametrize("option", [["--workers", "2"], ["--reference", "text"]])
def test_latency_goes_without_workers_and_references(call: Call, option: list[str]) -> None:
    result = call("bench", "translate", "model", "text", "--latency", *option)
    assert (result.code, result.out) == (2, "")
    assert f"--latency: one process translates, and nothing is scored; leave out {option[0]}" in result.error


def test_if_all_is_impossible_the_first_reason_is_the_error(call: Call, tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    (tmp_path / "text").write_text("one two\n")
    options = ["--engine", "ctranslate2", "--beam-size", "2,3", "--set", "stopping=exact"]
    result = call("bench", "translate", tiny_run, tmp_path / "text", *options)
    assert (result.code, result.out) == (1, "")
    assert result.error.startswith("mtkit: error: engine ctranslate2: decoding.stopping is exact; ")
    assert result.error.count("\n") == 1


def test_beam_sizes_are_given_in_one_way(call: Call) -> None:
    result = call("bench", "translate", "model", "text", "--set", "beam_size=3")
    assert (result.code, result.out) == (2, "")
    assert "--set beam_size: say --beam-size" in result.error


def test_what_auto_means_is_told(tiny_run: Path, corpus_files: CorpusFiles, monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "_fresh", lambda *_: {**FRESH, "peak_bytes": None})
    wanted = [Variant(2, "int8"), Variant(2, "auto", "auto", "auto")]
    record = bench_translation(tiny_run, corpus_files.root / "test.src", wanted, num_lines=3, rounds=1)
    int8, auto = (found["chosen"] for found in record["variants"])
    translator = mtkit.load(tiny_run, precision="auto")
    devices = workers.worker_devices(translator.model.device, None)
    assert auto == {"precision": translator.precision, "engine": "torch", "workers": len(devices)}
    assert int8["precision"] == "int8"
    assert record["parameters"] == mtkit.load(tiny_run).model.num_parameters
    shown = f"auto:{translator.precision}  auto:torch   auto:{len(devices)} "
    assert sum(shown in line for line in bench.translation_text(record).splitlines()) == 2


def test_a_long_last_cell_goes_on_below_itself() -> None:
    reason = " ".join(["reason"] * 30)
    lines = bench.aligned([["beam", "tokens", "lines"], ["10", "2", "3"], ["5", reason]]).splitlines()
    assert lines[:2] == ["beam  tokens  lines", "  10       2      3"]
    assert lines[2].startswith("   5  reason ")
    assert all(line.startswith("      reason") for line in lines[3:])
    assert " ".join(" ".join(lines[2:]).split()) == f"5 {reason}"
    assert max(map(len, lines)) <= 100


FORKING = """
import os, sys, time
shared = bytearray(os.urandom(1)) * 100_000_000
child = os.fork()
if child:
    os.waitpid(child, 0)
    sys.exit()
print("forked", flush=True)
sys.stdin.readline()
own = b"1" * 60_000_000
print("grown", flush=True)
sys.stdin.readline()
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory that processes share")
def test_memory_that_processes_share_counts_once() -> None:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FORKING], text=True, **pipes) as process:
        assert process.stdout.readline() == "forked\n"
        before = memory_of_all(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "grown\n"
        after = memory_of_all(process.pid)
        process.communicate("\n")
    assert before is not None
    assert after is not None
    assert 100e6 < before < 150e6
    assert after - before == pytest.approx(60e6, rel=0.05)
    assert memory_of_all(process.pid) is None


def test_a_text_without_text_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(MtkitError, match="empty: has no text to translate"):
        bench_translation(tiny_run, tmp_path / "empty", variants([1], ["fp32"]))


# Training.


@pytest.fixture
def prepared_config(make: Callable[..., Config]) -> Config:
    """The settings of a run that has data and no training."""
    config = make(label_smoothing=0.1)
    return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": 330})})


def test_training_is_measured_on_the_data_of_the_run_which_stays_as_it_is(
    call: Call, prepared_config: Config, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text(config_text(prepared_config), "utf-8")
    monkeypatch.chdir(tmp_path)
    before = content(prepared_config.run_path)
    result = call(*example_of(call, "train"), "--minutes", "0.002", "--json", "bench.json", "--quiet")
    assert (result.code, result.error) == (0, "")
    assert content(prepared_config.run_path) == before
    record = json.loads(Path("bench.json").read_text("utf-8"))
    assert record["data"] == f"the data of {prepared_config.run_path}"
    assert record["pairs"] == 120

    # Counted by hand over the batches after those that warm up.
    corpus = Corpus.open(prepared_config.run_path / "data" / "train")
    accumulate, updates = prepared_config.training.accumulate, record["updates"]
    stream = micro_batches(corpus, prepared_config.training, 0)
    chosen = [batch for _, (batch,) in islice(stream, WARM_UP * accumulate, (WARM_UP + updates) * accumulate)]
    for side in ("source", "target"):
        rows = [getattr(batch, side) for batch in chosen]
        tokens, positions = sum(int(row.mask.sum()) for row in rows), sum(row.ids.numel() for row in rows)
        assert record[f"{side}_padding"] == pytest.approx(1 - tokens / positions)
        assert record[f"{side}_tokens_per_second"] == pytest.approx(tokens / record["seconds"])
    # All but what comes after the last update, where the machine may have been busy with something else.
    assert 0.5 < sum(record["parts"].values()) / record["milliseconds_per_update"] <= 1
    assert all(part > 0 for part in record["parts"].values())
    assert record["first_update_seconds"] > 0
    assert 0 < record["share_of_peak"] < 1

    assert max(map(len, result.out.splitlines())) <= 100
    assert f"{100 * record['target_padding']:.1f} % of the target" in result.out


def test_without_data_the_stages_are_done_elsewhere(tiny_config: Config) -> None:
    record = bench_training(tiny_config, minutes=1e-6)
    assert record["updates"] >= bench.LEAST
    assert record["data"].startswith("data.train")
    assert record["pairs"] == 1500
    assert record["operators"] == []
    assert not tiny_config.run_path.exists()


def test_a_profile_of_training_shows_each_operator_once_and_all_products(make: Callable[..., Config]) -> None:
    config = make()
    record = bench_training(config, minutes=1e-6, profiles=True)
    operators = {each["name"]: each for each in record["operators"]}
    assert len(operators) == len(record["operators"])
    layers = config.model.encoder_layers + config.model.decoder_layers
    batches = config.training.batches_per_update()
    assert operators["aten::native_layer_norm"]["calls"] >= 2 * layers * batches
    assert operators["aten::_fused_adam_"]["calls"] == 1
    products = sum(each["milliseconds"] for name, each in operators.items() if name in bench.PRODUCTS)
    total = sum(each["milliseconds"] for each in operators.values())
    assert 0 < products < total
    row = f"matrix products {products:,.1f} {100 * products / total:.1f} % "
    assert row in " ".join(training_text(record).split())


def test_made_up_sentences_need_no_text(make_config: Callable[..., Config], monkeypatch: Any) -> None:
    monkeypatch.setattr(bench, "RANDOM_PAIRS", 500)
    config = make_config(data={"root": "/nowhere", "max_length": 60}, tokenizer={"vocab_size": 777})
    record = bench_training(config, minutes=1e-6, made_up=True)
    assert (record["pairs"], record["data"]) == (500, "made-up sentences")
    assert 0 <= record["target_padding"] < 0.5
    sampled = make_config(training={"bpe_dropout": 0.1})
    with pytest.raises(MtkitError, match=r"^--random: found training.bpe_dropout or unigram_alpha, [^\n]*$"):
        bench_training(sampled, minutes=1e-6, made_up=True)


def test_made_up_lengths_are_those_of_real_text() -> None:
    source, target = (torch.tensor(side).double() for side in random_lengths(20_000, 1000, seed=1))
    assert source.mean() == pytest.approx(27.5, rel=0.03)
    assert (target / source).mean() == pytest.approx(1, abs=0.05)
    assert max(random_lengths(2000, 30, seed=1)[0]) == 30


def test_an_architecture_without_a_formula_has_no_flops(make: Callable[..., Config]) -> None:
    record = bench_training(make(model=RECURRENT), minutes=1e-6)
    assert record["model_flops_per_update"] is record["share_of_peak"] is None
    assert "no formula for this architecture" in training_text(record)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_the_formula_agrees_with_a_count_of_all_products(activation: str) -> None:
    config = TransformerConfig.model_validate_json(
        json.dumps(
            {
                "d_model": 64,
                "num_heads": 2,
                "d_ff": 96,
                "decoder_d_ff": 160,
                "encoder_layers": 3,
                "decoder_layers": 2,
                "activation": activation,
            }
        )
    )
    model = new_model(config, 150, 150, seed=1)
    rows, source, target = 4, 7, 5
    batch = padded_batch(ragged([[5] * source] * rows), ragged([[6] * target] * rows))
    with FlopCounterMode(display=False) as counter:
        model.output(model(batch.source, batch.target)).sum().backward()  # type: ignore[no-untyped-call]
    formula = transformer_flops(config, 150, batch.source_tokens, batch.target_tokens, rows)
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "-1"], "--minutes: found -1, wants a number, more than 0"),
        (["device=gpu"], "device=gpu: found gpu, wants one of auto, cpu, cuda, mps"),
        (["data.train=[{source: no.src, target: no.tgt}]"], ""),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(
    call: Call, tiny_config: Config, tmp_path: Path, arguments: list[str], told: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(config_text(tiny_config), "utf-8")
    result = call("bench", "train", path, *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.error.startswith(f"mtkit: error: {told}")
    assert result.error.count("\n") == 1
    assert not tiny_config.run_path.exists()
