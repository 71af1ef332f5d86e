"""`mtkit evaluate` gives the score and the signature of the sacrebleu command, over the same files."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mtkit
from mtkit.cli import main
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.errors import ConfigError, DataError
from mtkit.evaluation.evaluate import ScoredSet, Scoring, System, evaluate, evaluate_texts, table
from mtkit.preparation.sources import SetFiles
from mtkit.preparation.sources import test_sets as sets_of
from mtkit.translation.translator import Translator
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.forked import SACREBLEU, output_of

Json = list[dict[str, object]]
Evaluate = Callable[..., tuple[Json, str]]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Evaluate:
    """What `mtkit evaluate ARGUMENTS --json --quiet` prints, and what it says on stderr."""

    def run(*arguments: object, stdin: bytes = b"") -> tuple[Json, str]:
        monkeypatch.setattr(sys, "argv", ["mtkit", "evaluate", *map(str, arguments), "--json", "--quiet"])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfdbinary.readouterr()
        assert not end.value.code, error.decode()
        scores: Json = json.loads(out)
        return scores, error.decode()

    return run


def sacrebleu(hypothesis: Path, references: list[Path], *options: str) -> list[tuple[str, float, str]]:
    """Metric, score and signature of the command."""
    command = [*SACREBLEU, *map(str, references), "-i", str(hypothesis), *options]
    figures = json.loads(output_of([*command, "-m", "bleu", "chrf", "ter", "-w", "10", "--format", "json"]))
    return [(figure["name"], figure["score"], figure["signature"]) for figure in figures]


def rows(scores: Json) -> list[tuple[object, object, object]]:
    return [(score["metric"], pytest.approx(score["score"], abs=1e-9), score["signature"]) for score in scores]


LINES = {
    "hypothesis": [
        "The cat sat on the mat, didn't it?",
        "",
        "A\u2028line\x0cwith\u0085separators",
        "Über  200 %  &quot;Ärger&quot; ",
        "今天 天气 很好。",
        "nothing like it",
        "THE SAME WORDS OF ANOTHER CASE",
        "trailing space \t",
    ],
    "reference": [
        "The cat sat on a mat, didn't it?",
        "Nothing was said.",
        "A\u2028line\x0cwith\u0085separators here",
        'Über 200 % "Ärger"',
        "今天天气很好。",
        "Something else altogether",
        "the same words of another case",
        "trailing space",
    ],
    "second": [
        "On the mat the cat sat.",
        "",
        "A line with separators",
        "More than 200 % trouble",
        "天气很好。",
        "",
        "The Same Words of another case",
        "leading space",
    ],
}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Lines that trip up whoever splits, strips or lowercases them otherwise."""
    paths = {name: tmp_path / name for name in LINES}
    for name, path in paths.items():
        path.write_bytes("".join(f"{line}\n" for line in LINES[name]).encode())
    return paths


@pytest.mark.parametrize("names", [["reference"], ["reference", "second"]])
@pytest.mark.parametrize("options", [[], ["--lowercase"]])
def test_a_text_has_the_figures_and_signatures_of_the_sacrebleu_command(
    evaluated: Evaluate, texts: dict[str, Path], names: list[str], options: list[str]
) -> None:
    references = [texts[name] for name in names]
    given = [argument for path in references for argument in ("--reference", path)]
    scores, _ = evaluated("--hypothesis", texts["hypothesis"], *given, *options)
    # sacreBLEU has an option for each metric; its TER is without case always.
    same = ["-lc", "--chrf-lowercase"] if options else []
    assert rows(scores) == sacrebleu(texts["hypothesis"], references, *same)
    assert {score["test_set"] for score in scores} == {"hypothesis"}


@pytest.mark.parametrize("language", ["zh", "de"])
def test_the_target_language_picks_the_tokenizer_of_bleu(
    evaluated: Evaluate, texts: dict[str, Path], language: str
) -> None:
    scores, _ = evaluated(
        *("--hypothesis", texts["hypothesis"], "--reference", texts["reference"], "--target-language", language)
    )
    assert rows(scores) == sacrebleu(texts["hypothesis"], [texts["reference"]], "--language-pair", f"en-{language}")


def test_a_text_from_a_pipe_is_scored_like_one_from_a_file(evaluated: Evaluate, texts: dict[str, Path]) -> None:
    from_file, _ = evaluated("--hypothesis", texts["hypothesis"], "--reference", texts["reference"])
    piped, _ = evaluated("--hypothesis", "-", "--reference", texts["reference"], stdin=texts["hypothesis"].read_bytes())
    assert [{**score, "test_set": "hypothesis"} for score in piped] == from_file


def test_a_model_is_scored_as_its_translations_are_by_the_sacrebleu_command(
    evaluated: Evaluate, tiny_run: Path, corpus_files: CorpusFiles, tmp_path: Path
) -> None:
    scores, error = evaluated(tiny_run)
    assert error == ""
    assert [(score["test_set"], score["metric"]) for score in scores] == [
        ("toy", "BLEU"),
        ("toy", "chrF2"),
        ("toy", "TER"),
    ]
    assert all(list(score) == ["test_set", "metric", "score", "signature"] for score in scores)
    hypothesis = tmp_path / "hypothesis"
    sources, _ = corpus_files.lines("test")
    hypothesis.write_text("".join(f"{line}\n" for line in mtkit.load(tiny_run).translate(sources)))
    assert rows(scores) == sacrebleu(hypothesis, [corpus_files.root / "test.tgt"])
    given, _ = evaluated(
        tiny_run, "--source", corpus_files.root / "test.src", "--reference", corpus_files.root / "test.tgt"
    )
    assert [{**score, "test_set": "toy"} for score in given] == scores


@pytest.fixture(scope="module")
def translator(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run)


def test_every_test_set_of_the_settings_is_scored_by_its_name(
    translator: Translator, corpus_files: CorpusFiles, tmp_path: Path
) -> None:
    settings = toy_settings(corpus_files, tmp_path)
    several = {**corpus_files.pair("test"), "target": ["test.tgt", "test.tgt"]}
    config = config_with(settings, data={"test": {"a": corpus_files.pair("valid"), "b": several}})
    sets = sets_of(config)
    assert list(sets) == ["a", "b"]
    assert sets["b"].target == (corpus_files.root / "test.tgt",) * 2
    scores = [score for name, test_set in sets.items() for score in evaluate(translator, name, test_set)]
    assert [score.test_set for score in scores] == ["a"] * 3 + ["b"] * 3
    assert "nrefs:2" in scores[3].signature


def test_settings_without_a_test_set_say_what_to_do(corpus_files: CorpusFiles, tmp_path: Path) -> None:
    config = config_with(toy_settings(corpus_files, tmp_path), data={"test": {}})
    with pytest.raises(ConfigError, match=r"no test set: name one in data\.test, or give --source and --reference"):
        sets_of(config)


def test_unequal_numbers_of_lines_are_refused_before_anything_is_translated(
    corpus_files: CorpusFiles, texts: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        evaluate_texts("text", [System("text", ["one", "two"])], [texts["reference"]], Scoring(LanguagesConfig()))
    assert str(error.value) == f"text has 2 lines but {texts['reference']} has 8; line n must translate line n"
    source = corpus_files.root / "test.src"
    no_translator = Translator.__new__(Translator)  # would fail if it were asked for anything
    with pytest.raises(DataError) as error:
        evaluate(no_translator, "set", SetFiles(source=source, target=(texts["reference"],)))
    assert str(error.value) == f"{source} has 24 lines but {texts['reference']} has 8; line n must translate line n"


def test_text_that_looks_tokenised_is_warned_of_on_stderr(evaluated: Evaluate, tmp_path: Path) -> None:
    for name, line in (("hypothesis", "it is so , is n't it ."), ("reference", "It is so, isn't it.")):
        (tmp_path / name).write_text(f"{line}\n" * 3)
    _, error = evaluated("--hypothesis", tmp_path / "hypothesis", "--reference", tmp_path / "reference")
    [warning] = error.splitlines()
    assert warning.startswith("mtkit: warning: hypothesis, translation: 3 of 3 lines look tokenised")


def test_lines_that_were_translated_in_parts_are_told(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: None
) -> None:
    path = tmp_path / "long"
    path.write_text("one two three. " * 50 + "\none\n")
    translator = mtkit.load(tiny_run, ["decoding.max_length_extra=50"])
    scores = evaluate(translator, "long", SetFiles(source=path, target=(path,)), save_to=tmp_path / "kept" / "out")
    assert len(scores) == 3
    assert (tmp_path / "kept" / "out").read_bytes().count(b"\n") == 2
    assert capsys.readouterr().err.splitlines() == [
        "mtkit: warning: long: lines too long for the model, and so translated in parts: 1"
    ]


def test_the_table_has_a_line_for_each_score_in_columns() -> None:
    scores = [ScoredSet("a", "BLEU", 12.345, "nrefs:1"), ScoredSet("longer", "chrF2", 100.0, "nrefs:2")]
    assert table(scores) == "a       BLEU    12.35  nrefs:1\nlonger  chrF2  100.00  nrefs:2\n"
