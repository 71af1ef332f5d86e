"""An update waits for the device once, and its batches are on the device before it begins."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.data.batches import NO_LABEL, AlignedTokens, Batch, micro_batches, padded_batch, ragged, sent_ahead
from mtkit.models.registry import new_model
from mtkit.training.update import OBJECTIVES
from tests.runs import trainer_of


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
    for half in batch.halves():
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
