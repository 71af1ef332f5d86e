"""Given translations are scored: files of lines, n-best lists, pairs in one file, and all of them from pipes."""

import io
import json
import math
from pathlib import Path

import pytest

import mtkit
from mtkit.cli import _run
from mtkit.files import json_text
from mtkit.training.records import Log
from mtkit.translation.stream import NBestList, PairsFile, ParallelFiles, score
from mtkit.translation.translator import Translator

SOURCES = ["one two", "", "three four", "five"]


@pytest.fixture(scope="module")
def translator(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run, ["device=cpu"])


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def scored(translator: Translator, texts: ParallelFiles | NBestList | PairsFile, by_token: bool = False) -> list[str]:
    out = io.BytesIO()
    score(translator, texts, out, by_token)
    return out.getvalue().decode().splitlines()


def refuse(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_an_n_best_list_is_scored_as_its_pairs_are(
    translator: Translator, tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "source", SOURCES)
    assert _run(["translate", str(tiny_run), str(source), "--n-best", "2", "-o", str(tmp_path / "list")]) == 0
    rows = [line.split("\t") for line in (tmp_path / "list").read_text().splitlines()]
    assert len(rows) > len(SOURCES)
    pairs = [(SOURCES[int(row[0]) - 1], row[2]) for row in rows]
    wanted = scored(
        translator,
        ParallelFiles(
            write(tmp_path / "sources", [pair[0] for pair in pairs]),
            write(tmp_path / "targets", [pair[1] for pair in pairs]),
        ),
    )
    assert scored(translator, NBestList(source, tmp_path / "list")) == wanted
    assert scored(translator, PairsFile(write(tmp_path / "pairs", ["\t".join(pair) for pair in pairs]))) == wanted
    without = write(tmp_path / "without scores", [f"{row[0]}\t{row[2]}" for row in rows])
    assert scored(translator, NBestList(source, without)) == wanted
    upside_down = write(tmp_path / "upside down", ["\t".join(row) for row in reversed(rows)])
    assert sorted(scored(translator, NBestList(source, upside_down))) == sorted(wanted)
    # A beam's score is the log-probability a token where the length penalty is 1; of a blank line nothing is said.
    said = [(float(row[1]), float(line.split("\t")[2])) for row, line in zip(rows, wanted, strict=True) if row[2]]
    assert [score for score, _ in said] == pytest.approx([mean for _, mean in said], abs=2e-3)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0\t-0.5\t1 2", "names source line 0, and FOLDER/source has lines 1 to 4"),
        ("5\t-0.5\t1 2", "names source line 5, and FOLDER/source has lines 1 to 4"),
        ("9" * 5000 + "\t1 2", "wants the number of a source line"),
        ("0 ||| 1 2 ||| -0.5", "found '0 ||| 1 2 ||| -0.5', wants the number of a source line, a score and a trans"),
        ("1 2", "wants the number of a source line"),
        ("1", "wants the number of a source line"),
        ("1\tone\ttwo", "wants the number of a source line"),
        ("-1\t-0.5\t1 2", "wants the number of a source line"),
        ("", "wants the number of a source line"),
    ],
)
def test_what_is_no_n_best_list_is_refused_before_anything_is_scored(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, problem: str
) -> None:
    source = write(tmp_path / "source", SOURCES)
    target = write(tmp_path / "target", ["1\t-0.5\t1 2", line])
    assert _run(["score", str(tiny_run), "--source", str(source), "--target", str(target), "--n-best"]) == 1
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith(f"mtkit: error: {target}:2: ")
    assert error.count("\n") == 1
    assert problem.replace("FOLDER", str(tmp_path)) in error


def test_pairs_in_one_file_are_scored_line_by_line(translator: Translator, tmp_path: Path) -> None:
    lines = write(tmp_path / "pairs", ["one two\t1 2\tleft aside", "", "\t", "three\t3", "four\t", ""])
    wanted = translator.score(["one two", "", "", "three", "four", ""], ["1 2", "", "", "3", "", ""])
    assert [int(line.split("\t")[1]) for line in scored(translator, PairsFile(lines))] == [
        line.num_tokens for line in wanted
    ]


def test_a_line_without_a_tab_is_no_pair(tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = write(tmp_path / "pairs", ["one two\t1 2", "three"])
    assert _run(["score", str(tiny_run), "--tsv", str(lines)]) == 1
    assert capfd.readouterr() == (
        "",
        f"mtkit: error: {lines}:2: found no tab, wants a source, a tab and its translation\n",
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "give --source and --target, or --tsv"),
        (["--source", "s"], "give --source and --target, or --tsv"),
        (
            ["--tsv", "t", "--source", "s"],
            "--tsv goes without --source, --target and --n-best; each of its lines has both",
        ),
        (["--tsv", "t", "--n-best"], "--tsv goes without --source, --target and --n-best; each of its lines has both"),
        (["--source", "-", "--target", "-"], "standard input, -, can be read once"),
    ],
)
def test_a_wrong_call_is_told(options: list[str], problem: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(["score", "model", *options]) == 2
    assert capfd.readouterr().err.startswith(f"mtkit: error: {problem}")


def test_an_n_best_list_goes_from_one_command_to_the_other(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, written = write(tmp_path / "source", SOURCES), tmp_path / "list"
    assert _run(["translate", str(tiny_run), str(source), "--n-best", "2", "-o", str(written)]) == 0
    files = ["--source", str(source), "--target", str(written)]
    assert _run(["score", str(tiny_run), *files, "--n-best"]) == 0
    out, error = capfd.readouterr()
    assert error == ""
    assert out.count("\n") == written.read_bytes().count(b"\n") > len(SOURCES)


def test_json_is_that_of_the_standard_whatever_a_model_says(tiny_run: Path, tmp_path: Path) -> None:
    broken = mtkit.load(tiny_run, ["device=cpu"])
    weight = broken.model.output.weight.clone()  # type: ignore[union-attr]
    weight[:] = math.nan
    broken.model.output.weight.data = weight  # type: ignore[union-attr]
    pairs = PairsFile(write(tmp_path / "pairs", ["one two\t1 2"]))
    [line] = scored(broken, pairs, by_token=True)
    assert [value for _, value in json.loads(line, parse_constant=refuse)] == [None, None, None]
    text = json_text({"ä": [1.5, -math.inf, (math.nan, "x")], "b": math.inf})
    assert json.loads(text, parse_constant=refuse) == {"ä": [1.5, None, [None, "x"]], "b": None}
    log = Log(tmp_path / "log.jsonl", 0)
    log.write("validation", scores={"bleu": math.nan}, rates=[math.inf, 1])
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse) == {
        "event": "validation",
        "scores": {"bleu": None},
        "rates": [None, 1],
    }
