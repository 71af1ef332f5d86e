"""TMX and JSON lines give the pairs that they hold, whatever their spelling; what is broken or dangerous is refused."""

import gzip
import json
import re
from pathlib import Path

import pytest

from mtkit.errors import DataError
from mtkit.text.parallel import has_records, read_records

Pairs = list[tuple[str, str]]
PAIRS = [("Bonjour !", "Hello!"), ("a < b & c", "x > y"), ("été 𝄞", "summer")]


def read(path: Path, *languages: str) -> Pairs:
    assert has_records(path)
    return [(record.source, record.target) for record in read_records(path, (languages[0], languages[1]))]


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("𝄞", "&#x1D11E;")


def tmx(pairs: Pairs, declaration: str = "", codes: tuple[str, str] = ("fr", "en")) -> str:
    """A TMX file of French and English, with a German segment, notes, nested markup and line breaks in it."""
    units = []
    for source, target in pairs:
        sides = [(codes[1], target), ("de", "nein"), (codes[0], source)]
        segments = [
            f'<tuv xml:lang="{code}"><prop type="x">not this</prop><seg>{escaped(text)}</seg></tuv>'
            for code, text in sides
        ]
        units.append(f"<tu><note>nor this</note>{''.join(segments)}</tu>\n")
    return f'{declaration}<tmx version="1.4"><header srclang="fr"/><body>{"".join(units)}</body></tmx>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("codes", [("fr", "en"), ("fr-FR", "EN_us")])
def test_a_translation_memory_gives_its_pairs(tmp_path: Path, encoding: str, codes: tuple[str, str]) -> None:
    path = tmp_path / "memory.tmx.gz"
    path.write_bytes(gzip.compress(tmx(PAIRS, codes=codes).encode(encoding)))
    assert read(path, "fr", "en") == PAIRS
    assert read(path, "en", "fr") == [(target, source) for source, target in PAIRS]


def test_markup_within_a_segment_is_left_out_and_its_text_kept(tmp_path: Path) -> None:
    codes = '<bpt i="1">{\\b </bpt>bold<ept i="1">}</ept> <hi>high</hi>\n\t<ph>&lt;br/><sub>alt</sub></ph>end'
    path = tmp_path / "memory.tmx"
    path.write_text(tmx([("A", "B")]).replace("<seg>A<", f"<seg>{codes}<"), "utf-8")
    assert read(path, "fr", "en") == [("bold high end", "B")]


BOMB = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
EXTERNAL = '<!DOCTYPE tmx [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (tmx([("&a;", "B")], BOMB).replace("&amp;a;", "&b;"), 1),
        (tmx([("&a;", "B")], EXTERNAL).replace("&amp;a;", "&a;"), 1),
        (tmx([("A&nbsp;", "B")], '<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n').replace("&amp;", "&"), 2),
        (tmx(PAIRS)[:-9], 4),
        (tmx(PAIRS).replace("</seg>", "</sig>", 1), 1),
        ('<?xml version="1.0"?>\n<html></html>', 2),
    ],
)
def test_a_dangerous_or_broken_memory_is_refused_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "memory.tmx"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:{line}: "):
        read(path, "fr", "en")


def test_a_reference_to_the_usual_document_type_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "memory.tmx"
    path.write_text(tmx(PAIRS, '<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd">'), "utf-8")
    assert read(path, "fr", "en") == PAIRS


@pytest.mark.parametrize("names", [("fr", "en"), ("source", "target"), ("src", "tgt")])
@pytest.mark.parametrize("nested", [False, True])
def test_json_lines_give_their_pairs(tmp_path: Path, names: tuple[str, str], nested: bool) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(names, pair, strict=True)) for pair in PAIRS]
    path.write_text("\n\n".join(json.dumps({"translation": row, "id": 1} if nested else row) for row in rows), "utf-8")
    assert read(path, "fr", "en") == PAIRS


@pytest.mark.parametrize("line", ["3", '{"fr": "a"', '{"fr": 3, "en": "x"}', '{"de": "a", "it": "b"}'])
def test_a_broken_line_of_json_is_told_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"fr": "a", "en": "b"}}\n{line}\n', "utf-8")
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:2: "):
        read(path, "fr", "en")
