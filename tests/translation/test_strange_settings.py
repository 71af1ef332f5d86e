"""No setting of decoding ends in a traceback or a silent blank line, and none takes memory without bound."""

import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtkit.cli import main
from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.config.load import config_from_text
from mtkit.errors import ConfigError
from mtkit.evaluation.evaluate import translate_set
from mtkit.models.interface import Ensemble
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.translation import search as sampling
from mtkit.translation.search import LENGTH_PENALTIES, Draw, no_repeat_ngram
from mtkit.translation.stream import translate
from mtkit.translation.translator import STEP_ELEMENTS, Translator, _Part
from tests.translation.test_translator import random_translator, sentences, settings

SEARCHES: dict[str, dict[str, object]] = {
    "greedy": {"beam_size": 1},
    "beam": {},
    "diverse": {"diversity_groups": 2},
    "samples": {"method": "sample"},
    "mbr": {"mbr_samples": 3},
}
ALL_SEARCHES = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("words")
    lines = sentences(50)
    train_tokenizer(lambda: lines, lambda: lines, TokenizerConfig(type="word", vocab_size=18), directory)
    return Tokenizer.load(directory)


# Limits.


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("length_penalty: 24", "found 24, wants a number, at least -10, at most 10"),
        ("length_penalty: -100", "found -100, wants a number, at least -10, at most 10"),
        ("length_penalty: .inf", "found .inf, wants a number, at least -10, at most 10"),
        ("length_penalty: .nan", "found .nan, wants a number, at least -10, at most 10"),
        ("coverage_penalty: 1e38", "wants a number, at least 0, at most 100"),
        ("diversity_strength: 1e300", "wants a number, at least 0, at most 1000"),
        ("temperature: 0", "found 0, wants a number, at least 1e-09, at most 1000"),
        ("temperature: 1e-300", "wants a number, at least 1e-09, at most 1000"),
        ("temperature: 1e300", "wants a number, at least 1e-09, at most 1000"),
        ("max_length_ratio: 1e300", "wants a number, more than 0, at most 100"),
        ("max_length_extra: 100000000000", "found 100000000000, wants a whole number, at least 0, at most 10000"),
        ("min_length: 1000000000000000000000000", "wants a whole number, at least 0, at most 1000000"),
        ("beam_size: 1000000000000000000000000", "wants a whole number, at least 1, at most 10000"),
        ("mbr_samples: 1000000000000000000000000", "wants a whole number, at least 0, at most 10000"),
    ],
)
def test_what_would_break_a_search_is_refused(setting: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as error:
        config_from_text(f"decoding: {{{setting}}}", "x.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--length-penalty", "24"],
            "decoding.length_penalty=24: found 24, wants a number, at least -10, at most 10",
        ),
        (["--set", "temperature=0", "--sample"], "found 0, wants a number, at least 1e-09, at most 1000"),
        (
            ["--sample", "--n-best", "9" * 30],
            f"--n-best: found {'9' * 30}, wants at most as many samples of a line as mtkit draws, 10000",
        ),
    ],
)
def test_the_command_line_refuses_it_in_one_line(
    tiny_run: Path, options: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tiny_run / "config.yaml")  # any text
    monkeypatch.setattr(sys, "argv", ["mtkit", "translate", str(tiny_run), source, *options])
    with pytest.raises(SystemExit, match="1"):
        main()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mtkit: error: ")
    assert line.endswith(told)


EXTREMES: list[dict[str, object]] = [
    {"length_penalty": 10},
    {"length_penalty": -10},
    {"length_penalty": 10, "length_penalty_form": "gnmt", "max_length_extra": 60},
    {"length_penalty": -10, "beam_size": 1},
    {"coverage_penalty": 100},
    {"diversity_groups": 2, "diversity_strength": 1000},
    {"method": "sample", "temperature": 1e-9},
    {"method": "sample", "temperature": 1000, "min_length": 1},
    {"method": "sample", "top_p": 1e-300},
    {"method": "sample", "top_k": 10**30},
    {"min_length": 1_000_000, "no_repeat_ngram": 10**30},
    {"max_length_ratio": 1e-9, "max_length_extra": 0, "min_length": 1},
]


@pytest.mark.parametrize("extreme", EXTREMES, ids=str)
def test_the_furthest_values_that_are_taken_give_translations(words: Tokenizer, extreme: dict[str, object]) -> None:
    config = settings(**{"max_length_extra": 5, "min_length": 1, **extreme})
    for line in random_translator(words, config).translate_lines(["the cat", "a"], num_best=1):
        assert line.text.strip()
        assert abs(line.translations[0].score) < float("inf")
        assert line.notes == ()


@pytest.mark.parametrize("form", LENGTH_PENALTIES)
@pytest.mark.parametrize("exponent", [-10.0, 10.0])
def test_a_length_penalty_is_a_number_in_fp32_for_every_length(form: str, exponent: float) -> None:
    penalties = LENGTH_PENALTIES[form](torch.tensor([1.0, 1000.0, 1e6], dtype=torch.float64), exponent).float()
    assert ((penalties > 0) & penalties.isfinite()).all()
    assert (-1e7 / penalties).isfinite().all()


# Searches that find nothing.


def without_numbers(words: Tokenizer, search: dict[str, object]) -> Translator:
    translator = random_translator(words, settings(**search))
    translator.model.output.table.weight[7, 3] = torch.nan
    return translator


@ALL_SEARCHES
def test_a_model_without_numbers_is_told_line_by_line(
    words: Tokenizer, search: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = BytesIO()
    translate(without_numbers(words, search), BytesIO(b"the cat\n\na dog\n"), out)
    assert out.getvalue() == b"\n\n\n"
    first, second = capsys.readouterr().err.splitlines()
    told = "has no translation, and is left blank: the model's log-probabilities are not numbers (NaN)"
    assert first.startswith(f"mtkit: warning: line 1 {told}")
    assert second.startswith(f"mtkit: warning: line 3 {told}")


@ALL_SEARCHES
def test_a_line_for_which_every_end_is_forbidden_is_told(words: Tokenizer, search: dict[str, object]) -> None:
    # There are fewer words than the translation must have, and none may be said twice.
    config = settings(**{**search, "no_repeat_ngram": 1, "min_length": 40, "max_length_extra": 60, "unknown": "ban"})
    translator = random_translator(words, config)
    with pytest.warns(UserWarning, match="line 2 has no translation, and is left blank: min_length") as told:
        assert translator.translate(["", "the cat"]) == ["", ""]
    assert len(told) == 1


def test_evaluation_counts_the_lines_that_nothing_was_found_for(
    words: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert translate_set(without_numbers(words, {}), "news", ["the cat", "", "a dog"]) == ["", "", ""]
    assert "mtkit: warning: news: 2 of 3 lines, each of which has no translation, and is" in capsys.readouterr().err


# Memory.


class Largest(TorchDispatchMode):
    """Sees every tensor that is made, and remembers how large the largest of some dtype was."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf._base is None and 0 not in leaf.stride():
                self.elements[leaf.dtype] = max(self.elements.get(leaf.dtype, 0), leaf.numel())
        return result


def largest(action: Callable[[], object]) -> dict[torch.dtype, int]:
    """The elements of the largest tensor of each dtype that an action makes."""
    with Largest() as seen:
        action()
    return seen.elements


@ALL_SEARCHES
@pytest.mark.parametrize("members", [1, 2])
def test_the_log_probabilities_of_a_step_are_bounded_however_short_the_lines_are(
    words: Tokenizer, search: dict[str, object], members: int
) -> None:
    config = settings(**{"batch_tokens": 1024, "max_length_extra": 1, "max_length_ratio": 0.5, **search})
    translator = random_translator(words, config)
    vocab_size = 20_000  # only the model's, so that every word is said by a row of its own
    table = torch.randn(vocab_size, 16)
    for half in (translator.model.output.table, translator.model.decoder.embedding):
        half.weight = torch.nn.Parameter(table, requires_grad=False)
    if members == 2:
        translator.model = Ensemble([translator.model] * 2)  # type: ignore[list-item]
    sentences_ = [[5 + i % 10] for i in range(300)]
    width = translator.config.decoding.mbr_samples or (
        1 if "method" in search else translator.config.decoding.beam_size
    )
    batches = list(translator._batches(list(range(300)), [_part(tokens) for tokens in sentences_], width))
    assert [place for batch in batches for place in batch] == list(range(300))
    most = 1024 * STEP_ELEMENTS
    assert max(map(len, batches)) * width * vocab_size * members <= most
    seen = largest(lambda: translator.search([sentences_[i] for i in batches[0]], width))
    assert max(seen.values()) <= most


def _part(tokens: list[int]) -> _Part:
    return _Part(0, tokens, "", [])


@pytest.mark.parametrize("draw", [Draw(), Draw(top_p=0.9), Draw(0.7, top_k=300), Draw(top_k=300, top_p=0.5)])
def test_drawing_some_sentences_at_a_time_draws_the_same_in_less_memory(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    log_probs, chances = torch.randn(50, 1, 400).log_softmax(2), torch.rand(50, 7)
    whole = draw(log_probs, chances)
    monkeypatch.setattr(sampling, "CHUNK_ELEMENTS", 5 * 7 * 400)
    found: list[torch.Tensor] = []
    seen = largest(lambda: found.append(draw(log_probs, chances)))
    assert torch.equal(found[0], whole)
    assert seen[torch.float64] <= 5 * 7 * 400


def test_blocking_ngrams_makes_one_tensor_over_the_vocabulary() -> None:
    log_probs, tokens = torch.randn(3, 4, 1000), torch.randint(5, (3, 4, 6))
    made = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal made
            result = func(*args, **(kwargs or {}))
            made += isinstance(result, torch.Tensor) and result.numel() >= log_probs.numel()
            return result

    with Count():
        no_repeat_ngram(2)(log_probs, tokens, torch.arange(3))
    assert made == 1
