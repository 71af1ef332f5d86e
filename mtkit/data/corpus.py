"""Binarized corpora: sentence pairs as memory-mapped token ids, with a manifest and checksums of their files.

A corpus is a directory. For each side, the file `SIDE.tokens` holds the token ids of all sentences, concatenated, and
the file `SIDE.offsets` holds the index of the first token of each sentence. If training samples segmentations, the
text of the sentences is stored in the same way in `SIDE.text` and `SIDE.text_offsets`. If training is guided by word
alignments, `alignment.links` holds the links of all pairs, and `alignment.offsets` the index of each pair's first link.

A binarized corpus may hold several corpora of `data.train`, one after the other; a mixture says how often each is
repeated in an epoch.
"""

import concurrent.futures
import hashlib
import json
import mmap
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkit.errors import DataError
from mtkit.files import new_directory, put_in_place, settle
from mtkit.text.vocabulary import Encoded, id_dtype

# Files with checksums.

PIECE_BYTES = 64 * 1024 * 1024  # files are divided into pieces of this size; each piece has its own checksum


@dataclass(frozen=True)
class StoredFile:
    """The size and the checksums that a file had when it was written."""

    size: int  # in bytes
    sha256: tuple[str, ...]  # one checksum for each piece of PIECE_BYTES


class FileWriter:
    """Writes a file, and meanwhile computes the checksums of its pieces."""

    def __init__(self, path: Path) -> None:
        """Creates the file, or truncates an existing file."""
        self._stream = path.open("wb")
        self._size = 0
        self._sha256: list[str] = []
        self._piece = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Appends bytes to the file."""
        self._stream.write(content)
        while content:
            left = PIECE_BYTES - self._size % PIECE_BYTES
            head, content = content[:left], content[left:]
            self._piece.update(head)
            self._size += len(head)
            if len(head) == left:
                self._end_piece()

    def _end_piece(self) -> None:
        self._sha256.append(self._piece.hexdigest())
        self._piece = hashlib.sha256()

    def finish(self) -> StoredFile:
        """Closes the file; returns its size and its checksums."""
        if self._size % PIECE_BYTES:
            self._end_piece()
        self._stream.close()
        return StoredFile(self._size, tuple(self._sha256))

    def discard(self) -> None:
        """Closes an unfinished file; ignores any OSError, for example if the disk is full."""
        with suppress(OSError):
            self._stream.close()


def check_size(path: Path, stored: StoredFile) -> None:
    """Raises DataError if a file is missing, or if its size differs from the stored size."""
    if not path.is_file():
        raise DataError(f"{path}: missing; binarize the corpora again")
    found = path.stat().st_size
    if found != stored.size:
        raise DataError(f"{path}: has {found:,} bytes but {stored.size:,} were written; binarize the corpora again")


def check_content(path: Path, stored: StoredFile, should_stop: Callable[[], bool]) -> None:
    """Raises DataError if the content of a file does not match the stored checksums.

    The file is checked piece by piece. Before each piece, `should_stop()` is called; once that returns `True`, the rest
    of the file is not checked.
    """
    with path.open("rb") as stream:
        for number, sha256 in enumerate(stored.sha256, start=1):
            if should_stop():
                return
            if hashlib.sha256(stream.read(PIECE_BYTES)).hexdigest() != sha256:
                place = f"piece {number} of {len(stored.sha256)} ({PIECE_BYTES >> 20} MiB each)"
                raise DataError(f"{path}: damaged in {place}; binarize the corpora again")


# The manifest: a JSON file that describes a corpus and what the corpus was made from. It includes a checksum of its own
# content.

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class StoredText:
    """The two files with the text of one side: all sentences in UTF-8, concatenated, and the byte offset of each."""

    text: StoredFile
    offsets: StoredFile


@dataclass(frozen=True)
class SideManifest:
    """The manifest of one side of a corpus: vocabulary size, dtype of the ids, length statistics and files."""

    vocab_size: int
    dtype: str  # of the ids
    num_tokens: int
    longest: int  # the number of tokens of the longest sentence
    tokens: StoredFile
    offsets: StoredFile
    text: StoredText | None = None  # only if training samples segmentations


@dataclass(frozen=True)
class RawFile:
    """A text file that a corpus was made from; the fingerprint is a checksum of its content, such as "sha256:8f3c…"."""

    path: str
    fingerprint: str


@dataclass(frozen=True)
class StoredAlignment:
    """The two files that hold the word alignments of the pairs, and the text file that the alignments come from."""

    links: StoredFile
    offsets: StoredFile
    raw_file: RawFile


@dataclass(frozen=True)
class Manifest:
    """The manifest of a corpus: a description of the corpus and of what it was made from."""

    num_pairs: int
    source: SideManifest
    target: SideManifest
    tokenizer_hash: str
    drops: dict[str, int]  # the number of pairs left out, by reason
    raw_files: tuple[RawFile, ...]  # source, target, source, target, …
    settings: dict[str, Any]  # the settings that decide which pairs are left out and how the others are encoded
    # The fraction of unknown tokens in each text, by its name, such as "training source". Texts whose tokenizer never
    # produces unknown tokens are left out.
    unknown: dict[str, float] = field(default_factory=dict)
    corpora: tuple[int, ...] = ()  # the number of pairs kept from each corpus; empty in manifests of older versions
    alignment: StoredAlignment | None = None  # only with training.guided_alignment

    def files(self) -> dict[str, StoredFile]:
        """Returns the sizes and checksums of all files of the corpus, by file name."""
        found: dict[str, StoredFile] = {}
        for name, side in (("source", self.source), ("target", self.target)):
            found |= {f"{name}.tokens": side.tokens, f"{name}.offsets": side.offsets}
            if side.text:
                found |= {f"{name}.text": side.text.text, f"{name}.text_offsets": side.text.offsets}
        if self.alignment:
            found |= {"alignment.links": self.alignment.links, "alignment.offsets": self.alignment.offsets}
        return found


def checksum(body: object) -> str:
    """Returns a SHA-256 checksum of a value, computed from its JSON form with sorted keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest, and a checksum of the manifest, to a JSON file."""
    body = {name: value for name, value in asdict(manifest).items() if name != "alignment" or value}
    content = {"format": FORMAT, **body, "sha256": checksum(body)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest from a JSON file. Raises DataError if the file is missing, damaged or of an unknown format."""
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
    if stored := content.get("alignment"):
        files = {name: _stored(stored[name]) for name in ("links", "offsets")}
        content["alignment"] = StoredAlignment(**files, raw_file=RawFile(**stored["raw_file"]))
    return Manifest(**content)


def _side(content: dict[str, Any]) -> SideManifest:
    """Converts the JSON object `content` to a SideManifest; modifies `content`."""
    for name in ("tokens", "offsets"):
        content[name] = _stored(content[name])
    if text := content.get("text"):
        content["text"] = StoredText(_stored(text["text"]), _stored(text["offsets"]))
    return SideManifest(**content)


def _stored(content: dict[str, Any]) -> StoredFile:
    return StoredFile(content["size"], tuple(content["sha256"]))


# Reading a corpus.

OFFSET = np.dtype("<i8")  # of all offsets files
TOKEN_INDEX = np.dtype("<u4")  # of links; a link is (index of a source token, index of a target token)


class Corpus:
    """A binarized corpus on disk, memory-mapped, so that ids and text are read only when they are used."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        """Maps the files into memory; call `Corpus.open` instead, which checks the manifest and the file sizes first.

        Raises DataError if the offsets do not match the number of pairs or of tokens.
        """
        self.directory = directory
        self.manifest = manifest
        self.source_tokens = _map(directory / "source.tokens", np.dtype(manifest.source.dtype), at_random=True)
        self.target_tokens = _map(directory / "target.tokens", np.dtype(manifest.target.dtype), at_random=True)
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
        self._source_text = _SideText.open(directory, "source", manifest.source.text)
        self._target_text = _SideText.open(directory, "target", manifest.target.text)
        self._links: NDArray[np.unsignedinteger[Any]] | None = None  # (number of links, 2)
        if manifest.alignment:
            self._links = _map(directory / "alignment.links", TOKEN_INDEX).reshape(-1, 2)
            self._link_offsets = _map(directory / "alignment.offsets", OFFSET)
            ends = self._link_offsets[[0, -1]].tolist() if len(self._link_offsets) == manifest.num_pairs + 1 else []
            if ends != [0, len(self._links)]:
                raise DataError(f"{directory / 'alignment.offsets'}: damaged; binarize the corpora again")

    @staticmethod
    def open(directory: Path) -> "Corpus":
        """Opens the corpus in a directory; even a huge corpus opens quickly, since ids and text are not read yet.

        Raises DataError if the directory has no corpus, the manifest is damaged, or a file has the wrong size.
        """
        settle(directory)
        manifest = read_manifest(directory / MANIFEST)
        for name, stored in manifest.files().items():
            check_size(directory / name, stored)
        return Corpus(directory, manifest)

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return self.manifest.num_pairs

    def source(self, pair: int) -> NDArray[np.unsignedinteger[Any]]:
        """Returns the token ids (S,) of the source of a pair, without the end mark."""
        return self.source_tokens[self.source_offsets[pair] : self.source_offsets[pair + 1]]

    def target(self, pair: int) -> NDArray[np.unsignedinteger[Any]]:
        """Returns the token ids (T,) of the target of a pair, without the end mark."""
        return self.target_tokens[self.target_offsets[pair] : self.target_offsets[pair + 1]]

    def source_text(self, pairs: NDArray[np.int64]) -> list[str]:
        """Returns the normalised source text of the pairs; `has_text` must be true."""
        assert self._source_text
        return self._source_text.lines(pairs)

    def target_text(self, pairs: NDArray[np.int64]) -> list[str]:
        """Returns the normalised target text of the pairs; `has_text` must be true."""
        assert self._target_text
        return self._target_text.lines(pairs)

    @property
    def has_text(self) -> bool:
        """Whether the corpus stores the text of each pair in addition to the token ids."""
        return self._source_text is not None and self._target_text is not None

    @property
    def has_links(self) -> bool:
        """Whether the corpus stores word alignments."""
        return self._links is not None

    def links(self, pair: int) -> NDArray[np.unsignedinteger[Any]]:
        """Returns the word alignment of a pair as links (N, 2): indices of a source token and of a target token.

        `has_links` must be true.
        """
        assert self._links is not None
        return self._links[self._link_offsets[pair] : self._link_offsets[pair + 1]]

    @cached_property
    def source_lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each source, not counting the end mark; one number for each pair."""
        return _lengths(self.source_offsets)

    @cached_property
    def target_lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each target, not counting the end mark; one number for each pair."""
        return _lengths(self.target_offsets)

    @property
    def digest(self) -> str:
        """A checksum of all stored token ids and text, but not of the manifest."""
        return checksum([stored.sha256 for stored in self.manifest.files().values()])

    @property
    def num_bytes(self) -> int:
        """The total size of all files except the manifest, in bytes."""
        return sum(stored.size for stored in self.manifest.files().values())

    def facts(self) -> dict[str, Any]:
        """Returns a description of the corpus for a model card; the paths of text files are reduced to file names."""
        manifest = self.manifest
        files = dict.fromkeys(manifest.raw_files)  # a corpus without a source has each file twice
        return {
            "num_pairs": manifest.num_pairs,
            "source_tokens": manifest.source.num_tokens,
            "target_tokens": manifest.target.num_tokens,
            "dropped": manifest.drops,
            "unknown": manifest.unknown,
            "files": [{"name": Path(raw.path).name, "fingerprint": raw.fingerprint} for raw in files],
            "corpora": list(manifest.corpora),
            "lengths": length_statistics(
                {"source": manifest.source, "target": manifest.target},
                {"source": self.source_offsets, "target": self.target_offsets},
            ),
            "length_limit": length_limit(self.source_offsets, self.target_offsets, manifest.corpora),
        }

    def require_tokenizer(self, tokenizer_hash: str) -> None:
        """Raises DataError if the corpus was encoded by a tokenizer whose hash is not `tokenizer_hash`."""
        if self.manifest.tokenizer_hash != tokenizer_hash:
            raise DataError(
                f"{self.directory}: was encoded by another tokenizer ({self.manifest.tokenizer_hash[:12]}, "
                f"not {tokenizer_hash[:12]}); binarize the corpora again"
            )

    def require_text(self) -> None:
        """Raises DataError if the corpus does not store the text of its pairs."""
        if not self.has_text:
            raise DataError(
                f"{self.directory}: holds no text, which training.bpe_dropout and training.unigram_alpha sample from; "
                "binarize the corpora again"
            )

    def require_links(self) -> None:
        """Raises DataError if the corpus does not store word alignments."""
        if not self.has_links:
            raise DataError(
                f"{self.directory}: holds no word alignments, which training.guided_alignment learns; binarize the "
                "corpora again"
            )

    def verify(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Compares all files with their checksums. Raises DataError if a file is damaged.

        The files are checked piece by piece. Before each piece, `should_stop()` is called; once that returns `True`,
        the rest is not checked.
        """
        for name, stored in self.manifest.files().items():
            check_content(self.directory / name, stored, should_stop)


@dataclass(frozen=True)
class _SideText:
    """The memory-mapped text of one side, and the byte offset of each sentence."""

    text: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @staticmethod
    def open(directory: Path, side: str, stored: StoredText | None) -> "_SideText | None":
        """Maps the text of one side, "source" or "target", into memory; returns `None` if no text is stored."""
        if stored is None:
            return None
        return _SideText(
            _map(directory / f"{side}.text", np.dtype(np.uint8)), _map(directory / f"{side}.text_offsets", OFFSET)
        )

    def lines(self, pairs: NDArray[np.int64]) -> list[str]:
        """Returns the text of the given pairs on this side."""
        starts, ends = self.offsets[pairs].tolist(), self.offsets[pairs + 1].tolist()
        return [self.text[start:end].tobytes().decode("utf-8") for start, end in zip(starts, ends, strict=True)]


def _map(path: Path, dtype: np.dtype[Any], at_random: bool = False) -> NDArray[Any]:
    """Maps a file into memory as a read-only array.

    `at_random` means that the array will be read at random places, so that the system should not read ahead.
    Returns an ordinary empty array for an empty file, since an empty file cannot be memory-mapped.
    """
    if not path.stat().st_size:
        return np.empty(0, dtype)
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if at_random and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype)


def _lengths(offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Returns the length of each sentence, as int32: the difference between two successive offsets."""
    lengths = np.empty(len(offsets) - 1, np.int32)
    np.subtract(offsets[1:], offsets[:-1], out=lengths, casting="unsafe")
    return lengths


# Writing a corpus.


class CorpusWriter:
    """Writes a corpus step by step, with little memory; the directory does not change until `commit`.

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
        keeps_links: bool = False,
    ) -> None:
        """Creates a temporary directory, which `commit` will put in the place of `directory`.

        With `keeps_text`, the corpus stores the text of the pairs in addition to the token ids; with `keeps_links`, it
        also stores the word alignments of the pairs.
        """
        self._directory = directory
        self._tokenizer_hash = tokenizer_hash
        self._writing = new_directory(directory)
        self._source = _SideWriter(self._writing, "source", source_vocab_size, keeps_text)
        self._target = _SideWriter(self._writing, "target", target_vocab_size, keeps_text)
        self._links = _LinksWriter(self._writing) if keeps_links else None
        self.num_pairs = 0

    def add(
        self,
        source: Sequence[Sequence[int]] | Encoded,
        target: Sequence[Sequence[int]] | Encoded,
        source_text: Sequence[str] = (),
        target_text: Sequence[str] = (),
        links: Sequence[Sequence[tuple[int, int]]] = (),
    ) -> None:
        """Appends pairs, as token ids without end marks.

        If the writer was created with keeps_text=True, the normalised text of the pairs is required too. If the writer
        was created with keeps_links=True, `links` must hold the word alignment of each pair; a link is (index of a
        source token, index of a target token). Text or links that the corpus does not keep are ignored.
        """
        assert len(source) == len(target)
        if self._links:
            assert len(links) == len(source)
            self._links.add(links)
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
        links_file: RawFile | None = None,
    ) -> Manifest:
        """Finishes the corpus and moves it to the directory of the writer; returns the manifest of the corpus.

        All arguments are stored in the manifest. `drops` is the number of pairs left out, by reason; `raw_files` are
        the text files that the pairs come from; `settings` decide which pairs are left out and how pairs are encoded.
        `corpora` is the number of pairs added from each corpus of `data.train`. `unknown` is the fraction of unknown
        tokens, by the name of the text. `links_file` is the text file of the word alignments, if the corpus has any.
        """
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
            alignment=self._links.finish(links_file) if self._links and links_file else None,
        )
        write_manifest(self._writing / MANIFEST, manifest)
        put_in_place(self._directory)
        return manifest

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the temporary directory unless `commit` was called."""
        self._source.discard()
        self._target.discard()
        if self._links:
            self._links.discard()
        shutil.rmtree(self._writing, ignore_errors=True)


class _SideWriter:
    """Writes the files of one side: the tokens, the offsets and, if the corpus keeps text, the text."""

    def __init__(self, directory: Path, side: str, vocab_size: int, keeps_text: bool) -> None:
        self._vocab_size = vocab_size
        self._dtype = id_dtype(vocab_size)
        self._tokens = FileWriter(directory / f"{side}.tokens")
        self._offsets = FileWriter(directory / f"{side}.offsets")
        self._offsets.write(np.zeros(1, OFFSET).tobytes())
        self._text = _TextWriter(directory, side) if keeps_text else None
        self._num_tokens = 0
        self._longest = 0

    def add(self, rows: Sequence[Sequence[int]] | Encoded, lines: Sequence[str]) -> None:
        """Appends sentences: the token ids in `rows` and, if the corpus keeps text, the text in `lines`."""
        if self._text:
            assert len(lines) == len(rows)
            self._text.add(lines)
        encoded = rows if isinstance(rows, Encoded) else Encoded.of(rows, self._dtype)
        self._tokens.write(encoded.ids.astype(self._dtype).tobytes())
        self._offsets.write((self._num_tokens + np.cumsum(encoded.lengths)).astype(OFFSET).tobytes())
        self._num_tokens += len(encoded.ids)
        self._longest = max(self._longest, int(encoded.lengths.max(initial=0)))

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


class _LinksWriter:
    """Writes the word alignments of the pairs, and the index of the first link of each pair."""

    def __init__(self, directory: Path) -> None:
        self._links = FileWriter(directory / "alignment.links")
        self._offsets = FileWriter(directory / "alignment.offsets")
        self._offsets.write(np.zeros(1, OFFSET).tobytes())
        self._num_links = 0

    def add(self, links: Sequence[Sequence[tuple[int, int]]]) -> None:
        lengths = [len(of_pair) for of_pair in links]
        indices = chain.from_iterable(chain.from_iterable(links))
        self._links.write(np.fromiter(indices, TOKEN_INDEX, 2 * sum(lengths)).tobytes())
        ends = np.fromiter(accumulate(lengths), OFFSET, len(lengths)) + self._num_links
        self._offsets.write(ends.astype(OFFSET).tobytes())
        self._num_links += sum(lengths)

    def finish(self, raw_file: RawFile) -> StoredAlignment:
        return StoredAlignment(self._links.finish(), self._offsets.finish(), raw_file)

    def discard(self) -> None:
        self._links.discard()
        self._offsets.discard()


class _TextWriter:
    """Writes the text of one side and the byte offsets of its sentences."""

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


# Verification: comparing a corpus with its checksums, before training or while it runs.

VERIFIED_FIRST_BYTES = 1 << 30  # a corpus up to this size, which takes a few seconds, is verified before training


class Verification:
    """Compares a corpus with its checksums: a small corpus immediately, a large one in a thread during training.

    with Verification(corpus) as verification:
        verification.check()  # regularly
        verification.wait(check)  # before the results are used
    """

    def __init__(self, corpus: Corpus) -> None:
        """Verifies a small corpus, and raises DataError if it is damaged; starts a thread for a large corpus."""
        self._stopped = threading.Event()
        self._reader: ThreadPoolExecutor | None = None
        if corpus.num_bytes <= VERIFIED_FIRST_BYTES:
            corpus.verify()
        else:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="verification")
            self._end = self._reader.submit(corpus.verify, self._stopped.is_set)

    def check(self) -> None:
        """Raises DataError if the verification has already found the corpus to be damaged."""
        if self._reader and self._end.done():
            self._end.result()

    def wait(self, check: Callable[[], None]) -> None:
        """Waits until the whole corpus is verified. Raises DataError if the corpus is damaged.

        While waiting, calls `check()` ten times a second; an exception from `check` ends the wait.
        """
        while self._reader and not self._end.done():
            check()
            concurrent.futures.wait([self._end], timeout=0.1)
        self.check()

    def __enter__(self) -> "Verification":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the thread that verifies a large corpus, if there is one."""
        self._stopped.set()
        if self._reader:
            self._reader.shutdown()


# Length statistics. Their cost is bounded even for huge corpora.

QUANTILES = (1, 5, 50, 95, 99)  # per cent
MOST_PAIRS = 1_000_000  # if a corpus has more pairs, only about this many are measured, in evenly spaced blocks
BLOCK_PAIRS = 1000  # the number of pairs in such a block


def length_statistics(
    manifests: dict[str, SideManifest], offsets: dict[str, NDArray[np.int64]], most_pairs: int = MOST_PAIRS
) -> dict[str, Any]:
    """Returns the mean, quantiles and maximum of the sentence lengths of each side, in tokens without end marks.

    `manifests` and `offsets` have one entry per side; each array of offsets has the shape (num_pairs + 1,). Mean and
    maximum are exact. The quantiles are computed from at most `most_pairs` pairs; the entry "measured" of the result is
    the number of these pairs.
    """
    num_pairs = len(next(iter(offsets.values()))) - 1
    blocks = spread_blocks(num_pairs, most_pairs)
    found: dict[str, Any] = {"pairs": num_pairs, "measured": sum(end - begin for begin, end in blocks)}
    for side, begins in offsets.items():
        lengths = np.concatenate([np.diff(begins[begin : end + 1]) for begin, end in blocks])
        # inverted_cdf: each quantile is a length that occurs, not an interpolation of two lengths.
        values = np.percentile(lengths, QUANTILES, method="inverted_cdf") if len(lengths) else []
        found[side] = {
            "mean": round(manifests[side].num_tokens / max(num_pairs, 1), 2),
            "quantiles": {f"{q}%": int(value) for q, value in zip(QUANTILES, values, strict=False)},
            "longest": manifests[side].longest,
        }
    return found


EXCESS = 1e-4  # the fraction of training pairs whose target may be longer than the limit
# Tokens added to the limit if a corpus has at most 1 / EXCESS pairs, since the longest targets may be missing from it.
# The larger a corpus beyond that, the fewer tokens are added.
SPARE_TOKENS = 5
RATIOS = np.arange(1.2, 3.05, 0.1)  # tried as multiples of the mean ratio of target length to source length


def length_limit(
    source_offsets: NDArray[np.int64],
    target_offsets: NDArray[np.int64],
    corpora: Sequence[int] = (),
    most_pairs: int = MOST_PAIRS,
) -> dict[str, float]:
    """Returns {"ratio": …, "extra": …}: translations may have at most ratio x source length + extra tokens.

    Lengths are in tokens without end marks. In less than the fraction `EXCESS` of the pairs, the target is longer
    than this limit. Of several such limits, the one with the smallest mean over the pairs is chosen. The ratio is at
    least 1.2 times the mean ratio of target length to source length. This leaves room for sentences that are longer
    than those of the corpus.

    `corpora` holds the number of pairs from each corpus, in order; if it is empty, all pairs count as one corpus. Each
    corpus is measured by itself, since the corpora may have different languages. The largest ratio and the largest
    extra are returned. Of each corpus, at most `most_pairs` pairs are measured. Both arrays of offsets have the shape
    (num_pairs + 1,).

    The result is empty if there are no target tokens. If all sources are empty, as for a language model, only "extra"
    limits the length.
    """
    num_pairs = len(source_offsets) - 1
    ends = np.cumsum(corpora if sum(corpora) == num_pairs and corpora else [num_pairs]).tolist()
    limits = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        sources, targets = (
            np.concatenate(
                [np.diff(offsets[begin + b : begin + e + 1]) for b, e in spread_blocks(end - begin, most_pairs)]
            )
            for offsets in (source_offsets, target_offsets)
        )
        if targets.sum():
            limits.append(_limit(sources, targets))
    if not limits:
        return {}
    ratios, extras = zip(*limits, strict=True)
    return {"ratio": min(max(*ratios, 0.1), 100.0), "extra": min(max(extras), 10_000)}


def _limit(sources: NDArray[np.int64], targets: NDArray[np.int64]) -> tuple[float, int]:
    """Returns the ratio and the extra tokens that limit the length of targets to ratio x source length + extra.

    `sources` and `targets` are lengths of pairs. The fraction of pairs with a target over the limit is below EXCESS.
    """
    longer = max(int(np.ceil(EXCESS * len(sources))) - 1, 0)  # the number of pairs that may have a longer target
    spare = int(np.ceil(SPARE_TOKENS * min(1.0, 1 / (EXCESS * len(sources)))))
    found = []
    ratios = np.round(RATIOS * targets.sum() / sources.sum(), 2).tolist() if sources.sum() else [0.0]
    for ratio in ratios:
        excess = targets - ratio * sources
        extra = max(int(np.ceil(np.partition(excess, -longer - 1)[-longer - 1])), 0) + spare
        found.append((ratio * sources.mean() + extra, ratio, extra))
    _, ratio, extra = min(found)
    return ratio, extra


def spread_blocks(num_pairs: int, most_pairs: int) -> list[tuple[int, int]]:
    """Chooses the blocks of pairs whose lengths are measured; returns (begin, end) of each block.

    If there are at most `most_pairs` pairs, a single block holds all of them. Otherwise, there are several blocks of
    `BLOCK_PAIRS` pairs, evenly spaced over the corpus.
    """
    if num_pairs <= most_pairs:
        return [(0, num_pairs)]
    begins = np.linspace(0, num_pairs - BLOCK_PAIRS, most_pairs // BLOCK_PAIRS).astype(int).tolist()
    return [(begin, begin + BLOCK_PAIRS) for begin in begins]


# The validation text that binarize stores in the run directory.

VALIDATION_FORMAT = 1


def read_validation_text(directory: Path) -> tuple[list[str], list[str]]:
    """Returns the sources and the references of the validation text in a directory; writes nothing there.

    Raises DataError if the files of the validation text are missing, have changed since they were written, or have an
    unknown format.
    """
    manifest = read_json_object(directory / MANIFEST)
    if manifest.get("format") != VALIDATION_FORMAT:
        raise DataError(
            f"{directory}: format {manifest.get('format')!r} is unknown; this version of mtkit reads format "
            f"{VALIDATION_FORMAT}"
        )
    source, target = (_read_checked(directory / f"{side}.txt", manifest) for side in ("source", "target"))
    return source, target


def _read_checked(path: Path, manifest: dict[str, Any]) -> list[str]:
    r"""Returns the lines of a file; a `\r` at the end of a line is kept.

    Raises DataError if the file is missing, or if the checksum of the file differs from the checksum in the manifest.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; binarize the corpora again") from None
    if hashlib.sha256(raw).hexdigest() != manifest.get(path.name):
        raise DataError(f"{path}: has changed since it was written; binarize the corpora again")
    return raw.decode("utf-8").split("\n")[:-1]


def validation_checksum(manifest: Mapping[str, Any]) -> str:
    """Returns a checksum of both sides of the validation text, computed from the checksums in `manifest`."""
    return checksum([manifest.get(f"{side}.txt") for side in ("source", "target")])


# JSON files.


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises DataError if the file is missing or does not hold a JSON object."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; make it again") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged; make it again")
    return content


# How often each corpus is repeated in an epoch.

BLOCK = 1024  # consecutive pairs kept together in one window (see WINDOW), so that a huge corpus is read in long runs


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive pairs: block b consists of the pairs `starts[b]`, …, `ends[b] - 1`."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_pairs(self) -> int:
        """The total number of pairs in all blocks; a pair that is in several blocks counts several times."""
        return int((self.ends - self.starts).sum())

    def select(self, indices: NDArray[np.int64]) -> "Blocks":
        """Returns the blocks with the given indices, in that order."""
        return Blocks(self.starts[indices], self.ends[indices])


def blocks_of(num_pairs: int, first: int = 0) -> Blocks:
    """Divides `num_pairs` pairs, beginning with pair `first`, into blocks of `BLOCK` pairs; the last may be shorter."""
    starts = np.arange(first, first + num_pairs, BLOCK)
    return Blocks(starts, np.minimum(starts + BLOCK, first + num_pairs))


@dataclass(frozen=True)
class Mixture:
    """How often each corpus is repeated in an epoch."""

    counts: tuple[int, ...]  # the number of pairs of each corpus
    repeats: tuple[float, ...]  # how many times a pair of each corpus occurs in an epoch, on average

    @property
    def shares(self) -> list[float]:
        """For each corpus, the fraction of an epoch that the corpus makes up, on average over many epochs."""
        return [count * repeats / sum(self.counts) for count, repeats in zip(self.counts, self.repeats, strict=True)]

    def epoch(self, rng: np.random.Generator) -> Blocks:
        """Returns the blocks of one epoch.

        For example, a corpus that is repeated 2.3 times occurs twice as a whole, plus a random 30% of its blocks. The
        number of these extra blocks is rounded up or down at random, so epochs differ in size by up to one block per
        corpus. On average over many epochs, even a corpus smaller than a block occurs 2.3 times.
        """
        starts: list[NDArray[np.int64]] = []
        ends: list[NDArray[np.int64]] = []
        first = 0
        for count, repeats in zip(self.counts, self.repeats, strict=True):
            blocks = blocks_of(count, first)
            times, fraction = divmod(repeats, 1)
            wanted = fraction * len(blocks)
            num_more = int(wanted) + int(rng.random() < wanted % 1)
            part = blocks.select(rng.permutation(len(blocks))[:num_more])
            starts += [np.tile(blocks.starts, int(times)), part.starts]
            ends += [np.tile(blocks.ends, int(times)), part.ends]
            first += count
        return Blocks(np.concatenate(starts), np.concatenate(ends))


def is_proportional(weights: Sequence[float], temperature: float) -> bool:
    """Whether every pair occurs once per epoch with these weights and temperature, whatever the corpus sizes."""
    return len(set(weights)) <= 1 and (temperature == 1 or len(weights) <= 1)


def mix(counts: Sequence[int], weights: Sequence[float], temperature: float) -> Mixture:
    """Returns a mixture in which corpus c has a share proportional to `weights[c] * counts[c] ** (1 / temperature)`.

    This is temperature-based sampling (Arivazhagan et al. 2019, section 4). An epoch has as many pairs as all corpora
    together. The higher the temperature, the more similar are the shares of corpora with equal weights.
    """
    assert len(counts) == len(weights)
    sizes = np.array(counts, dtype=np.float64)
    wanted = np.array(weights) / max(weights) * sizes ** (1 / temperature)
    shares = wanted / wanted.sum()
    # Rounded, so that 1.9999999999999998 becomes 2.
    repeats = np.divide(shares * sizes.sum(), sizes, out=np.zeros_like(sizes), where=sizes > 0).round(9)
    return Mixture(tuple(counts), tuple(repeats.tolist()))
