"""Builds the architecture that the settings name, and chooses device and precision."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from mtkit.config.model_settings import AnyModelConfig, MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.data.batch import Rows
from mtkit.errors import CheckpointError, MtkitError
from mtkit.models.interface import Embedding, Limits, Memory, Output, TranslationModel, tied
from mtkit.models.recurrent import RecurrentDecoder, RecurrentEncoder, build_recurrent, initialize_recurrent
from mtkit.models.transformer import TransformerDecoder, TransformerEncoder, build_transformer, initialize_transformer
from mtkit.text.vocabulary import Specials

AVAILABLE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

TENSOR_CORES = (7, 0)  # the first compute capability of CUDA whose products in fp16 are much faster


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is the first of cuda, mps and cpu that is there."""
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if AVAILABLE[device]())
    if not AVAILABLE[name]():
        present = ", ".join(device for device, there in AVAILABLE.items() if there())
        raise MtkitError(
            f"device {name}: none found on this machine; there is {present}, and auto takes the best there is"
        )
    if name == "cuda":
        # It makes a plan anew for every length of a row, and no two batches have the same: a third of a second a step.
        torch.backends.cuda.enable_cudnn_sdp(False)
        # Its recurrent layers would round fp32 to the ten bits of TF32, as no product elsewhere does.
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


@cache
def use_one_thread_after_fork() -> None:
    """From now on the children that this process forks compute with one thread.

    The threads that PyTorch computes with do not live on in a child, and waiting for them would never end.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What numbers of that precision are to PyTorch, where the device has them."""
    if precision == "fp64" and device.type == "mps":
        raise MtkitError("precision fp64: device mps has no such numbers; take fp32, or device cpu")
    return DTYPES[precision]


def pick_precision(name: str, device: torch.device, d_model: int) -> str:
    """fp32, bf16 or fp16; auto is bf16 where it is faster and, on a CPU, the model is wide enough to gain by it.

    An older GPU that has no bf16 but is fast at fp16 takes that.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        return "fp16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "fp32"
    if device.type == "cpu":
        has_instructions = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if has_instructions and d_model >= 128 else "fp32"
    return "fp32"


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bf16 or fp16, everything else and the weights in fp32; or nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


# The encoder of one architecture with the decoder of another, such as Chen et al. (2018) found best.

Half = TransformerConfig | RecurrentConfig


class BridgedEncoder(nn.Module):
    """An encoder whose states are brought to the width of a decoder."""

    def __init__(self, encoder: TransformerEncoder | RecurrentEncoder, width: int, d_model: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = nn.Linear(width, d_model)
        self.final_widths = encoder.final_widths

    def forward(self, source: Rows) -> Memory:
        """States as wide as the decoder, and the last ones as they were."""
        memory: Memory = self.encoder(source)
        return replace(memory, states=self.bridge(memory.states))


def build_mixed(config: MixedConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """The model, its weights not yet set."""

    def table(half: Half, vocab_size: int) -> Embedding:
        return Embedding(vocab_size, half.d_model, half.scale_embeddings)

    source, target, output = tied(
        config.tie_embeddings,
        lambda: table(config.encoder, source_vocab_size),
        lambda: table(config.decoder, target_vocab_size),
        config.decoder.output_bias,
    )
    encoder = _encoder(config.encoder, source, config.decoder.d_model)
    decoder = _decoder(config.decoder, target, output, encoder.final_widths)
    limits = Limits(_longest(config.encoder), _longest(config.decoder))
    return TranslationModel(encoder, decoder, limits, config.decoder.start_token)


def _encoder(
    config: Half, embedding: Embedding, d_model: int
) -> TransformerEncoder | RecurrentEncoder | BridgedEncoder:
    encoder = (
        TransformerEncoder(config, embedding)
        if isinstance(config, TransformerConfig)
        else RecurrentEncoder(config, embedding)
    )
    return encoder if config.d_model == d_model else BridgedEncoder(encoder, config.d_model, d_model)


def _decoder(
    config: Half, embedding: Embedding, output: Output, final_widths: list[int]
) -> TransformerDecoder | RecurrentDecoder:
    if isinstance(config, TransformerConfig):
        return TransformerDecoder(config, embedding, output)
    return RecurrentDecoder(config, embedding, output, final_widths)


def _longest(config: Half) -> int | None:
    return min(config.position_limits.values(), default=None)


def initialize_mixed(model: nn.Module) -> None:
    """Each half as its own architecture has it."""
    initialize_recurrent(model)
    for half in model.modules():
        if isinstance(half, TransformerEncoder | TransformerDecoder):
            initialize_transformer(half)


# The architectures on offer, and how one is built from its settings.

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
        # Weights are drawn on the CPU, so only its generator is seeded. torch takes no larger seed; NumPy takes any.
        torch.default_generator.manual_seed(seed % (1 << 63))
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
