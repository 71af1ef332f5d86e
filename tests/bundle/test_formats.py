"""A bundle of every format that was ever released translates as on the day on which it was made."""

from pathlib import Path

import pytest

import mtkit

BUNDLES = Path(__file__).parents[1] / "bundles"

# By the model of tests/bundles/make.py, which gets lengths wrong that it has not seen.
TRANSLATIONS = {
    "one two three": "1 2 3",
    "nine eight seven six five four": "9 8 7 6 4",
    "zero zero zero": "0 0 0",
    "": "",
    "seven seven one nine two": "7 7 1 9 2",
    "Hello, world!": "5 5 5 8",
    "three four five six seven eight nine zero one two": "3 4 5 0 6 1 0 8",
    "nine nine eight eight": "9 9 8 8",
}


@pytest.mark.parametrize("name", ["format-1", "format-2"])
def test_a_bundle_of_each_format_translates_as_ever(name: str) -> None:
    assert mtkit.load(BUNDLES / name, ["device=cpu"]).translate(list(TRANSLATIONS)) == list(TRANSLATIONS.values())


def test_the_bundles_kept_are_small() -> None:
    for bundle in BUNDLES.glob("format-*"):
        assert sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) < 100_000
