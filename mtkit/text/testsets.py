"""Where the texts of test sets lie: in files, or under a name that sacreBLEU knows, such as wmt14/full (Post, 2018)."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from portalocker.exceptions import LockException

from mtkit.config.data_settings import LanguagesConfig
from mtkit.config.settings import Config
from mtkit.errors import ConfigError, DataError, say
from mtkit.text.parallel import data_file

if TYPE_CHECKING:
    from sacrebleu.dataset.base import Dataset


@dataclass(frozen=True)
class SetFiles:
    """A source text and its references."""

    source: Path
    target: tuple[Path, ...]
    tag: str | None = None  # stands before each source line that the model sees


def test_sets(config: Config) -> dict[str, SetFiles]:
    """The test sets of the settings, with the paths where their files lie; named ones are downloaded if need be."""
    if not config.data.test:
        raise ConfigError("there is no test set: name one in data.test, or give --source and --reference")
    sets = {}
    for name, test_set in config.data.test.items():
        if test_set.sacrebleu is not None:
            sets[name] = fetch(test_set.sacrebleu, config.languages, test_set.tag)
        else:
            assert test_set.source is not None, "the settings check it"
            source, *targets = (data_file(config, path) for path in (test_set.source, *test_set.target))
            sets[name] = SetFiles(source, tuple(targets), test_set.tag)
    return sets


def local_test_sets(config: Config) -> dict[str, SetFiles | None]:
    """The same without a download: None for a named set that is not there yet. Wrong names are told all the same."""
    check_names(config)
    sets: dict[str, SetFiles | None] = {}
    for name, test_set in config.data.test.items():
        if test_set.sacrebleu is not None and not _is_cached(test_set.sacrebleu, config.languages):
            sets[name] = None
        else:
            sets |= test_sets(
                config.model_copy(update={"data": config.data.model_copy(update={"test": {name: test_set}})})
            )
    return sets


def check_names(config: Config) -> None:
    """A ConfigError if a named test set is none of sacreBLEU's, or has not these languages (asked before training)."""
    for test_set in config.data.test.values():
        if test_set.sacrebleu is not None:
            _dataset(test_set.sacrebleu, config.languages)


def fetch(name: str, languages: LanguagesConfig, tag: str | None = None) -> SetFiles:
    """A set that sacreBLEU knows, from its cache, or downloaded into it."""
    dataset, pair = _dataset(name, languages)
    if pair != _pair(languages):
        say(f"test set {name}: taken for {pair}, since it has none of '{_pair(languages)}'")
    with _downloading(dataset):
        source = Path(dataset.get_source_file(pair))
        references = tuple(map(Path, dataset.get_reference_files(pair)))
    return SetFiles(source, references, tag)


def _pair(languages: LanguagesConfig) -> str:
    return f"{languages.source}-{languages.target}"


def _dataset(name: str, languages: LanguagesConfig) -> "tuple[Dataset, str]":
    """The set, and its pair of these languages: codes with a script or a region, or else without."""
    from sacrebleu.dataset import DATASETS  # here, since files, which most sets are, can do without

    dataset = DATASETS.get(name)
    if dataset is None:
        near = _nearest(name, sorted(DATASETS))
        raise ConfigError(f"sacreBLEU knows no test set '{name}'; {near}; `sacrebleu --list` names them all")
    bare = "-".join(re.split("[-_]", code)[0].lower() for code in (languages.source, languages.target))
    pair = next((pair for pair in (_pair(languages), bare) if pair in dataset.langpairs), None)
    if pair is None:
        raise ConfigError(
            f"test set {name} is not there for '{_pair(languages)}', but for {', '.join(sorted(dataset.langpairs))}; "
            "see languages.source and languages.target, or --languages"
        )
    return dataset, pair


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=5, cutoff=0.5)
    return f"near it are {', '.join(near)}" if near else f"among those it knows are {', '.join(names[:5])}"


def _is_cached(name: str, languages: LanguagesConfig) -> bool:
    """Whether it can be read without a download; what fields a set has may itself be known by its download alone."""
    dataset, pair = _dataset(name, languages)
    start = Path(dataset._get_txt_file_path(pair, "src"))
    return start.exists() and any(start.parent.glob(f"{start.stem}.ref*"))


@contextmanager
def _downloading(dataset: "Dataset") -> Iterator[None]:
    """Tells in one line what sacreBLEU logs, raises or exits with."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sacrebleu")
    logger.addHandler(handler)
    try:
        yield
    except SystemExit:  # what it cannot mend ends it, such as a wrong checksum
        raise DataError(
            f"test set {dataset.name} cannot be had: {said[0] if said else 'sacreBLEU gave up'}; "
            f"delete {dataset._outdir} and try again"
        ) from None
    except FileNotFoundError as error:  # an earlier download was interrupted between fetching and unpacking
        raise DataError(
            f"test set {dataset.name} is damaged: {error.filename} is missing; delete {dataset._outdir} and try again"
        ) from None
    except LockException:
        raise DataError(f"test set {dataset.name} is being downloaded by another process; try again later") from None
    except (EOFError, TarError, BadZipFile):
        raise DataError(
            f"test set {dataset.name} is damaged: what was downloaded from {', '.join(dataset.data or ())} cannot be "
            f"unpacked; delete {dataset._outdir} and try again"
        ) from None
    except (OSError, HTTPException) as error:
        raise DataError(
            f"test set {dataset.name} cannot be downloaded from {', '.join(dataset.data or ())}: {error}"
        ) from None
    finally:
        logger.removeHandler(handler)
