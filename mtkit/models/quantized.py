"""Faster linear layers for translating on a CPU: products of 8-bit whole numbers, and packed weights.

`speed_up` puts them into a model whose weights are there.

Shapes: R rows (all tokens of a batch or of a search step), I width of a layer's input, O width of its output.
"""

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.errors import MtkitError, say
from mtkit.models.interface import Output, TranslationModel
from mtkit.models.registry import DTYPES, pick_dtype, pick_precision

# Which precision.

# The precisions in which a model can translate; `auto` is one of the others.
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "auto", "fp64")


def pick_run_precision(name: str, device: torch.device, d_model: int) -> str:
    """Returns the precision called `name`, in which a model translates; "auto" means the fastest suitable one.

    A precision is suitable if it costs less than 0.1 BLEU against fp32, on average over the models that were measured.
    bf16 and int8 do (mtkit/commands/README.md has the table), so the choice is one of speed. On a GPU, "auto" means
    what it means for training: bf16, if the GPU has it. On a CPU, it means:

    - bf16 if the CPU multiplies matrices in bf16 (AMX) and `d_model` is at least 128;
    - else int8 if the CPU adds products of 8-bit numbers in one instruction (VNNI) and `d_model` is at least 256, or
      512 if it has instructions for bf16;
    - else what it means for training: bf16 if the CPU has instructions for it and `d_model` is at least 128, else fp32.

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
    """Returns the dtype of the weights in a precision; for int8, that of the layers left in fp32.

    Raises MtkitError for fp64 on mps.
    """
    return pick_dtype("fp32" if precision == "int8" else precision, device)


def precision_of(model: TranslationModel) -> str:
    """Returns the name of the precision in which a model translates."""
    if isinstance(model.output.projection, Int8Linear):
        return "int8"
    return next(name for name, dtype in DTYPES.items() if dtype == model.dtype)


def speed_up(model: TranslationModel, precision: str) -> None:
    """Replaces the linear layers of a model, output layer included, by faster ones for `precision`.

    For int8 on a CPU, these are `Int8Linear`; the rest of the model (embeddings, attention, norms, softmax, recurrent
    cells) stays in fp32. For bf16 on a CPU where `packing_is_right`, these are `PackedLinear`, which compute the same
    to the bit. For fp32 on such a CPU, only the output layer becomes a `PackedLinear`, which computes the same up to
    rounding; smaller layers would gain nothing, and keep the weights of the memory-mapped file. In all other cases,
    nothing is replaced. The model must have its weights already; those of replaced layers are not needed afterwards,
    except those of embeddings. A layer with one output stays as it is: nothing is gained there.
    """
    if model.device.type != "cpu" or precision not in ("int8", "bf16", "fp32"):
        return
    if precision != "int8" and not packing_is_right(DTYPES[precision]):
        return
    if precision == "fp32":
        model.output.projection = PackedLinear(model.output.weight, model.output.bias)
        return
    replacement = Int8Linear if precision == "int8" else PackedLinear
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer.out_features > 1:
                setattr(parent, name, replacement(layer.weight, layer.bias))
        if isinstance(parent, Output):
            parent.projection = replacement(parent.weight, parent.bias)


# Packed weights.


class PackedLinear(nn.Module):
    """A linear layer in bf16 or fp32 whose weights are stored in the order in which the processor multiplies.

    In bf16, an `nn.Linear` brings them into this order in every call, which is a third of its time with 64 rows. In
    fp32, a product with 8,000 outputs takes half the time with 5 rows, two thirds with 64, and as long with 1 or 320.
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
    """Whether this processor, with this version of PyTorch, has packed products and they are right.

    In bf16, they must be those of `nn.Linear` to the bit, in fp32 up to rounding.
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
TINY = 1e-30  # rows whose values are all smaller become zero; smaller scales would overflow in a division
UNSIGNED = 128  # added to signed numbers where a kernel wants unsigned ones

# Returns whole numbers (R, I) of type int8, times the weights that the kernel was made for, times the weights' scales:
# (R, O) in fp32. Sums are exact.
Kernel = Callable[[Tensor], Tensor]
# Makes a kernel from weights (O, I), int8, and their scales (O,), fp32.
MakeKernel = Callable[[Tensor, Tensor], Kernel]


def int_matmul(weight: Tensor, scales: Tensor) -> Kernel:
    """Returns a kernel that uses `torch._int_mm`.

    It has little overhead. The sums come back as int32, and their conversion costs time if there are many outputs.
    """
    transposed = weight.t()
    return lambda rows: torch._int_mm(rows, transposed) * scales


def onednn_linear(weight: Tensor, scales: Tensor) -> Kernel:
    """Returns a kernel that uses oneDNN's quantised linear layer; its weights are packed.

    The rows are passed as unsigned numbers: for signed ones, oneDNN has fast kernels only with AMX and several rows.
    """
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    flip = torch.tensor([-UNSIGNED], dtype=torch.int8)  # x ^ flip, read as unsigned, is x + 128

    def multiply(rows: Tensor) -> Tensor:
        unsigned = rows.bitwise_xor(flip).view(torch.uint8)
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned, 1.0, UNSIGNED, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return products

    return multiply


# All kernels give the same numbers to the bit, so the choice is one of speed. Of those that are right on this
# processor, a layer takes the first, or the last if it has more outputs than inputs.
KERNELS: list[MakeKernel] = [int_matmul, onednn_linear]

# Rows, inputs and outputs of the products by which kernels are checked: one row, odd widths, and a search step.
CHECKED_SHAPES = ((1, 64, 48), (7, 33, 65), (64, 256, 256), (48, 512, 1024))


def is_right(make: MakeKernel) -> bool:
    """Whether a kernel exists on this processor and computes what plain arithmetic does.

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
    """Whether a kernel is faster than a product in fp32, by the shortest of a few timed calls.

    The difference is large, so that about two milliseconds of measuring are enough.
    """
    weight = torch.ones(512, 512, dtype=torch.int8)
    kernel, rows, numbers = make(weight, torch.ones(512)), torch.ones(64, 512, dtype=torch.int8), weight.float()
    x = rows.float()
    return _seconds(lambda: kernel(rows)) < _seconds(lambda: F.linear(x, numbers))


def _seconds(function: Callable[[], object]) -> float:
    """Returns the shortest of some measured times of a call."""
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


@cache
def usable_kernels() -> list[MakeKernel]:
    """Returns the kernels that are right and fast on this processor or, if none is fast, those that are right.

    All right kernels give the same numbers, so a measurement of time never changes a translation. If no kernel is
    right, says so once on stderr.
    """
    right = [make for make in KERNELS if is_right(make)]
    if not right:
        say(
            "mtkit: warning: precision int8: no product of 8-bit numbers is right on this processor; products are "
            "computed in fp32, with weights rounded to 8 bits"
        )
    return [make for make in right if is_fast(make)] or right


class Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit whole numbers.

    Each row of the input is rounded to whole numbers from -127 to 127, with a scale of its own, so that no row depends
    on another. The weights of each output are rounded so once, when the layer is made. The sums of products are exact;
    they are multiplied by both scales, and the bias is added, in fp32. An input that is not a number gives an output
    that is not a number.

    If this processor has no kernel that is right, only the weights are rounded.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole, scales = quantized(weight.detach().float())
        self.bias = None if bias is None else bias.detach().float()
        self.kernel: Kernel | None = None
        self.weight: Tensor | None = None
        kernels = usable_kernels()
        if kernels:
            self.kernel = kernels[-1 if len(weight) > weight.shape[1] else 0](whole.to(torch.int8), scales / LEVELS**2)
        else:
            self.weight = whole * (scales[:, None] / LEVELS)
        # Tensors of one element, since PyTorch takes longer for Python's numbers.
        self.levels, self.tiny = torch.tensor([1.0 * LEVELS]), torch.tensor([TINY])

    def forward(self, x: Tensor) -> Tensor:
        """Maps `x`, (…, I), to (…, O), both in fp32."""
        if self.kernel is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        largest = torch.maximum(rows.abs().amax(1, keepdim=True), self.tiny)  # (R, 1)
        whole = (rows * (self.levels / largest)).round_().to(torch.int8)
        y = self.kernel(whole).mul_(largest)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.view(*x.shape[:-1], y.shape[1])


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row (R, I) to whole numbers from -127 to 127.

    Returns the whole numbers, as floats, and the largest absolute value of each row, (R,), for which 127 stands.
    """
    largest = rows.abs().amax(1).clamp(min=TINY)
    return (rows * (LEVELS / largest[:, None])).round_(), largest
