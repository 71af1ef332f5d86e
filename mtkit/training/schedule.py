"""How the learning rate moves with the updates, counted from 1.

lowered is how many times validations that brought nothing better have lowered it; only plateau asks for it.
"""

import math
from collections.abc import Callable

from mtkit.config.training_settings import TrainingConfig, settled


def noam(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """The factor x d_model^-0.5 x min(step^-0.5, step x warmup^-1.5) (Vaswani et al. 2017, equation 3).

    The paper's factor is 1; a learning_rate is the peak, factor = learning_rate x sqrt(d_model x warmup_steps).
    """
    warmup = max(settled(config.warmup_steps), 1)
    factor = 1.0 if config.learning_rate is None else config.learning_rate * (d_model * warmup) ** 0.5
    return float(factor * d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))


def inverse_sqrt(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """A linear rise to the peak, then peak x sqrt(warmup / step), as in fairseq."""
    warmup = max(settled(config.warmup_steps), 1)
    return float(_peak(config) * min(step / warmup, (warmup / step) ** 0.5))


def constant(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """A linear rise to the peak, which then stays."""
    return _peak(config) * _warmth(step, config)


def linear(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """A linear rise to the peak, then a line to final_learning_rate at max_steps."""
    final, left = config.final_learning_rate, 1 - _share_done(step, config)
    return min(_peak(config) * _warmth(step, config), final + (_peak(config) - final) * left)


def cosine(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """A linear rise to the peak, then half a cosine to final_learning_rate at max_steps.

    Loshchilov & Hutter 2017, equation 5, without restarts.
    """
    final, share = config.final_learning_rate, _share_done(step, config)
    left = (1 + math.cos(math.pi * share)) / 2
    return min(_peak(config) * _warmth(step, config), final + (_peak(config) - final) * left)


def plateau(step: int, config: TrainingConfig, d_model: int, lowered: int) -> float:
    """A linear rise to the peak, which is multiplied by plateau_factor each time, down to final_learning_rate."""
    rate = max(_peak(config) * config.plateau_factor**lowered, config.final_learning_rate)
    return rate * _warmth(step, config)


def _peak(config: TrainingConfig) -> float:
    assert config.learning_rate is not None, "the settings check it"
    return config.learning_rate


def _warmth(step: int, config: TrainingConfig) -> float:
    """How far warm-up is, from 0 to 1."""
    return min(1.0, step / max(settled(config.warmup_steps), 1))


def _share_done(step: int, config: TrainingConfig) -> float:
    """How far the way from the end of warm-up to max_steps is gone, from 0 to 1."""
    warmup = max(settled(config.warmup_steps), 1)
    return min(max(step - warmup, 0) / (settled(config.max_steps) - warmup), 1.0)


SCHEDULES: dict[str, Callable[[int, TrainingConfig, int, int], float]] = {
    "noam": noam,
    "inverse_sqrt": inverse_sqrt,
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "plateau": plateau,
}

# Schedules that end at max_steps: it decides every rate, so it may not change midway.
ENDING = {"linear", "cosine"}


def learning_rate(step: int, config: TrainingConfig, d_model: int, lowered: int = 0) -> float:
    """Of update number step, from 1."""
    return SCHEDULES[config.schedule](step, config, d_model, lowered)


def lowers_rate(stale: int, config: TrainingConfig, lowered: int) -> bool:
    """Whether so many validations since the best one, or since the rate was lowered, lower it now.

    Never at the floor. JoeyNMT's plateau, which is PyTorch's, waits for one validation more than its patience.
    """
    return (
        config.schedule == "plateau"
        and stale >= config.plateau_patience
        and _peak(config) * config.plateau_factor**lowered > config.final_learning_rate
    )
