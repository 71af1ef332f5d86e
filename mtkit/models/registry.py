"""Builds models of the architecture that the settings name, chooses device and precision, and speeds models up.

For translating on a CPU, `speed_up` gives a loaded model faster linear layers, which multiply 8-bit integers or have
packed weights. Shapes: R rows (all tokens of a batch or of a search step), I width of a layer's input, O width of its
output.
"""

import ctypes
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mtkit.config.data_and_model_settings import AnyModelConfig, MixedConfig, RecurrentConfig, Stack, TransformerConfig
from mtkit.data.batches import Rows
from mtkit.errors import CheckpointError, MtkitError, say
from mtkit.models.interface import (
    SLICE_ELEMENTS,
    Decoder,
    Embedding,
    Encoder,
    Limits,
    Memory,
    Output,
    TranslationModel,
    tied_embeddings,
)
from mtkit.models.layers import BLOCK_ROWS, attend_in_fp64
from mtkit.models.recurrent import RecurrentDecoder, RecurrentEncoder, build_recurrent, initialize_recurrent
from mtkit.models.transformer import (
    TransformerDecoder,
    TransformerEncoder,
    build_masked,
    build_transformer,
    initialize_masked,
    initialize_transformer,
)
from mtkit.text.vocabulary import Specials

# Hybrids: the encoder of one architecture with the decoder of another (Chen et al. 2018); "mixed" in the settings.

HalfConfig = TransformerConfig | RecurrentConfig


class ProjectedEncoder(nn.Module):
    """An encoder followed by a linear layer that projects the encoder's states to the width of the decoder."""

    def __init__(self, encoder: Encoder, encoder_width: int, decoder_width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = nn.Linear(encoder_width, decoder_width)
        self.final_widths = encoder.final_widths

    def forward(self, source: Rows) -> Memory:
        """Returns the encoder's memory with its states projected to (R, S, D), where D is the decoder's width."""
        memory = self.encoder(source)
        return replace(memory, states=self.bridge(memory.states))


def build_hybrid(config: MixedConfig, source_vocab_size: int, target_vocab_size: int) -> TranslationModel:
    """Builds a model whose encoder and decoder differ in architecture, as `config` describes.

    The weights are uninitialised.
    """

    def table(half: HalfConfig, vocab_size: int) -> Embedding:
        return Embedding(vocab_size, half.d_model, half.scale_embeddings)

    source, target, output = tied_embeddings(
        config.tie_embeddings,
        lambda: table(config.encoder, source_vocab_size),
        lambda: table(config.decoder, target_vocab_size),
        config.decoder.output_bias,
    )
    encoder = _encoder(config.encoder, source, config.decoder.d_model)
    decoder = _decoder(config.decoder, target, output, encoder.final_widths)
    limits = Limits(_longest(config.encoder, "encoder"), _longest(config.decoder, "decoder"))
    return TranslationModel(encoder, decoder, limits, config.decoder.start_token)


def _encoder(config: HalfConfig, embedding: Embedding, decoder_width: int) -> Encoder:
    encoder: Encoder = (
        TransformerEncoder(config, embedding)
        if isinstance(config, TransformerConfig)
        else RecurrentEncoder(config, embedding)
    )
    return encoder if config.d_model == decoder_width else ProjectedEncoder(encoder, config.d_model, decoder_width)


def _decoder(config: HalfConfig, embedding: Embedding, output: Output, final_widths: list[int]) -> Decoder:
    if isinstance(config, TransformerConfig):
        return TransformerDecoder(config, embedding, output)
    return RecurrentDecoder(config, embedding, output, final_widths)


def _longest(config: HalfConfig, side: Stack) -> int | None:
    """Returns the maximum length of a row, in tokens, for the encoder or decoder (`side`); `None` means no limit."""
    return config.limit_of(side) if isinstance(config, TransformerConfig) else None


def initialize_hybrid(model: nn.Module) -> None:
    """Initialises the encoder and the decoder of a hybrid, each as its own architecture (e.g. Transformer) does."""
    initialize_recurrent(model)
    for half in model.modules():
        if isinstance(half, TransformerEncoder | TransformerDecoder):
            initialize_transformer(half)


# The architectures by their names in the settings, and functions that create models of any of them.

# A function that builds a model from its settings, the source vocabulary size and the target vocabulary size.
Build = Callable[[Any, int, int], TranslationModel]
# For each architecture, the function that builds a model and the one that initialises its weights.
ARCHITECTURES: dict[str, tuple[Build, Callable[[nn.Module], None]]] = {
    "transformer": (build_transformer, initialize_transformer),
    "rnn": (build_recurrent, initialize_recurrent),
    "mixed": (build_hybrid, initialize_hybrid),
    "cmlm": (build_masked, initialize_masked),
}

OWN_SPECIALS = Specials()  # the special tokens of vocabularies trained by mtkit


class _Unfilled(TorchFunctionMode):
    """Context manager in which new layers leave their weights uninitialised; on the meta device, this saves time."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Returns `function(*args, **kwargs)`; if `function` fills a tensor at random, returns the tensor unchanged."""
        kwargs = kwargs or {}
        if function in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def empty_model(
    config: AnyModelConfig, source_vocab_size: int, target_vocab_size: int, specials: Specials = OWN_SPECIALS
) -> TranslationModel:
    """Returns a model on the meta device, without weights and thus small in memory; `fill_model` adds the weights."""
    build, _ = ARCHITECTURES[config.architecture]
    with torch.device("meta"), _Unfilled():
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
    """Returns a model with random weights determined by `seed`; leaves the global random state unchanged."""
    build, initialize = ARCHITECTURES[config.architecture]
    with torch.random.fork_rng(devices=[]):
        # Weights are drawn on the CPU, so only its generator is seeded. The modulo is needed because torch accepts no
        # larger seeds, while NumPy accepts any.
        torch.default_generator.manual_seed(seed % (1 << 63))
        model = build(config, source_vocab_size, target_vocab_size)
        initialize(model)
    model.set_specials(specials)
    model.keep_start_zero()
    return model


def fill_model(model: TranslationModel, weights: dict[str, Tensor], where: str) -> None:
    """Makes `weights` the weights of a model that `empty_model` returned; the tensors are not copied.

    Raises CheckpointError, with a message that begins with `where`, if the names or shapes of the tensors differ from
    those of the model's parameters.
    """
    require_weights_of(model, weights, where)
    model.load_state_dict(weights, strict=False, assign=True)


def require_weights_of(model: TranslationModel, weights: dict[str, Tensor], where: str) -> None:
    """Raises CheckpointError, with a message that begins with `where`, if `weights` do not fit the model.

    Weights fit if they have the names and shapes of the model's parameters.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{where}: weight {name} is {found.get(name, 'missing')}, the settings want {wanted.get(name, 'none')}; "
            "the weights belong to another model"
        )


def require_sizes_of(config: AnyModelConfig, weights: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError, with a message that begins with `where`, if the settings describe too large a model.

    A model is too large if it would have more layers than there are in `weights`, or a matrix with more elements than
    all tensors of `weights` together. Building such a model could take hours or all memory, whereas this check looks
    only at names and shapes.
    """
    encoder, decoder = (config.encoder, config.decoder) if isinstance(config, MixedConfig) else (config, config)
    num_weights = sum(map(Tensor.numel, weights.values()))
    halves: dict[Stack, HalfConfig] = {"encoder": encoder, "decoder": decoder}
    for side, half in halves.items():
        depth = half.encoder_layers if side == "encoder" else half.decoder_layers
        layer = re.compile(rf"{side}\.(?:encoder\.)?layers\.(\d+)\.")  # a ProjectedEncoder contains the encoder
        num_layers = len({found[1] for found in map(layer.match, weights) if found})
        if not depth:
            continue
        if depth > num_layers:
            raise CheckpointError(
                f"{where}: the settings want {depth:,} layers in the {side}, the weights have {num_layers:,}; "
                "the weights belong to another model"
            )
        rows = max(half.d_model, *_other_widths(half, side))
        if rows * half.d_model > num_weights:
            raise CheckpointError(
                f"{where}: the settings want a matrix of {rows:,} x {half.d_model:,} in the {side}, and there are "
                f"{num_weights:,} weights in all; the weights belong to another model"
            )


def _other_widths(half: HalfConfig, side: Stack) -> list[int]:
    """Returns sizes, other than `d_model`, that determine how large the matrices of an encoder or decoder are.

    For a Transformer, returns the feed-forward width and the maximum number of positions (1 if there is no maximum).
    For a recurrent encoder or decoder, whose matrices depend only on `d_model`, returns [1]. Vocabulary sizes are left
    out.
    """
    if isinstance(half, RecurrentConfig):
        return [1]
    return [half.width_of(side), half.limit_of(side) or 1]


# Device and precision.

# For each device, a function that returns whether the device is available.
AVAILABLE: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

TENSOR_CORES = (7, 0)  # the lowest CUDA compute capability with fast matrix products in fp16


def pick_device(name: str) -> torch.device:
    """Returns the torch device called `name`; "auto" means the first available of cuda, mps and cpu.

    For cuda, also switches off the attention of cuDNN and the use of TF32 in cuDNN. For cpu, also calls
    `keep_freed_memory`. Raises MtkitError if the device is not available.
    """
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if AVAILABLE[device]())
    if not AVAILABLE[name]():
        present = ", ".join(device for device, there in AVAILABLE.items() if there())
        raise MtkitError(
            f"device {name}: none found on this machine; there is {present}, and auto takes the best there is"
        )
    if name == "cuda":
        # cuDNN's attention makes a new execution plan for every row length, which costs a third of a second in almost
        # every step.
        torch.backends.cuda.enable_cudnn_sdp(False)
        # cuDNN's recurrent layers would round fp32 to TF32, which has a mantissa of ten bits; no other matrix product
        # here does that.
        torch.backends.cudnn.allow_tf32 = False
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt


@cache
def keep_freed_memory() -> None:
    """Sets glibc to keep up to 1 GB of freed memory for new tensors instead of returning it to the system at once.

    Memory that was returned to the system has to be mapped again, page by page, before it can be used; this mapping
    took a twentieth of the time of training. Does nothing with other C libraries, or if the environment has settings
    for malloc.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


KERNELS_KEPT = 16  # for a step of two LSTMs, forward and backward, and for storing their weights in another order


def keep_few_kernels(model: nn.Module, device: torch.device, precision: str) -> None:
    """Limits oneDNN's cache to KERNELS_KEPT kernels, if `model` has an LSTM and trains in fp32 on a CPU.

    oneDNN makes kernels for each shape of a batch, and by default caches up to 1,024 kernels. The cached kernels are
    small, but lie scattered among the tensors and fragment the memory: freed memory is in pieces too small for the next
    batch. With a small cache, kernels must be made again, which takes less than a hundredth of the time of an update.
    The cache is not limited in bf16, in which all layers use oneDNN; in fp32, only LSTMs use it in training.

    Do not call this function before translating: making kernels again would take a third of the time of an LSTM's step.
    The function has no effect once oneDNN has been used, or if the environment already sets the size of the cache.
    """
    is_set = any(f"{library}_PRIMITIVE_CACHE_CAPACITY" in os.environ for library in ("ONEDNN", "DNNL"))
    has_lstm = any(isinstance(module, nn.LSTM) for module in model.modules())
    if device.type == "cpu" and precision == "fp32" and has_lstm and not is_set:
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(KERNELS_KEPT)


def return_freed_memory() -> None:
    """Makes glibc return to the system any freed memory it has kept, which then no longer counts as resident memory.

    Does nothing with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def use_one_thread_after_fork() -> None:
    """Makes PyTorch use a single thread in all child processes that are forked from now on.

    PyTorch's threads do not survive a fork, so a child process that waited for such a thread would hang.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of `precision`, for example torch.bfloat16 for "bf16".

    Raises MtkitError for fp64 on mps, since mps does not support fp64.
    """
    if precision == "fp64" and device.type == "mps":
        raise MtkitError("precision fp64: device mps has no such numbers; take fp32, or device cpu")
    return DTYPES[precision]


def pick_precision(name: str, device: torch.device, d_model: int) -> str:
    """Returns the precision in which to train: `name` itself or, for "auto", the fastest suitable precision.

    "auto" means bf16 if the device is a CPU or a CUDA GPU that has instructions for bf16. On a CPU, `d_model` must also
    be at least 128, since smaller models gain nothing from bf16. On a CUDA GPU without bf16, "auto" means fp16 if the
    GPU has fast matrix products in fp16. In all other cases, such as on mps, "auto" means fp32.
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


def mixed_precision(device: torch.device, precision: str, keeps_casts: bool = True) -> AbstractContextManager[object]:
    """Returns an autocast context for bf16 or fp16; for fp32, returns a context that does nothing.

    Under autocast, matrix products are computed in bf16 or fp16, while the weights stay in fp32. Each weight is cast
    once, and the result is kept until the context ends. Since all threads of a process share these results, threads
    that compute at the same time need `keeps_casts=False`, which casts a weight each time it is used.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision], cache_enabled=keeps_casts)


# Choosing the precision for translation, and replacing layers by faster ones.

# The precisions in which a model can translate; `auto` stands for one of the others.
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto", "fp64")


def pick_run_precision(name: str, device: torch.device, d_model: int) -> str:
    """Returns the precision in which to translate: `name` itself or, for "auto", the fastest suitable precision.

    A precision is suitable if it costs less than 0.1 BLEU against fp32, on average over the models that were measured.
    Both bf16 and int8 are suitable (mtkit/commands/README.md has the table), so only speed decides. On a GPU, "auto"
    means the precision that `pick_precision` returns, such as bf16. On a CPU, "auto" means:

    - bf16 if the CPU multiplies matrices in bf16 (AMX) and `d_model` is at least 128;
    - else int8 if the CPU adds products of 8-bit numbers in one instruction (VNNI) and `d_model` is at least 256 (at
      least 512 on a CPU that has instructions for bf16);
    - else bf16 if the CPU has instructions for bf16 and `d_model` is at least 128;
    - else fp32.

    Raises MtkitError for int8 on another device than a CPU.
    """
    if name == "int8" and device.type != "cpu":
        raise MtkitError(f"precision int8: device {device.type} has no such products here; take bf16, or device cpu")
    if name != "auto":
        return name
    chosen = pick_precision(name, device, d_model)
    if device.type != "cpu" or torch.cpu._is_amx_tile_supported() or not torch.cpu._is_vnni_supported():
        return chosen
    return "int8" if d_model >= (512 if chosen == "bf16" else 256) else chosen


def run_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of a model's weights in `precision`, for example torch.bfloat16 for "bf16".

    For "int8", returns torch.float32, since the weights that are not quantised are in fp32.

    Raises MtkitError for fp64 on mps.
    """
    return pick_dtype("fp32" if precision == "int8" else precision, device)


def precision_of(model: TranslationModel) -> str:
    """Returns the name of the precision in which a model translates, for example "int8" or "bf16"."""
    if isinstance(model.output.projection, Int8Linear):
        return "int8"
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def speed_up(model: TranslationModel, precision: str) -> None:
    """Replaces the linear layers of a model, output layer included, by faster ones for `precision`.

    On a CPU, layers are replaced as follows:

    - int8: The new layers are `Int8Linear`. A Transformer's attention is computed in fp64 (`attend_in_fp64`), and the
      rest of the model (embeddings, norms, recurrent cells) in fp32.
    - bf16, if `packing_is_right`: The new layers are `PackedLinear`, which gives identical results.
    - fp32, if `packing_is_right`: Only the output layer is replaced, by a `PackedLinear` whose results are the same up
      to rounding. Smaller layers would gain nothing.

    In all other cases, nothing is replaced. Layers with a single output are never replaced, since they would gain
    nothing.

    The weights of the model must be loaded already. Afterwards, the model does not use the old weight matrices of
    replaced layers, except the matrix of the output layer, which `Output.of` and tied embeddings use.
    """
    if model.device.type != "cpu" or precision not in ("int8", "bf16", "fp32"):
        return
    if precision != "int8" and not packing_is_right(DTYPES[precision]):
        return
    if precision == "fp32":
        # Not project_by: for the columns of a shortlist, which differ in every batch, packing gains nothing in fp32.
        model.output.projection = PackedLinear(model.output.weight, model.output.bias)
        return
    if precision == "int8":
        attend_in_fp64(model)  # so that no bit of a layer's input depends on the batch, and none is rounded differently
    replacement = Int8Linear if precision == "int8" else PackedLinear
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer.out_features > 1:
                setattr(parent, name, replacement(layer.weight, layer.bias))
        if isinstance(parent, Output):
            parent.project_by(replacement)


def shorten_lookups(model: nn.Module) -> None:
    """Stores parameters and submodules of each module as plain attributes, too, which makes access to them faster.

    Otherwise, each access goes through `nn.Module.__getattr__`, which took a twentieth to a tenth of the time of a step
    for one sentence. Call this only when the model is complete and on its device. A parameter or submodule may still be
    assigned anew; buffers are not stored, since moving a model replaces them.
    """
    for module in model.modules():
        vars(module).update(module.named_parameters(recurse=False), **dict(module.named_children()))


# Packed weights.


class PackedLinear(nn.Module):
    """A linear layer in bf16 or fp32 whose weights are stored in the order in which the processor multiplies.

    In bf16, an `nn.Linear` reorders its weights in every call, which takes a third of its time with 64 rows. In fp32,
    a layer with 8,000 outputs takes half the time of an `nn.Linear` with 5 rows, two thirds with 64, and the same time
    with 1 or 320.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x`, (…, I), to (…, O), both in the precision of the weights."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


@cache
def packing_is_right(dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` works with `dtype` on this processor and this version of PyTorch, with right results.

    In bf16, the results must be identical to those of `nn.Linear`; in fp32, equal up to rounding.
    """
    generator = torch.Generator().manual_seed(1)
    for num_rows, width, out in CHECKED_SHAPES:
        x, weight, bias = (
            torch.randn(shape, generator=generator, dtype=dtype) for shape in ((num_rows, width), (out, width), (out,))
        )
        try:
            found = PackedLinear(weight, bias)(x)
        except (RuntimeError, AttributeError):  # not on this processor, or not in this version
            return False
        wanted = F.linear(x, weight, bias)
        if not (torch.equal(found, wanted) if dtype == torch.bfloat16 else torch.allclose(found, wanted, atol=1e-4)):
            return False
    return True


# Products of 8-bit whole numbers.

LEVELS = 127  # the largest quantised value; the smallest is -LEVELS
# On a CPU, a layer rounds and multiplies a slice of its rows at a time, so that the slice stays in a core's cache.
SLICE_INPUTS = 1 << 18  # values of a slice that are rounded: 1 MB in fp32
TINY = 1e-30  # rows whose values are all smaller become zero; smaller scales would overflow in a division
MANY_INPUTS = 1 << 15  # from this many values on, finding the largest and the smallest is faster than absolute values
UNSIGNED = 128  # added to signed numbers where a kernel wants unsigned ones

# Multiplies rows of whole numbers (R, I), int8, by the weights that the kernel was made for and by the scales of these
# weights; returns (R, O) in fp32. The sums of products are exact.
Kernel = Callable[[Tensor], Tensor]
# Makes a kernel from weights (O, I), int8, and their scales (O,), fp32.
MakeKernel = Callable[[Tensor, Tensor], Kernel]


def int_matmul(weight: Tensor, scales: Tensor) -> Kernel:
    """Returns a function, a `Kernel`, that multiplies rows by the int8 `weight` (O, I) with `torch._int_mm`.

    `torch._int_mm` has little overhead, but returns int32 sums, whose conversion to fp32 takes time if there are many
    outputs.
    """
    transposed = weight.t()
    return lambda rows: torch._int_mm(rows, transposed) * scales


def onednn_linear(weight: Tensor, scales: Tensor) -> Kernel:
    """Returns a function, a `Kernel`, that multiplies rows by the int8 `weight` (O, I) with oneDNN's quantised layer.

    The weights are packed. The rows are passed to oneDNN as unsigned numbers, since oneDNN multiplies signed numbers
    fast only if the processor has AMX and there are several rows.
    """
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    flip = torch.tensor([-UNSIGNED], dtype=torch.int8)  # x ^ flip, read as unsigned, is x + 128
    least_signed = 2 if torch.cpu._is_amx_tile_supported() else math.inf

    def multiply(rows: Tensor) -> Tensor:
        zero = 0
        if len(rows) < least_signed:
            rows, zero = rows.bitwise_xor(flip).view(torch.uint8), UNSIGNED
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, zero, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return products

    return multiply


# All kernels give identical results, so only speed decides. Of `usable_kernels`, a layer takes the first for few rows
# and the last for many or, if it has more outputs than inputs, always the last.
KERNELS: list[MakeKernel] = [int_matmul, onednn_linear]
MANY_ROWS = 192  # with 256 inputs and outputs on an Intel Xeon with AMX: 54 microseconds by oneDNN, 63 by _int_mm

# Rows, inputs and outputs of the products by which kernels are checked: one row, odd widths, and a search step.
CHECKED_SHAPES = ((1, 64, 48), (7, 33, 65), (64, 256, 256), (48, 512, 1024))


def is_right(make: MakeKernel) -> bool:
    """Whether the kernels that `make` makes work on this processor and give exact results.

    PyTorch has had products of 8-bit numbers that were silently wrong on some processors. On others, sums of two
    products are limited to 16 bits, which shows only with large numbers.
    """
    generator = torch.Generator().manual_seed(1)
    for num_rows, width, out in CHECKED_SHAPES:
        rows, weight = (
            torch.randint(-LEVELS, LEVELS + 1, shape, generator=generator, dtype=torch.int8)
            for shape in ((num_rows, width), (out, width))
        )
        rows[0], weight[0], weight[1] = LEVELS, LEVELS, -LEVELS
        scales = torch.rand(out, generator=generator)
        try:
            found = make(weight, scales)(rows)
        except (RuntimeError, AttributeError):  # not on this processor, or not in this version
            return False
        exact = rows.double() @ weight.double().t()
        if not torch.equal(found, exact.float() * scales):
            return False
    return True


def is_fast(make: MakeKernel) -> bool:
    """Whether a kernel that `make` makes is faster on this processor than a matrix product in fp32.

    Kernel and product are each called a few times, and the shortest times are compared. The difference is large, so
    measuring for about two milliseconds is enough.
    """
    weight = torch.ones(512, 512, dtype=torch.int8)
    kernel, rows, numbers = make(weight, torch.ones(512)), torch.ones(64, 512, dtype=torch.int8), weight.float()
    x = rows.float()
    return _seconds(lambda: kernel(rows)) < _seconds(lambda: F.linear(x, numbers))


def _seconds(function: Callable[[], object]) -> float:
    """Returns the shortest time of several calls of `function`, in seconds; the first call does not count."""
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


@cache
def usable_kernels() -> list[MakeKernel]:
    """Returns the functions in `KERNELS` whose kernels give right results fast on this processor.

    If no right kernel is fast, returns the functions of all right kernels. If no kernel is right, returns an empty
    list, and prints a warning once on stderr. All right kernels give the same numbers, so the measured times never
    change a translation.
    """
    right = [make for make in KERNELS if is_right(make)]
    if not right:
        say(
            "mtkit: warning: precision int8: no product of 8-bit numbers is right on this processor; products are "
            "computed in fp32, with weights rounded to 8 bits"
        )
    return [make for make in right if is_fast(make)] or right


class Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit integers (int8).

    Each row of the input is quantised to integers from -127 to 127, with a scale of its own, so that no row depends on
    another. The weights are quantised in the same way when the layer is made, with a scale for each output. The sums of
    products are exact. Each sum is then multiplied, in fp32, by the scales of its row and of its output, and the bias
    is added. If a row of the input contains NaN, the row of the output is NaN.

    If no product of 8-bit integers is right on this processor (see `usable_kernels`), only the weights are rounded, and
    products are computed in fp32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole, scales = quantized(weight.detach().float())
        self.bias = None if bias is None else bias.detach().float()
        self.num_outputs = len(weight)
        self.kernel: Kernel | None = None
        self.weight: Tensor | None = None
        if kernels := usable_kernels():
            matrix, of_outputs = whole.to(torch.int8), scales / LEVELS**2
            self.kernel = kernels[-1](matrix, of_outputs)
            is_wide = len(weight) > weight.shape[1]
            self.kernel_for_few = self.kernel if is_wide or len(kernels) == 1 else kernels[0](matrix, of_outputs)
        else:
            self.weight = whole * (scales[:, None] / LEVELS)
        # Tensors of one element, since PyTorch takes longer for Python's numbers.
        self.levels, self.tiny = torch.tensor([1.0 * LEVELS]), torch.tensor([TINY])
        rows = max(1, min(SLICE_INPUTS // weight.shape[1], SLICE_ELEMENTS // len(weight)))
        self.slice_rows = rows - rows % BLOCK_ROWS if rows > BLOCK_ROWS else rows

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x`, (…, I), to (…, O), both in fp32."""
        if self.kernel is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= self.slice_rows:
            y = self._multiplied(rows)
        else:
            y = rows.new_empty(len(rows), self.num_outputs)
            parts = (torch.split(each, self.slice_rows) for each in (rows, y))
            for part, products in zip(*parts, strict=True):
                self._multiplied(part, products)
        return y.view(*x.shape[:-1], self.num_outputs)

    def _multiplied(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Maps `rows`, (R, I), to (R, O); the result is written into `out`, if given."""
        assert self.kernel is not None
        if rows.numel() < MANY_INPUTS:
            largest = rows.abs().amax(1, keepdim=True)  # (R, 1)
        else:
            largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        largest = torch.maximum(largest, self.tiny)
        whole = (rows * (self.levels / largest)).round_().to(torch.int8)
        y = (self.kernel if len(rows) >= MANY_ROWS else self.kernel_for_few)(whole)
        out = y if out is None else out
        return torch.mul(y, largest, out=out) if self.bias is None else torch.addcmul(self.bias, y, largest, out=out)


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scales each of `rows`, (R, I), so that its largest absolute value becomes 127, and rounds to integers.

    Returns the integers, as floats (R, I), and the largest absolute value of each original row, (R,), which is at least
    `TINY` (1e-30).
    """
    largest = rows.abs().amax(1).clamp(min=TINY)
    return (rows * (LEVELS / largest[:, None])).round_(), largest
