"""Test sets: text files, or sets that sacreBLEU knows by name and downloads, such as wmt14/full (Post, 2018)."""

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
    """The files of a test set: one source text and one or more references."""

    source: Path
    target: tuple[Path, ...]
    tag: str | None = None  # put before each source line when the model translates it


def test_sets(config: Config) -> dict[str, SetFiles]:
    """The files of the test sets in the settings, by name; sacreBLEU's sets are downloaded if needed.

    Raises ConfigError if the settings name no test set, or one that sacreBLEU does not know. Raises DataError if a file
    is missing or cannot be downloaded.
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
    """The files of the test sets in the settings, by name; `None` for sets of sacreBLEU that are not downloaded yet.

    Downloads nothing; returns {} if the settings have no test set. Raises ConfigError for sets and languages that
    sacreBLEU does not know.
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
    """Raise ConfigError if sacreBLEU lacks a test set that the settings name, or has it in other languages only.

    Training calls this before it prepares data, so that a wrong name is found early.
    """
    for test_set in config.data.test.values():
        if test_set.sacrebleu is not None:
            _dataset(test_set.sacrebleu, config.languages)


def fetch(name: str, languages: LanguagesConfig, tag: str | None = None) -> SetFiles:
    """The files of the sacreBLEU test set called `name`, downloaded into sacreBLEU's cache if needed.

    Raises ConfigError if sacreBLEU does not know the set or its languages, and DataError if the download fails.
    """
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
    """Returns sacreBLEU's dataset called `name` and the language pair to use.

    The pair of the full language codes is tried first, then that of the codes without script and region. Raises
    ConfigError if there is no such dataset or pair.
    """
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
    """Whether the test set called `name` is in sacreBLEU's cache.

    Checks that the files exist, since sacreBLEU knows the fields of some test sets only after downloading them.
    """
    dataset, pair = _dataset(name, languages)
    start = Path(dataset._get_txt_file_path(pair, "src"))
    return start.exists() and any(start.parent.glob(f"{start.stem}.ref*"))


@contextmanager
def _downloading(dataset: "Dataset") -> Iterator[None]:
    """Within the block, turn errors and exits of sacreBLEU into DataError, which quotes what sacreBLEU logged."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sacrebleu")
    logger.addHandler(handler)
    try:
        yield
    except SystemExit:  # sacreBLEU exits if it cannot continue, for example if a checksum is wrong
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
