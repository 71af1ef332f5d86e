"""Reads sentence pairs from the corpora that the settings name, from TMX and from JSON lines, and finds odd text.

A corpus of several files consists of parts. A part is one source file with its target file, or one tab-separated file.

TMX is the XML format in which translation memories are exchanged (LISA, TMX 1.4b). JSON lines has one object or array
per line. Files from strangers can be attacks, so XML that declares entities, or refers to other files, is refused. The
settings can name text files and tab-separated files, but not TMX or JSON lines.

Odd text is what is not plain sentences: text that other tools have tokenised, cut into subwords, escaped or lower-
cased; tables; header lines; and parallel text whose source and target are identical. The advice on odd text contains
shell commands that correct the text.
"""

import glob
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from xml.parsers import expat

from mtkit.config.data_and_model_settings import (
    CorpusConfig,
    LanguagesConfig,
    TestSetConfig,
    TokenizerTextConfig,
    listed,
    listed_tags,
)
from mtkit.config.settings import Config
from mtkit.errors import DataError, counted
from mtkit.text.lines import (
    COMPRESSIONS,
    FIRST_LINES,
    LEAST_ROWS,
    advice_on_csv,
    compressed_fingerprint,
    csv_separator,
    fingerprint,
    is_named_csv,
    named,
    open_to_read,
    read_columns,
    read_lines,
    read_pairs,
    reading_file,
)
from mtkit.text.vocabulary import split_tags


class Record(NamedTuple):
    """A sentence pair, and the number (from 1) of the line of the file at which the pair begins."""

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

    `languages` are the language codes of source and target, such as ("en", "de"). If `languages` is `None`, a TMX file
    must have exactly two languages in its first unit; the language that the header names as the source comes first.

    A line of JSON is an array of source and target, or an object with the two texts. The keys of the object are the two
    language codes or a pair of keys in SIDES, such as "source" and "target". If `languages` is `None`, any object with
    exactly two texts will do; its first text is the source. With `is_turned=True`, source and target are swapped in
    arrays and in objects with keys in SIDES.

    Units of TMX without a text in both languages are skipped; `on_lacking` is called with the line number of each
    skipped unit. Line breaks within a text become spaces. Raises DataError, with the line number, for anything that is
    not valid.
    """
    if _ending(path) in TMX:
        return _read_tmx(path, languages, on_lacking)
    return _read_json_lines(path, languages, is_turned)


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def _is_code(found: str, wanted: str) -> bool:
    """Whether the language code `found` is the same as `wanted`, or `wanted` with a script or a region.

    For example, en-US is accepted for en. Case does not matter, and "_" counts as "-".
    """
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
        """Parse `data`, the next bytes of the file; `is_last` tells whether the file ends here.

        Raises DataError if the file is not XML, or not TMX.
        """
        try:
            self._parser.Parse(data, is_last)
        except expat.ExpatError as error:
            what = expat.errors.messages[error.code]
            raise DataError(f"{named(self._path)}:{error.lineno}: this is not well-formed XML: {what}") from None
        except (LookupError, ValueError) as error:
            raise self._fault(f"its encoding cannot be read: {error}; convert it to UTF-8") from None

    def taken(self) -> list[tuple[int, dict[str, str]]]:
        """Returns the units that were completed since the last call of this method.

        Each unit is (number of its first line, texts), where texts is a dict from language codes to texts.
        """
        units, self._units = self._units, []
        return units

    def languages(self, line: int, texts: dict[str, str]) -> Languages:
        """The codes of source and target, found in the first unit of the file.

        The first unit begins at the line `line`, and `texts` maps its language codes to its texts. The language that
        the header names as the source comes first. Raises DataError unless the unit has exactly two languages.
        """
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
    """Returns `text` on one line, without spaces at the beginning and the end.

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

    Source and target are told apart by the keys of an object, or by the order of an array; `languages` and `is_turned`
    are the arguments of `read_records`. `path` and `number`, the line number, are for error messages. Raises DataError
    unless the line has a source and a target that are text.
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
    """The keys of source and target in the object `found`; `None` if it is not clear which keys they are.

    Tried in this order: the codes in `languages`; a pair of keys in SIDES, swapped if `is_turned` is true; and, if
    `languages` is `None`, the keys of the only two texts.
    """
    if languages:
        sides = [next((key for key in found if _is_code(key, wanted)), None) for wanted in languages]
        if sides[0] is not None and sides[1] is not None:
            return sides[0], sides[1]
    for pair in SIDES:
        if all(key in found for key in pair):
            return pair[::-1] if is_turned else pair
    texts = [key for key, value in found.items() if isinstance(value, str)]
    return (texts[0], texts[1]) if len(texts) == 2 and not languages else None


# Parallel corpora.

Pair = tuple[str, str]

COLUMN = ", column "  # comes between the fingerprint of a tab-separated file and the column number


def read_corpus(corpus: CorpusConfig) -> Iterator[Pair]:
    """Yields the (source, target) pairs of a corpus; the corpus's tag is not added.

    A corpus may have several parts, such as pairs of files; they are read one after the other.
    """
    return chain.from_iterable(map(read_part, corpus.parts))


def read_part(part: CorpusConfig) -> Iterator[Pair]:
    """Yields the (source, target) pairs of one part of a corpus; the corpus's tag is not added.

    A part is a source file with its target file, or one tab-separated file. If a corpus has only target text, the
    source of each pair is "".
    """
    source, target = files_of(part)
    if not part.has_source:
        return (("", line) for line in read_lines(target))
    return read_columns(source, *part.columns) if part.tsv is not None else read_pairs(source, target)


def files_of(part: CorpusConfig) -> tuple[Path, Path]:
    """Returns (source file, target file) of one part of a corpus.

    If the part is one tab-separated file, or a target file without a source, this file is returned twice.
    """
    return part.paths[0], part.paths[-1]


def read_source(corpus: CorpusConfig) -> Iterator[str]:
    """Yields the source lines of a corpus, none if it has no source; the corpus's tag is not added."""
    return _read_side(corpus, 0) if corpus.has_source else iter(())


def read_target(corpus: CorpusConfig) -> Iterator[str]:
    """Yields the target lines of a corpus."""
    return _read_side(corpus, 1)


def _read_side(corpus: CorpusConfig, side: int) -> Iterator[str]:
    if corpus.tsv is not None:
        return (pair[side] for pair in read_corpus(corpus))
    return chain.from_iterable(read_lines(files_of(part)[side]) for part in corpus.parts)


def tagged_pairs(corpora: Iterable[CorpusConfig]) -> Iterator[Pair]:
    """Yields the pairs of all corpora, one corpus after the other.

    A corpus's tag, if any, is put before each of its source lines.
    """
    for corpus in corpora:
        for source, target in read_corpus(corpus):
            yield tagged(source, corpus.tag), target


def without_source(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yields ("", target) for each (source, target), since a language model reads the target only."""
    return (("", target) for _, target in pairs)


def pairs_in_turn(corpora: Iterable[CorpusConfig], is_spread: bool = True) -> Iterator[Pair]:
    """Yields the pairs of all corpora, with tags, taking one pair from each corpus in turn.

    A corpus that has no pairs left is skipped. With `is_spread=False`, the pairs of a corpus are taken in their own
    order. With `is_spread=True`, they are taken in the order of `spread`: the first n pairs taken from a corpus, for
    any n, are from places spread evenly over the corpus.

    Each corpus is read into memory before the next one is opened, since all corpora together may have more files than a
    process may open at once.
    """
    texts = [list(tagged_pairs([corpus])) for corpus in corpora]
    if is_spread:
        texts = [[text[index] for index in spread(len(text))] for text in texts]
    for row in zip_longest(*texts):
        yield from (pair for pair in row if pair is not None)


def spread(count: int) -> list[int]:
    """The numbers from 0 to `count - 1`, ordered so that the first n, for any n, are spread evenly over the range.

    The numbers are sorted by their reversed bits (van der Corput, 1935): for `count=8`, the order is 0 4 2 6 1 5 3 7.
    """
    width = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda number: f"{number:0{width}b}"[::-1])


def fingerprints(
    part: CorpusConfig, fingerprint_of: Callable[[Path], str] = fingerprint
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Returns ((source path, source fingerprint), (target path, target fingerprint)) of one part of a corpus.

    A fingerprint is the checksum of a file, computed by `fingerprint_of(path)`. If the part is one tab-separated file,
    the column number is appended to the checksum.
    """
    source, target = files_of(part)
    if part.tsv is not None:
        whole = fingerprint_of(source)
        first, second = (f"{whole}{COLUMN}{column}" for column in part.columns)
        return (str(source), first), (str(source), second)
    return (str(source), fingerprint_of(source)), (str(target), fingerprint_of(target))


def known_fingerprints(part: CorpusConfig, known: Container[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Returns ((source path, source fingerprint), (target path, target fingerprint)) of one part of a corpus.

    A fingerprint is the checksum of a file's decompressed text. Earlier versions of mtkit used the checksum of the
    compressed file instead. If `known` contains this old checksum of a file but not the new one, the old checksum is
    returned for the file.
    """
    found = fingerprints(part)
    if all(fingerprint in known for _, fingerprint in found):
        return found
    first, second = (
        older if older[1] in known and now[1] not in known else now
        for now, older in zip(found, fingerprints(part, compressed_fingerprint), strict=True)
    )
    return first, second


# Tags, which tell a multilingual model what to produce, such as the target language.


def tagged(line: str, tag: str | None) -> str:
    """`line` with `tag` and a space before it; unchanged if `tag` is `None` or the line is blank."""
    return f"{tag} {line}" if tag is not None and line.strip() else line


def describe_tags(tags: Sequence[str]) -> str:
    """A clause for messages that lists the `tags` that a model knows, or says that it knows no tags."""
    return f"it knows {listed_tags(tags)}" if tags else "it knows no tags"


def extend_command(model: str, tags: Iterable[str]) -> str:
    """The shell command that adds `tags` to a model with `mtkit extend`."""
    return f"mtkit extend {model} {' '.join(f'--tag {shlex.quote(tag)}' for tag in tags)} -o LARGER"


class ExpectedTags:
    """Checks whether source lines begin with a tag that the model knows."""

    def __init__(self, tags: Sequence[str], needed: bool) -> None:
        """`tags` are the tags of a model; `needed` tells whether training put a tag before every source line."""
        self._tags = tags
        self._needed = needed
        brackets = {_brackets(tag) for tag in tags}
        self._brackets = [(opening, closing) for opening, closing in brackets if opening and closing]
        listed = listed_tags(tags)
        self._missing = f"begins with none of the model's tags, and the model was trained with one: {listed}"
        self._unknown = f"begins with what looks like a tag, and is none of the model's: {listed}"

    def fault(self, line: str) -> str | None:
        """A text that says what is wrong with the tag of `line`; `None` if nothing is wrong.

        In a message, the text follows a phrase such as "line 3". Nothing is wrong with a blank line, which needs no
        tag.
        """
        if not self._tags or not line.strip() or split_tags(line, self._tags)[0]:
            return None
        if self._looks_like_a_tag(line.split(maxsplit=1)[0]):
            return self._unknown
        return self._missing if self._needed else None

    def _looks_like_a_tag(self, word: str) -> bool:
        """Whether `word` has the same brackets around it as one of the tags, such as >> and << in >>de<<."""
        return _brackets(word) in self._brackets


def _brackets(word: str) -> tuple[str, str]:
    """Returns the parts of `word` before its first letter or digit and after its last, such as (">>", "<<")."""
    begin, end = 0, len(word)
    while begin < end and not word[begin].isalnum():
        begin += 1
    while end > begin and not word[end - 1].isalnum():
        end -= 1
    return word[:begin], word[end:]


# Finding files: a pattern such as `parts/*.en.gz` is replaced by the list of files that it matches.

COMPRESSED_ENDINGS = {*COMPRESSIONS, ".zip"}

# `**/` matches any number of nested folders, and `**` at the end everything below a folder; other wildcards match
# within one file or folder name.
WILDCARD = re.compile(r"\*\*/|\*+|\?|\[!?[^/\]][^/\]]*\]|\[!?\][^/\]]*\]")


@dataclass(frozen=True)
class _Matches:
    """A path from the settings, which may be a pattern such as *.en, and the files that match it."""

    path: Path
    files: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...] | None = None  # for each file, what the wildcards match; None: no pattern

    @property
    def described(self) -> str:
        """A clause for messages, such as "parts/*.en matches 3 files"."""
        if self.keys is None:
            return f"{self.path} is one file"
        return f"{self.path} matches {counted(len(self.files), 'file')}"


def with_patterns_expanded(config: Config) -> Config:
    """Returns `config` with each file pattern, such as *.en, replaced by the files that match the pattern.

    The files are in natural order (2 before 10). Raises DataError if a path is a folder, if a test set has several
    source files, or if the source and target files of a corpus do not correspond. A pattern that matches no file is
    kept and raises no error here, since a run that has been prepared no longer needs its text files. If the files are
    needed, `data_file` raises DataError later.
    """
    data = config.data
    sections = {
        name: tuple(_corpus(config, corpus, f"data.{name}[{index}]") for index, corpus in enumerate(corpora))
        for name, corpora in (("train", data.train), ("valid", data.valid))
    }
    test = {name: _test_set(config, test_set, f"data.test.{name}") for name, test_set in data.test.items()}
    text = tuple(
        each
        for index, more in enumerate(config.tokenizer.text)
        for each in _more_text(config, more, f"tokenizer.text[{index}]")
    )
    if sections == {"train": data.train, "valid": data.valid} and test == data.test and text == config.tokenizer.text:
        return config
    tokenizer = (
        config.tokenizer if text == config.tokenizer.text else config.tokenizer.model_copy(update={"text": text})
    )
    data = data.model_copy(update={**sections, "test": test})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def data_file(config: Config, path: Path) -> Path:
    """The full path of a text file that the settings name; a relative path starts from data.root.

    If the file does not exist, raises a DataError that names the folder that was searched.
    """
    here = config.data_path(path)
    if here.exists():
        return here
    root = config.data.root
    missing = "no file matches" if WILDCARD.search(str(path)) else "no such file"
    if advice := _syntax_advice(str(path)):
        raise DataError(f"{here}: {missing}; {advice}")
    if path.is_absolute():
        raise DataError(f"{here}: {missing}{_near(here)}")
    if root is not None:
        missing = missing if root.is_dir() else "no such folder as data.root"
        where = "" if root.is_absolute() else f", which is looked for in {Path.cwd()}"
        raise DataError(f"{here}: {missing}; relative paths start from data.root, {root}{where}{_near(here)}")
    raise DataError(
        f"{here}: {missing} in {Path.cwd()}, from which relative paths start; name another folder in data.root"
        f"{_near(here)}"
    )


def _syntax_advice(path: str) -> str | None:
    """Advice on a path that contains shell syntax or the like, which mtkit takes literally; `None` for other paths."""
    if re.search(r"\{.*(,|\.\.).*\}", path):
        return "braces stand for themselves; write a list of files or patterns, [FIRST, SECOND]"
    if "$" in path:
        return "variables such as $HOME are not replaced; write what they stand for"
    if "\\" in path:
        return "a backslash stands for itself; write the name as it is, and quotes around it where YAML wants them"
    if ":" in path and all("." in piece for piece in path.split(":")):
        return "a colon stands for itself; several files are a list, [FIRST, SECOND]"
    return None


def _near(path: Path) -> str:
    """A suggestion, for messages, of a file with a similar name in the same folder; "" if there is no such file."""
    try:
        names = [beside.name for beside in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f". Did you mean {near[0]}?" if near else ""


def _corpus(config: Config, corpus: CorpusConfig, name: str) -> CorpusConfig:
    if corpus.tsv is not None:
        tables = _match_all(config, corpus.tsv, f"{name}.tsv", "tsv")
        return corpus.model_copy(
            update={"tsv": _as_given(corpus.tsv, [table.files or (table.path,) for table in tables])}
        )
    assert corpus.target is not None
    if corpus.source is None:
        texts = _match_all(config, corpus.target, f"{name}.target", config.languages.target)
        return corpus.model_copy(
            update={"target": _as_given(corpus.target, [text.files or (text.path,) for text in texts])}
        )
    sources = _match_all(config, corpus.source, f"{name}.source", config.languages.source)
    targets = _match_all(config, corpus.target, f"{name}.target", config.languages.target)
    _require_one_order(sources, targets, name)
    pairs = [_paired(source, target, name) for source, target in zip(sources, targets, strict=True)]
    return corpus.model_copy(
        update={
            "source": _as_given(corpus.source, [source for source, _ in pairs]),
            "target": _as_given(corpus.target, [target for _, target in pairs]),
        }
    )


def _test_set(config: Config, test_set: TestSetConfig, name: str) -> TestSetConfig:
    """Returns `test_set` with its file patterns, such as *.en, replaced by the files that match them.

    Each target file is one reference. `name` is the name of the setting, for messages. Raises DataError if the source
    matches several files.
    """
    if test_set.source is None:
        return test_set
    source = _match(config, test_set.source, f"{name}.source", config.languages.source)
    if len(source.files) > 1:
        raise DataError(
            f"{name}.source: {source.described}, wants one; give each a name of its own in data.test, since a list of "
            "targets is one of references"
        )
    targets = _match_all(config, test_set.target, f"{name}.target", config.languages.target)
    return test_set.model_copy(
        update={
            "source": (source.files or (source.path,))[0],
            "target": tuple(path for target in targets for path in target.files or (target.path,)),
        }
    )


def _more_text(config: Config, text: TokenizerTextConfig, name: str) -> list[TokenizerTextConfig]:
    """Returns one entry for each file of `text`, an entry of the setting tokenizer.text that may have patterns.

    Source files and target files get separate entries, since they need not be parallel. If no pattern in `text` matches
    a file, the list contains just `text`, unchanged. `name` is the name of the setting, for messages.
    """
    sides = {
        side: _match(config, path, f"{name}.{side}", getattr(config.languages, side))
        for side, path in (("source", text.source), ("target", text.target))
        if path is not None
    }
    if all(found.keys is None or not found.files for found in sides.values()):
        return [text]
    return [TokenizerTextConfig.model_validate({side: file}) for side, found in sides.items() for file in found.files]


def _match_all(config: Config, given: Path | tuple[Path, ...], name: str, ending: str) -> list[_Matches]:
    paths = listed(given)
    names = [name] if isinstance(given, Path) else [f"{name}[{index}]" for index in range(len(paths))]
    return [_match(config, path, each, ending) for path, each in zip(paths, names, strict=True)]


def _as_given(given: Path | tuple[Path, ...], files: Sequence[tuple[Path, ...]]) -> Path | tuple[Path, ...]:
    """Returns `files` in the form of the setting `given`: a single path if possible, else a flat tuple.

    A single path is returned only if `given` is a path and `files` has just one file.
    """
    found = tuple(path for some in files for path in some)
    return found[0] if isinstance(given, Path) and len(found) == 1 else found


def _match(config: Config, path: Path, name: str, ending: str) -> _Matches:
    """The files that match `path`, a path or pattern from the settings; raises DataError if `path` is a folder.

    `name` is the name of the setting, for messages. `ending` is a likely extension of the files, such as a language
    code; it is used in the error message about a folder.
    """
    here = config.data_path(path)
    if here.is_dir():
        raise DataError(
            f"{name}: {here} is a folder; wants a file, a list of files, or a pattern such as "
            f"{path / _pattern_in(here, ending)}"
        )
    pattern = str(path)
    if here.exists() or not WILDCARD.search(pattern):
        return _Matches(path, (path,))
    groups = re.compile(_regex(pattern), re.DOTALL)
    files = []
    for match in glob.glob(pattern, root_dir=config.data.root, recursive=True):
        wildcards = groups.fullmatch(match)
        if wildcards and not config.data_path(Path(match)).is_dir():
            files.append((wildcards.groups(), Path(match)))
    files.sort(key=lambda file: ([_natural(text) for text in file[0]], file[1]))
    return _Matches(path, tuple(file for _, file in files), tuple(key for key, _ in files))


def _regex(pattern: str) -> str:
    """A regular expression that matches the same paths as a file pattern, with a group for each wildcard."""
    parts, end = [], 0
    for wildcard in WILDCARD.finditer(pattern):
        parts.append(re.escape(pattern[end : wildcard.start()]))
        parts.append(_group(wildcard[0]))
        end = wildcard.end()
    return "".join([*parts, re.escape(pattern[end:])])


def _group(wildcard: str) -> str:
    if wildcard.startswith("["):
        characters = wildcard[1:-1]
        negated, characters = ("^", characters[1:]) if characters.startswith("!") else ("", characters)
        escaped = re.sub(r"([\\^\[\]])", r"\\\1", characters)
        return f"([{negated}{escaped}])"
    return {"**/": "((?:[^/]+/)*)", "?": "([^/])", "**": "(.*)"}.get(wildcard, "([^/]*)")


def _natural(text: str) -> list[str | int]:
    """Sort key for natural order (part2 before part10): a list in which strings and integers alternate."""
    return [int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"([0-9]+)", text))]


def _pattern_in(folder: Path, ending: str) -> str:
    """A pattern, such as *.en.gz, for the most frequent extension of the files in `folder`.

    If there are extensions that include `ending`, the most frequent of them is taken. For example, .en.gz includes the
    ending en.
    """
    endings: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            endings["".join(path.suffixes[-2 if path.suffix in COMPRESSED_ENDINGS else -1 :])] += 1
    matching = [each for each in endings if ending in each.split(".")]
    best = max(matching or endings, key=lambda each: (endings[each], each), default="")
    return f"*{best}"


def _paired(source: _Matches, target: _Matches, name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Returns (source files, target files) in an order in which files at the same position make a pair.

    If both paths are patterns, files are paired if the wildcards match the same text in both. Raises DataError if a
    file has no counterpart.
    """
    for found, other in ((source, target), (target, source)):
        if not found.files and other.files:
            advice = _syntax_advice(str(found.path))
            hint = f"; {advice}" if advice else ""
            raise DataError(f"{name}: no file matches {found.path}, but {other.described}{hint}")
    if not source.files:
        return (source.path,), (target.path,)
    if source.keys is None or target.keys is None:
        if len(source.files) != len(target.files):
            raise DataError(
                f"{name}: source {source.described}, and target {target.described}; wants as many files of each: "
                "line n of a part must translate line n of its other side"
            )
        return source.files, target.files
    if len(source.keys[0]) != len(target.keys[0]):
        raise DataError(
            f"{name}: the patterns {source.path} and {target.path} have {len(source.keys[0])} and "
            f"{len(target.keys[0])} wildcards; wants as many in both, since parts are paired by "
            "the text that the wildcards match"
        )
    targets = dict(zip(target.keys, target.files, strict=True))
    for found, other in ((source, target), (target, source)):
        assert found.keys is not None
        assert other.keys is not None
        if alone := [index for index, key in enumerate(found.keys) if key not in set(other.keys)]:
            raise _unpaired(found, other, alone, name)
    return source.files, tuple(targets[key] for key in source.keys)


def _unpaired(found: _Matches, other: _Matches, alone: Sequence[int], name: str) -> DataError:
    """Returns the error to raise for files of `found` that have no counterpart in `other`.

    `alone` are the positions of these files in `found.files`; `name` is the name of the setting, for the message.
    """
    assert found.keys is not None
    texts = iter(found.keys[alone[0]])
    missing = WILDCARD.sub(lambda _: next(texts), str(other.path))
    more = f", and {len(alone) - 1:,} more like it" if len(alone) > 1 else ""
    return DataError(
        f"{name}: {found.files[alone[0]]} has no other side: there is no {missing}{more} "
        f"({found.described}, {other.described}); add what is missing, or narrow the patterns"
    )


def _require_one_order(sources: Sequence[_Matches], targets: Sequence[_Matches], name: str) -> None:
    """Raise DataError if the source files and the target files list the same parts in different orders.

    For this comparison, the beginning and the end that all source paths share are removed from each source path, and
    likewise for target paths. For example, a/x.en and a/y.en become x and y.
    """
    first, second = (_distinctive([str(found.path) for found in side]) for side in (sources, targets))
    if first == second or sorted(first) != sorted(second) or len(set(first)) < len(first):
        return
    index = next(index for index in range(len(first)) if first[index] != second[index])
    raise DataError(
        f"{name}: source and target list the same parts in different orders: {sources[index].path} is paired "
        f"with {targets[index].path}; list both in the same order"
    )


def _distinctive(names: Sequence[str]) -> list[str]:
    """`names` without the beginning and end that all of them share."""
    start = _common_prefix_length(names)
    rest = [name[start:] for name in names]
    end = _common_prefix_length([name[::-1] for name in rest])
    return [name[: len(name) - end] for name in rest]


def _common_prefix_length(names: Sequence[str]) -> int:
    """The length of the longest prefix that all `names` share."""
    columns = enumerate(zip(*names, strict=False))
    return next((index for index, column in columns if len(set(column)) > 1), min(map(len, names)))


# Traces of preprocessing by other tools.

MOST_LINES = 1_000_000  # samples are taken from this many lines at the beginning of a file
LEADING_LINES = 2048  # the sample contains all of this many lines at the beginning

T = TypeVar("T")

MOSES = "Moses or a tool like it"

LEAST_LETTERS = 200  # letters with case needed to decide whether a text is lower-cased
LOWER_CASED = 0.0005  # a text with at most this share of capitals among its letters counts as lower-cased
CASED = 0.005  # a text with at least this share counts as cased; plain sentences have 2 % or more


@dataclass(frozen=True)
class Sign:
    """A trace that preprocessing by some tool leaves, and that plain text rarely contains."""

    kind: str  # follows "looks" in messages
    by: str  # the tool that left it
    pattern: re.Pattern[str]
    share: float  # a text counts as processed if more than this share of its lines has the trace
    cure: str  # shell filter that undoes the preprocessing; LANG is replaced by the language code
    setting: str = ""  # advice on a setting that suits such text
    undone: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) pairs that undo it, if it hides other signs


# Measured on text of 21 languages: in raw text, at most 0.2 % of the lines have subword marks or escapes, and at most
# 2 % have spaces such as a tokeniser inserts. In tokenised text, 80 % or more of the lines have such spaces. Spaces
# before ? ! ; and : are no sign of tokenisation, since they are correct French.
SIGNS = (
    Sign(
        "cut into subwords",
        "subword-nmt",
        re.compile(r"(?<=\S)@@(?= |$)"),
        0.02,
        "sed -E 's/(@@ )|(@@ ?$)//g'",
        "tokenizer.type: word keeps the pieces as they are",
        ((r"@@(?: |$)", ""),),
    ),
    Sign(
        "cut into subwords",
        "SentencePiece",
        re.compile("▁"),
        0.02,
        "sed 's/ //g; s/▁/ /g; s/^ //'",
        "tokenizer.model: MODEL cuts the plain text in the same way",
        ((" ", ""), ("▁", " ")),
    ),
    Sign(
        "cut into subwords",
        "OpenNMT's tokenizer",
        re.compile("￭"),
        0.02,
        "sed -E 's/ ?￭ ?//g'",
        "tokenizer.type: word keeps the pieces as they are",
        ((" ?￭ ?", ""),),
    ),
    Sign(
        "cut into subwords",
        "WordPiece",
        re.compile(r" ##\w"),
        0.02,
        "sed 's/ ##//g'",
        "tokenizer.type: word keeps the pieces as they are",
        ((" ##", ""),),
    ),
    Sign(
        "tokenised",
        MOSES,
        re.compile(r" \.$| ,(?= )| n't\b| @-@ "),
        0.2,
        "sacremoses -l LANG detokenize",
    ),
    Sign(
        "tokenised",
        "a tool that puts spaces between words",
        re.compile(r"(?<= )[。、，！？](?= |$)"),
        0.2,
        "sed 's/ //g'",
    ),
    Sign(
        "quoted",
        "a writer of CSV",
        re.compile(r'^"(?=[^"]*"")(?:[^"]|"")*"$'),  # with doubled quotes inside, as CSV writes them
        0.002,
        """sed -E '/^"([^"]|"")*"$/{s/^"(.*)"$/\\1/; s/""/"/g}'""",
    ),
    Sign(
        "escaped",
        "Moses or HTML",
        re.compile(r"&(?:apos|quot|amp|lt|gt|#39|#91|#93|#124);"),
        0.02,
        """sed "s/&apos;/'/g; s/&quot;/\\"/g; s/&lt;/</g; s/&gt;/>/g; s/&#91;/[/g; s/&#93;/]/g; s/&#124;/|/g; """
        r's/&amp;/\&/g"',
    ),
)


@dataclass(frozen=True)
class Finding:
    """A sign that was found in a text."""

    sign: Sign
    line: int  # number of the first line with the sign, from 1
    excerpt: str  # the sign in that line, with some text around it
    count: int  # number of lines with the sign
    num_lines: int  # number of lines inspected, not counting blank ones


def sample(lines: Iterable[T], most: int = MOST_LINES, leading: int = LEADING_LINES) -> Iterator[tuple[int, T]]:
    """Yields (line number, line) for a sample of the first `most` of `lines`; numbers begin at 1.

    The items may also be sentence pairs. The sample has the first `leading` lines. Then it takes every second line
    until it has taken `leading` / 2 lines, then every fourth line until it has taken another `leading` / 2 lines, then
    every eighth, and so on.
    """
    numbered = enumerate(islice(lines, most), start=1)
    yield from islice(numbered, leading)
    step = 2
    while part := list(islice(numbered, 0, leading // 2 * step, step)):
        yield from part
        step *= 2


def findings(lines: Iterable[tuple[int, str]]) -> list[Finding]:
    """Returns a Finding for each sign that occurs in many of `lines` (at least two), in the order of SIGNS.

    A sign is a trace of preprocessing, such as subword marks. `lines` are tuples (line number, line). If `lines` turn
    out to be cut into subwords, the subwords are joined before the search for the remaining signs.
    """
    texts = [(number, text) for number, line in lines if (text := line.rstrip())]
    found: list[Finding] = []
    for sign in SIGNS:
        if finding := _finding(sign, texts):
            found.append(finding)
            for pattern, replacement in sign.undone:
                texts = [(number, re.sub(pattern, replacement, text)) for number, text in texts]
    # The Moses detokenizer also undoes the escapes.
    if any(finding.sign.by == MOSES for finding in found):
        found = [finding for finding in found if finding.sign.kind != "escaped"]
    return found


def _finding(sign: Sign, texts: Sequence[tuple[int, str]]) -> Finding | None:
    matches = [(number, match) for number, text in texts if (match := sign.pattern.search(text))]
    if len(matches) <= max(1, sign.share * len(texts)):
        return None
    number, first = matches[0]
    return Finding(sign, number, _excerpt(first), len(matches), len(texts))


def capitals(lines: Iterable[str]) -> float | None:
    """The fraction of capitals among the cased letters, that is, letters that have capital and small forms.

    Returns `None` if there are fewer than LEAST_LETTERS cased letters, or if fewer than half of all letters are cased.
    """
    text = "".join(lines)
    letters = [character for character in text if character.isalpha()]
    # Unicode has Georgian capitals, but Georgian sentences do not use them; Georgian letters count as without case.
    small = sum(character.islower() and not "ა" <= character <= "ჿ" for character in letters)
    large = sum(map(str.isupper, letters))
    if small + large < max(LEAST_LETTERS, len(letters) / 2):
        return None
    return large / (small + large)


def _excerpt(match: re.Match[str]) -> str:
    """The text that `match` found, with up to 20 characters before and after it."""
    return match.string[max(0, match.start() - 20) : match.end() + 20].strip()


# Mistakes with tables: tables read as plain text, and columns of numbers or names read as sentences.

LARGE_SHARE = 0.5  # a text in which a larger fraction of the lines are numbers or names is not sentences
LONGEST_SHOWN = 20  # largest number of characters of a column that messages show

# Numbers, names such as doc-12, and URLs. Numbers and names must contain a digit: without this rule, a sentence that is
# written without spaces would match.
LABEL = re.compile(r"[!-~]*[0-9][!-~]*|https?://[!-~]+")


def advice_on_table(file: Path, lines: Sequence[str], is_test_set: bool) -> str | None:
    """Advice if `file` is a table, of which each row would be read as one sentence; else `None`.

    `lines` are the first lines of the file. With `is_test_set=True`, the advice is to extract columns into files, since
    a test set cannot be given as columns of a table.
    """
    lines = lines[:FIRST_LINES]
    num_columns = lines[0].count("\t") + 1 if lines else 0
    if len(lines) >= LEAST_ROWS and num_columns > 1 and {line.count("\t") + 1 for line in lines} == {num_columns}:
        found = f"has {num_columns} columns in each line, which is read as one sentence: {_shown(lines[-1])}"
        first, second = sentence_columns(lines) or (1, 2)
        if is_test_set:
            commands = "; ".join(
                f"{read_command(file, column)} > {_column_file(file, column)}" for column in (first, second)
            )
            return f"{found}; make a file of each column that is wanted: {commands}"
        return f"{found}; for columns {first} and {second} say {{tsv: {file}, columns: [{first}, {second}]}}"
    if lines and (is_named_csv(file) or csv_separator(lines)):
        return advice_on_csv(file, lines)
    return None


def advice_on_labels(column: int | None, lines: Sequence[str], rows: Sequence[str]) -> str | None:
    """Advice if most of `lines` are numbers or names (such as doc-12) instead of sentences; else `None`.

    If `lines` are a column of a table, `column` is the number of that column and `rows` are rows of the table.
    Otherwise, `column` is `None`.
    """
    written = [line.strip() for line in lines if line.strip()]
    labels = [line for line in written if LABEL.fullmatch(line)]
    if len(written) < LEAST_ROWS or len(labels) <= LARGE_SHARE * len(written):
        return None
    found = f'{len(labels):,} of the {len(written):,} lines looked at are numbers or names such as "{labels[0]}"'
    if column is None:
        return f"{found}; name a file of sentences"
    others = sentence_columns(rows)
    example = f", such as columns: [{others[0]}, {others[1]}]" if others else ""
    return f"{found}; choose the columns of source and target{example}; a row is {_shown(rows[-1])}"


def sentence_columns(rows: Sequence[str]) -> tuple[int, int] | None:
    """The numbers, from 1, of the first two columns that hold sentences; `None` if there are fewer than two.

    A column holds sentences if at least half of its texts are neither numbers nor names (such as doc-12).
    """
    columns = list(zip(*(row.split("\t") for row in rows), strict=False))
    found = [
        number
        for number, texts in enumerate(columns, start=1)
        if sum(bool(LABEL.fullmatch(text.strip())) for text in texts) <= LARGE_SHARE * len(texts)
    ]
    return (found[0], found[1]) if len(found) > 1 else None


def _column_file(file: Path, column: int) -> str:
    return shlex.quote(str(file.with_name(f"{decompressed_path(file).stem}.column{column}")))


def _shown(row: str) -> str:
    """Returns the columns of `row`, a line with tabs, joined by " | " for messages.

    Columns longer than LONGEST_SHOWN are shortened.
    """
    texts = [text.strip() for text in row.split("\t")]
    return " | ".join(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…" for text in texts)


# Mistakes in parallel text: a header line that is read as a pair, and a source that is identical to the target.

NUM_NAMED = 3  # number of warnings of each kind that are shown; further ones are only counted
# If more than this fraction of the pairs are copies, a warning says so. Khayrallah & Koehn (2018) measured that so many
# copies already harm a model.
COPIED_SHARE = 0.1

# Words that occur in column names.
COLUMN_WORDS = (
    "source sources src target targets tgt trg text texts sentence sentences segment line lines string translation "
    "translations translated original input output reference references hypothesis column col lang language "
    "id ids idx index num score scores similarity"
)
# ISO 639-1 language codes, which are common column names, too.
LANGUAGE_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv "
    "ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne "
    "ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st "
    "su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
LANGUAGE_NAMES = (
    "afrikaans albanian amharic arabic armenian basque belarusian bengali bosnian bulgarian burmese catalan chinese "
    "croatian czech danish dutch english esperanto estonian finnish french galician georgian german greek gujarati "
    "hausa hebrew hindi hungarian icelandic igbo indonesian irish italian japanese kannada kazakh khmer korean kurdish "
    "lao latin latvian lithuanian macedonian malay malayalam maltese marathi mongolian nepali norwegian pashto persian "
    "polish portuguese punjabi romanian russian serbian sinhala slovak slovenian somali spanish swahili swedish tamil "
    "telugu thai tibetan turkish ukrainian urdu uzbek vietnamese welsh xhosa yoruba zulu"
)


class Oversights:
    """Collects warnings about header lines, and about sources identical to their targets, while text is read."""

    def __init__(self, languages: LanguagesConfig, is_copying_dropped: bool) -> None:
        """`is_copying_dropped` tells whether training drops pairs whose source and target are identical.

        If training drops these pairs, training text needs no warning about them. The codes in `languages` are likely
        names of columns in a header line.
        """
        self._codes = {languages.source.lower(), languages.target.lower()} | set(LANGUAGE_CODES.split())
        self._is_copying_dropped = is_copying_dropped
        self._headers: list[str] = []
        self._copies: list[str] = []

    def watched(self, name: str, files: Iterable[Path], pairs: Iterable[Pair], trains: bool) -> Iterator[Pair]:
        """Yields `pairs` unchanged, while looking for header lines and copies.

        After the last pair, `warnings` returns what was found. `name` and `files` identify the text in the warnings;
        `trains` means that the text is used for training.
        """
        files = list(dict.fromkeys(files))
        where = " and ".join(map(str, files))
        num_equal = num_pairs = 0
        for source, target in pairs:
            if not num_pairs and (advice := self.advice_on_header(files, source, target)):
                self._headers.append(f"{name}: {advice}")
            num_pairs += 1
            num_equal += source.strip().casefold() == target.strip().casefold() != ""
            yield source, target
        if num_equal > COPIED_SHARE * num_pairs and num_pairs > 1 and not (trains and self._is_copying_dropped):
            then = "the model learns to copy" if trains else "copying is measured"
            self._copies.append(
                f"{name}: {where}: source and target are the same in {num_equal:,} of {num_pairs:,} pairs "
                f"({num_equal / num_pairs:.1%}), so {then}; name the file of the translation"
                + (", or leave such pairs out with data.drop_identical: true" if trains else "")
            )

    def advice_on_header(self, files: Sequence[Path], source: str, target: str) -> str | None:
        """Advice if `source` and `target`, the first pair of `files`, look like names of columns; else `None`."""
        if not self._is_header(source, target):
            return None
        return (
            f"line 1 of {' and '.join(map(str, files))}, {source.strip()} / {target.strip()}, looks like the names of "
            f"columns, and is read as a pair; delete it: {_deleting(files)}"
        )

    def warnings(self) -> Iterator[str]:
        """Yields warnings about header lines, then warnings about sources identical to their targets.

        Of each kind, only the first NUM_NAMED warnings are given; one more line tells the number of the others, if any.
        """
        for found in (self._headers, self._copies):
            yield from (f"mtkit: warning: {text}" for text in found[:NUM_NAMED])
            if len(found) > NUM_NAMED:
                yield f"mtkit: warning: the same for {counted(len(found) - NUM_NAMED, 'more file')}"

    def _is_header(self, source: str, target: str) -> bool:
        if source == target and not set(source.strip().strip("\"'").lower().split()) <= set(COLUMN_WORDS.split()):
            return False  # may be a word or name that is the same in both languages
        return self._names_column(source) and self._names_column(target)

    def _names_column(self, text: str) -> bool:
        """Whether `text` looks like the name of a column, such as sentence1, text_en or eng_Latn."""
        text = text.strip().strip("\"'").lower()
        if text in self._codes or re.fullmatch(r"[a-z]{3}[_-](arab|cyrl|deva|ethi|grek|hans|hant|hebr|latn)", text):
            return True
        words = re.findall(r"[^\W\d_]+", text)
        known = {*COLUMN_WORDS.split(), *LANGUAGE_NAMES.split()}
        return bool(words) and any(word in known for word in words) and set(words) <= known | self._codes


def _deleting(files: Sequence[Path]) -> str:
    """Shell commands that delete the first line of each of `files`.

    A compressed file is left as it is; the commands write a decompressed file instead, named without .gz or the like.
    The text ends with the names of these new files, for the reader to put into the settings.
    """
    plain = [shlex.quote(str(file)) for file in files if not read_command(file)]
    compressed = [file for file in files if read_command(file)]
    commands = [f"sed -i 1d {' '.join(plain)}"] if plain else []
    for file in compressed:
        commands.append(f"{read_command(file)} | sed 1d > {shlex.quote(str(decompressed_path(file)))}")
    renamed = f", and name {' and '.join(str(decompressed_path(file)) for file in compressed)}" if compressed else ""
    return "; ".join(commands) + renamed


# Shell commands that clean up text.

# Shell commands that decompress a file to standard output, by file name extension.
DECOMPRESS = {".gz": "gzip -cd", ".bz2": "bzip2 -cd", ".xz": "xz -cd", ".zst": "zstd -cd", ".zip": "unzip -p"}


def read_command(path: Path, column: int | None = None) -> str:
    """Shell command that writes the decompressed text of a file, or one column of it, to standard output.

    Returns "" if the file is not compressed and `column` is `None`: then no such command is needed.
    """
    file = shlex.quote(str(path))
    command = DECOMPRESS.get(path.suffix.lower())
    decompress = f"{command} {file}" if command else ""
    if column is None:
        return decompress
    return f"{decompress} | cut -f {column}" if decompress else f"cut -f {column} {file}"


def cleaning_command(path: Path, column: int | None, filters: Sequence[str], language: str) -> str:
    """Shell command that pipes the text of a file through `filters` into a new file in the same folder.

    `filters` are shell commands. If `column` is given, only this column is used, and the name of the new file ends in
    `language`, a language code.
    """
    plain = decompressed_path(path)
    name = f"{plain.stem}.plain{plain.suffix}" if column is None else f"{plain.stem}.plain.{language}"
    first = read_command(path, column)
    piped = " | ".join([first, *filters] if first else [f"{filters[0]} < {shlex.quote(str(path))}", *filters[1:]])
    return f"{piped} > {shlex.quote(str(plain.with_name(name)))}"


def decompressed_path(path: Path) -> Path:
    """The path of a file after decompression, that is, without the extension of the compression, if any."""
    return path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
