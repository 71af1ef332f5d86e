"""The feed-forward layers and their nonlinearities. R rows, L length, D model width."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.model_settings import TransformerConfig
from mtkit.models.dropout import dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}

# Of the gate, by which the other half of the inner layer is multiplied (Shazeer 2020).
GATES: dict[str, Callable[[Tensor], Tensor]] = {"reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu}


class FeedForward(nn.Module):
    """Two linear layers with a nonlinearity between (Vaswani et al. 2017, equation 2), or a gate.

    A gated inner layer is one matrix of 2 d_ff rows: those of the gate, then those of what it lets through.
    """

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.is_gated = config.activation in GATES
        self.inner = nn.Linear(config.d_model, 2 * d_ff if self.is_gated else d_ff)
        self.output = nn.Linear(d_ff, config.d_model)
        self.activation = (GATES if self.is_gated else ACTIVATIONS)[config.activation]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(R, L, D) to the same."""
        y: Tensor = self.output(dropout(self.activate(self.inner(x)), self.dropout, self.training))
        return y

    def activate(self, inner: Tensor) -> Tensor:
        """What the inner layer gives, (R, L, d_ff), or twice as wide where it is gated, to (R, L, d_ff)."""
        if not self.is_gated:
            return self.activation(inner)
        gate, value = inner.chunk(2, -1)
        return self.activation(gate) * value
