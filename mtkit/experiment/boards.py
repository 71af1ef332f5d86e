"""Boards: checks of claims without training, on mtkit's own models, losses, schedules and tokenizers.

A board is a function without arguments that returns figures (numbers) by name. It takes at most a few seconds on one
core, uses fixed random seeds, and leaves the global random state unchanged. An experiment file lists boards; the
predictions in the file refer to a figure of a board as `board["leaks", "minus infinity"]`. If the name of a figure ends
with a comma and a number, the figure is a point of a curve, and the number is its x value. Only the figures of the
board "milliseconds" differ from call to call.

Shapes: R rows, L length, Q queries, N keys, H heads, K width of a head, D model width, V vocabulary size, P positions.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mtkit.config.data_and_model_settings import (
    AnyModelConfig,
    MaskedConfig,
    RecurrentConfig,
    TokenizerConfig,
    TransformerConfig,
)
from mtkit.config.training_settings import DecodingConfig, TrainingConfig
from mtkit.data.batches import Batch, Rows, padded_batch, ragged, source_rows
from mtkit.errors import DataError
from mtkit.models import layers
from mtkit.models.interface import Embedding, Memory, Output, TranslationModel, next_rows
from mtkit.models.recurrent import RecurrentLayer
from mtkit.models.registry import new_model
from mtkit.models.transformer import TransformerEncoder
from mtkit.text.lines import read_lines
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import SPACE_MARK, UNKNOWN_TEXT
from mtkit.training.optimizers import learning_rate
from mtkit.training.update import cross_entropy, label_smoothed_cross_entropy
from mtkit.translation.alignments import alignment_scores, diagonal, read_gold
from mtkit.translation.decode import decode, log_probs_of

Figures = dict[str, float]

# Small random models, and sentences for them.

VOCAB = 23
FIRST_WORD = 5  # ids below are special tokens
SMALL: dict[str, Any] = {"d_model": 16, "num_heads": 4, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2}


def random_numbers(*shape: int, seed: int = 1) -> Tensor:
    """Returns an fp64 tensor of this shape with numbers from a normal distribution of mean 0 and variance 1."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def seeded() -> Iterator[None]:
    """Context manager that seeds PyTorch's random numbers on the CPU in the block, and then restores their state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        yield


def made(config: AnyModelConfig, vocab_size: int = VOCAB) -> TranslationModel:
    """Returns a random model in fp64, without dropout.

    The biases and gains of the model are random, too: with biases of zero, some faults would stay hidden.
    """
    model = new_model(config, vocab_size, vocab_size, seed=1).double().eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def transformer(**settings: Any) -> TranslationModel:
    """Returns a random Transformer of the size SMALL with these settings."""
    return made(TransformerConfig(**{**SMALL, **settings}))


def recurrent(**settings: Any) -> TranslationModel:
    """Returns a random recurrent model with GRU cells that read forwards only, with these settings."""
    return made(RecurrentConfig(**{"cell": "gru", "d_model": 16, "bidirectional": False, **settings}))


def sentences(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Returns random sentences of these lengths, as lists of token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(FIRST_WORD, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def batch_of(model: TranslationModel, sources: list[list[int]], targets: list[list[int]]) -> Batch:
    """Returns these sentence pairs as one training batch with padding."""
    return padded_batch(ragged(sources), ragged(targets), model.boundaries)


def other_word(token: int) -> int:
    """Returns the id of a word other than `token`."""
    return FIRST_WORD + (token - FIRST_WORD + 1) % (VOCAB - FIRST_WORD)


def largest(values: Tensor) -> float:
    """Returns the largest absolute value."""
    return float(values.abs().max())


# What a word can see.

Weigh = Callable[[Tensor, Tensor], Tensor]
LENGTH = 6  # number of words in the sentences with which leaks are measured


def masked_afterwards(query: Tensor, key: Tensor, renormalized: bool) -> Tensor:
    """Returns attention weights that are set to 0 for later keys after the softmax.

    The weights of a query then sum to less than 1; with `renormalized`, they are divided by their sum.
    """
    weights = layers.attention_weights(query, key, None, causal=False).tril()
    return weights / weights.sum(-1, keepdim=True) if renormalized else weights


# Attention without a mask, and four ways to hide later words; models do it in the last way.
MASKS: dict[str, Weigh] = {
    "no mask": lambda query, key: layers.attention_weights(query, key, None, causal=False),
    "product before the softmax": lambda query, key: layers.attention_weights(
        query, key, None, causal=False, factors=torch.ones(query.shape[2], key.shape[2], dtype=query.dtype).tril()
    ),
    "zero after the softmax": partial(masked_afterwards, renormalized=False),
    "zero, renormalised": partial(masked_afterwards, renormalized=True),
    "minus infinity": lambda query, key: layers.attention_weights(query, key, None, causal=True),
}


def leak_of_attention(weigh: Weigh) -> float:
    """Returns the largest change of the attention output for a word when a later word changes.

    `weigh` maps queries and keys to attention weights, as the entries of MASKS do.
    """
    x, other = random_numbers(2, LENGTH, 8)
    projections = random_numbers(3, 8, 8, seed=2) / math.sqrt(8)

    def attended(words: Tensor) -> Tensor:
        query, key, value = (words @ projections)[:, None, None].unbind()  # each (1, 1, L, K)
        return torch.matmul(weigh(query, key), value)[0, 0]

    before = attended(x)
    changes = []
    for place in range(1, LENGTH):
        changed = x.clone()
        changed[place] = other[place]
        changes.append(largest((attended(changed) - before)[:place]))
    return max(changes)


def leak_of_decoder(model: TranslationModel) -> float:
    """Returns the largest change of the features that predict a target word when that word or a later one changes.

    It should be 0: the decoder's features must not depend on the word that they predict, or on later words. Each word
    of a random sentence is changed in turn.
    """
    [source], [target] = sentences(5), sentences(LENGTH, seed=2)

    def features(words: list[int]) -> Tensor:
        batch = batch_of(model, [source], [words])
        return model.decode(batch.target, model.encode(batch.source))[0][0]

    before = features(target)
    changes = []
    for place in range(LENGTH):
        changed = [*target[:place], other_word(target[place]), *target[place + 1 :]]
        changes.append(largest((features(changed) - before)[: place + 1]))
    return max(changes)


def leak_of_encoder(model: TranslationModel) -> float:
    """Returns the largest change of the encoder's states for earlier words when the last word of a source changes."""
    [source] = sentences(LENGTH)
    states = [
        model.encoder(source_rows(ragged([words]))).states[0, : LENGTH - 1]
        for words in (source, [*source[:-1], other_word(source[-1])])
    ]
    return largest(states[0] - states[1])


def difference_of_steps(model: TranslationModel) -> float:
    """Returns the largest difference between features from incremental decoding and from full forward passes.

    Incremental decoding takes one token at a time, with a cached state; a full forward pass decodes a whole prefix.
    """
    [source], [target] = sentences(5), sentences(LENGTH, seed=2)
    rows = source_rows(ragged([source]))
    state, differences = model.encode(rows), []
    for length, token in enumerate([model.boundaries.start, *target]):
        features, state = model.decode(next_rows(torch.tensor([[token]]), state), state)
        batch = batch_of(model, [source], [target[:length]])
        differences.append(largest(features[0, -1] - model(batch.source, batch.target)[0, -1]))
    return max(differences)


@torch.no_grad()
def leaks() -> Figures:
    """How much of later words leaks into the outputs for earlier ones, for each entry of MASKS and for whole models.

    A leak is the largest change of the outputs for earlier words when a word changes. "decoder" and "encoder" are the
    leaks of whole models. Names such as "decoder, no mask" belong to models with one part changed.

    "steps" is the largest difference between features from incremental decoding and features from a full forward pass
    over each prefix. "steps, no mask" is this difference in a model without the causal mask, and should be 0, too. Such
    a model must compute the whole prefix again at each step: with a cache of keys and values, earlier words could not
    see later words.
    """
    found = {name: leak_of_attention(weigh) for name, weigh in MASKS.items()}
    found["decoder"] = leak_of_decoder(transformer())
    found["decoder, no mask"] = leak_of_decoder(transformer(ablate=("causal_mask",)))
    found["decoder, product"] = leak_of_decoder(transformer(ablate=("causal_mask_product",)))
    found["decoder, no shift"] = leak_of_decoder(transformer(ablate=("shift",)))
    found["encoder"] = leak_of_encoder(transformer())
    found["encoder, causal"] = leak_of_encoder(transformer(ablate=("encoder_causal",)))
    found["steps"] = difference_of_steps(transformer())
    found["steps, no mask"] = difference_of_steps(transformer(ablate=("causal_mask",)))
    return found


@torch.no_grad()
def connection() -> Figures:
    """How much the decoder's outputs depend on the source, and how large the encoder's gradient is.

    - "states replaced, one vector": the largest change of the features of a recurrent model without attention when
      noise replaces the encoder's states of the source tokens; the decoder still starts from the true final states
    - "states replaced, attention": the same for a recurrent model with attention
    - "gradient of the encoder, cross-attention" and "gradient of the encoder, no cross-attention": the norm of the
      gradients of the encoder's layers, in a Transformer with and in one without cross-attention
    - "least change, cross-attention" and "least change, no cross-attention": in the same two models, the smallest
      change of the features of a target token when one source word changes
    """
    found: Figures = {}
    for name, attention in (("one vector", "none"), ("attention", "additive")):
        model = recurrent(attention=attention)
        batch = batch_of(model, sentences(7, 4), sentences(5, 6, seed=2))
        memory = model.encoder(batch.source)
        noise = random_numbers(*memory.states.shape)
        outputs = [
            model.decode(batch.target, model.decoder.start(Memory(states, memory.finals), batch.source))[0]
            for states in (memory.states, noise)
        ]
        found[f"states replaced, {name}"] = largest((outputs[0] - outputs[1])[batch.target.mask])
    for name, model in (
        ("cross-attention", transformer()),
        ("no cross-attention", transformer(ablate=("cross_attention",))),
    ):
        batch = batch_of(model, sentences(7, 4), sentences(5, 6, seed=2))
        gradients = gradients_of(model, [batch])
        norms = [gradient.norm() for name, gradient in gradients.items() if name.startswith("encoder.layers")]
        found[f"gradient of the encoder, {name}"] = float(torch.stack(norms).norm())
        found[f"least change, {name}"] = least_change(model)
    return found


def least_change(model: TranslationModel) -> float:
    """Returns the smallest change of the features of a target word when one source word changes."""
    [source], [target] = sentences(6), sentences(5, seed=2)
    batch = batch_of(model, [source], [target])
    before = model(batch.source, batch.target)[0]
    changes = []
    for place, token in enumerate(source):
        changed = batch_of(model, [[*source[:place], other_word(token), *source[place + 1 :]]], [target])
        changes.append(float((model(changed.source, changed.target)[0] - before).abs().amax(1).min()))
    return min(changes)


# Order and positions.


@torch.no_grad()
def order() -> Figures:
    """How well the encoder and the decoder tell different word orders apart, for each kind of positional encoding.

    - "encoder": a source is reordered and encoded, and the states of the original source are reordered in the same way;
      the largest difference between the two; 0 means that the encoder cannot tell the orders apart
    - "output": the largest difference between the decoder's features for the two sources
    - "decoder": in decoders of one and of two layers without positional encoding, the largest change of the last
      token's features when the first two target words are exchanged
    """
    [source], [target] = sentences(7), sentences(6, seed=2)
    moved = [3, 1, 0, 4, 6, 2, 5]
    places = torch.tensor([*moved, len(source)])  # the end mark stays where it is
    found: Figures = {}
    for kind in layers.POSITIONS:
        model = transformer(encoder_positions=kind)
        both = [batch_of(model, [words], [target]) for words in (source, [source[place] for place in moved])]
        states = [model.encoder(batch.source).states[0] for batch in both]
        found[f"encoder, {kind}"] = largest(states[0][places] - states[1])
        outputs = [model(batch.source, batch.target)[0] for batch in both]
        found[f"output, {kind}"] = largest(outputs[0] - outputs[1])
    for name, depth in (("one layer", 1), ("two layers", 2)):
        model = transformer(decoder_positions="none", decoder_layers=depth)
        exchanged = [target[1], target[0], *target[2:]]
        batches = [batch_of(model, [source], [words]) for words in (target, exchanged)]
        last = [model(batch.source, batch.target)[0, -1] for batch in batches]
        found[f"decoder, none, {name}"] = largest(last[0] - last[1])
    return found


CODE_WIDTH, CODE_LENGTH = 128, 1000  # width and number of the positional encodings that are compared


def codes(kind: str) -> Tensor:
    """Returns the positional encodings (P, D) of the first CODE_LENGTH positions, in fp64.

    `kind` is a value of the setting `positions`. Learned encodings have their random initial values.
    """
    make = layers.POSITIONS[kind]
    assert make is not None, "only codes that are added or concatenated to embeddings"
    with seeded():
        module = make(TransformerConfig.model_validate({"d_model": CODE_WIDTH, "positions": kind}))
        if isinstance(module, layers.LearnedPositions):
            module.initialize()
    positions = torch.arange(CODE_LENGTH)[None]
    table: Tensor = module(positions, CODE_LENGTH)[0].detach().double()
    return table


def offset_map(offset: int) -> Tensor:
    """Returns the matrix (D, D) that rotates each pair of a sine and a cosine by the angle of `offset` positions."""
    frequencies = 10000.0 ** -(torch.arange(CODE_WIDTH // 2, dtype=torch.float64) / (CODE_WIDTH // 2))
    sine, cosine = (offset * frequencies).sin().diag(), (offset * frequencies).cos().diag()
    return torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)])


def misfit_of_best_map(table: Tensor, offset: int) -> float:
    """Returns the error of the best affine map from each positional encoding to the one `offset` positions later.

    `table` (P, D) holds the encodings. The error is the norm of the residuals over all positions, divided by the norm
    of the later encodings' deviations from their mean. 0 means that the map is exact, 1 that it is no better than
    always giving that mean.
    """
    before, after = table[:-offset], table[offset:]
    before = torch.cat([before, torch.ones(len(before), 1, dtype=before.dtype)], 1)
    spread = (after - after.mean(0)).norm()
    return float((before @ torch.linalg.lstsq(before, after, driver="gelsd").solution - after).norm() / spread)


@torch.no_grad()
def codes_compared() -> Figures:
    """Properties of positional encodings, and whether a linear map leads from each encoding to a later one.

    The encoding of one position is called its code here. These figures are for sinusoidal codes of width 128:

    - "rotation": the largest error when `offset_map` computes the code that is 1, 7 or 100 positions later
    - "smallest step", "largest step": the distance between two neighbouring codes, relative to the norm of a code
    - "directions with 99 % of the variance": the number of principal components with 99 % of the variance of the first
      50 codes
    - "dimensions in use": how many dimensions vary by more than 0.1 among the first 50 codes
    - "before unlike after": the dot products of a code with the code k positions before it, and with the code k
      positions after it; the figure is the largest difference between the two, for k of 1, 5 and 20
    - "closest positions": the smallest distance between two codes

    These figures are for other codes, too:

    - "best map, binary" (or another kind): the error of the best affine map to the code 7 positions later
      (`misfit_of_best_map`), fitted and measured on the same positions
    - "period of bit 0", "period of bit 3": the periods of two columns of binary codes, in positions
    - "rotary, both moved": the largest change of the scores of rotary attention when queries and keys both move on by
      five positions
    """
    table = codes("sinusoidal")
    found: Figures = {"rotation": max(largest(table[:-k] @ offset_map(k).T - table[k:]) for k in (1, 7, 100))}
    for kind in ("sinusoidal", "scalar", "binary", "learned"):
        found[f"best map, {kind}"] = misfit_of_best_map(codes(kind), 7)
    steps = (table[1:] - table[:-1]).norm(dim=1) / table[1:].norm(dim=1)
    found["smallest step"], found["largest step"] = float(steps.min()), float(steps.max())
    first = table[:50]
    variances = torch.linalg.svdvals(first - first.mean(0)) ** 2
    shares = variances.cumsum(0) / variances.sum()
    found["directions with 99 % of the variance"] = float((shares < 0.99).sum() + 1)
    found["dimensions in use"] = float((first.amax(0) - first.amin(0) > 0.1).sum())
    products = table @ table.T
    found["before unlike after"] = max(
        largest(products.diagonal(k)[: CODE_LENGTH - 2 * k] - products.diagonal(k)[k : CODE_LENGTH - k])
        for k in (1, 5, 20)
    )
    found["closest positions"] = float(torch.pdist(table).min())
    bits = codes("binary")
    for bit in (0, 3):
        found[f"period of bit {bit}"] = period(bits[:, bit])
    found["rotary, both moved"] = change_of_rotary_scores()
    return found


@torch.no_grad()
def similarity() -> Figures:
    """The cosines between the encoding of position 25 and those of positions 1 to 49, for three positional encodings.

    These are the sinusoidal, the binary and the learned encoding; a key is such as "binary, 7".
    """
    found: Figures = {}
    for kind in ("sinusoidal", "binary", "learned"):
        table = nn.functional.normalize(codes(kind)[:50], dim=1)
        found |= {f"{kind}, {position}": float(table[25] @ table[position]) for position in range(1, 50)}
    return found


def period(column: Tensor) -> float:
    """Returns the smallest number of positions after which a column (P,) of codes repeats itself."""
    return float(next(p for p in range(1, len(column)) if torch.equal(column[p:], column[:-p])))


def change_of_rotary_scores() -> float:
    """Returns the largest change of rotary attention's scores when queries and keys both move on by five positions."""
    query, key = random_numbers(2, 1, 1, 12, 16).float()
    rotary = layers.RotaryPositions(16)
    scores = []
    for first in (0, 5):
        rotated = rotary(torch.arange(first, first + 12)[None], first + 12)
        scores.append(rotated(query) @ rotated(key).mT)
    return largest(scores[0] - scores[1])


TRAINED_LENGTH, TABLE_LENGTH = 12, 64


def learned_rows() -> Figures:
    """How many rows of a table of learned positions get a gradient when the longest sentence has 12 words.

    Later rows keep their random values, however long training is. "scalar, largest trained" and "scalar, largest later"
    are the values of the scalar code at the last trained position, and at the last position of the table.
    """
    model = transformer(positions="learned", max_positions=TABLE_LENGTH)
    lengths = range(1, TRAINED_LENGTH + 1)
    gradients = gradients_of(model, [batch_of(model, sentences(*lengths), sentences(*lengths, seed=2))])
    table = gradients["encoder.embedded.positions.weight"]
    scalar = codes("scalar")
    return {
        "rows": float(len(table)),
        "rows with a gradient": float((table.abs().amax(1) > 0).sum()),
        "scalar, largest trained": float(scalar[TRAINED_LENGTH, 0]),
        "scalar, largest later": float(scalar[TABLE_LENGTH - 1, 0]),
    }


# Learning rate and loss.


CURVES = ((512, 4000), (512, 8000), (256, 4000))  # model width, and warm-up in updates


def rates_of(d_model: int, warmup_steps: int, steps: Sequence[int]) -> dict[int, float]:
    """Returns the learning rates of these updates in the schedule "noam" (Vaswani et al. 2017), by update."""
    settings = TrainingConfig(schedule="noam", warmup_steps=warmup_steps)
    return {step: learning_rate(step, settings, d_model) for step in steps}


def noam() -> Figures:
    """The peaks of the learning-rate curves in CURVES, by model width and warm-up, and the updates at which they occur.

    "after both peaks" is the largest relative difference between the two curves of width 512 from step 8,000 on.
    """
    found: Figures = {}
    curves = {curve: rates_of(*curve, range(1, 10_001)) for curve in CURVES}
    for (d_model, warmup), rates in curves.items():
        peak = max(rates, key=rates.__getitem__)
        found[f"peak of width {d_model} and warm-up {warmup}"] = rates[peak]
        found[f"its step, width {d_model} and warm-up {warmup}"] = float(peak)
    one, other = curves[512, 4000], curves[512, 8000]
    return found | {"after both peaks": max(abs(one[step] / other[step] - 1) for step in range(8000, 10_001))}


def learning_rates() -> Figures:
    """The learning-rate curves in CURVES, at update 1 and at every 500th update up to 20,000."""
    steps = (1, *range(500, 20_001, 500))
    return {
        f"width {d_model} and warm-up {warmup}, {step}": rate
        for d_model, warmup in CURVES
        for step, rate in rates_of(d_model, warmup, steps).items()
    }


def loss_at(odds: float, vocab_size: int, smoothing: float) -> tuple[float, float]:
    """Returns the smoothed loss of a token, and its derivative with respect to `odds`, the log-odds of the label.

    The other tokens of the vocabulary share the rest of the probability evenly.
    """
    output = Output(Embedding(vocab_size, 2, scaled=False)).double()
    with torch.no_grad():
        output.weight[:] = torch.tensor([0.0, 1.0])
        output.weight[0] = torch.tensor([1.0, 0.0])  # the label
    features = torch.tensor([[[odds + math.log(vocab_size - 1), 0.0]]], dtype=torch.float64, requires_grad=True)
    loss, _ = label_smoothed_cross_entropy(features, output, torch.zeros(1, 1, dtype=torch.int64), smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    return float(loss.detach()), float(features.grad[0, 0, 0])


def lowest_loss(vocab_size: int, smoothing: float) -> tuple[float, float]:
    """Returns the probability of the label, at most 1 - 1e-9, that minimises the smoothed loss, and that minimum."""
    low, high = 0.0, -math.log(1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        if loss_at(middle, vocab_size, smoothing)[1] < 0:
            low = middle
        else:
            high = middle
    return 1 / (1 + math.exp(-low)), loss_at(low, vocab_size, smoothing)[0]


def smoothing() -> Figures:
    """The minimum of the label-smoothed loss, for several sizes of the vocabulary and amounts of smoothing.

    "floor, 5, 0.1" is the minimum for 5 words and smoothing 0.1; "best probability, 5, 0.1" is the probability of the
    label at this minimum. mtkit spreads the smoothing mass over all V words. Other tools spread it over the V - 1 wrong
    words. Their loss equals mtkit's with the smoothing multiplied by V / (V - 1); a figure with "spread over the
    others" is for this loss. "surer than that" is how far the loss is above "floor, 8000, 0.1" if the label gets the
    probability 0.999.
    """
    found: Figures = {}
    for vocab_size, mass in ((5, 0.0), (5, 0.1), (5, 0.4), (8000, 0.1)):
        best, floor = lowest_loss(vocab_size, mass)
        found[f"best probability, {vocab_size}, {mass}"], found[f"floor, {vocab_size}, {mass}"] = best, floor
    found["best probability, 5, 0.1, spread over the others"] = lowest_loss(5, 0.1 * 5 / 4)[0]
    sure, _ = loss_at(math.log(0.999 / 0.001), 8000, 0.1)
    found["surer than that"] = sure - found["floor, 8000, 0.1"]
    return found


def smoothed_loss() -> Figures:
    """Returns the loss as a function of the probability of the correct token, for a vocabulary of 8,000 tokens.

    A key is such as "smoothing 0.1, 0.95": the amount of label smoothing and the probability.
    """
    probabilities = (0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.98, 0.99, 0.999)
    return {
        f"smoothing {mass}, {probability}": loss_at(math.log(probability / (1 - probability)), 8000, mass)[0]
        for mass in (0.0, 0.1, 0.4)
        for probability in probabilities
    }


NUM_KEYS, NUM_QUERIES = 20, 400


@torch.no_grad()
def first_attention(width: int, scaled: bool) -> Tensor:
    """Returns attention weights (1, 1, Q, N) of random queries and keys of variance 1, as before training.

    `width` is the width of the head; `scaled` tells whether scores are divided by the square root of `width`.
    """
    query = random_numbers(1, 1, NUM_QUERIES, width, seed=width)
    key = random_numbers(1, 1, NUM_KEYS, width, seed=width + 1)
    with seeded():
        factor = layers.SelfAttention(width, 1, 0.0, scaled=scaled).factor
    return layers.attention_weights(query * factor, key, None, causal=False)


WIDTHS = (8, 32, 128, 512)
SCALES = {"scaled": True, "unscaled": False}


def entropy() -> Figures:
    """The mean entropy of attention over 20 keys before training, by head width, with and without scaling.

    The entropy is in nats. It is highest, log 20 = 3.00, if all keys get the same weight.
    """
    return {
        f"{name}, {width}": float(torch.special.entr(first_attention(width, scaled)).sum(-1).mean())
        for name, scaled in SCALES.items()
        for width in WIDTHS
    }


def slope() -> Figures:
    """How much of the gradient passes through the softmax of attention before training, by head width and scaling.

    A figure is the mean of w (1 - w), the derivative of the softmax, over the weights w of 20 keys.
    """
    found: Figures = {}
    for (name, scaled), width in itertools.product(SCALES.items(), WIDTHS):
        weights = first_attention(width, scaled)
        found[f"{name}, {width}"] = float((weights * (1 - weights)).mean())
    return found


# Depth.

DEEP: dict[str, Any] = {"d_model": 32, "num_heads": 4, "d_ff": 64, "dropout": 0.0}
NORMS: dict[str, dict[str, Any]] = {
    "none": {"norm": "none"},
    "post": {"norm_placement": "post"},
    "pre": {"norm_placement": "pre"},
}


def gradients_of(model: TranslationModel, batches: Sequence[Batch], tokens: int | None = None) -> dict[str, Tensor]:
    """Returns the gradient, for each weight by name, of the loss per target token, without label smoothing.

    The loss is summed over all batches and divided by `tokens`, by default the number of target tokens in all batches.
    """
    settings = TrainingConfig(label_smoothing=0.0)
    tokens = tokens or sum(batch.target_tokens for batch in batches)
    with torch.enable_grad():
        model.zero_grad(set_to_none=True)
        for batch in batches:
            (cross_entropy(model, batch, settings).total / tokens).backward()  # type: ignore[no-untyped-call]
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, w in model.named_parameters()}


def deep_models() -> Iterator[tuple[str, TranslationModel, Batch, int]]:
    """Yields random Transformers of several depths as (name, model, batch, number of layers).

    Encoder and decoder have 2, 6 or 12 layers each. For each depth, there is a model for each entry of NORMS (no norms,
    post-norm, pre-norm), with and without residual connections; a name is such as "norm post, no residual". All
    batches have the same sentences.
    """
    pairs = sentences(*[12] * 8), sentences(*[12] * 8, seed=2)
    for norm, with_residual, number in itertools.product(NORMS, (True, False), (2, 6, 12)):
        parts: dict[str, Any] = {**DEEP, **NORMS[norm], "ablate": () if with_residual else ("residual",)}
        config = TransformerConfig(**parts, encoder_layers=number, decoder_layers=number)
        model = new_model(config, VOCAB, VOCAB, seed=1).double()
        name = f"norm {norm}, {'residual' if with_residual else 'no residual'}"
        yield name, model, batch_of(model, *pairs), number


def cosines() -> Figures:
    """The mean cosine between the states of two words of a sentence in an untrained encoder, by number of layers.

    1 means that the states of all words point in the same direction.
    """
    return {f"{name}, {number}": mean_cosine(model, batch.source) for name, model, batch, number in deep_models()}


def gradients() -> Figures:
    """The norms of the gradients of three feed-forward layers before training, by the number of layers.

    These are the first and the last feed-forward layer of the encoder, and the last one of the decoder.
    """
    found: Figures = {}
    for name, model, batch, number in deep_models():
        by_weight = gradients_of(model, [batch])
        for which, layer in (
            ("first", "encoder.layers.0"),
            ("last", f"encoder.layers.{number - 1}"),
            ("last of the decoder", f"decoder.layers.{number - 1}"),
        ):
            found[f"{which}, {name}, {number}"] = float(by_weight[f"{layer}.feed_forward.inner.weight"].norm())
    return found


@torch.no_grad()
def mean_cosine(model: TranslationModel, source: Rows) -> float:
    """Returns the mean cosine between the encoder's states of two words of a sentence, without end marks.

    The states are those before the norm that follows the last layer of a pre-norm model, if there is such a norm.
    """
    encoder = model.encoder
    assert isinstance(encoder, TransformerEncoder)
    norm, encoder.norm = encoder.norm, nn.Identity()
    states = nn.functional.normalize(encoder(source).states[:, :-1], dim=2)  # (R, L, D)
    encoder.norm = norm
    cosines = states @ states.mT
    length = cosines.shape[1]
    return float((cosines.sum((1, 2)) - length).mean() / (length * (length - 1)))


# Sequential work in training and in translation: what cannot be computed in parallel.


def longest_chain(output: Tensor) -> int:
    """Returns the number of operations on the longest path from the leaves of the autograd graph to `output`."""
    lengths: dict[Any, int] = {}
    waiting: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while waiting:
        operation, inputs_done = waiting.pop()
        inputs = [each for each, _ in operation.next_functions if each is not None]
        if inputs_done:
            lengths[operation] = 1 + max((lengths[each] for each in inputs), default=0)
        elif operation not in lengths:
            waiting.append((operation, True))
            waiting += [(each, False) for each in inputs if each not in lengths]
    return lengths[output.grad_fn]


TOKENS = 2048  # in each forward and backward pass that is timed, whatever the length of the sentences
STEP_LENGTHS = (8, 32, 128)


def layers_to_run() -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns a layer of attention and two of recurrent cells, by name; each maps (R, L, 32) to the same shape."""
    with seeded():
        attention = layers.SelfAttention(32, 4, 0.0)
        cells = {name: RecurrentLayer(name, 32, 32) for name in ("gru", "tanh")}
    read = {name: partial(read_from_zero, cell) for name, cell in cells.items()}
    return {"attention": partial(attention, mask=None, causal=True), **read}


def read_from_zero(cells: RecurrentLayer, x: Tensor) -> Tensor:
    """Returns the outputs (R, L, D) of recurrent cells whose initial state is zero."""
    outputs: Tensor = cells(x, x.new_zeros(len(x), cells.state_width))[0]
    return outputs


def steps() -> Figures:
    """The number of operations in a layer's forward pass that must run one after another, by sentence length.

    This number is the length of the longest path in the autograd graph. "product against loop" is the largest
    difference between attention computed for all words at once and attention computed word by word.
    """
    found: Figures = {}
    for (name, layer), length in itertools.product(layers_to_run().items(), STEP_LENGTHS):
        x = random_numbers(1, length, 32).float().requires_grad_()
        found[f"{name}, {length}"] = float(longest_chain(layer(x).sum()))
    attention, x = layers_to_run()["attention"], random_numbers(2, 16, 32).float()
    with torch.no_grad():
        one_by_one = [attention(x[:, : place + 1])[:, -1] for place in range(16)]
        return found | {"product against loop": largest(attention(x) - torch.stack(one_by_one, 1))}


def milliseconds() -> Figures:
    """How many milliseconds a layer's forward and backward pass take for 2,048 words, by sentence length.

    Each figure is the shortest of three times on this machine's CPU. A layer whose positions can be computed in
    parallel is faster only if there are idle processors to do so.
    """
    found: Figures = {}
    for (name, layer), length in itertools.product(layers_to_run().items(), STEP_LENGTHS):
        x = random_numbers(TOKENS // length, length, 32).float().requires_grad_()
        found[f"{name}, {length}"] = min(time_of(layer, x) for _ in range(3))
    return found


def time_of(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Returns how many milliseconds a forward and a backward pass of `layer` on `x` take."""
    start = time.perf_counter()
    layer(x).sum().backward()  # type: ignore[no-untyped-call]
    return 1000 * (time.perf_counter() - start)


FORCED_LENGTH = 20


@torch.no_grad()
def search_work() -> Figures:
    """How often the decoder is called to produce 20 words, and the total number of words that it computes.

    A decoder with a cache computes each word once; a decoder without one computes all words so far at every step.
    Scoring a given translation takes one call. Mask-predict takes one call for each of its iterations, however long
    the sentence is.
    """
    models = {
        "cache": transformer(),
        "no cache": transformer(ablate=("causal_mask",)),
        "recurrent": recurrent(attention="additive"),
    }
    sources = sentences(FORCED_LENGTH)
    greedy: dict[str, Any] = {
        "beam_size": 1,
        "min_length": FORCED_LENGTH,
        "max_length_ratio": 1.0,
        "max_length_extra": 0,
    }
    found: Figures = {}
    for name, model in models.items():
        calls = count_words(model, partial(decode, model, DecodingConfig(**greedy), sources))
        found[f"calls, {name}"], found[f"words, {name}"] = float(len(calls)), float(sum(calls))
    model = models["cache"]
    calls = count_words(model, partial(log_probs_of, model, sources, sentences(FORCED_LENGTH, seed=2), 4096))
    found["calls, scoring"], found["words, scoring"] = float(len(calls)), float(sum(calls))
    masked = made(MaskedConfig(**SMALL))
    for iterations, length in itertools.product((1, 4), (5, FORCED_LENGTH)):
        settings = DecodingConfig(
            method="mask_predict",
            iterations=iterations,
            length_candidates=1,
            max_length_ratio=1.0,
            max_length_extra=0,
        )
        calls = count_words(masked, partial(decode, masked, settings, sentences(length)))
        found[f"calls, {iterations} iterations, {length} words"] = float(len(calls))
    found["steps against all at once"] = difference_of_steps(models["cache"])
    return found


def count_words(model: TranslationModel, work: Callable[[], object]) -> list[int]:
    """Returns the number of words that the decoder's first layer computes in each of its calls while `work` runs."""
    decoder: Any = model.decoder
    counts: list[int] = []
    handle = decoder.layers[0].register_forward_hook(
        lambda layer, inputs, output: counts.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    work()
    handle.remove()
    return counts


NUM_SEARCHED = 6


@torch.no_grad()
def search() -> Figures:
    """The log-probability of the translations that searches find with a random model, by the size of the beam.

    Each figure is the mean over a few sentences, without a length penalty. "best of all" is the log-probability of the
    best translation of up to three words, found by scoring all such translations.
    """
    vocab_size, longest = FIRST_WORD + 3, 3
    model = made(TransformerConfig(**{**SMALL, "d_model": 32, "scale_embeddings": False}), vocab_size)
    with torch.no_grad():
        model.output.weight.mul_(3)  # so that words differ in probability
    generator = torch.Generator().manual_seed(3)
    sources = torch.randint(FIRST_WORD, vocab_size, (NUM_SEARCHED, longest), generator=generator).tolist()
    settings: dict[str, Any] = {"length_penalty": 0.0, "max_length_ratio": 1.0, "max_length_extra": 0}
    found: Figures = {}
    searches: dict[str, dict[str, Any]] = {f"beam, {size}": {"beam_size": size} for size in (1, 2, 4, 16)}
    searches["exact"] = {"beam_size": 1, "stopping": "optimal"}
    for name, more in searches.items():
        best = decode(model, DecodingConfig(**settings, **more), sources)
        found[name] = sum(hypotheses[0].log_prob for hypotheses in best) / len(sources)
    every = [
        list(words) for n in range(longest + 1) for words in itertools.product(range(FIRST_WORD, vocab_size), repeat=n)
    ]
    scores = [max(map(sum, log_probs_of(model, [source] * len(every), every, 4096))) for source in sources]
    found["best of all"] = sum(scores) / len(scores)
    return found


# Batches, probabilities and gradients.


def side_by_side(rows: Sequence[Rows], num_padding: int) -> Rows:
    """Packs rows that hold one sentence each into a single row, and adds `num_padding` padding tokens at its end."""
    padding = torch.zeros(1, num_padding, dtype=torch.int64)
    parts = [(each.ids, each.segments * number, each.positions) for number, each in enumerate(rows, start=1)]
    ids, segments, positions = (torch.cat([*part, padding], 1) for part in zip(*parts, strict=True))
    return Rows(ids, segments, positions, packed=True)


def below_padding(rows: Rows) -> Rows:
    """Returns the rows with a further row at the top that holds nothing but padding."""
    ids, segments, positions = (nn.functional.pad(x, (0, 0, 1, 0)) for x in (rows.ids, rows.segments, rows.positions))
    return Rows(ids, segments, positions)


@torch.no_grad()
def batches() -> Figures:
    """How much the features of sentences in one batch differ from those of each sentence alone, in fp64.

    "padded against single" and "packed against single" are the largest differences for a padded batch, and for all
    sentences packed into one row. "beside an empty row" is the largest change of the padded batch's features when a row
    of padding alone is put above it. Each figure "finite" is 1 if all features, those of padding included, are finite,
    and 0 if any is NaN or infinite.
    """
    model = transformer()
    sources, targets = sentences(7, 3, 5), sentences(4, 6, 2, seed=2)
    batch = batch_of(model, sources, targets)
    single = [batch_of(model, [source], [target]) for source, target in zip(sources, targets, strict=True)]
    alone = torch.cat([model(each.source, each.target)[0] for each in single])
    together = model(batch.source, batch.target)
    source, target = ([getattr(each, side) for each in single] for side in ("source", "target"))
    in_one_row = model(side_by_side(source, 4), side_by_side(target, 3))
    with_empty = model(below_padding(batch.source), below_padding(batch.target))
    return {
        "padded against single": largest(together[batch.target.mask] - alone),
        "packed against single": largest(in_one_row[0, : len(alone)] - alone),
        "beside an empty row": largest((with_empty[1:] - together)[batch.target.mask]),
        "finite, padded": float(together.isfinite().all()),
        "finite, packed": float(in_one_row.isfinite().all()),
        "finite, empty row": float(with_empty.isfinite().all()),
    }


@torch.no_grad()
def chain_rule() -> Figures:
    """Whether the probabilities of all translations sum to 1, and how two means of a loss differ.

    "complete" is the total probability of all translations of at most three tokens. "unfinished" is the total
    probability of all longer translations, computed as that of all prefixes of four tokens.

    The means are taken over a short and a long sentence. "mean over tokens" is the mean loss of all tokens of both, and
    "loss per token" is this mean as training computes it. "mean of sentence means" is the mean of the two
    sentences' mean losses, in which a short sentence has as much weight as a long one.
    """
    vocab_size, longest = FIRST_WORD + 1, 3
    model = made(TransformerConfig(**SMALL), vocab_size)
    end = model.boundaries.target_end
    source = [FIRST_WORD] * 4
    words = [token for token in range(vocab_size) if token != end]
    complete = unfinished = 0.0
    for length in range(longest + 2):
        prefixes = [list(prefix) for prefix in itertools.product(words, repeat=length)]
        scored = log_probs_of(model, [source] * len(prefixes), prefixes, 4096)
        if length <= longest:
            complete += sum(math.exp(sum(log_probs)) for log_probs in scored)
        else:
            unfinished += sum(math.exp(sum(log_probs[:-1])) for log_probs in scored)
    model = transformer()
    pairs = sentences(4, 9), sentences(2, 16, seed=2)
    batch = batch_of(model, *pairs)
    loss = cross_entropy(model, batch, TrainingConfig(label_smoothing=0.0)).total
    scored = log_probs_of(model, *pairs, 4096)
    total = -sum(map(sum, scored))
    return {
        "complete": complete,
        "unfinished": unfinished,
        "sum of all": complete + unfinished,
        "loss per token": float(loss) / batch.target_tokens,
        "mean over tokens": total / sum(map(len, scored)),
        "mean of sentence means": sum(-sum(log_probs) / len(log_probs) for log_probs in scored) / len(scored),
    }


def memory() -> Figures:
    """How much the output of an untrained recurrent layer depends on the word 1, 5, 20 or 50 positions earlier.

    A figure is the norm of the gradient with respect to that word, divided by the norm for the current word. "later" is
    the largest norm for a later word, which must be 0. "attention" has the same figures for a self-attention layer.
    """
    length, width = 60, 32
    x = random_numbers(4, length, width).requires_grad_()
    found: Figures = {}
    with seeded():
        cells = {name: RecurrentLayer(name, width, width).double() for name in ("tanh", "gru", "lstm")}
        attention = layers.SelfAttention(width, 4, 0.0).double()
        for layer in cells.values():
            layer.initialize()
    for name, layer in cells.items():
        outputs, _ = layer(x, x.new_zeros(len(x), layer.state_width))
        found |= reach(name, outputs, x)
    return found | reach("attention", attention(x, None, causal=True), x)


def reach(name: str, outputs: Tensor, x: Tensor) -> Figures:
    """Returns how much the output of a layer for one word depends on earlier and later words.

    The layer computed `outputs` (R, L, D) from `x` (R, L, D). The word is at index L - 6, so that there are five later
    words. Its output, projected on a random direction, has a gradient with respect to each word of `x`. The figure
    "lstm, 20", if `name` is "lstm", is the norm of the gradient for the word 20 positions earlier, divided by the norm
    for the word itself. "lstm, later" is the largest norm for a later word, not divided.
    """
    place = outputs.shape[1] - 6
    direction = random_numbers(*outputs[:, place].shape, seed=3)
    [gradient] = torch.autograd.grad((outputs[:, place] * direction).sum(), x)
    norms = gradient.norm(dim=(0, 2))
    found = {f"{name}, {distance}": float(norms[place - distance] / norms[place]) for distance in (1, 5, 20, 50)}
    return found | {f"{name}, later": float(norms[place + 1 :].max())}


def ranks() -> Figures:
    """Whether two halves of a batch, as on two devices, give the gradient of the whole batch.

    A figure is the norm of the difference from the gradient of the whole batch, relative to the norm of that gradient.
    "halves" sums the gradients of both halves and divides by the tokens of the whole batch, as training does. "mean of
    halves" averages the gradients of the mean losses of the halves, which gives another gradient if one half has more
    tokens than the other.
    """
    model = transformer()
    sources, targets = sentences(9, 8, 2, 3), sentences(8, 9, 3, 1, seed=2)
    whole = batch_of(model, sources, targets)
    halves = [batch_of(model, sources[:2], targets[:2]), batch_of(model, sources[2:], targets[2:])]
    wanted = joined(gradients_of(model, [whole]))
    summed = sum(joined(gradients_of(model, [half], whole.target_tokens)) for half in halves)
    mean = sum(joined(gradients_of(model, [half])) for half in halves) / 2
    return {
        "halves": float((summed - wanted).norm() / wanted.norm()),
        "mean of halves": float((mean - wanted).norm() / wanted.norm()),
        "tokens of the first half": float(halves[0].target_tokens),
        "tokens of the second half": float(halves[1].target_tokens),
    }


def joined(gradients: dict[str, Tensor]) -> Tensor:
    """Returns all gradients as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


# Text: the demo corpus.


def demo(name: str) -> Path:
    """Returns the path of a file of the demo corpus, which is in the repository, not in the installed package.

    Raises DataError if there is none.
    """
    folders = [Path("data/demo"), Path(__file__).parents[2] / "data" / "demo"]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folders[0] / name}: not there; this board reads the demo corpus: run it in a clone of mtkit")


def words_of(lines: Iterable[str]) -> list[list[str]]:
    """Returns the words of each line, in lower case, without the punctuation at their ends."""
    return [[word.strip(".,?!").lower() for word in line.split() if word.strip(".,?!")] for line in lines]


NUM_LINES = 5000  # number of lines of the training text on which tokenizers are trained
FORMS = ("s", "ed", "ing")  # endings of regular English verbs
VOCAB_SIZES = (150, 300, 1000, 4000)


def families_of(counts: Counter[str]) -> list[list[str]]:
    """Returns the families of word forms in a text, such as ["walk", "walked", "walking"].

    A family is a word of at least three letters, followed by its forms with the endings in FORMS that also occur in the
    text; there are at least two such forms. `counts` holds the words of the text.
    """
    families = [[base, *(base + form for form in FORMS if base + form in counts)] for base in sorted(counts)]
    return [family for family in families if len(family) > 2 and len(family[0]) > 2]


def cutter(lines: list[str], settings: TokenizerConfig) -> Callable[[str], list[str]]:
    """Trains a tokenizer on these lines; returns a function that segments a word into its pieces."""
    with TemporaryDirectory() as folder:
        train_tokenizer(lambda: lines, list, settings, Path(folder))
        tokenizer = Tokenizer.load(Path(folder))

    def cut(word: str) -> list[str]:
        [tokens] = tokenizer.encode_target([word])
        pieces = [piece.removeprefix(SPACE_MARK) for piece in tokenizer.target_pieces(tokens)]
        return [piece for piece in pieces if piece]

    return cut


def share(answers: Iterable[bool]) -> float:
    """Returns the share of true answers, from 0 to 1."""
    given = list(answers)
    return sum(given) / len(given)


def segmentations() -> Figures:
    """How tokenizers with several vocabulary sizes segment families of word forms, such as walk and walking.

    - "families": the number of families in the training text
    - "stem": the share of families whose base form is one piece, and whose other forms each have several pieces, the
      first of which is the base form
    - "whole": the share of families whose forms are all single pieces
    - "pieces per word": the mean over the words of the test text
    - "unknown": the share of words of the test text that have an unknown token, with a vocabulary of 300 whole words,
      and with one of 300 BPE pieces
    """
    train, test = (
        [" ".join(words) for words in words_of(read_lines(demo(f"{part}.en")))] for part in ("train", "test")
    )
    train = train[:NUM_LINES]
    families = families_of(Counter(word for line in train for word in line.split()))
    words = [word for line in test for word in line.split()]
    found: Figures = {"families": float(len(families))}
    for size in VOCAB_SIZES:
        cut = cutter(train, TokenizerConfig(vocab_size=size, byte_fallback=False))
        forms = [[cut(form) for form in family] for family in families]
        found[f"stem, {size}"] = share(
            len(base) == 1 and all(len(form) > 1 and form[0] == base[0] for form in others) for base, *others in forms
        )
        found[f"whole, {size}"] = share(all(len(form) == 1 for form in family) for family in forms)
        found[f"pieces per word, {size}"] = sum(len(cut(word)) for word in words) / len(words)
    for kind in ("word", "bpe"):
        cut = cutter(train, TokenizerConfig(type=kind, vocab_size=300, byte_fallback=False))
        found[f"unknown, {kind}, 300"] = share(UNKNOWN_TEXT in cut(word) for word in words)
    return found


def bits(counts: Counter[str]) -> float:
    """Returns the entropy, in bits, of the distribution that these counts give."""
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())


def continuations() -> Figures:
    """How uncertain the next word is after some words, and how many sentences have several translations.

    "bits" is the entropy of the next word in the English text, after a given word; "ten likeliest" is the share of the
    ten most frequent next words. "several translations" is the share of the distinct sentences of a language that occur
    with more than one translation.
    """
    texts = [list(read_lines(demo(f"train.{language}"))) for language in ("fr", "en")]
    followers: dict[str, Counter[str]] = {}
    for line in words_of(texts[1]):
        for word, after in itertools.pairwise(line):
            followers.setdefault(word, Counter())[after] += 1
    found: Figures = {}
    for word in ("the", "my", "is", "going", "used"):
        found[f"bits, {word}"] = bits(followers[word])
        ten = followers[word].most_common(10)
        found[f"ten likeliest, {word}"] = sum(count for _, count in ten) / followers[word].total()
    for name, (sources, targets) in (("French", texts), ("English", texts[::-1])):
        translations: dict[str, set[str]] = {}
        for source, target in zip(sources, targets, strict=True):
            translations.setdefault(source, set()).add(target)
        found[f"several translations, {name}"] = share(len(each) > 1 for each in translations.values())
    return found


def alignments() -> Figures:
    """How well simple rules, without attention, align the demo corpus, and how often its word order differs.

    All but the last figure are alignment error rates in per cent:

    - "diagonal": links along the diagonal, from the lengths of the sentences alone; attention is useful only if it is
      better
    - "first word": a link from every target word to the first source word
    - "gold": the sure gold links themselves, for comparison
    - "sentences that are not monotone": the share, from 0 to 1, of sentences whose sure gold links cross
    """
    pairs = list(zip(*(read_lines(demo(f"test.{language}")) for language in ("fr", "en")), strict=True))
    gold = read_gold(demo("test.align"), pairs)
    lengths = [(len(source.split()), len(target.split())) for source, target in pairs]
    guesses = {
        "gold": [tuple(sorted(each.sure)) for each in gold],
        "diagonal": list(itertools.starmap(diagonal, lengths)),
        "first word": [tuple((0, j) for j in range(num_target)) for _, num_target in lengths],
    }
    found = {name: alignment_scores(links, gold).error_rate for name, links in guesses.items()}
    return found | {"sentences that are not monotone": share(not is_monotone(sorted(each.sure)) for each in gold)}


def is_monotone(links: Sequence[tuple[int, int]]) -> bool:
    """Whether no two of the links (source index, target index) cross each other; the links must be sorted."""
    return all(b[1] >= a[1] for a, b in itertools.combinations(links, 2) if b[0] > a[0])


BOARDS: dict[str, Callable[[], Figures]] = {
    "leaks": leaks,
    "connection": connection,
    "order": order,
    "codes": codes_compared,
    "similarity": similarity,
    "learned-rows": learned_rows,
    "noam": noam,
    "learning-rates": learning_rates,
    "smoothing": smoothing,
    "smoothed-loss": smoothed_loss,
    "entropy": entropy,
    "slope": slope,
    "cosines": cosines,
    "gradients": gradients,
    "steps": steps,
    "milliseconds": milliseconds,
    "search-work": search_work,
    "search": search,
    "batches": batches,
    "chain-rule": chain_rule,
    "memory": memory,
    "ranks": ranks,
    "segmentations": segmentations,
    "continuations": continuations,
    "alignments": alignments,
}
