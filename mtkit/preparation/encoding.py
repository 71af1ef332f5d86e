"""Pairs of text to pairs of ids: which of them stay, and what is not known of them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from mtkit.config.data_settings import CorpusConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import CorpusWriter
from mtkit.errors import Meter, is_shown
from mtkit.preparation.cleaning import Drops, Search, Seen, UnknownShares, drop_reason
from mtkit.text.lines import count_lines
from mtkit.text.parallel import Pair, read_part, tagged
from mtkit.text.tokenizer import Tokenizer

CHUNK_PAIRS = 10_000
CHUNK_CHARACTERS = 4_000_000  # so that a chunk of very long lines is small too


class Encoder:
    """Writes the pairs that stay, and counts the others by reason."""

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        writer: CorpusWriter,
        search: Search,
        unknown: UnknownShares,
        read: Callable[[CorpusConfig], Iterable[Pair]] = read_part,
    ) -> None:
        """Reads each part with read, writes with writer, and lets search and unknown see what stays."""
        self._read = read
        self.drops = Drops()
        self._rules = config.data
        self._keeps_text = config.training.samples_subwords
        self._unknown = unknown
        self._tokenizer = tokenizer
        self._writer = writer
        self._search = search
        self._seen = Seen() if config.data.drop_duplicates else None
        self._num_threads = _num_threads()

    def encode(self, corpus: CorpusConfig) -> int:
        """All of a corpus; how many pairs stay."""
        before = self._writer.num_pairs
        paths = [part.paths[0] for part in corpus.parts]
        more = f" and {len(paths) - 1:,} more files" if len(paths) > 1 else ""
        num_lines = sum(map(count_lines, paths)) if is_shown() else None
        with Meter("encoding", f"pairs of {paths[0]}{more}", num_lines, announced=True) as meter:
            for part in corpus.parts:
                line = 1
                for chunk in _chunks(self._read(part)):
                    self._encode_chunk(chunk, part, line)
                    line += len(chunk)
                    meter.add(len(chunk))
        return self._writer.num_pairs - before

    def _encode_chunk(self, raw: list[Pair], part: CorpusConfig, first_line: int) -> None:
        """The rules look at the text as it is; the model sees it with its tag."""
        pairs = [(tagged(source, part.tag), target) for source, target in raw]
        sources = self._tokenizer.encode_source([source for source, _ in pairs], self._num_threads)
        targets = self._tokenizer.encode_target([target for _, target in pairs], self._num_threads)
        nothing = len(self._tokenizer.encode_source([part.tag])[0]) if part.tag else 0
        reasons: list[str | None] = []
        for place, (source, target) in enumerate(raw):
            source_length = len(sources[place]) if len(sources[place]) > nothing else 0
            reasons.append(drop_reason(source, target, source_length, len(targets[place]), self._rules))
        if self._seen:
            staying = [place for place, reason in enumerate(reasons) if not reason]
            for place, is_new in zip(staying, self._seen.add([pairs[place] for place in staying]), strict=True):
                reasons[place] = None if is_new else "duplicate"
        for place, reason in enumerate(reasons):
            if reason:
                self.drops.add(reason, part.paths[0], first_line + place, *raw[place])
            else:
                self._search.see(*pairs[place])
        kept = [place for place, reason in enumerate(reasons) if not reason]
        kept_sources, kept_targets = [sources[place] for place in kept], [targets[place] for place in kept]
        _see(self._unknown, "training", self._tokenizer, kept_sources, kept_targets)
        texts = _normalized([pairs[place] for place in kept], self._tokenizer) if self._keeps_text else ()
        self._writer.add(kept_sources, kept_targets, *texts)


def _see(
    unknown: UnknownShares, name: str, tokenizer: Tokenizer, sources: list[list[int]], targets: list[list[int]]
) -> None:
    """Count the sides that can hold something unknown."""
    if tokenizer.source_shows_unknown:
        unknown.see(f"{name} source", sources, tokenizer.specials.source.unknown)
    if tokenizer.target_shows_unknown:
        unknown.see(f"{name} target", targets, tokenizer.specials.target.unknown)


def see_validation(pairs: Iterable[Pair], tokenizer: Tokenizer, unknown: UnknownShares) -> None:
    """Count what is unknown of the validation text."""
    for chunk in _chunks(pairs):
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


def _num_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
