"""Where training starts from: nothing, or the weights and the tokenizer of a model that was trained before."""

from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, ConfigError
from mtkit.formats.bundle import TOKENIZER, WEIGHTS, Bundle, find_storage, open_bundle, tokenizer_files
from mtkit.formats.storage import Storage
from mtkit.formats.sums import sums_of
from mtkit.text.tokenizer import Tokenizer


def start_bundle(config: Config) -> Bundle | None:
    """The model that a new run starts from; None if it starts from nothing. What does not fit is an error."""
    path = config.training.start_from
    if path is None:
        return None
    try:
        bundle = open_bundle(path)
        bundle.require_own_tokenizer()
    except CheckpointError as error:
        raise CheckpointError(f"training.start_from: {error}") from None
    if bundle.path.resolve().is_relative_to(config.run_path.resolve()):
        raise ConfigError(f"training.start_from {path} is this run itself; give the run another name")
    wanted, found = bundle.config.model.model_dump(mode="json"), config.model.model_dump(mode="json")
    # Dropout is no part of the weights, and what suited much data seldom suits little.
    different = [
        f"model.{key}: {wanted.get(key)} (found {found.get(key)})"
        for key in {**wanted, **found}
        if wanted.get(key) != found.get(key) and not key.endswith("dropout")
    ]
    if different:
        raise ConfigError(
            f"training.start_from {path}: its model has other settings; copy these into yours: {', '.join(different)}"
        )
    return bundle


def start_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the model to start from; None if none is named, or if it is gone."""
    storage = _start_storage(config)
    return None if storage is None else Tokenizer.from_files(tokenizer_files(storage), storage.path / TOKENIZER)


def start_checksum(config: Config) -> str | None:
    """One over the weights to start from; None if none are named, or if they are gone: only step 0 needs them."""
    storage = _start_storage(config)
    if storage is None or WEIGHTS not in storage.names():
        return None
    return f"sha256:{sums_of(storage.view(WEIGHTS)).sha256}"


def _start_storage(config: Config) -> Storage | None:
    if config.training.start_from is None:
        return None
    try:
        return find_storage(config.training.start_from)
    except CheckpointError:
        return None
