"""Every pair that is left out has a reason, and the first one counts."""

import pytest

from mtkit.config.settings import DataConfig
from mtkit.text.cleaning import REASONS, drop_reason


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
