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
from mtkit.data.manifest import validation_sum
from mtkit.errors import CheckpointError
from mtkit.files import write_file
from mtkit.formats.bundle import save_bundle
from mtkit.identity import WITHOUT_EFFECT, completion_of, differences, with_defaults
from mtkit.models.interface import TranslationModel
from mtkit.opening import TRAINED, has_model
from mtkit.start import start_checksum
from mtkit.text.existing import handed_on
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import Progress, checkpoint_steps, read_progress
from mtkit.translator import translator_of


def write_start(
    config: Config, corpus: Corpus, model: TranslationModel, progress: Progress, start: str | None
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
        "precision": progress.precision,
        "start_from": start,
        **({"changes": progress.changes} if progress.changes else {}),
        **({"plan": progress.plan} if progress.plan else {}),
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
    """Write the bundle of a run, with canaries among the lines, and return where it lies."""
    path = config.run_path / "model"
    write_model(path, config, tokenizer, weights, lines, training)
    return path


def write_model(
    path: Path,
    config: Config,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    lines: Sequence[str],
    training: dict[str, Any],
) -> None:
    """Write a bundle at a path, with what is told of its training and canaries among the lines."""
    translator = translator_of(config, tokenizer, weights)
    about = {
        "mtkit": __version__,
        "source_vocab_size": tokenizer.source_vocab_size,
        "target_vocab_size": tokenizer.target_vocab_size,
        "num_parameters": sum(map(Tensor.numel, weights.values())),
        "training": training,
    }
    config = config.model_copy(update={"tokenizer": handed_on(config.tokenizer, tokenizer)})
    save_bundle(path, weights, config, tokenizer.save, about, make_canaries(translator, lines))


def write_trained(config: Config, start: str | None) -> None:
    """Note that training with these settings has come to its end.

    start is the checksum of the weights that training started from, which may be gone.
    """
    _write_json(config.run_path / TRAINED, _completion(config, start))


def is_trained(config: Config) -> bool:
    """Whether training with these settings has come to its end, and its bundle is there."""
    return has_model(config.run_path) and not changed_since_trained(config)


def changed_since_trained(config: Config) -> list[str]:
    """What is not as it was when training came to its end, in words; nothing if training again would give the same.

    A model that it started from and that is gone counts as the one that it was, and it may lie elsewhere now.
    """
    done = config.run_path / TRAINED
    try:
        found = json.loads(done.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    training = found.get("training") if isinstance(found, dict) else None
    if not isinstance(training, dict):
        return [f"{done} does not tell what it was trained with"]
    # Earlier versions noted where the start lay, and not always what it was; and settings without effect.
    lay = training.pop("start_from", None)
    found["training"] = {name: value for name, value in training.items() if name not in WITHOUT_EFFECT}
    start = None
    if config.training.start_from is not None:
        noted = found.get("start_from")
        start = start_checksum(config, noted) or noted or (None if lay else "a model that is not there")
    now = _completion(config, start)
    found.setdefault("validation", now["validation"])
    return list(map(str, differences(with_defaults(found, now, config), now)))


def _completion(config: Config, start: str | None) -> dict[str, Any]:
    data = Corpus.open(config.run_path / "data" / "train").digest
    return completion_of(config, data, validation_digest(config), start)


def validation_digest(config: Config) -> str:
    """A checksum of the validation text as it was kept when the data was binarized; empty where it cannot be told."""
    try:
        manifest = json.loads((config.run_path / "data" / "valid" / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return ""
    return validation_sum(manifest)


def noted_validation(run: Path) -> str | None:
    """The checksum of the validation text that training noted; "" where an earlier version did not.

    It is that of the newest checkpoint that can be read, else of the finished training; None if there is neither.
    """
    for step in reversed(checkpoint_steps(run / "checkpoints")):
        try:
            _, identity, _ = read_progress(run / "checkpoints", step)
        except CheckpointError:
            continue
        return str(identity.get("validation", ""))
    try:
        found = json.loads((run / TRAINED).read_bytes())
    except (OSError, ValueError):
        return None
    return str(found.get("validation", "")) if isinstance(found, dict) else None


def _write_json(path: Path, value: object) -> None:
    """One JSON file, replaced whole."""
    try:
        write_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}; make room and start again") from None
