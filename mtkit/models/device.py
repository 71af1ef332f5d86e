"""Where a model runs, and in which precision that place is fast."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch

from mtkit.errors import MtkitError

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
