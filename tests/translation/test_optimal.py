"""Exact search finds what brute force finds, never less than the search before it, and tells where it gave up."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mtkit.config.data_and_model_settings import AnyModelConfig, RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import BEGIN, END
from mtkit.translation.decode import decode
from mtkit.translation.search import NOTHING_FOUND, beam_search, optimal_search, power
from tests.translation.test_search import PENALTIES, Memory, Network, Penalty, starts

TOKENS = [4, 5, 6]  # of the vocabulary of seven
FEW = 2  # sentences


class Extended:
    """Extends prefixes by a network, without the states of a search, and counts them."""

    def __init__(self, network: Network, state: Memory) -> None:
        self.network = network
        self.state = state
        self.count = 0

    def __call__(self, sentence: int, prefixes: Tensor) -> Tensor:
        self.count += len(prefixes)
        going = self.state.keep(torch.full((len(prefixes),), sentence))
        for ids in torch.cat([torch.full((len(prefixes), 1), BEGIN), prefixes], dim=1).T:
            log_probs, going = self.network.step(ids[:, None], going)
        return log_probs[:, 0]


def brute_force(extend: Extended, sentence: int, longest: int, penalty: Penalty) -> list[tuple[float, list[int]]]:
    """All hypotheses with their scores, best first."""
    found, before = [], torch.zeros(1, dtype=torch.float64)
    for length in range(longest + 1):
        prefixes = torch.tensor(list(itertools.product(TOKENS, repeat=length)), dtype=torch.int64).view(
            len(TOKENS) ** length, length
        )
        log_probs = extend(sentence, prefixes)
        divisor = float(penalty(torch.tensor([length + 1], dtype=torch.float64)))
        found += zip(((before + log_probs[:, END]) / divisor).tolist(), prefixes.tolist(), strict=True)
        before = (before[:, None] + log_probs[:, TOKENS]).flatten()
    return sorted(found, key=lambda pair: -pair[0])


def test_exact_search_finds_what_brute_force_finds_on_90_random_models() -> None:
    better = 0
    for seed in range(90):
        network, penalty, num_best = Network(7, seed), PENALTIES[seed % len(PENALTIES)], 1 + 2 * (seed % 2)
        extend, longest = Extended(network, network.start(FEW, seed)), [4, 3]
        beam = beam_search(
            network.step, network.start(FEW, seed), starts(FEW), torch.tensor(longest), END, 1, penalty, num_best
        )
        found = optimal_search(extend, beam, longest, END, penalty, 1000, num_best)
        for sentence in range(FEW):
            wanted = brute_force(extend, sentence, longest[sentence], penalty)[:num_best]
            assert [h.tokens for h in found[sentence]] == [tokens for _, tokens in wanted]
            assert [h.score for h in found[sentence]] == pytest.approx([score for score, _ in wanted])
            assert not any(h.cut_short for h in found[sentence])
            better += found[sentence][0].score > beam[sentence][0].score + 1e-9
    assert better > 25, "a beam of one errs often, so that the first bound was not all"


def test_a_good_first_bound_saves_work_and_the_limit_is_kept_and_told() -> None:
    network, penalty = Network(7), partial(power, exponent=0.0)
    longest = [6] * FEW
    whole = Extended(network, network.start(FEW))
    optimal = optimal_search(whole, [[NOTHING_FOUND]] * FEW, longest, END, penalty, 10_000)
    again = Extended(network, network.start(FEW))
    assert optimal_search(again, optimal, longest, END, penalty, 10_000) == optimal
    assert again.count < whole.count < FEW * sum(3**n for n in range(7))
    for limit in (1, 2, 4):
        few = Extended(network, network.start(FEW))
        [[found]] = optimal_search(few, [[NOTHING_FOUND]], longest[:1], END, penalty, limit)
        assert few.count == limit
        assert found.cut_short
        assert found.score <= optimal[0][0].score
    assert optimal_search(few, optimal, longest, END, penalty, again.count) == optimal


def test_a_model_of_nan_keeps_what_was_found() -> None:
    nan = torch.full((1, 7), math.nan)
    found = optimal_search(lambda _, prefixes: nan, [[NOTHING_FOUND]], [3], END, partial(power, exponent=0.0), 10)
    assert found == [[NOTHING_FOUND]]


SIZES: dict[str, Any] = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}


@pytest.mark.parametrize(
    "config",
    [
        *(
            TransformerConfig(**SIZES, num_heads=2, d_ff=8, **others)
            for others in ({}, {"ablate": ("causal_mask",)}, {"ablate": ("shift",), "positions": "alibi"})
        ),
        RecurrentConfig(**SIZES),
    ],
    ids=["plain", "causal_mask", "shift", "rnn"],
)
def test_every_model_has_the_best_that_a_beam_as_wide_as_the_space_finds(config: AnyModelConfig) -> None:
    model = new_model(config, 8, 8, seed=3).double().eval()
    sentences, prefixes = [[4, 5, 6], [7], [5, 5]], [[], [6], []]
    for others in ({"length_penalty": 0.0}, {"min_length": 1, "no_repeat_ngram": 2, "length_penalty": 1.5}):
        common = {"max_length_ratio": 0.01, "max_length_extra": 3, **others}
        wide = DecodingConfig(**common, beam_size=64)
        exact = DecodingConfig(**common, beam_size=1, stopping="optimal")
        wanted, found = (decode(model, settings, sentences, 1, prefixes) for settings in (wide, exact))
        assert [h.tokens for [h] in found] == [h.tokens for [h] in wanted]
        assert [h.score for [h] in found] == pytest.approx([h.score for [h] in wanted])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search_steps": 5}, "search_steps 5 limits an exact search; it wants stopping optimal"),
        ({"stopping": "optimal", "method": "sample"}, "stopping optimal finds the best translation, and method sample"),
        ({"stopping": "optimal", "coverage_penalty": 0.5}, "coverage_penalty 0.5 is of beams"),
        ({"stopping": "optimal", "diversity_groups": 5}, "diversity_groups 5 is of beams"),
    ],
)
def test_what_does_not_go_with_an_exact_search_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingConfig(**settings)
