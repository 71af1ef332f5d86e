"""`mtkit clean`: writes a mended copy of parallel text by the findings of the doctor, and a record of what changed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtkit.doctor.examine import Examination, Part, Records, num_lines, verdicts
from mtkit.doctor.kinds import DROPPED, KINDS, MENDED, Diagnosis, Example, Found
from mtkit.doctor.pairs import MENDS, Chosen, Sides, judge
from mtkit.doctor.repeats import Repeats
from mtkit.errors import DataError, Meter, counted
from mtkit.files import json_text, replaced_directory, require_folder
from mtkit.text.compressed import COMPRESSIONS
from mtkit.text.records import Record, has_records

RECORD = "cleaned.json"

# The kinds that are mended or dropped; `--keep` takes these names.
CLEANABLE = tuple(name for name, kind in KINDS.items() if kind.cleaned)


@dataclass
class Cleaned:
    """What was done: how many pairs were read and written, and what was dropped and mended, by kind."""

    files: dict[str, list[str]] = field(default_factory=dict)  # new files by part
    num_read: int = 0
    num_written: int = 0
    num_lacking: int = 0  # units of TMX that lack a side, and are not among those read
    dropped: dict[str, Found] = field(default_factory=dict)
    mended: dict[str, Found] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as a value for JSON; each example of a mended pair has the pair before and after."""
        return {
            "files": self.files,
            "pairs_read": self.num_read,
            "pairs_written": self.num_written,
            "units_without_a_side": self.num_lacking,
            "dropped": {name: _shown(found) for name, found in self.dropped.items()},
            "mended": {name: _shown(found) for name, found in self.mended.items()},
        }

    def __str__(self) -> str:
        """A few lines for people."""
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
    """Raises MtkitError if the folder exists or cannot be made, or if `keep` has a wrong name.

    The names in `keep` must be in CLEANABLE. Called before the text is read.
    """
    require_folder(folder)
    if folder.exists():
        raise DataError(f"{folder}: is already there; name a new folder, since nothing is overwritten")
    for name in keep:
        if name not in CLEANABLE:
            raise DataError(f"--keep: found {name}, wants one of {', '.join(CLEANABLE)}")


def clean(examination: Examination, folder: Path, keep: Collection[str] = ()) -> tuple[Cleaned, Diagnosis]:
    """Examine text, then write a cleaned copy of it to a new folder; kinds in `keep` are left as they are.

    Raises DataError if the folder exists, or if the faults are such that no cleaning of single pairs helps: the files
    have different numbers of lines, or the sides slip.
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
    """Mends pairs, then judges what came of them, and drops those that still have faults."""

    def __init__(self, examination: Examination, kinds: Sequence[str]) -> None:
        self._examination = examination
        self._mending = [name for name in kinds if KINDS[name].cleaned == MENDED]
        self._dropping = [name for name in kinds if KINDS[name].cleaned == DROPPED]
        self._repeats = Repeats()
        self._cleaned = Cleaned()

    def write(self, folder: Path, new: Path) -> Cleaned:
        """Write the cleaned parts to the folder `new`, which is going to be `folder`."""
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
            first = [rows[place] for place in places[:5]]
            examples = [Example(part.source, row.line, row.source, row.target) for row in first]
            self._cleaned.dropped.setdefault(name, Found()).add(examples, len(places))

    def _mended(self, part: Part, block: Records) -> list[Record]:
        """The pairs of a block, after mending; counts the mended pairs by kind.

        Only the kinds of faults that are to be mended are looked at; other faults stay.
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

        Mending one fault may bring another to light, such as the spaces within a tag.
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

    A part with two files keeps their names, without the suffix of a compression. For a part with one file, the
    codes of the languages, or "source" and "target", are appended to its name. Names that would occur twice get the
    number of the part and the side as a prefix.
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
