"""A search with a cache finds what a search finds that computes every prefix anew, for random models of all kinds."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.load import config_from_data
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import Rows, ragged, source_rows
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import new_model
from mtkit.translation.decode import decode, max_lengths_of
from mtkit.translation.search import LENGTH_PENALTIES, STOPPING, beam_search

SEEDS = [*range(18), 22, 193]  # 200 were compared once; in the last two, a beam of one that stops by "exact" goes on
VOCABULARY = 14


@dataclass(frozen=True)
class Prefixes:
    """The state of a search without a cache: all tokens so far."""

    model: TranslationModel
    sources: Sequence[list[int]]
    tokens: Tensor  # (R, W, 1 + T)
    sentences: Tensor  # (R,)

    def branch(self, parents: Tensor) -> "Prefixes":
        chosen = parents[:, :, None].expand(-1, -1, self.tokens.shape[2])
        return replace(self, tokens=self.tokens.gather(1, chosen))

    def keep(self, sentences: Tensor) -> "Prefixes":
        return replace(self, tokens=self.tokens[sentences], sentences=self.sentences[sentences])


@torch.no_grad()
def computed_anew(ids: Tensor, before: Prefixes) -> tuple[Tensor, Prefixes]:
    num_rows, width = ids.shape
    tokens = torch.cat([before.tokens.expand(num_rows, width, -1), ids[:, :, None]], 2)
    model, flat = before.model, tokens.flatten(0, 1)
    sources = [before.sources[sentence] for sentence in before.sentences.tolist() for _ in range(width)]
    target = Rows(flat, torch.ones_like(flat), torch.arange(flat.shape[1]).expand_as(flat))
    features, _ = model.decode(target, model.encode(source_rows(ragged(sources), model.boundaries.source_end)))
    log_probs = model.output(features[:, -1]).log_softmax(-1)
    log_probs[:, list(model.special.never_generated)] = -torch.inf
    return log_probs.view(num_rows, width, -1), replace(before, tokens=tokens)


def random_settings(choose: random.Random) -> dict[str, Any]:
    """Settings of a small model of any kind."""
    layers = {side: choose.choice([1, 2]) for side in ("encoder_layers", "decoder_layers")}
    transformer = {
        "architecture": "transformer",
        "num_heads": choose.choice([1, 2, 4]),
        "d_ff": choose.choice([8, 16]),
        "positions": choose.choice(["sinusoidal", "learned", "rotary", "alibi", "none"]),
        "norm_placement": choose.choice(["pre", "post"]),
        "query_key_norm": choose.choice([True, False, "layer"]),
    }
    recurrent = {
        "architecture": "rnn",
        "cell": choose.choice(["lstm", "gru", "tanh"]),
        "attention": choose.choice(["additive", "dot", "none"]),
        "bidirectional": choose.choice([True, False]),
    }
    kind = choose.choice(["transformer", "rnn", "mixed"])
    if kind != "mixed":
        return {**(transformer if kind == "transformer" else recurrent), **layers, "d_model": 16}
    return {
        "architecture": "mixed",
        "encoder": {**transformer, "d_model": 16, "encoder_layers": layers["encoder_layers"]},
        "decoder": {**recurrent, "d_model": 16, "decoder_layers": layers["decoder_layers"]},
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_search_with_a_cache_finds_what_one_without_a_cache_finds(seed: int) -> None:
    choose = random.Random(seed)
    config = config_from_data({"model": random_settings(choose), "data": {"max_length": 40}}, "random")
    model = new_model(config.model, VOCABULARY, VOCABULARY, seed).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0 if parameter.dim() > 1 else 1.0)  # so that hypotheses differ
    sources = [
        [choose.randrange(4, VOCABULARY) for _ in range(choose.randint(1, 6))] for _ in range(choose.randint(1, 4))
    ]
    decoding = DecodingConfig(
        beam_size=choose.choice([1, 2, 5]),
        stopping=choose.choice(["exact", "count"]),
        length_penalty=choose.choice([0.0, 0.6, 1.0]),
        max_length_ratio=1.5,
        max_length_extra=4,
    )
    with torch.no_grad():
        found = decode(model, decoding, sources)
        watched = decode(model, decoding, sources, watch=lambda step: None)
    wanted = beam_search(
        computed_anew,
        Prefixes(model, sources, torch.zeros(len(sources), 1, 0, dtype=torch.int64), torch.arange(len(sources))),
        torch.full((len(sources),), model.boundaries.start),
        max_lengths_of(model, decoding, ragged(sources), ()),
        model.boundaries.target_end,
        decoding.beam_size,
        partial(LENGTH_PENALTIES[decoding.length_penalty_form], exponent=decoding.length_penalty),
        stopping=STOPPING["count" if decoding.beam_size == 1 else decoding.stopping],
    )
    for mine, other, seen in zip(found, wanted, watched, strict=True):
        assert mine[0].tokens == other[0].tokens == seen[0].tokens
        assert mine[0].score == pytest.approx(other[0].score, abs=1e-9)
