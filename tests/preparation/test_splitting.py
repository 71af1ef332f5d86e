"""Pairs of any form are split the same way: none is lost, none is on two sides, and near-duplicates stay together."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mtkit.errors import DataError
from mtkit.preparation.new import (
    SIMILAR,
    Split,
    connected,
    find_inputs,
    held_out_size,
    languages_of,
    normalized,
    ordered,
    signatures,
    split_pairs,
)
from tests.conftest import write_lines

Pairs = list[tuple[str, str]]
NUM_PAIRS = 600


def words(generator: random.Random, count: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(count))


def made_pairs(seed: int = 1) -> Pairs:
    """Pairs of which some have the same source, the same target, or differ in one letter or in punctuation alone."""
    generator = random.Random(seed)
    pairs = []
    while len(pairs) < NUM_PAIRS:
        source, target = words(generator, 9), words(generator, 9)
        pairs.append((source, target))
        if generator.random() < 0.2:
            pairs += [
                (source, words(generator, 5)),
                (words(generator, 3), target),
                (f"{source.upper()}!", "other words"),
            ]
            edited = source.replace(source[20], "q")
            pairs.append((edited, words(generator, 9)))
    generator.shuffle(pairs)
    return pairs[:NUM_PAIRS]


PAIRS = made_pairs()


def split(folder: Path, *files: Path, seed: int = 1) -> tuple[Split, dict[str, Pairs]]:
    inputs = find_inputs(files)
    languages = languages_of(inputs)
    assert languages == ("fr", "en")
    folder.mkdir()
    found = split_pairs(ordered(inputs, languages), languages, folder, seed)
    return found, {
        name: list(
            zip(
                *((folder / f"{name}.{code}").read_text("utf-8").splitlines() for code in languages),
                strict=True,
            )
        )
        for name in ("train", "valid", "test")
    }


def write(root: Path, form: str, pairs: Pairs = PAIRS) -> list[Path]:
    """Writes pairs in one of the forms; returns the files or the folder."""
    root.mkdir(exist_ok=True)
    if form == "two files":
        for place, code in enumerate(("fr", "en")):
            write_lines(root / f"some.{code}.txt", [pair[place] for pair in pairs])
        return [root / "some.fr.txt", root / "some.en.txt"]
    if form == "table":
        write_lines(root / "all.tsv", ["fr\ten", *("\t".join(pair) for pair in pairs)])
        return [root / "all.tsv"]
    if form == "json lines":
        write_lines(root / "all.jsonl", [json.dumps({"fr": source, "en": target}) for source, target in pairs])
        return [root / "all.jsonl"]
    if form == "tmx":
        units = [
            "<tu>"
            + "".join(
                f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in zip(("fr", "en"), pair, strict=True)
            )
            + "</tu>"
            for pair in pairs
        ]
        write_lines(root / "all.tmx", ['<tmx><header srclang="fr"/><body>', *units, "</body></tmx>"])
        return [root / "all.tmx"]
    write(root, "table", pairs[:300])
    (root / "all.tsv").rename(root / "1.tsv")
    write_lines(root / "2.fr", [source for source, _ in pairs[300:]])
    write_lines(root / "2.en", [target for _, target in pairs[300:]])
    return [root]


def test_every_form_gives_the_same_split_and_no_pair_is_lost_or_on_two_sides(tmp_path: Path) -> None:
    results = {}
    for form in ("two files", "table", "json lines", "tmx", "folder"):
        source = tmp_path / form
        found, parts = split(tmp_path / f"{form}-data", *write(source, form))
        results[form] = parts
        assert sorted(pair for part in parts.values() for pair in part) == sorted(set(PAIRS)), form
        assert found.sizes == {name: len(part) for name, part in parts.items()}
        assert sum(found.dropped.values()) + sum(found.sizes.values()) == found.num_read
        assert (
            abs(len(parts["test"]) - held_out_size(NUM_PAIRS))
            <= 2
            >= abs(len(parts["valid"]) - held_out_size(NUM_PAIRS))
        )
    assert results["two files"] == results["table"] == results["json lines"] == results["tmx"] == results["folder"]
    _, other = split(tmp_path / "other", *write(tmp_path / "two files", "two files"), seed=2)
    assert other != results["tmx"]


def test_sentences_that_are_nearly_the_same_are_all_on_one_side(tmp_path: Path) -> None:
    found, parts = split(tmp_path / "data", *write(tmp_path / "in", "two files"))
    assert found.near
    where: dict[str, set[str]] = {}
    for name, part in parts.items():
        for pair in part:
            for text in pair:
                where.setdefault(normalized(text), set()).add(name)
    assert max(map(len, where.values())) == 1
    trained = [source for source, _ in parts["train"]]
    for source, _ in parts["test"] + parts["valid"]:
        alike = (signatures([source]) == signatures(trained)).mean(axis=1)
        assert alike.max() < SIMILAR


def test_signatures_estimate_the_similarity_of_texts() -> None:
    generator = random.Random(1)
    texts = [words(generator, 40) for _ in range(20)]
    found = signatures(texts)
    assert ((signatures(texts[::-1])[::-1] == found).all(), len(np.unique(found, axis=0))) == (True, 20)
    edited = signatures([text.replace(" ", "  ", 1) for text in texts])
    assert (edited == found).mean() > 0.8 > 0.2 > (found[1:] == found[:-1]).mean()


def test_groups_are_what_edges_connect() -> None:
    generator = np.random.default_rng(1)
    edges = generator.integers(0, 300, (2, 200))
    labels = connected(300, [(edges[0, :100], edges[1, :100]), (edges[0, 100:], edges[1, 100:])])
    groups = [{place} for place in range(300)]
    for one, other in edges.T.tolist():
        if groups[one] is not groups[other]:
            groups[one] |= groups[other]
            for place in groups[other]:
                groups[place] = groups[one]
    assert labels.tolist() == [min(group) for group in groups]


def test_what_cannot_be_used_is_counted_or_refused(tmp_path: Path) -> None:
    odd = [("", "blank"), ("blank", " "), PAIRS[0], PAIRS[0]]
    found, _ = split(tmp_path / "data", *write(tmp_path / "in", "table", [*PAIRS, *odd]))
    repeated = NUM_PAIRS - len(set(PAIRS)) + 2
    assert found.dropped == {"header": 1, "blank": 2, "repeated": repeated}
    [memory] = write(tmp_path / "memory", "tmx")
    unit = '<tu><tuv xml:lang="fr"><seg>seul</seg></tuv></tu>'
    memory.write_text(memory.read_text("utf-8").replace("</body>", f"{unit}{unit}</body>"), "utf-8")
    found, _ = split(tmp_path / "units", memory)
    assert (found.num_read, found.num_lacking) == (NUM_PAIRS, 2)
    assert f"{NUM_PAIRS} pairs, and 2 units without one of the languages: " in found.told()
    apart = unit + unit.replace('"fr"', '"en"')
    memory.write_text(f'<tmx version="1.4"><header srclang="fr"/><body>{apart}</body></tmx>', "utf-8")
    with pytest.raises(DataError, match=r"\.tmx: holds no pairs, and 2 units without one of the languages$"):
        split(tmp_path / "no pairs", memory)
    with pytest.raises(DataError, match="60 usable pairs of 61; a training wants 400"):
        split(tmp_path / "few", *write(tmp_path / "few-in", "table", PAIRS[:60]))
    with pytest.raises(DataError, match="nearly all sentences occur again and again"):
        split(
            tmp_path / "same",
            *write(tmp_path / "same-in", "table", [("un", f"{n} {t}") for n, (_, t) in enumerate(PAIRS)]),
        )
    with pytest.raises(DataError, match="source and target are the same in all pairs"):
        split(tmp_path / "copied", *write(tmp_path / "copied-in", "table", [(s, s) for s, _ in dict.fromkeys(PAIRS)]))
    write_lines(tmp_path / "in" / "alone.fr", ["x"])
    with pytest.raises(DataError, match=r"alone\.fr: has no other side"):
        find_inputs([tmp_path / "in"])
    write_lines(tmp_path / "pairs.csv", [f"a {number},b {number}" for number in range(20)])
    with pytest.raises(DataError, match="this is CSV, which is not read"):
        find_inputs([tmp_path / "pairs.csv"])


def test_the_languages_that_are_asked_for_choose_the_order_of_the_sides(tmp_path: Path) -> None:
    for form in ("two files", "table", "json lines", "tmx"):
        inputs = find_inputs(write(tmp_path / form, form))
        there, back = ([*ordered(inputs, codes)[0].pairs(codes)] for codes in (("fr", "en"), ("en", "fr")))
        assert there == [(source, target) for target, source in back], form
        assert there[-1] == PAIRS[-1]
    write_lines(tmp_path / "some.jsonl", [json.dumps({"id": "1", "translation": {"de": "ja", "en": "yes"}})])
    assert languages_of(find_inputs([tmp_path / "some.jsonl"])) == ("de", "en")


@pytest.mark.parametrize("name", ["my2.de-en.tsv", "de_en.tsv", "is.news.de-en.tsv.gz"])
def test_the_last_two_codes_of_a_name_are_the_languages(name: str, tmp_path: Path) -> None:
    write_lines(tmp_path / name, ["ja\tyes", "nein\tno"])
    assert languages_of(find_inputs([tmp_path / name])) == ("de", "en")
