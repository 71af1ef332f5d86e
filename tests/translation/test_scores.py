"""Scores are those of the sacrebleu command, to the last digit that it prints."""

import json
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from mtkit.errors import DataError, MtkitError
from mtkit.translation.scores import (
    UTILITIES,
    Score,
    Utility,
    corpus_scores,
    looks_processed,
    validation_score,
)
from tests.forked import SACREBLEU, output_of

GERMAN = [
    "Der Hund läuft über die Straße.",
    "Am 3. Mai kostete es 12,50 Euro, sagte Frau Müller.",
    'Sie rief: "Komm schnell nach Hause!"',
    "  Ein kleiner Junge spielt im Garten mit einem roten Ball.  ",
    "",
    "Zwei Männer sitzen auf einer Bank und lesen die Zeitung.",
]
GERMAN_REFERENCE = [
    "Der Hund rennt über die Straße.",
    "Am 3. Mai kostete das 12,50 Euro, sagte Frau Müller.",
    'Sie rief: „Komm schnell nach Hause!"',
    "Ein kleiner Junge spielt mit einem roten Ball im Garten.",
    "Nichts.",
    "Zwei männer sitzen auf der Bank und lesen Zeitung.",
]
SECOND_REFERENCE = ["Ein Hund läuft über die Straße.", "", "Komm!", "", "", "Zwei Männer lesen auf einer Bank."]
CHINESE = ["今天天气很好,我们去公园吧。", "他昨天买了 3 本 Python 书。", "我喜欢喝茶。"]
CHINESE_REFERENCE = ["今天天气真好，我们去公园吧。", "昨天他买了3本Python书。", "我爱喝茶。"]


def command(
    folder: Path, hypotheses: list[str], references: list[list[str]], pair: str, *options: str
) -> list[tuple[str, float, str]]:
    """What the sacrebleu command says of these lines: names, scores and signatures."""
    paths = []
    for name, lines in (("hypothesis", hypotheses), *((f"reference{n}", lines) for n, lines in enumerate(references))):
        paths.append(folder / name)
        paths[-1].write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    arguments = [
        *map(str, paths[1:]),
        "-i",
        str(paths[0]),
        "-l",
        pair,
        "-m",
        "bleu",
        "chrf",
        "ter",
        "-w",
        "8",
        *options,
    ]
    printed = json.loads(output_of([*SACREBLEU, *arguments]))
    return [(score["name"], score["score"], score["signature"]) for score in printed]


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize(
    ("pair", "hypotheses", "references"),
    [
        ("en-de", GERMAN, [GERMAN_REFERENCE]),
        ("en-de", GERMAN, [GERMAN_REFERENCE, SECOND_REFERENCE]),
        ("en-zh", CHINESE, [CHINESE_REFERENCE]),
        ("en-zh", CHINESE, [CHINESE_REFERENCE, ["今天天气不错。", "", "我爱茶。"]]),
    ],
)
def test_scores_and_signatures_are_those_of_the_sacrebleu_command(tmp_path, pair, hypotheses, references, lowercase):
    options = ("-lc", "--chrf-lowercase") if lowercase else ()
    wanted = command(tmp_path, hypotheses, references, pair, *options)
    scores = corpus_scores(hypotheses, references, pair.split("-")[1], lowercase=lowercase)
    assert [(score.metric, round(score.score, 8), score.signature) for score in scores] == wanted
    assert f"nrefs:{len(references)}|case:{'lc' if lowercase else 'mixed'}" in scores[0].signature


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_TW", "zho_Hans", "cmn", "ZH"])
def test_chinese_is_known_by_all_its_codes(language):
    assert "tok:zh" in corpus_scores(CHINESE, [CHINESE_REFERENCE], language, ("bleu",))[0].signature


def test_scores_come_in_the_order_asked_for():
    scores = corpus_scores(GERMAN, [GERMAN_REFERENCE], "de", ("ter", "bleu"))
    assert [score.metric for score in scores] == ["TER", "BLEU"]
    assert all(isinstance(score, Score) for score in scores)


@pytest.mark.parametrize(("language", "extra"), [("ja", "ja"), ("jpn_Jpan", "ja"), ("ko", "ko"), ("kor_Hang", "ko")])
def test_a_tokenizer_that_is_missing_is_named(language, extra, without_mecab):
    with pytest.raises(MtkitError) as caught:
        corpus_scores(["こんにちは。"], [["今日は。"]], language)
    assert str(caught.value) == (
        f"BLEU of '{language}' needs the tokenizer {extra}-mecab, which is not installed; install it with: "
        f"pip install 'mtkit[{extra}]', or choose another with --tokenize, or leave BLEU out of --metrics"
    )
    assert corpus_scores(["こんにちは。"], [["今日は。"]], language, ("chrf",))[0].metric == "chrF2"


def test_a_reference_of_another_length_is_refused():
    with pytest.raises(DataError) as caught:
        corpus_scores(["a"] * 999, [["a"] * 999, ["a"] * 1000], "en", names=("one.en", "two.en"))
    assert str(caught.value) == (
        "hypothesis has 999 lines but the reference two.en has 1,000 lines; line n must translate line n"
    )
    with pytest.raises(DataError, match=r"has 1 line but the reference 1 has 0 lines;"):
        corpus_scores(["a"], [[]], "en")


def test_an_empty_test_set_is_refused():
    with pytest.raises(DataError, match="there is nothing to score: the hypothesis has no lines"):
        corpus_scores([], [[]], "en")


def test_validations_score_as_evaluate_does():
    for metric in ("bleu", "chrf"):
        (score,) = corpus_scores(GERMAN, [GERMAN_REFERENCE], "de", (metric,))
        assert validation_score(GERMAN, GERMAN_REFERENCE, metric, "de") == score.score


def test_blank_translations_score_nothing_and_do_not_fail():
    scores = corpus_scores(["", ""], [["Ja.", "Nein."]], "de")
    assert [round(score.score) for score in scores] == [0, 0, 100]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Hello , world", "tokenised"),
        ("The end .", "tokenised"),
        ("It is n't so", "tokenised"),
        ("It &apos;s here", "escaped"),
        ("&quot; Yes", "escaped"),
        ("▁The ▁en d", "cut into subwords"),
        ("the lo@@ west", "cut into subwords"),
        ("the lo@@", "cut into subwords"),
    ],
)
def test_text_that_is_not_plain_is_noticed(line, kind):
    warning = looks_processed([line, "", "Plain text."] * 10)
    assert warning is not None
    assert warning.startswith(
        f'10 of 20 lines look {kind}, such as "{line}"; scores are of plain text, so turn it into that first: '
    )
    assert looks_processed([line] + ["Plain text."] * 9) is None  # one line is no habit


@pytest.mark.parametrize(
    "line",
    [
        "« Pourquoi ? » dit-il ; rien : non !",
        "Wait ...",
        "It costs .5 or 1,000, doesn't it?",
        "Tom & Jerry; R&D",
        "今天天气很好。",
        "a_b ▂ a@b.org @ @",
        "",
    ],
)
def test_plain_text_is_not_called_processed(line):
    assert looks_processed([line] * 10) is None
    assert looks_processed([]) is None


def test_scoring_writes_nothing(capfd):
    corpus_scores(["It is tokenised ."] * 200, [["It is not."] * 200], "en")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", list(UTILITIES))
@pytest.mark.parametrize("language", ["de", "zh"])
def test_a_utility_is_sacrebleus_sentence_score(metric: str, language: str) -> None:
    texts = ["ein Hund.", "Ein Hund läuft über das Gras.", "", "Hund", "Ein Hund, der läuft", "一只狗在跑。", " x  y "]
    single = {"chrf": CHRF(), "bleu": BLEU(trg_lang=language, effective_order=True)}[metric]
    wanted = [[single.sentence_score(text, [reference]).score for reference in texts] for text in texts]
    found = Utility(metric, language)(texts)
    for row, wanted_row in zip(found, wanted, strict=True):
        assert row == pytest.approx(wanted_row)
