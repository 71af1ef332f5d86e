"""Linear layers in bf16 on a CPU compute what `nn.Linear` does, by products of few shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtkit.models.layers import BLOCK_ROWS, Linear

ROWS = [1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS - 1, 2 * BLOCK_ROWS, 5 * BLOCK_ROWS + 77]


class Products(TorchDispatchMode):
    """Records the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if operator.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.shapes.add(tuple(argument.shape for argument in arguments[-2:]))
        return operator(*arguments, **(options or {}))


def passes(layer: nn.Linear, x: Tensor, by_y: Tensor) -> list[Tensor]:
    """Returns the output, and the gradients by the input and by the weights."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], by_y.to(y.dtype))]


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_a_plain_layer(num_rows: int, bias: bool) -> None:
    torch.manual_seed(num_rows)
    layer = Linear(32, 48, bias)
    plain = nn.Linear(32, 48, bias)
    plain.load_state_dict(layer.state_dict())
    x, by_y = torch.randn(num_rows, 1, 32), torch.randn(num_rows, 1, 48)
    found, under_autocast = passes(layer, x, by_y), passes(plain, x, by_y)
    exact = passes(plain.double(), x.double(), by_y.double())
    for ours, theirs, wanted in zip(found, under_autocast, exact, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        error, unavoidable = ((each - wanted).norm() / wanted.norm() for each in (ours, theirs))
        assert error < max(1.2 * unavoidable, 1e-6)


def test_one_that_needs_no_gradient_gets_none() -> None:
    layer = Linear(32, 48)
    layer.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2 * BLOCK_ROWS, 32)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_batches_of_all_sizes_share_few_shapes() -> None:
    layer = Linear(32, 48)
    with Products() as products:
        for num_rows in range(4 * BLOCK_ROWS, 5 * BLOCK_ROWS, 3):
            passes(layer, torch.randn(1, num_rows, 32), torch.randn(1, num_rows, 48))
    assert len(products.shapes) == 3 * 2  # the output and two gradients, for two numbers of rows


def test_in_full_precision_the_layer_is_the_plain_one() -> None:
    layer = Linear(32, 48)
    x = torch.randn(3 * BLOCK_ROWS + 5, 32)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
