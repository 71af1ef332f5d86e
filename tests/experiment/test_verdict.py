"""Verdicts are computed from predictions, controls and noise."""

import json
import math

import numpy as np
import pytest

from mtkit.config.load import CardFile
from mtkit.experiment.measures import (
    CLAIM_HOLDS,
    CONTRADICTED,
    FAILS,
    HOLDS,
    HOLDS_IF,
    INVALID,
    MEASURES,
    NOISE,
    NOT_HERE,
    NOT_RUN,
    NOT_SHOWN,
    NOT_TESTED,
    NUM_RESAMPLES,
    MissingError,
    estimate,
    find,
    judge,
    parse,
    values_of,
)
from mtkit.experiment.run import Card


def noisy(value, noise=0.0, seeds=1):
    """A measure with this value and about this half width of its interval."""
    resampled = value + noise * np.linspace(-1, 1, 101) / 0.95
    return np.tile(np.concatenate([[value], resampled]) if noise else [float(value)], (seeds, 1))


def lookup_of(measures):
    """A lookup of canned measures, by the text of the reference; a text stands for why there is none."""

    def lookup(reference):
        found = measures.get(str(reference), NOT_RUN)
        if isinstance(found, str):
            raise MissingError(found)
        return found if isinstance(found, np.ndarray) else noisy(found)

    return lookup


def judged(predict, measures, valid_if=()):
    """The kind and the text of a verdict."""
    data = {"experiment": "x", "claim": "x", "rank": 1, "predict": predict, "valid_if": valid_if}
    file = CardFile.model_validate_json(json.dumps(data))
    verdict = judge(Card("x", None, file, {}, None), lookup_of(measures))
    return verdict.kind, verdict.text


A, B = 'bleu["a"]', 'bleu["b"]'


@pytest.mark.parametrize(
    ("left", "right", "state"),
    [
        (noisy(30, 1), noisy(20), HOLDS),
        (noisy(20.5, 1), noisy(20), NOISE),
        (noisy(19.5, 1), noisy(20), NOISE),
        (noisy(18, 1), noisy(20), FAILS),
        (noisy(20), noisy(20), HOLDS),
        (noisy(19.999), noisy(20), FAILS),
        (noisy(math.inf), noisy(20), HOLDS),
        (noisy(20), noisy(math.inf), FAILS),
        (noisy(math.nan), noisy(1), NOISE),
        (noisy(math.inf), noisy(math.inf), NOISE),
    ],
)
def test_a_comparison_holds_or_fails_only_by_more_than_noise(left, right, state):
    assert find(parse(f"{A} >= {B}"), lookup_of({A: left, B: right})).state == state
    turned = find(parse(f"{B} <= {A}"), lookup_of({A: left, B: right}))
    assert turned.state == state
    opposite = {HOLDS: FAILS, FAILS: HOLDS, NOISE: NOISE}
    assert find(parse(f"not {A} >= {B}"), lookup_of({A: left, B: right})).state == opposite[state]


def test_and_or_and_chains():
    measures = lookup_of({A: noisy(30, 1), B: noisy(20.5, 1)})
    assert find(parse(f"{A} > 20 and {B} > 20"), measures).state == NOISE
    assert find(parse(f"{A} > 20 or {B} > 20"), measures).state == HOLDS
    assert find(parse(f"{A} > 20 and {A} < 20"), measures).state == FAILS
    assert find(parse(f"20 < {A} < 40"), measures).state == HOLDS
    assert find(parse(f"40 < {A} < 50"), measures).state == FAILS
    assert (
        find(parse(f"min({A}, {B}, 3) == 3 and max({A}, 50) == 50 and -abs(-{A}) + 60 > 20"), measures).state == HOLDS
    )


def test_noise_that_two_variants_share_does_not_count():
    """Resamples are paired: sentences that are hard for both make neither better."""
    shared = noisy(20, 5)
    assert find(parse(f"{A} > {B}"), lookup_of({A: shared + 0.1, B: shared})).state == HOLDS


def test_the_noise_of_several_seeds_counts():
    values = np.array([[30.0], [20.0], [25.0]])
    found = estimate(values)
    assert (found.value, found.num_seeds) == (25.0, 3)
    assert found.noise == pytest.approx(4.303 * 5 / math.sqrt(3))
    assert find(parse(f"{A} > 20"), lookup_of({A: values})).state == NOISE
    assert find(parse(f"{A} > 20"), lookup_of({A: values[:1]})).state == HOLDS


def test_only_seeds_that_all_measures_have_are_compared():
    """A run that is stopped in its second seed has some variants with two seeds and others with one."""
    three, one = np.array([[30.0], [20.0], [25.0]]), np.array([[29.0]])
    for text in (f"{A} - {B} == 1", f"{B} - {A} == -1", f"max({A}, {B}) == 30", f"{A} > {B}"):
        finding = find(parse(text), lookup_of({A: three, B: one}))
        assert finding.state == HOLDS
        assert finding.margin.num_seeds == 1
    board = 'board["leaks", "x"]'
    finding = find(parse(f"{A} > {board}"), lookup_of({A: three, board: 1}))
    assert finding.margin.num_seeds == 3


def test_the_interval_of_a_mean_is_that_of_statistics():
    rows = np.stack([np.random.default_rng(1).integers(0, 2, 400), np.ones(400)], axis=1)
    values = values_of(MEASURES["tokens_per_second"], rows)
    assert values.shape == (1 + NUM_RESAMPLES,)
    found = estimate(values[None])
    assert found.value == rows[:, 0].mean()
    assert found.noise == pytest.approx(1.96 * rows[:, 0].std() / 20, rel=0.15)


@pytest.mark.parametrize(
    ("measures", "verdict"),
    [
        ({A: 30, B: 20}, CLAIM_HOLDS),
        ({A: noisy(22, 1), B: 20}, CONTRADICTED),
        ({A: noisy(25.5, 1), B: 20}, NOT_SHOWN),
        ({A: 30, B: NOT_HERE}, NOT_SHOWN),
        ({A: 30}, NOT_TESTED),
        ({A: 4, B: -6}, INVALID),
        ({A: 4}, INVALID),
    ],
)
def test_each_verdict(measures, verdict):
    assert judged([f"{A} - {B} >= 5"], measures, [f"{A} > 5"]) == (verdict, verdict)


def test_a_contradiction_outweighs_what_holds():
    assert judged([f"{A} > 0", f"{A} < 0"], {A: 1})[0] == CONTRADICTED


def test_a_claim_may_hold_under_a_condition():
    special = {"if": "the model is deep", "then": f"{B} > 0"}
    assert judged([f"{A} > 0", special], {A: 1, B: 1})[0] == CLAIM_HOLDS
    assert judged([special, {"if": "it is wide", "then": f"{A} > 0"}], {A: -1, B: 1}) == (
        HOLDS_IF,
        "holds if the model is deep",
    )
    assert judged([f"{A} > 0", special], {A: 1, B: -1}) == (HOLDS_IF, "holds, but not if the model is deep")
    assert judged([f"{A} > 0", special], {A: 1, B: noisy(0, 1)})[1] == "holds, but not shown if the model is deep"
    assert judged([f"{A} > 0", special], {A: -1, B: -1})[0] == CONTRADICTED
    assert judged([f"{A} > 0", special], {A: 1, B: NOT_HERE})[0] == CLAIM_HOLDS
    assert judged([special], {B: NOT_HERE})[0] == NOT_SHOWN


def test_what_holds_under_a_condition_does_not_save_a_claim_that_fails_without_one():
    special = {"if": "the model is deep", "then": f"{B} > 0"}
    assert judged([f"{A} > 0", special], {A: -1, B: 1})[0] == CONTRADICTED
    assert judged([f"{A} > 0", special], {A: noisy(0, 1), B: 1})[0] == NOT_SHOWN
    assert judged([f"{A} > 0", special], {A: noisy(0, 1), B: -1})[0] == NOT_SHOWN
