"""The corpora of the settings as pairs of lines: patterns, lists of files, tags."""

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
from mtkit.text.compressed import PACKERS
from mtkit.text.lines import fingerprint, packed_fingerprint, read_columns, read_lines, read_pairs
from mtkit.text.segmentation import split_tags


class ExpectedTags:
    """Tells what is wrong with the beginnings of lines."""

    def __init__(self, tags: Sequence[str], needed: bool) -> None:
        """By the tags that a model knows; needed is whether it was trained with one before every line."""
        self._tags = tags
        self._needed = needed
        marks = {_marks(tag) for tag in tags}
        self._marks = [(before, after) for before, after in marks if before and after]
        listed = listed_tags(tags)
        self._missing = f"begins with none of the model's tags, and the model was trained with one: {listed}"
        self._unknown = f"begins with what looks like a tag, and is none of the model's: {listed}"

    def fault(self, line: str) -> str | None:
        """What to warn of, such that "line 3" may stand before it; None where all is well. Blank lines need no tag."""
        if not self._tags or not line.strip() or split_tags(line, self._tags)[0]:
            return None
        if self._looks_like_a_tag(line.split(maxsplit=1)[0]):
            return self._unknown
        return self._missing if self._needed else None

    def _looks_like_a_tag(self, word: str) -> bool:
        """Whether it stands between the marks that the tags stand between, such as >> and <<."""
        return _marks(word) in self._marks


def _marks(word: str) -> tuple[str, str]:
    """What is no letter and no digit at the beginning and at the end of a word."""
    begin, end = 0, len(word)
    while begin < end and not word[begin].isalnum():
        begin += 1
    while end > begin and not word[end - 1].isalnum():
        end -= 1
    return word[:begin], word[end:]


# The corpora of the settings as pairs of lines.

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


# The text files that the settings name: patterns such as `parts/*.en.gz` become the lists of files that they match.

PACKED = {*PACKERS, ".zip"}  # endings of packed files, which say nothing of the text in them

# `**/` matches any number of folders, the others match within a name.
WILDCARD = re.compile(r"\*\*/|\*+|\?|\[!?[^/\]][^/\]]*\]|\[!?\][^/\]]*\]")


@dataclass(frozen=True)
class _Found:
    """The files that a path of the settings stands for, and for what text the wildcards stand in each."""

    path: Path
    files: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...] | None = None  # None: the path is no pattern

    @property
    def told(self) -> str:
        """What messages say of it."""
        if self.keys is None:
            return f"{self.path} is one file"
        return f"{self.path} matches {counted(len(self.files), 'file')}"


def with_plain_files(config: Config) -> Config:
    """The settings with every pattern replaced by the files that it matches, in natural order: 2 stands before 10.

    A pattern that matches nothing stays: whoever reads it is told, and a run whose text is gone need not read it.
    Folders, and parts of one side without the part of the other, are a DataError.
    """
    data = config.data
    sections = {
        name: tuple(_corpus(config, corpus, f"data.{name}[{place}]") for place, corpus in enumerate(corpora))
        for name, corpora in (("train", data.train), ("valid", data.valid))
    }
    test = {name: _test_set(config, test_set, f"data.test.{name}") for name, test_set in data.test.items()}
    text = tuple(
        each
        for place, more in enumerate(config.tokenizer.text)
        for each in _more_text(config, more, f"tokenizer.text[{place}]")
    )
    if sections == {"train": data.train, "valid": data.valid} and test == data.test and text == config.tokenizer.text:
        return config
    tokenizer = (
        config.tokenizer if text == config.tokenizer.text else config.tokenizer.model_copy(update={"text": text})
    )
    data = data.model_copy(update={**sections, "test": test})
    return config.model_copy(update={"data": data, "tokenizer": tokenizer})


def data_file(config: Config, path: Path) -> Path:
    """Where a text file of the settings lies; a DataError that says where it was looked for if there is none."""
    here = config.data_path(path)
    if here.exists():
        return here
    root = config.data.root
    missing = "no file matches" if WILDCARD.search(str(path)) else "no such file"
    if habit := _habit_of_shells(str(path)):
        raise DataError(f"{here}: {missing}; {habit}")
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


def _habit_of_shells(path: str) -> str | None:
    """Advice for a path that means more to a shell or to another toolkit."""
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
    """A question after a file beside the one that is missing, whose name is much like it."""
    try:
        names = [beside.name for beside in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f". Did you mean {near[0]}?" if near else ""


def _corpus(config: Config, corpus: CorpusConfig, name: str) -> CorpusConfig:
    if corpus.tsv is not None:
        tables = _all_found(config, corpus.tsv, f"{name}.tsv", "tsv")
        return corpus.model_copy(
            update={"tsv": _as_said(corpus.tsv, [table.files or (table.path,) for table in tables])}
        )
    assert corpus.source is not None
    assert corpus.target is not None
    sources = _all_found(config, corpus.source, f"{name}.source", config.languages.source)
    targets = _all_found(config, corpus.target, f"{name}.target", config.languages.target)
    _require_one_order(sources, targets, name)
    pairs = [_paired(source, target, name) for source, target in zip(sources, targets, strict=True)]
    return corpus.model_copy(
        update={
            "source": _as_said(corpus.source, [source for source, _ in pairs]),
            "target": _as_said(corpus.target, [target for _, target in pairs]),
        }
    )


def _test_set(config: Config, test_set: TestSetConfig, name: str) -> TestSetConfig:
    """Its source is one file; a pattern in its target stands for several references."""
    if test_set.source is None:
        return test_set
    source = _found(config, test_set.source, f"{name}.source", config.languages.source)
    if len(source.files) > 1:
        raise DataError(
            f"{name}.source: {source.told}, wants one; give each a name of its own in data.test, since a list of "
            "targets is one of references"
        )
    targets = _all_found(config, test_set.target, f"{name}.target", config.languages.target)
    return test_set.model_copy(
        update={
            "source": (source.files or (source.path,))[0],
            "target": tuple(path for target in targets for path in target.files or (target.path,)),
        }
    )


def _more_text(config: Config, text: TokenizerTextConfig, name: str) -> list[TokenizerTextConfig]:
    """Text of the tokenizer alone, whose sides need not go together."""
    sides = {
        side: _found(config, path, f"{name}.{side}", getattr(config.languages, side))
        for side, path in (("source", text.source), ("target", text.target))
        if path is not None
    }
    if all(found.keys is None or not found.files for found in sides.values()):
        return [text]
    return [TokenizerTextConfig.model_validate({side: file}) for side, found in sides.items() for file in found.files]


def _all_found(config: Config, said: Path | tuple[Path, ...], name: str, ending: str) -> list[_Found]:
    paths = listed(said)
    names = [name] if isinstance(said, Path) else [f"{name}[{place}]" for place in range(len(paths))]
    return [_found(config, path, each, ending) for path, each in zip(paths, names, strict=True)]


def _as_said(said: Path | tuple[Path, ...], files: Sequence[tuple[Path, ...]]) -> Path | tuple[Path, ...]:
    """All files as a list, unless one was said to be one."""
    found = tuple(path for some in files for path in some)
    return found[0] if isinstance(said, Path) and len(found) == 1 else found


def _found(config: Config, path: Path, name: str, ending: str) -> _Found:
    """What a path stands for; ending is what the names of such files may end in, for the advice at a folder."""
    here = config.data_path(path)
    if here.is_dir():
        raise DataError(
            f"{name}: {here} is a folder; wants a file, a list of files, or a pattern such as "
            f"{path / _pattern_in(here, ending)}"
        )
    pattern = str(path)
    if here.exists() or not WILDCARD.search(pattern):
        return _Found(path, (path,))
    captures = re.compile(_regex(pattern), re.DOTALL)
    files = []
    for match in glob.glob(pattern, root_dir=config.data.root, recursive=True):
        stars = captures.fullmatch(match)
        if stars and not config.data_path(Path(match)).is_dir():
            files.append((stars.groups(), Path(match)))
    files.sort(key=lambda file: ([_natural(text) for text in file[0]], file[1]))
    return _Found(path, tuple(file for _, file in files), tuple(key for key, _ in files))


def _regex(pattern: str) -> str:
    """A regular expression that matches what a pattern matches, with a group for each wildcard."""
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
    """A key by which numbers are compared by their value; texts and numbers take turns in it."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"([0-9]+)", text))]


def _pattern_in(folder: Path, ending: str) -> str:
    """The pattern of most files in a folder, or of those in whose endings a word stands, such as *.en.gz."""
    endings: Counter[str] = Counter()
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            endings["".join(path.suffixes[-2 if path.suffix in PACKED else -1 :])] += 1
    told = [each for each in endings if ending in each.split(".")]
    best = max(told or endings, key=lambda each: (endings[each], each), default="")
    return f"*{best}"


def _paired(source: _Found, target: _Found, name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The files of both sides, part by part."""
    for found, other in ((source, target), (target, source)):
        if not found.files and other.files:
            habit = _habit_of_shells(str(found.path))
            raise DataError(f"{name}: no file matches {found.path}, but {other.told}{f'; {habit}' if habit else ''}")
    if not source.files:
        return (source.path,), (target.path,)
    if source.keys is None or target.keys is None:
        if len(source.files) != len(target.files):
            raise DataError(
                f"{name}: source {source.told}, and target {target.told}; wants as many files of each: line n of a "
                "part must translate line n of its other side"
            )
        return source.files, target.files
    if len(source.keys[0]) != len(target.keys[0]):
        raise DataError(
            f"{name}: the patterns {source.path} and {target.path} have {len(source.keys[0])} and "
            f"{len(target.keys[0])} wildcards; wants as many in both, since parts go together where they stand for "
            "the same text"
        )
    targets = dict(zip(target.keys, target.files, strict=True))
    for found, other in ((source, target), (target, source)):
        assert found.keys is not None
        assert other.keys is not None
        if alone := [place for place, key in enumerate(found.keys) if key not in set(other.keys)]:
            raise _unpaired(found, other, alone, name)
    return source.files, tuple(targets[key] for key in source.keys)


def _unpaired(found: _Found, other: _Found, alone: Sequence[int], name: str) -> DataError:
    """Parts of one side, by their places, whose other side is missing."""
    assert found.keys is not None
    texts = iter(found.keys[alone[0]])
    missing = WILDCARD.sub(lambda _: next(texts), str(other.path))
    more = f", and {len(alone) - 1:,} more like it" if len(alone) > 1 else ""
    return DataError(
        f"{name}: {found.files[alone[0]]} has no other side: there is no {missing}{more} ({found.told}, {other.told}); "
        "add what is missing, or narrow the patterns"
    )


def _require_one_order(sources: Sequence[_Found], targets: Sequence[_Found], name: str) -> None:
    """Refuse two lists of the same parts, by what tells their names apart on each side, in different orders."""
    first, second = (_differing([str(found.path) for found in side]) for side in (sources, targets))
    if first == second or sorted(first) != sorted(second) or len(set(first)) < len(first):
        return
    place = next(place for place in range(len(first)) if first[place] != second[place])
    raise DataError(
        f"{name}: source and target list the same parts in different orders: {sources[place].path} stands where "
        f"{targets[place].path} does; list both in one order, since parts go together by their places"
    )


def _differing(names: Sequence[str]) -> list[str]:
    """What is left of names without the beginning and the end that all of them have."""
    start = _num_common(names)
    rest = [name[start:] for name in names]
    end = _num_common([name[::-1] for name in rest])
    return [name[: len(name) - end] for name in rest]


def _num_common(names: Sequence[str]) -> int:
    """How many characters all names begin with."""
    columns = enumerate(zip(*names, strict=False))
    return next((place for place, column in columns if len(set(column)) > 1), min(map(len, names)))
