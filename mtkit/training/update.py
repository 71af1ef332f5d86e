"""An update of the weights: gradient, clipping, optimizer, loss scaling, moving average."""

import math
from collections.abc import Callable, Iterator, Sequence
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
from mtkit.training.muon import Muon


def adam(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); the weight decay is added to the gradient."""
    return torch.optim.Adam(
        model.parameters(), 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def adamw(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); the weight decay, times the learning rate, is taken off the weights."""
    return torch.optim.AdamW(
        model.parameters(), 0.0, config.adam_betas, config.adam_eps, weight_decay=config.weight_decay, fused=fused
    )


def sgd(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent: v = momentum v + gradient + weight decay x weights, weights -= rate v (Polyak 1964).

    Like PyTorch's, the rate stands outside of v, so a change of it takes effect at once.
    """
    return torch.optim.SGD(model.parameters(), 0.0, config.momentum, weight_decay=config.weight_decay, fused=fused)


def muon(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Muon (Jordan 2024) for hidden matrices, which alone the weight decay is of; Adam for all other weights."""
    rate = 1.0
    if config.matrix_learning_rate is not None:
        assert config.learning_rate is not None, "the settings check it"
        rate = config.matrix_learning_rate / config.learning_rate
    return Muon(model, config.adam_betas, config.adam_eps, config.weight_decay, rate, fused)


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainingConfig, bool], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "muon": muon,
}


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the settings for all parameters of a model; the learning rate is set at each update."""
    return OPTIMIZERS[config.optimizer](model, config, device.type in ("cpu", "cuda"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """All that the optimizer of a model remembers, as `moment/parameter`.

    It may be nothing: sgd without momentum has no memory, and sgd with momentum none before its first update.
    """
    names = _names(optimizer, model)
    state = optimizer.state_dict()["state"]
    return {
        f"{key}/{names[i]}": tensor
        for i, moments in state.items()
        for key, tensor in moments.items()
        if tensor is not None
    }


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of the parameters in the order in which the optimizer numbers them, that of its groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def remembers_alike(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> bool:
    """Whether the tensors, as optimizer_tensors names them, are the memory of an optimizer of this kind.

    The memory of sgd is its momentum, that of adam and adamw the averages of the gradient and of its square; muon has
    those, and a momentum of matrices.
    """
    moments = {name.split("/", 1)[0] for name in tensors}
    of_kinds = {"momentum_buffer": torch.optim.SGD, "matrix_momentum": Muon}
    return not tensors or all((name in moments) == isinstance(optimizer, kind) for name, kind in of_kinds.items())


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads what optimizer_tensors returned."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, model))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(numbers[parameter], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Loss scaling, which keeps the small gradients of fp16 from vanishing (Micikevicius et al. 2018, section 3.2).


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

    def adapt(self) -> None:
        """Move the scale by the gradients that unscale saw."""
        self._scaler.update()

    @property
    def scale(self) -> float:
        """What the loss is multiplied by now."""
        return self.state[0]

    @property
    def state(self) -> tuple[float, int]:
        """The scale, and the number of updates since it changed: all that a checkpoint needs."""
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


# A moving average of the weights, kept beside them while they are trained.


class MovingAverage:
    """Exponential: after each update, decay x average + (1 - decay) x weights, in fp32 (Polyak & Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._tensors = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._cells = [module for module in model.modules() if isinstance(module, nn.RNNBase)]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The average, by the names of the parameters."""
        return dict(zip(self._parameters, self._tensors, strict=True))

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Put the average where it was."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after an update.

        The decay begins at min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten, as in
        TensorFlow's ExponentialMovingAverage and in Marian.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._tensors, list(self._parameters.values()), 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Meanwhile the model computes with the average.

        Nothing is copied but the weights of a GPU's recurrent cells, which want them in one piece.
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


# One update.


@dataclass
class TrainState:
    """The one thing that changes while training."""

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
        self.batch: Batch | None = None  # at hand; messages tell its shape when memory runs out

    def update(self, batches: Sequence[Batch], step: int, rate: float) -> Update:
        """Make update number step at a learning rate, over batches whose gradients add up.

        The loss is divided once, by all their target tokens. Where the loss or the gradient is not finite, the weights
        stay as they are. Raises whatever PyTorch raises when memory runs out.
        """
        state, settings = self.state, self.settings
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        tokens = sum(batch.target_tokens for batch in batches)
        sums = []
        for number, batch in enumerate(batches):
            self.batch = batch
            # No random state is kept: it is a function of where training is.
            torch.manual_seed(random_seed(settings.seed, step, number))
            with mixed_precision(state.model.device, state.progress.precision):
                loss = OBJECTIVES[settings.consistency](state.model, batch.to(state.model.device), settings)
            self.scaler.scaled(loss.total / tokens).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sums)

        self.scaler.unscale(state.optimizer)
        limit = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(nn.utils.clip_grad_norm_(state.model.parameters(), limit))
        smoothed, likelihood, *consistency = torch.stack(sums).sum(0).tolist()
        padding = sum(batch.padding for batch in batches) / len(batches)
        update = Update(smoothed, likelihood, tokens, norm, rate, padding, *consistency)
        if update.is_finite:
            state.optimizer.step()
            if state.average is not None:
                state.average.update(step)
        self.scaler.adapt()
        state.optimizer.zero_grad(set_to_none=True)
        return update


def random_seed(seed: int, step: int, micro_batch: int) -> int:
    """The seed of one forward pass, so that a checkpoint need not hold a random state."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
