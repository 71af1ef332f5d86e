"""One update of the weights: gradient, clipping, optimizer, loss scaling, moving average."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mtkit.bundle.checkpoints import FIRST_SCALE, Progress, Update
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batch import Batch
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import mixed_precision
from mtkit.training.loss import OBJECTIVES

Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); the weight decay is added to the gradient."""
    return torch.optim.Adam(
        parameters, 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def adamw(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); learning rate x weight decay x weights is subtracted from the weights."""
    return torch.optim.AdamW(
        parameters, 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def sgd(parameters: Parameters, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent: v = momentum v + gradient + weight decay x weights, weights -= rate v (Polyak 1964).

    As in PyTorch, the rate is not part of v, so a change of the rate takes effect at once.
    """
    return torch.optim.SGD(parameters, 0.0, config.momentum, weight_decay=config.weight_decay, fused=fused)


OPTIMIZERS: dict[str, Callable[[Parameters, TrainingConfig, bool], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}


def make_optimizer(parameters: Parameters, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that the settings name; its learning rate is set at each update."""
    return OPTIMIZERS[config.optimizer](parameters, config, device.type in ("cpu", "cuda"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The state of the optimizer as tensors named `moment/parameter`; names are those of its parameters, in order.

    It may be empty: sgd without momentum has no state, and no optimizer has any before its first update.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"{key}/{names[i]}": tensor
        for i, moments in state.items()
        for key, tensor in moments.items()
        if tensor is not None
    }


def remembers_alike(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> bool:
    """Whether the tensors, which optimizer_tensors returned, fit an optimizer of this kind.

    The state of sgd is its momentum; that of adam and adamw is the averages of the gradient and of its square.
    """
    of_sgd = any(name.startswith("momentum_buffer/") for name in tensors)
    return not tensors or of_sgd == isinstance(optimizer, torch.optim.SGD)


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Load what optimizer_tensors returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Loss scaling, which keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018, section 3.2).


class LossScaler:
    """PyTorch's dynamic loss scale: an overflow halves it, 2,000 updates in a row without one double it.

    Except in fp16 it does nothing. Its state is the scale and the number of updates since the scale changed.
    """

    def __init__(self, device: torch.device, precision: str, scale: float, updates: int) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": updates})

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale, whose gradient is to be taken."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale: once in each update, before anything else reads them."""
        self._scaler.unscale_(optimizer)

    def adapt(self) -> None:
        """Raise or lower the scale, according to whether unscale found an overflow."""
        self._scaler.update()

    @property
    def scale(self) -> float:
        """The number that the loss is multiplied by at present."""
        return self.state[0]

    @property
    def state(self) -> tuple[float, int]:
        """The scale and the number of updates since it changed, which is all that a checkpoint needs."""
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


# The moving average of the weights.


class MovingAverage:
    """The exponential moving average of the weights, in fp32 (Polyak & Juditsky 1992).

    After each update it becomes decay x average + (1 - decay) x weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._tensors = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._cells = [module for module in model.modules() if isinstance(module, nn.RNNBase)]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages, by the names of the parameters."""
        return dict(zip(self._parameters, self._tensors, strict=True))

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Set the average to weights that a checkpoint holds."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update number step to the average.

        The decay used is min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten, as in
        TensorFlow's ExponentialMovingAverage and in Marian.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._tensors, list(self._parameters.values()), 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model compute with the average within the block.

        The tensors are swapped, not copied; only recurrent cells on a GPU, which need their weights in one block of
        memory, copy them.
        """
        self._swap()
        for cells in self._cells:
            cells.flatten_parameters()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters.values()):
            parameter.data, self._tensors[i] = self._tensors[i], parameter.data


# The update.


@dataclass
class TrainState:
    """All that changes during training, and that a checkpoint holds."""

    model: TranslationModel
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    average: MovingAverage | None = None


class Updater:
    """Updates the weights of a model, one step of the optimizer at a time."""

    def __init__(self, state: TrainState, settings: TrainingConfig, scaler: LossScaler) -> None:
        self.state = state
        self.settings = settings
        self.scaler = scaler
        self.batch: Batch | None = None  # the current one; the message says its shape if memory runs out

    def update(self, batches: Sequence[Batch], step: int, rate: float) -> Update:
        """Make update number step, at a learning rate, with the sum of the gradients of the batches.

        The summed loss is divided once, by the target tokens of all batches. If the loss or the gradient is not finite,
        the weights stay unchanged. Raises whatever PyTorch raises when memory runs out.
        """
        state, settings = self.state, self.settings
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        tokens = sum(batch.target_tokens for batch in batches)
        sums = []
        for number, batch in enumerate(batches):
            self.batch = batch
            # Seeded anew for each batch, so that a checkpoint need not hold a random state.
            seed_device(state.model.device, random_seed(settings.seed, step, number))
            with mixed_precision(state.model.device, state.progress.precision):
                loss = OBJECTIVES[settings.consistency](state.model, batch.to(state.model.device), settings)
            self.scaler.scaled(loss.total / tokens).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sums)

        self.scaler.unscale(state.optimizer)
        limit = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
        smoothed, nll, *consistency = torch.stack(sums).sum(0).tolist()
        padding = sum(batch.padding for batch in batches) / len(batches)
        update = Update(smoothed, nll, tokens, norm, rate, padding, *consistency)
        if update.is_finite:
            state.optimizer.step()
            if state.average is not None:
                state.average.update(step)
        self.scaler.adapt()
        state.optimizer.zero_grad(set_to_none=True)
        return update


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the random numbers that a forward pass on the device draws."""
    if device.type == "cpu":
        # torch.manual_seed seeds every kind of device, and formats the call stack for each one that is not in use.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def random_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of the forward pass of one batch, a function of its place in training alone."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
