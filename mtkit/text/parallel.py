"""The corpora of the settings as pairs of lines."""

import shlex
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from mtkit.config.data_settings import CorpusConfig, listed_tags
from mtkit.text.lines import fingerprint, packed_fingerprint, read_columns, read_lines, read_pairs

Pair = tuple[str, str]

COLUMN = ", column "  # between the fingerprint of a file of columns and the column of a side


def read_corpus(corpus: CorpusConfig) -> Iterator[Pair]:
    """The pairs of one corpus as its files hold them, one part after the other, without a tag."""
    return chain.from_iterable(map(read_part, corpus.parts))


def read_part(part: CorpusConfig) -> Iterator[Pair]:
    """The same of a corpus of one part."""
    source, target = files_of(part)
    return read_columns(source, *part.columns) if part.tsv is not None else read_pairs(source, target)


def files_of(part: CorpusConfig) -> tuple[Path, Path]:
    """The files that hold the source and the target of a corpus of one part, which may be the same file."""
    return part.paths[0], part.paths[-1]


def read_source(corpus: CorpusConfig) -> Iterator[str]:
    """The source lines alone."""
    return _read_side(corpus, 0)


def read_target(corpus: CorpusConfig) -> Iterator[str]:
    """The target lines alone."""
    return _read_side(corpus, 1)


def _read_side(corpus: CorpusConfig, side: int) -> Iterator[str]:
    if corpus.tsv is not None:
        return (pair[side] for pair in read_corpus(corpus))
    return chain.from_iterable(read_lines(files_of(part)[side]) for part in corpus.parts)


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


def pairs_in_turn(corpora: Iterable[CorpusConfig], is_spread: bool = True) -> Iterator[Pair]:
    """The pairs of all corpora, tagged, one of each in turn, so that the first few are from all of them.

    is_spread orders the pairs of each so that the first few, however many, stand evenly over all of it; without it they
    keep their order. A corpus that has ended is passed over. All are read into memory one after the other, since there
    may be more of them than files that a process may open.
    """
    texts = [list(tagged_pairs([corpus])) for corpus in corpora]
    if is_spread:
        texts = [[text[place] for place in spread(len(text))] for text in texts]
    for row in zip_longest(*texts):
        yield from (pair for pair in row if pair is not None)


def spread(count: int) -> list[int]:
    """The numbers below count, so ordered that the first few, however many, are spread evenly: 0 4 2 6 1 5 3 7.

    That is the order of their reversed bits (van der Corput, 1935).
    """
    width = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda number: f"{number:0{width}b}"[::-1])


def fingerprints(
    part: CorpusConfig, fingerprint_of: Callable[[Path], str] = fingerprint
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The path of each side's text in a corpus of one part, and what tells whether the text is still the same."""
    source, target = files_of(part)
    if part.tsv is not None:
        whole = fingerprint_of(source)
        first, second = (f"{whole}{COLUMN}{column}" for column in part.columns)
        return (str(source), first), (str(source), second)
    return (str(source), fingerprint_of(source)), (str(target), fingerprint_of(target))


def known_fingerprints(part: CorpusConfig, known: Container[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """The same, where a packed file may also be known by its packed bytes, as earlier versions of mtkit knew it."""
    found = fingerprints(part)
    if all(fingerprint in known for _, fingerprint in found):
        return found
    first, second = (
        older if older[1] in known and now[1] not in known else now
        for now, older in zip(found, fingerprints(part, packed_fingerprint), strict=True)
    )
    return first, second
