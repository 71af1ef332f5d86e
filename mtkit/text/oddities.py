"""Detects text that is not plain sentences, and suggests shell commands that correct it.

Detects text that other tools have tokenised, cut into subwords, escaped or lower-cased; tables; header lines; and
parallel text whose source and target are identical.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mtkit.config.data_settings import LanguagesConfig
from mtkit.errors import counted
from mtkit.text.lines import FIRST_LINES, LEAST_ROWS, advice_on_csv, csv_separator, is_named_csv
from mtkit.text.parallel import Pair

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
    """Yields (line number, line) for a sample of the first `most` lines, or pairs; numbers begin at 1.

    The sample has the first `leading` lines. Then it takes every second line until it has taken `leading` / 2 lines,
    then every fourth line until it has taken another `leading` / 2 lines, then every eighth, and so on.
    """
    numbered = enumerate(islice(lines, most), start=1)
    yield from islice(numbered, leading)
    step = 2
    while part := list(islice(numbered, 0, leading // 2 * step, step)):
        yield from part
        step *= 2


def findings(lines: Iterable[tuple[int, str]]) -> list[Finding]:
    """The signs that occur in many of `lines` (at least two), in the order of SIGNS.

    `lines` are pairs of a line number and a line. If the text turns out to be cut into subwords, the subwords are
    joined before the text is searched for the later signs.
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
    """The fraction of capitals among the letters that have case.

    If fewer than LEAST_LETTERS letters, or fewer than half of all letters, have case, returns `None`.
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

LARGE_SHARE = 0.5  # of lines that are numbers or names; a text with a larger share is not sentences
LONGEST_SHOWN = 20  # largest number of characters of a column that messages show

# Numbers, names such as doc-12, and URLs. Numbers and names must contain a digit: without this rule, a sentence that is
# written without spaces would match.
LABEL = re.compile(r"[!-~]*[0-9][!-~]*|https?://[!-~]+")


def advice_on_table(file: Path, lines: Sequence[str], is_test_set: bool) -> str | None:
    """Advice if a file is a table, each row of which would be read as one sentence; else `None`.

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
    """Advice if most lines of a text are numbers or names (such as doc-12) instead of sentences; else `None`.

    If the text is a column of a table, `column` is the number of that column and `rows` are rows of the table.
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
    """The columns of `row` for messages, joined by " | "; columns longer than LONGEST_SHOWN are shortened."""
    texts = [text.strip() for text in row.split("\t")]
    return " | ".join(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…" for text in texts)


# Mistakes in parallel text: a header line that is read as a pair, and a source that is identical to the target.

NUM_NAMED = 3  # number of warnings of each kind that are shown; further ones are only counted
COPIED_SHARE = 0.1  # of pairs; Khayrallah & Koehn (2018) measured that so many copies already harm a model

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

        If training drops these pairs, training text needs no warning about them.
        """
        self._codes = {languages.source.lower(), languages.target.lower()} | set(LANGUAGE_CODES.split())
        self._is_copying_dropped = is_copying_dropped
        self._headers: list[str] = []
        self._copies: list[str] = []

    def watched(self, name: str, files: Iterable[Path], pairs: Iterable[Pair], trains: bool) -> Iterator[Pair]:
        """Yields `pairs` unchanged and checks them; call `warnings` when all pairs have been read.

        `name` and `files` identify the text in the warnings; `trains` means that the text is used for training.
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
        """Advice if the first pair of the files looks like the names of columns; else `None`."""
        if not self._is_header(source, target):
            return None
        return (
            f"line 1 of {' and '.join(map(str, files))}, {source.strip()} / {target.strip()}, looks like the names of "
            f"columns, and is read as a pair; delete it: {_deleting(files)}"
        )

    def warnings(self) -> Iterator[str]:
        """Yields the first NUM_NAMED warnings of each kind, and a line with the number of further warnings, if any.

        The kinds are header lines and sources identical to their targets.
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
    """Shell commands that delete the first line of each file, and the file names to use in the settings afterwards.

    In place of a compressed file, the commands write a decompressed file, whose name lacks the extension of the
    compression.
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
    """Shell command that writes a file, or only one column of it, to standard output.

    Returns "" if the file is not compressed and `column` is `None`, since other commands can then read the file itself.
    """
    file = shlex.quote(str(path))
    command = DECOMPRESS.get(path.suffix.lower())
    decompress = f"{command} {file}" if command else ""
    if column is None:
        return decompress
    return f"{decompress} | cut -f {column}" if decompress else f"cut -f {column} {file}"


def cleaning_command(path: Path, column: int | None, filters: Sequence[str], language: str) -> str:
    """Shell command that pipes a file, or only one column of it, through `filters` into a new file in the same folder.

    If `column` is given, the new file has the language code as its extension.
    """
    plain = decompressed_path(path)
    name = f"{plain.stem}.plain{plain.suffix}" if column is None else f"{plain.stem}.plain.{language}"
    first = read_command(path, column)
    piped = " | ".join([first, *filters] if first else [f"{filters[0]} < {shlex.quote(str(path))}", *filters[1:]])
    return f"{piped} > {shlex.quote(str(plain.with_name(name)))}"


def decompressed_path(path: Path) -> Path:
    """The path of a file after decompression, that is, without the extension of the compression, if any."""
    return path.with_suffix("") if path.suffix.lower() in DECOMPRESS else path
