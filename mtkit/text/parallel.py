"""The corpora of the settings as pairs of lines."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from mtkit.config.data_settings import CorpusConfig, listed_tags
from mtkit.text.lines import fingerprint, read_columns, read_lines, read_pairs

Pair = tuple[str, str]


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

    A corpus that has ended is passed over; the pairs of each keep their order.
    """
    for row in zip_longest(*(tagged_pairs([corpus]) for corpus in corpora)):
        yield from (pair for pair in row if pair is not None)


def fingerprints(corpus: CorpusConfig) -> list[tuple[str, str]]:
    """The path of each side's text, and what tells whether the text is still the same."""
    if corpus.tsv is None:
        return [(str(path), fingerprint(path)) for path in corpus.paths]
    whole = fingerprint(corpus.tsv)
    return [(str(corpus.tsv), f"{whole}, column {column}") for column in corpus.columns]
