"""Long lines are cut at the best place, and only white space is lost."""

import random
import re

import pytest

from mtkit.text.vocabulary import Part, join_parts, split_line


def words_fit(most):
    return lambda text: len(text.split()) <= most


def characters_fit(most):
    return lambda text: len(text) <= most


def texts(parts):
    return [part.text for part in parts]


def without_space(text):
    return re.sub(r"\s", "", text)


FAMILY, THUMB, FLAGS = "👨\u200d👩\u200d👧\u200d👦", "👍🏽", "🇩🇪🇫🇷🇯🇵"
LINES = {
    "prose": 'He left. "Why?" she asked (softly). Nobody knew; nobody cared, or so it seemed... ' * 20,
    "no spaces": "abcdefghij" * 50,
    "only punctuation": ".,;:!?…—" * 60,
    "only full stops": "." * 500,
    "chinese": "今天天气很好，我们去公园吧。你想去吗？“想！”他说。" * 20,
    "emoji": (FAMILY + THUMB + FLAGS) * 30,
    "accents": "e\u0301a\u0308\u0323" * 100,
    "hindi": "यह एक वाक्य है। यह दूसरा है। " * 20,
    "white space of all kinds": "a\tb\u00a0c  d\u3000e\u2028f\x0bg\x1ch \r" * 40,
    "spaces around": "   Hello, world.  Bye.   " * 20,
    "one letter between spaces": (" " * 300 + "x") * 3,
    "lone surrogates": "\ud800x\udc00 " * 60,
}


@pytest.mark.parametrize("most", [1, 2, 3, 7, 40, 300])
@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_every_part_fits_and_only_white_space_is_lost(line, most):
    fits = characters_fit(most)
    parts = split_line(line, fits)
    assert all(fits(part.text) for part in parts)
    assert all(part.text and part.text == part.text.strip() for part in parts)
    assert without_space("".join(texts(parts))) == without_space(line)
    rebuilt = "".join(part.text + part.separator for part in parts)
    assert rebuilt.split() == line.split()  # separators are exactly where white space was


def test_a_line_that_fits_is_one_part():
    assert split_line(" One. Two, three. ", words_fit(3)) == [Part("One. Two, three.", "")]


@pytest.mark.parametrize("line", ["", "   ", "\t\u3000 \u00a0" * 1000])
def test_a_blank_line_has_no_parts(line):
    assert split_line(line, characters_fit(0)) == []
    assert join_parts([], []) == ""


def test_sentences_are_joined_as_long_as_they_fit():
    line = "One two. Three four? Five! Six seven eight. Nine."
    assert texts(split_line(line, words_fit(4))) == ["One two. Three four?", "Five! Six seven eight.", "Nine."]
    assert texts(split_line(line, words_fit(5))) == ["One two. Three four? Five!", "Six seven eight. Nine."]


@pytest.mark.parametrize(
    ("line", "most", "wanted"),
    [
        ('He said "no." Then he (who?) left. End', 4, ['He said "no."', "Then he (who?) left.", "End"]),
        ("It is 3.14 or 1,000 at 12:30 here. Yes", 8, ["It is 3.14 or 1,000 at 12:30 here.", "Yes"]),
        ("« Non. » Il part. Fin", 3, ["« Non. »", "Il part. Fin"]),
        ("one two, three four; five six seven", 5, ["one two, three four;", "five six seven"]),
        ("one two three four five six seven", 3, ["one two three", "four five six", "seven"]),
        ("هل هذا صحيح؟ نعم، هذا صحيح", 4, ["هل هذا صحيح؟", "نعم، هذا صحيح"]),
        ("यह एक है। यह दो है।", 4, ["यह एक है।", "यह दो है।"]),
    ],
)
def test_cuts_are_at_sentences_then_clauses_then_spaces(line, most, wanted):
    assert texts(split_line(line, words_fit(most))) == wanted


def test_chinese_is_cut_after_its_marks_without_a_separator():
    line = "今天很好。“你去吗？”他说，我想去，也想吃饭。"
    assert split_line(line, characters_fit(10)) == [
        Part("今天很好。", ""),
        Part("“你去吗？”", ""),
        Part("他说，我想去，", ""),
        Part("也想吃饭。", ""),
    ]


@pytest.mark.parametrize("most", range(8, 30))
def test_what_is_seen_as_one_character_stays_whole(most):
    for unit in (FAMILY, THUMB, "🇩🇪", "e\u0301", "❤\ufe0f"):
        for part in split_line(unit * 50, characters_fit(most)):
            assert part.text == unit * (len(part.text) // len(unit))


def test_a_character_that_does_not_fit_stands_alone():
    assert texts(split_line("abc d", characters_fit(0))) == ["a", "b", "c", "d"]


def test_parts_fit_though_a_longer_text_may_fit_where_a_shorter_one_does_not():
    rng = random.Random(1)
    for _ in range(200):
        line = "".join(rng.choices("ab .,。😀", k=200))
        verdicts = {}

        def fits(text, verdicts=verdicts):
            return verdicts.setdefault(text, rng.random() < 0.5 and len(text) < 60)

        parts = split_line(line, fits)
        assert all(verdicts.get(part.text) or len(part.text) == 1 for part in parts)
        assert without_space("".join(texts(parts))) == without_space(line)


@pytest.mark.parametrize("line", [*(text * (100_000 // len(text)) for text in LINES.values()), "x" * 100_000])
def test_fits_reads_few_characters_of_a_very_long_line(line):
    read = 0

    def fits(text):
        nonlocal read
        read += len(text)
        return len(text) <= 1000

    split_line(line, fits)
    assert read < 50 * len(line)


def test_translations_are_joined_as_the_source_was():
    assert join_parts(["Eins.", "Zwei", "drei"], [" ", "", ""]) == "Eins. Zweidrei"
    assert join_parts(["今天很好。", "你去吗？"], ["", ""]) == "今天很好。你去吗？"
    assert join_parts(["", "b", "", "d", ""], [" ", " ", " ", " ", ""]) == "b d"
    assert join_parts(["a", "", "b"], ["", "", ""]) == "ab"


def test_sentences_without_spaces_get_them_in_a_language_that_has_them():
    assert join_parts(["It is fine.", '"Are you?"', "No,", "I", "am"], ["", "", "", "", ""]) == (
        'It is fine. "Are you?" No,Iam'
    )
    assert join_parts(["OK.", "今天"], ["", ""]) == "OK.今天"
