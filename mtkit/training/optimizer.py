"""The optimizers on offer."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mtkit.config.settings import TrainingConfig

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainingConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019); the learning rate is set at each update."""
    return OPTIMIZERS[config.optimizer](
        parameters,
        lr=0.0,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """All that the optimizer remembers, as `moment/parameter`; names are those of its parameters, in order."""
    state = optimizer.state_dict()["state"]
    return {f"{key}/{names[i]}": tensor for i, moments in state.items() for key, tensor in moments.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """The opposite."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
