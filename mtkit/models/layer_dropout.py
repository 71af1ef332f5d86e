"""LayerDrop (Fan et al. 2020): whole layers are left out of a pass in training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def draw_layers(num_layers: int, rate: float, training: bool) -> list[bool]:
    """Which layers take part in this pass; drawn by the host's generator, so that no device is waited for."""
    if not training or rate == 0.0:
        return [True] * num_layers
    drawn: list[bool] = (torch.rand(num_layers, device="cpu") >= rate).tolist()
    return drawn


class _Unused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, ...]:
        return by_x, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, unused: Sequence[Tensor]) -> Tensor:
    """X, of which tensors that took no part have a gradient of zeros.

    Without one an optimizer would pass them by: their memory would be missing from a checkpoint, or count fewer updates
    than that of the others; and ranks that drew different layers would wait for each other's gradients.
    """
    if not unused:
        return x
    result: Tensor = _Unused.apply(x, *unused)  # type: ignore[no-untyped-call]
    return result
