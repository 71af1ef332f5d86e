"""The corpora of the settings as pairs of lines."""

import shlex
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from mtkit.config.data_settings import CorpusConfig, listed_tags
from mtkit.text.lines import fingerprint, packed_fingerprint, read_columns, read_lines, read_pairs

Pair = tuple[str, str]

COLUMN = ", column "  # between the fingerprint of a file of columns and the column of a side


def read_corpus(corpus: CorpusConfig) -> Iterator[Pair]:
    """The pairs of one corpus as its files hold them, without a tag."""
    if corpus.tsv is not None:
        return read_columns(corpus.tsv, *corpus.columns)
    assert corpus.source is not None
    assert corpus.target is not None
    return read_pairs(corpus.source, corpus.target)


def read_source(corpus: CorpusConfig) -> Iterator[str]:
    """The source lines alone."""
    return read_lines(corpus.source) if corpus.source is not None else (source for source, _ in read_corpus(corpus))


def read_target(corpus: CorpusConfig) -> Iterator[str]:
    """The target lines alone."""
    return read_lines(corpus.target) if corpus.target is not None else (target for _, target in read_corpus(corpus))


def tagged(line: str, tag: str | None) -> str:
    """The line with a tag before it, which tells a multilingual model what is wanted; a blank line stays blank."""
    return f"{tag} {line}" if tag is not None and line.strip() else line


def describe_tags(tags: Sequence[str]) -> str:
    """What a message says of the tags that a model knows."""
    return f"it knows {listed_tags(tags)}" if tags else "it knows no tags"


def extend_command(model: str, tags: Iterable[str]) -> str:
    """The command that adds tags to a model."""
    return f"mtkit extend {model} {' '.join(f'--tag {shlex.quote(tag)}' for tag in tags)} -o LARGER"


def tagged_pairs(corpora: Iterable[CorpusConfig]) -> Iterator[Pair]:
    """The pairs of all corpora, tagged."""
    for corpus in corpora:
        for source, target in read_corpus(corpus):
            yield tagged(source, corpus.tag), target


def pairs_in_turn(corpora: Iterable[CorpusConfig]) -> Iterator[Pair]:
    """The pairs of all corpora, tagged, one of each in turn, so that the first few are from all of them.

    A corpus that has ended is passed over; the pairs of each keep their order. All are read into memory one after
    the other, since there may be more of them than files that a process may open.
    """
    for row in zip_longest(*[list(tagged_pairs([corpus])) for corpus in corpora]):
        yield from (pair for pair in row if pair is not None)


def fingerprints(
    corpus: CorpusConfig, fingerprint_of: Callable[[Path], str] = fingerprint
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The path of each side's text, and what tells whether the text is still the same."""
    if corpus.tsv is not None:
        path, whole = str(corpus.tsv), fingerprint_of(corpus.tsv)
        first, second = (f"{whole}{COLUMN}{column}" for column in corpus.columns)
        return (path, first), (path, second)
    source, target = corpus.paths
    return (str(source), fingerprint_of(source)), (str(target), fingerprint_of(target))


def known_fingerprints(corpus: CorpusConfig, known: Container[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """The same, where a packed file may also be known by its packed bytes, as earlier versions of mtkit knew it."""
    found = fingerprints(corpus)
    if all(fingerprint in known for _, fingerprint in found):
        return found
    first, second = (
        older if older[1] in known and now[1] not in known else now
        for now, older in zip(found, fingerprints(corpus, packed_fingerprint), strict=True)
    )
    return first, second
