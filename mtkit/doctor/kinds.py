"""The kinds of faults that parallel text has, what each costs, how it is mended; and the findings of an examination."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NUM_EXAMPLES = 5  # of each kind

MENDED, DROPPED = "mended", "dropped"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it is, what it costs, what mends it, and how many are too many.

    Training should not start if the share of pairs with the fault is `stops_at` or more.
    """

    title: str
    cost: str
    cure: str
    cleaned: str | None = None  # what `mtkit clean` does with such pairs
    stops_at: float | None = None  # share of the pairs; 0: one is enough; None: never
    # A smaller share is not reported: among so few, most are pairs that only look like this.
    least_share: float = 0.0


CLEAN = "mtkit clean"

# In the order in which they are reported, and in which a pair is judged when it is cleaned.
KINDS: dict[str, Kind] = {
    "unequal lines": Kind(
        "The files have different numbers of lines",
        "pairs after the missing line are not translations of each other; binarize refuses the files",
        "fetch the files again, or look for the missing line where the sides slip",
        stops_at=0,
    ),
    "slip": Kind(
        "The sides slip out of alignment",
        "every pair from there on teaches a wrong translation",
        "delete the extra line, or insert the missing one, at the line that is named",
        stops_at=0,
    ),
    "not UTF-8": Kind(
        "Bytes that are not UTF-8",
        "binarize refuses the file",
        "convert it from its encoding: iconv -f WINDOWS-1252 -t UTF-8 FILE",
        stops_at=0,
    ),
    "table": Kind(
        "The file is a table, or no sentences",
        "each row is read as one sentence",
        "name the columns, as the example says",
        stops_at=0,
    ),
    "processed text": Kind(
        "Text that was tokenised, cut into subwords or escaped",
        "translations come out in the same form, and scores are not those of plain text",
        "the command in the example undoes it",
    ),
    "header": Kind(
        "A line of column names, read as a pair",
        "one wrong pair",
        "the command in the example deletes it",
    ),
    "lacking side": Kind(
        "Units of TMX without one of the two languages",
        "they are skipped",
        "nothing, if the file has more than two languages; else --languages, such as fr-en",
    ),
    "blank side": Kind(
        "A side is blank",
        "such pairs are left out of training; many of them mean that text was lost",
        f"nothing, or {CLEAN}",
        DROPPED,
        stops_at=0.5,
    ),
    "replacement characters": Kind(
        "Characters lost in an earlier conversion (U+FFFD)",
        "the model learns to write U+FFFD",
        f"make the text again from its source, or {CLEAN}",
        DROPPED,
        stops_at=0.05,
    ),
    "mojibake": Kind(
        "UTF-8 that was read as another encoding (Ã© for é)",
        "words are split into two spellings, and the model writes the broken one",
        CLEAN,
        MENDED,
        stops_at=0.05,
    ),
    "private-use characters": Kind(
        "Private-use characters",
        "they mean something in one font alone, and take up vocabulary",
        CLEAN,
        DROPPED,
        stops_at=0.5,
    ),
    "control characters": Kind(
        "Control and invisible characters",
        "words that look the same have different spellings",
        CLEAN,
        MENDED,
        stops_at=0.5,
    ),
    "spaces": Kind(
        "Odd, doubled, leading or trailing spaces",
        "nothing with the default tokenizer.normalization, which mends them",
        f"nothing, or {CLEAN}",
        MENDED,
    ),
    "not NFC": Kind(
        "Letters with separate accents beside composed ones (NFD beside NFC)",
        "nothing with the default tokenizer.normalization; with identity, one word has two spellings",
        f"tokenizer.normalization: nmt_nfkc, or {CLEAN}",
        MENDED,
    ),
    "markup": Kind(
        "Tags and entities of HTML or XML",
        "the model writes tags and entities of its own",
        f"{CLEAN}, unless translations need the tags",
        MENDED,
        stops_at=0.5,
    ),
    "identical": Kind(
        "Source and target are the same",
        "the model learns to copy; a tenth of such pairs does visible harm (Khayrallah & Koehn, 2018)",
        f"data.drop_identical: true, or {CLEAN}",
        DROPPED,
        stops_at=0.1,
    ),
    "no words": Kind(
        "A side is symbols, digits or addresses alone",
        "little, but such pairs are often wrong",
        f"data.min_letters: 0.3, or {CLEAN}",
        DROPPED,
    ),
    "wrong script": Kind(
        "A side is mostly in another script than the rest",
        "the model learns from the wrong language",
        f"data.source_script and data.target_script, or {CLEAN}",
        DROPPED,
        stops_at=0.1,
    ),
    "swapped": Kind(
        "Source and target have changed places",
        "the model learns to translate backwards",
        CLEAN,
        MENDED,
        stops_at=0.1,
        least_share=0.001,
    ),
    "wrong language": Kind(
        "A side is in another language than the rest",
        "the model translates into the wrong language at times",
        CLEAN,
        DROPPED,
        stops_at=0.1,
        least_share=0.001,
    ),
    "length ratio": Kind(
        "One side is far longer than usual for the other",
        "text is missing on a side, or repeated: the model learns to leave out, or to go on and on",
        f"a smaller data.max_length_ratio, or {CLEAN}",
        DROPPED,
        stops_at=0.2,
        least_share=0.001,
    ),
    "numbers differ": Kind(
        "The sides have different numbers",
        "the model learns not to trust numbers",
        CLEAN,
        DROPPED,
        stops_at=0.3,
        least_share=0.001,
    ),
    "addresses differ": Kind(
        "The sides have different URLs or e-mail addresses",
        "the model learns not to copy addresses",
        CLEAN,
        DROPPED,
        stops_at=0.3,
        least_share=0.001,
    ),
    "held out": Kind(
        "Validation or test pairs are in the training text",
        "the scores of these pairs are too good, and say nothing of new text",
        CLEAN,
        DROPPED,
        stops_at=0.01,  # of the held-out pairs
    ),
    "nearly held out": Kind(
        "Validation or test pairs are in the training text with small edits",
        "the scores of these pairs are better than those of new text",
        CLEAN,
        DROPPED,
        stops_at=0.05,  # of the held-out pairs
    ),
    "duplicate": Kind(
        "Pairs that occur again",
        "training sees them more often than the rest; little, if they are few",
        f"data.drop_duplicates: true, or {CLEAN}",
        DROPPED,
    ),
    "near duplicate": Kind(
        "Pairs that occur again with other case, punctuation or spaces",
        "training sees them more often than the rest; little, if they are few",
        CLEAN,
        DROPPED,
    ),
    "similar": Kind(
        "Pairs that occur again with a few other words or letters",
        "little; but a test set split from such text at random has similar pairs in training",
        "keep similar pairs on one side when you split off validation and test text",
        least_share=0.001,
    ),
}


@dataclass(frozen=True)
class Example:
    """A pair with a fault; or, with `text` alone, a fault of a file."""

    file: Path
    line: int | None
    source: str = ""
    target: str = ""
    text: str = ""

    @property
    def place(self) -> str:
        """The file and the line, such as train.fr:17."""
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Found:
    """How often a kind of fault was found, and the first examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, examples: Sequence[Example], count: int = 1) -> None:
        """Count `count` more, and keep those of the examples that are among the first NUM_EXAMPLES."""
        self.count += count
        self.examples += examples[: NUM_EXAMPLES - len(self.examples)]


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found: the number of pairs, and the faults of each kind in the order of KINDS."""

    num_pairs: int
    num_held_out: int
    files: tuple[Path, ...]
    found: dict[str, Found]
    notes: tuple[str, ...] = ()  # what could not be examined, and why

    @property
    def kinds(self) -> list[str]:
        """The kinds that are reported, in the order of KINDS: those that occur, and are not too rare to be believed."""
        return [name for name in KINDS if name in self.found and self._is_reported(name)]

    @property
    def stopping(self) -> list[str]:
        """The kinds because of which training should not start yet."""
        return [name for name in self.kinds if self.is_stopping(name)]

    def share(self, name: str) -> float:
        """The fraction of pairs that have the fault called `name`, at most 1.

        For "held out" and "nearly held out", it is a fraction of the held-out pairs.
        """
        total = self.num_held_out if name in ("held out", "nearly held out") else self.num_pairs
        return min(1.0, self.found[name].count / max(total, 1))

    def is_stopping(self, name: str) -> bool:
        """Whether training should not start before this fault is mended."""
        limit = KINDS[name].stops_at
        return limit is not None and self.share(name) >= limit

    def _is_reported(self, name: str) -> bool:
        count = self.found[name].count
        return count > 0 and (count >= 2 or not KINDS[name].least_share) and self.share(name) >= KINDS[name].least_share

    def as_json(self) -> dict[str, Any]:
        """The diagnosis as a value for JSON."""
        return {
            "files": [str(path) for path in self.files],
            "pairs": self.num_pairs,
            "held_out_pairs": self.num_held_out,
            "stops": self.stopping,
            "findings": [self._finding(name) for name in self.kinds],
            "notes": list(self.notes),
        }

    def _finding(self, name: str) -> dict[str, Any]:
        kind, found = KINDS[name], self.found[name]
        return {
            "kind": name,
            "title": kind.title,
            "count": found.count,
            "share": self.share(name),
            "stops": self.is_stopping(name),
            "cost": kind.cost,
            "cure": kind.cure,
            "examples": [_example(example) for example in found.examples],
        }


def _example(example: Example) -> dict[str, Any]:
    shown: dict[str, Any] = {"file": str(example.file), "line": example.line}
    if example.text:
        return {**shown, "text": example.text}
    return {**shown, "source": example.source, "target": example.target}
