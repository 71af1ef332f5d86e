"""Sampled segmentations have the probabilities of the papers and are the same in every process."""

import hashlib
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import SPACE_MARK, MakeWordSampler, SubwordModel, bpe_dropout, unigram_sampling
from tests.conftest import toy_pairs

LINES = [source for source, _ in toy_pairs(300)] + ["seventeen ninety-nine", "<2de> four", "naïve €"]
MERGES = ["ab", "bc", "abc", "ca", "bca", "abcab"]  # best first
CHARACTERS = [SPACE_MARK, "a", "b", "c"]
DRAWS = 12_000


def model_of(scores: dict[str, float]) -> SubwordModel:
    return SubwordModel({piece: id_ for id_, piece in enumerate(scores)}, scores, (), lambda _: [])


BPE = model_of({piece: -float(rank) for rank, piece in enumerate([*MERGES, *CHARACTERS])})
UNIGRAM = model_of({piece: -0.7 * rank - 0.5 for rank, piece in enumerate([*MERGES, *CHARACTERS])})


def bpe_probabilities(symbols: tuple[str, ...], dropout: float) -> Counter[tuple[str, ...]]:
    """Exact, by trying every merge at every step: the k-th best is made if all better ones are skipped, and it not."""
    ranks = {piece: rank for rank, piece in enumerate(MERGES)}
    pairs = [(ranks[a + b], place) for place, (a, b) in enumerate(pairwise(symbols)) if a + b in ranks]
    found: Counter[tuple[str, ...]] = Counter()
    for left_out, (_, place) in enumerate(sorted(pairs)):
        after = (*symbols[:place], symbols[place] + symbols[place + 1], *symbols[place + 2 :])
        for result, probability in bpe_probabilities(after, dropout).items():
            found[result] += dropout**left_out * (1 - dropout) * probability
    found[symbols] += dropout ** len(pairs)
    return found


def segmentations(word: str) -> Iterator[tuple[str, ...]]:
    """All segmentations of a word into pieces."""
    if not word:
        yield ()
    for end in range(1, len(word) + 1):
        if word[:end] in UNIGRAM.ids:
            yield from ((word[:end], *rest) for rest in segmentations(word[end:]))


def shares(make_sampler: MakeWordSampler, model: SubwordModel, word: str) -> dict[tuple[str, ...], float]:
    names = list(model.ids)
    sample, rng = make_sampler(word), random.Random(1)
    counts = Counter(tuple(names[id_] for id_ in sample(rng)) for _ in range(DRAWS))
    return {segmentation: count / DRAWS for segmentation, count in counts.items()}


def assert_shares(found: dict[tuple[str, ...], float], wanted: dict[tuple[str, ...], float]) -> None:
    """Require shares within five standard deviations and a few draws, and no impossible segmentation."""
    assert set(found) <= set(wanted)
    for segmentation, probability in wanted.items():
        deviation = math.sqrt(probability * (1 - probability) / DRAWS)
        assert abs(found.get(segmentation, 0.0) - probability) <= 5 * deviation + 3 / DRAWS, segmentation


@pytest.mark.parametrize("dropout", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("word", ["abc", "abcab", "cabca", "bb"])
def test_merges_are_left_out_as_often_as_the_algorithm_does(word: str, dropout: float) -> None:
    wanted = bpe_probabilities((SPACE_MARK, *word), dropout)
    assert sum(wanted.values()) == pytest.approx(1)
    assert_shares(shares(bpe_dropout(BPE, dropout), BPE, word), wanted)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("num_best", [-1, 2, 4, 100])
def test_segmentations_are_drawn_by_their_probability_to_the_power_of_alpha(num_best: int, alpha: float) -> None:
    word = "abcabca"
    scores = {way: sum(UNIGRAM.scores[piece] for piece in way) for way in segmentations(SPACE_MARK + word)}
    assert len(scores) > 20
    kept = sorted(scores, key=lambda way: scores[way], reverse=True)[: None if num_best == -1 else num_best]
    total = sum(math.exp(alpha * scores[way]) for way in kept)
    wanted = {way: math.exp(alpha * scores[way]) / total for way in kept}
    assert_shares(shares(unigram_sampling(UNIGRAM, alpha, num_best), UNIGRAM, word), wanted)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    settings = TokenizerConfig(type=request.param, vocab_size=300)
    train_tokenizer(lambda: LINES, lambda: LINES, settings, directory, ("<2de>",))
    return Tokenizer.load(directory), directory


def test_without_chance_the_segmentation_is_sentencepieces_own(tokenizer: tuple[Tokenizer, Path]) -> None:
    loaded, directory = tokenizer
    texts = [loaded.normalize_source(line) for line in LINES]
    # No merge is skipped, or the probabilities are so sharp that one segmentation is left.
    sure = 1e-15 if directory.name.startswith("bpe") else 1e4
    assert loaded.sample_source(texts, sure, -1, 1) == loaded.encode_source(texts)


def test_symbols_bytes_and_unknown_characters_stay_whole(tokenizer: tuple[Tokenizer, Path]) -> None:
    loaded, _ = tokenizer
    texts = ["<2de>", "日本", "x日", "<2de>four"]
    for seed in range(20):
        assert loaded.sample_source(texts, 0.5, -1, seed) == loaded.encode_source(texts)


def test_every_process_draws_the_same_for_the_same_seed(tokenizer: tuple[Tokenizer, Path]) -> None:
    loaded, directory = tokenizer
    texts = [loaded.normalize_source(line) for line in LINES]
    program = (
        "import hashlib, json, sys; from pathlib import Path; from mtkit.text.tokenizer import Tokenizer;"
        "drawn = Tokenizer.load(Path(sys.argv[1])).sample_source(json.loads(sys.stdin.read()), 0.3, -1, 7);"
        "print(hashlib.sha256(str(drawn).encode()).hexdigest())"
    )

    here = hashlib.sha256(str(loaded.sample_source(texts, 0.3, -1, 7)).encode()).hexdigest()
    other = subprocess.run(  # whose hashes of texts are others
        [sys.executable, "-c", program, str(directory)],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == here
    assert loaded.sample_source(texts, 0.3, -1, 8) != loaded.sample_source(texts, 0.3, -1, 7)
