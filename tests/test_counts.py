"""What is counted once stands in the singular."""

import pytest

from mtkit.errors import DataError, counted
from mtkit.text.lines import read_pairs
from tests.conftest import write_lines


def test_one_is_singular_and_all_else_plural():
    assert [counted(number, "pair") for number in (0, 1, 2, 2000)] == ["0 pairs", "1 pair", "2 pairs", "2,000 pairs"]


def test_a_file_of_one_line_has_one_line(tmp_path):
    write_lines(tmp_path / "a", ["one"])
    write_lines(tmp_path / "b", ["un", "deux"])
    with pytest.raises(DataError, match=r"a has 1 line but \S+b has 2; line n must translate line n"):
        list(read_pairs(tmp_path / "a", tmp_path / "b"))
