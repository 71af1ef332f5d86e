"""One update of the weights: gradient, clipping, optimizer, loss scaling, averages of the weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkit.bundle.checkpoints import FIRST_SCALE, Progress, Update
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batch import Batch
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import mixed_precision
from mtkit.training.loss import OBJECTIVES
from mtkit.training.muon import Muon, hidden_matrices

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainingConfig) -> Groups:
    """The parameters of a model in one or two groups, each with its weight decay.

    With weight_decay_of matrices, the first group has the hidden matrices, and the second all other parameters, which
    do not decay.
    """
    parameters = list(model.parameters())
    if config.weight_decay_of == "all":
        return [{"params": parameters, "weight_decay": config.weight_decay}]
    matrices = hidden_matrices(model)
    others = [parameter for parameter in parameters if parameter not in matrices]
    groups = [
        {"params": list(matrices), "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adam(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); the weight decay is added to the gradient."""
    return torch.optim.Adam(parameter_groups(model, config), 0.0, config.adam_betas, config.adam_eps, fused=fused)


def adamw(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); learning rate x weight decay x weights is subtracted from the weights."""
    return torch.optim.AdamW(parameter_groups(model, config), 0.0, config.adam_betas, config.adam_eps, fused=fused)


def sgd(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Polyak 1964).

    v = momentum x v + gradient + weight decay x weights, then weights = weights - learning rate x v. As in PyTorch, the
    learning rate is not part of v, so that a change of it takes full effect at once.
    """
    return torch.optim.SGD(parameter_groups(model, config), 0.0, config.momentum, fused=fused)


def muon(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Muon (Jordan 2024) for hidden matrices, Adam for all other weights; the weight decay is that of AdamW."""
    decays = (config.weight_decay, config.weight_decay if config.weight_decay_of == "all" else 0.0)
    return Muon(model, config.adam_betas, config.adam_eps, *decays, config.matrix_rate_factor, fused)


def schedule_free(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Schedule-free AdamW (Defazio et al. 2024); it averages the weights for validation by itself."""
    return ScheduleFree(model, parameter_groups(model, config), config.adam_betas, config.adam_eps)


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainingConfig, bool], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "muon": muon,
    "schedule_free": schedule_free,
}


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that config.optimizer names; its learning rate is 0 until Updater.update sets it."""
    return OPTIMIZERS[config.optimizer](model, config, device.type in ("cpu", "cuda"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of the optimizer of a model as tensors named KEY/PARAMETER, such as `exp_avg/output.weight`.

    It may be empty: sgd without momentum has no state, and no optimizer has any before its first update.
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
    """The names of the parameters, in the order of the optimizer's parameter groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def remembers_alike(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> bool:
    """Whether the tensors, from optimizer_tensors, can be loaded into this optimizer; an empty dict always can.

    The state of sgd is its momentum; the state of adam and adamw is averages of the gradient and of its square; muon
    has such averages, and the momentum of hidden matrices; schedule_free has weights called z.
    """
    moments = {name.split("/", 1)[0] for name in tensors}
    of_kinds = {"momentum_buffer": torch.optim.SGD, "matrix_momentum": Muon, "z": ScheduleFree}
    return not tensors or all((name in moments) == isinstance(optimizer, kind) for name, kind in of_kinds.items())


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the state that optimizer_tensors returned."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, model))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(numbers[parameter], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Loss scaling, which keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018, section 3.2).


class LossScaler:
    """PyTorch's dynamic loss scale: an overflow halves it; 2,000 updates in a row without an overflow double it.

    In other precisions than fp16 it does nothing. Its state is the scale and the number of updates since that changed.
    """

    def __init__(self, device: torch.device, precision: str, scale: float, updates: int) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": updates})

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss multiplied by the scale; backward is to be called on this product."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale; to be called once in each update, before anything else reads them."""
        self._scaler.unscale_(optimizer)

    def adapt(self) -> None:
        """Lower the scale if unscale found an overflow; raise it if there has been none for 2,000 updates."""
        self._scaler.update()

    @property
    def scale(self) -> float:
        """The current scale; in other precisions than fp16 it is FIRST_SCALE, but unused."""
        return self.state[0]

    @property
    def state(self) -> tuple[float, int]:
        """The scale and the number of updates since it changed, for a checkpoint; (FIRST_SCALE, 0) except in fp16."""
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


# Averages of the weights.


class AveragedWeights:
    """An average of the weights, in fp32, which validation uses instead of the weights themselves.

    It begins as a copy of the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self.tensors = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._cells = [module for module in model.modules() if isinstance(module, nn.RNNBase)]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages, by parameter name."""
        return dict(zip(self._parameters, self.tensors, strict=True))

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Set the average to the given weights, by parameter name, such as those of a checkpoint."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    def update(self, step: int) -> None:
        """Update the average after update number step; here nothing, since the optimizer has updated it."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the parameters of the model are the average; after it they are the weights again.

        The tensors are swapped, not copied; only recurrent cells on a GPU copy them, since they need their weights in
        one block of memory.
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
            parameter.data, self.tensors[i] = self.tensors[i], parameter.data


class MovingAverage(AveragedWeights):
    """The exponential moving average of the weights (Polyak & Juditsky 1992).

    After each update it becomes decay x average + (1 - decay) x weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average from the weights that the model has after update number step.

        The decay is min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten, as in
        TensorFlow's ExponentialMovingAverage and in Marian.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, list(self._parameters.values()), 1 - decay)


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1).

    It has three sets of weights, named as in the paper: the gradient moves z; x, the average of all z so far, is what
    validation and the bundle use; the gradient is taken at y, which lies between the two. The model's parameters are y.
    """

    def __init__(self, model: nn.Module, groups: Groups, betas: tuple[float, float], eps: float) -> None:
        """An optimizer for all parameters of a model; groups has them all, each group with its weight_decay."""
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps})
        self.average = AveragedWeights(model)  # x
        self._places = {parameter: place for place, parameter in enumerate(model.parameters())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update z, x and y by the gradients at y; the closure is not used."""
        trained = [(parameter, parameter.grad) for parameter in self._places if parameter.grad is not None]
        if not trained:
            return None
        y: list[Tensor] = [parameter for parameter, _ in trained]
        gradients = [gradient for _, gradient in trained]
        x = [self.average.tensors[place] for parameter, place in self._places.items() if parameter.grad is not None]
        for parameter in y:
            if "z" not in self.state[parameter]:
                self.state[parameter].update(z=parameter.detach().clone(), exp_avg_sq=torch.zeros_like(parameter))
        z, squares = ([self.state[parameter][key] for parameter in y] for key in ("z", "exp_avg_sq"))

        settings = self.param_groups[0]  # all groups have the same but for weight_decay
        beta1, beta2 = settings["betas"]
        rate, share = self._rate_and_share(settings["lr"], beta2)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, settings["eps"])
        for group in self.param_groups:
            decaying = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["weight_decay"] and decaying:
                of_decaying = [self.state[parameter]["z"] for parameter in decaying]
                torch._foreach_add_(of_decaying, decaying, alpha=-rate * group["weight_decay"])
        torch._foreach_addcdiv_(z, gradients, divisors, -rate)
        torch._foreach_lerp_(x, z, share)
        torch._foreach_copy_(y, z)
        torch._foreach_lerp_(y, x, beta1)
        return None

    def _rate_and_share(self, learning_rate: float, beta2: float) -> tuple[float, float]:
        """The paper's gamma, the learning rate with Adam's bias correction, and c, the share of the new z in x.

        c is proportional to the square of the largest gamma so far, as in the authors' code.
        """
        state = self.state[next(iter(self._places))]
        sums = state.setdefault("sums", torch.zeros(3, dtype=torch.float64))
        updates, largest, total = sums.tolist()
        rate = learning_rate * (1 - beta2 ** (updates + 1)) ** 0.5
        largest = max(largest, rate)
        total += largest**2
        state["sums"] = torch.tensor([updates + 1, largest, total], dtype=torch.float64)
        return rate, largest**2 / total if total else 0.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what state_dict returned."""
        super().load_state_dict(state_dict)
        first = next(iter(self._places))
        for state in state_dict["state"].values():
            if "sums" in state:  # in fp64, which PyTorch has just rounded to the precision of the weights
                self.state[first]["sums"] = state["sums"]


def make_average(model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> AveragedWeights | None:
    """The average of the weights that validation uses; None if it uses the weights themselves."""
    if isinstance(optimizer, ScheduleFree):
        return optimizer.average
    return MovingAverage(model, config.ema_decay) if config.ema_decay else None


# The update.


@dataclass
class TrainState:
    """Everything that changes during training and that a checkpoint holds."""

    model: TranslationModel
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    average: AveragedWeights | None = None


class Updater:
    """Updates the weights of a model, one step of the optimizer at a time."""

    def __init__(self, state: TrainState, settings: TrainingConfig, scaler: LossScaler) -> None:
        self.state = state
        self.settings = settings
        self.scaler = scaler
        self.batch: Batch | None = None  # the current batch: if memory runs out, the error message says its shape

    def update(self, batches: Sequence[Batch], step: int, rate: float) -> Update:
        """Make update number step with learning rate `rate`; returns its statistics.

        The gradient is that of the loss summed over all batches, divided by their number of target tokens. If the loss
        or the gradient is not finite, the weights stay unchanged. If memory runs out, the error of PyTorch is raised.
        """
        state, settings = self.state, self.settings
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        tokens = sum(batch.target_tokens for batch in batches)
        sums = []
        for number, batch in enumerate(batches):
            self.batch = batch
            # Each batch has a seed of its own, so that checkpoints need not hold a random state.
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
            with mixed_precision(state.model.device, state.progress.precision):  # of muon's matrix products
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
    """The seed for the forward pass of one batch; it depends only on the arguments, so that training can resume."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
