"""BLEU has the tokenizer that a language needs, and text that none has cut into words is told."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import sacrebleu.tokenizers.tokenizer_spm
import sentencepiece
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

import mtkit.translation.scores
from mtkit.errors import MtkitError
from mtkit.translation.scores import bleu, bleu_of, bleu_statistics, tokenizer_of, unspaced
from tests.evaluation.test_comparisons import Run, corpus, corrupted, run, write
from tests.forked import SACREBLEU as COMMAND
from tests.forked import output_of

__all__ = ["run"]  # a fixture

CHINESE = ["今天天气很好，我们去公园吧。", "他昨天买了三本Python书。", "是的。"]
JAPANESE = ["今日は天気がいいので、公園に行きましょう。", "彼は昨日、本を三冊買いました。"]
THAI = ["วันนี้อากาศดีมาก เราไปสวนสาธารณะกันเถอะ", "เขาซื้อหนังสือสามเล่มเมื่อวานนี้"]
KHMER = ["ថ្ងៃនេះអាកាសធាតុល្អណាស់ តោះយើងទៅសួន។", "គាត់បានទិញសៀវភៅបីក្បាលកាលពីម្សិលមិញ។"]
LAO = ["ມື້ນີ້ອາກາດດີຫຼາຍ ພວກເຮົາໄປສວນສາທາລະນະກັນເທາະ"]
BURMESE = ["ဒီနေ့ရာသီဥတုအရမ်းကောင်းတယ်။ ပန်းခြံကိုသွားကြရအောင်။"]
KOREAN = ["오늘은 날씨가 좋으니 공원에 갑시다.", "그는 어제 책을 세 권 샀다."]
TEXTS = [
    (CHINESE, "13a", ("Chinese", "zh")),
    (CHINESE, "intl", ("Chinese", "zh")),
    (CHINESE, "none", ("Chinese", "zh")),
    (CHINESE, "zh", None),
    (CHINESE, "char", None),
    (CHINESE, "flores200", None),
    (CHINESE, "ja-mecab", None),
    (["今天 天气 很 好 ， 我们 去 公园 吧 。"], "13a", None),
    (["This is the Chinese sign for tea: 茶, and this one is for water: 水."], "13a", None),
    ([*CHINESE, "One line of English."], "13a", ("Chinese", "zh")),
    (JAPANESE, "13a", ("Japanese", "ja")),
    (JAPANESE, "zh", ("Japanese", "ja")),
    (JAPANESE, "ja-mecab", None),
    (THAI, "13a", ("Thai", None)),
    (THAI, "zh", ("Thai", None)),
    (THAI, "ko-mecab", ("Thai", None)),
    (["วันนี้ อากาศ ดี มาก เรา ไป สวน สาธารณะ กัน เถอะ"], "13a", None),
    (THAI, "char", None),
    (KHMER, "13a", ("Khmer", None)),
    (["ថ្ងៃនេះ\u200bអាកាសធាតុ\u200bល្អ\u200bណាស់"], "13a", ("Khmer", None)),  # which no tokenizer takes for spaces
    (LAO, "13a", ("Lao", None)),
    (BURMESE, "13a", ("Burmese", None)),
    (KOREAN, "13a", None),
    (["Grüße aus Köln, où es-tu ?", "Привет, как дела?", "مرحبا بالعالم", "नमस्ते दुनिया"], "13a", None),
    (["", " ", "123 !", "茶叶"], "13a", ("Chinese", "zh")),
    (["茶", "水"], "13a", None),
    (["", "12"], "13a", None),
    ([], "13a", None),
]


@pytest.mark.parametrize(("lines", "tokenizer", "wanted"), TEXTS)
def test_text_without_spaces_is_noticed_where_the_tokenizer_needs_them(
    lines: list[str], tokenizer: str, wanted: tuple[str, str | None] | None
) -> None:
    found = unspaced(lines, tokenizer)
    assert (found and (found.script, found.language)) == wanted


FACT = "text has no spaces between words, and BLEU's tokenizer 13a takes whole phrases for words, so BLEU tells little"
OTHERWISE = "give --tokenize flores200 or char, or other metrics such as --metrics chrf"


@pytest.mark.parametrize(
    ("lines", "script", "language"),
    [(CHINESE, "Chinese", "zh"), (JAPANESE, "Japanese", "ja"), (THAI, "Thai", None), (KHMER, "Khmer", None)],
)
def test_a_figure_that_tells_nothing_comes_with_what_to_do(
    run: Run, tmp_path: Path, lines: list[str], script: str, language: str | None
) -> None:
    text, english = write(tmp_path / "text", lines), write(tmp_path / "english", ["One line."] * len(lines))
    given = ("--hypothesis", text, "--reference", text)
    what = (
        f"name the language, such as {language} (--target-language or --languages of mtkit evaluate, "
        "languages.target in the settings), or"
        if language
        else "sacreBLEU has no tokenizer of its own for it:"
    )
    warning = f"mtkit: warning: text, reference: {script} {FACT}; {what} {OTHERWISE}\n"
    assert run(*given)[2] == warning
    compared, legend = run(*given, "--against", text)[2].splitlines(keepends=True)
    assert compared == warning
    assert "the difference is significant" in legend
    assert run("--hypothesis", english, "--reference", english, "--reference", text)[2] == warning.replace(
        "warning: text", "warning: english"
    )
    named = ("--target-language", language) if language else ("--tokenize", "char")
    for options in (named, ("--metrics", "chrf,ter"), ("--tokenize", "char")):
        assert run(*given, *options)[2] == ""
    assert run(*given, "--target-language", "th")[2] == warning


def test_sources_without_spaces_are_told_where_their_words_are_counted(run: Run, tmp_path: Path) -> None:
    source, english = write(tmp_path / "source", CHINESE), write(tmp_path / "english", ["One line."] * 3)
    given = ("--hypothesis", english, "--reference", english, "--source", source, "--by-length")
    assert run(*given)[2] == (
        "mtkit: warning: english, source: Chinese text has no spaces between words, so its phrases are counted as "
        "words; name the language of the source, such as --languages zh-target\n"
    )
    assert run(*given, "--languages", "zh-Hant-TW-en-GB")[2] == ""


@pytest.mark.parametrize(
    ("codes", "tokenizer"),
    [
        ("zh zh-CN zh_TW zh-Hant zho_Hans cmn yue yue_Hant wuu lzh ZH", "zh"),
        ("ja ja_XX jpn jpn_Jpan ja-JP", "ja-mecab"),
        ("ko ko_KR kor_Hang", "ko-mecab"),
        ("en de th km lo my tha_Thai target zhx", "13a"),
    ],
)
def test_a_language_is_known_by_all_its_codes(codes: str, tokenizer: str) -> None:
    for code in codes.split():
        assert tokenizer_of(code) == tokenizer


SACREBLEU_METRICS = {"bleu": ["bleu"], "chrf": ["chrf"], "chrf++": ["chrf", "--chrf-word-order", "2"], "ter": ["ter"]}


def by_sacrebleu(*arguments: object, **environment: str) -> list[tuple[str, float, str]]:
    """Name, score and signature as the command prints them."""
    command = [*COMMAND, *map(str, arguments), "-w", "9", "-f", "json"]
    if environment:  # which it reads when it starts
        out = subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, **environment}
        ).stdout.decode()
    else:
        out = output_of(command)
    printed = json.loads(out)
    return [
        (one["name"], one["score"], one["signature"]) for one in (printed if isinstance(printed, list) else [printed])
    ]


def figures(out: str) -> list[tuple[str, float, str]]:
    return [(one["metric"], round(one["score"], 9), one["signature"]) for one in json.loads(out)]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A hypothesis, another, and the reference, in several scripts."""
    reference = [*corpus(1, 20), "", *CHINESE, *JAPANESE, *THAI, *KOREAN]
    good, poor = (corrupted(reference, share, seed) for share, seed in ((0.2, 3), (0.3, 4)))
    return write(tmp_path / "good", good), write(tmp_path / "poor", poor), write(tmp_path / "reference", reference)


@pytest.mark.parametrize("tokenizer", ["none", "zh", "13a", "intl", "char", "ja-mecab", "ko-mecab"])
def test_the_tokenizer_may_be_named_as_for_the_sacrebleu_command(
    run: Run, texts: tuple[Path, Path, Path], tokenizer: str
) -> None:
    hypothesis, _, reference = texts
    _, out, _ = run(
        *("--hypothesis", hypothesis, "--reference", reference, "--tokenize", tokenizer, "--metrics", "bleu", "--json")
    )
    assert figures(out) == by_sacrebleu(reference, "-i", hypothesis, "--tokenize", tokenizer)
    assert f"|tok:{tokenizer}" in out


@pytest.mark.parametrize("metrics", ["bleu", "chrf++", "ter,chrf", "chrf++,chrf", " TER, chrF++ ,chrf,bleu"])
def test_metrics_come_as_chosen_and_are_those_of_the_sacrebleu_command(
    run: Run, texts: tuple[Path, Path, Path], metrics: str
) -> None:
    hypothesis, other, reference = texts
    names = [name.strip().lower() for name in metrics.split(",")]
    given = ("--hypothesis", hypothesis, "--reference", reference, "--metrics", metrics, "--json")
    wanted = [by_sacrebleu(reference, "-i", hypothesis, "-m", *SACREBLEU_METRICS[name])[0] for name in names]
    assert figures(run(*given)[1]) == wanted
    compared = json.loads(run(*given, "--against", other)[1])
    assert [round(one["score"], 9) for one in compared[::2]] == [score for _, score, _ in wanted]
    assert [one["metric"] for one in compared[1::2]] == [name for name, _, _ in wanted]
    by_length = json.loads(run(*given, "--by-length=5", "--source", reference)[1])
    assert [one["metric"] for one in by_length] == [name for name, _, _ in wanted] * 2


def test_a_model_is_scored_with_the_metrics_and_the_tokenizer_that_are_named(run: Run, tiny_run: Path) -> None:
    code, out, error = run(tiny_run, "--metrics", "chrf++,bleu", "--tokenize", "char", "--json")
    assert (code, error) == (0, "")
    scores = json.loads(out)
    assert [(one["test_set"], one["metric"]) for one in scores] == [("toy", "chrF2++"), ("toy", "BLEU")]
    assert list(scores[1]) == ["test_set", "metric", "score", "signature"]
    assert "tok:char" in scores[1]["signature"]


@pytest.mark.parametrize("tokenizer", ["flores101", "spm"])
def test_a_tokenizer_with_a_model_is_that_of_the_sacrebleu_command(
    run: Run, texts: tuple[Path, Path, Path], tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hypothesis, _, reference = texts
    folder = tmp_path / "sacrebleu"
    model = folder / "models" / "sacrebleu_tokenizer_spm.model"
    model.parent.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        input=str(reference), model_prefix=str(tmp_path / "spm"), vocab_size=250, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "spm.model").rename(model)
    for module in (mtkit.translation.scores, sacrebleu.tokenizers.tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(folder))
    given = ("--hypothesis", hypothesis, "--reference", reference, "--metrics", "bleu", "--json")
    _, out, error = run(*given, "--tokenize", tokenizer)
    assert error == ""
    assert figures(out) == by_sacrebleu(reference, "-i", hypothesis, "--tokenize", tokenizer, SACREBLEU=str(folder))
    assert "tok:flores101" in out
    model.write_bytes(b"no model")
    assert run(*given, "--tokenize", tokenizer)[2] == (
        f"mtkit: error: BLEU's tokenizer flores101 cannot read its model {model}; delete it to download it again, or "
        "choose another with --tokenize, or leave BLEU out of --metrics\n"
    )


def test_a_model_that_cannot_be_downloaded_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = (tmp_path / "nowhere" / "flores.model").as_uri()
    monkeypatch.setitem(SPM_MODELS, "flores200", {"url": url, "signature": "flores200"})
    monkeypatch.setattr(mtkit.translation.scores, "SACREBLEU_DIR", str(tmp_path))
    with pytest.raises(MtkitError) as caught:
        bleu("en", "flores200", instead="do without")
    told = str(caught.value)
    assert told.startswith(f"BLEU's tokenizer flores200 needs a model that cannot be downloaded from {url} (<urlopen")
    assert told.endswith(f"; save it as {tmp_path / 'models' / 'flores.model'}, or do without")
    assert capsys.readouterr().err == f"downloading the model of BLEU's tokenizer flores200 from {url}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--metrics", "bleu,comet"), 1, "--metrics: found bleu,comet, wants some of bleu,chrf,chrf++,ter, each once"),
        (("--metrics", "ter,ter"), 1, "--metrics: found ter,ter, wants some of bleu,chrf,chrf++,ter, each once"),
        (("--metrics", ""), 1, "--metrics: found , wants some of bleu,chrf,chrf++,ter, each once"),
        (("--metrics", "bleu,"), 1, "--metrics: found bleu,, wants some of bleu,chrf,chrf++,ter, each once"),
        (
            ("--tokenize", "flores-200"),
            1,
            f"--tokenize: found flores-200 (did you mean flores200?), wants one of {', '.join(BLEU.TOKENIZERS)}",
        ),
        (("--tokenize", "Ω"), 1, f"--tokenize: found Ω, wants one of {', '.join(BLEU.TOKENIZERS)}"),
        (
            ("--tokenize", "char", "--metrics", "chrf,ter"),
            2,
            "--tokenize is of BLEU, which --metrics leaves out (mtkit evaluate --help shows how)",
        ),
    ],
)
def test_metrics_and_tokenizers_that_are_none_are_refused(
    run: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    wanted = (code, "", f"mtkit: error: {message}\n")
    assert run("none", *arguments) == wanted
    assert run("--hypothesis", "none", "--reference", "none", *arguments) == wanted


def test_a_tokenizer_that_is_missing_is_told_before_anything_is_translated(
    run: Run, tiny_run: Path, without_mecab: None
) -> None:
    needed = "needs the tokenizer ja-mecab, which is not installed; install it with: pip install 'mtkit[ja]'"
    instead = "or choose another with --tokenize, or leave BLEU out of --metrics"
    for options, of in (("--languages", "en-ja-JP"), " of 'ja-JP'"), (("--tokenize", "ja-mecab"), ""):
        assert run(tiny_run, *options) == (1, "", f"mtkit: error: BLEU{of} {needed}, {instead}\n")
    # Which can be followed.
    for options in (("--tokenize", "char"), ("--metrics", "chrf")):
        assert run(tiny_run, "--languages", "en-ja-JP", *options)[0] == 0


def test_sums_of_statistics_give_the_bleu_of_the_corpus() -> None:
    hypotheses = ["A dog runs fast.", "Two men talk in the rain .", "a cat"]
    references = [["A dog runs very fast.", "Two men are talking in the rain.", "The cat sleeps."]]
    statistics = bleu_statistics(hypotheses, references, "en")
    for chosen in ([0, 1, 2], [0, 0, 1]):  # all, and a resample
        [score] = bleu_of(statistics[chosen].sum(0)[None])
        wanted = BLEU().corpus_score([hypotheses[i] for i in chosen], [[references[0][i] for i in chosen]]).score
        assert 0 < wanted < 100
        assert score == pytest.approx(wanted, abs=1e-9)
