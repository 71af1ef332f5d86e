"""`mtkit new`: makes settings for a good first model from files with sentence pairs, with a reason for each choice.

The rules are the tables SIZES and DROPOUTS; configs/README.md shows them beside the measurements that they come from.

The pairs come from text files, tables, TMX or JSON lines, and are split into training, validation and test text so that
near-duplicates stay together. The files are read twice: once to compare the pairs, by keys and signatures that take
about 150 bytes of memory for each pair, and once to write the pairs.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mtkit import __version__
from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.config.load import config_from_text
from mtkit.config.section import write_yaml
from mtkit.config.settings import Config
from mtkit.errors import DataError, Meter, MtkitError, counted, inform
from mtkit.files import replaced_directory, require_folder, write_file
from mtkit.models.registry import pick_device
from mtkit.text.lines import (
    FIRST_LINES,
    advice_on_csv,
    open_to_read,
    read_columns,
    read_lines,
    read_pairs,
    require_file,
)
from mtkit.text.parallel import (
    LANGUAGE_CODES,
    Oversights,
    Pair,
    decompressed_path,
    has_records,
    read_records,
    sentence_columns,
)

Languages = tuple[str, str]  # the codes of source and target

CODES = frozenset(LANGUAGE_CODES.split())
HEAD_BYTES = 1 << 16  # the languages of TMX or JSON lines are looked for in so many bytes

# Finding the pairs.


@dataclass(frozen=True)
class Input:
    """A source file and its target file, or one file with both sides: a table, TMX or JSON lines."""

    paths: tuple[Path, ...]
    columns: tuple[int, int] = (1, 2)  # of source and target in a table or in records that name no languages

    def pairs(self, languages: Languages | None, on_lacking: Callable[[int], None] | None = None) -> Iterator[Pair]:
        """Yields the pairs; in TMX and JSON lines, `languages` chooses the sides. Raises DataError for invalid text.

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
    """Returns the inputs found in `files`, a list of files and folders.

    An input is a source file and its target file, or one file with both sides. If `files` are just two text files, they
    are source and target. Otherwise, text files are paired by their names, which must differ only in the language code.
    Raises DataError for a file without a counterpart, and for pipes, which cannot be read twice.
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

    A file counts as a table if its first FIRST_LINES lines, except blank ones, all have the same number of tabs, at
    least one.
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
    """Splits a file's name, without an extension such as .gz, at each dot, hyphen and underscore."""
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
    """Returns the inputs, each with its sides in the order of `languages`, which is (source, target).

    If the languages of an input are in the opposite order, its two files or columns are exchanged.
    """
    return [_exchanged(each) if _languages_of(each) == (languages[1], languages[0]) else each for each in inputs]


def _exchanged(each: Input) -> Input:
    """Returns the input with source and target exchanged.

    For TMX and JSON lines that name their languages, this has no effect: their sides are chosen by language later.
    """
    return Input(each.paths[::-1], each.columns[::-1])


def languages_of(inputs: Sequence[Input]) -> Languages | None:
    """Returns the languages (source, target) of the inputs; `None` if they are unknown or differ between inputs.

    The languages are known from the names of the files, the first row of a table, or the records themselves. If only
    the order of the languages differs between inputs, the order in the first input counts. `find_inputs` puts tables
    and records first, since the order of text files in a folder means nothing.
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
    """Returns the languages (source, target) by the names of an input's files; `None` if the names have no codes.

    For two files, the languages are the codes in which the file names differ. For a single file, they are two
    neighbouring codes, such as fr-en, in the name of the file or, if it has no such codes, in the name of its folder.
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
    """Returns the languages named at the beginning of TMX or JSON lines; `None` unless there are exactly two.

    The languages are in the order in which they first occur, so the source language in the header of a TMX file comes
    first. In JSON lines, they are keys of the first line, or of the object "translation" in it.
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
    """Returns, in lower case, those keys of the JSON object in `line` whose values are strings.

    If the object has a key "translation", the keys of the object stored under it are returned instead. Returns [] if
    `line` holds no JSON object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return []
    row = row.get("translation", row) if isinstance(row, dict) else {}
    return [key.lower() for key, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []


# Duplicates, near and exact.

NGRAM = 5  # characters
NUM_HASHES, ROWS = 24, 4  # entries of a MinHash signature, and of a band of it
SIMILAR = 0.6  # estimated Jaccard similarity of the n-grams from which two sentences are near-duplicates
LEAST_CHARACTERS = 25  # shorter sentences often differ in one word only; they must be equal to be duplicates
CHUNK_PAIRS = 10_000  # whose signatures are computed together
_HASHES = np.random.default_rng(0).integers(0, 2**63, (2, NUM_HASHES), dtype=np.uint64) | np.uint64(1)
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Keys = NDArray[np.uint64]
Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


def normalized(text: str) -> str:
    """Returns a text in lower case and without punctuation, by which duplicates are recognised.

    A text without letters and digits keeps its characters; only the white space around it is removed.
    """
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split()) or text.strip()


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Returns the MinHash signatures of N texts (N, NUM_HASHES), from their character n-grams (Broder 1997).

    The share of equal numbers in two signatures estimates the Jaccard similarity of the two sets of n-grams. The
    numbers are the last 16 bits of the hashes (Li & König 2010).
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
    """One side of all pairs, as far as it is kept in memory: a key (hash) and a signature of each normalised text."""

    def __init__(self) -> None:
        self._keys: list[Keys] = []
        self._signatures: list[NDArray[np.uint16]] = []
        self._is_long: list[NDArray[np.bool_]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Adds the keys and signatures of further texts."""
        short = [normalized(text) for text in texts]
        self._keys.append(np.array([_digest(text) for text in short], np.uint64))
        self._signatures.append(signatures(short))
        self._is_long.append(np.array([len(text) >= LEAST_CHARACTERS for text in short]))

    def edges(self, kept: NDArray[np.int64], near: bool) -> Iterator[Edges]:
        """Yields pairs of duplicate texts, as two arrays of indices into `kept`; with `near`, also of near-duplicates.

        `kept` has the indices of the texts to compare. Duplicates are texts with equal keys. Near-duplicates are texts
        of at least LEAST_CHARACTERS characters whose estimated similarity is at least SIMILAR. They are looked for only
        among texts with an equal band (ROWS consecutive entries) of their signatures. Of several texts with equal keys
        or bands, each is paired only with the next.
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
    """Returns pairs of indices at which the same key occurs, as two arrays of equal length.

    Each occurrence of a key is paired with its next one, so a key that occurs n times gives n - 1 pairs.
    """
    order = np.argsort(keys, kind="stable")
    is_same = keys[order[1:]] == keys[order[:-1]]
    return order[:-1][is_same], order[1:][is_same]


def connected(count: int, edges: Iterable[Edges]) -> NDArray[np.int64]:
    """Returns the connected component of each item, as the smallest index in the component, (count).

    The items are numbered from 0 to `count` - 1; an edge joins two items.
    """
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

SHARE, LEAST, MOST = 0.05, 50, 1000  # validation and test text each have this share of the pairs, within limits
FEWEST_PAIRS = 400  # with fewer usable pairs, no settings are made
LARGEST_GROUP = 0.05  # a group of near-duplicates stays in training if it exceeds this share of a held-out text

DROPPED, TRAIN, VALID, TEST = range(4)
NAMES = {TRAIN: "train", VALID: "valid", TEST: "test"}


@dataclass(frozen=True)
class Split:
    """How many pairs were read, dropped, and put into training, validation and test text."""

    num_read: int
    dropped: dict[str, int]  # by reason
    sizes: dict[str, int]  # the numbers of pairs of "train", "valid" and "test"
    num_groups: int
    near: bool  # whether near-duplicates were kept together, not only equal sentences
    num_lacking: int = 0  # TMX units that lack one of the languages; not included in num_read

    def told(self) -> str:
        """Returns the numbers as text for messages, such as "900 pairs: 800 for training, 50 for validation, ..."."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)
        lost = f", {sum(self.dropped.values()):,} of them left out ({reasons})" if reasons else ""
        lacking = _lacking(self.num_lacking)
        return (
            f"{counted(self.num_read, 'pair')}{lost}{lacking}: {self.sizes['train']:,} for training, "
            f"{self.sizes['valid']:,} for validation, {self.sizes['test']:,} for testing"
        )


def _lacking(count: int) -> str:
    """Returns text on TMX units that lack one of the languages, to follow a number of pairs; "" if `count` is 0."""
    return f", and {counted(count, 'unit')} without one of the languages" if count else ""


def held_out_size(num_pairs: int) -> int:
    """Returns how many pairs are wanted for the validation text; as many again are wanted for the test text."""
    return min(max(round(SHARE * num_pairs), LEAST), MOST)


def split_pairs(inputs: Sequence[Input], languages: Languages | None, folder: Path, seed: int) -> Split:
    """Splits the pairs into training, validation and test text, written to `folder`; returns the numbers of pairs.

    Each text has two files, one for each side. Pairs of which a side is blank are left out, and so are repeated pairs
    and the header of a table. Which pairs are held out depends on the text and the seed alone. Raises DataError if the
    pairs are too few or too similar to each other, or if source and target are the same in all of them.
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
    """The first pass over all pairs: finds which pairs are kept, and collects the keys and signatures of both sides."""

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
    """Yields (pair, is_first) for the pairs of all inputs; `is_first` is whether the pair is the first of its input.

    In TMX and JSON lines, `languages` chooses the sides. `on_lacking` is called with the line of each TMX unit that
    lacks one of the languages.
    """
    for each in inputs:
        yield from ((pair, number == 0) for number, pair in enumerate(each.pairs(languages, on_lacking)))


def _chunks(pairs: Iterable[tuple[Pair, bool]]) -> Iterator[list[tuple[Pair, bool]]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK_PAIRS)):
        yield chunk


def _held_out(labels: NDArray[np.int64], may_be: NDArray[np.bool_], wanted: int, seed: int) -> NDArray[np.uint8]:
    """Returns TRAIN, VALID or TEST for each pair; groups of pairs with equal labels stay together.

    VALID and TEST get at most `wanted` pairs each, in groups drawn at random by `seed`. A group stays in TRAIN if it is
    too large (LARGEST_GROUP), or if `may_be` is False for one of its pairs.
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
    """The second pass: writes each pair to the files of the text (training, validation, test) that it is assigned to.

    `assigned` has TRAIN, VALID, TEST or, for a pair that is left out, DROPPED. Raises MtkitError if the number of pairs
    has changed since the first pass.
    """
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
    """Returns the extensions of the files of both sides: the language codes, or "source" and "target".

    Returns ("source", "target") if the languages are not known or are the same.
    """
    return ("source", "target") if languages is None or languages[0] == languages[1] else languages


# Settings for a first model.

SEED = 1


class Speed(Protocol):
    """How fast a model trains on this machine, as measured."""

    @property
    def update_seconds(self) -> float:
        """The duration of an update, in seconds."""

    @property
    def pairs_per_update(self) -> float:
        """The number of pairs that an update trains on."""


Measure = Callable[[Config], Speed]

# The rules.


@dataclass(frozen=True)
class Size:
    """A row of SIZES: vocabulary, model and batches that suit up to `pairs` training pairs."""

    pairs: float
    vocab_size: int
    d_model: int
    num_heads: int
    d_ff: int
    layers: int  # of the encoder, and of the decoder
    batch_tokens: int
    source: str  # where the numbers are from


# Smaller vocabularies for less text: Sennrich & Zhang (2019) and Gowda & May (2020), who find the best vocabulary to be
# the largest of which nearly all pieces occur a hundred times. On Multi30k, 6,000 pieces were as good as 10,000, and
# better than 4,000.
SIZES = (
    Size(6000, 2000, 128, 4, 256, 2, 1024, "fewer layers for little text: van Biljon et al. (2020)"),
    Size(20_000, 4000, 128, 4, 256, 3, 1024, "between the rows around it"),
    Size(60_000, 6000, 128, 4, 256, 4, 1024, "multi30k-en-de-transformer, measured with 29,000 pairs"),
    Size(400_000, 8000, 256, 4, 1024, 3, 2048, "tatoeba-fr-en, measured with 156,000 pairs"),
    Size(2_000_000, 16_000, 512, 8, 2048, 4, 4096, "between the rows around it"),
    Size(math.inf, 32_000, 512, 8, 2048, 6, 4096, "the base model of Vaswani et al. (2017), for 4.5 million pairs"),
)

# (the largest number of epochs, the dropout): where pairs are seen once or twice, nothing is learnt by heart, and
# dropout only takes time (measured on Multi30k: 0, 0.1 and 0.3 for 1, 4 and 64 epochs).
DROPOUTS = ((2.0, 0.0), (15.0, 0.1), (50.0, 0.2), (math.inf, 0.3))

# Muon's rates at width 128, measured on Multi30k. At other widths they are taken to fall as 1/width, as Adam's do.
LEARNING_RATE, MATRIX_LEARNING_RATE, MEASURED_WIDTH = 0.016, 0.008, 128

LEAST_UPDATES = 600  # must fit into the minutes; after 640 updates of 1,024 tokens, Multi30k had 33 BLEU
FEW_UPDATES = 300  # with fewer, a model hardly learns to translate
USABLE = 0.8  # share of the minutes for updates; the rest is for validations and for a machine that becomes slower
MOST_EPOCHS, ENOUGH_UPDATES = 100, 3000  # when a training has reached both, it ends, even if minutes are left
ACCELERATOR = 4  # on a GPU, a batch has so many times the tokens, and takes hardly longer


@dataclass(frozen=True)
class Choice:
    """The model and training chosen for a number of pairs, and the measured speed that the choice is based on."""

    size: Size  # of the model and the batches
    vocab_size: int
    wanted: Size  # what the number of pairs alone calls for
    batch_tokens: int
    dropout: float
    minutes: float
    updates: int  # the number expected to fit into the minutes
    epochs: float
    seconds: float  # the measured duration of an update


def size_for(num_pairs: int) -> int:
    """Returns the index of the row of SIZES for a number of training pairs."""
    return next(index for index, size in enumerate(SIZES) if num_pairs <= size.pairs)


def dropout_for(epochs: float) -> float:
    """Returns the dropout rate for a training of `epochs` epochs, by the table DROPOUTS."""
    return next(dropout for most, dropout in DROPOUTS if epochs <= most)


def choose(num_pairs: int, minutes: float, speed_of: Callable[[Size, int], Speed], on_cpu: bool) -> Choice:
    """Returns the vocabulary, model and training that suit a number of training pairs and a number of minutes.

    The vocabulary is taken from the row of SIZES for `num_pairs`. The model is taken from the largest row, up to that
    one, whose model makes at least LEAST_UPDATES updates in `minutes`, or else from the smallest row. If the training
    needs less time than `minutes`, the result has fewer minutes. On a GPU (`on_cpu` is False), batches are larger.

    `speed_of(size, vocab_size)` measures how fast a model trains.
    """
    index = size_for(num_pairs)
    wanted = SIZES[index]
    while True:
        size = SIZES[index]
        speed = speed_of(size, wanted.vocab_size)
        updates = int(60 * minutes * USABLE / speed.update_seconds)
        if updates >= LEAST_UPDATES or index == 0:
            break
        index -= 1
    most = max(ENOUGH_UPDATES, math.ceil(MOST_EPOCHS * num_pairs / speed.pairs_per_update))
    if updates > most:
        minutes = math.ceil(10 * most * speed.update_seconds / USABLE / 60) / 10
        updates = most
    epochs = updates * speed.pairs_per_update / num_pairs
    return Choice(
        size,
        wanted.vocab_size,
        wanted,
        _batch_tokens(size, on_cpu),
        dropout_for(epochs),
        minutes,
        updates,
        epochs,
        speed.update_seconds,
    )


# The command.


def new(path: Path, files: Sequence[Path], languages: Languages | None, minutes: float, measure: Measure) -> str:
    """Writes settings to `path` and, beside it, a folder with training, validation and test text; returns a report.

    `files` are files and folders with sentence pairs. If `languages` is `None`, the languages are taken from the names
    and contents of these files. The model is chosen so that its training fits into `minutes`. `measure` returns how
    fast a model with given settings trains on this machine. Raises MtkitError if something would be overwritten, or if
    the files hold too few pairs.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise MtkitError(
            f"{path}: wants a name that ends in .yaml, for the settings; the files with text come after it"
        )
    folder, run = path.with_name(f"{path.stem}-data"), Path("runs") / path.stem
    _require_nothing(path, folder, run)
    inputs = find_inputs(files)
    languages = languages or languages_of(inputs)
    if languages is not None:
        inputs = ordered(inputs, languages)
    on_cpu = pick_device("auto").type == "cpu"
    with replaced_directory(folder) as place:
        split = split_pairs(inputs, languages, place, SEED)
        inform(split.told())
        settings = _Settings(path, languages, split, folder)

        def speed_of(size: Size, vocab_size: int) -> Speed:
            draft = Choice(size, vocab_size, size, _batch_tokens(size, on_cpu), 0.1, minutes, 1, 1.0, 1.0)
            return measure(config_from_text(settings.text(draft, place), str(path)))

        choice = choose(split.sizes["train"], minutes, speed_of, on_cpu)
        text = settings.text(choice)
        config_from_text(text, str(path))
    write_file(path, text.encode())
    return settings.report(choice, path)


def _batch_tokens(size: Size, on_cpu: bool) -> int:
    return size.batch_tokens * (1 if on_cpu else ACCELERATOR)


def _require_nothing(path: Path, folder: Path, run: Path) -> None:
    """Raises MtkitError if one of the three paths exists, or if the settings or the folder cannot be written.

    `path` is the file of settings to write, `folder` the folder for the text, and `run` the run directory.
    """
    for place in (path, folder, run):
        if place.exists():
            raise MtkitError(f"{place}: is there already, and nothing is overwritten; choose another name")
    if not path.parent.is_dir():
        raise MtkitError(f"{path}: there is no folder {path.parent}; make it, or choose another one")
    require_folder(folder)


# The settings.


@dataclass(frozen=True)
class _Settings:
    """What the file of settings depends on, besides the chosen model and training: languages, split and paths."""

    path: Path
    languages: Languages | None
    split: Split
    folder: Path

    def text(self, choice: Choice, folder: Path | None = None) -> str:
        """Returns the settings as YAML, with a reason for each choice.

        `folder` is where the training and validation text is at present, if it is not yet in its final folder.
        """
        size, num_pairs = choice.size, self.split.sizes["train"]
        endings = file_endings(self.languages)

        def corpus(name: str) -> str:
            return f"{{source: {name}.{endings[0]}, target: {name}.{endings[1]}}}"

        languages = [] if self.languages is None else [f"languages: {_flow(*self.languages)}"]
        smaller = "" if choice.wanted == size else f"; made smaller, since {_minutes(choice.minutes)} are few"
        near = "nearly equal" if self.split.near else "equal"
        rate, matrix_rate = (
            f"{rate * MEASURED_WIDTH / size.d_model:g}" for rate in (LEARNING_RATE, MATRIX_LEARNING_RATE)
        )
        lines = [
            f"# Made by mtkit {__version__} on {datetime.now(UTC).date().isoformat()}.",
            f"# {self.split.told()}.",
            f"# mtkit run {self.path}",
            f"name: {write_yaml(self.path.stem)}",
            *languages,
            "data:",
            f"  # Sentences that are {near}, on either side, were kept on one side of the split.",
            f"  root: {write_yaml(str(folder or self.folder))}",
            f"  train: [{corpus('train')}]",
            f"  valid: [{corpus('valid')}]",
            f"  test: {{test: {corpus('test')}}}",
            "tokenizer:",
            f"  # For {num_pairs:,} pairs; more text wants a larger vocabulary.",
            f"  vocab_size: {choice.vocab_size}",
            "model:",
            f"  # {_as_sentence(size.source)}{smaller}.",
            f"  d_model: {size.d_model}",
            f"  num_heads: {size.num_heads}",
            f"  d_ff: {size.d_ff}",
            f"  encoder_layers: {size.layers}",
            f"  decoder_layers: {size.layers}",
            f"  # Each pair is seen about {choice.epochs:,.1f} times; the more often, the more dropout.",
            f"  dropout: {choice.dropout:g}",
            "  # These two learn faster, measured on Multi30k.",
            "  positions: rotary",
            "  residual_init: zero",
            "training:",
            f"  # An update took {choice.seconds:.2g} s here, so that about {choice.updates:,} fit. Training measures",
            "  # again, and chooses their number, warm-up and validations by it.",
            f"  max_minutes: {choice.minutes:g}",
            "  max_steps: auto",
            "  # Small batches make more updates of the same text, large ones more of a GPU.",
            f"  batch_tokens: {choice.batch_tokens}",
            "  # Muon reaches the scores of Adam in less than half of the updates; its rates fall as d_model grows.",
            "  optimizer: muon",
            "  schedule: linear",
            f"  learning_rate: {rate}",
            f"  matrix_learning_rate: {matrix_rate}",
            "  validation_sentences: 500",
        ]
        return "\n".join(lines) + "\n"

    def report(self, choice: Choice, path: Path) -> str:
        """Returns a few lines that say what was made, and the command to run next."""
        size = choice.size
        lines = [
            self.split.told(),
            f"{self.folder}: train, valid and test, as text",
            f"{path}: {choice.vocab_size:,} pieces, {size.layers} + {size.layers} layers of width {size.d_model}, "
            f"dropout {choice.dropout:g}; about {choice.updates:,} updates, {choice.epochs:,.1f} epochs, in "
            f"{_minutes(choice.minutes)}",
        ]
        if choice.updates < FEW_UPDATES:
            lines.append("so few updates teach a model little; give it more --minutes, or an idle machine")
        if self.languages is None:
            lines.append("the languages are not known, by which BLEU cuts words; better say --languages, such as fr-en")
        else:
            lines.append(f"from {self.languages[0]} to {self.languages[1]}; --languages turns that round")
        return "\n".join([*lines, f"next: mtkit run {path}"]) + "\n"


def _flow(source: str, target: str) -> str:
    return write_yaml({"source": source, "target": target})


def _minutes(minutes: float) -> str:
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def _as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
