"""The model bundle: weights, settings, tokenizer and description, in a folder or in one packed file."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mtkit.bundle.storage import Folder, Storage, all_sums, is_packed, not_finite, open_storage, read_tensors, sums_of
from mtkit.config.load import config_from_text
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, say
from mtkit.files import replaced_directory, standing, write_file
from mtkit.models.registry import require_sizes_of

# The description of a bundle: the file bundle.json.

FORMAT = 2  # format 1 had no checksum but the tokenizer's, no length statistics and no canaries

MOST_PIECES = 1 << 31


@dataclass(frozen=True)
class Table:
    """Describes a dict that may have any keys; all its values have the kind `of` (see `_fits` for kinds)."""

    of: Any


# The keys that every description must have.
NEEDED = {"weights_bytes", "tokenizer_sha256", "source_vocab_size", "target_vocab_size"}

LENGTHS = {"mean": float, "longest": int, "quantiles": Table(int)}

# Maps each known key of a description to the kind of its value; see _fits. Other keys may have any value. Numbers must
# be finite and not negative.
KINDS = {
    "mtkit": str,
    "name": str,
    "languages": {"source": str, "target": str},
    "num_parameters": int,
    "weights_bytes": int,
    "tokenizer_sha256": str,
    "source_vocab_size": int,
    "target_vocab_size": int,
    "training": {
        "steps": int,
        "minutes": float,
        "pairs_seen": int,
        "averaged_steps": [int],
        "changes": [{"step": int, "pairs": int, "settings": Table(list)}],
        "choice": str,
        "data": {
            "num_pairs": int,
            "source_tokens": int,
            "target_tokens": int,
            "dropped": Table(int),
            "unknown": Table(float),
            "files": [{"name": str, "fingerprint": str}],
            "corpora": [int],
            "lengths": {"pairs": int, "measured": int, "source": LENGTHS, "target": LENGTHS},
            "length_limit": {"ratio": float, "extra": int},
        },
    },
    "files": Table({"bytes": int, "sha256": str}),
}


def sealed(content: dict[str, Any]) -> bytes:
    """The bytes of bundle.json: `content` as JSON, with the SHA-256 of that JSON added under the key sha256."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def read_description(data: bytes, path: Path) -> dict[str, Any]:
    """Parses `data`, the bytes of bundle.json, and returns its content without the checksum.

    Raises CheckpointError if `data` is damaged, or if the bundle has a newer format than this version of mtkit can
    read. From format 2 on, `data` counts as damaged unless it is byte for byte what mtkit wrote. `path` is the path of
    bundle.json, for messages.
    """
    try:
        content = json.loads(data)
        found = content["format"]
        is_whole = type(found) is int and found > 0
    except (ValueError, KeyError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise _damaged(path)
    if found > FORMAT:
        raise CheckpointError(
            f"{path.parent}: a bundle of format {found}; this version of mtkit reads format {FORMAT} and older: "
            "install a newer one"
        )
    is_sealed = content.pop("sha256", None) is not None
    if is_sealed != (found > 1) or (is_sealed and sealed(content) != data):
        raise _damaged(path)
    if not content.keys() >= NEEDED or not _fits(content, KINDS) or not _are_sizes(content):
        raise _damaged(path)
    return dict(content)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path}: damaged; copy the model again")


def _are_sizes(content: dict[str, Any]) -> bool:
    """Whether both vocabulary sizes in `content`, the content of bundle.json, are positive and below MOST_PIECES."""
    return all(0 < content[f"{side}_vocab_size"] < MOST_PIECES for side in ("source", "target"))


def _fits(value: Any, kind: Any) -> bool:
    """Whether `value` has the structure that `kind` describes.

    `kind` is one of these:

    - a type;
    - a list with one element, which is the kind of every item;
    - a dict that maps known keys to the kinds of their values; keys may be missing;
    - a Table.
    """
    if isinstance(kind, Table):
        return isinstance(value, dict) and all(_fits(each, kind.of) for each in value.values())
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(value[key], kind[key]) for key in kind.keys() & value.keys())
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(each, kind[0]) for each in value)
    if kind in (str, list):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return math.isfinite(value) and value >= 0


# Canaries: sentences with their translations, to check that the model translates the same on another machine.


@dataclass(frozen=True)
class Canary:
    """A source line and the model's translation of it by greedy search, computed in fp32 on a CPU."""

    source: str
    source_tokens: list[int]
    target_tokens: list[int]  # without the end mark
    log_prob: float  # of target_tokens followed by the end mark
    text: str  # target_tokens decoded


def canaries_text(canaries: Sequence[Canary]) -> bytes:
    """The content of the file canaries.json, as bytes, for the given `canaries`."""
    return (json.dumps([asdict(canary) for canary in canaries], indent=1) + "\n").encode()


def read_canaries(data: bytes, where: str, source_vocab_size: int, target_vocab_size: int) -> list[Canary]:
    """Parses `data`, the content of canaries.json, and returns the canaries in `data`.

    Raises CheckpointError if `data` is damaged or has ids outside the vocabularies; the message begins with `where`.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    names = {field.name for field in fields(Canary)}
    if not isinstance(content, list) or not all(isinstance(each, dict) and each.keys() == names for each in content):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    canaries = [Canary(**each) for each in content]
    if not all(
        isinstance(canary.source, str)
        and isinstance(canary.text, str)
        and isinstance(canary.log_prob, int | float)
        and math.isfinite(canary.log_prob)
        and _are_ids(canary.source_tokens, source_vocab_size)
        and _are_ids(canary.target_tokens, target_vocab_size)
        for canary in canaries
    ):
        raise CheckpointError(f"{where}: damaged; copy the model again")
    return canaries


def _are_ids(tokens: Any, vocab_size: int) -> bool:
    """Whether `tokens` is a list of ids from 0 to `vocab_size - 1`."""
    return isinstance(tokens, list) and all(type(token) is int and 0 <= token < vocab_size for token in tokens)


# The files of a bundle, and the open bundle.

WEIGHTS, CONFIG, DESCRIPTION, CANARIES, SCORES, CARD, TOKENIZER = (
    "weights.safetensors",
    "config.yaml",
    "bundle.json",
    "canaries.json",
    "scores.json",
    "README.md",
    "tokenizer",
)

# Two keys of bundle.json. The first lists the target ids that were added to the vocabulary and have not been trained
# since; these ids are never generated. The second lists the tags that were added and have not been trained since.
UNTRAINED, UNTRAINED_TAGS = "untrained", "untrained_tags"

# Files and folders that tell a run directory from a bundle, which has none of them. Training creates some of them as
# soon as it starts.
RUN_SIGNS = (".lock", "checkpoints", "run.json", "tokenizer/provenance.json")

SCORE = {"test_set", "metric", "score", "signature"}  # the keys of each score in scores.json


@dataclass(frozen=True)
class Bundle:
    """An open bundle; the method `weights` reads its weights."""

    storage: Storage
    config: Config
    description: dict[str, Any]  # content of bundle.json: format, mtkit version, vocabulary sizes, training, checksums

    @property
    def path(self) -> Path:
        """The path of the bundle, which is a folder or a packed file."""
        return self.storage.path

    @property
    def tokenizer_path(self) -> Path:
        """The path of the tokenizer's folder, for messages only: a packed file has no such folder."""
        return self.storage.place(TOKENIZER)

    def read(self, name: str) -> bytes:
        """The content of the bundle's file called `name`, for example tokenizer/tokenizer.json.

        Raises CheckpointError if the file is missing or cannot be read.
        """
        return _read(self.storage, name)

    def config_with(self, overrides: Sequence[str]) -> Config:
        """The settings in the bundle's config.yaml, changed by `overrides`, for example decoding.beam_size=1."""
        return _config(self.storage, overrides) if overrides else self.config

    def with_length_limit(self, config: Config) -> Config:
        """Returns `config` with numbers where decoding.max_length_ratio and decoding.max_length_extra are "auto".

        The numbers come from the lengths of the model's training pairs. Older bundles do not have these numbers; for
        them, the fixed numbers of `DecodingConfig.with_length_limit` are used.
        """
        limit = self.description.get("training", {}).get("data", {}).get("length_limit", {})
        decoding = config.decoding
        if limit.keys() >= {"ratio", "extra"}:
            decoding = decoding.with_length_limit(min(limit["ratio"], 100.0), min(limit["extra"], 10_000))
        return config.model_copy(update={"decoding": decoding.with_length_limit()})

    def tokenizer_files(self) -> dict[str, bytes]:
        """The contents of the tokenizer's files, by file name."""
        return tokenizer_files(self.storage)

    def require_own_tokenizer(self) -> None:
        """Raises CheckpointError if the tokenizer is not the one that the model was trained with.

        A tokenizer with other ids would cause no error, only bad translations.
        """
        if _checksum(self.tokenizer_files()) != self.description["tokenizer_sha256"]:
            raise CheckpointError(
                f"{self.tokenizer_path}: not the tokenizer that this model was trained with; copy the model again"
            )

    def weights(self) -> dict[str, Tensor]:
        """The weights by parameter name, memory-mapped rather than copied.

        Raises CheckpointError if the file of weights is missing or damaged. Also raises CheckpointError if the settings
        describe a model with more layers or larger matrices than the weights have.
        """
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
        weights = read_tensors(content, str(path))
        require_sizes_of(self.config.model, weights, str(self.path))
        return weights

    @property
    def untrained_tags(self) -> tuple[str, ...]:
        """The tags that were added to the vocabulary and have not been trained since."""
        tags = self.description.get(UNTRAINED_TAGS, [])
        return tuple(map(str, tags)) if isinstance(tags, list) else ()

    @property
    def untrained(self) -> list[int]:
        """The ids that were added to the target vocabulary and have not been trained since.

        Raises CheckpointError if bundle.json has no valid list of ids under the key `untrained`.
        """
        ids = self.description.get(UNTRAINED, [])
        size = self.description["target_vocab_size"]
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < size for id_ in ids):
            raise CheckpointError(f"{self.path / DESCRIPTION}: damaged; copy the model again")
        return ids

    def canaries(self) -> list[Canary]:
        """The canaries in canaries.json; a bundle of format 1 has none.

        Raises CheckpointError if canaries.json is damaged or missing.
        """
        if self.description["format"] == 1:
            return []
        sizes = (self.description["source_vocab_size"], self.description["target_vocab_size"])
        return read_canaries(self.read(CANARIES), str(self.path / CANARIES), *sizes)


def bundle_at(path: Path) -> Path | None:
    """The path of the bundle at `path`: `path` itself or, if `path` is a run directory, the folder `model` in it.

    Returns `None` if there is no bundle. Any file that begins like a zip archive counts as a bundle.
    """
    if is_packed(path):
        return path
    candidates = map(standing, (path, path / "model"))
    return next((candidate for candidate in candidates if (candidate / DESCRIPTION).is_file()), None)


def no_model(path: Path) -> CheckpointError:
    """The error to raise for a `path` that is neither a bundle nor a checkpoint, with advice on what to do."""
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
    """Whether `path` is a run directory, even one whose training has only just started."""
    return any((path / name).exists() for name in RUN_SIGNS)


def _holds_model(path: Path) -> bool:
    """Whether `path` is a folder with a bundle, or a run directory that has checkpoints or a finished model."""
    return path.is_dir() and (bundle_at(path) is not None or (path / "checkpoints").is_dir())


def open_bundle(path: Path) -> Bundle:
    """Opens the bundle at `path`, which is a bundle or a run directory with a finished model.

    Raises CheckpointError if there is no bundle or its files are damaged, and ConfigError if its settings are not
    valid.
    """
    if (found := bundle_at(path)) is None:
        raise no_model(path)
    return bundle_of(open_storage(found))


def bundle_of(storage: Storage) -> Bundle:
    """Opens the bundle in `storage`.

    Raises CheckpointError if its description or settings are damaged, and ConfigError if its settings are not valid.
    """
    description = describe(storage)
    return Bundle(storage, _config(storage, ()), description)


def describe(storage: Storage) -> dict[str, Any]:
    """The content of bundle.json, without its checksum; raises CheckpointError if the file is damaged or missing."""
    path = storage.path / DESCRIPTION
    try:
        content = bytes(storage.view(DESCRIPTION))
    except OSError:
        raise CheckpointError(f"{path}: damaged or missing; copy the model again") from None
    return read_description(content, path)


def tokenizer_files(storage: Storage) -> dict[str, bytes]:
    """The contents of the files in the bundle's folder tokenizer, by file name."""
    names = (name for name in storage.names() if name.startswith(f"{TOKENIZER}/"))
    return {name.removeprefix(f"{TOKENIZER}/"): _read(storage, name) for name in names}


def _read(storage: Storage, name: str) -> bytes:
    """The content of the file called `name`; raises CheckpointError if the file is missing or cannot be read."""
    try:
        return bytes(storage.view(name))
    except OSError:
        raise CheckpointError(f"{storage.path / name}: damaged or missing; copy the model again") from None


def _config(storage: Storage, overrides: Sequence[str]) -> Config:
    """The settings in config.yaml, with `overrides` applied; raises the errors that `bundle_of` raises."""
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
    """Writes a bundle to the folder `path`, replacing any older bundle there.

    `save_tokenizer` writes the tokenizer's files to the folder that it is given. The keys and values in `about` are
    added to bundle.json. Raises CheckpointError if the bundle cannot be written.
    """
    try:
        with replaced_directory(path) as new:
            save_file(weights, new / WEIGHTS)
            save_tokenizer(new / TOKENIZER)
            (new / CONFIG).write_bytes(carried_config(config))
            shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes its file readable only by the owner
            (new / CANARIES).write_bytes(canaries_text(canaries))
            storage = Folder(new)
            files = {name: sums.told for name, sums in all_sums(storage).items()}
            (new / DESCRIPTION).write_bytes(description_of(config, tokenizer_files(storage), files, about))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; make room and start again") from None
    if fault := not_finite(weights):
        say(f"mtkit: warning: {path}: {fault}; it cannot translate")


def carried_config(config: Config) -> bytes:
    """The content of a bundle's config.yaml.

    The file has the settings in `config`, except that run_dir, training.start_from and device have their default
    values.
    """
    training = config.training.model_copy(update={"start_from": None})
    return config_text(config.model_copy(update={"device": "auto", "run_dir": None, "training": training})).encode()


def description_of(
    config: Config, tokenizer: Mapping[str, bytes], files: Mapping[str, dict[str, Any]], about: Mapping[str, Any]
) -> bytes:
    """The content of a new bundle.json.

    `tokenizer` maps the names of the tokenizer's files to their contents. `files` maps the name of every file except
    bundle.json to its size and checksum, as in `Sums.told`. The keys and values in `about` are added to bundle.json.
    """
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
    """Writes `scores` to scores.json, `card` to README.md, and the checksums of these two files to bundle.json.

    The bundle must be a folder. The checksums are written last: if the process is killed before that, bundle.json keeps
    the checksums of the earlier scores.json and README.md until scores are saved again.
    """
    new = {SCORES: (json.dumps(scores, indent=1) + "\n").encode(), CARD: card.encode()}
    for name, content in new.items():
        write_file(bundle.path / name, content)
    if "files" in bundle.description:
        sums = {name: sums_of(memoryview(content)).told for name, content in new.items()}
        files = dict(sorted({**bundle.description["files"], **sums}.items()))
        write_file(bundle.path / DESCRIPTION, sealed({**bundle.description, "files": files}))


def read_scores(bundle: Bundle) -> list[dict[str, Any]]:
    """The scores in scores.json; an empty list if the file is missing or damaged.

    Scores can be measured again, so a missing or damaged file raises no error.
    """
    try:
        scores = json.loads(bytes(bundle.storage.view(SCORES)))
    except (FileNotFoundError, ValueError, RecursionError):
        return []
    return scores if isinstance(scores, list) and all(map(_is_score, scores)) else []


def _is_score(score: Any) -> bool:
    """Whether `score` is a dict with exactly the keys in `SCORE`, and values of the right types."""
    return (
        isinstance(score, dict)
        and score.keys() == SCORE
        and all(isinstance(score[key], str) for key in SCORE - {"score"})
        and isinstance(score["score"], int | float)
    )


def _checksum(files: Mapping[str, bytes]) -> str:
    """A single SHA-256, in hexadecimal digits, over the names and contents of all `files`, sorted by name."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
