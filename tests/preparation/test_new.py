"""mtkit new: rules that go one way, reasons that stand beside the settings, and nothing that is overwritten."""

import random
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest

from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.errors import MtkitError
from mtkit.preparation.new import (
    ACCELERATOR,
    DROPOUTS,
    ENOUGH_UPDATES,
    LEARNING_RATE,
    LEAST,
    LEAST_UPDATES,
    MATRIX_LEARNING_RATE,
    MEASURED_WIDTH,
    MOST,
    MOST_EPOCHS,
    SHARE,
    SIZES,
    USABLE,
    Size,
    choose,
    dropout_for,
    new,
    size_for,
)
from tests.conftest import write_lines

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Pace:
    """A speed that was not measured."""

    update_seconds: float
    pairs_per_update: float = 50.0


def by_size(seconds: float) -> object:
    """A machine on which an update takes so many seconds for a million weights."""
    return lambda size, vocab_size: Pace(seconds * size.d_model**2 * size.layers * size.batch_tokens / 1e9)


def weight(size: Size) -> int:
    return size.d_model * size.d_model * size.layers


def test_more_pairs_never_get_a_smaller_model_and_more_minutes_neither() -> None:
    assert [size_for(size.pairs) for size in SIZES[:-1]] == list(range(len(SIZES) - 1))
    for small, large in pairwise(SIZES):
        assert small.pairs < large.pairs
        assert small.vocab_size < large.vocab_size
        assert weight(small) < weight(large)
        assert small.batch_tokens <= large.batch_tokens
    generator = random.Random(1)
    for _ in range(100):
        pairs, minutes, seconds = (
            int(10 ** generator.uniform(2.6, 7)),
            generator.uniform(1, 300),
            generator.uniform(0.1, 9),
        )
        choice = choose(pairs, minutes, by_size(seconds), on_cpu=True)  # type: ignore[arg-type]
        longer = choose(pairs, 2 * minutes, by_size(seconds), on_cpu=True)  # type: ignore[arg-type]
        assert weight(choice.size) <= weight(longer.size)
        assert choice.vocab_size == longer.vocab_size == SIZES[size_for(pairs)].vocab_size
        assert choice.minutes <= minutes + 0.1
        assert choice.size in (choice.wanted, SIZES[0]) or choice.updates >= LEAST_UPDATES
        assert choice.dropout == dropout_for(choice.epochs)
        on_gpu = choose(pairs, minutes, by_size(seconds), on_cpu=False)  # type: ignore[arg-type]
        assert on_gpu.batch_tokens > choice.batch_tokens


def test_dropout_grows_with_the_epochs() -> None:
    dropouts = [dropout_for(10**exponent) for exponent in (-1, 0, 1, 1.5, 2, 5)]
    assert dropouts == sorted(dropouts)
    assert {dropout for _, dropout in DROPOUTS} == set(dropouts)


def sentences(tmp_path: Path, num_pairs: int = 500) -> list[Path]:
    generator = random.Random(1)
    files = [tmp_path / "some.fr", tmp_path / "some.en"]
    for file in files:
        write_lines(file, [" ".join(str(generator.random()) for _ in range(3)) for _ in range(num_pairs)])
    return files


def test_what_is_written_loads_says_why_and_names_text_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Config] = []

    def measure(config: Config) -> Pace:
        assert all(config.data_path(path).exists() for corpus in config.data.train for path in corpus.paths)
        seen.append(config)
        return Pace(0.1)

    report = new(Path("my.yaml"), sentences(tmp_path), None, 5, measure)
    config = load_config(Path("my.yaml"))
    assert (config.name, config.languages.source, config.languages.target) == ("my", "fr", "en")
    assert config.data.test["test"].source is not None
    paths = [*config.data.train[0].paths, *config.data.valid[0].paths, config.data.test["test"].source]
    assert all(config.data_path(path).exists() for path in paths)
    assert (config.training.max_steps, config.training.max_minutes) == ("auto", 5)
    assert seen[-1].model.d_model == config.model.d_model == SIZES[0].d_model
    assert "next: mtkit run my.yaml" in report
    lines = Path("my.yaml").read_text("utf-8").splitlines()
    assert max(map(len, lines)) <= 120
    for name in ("vocab_size", "d_model", "dropout", "max_minutes", "batch_tokens", "optimizer"):
        place = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
        assert lines[place - 1].strip().startswith("#"), name
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for taken in ("my.yaml", "my-data", "runs/my"):
        if taken == "my-data":
            Path("my.yaml").rename("kept")
        if taken == "runs/my":
            Path("my-data").rename("kept-data")
            Path(taken).mkdir(parents=True)
        with pytest.raises(MtkitError, match=f"^{taken}: is there already, and nothing is overwritten"):
            new(Path("my.yaml"), sentences(tmp_path), None, 5, measure)
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) == sorted(before.values())


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = sentences(tmp_path)

    def fails(config: Config) -> Pace:
        raise MtkitError("no memory")

    for path, told in (
        ("my.yaml", "no memory"),
        ("my.txt", "ends in .yaml"),
        ("no/my.yaml", "no folder no"),
        ("", "ends in .yaml"),
    ):
        with pytest.raises(MtkitError, match=told):
            new(Path(path), files, None, 5, fails)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.en", "some.fr"]


def test_the_page_has_the_rules_as_they_are() -> None:
    page = (ROOT / "configs" / "README.md").read_text("utf-8")
    section = page.partition("## The rules of mtkit new")[2].partition("\n## ")[0]
    rows = [row.split(" | ")[:-1] for row in section.splitlines() if row.startswith("| ")][1:]
    expected = [
        [
            f"| up to {size.pairs:,}" if size.pairs < inf else "| more",
            *(f"{number:,}" for number in (size.vocab_size, size.d_model, size.d_ff)),
            f"{size.layers} + {size.layers}",
            f"{size.batch_tokens:,}",
        ]
        for size in SIZES
    ]
    assert rows == expected
    (first_most, first), *others, (_, last) = DROPOUTS
    dropouts = ", ".join(f"{dropout:g} for up to {most:g}" for most, dropout in others)
    text = " ".join(section.split())
    for said in (
        f"{first:g} for up to {first_most:g} epochs, {dropouts}, then {last:g};",
        f"fewer than {LEAST_UPDATES} updates of the model fit into {USABLE:.0%} of the minutes".replace("%", " %"),
        f"more than {MOST_EPOCHS} epochs, and more than {ENOUGH_UPDATES:,} updates, are not used",
        f"Muon with {LEARNING_RATE:g}, and {MATRIX_LEARNING_RATE:g} for hidden matrices, at width {MEASURED_WIDTH}",
        f"batches {('no', 'one', 'two', 'three', 'four')[ACCELERATOR]} times as large",
        f"at least {LEAST} and at most {MOST:,}, chosen by chance",
    ):
        assert said in text
    assert SHARE == 1 / 20
    assert "a twentieth of the pairs each" in text
