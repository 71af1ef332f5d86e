"""`mtkit doctor` and `mtkit clean`: examine parallel text, and write a mended copy of it.

The text is read twice: first a sample, to learn what is usual, then all of it, to judge each pair. The memory needed
does not grow with the length of the text, except for the hashes by which repeated pairs are found.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtkit.config.data_and_model_settings import CorpusConfig, LanguagesConfig
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, DataError, Meter, counted, is_shown
from mtkit.files import json_text, replaced_directory, require_folder
from mtkit.preparation.characters import (
    DROPPED,
    KINDS,
    MENDED,
    NUM_EXAMPLES,
    Diagnosis,
    Example,
    Found,
    Learned,
    learn,
    lowered,
    minima,
)
from mtkit.preparation.faults import (
    MENDS,
    Associations,
    Chosen,
    HeldOut,
    HeldOutPair,
    Repeats,
    Sides,
    Slip,
    SlipSearch,
    associate,
    judge,
)
from mtkit.preparation.sources import local_test_sets, resolve_corpora, training_corpora
from mtkit.text.lines import (
    COMPRESSIONS,
    LEAST_START,
    CarriageReturns,
    count_lines,
    decode_blocks,
    open_to_read,
    read_pairs,
    reading_file,
    refuse_utf16,
    require_file,
)
from mtkit.text.parallel import (
    LEADING_LINES,
    MOST_LINES,
    Languages,
    Oversights,
    Record,
    advice_on_labels,
    advice_on_table,
    cleaning_command,
    files_of,
    findings,
    has_records,
    read_part,
    read_records,
    sample,
)

# So many that the arrays of a block fit into the cache of a processor.
BLOCK_PAIRS = 2000
BLOCK_CHARACTERS = 500_000
STEP_PAIRS = 200  # pairs are read at once; only then are the characters of a block counted
SAMPLE_LEADING = 8192  # pairs at the beginning of a text that all belong to the sample
ROWS = 100  # of a table, from which its columns of sentences are recognised


@dataclass
class Damage:
    """Faults of whole files of parallel text, not of single pairs, such as bytes that are not UTF-8."""

    not_utf8: list[tuple[Path, int]] = field(default_factory=list)  # the first such lines: (file, line number)
    num_not_utf8: int = 0
    num_lines: tuple[int, int] | None = None  # of the source and target files, if the numbers differ
    lacking: list[int] = field(default_factory=list)  # the lines of the first TMX units that lack a side
    num_lacking: int = 0

    def add_lacking(self, line: int) -> None:
        """Counts a TMX unit that lacks a side; `line` is the number of the line at which the unit begins."""
        self.num_lacking += 1
        if self.num_lacking <= NUM_EXAMPLES:
            self.lacking.append(line)


@dataclass(frozen=True)
class Records:
    """Consecutive pairs of a text: the numbers of their lines, their sources and their targets."""

    lines: Sequence[int]
    sources: list[str]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, place: int) -> Record:
        return Record(self.lines[place], self.sources[place], self.targets[place])


@dataclass(frozen=True)
class Part:
    """Parallel text in two files, or in one file: columns separated by tabs, TMX or JSON lines.

    `columns` are the numbers of the source and target columns, from 1; `languages` are the codes of the source and
    target languages, which choose the sides in TMX or JSON lines.
    """

    source: Path
    target: Path | None = None
    columns: tuple[int, int] = (1, 2)
    languages: Languages | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the part."""
        return (self.source,) if self.target is None else (self.source, self.target)

    def read(self, damage: Damage | None = None) -> Iterator[Record]:
        """Yields the pairs of the part, with their line numbers; records in `damage` what is wrong with the files.

        Bytes that are not UTF-8 become U+FFFD. If one file is longer than the other, its further lines are left out.
        Raises DataError if TMX or JSON lines are not valid, if a row has too few columns, or if a file is UTF-16 or has
        the line ends of an old Mac.
        """
        damage = Damage() if damage is None else damage
        if self.target is not None:
            for rows in _steps(self.source, self.target, damage):
                yield from map(Record, rows.lines, rows.sources, rows.targets)
        elif has_records(self.source):
            yield from read_records(self.source, self.languages, on_lacking=damage.add_lacking)
        else:
            yield from self._read_columns(damage)

    def blocks(self, damage: Damage | None = None) -> Iterator[Records]:
        """Yields the pairs of the part in blocks; records in `damage` what is wrong with the files.

        A block ends once it has BLOCK_PAIRS pairs or more, or more than BLOCK_CHARACTERS characters. Raises DataError
        if the text is not valid.
        """
        damage = Damage() if damage is None else damage
        steps = _steps(self.source, self.target, damage) if self.target else _grouped(self.read(damage))
        lines: list[int] = []
        sources: list[str] = []
        targets: list[str] = []
        size = 0
        for step in steps:
            lines += step.lines
            sources += step.sources
            targets += step.targets
            size += sum(map(len, step.sources)) + sum(map(len, step.targets))
            if size > BLOCK_CHARACTERS or len(lines) >= BLOCK_PAIRS:
                yield Records(lines, sources, targets)
                lines, sources, targets, size = [], [], [], 0
        if lines:
            yield Records(lines, sources, targets)

    def _read_columns(self, damage: Damage) -> Iterator[Record]:
        for number, line in enumerate(_lines(self.source, damage), start=1):
            columns = line.split("\t")
            if len(columns) < max(self.columns):
                if not line.strip():
                    continue
                raise DataError(
                    f"{self.source}:{number}: has {len(columns)} of {max(self.columns)} columns; wants a tab between "
                    "one and the next, or two files"
                )
            yield Record(number, columns[self.columns[0] - 1], columns[self.columns[1] - 1])


def _steps(source: Path, target: Path, damage: Damage) -> Iterator[Records]:
    """Yields the pairs of two files, STEP_PAIRS at a time; notes in `damage` what is wrong with the files.

    If one file is longer, its further lines are left out.
    """
    number = 0
    lines = _lines(source, damage), _lines(target, damage)
    while True:
        sources, targets = (list(islice(side, STEP_PAIRS)) for side in lines)
        common = min(len(sources), len(targets))
        if common:
            yield Records(range(number + 1, number + common + 1), sources[:common], targets[:common])
        number += common
        if common < STEP_PAIRS:
            break
    rest = [len(side) - common + sum(1 for _ in more) for side, more in zip((sources, targets), lines, strict=True)]
    if any(rest):
        damage.num_lines = number + rest[0], number + rest[1]


def _grouped(rows: Iterator[Record]) -> Iterator[Records]:
    while some := list(islice(rows, STEP_PAIRS)):
        yield Records([row.line for row in some], [row.source for row in some], [row.target for row in some])


def _lines(path: Path, damage: Damage) -> Iterator[str]:
    return chain.from_iterable(_blocks_of_lines(path, damage))


def _blocks_of_lines(path: Path, damage: Damage) -> Iterator[list[str]]:
    returns = CarriageReturns(path)
    with reading_file(path), open_to_read(path) as stream:
        refuse_utf16(path, stream.peek(LEAST_START))
        number = 1
        for lines, replaced in decode_blocks(stream):
            for place, line in enumerate(lines):
                if "\r" in line:
                    returns.see(number + place, line.encode(), is_last=False)
            damage.num_not_utf8 += len(replaced)
            damage.not_utf8 += [(path, number + place) for place in replaced[: NUM_EXAMPLES - len(damage.not_utf8)]]
            number += len(lines)
            yield lines
        returns.check(number - 1)


def parts_of_files(files: Sequence[Path], languages: Languages | None) -> list[Part]:
    """The text in one or two files, as a list of one part; `languages` chooses the sides of TMX or JSON lines.

    Raises DataError if a file is standard input or a pipe, since the text is read twice.
    """
    for path in files:
        require_file(path)
    return [Part(files[0], files[1] if len(files) > 1 else None, languages=languages)]


def parts_of_settings(config: Config) -> list[Part]:
    """The files of the training corpora of the settings, as parts. Raises ConfigError for a language model."""
    if config.task == "language_model":
        raise ConfigError("mtkit doctor and mtkit clean compare two sides; task is language_model, which has one")
    return [_part(part) for corpus in training_corpora(config) for part in corpus.parts]


def _part(part: CorpusConfig) -> Part:
    source, target = files_of(part)
    return Part(source, columns=part.columns) if part.tsv is not None else Part(source, target)


def held_out_of_settings(config: Config) -> Iterator[HeldOutPair]:
    """The validation and test pairs of the settings; test sets that are not downloaded yet are left out."""
    for corpus in resolve_corpora(config, config.data.valid):
        for part in corpus.parts:
            for number, (source, target) in enumerate(read_part(part), start=1):
                yield HeldOutPair(str(part.paths[0]), number, source, target)
    for name, files in local_test_sets(config).items():
        for reference in files.target if files is not None else ():
            assert files is not None
            for number, (source, target) in enumerate(read_pairs(files.source, reference), start=1):
                yield HeldOutPair(f"data.test.{name}", number, source, target)


def examine(
    parts: Sequence[Part], held_out: Iterable[HeldOutPair] = (), languages: LanguagesConfig | None = None
) -> Diagnosis:
    """Examines parallel text for faults, and for the validation and test pairs `held_out`; returns what was found.

    The codes in `languages` are only used in advice. Raises DataError if a file cannot be read. Also raises DataError
    if there are no pairs and no faults, apart from TMX units that lack a side.
    """
    return Examination(parts, held_out, languages).run()


class Examination:
    """Examines parallel text: the constructor learns what is usual from a sample; `run` judges all pairs."""

    def __init__(
        self, parts: Sequence[Part], held_out: Iterable[HeldOutPair], languages: LanguagesConfig | None
    ) -> None:
        self.parts = parts
        self.held_out = HeldOut(held_out)
        self._codes = languages or LanguagesConfig()
        self._found: dict[str, Found] = {}
        self._notes: list[str] = []
        self.learned, self._associations, self._is_unrelated = self._learn()

    def run(self) -> Diagnosis:
        """Judges all pairs; returns what was found.

        Raises DataError if there are no pairs and no faults, apart from TMX units that lack a side.
        """
        repeats, total = Repeats(), 0
        with Meter("examining", "pairs", num_lines(self.parts), announced=True) as meter:
            for part in self.parts:
                damage = Damage()
                # TMX and JSON lines hold both sides of a pair in one place, where they cannot slip.
                searched = self._associations if not has_records(part.source) else None
                slips = SlipSearch(searched) if searched else None
                for rows in part.blocks(damage):
                    sides = Sides(rows.sources, rows.targets)
                    self._add(part, rows, verdicts(sides, self.learned, repeats, self.held_out))
                    if slips:
                        slips.add(*sides.lower)
                    total += len(rows)
                    meter.add(len(rows))
                self._add_damage(part, damage)
                self._add_slips(part, slips.slips if slips else [])
        if self._is_unrelated:
            first = self.parts[0]
            self._add_text("slip", first.source, 1, "the lines of the two sides do not seem to belong together at all")
        self._count_held_out()
        files = tuple(path for part in self.parts for path in part.files)
        if not total and self._found.keys() <= {"lacking side"}:
            lacking = sum(found.count for found in self._found.values())
            units = f", and {counted(lacking, 'unit')} without one of the languages" if lacking else ""
            raise DataError(f"{' and '.join(map(str, dict.fromkeys(files)))}: no pairs found{units}")
        return Diagnosis(total, self.held_out.num_pairs, files, self._found, tuple(self._notes))

    # What is usual, learnt from a sample.

    def _learn(self) -> tuple[Learned, Associations | None, bool]:
        rows: list[Record] = []
        numbers: list[int] = []
        most = max(SAMPLE_LEADING, MOST_LINES // len(self.parts))
        leading = max(1000, SAMPLE_LEADING // len(self.parts))
        for part in self.parts:
            sampled = list(sample(part.read(), most, leading))
            rows += [row for _, row in sampled]
            numbers += [number - 1 for number, _ in sampled]
            self._look_at_files(part, [row for _, row in sampled])
        sources, targets = [row.source for row in rows], [row.target for row in rows]
        learned = learn(list(zip(sources, targets, strict=True)))
        associations, is_unrelated = associate(lowered(sources), lowered(targets), numbers)
        if associations is None and not is_unrelated:
            self._notes.append("whether the sides slip was not examined: there is too little text, or too much variety")
        if learned.languages is None:
            self._notes.append("wrong languages were not looked for: there is too little text, or both sides are alike")
        return learned, associations, is_unrelated

    def _look_at_files(self, part: Part, rows: Sequence[Record]) -> None:
        """Looks for tables, headers and text that other tools have processed; adds what it finds to the findings.

        `rows` is the sample of the part.
        """
        names = (part.source, part.target or part.source)
        codes = self._codes.source, self._codes.target
        if rows and rows[0].line == 1:
            advice = Oversights(self._codes, True).advice_on_header(part.files, rows[0].source, rows[0].target)
            if advice:
                self._add_text("header", part.source, 1, advice)
        for side, (path, code) in enumerate(zip(names, codes, strict=True)):
            lines = [(row.line, row.target if side else row.source) for row in rows]
            texts = [line for _, line in lines[:LEADING_LINES]]
            column = None if part.target is not None else part.columns[side]
            table = advice_on_table(path, texts, is_test_set=False) if part.target is not None else None
            advice = table or (advice_on_labels(None, texts, []) if len(texts) >= ROWS else None)
            if advice:
                self._add_text("table", path, None, advice)
                continue
            for finding in findings(lines):
                command = cleaning_command(path, column, [finding.sign.cure.replace("LANG", code)], code)
                self._add_text(
                    "processed text",
                    path,
                    finding.line,
                    f'"{finding.excerpt}" looks {finding.sign.kind} by {finding.sign.by}, as do {finding.count:,} of '
                    f"the {finding.num_lines:,} lines looked at: {command}",
                )

    # What is found.

    def _add(self, part: Part, rows: Records, found: dict[str, Chosen]) -> None:
        for name, chosen in found.items():
            places = np.flatnonzero(chosen)
            if len(places):
                first = [rows[place] for place in places[:NUM_EXAMPLES].tolist()]
                examples = [Example(part.source, row.line, row.source, row.target) for row in first]
                self._found.setdefault(name, Found()).add(examples, len(places))

    def _add_text(self, name: str, path: Path, line: int | None, text: str) -> None:
        self._found.setdefault(name, Found()).add([Example(path, line, text=text)])

    def _add_damage(self, part: Part, damage: Damage) -> None:
        if damage.num_not_utf8:
            examples = [Example(path, line, text="has bytes that are not UTF-8") for path, line in damage.not_utf8]
            self._found.setdefault("not UTF-8", Found()).add(examples, damage.num_not_utf8)
        if damage.num_lines is not None:
            source, target = damage.num_lines
            text = f"{counted(source, 'line')}, but {part.target} has {target:,}"
            self._add_text("unequal lines", part.source, None, text)

        if damage.num_lacking:
            text = "a unit without one of the languages"
            examples = [Example(part.source, line, text=text) for line in damage.lacking]
            self._found.setdefault("lacking side", Found()).add(examples, damage.num_lacking)

    def _add_slips(self, part: Part, slips: Sequence[Slip]) -> None:
        for slip in slips:
            self._add_text("slip", part.source, slip.line, _describe(slip, part))

    def _count_held_out(self) -> None:
        """Sets the counts of the faults "held out" and "nearly held out" to numbers of held-out pairs.

        So far, they are numbers of training pairs, and several training pairs may match one held-out pair. A held-out
        pair that was found without edits is not counted under "nearly held out".
        """
        nearly = self.held_out.nearly_found - self.held_out.found
        for name, pairs in (("held out", self.held_out.found), ("nearly held out", nearly)):
            if name in self._found:
                self._found[name].count = len(pairs)


def _describe(slip: Slip, part: Part) -> str:
    """Returns text for a message: how the alignment changes at a slip, and which file has too many or too few lines."""
    target = part.target or "the target"
    if slip.shift is None:
        return "from here on, the sides do not belong together, nor do lines near by"
    if slip.shift == 0:
        return "from here on, line n belongs to line n again"
    lines = counted(abs(slip.shift), "line")
    extra, lacking = (target, part.source) if slip.shift > 0 else (part.source, target)
    return (
        f"from here on, source line n belongs to target line n{slip.shift:+d}: {extra} has {lines} too many here, or "
        f"{lacking} lacks {lines}"
    )


def verdicts(sides: Sides, learned: Learned, repeats: Repeats, held_out: HeldOut) -> dict[str, Chosen]:
    """Returns a dict from each kind of fault of pairs, such as "markup", to a mask of the pairs that have it, (L).

    `sides` is a block of L pairs. Adds the pairs of the block to `repeats`, so that later blocks are compared with
    them. Records in `held_out` which held-out pairs were found.
    """
    found = judge(sides, learned)
    signatures = [minima(block) for block in sides.lower]
    is_text = ~found["blank side"]
    found["held out"], found["nearly held out"] = held_out.find(sides, signatures, is_text)
    found["duplicate"], found["near duplicate"], found["similar"] = repeats.find(sides, signatures, is_text)
    return found


def num_lines(parts: Sequence[Part]) -> int | None:
    """The number of source lines of all parts, for a progress bar.

    Returns `None` if no progress bar is shown, or if a part is TMX or JSON lines.
    """
    if not is_shown() or any(has_records(part.source) for part in parts):
        return None
    return sum(count_lines(part.source) for part in parts)


# Mending: `mtkit clean`.

RECORD = "cleaned.json"

# The kinds that are mended or dropped; `--keep` takes these names.
CLEANABLE = tuple(name for name, kind in KINDS.items() if kind.cleaned)


@dataclass
class Cleaned:
    """The result of cleaning: numbers of pairs read and written, and, by kind of fault, of pairs dropped and mended."""

    files: dict[str, list[str]] = field(default_factory=dict)  # new files by part
    num_read: int = 0
    num_written: int = 0
    num_lacking: int = 0  # TMX units that lack a side; not included in `num_read`
    dropped: dict[str, Found] = field(default_factory=dict)
    mended: dict[str, Found] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The result as a value for JSON; each example of a mended pair has the pair before and after mending."""
        return {
            "files": self.files,
            "pairs_read": self.num_read,
            "pairs_written": self.num_written,
            "units_without_a_side": self.num_lacking,
            "dropped": {name: _shown(found) for name, found in self.dropped.items()},
            "mended": {name: _shown(found) for name, found in self.mended.items()},
        }

    def __str__(self) -> str:
        """A summary of a few lines, for people."""
        lines = [f"{self.num_written:,} of {self.num_read:,} pairs written"]
        for what, kinds in (("left out", self.dropped), ("mended", self.mended)):
            if kinds:
                counts = ", ".join(f"{found.count:,} {name}" for name, found in kinds.items())
                lines.append(f"{what}: {counts}")
        if self.num_lacking:
            lines.append(f"skipped: {counted(self.num_lacking, 'unit')} without one of the languages")
        return "\n".join(lines)


def _shown(found: Found) -> dict[str, Any]:
    examples = [
        {"place": one.place, "source": one.source, "target": one.target, **({"mended": one.text} if one.text else {})}
        for one in found.examples
    ]
    return {"count": found.count, "examples": examples}


def require_new(folder: Path, keep: Collection[str] = ()) -> None:
    """Raises MtkitError if the folder exists or cannot be made, or if `keep` has a name that is not in CLEANABLE.

    `keep` has names of kinds of faults that cleaning leaves as they are. Called before the text is read.
    """
    require_folder(folder)
    if folder.exists():
        raise DataError(f"{folder}: is already there; name a new folder, since nothing is overwritten")
    for name in keep:
        if name not in CLEANABLE:
            raise DataError(f"--keep: found {name}, wants one of {', '.join(CLEANABLE)}")


def clean(examination: Examination, folder: Path, keep: Collection[str] = ()) -> tuple[Cleaned, Diagnosis]:
    """Examines text, then writes a cleaned copy of it to a new folder; leaves faults of the kinds in `keep`.

    Returns what was done, and the diagnosis of the text before cleaning. Raises DataError if the folder exists, or if
    `keep` has a name that is not in CLEANABLE. Also raises DataError for faults of whole files, such as different
    numbers of lines on the two sides, which cannot be mended pair by pair (in KINDS, their `stops_at` is 0).
    """
    require_new(folder, keep)
    diagnosis = examination.run()
    for name in diagnosis.stopping:
        if KINDS[name].stops_at == 0:
            example = diagnosis.found[name].examples[0]
            raise DataError(f"{example.place}: {example.text}; {KINDS[name].cure}, then clean the rest")
    kinds = [name for name in diagnosis.kinds if KINDS[name].cleaned and name not in keep]
    with replaced_directory(folder) as new:
        cleaned = _Cleaning(examination, kinds).write(folder, new)
        if lacking := diagnosis.found.get("lacking side"):
            cleaned.num_lacking = lacking.count
        (new / RECORD).write_text(json_text(cleaned.as_json(), indent=2) + "\n", encoding="utf-8")
    return cleaned, diagnosis


class _Cleaning:
    """Mends pairs, then judges the mended pairs, and drops those that still have faults."""

    def __init__(self, examination: Examination, kinds: Sequence[str]) -> None:
        self._examination = examination
        self._mending = [name for name in kinds if KINDS[name].cleaned == MENDED]
        self._dropping = [name for name in kinds if KINDS[name].cleaned == DROPPED]
        self._repeats = Repeats()
        self._cleaned = Cleaned()

    def write(self, folder: Path, new: Path) -> Cleaned:
        """Writes the cleaned parts to `new`, a folder that will be renamed to `folder`; returns what was done."""
        parts = self._examination.parts
        names = _names(parts)
        with Meter("cleaning", "pairs", num_lines(parts), announced=True) as meter:
            for part, (source_name, target_name) in zip(parts, names, strict=True):
                with (new / source_name).open("xb") as source, (new / target_name).open("xb") as target:
                    for rows in part.blocks():
                        self._write_block(part, rows, source, target)
                        meter.add(len(rows))
                where = " + ".join(map(str, part.files))
                self._cleaned.files[where] = [str(folder / source_name), str(folder / target_name)]
        for found in (self._cleaned.dropped, self._cleaned.mended):
            ordered = {name: found[name] for name in KINDS if name in found}
            found.clear()
            found.update(ordered)
        return self._cleaned

    def _write_block(self, part: Part, block: Records, source: BinaryIO, target: BinaryIO) -> None:
        self._cleaned.num_read += len(block)
        rows = self._mended(part, block)
        sides = Sides([row.source for row in rows], [row.target for row in rows])
        found = verdicts(sides, self._examination.learned, self._repeats, self._examination.held_out)
        is_kept = np.ones(len(rows), dtype=np.bool_)
        for name in self._dropping:
            self._count_dropped(part, rows, name, found[name] & is_kept)
            is_kept &= ~found[name]
        self._cleaned.num_written += int(is_kept.sum())
        kept = [rows[place] for place in np.flatnonzero(is_kept).tolist()]
        source.write("".join(f"{row.source}\n" for row in kept).encode("utf-8"))
        target.write("".join(f"{row.target}\n" for row in kept).encode("utf-8"))

    def _count_dropped(self, part: Part, rows: Sequence[Record], name: str, chosen: Chosen) -> None:
        places = np.flatnonzero(chosen).tolist()
        if places:
            first = [rows[place] for place in places[:NUM_EXAMPLES]]
            examples = [Example(part.source, row.line, row.source, row.target) for row in first]
            self._cleaned.dropped.setdefault(name, Found()).add(examples, len(places))

    def _mended(self, part: Part, block: Records) -> list[Record]:
        """The pairs of a block, after mending; counts the mended pairs by kind of fault.

        Mends only the kinds of faults that this cleaning is to mend; other faults stay.
        """
        found = judge(Sides(block.sources, block.targets), self._examination.learned)
        rows = [block[place] for place in range(len(block))]
        for name in self._mending:
            for place in np.flatnonzero(found[name]).tolist():
                before = rows[place]
                if name == "swapped":
                    after = before._replace(source=before.target, target=before.source)
                else:
                    mend = MENDS[name]
                    after = before._replace(source=mend(before.source), target=mend(before.target))
                if after != before:
                    after = self._settled(after)
                    rows[place] = after
                    text = f"{after.source} ||| {after.target}"
                    example = Example(part.source, before.line, before.source, before.target, text)
                    self._cleaned.mended.setdefault(name, Found()).add([example])
        return rows

    def _settled(self, row: Record) -> Record:
        """The pair after all mends were applied repeatedly, until none changes it.

        Mending one fault may uncover another, such as spaces at the end of a text after a tag is removed.
        """
        before = None
        while row != before:
            before = row
            for name in self._mending:
                if mend := MENDS.get(name):
                    row = row._replace(source=mend(row.source), target=mend(row.target))
        return row


def _names(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """The names of the new files of each part, (source, target).

    A part with two files keeps their names, without a suffix such as .gz. For a part with one file, the language codes,
    or "source" and "target", are appended to its name. If the two names are equal, or if an earlier part uses one of
    them, each gets a prefix of part number and side, such as "2.source.".
    """
    names: list[tuple[str, str]] = []
    for number, part in enumerate(parts, start=1):
        if part.target is not None:
            pair = _plain(part.source), _plain(part.target)
        else:
            stem = Path(_plain(part.source)).stem if has_records(part.source) else _plain(part.source)
            ends = part.languages or ("source", "target")
            pair = f"{stem}.{ends[0]}", f"{stem}.{ends[1]}"
        taken = {name for some in names for name in some}
        if pair[0] == pair[1] or taken & set(pair):
            pair = f"{number}.source.{pair[0]}", f"{number}.target.{pair[1]}"
        names.append(pair)
    return names


def _plain(path: Path) -> str:
    return path.stem if path.suffix.lower() in {*COMPRESSIONS, ".zip"} else path.name
