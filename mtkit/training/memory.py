"""Memory: what a device has, what work takes at its peak, and the largest batch that fits."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from mtkit.bundle.checkpoints import Progress
from mtkit.config.training_settings import LEAST_BATCH_TOKENS, settled
from mtkit.data.batches import ORDER, Batch, Feed, PlannedBatch, batches_from, batching_of, made_batch
from mtkit.errors import MtkitError, is_out_of_memory
from mtkit.files import Stop
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import return_freed_memory
from mtkit.training.distributed import ALONE, Ranks
from mtkit.training.optimizers import make_optimizer
from mtkit.training.update import LossScaler, TrainState, Updater
from mtkit.translation.workers import free_memory

# What there is, and what was used.


def peak_memory(device: torch.device) -> int | None:
    """Returns the largest amount of memory used so far, in bytes; `None` if the system does not tell.

    On a GPU, this is the memory of the GPU that tensors took; otherwise, the resident memory of this process, which
    includes Python, PyTorch and the memory-mapped weights.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not by getrusage, whose peak includes that of the process that started this one.
    return _own_memory("VmHWM:")


def forget_peak(device: torch.device) -> None:
    """Measure the peak of memory anew from now on, where the system allows it.

    Memory that earlier work has freed does not count.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: resets VmHWM


def resident_memory() -> int | None:
    """Returns the memory that this process has now, in bytes; `None` if the system does not tell."""
    return _own_memory("VmRSS:")


def _own_memory(name: str) -> int | None:
    try:
        words = Path("/proc/self/status").read_text(encoding="utf-8").split()
    except OSError:
        return None
    return int(words[words.index(name) + 1]) * 1024 if name in words else None


def memory_at_hand(device: torch.device, num_processes: int = 1) -> int | None:
    """Returns the memory of the device that this process has or could have, in bytes.

    On a CPU, `num_processes` share what is free. Returns `None` if the system does not tell its memory.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_allocated(device)
    own = resident_memory()
    return None if device.type != "cpu" or own is None else free_memory() // num_processes + own


# The largest batches of a training.

PLANNED_BATCHES = 5000  # among which the largest are sought

# What the memory of an update grows with: positions, or the scores of attention between the positions of a row; by
# numbers of rows, and lengths of source and target.
SIZES: tuple[Callable[[int, int, int], int], ...] = (
    lambda rows, source, target: rows * (source + target),
    lambda rows, source, target: rows * max(source, target) ** 2,
)


def largest_batches(feed: Feed, num_batches: int = PLANNED_BATCHES) -> list[Batch]:
    """Returns the largest of the first `num_batches` batches of the first epoch, by each of SIZES.

    These are the batch with most tokens and padding, and the one with most scores of attention, since memory grows with
    either. If both are the same batch, it is returned once. All others are planned, but not made.
    """
    corpus, settings = feed.corpus, feed.config.training
    lengths = [np.asarray(side) + 1 for side in (corpus.source_lengths, corpus.target_lengths)]
    planned = batches_from(
        0,
        lengths[0],
        lengths[1],
        settled(settings.batch_tokens),
        settings.seed,
        feed.mixture,
        batching=batching_of(settings.batching, ORDER),
    )
    consumed, most = 0, [0] * len(SIZES)
    largest: dict[int, tuple[int, PlannedBatch]] = {}  # by the number of the size; with the pairs before the batch
    for epoch, chosen in islice(planned, num_batches):
        if epoch:
            break
        rows = int(chosen.rows[-1]) + 1
        source, target = (int(np.bincount(chosen.rows, side[chosen.pairs]).max()) for side in lengths)
        for number, size in enumerate(SIZES):
            if (found := size(rows, source, target)) > most[number]:
                most[number], largest[number] = found, (consumed, chosen)
        consumed += len(chosen)
    made = {
        consumed: made_batch(corpus, settings, chosen, consumed, feed.sampling, feed.boundaries)
        for consumed, chosen in largest.values()
    }
    return [part for parts in made.values() for part in parts]


# The largest batch that fits.

# Larger batches bring no more speed. On a core of an EPYC, with updates of 8,192 tokens, the settings of
# configs/multi30k-en-de-transformer.yaml trained on 1,480 target tokens in a second of processor time in batches of
# 1,024, on 1,615 in batches of 2,048, 1,677 of 4,096 and 1,645 of 8,192 (medians of five updates, which differ by a
# fifth at most; of 1,024, the mean of two). On a GPU, 65,536 tokens at a million a second take as long as eager PyTorch
# takes to start the work of an update; no GPU has measured it yet.
MOST_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536, "mps": 16_384}
# Shares of the memory that stay free, for later batches of other shapes, and for validations. On a CPU, the peak of a
# training in bf16 has doubled in its first eighty updates.
MARGIN = {"cpu": 0.5, "cuda": 0.15, "mps": 0.15}


@dataclass(frozen=True)
class FoundBatch:
    """The number that takes the place of "auto" in training.batch_tokens, and its memory."""

    tokens: int  # the number that takes the place of "auto"
    bytes_needed: float  # 0 if the system does not tell
    bytes_at_hand: int | None

    def told(self) -> str:
        """Returns in words what was found."""
        told = f"training.batch_tokens auto: {self.tokens:,}"
        if self.bytes_at_hand is None:
            return told
        needed, at_hand = self.bytes_needed / 1e9, self.bytes_at_hand / 1e9
        return f"{told}, which takes {needed:.1f} of the {at_hand:.1f} GB of memory at hand"


def find_batch_tokens(
    model: TranslationModel, feed: Feed, precision: str, stop: Stop, ranks: Ranks = ALONE
) -> FoundBatch:
    """Returns the largest batch_tokens that fits into memory, and the memory that it takes.

    Only sizes are tried of which equal batches make up update_tokens: from LEAST_BATCH_TOKENS to MOST_BATCH_TOKENS,
    each about twice the one before. With each size, an update with the largest batches of the plan is made on a copy of
    `model`. A size fits if the fraction MARGIN of the memory stays free; the smallest one fits if memory does not run
    out. On a CPU, a size that is expected not to fit is not tried. All ranks return the same size, which fits in each
    of them. `model` and `feed` stay unchanged. Raises MtkitError if memory runs out with the smallest size.
    """
    settings, device = feed.config.training, model.device
    at_hand = memory_at_hand(device, ranks.local_count)
    limit = min(ranks.gather(math.inf if at_hand is None else at_hand)) * (1 - MARGIN[device.type])
    trial = copy.deepcopy(model).train()
    state = TrainState(trial, make_optimizer(trial, settings, device), Progress(precision=precision))
    scaler = LossScaler(device, precision, 1.0, 0)  # so that no update overflows, and the optimizer gets its state
    updater = Updater(state, settings.model_copy(update={"compile": "off"}), scaler)  # a copy stays compiled
    # Alone, the copy is what training does not need; several ranks need as much for the gradients that they send.
    unneeded = 0 if ranks.are_many else sum(parameter.nbytes for parameter in trial.parameters())
    tried, needed, longest = 0, 0.0, feed.config.data.max_length + 1
    for size in _sizes(settings.tokens_per_update // ranks.count, longest, MOST_BATCH_TOKENS[device.type]):
        stop.check()
        # A system may end a process that takes too much memory of a CPU, so no size is tried that will not fit.
        if tried and device.type == "cpu" and needed * size / tried > limit:
            break
        found = _peak(updater, with_batch_tokens(feed, size), is_first=not tried) - unneeded
        found = max(ranks.gather(found))
        if tried and (found > limit or found == math.inf):
            break
        if found == math.inf:
            raise MtkitError(
                f"out of memory with training.batch_tokens auto: there is not even room for {size:,} tokens; wants "
                "training.recompute, a lower data.max_length, or a smaller model"
            )
        tried, needed = size, found
    del trial, state, scaler, updater
    forget_peak(device)
    return FoundBatch(tried, needed, at_hand)


def _sizes(share: int, longest: int, most: int) -> Iterator[int]:
    """Yields sizes of batches, in tokens, smallest first; equal batches of a size make up `share`.

    `share` is the part of one rank in an update, in tokens. The sizes are about LEAST_BATCH_TOKENS, twice that, and so
    on up to `most`, but not below `longest`, the size of the longest pair.
    """
    parts, fewest = share // max(LEAST_BATCH_TOKENS, longest), max(1, math.ceil(share / most))
    while parts > fewest:
        yield share // parts
        parts = max(fewest, (parts + 1) // 2)
    yield max(longest, share // fewest)


def with_batch_tokens(feed: Feed, size: int) -> Feed:
    """Returns a copy of the feed that makes batches of this size."""
    training = feed.config.training.model_copy(update={"batch_tokens": size})
    return replace(feed, config=feed.config.model_copy(update={"training": training}))


def _peak(updater: Updater, feed: Feed, is_first: bool) -> float:
    """Returns the peak of memory in an update, in bytes.

    Returns infinity if memory runs out, and 0 if the system does not tell. The update has the largest batches, and the
    first of them twice, so that each comes when the gradients of an earlier one are in memory. With `is_first`, an
    update before this one gives the optimizer its state, which is in memory, too.
    """
    device, batches = updater.state.model.device, largest_batches(feed)
    try:
        if is_first:
            updater.update(batches, 1, 0.0)
        forget_peak(device)
        updater.update([*batches, batches[0]], 1, 0.0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return peak_memory(device) or 0
