"""How long training goes on and how fast: learning-rate schedules, limits, minutes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from mtkit.bundle.checkpoints import Change, Progress, setting_at
from mtkit.config.training_settings import SHARES, TrainingConfig, settled
from mtkit.errors import ConfigError, counted, say


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


# When training saves, and when it ends: at a limit on updates, minutes or validations, or in divergence.


def saves_at(step: int, config: TrainingConfig, changes: Sequence[Change]) -> bool:
    """Whether a checkpoint was due after so many updates, by the settings of then.

    One made because the run was stopped is not averaged.
    """
    return step > 0 and any(
        step % setting_at(changes, f"training.{name}", step, getattr(config, name)) == 0
        for name in ("save_every", "validate_every")
    )


def reason_to_end(progress: Progress, config: TrainingConfig) -> str:
    """Which limit is reached; nothing while none is."""
    if progress.step >= settled(config.max_steps):
        return f"training.max_steps {settled(config.max_steps):,} is reached"
    if config.max_minutes is not None and progress.seconds >= 60 * config.max_minutes:
        return f"training.max_minutes {config.max_minutes:g} is reached"
    if config.patience is not None and progress.bad_validations >= config.patience:
        best = f" than that of step {progress.best_step:,}" if progress.has_best else ""
        validations = counted(progress.bad_validations, "validation")
        return f"no better {config.select_by} in {validations} (training.patience){best}"
    return ""


def expected_steps(progress: Progress, config: TrainingConfig) -> int:
    """Where training will end if it goes on at this pace, by the limits on steps and minutes."""
    if config.max_minutes is None:
        return settled(config.max_steps)
    return min(settled(config.max_steps), round(progress.step * 60 * config.max_minutes / progress.seconds))


def divergence(progress: Progress, config: TrainingConfig, loss_scale: float) -> str:
    """What tells that no update brings training forward any more; nothing while it goes on."""
    if loss_scale < 1:
        return f"the gradient of step {progress.step:,} overflows fp16 at any loss scale"
    if progress.skipped_in_row >= config.max_skipped:
        return f"{progress.skipped_in_row} updates in a row, the last at step {progress.step:,}, were not finite"
    return ""


# What fits into the minutes of a run: the numbers that auto settings stand for, and warnings of what does not fit.

MOST_VALIDATIONS = 10  # in a plan
VALIDATION_SHARE = 0.2  # of the minutes, at most, that validations take in a plan, unless that leaves none
APART = 10  # updates from one validation to the next, at least
WARMUP_SHARE = 0.1  # of the updates
MOST_WARMUP = 4000  # updates, as in Vaswani et al. (2017)
FEW_UPDATES = 300  # fewer leave a model that translates next to nothing
RESERVE = 0.1  # of the minutes, for a machine that becomes slower
LEAST_SEEN, MOST_SEEN, SECONDS_SEEN = 3, 50, 3.0  # updates, and seconds of them, by which the speed is known
FALLEN = 0.95  # share of max_steps after which a schedule that ends there is as good as down


@dataclass(frozen=True)
class Pace:
    """How fast training is on this machine."""

    update: float  # seconds of one update
    validation: float  # seconds of one validation


@dataclass(frozen=True)
class Plan:
    """What was fixed for a run whose max_steps is auto. It is kept in every checkpoint."""

    max_minutes: float
    max_steps: int
    warmup_steps: int
    validate_every: int
    save_every: int

    def settings(self, config: TrainingConfig) -> TrainingConfig:
        """The settings with these numbers where they say auto."""
        numbers = {name: value for name, value in asdict(self).items() if getattr(config, name) == "auto"}
        return config.model_copy(update=numbers)

    def told(self, pace: Pace) -> str:
        """The plan in words."""
        return (
            f"{_minutes_are(self.max_minutes)} {self.max_steps:,} updates here ({pace.update:.2g} s each, and "
            f"{pace.validation:.2g} s a validation): {self.warmup_steps:,} of warm-up, a validation every "
            f"{self.validate_every:,}"
        )

    def for_minutes(self, max_minutes: float) -> "Plan":
        """The same for other minutes: max_steps changes as they do, and nothing else."""
        max_steps = max(round(self.max_steps * max_minutes / self.max_minutes), 1)
        return replace(self, max_minutes=max_minutes, max_steps=max_steps)


def make_plan(config: TrainingConfig, pace: Pace, spent: float) -> Plan:
    """The plan for a run of max_minutes, of which spent seconds are needed before its first update.

    The last validation comes with the last update. Raises ConfigError if a given warmup_steps does not fit.
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
    return Plan(config.max_minutes, max_steps, warmup_steps, every, settled(settings.save_every))


def with_shares(config: TrainingConfig) -> TrainingConfig:
    """The settings with shares of max_steps where warmup_steps, validate_every and save_every are auto."""
    max_steps = settled(config.max_steps)
    every = math.ceil(max_steps / MOST_VALIDATIONS) if config.validate_every == "auto" else config.validate_every
    shares = {
        "warmup_steps": min(max(round(WARMUP_SHARE * max_steps), 1), MOST_WARMUP),
        "validate_every": every,
        "save_every": every,
    }
    return config.model_copy(update={name: value for name, value in shares.items() if getattr(config, name) == "auto"})


class Forecast:
    """Tells once, as soon as the speed is known, how far the minutes reach, and what does not fit into them.

    Where the updates were planned for the minutes there is nothing to tell.
    """

    def __init__(self, config: TrainingConfig, is_planned: bool = False) -> None:
        self._config = config
        self._first: tuple[int, float] | None = None  # the first step that was seen, and its seconds
        self._is_told = config.max_minutes is None or is_planned

    def begin(self, step: int) -> None:
        """Training goes on from a step; where no minutes end it, all is known already."""
        if self._config.max_minutes is None and step < settled(self._config.max_steps):
            _warn(f"{settled(self._config.max_steps):,} updates", self._config, settled(self._config.max_steps))

    def see(self, step: int, seconds: float) -> None:
        """Called after each update, with its step and the seconds of training so far."""
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
    """What a training that ends at last_step is too short for; empty if all fits."""
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
    """How to give a run enough time, or settings that fit into its time."""
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
    """How warm-up and validations lie in the updates, where all of them fit."""
    every = settled(config.validate_every)
    first = f"the first validation comes after {_in_minutes(every * update_seconds / 60)}"
    return f"warm-up takes {settled(config.warmup_steps):,} of them, and {first}"


def _warn(told: str, config: TrainingConfig, last_step: int) -> bool:
    """Warn if a training that ends at last_step is too short for its settings; returns whether it is."""
    found = shortcomings(config, last_step)
    if found:
        say(f"mtkit: warning: {told}, which is not enough: {'; '.join(found)}. {advice(config)}")
    return bool(found)


def _minutes_are(minutes: float) -> str:
    """3 minutes are, 1 minute is."""
    told = _in_minutes(minutes)
    return f"{told} {'is' if told.startswith('1 ') else 'are'}"


def _in_minutes(minutes: float) -> str:
    """A time limit as people say it: 30 seconds, 1 minute, 2.5 minutes."""
    if minutes < 1:
        return counted(round(60 * minutes), "second")
    amount = f"{minutes:.1f}".removesuffix(".0") if minutes < 10 else f"{round(minutes):,}"
    return "1 minute" if amount == "1" else f"{amount} minutes"
