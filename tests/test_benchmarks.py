"""The scripts that measure training on a GPU run on a CPU, too, where everything is tiny."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mtkit.evaluation import bench
from tests.conftest import script
from tests.forked import Forked


@pytest.fixture(scope="module")
def benchmark_gpu() -> ModuleType:
    return script("benchmark_gpu")


@pytest.fixture
def run(benchmark_gpu, tmp_path, monkeypatch):
    """A function that measures a part with --tiny, and returns what it leaves in its file."""
    monkeypatch.setattr(bench, "PEAK_SIZES", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr(bench, "PEAK_SECONDS", 0.001)
    monkeypatch.setattr(bench, "RANDOM_PAIRS", 100)

    def measured(part: str) -> dict:
        monkeypatch.setattr(
            sys, "argv", ["benchmark_gpu.py", part, "--folder", str(tmp_path), "--device", "cpu", "--tiny"]
        )
        benchmark_gpu.main()
        return json.loads((tmp_path / f"{part}.json").read_text("utf-8"))

    return measured


@pytest.mark.parametrize("part", ["base", "big", "step"])
def test_trainings_are_measured_compiled_and_eager_packed_and_bucketed(run, benchmark_gpu, part, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr("mtkit.training.update.compile_layers", lambda *given: compiled.append(given))
    trials = benchmark_gpu.TRIALS[part][1]
    found = run(part)
    assert list(found) == [name for name, _, _ in trials]
    assert len(compiled) == len([name for name in found if ", compiled," in name]) > 0
    for name, record in found.items():
        settings = record["config"]["training"]
        assert (settings["batching"], settings["compile"]) == (
            name.split(", ")[0],
            "on" if "compiled" in name else "off",
        )
        assert record["target_tokens_per_second"] > 0
    assert capsys.readouterr().out.count("target tokens/s ") >= len(found)


def test_ways_of_attention_agree_or_say_why_not(run, monkeypatch):
    found = run("attention")["attention"]
    assert list(found) == ["encoder", "decoder", "decoder to source"]
    for case in found.values():
        works = {name for name, record in case.items() if "fault" not in record}
        assert works >= {"as in training", "additive mask", "math", "plain products"}
        for name, record in case.items():
            assert record["difference"] < 1e-5 if name in works else record["fault"], name


def test_flex_attention_has_the_mask_of_packed_rows(benchmark_gpu, monkeypatch):
    script = benchmark_gpu.benchmark_attention
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # compiled for a CPU, it would take a minute
    case = script.cases(300, 2, 8, torch.float32, torch.device("cpu"))[1]
    attend = script.flex(case).attend
    tensors = [tensor.detach() for tensor in case.tensors]
    with pytest.warns(UserWarning, match="without torch.compile"):
        found = attend(*tensors)
    wanted = script.as_in_training(case).attend(*tensors)
    sides = (found, wanted)
    torch.testing.assert_close(*(script.flat(side, case.queries) for side in sides), rtol=1e-5, atol=1e-5)


def test_a_part_whose_time_is_up_ends_as_by_ctrl_c_and_says_how_to_go_on(benchmark_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_gpu, "LIMIT_SECONDS", 0.5)
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(3)); time.sleep(60)"
    with pytest.raises(SystemExit, match="1"):
        benchmark_gpu.finish("part", [sys.executable, "-c", program], benchmark_gpu.Options(tmp_path, "cpu", True))
    assert "part: time is up; a training goes on with the same call" in capsys.readouterr().out


class Item:
    """A test, marked gpu or not."""

    def __init__(self, is_marked: bool) -> None:
        self.is_marked = is_marked

    def get_closest_marker(self, name: str) -> bool:
        return self.is_marked and name == "gpu"


def test_every_test_for_a_gpu_is_in_one_part(benchmark_gpu, monkeypatch):
    tests = [Item(number % 3 > 0) for number in range(20)]
    shares = []
    for number in range(benchmark_gpu.NUM_SHARES):
        monkeypatch.setenv(benchmark_gpu.SHARE, str(number))
        items = list(tests)
        benchmark_gpu.pytest_collection_modifyitems(items)
        shares.append(items)
    assert sorted(id(test) for share in shares for test in share) == sorted(
        id(test) for test in tests if test.is_marked
    )
    assert all(shares)


@contextmanager
def forked(command: list[str], cwd: Path, env: dict[str, str] | None) -> Iterator[Forked]:
    """Used as subprocess.Popen is: a child by fork, with the folder, the environment and the path that it is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        patch.setattr(sys, "path", [*filter(None, (env or {}).get("PYTHONPATH", "").split(os.pathsep)), *sys.path])
        patch.delitem(sys.modules, "benchmark_gpu")
        process = Forked(command, stdout=1, stderr=2)
    yield process


@pytest.mark.parametrize("part", ["tests-1", "multi30k"])  # tatoeba is as multi30k
def test_recipes_are_trained_to_their_end(run, benchmark_gpu, part, monkeypatch):
    others = SimpleNamespace(Popen=forked, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(benchmark_gpu, "subprocess", others)
    short = ["decoding.beam_size=1", "decoding.max_length_ratio=0.1", "decoding.max_length_extra=1"]
    monkeypatch.setattr(benchmark_gpu, "TINY", [*benchmark_gpu.TINY, *short])
    assert run(part)["code"] == 0


def test_the_parts_are_those_that_the_help_names(benchmark_gpu):
    names = " ".join(benchmark_gpu.PARTS)
    assert names == "base big step attention tests-1 tests-2 tests-3 tests-4 multi30k tatoeba"
    text = " ".join(benchmark_gpu.__doc__.split())
    assert all(f"{name} " in text or f"{name}," in text for name in ("base", "big", "step", "attention", "multi30k"))
