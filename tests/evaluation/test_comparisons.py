"""Comparisons and confidence are those of the sacrebleu command; scores by length part a test set and lose nothing."""

import json
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import mtkit
from mtkit.cli import main
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.errors import MtkitError
from mtkit.evaluation.evaluate import Bucket, Scoring, System, buckets, score_set, table
from mtkit.translation.scores import TESTS, Score, SignificanceTest, corpus_scores, count_words, paired_scores
from tests.conftest import CorpusFiles
from tests.forked import SACREBLEU, output_of

Json = list[dict[str, object]]
Run = Callable[..., tuple[object, str, str]]

SUBJECTS = ["The old baker", "A tired child", "My neighbour", "The fox", "Nobody", "An unknown traveller"]
VERBS = ["carries", "paints", "forgets", "hides", "sells"]
OBJECTS = ["a basket of green apples", "the broken clock", "three letters", "the key", "bread and cheese, too"]


def corpus(seed: int, count: int = 60) -> list[str]:
    chance = random.Random(seed)
    return [f"{chance.choice(SUBJECTS)} {chance.choice(VERBS)} {chance.choice(OBJECTS)}." for _ in range(count)]


def corrupted(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with about that share of their words replaced."""
    chance = random.Random(seed)
    return [" ".join(chance.choice(VERBS) if chance.random() < share else w for w in line.split()) for line in lines]


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A reference, another, and translations by a good and a poor system."""
    reference = corpus(1)
    return {
        "reference": write(tmp_path / "reference", reference),
        "second": write(tmp_path / "second", corrupted(reference, 0.3, 2)),
        "good": write(tmp_path / "good", corrupted(reference, 0.15, 3)),
        "poor": write(tmp_path / "poor", corrupted(reference, 0.22, 4)),
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The exit code of `mtkit evaluate --quiet ARGUMENTS`, what it prints and what it says on stderr."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["mtkit", "evaluate", "--quiet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capfd.readouterr()

    return run


def sacrebleu(*arguments: object) -> str:
    """What the command prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        return output_of([*SACREBLEU, *map(str, arguments), "-m", "bleu", "chrf", "ter"])


@pytest.mark.parametrize(
    ("test", "option", "names"),
    [
        ("bootstrap", "--paired-bs", ["reference"]),
        ("bootstrap", "--paired-bs", ["reference", "second"]),
        ("randomization", "--paired-ar", ["reference", "second"]),
    ],
)
def test_two_texts_are_compared_as_by_the_sacrebleu_command(
    run: Run, files: dict[str, Path], test: str, option: str, names: list[str]
) -> None:
    references = [files[name] for name in names]
    given = [argument for path in references for argument in ("--reference", path)]
    lowercase = ["--lowercase"] if len(names) == 2 else []
    code, out, error = run(
        *("--hypothesis", files["good"], "--against", files["poor"], *given, "--test", test, *lowercase, "--json")
    )
    assert (code, error) == (0, "")
    scores = json.loads(out)
    options = ["-i", files["poor"], files["good"], option, *(["-lc", "--chrf-lowercase"] if lowercase else [])]
    printed = sacrebleu(*references, *options, "-w", "9", "-f", "latex")
    # A cell is such as "61.2 (61.3 ± 4.5) (p = 0.0123)*"; the command's JSON of this fails in sacreBLEU 2.6.
    rows = [line for line in printed.splitlines() if line.count("&") == 3][1:]
    cells = [[re.findall(r"-?\d+\.\d+", cell) for cell in row.split("&")[1:]] for row in rows]
    for name, wanted in zip((files["poor"], files["good"]), cells, strict=True):
        for metric, figures in zip(("BLEU", "chrF2", "TER"), wanted, strict=True):
            [found] = [score for score in scores if (score["system"], score["metric"]) == (str(name), metric)]
            shown = [f"{found[key]:.9f}" for key in ("score", "mean", "interval") if key in found]
            if (test, metric) == ("randomization", "TER") and "p_value" in found:
                # Edits are few, so that many trials differ just as much, which the command does not count.
                assert shown == figures[:-1]
                assert found["p_value"] > float(figures[-1])
            else:
                assert [*shown, *([f"{found['p_value']:.4f}"] if "p_value" in found else [])] == figures
            assert ("p_value" in found, "mean" in found) == (name == files["good"], test == "bootstrap")
    signatures = re.findall(r"^ - (\S+) +(nrefs\S+)$", printed, re.MULTILINE)
    assert len(signatures) == 3
    assert {(score["metric"], score["signature"]) for score in scores} == set(signatures)
    assert {score["test_set"] for score in scores} == {"reference"}


def test_the_table_of_a_comparison_shows_both_systems_and_marks_what_is_significant(
    run: Run, files: dict[str, Path]
) -> None:
    arguments = ("--against", files["poor"], "--reference", files["reference"])
    _, out, error = run("--hypothesis", files["good"], *arguments)
    good, poor = out.splitlines()[:2]
    interval = r"\(μ = \d+\.\d\d ± \d+\.\d\d\)"
    name = re.escape(str(files["poor"]))
    assert re.fullmatch(rf"reference  {name}  BLEU +\d+\.\d\d  {interval} +nrefs:1\|bs:1000\|seed:12345\|.*", poor)
    assert re.fullmatch(rf".*  {interval}  \(p = 0\.\d{{4}}\)\*?  nrefs:1\|.*", good)
    assert error == (
        "μ ± : mean of 1,000 bootstrap resamples, and the interval with 95 % of them; p: probability of a difference "
        "at least this large if neither system is better; *: p is at most 0.05, the difference is significant\n"
    )
    scores = score_set(
        "set", System("a", ["x"] * 9), [["x"] * 9], Scoring(LanguagesConfig()), against=System("b", ["x"] * 9)
    )
    marked = [replace(score, p_value=value) for score, value in zip(scores, (0.05, 0.0501), strict=False)]
    assert ["*" in line for line in table(marked).splitlines()] == [True, False]


def test_two_models_are_compared_as_their_translations_are(
    run: Run, tiny_run: Path, corpus_files: CorpusFiles, tmp_path: Path
) -> None:
    sources, references = corpus_files.lines("test")
    other = tmp_path / "other"
    (other / "model").parent.mkdir(parents=True)
    (other / "model").symlink_to(tiny_run / "model")
    _, out, _ = run(tiny_run, "--against", other, "--json")
    scores = json.loads(out)
    assert [score["system"] for score in scores] == [str(tiny_run), str(other)] * 3
    lines = mtkit.load(tiny_run).translate(sources)
    for (baseline, system), at in zip(paired_scores(lines, lines, [references], "digits"), (0, 2, 4), strict=True):
        assert scores[at]["p_value"] == system.p_value
        assert scores[at + 1]["score"] == baseline.score
        assert scores[at]["test_set"] == "toy"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_scores_tell_a_precision_other_than_fp32(run: Run, tiny_run: Path, precision: str) -> None:
    _, out, _ = run(tiny_run, "--precision", precision, "--beam-size", "1", "--json")
    assert {score["precision"] for score in json.loads(out)} == {precision}
    _, out, _ = run(tiny_run, "--beam-size", "1", "--json")
    assert not any("precision" in score for score in json.loads(out))


def test_every_test_of_significance_on_offer_exists() -> None:
    assert set(SignificanceTest.__args__) == set(TESTS)
    for test in TESTS:
        pairs = paired_scores(corpus(1, 9), corpus(2, 9), [corpus(1, 9)], "en", test, ("chrf",))
        assert [(baseline.p_value is None, system.score) for baseline, system in pairs] == [(True, 100.0)]


@pytest.mark.parametrize("options", [[], ["--lowercase"]])
def test_confidence_is_that_of_the_sacrebleu_command(run: Run, files: dict[str, Path], options: list[str]) -> None:
    references = [files["reference"], files["second"]]
    given = [argument for path in references for argument in ("--reference", path)]
    _, out, _ = run("--hypothesis", files["good"], *given, "--confidence", "--json", *options)
    same = ["-lc", "--chrf-lowercase"] if options else []
    wanted = json.loads(sacrebleu(*references, "-i", files["good"], "--confidence", "-w", "9", *same))
    for found, score in zip(json.loads(out), wanted, strict=True):
        assert (found["metric"], found["signature"]) == (score["name"], score["signature"])
        figures = [round(found[key], 9) for key in ("score", "mean", "interval")]
        assert figures == [score["score"], score["confidence_mean"], score["confidence_var"]]
    if options:
        return  # which change no form
    _, out, _ = run("--hypothesis", files["good"], *given, "--confidence")
    as_text = sacrebleu(*references, "-i", files["good"], "--confidence", "-w", "2", "-f", "text")
    intervals = re.findall(r"\(μ = .*? ± .*?\)", as_text)
    assert len(intervals) == 3
    assert re.findall(r"\(μ = .*? ± .*?\)", out) == intervals


def test_without_confidence_there_is_none(run: Run, files: dict[str, Path]) -> None:
    _, out, _ = run("--hypothesis", files["good"], "--reference", files["reference"], "--json")
    assert {tuple(score) for score in json.loads(out)} == {("test_set", "metric", "score", "signature")}


def test_buckets_hold_every_line_once_and_thirds_are_as_equal_as_can_be() -> None:
    chance = random.Random(5)
    for size in (*range(12), 100):
        counts = [chance.randrange(12) for _ in range(size)]
        for edges in ((), (3,), (0, 5, 20)):
            found = buckets(counts, edges)
            assert sorted(place for bucket in found for place in bucket.places) == list(range(size))
            for bucket in found:
                most = float("inf") if bucket.most is None else bucket.most
                assert all(bucket.least <= counts[place] <= most for place in bucket.places)
            assert len(found) == len(edges) + 1 if edges else len(found) <= 3
    assert buckets([5, 3, 1, 4, 2, 6]) == [Bucket(0, 2, [2, 4]), Bucket(3, 4, [1, 3]), Bucket(5, None, [0, 5])]
    assert buckets([7, 7, 7, 7]) == [Bucket(0, None, [0, 1, 2, 3])]
    assert buckets([1, 1, 1, 9]) == [Bucket(0, 1, [0, 1, 2]), Bucket(2, None, [3])]


def test_words_are_those_of_the_tokenizer_of_the_language() -> None:
    assert count_words(["Hello, world!", "", "  it's "], "en") == [4, 0, 1]
    assert count_words(["我喜欢喝茶。", "Python 书"], "zh") == [6, 2]


def test_scores_by_length_are_those_of_the_lines_of_that_length(run: Run, files: dict[str, Path]) -> None:
    sources, hypotheses, references = (files[name].read_text().splitlines() for name in ("second", "good", "reference"))
    given = ("--hypothesis", files["good"], "--reference", files["reference"], "--source", files["second"])
    for option, edges in (("--by-length", ()), ("--by-length=6,8", (6, 8))):
        _, out, error = run(*given, option, "--json")
        assert error == ""
        found = json.loads(out)
        wanted = []
        parts = buckets(count_words(sources, "en"), edges)
        assert len(parts) == 3
        for part in parts:
            lines, reference = ([texts[place] for place in part.places] for texts in (hypotheses, references))
            for score in corpus_scores(lines, [reference], "en", ("bleu", "chrf")):
                row = {"metric": score.metric, "score": score.score, "signature": score.signature}
                most = {} if part.most is None else {"max_words": part.most}
                wanted.append({"test_set": "good", **row, "min_words": part.least, **most, "lines": len(part.places)})
        assert found == wanted
    _, out, _ = run("--by-length", "6,8", *given)
    assert [line.split("  ")[1].strip() for line in out.splitlines()[::2]] == ["0-6 words", "7-8 words", "9+ words"]


def test_buckets_without_a_line_are_told_and_lengths_go_with_comparisons(run: Run, files: dict[str, Path]) -> None:
    given = ("--hypothesis", files["good"], "--reference", files["reference"], "--source", files["second"])
    _, out, error = run(*given, "--by-length", "0,8,90", "--against", files["poor"], "--json")
    assert error.splitlines() == [
        "mtkit: warning: reference: no source has 0-0 words",
        "mtkit: warning: reference: no source has 91+ words",
    ]
    scores = json.loads(out)
    assert len(scores) == 2 * 2 * 2
    assert {(score["min_words"], score["max_words"], "p_value" in score) for score in scores} == {
        *((1, 8, False), (1, 8, True), (9, 90, False), (9, 90, True))
    }
    _, out, _ = run(*given, "--by-length", "--confidence", "--json")
    assert all(score["interval"] >= 0 and "bs:1000" in score["signature"] for score in json.loads(out))


def test_a_model_is_scored_by_length_on_its_test_sets(run: Run, tiny_run: Path, corpus_files: CorpusFiles) -> None:
    _, out, _ = run("--by-length", tiny_run, "--json")
    scores = json.loads(out)
    assert {score["test_set"] for score in scores} == {"toy"}
    assert sum(score["lines"] for score in scores if score["metric"] == "BLEU") == 24


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("m", "--test", "bootstrap"), 2, "--test goes with --against"),
        (("m", "--against", "n", "--test", "t"), 1, "--test: found t, wants one of bootstrap, randomization"),
        (
            ("m", "--against", "n", "--confidence"),
            2,
            "--confidence is of one system; --against gives intervals by itself, with --test bootstrap",
        ),
        (("m", "--by-length=3,2"), 1, "--by-length: found 3,2, wants rising whole numbers such as 10,20,30"),
        (
            ("m", f"--by-length=5,{'9' * 5000}"),
            1,
            f"--by-length: found 5,{'9' * 5000}, wants rising whole numbers such as 10,20,30",
        ),
        (("m", "--by-length=x"), 1, "--by-length: found x, wants rising whole numbers such as 10,20,30"),
        (
            ("m", "--languages", "en"),
            1,
            "--languages: found en, wants the codes of source and target, such as en-de or en-zh-CN",
        ),
        (("m", "--test-set", "x", "--source", "y"), 2, "--test-set has its own source and reference"),
        (("m", "--tag", "x"), 2, "--tag goes with --source or --test-set; those of the settings have their own"),
        (
            ("--hypothesis", "h", "--reference", "r", "--by-length"),
            2,
            "--hypothesis goes with --source if it is scored --by-length, and only then",
        ),
        (("--hypothesis", "h"), 2, "--hypothesis goes with --reference, or with one --test-set"),
        (
            ("--hypothesis", "h", "--reference", "r", "--tag", "x"),
            2,
            "--hypothesis is translated already: no --beam-size, --length-penalty, --set, --device, --engine, "
            "--precision or --tag",
        ),
        (
            ("--hypothesis", "h", "--reference", "r", "--languages", "en-de", "--target-language", "de"),
            2,
            "--target-language goes with --hypothesis alone, and not with --languages",
        ),
    ],
)
def test_arguments_that_make_no_sense_together_are_refused(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert run(*arguments) == (
        code,
        "",
        f"mtkit: error: {message}{' (mtkit evaluate --help shows how)' if code == 2 else ''}\n",
    )


DATA = os.environ.get("MTKIT_DATA")
SETS = [
    ("multi30k/test2016.de", "de", "13a"),
    ("tatoeba-de-en/test.en", "en", "13a"),
    ("europarl-fr-en/test.fr", "fr", "13a"),
    ("tatoeba-zh-en/test.zh", "zh", "zh"),
    ("small-enja/test.ja", "ja", "ja-mecab-0.996-IPA"),
    ("scripts-mini/kor-eng.kor", "ko", "ko-mecab"),
    ("scripts-mini/hin-eng.hin", "hi", "13a"),
    ("scripts-mini/ara-eng.ara", "ar", "13a"),
]


@pytest.mark.skipif(not DATA, reason="MTKIT_DATA is not set: the folder of the public corpora")
@pytest.mark.parametrize(("name", "language", "tokenizer"), SETS, ids=[name for name, _, _ in SETS])
def test_text_of_any_language_has_the_scores_of_the_sacrebleu_command(
    run: Run, tmp_path: Path, name: str, language: str, tokenizer: str
) -> None:
    assert DATA
    lines = (Path(DATA) / name).read_bytes().decode().split("\n")[:100]
    chance = random.Random(name)
    hypotheses = [
        "".join(character for character in line if chance.random() > 0.04) if chance.random() < 0.7 else line
        for line in lines
    ]
    reference, hypothesis = write(tmp_path / "reference", lines), write(tmp_path / "hypothesis", hypotheses)
    code, out, _ = run(
        *("--hypothesis", hypothesis, "--reference", reference, "--languages", f"xx-{language}", "--json")
    )
    assert code == 0
    found = [Score(score["metric"], round(score["score"], 9), score["signature"]) for score in json.loads(out)]
    printed = json.loads(sacrebleu(reference, "-i", hypothesis, "-l", f"xx-{language}", "-w", "9"))
    assert found == [Score(score["name"], score["score"], score["signature"]) for score in printed]
    assert f"tok:{tokenizer}" in found[0].signature
    assert 20 < found[0].score < 99


def test_a_seed_that_is_no_number_is_told_before_anything_is_read(
    run: Run, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "abc")
    wanted = "SACREBLEU_SEED: found 'abc', wants a whole number, at least 0, or none; or unset it"
    texts = ("--hypothesis", tmp_path / "none", "--reference", tmp_path / "none")
    for arguments in (
        (*texts, "--against", tmp_path / "none"),
        (*texts, "--confidence"),
        (tiny_run, "--against", tiny_run),
        (tiny_run, "--confidence"),
    ):
        assert run(*arguments) == (1, "", f"mtkit: error: {wanted}\n")


@pytest.mark.parametrize("seed", ["abc", "-1", "", "1.5", "9" * 5000])
def test_no_score_is_resampled_by_a_seed_that_is_no_number(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    for scores in (
        lambda: corpus_scores(["a"], [["a"]], "en", confidence=True),
        lambda: paired_scores(["a"], ["b"], [["a"]], "en"),
    ):
        with pytest.raises(MtkitError) as raised:
            scores()
        wanted = f"SACREBLEU_SEED: found {seed[:40]!r}, wants a whole number, at least 0, or none; or unset it"
        assert str(raised.value) == wanted
    assert corpus_scores(["a"], [["a"]], "en")
    monkeypatch.setenv("SACREBLEU_SEED", "None")
    assert paired_scores(["a"], ["b"], [["a"]], "en")
