"""Sentence pairs as ids on disk, memory-mapped.

Each side has a file of tokens, one sentence after the other without end marks, and a file of num_pairs + 1 offsets into
it. A manifest tells what is there and what it was made from; it is written last. A corpus is written beside its place
and renamed into it, so that a kill at any moment leaves the old one or the new one.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkit.data.lengths import length_statistics
from mtkit.data.manifest import Manifest, RawFile, SideManifest, StoredText, checksum, read_manifest, write_manifest
from mtkit.data.stored_file import FileWriter, check_content, check_size
from mtkit.errors import DataError
from mtkit.files import new_directory, put_in_place, settle

MANIFEST = "manifest.json"
OFFSET = np.dtype("<i8")


class CorpusWriter:
    """Writes a corpus, pair by pair, in little memory; without a commit, nothing changes.

    with CorpusWriter(directory, …) as writer:
        writer.add(source_tokens, target_tokens)
        writer.commit(…)
    """

    def __init__(
        self,
        directory: Path,
        source_vocab_size: int,
        target_vocab_size: int,
        tokenizer_hash: str,
        keeps_text: bool = False,
    ) -> None:
        """Makes an empty place beside the directory; what is in the directory stays until the commit."""
        self._directory = directory
        self._tokenizer_hash = tokenizer_hash
        self._writing = new_directory(directory)
        self._source = _SideWriter(self._writing, "source", source_vocab_size, keeps_text)
        self._target = _SideWriter(self._writing, "target", target_vocab_size, keeps_text)
        self.num_pairs = 0

    def add(
        self,
        source: Sequence[Sequence[int]],
        target: Sequence[Sequence[int]],
        source_text: Sequence[str] = (),
        target_text: Sequence[str] = (),
    ) -> None:
        """Append pairs, without end marks; with the normalised text of each where it is kept."""
        assert len(source) == len(target)
        self._source.add(source, source_text)
        self._target.add(target, target_text)
        self.num_pairs += len(source)

    def commit(
        self,
        drops: Mapping[str, int],
        raw_files: Sequence[RawFile],
        settings: Mapping[str, Any],
        corpora: Sequence[int],
        unknown: Mapping[str, float] = MappingProxyType({}),
    ) -> Manifest:
        """Put the corpus in its place; corpora are the pairs of each text that went in."""
        assert sum(corpora) == self.num_pairs
        manifest = Manifest(
            num_pairs=self.num_pairs,
            source=self._source.finish(),
            target=self._target.finish(),
            tokenizer_hash=self._tokenizer_hash,
            drops=dict(drops),
            raw_files=tuple(raw_files),
            settings=dict(settings),
            unknown=dict(unknown),
            corpora=tuple(corpora),
        )
        write_manifest(self._writing / MANIFEST, manifest)
        put_in_place(self._directory)
        return manifest

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not committed."""
        self._source.discard()
        self._target.discard()
        shutil.rmtree(self._writing, ignore_errors=True)


class Corpus:
    """A corpus on disk; nothing is read until it is asked for."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Corpus.open is the way in; it checks."""
        self.directory = directory
        self.manifest = manifest
        self.source_tokens = _map(directory / "source.tokens", np.dtype(manifest.source.dtype))
        self.target_tokens = _map(directory / "target.tokens", np.dtype(manifest.target.dtype))
        self.source_offsets = _map(directory / "source.offsets", OFFSET)
        self.target_offsets = _map(directory / "target.offsets", OFFSET)
        for name, offsets, tokens in (
            ("source.offsets", self.source_offsets, self.source_tokens),
            ("target.offsets", self.target_offsets, self.target_tokens),
        ):
            if len(offsets) != manifest.num_pairs + 1 or offsets[0] != 0 or offsets[-1] != len(tokens):
                raise DataError(
                    f"{directory / name}: ends at token {offsets[-1] if len(offsets) else 0:,} of {len(tokens):,}; "
                    "binarize the corpora again"
                )
        self._source_text = _Text.open(directory, "source", manifest.source.text)
        self._target_text = _Text.open(directory, "target", manifest.target.text)

    @staticmethod
    def open(directory: Path) -> "Corpus":
        """The corpus in a directory; manifest and sizes are checked, at a cost that does not grow with the corpus."""
        settle(directory)
        manifest = read_manifest(directory / MANIFEST)
        for name, stored in manifest.files().items():
            check_size(directory / name, stored)
        return Corpus(directory, manifest)

    def __len__(self) -> int:
        """Number of pairs."""
        return self.manifest.num_pairs

    def source(self, pair: int) -> NDArray[np.unsignedinteger[Any]]:
        """(S,) ids of a source, no end mark."""
        return self.source_tokens[self.source_offsets[pair] : self.source_offsets[pair + 1]]

    def target(self, pair: int) -> NDArray[np.unsignedinteger[Any]]:
        """(T,) ids of a target, no end mark."""
        return self.target_tokens[self.target_offsets[pair] : self.target_offsets[pair + 1]]

    def source_text(self, pairs: NDArray[np.int64]) -> list[str]:
        """The normalised sources of these pairs; only where has_text."""
        assert self._source_text
        return self._source_text.lines(pairs)

    def target_text(self, pairs: NDArray[np.int64]) -> list[str]:
        """The normalised targets of these pairs; only where has_text."""
        assert self._target_text
        return self._target_text.lines(pairs)

    @property
    def has_text(self) -> bool:
        """Whether the text of each pair is stored beside its ids."""
        return self._source_text is not None and self._target_text is not None

    @cached_property
    def source_lengths(self) -> NDArray[np.int32]:
        """(num_pairs,) tokens of each source, no end mark."""
        return _lengths(self.source_offsets)

    @cached_property
    def target_lengths(self) -> NDArray[np.int32]:
        """(num_pairs,) tokens of each target, no end mark."""
        return _lengths(self.target_offsets)

    @property
    def digest(self) -> str:
        """One checksum over all ids, and the text that is stored with them, wherever they came from."""
        return checksum([stored.sha256 for stored in self.manifest.files().values()])

    @property
    def num_bytes(self) -> int:
        """Of all its files but the manifest."""
        return sum(stored.size for stored in self.manifest.files().values())

    def facts(self) -> dict[str, Any]:
        """What a reader of the model's card wants to know; text files by their names, not their places."""
        manifest = self.manifest
        return {
            "num_pairs": manifest.num_pairs,
            "source_tokens": manifest.source.num_tokens,
            "target_tokens": manifest.target.num_tokens,
            "dropped": manifest.drops,
            "unknown": manifest.unknown,
            "files": [{"name": Path(raw.path).name, "fingerprint": raw.fingerprint} for raw in manifest.raw_files],
            "corpora": list(manifest.corpora),
            "lengths": length_statistics(
                {"source": manifest.source, "target": manifest.target},
                {"source": self.source_offsets, "target": self.target_offsets},
            ),
        }

    def require_tokenizer(self, tokenizer_hash: str) -> None:
        """Refuse ids that another tokenizer made."""
        if self.manifest.tokenizer_hash != tokenizer_hash:
            raise DataError(
                f"{self.directory}: was encoded by another tokenizer ({self.manifest.tokenizer_hash[:12]}, "
                f"not {tokenizer_hash[:12]}); binarize the corpora again"
            )

    def require_text(self) -> None:
        """Refuse a corpus of ids alone."""
        if not self.has_text:
            raise DataError(
                f"{self.directory}: holds no text, which training.bpe_dropout and training.unigram_alpha sample from; "
                "binarize the corpora again"
            )

    def verify(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Read everything, and compare it with the checksums; give_up is asked at each piece."""
        for name, stored in self.manifest.files().items():
            check_content(self.directory / name, stored, give_up)


@dataclass(frozen=True)
class _Text:
    """Stored lines of one side."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @staticmethod
    def open(directory: Path, side: str, stored: StoredText | None) -> "_Text | None":
        if stored is None:
            return None
        return _Text(
            _map(directory / f"{side}.text", np.dtype(np.uint8)), _map(directory / f"{side}.text_offsets", OFFSET)
        )

    def lines(self, pairs: NDArray[np.int64]) -> list[str]:
        starts, ends = self.offsets[pairs].tolist(), self.offsets[pairs + 1].tolist()
        return [self.text[start:end].tobytes().decode("utf-8") for start, end in zip(starts, ends, strict=True)]


class _SideWriter:
    """Tokens and offsets of one side, and its text where it is kept."""

    def __init__(self, directory: Path, side: str, vocab_size: int, keeps_text: bool) -> None:
        self._vocab_size = vocab_size
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self._tokens = FileWriter(directory / f"{side}.tokens")
        self._offsets = FileWriter(directory / f"{side}.offsets")
        self._offsets.write(np.zeros(1, OFFSET).tobytes())
        self._text = _TextWriter(directory, side) if keeps_text else None
        self._num_tokens = 0
        self._longest = 0

    def add(self, rows: Sequence[Sequence[int]], lines: Sequence[str]) -> None:
        if self._text:
            assert len(lines) == len(rows)
            self._text.add(lines)
        lengths = [len(row) for row in rows]
        self._tokens.write(np.fromiter(chain.from_iterable(rows), self._dtype, sum(lengths)).tobytes())
        ends = np.fromiter(accumulate(lengths), OFFSET, len(lengths)) + self._num_tokens
        self._offsets.write(ends.astype(OFFSET).tobytes())
        self._num_tokens += sum(lengths)
        self._longest = max(self._longest, *lengths, 0)

    def finish(self) -> SideManifest:
        return SideManifest(
            vocab_size=self._vocab_size,
            dtype=self._dtype.str,
            num_tokens=self._num_tokens,
            longest=self._longest,
            tokens=self._tokens.finish(),
            offsets=self._offsets.finish(),
            text=self._text.finish() if self._text else None,
        )

    def discard(self) -> None:
        self._tokens.discard()
        self._offsets.discard()
        if self._text:
            self._text.discard()


class _TextWriter:
    """Text and offsets of one side."""

    def __init__(self, directory: Path, side: str) -> None:
        self._text = FileWriter(directory / f"{side}.text")
        self._offsets = FileWriter(directory / f"{side}.text_offsets")
        self._offsets.write(np.zeros(1, OFFSET).tobytes())
        self._size = 0

    def add(self, lines: Sequence[str]) -> None:
        encoded = [line.encode("utf-8") for line in lines]
        ends = np.fromiter(accumulate(map(len, encoded)), OFFSET, len(encoded)) + self._size
        self._text.write(b"".join(encoded))
        self._offsets.write(ends.astype(OFFSET).tobytes())
        self._size += sum(map(len, encoded))

    def finish(self) -> StoredText:
        return StoredText(self._text.finish(), self._offsets.finish())

    def discard(self) -> None:
        self._text.discard()
        self._offsets.discard()


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A file as a read-only array; an empty file cannot be mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _lengths(offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    lengths = np.empty(len(offsets) - 1, np.int32)
    np.subtract(offsets[1:], offsets[:-1], out=lengths, casting="unsafe")
    return lengths
