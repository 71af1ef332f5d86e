"""Devices and precisions: a GPU computes what a CPU does, the same features, gradients, translations and scores.

Most tests compare a device in fp32 with a CPU in fp64, so that they can fail on a CPU, too.
"""

import ctypes
import io
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtkit.bundle.bundle import save_bundle
from mtkit.cli import main
from mtkit.config.data_and_model_settings import (
    AnyModelConfig,
    DataConfig,
    MixedConfig,
    RecurrentConfig,
    TransformerConfig,
)
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.data.batches import Batch, Rows, padded_batch, ragged
from mtkit.evaluation.plot import attention_of
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import (
    DTYPES,
    KERNELS_KEPT,
    M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD,
    keep_few_kernels,
    keep_freed_memory,
    mixed_precision,
    new_model,
    pick_device,
    pick_precision,
)
from mtkit.pipeline import run_train
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.optimizers import MovingAverage
from mtkit.training.update import OBJECTIVES
from mtkit.translation.translator import Translator, load
from tests.conftest import CorpusFiles
from tests.forked import answer_of
from tests.models.test_models import CHOICES, VOCAB, name_of
from tests.runs import DEVICES, events
from tests.training.test_loss import distance

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SMALL = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 2, "decoder_layers": 2}

ROTARY = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "query_key_norm": True}

ARCHITECTURES: dict[str, AnyModelConfig] = {
    "transformer": TransformerConfig(**SMALL),
    "rotary": TransformerConfig(**SMALL, **ROTARY),
    "layer norms of queries and keys": TransformerConfig(**SMALL, **{**ROTARY, "query_key_norm": "layer"}),
    "rnn": RecurrentConfig(d_model=16, attention="none", context="every_step"),
    "rnn-attention": RecurrentConfig(d_model=16, cell="gru", input_feeding=True),
    "mixed": MixedConfig(encoder=TransformerConfig(**SMALL), decoder=RecurrentConfig(d_model=16, attention="additive")),
}
# A CPU, which does not differ from itself, takes long for long rows of recurrent layers, and for long translations.
LENGTHS = ([3, 22, 9], [7, 17, 1]) if torch.cuda.is_available() else ([3, 10, 6], [6, 9, 1])
FEW_WORDS = [f"word{n} " * (1 + n % (7 if torch.cuda.is_available() else 2)) + "end" for n in range(17)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where to compute."""
    return pick_device(request.param)


def a_batch() -> Batch:
    """Pairs of very different lengths."""
    chance = np.random.default_rng(3)
    sides = [[chance.integers(4, VOCAB, length).tolist() for length in lengths] for lengths in LENGTHS]
    return padded_batch(ragged(sides[0]), ragged(sides[1]))


def gradient(model: TranslationModel, loss: Tensor) -> Tensor:
    """By all weights, in one row, on the CPU."""
    by_weights = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([by_weight.flatten().cpu() for by_weight in by_weights if by_weight is not None])


def without_dropout(model: TranslationModel) -> TranslationModel:
    """The same model; each device has a chance of its own."""
    for module in model.modules():
        for name in ("dropout", "layer_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


# Which precision.


@pytest.mark.parametrize(
    ("has_bf16", "capability", "wanted"),
    [
        (True, (8, 0), "bf16"),
        (True, (9, 0), "bf16"),
        (False, (7, 5), "fp16"),  # T4
        (False, (7, 0), "fp16"),  # V100
        (False, (6, 1), "fp32"),  # P40, which is slow at fp16
    ],
)
def test_auto_is_the_fastest_that_a_gpu_has(monkeypatch, has_bf16, capability, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_precision("auto", torch.device("cuda"), 64) == wanted


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_the_settings_say_is_taken_everywhere(precision):
    for name in ("cpu", "cuda"):
        assert pick_precision(precision, torch.device(name), 64) == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_products_are_in_the_precision_and_sums_in_fp32(precision, device):
    x = torch.ones(2, 2, device=device)
    with mixed_precision(device, precision):
        assert (x @ x).dtype == DTYPES[precision]
        assert torch.nn.functional.layer_norm(x, (2,)).dtype == torch.float32


@pytest.mark.gpu
@NO_GPU
def test_a_batch_of_new_lengths_takes_no_new_plan_of_attention():
    pick_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# Models and losses.


def every_third_token(rows: Rows, share: float, mark: int) -> Tensor:
    """Cuts the same tokens on every device, where SimCut draws them from the random numbers of each."""
    return (rows.ids % 3 == 0) & rows.mask & (rows.ids != mark)


# Neighbours among the choices are alike, so each takes one of the objectives in turn.
@pytest.mark.parametrize(
    ("config", "consistency"),
    list(zip(CHOICES, itertools.cycle(["none", "simcut"]))),
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_features_loss_and_gradients_are_those_of_fp64_on_a_cpu(config, consistency, device, monkeypatch):
    monkeypatch.setattr("mtkit.training.update.cut_tokens", every_third_token)
    exact = without_dropout(new_model(config, VOCAB, VOCAB, seed=1).double().train())
    model = without_dropout(new_model(config, VOCAB, VOCAB, seed=1).to(device).train())
    batch, there = a_batch(), a_batch().to(device)
    features = model(there.source, there.target)
    real = batch.target.mask
    assert features.device.type == device.type
    assert distance(features.cpu()[real], exact(batch.source, batch.target)[real]) < 2e-5

    settings = TrainingConfig(label_smoothing=0.1)
    found, wanted = OBJECTIVES[consistency](model, there, settings), OBJECTIVES[consistency](exact, batch, settings)
    assert consistency == "none" or wanted.sums[2] > 0.01, "the two passes differ"
    assert distance(found.total.cpu(), wanted.total) < 1e-5
    torch.testing.assert_close(found.sums.cpu().double(), wanted.sums, rtol=1e-4, atol=1e-4)
    assert distance(gradient(model, found.total), gradient(exact, wanted.total)) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_gradients_do_not_vanish_in_bf16(name, device):
    model = without_dropout(new_model(ARCHITECTURES[name], VOCAB, VOCAB, seed=1).to(device).train())
    batch = a_batch().to(device)
    wanted = gradient(model, OBJECTIVES["none"](model, batch, TrainingConfig()).total)
    with mixed_precision(device, "bf16"):
        total = OBJECTIVES["none"](model, batch, TrainingConfig()).total
    found = gradient(model, total * 1e-9)
    assert found.dtype == torch.float32
    assert distance(found * 1e9, wanted) < 0.1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_average_in_use_gives_the_features_of_its_weights(name, device):
    model = new_model(ARCHITECTURES[name], VOCAB, VOCAB, seed=1).to(device).eval()
    average = MovingAverage(model, 0.5)
    batch = a_batch().to(device)
    with torch.no_grad():
        before = model(batch.source, batch.target)
        for weight in model.parameters():
            weight += 0.1
        after = model(batch.source, batch.target)
        for _ in range(2):
            with average.in_use():
                torch.testing.assert_close(model(batch.source, batch.target), before)
            torch.testing.assert_close(model(batch.source, batch.target), after)
        average.update(100)
        with average.in_use():
            between = model(batch.source, batch.target)
    assert not torch.allclose(between, before)
    assert not torch.allclose(between, after)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_long_rows_are_the_same_to_the_bit_again_and_again(name, device, precision):
    model = new_model(ARCHITECTURES[name], VOCAB, VOCAB, seed=1).to(device).train()
    chance = np.random.default_rng(4)
    lengths = (400, 333, 64, 5) if device.type == "cuda" else (40, 33, 12, 5)  # a CPU takes seconds for long rows
    rows = ragged([chance.integers(4, VOCAB, length).tolist() for length in lengths])
    batch = padded_batch(rows, rows).to(device)

    def found() -> Tensor:
        torch.manual_seed(1)
        with mixed_precision(device, precision):
            total = OBJECTIVES["none"](model, batch, TrainingConfig()).total
        return gradient(model, total)

    first = found()
    assert all(torch.equal(found(), first) for _ in range(2 if device.type == "cuda" else 1))


# Translation.


@pytest.fixture(scope="module")
def bundles(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of random weights of each architecture, of one vocabulary, and one that has learnt the toy language."""
    tokenizer = Tokenizer.load(tiny_run / "tokenizer")
    found = {"trained": tiny_run / "model"}
    sizes = {"source_vocab_size": tokenizer.source_vocab_size, "target_vocab_size": tokenizer.target_vocab_size}
    for name, architecture in ARCHITECTURES.items():
        decoding = DecodingConfig(beam_size=4, max_length_ratio=1.0, max_length_extra=3)
        config = Config(data=DataConfig(max_length=64), model=architecture, decoding=decoding)
        model = new_model(config.model, *sizes.values(), seed=1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(2)
        found[name] = tmp_path_factory.mktemp("bundle") / name
        save_bundle(found[name], dict(model.named_parameters()), config, tokenizer.save, sizes)
    return found


def both(path: Path, device: torch.device, *settings: str, ensemble: tuple[Path, ...] = ()) -> list[Translator]:
    """The model on the device, and on a CPU in fp64 with small batches.

    In fp32 what is nearly as good may come first, so models of random weights, which find many things nearly as good,
    are in fp64 on the device, too.
    """
    precision = "fp32" if path.name == "model" and not ensemble else "fp64"
    small = "decoding.batch_tokens=900"
    return [
        load(path, [*settings, f"device={device.type}"], precision, ensemble),
        load(path, [*settings, "device=cpu", small], "fp64", ensemble),
    ]


def some_of(lines: list[str], device: torch.device) -> list[str]:
    """All of the lines on a GPU; on a CPU, which does not differ from itself, every third."""
    return lines if device.type == "cuda" else lines[::3]


def assert_same_translations(models: list[Translator], lines: list[str], **options: object) -> None:
    """Texts are equal, and scores nearly."""
    found, wanted = ([t for line in m.translate_lines(lines, **options) for t in line.translations] for m in models)
    assert [one.text for one in found] == [one.text for one in wanted]
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-3)
    assert len(found) >= len(lines)


def assert_same_scores(models: list[Translator], corpus_files: CorpusFiles) -> None:
    found, wanted = (model.score(*corpus_files.lines("test")) for model in models)
    for one, other in zip(found, wanted, strict=True):
        assert one.pieces == other.pieces
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


SEARCHES = {
    "greedy": ["decoding.beam_size=1"],
    "beam": ["decoding.beam_size=5"],
    "count": ["decoding.stopping=count", "decoding.length_penalty_form=gnmt"],
    "constraints": ["decoding.min_length=4", "decoding.no_repeat_ngram=2"],
    "diverse": ["decoding.diversity_groups=2", "decoding.diversity_strength=0.7"],
}


def has_its_own_turn(name: str, search: str) -> bool:
    """Whether an architecture takes part in a search, where not all can: each in two, the trained model in all."""
    return name == "trained" or search == "beam" or list(ARCHITECTURES).index(name) == list(SEARCHES).index(search)


@pytest.mark.parametrize(
    ("name", "search"),
    [
        (name, search)
        for name in ("trained", *ARCHITECTURES)
        for search in SEARCHES
        if torch.cuda.is_available() or has_its_own_turn(name, search)
    ],
)
def test_translations_are_those_of_fp64_on_a_cpu(bundles, corpus_files: CorpusFiles, device, name, search):
    lines = [*some_of(corpus_files.lines("test")[0], device), *some_of(FEW_WORDS, device), "", "unknown 漢字 in a line"]
    assert_same_translations(both(bundles[name], device, *SEARCHES[search]), lines)


@pytest.mark.parametrize("name", ["trained", "transformer", "rnn-attention", "mixed"])
def test_several_best_coverage_and_prefixes_are_those_of_fp64_on_a_cpu(bundles, corpus_files, device, name):
    lines, references = (some_of(side, device) for side in corpus_files.lines("test"))
    prefixes = [" ".join(reference.split()[: n % 3]) for n, reference in enumerate(references)]
    models = both(bundles[name], device, "decoding.coverage_penalty=0.4")
    assert_same_translations(models, lines, num_best=3, prefixes=prefixes)


def test_an_ensemble_translates_as_in_fp64_on_a_cpu(bundles, corpus_files, device):
    others = (bundles["rnn-attention"], bundles["mixed"])
    lines = some_of(corpus_files.lines("test")[0], device)
    assert_same_translations(both(bundles["trained"], device, ensemble=others), lines)


@pytest.mark.parametrize("options", [[], ["decoding.top_k=20"], ["decoding.top_p=0.9", "decoding.temperature=1.3"]])
@pytest.mark.parametrize("name", ["trained", "transformer", "rnn"])
def test_samples_of_a_seed_are_the_same_again_and_in_fp64_on_a_cpu(bundles, corpus_files, device, name, options):
    models = both(bundles[name], device, "decoding.method=sample", "decoding.seed=5", *options)
    lines = some_of(corpus_files.lines("test")[0], device)
    assert_same_translations([models[0], models[0]], lines, num_best=3)
    assert_same_translations(models, lines, num_best=3)


def test_elected_translations_of_a_seed_are_the_same_twice_and_others_by_another_seed(tiny_run, corpus_files, device):
    sources, _ = corpus_files.lines("test")
    settings = [f"device={device.type}", "decoding.mbr_samples=4", "decoding.temperature=3"]
    first, second = (load(tiny_run, settings).translate(sources) for _ in range(2))
    assert first == second
    assert load(tiny_run, [*settings, "decoding.seed=2"]).translate(sources) != first


def test_bf16_translates_nearly_as_well(tiny_run, corpus_files, device):
    sources, targets = corpus_files.lines("test")
    found = load(tiny_run, [f"device={device.type}"], "bf16").translate(sources)
    assert sum(one == other for one, other in zip(found, targets, strict=True)) >= 0.8 * len(targets)


@pytest.mark.parametrize("name", ["trained", *ARCHITECTURES])
def test_scores_of_given_translations_are_those_of_fp64_on_a_cpu(bundles, corpus_files, device, name):
    assert_same_scores(both(bundles[name], device), corpus_files)


def test_scores_of_an_ensemble_are_those_of_fp64_on_a_cpu(bundles, corpus_files, device):
    assert_same_scores(both(bundles["trained"], device, ensemble=(bundles["mixed"],)), corpus_files)


@pytest.mark.parametrize("name", ["trained", "rotary", "rnn-attention", "mixed"])
def test_attention_is_that_of_fp64_on_a_cpu(bundles, device, name):
    found, wanted = (attention_of(model, "a line of words", "one two") for model in both(bundles[name], device))
    for one, other in zip(found.weights, wanted.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# Training.


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", [{}, {"architecture": "rnn", "d_model": 32}], ids=["transformer", "rnn"])
def test_training_on_a_gpu_learns_in_every_precision(make_config, precision, model):
    config = make_config(
        model=model, training={"precision": precision, "max_steps": 300, "learning_rate": 0.005, "bpe_dropout": 0.1}
    ).model_copy(update={"device": "cuda"})
    run_train(config)
    losses = [event["loss"] for event in events(config.run_path, "train")]
    assert losses[-1] < 0.5 * losses[0]


# Commands.


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., bytes]:
    """What `mtkit ARGUMENTS` prints."""

    def run(*arguments: object, stdin: bytes = b"") -> bytes:
        monkeypatch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        out, error = capfdbinary.readouterr()
        assert not end.value.code, error.decode()
        return out

    return run


@pytest.mark.gpu
@NO_GPU
def test_commands_on_a_device_print_what_they_print_on_a_cpu(printed, tiny_run, corpus_files, device):
    root = corpus_files.root
    texts = ("--source", root / "test.src", "--target", root / "test.tgt")

    def on(name: str) -> list[bytes]:
        return [
            printed("evaluate", tiny_run, "--device", name),
            printed("translate", tiny_run, "--device", name, stdin=(root / "test.src").read_bytes()),
            printed("score", tiny_run, *texts, "--device", name),
        ]

    found, wanted = on(device.type), on("cpu")
    assert found[:2] == wanted[:2]
    scores = [[[float(number) for number in line.split()] for line in side[2].splitlines()] for side in (found, wanted)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    assert len(scores[0]) == len(corpus_files.lines("test")[0])


def pages_mapped() -> list[int]:
    """How many pages of memory are mapped in each of three rounds that take and free 100 MB."""
    import resource  # which Windows has not

    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(5 << 18) for _ in range(20)]  # 5 MB each
        del tensors
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def pages_mapped_without_and_with_settings() -> tuple[list[int], list[int]]:
    mallopt = ctypes.CDLL(None).mallopt
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        mallopt(parameter, 128 << 10)  # as glibc begins
    without = pages_mapped()
    keep_freed_memory.__wrapped__()
    pages_mapped()  # those which the child still shares with this process become its own
    return without, pages_mapped()


@pytest.mark.skipif(
    sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
    reason="the C library is not glibc",
)
def test_on_a_cpu_freed_memory_is_used_again_and_need_not_be_mapped_anew(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    without, found = answer_of(pages_mapped_without_and_with_settings)
    assert min(without) > 10_000
    assert found[-1] < min(without) / 10


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux malloc is set")
def test_settings_of_malloc_in_the_environment_are_left_alone(monkeypatch):
    asked: list[tuple[int, int]] = []
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(mallopt=lambda *values: asked.append(values)))
    keep_freed_memory.cache_clear()
    pick_device("cpu")
    assert asked
    asked.clear()
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "65536")
            keep_freed_memory.__wrapped__()
    assert not asked
    keep_freed_memory.cache_clear()  # to be done in earnest when it is next asked for


@pytest.mark.parametrize(
    ("name", "precision", "kept"),
    [
        ("rnn", "fp32", KERNELS_KEPT),
        ("rnn", "bf16", None),
        ("rnn-attention", "fp32", None),
        ("transformer", "fp32", None),
    ],
)
def test_onednn_keeps_few_kernels_for_lstms_in_fp32_alone(monkeypatch, name, precision, kept):
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    model = new_model(ARCHITECTURES[name], VOCAB, VOCAB, 1)
    keep_few_kernels(model, torch.device("cpu"), precision)
    assert environment == ({} if kept is None else {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(kept)})
    given = {"DNNL_PRIMITIVE_CACHE_CAPACITY": "1024"}
    monkeypatch.setattr(os, "environ", dict(given))
    keep_few_kernels(model, torch.device("cpu"), precision)
    assert os.environ == given
