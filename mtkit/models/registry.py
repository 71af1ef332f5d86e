"""The architectures on offer, and how one is built from its settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtkit.config.model_settings import AnyModelConfig
from mtkit.errors import CheckpointError
from mtkit.models.interface import TranslationModel
from mtkit.models.mixed import build_mixed, initialize_mixed
from mtkit.models.recurrent import build_recurrent, initialize_recurrent
from mtkit.models.transformer import build_transformer, initialize_transformer
from mtkit.symbols import Specials

Build = Callable[[Any, int, int], TranslationModel]  # from the settings of its architecture
ARCHITECTURES: dict[str, tuple[Build, Callable[[nn.Module], None]]] = {
    "transformer": (build_transformer, initialize_transformer),
    "rnn": (build_recurrent, initialize_recurrent),
    "mixed": (build_mixed, initialize_mixed),
}

OWN_SPECIALS = Specials()  # of the vocabularies that are made here


def empty_model(
    config: AnyModelConfig, source_vocab_size: int, target_vocab_size: int, specials: Specials = OWN_SPECIALS
) -> TranslationModel:
    """A model without weights (they take no memory); load_state_dict(…, assign=True) gives it some."""
    build, _ = ARCHITECTURES[config.architecture]
    with torch.device("meta"):
        model = build(config, source_vocab_size, target_vocab_size)
    model.set_specials(specials)
    return model


def new_model(
    config: AnyModelConfig,
    source_vocab_size: int,
    target_vocab_size: int,
    seed: int,
    specials: Specials = OWN_SPECIALS,
) -> TranslationModel:
    """A model with fresh random weights; the same for the same seed, and no other chance is touched."""
    build, initialize = ARCHITECTURES[config.architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 63))  # torch takes no more; other chance takes seeds of any size
        model = build(config, source_vocab_size, target_vocab_size)
        initialize(model)
    model.set_specials(specials)
    model.keep_start_zero()
    return model


def fill_model(model: TranslationModel, weights: dict[str, Tensor], where: str) -> None:
    """Give an empty model these weights, without a copy; where stands in the message if they are not its own."""
    require_weights_of(model, weights, where)
    model.load_state_dict(weights, strict=False, assign=True)


def require_weights_of(model: TranslationModel, weights: dict[str, Tensor], where: str) -> None:
    """Refuse weights of other names or shapes than the model's."""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{where}: weight {name} is {found.get(name, 'missing')}, the settings want {wanted.get(name, 'none')}; "
            "the weights belong to another model"
        )
