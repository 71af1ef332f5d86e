"""Loss scaling, which keeps the small gradients of fp16 from vanishing (Micikevicius et al. 2018, section 3.2).

bf16 and fp32 have the range to do without.
"""

import torch
from torch import Tensor

FIRST_SCALE = 2.0**16  # PyTorch's; too high for many models, so that the first updates find the right one


class LossScaler:
    """PyTorch's dynamic scale: an overflow halves it, 2,000 updates in a row without one double it.

    Outside of fp16 it does nothing. All that it remembers is the scale and the updates since it changed.
    """

    def __init__(self, device: torch.device, precision: str, scale: float, updates: int) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": updates})

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss whose gradient is to be taken."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, once an update, before anything looks at them."""
        self._scaler.unscale_(optimizer)

    def next(self) -> tuple[float, int]:
        """Move the scale by what unscale saw; the scale now, and the updates since it changed."""
        self._scaler.update()
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]
