"""Test sets: files, or sets that sacreBLEU downloads by name, such as wmt14/full (Post, 2018)."""

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
    """The files of a test set: a source text and its references."""

    source: Path
    target: tuple[Path, ...]
    tag: str | None = None  # put before each source line for the model


def test_sets(config: Config) -> dict[str, SetFiles]:
    """The files of the test sets in the settings, by name; named sets are downloaded if needed.

    Raises ConfigError if there is no test set.
    """
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
    """The files of the test sets in the settings, by name; None for a named set that is not downloaded yet.

    Raises ConfigError for names that sacreBLEU does not know.
    """
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
    """Raise ConfigError if sacreBLEU lacks a named test set or the set lacks the languages; called before training."""
    for test_set in config.data.test.values():
        if test_set.sacrebleu is not None:
            _dataset(test_set.sacrebleu, config.languages)


def fetch(name: str, languages: LanguagesConfig, tag: str | None = None) -> SetFiles:
    """The files of a sacreBLEU test set, downloaded into sacreBLEU's cache if needed."""
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
    """The set and its language pair, looked up by the full language codes, then without script and region."""
    from sacrebleu.dataset import DATASETS  # imported here, since test sets in files do not need it

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
    """Whether a set is in sacreBLEU's cache; looks for files, as some sets know their fields only once downloaded."""
    dataset, pair = _dataset(name, languages)
    start = Path(dataset._get_txt_file_path(pair, "src"))
    return start.exists() and any(start.parent.glob(f"{start.stem}.ref*"))


@contextmanager
def _downloading(dataset: "Dataset") -> Iterator[None]:
    """Turns what sacreBLEU logs, raises or exits with into a DataError."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sacrebleu")
    logger.addHandler(handler)
    try:
        yield
    except SystemExit:  # sacreBLEU exits if it cannot continue, for example after a wrong checksum
        raise DataError(
            f"test set {dataset.name} cannot be had: {logged[0] if logged else 'sacreBLEU gave up'}; "
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
