"""A moving average of the weights, kept beside them while they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
