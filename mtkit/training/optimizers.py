"""Optimizers (Adam, AdamW, SGD, Muon, schedule-free AdamW), their state in checkpoints, and averages of the weights.

Shapes: M matrices of the same shape, with A rows and B columns.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import unwrap
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtkit.config.training_settings import TrainingConfig

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

        The decay is the smaller of `decay` and (1 + `step`) / (10 + `step`), so that the first weights are soon
        forgotten, as in TensorFlow's ExponentialMovingAverage and in Marian.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.tensors, list(self._parameters.values()), 1 - decay)


# The optimizers of PyTorch, without its compiler.


class Uncompiled(torch.optim.Optimizer):
    """Methods of PyTorch's optimizers without the wrappers that hide them from its compiler.

    At their first call, the wrappers import the compiler, which takes seconds. mtkit compiles layers, if at all.
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

# To orthogonalise a matrix, the polynomial a x + b x^3 + c x^5 is applied to its singular values several times (Jordan
# 2024). COEFFICIENTS are a, b and c; ITERATIONS is how many times the polynomial is applied.
COEFFICIENTS, ITERATIONS = (3.4445, -4.775, 2.0315), 5
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
        for all other parameters. `matrix_rate` is a factor of the learning rate of hidden matrices: it is stored as
        "rate" in their parameter group, and `Updater.update` applies it.
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
        """Update all parameters from their gradients."""
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
            if not self.state[parameter]:  # Adam expects each state that is loaded to have a step
                self.state[parameter] = {"step": torch.zeros(()), "matrix_momentum": torch.zeros_like(parameter)}
        torch._foreach_add_([self.state[parameter]["step"] for parameter in parameters], 1)
        momenta = [self.state[parameter]["matrix_momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Matrices of one shape together: one by one, most of the time would be spent on starting small products.
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for (parameter, blocks), update in zip(trained, updates, strict=True):
            for weight, change in zip(parameter.chunk(blocks), update.chunk(blocks), strict=True):
                is_tall = weight.shape[0] > weight.shape[1]
                pair = (weight.T, change.T) if is_tall else (weight, change)
                by_shape[pair[0].shape].append(pair)
        for shape, pairs in by_shape.items():
            orthogonal = orthogonalized(torch.stack([change for _, change in pairs]))
            size = RMS * max(shape) ** 0.5
            torch._foreach_add_([weight for weight, _ in pairs], list(orthogonal.unbind()), alpha=-group["lr"] * size)


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Returns the matrices of a model's linear layers and recurrent cells, and of how many blocks each matrix consists.

    A matrix that stacks several matrices of equal size, such as those for queries, keys and values, has one block of
    rows for each stacked matrix. Every other matrix is one block. Embeddings and the output layer are not hidden
    matrices, and neither is a matrix with only one row or column.
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


def orthogonalized(matrices: Tensor) -> Tensor:
    """Returns matrices with the singular vectors of `matrices`, (M, A, B), and singular values near 1.

    A must be at most B. The Newton-Schulz iteration runs on all matrices at once, in the precision of autocast if
    autocast is enabled, else in fp32. The new singular values lie between 0.68 and 1.13, with one exception: singular
    values that were less than about a thousandth of the norm of their matrix may stay below 0.68.
    """
    a, b, c = COEFFICIENTS
    device = matrices.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    x = (matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + EPSILON)).to(dtype)
    with torch.autocast(device, enabled=False):
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    orthogonal: Tensor = x.to(matrices.dtype)
    return orthogonal


# Groups of parameters with the same weight decay.

Groups = list[dict[str, Any]]


def parameter_groups(model: nn.Module, config: TrainingConfig) -> Groups:
    """Returns the parameters of a model in one or two groups, each with its weight decay.

    If the setting `weight_decay_of` is "matrices", the first group has the hidden matrices, and the second has all
    other parameters, whose weight decay is 0.
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
        """Makes an optimizer for all parameters of a model; `parameter_groups` has split them into `groups`."""
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
    """Returns Adam (Kingma & Ba 2015); the product of weight decay and weights is added to the gradient."""
    return Adam(parameter_groups(model, config), 0.0, config.adam_betas, config.adam_eps, fused=fused)


def adamw(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Returns AdamW (Loshchilov & Hutter 2019); the weights are reduced by learning rate x weight decay x weights."""
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

    Every optimizer can load an empty dict. The state of sgd is momentum. The state of adam and adamw consists of
    averages of the gradient and of its square. The state of muon consists of momentum for hidden matrices, and of the
    same averages as in adam for all other parameters. The state of schedule_free includes the weights z.
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
