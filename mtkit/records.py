"""What training writes of a run beside checkpoints and log: how it began, that it is done, and the bundle.

runs/NAME/config.yaml   run.json   trained.json   model/
"""

import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkit import __version__
from mtkit.canaries import make_canaries
from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.data.corpus import Corpus
from mtkit.errors import CheckpointError
from mtkit.files import write_file
from mtkit.formats.bundle import save_bundle
from mtkit.identity import completion_of, differences, with_defaults
from mtkit.models.interface import TranslationModel
from mtkit.start import start_checksum
from mtkit.text.existing import handed_on
from mtkit.text.tokenizer import Tokenizer
from mtkit.translator import translator_of


def write_start(
    config: Config, corpus: Corpus, model: TranslationModel, precision: str, start: str | None
) -> dict[str, Any]:
    """Write the settings, and the facts of this process, which come back.

    start is the checksum of the weights that training started from.
    """
    facts = {
        "mtkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else model.device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "start_from": start,
        "parameters": model.num_parameters,
        "command": sys.argv,
        "data": corpus.facts(),
    }
    write_file(config.run_path / "config.yaml", config_text(config).encode())
    _write_json(config.run_path / "run.json", facts)
    return facts


def write_bundle(
    config: Config, tokenizer: Tokenizer, weights: dict[str, Tensor], lines: Sequence[str], training: dict[str, Any]
) -> Path:
    """Write the bundle, with what is told of its training and canaries among the lines, and return where it lies."""
    translator = translator_of(config, tokenizer, weights)
    about = {
        "mtkit": __version__,
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        "training": training,
    }
    path = config.run_path / "model"
    # The data stays where it is: a bundle names no folder of the machine that it was trained on.
    settings = config.training.model_copy(update={"start_from": None})
    given = handed_on(config.tokenizer, tokenizer)
    config = config.model_copy(update={"run_dir": None, "training": settings, "tokenizer": given})
    save_bundle(path, weights, config, tokenizer.save, about, make_canaries(translator, lines))
    return path


def write_trained(config: Config, start: str | None) -> None:
    """Note that training with these settings has come to its end.

    start is the checksum of the weights that training started from, which may be gone.
    """
    _write_json(config.run_path / "trained.json", completion_of(config, _data(config), start))


def is_trained(config: Config) -> bool:
    """Whether training with these settings has come to its end, and its bundle is there.

    A model that it started from and that is gone counts as the one that it was, and it may lie elsewhere now.
    """
    done = config.run_path / "trained.json"
    if not done.exists() or not (config.run_path / "model" / "bundle.json").exists():
        return False
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
    except ValueError:
        return False
    if not isinstance(found, dict):
        return False
    training = found.get("training")
    # Earlier versions noted where it lay, and not always what it was.
    lay = training.pop("start_from", None) if isinstance(training, dict) else None
    start = None
    if config.training.start_from is not None:
        start = start_checksum(config) or found.get("start_from") or (None if lay else "a model that is not there")
    now = completion_of(config, _data(config), start)
    return not any(differences(with_defaults(found, now, config), now))


def _data(config: Config) -> str:
    return Corpus.open(config.run_path / "data" / "train").digest


def _write_json(path: Path, value: object) -> None:
    """One JSON file, replaced whole."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None
