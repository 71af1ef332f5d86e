"""Every pair that is left out has a reason, and the first one counts."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex

from mtkit.config.data_and_model_settings import SCRIPTS, DataConfig
from mtkit.preparation.encoding import (
    REASONS,
    RULES,
    Drops,
    drop_reason,
    has_text_rules,
    passes_lengths,
    settings_behind,
    share_of_letters,
)


@pytest.mark.parametrize(
    ("source", "target", "lengths", "reason"),
    [
        ("a", "b", (1, 1), None),
        ("", "b", (0, 1), "blank source"),
        ("\u3000\t", "b", (3, 1), "blank source"),
        ("\u200b", "b", (0, 1), "blank source"),
        ("a", " ", (1, 0), "blank target"),
        ("a", "\u2028", (1, 2), "blank target"),
        ("", "", (0, 0), "blank source"),
        ("a", "b", (10, 10), None),
        ("a", "b", (11, 10), "too long"),
        ("a", "b", (10, 11), "too long"),
        ("a", "b", (1, 11), "too long"),
        ("a", "b", (3, 9), None),
        ("a", "b", (3, 10), "length ratio"),
        ("a", "b", (10, 3), "length ratio"),
    ],
)
def test_the_first_reason_to_leave_a_pair_out(source, target, lengths, reason):
    assert drop_reason(source, target, *lengths, DataConfig(max_length=10, max_length_ratio=3.0)) == reason
    assert reason is None or reason in REASONS


def test_without_a_ratio_any_will_do():
    assert drop_reason("a", "b", 1, 10, DataConfig(max_length=10, max_length_ratio=None)) is None


def reason(source: str, target: str, **rules) -> str | None:
    return drop_reason(source, target, len(source.split()), len(target.split()), DataConfig(**rules))


def test_the_shorter_side_is_as_long_as_it_must_be():
    assert reason("a b", "c", min_length=2) == reason("a", "b c", min_length=2) == "too short"
    assert reason("a b", "c d", min_length=2) is None


def test_pairs_that_are_copies_are_left_out_only_if_asked_for():
    for source, target in (("Paris", "Paris"), (" Straße", "STRASSE  ")):
        assert reason(source, target) is None
        assert reason(source, target, drop_identical=True) == "identical"
    assert reason("Paris", "Paris.", drop_identical=True) is None


@pytest.mark.parametrize(
    ("text", "scripts", "is_left_out"),
    [
        ("Привет, мир", ("Cyrillic",), False),
        ("Привет, мир", ("Latin",), True),
        ("Hello", ("Cyrillic",), True),
        ("абв abc", ("Cyrillic",), False),  # half is not more than half
        ("абв abcd", ("Cyrillic",), True),
        ("абв abcd", ("Cyrillic", "Latin"), False),
        ("1 + 1 = 2!", ("Cyrillic",), False),  # no letter is of another script
        ("コーヒー", ("Katakana",), False),  # the long vowel mark belongs to both kana
        ("ーーーー", ("Han",), False),
        ("今日はいいです", ("Han",), True),
        ("今日はいいです", ("Han", "Hiragana"), False),
        ("हिन्दी", ("Devanagari",), False),
        ("Ǻe\u0301", ("Latin",), False),
    ],
)
def test_a_side_mostly_in_other_scripts_is_left_out(text, scripts, is_left_out):
    wanted = "wrong script" if is_left_out else None
    assert reason(text, "x", source_script=scripts) == wanted
    assert reason("x", text, target_script=scripts) == wanted
    assert reason(text, text) is None


def test_every_script_on_offer_is_known():
    for script in SCRIPTS:
        assert regex.compile(rf"\p{{Script={script}}}")
    assert {"Latin", "Cyrillic", "Han", "Hiragana", "Katakana", "Hangul", "Arabic"} <= SCRIPTS


@pytest.mark.parametrize(
    ("text", "share"),
    [("abc", 1.0), ("a b\tc\u3000", 1.0), ("a1b2", 0.5), ("हिन्दी", 1.0), ("e\u0301!", 2 / 3), ("123", 0.0), (" ", 0.0)],
)
def test_the_share_of_letters_counts_marks_and_no_white_space(text, share):
    assert share_of_letters(text) == pytest.approx(share)


def test_either_side_may_have_too_few_letters():
    assert reason("a1", "bc", min_letters=0.6) == reason("ab", "c1", min_letters=0.6) == "few letters"
    assert reason("a1", "b2", min_letters=0.5) is None
    assert reason("11", "22") is None


def test_every_setting_behind_a_reason_exists_and_is_told_once():
    names = settings_behind(REASONS)
    assert set(names) <= set(DataConfig.model_fields)
    assert len(names) == len(set(names))
    assert settings_behind(["too long", "blank source", "wrong script"]) == [
        "max_length",
        "source_script",
        "target_script",
    ]
    assert set(RULES) == set(REASONS)


def test_the_first_three_of_each_reason_are_shown_on_a_screen_line_each():
    drops = Drops()
    for line in range(1, 6):
        drops.add("too long", Path("a.fr"), line, "long " * 50, "tab\tand \x1b[31mcolour")
    drops.add("blank source", Path("a.fr"), 9, "", "x" * 300)
    assert str(drops) == "1 blank source, 5 too long"
    assert drops.counts == {"too long": 5, "blank source": 1}
    shown = drops.examples()
    assert shown[0] == f"  blank source: a.fr:9:  ||| {'x' * 42}…"
    assert shown[1] == f"  too long: a.fr:1: {('long ' * 50)[:44]}… ||| tab and  [31mcolour"
    assert [line.split(":")[2] for line in shown[1:]] == ["1", "2", "3"]
    assert max(map(len, shown)) <= 120


DIRTY = Path(os.environ.get("MTKIT_DATA", "nowhere")) / "dirty-fr-en"


@pytest.mark.skipif(not DIRTY.is_dir(), reason="MTKIT_DATA has no dirty-fr-en")
def test_a_sensible_setting_finds_most_of_what_rules_can_find_and_loses_few_clean_pairs():
    rules = DataConfig(
        max_length=100, max_length_ratio=3.0, drop_identical=True, min_letters=0.7, source_script=("Latin",)
    )
    kinds = (DIRTY / "kinds.txt").read_text("utf-8").split("\n")[:-1]
    sides = [(DIRTY / f"train.{side}").read_text("utf-8").split("\n")[:-1] for side in ("fr", "en")]
    total, caught = Counter(kinds), Counter()
    for kind, source, target in zip(kinds, *sides, strict=True):
        caught[kind] += reason_in_words(source, target, rules) is not None
    for kind in ("blank", "empty-src", "empty-tgt", "copy", "symbols", "replacement-char"):
        assert caught[kind] >= 0.95 * total[kind], kind
    assert caught["clean"] <= 0.01 * total["clean"]


def reason_in_words(source: str, target: str, rules: DataConfig) -> str | None:
    """Words stand in for tokens, so that no tokenizer has to be trained."""
    return drop_reason(source, target, len(source.split()), len(target.split()), rules)


@pytest.mark.parametrize(
    "rules", [{}, {"min_length": 3}, {"max_length": 6}, {"max_training_length": 5}, {"max_length_ratio": 1.5}]
)
def test_lengths_pass_at_once_where_they_pass_one_by_one(rules):
    rules = DataConfig(**rules)
    source, target = (side.ravel() for side in np.meshgrid(np.arange(12), np.arange(12)))
    one_by_one = [drop_reason("a", "b", *pair, rules) is None for pair in zip(source, target, strict=True)]
    assert passes_lengths(source, target, rules).tolist() == one_by_one
    assert 0 < sum(one_by_one) < len(one_by_one)


@pytest.mark.parametrize(
    "rules",
    [{"drop_identical": True}, {"source_script": ("Latin",)}, {"target_script": ("Latin",)}, {"min_letters": 0.5}],
)
def test_rules_on_text_are_not_passed_by_lengths_alone(rules):
    assert has_text_rules(DataConfig(**rules))
    assert not has_text_rules(DataConfig())
