"""The optimizers on offer, and their memory."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mtkit.config.training_settings import TrainingConfig

Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); the weight decay is added to the gradient."""
    return torch.optim.Adam(
        parameters, 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def adamw(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); the weight decay, times the learning rate, is taken off the weights."""
    return torch.optim.AdamW(
        parameters, 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def sgd(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent: v = momentum v + gradient + weight decay x weights, weights -= rate v (Polyak 1964).

    Like PyTorch's, the rate stands outside of v, so a change of it takes effect at once.
    """
    return torch.optim.SGD(parameters, 0.0, config.momentum, weight_decay=config.weight_decay, fused=fused)


OPTIMIZERS: dict[str, Callable[[Parameters, TrainingConfig, bool], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}


def make_optimizer(parameters: Parameters, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the settings; the learning rate is set at each update."""
    return OPTIMIZERS[config.optimizer](parameters, config, device.type in ("cpu", "cuda"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """All that the optimizer remembers, as `moment/parameter`; names are those of its parameters, in order.

    It may be nothing: sgd without momentum has no memory, and sgd with momentum none before its first update.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{key}/{names[i]}": tensor
        for i, moments in state.items()
        for key, tensor in moments.items()
        if tensor is not None
    }


def remembers_alike(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> bool:
    """Whether the tensors, as optimizer_tensors names them, are the memory of an optimizer of this kind.

    The memory of sgd is its momentum, that of adam and adamw the averages of the gradient and of its square.
    """
    of_sgd = any(name.startswith("momentum_buffer/") for name in tensors)
    return not tensors or of_sgd == isinstance(optimizer, torch.optim.SGD)


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Loads what optimizer_tensors returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
