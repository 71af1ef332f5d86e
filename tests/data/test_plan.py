"""Every pair once an epoch, within the budget, in an order that only lengths, budget, seed and epoch decide."""

from functools import partial
from itertools import islice
from typing import get_args

import numpy as np
import pytest

from mtkit.data import batches as plan
from mtkit.data import corpus
from mtkit.data.batches import Batching, PlannedBatch, batches_from, batching_of, packed_rows, plan_batches

BUDGET = 60
NUM_PAIRS = 101


def lengths(num_pairs: int = NUM_PAIRS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths, end marks counted."""
    chance = np.random.default_rng(seed)
    return chance.integers(1, 20, num_pairs, dtype=np.int32), chance.integers(1, 31, num_pairs, dtype=np.int32)


def stream(batching: Batching, consumed: int = 0, seed: int = 1, num_pairs: int = NUM_PAIRS):
    return batches_from(consumed, *lengths(num_pairs), BUDGET, seed, batching=batching)


def epochs(batching: Batching, count: int, seed: int = 1, num_pairs: int = NUM_PAIRS) -> list[list[list[list[int]]]]:
    """The batches of the first so many epochs: for each batch its rows, for each row its pairs."""
    found: list[list[list[list[int]]]] = [[] for _ in range(count)]
    for epoch, batch in stream(batching, seed=seed, num_pairs=num_pairs):
        if epoch == count:
            return found
        found[epoch].append(rows_of(batch))
    raise AssertionError("the stream has no end")


def rows_of(batch: PlannedBatch) -> list[list[int]]:
    """The pairs of each row; no row is empty, and rows are numbered from 0."""
    rows: list[list[int]] = []
    for pair, row in zip(batch.pairs.tolist(), batch.rows.tolist(), strict=True):
        if row == len(rows):
            rows.append([])
        rows[row].append(pair)
        assert row == len(rows) - 1
    return rows


def size(rows: list[list[int]], source: np.ndarray, target: np.ndarray) -> int:
    """Rows times the longest, in tokens."""
    return len(rows) * max(max(source[row].sum(), target[row].sum()) for row in rows)


def row_lengths(sides: tuple[np.ndarray, np.ndarray], batch: PlannedBatch) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of the rows, source and target: what size sums row by row, faster for many rows."""
    source, target = (np.bincount(batch.rows, side[batch.pairs]).astype(np.int64) for side in sides)
    return source, target


@pytest.fixture(params=get_args(Batching))
def batching(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["one window", "several windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hundred pairs make one window as a rule, and four, the last of them not full, if windows are small."""
    if request.param == "several windows":
        monkeypatch.setattr(corpus, "BLOCK", 8)
        monkeypatch.setattr(plan, "WINDOW", 4)
    return request.param


@pytest.mark.parametrize("num_pairs", [1, 2, 31, 32, 33, NUM_PAIRS])
def test_every_pair_comes_once_an_epoch(batching, windows, num_pairs):
    for batches in epochs(batching, 3, num_pairs=num_pairs):
        assert sorted(pair for batch in batches for row in batch for pair in row) == list(range(num_pairs))


def test_no_batch_is_empty_or_holds_more_than_the_budget(batching, windows):
    for batch in (batch for batches in epochs(batching, 3) for batch in batches):
        assert batch
        assert size(batch, *lengths()) <= BUDGET


def test_no_budget_is_exceeded_by_a_single_token(batching):
    sides = lengths(300)
    for budget in range(30, 100):
        made = plan_batches(*sides, budget, np.random.default_rng(budget), batching)
        for source, target in map(partial(row_lengths, sides), map(made.batch, range(len(made)))):
            assert len(source) * max(source.max(), target.max()) <= budget


def test_a_pair_as_long_as_the_budget_is_a_batch_of_its_own(batching):
    longest = np.array([3, BUDGET, 2, BUDGET])
    made = plan_batches(longest, np.array([1, 1, BUDGET, 1]), BUDGET, np.random.default_rng(0), batching)
    batches = [made.batch(b).pairs.tolist() for b in range(len(made))]
    assert [batch for batch in sorted(batches) if batch != [0]] == [[1], [2], [3]]


def padding(sides: tuple[np.ndarray, np.ndarray], budget: int, batching: Batching) -> tuple[float, float]:
    """The share of all positions that is padding, and the share of the budget that is used."""
    made = plan_batches(*sides, budget, np.random.default_rng(0), batching)
    batches = [row_lengths(sides, made.batch(b)) for b in range(len(made))]
    positions = sum(len(lengths) * lengths.max() for batch in batches for lengths in batch)
    used = sum(len(source) * max(source.max(), target.max()) for source, target in batches)
    return 1 - sum(map(np.sum, sides)) / positions, used / (budget * len(made))


def like_text(num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths with the spread of captions, the target some tenths longer or shorter than the source."""
    chance = np.random.default_rng(0)
    source = chance.gamma(6, 2.5, num_pairs).clip(1, 60)
    return source.astype(np.int32) + 1, (source * chance.normal(1, 0.2, num_pairs).clip(0.4, 2)).astype(np.int32) + 1


def test_batches_are_as_full_as_like_lengths_allow():
    sides = like_text(30_000)
    padded = {batching: padding(sides, 2048, batching) for batching in get_args(Batching)}
    assert all(used > 0.9 for _, used in padded.values())
    assert padded["packed"][0] < 0.01
    assert padded["bucketed"][0] <= padded["by exact length"][0] < 0.05
    assert padded["by length"][0] > 2 * padded["bucketed"][0], "which is why the order is another now"


def test_long_sentences_of_few_pairs_are_sorted_by_groups_of_lengths():
    chance = np.random.default_rng(0)
    source = chance.gamma(2, 20, 15_000).clip(1, 250)  # as in documentation
    target = source * chance.normal(0.9, 0.15, 15_000).clip(0.4, 2)
    sides = source.astype(np.int32) + 1, target.astype(np.int32) + 1
    exact, grouped = (padding(sides, 4096, batching)[0] for batching in ("by exact length", "bucketed"))
    assert grouped < 0.9 * exact


def test_a_language_model_whose_sources_are_end_marks_alone_is_packed_by_its_targets():
    sides = np.ones(3000, dtype=np.int32), like_text(3000)[1]
    made = plan_batches(*sides, 1024, np.random.default_rng(0), "packed")
    longest = [max(sides[1][row].sum() for row in rows_of(made.batch(b))) for b in range(len(made))]
    assert np.mean(longest) > 100


def test_packed_rows_mix_long_and_short_sentences_and_differ_between_epochs():
    source, target = like_text(3000)
    rows = packed_rows(source, target, 4096)
    assert np.bincount(rows).min() > 3
    means = np.bincount(rows, source) / np.bincount(rows)
    assert means.std() < source.std() / 4, "each row has sentences of all lengths"
    one, another = (plan_batches(source, target, 4096, np.random.default_rng(seed), "packed") for seed in (1, 2))
    together = [{frozenset(row) for b in range(len(made)) for row in rows_of(made.batch(b))} for made in (one, another)]
    assert len(together[0] & together[1]) < 5


def test_runs_of_before_keep_the_order_that_they_began_with():
    assert [batching_of(name, 1) for name in ("auto", "bucketed", "packed")] == ["by length", "by length", "packed"]
    names = ("auto", "bucketed", "packed")
    assert [batching_of(name, 2) for name in names] == ["by exact length", "by exact length", "packed"]
    assert [batching_of(name, 3) for name in names] == ["bucketed", "bucketed", "packed"]
    source, target = lengths()
    (batches,) = epochs("by length", 1)
    rng = np.random.default_rng([1, 0, 0])
    np.random.default_rng([1, 0]).permutation(1)
    shuffled = rng.permutation(NUM_PAIRS)
    longest = np.maximum(source, target)
    wanted = shuffled[np.lexsort((source[shuffled], longest[shuffled]))].tolist()
    by_length = sorted((pair for batch in batches for (pair,) in batch), key=lambda pair: (longest[pair], source[pair]))
    assert by_length == sorted(wanted, key=lambda pair: (longest[pair], source[pair], by_length.index(pair)))
    for (pair, *_), *rest in batches:  # neighbours of the sorted list, in its order
        place = wanted.index(pair)
        assert [pair, *(each for (each,) in rest)] == wanted[place : place + len(rest) + 1]


def test_the_plan_is_a_function_of_its_arguments_alone(batching, windows):
    assert epochs(batching, 2) == epochs(batching, 2)


def test_epochs_and_seeds_differ_in_order_and_in_what_stands_together(batching, windows):
    first, second = epochs(batching, 2)
    (other,) = epochs(batching, 1, seed=2)
    for one, another in ((first, second), (first, other)):
        assert one != another
        sets = [{frozenset(pair for row in batch for pair in row) for batch in batches} for batches in (one, another)]
        assert sets[0] != sets[1]


def test_the_order_of_batches_says_nothing_of_their_lengths(batching, windows):
    (batches,) = epochs(batching, 1)
    longest = [size(batch, *lengths()) / len(batch) for batch in batches]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_from_every_batch_boundary_the_stream_goes_on_as_if_it_had_not_stopped(batching, windows):
    num_batches = sum(map(len, epochs(batching, 3)))
    whole = [(epoch, rows_of(batch)) for epoch, batch in islice(stream(batching), num_batches + 10)]
    consumed = 0
    for done in range(num_batches + 1):
        found = [(epoch, rows_of(batch)) for epoch, batch in islice(stream(batching, consumed), 8)]
        assert found == whole[done : done + 8]
        consumed += sum(map(len, whole[done][1]))
    assert consumed > 3 * NUM_PAIRS


def test_a_place_where_no_batch_ends_is_refused(batching, windows):
    ends = {0, NUM_PAIRS}
    for batch in epochs(batching, 1)[0]:
        ends.add(max(ends - {NUM_PAIRS}) + sum(map(len, batch)))
    inside = set(range(NUM_PAIRS)) - ends
    assert inside
    for consumed in inside:
        with pytest.raises(ValueError, match=f"no batch ends after {consumed} pairs"):
            next(stream(batching, consumed))


# What the version made that had the second order.
SOURCE_LENGTHS = [28, 19, 21, 27, 18, 23, 25, 9, 4, 11, 10, 26, 27, 3, 16, 25, 6, 24, 6, 15, 25, 11, 12, 10]
TARGET_LENGTHS = [22, 9, 29, 15, 15, 16, 18, 17, 16, 29, 24, 24, 21, 19, 12, 29, 15, 8, 25, 7, 26, 19, 6, 4]
SECOND_ORDER = [
    [13, 5, 10],
    [20, 11, 3],
    [2, 9],
    [17, 6, 18],
    [12, 0, 15],
    [23, 22, 19, 16, 8],
    [14, 7, 4, 1, 21],
]


def test_the_second_order_is_as_it_was():
    sides = np.array(SOURCE_LENGTHS), np.array(TARGET_LENGTHS)
    made = plan_batches(*sides, 96, np.random.default_rng(5), "by exact length")
    assert [made.batch(b).pairs.tolist() for b in range(len(made))] == SECOND_ORDER
