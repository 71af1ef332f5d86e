"""How the learning rate moves with the updates, counted from 1."""

from collections.abc import Callable

from mtkit.config.settings import TrainingConfig


def noam(step: int, config: TrainingConfig, d_model: int) -> float:
    """The factor x d_model^-0.5 x min(step^-0.5, step x warmup^-1.5) (Vaswani et al. 2017, equation 3).

    The paper's factor is 1; a learning_rate is the peak, factor = learning_rate x sqrt(d_model x warmup_steps).
    """
    warmup = max(config.warmup_steps, 1)
    factor = 1.0 if config.learning_rate is None else config.learning_rate * (d_model * warmup) ** 0.5
    return float(factor * d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))


def inverse_sqrt(step: int, config: TrainingConfig, d_model: int) -> float:
    """A linear rise to the peak, then peak x sqrt(warmup / step), as in fairseq."""
    warmup = max(config.warmup_steps, 1)
    return float(_peak(config) * min(step / warmup, (warmup / step) ** 0.5))


def constant(step: int, config: TrainingConfig, d_model: int) -> float:
    """A linear rise to the peak, which then stays."""
    return _peak(config) * min(1.0, step / max(config.warmup_steps, 1))


def _peak(config: TrainingConfig) -> float:
    assert config.learning_rate is not None, "the settings check it"
    return config.learning_rate


SCHEDULES: dict[str, Callable[[int, TrainingConfig, int], float]] = {
    "noam": noam,
    "inverse_sqrt": inverse_sqrt,
    "constant": constant,
}


def learning_rate(step: int, config: TrainingConfig, d_model: int) -> float:
    """Of update number step, from 1."""
    return SCHEDULES[config.schedule](step, config, d_model)
