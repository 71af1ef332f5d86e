"""Muon: orthogonalised momentum updates for hidden matrices, Adam for all other weights."""

# M matrices of one shape, A rows, B columns, A <= B.

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# The polynomial a x + b x^3 + c x^5 that is applied to the singular values, and how many times (Jordan 2024).
COEFFICIENTS, ITERATIONS = (3.4445, -4.775, 2.0315), 5
EPSILON = 1e-7
MOMENTUM = 0.95  # as in Jordan (2024)
RMS = 0.2  # of an update's entries, about that of Adam's, so that one learning rate suits both (Liu et al. 2025)
GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Muon(torch.optim.Adam):
    """Adam that orthogonalises the updates of hidden matrices.

    After Jordan (2024), https://kellerjordan.github.io/posts/muon, with Nesterov momentum. A matrix that stacks several
    (queries, keys and values; gates) is split into blocks of rows, and each is orthogonalised separately. Updates are
    scaled by 0.2 sqrt(max(rows, columns)), as in Liu et al. (2025, arXiv:2502.16982), so that learning rates that suit
    Adam suit them, too.
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
        """An optimizer for all parameters of a model, with decoupled weight decay.

        betas and eps are those of Adam. The learning rate of hidden matrices is to be multiplied by matrix_rate, which
        is the entry "rate" of their parameter group.
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
        """Update all parameters by their gradients."""
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
    """Return the matrices between hidden states, and of how many blocks of rows each consists.

    Embeddings, positions and the output layer are none; neither is what has only one row.
    """
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        blocks: Mapping[str, int] = getattr(module, "BLOCKS", {})
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and min(child.weight.shape) > 1:
                found[child.weight] = blocks.get(name, 1)
        if isinstance(module, nn.RNNBase):
            weights = [parameter for name, parameter in module.named_parameters() if name.startswith("weight_")]
            found.update(dict.fromkeys(weights, GATES[type(module)]))
    return found


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices (M, A, B), A <= B, with about the same singular vectors and singular values near 1.

    By Newton and Schulz's iteration on all at once, in bf16 on a GPU; singular values end between 0.68 and 1.13.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPSILON)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
