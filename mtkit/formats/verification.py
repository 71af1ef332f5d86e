"""What became of the files of a bundle since it was written."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtkit.formats.bundle import CANARIES, CARD, CONFIG, DESCRIPTION, SCORES, TOKENIZER, WEIGHTS
from mtkit.formats.packing import members_of
from mtkit.formats.storage import Storage
from mtkit.formats.sums import Sums

PARTS = (DESCRIPTION, CONFIG, CANARIES, SCORES, CARD, WEIGHTS)


def faults_of_files(storage: Storage, description: Mapping[str, Any], sums: Mapping[str, Sums]) -> list[str]:
    """A line for each file that is missing, changed, or none of the bundle's; sums are of those that are there.

    A bundle of format 1 tells nothing of most of its files.
    """
    return [*_faults(storage, description, sums)]


def _faults(storage: Storage, description: Mapping[str, Any], sums: Mapping[str, Sums]) -> Iterator[str]:
    told: Mapping[str, Any] = description.get("files", {})
    for name, wanted in told.items():
        if name not in sums:
            yield f"{storage.path / name}: missing; copy the model again"
        elif sums[name].told != wanted:
            yield (
                f"{storage.path / name}: changed since it was written ({sums[name].size:,} bytes, "
                f"{wanted['bytes']:,} were written); copy the model again"
            )
    for name in sorted({*storage.names(), *sums} - told.keys() - {DESCRIPTION}):
        is_part = name in PARTS or name.startswith(f"{TOKENIZER}/")
        if "files" in description or not is_part:
            yield f"{storage.path / name}: no part of the model; take it out, or copy the model again"
    if strange := storage.strange(members_of(storage, sums)):
        yield f"{storage.path}: {strange}; copy the model again"
