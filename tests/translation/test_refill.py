"""Sentences that take the places of finished ones are translated as in a batch of their own."""

import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch

from mtkit.config.data_and_model_settings import MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.models.interface import Ensemble
from mtkit.models.registry import new_model
from mtkit.models.transformer import TransformerState
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import END
from mtkit.translation.decode import Fusion, Model, can_refill, decode
from mtkit.translation.search import (
    Draw,
    Groups,
    Hypothesis,
    UniformNumbers,
    Waiting,
    beam_search,
    count,
    greedy_search,
    power,
    sample_search,
)
from tests.translation.test_search import Memory, Network, starts
from tests.translation.test_translator import random_translator, sentences, settings
from tests.translation.test_translator import tokenizer as tokenizer

VOCABULARY = 24
SOURCES = [[random.Random(n).randrange(4, VOCABULARY) for _ in range(1 + n * 3 % 5)] for n in range(10)]
PREFIXES = [source[: n % 3] for n, source in enumerate(SOURCES)]
SMALL = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 2}
HEADS = {"num_heads": 2, "d_ff": 8}

MODELS: dict[str, Any] = {
    **{
        positions: TransformerConfig(**SMALL, **HEADS, positions=positions)
        for positions in ("sinusoidal", "learned", "rotary", "alibi", "scalar")
    },
    "lstm": RecurrentConfig(**SMALL, attention="none", context="every_step"),
    "lstm-dot": RecurrentConfig(**SMALL, attention="dot"),
    "gru-additive": RecurrentConfig(**SMALL, cell="gru", attention="additive", input_feeding=True),
    "mixed": MixedConfig(encoder=TransformerConfig(**SMALL, **HEADS), decoder=RecurrentConfig(**SMALL)),
}


@cache
def model_of(name: str) -> Model:
    if name == "ensemble":
        return Ensemble([model_of("rotary"), model_of("lstm-dot")])  # type: ignore[list-item]
    config = MODELS.get(name, TransformerConfig(**{**SMALL, "encoder_layers": 0}, **HEADS))
    model = new_model(config, VOCABULARY, VOCABULARY, seed=3).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(2.5 if parameter.dim() > 1 else 1.0)  # so that hypotheses differ
    return model


def hypotheses_of(model: Model, rooms: Sequence[int] | None, num_best: int = 1, **given: Any) -> list[list[Hypothesis]]:
    arguments = {name: given.pop(name) for name in ("prefixes", "fusion", "left") if name in given}
    decoding = DecodingConfig(max_length_ratio=1.0, max_length_extra=2, **given)
    return decode(model, decoding, SOURCES if model.reads_source else [[]] * 10, num_best, rooms=rooms, **arguments)


def assert_alike(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> None:
    assert [[h.tokens for h in each] for each in found] == [[h.tokens for h in each] for each in wanted]
    scores = [[h.score for each in some for h in each] for some in (found, wanted)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


FALLING = [4] * 4 + [3] * 3 + [2] * 3  # the last sentences have less room

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"beam_size": size}) for name in [*MODELS, "ensemble"] for size in (1, 3)),
    ("rotary", {"beam_size": 1, "min_length": 4}),
    ("alibi", {"beam_size": 3, "min_length": 4, "no_repeat_ngram": 2, "num_best": 3}),
    ("lstm-dot", {"beam_size": 1, "no_repeat_ngram": 1}),
    ("sinusoidal", {"beam_size": 2, "no_repeat_ngram": 3, "prefixes": PREFIXES}),
    ("rotary", {"beam_size": 1, "min_length": 3, "prefixes": PREFIXES}),
    ("rotary", {"beam_size": 3, "coverage_penalty": 0.5}),
    ("gru-additive", {"beam_size": 3, "coverage_penalty": 0.5, "min_length": 3}),
    ("learned", {"method": "sample", "num_best": 3}),
    ("lstm-dot", {"method": "sample", "top_k": 5, "min_length": 3}),
    ("rotary", {"beam_size": 4, "diversity_groups": 2, "num_best": 4}),
    ("alibi", {"beam_size": 4, "stopping": "count", "length_penalty": 0.0}),
    ("language model", {"beam_size": 2, "prefixes": PREFIXES}),
    ("rotary", {"beam_size": 2, "fusion": True}),
]


@pytest.mark.parametrize(("name", "given"), CASES, ids=[f"{name} {' '.join(given)}" for name, given in CASES])
def test_hypotheses_are_those_of_one_batch(name: str, given: dict[str, Any]) -> None:
    model = model_of(name)
    if "fusion" in given:
        given = {**given, "fusion": Fusion(model_of("language model"), 0.5)}  # type: ignore[arg-type]
    done: list[int] = []
    found = hypotheses_of(model, FALLING, left=done.extend, **given)
    assert len(set(done)) == len(done) >= 5, "sentences were told twice, or too few took the places of others"
    assert_alike(found, hypotheses_of(model, None, **given))


PENALTY = partial(power, exponent=0.7)
SEARCHES: dict[str, Callable[..., Any]] = {
    "greedy": greedy_search,
    "samples": partial(
        sample_search, num_samples=3, draw=Draw(1.5), uniform=UniformNumbers(1, [[n] for n in range(60)], 3)
    ),
    "beam": partial(beam_search, beam_size=4, length_penalty=PENALTY, num_best=3),
    "groups": partial(beam_search, beam_size=4, length_penalty=PENALTY, num_best=3, groups=Groups(2, 0.7)),
    "count": partial(beam_search, beam_size=3, length_penalty=PENALTY, stopping=count),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
def test_the_batch_is_full_as_long_as_sentences_wait(search: Callable[..., Any]) -> None:
    network = Network(vocab_size=12)
    max_lengths = torch.randint(0, 25, (60,), generator=torch.Generator().manual_seed(3))
    wanted = search(network.step, network.start(60), starts(60), max_lengths, END)
    network.sizes.clear()

    def begin(chosen: range) -> Memory:
        waits.append(len(network.sizes))
        return network.start(60).keep(torch.tensor(chosen))

    waits: list[int] = []  # the step before which sentences were taken
    waiting = Waiting([10] * 60, begin)
    found = search(network.step, begin(waiting.next(0)), starts(60), max_lengths, END, waiting=waiting)
    assert_alike(*([each if isinstance(each, list) else [each] for each in some] for some in (found, wanted)))
    assert len(waits) > 5
    assert network.sizes[: waits[-1]] == [10] * waits[-1]
    assert network.sizes == sorted(network.sizes, reverse=True)


def test_as_many_wait_as_have_no_room_and_one_is_always_taken() -> None:
    waiting = Waiting([5, 5, 5, 2, 1, 1], begin=list)
    assert [waiting.next(rows) for rows in (0, 3, 2, 1, 0, 0)] == [
        range(3), range(0), range(0), range(3, 4), range(4, 5), range(5, 6)
    ]  # fmt: skip
    assert not waiting


def test_caches_and_positions_do_not_grow_with_the_number_of_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    refill = TransformerState.refill

    def measured(state: TransformerState, *given: Any) -> TransformerState:
        after = refill(state, *given)
        assert after.ancestors is not None
        sizes.append((after.ancestors.shape[2], after.length))
        return after

    monkeypatch.setattr(TransformerState, "refill", measured)
    model = model_of("rotary")
    decoding = DecodingConfig(beam_size=1, max_length_ratio=1.0, max_length_extra=2)
    decode(model, decoding, SOURCES * 4, rooms=[3] * 40)
    assert len(sizes) > 20
    assert max(cached for cached, _ in sizes) <= 2 * 8 + 16 + 8  # tokens, of which the longest sentence has up to 8
    assert max(length for _, length in sizes) <= 8


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_sentence_of_nan_spoils_none_that_takes_its_place(beam_size: int) -> None:
    model = new_model(TransformerConfig(**SMALL, **HEADS, tie_embeddings="none"), VOCABULARY, VOCABULARY, seed=3)
    model.double().eval().requires_grad_(False)
    token = SOURCES[3][0]
    model.encoder.embedded.embedding.weight[token] = torch.nan
    found = hypotheses_of(model, [2] * 10, beam_size=beam_size)
    assert [best.found for [best] in found] == [token not in source for source in SOURCES]
    model.encoder.embedded.embedding.weight[token] = 0.0
    healthy = hypotheses_of(model, None, beam_size=beam_size)
    for source, before, after in zip(SOURCES, healthy, found, strict=True):
        if token not in source:
            assert_alike([after], [before])


LINES: dict[str, dict[str, Any]] = {
    "beam": {},
    "greedy": {"beam_size": 1},
    "lstm": {"beam_size": 1, "model": MODELS["lstm-dot"]},
    "samples": {"method": "sample"},
    "cannot be refilled": {"beam_size": 1, "model": {"ablate": ("causal_mask",)}},
}


@pytest.mark.parametrize("given", LINES.values(), ids=LINES.keys())
def test_lines_are_the_same_with_and_without_in_any_order(tokenizer: Tokenizer, given: dict[str, Any]) -> None:
    lines = ["", *sentences(12, longest=5)]
    done: list[int] = []

    def found(order: Sequence[int], **more: Any) -> list[tuple[str, float]]:
        translator = random_translator(tokenizer, settings(**{"beam_size": 2, **given, **more}), "fp64")
        lines_of = translator.translate_lines([lines[i] for i in order], done=done.append)
        return [(line.text, line.translations[0].score) for line in lines_of]

    in_order = list(range(len(lines)))
    wanted = found(in_order, refill="off")
    for batch_tokens, order in ((40, in_order[::-1]), (70, random.Random(1).sample(in_order, 13))):
        done.clear()
        again = found(order, refill="on", batch_tokens=batch_tokens)
        assert [text for text, _ in again] == [wanted[i][0] for i in order]
        assert [score for _, score in again] == pytest.approx([wanted[i][1] for i in order], abs=1e-9)
        assert sum(done) == len(lines)


def test_shortlists_and_decoders_without_cache_cannot_be_refilled() -> None:
    model = model_of("rotary")
    later = new_model(TransformerConfig(**SMALL, **HEADS, ablate=("shift",)), VOCABULARY, VOCABULARY, seed=3)
    assert can_refill(model, DecodingConfig())
    assert can_refill(model_of("ensemble"), DecodingConfig())
    assert not can_refill(model, DecodingConfig(shortlist=5))
    assert not can_refill(model, DecodingConfig(stopping="optimal"))
    assert not can_refill(later, DecodingConfig())
    assert not can_refill(Ensemble([model, later]), DecodingConfig())  # type: ignore[list-item]
    assert not can_refill(model, DecodingConfig(), Fusion(later, 0.5))
