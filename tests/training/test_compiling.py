"""Compiled layers compute what layers compute, for batches of any shape, and training goes on where they cannot be."""

import shutil
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.settings import Config
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import Batch, micro_batches
from mtkit.files import Stop
from mtkit.training import update as compiling
from mtkit.training.train import measure_pace
from mtkit.training.update import CompiledCall, is_compiled
from tests.runs import RECURRENT, outcome, trainer_of, whole_and_killed


@pytest.mark.parametrize(
    ("setting", "device", "batching", "precision", "wanted"),
    [
        ("auto", "cuda", "packed", "bf16", True),
        ("auto", "cuda", "packed", "fp32", False),
        ("auto", "cuda", "auto", "bf16", False),
        ("auto", "cpu", "packed", "bf16", False),
        (False, "cuda", "packed", "bf16", False),  # `off` in YAML
        (True, "cpu", "bucketed", "fp32", True),
    ],
)
def test_auto_compiles_packed_rows_on_a_gpu(setting, device, batching, precision, wanted):
    settings = TrainingConfig.model_validate({"compile": setting, "batching": batching})
    assert is_compiled(settings, torch.device(device), precision) == wanted


def test_a_model_without_layers_of_a_transformer_is_not_compiled(make_config):
    with pytest.raises(ValueError, match=r"training.compile on wants a model with layers of a Transformer"):
        make_config(model=RECURRENT, training={"compile": "on"})


def test_without_compiled_layers_no_compiler_is_imported(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error now
    trainer = trainer_of(make())
    trainer.log.close()
    with trainer.feed.batches(0, 0) as stream:
        trainer._update(stream)


class Recorder:
    """A compiler that records what it does, and leaves what it compiles as it is."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(compiling, "BACKEND", recorder)
    return recorder


def gradient(config: Config, batches: list[Batch], setting: str, measures: bool = False) -> Tensor:
    """The gradient of the first update of a run; with `measures`, its speed is measured before."""
    training = config.training.model_copy(update={"compile": setting})
    trainer = trainer_of(config.model_copy(update={"training": training}))
    trainer.log.close()
    if measures:
        measure_pace(trainer.model, trainer.feed, trainer.validation, trainer.tokenizer, trainer.state.progress, Stop())
    found: list[Tensor] = []
    trainer.state.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.flatten() for p in trainer.model.parameters())  # type: ignore[union-attr]
    )
    trainer.model.train()
    trainer._update((0, (batch,)) for batch in batches)
    with torch.no_grad():
        trainer.model(batches[0].source, batches[0].target)
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())
    return torch.cat(found)


@pytest.mark.parametrize(
    ("batching", "options", "model"),
    [
        ("bucketed", {}, {"positions": "rotary", "norm_placement": "post"}),
        ("packed", {"recompute": True}, {}),
    ],
    ids=["bucketed", "packed and computed again"],
)
def test_compiled_layers_give_the_same_gradient_for_batches_of_any_shape(make, recorder, batching, options, model):
    model = {"dropout": 0.0, "encoder_layers": 2, "decoder_layers": 2, **model}
    size = {"bucketed": 60, "packed": 130}[batching]
    config = make(
        precision="fp32", batching=batching, batch_tokens=size, accumulate=4, model=model, consistency="none", **options
    )
    trainer = trainer_of(config)
    trainer.log.close()
    batches = [batch for _, (batch,) in islice(micro_batches(trainer.corpus, config.training, 0), 4)]
    assert len({batch.source.ids.shape for batch in batches}) > 1
    wanted = gradient(config, batches, "off")
    assert not recorder.graphs
    found = gradient(config, batches, "on")
    assert recorder.graphs == 2  # for all layers of the encoder and of the decoder, and for all shapes
    passes = 2 if options else 1
    assert recorder.calls == 4 * passes * (1 + len([each for each in batches if len(each.labels) > 1]))
    assert wanted.norm() > 0.1
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_a_killed_run_with_compiled_layers_resumes_to_the_bit(make, recorder):
    whole, killed = whole_and_killed(make, 6, max_steps=8, accumulate=2, compile="on")
    assert recorder.graphs == 4  # in both runs one for the encoder and one for the decoder
    of_one_run = 2 * (1 + 2 * 8)  # a layer of each side: in the pass before training, and in two batches an update
    assert recorder.calls > of_one_run
    assert outcome(killed) == outcome(whole)


def test_where_layers_cannot_be_compiled_training_goes_on_without_and_tells_it_once(make, monkeypatch, capsys):
    def fail(*_: Any) -> None:
        raise RuntimeError("no compiler was found\nand more lines of that kind")

    monkeypatch.setattr(compiling, "BACKEND", fail)
    config = make(precision="fp32", max_minutes=0.001)
    trainer = trainer_of(config)
    trainer.log.close()
    batches = [batch for _, (batch,) in islice(micro_batches(trainer.corpus, config.training, 0), 2)]
    wanted = gradient(config, batches, "off")
    capsys.readouterr()
    assert torch.equal(gradient(config, batches, "on", measures=True), wanted)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith("mtkit: warning: training goes on without compiled layers (training.compile)")
    assert "no compiler was found" in warning
    assert "more lines" not in warning


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler for CPUs wants a C++ compiler")
def test_layers_compiled_to_machine_code_give_the_same_gradient(make, monkeypatch, capsys):
    # The encoder alone, without feed-forward layers: with both halves whole, compiling takes over a minute.
    stacks_of = compiling.stacks_of
    monkeypatch.setattr(compiling, "stacks_of", lambda model: stacks_of(model)[:1])
    used: list[bool] = []
    call: Callable[..., Tensor] = CompiledCall.__call__
    monkeypatch.setattr(
        CompiledCall, "__call__", lambda self, *given, **named: used.append(True) or call(self, *given, **named)
    )
    config = make(precision="fp32", batching="packed", batch_tokens=130, model={"dropout": 0.0, "d_ff": 0})
    trainer = trainer_of(config)
    trainer.log.close()
    batches = [batch for _, (batch,) in islice(micro_batches(trainer.corpus, config.training, 0), 2)]
    wanted, found = gradient(config, batches, "off"), gradient(config, batches, "on")
    assert "without compiled layers" not in capsys.readouterr().err
    assert used
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
