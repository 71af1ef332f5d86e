"""Samples follow the model's probabilities, and their random numbers depend on their own sentence alone."""

import math

import pytest
import torch
from torch import Tensor

from mtkit.text.vocabulary import END
from mtkit.translation.search import Draw, Hypothesis, UniformNumbers, sample_search
from tests.translation.test_search import Network, one, starts

PROBABILITIES = torch.tensor([0.0, 0.04, 0.29, 0.0, 0.16, 0.31, 0.15, 0.05, 0.0])
EVEN = 10_000  # numbers spread evenly from 0 to 1


def shares(draw: Draw, probabilities: Tensor = PROBABILITIES) -> Tensor:
    """How often each token is drawn."""
    uniform = (torch.arange(EVEN, dtype=torch.float64) + 0.5)[None] / EVEN
    tokens = draw(probabilities.double().log()[None, None], uniform)
    return torch.bincount(tokens[0], minlength=len(probabilities)) / EVEN


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 50])
@pytest.mark.parametrize("top_p", [None, 0.1, 0.7, 1.0])
def test_tokens_are_drawn_by_their_truncated_probabilities(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    wanted = PROBABILITIES.double() ** (1 / temperature)
    order = wanted.sort(descending=True, stable=True).indices.tolist()[:top_k]
    total = sum(float(wanted[token]) for token in order)
    nucleus, mass = [], 0.0
    for token in order:
        if top_p is None or mass < top_p * total - 1e-9:
            nucleus.append(token)
            mass += float(wanted[token])
    kept = torch.zeros_like(wanted)
    kept[nucleus] = wanted[nucleus] / wanted[nucleus].sum()
    torch.testing.assert_close(
        shares(Draw(temperature, top_k, top_p)).double(), kept, atol=2 / EVEN, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.99])
def test_a_nucleus_may_hold_a_large_vocabulary(top_p: float) -> None:
    random = torch.Generator().manual_seed(1)
    for spread in (0.05, 1.0, 4.0):
        probabilities = (spread * torch.randn(3000, generator=random, dtype=torch.float64)).softmax(0)
        order = probabilities.sort(descending=True, stable=True).indices
        mass = probabilities[order].cumsum(0)
        size = int((mass < top_p - 1e-12).sum()) + 1
        found = shares(Draw(top_p=top_p), probabilities)
        wanted = torch.zeros_like(probabilities)
        wanted[order[:size]] = probabilities[order[:size]] / probabilities[order[:size]].sum()
        torch.testing.assert_close(found.double(), wanted, atol=2 / EVEN, rtol=0)


def test_what_is_as_likely_as_the_last_of_a_nucleus_belongs_to_it() -> None:
    found = shares(Draw(top_p=0.5), torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0]), atol=2 / EVEN, rtol=0)


@pytest.mark.parametrize("draw", [Draw(), Draw(0.01), Draw(top_k=9), Draw(top_p=1.0), Draw(5.0, 7, 0.99)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_random_number_draws_what_is_forbidden(draw: Draw, dtype: torch.dtype) -> None:
    uniform = torch.tensor([[0.0, 1e-30, 0.5, 1 - 2.0**-53]], dtype=torch.float64)
    tokens = draw(PROBABILITIES.log()[None, None].to(dtype), uniform.to(dtype))
    assert bool((PROBABILITIES[tokens] > 0).all())


def test_random_numbers_are_even_and_no_two_streams_are_alike() -> None:
    uniform = UniformNumbers(1, [[n] for n in range(100)], 20)
    steps = torch.stack([uniform(torch.arange(100), torch.full((100,), step)) for step in range(50)])  # (50, 100, 20)
    assert 0 <= float(steps.min()) < 1e-3 < 1 - 1e-3 < float(steps.max()) < 1
    tenths = torch.histc(steps, bins=10, min=0, max=1) / steps.numel()
    torch.testing.assert_close(tenths, torch.full_like(tenths, 0.1), atol=0.005, rtol=0)
    assert len(steps.flatten().unique()) == steps.numel()
    for dim in range(3):  # neighbours in no direction go together
        before, after = steps.narrow(dim, 0, steps.shape[dim] - 1), steps.narrow(dim, 1, steps.shape[dim] - 1)
        assert abs(float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1])) < 0.02
    first = (torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert not torch.equal(uniform(*first), UniformNumbers(2, [[0], [1], [2]], 20)(*first))


def sampled(network: Network, chosen: list[int], num_samples: int = 4, seed: int = 1) -> list[list[Hypothesis]]:
    """Samples of some of forty sentences, in a batch of their own."""
    state = network.start(40).keep(torch.tensor(chosen))
    max_lengths = (torch.arange(40) % 11)[chosen]
    uniform = UniformNumbers(seed, [[n, 7] for n in chosen], num_samples)
    return sample_search(
        network.step, state, starts(len(chosen)), max_lengths, END, num_samples, Draw(1.5, top_k=12), uniform
    )


def test_neither_batch_nor_order_nor_number_changes_a_sample() -> None:
    network = Network(vocab_size=20)
    together = sampled(network, list(range(40)))
    assert len({tuple(sample.tokens) for samples in together for sample in samples}) > 60
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5)).tolist()
    for chosen in (order[:7], order[7:8], order[8:]):
        for sentence, samples in zip(chosen, sampled(network, chosen), strict=True):
            assert [sample.tokens for sample in samples] == [sample.tokens for sample in together[sentence]]
    for alone, samples in zip(sampled(network, list(range(40)), num_samples=1), together, strict=True):
        assert alone[0].tokens == samples[0].tokens
    assert sampled(network, list(range(40)), seed=2) != together


def test_the_score_of_a_sample_is_the_models_log_probability_and_its_length_has_a_limit() -> None:
    network = Network(vocab_size=20)
    state = network.start(40)
    at_the_limit = 0
    for sentence, samples in enumerate(sampled(network, list(range(40)))):
        for sample in samples:
            assert sample.score == sample.log_prob
            assert sample.log_prob == pytest.approx(network.log_prob(one(state, sentence), sample.tokens), rel=1e-9)
            assert len(sample.tokens) <= sentence % 11
            at_the_limit += len(sample.tokens) == sentence % 11
    assert 0 < at_the_limit < 160


def test_samples_end_where_everything_is_forbidden_and_an_empty_batch_has_none() -> None:
    def step(ids: Tensor, state: object) -> tuple[Tensor, object]:
        return torch.full((*ids.shape, 6), -math.inf), state

    network, uniform = Network(6), UniformNumbers(1, [[1], [2]], 2)
    found = sample_search(step, network.start(2), starts(2), torch.tensor([3, 0]), END, 2, Draw(), uniform)
    assert found == [[Hypothesis([], -math.inf, -math.inf)] * 2] * 2
    nothing = torch.zeros(0, dtype=torch.int64)
    assert (
        sample_search(network.step, network.start(0), nothing, nothing, END, 2, Draw(), UniformNumbers(1, [], 2)) == []
    )
