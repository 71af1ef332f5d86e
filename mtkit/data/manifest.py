"""What a corpus on disk holds and what it was made from, in a JSON file that knows when it was changed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtkit.data.stored_file import StoredFile
from mtkit.errors import DataError

FORMAT = 1


@dataclass(frozen=True)
class StoredText:
    """The text of one side: UTF-8, one sentence after the other, and where each begins, in bytes."""

    text: StoredFile
    offsets: StoredFile


@dataclass(frozen=True)
class SideManifest:
    """What one side holds."""

    vocab_size: int
    dtype: str
    num_tokens: int
    longest: int  # tokens of the longest sentence
    tokens: StoredFile
    offsets: StoredFile
    text: StoredText | None = None  # where training samples segmentations


@dataclass(frozen=True)
class RawFile:
    """A text file that went in."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """What a corpus holds and what it was made from."""

    num_pairs: int
    source: SideManifest
    target: SideManifest
    tokenizer_hash: str
    drops: dict[str, int]  # pairs left out, by reason
    raw_files: tuple[RawFile, ...]  # source, target, source, target, …
    settings: dict[str, Any]  # what decided which pairs were left out, and what was done to the others
    unknown: dict[str, float] = field(default_factory=dict)  # share of the tokens, by text; none where nothing can be
    corpora: tuple[int, ...] = ()  # pairs of each corpus that went in, in their order; none told by older versions

    def files(self) -> dict[str, StoredFile]:
        """What the files of the corpus hold, by their names."""
        found: dict[str, StoredFile] = {}
        for name, side in (("source", self.source), ("target", self.target)):
            found |= {f"{name}.tokens": side.tokens, f"{name}.offsets": side.offsets}
            if side.text:
                found |= {f"{name}.text": side.text.text, f"{name}.text_offsets": side.text.offsets}
        return found


def checksum(body: object) -> str:
    """One over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def validation_sum(manifest: Mapping[str, Any]) -> str:
    """One over the checksums of both sides of the validation text, as its manifest tells them."""
    return checksum([manifest.get(f"{side}.txt") for side in ("source", "target")])


def write_manifest(path: Path, manifest: Manifest) -> None:
    """With a checksum over it."""
    body = asdict(manifest)
    content = {"format": FORMAT, **body, "sha256": checksum(body)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """A missing, damaged or foreign one is a DataError."""
    if not path.is_file():
        raise DataError(f"{path.parent}: no binarized corpus here ({path.name} is missing); binarize the corpora first")
    try:
        content = json.loads(path.read_bytes())
        found, expected = content.pop("format"), content.pop("sha256")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: damaged; binarize the corpora again") from None
    if found != FORMAT:
        raise DataError(f"{path}: format {found!r} is unknown; this version of mtkit reads format {FORMAT}")
    if checksum(content) != expected:
        raise DataError(f"{path}: damaged; binarize the corpora again")
    content["source"], content["target"] = _side(content["source"]), _side(content["target"])
    content["raw_files"] = tuple(RawFile(**raw) for raw in content["raw_files"])
    content["corpora"] = tuple(content.get("corpora", ()))
    return Manifest(**content)


def _side(content: dict[str, Any]) -> SideManifest:
    for name in ("tokens", "offsets"):
        content[name] = _stored(content[name])
    if text := content.get("text"):
        content["text"] = StoredText(_stored(text["text"]), _stored(text["offsets"]))
    return SideManifest(**content)


def _stored(content: dict[str, Any]) -> StoredFile:
    return StoredFile(content["size"], tuple(content["sha256"]))
