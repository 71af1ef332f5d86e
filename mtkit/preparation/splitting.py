"""Splits sentence pairs into training, validation and test text, keeping near-duplicates together; for `mtkit new`.

The pairs come from text files, tables, TMX or JSON lines. The files are read twice: once to compare the pairs, of which
keys and signatures of about 150 bytes a pair are kept in memory, and once to write them.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtkit.config.data_settings import LanguagesConfig
from mtkit.errors import DataError, Meter, MtkitError, counted
from mtkit.text.compressed import open_to_read
from mtkit.text.lines import FIRST_LINES, advice_on_csv, read_columns, read_lines, read_pairs, require_file
from mtkit.text.oddities import LANGUAGE_CODES, Oversights, decompressed_path, sentence_columns
from mtkit.text.parallel import Pair
from mtkit.text.records import has_records, read_records

Languages = tuple[str, str]  # the codes of source and target

CODES = frozenset(LANGUAGE_CODES.split())
HEAD_BYTES = 1 << 16  # of a TMX file or JSON lines, in which languages are looked for

# Finding the pairs.


@dataclass(frozen=True)
class Input:
    """A source file and its target file, or one file with both sides: a table, TMX or JSON lines."""

    paths: tuple[Path, ...]
    columns: tuple[int, int] = (1, 2)  # of source and target in a table or in records that name no languages

    def pairs(self, languages: Languages | None, on_lacking: Callable[[int], None] | None = None) -> Iterator[Pair]:
        """Yields the pairs; in TMX and JSON lines, `languages` chooses the sides. Raises DataError for bad text.

        `on_lacking` is called with the line of each unit of TMX that lacks one of the languages.
        """
        if len(self.paths) == 2:
            return read_pairs(*self.paths)
        [path] = self.paths
        if has_records(path):
            records = read_records(path, languages, self.columns == (2, 1), on_lacking)
            return ((record.source, record.target) for record in records)
        return read_columns(path, *self.columns)

    @property
    def name(self) -> str:
        """The names of the files for messages."""
        return " and ".join(map(str, self.paths))


def find_inputs(files: Sequence[Path]) -> list[Input]:
    """Returns where the pairs are in files and folders.

    Two text files are source and target. Text files in a folder are paired by their names, which differ in the language
    alone. Raises DataError for a file without a counterpart, and for pipes, which cannot be read twice.
    """
    paths = [path for file in files for path in _files_of(file)]
    for path in paths:
        require_file(path)
    if len(files) == len(paths) == 2 and not any(map(_is_single, paths)):
        return [Input((paths[0], paths[1]))]
    found = [Input((path,), _columns(path)) for path in paths if _is_single(path)]
    return [*found, *_paired([path for path in paths if not _is_single(path)])]


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: is an empty folder; wants files with sentence pairs")
    return files


def _is_single(path: Path) -> bool:
    """Whether a file holds both sides: TMX, JSON lines, or a table.

    A file counts as a table if its first FIRST_LINES lines, blank ones aside, all have the same number of tabs, which
    is not 0.
    """
    if has_records(path):
        return True
    tabs = {line.count("\t") for line in islice(read_lines(path), FIRST_LINES) if line.strip()}
    return len(tabs) == 1 and tabs != {0}


def _columns(path: Path) -> tuple[int, int]:
    if has_records(path):
        return 1, 2
    return sentence_columns(list(islice(read_lines(path), FIRST_LINES))) or (1, 2)


def _words(path: Path) -> list[str]:
    """Returns the parts of a file's name, without the extension of a compression."""
    return re.split(r"[._-]", decompressed_path(path).name)


def _paired(paths: Sequence[Path]) -> list[Input]:
    """Pairs text files in the same folder whose names are the same but for a language code.

    In each pair, the file that comes first in `paths` is the source. Raises DataError for a file that has no
    counterpart, or several.
    """
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        words = _words(path)
        place = next((index for index in reversed(range(len(words))) if words[index].lower() in CODES), len(words))
        groups.setdefault((str(path.parent), *words[:place], "", *words[place + 1 :]), []).append(path)
    for group in groups.values():
        if len(group) != 2:
            what = "has no other side" if len(group) == 1 else f"has several: {', '.join(map(str, group[1:]))}"
            lines = list(islice(read_lines(group[0]), FIRST_LINES))
            if lines and (advice := advice_on_csv(group[0], lines)):
                raise DataError(f"{group[0]}: {advice}")
            raise DataError(
                f"{group[0]}: {what}; wants a file of each language, such as news.fr and news.en, or one with tabs"
            )
    return [Input((group[0], group[1])) for group in groups.values()]


def ordered(inputs: Sequence[Input], languages: Languages) -> list[Input]:
    """Returns the inputs, with files or columns exchanged where names show that they are in the other order."""
    return [_exchanged(each) if _languages_of(each) == (languages[1], languages[0]) else each for each in inputs]


def _exchanged(each: Input) -> Input:
    """Returns the input with source and target exchanged.

    Records that name their languages are read as before, since there the languages choose the sides.
    """
    return Input(each.paths[::-1], each.columns[::-1])


def languages_of(inputs: Sequence[Input]) -> Languages | None:
    """Returns the languages that all inputs tell; `None` if one tells none, or another pair.

    They are told by the names of the files, the first row of a table, or the records themselves. If only the order
    differs between inputs, that of the first input counts. Tables and records come first, since the order of text files
    in a folder means nothing.
    """
    found = [_languages_of(each) for each in inputs]
    return found[0] if len({frozenset(each or ()) for each in found}) == 1 else None


def _languages_of(each: Input) -> Languages | None:
    if found := _named_languages(each):
        return found
    if len(each.paths) == 2:
        return None
    if has_records(each.paths[0]):
        return _recorded_languages(each.paths[0])
    first = next(iter(each.pairs(None)), ("", ""))
    codes = first[0].strip().lower(), first[1].strip().lower()
    return codes if codes[0] in CODES and codes[1] in CODES else None


def _named_languages(each: Input) -> Languages | None:
    """Returns the languages that the names of files tell; `None` if they tell none.

    Two files tell the codes in which their names differ. A single file tells two codes that follow one another in its
    name or, if there are none, in the name of its folder, such as fr-en.
    """
    if len(each.paths) == 2:
        for source, target in zip(*(reversed(_words(path)) for path in each.paths), strict=False):
            if source != target:
                codes = source.lower(), target.lower()
                return codes if codes[0] in CODES and codes[1] in CODES else None
        return None
    path = each.paths[0]
    for name in (path.name, path.absolute().parent.name):
        words = re.split(r"[^a-z]+", name.lower())
        for source, target in reversed(list(pairwise(words))):  # the last two: my.de-en.tsv is not from my to de
            if source in CODES and target in CODES and source != target:
                return source, target
    return None


def _recorded_languages(path: Path) -> Languages | None:
    """Returns the languages of TMX or JSON lines if the beginning names exactly two, else `None`.

    They are in the order in which they first occur, so the source language in the header of a TMX file comes first. In
    JSON lines, they are keys of the first line, or of the object "translation" in it.
    """
    with open_to_read(path) as stream:
        head = stream.read(HEAD_BYTES)
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="ignore")
    if text.lstrip().startswith("<"):
        names = re.findall(r'(?:srclang|xml:lang|\blang)\s*=\s*["\']([a-z]{2})\b', text.lower())
    else:
        names = _keys_of_texts(text.lstrip().partition("\n")[0])
    codes = [name for name in dict.fromkeys(names) if name in CODES]
    return (codes[0], codes[1]) if len(codes) == 2 else None


def _keys_of_texts(line: str) -> list[str]:
    """Returns the keys of a line of JSON whose values are texts; [] if the line is no object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    row = row.get("translation", row) if isinstance(row, dict) else {}
    return [key.lower() for key, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []


# Duplicates, near and exact.

NGRAM = 5  # characters
NUM_HASHES, ROWS = 24, 4  # hash functions of a MinHash signature, and how many of them make a key
SIMILAR = 0.6  # estimated Jaccard similarity of the n-grams from which two sentences are near-duplicates
LEAST_CHARACTERS = 25  # shorter sentences, which often differ in one word, are compared as a whole alone
CHUNK_PAIRS = 10_000  # that are compared together
_HASHES = np.random.default_rng(0).integers(0, 2**63, (2, NUM_HASHES), dtype=np.uint64) | np.uint64(1)
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]
Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


def normalized(text: str) -> str:
    """Returns a text without case and punctuation, by which duplicates are recognised.

    A text without letters and digits keeps its characters; only the white space around it is removed.
    """
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split()) or text.strip()


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Returns the MinHash signatures of texts (N, NUM_HASHES), by their n-grams of characters (Broder 1997).

    The share of equal numbers in two signatures estimates the Jaccard similarity of both sets of n-grams. The numbers
    are the last 16 bits of the hashes (Li & König 2010).
    """
    padded = [text if len(text) >= NGRAM else text.ljust(NGRAM, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    grams = np.zeros(len(codes), np.uint64)
    for place in range(NGRAM):
        grams = grams * _PRIME + np.concatenate([codes[place:], np.zeros(place, np.uint64)])
    grams = (grams ^ (grams >> np.uint64(29))) * _PRIME
    is_whole = np.repeat(starts + lengths, lengths) - np.arange(len(codes)) >= NGRAM
    found = np.empty((len(texts), NUM_HASHES), np.uint16)
    for column in range(NUM_HASHES):
        hashes = grams * _HASHES[0, column] + _HASHES[1, column]
        hashes = np.where(is_whole, hashes ^ (hashes >> np.uint64(32)), np.uint64(2**64 - 1))
        found[:, column] = np.minimum.reduceat(hashes, starts).astype(np.uint16)
    return found


class _Side:
    """What is kept of one side of all pairs: a key of each normalised text, and its signature."""

    def __init__(self) -> None:
        self._keys: list[Keys] = []
        self._signatures: list[NDArray[np.uint16]] = []
        self._is_long: list[NDArray[np.bool_]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Add further texts."""
        short = [normalized(text) for text in texts]
        self._keys.append(np.array([_digest(text) for text in short], np.uint64))
        self._signatures.append(signatures(short))
        self._is_long.append(np.array([len(text) >= LEAST_CHARACTERS for text in short]))

    def edges(self, kept: NDArray[np.int64], near: bool) -> Iterator[Edges]:
        """Yields pairs of texts that are alike, as two arrays of indices into `kept`.

        `kept` has the places of the texts to compare. Texts are alike if their keys are equal. With `near`, texts of at
        least LEAST_CHARACTERS characters are also alike if their estimated similarity is at least SIMILAR; only texts
        whose signatures share a key of ROWS hashes are compared.
        """
        yield _neighbours(np.concatenate(self._keys)[kept])
        if not near:
            return
        found = np.concatenate(self._signatures)[kept]
        long = np.flatnonzero(np.concatenate(self._is_long)[kept])
        for first in range(0, NUM_HASHES, ROWS):
            key = np.ascontiguousarray(found[long, first : first + ROWS]).view(np.uint64)[:, 0]
            one, other = (long[side] for side in _neighbours(key))
            is_alike = (found[one] == found[other]).mean(axis=1) >= SIMILAR
            yield one[is_alike], other[is_alike]


def _neighbours(keys: Keys) -> Edges:
    """Returns, for each key that occurs again, its place and the place where it occurs next.

    These are two arrays of equal length.
    """
    order = np.argsort(keys, kind="stable")
    is_same = keys[order[1:]] == keys[order[:-1]]
    return order[:-1][is_same], order[1:][is_same]


def connected(count: int, edges: Iterable[Edges]) -> NDArray[np.int64]:
    """Returns the group of each of `count` items, where edges join items: the smallest number in the group."""
    ends = list(edges)
    one, other = (np.concatenate([edge[side] for edge in ends]) for side in (0, 1))
    labels = np.arange(count)
    while (labels[one] != labels[other]).any():
        first, second = labels[one], labels[other]
        least = np.minimum(first, second)
        np.minimum.at(labels, first, least)
        np.minimum.at(labels, second, least)
        while (labels != labels[labels]).any():
            labels = labels[labels]
    return labels


# The split.

SHARE, LEAST, MOST = 0.05, 50, 1000  # of the pairs that validation and test text hold each
FEWEST_PAIRS = 400  # that a training is started with
LARGEST_GROUP = 0.05  # of a held-out text that one group of near-duplicates may make up; larger ones stay in training

DROPPED, TRAIN, VALID, TEST = range(4)
NAMES = {TRAIN: "train", VALID: "valid", TEST: "test"}


@dataclass(frozen=True)
class Split:
    """What became of the pairs."""

    num_read: int
    dropped: dict[str, int]  # by reason
    sizes: dict[str, int]  # pairs of train, valid and test
    num_groups: int
    near: bool  # whether near-duplicates were kept together, not only equal sentences
    num_lacking: int = 0  # units of TMX that lack one of the languages, and are no pairs

    def told(self) -> str:
        """Returns the numbers in words."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)
        lost = f", {sum(self.dropped.values()):,} of them left out ({reasons})" if reasons else ""
        lacking = _lacking(self.num_lacking)
        return (
            f"{counted(self.num_read, 'pair')}{lost}{lacking}: {self.sizes['train']:,} for training, "
            f"{self.sizes['valid']:,} for validation, {self.sizes['test']:,} for testing"
        )


def _lacking(count: int) -> str:
    """Returns words on units of TMX that lack one of the languages, to follow a number of pairs."""
    return f", and {counted(count, 'unit')} without one of the languages" if count else ""


def held_out_size(num_pairs: int) -> int:
    """Returns how many pairs validation text and test text hold each."""
    return min(max(round(SHARE * num_pairs), LEAST), MOST)


def split_pairs(inputs: Sequence[Input], languages: Languages | None, folder: Path, seed: int) -> Split:
    """Writes train, valid and test, a file for each side, into `folder`; returns the numbers of pairs.

    Pairs of which a side is blank are left out, and so are repeated pairs and the header of a table. Which pairs are
    held out depends on the text and the seed alone. Raises DataError if the pairs are too few or too much alike.
    """
    read = _Reading(inputs, languages)
    kept = np.flatnonzero(read.is_kept)
    if len(kept) < FEWEST_PAIRS:
        raise DataError(
            f"{' and '.join(each.name for each in inputs)}: {counted(len(kept), 'usable pair')} of "
            f"{len(read.is_kept):,}{_lacking(read.num_lacking)}; a training wants {FEWEST_PAIRS} or more"
        )
    if not read.may_be_held_out[kept].any():
        raise DataError(
            f"{' and '.join(each.name for each in inputs)}: source and target are the same in all pairs; wants "
            "translations"
        )
    wanted = held_out_size(len(kept))
    for near in (True, False):
        labels = connected(len(kept), [edge for side in read.sides for edge in side.edges(kept, near)])
        chosen = _held_out(labels, read.may_be_held_out[kept], wanted, seed)
        if min((chosen == TEST).sum(), (chosen == VALID).sum()) >= max(wanted // 2, 1):
            break
    else:
        raise DataError(
            f"{' and '.join(each.name for each in inputs)}: nearly all sentences occur again and again, so that none "
            "can be held out; give other text, or write the YAML by hand"
        )
    assigned = np.zeros(len(read.is_kept), np.uint8)
    assigned[kept] = chosen
    _write(inputs, languages, folder, assigned)
    return Split(
        len(read.is_kept),
        dict(read.dropped),
        {name: int((chosen == part).sum()) for part, name in NAMES.items()},
        len(np.unique(labels)),
        near,
        read.num_lacking,
    )


class _Reading:
    """The first pass over all pairs: which are kept, and keys to compare them by."""

    def __init__(self, inputs: Sequence[Input], languages: Languages | None) -> None:
        self.dropped: Counter[str] = Counter()
        self.num_lacking = 0  # units of TMX
        self.sides = (_Side(), _Side())
        kept: list[NDArray[np.bool_]] = []
        differs: list[NDArray[np.bool_]] = []
        digests: list[Keys] = []
        with Meter("reading", "pairs") as meter:
            for chunk in _chunks(meter.counting(_all_pairs(inputs, languages, self._count_lacking))):
                kept.append(np.array([not self._fault(pair, is_first) for pair, is_first in chunk]))
                differs.append(np.array([one.casefold() != other.casefold() for (one, other), _ in chunk]))
                digests.append(np.array([_digest("\n".join(pair)) for pair, _ in chunk], np.uint64))
                for place, side in enumerate(self.sides):
                    side.add([pair[place] for pair, _ in chunk])
        if not kept:
            raise DataError(f"{' and '.join(each.name for each in inputs)}: holds no pairs{_lacking(self.num_lacking)}")
        self.is_kept = np.concatenate(kept)
        self.may_be_held_out = np.concatenate(differs)  # a copy of the source tells nothing of translation
        places = np.flatnonzero(self.is_kept)
        _, first = np.unique(np.concatenate(digests)[places], return_index=True)
        is_first = np.zeros(len(places), np.bool_)
        is_first[first] = True
        self.dropped["repeated"] = int((~is_first).sum())
        self.is_kept[places[~is_first]] = False

    def _count_lacking(self, line: int) -> None:
        self.num_lacking += 1

    def _fault(self, pair: Pair, is_first: bool) -> str | None:
        fault = "blank" if not (pair[0].strip() and pair[1].strip()) else None
        if is_first and _is_header(pair):
            fault = "header"
        if fault:
            self.dropped[fault] += 1
        return fault


def _is_header(pair: Pair) -> bool:
    return Oversights(LanguagesConfig(), is_copying_dropped=True).advice_on_header((), *pair) is not None


def _all_pairs(
    inputs: Sequence[Input], languages: Languages | None, on_lacking: Callable[[int], None] | None = None
) -> Iterator[tuple[Pair, bool]]:
    """Yields all pairs, and whether each is the first of its input."""
    for each in inputs:
        yield from ((pair, number == 0) for number, pair in enumerate(each.pairs(languages, on_lacking)))


def _chunks(pairs: Iterable[tuple[Pair, bool]]) -> Iterator[list[tuple[Pair, bool]]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK_PAIRS)):
        yield chunk


def _held_out(labels: NDArray[np.int64], may_be: NDArray[np.bool_], wanted: int, seed: int) -> NDArray[np.uint8]:
    """Returns TRAIN, VALID or TEST for each pair; pairs with equal labels stay together.

    VALID and TEST get at most `wanted` pairs each, in groups that `seed` chooses. A group stays in TRAIN if it is too
    large (LARGEST_GROUP), or if `may_be` is False for one of its pairs.
    """
    groups, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    is_fit = sizes <= max(1, int(LARGEST_GROUP * wanted))
    is_fit[numbers[~may_be]] = False
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[is_fit[order]]
    of_group = np.full(len(groups), TRAIN, np.uint8)
    ends = np.cumsum(sizes[order])
    of_group[order[ends <= wanted]] = TEST
    begun = ends[ends <= wanted][-1] if (ends <= wanted).any() else 0
    of_group[order[(ends > begun) & (ends <= begun + wanted)]] = VALID
    return of_group[numbers]


def _write(inputs: Sequence[Input], languages: Languages | None, folder: Path, assigned: NDArray[np.uint8]) -> None:
    """The second pass: writes each pair to the files of its part."""
    endings = file_endings(languages)
    with ExitStack() as stack:
        files = {
            part: [stack.enter_context((folder / f"{name}.{ending}").open("wb")) for ending in endings]
            for part, name in NAMES.items()
        }
        pairs = _all_pairs(inputs, languages)
        num_written = 0
        for part, (pair, _) in zip(assigned.tolist(), pairs, strict=False):
            num_written += 1
            if part:
                for file, text in zip(files[part], pair, strict=True):
                    file.write(f"{text}\n".encode(errors="replace"))
        if num_written != len(assigned) or next(pairs, None) is not None:
            raise MtkitError(f"{' and '.join(each.name for each in inputs)}: changed while it was read; start again")


def file_endings(languages: Languages | None) -> Languages:
    """Returns the extensions of the files of both sides: the codes of the languages, or source and target."""
    return ("source", "target") if languages is None or languages[0] == languages[1] else languages
