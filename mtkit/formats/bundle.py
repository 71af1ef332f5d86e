"""The bundle: a model with all that it takes to translate, in one directory.

model/weights.safetensors  tokenizer/  config.yaml  bundle.json  scores.json  README.md
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkit.config.load import config_from_text
from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.errors import CheckpointError
from mtkit.files import replaced_directory, standing, write_file

FORMAT = 1

WEIGHTS, CONFIG, DESCRIPTION, SCORES, CARD, TOKENIZER = (
    "weights.safetensors",
    "config.yaml",
    "bundle.json",
    "scores.json",
    "README.md",
    "tokenizer",
)

SCORE = {"test_set", "metric", "score", "signature"}  # what a score tells

# What a description must tell for the model to be loaded; the rest is for its readers.
NEEDED = {"weights_bytes": int, "tokenizer_sha256": str, "source_vocab_size": int, "target_vocab_size": int}


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its weights not yet read."""

    path: Path
    config: Config
    description: dict[str, Any]  # format, mtkit, vocabulary sizes, training, size of the weights, tokenizer's checksum

    @property
    def config_path(self) -> Path:
        """The settings it was trained with."""
        return self.path / CONFIG

    @property
    def tokenizer_path(self) -> Path:
        """The directory of the tokenizer."""
        return self.path / TOKENIZER

    def require_own_tokenizer(self) -> None:
        """Another tokenizer's ids mean other words, and nobody would notice but by the translations."""
        if _checksum(self.tokenizer_path) != self.description["tokenizer_sha256"]:
            raise CheckpointError(
                f"{self.tokenizer_path}: not the tokenizer that this model was trained with; copy the model again"
            )

    def weights(self) -> dict[str, Tensor]:
        """The weights as they lie in the file: mapped into memory, not copied."""
        path = self.path / WEIGHTS
        try:
            size = path.stat().st_size
        except OSError:
            raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None
        if size != self.description["weights_bytes"]:
            raise CheckpointError(
                f"{path}: {size:,} bytes where {self.description['weights_bytes']:,} were written; "
                "the file is cut off or another model's, copy it again"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged: {error}; copy it again") from None


def find_bundle(path: Path) -> Path:
    """The bundle that a path names: a bundle itself, or the one of a run directory."""
    for candidate in map(standing, (path, path / "model")):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if not path.is_dir():
        found = "is a file" if path.exists() else "no such directory"
        raise CheckpointError(f"{path}: {found}; MODEL is a run directory or a model bundle")
    if (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path}: training has not found a first model yet; go on with mtkit train")
    raise CheckpointError(f"{path}: not a model: it holds no {DESCRIPTION} and no model/{DESCRIPTION}")


def open_bundle(path: Path) -> Bundle:
    """The bundle at a path, its parts checked for being there and readable."""
    path = find_bundle(path)
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        found = description["format"]
        whole = found != FORMAT or all(isinstance(description[key], kind) for key, kind in NEEDED.items())
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path / DESCRIPTION}: damaged; copy the model again")
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: a bundle of format {found}; this version of mtkit reads format {FORMAT}: install a newer one"
        )
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise CheckpointError(f"{path / CONFIG}: damaged or missing; copy the model again") from None
    return Bundle(path, config_from_text(text, str(path / CONFIG)), description)


def save_bundle(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    save_tokenizer: Callable[[Path], None],
    about: dict[str, Any],
) -> None:
    """Write a bundle in the place of an older one; about is kept in its description."""
    try:
        with replaced_directory(path) as new:
            save_file(weights, new / WEIGHTS)
            save_tokenizer(new / TOKENIZER)
            # A model may be carried to where there is another device.
            (new / CONFIG).write_text(config_text(config.model_copy(update={"device": "auto"})), encoding="utf-8")
            description = {
                "format": FORMAT,
                "weights_bytes": (new / WEIGHTS).stat().st_size,
                "tokenizer_sha256": _checksum(new / TOKENIZER),
                **about,
            }
            (new / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; make room and start again") from None


def save_scores(bundle: Bundle, scores: list[dict[str, Any]], card: str) -> None:
    """Leave the scores and the card that tells of them in the bundle."""
    write_file(bundle.path / SCORES, (json.dumps(scores, indent=1) + "\n").encode())
    write_file(bundle.path / CARD, card.encode())


def read_scores(bundle: Bundle) -> list[dict[str, Any]]:
    """The scores in the bundle; none if it was not evaluated, or if they are damaged: they can be measured again."""
    try:
        scores = json.loads((bundle.path / SCORES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    whole = isinstance(scores, list) and all(isinstance(score, dict) and score.keys() == SCORE for score in scores)
    return scores if whole else []


def _checksum(directory: Path) -> str:
    """One over the names and the bytes of all files in a directory."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
