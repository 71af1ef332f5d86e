"""A toy language that a small model learns in seconds, and fixtures: the source spells the digits of the target."""

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mtkit.config.settings import Config
from mtkit.errors import show_progress
from mtkit.pipeline import run_all, run_binarize

# One thread, as scripts/test has it: a child by fork of a process that has computed with several may wait for ever.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# Tests import CTranslate2 themselves, and mtkit prepares its import so (see library in mtkit/exchange/engines.py).
if not torch.cpu._is_vnni_supported():
    os.environ.setdefault("CT2_USE_MKL", "1")

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def toy_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct pairs of number words and digits, such as ("four nine one", "4 9 1"), which depend on the seed alone."""
    generator = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        digits = [generator.randrange(10) for _ in range(generator.randint(2, 6))]
        pairs[" ".join(NAMES[digit] for digit in digits)] = " ".join(map(str, digits))
    return list(pairs.items())


def write_lines(path: Path, lines: list[str]) -> None:
    """Write the lines as UTF-8, ended by a line feed on every system."""
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_toy_corpus(root: Path, num_pairs: int = 1500) -> Path:
    """Write train, valid and test, each as .src and .tgt, to root and return it; no pair twice."""
    root.mkdir(parents=True, exist_ok=True)
    pairs = iter(toy_pairs(num_pairs + 48))
    for name, count in (("train", num_pairs), ("valid", 24), ("test", 24)):
        chosen = list(islice(pairs, count))
        write_lines(root / f"{name}.src", [source for source, _ in chosen])
        write_lines(root / f"{name}.tgt", [target for _, target in chosen])
    return root


@dataclass(frozen=True)
class CorpusFiles:
    """The folder of the toy corpus."""

    root: Path

    def pair(self, name: str) -> dict[str, str]:
        """train, valid or test, as an entry in the settings."""
        return {"source": f"{name}.src", "target": f"{name}.tgt"}

    def lines(self, name: str) -> tuple[list[str], list[str]]:
        """Sources and targets of train, valid or test."""
        source, target = ((self.root / f"{name}.{side}").read_text("utf-8").splitlines() for side in ("src", "tgt"))
        return source, target


def toy_settings(corpus: CorpusFiles, run_dir: Path) -> dict[str, object]:
    """Settings of a run that learns the toy language, as parsed from YAML."""
    return {
        "name": "toy",
        "run_dir": str(run_dir),
        "device": "cpu",
        "languages": {"source": "en", "target": "digits"},
        "data": {
            "root": str(corpus.root),
            "train": [corpus.pair("train")],
            "valid": [corpus.pair("valid")],
            "test": {"toy": corpus.pair("test")},
            "max_length": 24,
        },
        "tokenizer": {"vocab_size": 400},
        "model": {
            "d_model": 32,
            "num_heads": 4,
            "d_ff": 128,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "dropout": 0.0,
        },
        "training": {
            "batch_tokens": 512,
            "max_steps": 240,
            "learning_rate": 0.01,
            "warmup_steps": 40,
            "validate_every": 80,
            "save_every": 80,
            "validation_sentences": 24,
            "log_every": 20,
            "label_smoothing": 0.0,
            "average_checkpoints": 2,
        },
        "decoding": {"beam_size": 2},
    }


# Whether tensors are distributed, which none here is, assert_close finds out by importing sympy and much else.
if hasattr(torch.testing._comparison, "_unwrap_dtensor_for_comparison"):
    torch.testing._comparison._unwrap_dtensor_for_comparison = lambda actual, expected: (actual, expected)


# Under nohup, SIGHUP is ignored, and mtkit leaves it so; the tests send it.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# A rate that falls to nothing has the toy language learnt in a few hundred updates.
LEARNING = {"schedule": "linear"}


def config_with(settings: dict[str, object], **sections: dict[str, object]) -> Config:
    """The settings with some replaced, such as training={"max_steps": 3}; an architecture replaces the whole model."""
    changed = dict(settings)
    for name, values in sections.items():
        original = changed.get(name, {})
        assert isinstance(original, dict)
        changed[name] = values if "architecture" in values else {**original, **values}
    model, decoding = changed.get("model"), changed.get("decoding")
    if isinstance(model, dict) and isinstance(decoding, dict) and model.get("architecture") == "cmlm":
        changed["decoding"] = {key: value for key, value in decoding.items() if key != "beam_size"}  # it has no beam
    return Config.model_validate_json(json.dumps(changed))


# What imports and collection have made stays to the end; the collector need not go through it again and again.
gc.disable()


def pytest_collection(session: pytest.Session) -> None:
    """Have every second process import the test modules from the last to the first.

    When a test module is first imported, pytest rewrites its assertions and keeps the result, which takes a core ten
    seconds for all of them. So two processes share this work, and do not both do all of it.
    """
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if number.isdigit() and int(number) % 2 and not session.config.getoption("file_or_dir"):
        tests = Path(__file__).parent
        for path in sorted(tests.rglob("test_*.py"), reverse=True):
            with suppress(Exception, pytest.skip.Exception):  # collecting tells what is wrong
                import_module(".".join(path.relative_to(tests.parent).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Have garbage collected from here on, among what the tests make."""
    gc.freeze()
    gc.set_threshold(20_000)  # seldom, for most of it is freed without the collector
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs slow tests, too."""
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow, too, as .ci/run does")


SLOW_TEST = 300  # a test that is marked slow counts as so many others


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless they are asked for, and have the files that take longest come first.

    Where several processes share the files, none then runs long after the others.
    """
    if not config.getoption("slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes half a minute; run with --slow"))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += SLOW_TEST if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


# Tests that make models of transformers, whose import takes as long as a hundred small trainings, or its tokenizers.
TOGETHER = {
    *(f"tests/exchange/test_{name}.py" for name in ("export", "huggingface_tokenizer", "m2m100", "marian", "travel")),
    *(f"tests/commands/test_{name}.py" for name in ("cli", "progress")),
    *(f"tests/text/test_{name}.py" for name in ("existing_tokenizer", "symbols")),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one process, as --dist=loadfile does, and all files of TOGETHER to the same.

    Files come in the order of `pytest_collection_modifyitems`, not by their number of tests alone.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "together" if file in TOGETHER else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def sigint_is_handled() -> None:
    """Handles SIGINT, which the processes of pytest-xdist ignore; mtkit leaves an ignored signal ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and waiting for the disk would take a large part of the time of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def progress_is_shown() -> Iterator[None]:
    """Shows progress again after each test."""
    yield
    show_progress(True)


@pytest.fixture
def quiet() -> None:
    """No progress on stderr, as with --quiet."""
    show_progress(False)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process of pytest-xdist that wants it makes, for all of them; not to be changed."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the worker lies in that of all
    folder, begun, done = (root / f"{name}{ending}" for ending in ("", ".begun", ".done"))
    deadline = time.monotonic() + 600
    while not done.exists():
        assert time.monotonic() < deadline, f"{folder}: another process has begun it and does not end"
        try:
            begun.mkdir()
        except FileExistsError:
            time.sleep(0.05)
            continue
        try:
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failure has left
                make(folder)
                done.touch()
        finally:
            begun.rmdir()
    return folder


@pytest.fixture(scope="session")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    """The toy corpus on disk; must not be changed."""
    return CorpusFiles(made_once(tmp_path_factory, "toy", write_toy_corpus))


@pytest.fixture
def make_config(corpus_files: CorpusFiles, tmp_path: Path) -> Callable[..., Config]:
    """A function that makes the toy settings, with some replaced as config_with does; run in tmp_path/run."""

    def make(run_dir: Path | None = None, **sections: dict[str, object]) -> Config:
        return config_with(toy_settings(corpus_files, run_dir or tmp_path / "run"), **sections)

    return make


@pytest.fixture
def tiny_config(make_config: Callable[..., Config]) -> Config:
    """The toy settings: a Transformer with d_model 32; run in tmp_path/run."""
    return make_config()


@pytest.fixture(scope="session")
def tiny_run(corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run that has learnt the toy language; must not be changed: copy it first."""

    def make(folder: Path) -> None:
        run_all(config_with(toy_settings(corpus_files, folder / "run"), training=LEARNING))

    return made_once(tmp_path_factory, "tiny", make) / "run"


@pytest.fixture(scope="session")
def written_opus(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like those of OPUS-MT, with random weights and the tokenizer of tiny_run; must not be changed."""
    from tests.exported import write_opus

    return made_once(tmp_path_factory, "opus", lambda folder: write_opus(folder, tiny_run))


@pytest.fixture
def opus(written_opus: Path, tmp_path: Path) -> Path:
    """The same, which may be changed."""
    return Path(shutil.copytree(written_opus, tmp_path / "opus"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a tokenizer and 120 binarized pairs, before training; must not be changed."""

    def make(root: Path) -> None:
        settings = toy_settings(CorpusFiles(write_toy_corpus(root, 120)), root / "run")
        run_binarize(config_with(settings, tokenizer={"vocab_size": 330}))

    return made_once(tmp_path_factory, "prepared", make) / "run"


@pytest.fixture(scope="session")
def finished_toy(prepared: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as `make` has it, trained to its end; not to be changed."""

    def make(folder: Path) -> None:
        _toy_run(prepared, corpus_files, folder / "run")

    return made_once(tmp_path_factory, "finished", make) / "run"


@pytest.fixture(scope="session")
def stopped_toy(prepared: Path, corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as `make` makes it, trained with max_steps 8; tests must not change it."""

    def make(folder: Path) -> None:
        _toy_run(prepared, corpus_files, folder / "run", max_steps=8)

    return made_once(tmp_path_factory, "stopped", make) / "run"


def _toy_run(prepared: Path, corpus_files: CorpusFiles, run_dir: Path, **training: object) -> Path:
    from tests.runs import MODEL, TRAINING, trained

    shutil.copytree(prepared, run_dir)
    settings = toy_settings(corpus_files, run_dir)
    return trained(config_with(settings, model=MODEL, training={**TRAINING, **training}))


@pytest.fixture
def make(make_config: Callable[..., Config], prepared: Path, tmp_path: Path) -> Callable[..., Config]:
    """A function that copies the prepared run to tmp_path and returns its settings, with some replaced."""
    from tests.runs import MODEL, TRAINING

    def made(name: str = "run", device: str = "cpu", model: dict[str, Any] | None = None, **training: Any) -> Config:
        if not (tmp_path / name).exists():
            shutil.copytree(prepared, tmp_path / name)
        model = model if model and "architecture" in model else {**MODEL, **(model or {})}
        config = make_config(tmp_path / name, model=model, training={**TRAINING, **training})
        return config.model_copy(update={"device": device})

    return made


# One run directory that each test fills anew, with the same paths every time.

SHORT = {"max_steps": 4, "validate_every": 2, "save_every": 2, "validation_sentences": 4, "log_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run and its text, which are the same for each test."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def config(make_config: Callable[..., Config], corpus_files: CorpusFiles, place: Path) -> Config:
    """A run of four updates over its own copy of the corpus."""
    for name in ("run", "data"):
        shutil.rmtree(place / name, ignore_errors=True)
    shutil.copytree(corpus_files.root, place / "data")
    return make_config(place / "run", training=SHORT, data={"root": str(place / "data")})


@pytest.fixture
def without_mecab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the tokenizers for Japanese and Korean are not installed."""
    for package, language in (("MeCab", "ja"), ("mecab_ko", "ko")):
        module = f"sacrebleu.tokenizers.tokenizer_{language}_mecab"
        import_module(module)  # so that it is in its place again afterwards, not one that found no package
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, package, None)


SCRIPTS = Path(__file__).parent.parent / "scripts"


def script(name: str) -> ModuleType:
    """Imports a program of the folder scripts, which may import others there."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))
