"""Searches under constraints find what brute force finds among all that the constraints allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from mtkit.text.vocabulary import BEGIN, END
from mtkit.translation.search import (
    STOPPING,
    Constraint,
    Coverage,
    Draw,
    Groups,
    Hypothesis,
    TokenHistory,
    UniformNumbers,
    beam_search,
    begin_with,
    constrained,
    count,
    coverage_penalty,
    covering,
    greedy_search,
    min_length,
    no_repeat_ngram,
    power,
    sample_search,
)
from tests.translation.test_search import PENALTIES, Memory, Network, Penalty, assert_same, best_of, one, starts, tried

MAX_LENGTHS = torch.tensor([4, 0, 2, 3, 4, 4])
PREFIXES = [[5], [], [6, 6], [], [4, 4, 4, 4], [6, 5]]
NO_TOKEN = -1


def padded(prefixes: Sequence[Sequence[int]]) -> Tensor:
    longest = max(map(len, prefixes))
    return torch.tensor([[*prefix, *[NO_TOKEN] * (longest - len(prefix))] for prefix in prefixes])


def repeats(tokens: Sequence[int], size: int, after: int) -> bool:
    """Whether an n-gram that ends after so many tokens stood before."""
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]
    return any(ngrams[i] in ngrams[:i] for i in range(len(ngrams)) if i + size > after)


def scored_by_brute_force(
    sentence: int, penalty: Penalty, least: int, size: int, prefix: list[int]
) -> list[tuple[list[int], float]]:
    """All that the constraints allow, best first."""
    most = int(MAX_LENGTHS[sentence])
    allowed = []
    for tokens, log_prob in tried(sentence).items():
        begins = list(tokens[: len(prefix)]) == prefix
        fits = min(least, most) <= len(tokens) <= most
        if begins and fits and not (size and repeats(tokens, size, len(prefix))):
            allowed.append((tokens, log_prob))
    return best_of(allowed, penalty)


@pytest.mark.parametrize("penalty", PENALTIES[1:3])
@pytest.mark.parametrize("with_prefixes", [False, True])
@pytest.mark.parametrize(("least", "size"), [(0, 0), (2, 0), (9, 0), (0, 1), (0, 2), (0, 3), (3, 2), (4, 1)])
def test_a_wide_beam_finds_the_best_that_the_constraints_allow(
    penalty: Penalty, with_prefixes: bool, least: int, size: int
) -> None:
    network = Network(vocab_size=7)
    constraints: list[Constraint] = [min_length(MAX_LENGTHS.clamp(max=least), END)]
    if size:
        constraints.append(no_repeat_ngram(size))
    if with_prefixes:
        constraints = [begin_with(padded(PREFIXES), constraints)]
    step, history = constrained(network.step, constraints), TokenHistory.empty(network.start(6), torch.arange(6))
    found = beam_search(step, history, starts(6), MAX_LENGTHS, END, 128, penalty, 5)
    for sentence in range(6):
        prefix = PREFIXES[sentence] if with_prefixes else []
        wanted = scored_by_brute_force(sentence, penalty, least, size, prefix)
        if wanted:
            assert_same(found[sentence], wanted[:5])
        else:  # four different ones of three tokens
            assert found[sentence] == [Hypothesis([], -math.inf, -math.inf)]


def test_greedy_search_and_samples_keep_to_the_constraints_too() -> None:
    network, least, size = Network(vocab_size=12), 4, 2
    prefixes = [[5], [], [6, 7, 6, 7, 6], [8, 8]] * 5
    max_lengths = torch.full((20,), 12)
    constraints = [begin_with(padded(prefixes), [min_length(torch.full((20,), least), END), no_repeat_ngram(size)])]

    def under_constraints(search: object) -> list[Hypothesis]:
        history = TokenHistory.empty(network.start(20), torch.arange(20))
        return search(constrained(network.step, constraints), history, starts(20), max_lengths, END)  # type: ignore

    uniform = UniformNumbers(1, [[n] for n in range(20)], 3)
    samples = under_constraints(partial(sample_search, num_samples=3, draw=Draw(), uniform=uniform))
    free = greedy_search(network.step, network.start(20), starts(20), max_lengths, END)
    found = under_constraints(greedy_search)
    assert [best.tokens for best in found] != [best.tokens for best in free]
    state = network.start(20)
    for sentence, hypotheses in enumerate(zip(found, *zip(*samples, strict=True), strict=True)):
        for hypothesis in hypotheses:
            prefix = prefixes[sentence]
            assert hypothesis.tokens[: len(prefix)] == prefix
            assert len(hypothesis.tokens) >= least
            assert not repeats(hypothesis.tokens, size, len(prefix))
            wanted = network.log_prob(one(state, sentence), hypothesis.tokens)
            assert hypothesis.log_prob == pytest.approx(wanted, rel=1e-9)


@dataclass
class Looking:
    """A memory that looks at a source: at each step as its first four numbers tell."""

    memory: Memory
    real: Tensor  # (R, S)

    def branch(self, parents: Tensor) -> "Looking":
        return Looking(self.memory.branch(parents), self.real)

    def keep(self, sentences: Tensor) -> "Looking":
        return Looking(self.memory.keep(sentences), self.real[sentences])

    @property
    def attention(self) -> Tensor:
        scores = 3 * self.memory.hidden[:, :, : self.real.shape[1]]
        return scores.masked_fill(~self.real[:, None], -math.inf).softmax(-1)


REAL = torch.arange(4) < torch.tensor([4, 2, 3, 1, 4, 3])[:, None]


@cache
def coverage_by_hand(sentence: int, tokens: Sequence[int]) -> float:
    """Wu et al. (2016), equation 15, of one sentence, over its tokens and its end mark."""
    network = Network(vocab_size=7)
    looking = Looking(one(network.start(6), sentence), REAL[sentence : sentence + 1])
    sums = [0.0] * int(looking.real.sum())
    memory = Memory(looking.memory.hidden, looking.memory.end_bias)
    for token in [BEGIN, *tokens]:
        _, memory = network.step(torch.tensor([[token]]), memory)
        looks = Looking(memory, looking.real).attention[0, 0].tolist()
        sums = [before + now for before, now in zip(sums, looks, strict=False)]
    return sum(math.log(min(total, 1.0)) for total in sums)


@pytest.mark.parametrize("penalty", PENALTIES[1:3])
@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_a_wide_beam_with_a_coverage_penalty_finds_what_brute_force_finds(penalty: Penalty, strength: float) -> None:
    network = Network(vocab_size=7)

    def step(ids: Tensor, looking: Looking) -> tuple[Tensor, Looking]:
        log_probs, memory = network.step(ids, looking.memory)
        return log_probs, Looking(memory, looking.real)

    coverage = Coverage.empty(Looking(network.start(6), REAL), REAL, torch.float64)
    extra_score = partial(coverage_penalty, strength=strength)
    covering_step = covering(step, lambda looking: looking.attention)
    found = beam_search(covering_step, coverage, starts(6), MAX_LENGTHS, END, 128, penalty, 5, extra_score=extra_score)
    without = beam_search(network.step, network.start(6), starts(6), MAX_LENGTHS, END, 128, penalty, 5)
    assert [[h.tokens for h in hypotheses] for hypotheses in found] != [[h.tokens for h in best] for best in without]
    for sentence, most in enumerate(MAX_LENGTHS.tolist()):
        allowed = ((tokens, log_prob) for tokens, log_prob in tried(sentence).items() if len(tokens) <= most)
        scored = [
            (tokens, score + strength * coverage_by_hand(sentence, tuple(tokens)))
            for tokens, score in best_of(allowed, penalty)
        ]
        assert_same(found[sentence], sorted(scored, key=lambda hypothesis: -hypothesis[1])[:5])


def plain_groups(
    network: Network, state: Memory, most: int, beam_size: int, penalty: Penalty, groups: Groups
) -> list[tuple[list[int], float]]:
    """Diverse beam search with lists, a sentence at a time, that never stops before its longest."""
    width = beam_size // groups.number
    beams: list[list[tuple[float, list[int], Memory]]] = [[(0.0, [], state)] for _ in range(groups.number)]
    finished: list[tuple[list[int], float]] = []
    for length in range(1, most + 2):
        said: list[int] = []
        for group, beam in enumerate(beams):
            candidates = []
            for total, tokens, memory in beam:
                last = tokens[-1] if tokens else BEGIN
                log_probs, after = network.step(torch.tensor([[last]]), Memory(memory.hidden, memory.end_bias))
                for token, gain in enumerate(log_probs[0, 0].tolist()):
                    if gain > -math.inf and (token == END or length <= most):
                        rank = total + gain - (groups.strength * said.count(token) if length <= most else 0)
                        candidates.append((rank, total + gain, [*tokens, token], after))
            candidates.sort(key=lambda candidate: -candidate[0])
            for _, total, tokens, _ in candidates[:width]:
                if tokens[-1] == END:
                    finished.append((tokens[:-1], total / float(penalty(torch.tensor([length], dtype=torch.float64)))))
            going = [candidate for candidate in candidates[: 2 * width] if candidate[2][-1] != END][:width]
            beams[group] = [(total, tokens, after) for _, total, tokens, after in going]
            said += [tokens[-1] for _, _, tokens, _ in going]
    return sorted(finished, key=lambda hypothesis: -hypothesis[1])


@pytest.mark.parametrize("groups", [Groups(2, 0.5), Groups(2, 0.0), Groups(3, 1.5), Groups(6, 0.7)])
def test_a_diverse_beam_finds_what_its_plain_form_finds(groups: Groups) -> None:
    network, penalty = Network(vocab_size=12), partial(power, exponent=1.0)
    max_lengths = torch.tensor([9, 3, 0, 9, 1, 6, 9, 2, 9, 9, 5, 9])
    state = network.start(12)
    found = beam_search(network.step, network.start(12), starts(12), max_lengths, END, 6, penalty, 6, groups=groups)
    for sentence, most in enumerate(max_lengths.tolist()):
        wanted = plain_groups(network, one(state, sentence), most, 6, penalty, groups)[:6]
        assert [hypothesis.score for hypothesis in found[sentence]] == pytest.approx([score for _, score in wanted])
        assert sorted(hypothesis.tokens for hypothesis in found[sentence]) == sorted(tokens for tokens, _ in wanted)


def test_groups_make_the_best_more_different() -> None:
    network, max_lengths = Network(vocab_size=30), torch.full((40,), 9)
    first_tokens = []
    for groups in (Groups(), Groups(4, 3.0)):
        found = beam_search(
            network.step,
            network.start(40),
            starts(40),
            max_lengths,
            END,
            4,
            partial(power, exponent=1.0),
            4,
            stopping=count,
            groups=groups,
        )
        first_tokens.append(sum(len({tuple(h.tokens[:2]) for h in hypotheses}) for hypotheses in found))
    assert first_tokens[1] > 1.3 * first_tokens[0]


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_counting_stops_at_the_step_at_which_a_beam_of_them_has_ended(beam_size: int) -> None:
    network, penalty = Network(vocab_size=12), partial(power, exponent=2.0)  # which makes the exact rule go on long
    steps = {}
    for name, stopping in STOPPING.items():
        network.sizes.clear()
        found = beam_search(
            network.step,
            network.start(30),
            starts(30),
            torch.full((30,), 40),
            END,
            beam_size,
            penalty,
            beam_size,
            stopping=stopping,
        )
        steps[name] = sum(network.sizes)
        assert all(len(hypotheses) == beam_size for hypotheses in found)
    assert steps["count"] < 0.8 * steps["exact"]
    # Whether a sentence goes on is its own affair, so the last of those that were counted ended where it stopped.
    for sentence in range(0, 30, 3):
        network.sizes.clear()
        state = one(network.start(30), sentence)
        options = {"beam_size": beam_size, "length_penalty": penalty, "stopping": count}
        [alone] = beam_search(network.step, state, starts(1), torch.tensor([40]), END, num_best=99, **options)
        assert len(alone) >= beam_size
        assert len(network.sizes) == max(len(hypothesis.tokens) for hypothesis in alone) + 1
        before = [hypothesis for hypothesis in alone if len(hypothesis.tokens) + 1 < len(network.sizes)]
        assert len(before) < beam_size
