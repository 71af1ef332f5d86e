"""Compiled layers for training: when they are used, and how they are compiled before the first update.

In shapes: R rows, S source length, T target length.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Batch, Ragged, padded_batch
from mtkit.errors import say, working
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import mixed_precision
from mtkit.models.transformer import call_layer, stacks_of
from mtkit.training.loss import OBJECTIVES

BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile


def is_compiled(settings: TrainingConfig, device: torch.device, precision: str) -> bool:
    """Returns whether training compiles the layers, as the setting `compile` says.

    "auto" means yes on a GPU if rows are packed and products are computed in bf16 or fp16. There, all batches have
    about the same shape, and an update is expected to wait for many small operations between the products, which the
    compiler joins. This rule has not been measured on a GPU yet. On a CPU, "auto" means no: users may lack a C++
    compiler, and products take most of the time.
    """
    if settings.compile != "auto":
        return settings.compile == "on"
    return device.type == "cuda" and settings.batching == "packed" and precision in ("bf16", "fp16")


def compile_layers(model: TranslationModel, settings: TrainingConfig, precision: str) -> None:
    """Compiles the layers of a Transformer, by a forward and a backward pass over a made-up batch.

    All layers of the encoder share their code, and so do those of the decoder (regional compilation). The lengths in
    the code are variables, so that it serves batches of any shape. Nothing is compiled later: the code depends only on
    model, settings, device and versions, so that a resumed run computes the same as an uninterrupted one. Where the
    code does not fit, as in a row of one token, and without gradients, as in validation, layers are called as they are.
    Names of parameters, random numbers and gradients stay as they were. If the layers cannot be compiled, a warning
    says so, and they stay uncompiled.
    """
    stacks = stacks_of(model)
    if any(isinstance(stack.call, CompiledCall) for stack in stacks):  # a copy of a model that was compiled
        return
    batch = example_batch(model, is_packed=settings.batching == "packed")
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with working("compiling layers"), warnings.catch_warnings(), torch.random.fork_rng(devices):
            warnings.simplefilter("ignore")  # advice on settings of the compiler
            compiled = CompiledCall(BACKEND)
            for stack in stacks:
                stack.call = compiled
            _pass_through(model, batch.to(model.device), settings, precision)
            compiled.is_complete = True
    except (ImportError, MemoryError, OSError, RuntimeError) as error:  # RuntimeError: most errors of the compiler, too
        for stack in stacks:
            stack.call = call_layer
        lines = (line.strip() for line in str(error).splitlines() if not line.endswith(" raised:"))
        reason = f"{type(error).__name__}: {next(filter(None, lines), 'no reason given')}"
        say(f"mtkit: warning: training goes on without compiled layers (training.compile), since that failed: {reason}")
    finally:
        model.zero_grad(set_to_none=True)


class CompiledCall:
    """Calls a layer as `call_layer` of mtkit.models.transformer does, but by compiled code.

    Until `is_complete` is set, a call compiles the code that it lacks. After that, a layer is called uncompiled if
    there is no code for its arguments. For only one row, or only one token in each row, layers are always called
    uncompiled.
    """

    def __init__(self, backend: str | Callable[..., Any]) -> None:
        # A function of its own: PyTorch keeps few compiled versions of a function, and another model has other layers.
        own = FunctionType(call_layer.__code__.replace(), call_layer.__globals__, call_layer.__name__)
        self._call = torch.compile(own, dynamic=True, backend=backend)
        self.is_complete = False  # whether all code is compiled; until then, calls compile what is missing

    def __call__(self, layer: nn.Module, x: Tensor, **arguments: Any) -> Tensor:
        """Returns `layer(x, **arguments)` for `x`, (R, S or T, D)."""
        if min(x.shape[:2]) < 2:  # compiled code takes a dimension of 1 for a constant, hence also 2 or more
            return call_layer(layer, x, **arguments)
        with torch.compiler.set_stance("eager_on_recompile" if self.is_complete else "default"):
            y: Tensor = self._call(layer, x, **arguments)
        return y


# Lengths of the sentences of the made-up batch, with their end marks, and its rows: 4,000 tokens a side. These are
# primes, so that no dimension of the batch is that of another or that of the model: the compiler would take the two to
# be the same. They do not depend on settings, so that code found in PyTorch's cache on disk is for the same sizes.
SOURCE_LENGTH, TARGET_LENGTH, NUM_ROWS = 29, 31, 127
PACKED_ROWS, ROW_SENTENCES = 37, 4


def example_batch(model: TranslationModel, is_packed: bool) -> Batch:
    """Returns a made-up batch for the model; with `is_packed`, rows hold several sentences."""
    num_rows, in_row = (PACKED_ROWS, ROW_SENTENCES) if is_packed else (NUM_ROWS, 1)
    limits = model.limits
    target_length = min(TARGET_LENGTH, limits.target or TARGET_LENGTH)
    source_length = min(SOURCE_LENGTH, limits.source or SOURCE_LENGTH, max(1, target_length - 1))

    def sentences(length: int, token: int) -> Ragged:
        lengths: NDArray[np.int64] = np.full(num_rows * in_row, length - 1)
        return Ragged(np.full(lengths.sum(), token), lengths)

    bounds = model.boundaries
    source = sentences(source_length if model.reads_source else 1, bounds.source_end)
    rows = np.repeat(np.arange(num_rows), in_row)
    return padded_batch(source, sentences(target_length, bounds.target_end), bounds, rows)


def _pass_through(model: TranslationModel, batch: Batch, settings: TrainingConfig, precision: str) -> None:
    """Makes a forward and a backward pass in which all layers take part."""
    stacks = stacks_of(model)
    rates, was_training = [stack.layer_dropout for stack in stacks], model.training
    try:
        model.train()
        for stack in stacks:
            stack.layer_dropout = 0.0
        with mixed_precision(model.device, precision):
            loss = OBJECTIVES[settings.consistency](model, batch, settings)
        loss.total.backward()  # type: ignore[no-untyped-call]
    finally:
        model.train(was_training)
        for stack, rate in zip(stacks, rates, strict=True):
            stack.layer_dropout = rate
