"""Optimizers and learning-rate schedules.

Optimizers (Adam, AdamW, SGD, Muon, schedule-free AdamW), their state in checkpoints, and averages of the weights;
learning-rate schedules, the limits that end training, and plans for runs of a given number of minutes. Shapes: M
matrices of the same shape, with A rows and B columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import unwrap
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtkit.bundle.opening import Change, Progress, setting_at
from mtkit.config.training_settings import ENDING, SHARES, TrainingConfig, settled
from mtkit.errors import ConfigError, counted, say

# Averages of the weights.


class AveragedWeights:
    """An average, in fp32, of the weights of a model; validation uses the average instead of the weights themselves.

    The average starts as a copy of the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters())
        self.tensors = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._cells = [module for module in model.modules() if isinstance(module, nn.RNNBase)]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The average of each parameter, by parameter name."""
        return dict(zip(self._parameters, self.tensors, strict=True))

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Set the average to `weights`, for example those in a checkpoint; the keys are parameter names."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    def update(self, step: int) -> None:
        """Update the average after update number `step`.

        In this class, the method does nothing, since the optimizer updates the average. `MovingAverage` overrides the
        method.
        """

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context manager in which the parameters of the model are the average; afterwards, they are the weights again.

        The tensors are swapped, not copied, with one exception: tensors of recurrent cells on a GPU are copied, since
        such cells need their weights in one block of memory.
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

    After each update, the average becomes decay x average + (1 - decay) x weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average from the weights that the model has after update number `step`.

        The decay is the smaller of the attribute `decay` and (1 + `step`) / (10 + `step`), so that the first weights
        are soon forgotten, as in TensorFlow's ExponentialMovingAverage and in Marian.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, list(self._parameters.values()), 1 - decay)


# The optimizers of PyTorch, without its compiler.


class Uncompiled(torch.optim.Optimizer):
    """A base class with the methods of PyTorch's optimizers, stripped of the wrappers that prevent their compilation.

    At their first call, the wrappers import the compiler, which takes seconds. mtkit does not need the wrappers, since
    it never compiles optimizers.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class Adam(Uncompiled, torch.optim.Adam):
    """Adam (Kingma & Ba 2015)."""

    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(Uncompiled, torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019)."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class SGD(Uncompiled, torch.optim.SGD):
    """Stochastic gradient descent with momentum (Polyak 1964)."""

    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


# Muon, and the hidden matrices that it trains.

# To orthogonalise a matrix, polynomials a x + b x^3 + c x^5 are applied to its singular values, one after another.
# These are the coefficients (a, b, c) of the four polynomials. They are optimal for singular values from 0.003 to 1: no
# other four polynomials of this form bring all of these values nearer to 1 (Amsel et al. 2025, Polar Express,
# arXiv:2505.16932). Each polynomial is the best one for the range of values that the previous polynomials produce.
# Outside this range, a polynomial grows fast, and rounding in bf16 may produce such values. As a safety margin, x is
# divided by 1.02 in all polynomials but the last. The four polynomials bring the values as near to 1 as five
# applications of the polynomial of Jordan (2024).
POLYNOMIALS = (
    (8.2193, -23.3375, 16.6266),
    (3.9641, -2.8377, 0.5158),
    (3.4368, -2.4752, 0.4762),
    (2.4901, -1.8343, 0.4368),
)
EPSILON = 1e-7
MOMENTUM = 0.95  # as in Jordan (2024)
RMS = 0.2  # root mean square of an update, about as in Adam, so that one learning rate suits both (Liu et al. 2025)
GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Muon(Adam):
    """Updates hidden matrices by Muon, which orthogonalises the updates, and all other parameters by Adam.

    Hidden matrices are those that `hidden_matrices` returns. Muon follows Jordan (2024,
    https://kellerjordan.github.io/posts/muon), with Nesterov momentum. If a matrix stacks several others (those for
    queries, keys and values, or the gates of a recurrent cell), each of the stacked matrices is treated separately.
    Orthogonalised updates are multiplied by 0.2 x sqrt(max(rows, columns)) as in Liu et al. (2025, arXiv:2502.16982),
    so that a learning rate that suits Adam also suits Muon.
    """

    def __init__(
        self,
        model: nn.Module,
        betas: tuple[float, float],
        eps: float,
        matrix_decay: float,
        other_decay: float,
        matrix_rate: float,
        fused: bool,
    ) -> None:
        """Makes an optimizer for all parameters of `model`, with decoupled weight decay.

        `betas` and `eps` are those of Adam. The weight decay is `matrix_decay` for hidden matrices and `other_decay`
        for all other parameters. The learning rate of hidden matrices is `matrix_rate` times the learning rate of all
        other parameters. `matrix_rate` is stored as "rate" in the parameter group of the hidden matrices;
        `Updater.update` multiplies the learning rate by it.
        """
        blocks = hidden_matrices(model)
        others = [parameter for parameter in model.parameters() if parameter not in blocks]
        groups: list[dict[str, Any]] = [
            {"params": others, "weight_decay": other_decay, "blocks": None},
            {
                "params": list(blocks),
                "weight_decay": matrix_decay,
                "blocks": list(blocks.values()),
                "rate": matrix_rate,
            },
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, 0.0, betas, eps, fused=fused, decoupled_weight_decay=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters from their gradients.

        As in PyTorch, `closure`, if given, is called first; it computes the gradients and the loss, which is returned.
        """
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["blocks"] is None]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["blocks"] is not None:
                self._update_matrices(group)
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        trained = [each for each in zip(group["params"], group["blocks"], strict=True) if each[0].grad is not None]
        if not trained:
            return
        parameters = [parameter for parameter, _ in trained]
        for parameter in parameters:
            if not self.state[parameter]:  # with a step, which Adam expects in every state that it loads
                self.state[parameter] = {"step": torch.zeros(()), "matrix_momentum": torch.zeros_like(parameter)}
        torch._foreach_add_([self.state[parameter]["step"] for parameter in parameters], 1)
        momenta = [self.state[parameter]["matrix_momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Matrices of the same shape are updated together; one by one, launching small products would take most of the
        # time.
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for (parameter, blocks), update in zip(trained, updates, strict=True):
            for weight, change in zip(parameter.chunk(blocks), update.chunk(blocks), strict=True):
                is_tall = weight.shape[0] > weight.shape[1]
                pair = (weight.T, change.T) if is_tall else (weight, change)
                by_shape[pair[0].shape].append(pair)
        for shape, pairs in by_shape.items():
            orthogonal = orthogonalized([change for _, change in pairs])
            size = RMS * max(shape) ** 0.5
            torch._foreach_add_([weight for weight, _ in pairs], list(orthogonal.unbind()), alpha=-group["lr"] * size)


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Returns the hidden matrices of a model, those of its linear layers and recurrent cells, with their block counts.

    A matrix that stacks several matrices of equal size, such as those for queries, keys and values, has one block of
    rows for each stacked matrix. Every other matrix is one block. Embeddings and the output layer are not hidden
    matrices, and neither is the matrix of a linear layer with only one row or column.
    """
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        blocks: Mapping[str, int] = getattr(module, "BLOCKS", {})
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and min(child.weight.shape) > 1:
                found[cast("nn.Parameter", child.weight)] = blocks.get(name, 1)
        if isinstance(module, nn.RNNBase):
            weights = [parameter for name, parameter in module.named_parameters() if name.startswith("weight_")]
            found.update(dict.fromkeys(weights, GATES[type(module)]))
    return found


def orthogonalized(matrices: list[Tensor]) -> Tensor:
    """Returns the orthogonalised `matrices`, M tensors (A, B), as one tensor (M, A, B).

    The singular vectors stay the same, and the singular values come near to 1: they lie between 0.76 and 1.20, with one
    exception. Singular values that were less than 0.003 times the norm of their matrix may stay below 0.76. A must be
    at most B. The Newton-Schulz iteration, with the polynomials in `POLYNOMIALS`, runs on all matrices at once. It runs
    in the precision of autocast if autocast is enabled, else in fp32.
    """
    device = matrices[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with torch.autocast(device, enabled=False):
        x = _normalized(matrices, dtype)
        if x.shape[2] >= 2 * x.shape[1] and dtype == torch.float32:
            return _by_gram_matrices(x).to(matrices[0].dtype)
        for a, b, c in POLYNOMIALS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices[0].dtype)


def _normalized(matrices: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Returns `matrices`, each divided by its Frobenius norm, as one tensor (M, A, B) of `dtype`."""
    norms = torch.stack(torch._foreach_norm(matrices))[:, None, None] + EPSILON
    if matrices[0].device.type != "cpu":
        return (torch.stack(matrices) / norms).to(dtype)  # few operators
    x = torch.empty(len(matrices), *matrices[0].shape, dtype=dtype)
    for each, matrix, norm in zip(x, matrices, norms, strict=True):
        torch.div(matrix, norm, out=each)  # without fp32 copies of all matrices
    return x


def _by_gram_matrices(x: Tensor) -> Tensor:
    """Returns the result of the Newton-Schulz iteration for `x`, (M, A, B), with only two products that involve x.

    All other products are of (A, A) matrices. If B is four times A, this takes 0.58 of the time that iterating on x
    itself takes. The method is that of https://tridao.me/blog/2026/gram-newton-schulz. Let G = x x' be the Gram matrix.
    An iteration multiplies x by a polynomial P of G. The Gram matrix of the new x is then G P^2, so the next P can be
    computed without x. At the end, x is multiplied once by the product of all P. Half precision is unsuitable: in it,
    the Gram matrices lose small singular values.
    """
    gram = x @ x.mT
    polynomial = product = _of_gram_matrices(gram, POLYNOMIALS[0])
    for coefficients in POLYNOMIALS[1:]:
        gram = gram @ polynomial @ polynomial
        polynomial = _of_gram_matrices(gram, coefficients)
        product = product @ polynomial
    return product @ x


def _of_gram_matrices(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Returns a I + b G + c G^2, where (a, b, c) are the coefficients and G the Gram matrices, (M, A, A)."""
    a, b, c = coefficients
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    polynomial.diagonal(dim1=1, dim2=2).add_(a)
    return polynomial


# Groups of parameters with the same weight decay.

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainingConfig) -> Groups:
    """Returns the parameters of a model in one or two groups, each with its weight decay.

    If the setting `weight_decay_of` is "all", there is one group. If the setting `weight_decay_of` is "matrices", the
    first group has the hidden matrices, and the second has all other parameters, whose weight decay is 0.
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


# Schedule-free AdamW.


class ScheduleFree(Uncompiled):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1).

    The algorithm has three sets of weights, named as in the paper. The gradient updates z. The weights x are an average
    of all z so far; validation and the bundle use x. The weights y lie between z and x; they are the parameters of the
    model, so the gradient is computed at y.
    """

    def __init__(self, model: nn.Module, groups: Groups, betas: tuple[float, float], eps: float) -> None:
        """Makes an optimizer for all parameters of `model`; `groups` is the result of `parameter_groups`."""
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps})
        self.average = AveragedWeights(model)  # x
        self._places = {parameter: place for place, parameter in enumerate(model.parameters())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update z, x and y from the gradients at y; `closure` is not used."""
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

        settings = self.param_groups[0]  # the groups differ only in weight_decay
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
        """Returns gamma and c, two numbers that are named as in the paper (Defazio et al. 2024).

        gamma is the learning rate with Adam's bias correction; c is the share of the new z in x. As in the authors'
        code, c is proportional to the square of the largest gamma so far.
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
        """Load a state that the method `state_dict` returned."""
        super().load_state_dict(state_dict)
        first = next(iter(self._places))
        for state in state_dict["state"].values():
            if "sums" in state:  # PyTorch has just rounded the sums from fp64 to the precision of the weights
                self.state[first]["sums"] = state["sums"]


# The optimizers by name.


def adam(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns Adam (Kingma & Ba 2015) with L2 regularisation: weight decay x weights is added to the gradient."""
    return Adam(parameter_groups(model, config), 0.0, config.adam_betas, config.adam_eps, fused=fused)


def adamw(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns AdamW (Loshchilov & Hutter 2019); its weight decay is decoupled from the gradient.

    An update reduces the weights by learning rate x weight decay x weights.
    """
    return AdamW(parameter_groups(model, config), 0.0, config.adam_betas, config.adam_eps, fused=fused)


def sgd(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns stochastic gradient descent with momentum (Polyak 1964).

    An update is v = momentum x v + gradient + weight decay x weights, then weights = weights - learning rate x v. As
    usual in PyTorch, the learning rate is not part of v, so that a new learning rate takes full effect at once.
    """
    return SGD(parameter_groups(model, config), 0.0, config.momentum, fused=fused)


def muon(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns Muon (Jordan 2024) for hidden matrices and Adam for all other weights, with the weight decay of AdamW."""
    decays = (config.weight_decay, config.weight_decay if config.weight_decay_of == "all" else 0.0)
    return Muon(model, config.adam_betas, config.adam_eps, *decays, config.matrix_rate_factor, fused)


def schedule_free(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns schedule-free AdamW (Defazio et al. 2024), which itself averages the weights for validation."""
    return ScheduleFree(model, parameter_groups(model, config), config.adam_betas, config.adam_eps)


OPTIMIZERS: dict[str, Callable[[nn.Module, TrainingConfig, bool], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
    "muon": muon,
    "schedule_free": schedule_free,
}


def make_optimizer(model: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Returns the optimizer that `config.optimizer` names; its learning rate is 0 until `Updater.update` sets it."""
    return OPTIMIZERS[config.optimizer](model, config, device.type in ("cpu", "cuda"))


def make_average(model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig) -> AveragedWeights | None:
    """Returns the average of the weights, for use in validation; `None` if validation uses the weights themselves."""
    if isinstance(optimizer, ScheduleFree):
        return optimizer.average
    return MovingAverage(model, config.ema_decay) if config.ema_decay else None


# The state of optimizers, for checkpoints.


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a model's optimizer as tensors named KEY/PARAMETER, such as `exp_avg/output.weight`.

    The dict may be empty: sgd without momentum has no state, and no optimizer has any before its first update.
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
    """Returns the names of the parameters, in the order of the optimizer's parameter groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def remembers_alike(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> bool:
    """Whether the optimizer can load `tensors`, a result of `optimizer_tensors`.

    Every optimizer can load an empty dict. Any other state must be of the same kind as the optimizer's own. The state
    of sgd is momentum. The state of adam and adamw consists of averages of the gradient and of its square. The state of
    muon consists of momentum for hidden matrices, and of the same averages as in adam for all other parameters. The
    state of schedule_free includes the weights z.
    """
    moments = {name.split("/", 1)[0] for name in tensors}
    of_kinds = {"momentum_buffer": torch.optim.SGD, "matrix_momentum": Muon, "z": ScheduleFree}
    return not tensors or all((name in moments) == isinstance(optimizer, kind) for name, kind in of_kinds.items())


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the state `tensors`, a result of `optimizer_tensors`, into the optimizer of a model."""
    numbers = {name: number for number, name in enumerate(_names(optimizer, model))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, parameter = name.split("/", 1)
        state.setdefault(numbers[parameter], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# Learning-rate schedules, limits, and plans for minutes.


def noam(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate, factor x d_model^-0.5 x min(step^-0.5, step x warmup^-1.5) (Vaswani et al. 2017, eq. 3).

    If the setting `learning_rate` is given, it is the peak: factor = learning_rate x sqrt(d_model x warmup). Otherwise,
    factor is 1, as in the paper. `lowered` is not used.
    """
    warmup = max(settled(config.warmup_steps), 1)
    factor = 1.0 if config.learning_rate is None else config.learning_rate * (d_model * warmup) ** 0.5
    return float(factor * d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))


def inverse_sqrt(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, then falls as peak x sqrt(warmup / step).

    This is the schedule of fairseq. `d_model` and `lowered` are not used.
    """
    warmup = max(settled(config.warmup_steps), 1)
    return float(_peak(config) * min(step / warmup, (warmup / step) ** 0.5))


def constant(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, then stays constant.

    `d_model` and `lowered` are not used.
    """
    return _peak(config) * _warmth(step, config)


def linear(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, then falls linearly until `max_steps`.

    At `max_steps`, the rate is `final_learning_rate`. `d_model` and `lowered` are not used.
    """
    final, left = config.final_learning_rate, 1 - _share_done(step, config)
    return min(_peak(config) * _warmth(step, config), final + (_peak(config) - final) * left)


def cosine(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, then falls along half a cosine until `max_steps`.

    At `max_steps`, the rate is `final_learning_rate`. This is equation 5 of Loshchilov & Hutter (2017), without
    restarts. `d_model` and `lowered` are not used.
    """
    final, share = config.final_learning_rate, _share_done(step, config)
    left = (1 + math.cos(math.pi * share)) / 2
    return min(_peak(config) * _warmth(step, config), final + (_peak(config) - final) * left)


def wsd(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, stays there, then falls linearly until `max_steps`.

    The name wsd stands for the three phases: warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395). The decay takes
    the last `decay_steps` updates and ends at `final_learning_rate`. Hägele et al. (2024, arXiv:2405.18392) compare
    linear decay with other forms. `d_model` and `lowered` are not used.
    """
    peak, final, max_steps = _peak(config), config.final_learning_rate, settled(config.max_steps)
    left = (max_steps - step) / (max_steps - decay_start(config))
    rate = peak if left >= 1 else final + (peak - final) * max(left, 0.0)
    return min(peak * _warmth(step, config), rate)


def decay_start(config: TrainingConfig) -> int:
    """Returns the last step before the learning rate begins to decay (schedule wsd).

    The decay takes the last `decay_steps` updates. If this setting is "auto", the decay takes the last `DECAY_SHARE` of
    all updates, but does not begin before the end of warm-up.
    """
    max_steps = settled(config.max_steps)
    if config.decay_steps != "auto":
        return max_steps - config.decay_steps
    stable = max_steps - max(round(DECAY_SHARE * max_steps), 1)
    return min(max(stable, settled(config.warmup_steps), 1), max_steps - 1)


def plateau(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """Returns the rate at `step`: it rises linearly to the peak, then stays constant until a validation lowers it.

    `lowered` is the number of times that validations have lowered the rate. Each time, the rate is multiplied by
    `plateau_factor`, but it never falls below `final_learning_rate`. `d_model` is not used.
    """
    rate = max(_peak(config) * config.plateau_factor**lowered, config.final_learning_rate)
    return rate * _warmth(step, config)


def _peak(config: TrainingConfig) -> float:
    assert config.learning_rate is not None, "the settings check it"
    return config.learning_rate


def _warmth(step: int, config: TrainingConfig) -> float:
    """Returns how much of the warm-up is done at `step`, as a fraction between 0 and 1."""
    return min(1.0, step / max(settled(config.warmup_steps), 1))


def _share_done(step: int, config: TrainingConfig) -> float:
    """Returns how much of the time from the end of warm-up to `max_steps` is over at `step`, as a fraction."""
    warmup = max(settled(config.warmup_steps), 1)
    return min(max(step - warmup, 0) / (settled(config.max_steps) - warmup), 1.0)


DECAY_SHARE = 0.2  # of max_steps, as in Hägele et al. (2024)

SCHEDULES: dict[str, Callable[[int, TrainingConfig, int, int], float]] = {
    "noam": noam,
    "inverse_sqrt": inverse_sqrt,
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
    "plateau": plateau,
}


def learning_rate(step: int, config: TrainingConfig, d_model: int, lowered: int = 0) -> float:
    """Returns the learning rate of update number `step`, counted from 1.

    `lowered` is the number of times that validations have lowered the rate; only the schedule plateau uses this number.
    """
    return SCHEDULES[config.schedule](step, config, d_model, lowered)


def lowers_rate(stale: int, config: TrainingConfig, lowered: int) -> bool:
    """Whether the learning rate must be lowered now; only the schedule plateau lowers it.

    The rate is lowered after `plateau_patience` validations without a new best score, unless it has already reached
    `final_learning_rate`. `stale` is the number of such validations since the last best score or since the rate was
    last lowered, whichever is later. `lowered` is the number of times that the rate was lowered so far. With the same
    patience, PyTorch's ReduceLROnPlateau, which JoeyNMT uses, waits for one more validation.
    """
    return (
        config.schedule == "plateau"
        and stale >= config.plateau_patience
        and _peak(config) * config.plateau_factor**lowered > config.final_learning_rate
    )


# The decay that --end-in adds to a run.

ENDED_BY_DECAY = ("constant", "wsd")  # schedules of the runs that --end-in can end


@dataclass(frozen=True)
class Ending:
    """The decay of the learning rate with which a run ends (option --end-in).

    Checkpoints that are written during the decay or at its end store the decay.
    """

    start: int  # the last step before the decay
    steps: int  # updates of the decay

    @property
    def last_step(self) -> int:
        """The step at which both the decay and training end."""
        return self.start + self.steps

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """Returns a copy of the settings with the schedule wsd and this decay.

        The copy has no `max_minutes` and no `patience`, since these limits could end training before the decay is done.
        """
        decay = {"schedule": "wsd", "max_steps": self.last_step, "decay_steps": self.steps}
        return config.model_copy(update={**decay, "max_minutes": None, "patience": None})


def no_ending(config: TrainingConfig, step: int | None = None) -> str:
    """Returns, in words, why --end-in cannot end a run with these settings; "" if --end-in can end the run.

    If `step` is given, the decay must also be able to begin after this step.
    """
    if config.schedule not in ENDED_BY_DECAY:
        return f"found schedule {config.schedule}, wants {' or '.join(ENDED_BY_DECAY)}"
    if config.optimizer == "schedule_free":
        return "optimizer schedule_free needs no decay; lower training.max_steps to end the run"
    if step is None:
        return ""
    if step < max(settled(config.warmup_steps), 1):
        return f"step {step:,} is before the end of warm-up (training.warmup_steps {settled(config.warmup_steps):,})"
    if config.schedule == "wsd" and step > decay_start(config):
        start, end = decay_start(config), settled(config.max_steps)
        return f"step {step:,} is in the decay of schedule wsd already, which goes from step {start + 1:,} to {end:,}"
    return ""


# When training saves, and when it ends.


def saves_at(step: int, config: TrainingConfig, changes: Sequence[Change]) -> bool:
    """Whether a checkpoint was due at `step` under the settings that the run had at that step.

    `config` has the current settings, and `changes` lists all changes of settings in the course of the run. A stopped
    run also writes a checkpoint when none is due; such a checkpoint takes no part in averages.
    """
    return step > 0 and any(
        step % setting_at(changes, f"training.{name}", step, getattr(config, name)) == 0
        for name in ("save_every", "validate_every")
    )


def has_reached_target(progress: Progress, config: TrainingConfig) -> bool:
    """Whether the best validation so far is at least as good as `target_score`; False if no target is set."""
    if config.target_score is None or not progress.has_best:
        return False
    wanted = -config.target_score if config.select_by == "loss" else config.target_score
    return progress.best_score >= wanted


def reason_to_end(progress: Progress, config: TrainingConfig) -> str:
    """Returns, in words, the limit that training has reached; "" if no limit is reached."""
    if has_reached_target(progress, config):
        return f"training.target_score {config.target_score:g} is reached"
    if progress.step >= settled(config.max_steps):
        if progress.ending:
            return f"the decay of --end-in {Ending(**progress.ending).steps} is done"
        return f"training.max_steps {settled(config.max_steps):,} is reached"
    if config.max_minutes is not None and progress.seconds >= 60 * config.max_minutes:
        return f"training.max_minutes {config.max_minutes:g} is reached"
    if config.patience is not None and progress.bad_validations >= config.patience:
        best = f" than that of step {progress.best_step:,}" if progress.has_best else ""
        validations = counted(progress.bad_validations, "validation")
        return f"no better {config.select_by} in {validations} (training.patience){best}"
    return ""


def expected_steps(progress: Progress, config: TrainingConfig) -> int:
    """Returns the step at which `max_steps` or `max_minutes` will end training at its mean speed so far.

    This speed is `progress.step` / `progress.seconds`, over the whole run, including the time for validations.
    """
    if config.max_minutes is None:
        return settled(config.max_steps)
    seconds = max(progress.seconds, 1e-9)  # a coarse clock may not have moved since training began
    return min(settled(config.max_steps), round(progress.step * 60 * config.max_minutes / seconds))


def divergence(progress: Progress, config: TrainingConfig, loss_scale: float) -> str:
    """Returns, in words, why training counts as diverged; "" if training has not diverged.

    Training has diverged if the `loss_scale` of fp16 is below 1, or after `max_skipped` skipped updates in a row.
    """
    if loss_scale < 1:
        return f"the gradient of step {progress.step:,} overflows fp16 at any loss scale"
    if progress.skipped_in_row >= config.max_skipped:
        return f"{progress.skipped_in_row} updates in a row, the last at step {progress.step:,}, were not finite"
    return ""


# Plans for max_minutes: the numbers that replace "auto" in settings, and warnings about settings that do not fit.

MOST_VALIDATIONS = 10  # maximum in a plan
VALIDATION_SHARE = 0.1  # maximum fraction of the minutes for validations in a plan with several validations
APART = 10  # minimum number of updates between two validations
WARMUP_SHARE = 0.1  # warm-up as a fraction of the updates
MOST_WARMUP = 4000  # maximum number of updates in warm-up, as in Vaswani et al. (2017)
FEW_UPDATES = 300  # with fewer updates, a model hardly learns to translate
RESERVE = 0.05  # fraction of the minutes that a plan leaves free, in case the machine becomes slower
# A forecast is made after MOST_SEEN updates, or earlier, once SECONDS_SEEN have passed and LEAST_SEEN updates are done.
LEAST_SEEN, MOST_SEEN, SECONDS_SEEN = 3, 50, 3.0
# REVIEWS: after these fractions of max_minutes or of max_steps, whichever comes first, a plan is compared with the
# present speed. MISFIT: the plan is changed only if max_steps is wrong by more than this fraction.
REVIEWS, MISFIT = (0.05, 0.15, 0.35, 0.6, 0.8), 0.1
FALLEN = 0.95  # fraction of max_steps after which the rate of a schedule in ENDING has nearly finished falling


@dataclass(frozen=True)
class Pace:
    """How fast training is on this machine."""

    update: float  # seconds of one update
    validation: float  # seconds of one validation


@dataclass(frozen=True)
class Plan:
    """The numbers that replace "auto" in the settings of a run whose `max_steps` is "auto".

    Checkpoints store these numbers.
    """

    max_minutes: float
    max_steps: int
    warmup_steps: int
    validate_every: int
    save_every: int
    validation: float = 0.0  # seconds of a validation, as expected or last measured; 0 in plans of earlier versions
    reviews: int = 0  # how many of REVIEWS are done

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """Returns a copy of the settings in which the numbers of the plan replace "auto"."""
        names = ("max_steps", *SHARES)
        numbers = {name: value for name, value in asdict(self).items() if name in names}
        return config.model_copy(update={name: n for name, n in numbers.items() if getattr(config, name) == "auto"})

    def told(self, pace: Pace) -> str:
        """Returns the plan in words, together with the measured speed `pace`."""
        return (
            f"{_minutes_are(self.max_minutes)} {self.max_steps:,} updates here ({pace.update:.2g} s each, and "
            f"{pace.validation:.2g} s a validation): {self.warmup_steps:,} of warm-up, a validation every "
            f"{self.validate_every:,}"
        )

    def for_minutes(self, max_minutes: float) -> "Plan":
        """Returns the plan for a run of `max_minutes` instead of the minutes that this plan was made for.

        `max_steps` is scaled in proportion to the minutes; all other numbers stay the same.
        """
        max_steps = max(round(self.max_steps * max_minutes / self.max_minutes), 1)
        return replace(self, max_minutes=max_minutes, max_steps=max_steps)


def make_plan(config: TrainingConfig, pace: Pace, spent: float) -> Plan:
    """Returns the plan for a run of `max_minutes` at the measured speed `pace`.

    `spent` is the number of seconds used before the first update. If `validate_every` is "auto", a number is chosen for
    `validate_every`, and `max_steps` becomes a multiple of this number. Raises ConfigError if `warmup_steps` or
    `decay_steps` is given but too large.
    """
    assert config.max_minutes is not None, "the settings check it"
    seconds = 60 * config.max_minutes * (1 - RESERVE) - spent
    if config.validate_every == "auto":
        fit = math.floor(min(VALIDATION_SHARE * seconds / max(pace.validation, 1e-9), seconds / pace.update / APART))
        validations = min(max(fit, 1), MOST_VALIDATIONS)
        every = max(int((seconds - validations * pace.validation) / (validations * pace.update)), 1)
        max_steps = every * validations
    else:
        every = config.validate_every
        max_steps = int(seconds / (pace.update + pace.validation / every))
    max_steps = max(max_steps, 2)
    settings = with_shares(config.model_copy(update={"max_steps": max_steps, "validate_every": every}))
    warmup_steps = settled(settings.warmup_steps)
    if config.schedule in ENDING and warmup_steps >= max_steps:
        raise ConfigError(
            f"training.warmup_steps {warmup_steps:,} does not fit: {_minutes_are(config.max_minutes)} about "
            f"{max_steps:,} updates here; leave it out, lower it, or raise training.max_minutes"
        )
    if config.decay_steps != "auto" and warmup_steps + config.decay_steps > max_steps:
        raise ConfigError(
            f"training.decay_steps {config.decay_steps:,} does not fit: {_minutes_are(config.max_minutes)} about "
            f"{max_steps:,} updates here, {warmup_steps:,} of them warm-up; leave it out, lower it, or raise "
            "training.max_minutes"
        )
    return Plan(config.max_minutes, max_steps, warmup_steps, every, settled(settings.save_every), pace.validation)


def reviews_due(plan: Plan, step: int, seconds: float) -> int:
    """Returns how many reviews of the plan have become due so far, including the `plan.reviews` that are done.

    A review compares the plan with the present speed. A review becomes due after each of the fractions REVIEWS of
    `max_steps` or of `max_minutes`, whichever comes first. `step` and `seconds` are the number of updates and the time
    of training so far.
    """
    done = max(step / plan.max_steps, seconds / (60 * plan.max_minutes))
    return max(plan.reviews, sum(done >= review for review in REVIEWS))


def reviewed_plan(config: TrainingConfig, plan: Plan, update: float, step: int, seconds: float) -> Plan:
    """Returns the plan for the rest of a run, after a review that compares `plan` with the present speed.

    `config` has the settings as given, with "auto". `update` is the present number of seconds of one update, and
    `seconds` the time that training has taken up to `step`. The field `reviews` becomes the number that `reviews_due`
    returns. The other numbers change only if `max_steps` is wrong by more than the fraction MISFIT. They stay if the
    decay of the schedule wsd has begun. `warmup_steps` also stays if the warm-up is over.
    """
    plan = replace(plan, reviews=reviews_due(plan, step, seconds))
    if config.schedule == "wsd" and step >= decay_start(plan.settings(config)):
        return plan
    left = (60 * plan.max_minutes - seconds) * (1 - RESERVE)
    every = plan.validate_every
    if config.validate_every == "auto" and plan.validation:
        fit = math.floor(min(VALIDATION_SHARE * left / plan.validation, left / update / APART))
        validations = min(max(fit, 1), MOST_VALIDATIONS)
        wanted = max(int((left - validations * plan.validation) / (validations * update)), 1)
        # Checkpoints to be averaged should be evenly spaced, so an interval that is about right stays.
        every = every if wanted / 2 <= every <= wanted * 2 else wanted
    steps = step + int(left / (update + plan.validation / every))
    least = max(step + 1, plan.warmup_steps + 1 + (0 if config.decay_steps == "auto" else config.decay_steps))
    steps = max(steps, least)
    if config.validate_every == "auto":
        steps = max(steps // every, math.ceil(least / every)) * every
    if abs(steps - plan.max_steps) <= MISFIT * plan.max_steps:
        return plan
    settings = with_shares(config.model_copy(update={"max_steps": steps, "validate_every": every}))
    warmup_steps = max(settled(settings.warmup_steps), step) if step < plan.warmup_steps else plan.warmup_steps
    return replace(
        plan, max_steps=steps, warmup_steps=warmup_steps, validate_every=every, save_every=settled(settings.save_every)
    )


def with_shares(config: TrainingConfig) -> TrainingConfig:
    """Returns a copy of the settings, in which numbers replace "auto" in the settings named in `SHARES`.

    The numbers for `warmup_steps` and `validate_every` are fractions of `max_steps`. The number for `save_every` is
    that of `validate_every`.
    """
    max_steps = settled(config.max_steps)
    every = math.ceil(max_steps / MOST_VALIDATIONS) if config.validate_every == "auto" else config.validate_every
    shares = {
        "warmup_steps": min(max(round(WARMUP_SHARE * max_steps), 1), MOST_WARMUP),
        "validate_every": every,
        "save_every": every,
    }
    return config.model_copy(update={name: value for name, value in shares.items() if getattr(config, name) == "auto"})


class Forecast:
    """Reports how many updates fit into `max_minutes`, as soon as the speed of training is known.

    If `max_steps` updates fit, nothing is reported. Otherwise, a warning is printed if the updates that fit are too few
    for warm-up, for a validation or for the schedule. With `is_planned=True`, nothing is reported, since `max_steps`
    was chosen to fit.
    """

    def __init__(self, config: TrainingConfig, is_planned: bool = False) -> None:
        self._config = config
        self._first: tuple[int, float] | None = None  # the step and the seconds of the first call of `see`
        self._is_told = config.max_minutes is None or is_planned

    def begin(self, step: int) -> None:
        """Warn if `max_steps` is too small for other settings; to be called when training begins or resumes.

        If `max_minutes` is given, this method does not warn, since `see` may warn later. `step` is the number of
        updates done so far.
        """
        if self._config.max_minutes is None and step < settled(self._config.max_steps):
            _warn(f"{settled(self._config.max_steps):,} updates", self._config, settled(self._config.max_steps))

    def see(self, step: int, seconds: float) -> None:
        """Note the time of update number `step`, and report once the speed is known; to be called after each update.

        `seconds` is the time that training has taken so far. The forecast is reported at most once.
        """
        if self._is_told or self._config.max_minutes is None:
            return
        if self._first is None:
            self._first = step, seconds
        first, since = self._first
        if step - first < LEAST_SEEN or (seconds - since < SECONDS_SEEN and step - first < MOST_SEEN):
            return
        self._is_told = True
        update = max(seconds - since, 1e-9) / (step - first)
        last = step + max(int((60 * self._config.max_minutes - seconds) / update), 0)
        max_steps = settled(self._config.max_steps)
        if last < max_steps:
            told = f"{_minutes_are(self._config.max_minutes)} about {last:,} updates here"
            if not _warn(told, self._config, last):
                say(f"{told}; {_shares(self._config, update)}")


def shortcomings(config: TrainingConfig, last_step: int) -> list[str]:
    """Returns, in words, which settings do not fit a training run that ends at `last_step`; [] if all settings fit."""
    warmup, every, max_steps = map(settled, (config.warmup_steps, config.validate_every, config.max_steps))
    found = []
    if warmup > 1 and last_step <= warmup:
        found.append(f"the learning rate is still rising at the end (training.warmup_steps {warmup:,})")
    if last_step < every:
        found.append(f"there is no validation before the last one (training.validate_every {every:,})")
    if config.schedule in ENDING and last_step < FALLEN * max_steps:
        found.append(f"the {config.schedule} schedule has not come down (training.max_steps {max_steps:,})")
    return found


def advice(config: TrainingConfig) -> str:
    """Returns advice for a warning: to give the run more time or updates, or to change settings that do not fit."""
    if config.max_minutes is None:
        return "Raise training.max_steps, or lower the others"
    if config.max_steps == "auto":
        fixed = [name for name in SHARES if getattr(config, name) != "auto"]
        if fixed:
            return f"Raise training.max_minutes, or leave out {' and '.join(fixed)}, which are auto then"
        return (
            "Updates or validations took longer than those that were timed at the beginning, as on a machine that "
            "others use too; start anew with --fresh, which times them again"
        )
    return (
        "Raise training.max_minutes, or set training.max_steps to auto and leave out warmup_steps, validate_every and "
        "save_every, which are fitted to the minutes then"
    )


def _shares(config: TrainingConfig, update_seconds: float) -> str:
    """Returns the part of the forecast that says how many updates warm-up takes and when the first validation comes."""
    every = settled(config.validate_every)
    first = f"the first validation comes after {_in_minutes(every * update_seconds / 60)}"
    return f"warm-up takes {settled(config.warmup_steps):,} of them, and {first}"


def _warn(told: str, config: TrainingConfig, last_step: int) -> bool:
    """Warn if a training run that ends at `last_step` is too short for its settings; returns whether it is too short.

    The warning begins with `told`, which says how many updates there are.
    """
    found = shortcomings(config, last_step)
    if found:
        say(f"mtkit: warning: {told}, which is not enough: {'; '.join(found)}. {advice(config)}")
    return bool(found)


def _minutes_are(minutes: float) -> str:
    """Returns the minutes in words, with a verb: "3 minutes are", "1 minute is"."""
    told = _in_minutes(minutes)
    return f"{told} {'is' if told.startswith('1 ') else 'are'}"


def _in_minutes(minutes: float) -> str:
    """Returns the minutes in words: "30 seconds", "1 minute", "2.5 minutes"."""
    if minutes < 1:
        return counted(round(60 * minutes), "second")
    amount = f"{minutes:.1f}".removesuffix(".0") if minutes < 10 else f"{round(minutes):,}"
    return "1 minute" if amount == "1" else f"{amount} minutes"
