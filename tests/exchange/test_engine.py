"""--engine ctranslate2: the same lines come out, or one line says what to change; its files are made once."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mtkit
import mtkit.exchange.engines as engine_module
from mtkit.bundle.bundle import WEIGHTS, Bundle
from mtkit.bundle.info import pack
from mtkit.bundle.opening import open_model
from mtkit.config.data_and_model_settings import RecurrentConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError, MtkitError
from mtkit.exchange.engines import COMPUTE_TYPES, CTranslate2Engine, fault_of, write_ctranslate2
from mtkit.exchange.portable import MARKER, PortableModel, Vocabulary
from mtkit.translation.decode import decode
from mtkit.translation.translator import TranslatedLine, Translator
from tests.exchange.test_ctranslate2 import ending
from tests.exported import model_of, sentences_of
from tests.forked import MTKIT, output_of

ctranslate2: Any = pytest.importorskip("ctranslate2")

COUNT = "decoding.stopping=count"
GREEDY = "decoding.beam_size=1"
LINES = [
    "one two three",
    "",
    " ".join(["nine eight seven six five four three two one zero one two three four"] * 3),
    "zero zero zero zero zero zero",
    "   ",
    "seven",
    "a word that it does not know",
]


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt the toy language, in a folder of its own; exports may be written beside it."""
    return Path(shutil.copytree(tiny_run / "model", tmp_path_factory.mktemp("engine") / "model"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtkit"


def both(model: Path, overrides: list[str], **how: Any) -> tuple[list[TranslatedLine], list[TranslatedLine]]:
    """The translations of LINES, by PyTorch and by CTranslate2."""
    ours, theirs = (
        list(mtkit.load(model, [*overrides, "device=cpu"], engine=engine).translate_lines(LINES, **how))
        for engine in ("torch", "ctranslate2")
    )
    return ours, theirs


def assert_same(ours: list[TranslatedLine], theirs: list[TranslatedLine]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert [t.text for t in one.translations] == [t.text for t in other.translations]
        assert (one.num_parts, one.notes) == (other.num_parts, other.notes)
        for ranked, again in zip(one.translations, other.translations, strict=True):
            # CTranslate2 gives the probability of tokens that are never generated to the others.
            assert again.score == pytest.approx(ranked.score, abs=1e-3, rel=1e-3)


# The same translations.


@pytest.mark.parametrize(
    "overrides",
    [
        [GREEDY],
        [COUNT, "decoding.beam_size=5"],
        [COUNT, "decoding.beam_size=3", "decoding.length_penalty=0"],
        [GREEDY, "decoding.max_length_ratio=0.4", "decoding.max_length_extra=1"],
        [COUNT, "decoding.beam_size=4", "decoding.max_length_ratio=0.4", "decoding.max_length_extra=1"],
        [GREEDY, "decoding.min_length=9", "decoding.length_penalty_form=gnmt", "decoding.length_penalty=0.6"],
        [GREEDY, "decoding.no_repeat_ngram=2"],
        [GREEDY, "decoding.unknown=ban"],
        [COUNT, "decoding.beam_size=4", "decoding.unknown=copy"],
    ],
    ids=" ".join,
)
def test_lines_scores_parts_and_notes_are_those_of_torch(model: Path, overrides: list[str]) -> None:
    ours, theirs = both(model, overrides)
    assert ours[2].num_parts > 1
    assert_same(ours, theirs)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_prefixes_are_obeyed(model: Path, beam_size: int) -> None:
    prefixes = ["1 2", "", "5", "7 7 7", "", "", ""]
    ours, theirs = both(model, [COUNT, f"decoding.beam_size={beam_size}"], prefixes=prefixes)
    assert theirs[3].text.startswith("7 7 7")
    assert_same(ours, theirs)


def test_an_n_best_list_has_the_same_order(model: Path) -> None:
    ours, theirs = both(model, [COUNT, "decoding.beam_size=6"], num_best=3)
    assert len(theirs[0].translations) == 3
    assert_same(ours, theirs)


def test_batches_of_one_and_of_many_sentences_give_the_same(model: Path) -> None:
    translator = mtkit.load(model, [COUNT, "device=cpu"], engine="ctranslate2")
    alone = [next(translator.translate_lines([line])).text for line in LINES]
    assert alone == translator.translate(LINES) == translator.translate(LINES[::-1])[::-1]


def test_a_translator_tells_the_precision_of_its_engine(model: Path) -> None:
    names = set(COMPUTE_TYPES) - {"auto"}
    for precision, told in (("fp32", {"fp32"}), ("int8", {"int8"}), ("auto", names)):
        translator = mtkit.load(model, [COUNT, "device=cpu"], precision, engine="ctranslate2")
        assert translator.precision in told


def engine_of(portable: PortableModel, directory: Path) -> CTranslate2Engine:
    """The engine for a model with random weights; <unk> is a token like any other."""
    size, of_target = len(portable.source.pieces), len(portable.target.pieces)
    numbered = PortableModel(
        portable.config,
        portable.weights,
        Vocabulary(list(map(str, range(size))), portable.source.special),
        Vocabulary(list(map(str, range(of_target))), portable.target.special),
    )
    write_ctranslate2(numbered, directory)
    tokenizer = SimpleNamespace(
        source_vocab_size=size,
        target_vocab_size=of_target,
        target_shows_unknown=True,
        specials=SimpleNamespace(target=portable.target.special),
    )
    translator: Any = SimpleNamespace(model=model_of(portable), tokenizer=tokenizer, config=portable.config)
    return CTranslate2Engine(directory, translator, "cpu", "float32")


LEARNED = {"positions": "learned", "max_positions": 300}


@pytest.mark.parametrize(
    ("choice", "settings", "num_best"),
    [
        ({}, {"beam_size": 1}, 1),
        (LEARNED, {"beam_size": 1}, 2),
        ({}, {"beam_size": 1, "max_length_ratio": 1.0, "max_length_extra": 2}, 1),
        ({"positions": "rotary"}, {"beam_size": 5, "length_penalty": 0.6}, 2),
        ({}, {"beam_size": 3, "max_length_ratio": 1.3, "max_length_extra": 1}, 1),
        (LEARNED, {"beam_size": 3, "max_length_ratio": 1.3, "max_length_extra": 1}, 2),
        ({}, {"beam_size": 2, "max_length_ratio": 0.5, "max_length_extra": 1, "length_penalty": -1.0}, 2),
        ({}, {"beam_size": 4, "length_penalty": 0.0}, 1),
        ({}, {"beam_size": 4, "length_penalty": 0.0}, 2),
    ],
    ids=str,
)
def test_a_model_with_random_weights_says_the_same(
    choice: dict[str, Any], settings: dict[str, Any], num_best: int, tmp_path: Path
) -> None:
    portable = ending(choice)
    engine = engine_of(portable, tmp_path)
    sources, prefixes = sentences_of(portable, 40)
    prefixes = [row[: n % 3] if n % 2 else [] for n, row in enumerate(prefixes)]
    decoding = DecodingConfig(**{"max_length_ratio": 1.5, "max_length_extra": 4, **settings}, stopping="count")
    batches = [(sources[begin : begin + 25], prefixes[begin : begin + 25]) for begin in range(0, 40, 25)]
    found = [row for batch in engine.decode(decoding, batches, num_best, ()) for row in batch]
    model = model_of(portable)
    wanted = [row for rows, begin in batches for row in decode(model, decoding, rows, num_best, begin, ())]
    for ours, theirs in zip(wanted, found, strict=True):
        # What comes after the best num_best is found only if the search goes on for long enough.
        assert [best.tokens for best in ours[:num_best]] == [best.tokens for best in theirs[:num_best]]
        for one, other in zip(ours[:num_best], theirs[:num_best], strict=True):
            assert (other.log_prob, other.score) == pytest.approx((one.log_prob, one.score), abs=1e-3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_translates(model: Path) -> None:
    translator = mtkit.load(model, [GREEDY, "device=cpu"], engine="ctranslate2")
    wanted = translator.translate(LINES)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(translator.translate(LINES)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == wanted


def test_the_commands_take_the_engine(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    outputs = [
        output_of([*MTKIT, "translate", str(model), str(source), "--set", "stopping=count", "--engine", engine, "-q"])
        for engine in ("torch", "ctranslate2", "auto")
    ]
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0].count("\n") == len(LINES)
    reference = tmp_path / "reference"
    reference.write_text(outputs[0], encoding="utf-8")
    files = ["--source", str(source), "--reference", str(reference), "--engine", "ctranslate2", "--beam-size", "1"]
    [bleu, *_] = json.loads(output_of([*MTKIT, "evaluate", str(model), *files, "--json", "-q"]))
    assert bleu["score"] > 50


# What it cannot do.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stopping=exact"],
            "decoding.stopping is exact; CTranslate2 stops once beam_size hypotheses have ended: take count",
        ),
        (["method=sample"], "decoding.method is sample; CTranslate2 would draw other samples: take beam"),
        (
            ["mbr_samples=4"],
            "decoding.mbr_samples is 4; CTranslate2 has no minimum Bayes risk decoding: take 0",
        ),
        (["coverage_penalty=0.2"], "decoding.coverage_penalty is 0.2; CTranslate2 has another one: take 0"),
        (["diversity_groups=2"], "decoding.diversity_groups is 2; CTranslate2 has ordinary beams: take 1"),
        (["length_penalty_form=gnmt"], "decoding.length_penalty_form is gnmt; CTranslate2 has power: take that"),
        (
            ["min_length=2"],
            "decoding.min_length is 2; with a beam, CTranslate2 spreads the probability of forbidden tokens over the "
            "others: take 0, or beam_size 1",
        ),
    ],
)
def test_a_setting_that_it_does_not_have_is_told(
    model: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    decoding = [f"decoding.{setting}" for setting in ("stopping=count", *overrides)]
    with pytest.raises(MtkitError) as told:
        mtkit.load(model, [*decoding, "device=cpu"], engine="ctranslate2")
    assert str(told.value) == f"engine ctranslate2: {message}, or take engine torch"
    capsys.readouterr()
    translator = mtkit.load(model, [*decoding, "device=cpu"], engine="auto")
    assert translator.engine is None
    assert capsys.readouterr().err == f"engine torch, not ctranslate2: {message}\n"


def test_an_ensemble_another_architecture_and_a_precision_are_told(model: Path) -> None:
    def told(**how: Any) -> str:
        with pytest.raises(MtkitError) as error:
            mtkit.load(model, [GREEDY, "device=cpu"], engine="ctranslate2", **how)
        return str(error.value)

    end = "or take engine torch"
    assert told(ensemble=[model]) == f"engine ctranslate2: an ensemble: CTranslate2 translates with one model, {end}"
    assert told(precision="fp64").startswith("engine ctranslate2: precision fp64: CTranslate2 has fp32, ")
    assert told(precision="fp8").startswith("precision: found str 'fp8', and engine ctranslate2 wants one of fp32, ")
    with pytest.raises(MtkitError, match="engine: found str 'marian', wants one of torch, ctranslate2, auto"):
        mtkit.load(model, engine="marian")


def test_what_a_model_is_and_has_is_told(model: Path) -> None:
    translator: Any = mtkit.load(model, [COUNT, "decoding.unknown=ban", "device=cpu"])
    assert fault_of(translator) is None  # byte fallback: <unk> is never said
    translator.tokenizer.target_shows_unknown = True
    assert fault_of(translator) == (
        "decoding.unknown is ban; with a beam, CTranslate2 spreads the probability of forbidden tokens over the "
        "others: take keep, or beam_size 1"
    )
    decoding = translator.config.decoding
    exact = decoding.model_copy(update={"beam_size": 1, "stopping": "optimal"})
    translator.config = translator.config.model_copy(update={"decoding": exact})
    assert fault_of(translator) == "decoding.stopping is optimal; CTranslate2 has no exact search: take count"
    translator.config = translator.config.model_copy(update={"decoding": decoding})
    translator.model.output.untrained = [7, 8]
    assert fault_of(translator) == "2 pieces were added that no training has seen: train from this model first"
    normed = translator.config.model.model_copy(update={"query_key_norm": True})
    translator.config = translator.config.model_copy(update={"model": normed})
    assert fault_of(translator) == "model.query_key_norm is true; CTranslate2 wants false"
    translator.config = translator.config.model_copy(update={"model": RecurrentConfig(architecture="rnn")})
    assert fault_of(translator) == "model.architecture is rnn; CTranslate2 takes Transformers alone"


def test_int8_is_quantized_when_it_is_opened(model: Path) -> None:
    wanted = mtkit.load(model, [GREEDY, "device=cpu"]).translate(LINES[:1])
    for precision in ("int8", "auto"):
        translator = mtkit.load(model, [GREEDY, "device=cpu"], precision, engine="ctranslate2")
        assert translator.translate(LINES[:1]) == wanted
        engine: Any = translator.engine
        assert engine._library.compute_type.startswith("int8")


def test_without_the_package_auto_is_torch_and_says_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_module, "library", lambda: None)
    assert mtkit.load(model, engine="auto").engine is None
    assert capsys.readouterr().err == ""
    with pytest.raises(MtkitError) as told:
        mtkit.load(model, engine="ctranslate2")
    assert str(told.value) == "engine ctranslate2: the package is not installed: pip install 'mtkit[ctranslate2]'"


def test_a_device_that_it_cannot_use_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def get_supported_compute_types(self, device: str) -> set[str]:
            raise RuntimeError("no driver")

    monkeypatch.setattr(engine_module, "library", Broken)
    fault = "device cpu: CTranslate2 cannot use it (no driver)"
    with pytest.raises(MtkitError) as told:
        mtkit.load(model, [GREEDY, "device=cpu"], engine="ctranslate2")
    assert str(told.value) == f"engine ctranslate2: {fault}, or take engine torch"
    assert mtkit.load(model, [GREEDY, "device=cpu"], engine="auto").engine is None
    assert capsys.readouterr().err == f"engine torch, not ctranslate2: {fault}\n"


# The exported files.


def exports(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_exported_once_and_again_when_it_has_changed(
    tiny_run: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))
    written = []

    def counting(portable: PortableModel, directory: Path) -> None:
        written.append(directory)
        write_ctranslate2(portable, directory)

    monkeypatch.setattr(engine_module, "write_ctranslate2", counting)
    for _ in range(2):
        assert mtkit.load(model, [GREEDY], engine="ctranslate2").translate(["four two"]) == ["4 2"]
    assert len(written) == 1
    [first] = exports(tmp_path / "model.ctranslate2")
    assert MARKER in exports(tmp_path / "model.ctranslate2" / first)
    weights = {name: weight * 1.001 for name, weight in open_model(model).weights().items()}
    save_file(weights, model / WEIGHTS)
    assert_same(*both(model, [GREEDY]))
    assert len(written) == 2
    now = exports(tmp_path / "model.ctranslate2")
    assert first in now, "another program may be translating with it"
    assert len(now) == 2
    assert not own_cache.exists()


def test_a_packed_model_and_a_checkpoint_have_their_files_beside_them(tiny_run: Path, tmp_path: Path) -> None:
    pack(tiny_run / "model", tmp_path / "toy.mtk")
    assert_same(*both(tmp_path / "toy.mtk", [GREEDY]))
    assert len(exports(tmp_path / "toy.mtk.ctranslate2")) == 1
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    checkpoint = sorted((run / "checkpoints").glob("step-*"))[0]
    assert_same(*both(checkpoint, [GREEDY]))
    assert len(exports(run / "checkpoint.ctranslate2")) == 1
    assert not list((run / "checkpoints").glob("*ctranslate2"))


def test_where_the_folder_of_the_model_cannot_be_written_the_cache_is(
    tiny_run: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))
    (tmp_path / "model.ctranslate2").write_text("in the way")
    for _ in range(2):
        assert mtkit.load(model, [GREEDY], engine="ctranslate2").translate(["four two"]) == ["4 2"]
    [place] = own_cache.iterdir()
    assert place.name.startswith("model.ctranslate2-")
    assert len(exports(place)) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "model.ctranslate2"))
    with pytest.raises(MtkitError) as told:
        mtkit.load(model, [GREEDY], engine="ctranslate2")
    assert str(told.value).count("cannot be written: ") == 2


def test_files_with_which_ctranslate2_translates_otherwise_are_refused(
    tiny_run: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))

    def wrong(portable: PortableModel, directory: Path) -> None:
        for weight in portable.weights.values():
            weight *= -1
        write_ctranslate2(portable, directory)

    def numbered(bundle: Bundle, translator: Translator) -> PortableModel:
        portable = _numbered(bundle, translator)
        portable.weights.update({name: weight.clone() for name, weight in portable.weights.items()})
        return portable

    _numbered = engine_module._numbered
    monkeypatch.setattr(engine_module, "_numbered", numbered)
    monkeypatch.setattr(engine_module, "write_ctranslate2", wrong)
    with pytest.raises(MtkitError, match=r"CTranslate2 translates [1-8] of 8 canaries otherwise than mtkit did"):
        mtkit.load(model, [GREEDY], engine="ctranslate2")
    assert exports(tmp_path / "model.ctranslate2") == []
    assert mtkit.load(model, [GREEDY], engine="auto").engine is None
    assert "canaries otherwise" in capsys.readouterr().err


def test_two_that_export_at_once_do_not_hurt_each_other(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))
    barrier, check, found = Barrier(2), engine_module._check, []

    def checked(bundle: Bundle, translator: Translator, directory: Path) -> None:
        barrier.wait(60)  # until both have written their files
        check(bundle, translator, directory)

    monkeypatch.setattr(engine_module, "_check", checked)
    threads = [
        Thread(target=lambda: found.append(mtkit.load(model, [GREEDY, "device=cpu"], engine="ctranslate2")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [translator.translate(["four two"]) for translator in found] == [["4 2"], ["4 2"]]
    assert len(exports(tmp_path / "model.ctranslate2")) == 1


def test_weights_that_are_no_numbers_are_refused(tiny_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))
    broken = {name: torch.full_like(weight, torch.nan) for name, weight in open_model(model).weights().items()}
    monkeypatch.setattr(Bundle, "weights", lambda self: broken)
    with pytest.raises(CheckpointError, match="train it again"):
        mtkit.load(model, [GREEDY], engine="ctranslate2")


def test_the_names_of_engines_are_the_same_on_the_command_line() -> None:
    from mtkit.commands.options import ENGINES

    assert ENGINES == engine_module.ENGINES
    assert "ctranslate2" in sys.modules


def test_an_export_deletes_only_old_exports_of_the_engine(copy_of_run: Path) -> None:
    place = copy_of_run / "model.ctranslate2"
    old, recent, others = place / "0123456789abcdef", place / "fedcba9876543210", place / "mine"
    for folder in (old, recent, others):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_text("weights")
    for folder in (old, recent):
        (folder / MARKER).write_text('{"format": "ctranslate2 of --engine"}')
    (place / "notes.txt").write_text("mine")
    for path in (old, others, place / "notes.txt"):
        os.utime(path, (0, 0))
    mtkit.load(copy_of_run, ["device=cpu", GREEDY], engine="ctranslate2")
    assert not old.exists()
    assert (recent / "model.bin").exists()
    assert (others / "model.bin").exists()
    assert (place / "notes.txt").exists()


@pytest.fixture
def copy_of_run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"
