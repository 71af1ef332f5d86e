"""A GPU says what the CPU says. Each test runs on the CPU, too, where it is quick and proves itself."""

import pytest
import torch

from mtkit.config.model_settings import AnyModelConfig, MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batch import padded_batch, ragged
from mtkit.models.registry import new_model, pick_device
from mtkit.pipeline import run_binarize
from mtkit.training.loss import OBJECTIVES
from mtkit.translation.translator import load

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]

V = 60
TINY = {"d_model": 32, "num_heads": 4, "d_ff": 48, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
SMALL = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
MODELS: list[AnyModelConfig] = [
    TransformerConfig(**TINY),
    TransformerConfig(**TINY, norm_placement="post", activation="silu", output_bias=True, start_token="zero"),
    TransformerConfig(**TINY, norm="rms", activation="swiglu", positions="rotary", tie_embeddings="none"),
    TransformerConfig(**TINY, positions="learned", embedding_norm=True),
    RecurrentConfig(**SMALL),
    RecurrentConfig(**SMALL, cell="gru", attention="additive", input_feeding=True),
    RecurrentConfig(**SMALL, cell="tanh", attention="none", context="every_step", reverse_source=True),
    MixedConfig(encoder=TransformerConfig(**TINY), decoder=RecurrentConfig(**SMALL, attention="dot")),
    MixedConfig(encoder=RecurrentConfig(**SMALL), decoder=TransformerConfig(**TINY)),
]


def rows(num: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (num,), generator=generator).tolist()
    return [torch.randint(4, V, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("objective", ["none", "simcut"])
@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.architecture)
def test_losses_and_gradients_are_those_of_the_cpu_in_double_precision(config, objective, device):
    settings = TrainingConfig(consistency=objective, **({"cutoff": 1e-9} if objective == "simcut" else {}))
    batch = padded_batch(ragged(rows(30, 1)), ragged(rows(30, 2)))
    found = []
    for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
        model = new_model(config, V, V, seed=1).to(pick_device(place), dtype).train()
        loss = OBJECTIVES[objective](model, batch.to(model.device), settings)
        loss.total.backward()
        gradients = torch.cat([p.grad.double().cpu().flatten() for p in model.parameters()])
        found.append((loss.total.item(), gradients))
    (wanted, exact), (loss, gradients) = found
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert (gradients - exact).norm() < 1e-4 * exact.norm()


WAYS = {
    "greedy": ["decoding.beam_size=1"],
    "beam": ["decoding.beam_size=4"],
    "small batches": ["decoding.beam_size=4", "decoding.batch_tokens=64"],
    "coverage": ["decoding.beam_size=4", "decoding.coverage_penalty=0.3"],
    "diverse": ["decoding.beam_size=4", "decoding.diversity_groups=2"],
    "constraints": ["decoding.beam_size=3", "decoding.no_repeat_ngram=2", "decoding.min_length=4"],
    "count": ["decoding.beam_size=4", "decoding.stopping=count"],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_translations_are_those_of_the_cpu_in_double_precision(tiny_run, corpus_files, way, device):
    sources, targets = corpus_files.lines("test")
    lines = [*sources, "", "unknown words 漢字 in a line"]
    prefixes = [*(target[:1] for target in targets), "", ""]
    wanted = load(tiny_run, ["device=cpu", *WAYS[way]], "fp64")
    found = load(tiny_run, [f"device={device}", *WAYS[way]], "fp32")
    assert found.translate(lines) == wanted.translate(lines)
    assert found.translate(lines, prefixes) == wanted.translate(lines, prefixes)
    best = [[t.score for t in line.translations] for line in found.translate_lines(lines, num_best=1)]
    exact = [[t.score for t in line.translations] for line in wanted.translate_lines(lines, num_best=1)]
    for one, other in zip(best, exact, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [["decoding.method=sample", "decoding.top_p=0.9"], ["decoding.mbr_samples=4"]], ids=str)
def test_samples_of_a_seed_are_the_same_twice(tiny_run, corpus_files, way, device):
    sources, _ = corpus_files.lines("test")
    first, second = (load(tiny_run, [f"device={device}", *way]).translate(sources) for _ in range(2))
    assert first == second
    other = load(tiny_run, [f"device={device}", "decoding.method=sample", "decoding.temperature=3", "decoding.seed=2"])
    assert other.translate(sources) != first


@pytest.mark.parametrize("device", DEVICES)
def test_likelihoods_are_those_of_the_cpu_and_ensembles_too(tiny_run, corpus_files, device):
    sources, targets = corpus_files.lines("test")
    for others in ([], [tiny_run]):
        wanted = load(tiny_run, ["device=cpu"], "fp64", others).score(sources, targets)
        found = load(tiny_run, [f"device={device}"], "fp32", others).score(sources, targets)
        for one, other in zip(found, wanted, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_on_a_device_translates_nearly_as_well(tiny_run, corpus_files, device):
    sources, targets = corpus_files.lines("test")
    found = load(tiny_run, [f"device={device}"], "bf16").translate(sources)
    assert sum(one == other for one, other in zip(found, targets, strict=True)) >= 0.8 * len(targets)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", [{}, {"architecture": "rnn", "d_model": 32}], ids=["transformer", "rnn"])
def test_training_on_a_gpu_learns_in_every_precision(make_config, precision, model):
    from mtkit.pipeline import run_train

    config = make_config(
        model=model, training={"precision": precision, "max_steps": 300, "learning_rate": 0.005, "bpe_dropout": 0.1}
    ).model_copy(update={"device": "cuda"})
    run_binarize(config)
    run_train(config)
    text = (config.run_path / "log.jsonl").read_text()
    losses = [
        float(line.split('"loss": ')[1].split(",")[0]) for line in text.splitlines() if '"event": "train"' in line
    ]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.gpu
@NO_GPU
def test_a_batch_of_new_lengths_takes_no_new_plan_of_attention():
    pick_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
