"""Parallel corpora: reads the sentence pairs of data.train and data.valid, adds tags, expands file patterns.

A corpus of several files consists of parts. A part is one source file with its target file, or one tab-separated file.
"""

import glob
import re
import shlex
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, zip_longest
from pathlib import Path

from mtkit.config.data_settings import CorpusConfig, TestSetConfig, TokenizerTextConfig, listed, listed_tags
from mtkit.config.settings import Config
from mtkit.errors import DataError, counted
from mtkit.text.compressed import COMPRESSIONS
from mtkit.text.lines import compressed_fingerprint, fingerprint, read_columns, read_lines, read_pairs
from mtkit.text.segmentation import split_tags

Pair = tuple[str, str]

COLUMN = ", column "  # comes between the fingerprint of a tab-separated file and the column number


def read_corpus(corpus: CorpusConfig) -> Iterator[Pair]:
    """Yields the (source, target) pairs of a corpus, part by part; the corpus's tag is not added."""
    return chain.from_iterable(map(read_part, corpus.parts))


def read_part(part: CorpusConfig) -> Iterator[Pair]:
    """Yields the (source, target) pairs of one part of a corpus; the corpus's tag is not added.

    If the corpus has no source, all sources are blank.
    """
    source, target = files_of(part)
    if not part.has_source:
        return (("", line) for line in read_lines(target))
    return read_columns(source, *part.columns) if part.tsv is not None else read_pairs(source, target)


def files_of(part: CorpusConfig) -> tuple[Path, Path]:
    """The source file and the target file of one part of a corpus.

    For a tab-separated file, or a target without a source, that file twice.
    """
    return part.paths[0], part.paths[-1]


def read_source(corpus: CorpusConfig) -> Iterator[str]:
    """Yields the source lines of a corpus, none if it has no source; the corpus's tag is not added."""
    return _read_side(corpus, 0) if corpus.has_source else iter(())


def read_target(corpus: CorpusConfig) -> Iterator[str]:
    """Yields the target lines of a corpus."""
    return _read_side(corpus, 1)


def _read_side(corpus: CorpusConfig, side: int) -> Iterator[str]:
    if corpus.tsv is not None:
        return (pair[side] for pair in read_corpus(corpus))
    return chain.from_iterable(read_lines(files_of(part)[side]) for part in corpus.parts)


def tagged_pairs(corpora: Iterable[CorpusConfig]) -> Iterator[Pair]:
    """Yields the pairs of all corpora, one corpus after the other, with each corpus's tag before its source lines."""
    for corpus in corpora:
        for source, target in read_corpus(corpus):
            yield tagged(source, corpus.tag), target


def without_source(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yields all pairs with "" as the source, as a language model reads them."""
    return (("", target) for _, target in pairs)


def pairs_in_turn(corpora: Iterable[CorpusConfig], is_spread: bool = True) -> Iterator[Pair]:
    """Yields the pairs of all corpora, with tags, taking one pair from each corpus in turn.

    A corpus that has no pairs left is skipped. With `is_spread=True`, the pairs of each corpus are taken in the order
    of `spread`, so that, for any n, the first n pairs are spread evenly over the corpus. With `is_spread=False`, the
    pairs are taken in the order of the corpus.

    Each corpus is read into memory before the next one is opened, since all corpora together may have more files than
    a process may open at once.
    """
    texts = [list(tagged_pairs([corpus])) for corpus in corpora]
    if is_spread:
        texts = [[text[index] for index in spread(len(text))] for text in texts]
    for row in zip_longest(*texts):
        yield from (pair for pair in row if pair is not None)


def spread(count: int) -> list[int]:
    """The numbers from 0 to `count - 1`, ordered so that the first n, for any n, are spread evenly over the range.

    The numbers are sorted by their reversed bits (van der Corput, 1935): for `count=8`, the order is 0 4 2 6 1 5 3 7.
    """
    width = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda number: f"{number:0{width}b}"[::-1])


def fingerprints(
    part: CorpusConfig, fingerprint_of: Callable[[Path], str] = fingerprint
) -> tuple[tuple[str, str], tuple[str, str]]:
    """Returns (path, fingerprint) for the source and for the target of one part of a corpus.

    A fingerprint changes whenever the text changes; for a tab-separated file, it includes the column number.
    """
    source, target = files_of(part)
    if part.tsv is not None:
        whole = fingerprint_of(source)
        first, second = (f"{whole}{COLUMN}{column}" for column in part.columns)
        return (str(source), first), (str(source), second)
    return (str(source), fingerprint_of(source)), (str(target), fingerprint_of(target))


def known_fingerprints(part: CorpusConfig, known: Container[str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Like `fingerprints`, but gives the old fingerprint of a file if `known` contains only the old one.

    The old fingerprint is the result of `compressed_fingerprint`: earlier versions of mtkit recorded the checksum of a
    file before decompression. Source and target are treated separately.
    """
    found = fingerprints(part)
    if all(fingerprint in known for _, fingerprint in found):
        return found
    first, second = (
        older if older[1] in known and now[1] not in known else now
        for now, older in zip(found, fingerprints(part, compressed_fingerprint), strict=True)
    )
    return first, second


# Tags, which tell a multilingual model what to produce, such as the target language.


def tagged(line: str, tag: str | None) -> str:
    """`line` with `tag` and a space before it; unchanged if `tag` is `None` or the line is blank."""
    return f"{tag} {line}" if tag is not None and line.strip() else line


def describe_tags(tags: Sequence[str]) -> str:
    """A clause for messages that lists the tags that a model knows."""
    return f"it knows {listed_tags(tags)}" if tags else "it knows no tags"


def extend_command(model: str, tags: Iterable[str]) -> str:
    """The shell command that adds `tags` to a model with `mtkit extend`."""
    return f"mtkit extend {model} {' '.join(f'--tag {shlex.quote(tag)}' for tag in tags)} -o LARGER"


class ExpectedTags:
    """Checks whether source lines begin with a tag that the model knows."""

    def __init__(self, tags: Sequence[str], needed: bool) -> None:
        """`tags` are the tags of a model; `needed` tells whether training put a tag before every source line."""
        self._tags = tags
        self._needed = needed
        brackets = {_brackets(tag) for tag in tags}
        self._brackets = [(opening, closing) for opening, closing in brackets if opening and closing]
        listed = listed_tags(tags)
        self._missing = f"begins with none of the model's tags, and the model was trained with one: {listed}"
        self._unknown = f"begins with what looks like a tag, and is none of the model's: {listed}"

    def fault(self, line: str) -> str | None:
        """What is wrong with the tag of `line`, as text; `None` if the tag is right.

        The text is worded to follow "line 3" in a message. Blank lines need no tag.
        """
        if not self._tags or not line.strip() or split_tags(line, self._tags)[0]:
            return None
        if self._looks_like_a_tag(line.split(maxsplit=1)[0]):
            return self._unknown
        return self._missing if self._needed else None

    def _looks_like_a_tag(self, word: str) -> bool:
        """Whether `word` is enclosed in the same brackets as one of the tags, for example in >> and <<."""
        return _brackets(word) in self._brackets


def _brackets(word: str) -> tuple[str, str]:
    """Returns what `word` has before its first and after its last letter or digit, such as "<" and ">"."""
    begin, end = 0, len(word)
    while begin < end and not word[begin].isalnum():
        begin += 1
    while end > begin and not word[end - 1].isalnum():
        end -= 1
    return word[:begin], word[end:]


# Finding files: a pattern such as `parts/*.en.gz` is replaced by the list of files that it matches.

COMPRESSED_ENDINGS = {*COMPRESSIONS, ".zip"}

# `**/` matches any number of nested folders, and `**` at the end everything below a folder; other wildcards match
# within one file or folder name.
WILDCARD = re.compile(r"\*\*/|\*+|\?|\[!?[^/\]][^/\]]*\]|\[!?\][^/\]]*\]")


@dataclass(frozen=True)
class _Matches:
    """A path from the settings and the files that it matches."""

    path: Path
    files: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...] | None = None  # for each file, what the wildcards match; None: no pattern

    @property
    def described(self) -> str:
        """A clause for messages, such as "parts/*.en matches 3 files"."""
        if self.keys is None:
            return f"{self.path} is one file"
        return f"{self.path} matches {counted(len(self.files), 'file')}"


def with_patterns_expanded(config: Config) -> Config:
    """`config` with every file pattern replaced by the files that it matches, in natural order (2 before 10).

    Raises DataError if a path is a folder, if a test set has several source files, or if the source and target files of
    a corpus do not correspond. A pattern that matches no file is kept and raises no error here, since a run
    that has been prepared no longer needs its text files. If the files are needed, `data_file` raises DataError later.
    """
    data = config.data
    sections = {
        name: tuple(_corpus(config, corpus, f"data.{name}[{index}]") for index, corpus in enumerate(corpora))
        for name, corpora in (("train", data.train), ("valid", data.valid))
    }
    test = {name: _test_set(config, test_set, f"data.test.{name}") for name, test_set in data.test.items()}
    text = tuple(
        each
        for index, more in enumerate(config.tokenizer.text)
        for each in _more_text(config, more, f"tokenizer.text[{index}]")
    )
    if sections == {"train": data.train, "valid": data.valid} and test == data.test and text == config.tokenizer.text:
        return config
    tokenizer = (
        config.tokenizer if text == config.tokenizer.text else config.tokenizer.model_copy(update={"text": text})
    )
    data = data.model_copy(update={**sections, "test": test})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def data_file(config: Config, path: Path) -> Path:
    """The full path of a text file that the settings name; a relative path starts from data.root.

    If the file does not exist, raises a DataError that names the folder that was searched.
    """
    here = config.data_path(path)
    if here.exists():
        return here
    root = config.data.root
    missing = "no file matches" if WILDCARD.search(str(path)) else "no such file"
    if advice := _syntax_advice(str(path)):
        raise DataError(f"{here}: {missing}; {advice}")
    if path.is_absolute():
        raise DataError(f"{here}: {missing}{_near(here)}")
    if root is not None:
        missing = missing if root.is_dir() else "no such folder as data.root"
        where = "" if root.is_absolute() else f", which is looked for in {Path.cwd()}"
        raise DataError(f"{here}: {missing}; relative paths start from data.root, {root}{where}{_near(here)}")
    raise DataError(
        f"{here}: {missing} in {Path.cwd()}, from which relative paths start; name another folder in data.root"
        f"{_near(here)}"
    )


def _syntax_advice(path: str) -> str | None:
    """Advice on a path that contains shell syntax or the like, which mtkit takes literally; `None` for other paths."""
    if re.search(r"\{.*(,|\.\.).*\}", path):
        return "braces stand for themselves; write a list of files or patterns, [FIRST, SECOND]"
    if "$" in path:
        return "variables such as $HOME are not replaced; write what they stand for"
    if "\\" in path:
        return "a backslash stands for itself; write the name as it is, and quotes around it where YAML wants them"
    if ":" in path and all("." in piece for piece in path.split(":")):
        return "a colon stands for itself; several files are a list, [FIRST, SECOND]"
    return None


def _near(path: Path) -> str:
    """A suggestion, for messages, of a file with a similar name in the same folder; "" if there is no such file."""
    try:
        names = [beside.name for beside in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f". Did you mean {near[0]}?" if near else ""


def _corpus(config: Config, corpus: CorpusConfig, name: str) -> CorpusConfig:
    if corpus.tsv is not None:
        tables = _match_all(config, corpus.tsv, f"{name}.tsv", "tsv")
        return corpus.model_copy(
            update={"tsv": _as_given(corpus.tsv, [table.files or (table.path,) for table in tables])}
        )
    assert corpus.target is not None
    if corpus.source is None:
        texts = _match_all(config, corpus.target, f"{name}.target", config.languages.target)
        return corpus.model_copy(
            update={"target": _as_given(corpus.target, [text.files or (text.path,) for text in texts])}
        )
    sources = _match_all(config, corpus.source, f"{name}.source", config.languages.source)
    targets = _match_all(config, corpus.target, f"{name}.target", config.languages.target)
    _require_one_order(sources, targets, name)
    pairs = [_paired(source, target, name) for source, target in zip(sources, targets, strict=True)]
    return corpus.model_copy(
        update={
            "source": _as_given(corpus.source, [source for source, _ in pairs]),
            "target": _as_given(corpus.target, [target for _, target in pairs]),
        }
    )


def _test_set(config: Config, test_set: TestSetConfig, name: str) -> TestSetConfig:
    """`test_set` with its patterns replaced by the files that they match; each target file is one reference.

    Raises DataError if the source matches several files.
    """
    if test_set.source is None:
        return test_set
    source = _match(config, test_set.source, f"{name}.source", config.languages.source)
    if len(source.files) > 1:
        raise DataError(
            f"{name}.source: {source.described}, wants one; give each a name of its own in data.test, since a list of "
            "targets is one of references"
        )
    targets = _match_all(config, test_set.target, f"{name}.target", config.languages.target)
    return test_set.model_copy(
        update={
            "source": (source.files or (source.path,))[0],
            "target": tuple(path for target in targets for path in target.files or (target.path,)),
        }
    )


def _more_text(config: Config, text: TokenizerTextConfig, name: str) -> list[TokenizerTextConfig]:
    """Expands an entry of tokenizer.text into one entry for each of its source files and target files.

    The files are not paired, since the source and target text of an entry need not be parallel. If no pattern in the
    entry matches a file, the entry is returned unchanged.
    """
    sides = {
        side: _match(config, path, f"{name}.{side}", getattr(config.languages, side))
        for side, path in (("source", text.source), ("target", text.target))
        if path is not None
    }
    if all(found.keys is None or not found.files for found in sides.values()):
        return [text]
    return [TokenizerTextConfig.model_validate({side: file}) for side, found in sides.items() for file in found.files]


def _match_all(config: Config, given: Path | tuple[Path, ...], name: str, ending: str) -> list[_Matches]:
    paths = listed(given)
    names = [name] if isinstance(given, Path) else [f"{name}[{index}]" for index in range(len(paths))]
    return [_match(config, path, each, ending) for path, each in zip(paths, names, strict=True)]


def _as_given(given: Path | tuple[Path, ...], files: Sequence[tuple[Path, ...]]) -> Path | tuple[Path, ...]:
    """All `files` in one tuple; a single path instead if `given` is a path and there is only one file."""
    found = tuple(path for some in files for path in some)
    return found[0] if isinstance(given, Path) and len(found) == 1 else found


def _match(config: Config, path: Path, name: str, ending: str) -> _Matches:
    """The files that `path`, a path from the settings, matches; raises DataError if `path` is a folder.

    `name` is the name of the setting, for messages. `ending` is a likely extension of the files, such as a language
    code; it is used in the advice given if `path` is a folder.
    """
    here = config.data_path(path)
    if here.is_dir():
        raise DataError(
            f"{name}: {here} is a folder; wants a file, a list of files, or a pattern such as "
            f"{path / _pattern_in(here, ending)}"
        )
    pattern = str(path)
    if here.exists() or not WILDCARD.search(pattern):
        return _Matches(path, (path,))
    groups = re.compile(_regex(pattern), re.DOTALL)
    files = []
    for match in glob.glob(pattern, root_dir=config.data.root, recursive=True):
        wildcards = groups.fullmatch(match)
        if wildcards and not config.data_path(Path(match)).is_dir():
            files.append((wildcards.groups(), Path(match)))
    files.sort(key=lambda file: ([_natural(text) for text in file[0]], file[1]))
    return _Matches(path, tuple(file for _, file in files), tuple(key for key, _ in files))


def _regex(pattern: str) -> str:
    """Regular expression that is equivalent to a file pattern, with a group for each wildcard."""
    parts, end = [], 0
    for wildcard in WILDCARD.finditer(pattern):
        parts.append(re.escape(pattern[end : wildcard.start()]))
        parts.append(_group(wildcard[0]))
        end = wildcard.end()
    return "".join([*parts, re.escape(pattern[end:])])


def _group(wildcard: str) -> str:
    if wildcard.startswith("["):
        characters = wildcard[1:-1]
        negated, characters = ("^", characters[1:]) if characters.startswith("!") else ("", characters)
        escaped = re.sub(r"([\\^\[\]])", r"\\\1", characters)
        return f"([{negated}{escaped}])"
    return {"**/": "((?:[^/]+/)*)", "?": "([^/])", "**": "(.*)"}.get(wildcard, "([^/]*)")


def _natural(text: str) -> list[str | int]:
    """Sort key for natural order (part2 before part10): a list in which strings and integers alternate."""
    return [int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"([0-9]+)", text))]


def _pattern_in(folder: Path, ending: str) -> str:
    """A pattern, such as *.en.gz, for the most frequent extension of the files in `folder`.

    Extensions that include `ending` take precedence; for example, .en.gz does so if `ending` is en.
    """
    endings: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            endings["".join(path.suffixes[-2 if path.suffix in COMPRESSED_ENDINGS else -1 :])] += 1
    matching = [each for each in endings if ending in each.split(".")]
    best = max(matching or endings, key=lambda each: (endings[each], each), default="")
    return f"*{best}"


def _paired(source: _Matches, target: _Matches, name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The source files and the target files, ordered so that files at the same position make a part.

    If both paths are patterns, files are paired by the text that the wildcards match. Raises DataError if a file has no
    counterpart.
    """
    for found, other in ((source, target), (target, source)):
        if not found.files and other.files:
            advice = _syntax_advice(str(found.path))
            hint = f"; {advice}" if advice else ""
            raise DataError(f"{name}: no file matches {found.path}, but {other.described}{hint}")
    if not source.files:
        return (source.path,), (target.path,)
    if source.keys is None or target.keys is None:
        if len(source.files) != len(target.files):
            raise DataError(
                f"{name}: source {source.described}, and target {target.described}; wants as many files of each: "
                "line n of a part must translate line n of its other side"
            )
        return source.files, target.files
    if len(source.keys[0]) != len(target.keys[0]):
        raise DataError(
            f"{name}: the patterns {source.path} and {target.path} have {len(source.keys[0])} and "
            f"{len(target.keys[0])} wildcards; wants as many in both, since parts are paired by "
            "the text that the wildcards match"
        )
    targets = dict(zip(target.keys, target.files, strict=True))
    for found, other in ((source, target), (target, source)):
        assert found.keys is not None
        assert other.keys is not None
        if alone := [index for index, key in enumerate(found.keys) if key not in set(other.keys)]:
            raise _unpaired(found, other, alone, name)
    return source.files, tuple(targets[key] for key in source.keys)


def _unpaired(found: _Matches, other: _Matches, alone: Sequence[int], name: str) -> DataError:
    """The error for the files of `found` at the positions `alone`, which have no counterpart in `other`."""
    assert found.keys is not None
    texts = iter(found.keys[alone[0]])
    missing = WILDCARD.sub(lambda _: next(texts), str(other.path))
    more = f", and {len(alone) - 1:,} more like it" if len(alone) > 1 else ""
    return DataError(
        f"{name}: {found.files[alone[0]]} has no other side: there is no {missing}{more} "
        f"({found.described}, {other.described}); add what is missing, or narrow the patterns"
    )


def _require_one_order(sources: Sequence[_Matches], targets: Sequence[_Matches], name: str) -> None:
    """Raise DataError if the source files and the target files list the same parts in different orders.

    A part is recognised by the middle of its path, that is, without the beginning and end common to all source paths,
    or to all target paths.
    """
    first, second = (_distinctive([str(found.path) for found in side]) for side in (sources, targets))
    if first == second or sorted(first) != sorted(second) or len(set(first)) < len(first):
        return
    index = next(index for index in range(len(first)) if first[index] != second[index])
    raise DataError(
        f"{name}: source and target list the same parts in different orders: {sources[index].path} is paired "
        f"with {targets[index].path}; list both in the same order"
    )


def _distinctive(names: Sequence[str]) -> list[str]:
    """`names` without the beginning and end that all of them share."""
    start = _common_prefix_length(names)
    rest = [name[start:] for name in names]
    end = _common_prefix_length([name[::-1] for name in rest])
    return [name[: len(name) - end] for name in rest]


def _common_prefix_length(names: Sequence[str]) -> int:
    """The length of the longest prefix that all `names` share."""
    columns = enumerate(zip(*names, strict=False))
    return next((index for index, column in columns if len(set(column)) > 1), min(map(len, names)))
