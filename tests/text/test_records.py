"""TMX and JSON lines are read as pairs with their lines; what is broken or hostile is refused with its line."""

import json
import re

import pytest

from mtkit.errors import DataError
from mtkit.text.parallel import read_records
from tests.conftest import write_lines

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="fr-FR" segtype="sentence"/><body>
<tu><tuv xml:lang="en-GB"><seg>Tom &amp; Ann
 went</seg></tuv><tuv xml:lang="fr-FR"><seg>Tom &amp; <hi>Anne</hi><ph x="1">{1}</ph> sont partis</seg></tuv></tu>
<tu><tuv xml:lang="fr-FR"><seg>seul</seg></tuv></tu>
<tu><tuv xml:lang="de"><seg>Ja</seg></tuv><tuv xml:lang="fr-FR"><seg>Oui</seg></tuv><tuv xml:lang="en-GB"><seg>Yes</seg>
</tuv></tu></body></tmx>"""
RECORDS = [(4, "Tom & Anne sont partis", "Tom & Ann went"), (7, "Oui", "Yes")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tmx_is_read_with_what_is_nasty_in_it(tmp_path, encoding):
    file = tmp_path / "memory.tmx"
    file.write_bytes(TMX.replace('encoding="UTF-8"', f'encoding="{encoding.removesuffix("-sig")}"').encode(encoding))
    assert list(read_records(file)) == RECORDS
    assert list(read_records(file, ("fr", "en"))) == RECORDS
    skipped: list[int] = []
    assert list(read_records(file, ("de", "en"), on_lacking=skipped.append)) == [(7, "Ja", "Yes")]
    assert skipped == [4, 6]


BOMB = '<!DOCTYPE tmx [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', BOMB, ":2: declares the entity a"),
        ('SYSTEM "tmx14.dtd"', '[<!ENTITY x SYSTEM "/etc/hostname">]', ":2: declares the entity x"),
        ("&amp; Ann", "&nbsp; Ann", ":4: the entity &nbsp; is not one of XML's own"),
        ("</hi>", "", ":5: this is not well-formed XML: mismatched tag"),
        ("</body></tmx>", "", ":8: this is not well-formed XML: no element found"),
        ('<tmx version="1.4">', "<html/>", ":3: found <html>, wants <tmx>"),
    ],
)
def test_broken_and_hostile_tmx_is_refused_with_its_line(tmp_path, old, new, message):
    file = tmp_path / "memory.tmx"
    file.write_text(TMX.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(f"{file}{message}")):
        list(read_records(file))


def test_json_lines_are_read_in_their_usual_forms(tmp_path):
    file = tmp_path / "text.jsonl"
    forms = [
        {"source": "Oui\nmais", "target": "Yes but"},
        {"src": "Oui mais", "tgt": "Yes but"},
        {"id": 1, "translation": {"fr": "Oui mais", "en": "Yes but"}},
        {"fr": "Oui mais", "en": "Yes but"},
        ["Oui mais", "Yes but"],
    ]
    write_lines(file, [*map(json.dumps, forms), ""])
    assert list(read_records(file)) == [(number, "Oui mais", "Yes but") for number in range(1, 6)]
    turned = [record[1:] for record in read_records(file, ("fr", "en"), is_turned=True)]  # where no language is named
    there, back = ("Oui mais", "Yes but"), ("Yes but", "Oui mais")
    assert turned == [back, back, there, there, back]
    for wrong in (
        '["\\ud83d", "a"]',
        '{"source": "Oui"',
        "[" * 100_000,
        '{"a": "x", "b": "y", "c": "z"}',
        '["x"]',
        '{"src": 1, "tgt": "y"}',
    ):
        write_lines(file, [json.dumps(forms[0]), wrong])
        with pytest.raises(DataError, match=re.escape(f"{file}:2: ")):
            list(read_records(file))
