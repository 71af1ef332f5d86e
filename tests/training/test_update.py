"""An update waits for the device once; its batches are on the device before it begins; threads share its batches."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.settings import Config
from mtkit.data.batches import NO_LABEL, AlignedTokens, Batch, micro_batches, padded_batch, ragged, sent_ahead
from mtkit.files import Stop
from mtkit.models.registry import new_model
from mtkit.models.transformer import call_layer, stacks_of
from mtkit.training import update
from mtkit.training.update import OBJECTIVES, CompiledCall, find_batch_tokens, part_threads
from tests.forked import apart
from tests.runs import MASKED, MODEL, RECURRENT, outcome, trainer_of, whole_and_killed


def a_batch(packed: bool = False) -> Batch:
    """Four pairs, in four rows or in two."""
    rows = torch.tensor([0, 0, 1, 1]).numpy() if packed else None
    return padded_batch(ragged([[5], [6, 7], [8], []]), ragged([[9, 9, 9], [8], [], [7, 6]]), rows=rows)


def tensors_of(item: Any) -> Iterator[Tensor]:
    """All tensors in a dataclass, and in the dataclasses in it."""
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from tensors_of(value)


@pytest.mark.parametrize("packed", [False, True])
def test_places_are_those_of_all_labels(packed):
    batch = a_batch(packed)
    assert torch.equal(batch.places, (batch.labels != NO_LABEL).flatten().nonzero()[:, 0])
    for half in batch.parts(2):
        assert torch.equal(half.places, (half.labels != NO_LABEL).flatten().nonzero()[:, 0])


def test_a_batch_is_sent_with_all_its_tensors():
    links = AlignedTokens(*(torch.zeros(1, dtype=torch.int64) for _ in range(4)))
    batch = Batch(**{**vars(a_batch()), "alignment": links})
    there = list(tensors_of(batch.to(torch.device("meta"))))
    assert {tensor.device.type for tensor in there} == {"meta"}
    shapes = [(tensor.shape, tensor.dtype) for tensor in tensors_of(batch)]
    assert [(tensor.shape, tensor.dtype) for tensor in there] == shapes
    assert len(there) == 12
    same = tensors_of(batch.map(Tensor.clone))
    assert all(torch.equal(one, other) for one, other in zip(same, tensors_of(batch), strict=True))


def test_batches_are_sent_in_order_one_ahead():
    asked: list[int] = []

    def batches() -> Iterator[tuple[int, tuple[Batch, ...]]]:
        for number in range(9):
            asked.append(number)
            yield number, (a_batch(),)

    stream = sent_ahead(batches(), torch.device("meta"))
    for number in range(3):
        epoch, (batch,) = next(stream)
        assert (epoch, batch.labels.device.type) == (number, "meta")
        assert asked[-1] == number + 1


@pytest.mark.parametrize("consistency", ["none", "rdrop", "simcut"])
@pytest.mark.parametrize("packed", [False, True])
def test_forward_and_backward_passes_read_nothing_from_the_device(make_config, consistency, packed, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # knows nothing of the device meta
    model = {"d_model": 16, "num_heads": 2, "d_ff": 16, "dropout": 0.1}
    config = make_config(model=model, training={"consistency": consistency})
    meta = torch.device("meta")  # has shapes and no values, so that to read one is an error
    model = new_model(config.model, 50, 50, seed=1).to(meta).train()
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.ones(2, device=meta).nonzero()
    OBJECTIVES[consistency](model, a_batch(packed).to(meta), config.training).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


READS = ("tolist", "item", "__float__", "__int__", "__bool__", "__index__", "nonzero", "cpu", "numpy")


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_an_update_reads_from_the_device_once(make, monkeypatch, clip_norm):
    config = make(optimizer="sgd", clip_norm=clip_norm, accumulate=3)  # PyTorch's Adam counts on a CPU by reading
    trainer = trainer_of(config)
    trainer.log.close()
    batches = [batch for _, (batch,) in islice(micro_batches(trainer.corpus, config.training, 0), 3)]
    read: list[str] = []
    for name in READS:
        function = getattr(Tensor, name)

        def reading(*given: Any, name: str = name, function: Any = function, **named: Any) -> Any:
            read.append(name)
            return function(*given, **named)

        monkeypatch.setattr(Tensor, name, reading)
    trainer.model.train()
    trainer._update((0, (batch,)) for batch in batches)
    assert read == ["tolist"]
    assert trainer.state.progress.window.norm > 0


# Parts of a batch, computed by threads at the same time.


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within the block, PyTorch has so many threads, and the smallest batch is divided among them.

    Only in tests that run apart: later children of a process that has computed with several threads may wait for ever.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(update, "LEAST_PART_TOKENS", 1)
            yield
    finally:
        torch.set_num_threads(before)


def gradient_of(config: Config, num_threads: int) -> tuple[list[Tensor], list[float], set[str]]:
    """Gradient and losses of the first update, from two batches, and the names of the threads that computed losses."""
    trainer = trainer_of(config)
    trainer.log.close()
    batches = [batch for _, (batch,) in islice(micro_batches(trainer.corpus, config.training, 0), 2)]
    names: set[str] = set()
    objective = OBJECTIVES[config.training.consistency]

    def noting(*given: Any) -> Any:
        names.add(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.05)  # so that no thread is done with one part before another thread has begun the next
        return objective(*given)

    trainer.model.train()
    with threads(num_threads), pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, config.training.consistency, noting)
        losses, _ = trainer.updater._passes(batches, 1, sum(batch.target_tokens for batch in batches))
    return [p.grad for p in trainer.model.parameters() if p.grad is not None], losses.tolist(), names


DIVISIBLE = {
    "transformer": {"model": {**MODEL, "dropout": 0.0, "positions": "rotary"}},
    "packed": {"model": {**MODEL, "dropout": 0.0}, "batching": "packed", "batch_tokens": 900},
    "recurrent": {"model": {**RECURRENT, "dropout": 0.0, "attention": "general"}},
}


@pytest.mark.parametrize("options", DIVISIBLE.values(), ids=DIVISIBLE)
@apart
def test_threads_that_share_a_batch_compute_its_gradient(make, options):
    whole, losses, names = gradient_of(make(**options), 1)
    assert names == {"MainThread"}
    for number in (2, 3):
        gradient, same_losses, names = gradient_of(make(**options), number)
        assert len(names - {"MainThread"}) == number  # a batch of two rows is not for three threads
        assert same_losses == pytest.approx(losses, rel=1e-5)
        assert len(gradient) == len(whole)
        for one, other in zip(gradient, whole, strict=True):
            assert torch.linalg.vector_norm(one - other) <= 1e-5 * torch.linalg.vector_norm(other) + 1e-9


@pytest.mark.parametrize("options", [{"recompute": True}, {"model": MASKED}], ids=["recompute", "cmlm"])
@apart
def test_where_threads_would_change_the_gradient_one_computes_it(make, options):
    assert gradient_of(make(**options), 2)[2] == {"MainThread"}


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"OMP_PROC_BIND": "close"}, {"MainThread"}),
        ({"OMP_PLACES": "cores"}, {"MainThread"}),
        ({"OMP_PROC_BIND": "FALSE", "OMP_PLACES": "cores"}, {"part_0", "part_1"}),
    ],
)
@apart
def test_threads_that_would_be_bound_to_one_core_do_not_share_a_batch(make, monkeypatch, variables, names):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert gradient_of(make(), 2)[2] == names


@apart
def test_threads_never_share_a_batch_of_a_copy_of_a_compiled_model(make, monkeypatch):
    names: set[str] = set()

    def noting(_: CompiledCall, layer: Any, x: Tensor, **arguments: Any) -> Tensor:
        names.add(threading.current_thread().name)
        return call_layer(layer, x, **arguments)

    monkeypatch.setattr(CompiledCall, "__call__", noting)
    trainer = trainer_of(make())
    trainer.log.close()
    for stack in stacks_of(trainer.model):
        stack.call = object.__new__(CompiledCall)
    with threads(2):
        find_batch_tokens(trainer.model, trainer.feed, "fp32", Stop())
    assert names == {"MainThread"}


@pytest.mark.parametrize("number", [0, 1])
@apart
def test_if_memory_runs_out_in_one_part_all_is_freed_and_computed_anew(make, monkeypatch, capsys, number):
    trainer = trainer_of(make(model={"dropout": 0.0}))
    trainer.log.close()
    updater, found = trainer.updater, []
    trainer.state.optimizer.register_step_pre_hook(
        lambda *_: found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))  # type: ignore[union-attr]
    )
    (batch,) = next(iter(micro_batches(trainer.corpus, trainer.settings, 0)))[1]
    part = batch.parts(2)[number]
    objective, grad = OBJECTIVES["none"], torch.autograd.grad
    kept: list[weakref.ref[Tensor]] = []  # what the first try computes
    alive: list[bool] = []  # whether it is still there in the second one

    def failing(model: Any, batch: Batch, settings: Any) -> Any:
        if 2 * len(batch.labels) <= len(part.labels) + 1:  # half of a part of the first try
            alive.extend(tensor() is not None for tensor in kept)
        loss = objective(model, batch, settings)
        if torch.equal(batch.labels, part.labels):
            kept.append(weakref.ref(loss.total))
            raise MemoryError
        return loss

    def noting(*given: Any, **named: Any) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = grad(*given, **named)
        kept.extend(weakref.ref(gradient) for gradient in gradients if not alive)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", noting)
    with threads(2), without_garbage_collection():
        updater.update([batch], 1, 0.0)
        kept.clear()
        monkeypatch.setitem(OBJECTIVES, "none", failing)
        updater.update([batch], 1, 0.0)
    assert len(kept) == 1 + len(list(trainer.model.parameters()))
    assert alive
    assert not any(alive)
    assert capsys.readouterr().err.count("out of memory in step 1") == 1
    assert torch.linalg.vector_norm(found[1] - found[0]) <= 1e-5 * torch.linalg.vector_norm(found[0])


@apart
def test_the_threads_of_parts_have_equal_shares_of_the_threads_that_pytorch_has_now(make, monkeypatch):
    trainer = trainer_of(make())
    trainer.log.close()
    (batch,) = next(iter(micro_batches(trainer.corpus, trainer.settings, 0)))[1]
    objective, shares = OBJECTIVES["none"], []

    def noting(*given: Any) -> Any:
        shares.append(torch.get_num_threads())
        return objective(*given)

    monkeypatch.setitem(OBJECTIVES, "none", noting)
    monkeypatch.setattr(update, "MOST_PARTS", 2)
    for number in (2, 4, 2):
        with threads(number):
            trainer.updater.update([batch], 1, 0.0)
            assert torch.get_num_threads() == number
    assert shares == [1, 1, 2, 2, 1, 1]


@apart
def test_if_a_thread_cannot_begin_the_others_end(monkeypatch):
    start, begun = threading.Thread.start, []

    def failing(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with threads(2):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            part_threads(2)
        assert torch.get_num_threads() == 2
    begun[0].join(10)
    assert not begun[0].is_alive()


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Within the block, what objects hold in a circle is not freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@apart
def test_parts_of_a_batch_have_dropout_of_their_own(make):
    trainer = trainer_of(make(model={**MODEL, "layer_dropout": 0.2}))
    trainer.log.close()
    one = next(iter(micro_batches(trainer.corpus, trainer.settings, 0)))[1][0].parts(2)[0]
    trainer.model.train()
    with threads(2):
        alike, other, once_more = (trainer.updater._passes_of_parts([one, one], step, 0, 1) for step in (1, 2, 1))
        drawn = [trainer.updater._passes_of_parts([one], 1, place, 1) for place in (0, 1)]
    assert torch.equal(alike, once_more)
    assert not torch.equal(alike, other)
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(alike, 2 * drawn[0])  # the second part is not what the first one is


@pytest.mark.parametrize(
    "options",
    [
        {"model": {**MODEL, "layer_dropout": 0.2, "positions": "rotary"}, "optimizer": "muon"},
        {"model": RECURRENT, "precision": "bf16"},
        {"consistency": "simcut", "batching": "packed", "batch_tokens": 900},
    ],
    ids=["transformer", "recurrent in bf16", "simcut"],
)
@apart
def test_a_run_whose_batches_are_shared_by_threads_resumes_to_the_bit(make, options):
    with threads(3):
        whole, killed = whole_and_killed(make, 10, **options, max_steps=12)
    assert outcome(killed) == outcome(whole)
