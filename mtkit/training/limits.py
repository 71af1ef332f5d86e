"""When training saves, and when it ends: at a limit on updates, minutes or validations, or in divergence."""

from collections.abc import Sequence

from mtkit.config.training_settings import TrainingConfig, settled
from mtkit.messages import counted
from mtkit.training.checkpoint import Change, Progress, setting_at


def saves_at(step: int, config: TrainingConfig, changes: Sequence[Change]) -> bool:
    """Whether a checkpoint was due after so many updates, by the settings of then.

    One made because the run was stopped is not averaged.
    """
    return any(
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
        best = f" than that of step {progress.best_step:,}" if progress.best_step else ""
        validations = counted(progress.bad_validations, "validation")
        return f"no better {config.select_by} in {validations} (training.patience){best}"
    return ""


def expected_steps(progress: Progress, config: TrainingConfig) -> int:
    """Where training will end if it goes on at this pace, by the limits on steps and minutes."""
    if config.max_minutes is None:
        return settled(config.max_steps)
    return min(settled(config.max_steps), round(progress.step * 60 * config.max_minutes / progress.seconds))


def divergence(progress: Progress, config: TrainingConfig) -> str:
    """What tells that no update brings training forward any more; nothing while it goes on."""
    if progress.loss_scale < 1:
        return f"the gradient of step {progress.step:,} overflows fp16 at any loss scale"
    if progress.skipped_in_row >= config.max_skipped:
        return f"{progress.skipped_in_row} updates in a row, the last at step {progress.step:,}, were not finite"
    return ""
