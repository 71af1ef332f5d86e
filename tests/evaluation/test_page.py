"""Pages are well-formed whatever text is in them, load nothing, and draw what the numbers say."""

import math
import random
import re
from itertools import pairwise

import pytest

from mtkit.errors import MtkitError
from mtkit.evaluation.page import (
    Bar,
    Curve,
    bar_chart,
    data_script,
    element,
    line_chart,
    number,
    page,
    read_data,
    require_page,
    section,
    table,
    ticks,
    weight_map,
    weighted_words,
    write_page,
)
from tests.evaluation.reading import Reader

HOSTILE = [
    "<script>alert(1)</script>",
    "a \"quoted\" & 'single' </td></table>",
    "</script><b>",
    "&lt;already&gt;",
    "\u202e",
]


def test_any_text_is_shown_as_it_is_and_adds_no_element():
    def made(texts: list[str]) -> Reader:
        first = texts[0]
        return Reader(
            page(
                first,
                section(first, [element("p", text, title=text) for text in texts], id_="x"),
                table(texts, [texts], first),
                line_chart(texts[1], [Curve(text, [(1, 2), (2, 1)]) for text in texts], first),
                bar_chart(first, [(text, [Bar(text, 1, text)]) for text in texts]),
                weight_map(first, texts, texts, [[0.5] * len(texts)] * len(texts)),
                weighted_words(texts, [0.5] * len(texts)),
                data_script("data", texts),
                command="report",
            )
        )

    hostile, harmless = made(HOSTILE), made(["word"] * len(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert set(HOSTILE) <= set(hostile.text)
    assert hostile.tables[HOSTILE[0]] == [HOSTILE, HOSTILE]


def test_data_for_scripts_is_read_back():
    value = {"texts": HOSTILE, "number": 0.1, "none": None, "nan": math.nan}
    assert read_data(page("title", data_script("data", value), command="explain"), "data") == {**value, "nan": None}


def test_a_page_loads_nothing():
    chart = line_chart("chart", [Curve("a", [(1, 2)])], "x")
    reader = Reader(page("title", chart, command="report", script="let a = 1;"))
    assert not [attributes for _, attributes in reader.tags if {"src", "href"} & attributes.keys()]
    policies = [attributes["content"] for _, attributes in reader.tags if "http-equiv" in attributes]
    assert policies[0].startswith("default-src 'none'")


def test_ticks_enclose_the_range_evenly_with_few_round_numbers():
    chance = random.Random(1)
    for _ in range(300):
        low = chance.uniform(-1, 1) * 10 ** chance.randint(-6, 6)
        high = low + chance.choice([0, 1]) * chance.random() * 10 ** chance.randint(-6, 6)
        found = ticks(low, high)
        gaps = [b - a for a, b in pairwise(found)]
        rounding = 1e-6 * max(gaps)
        assert found[0] - rounding <= low <= high <= found[-1] + rounding
        assert 2 <= len(found) <= 8
        assert 0 < max(gaps) <= (1 + 1e-2) * min(gaps)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (29000, "29,000"), (3.0, "3"), (1234.5, "1,234"), (0.00571428, "0.005714"), (math.inf, "none")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_the_height_of_a_curve_follows_its_values_and_gaps_are_left_out():
    drawn = line_chart("loss", [Curve("a", [(1, 4.0), (2, math.nan), (3, 2.0), (4, 0.0)])], "update")
    path = re.search(r'<path d="M([^"]+)" class="curve', drawn)
    assert path
    places = [tuple(map(float, point.split())) for point in path[1].split("L")]
    assert len(places) == 3
    (_, top), (_, middle), (_, bottom) = places
    assert middle == pytest.approx((top + bottom) / 2, abs=0.11)
    assert top < bottom
    assert line_chart("empty", [Curve("a", []), Curve("b", [(1, math.nan)])], "update") == ""
    assert bar_chart("empty", []) == ""


@pytest.mark.parametrize(("xs", "wanted"), [((1, 2), ["1", "2"]), ((0.5, 2), ["0.5", "1", "1.5", "2"])])
def test_what_is_counted_has_no_halves_on_its_axis(xs, wanted):
    drawn = line_chart("BLEU", [Curve("a", [(x, 10 * x) for x in xs])], "quarters")
    assert re.findall(r'text-anchor="(?:middle|end)">([^<]+)</text>', drawn)[-1 - len(wanted) : -1] == wanted


def test_the_area_of_a_square_is_its_weight():
    drawn = weight_map("map", ["r"], ["a", "b", "c"], [[1.0, 0.25, 0.001]])
    sides = [float(side) for side in re.findall(r"h([\d.]+)v", drawn)]
    assert len(sides) == 2
    assert (sides[1] / sides[0]) ** 2 == pytest.approx(0.25, abs=0.01)


def test_a_page_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    require_page(tmp_path / "a.html", "report")
    with pytest.raises(MtkitError, match=r"--output: found \S+a\.pdf, wants a file that ends in \.html"):
        require_page(tmp_path / "a.pdf", "report")
    with pytest.raises(MtkitError, match="no such directory"):
        require_page(tmp_path / "none" / "a.html", "report")


@pytest.mark.parametrize("link", [False, True])
def test_only_a_page_of_the_same_command_is_replaced(tmp_path, link):
    file = tmp_path / "a.html"
    if link:
        file.symlink_to(tmp_path / "there.html")
    require_page(file, "doctor")
    for title in ("one", HOSTILE[0] * 1000):
        write_page(file, page(title, "text", command="doctor"))
        require_page(file, "doctor")
        with pytest.raises(MtkitError, match=r"--output: \S+a\.html: is there already and is no page of mtkit report"):
            require_page(file, "report")
    file.write_bytes(b"")
    require_page(file, "report")
    for text in ("my notes", page('mtkit report <meta name="generator" content="mtkit report">', command="explain")):
        file.write_text(text, "utf-8")
        with pytest.raises(MtkitError, match="name a new file"):
            require_page(file, "report")
