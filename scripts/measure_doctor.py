"""Measures what `mtkit doctor` finds: recall and precision for faults whose places are known, and alarms on clean text.

MTKIT_DATA=FOLDER .venv/bin/python scripts/measure_doctor.py
MTKIT_DATA=FOLDER .venv/bin/python scripts/measure_doctor.py --read 60 [--set SET]... [--kind KIND]...

FOLDER holds dirty-fr-en (train.fr, train.en, and kinds.txt, which names the fault of each line) and the clean sets.
Three tables are printed: the faults of dirty-fr-en, what is reported for the clean sets, and faults that are planted in
the first 30,000 pairs of these: a lost line at 40 %, mojibake, separate accents, and test pairs with small edits. With
--read, pairs that have a fault in the clean sets are printed instead, for a person to judge: of each kind at most so
many, always the same. A repeated pair is followed by the earlier pair, or the test pair, that is most like it.
"""

import argparse
import os
import random
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtkit.preparation.characters import KINDS, Block, Diagnosis, Found, lowered, minima
from mtkit.preparation.doctor import Examination, examine, parts_of_files, verdicts
from mtkit.preparation.faults import HeldOutPair, Repeats, Sides

Pair = tuple[str, str]
Places = dict[str, list[int]]  # for each kind of the doctor, the places of the pairs that have it, from 0

# What the doctor calls the faults of dirty-fr-en. A pair of the last kind looks like any other: whether its sides
# belong together can be told only by someone who knows both languages.
NAMES: dict[str, tuple[str, ...]] = {
    "empty-src": ("blank side",),
    "empty-tgt": ("blank side",),
    "blank": ("blank side",),
    "replacement-char": ("replacement characters",),
    "mojibake": ("mojibake",),
    "control": ("control characters",),
    "markup": ("markup",),
    "copy": ("identical",),
    "url": ("identical", "no words"),
    "symbols": ("no words",),
    "swapped": ("swapped",),
    "wrong-language-src": ("wrong language",),
    "wrong-language-tgt": ("wrong language",),
    "truncated-tgt": ("length ratio",),
    "too-long-tgt": ("length ratio",),
    "number-mismatch": ("numbers differ",),
    "duplicate": ("duplicate",),
    "near-duplicate": ("near duplicate", "duplicate"),
    "misaligned": (),
}
MOST_PAIRS = 30_000  # of a clean set, in which faults are planted
CLEAN = {
    "multi30k en-de": ("multi30k/train.en", "multi30k/train.de", "multi30k/test2016.en", "multi30k/test2016.de"),
    "multi30k en-fr": ("multi30k/train.en", "multi30k/train.fr", "multi30k/test2016.en", "multi30k/test2016.fr"),
    "tatoeba fr-en": tuple(f"tatoeba-fr-en/{name}" for name in ("train.fr", "train.en", "test.fr", "test.en")),
    "tatoeba de-en": tuple(f"tatoeba-de-en/{name}" for name in ("train.de", "train.en", "test.de", "test.en")),
    "tatoeba zh-en": tuple(f"tatoeba-zh-en/{name}" for name in ("train.zh", "train.en", "test.zh", "test.en")),
    "europarl fr-en": tuple(f"europarl-fr-en/{name}" for name in ("train.fr", "train.en", "test.fr", "test.en")),
    "pydocs fr-en": tuple(f"pydocs-fr-en/{name}" for name in ("train.fr", "train.en", "test.fr", "test.en")),
}


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=int, metavar="NUMBER", help="print so many pairs of each kind, and no tables")
    parser.add_argument("--set", action="append", choices=CLEAN, metavar="SET", help="with --read: this set alone")
    parser.add_argument("--kind", action="append", choices=KINDS, metavar="KIND", help="with --read: this kind alone")
    arguments = parser.parse_args()
    if "MTKIT_DATA" not in os.environ:
        parser.error("MTKIT_DATA is not set: wants the folder of the public corpora")
    root = Path(os.environ["MTKIT_DATA"])
    if arguments.read is not None:
        for name in arguments.set or CLEAN:
            print_findings(root, name, arguments.kind or list(KINDS), arguments.read)
        return
    measure_dirty(root / "dirty-fr-en")
    report_clean(root)
    measure_planted(root)


def read(path: Path) -> list[str]:
    return path.read_text("utf-8").split("\n")[:-1]


def find(source: Path, target: Path, held_out: Sequence[HeldOutPair] = ()) -> Places:
    """The pairs of two files that have each kind of fault, reported or not."""
    examination = Examination(parts_of_files([source, target], None), held_out, None)
    repeats, found, first = Repeats(), defaultdict(list), 0
    for rows in examination.parts[0].blocks():
        sides = Sides(rows.sources, rows.targets)
        for name, chosen in verdicts(sides, examination.learned, repeats, examination.held_out).items():
            found[name] += (np.flatnonzero(chosen) + first).tolist()
        first += len(rows)
    return found


# dirty-fr-en.


def measure_dirty(folder: Path) -> None:
    """Print recall and precision for each kind of fault in dirty-fr-en.

    The repetition of a faulty pair has its fault, too. Precision is counted over all pairs that have the doctor's kind.
    """
    kinds = read(folder / "kinds.txt")
    pairs = list(zip(read(folder / "train.fr"), read(folder / "train.en"), strict=True))
    found = find(folder / "train.fr", folder / "train.en")
    faults = faults_of(pairs, kinds)
    print("| planted | pairs | found as | recall | precision |\n|---|---:|---|---:|---:|")
    for kind, names in NAMES.items():
        places = {place for place, name in enumerate(kinds) if name == kind}
        told = {place for name in names for place in found[name]}
        if kind.endswith("duplicate"):  # of a pair with a blank side, nothing else is said
            places -= set(found["blank side"])
        right = [place for place in told if any(kind in names_of(fault) for fault in faults[place] for kind in names)]
        precision = f"{len(right) / len(told):.3f}" if told else "-"
        recall = f"{len(places & told) / len(places):.3f}"
        print(f"| {kind} | {len(places)} | {', '.join(names) or '-'} | {recall} | {precision} |")
    without = [place for place in found["mojibake"] if kinds[place] == "mojibake"]
    plain = sum(kind == "mojibake" and "".join(pair).isascii() for kind, pair in zip(kinds, pairs, strict=True))
    print(f"\nmojibake: {plain} of the pairs are of ASCII alone, which it leaves as it was; {len(without)} were found")


def names_of(fault: str) -> tuple[str, ...]:
    return NAMES.get(fault, ())


def faults_of(pairs: Sequence[Pair], kinds: Sequence[str]) -> list[set[str]]:
    """The faults of each pair: its own, those of the pair that it repeats, and the repetition itself."""
    groups: dict[Pair, set[str]] = defaultdict(set)
    keys = [(letters(source), letters(target)) for source, target in pairs]
    for key, kind in zip(keys, kinds, strict=True):
        groups[key].add(kind)
    seen: set[Pair] = set()
    faults = []
    for pair, key, kind in zip(pairs, keys, kinds, strict=True):
        own = groups[key] - {"duplicate", "near-duplicate"} if kind.endswith("duplicate") else {kind}
        again = {"duplicate"} if pair in seen else {"near-duplicate"} if key in seen else set()
        faults.append({*own, *again} | ({"symbols"} if key[1] == "" != pair[1].strip() else set()))
        seen |= {pair, key}
    return faults


def letters(text: str) -> str:
    """The letters, numbers and symbols of a text, in lower case."""
    kinds = [(character, unicodedata.category(character)) for character in text.lower()]
    return "".join(character for character, kind in kinds if kind[0] in "LMN" or kind in ("Sc", "Sm", "So"))


# Clean text.


def report_clean(root: Path) -> None:
    """Print what is reported for each clean set."""
    print("\n| set | pairs | reported |\n|---|---:|---|")
    for name, (source, target, *held_out) in CLEAN.items():
        diagnosis = examine(parts_of_files([root / source, root / target], None), held_out_pairs(root, held_out))
        reported = ", ".join(f"{diagnosis.found[kind].count} {kind}" for kind in diagnosis.kinds)
        print(f"| {name} | {diagnosis.num_pairs:,} | {reported or 'nothing'} |", flush=True)


def print_findings(root: Path, name: str, kinds: Sequence[str], most: int) -> None:
    """Print up to `most` of the pairs of a clean set that have each kind of fault, reported or too few for it."""
    source, target, *held_out = CLEAN[name]
    tests = held_out_pairs(root, held_out)
    found = find(root / source, root / target, tests)
    pairs = list(zip(read(root / source), read(root / target), strict=True))
    earlier, held = Nearest("line", pairs), Nearest("test", [(test.source, test.target) for test in tests])
    counts = {kind: Found(len(places)) for kind, places in found.items()}
    reported = Diagnosis(len(pairs), len(tests), (), counts).kinds
    for kind in (kind for kind in kinds if found.get(kind)):
        places = sorted(random.Random(1).sample(found[kind], min(most, len(found[kind]))))
        unless = "" if kind in reported else "; too few to be reported"
        print(f"\n# {name}: {kind}: {len(places)} of {len(found[kind])}{unless}")
        for place in places:
            print(f"{place + 1}: {pairs[place][0]!r} ||| {pairs[place][1]!r}")
            if kind in ("duplicate", "near duplicate", "similar"):
                earlier.print_for(pairs[place], place)
            elif kind.endswith("held out"):
                held.print_for(pairs[place], len(tests))


class Nearest:
    """Finds the pair that is most like another one, more slowly and surely than the doctor does."""

    def __init__(self, name: str, pairs: Sequence[Pair]) -> None:
        self._name, self._pairs, self._marks = name, pairs, signatures(pairs)
        self._first: dict[Pair, int] = {}
        for place, pair in enumerate(pairs):
            self._first.setdefault((letters(pair[0]), letters(pair[1])), place)

    def print_for(self, pair: Pair, end: int) -> None:
        """Print the pair before `end` that has the same letters, or else the most letters in sequence in common."""
        best = self._first.get((letters(pair[0]), letters(pair[1])), end)
        if best >= end:
            shared = (self._marks[:end] == signatures([pair])).sum(axis=1)
            best = max(np.argsort(-shared)[:50].tolist(), key=lambda place: alike(self._pairs[place], pair))
        print(f"    {self._name} {best + 1}: {self._pairs[best][0]!r} ||| {self._pairs[best][1]!r}")


def signatures(pairs: Sequence[Pair]) -> NDArray[np.uint32]:
    """The signatures of both sides of each pair, a row for each."""
    blocks = (Block(lowered([pair[side] for pair in pairs])) for side in (0, 1))
    return np.concatenate([minima(block) for block in blocks], axis=1)


def alike(pair: Pair, other: Pair) -> float:
    """How much of two pairs is the same: 0 to 2."""
    return sum(SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in zip(pair, other, strict=True))


def held_out_pairs(root: Path, files: Sequence[str]) -> list[HeldOutPair]:
    sides = [read(root / file) for file in files]
    return [HeldOutPair("test", number, *pair) for number, pair in enumerate(zip(*sides, strict=True), start=1)]


# Faults that are planted in clean text.


def measure_planted(root: Path) -> None:
    """Print what is found of the faults that are planted in clean sets, one kind at a time."""
    print("\n| set | planted | pairs | recall | precision |\n|---|---|---:|---:|---:|")
    for name, (source, target, *held_out) in CLEAN.items():
        pairs = list(zip(read(root / source), read(root / target), strict=True))[:MOST_PAIRS]
        tests = held_out_pairs(root, held_out)
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder, "text.a"), Path(folder, "text.b")
            write(files, slipped(pairs))
            cut = 2 * len(pairs) // 5
            slips = examine(parts_of_files(files, None)).found.get("slip")
            where = f"found {slips.examples[0].line - cut - 1:+d} lines away" if slips else "not found"
            print(
                f"| {name} | a lost line at 40 % | 1 | {where}, {slips.count if slips else 0} reported | |", flush=True
            )
            for kind, change in (("mojibake", broken), ("not NFC", decomposed)):
                print_planted(name, kind, *planted(pairs, change), files)
            edited = [edit(pair, number) for number, pair in enumerate(tests[::10])]
            places = set(range(len(pairs), len(pairs) + len(edited)))
            print_planted(name, "nearly held out", [*pairs, *edited], places, files, tests)


def print_planted(
    name: str,
    kind: str,
    pairs: Sequence[Pair],
    places: set[int],
    files: Sequence[Path],
    held_out: Sequence[HeldOutPair] = (),
) -> None:
    """Print a row of the table; what is found in the clean text, too, is left out of it."""
    kinds = (kind, "held out") if held_out else (kind,)
    told: set[int] = set()
    for some in (pairs, [pair for place, pair in enumerate(pairs) if place not in places]) if held_out else (pairs,):
        write(files, some)
        found = find(*files, held_out)
        told ^= {place for name in kinds for place in found[name]}
    precision = f"{len(told & places) / len(told):.3f}" if told else "-"
    recall = f"{len(told & places) / len(places):.3f}" if places else "-"  # Chinese has no accents to separate
    print(f"| {name} | {kind} | {len(places)} | {recall} | {precision} |", flush=True)


def write(files: Sequence[Path], pairs: Sequence[Pair]) -> None:
    for side, file in enumerate(files):
        file.write_bytes("".join(f"{pair[side]}\n" for pair in pairs).encode())


def slipped(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs after the target has lost a line at 40 %."""
    cut = 2 * len(pairs) // 5
    targets = [target for _, target in pairs]
    return list(zip([source for source, _ in pairs[:-1]], targets[:cut] + targets[cut + 1 :], strict=True))


def planted(pairs: Sequence[Pair], change: Callable[[str], str]) -> tuple[list[Pair], set[int]]:
    """The pairs with every fiftieth changed, and the places of those that a change has made different."""
    dirty = [(change(a), change(b)) if place % 50 == 0 else (a, b) for place, (a, b) in enumerate(pairs)]
    return dirty, {place for place, (pair, old) in enumerate(zip(dirty, pairs, strict=True)) if pair != old}


def broken(text: str) -> str:
    """The text after its UTF-8 was read as Windows-1252, or as Latin-1 where a byte means nothing in that."""
    try:
        return text.encode().decode("cp1252")
    except UnicodeDecodeError:
        return text.encode().decode("latin-1")


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def edit(pair: HeldOutPair, seed: int) -> Pair:
    """The pair with a letter of each side changed or lost, and its final mark taken away."""
    generator = random.Random(seed)
    sides = []
    for text in (pair.source, pair.target):
        text = text.rstrip(" .!?\u202f\u00a0")
        place = generator.randrange(max(1, len(text)))
        sides.append(text[:place] + generator.choice(("", "e", "n")) + text[place + 1 :])
    return sides[0], sides[1]


if __name__ == "__main__":
    main()
