"""TensorBoard shows what the log tells, once, wherever a run was killed."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.pipeline import run_train
from mtkit.training.records import Board, Log
from mtkit.training.train import Trainer
from tests.runs import Killed, at_step, doing, kill

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

TRAINING = {
    "tensorboard": True,
    "max_steps": 12,
    "validate_every": 4,
    "save_every": 4,
    "validation_sentences": 4,
    "log_every": 2,
}
CLOCKS = {"seconds", "tokens_per_second"}

Curve = list[tuple[int, float]]


@pytest.fixture
def make(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """Makes the settings of a run of twelve updates that is drawn."""

    def made(name: str = "run", **training: object) -> Config:
        return make_config(tmp_path / name, training={**TRAINING, **training})

    return made


def drawn(run: Path) -> tuple[dict[str, Curve], dict[str, list[tuple[int, str]]]]:
    """The curves and the texts that TensorBoard shows of a run."""
    reader = event_accumulator.EventAccumulator(str(run / "tensorboard"), {"tensors": 0, "scalars": 0})
    reader.Reload()
    tags = reader.Tags()
    curves = {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in reader.Tensors(tag)
        ]
        for tag in tags["tensors"]
    }
    return curves, texts


def logged(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_what_is_drawn_is_what_the_log_tells(make):
    config = make()
    run_train(config)
    run = config.run_path
    curves, texts = drawn(run)
    wanted: dict[str, Curve] = {}
    for kind, names in {
        "train": ["loss", "nll", "lr", "gradient_norm", "tokens_per_second", "padding"],
        "validation": ["loss", "nll", "perplexity", "bleu", "chrf"],
        "average": ["loss", "nll", "perplexity", "bleu", "chrf"],
    }.items():
        for line in logged(run, kind):
            step = line["steps"][-1] if kind == "average" else line["step"]
            for name in names:
                wanted.setdefault(f"{kind}/{name}", []).append((step, float(np.float32(line[name]))))
    assert curves == wanted
    assert [step for step, _ in curves["train/loss"]] == [2, 4, 6, 8, 10, 12]

    samples = logged(run, "sample")
    assert set(texts) == {"sample/1", "sample/2", "sample/3"}
    for number in (1, 2, 3):
        shown = [
            (each["step"], "\n".join(f"    {each[name]}" for name in ("source", "hypothesis", "reference")))
            for each in samples[number - 1 :: 3]
        ]
        assert texts[f"sample/{number}"] == shown


def test_a_run_that_was_killed_and_went_on_shows_each_step_once(make):
    uninterrupted, config = make("uninterrupted"), make()
    run_train(uninterrupted)
    with doing(kill, Trainer, "_update", at_step(7)), pytest.raises(Killed):
        run_train(config)
    second = int(time.time())
    while int(time.time()) == second:  # files are named by it, and read in the order of their names
        time.sleep(0.01)
    assert [step for step, _ in drawn(config.run_path)[0]["train/loss"]] == [2, 4, 6]
    run_train(config)
    found, wanted = drawn(config.run_path), drawn(uninterrupted.run_path)
    assert found[1] == wanted[1]
    for tag in wanted[0]:
        if tag.split("/")[1] in CLOCKS:
            found[0][tag], wanted[0][tag] = ([(step, 0.0) for step, _ in each[0][tag]] for each in (found, wanted))
    assert found[0] == wanted[0]


def test_a_figure_that_is_not_finite_is_left_out(tmp_path):
    board = Board(tmp_path / "tensorboard", 0)
    board.draw("validation", {"step": 1, "loss": float("nan"), "bleu": 1.5})
    board.draw("validation", {"step": 2, "loss": 0.5, "bleu": float("inf")})
    board.close()
    assert drawn(tmp_path)[0] == {"validation/bleu": [(1, 1.5)], "validation/loss": [(2, 0.5)]}


def test_a_board_that_cannot_be_written_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # the writer's thread tells of its end
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    others = threading.enumerate()
    log = Log(tmp_path / "log.jsonl", 0, Board(tmp_path / "tensorboard", 0))

    def write() -> None:
        for step in range(100):
            log.write("train", step=step, a=0.5, b=0.5, c=0.5, d=0.5)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CheckpointError) as caught:
            write()
        log.close()
        for thread in set(threading.enumerate()) - set(others):
            thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{tmp_path / 'tensorboard'}: cannot be written: ")
    assert "make room and start again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_draws_only_if_asked_and_may_be_asked_midway(make):
    config = make(tensorboard=False, max_steps=4)
    run_train(config)
    assert not (config.run_path / "tensorboard").exists()
    run_train(make(max_steps=8))
    assert [step for step, _ in drawn(config.run_path)[0]["train/loss"]] == [6, 8]
    run_train(make(tensorboard=False), fresh=True)
    assert not (config.run_path / "tensorboard").exists()


def test_without_the_package_one_line_names_the_extra_before_any_work(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = make()
    with pytest.raises(MtkitError, match=r"^training\.tensorboard wants .* pip install 'mtkit\[tensorboard\]', or"):
        run_train(config)
    assert not (config.run_path / "tokenizer").exists()
