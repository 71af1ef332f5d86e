"""Dropout (Srivastava et al. 2014), on a CPU several times faster than PyTorch's, which draws a float a value."""

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 1 << 16  # the rate is rounded to so many; one above 0 never to none, and none to all


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """X with a share of its values zero and the others scaled up, so that their mean stays."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(max(round(rate * LEVELS), 1), LEVELS - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    factor = (drawn >= dropped - LEVELS // 2).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
    return x * factor
