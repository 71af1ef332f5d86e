"""The experiments of configs/lecture: each can be loaded, refuted, and is stopped by a fault in what it tests."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtkit.experiment.boards import BOARDS, Figures
from mtkit.experiment.measures import (
    BOARD,
    CLAIM_HOLDS,
    CONTRADICTED,
    HOLDS_IF,
    INVALID,
    NOT_HERE,
    MissingError,
    Reference,
    Values,
    judge,
)
from mtkit.experiment.run import Card, load_folder
from tests.experiment import test_boards

LECTURE = Path(__file__).parents[2] / "configs" / "lecture"


@pytest.fixture(scope="module")
def cards() -> dict[str, Card]:
    """The experiments by their numbers."""
    return {card.short: card for card in load_folder(LECTURE)}


def test_there_are_22_experiments_in_the_order_of_their_numbers(cards: dict[str, Card]) -> None:
    assert list(cards) == [f"{number:02}" for number in range(1, 23)]
    assert [card.file.rank for card in cards.values()] == list(range(1, 23))


def test_each_says_how_it_could_be_wrong_and_what_is_known(cards: dict[str, Card]) -> None:
    for card in cards.values():
        file = card.file
        assert len(file.wrong.split()) > 15, card.name
        assert len(file.known.split()) > 15, card.name
        assert file.references, card.name
        assert len(file.exercises) == 2, card.name
        assert file.valid_if or card.short == "18", card.name  # 18 has nothing to compare with
        assert file.picture is not None, card.name
        assert all(re.search(r"\b(1[89]|20)\d\d\b|section|table", each) for each in file.references), card.name


def test_the_table_of_the_page_has_each_experiment_with_its_boards_and_trainings(cards: dict[str, Card]) -> None:
    rows = re.findall(r"^\| \[(\d\d)\]\((.+?)\) (.+?) \| .+? \| (.*?) \| (\d+), (\d+) \|$", page(), re.MULTILINE)
    told = {row[0]: row[1:] for row in rows}
    assert told == {
        short: (
            card.path.name,
            card.file.experiment,
            ", ".join(card.file.board) or "none",
            *(str(len(trainings(card, size))) for size in ("toy", "small")),
        )
        for short, card in cards.items()
    }


def page() -> str:
    """The page of the folder."""
    return (LECTURE / "README.md").read_text("utf-8")


def trainings(card: Card, size: str) -> set[str]:
    """The different settings that an experiment trains at a size, without those that only search needs."""
    configs = [card.config(name, size, 1) for name in card.runs_at(size)]  # type: ignore[arg-type]
    return {str(config.model_copy(update={"decoding": None})) for config in configs}


def test_the_experiment_that_the_page_shows_how_to_write_is_one(tmp_path: Path) -> None:
    [text] = re.findall(r"^```yaml\n(.*?)^```$", page(), re.DOTALL | re.MULTILINE)
    for path in LECTURE.glob("base*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "23-dropout.yaml").write_text(text, "utf-8")
    [card] = load_folder(tmp_path)
    assert card.runs_at("toy") == ["dropout", "no dropout", "all text"]


# Sabotage: a fault must end in no verdict that speaks for the claim, even if all trainings came out as predicted.

# What is measured where all is well, by experiment.
MEASURED: dict[str, dict[str, float]] = {
    "01": {
        **{f'bleu["{name}"]': 1 for name in ("no mask", "no shift", "product with 0")},
        'bleu["base"]': 40,
        'perplexity["base"]': 3,
        'perplexity["no mask"]': 1.1,
        'perplexity["no shift"]': 1,
    },
    "02": {
        **{f'bleu["{name}"]': bleu for name, bleu in (("attention", 30), ("one vector", 15), ("one wide vector", 20))},
        **{f'bleu["attention", "{part}"]': 30 for part in ("short", "long")},
        'bleu["one vector", "short"]': 25,
        'bleu["one vector", "long"]': 8,
    },
    "03": {
        **{f'bleu["{name}"]': bleu for name, bleu in (("base", 40), ("encoder without", 25), ("decoder without", 39))},
        'order_invariance["base"]': 5,
        'order_invariance["encoder without"]': 100,
    },
    "08": {
        **{f'confidence["{name}"]': value for name, value in (("0", 90), ("0.1", 80), ("0.3", 60))},
        **{f'bleu["{name}"]': 40 for name in ("0", "0.1")},
    },
}


def lookup(card: Card) -> Callable[[Reference], Values]:
    """Looks up what is measured in MEASURED, and what boards find in boards that are run now."""
    boards: dict[str, Figures] = {}

    def values(reference: Reference) -> Values:
        if reference.measure == BOARD:
            if reference.variant not in boards:
                boards[reference.variant] = BOARDS[reference.variant]()
            return np.full((1, 1), boards[reference.variant][str(reference.subset)])
        if str(reference) not in MEASURED[card.short]:
            raise MissingError(NOT_HERE)
        return np.full((1, 1), float(MEASURED[card.short][str(reference)]))

    return values


SABOTAGES = [
    ("01", test_boards.product_instead_of_minus_infinity),
    ("01", test_boards.cache_without_a_mask),
    ("02", test_boards.no_attention_under_attention),
    ("03", test_boards.positions_under_none),
    ("08", test_boards.smoothing_ignored),
]


@pytest.mark.parametrize("short", MEASURED)
def test_without_a_fault_the_claim_holds(cards: dict[str, Card], short: str) -> None:
    assert judge(cards[short], lookup(cards[short])).kind in (CLAIM_HOLDS, HOLDS_IF)


@pytest.mark.parametrize(("short", "sabotage"), SABOTAGES)
def test_a_fault_is_never_taken_for_a_result(
    cards: dict[str, Card],
    short: str,
    sabotage: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    assert judge(cards[short], lookup(cards[short])).kind in (INVALID, CONTRADICTED)
