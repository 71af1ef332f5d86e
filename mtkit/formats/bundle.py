"""The bundle: a model with all that it takes to translate, in one directory or packed into one file.

model/weights.safetensors  tokenizer/  config.yaml  bundle.json  canaries.json  scores.json  README.md
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtkit.config.load import config_from_text
from mtkit.config.settings import Config
from mtkit.config.show import config_text
from mtkit.errors import CheckpointError
from mtkit.files import replaced_directory, standing, write_file
from mtkit.formats.canary import Canary, canaries_text, read_canaries
from mtkit.formats.description import FORMAT, read_description, sealed
from mtkit.formats.storage import Folder, Storage, is_packed, open_storage
from mtkit.formats.sums import all_sums, sums_of
from mtkit.formats.tensors import not_finite, read_tensors
from mtkit.messages import say

WEIGHTS, CONFIG, DESCRIPTION, CANARIES, SCORES, CARD, TOKENIZER = (
    "weights.safetensors",
    "config.yaml",
    "bundle.json",
    "canaries.json",
    "scores.json",
    "README.md",
    "tokenizer",
)

# Ids of the target's vocabulary that were added and that no training has seen: they are never said.
UNTRAINED, UNTRAINED_TAGS = "untrained", "untrained_tags"

# What is in a run directory, some of it from the first second on, and in no bundle.
RUN_SIGNS = (".lock", "checkpoints", "run.json", "tokenizer/provenance.json")

SCORE = {"test_set", "metric", "score", "signature"}  # what a score tells


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its weights not yet read."""

    storage: Storage
    config: Config
    description: dict[str, Any]  # format, mtkit, vocabulary sizes, training, checksums

    @property
    def path(self) -> Path:
        """The folder, or the one file."""
        return self.storage.path

    @property
    def tokenizer_path(self) -> Path:
        """Where messages say that the tokenizer lies."""
        return self.storage.place(TOKENIZER)

    def read(self, name: str) -> bytes:
        """A file of the bundle, such as tokenizer/tokenizer.json; CheckpointError if it is not there."""
        return _read(self.storage, name)

    def config_with(self, overrides: Sequence[str]) -> Config:
        """The settings it was trained with, and these over them."""
        return _config(self.storage, overrides) if overrides else self.config

    def tokenizer_files(self) -> dict[str, bytes]:
        """What the tokenizer is made of, by the names of its files."""
        return tokenizer_files(self.storage)

    def require_own_tokenizer(self) -> None:
        """Another tokenizer's ids mean other words, and nobody would notice but by the translations."""
        if _checksum(self.tokenizer_files()) != self.description["tokenizer_sha256"]:
            raise CheckpointError(
                f"{self.tokenizer_path}: not the tokenizer that this model was trained with; copy the model again"
            )

    def weights(self) -> dict[str, Tensor]:
        """The weights as they lie in the file: mapped into memory, not copied."""
        path = self.path / WEIGHTS
        try:
            content = self.storage.view(WEIGHTS)
        except OSError:
            raise CheckpointError(f"{path}: missing; the model is not whole, copy it again") from None
        if len(content) != self.description["weights_bytes"]:
            raise CheckpointError(
                f"{path}: {len(content):,} bytes where {self.description['weights_bytes']:,} were written; "
                "the file is cut off or another model's, copy it again"
            )
        return read_tensors(content, str(path))

    @property
    def untrained_tags(self) -> tuple[str, ...]:
        """Tags that were added and that no training has seen."""
        tags = self.description.get(UNTRAINED_TAGS, [])
        return tuple(map(str, tags)) if isinstance(tags, list) else ()

    @property
    def untrained(self) -> list[int]:
        """Ids that were added to the target's vocabulary and that no training has seen."""
        ids = self.description.get(UNTRAINED, [])
        size = self.description["target_vocab_size"]
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < size for id_ in ids):
            raise CheckpointError(f"{self.path / DESCRIPTION}: damaged; copy the model again")
        return ids

    def canaries(self) -> list[Canary]:
        """Sentences whose translations are known; none in a bundle of format 1."""
        if self.description["format"] == 1:
            return []
        sizes = (self.description["source_vocab_size"], self.description["target_vocab_size"])
        return read_canaries(self.read(CANARIES), str(self.path / CANARIES), *sizes)


def find_bundle(path: Path) -> Path:
    """The bundle that a path names: a bundle itself, or the one of a run directory."""
    bundle = bundle_at(path)
    if bundle is None:
        raise no_model(path)
    return bundle


def bundle_at(path: Path) -> Path | None:
    """The same; None if there is none."""
    if is_packed(path):
        return path
    candidates = map(standing, (path, path / "model"))
    return next((candidate for candidate in candidates if (candidate / DESCRIPTION).is_file()), None)


def no_model(path: Path) -> CheckpointError:
    """What to say of a path that names neither a bundle nor a checkpoint."""
    wanted = "MODEL is a run directory, a checkpoint or a model bundle"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return CheckpointError(f"{path}: is a file of settings; {wanted}, such as runs/NAME with the name in the file")
    if not path.is_dir():
        found = "is a file that mtkit pack did not write" if path.exists() else "no such directory"
        run = Path("runs") / path
        meant = f"; did you mean {run}?" if not path.exists() and _holds_model(run) else f"; {wanted}"
        return CheckpointError(f"{path}: {found}{meant}")
    if is_run(path):
        return CheckpointError(f"{path}: training has not found a first model yet; go on with mtkit train")
    inside = [below for below in sorted(path.iterdir()) if _holds_model(below)]
    more = f"; {inside[0]} is one" if inside else ""
    return CheckpointError(f"{path}: not a model: it holds no {DESCRIPTION} and no model/{DESCRIPTION}{more}")


def is_run(path: Path) -> bool:
    """Whether a folder is the directory of a run, however far that is."""
    return any((path / name).exists() for name in RUN_SIGNS)


def _holds_model(path: Path) -> bool:
    """Whether a folder is a bundle or a run directory, finished or not."""
    return path.is_dir() and (bundle_at(path) is not None or (path / "checkpoints").is_dir())


def find_storage(path: Path) -> Storage:
    """The files of the bundle that a path names."""
    return open_storage(find_bundle(path))


def open_bundle(path: Path) -> Bundle:
    """The bundle at a path, its parts checked for being there and readable."""
    return bundle_of(find_storage(path))


def bundle_of(storage: Storage) -> Bundle:
    """The bundle that these files are."""
    description = describe(storage)
    return Bundle(storage, _config(storage, ()), description)


def describe(storage: Storage) -> dict[str, Any]:
    """What bundle.json tells; a damaged one is a CheckpointError."""
    path = storage.path / DESCRIPTION
    try:
        content = bytes(storage.view(DESCRIPTION))
    except OSError:
        raise CheckpointError(f"{path}: damaged or missing; copy the model again") from None
    return read_description(content, path)


def tokenizer_files(storage: Storage) -> dict[str, bytes]:
    """The files of the tokenizer by their names in its folder."""
    names = (name for name in storage.names() if name.startswith(f"{TOKENIZER}/"))
    return {name.removeprefix(f"{TOKENIZER}/"): _read(storage, name) for name in names}


def _read(storage: Storage, name: str) -> bytes:
    try:
        return bytes(storage.view(name))
    except OSError:
        raise CheckpointError(f"{storage.path / name}: damaged or missing; copy the model again") from None


def _config(storage: Storage, overrides: Sequence[str]) -> Config:
    path = storage.path / CONFIG
    try:
        text = _read(storage, CONFIG).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: damaged or missing; copy the model again") from None
    return config_from_text(text, str(path), overrides)


def save_bundle(
    path: Path,
    weights: dict[str, Tensor],
    config: Config,
    save_tokenizer: Callable[[Path], None],
    about: dict[str, Any],
    canaries: Sequence[Canary] = (),
) -> None:
    """Write a bundle in the place of an older one; about is kept in its description."""
    try:
        with replaced_directory(path) as new:
            save_file(weights, new / WEIGHTS)
            save_tokenizer(new / TOKENIZER)
            (new / CONFIG).write_bytes(carried_config(config))
            shutil.copymode(new / CONFIG, new / WEIGHTS)  # which safetensors lets nobody else read
            (new / CANARIES).write_bytes(canaries_text(canaries))
            storage = Folder(new)
            files = {name: sums.told for name, sums in all_sums(storage).items()}
            (new / DESCRIPTION).write_bytes(description_of(config, tokenizer_files(storage), files, about))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; make room and start again") from None
    if fault := not_finite(weights):
        say(f"warning: {path}: {fault}; it cannot translate")


def carried_config(config: Config) -> bytes:
    """config.yaml of a bundle, which names no folder and no device of the machine that the model was made on."""
    training = config.training.model_copy(update={"start_from": None})
    return config_text(config.model_copy(update={"device": "auto", "run_dir": None, "training": training})).encode()


def description_of(
    config: Config, tokenizer: Mapping[str, bytes], files: Mapping[str, dict[str, Any]], about: Mapping[str, Any]
) -> bytes:
    """bundle.json; tokenizer holds the tokenizer's files, files the size and checksum of every file but bundle.json."""
    return sealed(
        {
            "format": FORMAT,
            "name": config.name,
            "languages": config.languages.model_dump(mode="json"),
            "weights_bytes": files[WEIGHTS]["bytes"],
            "tokenizer_sha256": _checksum(tokenizer),
            **about,
            "files": files,
        }
    )


def save_scores(bundle: Bundle, scores: list[dict[str, Any]], card: str) -> None:
    """Leave the scores and the card that tells of them in the bundle, which is a folder.

    A kill between the files leaves checksums of the older ones, until the scores are measured again.
    """
    new = {SCORES: (json.dumps(scores, indent=1) + "\n").encode(), CARD: card.encode()}
    for name, content in new.items():
        write_file(bundle.path / name, content)
    if "files" in bundle.description:
        sums = {name: sums_of(memoryview(content)).told for name, content in new.items()}
        files = dict(sorted({**bundle.description["files"], **sums}.items()))
        write_file(bundle.path / DESCRIPTION, sealed({**bundle.description, "files": files}))


def read_scores(bundle: Bundle) -> list[dict[str, Any]]:
    """The scores in the bundle; none if it was not evaluated, or if they are damaged: they can be measured again."""
    try:
        scores = json.loads(bytes(bundle.storage.view(SCORES)))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return scores if isinstance(scores, list) and all(map(_is_score, scores)) else []


def _is_score(score: Any) -> bool:
    return (
        isinstance(score, dict)
        and score.keys() == SCORE
        and all(isinstance(score[key], str) for key in SCORE - {"score"})
        and isinstance(score["score"], int | float)
    )


def _checksum(files: Mapping[str, bytes]) -> str:
    """One over the names and the bytes of all files of a directory."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
