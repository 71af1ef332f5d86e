"""Reads sentence pairs from TMX and JSON lines.

TMX is the XML format in which translation memories are exchanged (LISA, TMX 1.4b). JSON lines has one object per line.
Both come from strangers, so XML that declares entities, or refers to other files, is refused.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from mtkit.errors import DataError
from mtkit.text.compressed import COMPRESSIONS, open_to_read
from mtkit.text.lines import named, read_lines, reading_file


class Record(NamedTuple):
    """A sentence pair and the number of the line where it begins, from 1."""

    line: int
    source: str
    target: str


Languages = tuple[str, str]

TMX = (".tmx",)
JSON_LINES = (".jsonl", ".ndjson")

# The pairs of keys by which an object of JSON lines may name its sides, besides language codes.
SIDES = (("source", "target"), ("src", "tgt"), ("src", "trg"), ("source_text", "target_text"), ("input", "output"))


def has_records(path: Path) -> bool:
    """Whether a file is TMX or JSON lines, judged by its name, which may also end in .gz, .xz and the like."""
    return _ending(path) in (*TMX, *JSON_LINES)


def read_records(
    path: Path,
    languages: Languages | None = None,
    is_turned: bool = False,
    on_lacking: Callable[[int], None] | None = None,
) -> Iterator[Record]:
    """Yields the sentence pairs of a TMX or JSON lines file.

    `languages` are the codes of source and target. An object in JSON lines that lacks these as keys may have keys such
    as source and target (SIDES) instead. Without `languages`, the sides of TMX are the two languages of the first unit,
    the header's source language first; an object in JSON lines has keys in SIDES, or two texts, the source first.

    With `is_turned`, source and target change places in an array, and in an object whose sides are keys in SIDES. Units
    of TMX that lack a side are skipped; `on_lacking` is called with the line number of each. Line breaks within a text
    become spaces. Raises DataError, with the line, for anything that is not valid.
    """
    if _ending(path) in TMX:
        return _read_tmx(path, languages, on_lacking)
    return _read_json_lines(path, languages, is_turned)


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def _is_code(found: str, wanted: str) -> bool:
    """Whether the language code `found` is `wanted`, or is `wanted` with a script or a region, such as en-US for en."""
    found, wanted = found.lower().replace("_", "-"), wanted.lower().replace("_", "-")
    return found == wanted or found.startswith(f"{wanted}-")


# TMX.

CHUNK_BYTES = 1 << 16

# Elements within a segment that hold codes of the original document instead of text.
CODES = ("bpt", "ept", "it", "ph", "ut", "sub")


def _read_tmx(path: Path, languages: Languages | None, on_lacking: Callable[[int], None] | None) -> Iterator[Record]:
    units = _Units(path)
    with reading_file(path), open_to_read(path) as stream:
        chunk = None
        while chunk != b"":
            chunk = stream.read(CHUNK_BYTES)
            units.feed(chunk, is_last=not chunk)
            for line, texts in units.taken():
                languages = languages or units.languages(line, texts)
                record = _pair(line, texts, languages)
                if record is not None:
                    yield record
                elif on_lacking is not None:
                    on_lacking(line)


def _pair(line: int, texts: dict[str, str], languages: Languages) -> Record | None:
    sides = [next((text for code, text in texts.items() if _is_code(code, wanted)), None) for wanted in languages]
    return None if sides[0] is None or sides[1] is None else Record(line, sides[0], sides[1])


class _Units:
    """Collects the translation units of a TMX file while it is parsed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._units: list[tuple[int, dict[str, str]]] = []
        self._begun = 0  # line on which the unit began
        self._texts: dict[str, str] = {}
        self._code = ""
        self._segment: list[str] | None = None
        self._num_codes = 0  # depth of elements that hold codes
        self._root = ""
        self._header_source = ""
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._refuse_entity
        parser.ExternalEntityRefHandler = self._refuse_reference
        parser.SkippedEntityHandler = self._refuse_skipped
        self._parser = parser

    def feed(self, data: bytes, is_last: bool = False) -> None:
        """Parse more of the file; raises DataError if it is not XML, or not TMX."""
        try:
            self._parser.Parse(data, is_last)
        except expat.ExpatError as error:
            what = expat.errors.messages[error.code]
            raise DataError(f"{named(self._path)}:{error.lineno}: this is not well-formed XML: {what}") from None
        except (LookupError, ValueError) as error:
            raise self._fault(f"its encoding cannot be read: {error}; convert it to UTF-8") from None

    def taken(self) -> list[tuple[int, dict[str, str]]]:
        """The units that have become complete since the last call: the line, and the text by language code."""
        units, self._units = self._units, []
        return units

    def languages(self, line: int, texts: dict[str, str]) -> Languages:
        """The codes of source and target, from the first unit; raises DataError unless there are exactly two."""
        codes = sorted(texts, key=lambda code: not _is_code(code, self._header_source or code))
        if len(codes) != 2:
            raise DataError(
                f"{named(self._path)}:{line}: the first unit has {', '.join(texts) or 'no language'}, wants two; "
                "choose them with --languages, such as fr-en"
            )
        return codes[0], codes[1]

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._root:
            self._root = name
            if name != "tmx":
                raise self._fault(f"found <{name}>, wants <tmx>")
        if name == "header":
            source = attributes.get("srclang", "")
            self._header_source = "" if source == "*all*" else source
        elif name == "tu":
            self._begun, self._texts = self._parser.CurrentLineNumber, {}
        elif name == "tuv":
            self._code = attributes.get("xml:lang", attributes.get("lang", ""))
            if not self._code:
                raise self._fault("<tuv> has no xml:lang")
        elif name == "seg":
            self._segment, self._num_codes = [], 0
        elif self._segment is not None and name in CODES:
            self._num_codes += 1

    def _end(self, name: str) -> None:
        if name == "seg" and self._segment is not None:
            self._texts.setdefault(self._code, _on_one_line("".join(self._segment)))
            self._segment = None
        elif name == "tu":
            self._units.append((self._begun, self._texts))
        elif self._segment is not None and name in CODES:
            self._num_codes -= 1

    def _text(self, text: str) -> None:
        if self._segment is not None and not self._num_codes:
            self._segment.append(text)

    def _refuse_entity(self, name: str, *_: object) -> None:
        raise self._fault(f"declares the entity {name}; write the text in its place, since such files can be attacks")

    def _refuse_reference(self, *_: object) -> int:
        raise self._fault("refers to another file; write its text in its place, since such files can be attacks")

    def _refuse_skipped(self, name: str, *_: object) -> None:
        raise self._fault(f"the entity &{name}; is not one of XML's own; write the character itself")

    def _fault(self, what: str) -> DataError:
        return DataError(f"{named(self._path)}:{self._parser.CurrentLineNumber}: {what}")


def _on_one_line(text: str) -> str:
    """Returns the text on one line, without spaces at its ends.

    Line breaks and tabs, with the spaces around them, become one space, since they only indent the XML. Other spaces
    are kept.
    """
    return " ".join(
        part.strip(" ") for part in text.replace("\r", "\n").replace("\t", "\n").split("\n") if part.strip()
    )


# JSON lines.


def _read_json_lines(path: Path, languages: Languages | None, is_turned: bool) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            source, target = _sides(path, number, line, languages, is_turned)
            yield Record(number, _without_breaks(source), _without_breaks(target))


def _without_breaks(text: str) -> str:
    return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _sides(path: Path, number: int, line: str, languages: Languages | None, is_turned: bool) -> tuple[str, str]:
    """Returns the source and the target of a line of JSON, which is an object or an array.

    The keys of an object, or the order of an array, tell which is which; `languages` and `is_turned` are as in
    `read_records`. `path` and `number` name the line in errors. Raises DataError unless the line has two such texts.
    """
    where = f"{named(path)}:{number}"
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise DataError(f"{where}: this is not a line of JSON: {what}") from None
    if isinstance(found, dict) and isinstance(found.get("translation"), dict):
        found = found["translation"]  # as the data sets of Hugging Face have it
    if isinstance(found, dict):
        keys = _keys(found, languages, is_turned)
        if keys is None:
            names = ", ".join(islice(map(str, found), 8)) or "no key"
            wanted = " and ".join(languages) if languages else "source and target, or two texts by language code"
            raise DataError(f"{where}: found {names}; wants {wanted}")
        found = [found[key] for key in keys]
    elif isinstance(found, list) and is_turned:
        found = found[::-1]
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(text, str) for text in found):
        raise DataError(f'{where}: wants two texts, such as {{"source": "…", "target": "…"}}')
    if any("\ud800" <= character <= "\udfff" for text in found for character in text):
        raise DataError(f"{where}: has half of a surrogate pair, which is no character; write the character itself")
    return found[0], found[1]


def _keys(found: dict[str, Any], languages: Languages | None, is_turned: bool) -> tuple[str, str] | None:
    """The keys of the source and the target in an object; `None` if it is not clear which they are."""
    if languages:
        sides = [next((key for key in found if _is_code(key, wanted)), None) for wanted in languages]
        if sides[0] is not None and sides[1] is not None:
            return sides[0], sides[1]
    for pair in SIDES:
        if all(key in found for key in pair):
            return pair[::-1] if is_turned else pair
    texts = [key for key, value in found.items() if isinstance(value, str)]
    return (texts[0], texts[1]) if len(texts) == 2 and not languages else None
