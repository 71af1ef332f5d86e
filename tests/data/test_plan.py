"""Every pair once an epoch, within the budget, in an order that only lengths, budget, seed and epoch decide."""

from itertools import islice

import numpy as np
import pytest

from mtkit.data import batches as plan
from mtkit.data import corpus
from mtkit.data.batches import batches_from, plan_batches

BUDGET = 60
NUM_PAIRS = 101


def lengths(num_pairs: int = NUM_PAIRS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths, end marks counted."""
    chance = np.random.default_rng(seed)
    return chance.integers(1, 20, num_pairs, dtype=np.int32), chance.integers(1, 31, num_pairs, dtype=np.int32)


def stream(consumed: int = 0, seed: int = 1, num_pairs: int = NUM_PAIRS):
    return batches_from(consumed, *lengths(num_pairs), BUDGET, seed)


def epochs(count: int, seed: int = 1, num_pairs: int = NUM_PAIRS) -> list[list[list[int]]]:
    """The batches of the first so many epochs."""
    found: list[list[list[int]]] = [[] for _ in range(count)]
    for epoch, pairs in stream(seed=seed, num_pairs=num_pairs):
        if epoch == count:
            return found
        found[epoch].append(pairs.tolist())
    raise AssertionError("the stream has no end")


@pytest.fixture(params=["one window", "several windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hundred pairs make one window as a rule, and four, the last of them not full, if windows are small."""
    if request.param == "several windows":
        monkeypatch.setattr(corpus, "BLOCK", 8)
        monkeypatch.setattr(plan, "WINDOW", 4)
    return request.param


@pytest.mark.parametrize("num_pairs", [1, 2, 31, 32, 33, NUM_PAIRS])
def test_every_pair_comes_once_an_epoch(windows, num_pairs):
    for batches in epochs(3, num_pairs=num_pairs):
        assert sorted(pair for batch in batches for pair in batch) == list(range(num_pairs))


def test_no_batch_is_empty_or_holds_more_than_the_budget(windows):
    source, target = lengths()
    for batch in (batch for batches in epochs(3) for batch in batches):
        assert batch
        assert len(batch) * max(source[batch].max(), target[batch].max()) <= BUDGET


def test_no_budget_is_exceeded_by_a_single_token():
    source, target = lengths(300)
    longest = np.maximum(source, target)
    for budget in range(30, 100):
        made = plan_batches(source, target, budget, np.random.default_rng(budget))
        for batch in (made.batch(b) for b in range(len(made))):
            assert len(batch) * longest[batch].max() <= budget


def test_a_pair_as_long_as_the_budget_is_a_batch_of_its_own():
    longest = np.array([3, BUDGET, 2, BUDGET])
    made = plan_batches(longest, np.array([1, 1, BUDGET, 1]), BUDGET, np.random.default_rng(0))
    assert sorted(sorted(made.batch(b).tolist()) for b in range(len(made))) == [[0], [1], [2], [3]]


def test_batches_are_as_full_as_like_lengths_allow():
    source, target = lengths(10_000)
    made = plan_batches(source, target, 600, np.random.default_rng(0))
    longest = np.maximum(source, target)
    places = sum(len(made.batch(b)) * longest[made.batch(b)].max() for b in range(len(made)))
    assert longest.sum() / places > 0.95, "pairs of like lengths stand together"
    assert places / (600 * len(made)) > 0.9, "budgets are used"


def test_the_plan_is_a_function_of_its_arguments_alone(windows):
    assert epochs(2) == epochs(2)


def test_epochs_and_seeds_differ_in_order_and_in_what_stands_together(windows):
    first, second = epochs(2)
    (other,) = epochs(1, seed=2)
    for one, another in ((first, second), (first, other)):
        assert one != another
        assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in another}


def test_the_order_of_batches_says_nothing_of_their_lengths(windows):
    source, target = lengths()
    (batches,) = epochs(1)
    longest = [max(source[batch].max(), target[batch].max()) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_from_every_batch_boundary_the_stream_goes_on_as_if_it_had_not_stopped(windows):
    num_batches = sum(map(len, epochs(3)))
    whole = [(epoch, pairs.tolist()) for epoch, pairs in islice(stream(), num_batches + 10)]
    consumed = 0
    for done in range(num_batches + 1):
        found = [(epoch, pairs.tolist()) for epoch, pairs in islice(stream(consumed), 8)]
        assert found == whole[done : done + 8]
        consumed += len(whole[done][1])
    assert consumed > 3 * NUM_PAIRS


def test_a_place_where_no_batch_ends_is_refused(windows):
    ends = {0, NUM_PAIRS}
    for batch in epochs(1)[0]:
        ends.add(max(ends - {NUM_PAIRS}) + len(batch))
    inside = set(range(NUM_PAIRS)) - ends
    assert inside
    for consumed in inside:
        with pytest.raises(ValueError, match=f"no batch ends after {consumed} pairs"):
            next(stream(consumed))
