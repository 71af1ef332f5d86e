"""Measures the target tokens per second of training, against a plain PyTorch loop over the same batches.

    MTKIT_DATA=FOLDER .venv/bin/python scripts/benchmark_training.py [--precision fp32] [--rounds 5]
    .venv/bin/python scripts/benchmark_training.py --device cuda --size base --batch-tokens 16384 --updates 20

The model is a small Transformer (3 + 3 layers, width 256, 4 heads, feed-forward 1024) or the base one of the paper
(6 + 6, 512, 8, 2048). The data is Multi30k English to German from FOLDER/multi30k with 8,000 pieces. Without
MTKIT_DATA, it is the demo corpus for the small model, and for the base model random rows of 5 to 60 tokens from a
vocabulary of 32,000. The plain loop uses torch.nn.Transformer with torch's cross-entropy and Adam. The two take turns
in one process; the result is the median of the ratios of the rounds. Leave the machine otherwise idle.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.bundle.opening import Progress
from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.data.batches import Batch, micro_batches, padded_batch, ragged
from mtkit.data.corpus import Corpus
from mtkit.models.layers import sinusoids
from mtkit.models.registry import mixed_precision, new_model, pick_device
from mtkit.preparation.prepare import binarize, make_tokenizer
from mtkit.text.vocabulary import NUM_SPECIAL, PAD
from mtkit.training.optimizers import make_optimizer
from mtkit.training.update import LossScaler, TrainState, Updater

Step = Callable[[Batch], None]

# Keeps glibc from returning the memory of each large tensor to the kernel. The plain loop, which computes all logits at
# once, is faster with it.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}


MODELS = {
    "small": "{d_model: 256, num_heads: 4, d_ff: 1024, encoder_layers: 3, decoder_layers: 3}",
    "base": "{d_model: 512, num_heads: 8, d_ff: 2048, encoder_layers: 6, decoder_layers: 6}",
}
RANDOM_VOCABULARY = 32_000
NUM_BATCHES = 60
IGNORED = -100  # label of padding in the plain loop


def settings(folder: Path, size: str, batch_tokens: int, device: str) -> Config:
    """Settings of a Transformer of that size, on Multi30k if MTKIT_DATA is set, else on the demo corpus."""
    root = os.environ.get("MTKIT_DATA")
    sides = ("multi30k/train.en", "multi30k/train.de") if root else ("data/demo/train.fr", "data/demo/train.en")
    return load_config(
        None,
        [
            f"data.root={root or Path(__file__).parent.parent}",
            f"data.train=[{{source: {sides[0]}, target: {sides[1]}}}]",
            f"run_dir={folder}",
            "tokenizer.vocab_size=8000",
            f"device={device}",
            f"model={MODELS[size]}",
            f"training={{batch_tokens: {batch_tokens}, learning_rate: 0.001}}",
        ],
    )


def real_batches(config: Config) -> tuple[list[Batch], int]:
    """Batches of the corpus in the settings, and its vocabulary size."""
    make_tokenizer(config)
    binarize(config)
    corpus = Corpus.open(config.run_path / "data" / "train")
    batches = [batch for _, (batch,) in islice(micro_batches(corpus, config.training, 0), NUM_BATCHES)]
    return batches, corpus.manifest.source.vocab_size


def random_batches(batch_tokens: int, number: int, vocab_size: int) -> list[Batch]:
    """Random batches, each of rows of similar length, as after sorting by length."""
    rng = np.random.default_rng(1)
    batches = []
    for length in rng.integers(5, 60, number):
        sides = []
        for _ in range(2):
            lengths = rng.integers(max(1, length - 3), length + 1, batch_tokens // (length + 1))
            sides.append(ragged([rng.integers(NUM_SPECIAL, vocab_size, n).tolist() for n in lengths]))
        batches.append(padded_batch(*sides))
    return batches


def mtkit_step(config: Config, vocab_size: int, precision: str, device: torch.device) -> Step:
    """The update that `mtkit train` makes, as a function of a batch."""
    model = new_model(config.model, vocab_size, vocab_size, seed=1).to(device).train()
    state = TrainState(model, make_optimizer(model, config.training, device), Progress(precision=precision))
    updater = Updater(state, config.training, LossScaler(device, precision, 1.0, 0))
    numbers = count(1)

    def step(batch: Batch) -> None:
        updater.update([batch], next(numbers), 0.001, batch.target_tokens)

    return step


class PlainTransformer(nn.Module):
    """torch.nn.Transformer with one embedding matrix for source, target and output."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        width = config.d_model
        self.scale = width**0.5
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        sizes = (width, config.num_heads, config.encoder_layers, config.decoder_layers, config.d_ff, 0.1)
        self.layers = nn.Transformer(*sizes, batch_first=True, norm_first=True)
        self.register_buffer("positions", sinusoids(512, width))
        self.positions: Tensor

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (R, L, D) of ids (R, L)."""
        return F.dropout(self.embedding(ids) * self.scale + self.positions[: ids.shape[1]], 0.1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits (R, T, V)."""
        padding = source == PAD
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        features = self.layers(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return F.linear(features, self.embedding.weight)


def plain_step(config: Config, vocab_size: int, precision: str, device: torch.device) -> Step:
    """The update of the plain loop, as a function of a batch."""
    assert isinstance(config.model, TransformerConfig)
    model = PlainTransformer(config.model, vocab_size).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.9, 0.98), eps=1e-9)

    def step(batch: Batch) -> None:
        with mixed_precision(device, precision):
            logits = model(batch.source.ids, batch.target.ids)
        labels = batch.labels.masked_fill(~batch.target.mask, IGNORED)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def rate(step: Step, batches: Iterator[Batch], updates: int, device: torch.device) -> float:
    """Target tokens per second over that many updates, end tokens included."""
    chosen = list(islice(batches, updates))
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for batch in chosen:
        step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return sum(batch.target_tokens for batch in chosen) / (time.perf_counter() - begun)


def compare(config: Config, batches: list[Batch], vocab_size: int, precision: str, rounds: int, updates: int) -> None:
    """Print the speeds of each round and their medians."""
    device = pick_device(config.device)
    batches = [batch.to(device) for batch in batches]
    contenders = {
        "mtkit": (mtkit_step(config, vocab_size, precision, device), cycle(batches)),
        "plain": (plain_step(config, vocab_size, precision, device), cycle(batches)),
    }
    all_rates = []
    for number in range(rounds + 1):
        rates = {name: rate(step, stream, updates, device) for name, (step, stream) in contenders.items()}
        if number:  # the first round warms up
            all_rates.append(rates)
            print(f"{precision}: {rates_text(rates)}  ratio {rates['mtkit'] / rates['plain']:.2f}", flush=True)
    medians = {name: statistics.median(rates[name] for rates in all_rates) for name in contenders}
    ratios = [rates["mtkit"] / rates["plain"] for rates in all_rates]
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{precision}: medians {rates_text(medians)}  ratio {statistics.median(ratios):.2f} ({span})", flush=True)


def rates_text(rates: dict[str, float]) -> str:
    """Target tokens per second of both, as text."""
    return f"mtkit {rates['mtkit']:8,.0f}  plain {rates['plain']:8,.0f}"


def main() -> None:
    """Read the arguments, prepare the data, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append", help="default: both")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--size", choices=list(MODELS), default="small")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="per side, padding included")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=8, help="of each of the two in a round")
    arguments = parser.parse_args()
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})

    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder), arguments.size, arguments.batch_tokens, arguments.device)
        is_random = arguments.size == "base" and "MTKIT_DATA" not in os.environ
        if is_random:
            batches, vocab_size = (
                random_batches(arguments.batch_tokens, NUM_BATCHES, RANDOM_VOCABULARY),
                RANDOM_VOCABULARY,
            )
        else:
            batches, vocab_size = real_batches(config)
        device = pick_device(config.device)
        name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
        print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads", flush=True)
        for precision in arguments.precision or ["fp32", "bf16"]:
            compare(config, batches, vocab_size, precision, arguments.rounds, arguments.updates)


if __name__ == "__main__":
    main()
