"""One update of the weights: gradient, clipping, optimizer, loss scaling, moving average."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mtkit.bundle.checkpoints import FIRST_SCALE, Progress, Update
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Batch
from mtkit.errors import is_out_of_memory, say
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import mixed_precision
from mtkit.models.transformer import recompute_layers
from mtkit.training.compiling import compile_layers, is_compiled
from mtkit.training.distributed import ALONE, GradientSum, Ranks
from mtkit.training.loss import OBJECTIVES
from mtkit.training.optimizers import AveragedWeights

# Loss scaling, which keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018, section 3.2).


class LossScaler:
    """PyTorch's dynamic loss scale: an overflow halves it; 2,000 updates in a row without an overflow double it.

    In precisions other than fp16, this class does nothing. Checkpoints store the scale and the number of updates since
    the scale changed.
    """

    def __init__(self, device: torch.device, precision: str, scale: float, updates: int) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": scale, "_growth_tracker": updates})

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns the loss multiplied by the scale; `backward` is to be called on this product."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale; to be called once in each update, before the gradients are read."""
        self._scaler.unscale_(optimizer)

    def adapt(self) -> None:
        """Lower the scale if `unscale` found an overflow; raise it after 2,000 updates without an overflow."""
        self._scaler.update()

    @property
    def scale(self) -> float:
        """The current scale; in precisions other than fp16, this is always FIRST_SCALE and has no effect."""
        return self.state[0]

    @property
    def state(self) -> tuple[float, int]:
        """What a checkpoint stores: the scale, and the number of updates since the scale changed.

        In precisions other than fp16, the two are always FIRST_SCALE and 0.
        """
        if not self._scaler.is_enabled():
            return FIRST_SCALE, 0
        state = self._scaler.state_dict()
        return state["scale"], state["_growth_tracker"]


# The update.


@dataclass
class TrainState:
    """Everything that changes during training; a checkpoint holds all of it."""

    model: TranslationModel
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    average: AveragedWeights | None = None


class Updater:
    """Updates the weights of a model, one step of the optimizer at a time."""

    def __init__(
        self,
        state: TrainState,
        settings: TrainingConfig,
        scaler: LossScaler,
        ranks: Ranks = ALONE,
        splits: bool = False,
    ) -> None:
        if settings.recompute:
            recompute_layers(state.model)
        if is_compiled(settings, state.model.device, state.progress.precision):
            compile_layers(state.model, settings, state.progress.precision)
        self.splits = splits
        self.state = state
        self.settings = settings
        self.scaler = scaler
        self.ranks = ranks
        self._gradients = GradientSum(state.model, ranks) if ranks.are_many else None
        self.batch: Batch | None = None  # the current batch: if memory runs out, the error message says its shape

    def update(self, batches: Sequence[Batch], step: int, rate: float, tokens: int | None = None) -> Update:
        """Make update number `step` with learning rate `rate`; returns the statistics of the update.

        The loss is summed over all batches of all ranks, then divided by the number of target tokens in these batches.
        If the loss or the gradient is not finite, the weights stay unchanged. `tokens` is the number of these target
        tokens; without it, the ranks count them.

        If memory runs out in a forward or backward pass, and the object was made with `splits=True`, the gradient is
        computed anew from the two halves of each batch, if need be from the halves of these, down to single rows; a
        warning says so. Other ranks wait meanwhile. Dropout then draws other numbers, since it draws them for a whole
        batch at once; gradients that this rank had sent to the others by then are still of the first draw. The gradient
        has the same expected value all the same. Otherwise, the error of PyTorch is raised.
        """
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        if tokens is None:
            tokens = int(self.ranks.sums([sum(batch.target_tokens for batch in batches)])[0])
        parts = list(batches)
        while (computed := self._passes_if_memory_lasts(parts, step, tokens)) is None:
            if self._gradients:
                self._gradients.begin_again()
            state.optimizer.zero_grad(set_to_none=True)
            if state.model.device.type == "cuda":
                torch.cuda.empty_cache()
            whole = max(parts, key=lambda batch: batch.target.ids.numel())
            parts = [half for batch in parts for half in (batch.halves() if len(batch.labels) > 1 else (batch,))]
            say(
                f"mtkit: warning: out of memory in step {step:,}, with {len(whole.labels):,} rows of "
                f"{whole.source.ids.shape[1]:,} source and {whole.target.ids.shape[1]:,} target tokens; the gradient "
                "is computed from smaller batches instead. With a lower training.batch_tokens, no time is lost",
                always=True,  # since the other ranks may have more memory
            )
        total, padding = computed
        if self._gradients:
            total, padding = self._gradients.finish(total, padding)
        return self._step(total, padding, tokens, step, rate)

    def _passes_if_memory_lasts(self, batches: Sequence[Batch], step: int, tokens: int) -> tuple[Tensor, float] | None:
        """Returns what `_passes` returns, or `None` if memory runs out and the batches can be divided."""
        try:
            return self._passes(batches, step, tokens)
        except (MemoryError, RuntimeError) as error:
            if not self.splits or not is_out_of_memory(error) or all(len(batch.labels) == 1 for batch in batches):
                raise
        return None  # not in the except block: until that ends, the error keeps the tensors of the passes in memory

    def _passes(self, batches: Sequence[Batch], step: int, tokens: int) -> tuple[Tensor, float]:
        """Computes the gradient of loss / `tokens`; returns the losses and the padding.

        The losses are `BatchLoss.sums`, summed over the batches. The padding is the fraction of positions that are
        padding, the mean over the batches.
        """
        state, settings = self.state, self.settings
        sums = []
        for number, batch in enumerate(batches):
            self.batch = batch
            # Each batch has a seed of its own, so that checkpoints need not hold a random state. The ranks take the
            # batches in turn, so this is the number of the batch in the update, as in a process that is alone.
            place = number * self.ranks.count + self.ranks.rank
            seed_device(state.model.device, random_seed(settings.seed, step, place))
            if self._gradients and number == len(batches) - 1:
                self._gradients.begin()
            with mixed_precision(state.model.device, state.progress.precision):
                loss = OBJECTIVES[settings.consistency](state.model, batch.to(state.model.device), settings)
            self.scaler.scaled(loss.total / tokens).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sums)
        return torch.stack(sums).sum(0), sum(batch.padding for batch in batches) / len(batches)

    def _step(self, total: Tensor, padding: float, tokens: int, step: int, rate: float) -> Update:
        """Changes the weights by the gradient that was computed; returns the statistics of the update."""
        state, settings = self.state, self.settings
        self.scaler.unscale(state.optimizer)
        gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
        device_norm = nn.utils.get_total_norm(gradients)
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), settings.clip_norm, device_norm)
        # All that is read from the device in an update, at once: reading waits until the device has done its work.
        smoothed, nll, *consistency, norm = torch.cat([total, device_norm[None]]).tolist()
        update = Update(smoothed, nll, tokens, norm, rate, padding, *consistency)
        if update.is_finite:
            with mixed_precision(state.model.device, state.progress.precision):  # for muon's matrix products
                state.optimizer.step()
            if state.average is not None:
                state.average.update(step)
        self.scaler.adapt()
        state.optimizer.zero_grad(set_to_none=True)
        return update


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the random numbers that a forward pass on `device` draws."""
    if device.type == "cpu":
        # torch.manual_seed seeds every kind of device, and formats the call stack for each one that is not in use.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def random_seed(seed: int, step: int, micro_batch: int) -> int:
    """Returns the seed for the forward pass of one batch.

    The seed depends on the arguments alone, so a resumed run draws the same random numbers as an uninterrupted one.
    """
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
