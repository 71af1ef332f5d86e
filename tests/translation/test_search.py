"""Searches over a small random recurrent network, whose log-probabilities depend on the whole prefix."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from mtkit.config.data_and_model_settings import MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.data.batches import Rows
from mtkit.models.interface import State, next_rows
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import BEGIN, END, PAD, UNKNOWN
from mtkit.translation import search as searches
from mtkit.translation.search import LENGTH_PENALTIES, Hypothesis, beam_search, gnmt, greedy_search, power

WIDTH = 8
Penalty = Callable[[Tensor], Tensor]
PENALTIES = [partial(power, exponent=p) for p in (0.0, 0.6, 1.0, 2.0, -0.7)] + [
    partial(gnmt, exponent=p) for p in (1.0, -1.5)
]


@dataclass
class Memory:
    """What the network remembers of each hypothesis; used up by the step that takes it."""

    hidden: Tensor  # (R, W, D)
    end_bias: Tensor  # (R,)
    used: bool = False

    def branch(self, parents: Tensor) -> "Memory":
        index = parents[:, :, None].expand(-1, -1, self.hidden.shape[2])
        return Memory(self.hidden.gather(1, index), self.end_bias)

    def keep(self, sentences: Tensor) -> "Memory":
        return Memory(self.hidden[sentences], self.end_bias[sentences])

    def refill(self, places: Tensor, fresh: "Memory") -> "Memory":
        hidden = self.hidden.index_copy(0, places, fresh.hidden.expand(-1, self.hidden.shape[1], -1))
        return Memory(hidden, self.end_bias.index_copy(0, places, fresh.end_bias))


class Network:
    """Elman's network with random weights; sentences differ in its first state and in how much they want to end."""

    def __init__(self, vocab_size: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> None:
        random = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(vocab_size, WIDTH, generator=random).to(dtype)
        self.recurrent = torch.randn(WIDTH, WIDTH, generator=random).to(dtype)
        self.output = torch.randn(WIDTH, vocab_size, generator=random).to(dtype)
        self.dtype = dtype
        self.sizes: list[int] = []  # sentences in flight at each step

    def start(self, num_sentences: int, seed: int = 2) -> Memory:
        random = torch.Generator().manual_seed(seed)
        hidden = torch.randn(num_sentences, 1, WIDTH, generator=random).to(self.dtype)
        return Memory(hidden, torch.linspace(-4, 2, num_sentences, dtype=self.dtype))

    def step(self, ids: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        assert not state.used
        assert ids.shape == state.hidden.shape[:2]
        state.used = True
        self.sizes.append(len(ids))
        hidden = torch.tanh(self.embedding[ids] + state.hidden @ self.recurrent)
        logits = hidden @ self.output
        logits[:, :, END] += state.end_bias[:, None]
        logits[:, :, [PAD, UNKNOWN, BEGIN]] = -torch.inf
        return logits.log_softmax(dim=2), Memory(hidden, state.end_bias + 0.1)

    def log_prob(self, state: Memory, tokens: Sequence[int]) -> float:
        """Of these tokens and the end mark, for a state of one sentence, token by token."""
        total, reader, going = 0.0, [BEGIN, *tokens], Memory(state.hidden, state.end_bias)
        for token, wanted in zip(reader, [*tokens, END], strict=True):
            log_probs, going = self.step(torch.tensor([[token]]), going)
            total += float(log_probs[0, 0, wanted])
        return total


def starts(num_sentences: int) -> Tensor:
    return torch.full((num_sentences,), BEGIN)


def one(state: Memory, sentence: int) -> Memory:
    return state.keep(torch.tensor([sentence]))


@cache
def tried(sentence: int) -> dict[tuple[int, ...], float]:
    """All that one of six sentences may say in up to four of three tokens, with its log-probability."""
    network = Network(vocab_size=7)  # three tokens and the end mark
    state = one(network.start(6), sentence)
    outputs = (tokens for length in range(5) for tokens in itertools.product([4, 5, 6], repeat=length))
    return {tokens: network.log_prob(state, tokens) for tokens in outputs}


@cache
def plain_beam_search(vocab_size: int, sentence: int, max_length: int, beam_size: int) -> list[tuple[list[int], float]]:
    """The same search with lists, for one of twelve sentences, that never stops before its longest.

    Returns all that ended, with log-probabilities: how long a search goes on is all that a length penalty changes.
    """
    network = Network(vocab_size)
    state = one(network.start(12), sentence)
    beam: list[tuple[float, list[int], Memory]] = [(0.0, [], state)]
    finished: list[tuple[list[int], float]] = []
    for length in range(1, max_length + 2):
        candidates: list[tuple[float, list[int], Memory]] = []
        for total, tokens, memory in beam:
            last = tokens[-1] if tokens else BEGIN
            log_probs, after = network.step(torch.tensor([[last]]), Memory(memory.hidden, memory.end_bias))
            for token, gain in enumerate(log_probs[0, 0].tolist()):
                if gain > -math.inf and (token == END or length <= max_length):
                    candidates.append((total + gain, [*tokens, token], after))
        candidates.sort(key=lambda candidate: -candidate[0])
        for total, tokens, _ in candidates[:beam_size]:
            if tokens[-1] == END:
                finished.append((tokens[:-1], total))
        beam = [candidate for candidate in candidates[: 2 * beam_size] if candidate[1][-1] != END][:beam_size]
    return finished


def best_of(finished: Iterable[tuple[Sequence[int], float]], penalty: Penalty) -> list[tuple[list[int], float]]:
    """Hypotheses with their scores instead of log-probabilities, the best first."""
    scored = []
    for tokens, log_prob in finished:
        divisor = float(penalty(torch.tensor([len(tokens) + 1], dtype=torch.float64)))
        scored.append((list(tokens), log_prob / divisor))
    return sorted(scored, key=lambda hypothesis: -hypothesis[1])


def assert_same(found: Sequence[Hypothesis], wanted: Sequence[tuple[list[int], float]]) -> None:
    assert [hypothesis.tokens for hypothesis in found] == [tokens for tokens, _ in wanted]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for _, score in wanted], rel=1e-9)


def test_length_penalties_are_their_formulas():
    length = torch.tensor([1.0, 2.0, 13.0])
    assert torch.allclose(power(length, 0.5), torch.tensor([1.0, 2**0.5, 13**0.5]))
    assert torch.allclose(gnmt(length, 0.6), torch.tensor([1.0, (7 / 6) ** 0.6, 3**0.6]))
    for penalty in LENGTH_PENALTIES.values():
        assert torch.equal(penalty(length, 0.0), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_beam_of_one_without_length_penalty_is_greedy(dtype):
    network = Network(vocab_size=30, dtype=dtype)
    max_lengths = torch.randint(0, 25, (200,), generator=torch.Generator().manual_seed(3))
    greedy = greedy_search(network.step, network.start(200), starts(200), max_lengths, END)
    beam = beam_search(network.step, network.start(200), starts(200), max_lengths, END, 1, partial(power, exponent=0.0))
    assert [[hypothesis] for hypothesis in greedy] == beam
    lengths = [len(hypothesis.tokens) for hypothesis in greedy]
    assert any(0 < length < most for length, most in zip(lengths, max_lengths.tolist(), strict=True))
    assert any(0 < length == most for length, most in zip(lengths, max_lengths.tolist(), strict=True))


def test_a_beam_of_one_is_greedy_among_equal_tokens():
    def step(ids: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        log_probs = torch.full((*ids.shape, 12), -8.0)
        log_probs[:, :, [5, 7]] = -1.0  # the likeliest, both
        log_probs[:, :, [PAD, UNKNOWN, BEGIN]] = -torch.inf
        return log_probs, state

    state, max_lengths = Network(12).start(2), torch.tensor([4, 6])
    greedy = greedy_search(step, state, starts(2), max_lengths, END)
    beam = beam_search(step, state, starts(2), max_lengths, END, 1, partial(power, exponent=0.0))
    assert [hypothesis.tokens for hypothesis in greedy] == [[5] * 4, [5] * 6]
    assert [[hypothesis] for hypothesis in greedy] == beam


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("num_best", [1, 7])
def test_a_beam_as_wide_as_the_space_finds_what_brute_force_finds(penalty, num_best):
    network = Network(vocab_size=7)
    max_lengths = torch.tensor([4, 0, 2, 3, 4, 4])
    found = beam_search(network.step, network.start(6), starts(6), max_lengths, END, 128, penalty, num_best)
    for sentence, most in enumerate(max_lengths.tolist()):
        allowed = ((tokens, log_prob) for tokens, log_prob in tried(sentence).items() if len(tokens) <= most)
        assert_same(found[sentence], best_of(allowed, penalty)[:num_best])


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("beam_size", "num_best"), [(1, 1), (2, 1), (3, 3), (5, 2), (4, 6)])
def test_stopping_early_gives_what_a_search_to_the_end_gives(penalty, beam_size, num_best):
    network = Network(vocab_size=12)
    max_lengths = torch.tensor([9, 3, 0, 9, 1, 6, 9, 2, 9, 9, 5, 9])
    found = beam_search(network.step, network.start(12), starts(12), max_lengths, END, beam_size, penalty, num_best)
    for sentence, most in enumerate(max_lengths.tolist()):
        wanted = best_of(plain_beam_search(12, sentence, most, beam_size), penalty)
        assert_same(found[sentence], wanted[:num_best])


def test_searches_stop_early_and_done_sentences_leave_the_batch():
    network = Network(vocab_size=12)
    max_lengths = torch.full((40,), 500)
    for search in (greedy_search, partial(beam_search, beam_size=4, length_penalty=partial(power, exponent=0.5))):
        network.sizes.clear()
        search(network.step, network.start(40), starts(40), max_lengths, END)
        assert len(network.sizes) < 200
        assert network.sizes == sorted(network.sizes, reverse=True)
        assert len(set(network.sizes)) > 3
        before_and_after = itertools.pairwise(network.sizes)
        assert all(after == before or after <= 0.95 * before for before, after in before_and_after)


def test_batches_have_few_sizes():
    sizes = {searches.size_above(count) for count in range(1025)}
    assert sizes == {searches.size_below(count) for count in range(1025)}
    assert {*range(17), 18, 30, 32, 36, 60, 64, 72, 1024} <= sizes
    assert len(sizes) == 17 + 6 * 8
    for count in range(1, 1025):
        assert count * 8 / 9 < searches.size_below(count) <= count <= searches.size_above(count) < count * 9 / 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("rows", ["1111", "0110", "0001", "10011101", "0000", "0" + "1" * 20, "1" * 19 + "0" * 5])
def test_rows_from_the_end_take_the_places_of_finished_ones(rows, device):
    unfinished = torch.tensor([row == "1" for row in rows])
    kept = searches.rows_to_keep(unfinished, torch.device(device)).tolist()
    assert len(kept) == (min(searches.size_above(rows.count("1")), len(rows)) if device == "cpu" else rows.count("1"))
    assert len(set(kept)) == len(kept)
    assert {place for place, row in enumerate(rows) if row == "1"} <= set(kept)
    assert all(place == row or row >= len(kept) for place, row in enumerate(kept))


@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_the_batch_changes_no_sentence(name):
    penalty = partial(power, exponent=1.0)
    searches = {"greedy": greedy_search, "beam": partial(beam_search, beam_size=4, length_penalty=penalty, num_best=3)}
    search = searches[name]
    network = Network(vocab_size=20)
    max_lengths = torch.randint(0, 30, (50,), generator=torch.Generator().manual_seed(4))
    together = search(network.step, network.start(50), starts(50), max_lengths, END)

    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    apart = [None] * 50
    for chosen in order.split(7):
        state = network.start(50).keep(chosen)
        for sentence, found in zip(
            chosen.tolist(), search(network.step, state, starts(len(chosen)), max_lengths[chosen], END), strict=True
        ):
            apart[sentence] = found
    for left, right in zip(together, apart, strict=True):
        left, right = ([left], [right]) if name == "greedy" else (left, right)
        assert_same(right, [(hypothesis.tokens, hypothesis.score) for hypothesis in left])


def test_log_probs_are_the_sums_of_what_the_model_says():
    network = Network(vocab_size=20)
    state, max_lengths = network.start(20), torch.arange(20)
    greedy = greedy_search(network.step, network.start(20), starts(20), max_lengths, END)
    penalty = partial(gnmt, exponent=0.8)
    beam = beam_search(network.step, network.start(20), starts(20), max_lengths, END, 5, penalty, 4)
    for sentence in range(20):
        assert greedy[sentence].log_prob == greedy[sentence].score
        for hypothesis in [greedy[sentence], *beam[sentence]]:
            wanted = network.log_prob(one(state, sentence), hypothesis.tokens)
            assert hypothesis.log_prob == pytest.approx(wanted, rel=1e-9)
        for hypothesis in beam[sentence]:
            divisor = float(penalty(torch.tensor(len(hypothesis.tokens) + 1, dtype=torch.float64)))
            assert hypothesis.score == pytest.approx(hypothesis.log_prob / divisor, rel=1e-12)


def test_the_n_best_differ_and_fall():
    network = Network(vocab_size=20)
    found = beam_search(
        network.step, network.start(30), starts(30), torch.full((30,), 12), END, 6, partial(power, exponent=1.0), 6
    )
    for hypotheses in found:
        assert len(hypotheses) == 6
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == 6


def test_a_sentence_without_room_only_ends():
    network = Network(vocab_size=9)
    state, max_lengths = network.start(3), torch.tensor([0, 1, 1])
    state.end_bias[:] = -20  # it does not want to
    found = beam_search(network.step, state, starts(3), max_lengths, END, 3, partial(power, exponent=0.0), num_best=2)
    greedy = greedy_search(network.step, one(state, 0), starts(1), max_lengths[:1], END)
    assert [hypothesis.tokens for hypothesis in found[0]] == [[]]  # the space holds no second
    assert greedy[0].tokens == []
    assert greedy[0].log_prob == pytest.approx(found[0][0].log_prob)
    assert found[0][0].log_prob < -10  # the model's own, though it was forced
    assert [len(hypothesis.tokens) for hypothesis in found[1]] == [1, 1]


def test_what_is_forbidden_neither_goes_on_nor_ends():
    def step(ids: Tensor, state: Memory) -> tuple[Tensor, Memory]:
        log_probs = torch.full((*ids.shape, 6), -torch.inf)
        log_probs[:, :, 4] = -0.5
        log_probs[:, :, END][ids == 4] = -1.0  # nothing may end before a token was said
        return log_probs, state

    network, max_lengths = Network(6), torch.tensor([3, 0])
    beam = beam_search(step, network.start(2), starts(2), max_lengths, END, 4, partial(power, exponent=0.0), 9)
    assert [hypothesis.tokens for hypothesis in beam[0]] == [[4], [4, 4], [4, 4, 4]]
    assert [hypothesis.score for hypothesis in beam[0]] == [-1.5, -2.0, -2.5]
    assert beam[1] == [Hypothesis([], -math.inf, -math.inf)]  # no way to an end
    greedy = greedy_search(step, network.start(2), starts(2), max_lengths, END)
    assert greedy == [Hypothesis([4, 4, 4], -2.5, -2.5), Hypothesis([], -math.inf, -math.inf)]


def test_an_empty_batch_has_no_hypotheses():
    network, nothing = Network(6), torch.zeros(0, dtype=torch.int64)
    assert greedy_search(network.step, network.start(0), nothing, nothing, END) == []
    assert beam_search(network.step, network.start(0), nothing, nothing, END, 2, partial(power, exponent=1.0)) == []


SMALL = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
LSTM = RecurrentConfig(**SMALL)
TRANSFORMER = TransformerConfig(**SMALL, num_heads=2, d_ff=16)
REAL_MODELS = [
    TRANSFORMER,
    LSTM,
    RecurrentConfig(**SMALL, cell="gru", attention="additive", input_feeding=True),
    RecurrentConfig(**SMALL, cell="tanh", attention="none", context="every_step"),
    MixedConfig(encoder=TRANSFORMER, decoder=LSTM),
    MixedConfig(encoder=LSTM, decoder=TRANSFORMER),
]


def padded_rows(sentences: list[list[int]]) -> Rows:
    longest = max(map(len, sentences))
    ids = torch.tensor([[*sentence, *[PAD] * (longest - len(sentence))] for sentence in sentences])
    mask = (ids != PAD).long()
    return Rows(ids, mask, torch.arange(longest) * mask)


@pytest.mark.parametrize("config", REAL_MODELS)
def test_a_beam_as_wide_as_the_space_finds_what_trying_every_output_of_a_real_model_finds(config):
    words, longest = [4, 5, 6], 3
    model = new_model(config, 7, 7, seed=1).double().eval()
    for parameter in model.parameters():
        parameter.data *= 2  # far from uniform
    source = padded_rows([[4, 6, 5, END], [5, END], [6, 6, 4, 4, 5, END]])

    def normalized(features: Tensor) -> Tensor:
        logits = model.output(features)
        logits[:, :, [PAD, UNKNOWN, BEGIN]] = -torch.inf
        return logits.log_softmax(dim=2)

    def step(ids: Tensor, state: State) -> tuple[Tensor, State]:
        features, state = model.decode(next_rows(ids, state), state)
        return normalized(features), state

    outputs = [[list(tokens) for tokens in itertools.product(words, repeat=length)] for length in range(longest + 1)]
    size, penalty = sum(map(len, outputs)), partial(power, exponent=0.7)
    with torch.no_grad():
        lengths = torch.tensor([longest] * 3)
        found = beam_search(step, model.encode(source), starts(3), lengths, END, size, penalty, size)
        for sentence, hypotheses in enumerate(found):
            scored = []
            for alike in outputs:  # of the same length
                repeated = [sentence] * len(alike)
                sources = Rows(*(x[repeated] for x in (source.ids, source.segments, source.positions)))
                log_probs = normalized(model(sources, padded_rows([[BEGIN, *tokens] for tokens in alike])))
                for row, tokens in zip(log_probs, alike, strict=True):
                    total = sum(float(row[place, token]) for place, token in enumerate([*tokens, END]))
                    scored.append((tokens, total / (len(tokens) + 1) ** 0.7))
            assert_same(hypotheses, sorted(scored, key=lambda one: -one[1]))


# The largest values of a large vocabulary, found block by block.


@pytest.mark.parametrize("vocab_size", [100, 128, 129, 1000])
@pytest.mark.parametrize("levels", [3, 1 << 20])  # with few levels, most values are equal
def test_the_largest_of_blocks_is_the_largest_of_all_and_the_first_of_equals(vocab_size, levels):
    values = torch.randint(levels, (4, 3, vocab_size), generator=torch.Generator().manual_seed(vocab_size)).float()
    wanted = [[row.index(max(row)) for row in rows] for rows in values.tolist()]
    assert searches._argmax(values).tolist() == wanted
    values[1, 2, vocab_size - 1] = torch.nan
    assert searches._argmax(values)[1, 2] == vocab_size - 1


@pytest.mark.parametrize("vocab_size", [100, 1000, 2048])
@pytest.mark.parametrize("levels", [3, 1 << 20])
def test_the_top_of_blocks_is_the_top_of_all(vocab_size, levels):
    values = torch.randint(levels, (4, 3, vocab_size), generator=torch.Generator().manual_seed(vocab_size)).float()
    values[0, 0, 5:] = -torch.inf
    values[2, 1, 77] = torch.nan
    found, tokens = searches._topk(values, 6)
    torch.testing.assert_close(found, values.topk(6).values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values.gather(2, tokens), found, rtol=0, atol=0, equal_nan=True)
    assert all(len(set(row)) == 6 for rows in tokens.tolist() for row in rows)
