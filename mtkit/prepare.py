"""From parallel text to what training reads: the tokenizer, the corpora as ids, the validation text.

Each stage checks all it reads before anything is put in its place, and knows by the content of files and settings
whether what is there is still what it would make.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mtkit.config.settings import Config, CorpusConfig, TokenizerConfig
from mtkit.data.corpus import Corpus, CorpusWriter, Manifest, RawFile
from mtkit.errors import ConfigError, DataError
from mtkit.files import replaced_directory, settle
from mtkit.text.cleaning import REASONS, drop_reason
from mtkit.text.lines import fingerprint, read_lines, read_pairs
from mtkit.text.tokenizer import Tokenizer, Vocabulary, train_tokenizer
from mtkit.text.unknown import UnknownShares, describe_unknown

FORMAT = 1  # of the validation text and of the tokenizer's provenance
CHUNK_PAIRS = 10_000
CHUNK_CHARACTERS = 4_000_000  # so that a chunk of very long lines is small too

Pair = tuple[str, str]


def make_tokenizer(config: Config) -> None:
    """Train the tokenizer on the training corpora, or copy that of the model to start from, into the run directory."""
    if config.training.start_from is not None:
        _copy_tokenizer(config)
        return
    corpora = _training_corpora(config)
    source = partial(_side, [corpus.source for corpus in corpora])
    target = partial(_side, [corpus.target for corpus in corpora])
    with _writing(config):
        provenance = _tokenizer_provenance(config)
        # Bad data stops at the door.
        if not sum(1 for _ in _progress(_pairs(corpora), "reading")):
            raise _no_pairs(corpora)
        with replaced_directory(_tokenizer_directory(config)) as directory:
            vocabularies = train_tokenizer(source, target, config.tokenizer, directory)
            _write_json(directory / "provenance.json", provenance)
    for vocabulary in vocabularies:
        _report(_describe_vocabulary(vocabulary))


def _copy_tokenizer(config: Config) -> None:
    from mtkit.start import start_bundle  # here, since all else goes without torch

    bundle = start_bundle(config)
    assert bundle is not None
    path = bundle.tokenizer_path
    tokenizer = Tokenizer.load(path)
    with _writing(config), replaced_directory(_tokenizer_directory(config)) as directory:
        tokenizer.save(directory)
        _write_json(directory / "provenance.json", _copy_provenance(tokenizer))
    sizes = {"source": tokenizer.source_vocab_size, "target": tokenizer.target_vocab_size}
    _report(f"tokenizer: copied from {path}; " + ", ".join(f"{size:,} {side} pieces" for side, size in sizes.items()))


def _no_pairs(corpora: Iterable[CorpusConfig]) -> DataError:
    paths = ", ".join(f"{corpus.source}, {corpus.target}" for corpus in corpora)
    return DataError(f"{paths}: the training corpora hold no pairs")


def tokenizer_is_current(config: Config) -> bool:
    """Whether the run's tokenizer is what make_tokenizer would make; a damaged one is an error.

    A copied one stays current when the model that it was copied from is gone.
    """
    directory = _tokenizer_directory(config)
    settle(directory)
    if not directory.exists():
        return False
    Tokenizer.load(directory)
    provenance = _read_json(directory / "provenance.json")
    if config.training.start_from is None:
        # A setting that an earlier version of mtkit did not have was what is now its default.
        defaults = TokenizerConfig().model_dump(mode="json")
        provenance["settings"] = {**defaults, **provenance.get("settings", {})}
        return provenance == _tokenizer_provenance(config)
    from mtkit.start import start_tokenizer  # here, since all else goes without torch

    tokenizer = start_tokenizer(config)
    return provenance == _copy_provenance(tokenizer) if tokenizer else "copied" in provenance


def binarize(config: Config) -> None:
    """Encode the training corpora with the run's tokenizer, and keep the validation text, in the run directory.

    Pairs that are left out are counted and told, and so are held-out sentences that stand in the training text.
    """
    corpora = _training_corpora(config)
    settle(_tokenizer_directory(config))
    tokenizer = Tokenizer.load(_tokenizer_directory(config))
    with _writing(config):
        raw_files = _raw_files(corpora)
        search = _Search(_read_held_out(config))
        with CorpusWriter(
            _train_directory(config),
            tokenizer.source_vocab_size,
            tokenizer.target_vocab_size,
            tokenizer.hash,
            keeps_text=config.training.samples_subwords,
        ) as writer:
            unknown = UnknownShares()
            drops = _encode(_progress(_pairs(corpora), "encoding"), config, tokenizer, writer, search, unknown)
            num_pairs = writer.num_pairs + drops.total()
            if not num_pairs:
                raise _no_pairs(corpora)
            if not writer.num_pairs:
                raise DataError(
                    f"every one of {num_pairs:,} training pairs is left out: {_describe_drops(drops)}; "
                    "see data.max_length and data.max_length_ratio"
                )
            with replaced_directory(_validation_directory(config)) as directory:
                _write_validation(config, directory)
                _see_validation(config, tokenizer, unknown)
                manifest = writer.commit(drops, raw_files, _corpus_settings(config), unknown.shares())
    _report_corpus(manifest)
    for warning in search.warnings():
        _report(warning)


def binarized_is_current(config: Config) -> bool:
    """Whether the run's corpora were made from these texts with these settings.

    Damaged ones, and ones that another tokenizer made, are an error: nobody should train on them, and nobody should
    find them mended in silence.
    """
    for directory in (_tokenizer_directory(config), _train_directory(config), _validation_directory(config)):
        settle(directory)
    if not _train_directory(config).exists() or not _validation_directory(config).exists():
        return False
    corpus = Corpus.open(_train_directory(config))
    corpus.require_tokenizer(Tokenizer.load(_tokenizer_directory(config)).hash)
    read_validation(config)
    kept = _read_json(_validation_directory(config) / "manifest.json")
    return (
        corpus.manifest.settings == _corpus_settings(config)
        and _fingerprints(corpus.manifest.raw_files) == _fingerprints(_raw_files(_training_corpora(config)))
        and kept.get("fingerprints") == _fingerprints(_raw_files(_corpora(config, config.data.valid)))
    )


def read_validation(config: Config) -> tuple[list[str], list[str]]:
    """The sources and the references that binarize kept; changed or missing ones are a DataError."""
    directory = _validation_directory(config)
    settle(directory)
    manifest = _read_json(directory / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{directory}: format {manifest.get('format')!r} is unknown; this version of mtkit reads format {FORMAT}"
        )
    source, target = (_read_kept(directory / f"{side}.txt", manifest) for side in ("source", "target"))
    return source, target


def _encode(
    pairs: Iterable[Pair],
    config: Config,
    tokenizer: Tokenizer,
    writer: CorpusWriter,
    search: "_Search",
    unknown: UnknownShares,
) -> Counter[str]:
    """Write the pairs that stay, and count the others by reason."""
    drops: Counter[str] = Counter()
    max_length, max_length_ratio = config.data.max_length, config.data.max_length_ratio
    num_threads = _num_threads()
    keeps_text = config.training.samples_subwords
    for chunk in _chunks(pairs):
        sources = tokenizer.encode_source([source for source, _ in chunk], num_threads)
        targets = tokenizer.encode_target([target for _, target in chunk], num_threads)
        kept = []
        for place, (source, target) in enumerate(chunk):
            lengths = len(sources[place]), len(targets[place])
            reason = drop_reason(source, target, *lengths, max_length, max_length_ratio)
            if reason:
                drops[reason] += 1
            else:
                kept.append(place)
                search.see(source, target)
        kept_sources, kept_targets = [sources[place] for place in kept], [targets[place] for place in kept]
        _see(unknown, "training", tokenizer, kept_sources, kept_targets)
        writer.add(
            kept_sources,
            kept_targets,
            *(_normalized([chunk[place] for place in kept], tokenizer) if keeps_text else ()),
        )
    return drops


def _see(
    unknown: UnknownShares, name: str, tokenizer: Tokenizer, sources: list[list[int]], targets: list[list[int]]
) -> None:
    """Count the sides that can hold something unknown."""
    if tokenizer.source_shows_unknown:
        unknown.see(f"{name} source", sources)
    if tokenizer.target_shows_unknown:
        unknown.see(f"{name} target", targets)


def _see_validation(config: Config, tokenizer: Tokenizer, unknown: UnknownShares) -> None:
    for chunk in _chunks(_pairs(_corpora(config, config.data.valid))):
        sources = tokenizer.encode_source([source for source, _ in chunk], _num_threads())
        targets = tokenizer.encode_target([target for _, target in chunk], _num_threads())
        _see(unknown, "validation", tokenizer, sources, targets)


def _normalized(pairs: Sequence[Pair], tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Sources and targets as the tokenizer sees them."""
    return (
        [tokenizer.normalize_source(source) for source, _ in pairs],
        [tokenizer.normalize_target(target) for _, target in pairs],
    )


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Pairs in lists that are neither long nor large."""
    chunk: list[Pair] = []
    num_characters = 0
    for source, target in pairs:
        chunk.append((source, target))
        num_characters += len(source) + len(target)
        if len(chunk) == CHUNK_PAIRS or num_characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _HeldOut:
    """A validation or test set, its lines known by their hashes; blank sources are not looked for."""

    name: str
    num_lines: int
    sources: list[int]
    pairs: list[tuple[int, ...]]  # for each source, one hash per reference


class _Search:
    """Looks for held-out lines among those of the training text, in memory that the held-out lines decide."""

    def __init__(self, held_out: list[_HeldOut]) -> None:
        self._held_out = held_out
        self._wanted = {digest for one in held_out for digest in one.sources}
        self._wanted_pairs = {digest for one in held_out for pair in one.pairs for digest in pair}
        self._found: set[int] = set()
        self._found_pairs: set[int] = set()

    def see(self, source: str, target: str) -> None:
        """A pair of the training text."""
        digest = hash(source)
        if digest in self._wanted:
            self._found.add(digest)
            self._found_pairs |= {hash((source, target))} & self._wanted_pairs

    def warnings(self) -> Iterator[str]:
        """A line for each set of which something was seen."""
        for one in self._held_out:
            num_found = sum(digest in self._found for digest in one.sources)
            num_pairs = sum(not self._found_pairs.isdisjoint(pair) for pair in one.pairs)
            if num_found:
                yield (
                    f"warning: {num_found:,} of {one.num_lines:,} sources of {one.name} stand in the training data, "
                    f"{num_pairs:,} of them with the same translation"
                )


def _read_held_out(config: Config) -> list[_HeldOut]:
    """The validation corpora as one set, and each test set; all their files are read and checked."""
    held_out = []
    if config.data.valid:
        pairs = _pairs(_corpora(config, config.data.valid))
        valid = _held_out("data.valid", ((source, (target,)) for source, target in pairs))
        if not valid.num_lines:
            paths = ", ".join(f"{corpus.source}, {corpus.target}" for corpus in config.data.valid)
            raise DataError(f"{paths}: the validation corpora hold no pairs; list others in data.valid, or none")
        held_out.append(valid)
    for name, test_set in config.data.test.items():
        source_path = config.data_path(test_set.source)
        readers = [read_pairs(source_path, config.data_path(path)) for path in test_set.target]
        rows = zip(*readers, strict=True)  # the readers themselves tell of unequal files
        held_out.append(_held_out(f"data.test.{name}", ((row[0][0], tuple(pair[1] for pair in row)) for row in rows)))
    return held_out


def _held_out(name: str, rows: Iterable[tuple[str, tuple[str, ...]]]) -> _HeldOut:
    """A set from its sources and the references of each."""
    num_lines = 0
    sources, pairs = [], []
    for source, references in rows:
        num_lines += 1
        if source.strip():
            sources.append(hash(source))
            pairs.append(tuple(hash((source, reference)) for reference in references))
    return _HeldOut(name, num_lines, sources, pairs)


def _write_validation(config: Config, directory: Path) -> None:
    """The validation text, line for line."""
    corpora = _corpora(config, config.data.valid)
    manifest: dict[str, Any] = {"format": FORMAT, "fingerprints": _fingerprints(_raw_files(corpora))}
    for side in ("source", "target"):
        path = directory / f"{side}.txt"
        digest = hashlib.sha256()
        with path.open("wb") as stream:
            for line in _side([getattr(corpus, side) for corpus in corpora]):
                raw = line.encode("utf-8") + b"\n"
                digest.update(raw)
                stream.write(raw)
        manifest[path.name] = digest.hexdigest()
    _write_json(directory / "manifest.json", manifest)


def _read_kept(path: Path, manifest: dict[str, Any]) -> list[str]:
    r"""The lines of a file that _write_validation wrote; here a `\r` at the end is part of the line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; binarize the corpora again") from None
    if hashlib.sha256(raw).hexdigest() != manifest.get(path.name):
        raise DataError(f"{path}: has changed since it was written; binarize the corpora again")
    return raw.decode("utf-8").split("\n")[:-1]


def _tokenizer_directory(config: Config) -> Path:
    return config.run_path / "tokenizer"


def _train_directory(config: Config) -> Path:
    return config.run_path / "data" / "train"


def _validation_directory(config: Config) -> Path:
    return config.run_path / "data" / "valid"


def _training_corpora(config: Config) -> list[CorpusConfig]:
    if not config.data.train:
        raise ConfigError("data.train is empty; list at least one {source: FILE, target: FILE}")
    return _corpora(config, config.data.train)


def _corpora(config: Config, corpora: Iterable[CorpusConfig]) -> list[CorpusConfig]:
    """The same corpora with the paths where their files lie."""
    return [
        CorpusConfig(source=config.data_path(corpus.source), target=config.data_path(corpus.target))
        for corpus in corpora
    ]


def _pairs(corpora: Iterable[CorpusConfig]) -> Iterator[Pair]:
    return chain.from_iterable(read_pairs(corpus.source, corpus.target) for corpus in corpora)


def _side(paths: Iterable[Path]) -> Iterator[str]:
    return chain.from_iterable(read_lines(path) for path in paths)


def _raw_files(corpora: Iterable[CorpusConfig]) -> tuple[RawFile, ...]:
    paths = chain.from_iterable((corpus.source, corpus.target) for corpus in corpora)
    return tuple(RawFile(str(path), fingerprint(path)) for path in paths)


def _fingerprints(raw_files: Iterable[RawFile]) -> list[str]:
    """What the files hold, wherever they lie."""
    return [raw.fingerprint for raw in raw_files]


def _tokenizer_provenance(config: Config) -> dict[str, Any]:
    """All that decides what the tokenizer stage makes."""
    raw_files = _raw_files(_corpora(config, config.data.train))
    return {
        "format": FORMAT,
        "settings": config.tokenizer.model_dump(mode="json"),
        "fingerprints": _fingerprints(raw_files),
    }


def _copy_provenance(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"format": FORMAT, "copied": tokenizer.hash}


def _corpus_settings(config: Config) -> dict[str, float | None]:
    """What decides which pairs are left out, and whether the text of the others is kept."""
    lengths = {"max_length": config.data.max_length, "max_length_ratio": config.data.max_length_ratio}
    return {**lengths, "text": True} if config.training.samples_subwords else lengths


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """An object from a small file of the run directory."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; make it again") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path}: damaged; make it again")
    return content


@contextmanager
def _writing(config: Config) -> Iterator[None]:
    """Tells in one line when the run directory cannot be written; what fails in reading tells so itself."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or config.run_path}: cannot be written: {error.strerror or error}") from None


def _num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _progress(pairs: Iterable[Pair], what: str) -> Iterable[Pair]:
    """The same pairs; a bar on a terminal tells how many went by."""
    return tqdm(pairs, desc=what, unit=" pairs", unit_scale=True, leave=False, disable=None)


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def _describe_vocabulary(vocabulary: Vocabulary) -> str:
    return (
        f"{vocabulary.side} {vocabulary.type} vocabulary: {vocabulary.pieces_made:,} pieces of "
        f"{vocabulary.pieces_asked:,} asked for, "
        f"trained on {vocabulary.lines_seen:,} of {vocabulary.lines_offered:,} lines"
    )


def _describe_drops(drops: dict[str, int]) -> str:
    return ", ".join(f"{drops[reason]:,} {reason}" for reason in REASONS if drops.get(reason))


def _report_corpus(manifest: Manifest) -> None:
    num_drops = sum(manifest.drops.values())
    _report(
        f"kept {manifest.num_pairs:,} pairs: {manifest.source.num_tokens:,} source and "
        f"{manifest.target.num_tokens:,} target tokens; the longest have {manifest.source.longest:,} "
        f"and {manifest.target.longest:,}"
    )
    if num_drops:
        total = manifest.num_pairs + num_drops
        _report(f"dropped {num_drops:,} of {total:,} pairs: {_describe_drops(manifest.drops)}")
    if manifest.unknown:
        _report(f"unknown tokens: {describe_unknown(manifest.unknown)}")
