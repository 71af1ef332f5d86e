"""An epoch holds of each corpus what its weight and its size ask for, and the same run orders it the same."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mtkit.data import batches as plan
from mtkit.data import corpus
from mtkit.data.batches import batches_from, plan_batches
from mtkit.data.corpus import Mixture, blocks_of, is_proportional, mix

BUDGET = 60
COUNTS = (70, 9, 0, 24)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of eight pairs, four of them in a window, so that a hundred pairs are many."""
    monkeypatch.setattr(corpus, "BLOCK", 8)
    monkeypatch.setattr(plan, "WINDOW", 4)


def lengths() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    return tuple(chance.integers(1, 31, sum(COUNTS), dtype=np.int32) for _ in range(2))


def stream(mixture: Mixture | None, consumed: int = 0):
    return batches_from(consumed, *lengths(), BUDGET, 1, mixture)


def epochs(mixture: Mixture, count: int) -> list[Counter[int]]:
    """How often each pair stands in each of the first so many epochs."""
    found = [Counter[int]() for _ in range(count)]
    for epoch, batch in stream(mixture):
        if epoch == count:
            return found
        found[epoch].update(batch.pairs.tolist())
    raise AssertionError("the stream has no end")


def of_corpora(epoch: Counter[int]) -> list[int]:
    """The pairs of each corpus in an epoch."""
    ends = np.cumsum(COUNTS)
    return [sum(epoch[pair] for pair in range(end - count, end)) for count, end in zip(COUNTS, ends, strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_shares_are_as_weight_times_the_root_of_the_size(temperature):
    weights = (1.0, 3.0, 2.0, 0.5)
    mixture = mix(COUNTS, weights, temperature)
    wanted = np.array(weights) * np.array(COUNTS) ** (1 / temperature)
    np.testing.assert_allclose(mixture.shares, wanted / wanted.sum(), rtol=1e-7)


def test_equal_weights_at_temperature_one_are_proportional_and_so_is_a_single_corpus():
    assert mix(COUNTS, (2.0,) * 4, 1.0).repeats == (1.0, 1.0, 0.0, 1.0)
    assert is_proportional((2.0, 2.0), 1.0)
    assert is_proportional((3.0,), 5.0)
    assert is_proportional((), 1.0)
    assert not is_proportional((1.0, 1.0), 1.1)
    assert not is_proportional((1.0, 2.0), 1.0)


def test_without_a_mixture_all_blocks_are_shuffled_once_an_epoch():
    """The order that runs of earlier versions had, said in another way."""
    source, target = lengths()
    num_pairs = sum(COUNTS)
    wanted = []
    for epoch in range(3):
        blocks = np.random.default_rng([1, epoch]).permutation(-(-num_pairs // 8))
        for number, first in enumerate(range(0, len(blocks), 4)):
            pairs = [p for b in blocks[first : first + 4] for p in range(8 * b, 8 * b + 8) if p < num_pairs]
            window = np.array(pairs)
            made = plan_batches(source[window], target[window], BUDGET, np.random.default_rng([1, epoch, number]))
            wanted += [(epoch, window[made.batch(b).pairs].tolist()) for b in range(len(made))]
    assert [(epoch, batch.pairs.tolist()) for epoch, batch in islice(stream(None), len(wanted))] == wanted


@pytest.mark.parametrize(("weights", "temperature"), [((1, 1, 1, 1), 5.0), ((1, 6, 1, 2), 1.0), ((9, 1, 1, 1), 1.0)])
def test_over_many_epochs_each_corpus_has_its_share(weights, temperature):
    mixture = mix(COUNTS, weights, temperature)
    ends = np.cumsum(COUNTS)
    made = [mixture.epoch(np.random.default_rng([1, epoch])) for epoch in range(400)]  # as the stream makes them
    sizes = np.array(
        [np.bincount(np.searchsorted(ends, b.starts, "right"), b.ends - b.starts, len(COUNTS)) for b in made]
    )
    assert sizes[:20].tolist() == [of_corpora(epoch) for epoch in epochs(mixture, 20)]
    wanted = np.array(mixture.shares) * sum(COUNTS)
    assert (np.abs(sizes - wanted).max(0) <= 2 * 8).all(), "an epoch is right to two blocks"
    np.testing.assert_allclose(sizes.mean(0), wanted, atol=0.5)
    assert len(set(sizes.sum(1))) > 1, "epochs differ in size, and the tests below are of such"


def test_a_pair_comes_as_often_as_its_corpus_goes_whole_or_once_more():
    mixture = mix(COUNTS, (1, 6, 1, 2), 1.0)
    first = 0
    for count, repeats in zip(COUNTS, mixture.repeats, strict=True):
        for epoch in epochs(mixture, 20):
            assert {epoch[pair] for pair in range(first, first + count)} <= {int(repeats), int(repeats) + 1}
        first += count


def test_epochs_have_other_parts_of_a_corpus():
    mixture = mix(COUNTS, (1, 20, 1, 1), 1.0)
    first, second = epochs(mixture, 2)
    assert 0 < of_corpora(first)[0] < COUNTS[0]
    assert {pair for pair in range(COUNTS[0]) if first[pair]} != {pair for pair in range(COUNTS[0]) if second[pair]}


def test_from_every_batch_boundary_a_mixture_goes_on_as_if_it_had_not_stopped():
    mixture = mix(COUNTS, (1, 6, 1, 2), 2.0)
    num_batches = next(n for n, (epoch, _) in enumerate(stream(mixture)) if epoch == 4)
    whole = [(epoch, batch.pairs.tolist()) for epoch, batch in islice(stream(mixture), num_batches + 5)]
    ends, consumed = {0}, 0
    for done in range(num_batches):
        found = [(epoch, batch.pairs.tolist()) for epoch, batch in islice(stream(mixture, consumed), 4)]
        assert found == whole[done : done + 4]
        consumed += len(whole[done][1])
        ends.add(consumed)
    for place in set(range(consumed)) - ends:
        with pytest.raises(ValueError, match=f"no batch ends after {place} pairs"):
            next(stream(mixture, place))


def test_a_hundred_million_pairs_are_taken_in_small_windows(monkeypatch):
    monkeypatch.undo()
    mixture = mix((100_000_000, 3_000_000, 500), (1, 1, 1), 5.0)
    blocks = mixture.epoch(np.random.default_rng(0))
    assert abs(blocks.num_pairs - 103_000_500) < 3 * corpus.BLOCK
    sizes = [len(pairs) for pairs in islice(plan._windows(blocks, np.random.default_rng(0)), 3)]
    assert max(sizes) <= plan.WINDOW * corpus.BLOCK
    assert len(blocks_of(100_000_000)) < 100_000


def test_corpora_of_equal_size_go_whole_at_any_temperature():
    for counts in ((7, 7, 7), (1000, 1000), (33,) * 49):
        for temperature in (1.5, 3.0, 5.0, 7.0):
            assert set(mix(counts, (1.0,) * len(counts), temperature).repeats) == {1.0}
