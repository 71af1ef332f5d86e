"""Signs that text is not plain: cut into subwords, tokenised, escaped or lower-cased by other tools."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

MOST_LINES = 1_000_000  # lines of a file among which a sample is taken
FIRST_LINES = 2048  # lines at the beginning of a file that are all in the sample

MOSES = "Moses or a tool like it"

LEAST_LETTERS = 200  # with case, that tell whether a text is lower-cased
LOWER_CASED = 0.0005  # share of capitals among letters up to which a text counts as lower-cased
CASED = 0.005  # and from which it counts as cased; text of sentences has 2 % or more


@dataclass(frozen=True)
class Sign:
    """Something that plain text does not have."""

    kind: str  # completes "looks …"
    by: str  # the tool that did it
    pattern: re.Pattern[str]
    share: float  # more lines than this share have it where the text was processed
    cure: str  # a filter of the shell, in which LANG stands for the code of the language
    setting: str = ""  # the setting that suits such text
    undone: tuple[tuple[str, str], ...] = ()  # patterns and replacements that undo it, where it hides other signs


# Raw text of 21 languages has the marks of subwords and escapes in at most 0.2 % of its lines, and the spaces of
# tokenised text in at most 2 %; tokenised text has them in 80 % or more. Spaces before ? ! ; and : are good French.
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
        re.compile(r'^"(?=[^"]*"")(?:[^"]|"")*"$'),  # only lines with quotes in them are
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
    """A sign that text shows."""

    sign: Sign
    line: int  # where it is, from 1
    excerpt: str
    count: int  # lines that have it
    num_lines: int  # lines that were looked at, blank ones aside


def sample(lines: Iterable[str], most: int = MOST_LINES) -> Iterator[tuple[int, str]]:
    """Numbers and lines: the first ones, then fewer and fewer up to a last one."""
    numbered = enumerate(islice(lines, most), start=1)
    yield from islice(numbered, FIRST_LINES)
    step = 2
    while part := list(islice(numbered, 0, FIRST_LINES // 2 * step, step)):
        yield from part
        step *= 2


def findings(lines: Iterable[tuple[int, str]]) -> list[Finding]:
    """The signs that many of these numbered lines show; one line alone is no habit.

    Where the text is cut into subwords, the signs after that are those of its words, joined again.
    """
    texts = [(number, text) for number, line in lines if (text := line.rstrip())]
    found: list[Finding] = []
    for sign in SIGNS:
        if finding := _finding(sign, texts):
            found.append(finding)
            for pattern, replacement in sign.undone:
                texts = [(number, re.sub(pattern, replacement, text)) for number, text in texts]
    # Detokenising also undoes the escapes that tokenising made.
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
    """Share of capitals among the letters; None where too few letters have case to tell."""
    text = "".join(lines)
    letters = [character for character in text if character.isalpha()]
    # Georgian has capitals in Unicode, but its sentences do not.
    small = sum(character.islower() and not "ა" <= character <= "ჿ" for character in letters)
    large = sum(map(str.isupper, letters))
    if small + large < max(LEAST_LETTERS, len(letters) / 2):
        return None
    return large / (small + large)


def _excerpt(match: re.Match[str]) -> str:
    """What stands around a match."""
    return match.string[max(0, match.start() - 20) : match.end() + 20].strip()
