"""How fast training is on this machine, measured before it begins on a copy of the model that is thrown away."""

import copy
import time
from itertools import islice

import torch
from torch import nn

from mtkit.feed import Feed
from mtkit.models.device import mixed_precision
from mtkit.models.interface import TranslationModel
from mtkit.objective import OBJECTIVES
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.budget import Pace
from mtkit.training.checkpoint import Progress
from mtkit.training.optimizer import make_optimizer
from mtkit.training.stop import Stop
from mtkit.validation import Validation

LEAST, MOST = 3, 50  # updates that are timed, after one that is not
SHARE, LONGEST = 0.03, 60.0  # of the minutes, and seconds, that measuring takes unless a few updates take longer


def measure_pace(
    model: TranslationModel, feed: Feed, validation: Validation, tokenizer: Tokenizer, progress: Progress, stop: Stop
) -> Pace:
    """Seconds of an update and of a validation, by the first batches of a run; model and progress stay as they are."""
    update = _update_seconds(model, feed, progress, stop)
    return Pace(update, validation.expected_seconds(model, tokenizer, stop))


def _update_seconds(model: TranslationModel, feed: Feed, progress: Progress, stop: Stop) -> float:
    """The mean over some updates; the first one, in which memory is set up, does not count."""
    settings, device = feed.config.training, model.device
    trial = copy.deepcopy(model)
    optimizer = make_optimizer(trial.parameters(), settings, device)
    longest = min(60 * (settings.max_minutes or 1) * SHARE, LONGEST)
    begun = time.monotonic()
    with feed.batches(progress) as stream:
        for done in range(MOST + 1):
            stop.check()
            batches = [batch for _, parts in islice(stream, settings.accumulate) for batch in parts]
            tokens = sum(batch.target_tokens for batch in batches)
            for batch in batches:
                with mixed_precision(device, progress.precision):
                    loss = OBJECTIVES[settings.consistency](trial, batch.to(device), settings)
                (loss.total / tokens).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trial.parameters(), 1.0).item()  # which waits for the device
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not done:
                begun = time.monotonic()
            elif done >= LEAST and time.monotonic() - begun >= longest:
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - begun) / done
