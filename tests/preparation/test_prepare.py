"""Two text files become a tokenizer, a corpus and the validation text; what is out of date is known by its content."""

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mtkit.config import data_and_model_settings as settings
from mtkit.config.data_and_model_settings import CorpusConfig, DataConfig, JoinConfig, TokenizerConfig
from mtkit.config.settings import Config
from mtkit.data.corpus import Corpus, RawFile, write_manifest
from mtkit.errors import CheckpointError, ConfigError, DataError, MtkitError
from mtkit.preparation import encoding
from mtkit.preparation.prepare import (
    binarize,
    binarized_changes,
    binarized_is_current,
    make_tokenizer,
    read_validation,
    tokenizer_changes,
    tokenizer_is_current,
    training_text_changes,
    validation_text_changes,
)
from mtkit.text.lines import compressed_fingerprint
from mtkit.text.parallel import spread
from mtkit.text.tokenizer import Tokenizer

WORDS = {"fr": "le la maison arbre rouge petit garçon où est va", "en": "the a house tree red small boy where is goes"}


def sentences(language: str, count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS[language].split(), k=chance.randint(3, 8))) for _ in range(count)]


def write_lines(path, lines) -> None:
    path.write_bytes("".join(line + "\n" for line in lines).encode())


@pytest.fixture
def config(tmp_path) -> Config:
    for seed, (name, count) in enumerate([("train", 300), ("more", 20), ("valid", 10), ("extra", 5), ("test", 7)]):
        for language in ("fr", "en"):
            write_lines(
                tmp_path / f"{name}.{language}", [f"{line} {seed}" for line in sentences(language, count, seed)]
            )
    return Config(
        run_dir=tmp_path / "run",
        data=DataConfig(
            root=tmp_path,
            train=(corpus("train"), corpus("more")),
            valid=(corpus("valid"), corpus("extra")),
            max_length=40,
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
    )


def corpus(name: str) -> CorpusConfig:
    return CorpusConfig.model_validate({"source": f"{name}.fr", "target": f"{name}.en"}, strict=False)


def changed(config: Config, section: str, **values) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def with_test(config: Config, *references: str) -> Config:
    test_set = settings.TestSetConfig.model_validate({"source": "test.fr", "target": list(references)}, strict=False)
    return changed(config, "data", test={"small": test_set})


def lines(config: Config, name: str) -> list[str]:
    return (config.data.root / name).read_text(encoding="utf-8").split("\n")[:-1]


def prepared(config: Config) -> Corpus:
    make_tokenizer(config)
    binarize(config)
    return Corpus.open(config.run_path / "data" / "train")


def files_under(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_corpus_decodes_to_the_text(config):
    stored = prepared(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    stored.require_tokenizer(tokenizer.hash)
    stored.verify()
    sources, targets = (
        lines(config, "train.fr") + lines(config, "more.fr"),
        lines(config, "train.en") + lines(config, "more.en"),
    )
    assert len(stored) == 320
    assert tokenizer.decode_source([stored.source(pair) for pair in range(320)]) == sources
    assert tokenizer.decode_target([stored.target(pair) for pair in range(320)]) == targets
    assert stored.manifest.source.vocab_size == tokenizer.source_vocab_size


def test_a_file_of_columns_is_what_two_files_are(config):
    prepared(config)
    whole = files_under(config.run_path)
    for name, order in (("train", (0, 1)), ("valid", (1, 0))):
        sides = (lines(config, f"{name}.fr"), lines(config, f"{name}.en"))
        rows = zip(["x"] * len(sides[0]), *(sides[side] for side in order), strict=True)
        write_lines(config.data.root / f"{name}.tsv", ["\t".join(row) for row in rows])
    train = CorpusConfig(tsv=Path("train.tsv"), columns=(2, 3))
    valid = CorpusConfig(tsv=Path("valid.tsv"), columns=(3, 2))
    config = changed(config, "data", train=(train, corpus("more")), valid=(valid, corpus("extra")))
    assert not tokenizer_is_current(config)
    prepared(config)
    assert tokenizer_is_current(config)
    assert binarized_is_current(config)
    for name, content in files_under(config.run_path).items():
        assert name.endswith(("manifest.json", "provenance.json")) or content == whole[name]
    swapped = CorpusConfig(tsv=Path("train.tsv"), columns=(3, 2))
    config = changed(config, "data", train=(swapped, corpus("more")))
    assert (tokenizer_is_current(config), binarized_is_current(config)) == (False, False)


def test_the_pairs_of_each_corpus_are_counted(config):
    fr = lines(config, "more.fr")
    fr[3] = ""
    write_lines(config.data.root / "more.fr", fr)
    assert prepared(config).manifest.corpora == (300, 19)


def test_shares_that_are_not_natural_are_reported_and_change_nothing_on_disk(config, capsys):
    prepared(config)
    before = files_under(config.run_path)
    assert "of an epoch" not in capsys.readouterr().err
    weighted = (config.data.train[0], config.data.train[1].model_copy(update={"weight": 15.0}))
    config = changed(config, "data", train=weighted)
    assert binarized_is_current(config)
    prepared(config)
    assert files_under(config.run_path) == before
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "train.fr, train.en: 50.0% of an epoch, each pair 0.5333 times",
        "more.fr, more.en: 50.0% of an epoch, each pair 8 times",
    ]
    config = changed(config, "data", train=(corpus("train"), corpus("more")), temperature=5.0)
    assert binarized_is_current(config)


def test_duplicates_are_dropped_but_the_first_across_corpora(config, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_PAIRS", 7)
    fr, en = lines(config, "train.fr"), lines(config, "train.en")
    write_lines(config.data.root / "more.fr", [fr[0], fr[1], fr[0], "neuf", "neuf", ""])
    write_lines(config.data.root / "more.en", [en[0], en[2], en[0], "new", "new", ""])
    config = changed(config, "data", drop_duplicates=True)
    stored = prepared(config)
    pairs = list(zip(fr, en, strict=True))
    num_repeated = len(pairs) - len(set(pairs))
    assert stored.manifest.drops == {"duplicate": num_repeated + 3, "blank source": 1}
    assert stored.manifest.corpora == (300 - num_repeated, 2)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    sources = tokenizer.decode_source([stored.source(pair) for pair in range(len(stored))])
    assert sources == [source for source, _ in dict.fromkeys(pairs)] + [fr[1], "neuf"]


def test_chunks_change_nothing(config, monkeypatch):
    prepared(config)
    whole = files_under(config.run_path)
    monkeypatch.setattr(encoding, "CHUNK_PAIRS", 7)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 100)
    prepared(config)
    assert files_under(config.run_path) == whole


def test_the_run_directory_holds_nothing_else(config):
    prepared(config)
    assert sorted(files_under(config.run_path)) == [
        "data/train/manifest.json",
        "data/train/source.offsets",
        "data/train/source.tokens",
        "data/train/target.offsets",
        "data/train/target.tokens",
        "data/valid/manifest.json",
        "data/valid/source.txt",
        "data/valid/target.txt",
        "tokenizer/provenance.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer.model",
    ]


def test_pairs_are_dropped_for_a_reason_and_the_report_says_so(config, capsys, quiet):
    fr, en = lines(config, "train.fr"), lines(config, "train.en")
    fr[0], fr[1], en[2], en[3], fr[4], en[4] = "", " \u3000", "\t", "long " * 50, "a", "the house is red " * 4
    write_lines(config.data.root / "train.fr", fr)
    write_lines(config.data.root / "train.en", en)
    stored = prepared(config)
    assert stored.manifest.drops == {"blank source": 2, "blank target": 1, "too long": 1, "length ratio": 1}
    assert len(stored) == 315
    assert stored.manifest.settings == {"max_length": 40, "max_length_ratio": 9.0}
    source, target = stored.manifest.source, stored.manifest.target
    path = config.data.root / "train.fr"
    examples = [("blank source", 1), ("blank source", 2), ("blank target", 3), ("too long", 4), ("length ratio", 5)]
    report = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0].strip() for line in report[3:]] == [reason for reason, _ in examples]
    for line, (reason, number) in zip(report[3:], examples, strict=True):
        assert line.startswith(f"  {reason}: {path}:{number}: ")
    assert report[4].endswith(f"    ||| {en[1][:19]}…")
    assert report[:3] == [
        "shared bpe vocabulary: 320 pieces of 320 asked for, trained on 637 of 640 lines",
        f"kept 315 pairs: {source.num_tokens:,} source and {target.num_tokens:,} target tokens; "
        f"the longest have {source.longest} and {target.longest}",
        "dropped 5 of 320 pairs: 2 blank source, 1 blank target, 1 too long, 1 length ratio",
    ]


def test_a_side_may_have_max_length_tokens_and_no_more(config):
    longest = int(prepared(config).source_lengths.max())
    stored = prepared(changed(config, "data", max_length=longest, max_length_ratio=None))
    assert (len(stored), stored.manifest.drops) == (320, {})
    stored = prepared(changed(config, "data", max_length=longest - 1, max_length_ratio=None))
    assert stored.manifest.source.longest < longest
    assert stored.manifest.drops["too long"] == 320 - len(stored) > 0


def texts_of(config: Config) -> list[tuple[str, str]]:
    """The pairs of the binarized corpus."""
    stored, tokenizer = prepared(config), Tokenizer.load(config.run_path / "tokenizer")
    sides = (tokenizer.decode_source, stored.source), (tokenizer.decode_target, stored.target)
    return list(zip(*(decode([side(n) for n in range(len(stored))]) for decode, side in sides), strict=True))


def test_joined_pairs_are_one_to_three_in_a_row_and_nothing_is_lost(config, capsys):
    fr, en = lines(config, "train.fr"), lines(config, "train.en")
    fr[10] = ""
    write_lines(config.data.root / "train.fr", fr)
    config = changed(config, "data", max_length=120, join=JoinConfig(max=3), train=(corpus("train"),))
    texts = texts_of(config)
    counts = [source.count("0") for source, _ in texts]  # each line ends with the number of its file
    assert {*counts} == {1, 2, 3}
    assert all(counts.count(number) > 30 for number in (1, 2, 3))
    for side, text in enumerate((fr, en)):
        assert " ".join(pair[side] for pair in texts) == " ".join(text[:10] + text[11:])
    assert f"  blank source: {config.data.root / 'train.fr'}:11: " in capsys.readouterr().err
    assert binarized_is_current(config)
    assert texts_of(changed(config, "data", seed=2)) != texts
    assert not binarized_is_current(config)


def test_a_share_of_the_pairs_is_drawn_and_a_larger_one_includes_it(config):
    whole = texts_of(config)
    some, more, others = (
        texts_of(changed(config, "data", **values))
        for values in ({"fraction": 0.3}, {"fraction": 0.6}, {"fraction": 0.3, "seed": 2})
    )
    assert {*some} < {*more} < {*whole}
    assert some != others
    assert 70 < len(some) < 122
    manifest = prepared(changed(config, "data", fraction=0.3)).manifest
    assert manifest.drops == {"not drawn": 320 - len(some)}
    assert sum(manifest.corpora) == len(some)


def test_training_pairs_may_be_shorter_than_what_translation_splits_at(config):
    longest = int(prepared(config).source_lengths.max())
    stored = prepared(changed(config, "data", max_training_length=longest - 1, max_length_ratio=None))
    assert max(stored.manifest.source.longest, stored.manifest.target.longest) < longest
    assert stored.manifest.drops["too long"] == 320 - len(stored) > 0
    with pytest.raises(DataError, match=r"320 too long; see data\.max_training_length$"):
        binarize(changed(config, "data", max_training_length=1))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"max_training_length": 50, "max_length": 40},
            "max_training_length 50 must be from min_length 1 to",
        ),
        ({"seed": 3}, "seed 3 is of join and fraction; it wants a fraction below 1 or a join.max above 1"),
    ],
)
def test_limits_and_seeds_without_effect_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        DataConfig(**values)


def test_the_validation_text_is_kept_as_it_is(config):
    hostile = ["\ufeffa", "", " b ", "c\u2028d\x00\u0085", "e\r", "f\rg"]
    (config.data.root / "extra.fr").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(hostile).encode())
    write_lines(config.data.root / "extra.en", map(str, range(6)))
    prepared(config)
    sources, references = read_validation(config)
    few = evenly(list(zip(hostile, "012345", strict=True)))
    assert sources == in_turn(evenly(lines(config, "valid.fr")), [line for line, _ in few])
    assert references == in_turn(evenly(lines(config, "valid.en")), [number for _, number in few])
    kept = config.run_path / "data" / "valid" / "source.txt"
    assert kept.read_bytes() == "".join(line + "\n" for line in sources).encode()


def evenly(text: list[Any]) -> list[Any]:
    """In the order in which the first few are spread over all."""
    return [text[place] for place in spread(len(text))]


def in_turn(many: list[str], few: list[str]) -> list[str]:
    """One line of each, then what is left of the longer."""
    return [line for pair in zip(many, few, strict=False) for line in pair] + many[len(few) :]


def test_the_first_validation_lines_are_spread_over_a_corpus_and_those_of_several_come_in_turn(config):
    config = changed(config, "data", valid=(corpus("valid"),))
    prepared(config)
    assert read_validation(config) == (evenly(lines(config, "valid.fr")), evenly(lines(config, "valid.en")))
    config = changed(config, "data", valid=(corpus("extra"), corpus("valid"), corpus("test")))
    prepared(config)
    wanted = []
    for i in range(10):
        wanted += [
            evenly(lines(config, f"{name}.fr"))[i]
            for name, count in (("extra", 5), ("valid", 10), ("test", 7))
            if i < count
        ]
    sources, references = read_validation(config)
    assert sources == wanted
    translation = dict(
        pair
        for name in ("extra", "valid", "test")
        for pair in zip(lines(config, f"{name}.fr"), lines(config, f"{name}.en"), strict=True)
    )
    assert references == [translation[source] for source in sources]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8, 100, 1000, 1023])
def test_the_first_of_spread_numbers_are_even_however_many_they_are(count):
    order = spread(count)
    assert sorted(order) == list(range(count))
    for few in range(1, count + 1, max(count // 20, 1)):
        chosen = [0, *sorted(order[:few]), count]
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps) <= max(4 * count / few, 2)


def test_validation_text_that_was_kept_in_another_order_stays_as_it_is(config):
    prepared(config)
    directory = config.run_path / "data" / "valid"
    manifest = json.loads((directory / "manifest.json").read_text())
    for side, language in (("source", "fr"), ("target", "en")):
        write_lines(directory / f"{side}.txt", lines(config, f"valid.{language}") + lines(config, f"extra.{language}"))
        manifest[f"{side}.txt"] = hashlib.sha256((directory / f"{side}.txt").read_bytes()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert binarized_is_current(config)
    assert read_validation(config)[0] == lines(config, "valid.fr") + lines(config, "extra.fr")


def test_without_validation_corpora_there_are_no_lines(config):
    config = changed(config, "data", valid=())
    prepared(config)
    assert read_validation(config) == ([], [])
    assert binarized_is_current(config)


def test_held_out_sentences_in_the_training_data_are_told(config, capsys):
    train_fr, train_en = lines(config, "train.fr"), lines(config, "train.en")
    write_lines(config.data.root / "extra.fr", [train_fr[0], train_fr[1], "not there", "", train_fr[0]])
    write_lines(config.data.root / "extra.en", [train_en[0], "something else", train_en[1], "", "x"])
    write_lines(config.data.root / "test.fr", [train_fr[2], "not there", train_fr[3]])
    write_lines(config.data.root / "test.en", ["x", "y", "z"])
    write_lines(config.data.root / "test2.en", [train_en[2], "y", "z"])
    config = with_test(config, "test.en", "test2.en")
    prepared(config)
    again = "are in the training data, 1 of them with the same translation"
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [
        f"mtkit: warning: 3 of 15 sources of data.valid {again}",
        f"mtkit: warning: 2 of 3 sources of data.test.small {again}",
    ]


def test_what_was_made_is_current_and_making_it_again_changes_nothing(config):
    assert not tokenizer_is_current(config)
    assert not binarized_is_current(config)
    make_tokenizer(config)
    assert tokenizer_is_current(config)
    assert not binarized_is_current(config)
    binarize(config)
    assert binarized_is_current(config)
    before = files_under(config.run_path)
    prepared(config)
    assert files_under(config.run_path) == before


@pytest.mark.parametrize(
    ("change", "tokenizer_current", "binarized_current"),
    [
        (lambda config: changed(config, "training", seed=9), True, True),
        (lambda config: changed(config, "data", max_length=39), True, False),
        (lambda config: changed(config, "data", max_length_ratio=None), True, False),
        (lambda config: changed(config, "data", min_length=2), True, False),
        (lambda config: changed(config, "data", max_training_length=39), True, False),
        (lambda config: changed(config, "data", fraction=0.9), True, False),
        (lambda config: changed(config, "data", join=JoinConfig(max=2)), True, False),
        (lambda config: changed(config, "data", drop_identical=True), True, False),
        (lambda config: changed(config, "data", drop_duplicates=True), True, False),
        (lambda config: changed(config, "data", source_script=("Latin",)), True, False),
        (lambda config: changed(config, "data", target_script=("Latin",)), True, False),
        (lambda config: changed(config, "data", min_letters=0.1), True, False),
        (lambda config: changed(config, "data", temperature=2.0), True, True),
        (lambda config: changed(config, "data", valid=config.data.valid[:1]), True, False),
        (lambda config: changed(config, "data", train=config.data.train[::-1]), False, False),
        (lambda config: changed(config, "tokenizer", vocab_size=310), False, True),
        (lambda config: changed(config, "tokenizer", sample_lines=100), False, True),
    ],
)
def test_settings_that_matter_make_a_stage_out_of_date(config, change, tokenizer_current, binarized_current):
    prepared(config)
    config = change(config)
    assert (tokenizer_is_current(config), binarized_is_current(config)) == (tokenizer_current, binarized_current)


SETTINGS_THAT_CHANGE = [
    ("tokenizer", {"vocab_size": 310, "type": "unigram"}, "tokenizer.type was bpe, is unigram"),
    ("tokenizer", {"vocab_size": 310, "type": "unigram"}, "tokenizer.vocab_size was 320, is 310"),
    ("data", {"max_length": 39}, "data.max_length was 40, is 39"),
    ("data", {"max_length_ratio": None}, "data.max_length_ratio was 9.0, is null"),
    ("data", {"drop_duplicates": True}, "data.drop_duplicates was false, is true"),
    ("data", {"join": JoinConfig(max=3), "seed": 2}, "data.join was {max: 1}, is {max: 3}"),
    ("data", {"source_script": ("Latin",)}, "data.source_script was null, is [Latin]"),
    (
        "training",
        {"bpe_dropout": 0.1},
        "whether segmentations are sampled (training.bpe_dropout, training.unigram_alpha): was no, is yes",
    ),
]


@pytest.mark.parametrize(("section", "values", "told"), SETTINGS_THAT_CHANGE)
def test_settings_that_changed_are_named_and_their_values(config, section, values, told):
    prepared(config)
    now = changed(config, section, **values)
    changes, others = (
        (tokenizer_changes(now), training_text_changes(now))
        if section == "tokenizer"
        else (training_text_changes(now), tokenizer_changes(now))
    )
    assert told in changes
    assert len(changes) == len(values)
    assert others == validation_text_changes(now) == []


def test_files_that_changed_are_named(config):
    prepared(config)
    root = config.data.root
    assert tokenizer_changes(config) == training_text_changes(config) == validation_text_changes(config) == []
    write_lines(root / "train.fr", ["other", *lines(config, "train.fr")[1:]])
    told = [f"data.train: {root / 'train.fr'} holds other text"]
    assert tokenizer_changes(config) == training_text_changes(config) == binarized_changes(config) == told
    assert validation_text_changes(config) == []
    write_lines(root / "more.en", ["other", *lines(config, "more.en")[1:]])
    told.append(f"data.train: {root / 'more.en'} holds other text")
    assert tokenizer_changes(config) == training_text_changes(config) == told
    for name in ("valid.fr", "extra.en"):
        write_lines(root / name, ["other", *lines(config, name)[1:]])
    held_out = [f"data.valid: {root / name} holds other text" for name in ("valid.fr", "extra.en")]
    assert validation_text_changes(config) == held_out
    assert binarized_changes(config) == told + held_out


def test_lists_of_corpora_that_changed_are_told(config):
    prepared(config)
    root = config.data.root
    turned = changed(config, "data", train=config.data.train[::-1], valid=config.data.valid[::-1])
    assert (
        tokenizer_changes(turned) == training_text_changes(turned) == ["data.train lists its corpora in another order"]
    )
    assert validation_text_changes(turned) == ["data.valid lists its corpora in another order"]
    less = changed(config, "data", train=config.data.train[1:], valid=config.data.valid[:1])
    assert tokenizer_changes(less) == ["data.train: a corpus is no longer listed"]
    gone = [
        f"{section}: {root / name}.en and {root / name}.fr is no longer listed"
        for section, name in (("data.train", "train"), ("data.valid", "extra"))
    ]
    assert binarized_changes(less) == gone
    more = changed(config, "data", train=(*config.data.train, corpus("test")))
    told = [f"data.train: {root / 'test.en'} and {root / 'test.fr'} is new"]
    assert tokenizer_changes(more) == binarized_changes(more) == told
    twice = changed(config, "data", train=(*config.data.train, config.data.train[0]))
    assert binarized_changes(twice) == ["data.train listed 2 corpora, lists 3"]
    none = changed(config, "data", valid=())
    assert len(validation_text_changes(none)) == 2


def test_columns_and_tags_that_changed_are_told(config):
    for name in ("train", "valid"):
        rows = zip(lines(config, f"{name}.fr"), lines(config, f"{name}.en"), lines(config, f"{name}.en"), strict=True)
        write_lines(config.data.root / f"{name}.tsv", ["\t".join(row) for row in rows])
    train, valid = CorpusConfig(tsv=Path("train.tsv")), CorpusConfig(tsv=Path("valid.tsv"))
    config = changed(config, "data", train=(corpus("more"), train), valid=(valid,))
    prepared(config)
    train, valid = (each.model_copy(update={"columns": (1, 3)}) for each in (train, valid))
    now = changed(config, "data", train=(corpus("more"), train), valid=(valid,))
    assert tokenizer_changes(now) == ["data.train[1].columns changed"]
    assert binarized_changes(now) == ["data.train[1].columns changed", "data.valid[0].columns changed"]
    train, valid = (each.model_copy(update={"columns": (1, 2), "tag": "<2en>"}) for each in (train, valid))
    now = changed(config, "data", train=(corpus("more"), train), valid=(valid,))
    assert tokenizer_changes(now) == ["the tags of data.train were none, are <2en>"]
    assert training_text_changes(now) == ["data.train[1].tag was null, is <2en>"]
    assert validation_text_changes(now) == ["data.valid[0].tag was null, is <2en>"]


def test_what_is_not_there_is_told(config):
    run = config.run_path
    assert tokenizer_changes(config) == [f"{run / 'tokenizer'} is missing"]
    assert binarized_changes(config) == [f"{run / 'data' / name} is missing" for name in ("train", "valid")]
    prepared(config)
    shutil.rmtree(run / "data" / "valid")
    assert binarized_changes(config) == validation_text_changes(config) == [f"{run / 'data' / 'valid'} is missing"]
    assert training_text_changes(config) == []


def pack_all(config: Config, level: int) -> Config:
    """The same text in files that are packed."""
    for path in [*config.data.root.glob("*.fr"), *config.data.root.glob("*.en")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), level))
    train, valid = (
        tuple(CorpusConfig(source=Path(f"{each.source}.gz"), target=Path(f"{each.target}.gz")) for each in corpora)
        for corpora in (config.data.train, config.data.valid)
    )
    return changed(config, "data", train=train, valid=valid)


def test_text_that_was_only_packed_anew_is_the_same_text(config):
    prepared(pack_all(config, 1))
    for now in (pack_all(config, 9), config):
        assert tokenizer_changes(now) == binarized_changes(now) == []
    path = config.data.root / "train.fr.gz"
    told = [f"data.train: {path} holds other text"]
    path.write_bytes(gzip.compress(b"other\n" + gzip.decompress(path.read_bytes()).partition(b"\n")[2]))
    packed = changed(config, "data", train=(CorpusConfig(source=path, target=Path("train.en")), corpus("more")))
    assert tokenizer_changes(packed) == binarized_changes(packed) == told


def test_packed_text_that_an_earlier_version_knew_by_its_packed_bytes_is_the_same_text(config):
    packed = pack_all(config, 1)
    stored = prepared(packed)
    paths = [path for each in packed.data.train for path in each.paths]
    older = [compressed_fingerprint(packed.data_path(path)) for path in paths]
    raw_files = tuple(RawFile(str(path), known) for path, known in zip(paths, older, strict=True))
    write_manifest(stored.directory / "manifest.json", replace(stored.manifest, raw_files=raw_files))
    provenance = packed.run_path / "tokenizer" / "provenance.json"
    provenance.write_text(json.dumps({**json.loads(provenance.read_text()), "fingerprints": older}))
    kept = packed.run_path / "data" / "valid" / "manifest.json"
    valid = [compressed_fingerprint(packed.data_path(path)) for each in packed.data.valid for path in each.paths]
    manifest = {name: value for name, value in json.loads(kept.read_text()).items() if name != "paths"}
    kept.write_text(json.dumps({**manifest, "fingerprints": valid}))
    assert tokenizer_is_current(packed)
    assert binarized_is_current(packed)
    (packed.data.root / "more.en.gz").write_bytes(gzip.compress(b"other\n" * 20))
    told = [f"data.train: {packed.data.root / 'more.en.gz'} holds other text"]
    assert tokenizer_changes(packed) == binarized_changes(packed) == told


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files there")
def test_there_may_be_more_corpora_than_files_that_may_be_open(config):
    for i in range(100):
        for side in ("fr", "en"):
            write_lines(config.data.root / f"v{i}.{side}", [f"{i}", f"{i} again"][: 1 + i % 2])
    many = tuple(corpus(f"v{i}") for i in range(100))
    references = {"source": "test.fr", "target": ["test.en"] * 100}
    test_set = settings.TestSetConfig.model_validate(references, strict=False)
    config = changed(config, "data", train=(*config.data.train, *many), valid=many, test={"small": test_set})
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, hard))
    try:
        prepared(config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_validation(config)[0] == [f"{i}" for i in range(100)] + [f"{i} again" for i in range(1, 100, 2)]


def test_a_training_text_that_is_gone_is_named(config):
    prepared(config)
    config = changed(config, "data", train=(*config.data.train, corpus("missing")))
    with pytest.raises(DataError, match=r"missing\.fr: no such file"):
        tokenizer_is_current(config)


@pytest.mark.parametrize(
    ("name", "tokenizer_current"), [("train.fr", False), ("more.en", False), ("valid.fr", True), ("extra.en", True)]
)
def test_changed_text_makes_a_stage_out_of_date_and_moved_text_does_not(config, tmp_path, name, tokenizer_current):
    prepared(config)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in [*tmp_path.glob("*.fr"), *tmp_path.glob("*.en")]:
        path.rename(moved / path.name)
    config = changed(config, "data", root=moved)
    assert tokenizer_is_current(config)
    assert binarized_is_current(config)
    content = (moved / name).read_bytes()
    (moved / name).write_bytes(content.replace(b"e", b"o", 1))
    assert (tokenizer_is_current(config), binarized_is_current(config)) == (tokenizer_current, False)


def test_a_corpus_that_another_tokenizer_encoded_is_refused(config):
    prepared(config)
    make_tokenizer(changed(config, "tokenizer", vocab_size=310))
    with pytest.raises(DataError, match="was encoded by another tokenizer"):
        binarized_is_current(config)


@pytest.mark.parametrize(
    "name",
    [
        "data/train/manifest.json",
        "data/train/source.tokens",
        "data/valid/manifest.json",
        "data/valid/source.txt",
        "tokenizer/provenance.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer.model",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_what_is_damaged_is_an_error(config, name, damage):
    prepared(config)
    path = config.run_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else b"[1]")
    is_current = tokenizer_is_current if name.startswith("tokenizer") else binarized_is_current
    with pytest.raises(MtkitError, match=path.name):
        is_current(config)


def test_without_training_corpora_both_stages_say_so(config):
    config = changed(config, "data", train=())
    for stage in (make_tokenizer, binarize):
        with pytest.raises(ConfigError) as raised:
            stage(config)
        assert str(raised.value) == "data.train is empty; list at least one {source: FILE, target: FILE}"


def test_without_a_tokenizer_binarizing_says_so(config):
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        binarize(config)


@pytest.mark.parametrize("name", ["train", "more"])
def test_unequal_training_files_stop_both_stages_and_change_nothing(config, name):
    prepared(config)
    before = files_under(config.run_path)
    write_lines(config.data.root / f"{name}.en", lines(config, f"{name}.en")[:-1])
    for stage in (make_tokenizer, binarize):
        with pytest.raises(DataError, match="line n must translate line n"):
            stage(config)
    assert files_under(config.run_path) == before


@pytest.mark.parametrize("name", ["valid.fr", "extra.en", "test.fr", "test.en", "test2.en"])
@pytest.mark.parametrize("fault", ["missing", "latin", "longer", "pipe"])
def test_what_is_wrong_with_held_out_text_is_told_before_a_tokenizer_is_trained(config, name, fault):
    write_lines(config.data.root / "test2.en", lines(config, "test.en"))
    config = with_test(config, "test.en", "test2.en")
    path = config.data.root / name
    if fault in ("missing", "pipe"):
        path.unlink()
    if fault == "pipe":
        if sys.platform == "win32":
            pytest.skip("no named pipes there")
        os.mkfifo(path)
    if fault == "latin":
        path.write_bytes(b"caf\xe9\n" + path.read_bytes())
    if fault == "longer":
        path.write_bytes(path.read_bytes() + b"one more\n")
    told = {"missing": "no such file", "latin": "not valid UTF-8", "longer": "line n must", "pipe": "is a pipe"}[fault]
    with pytest.raises(DataError, match=f"{name}.* {told}"):
        make_tokenizer(config)
    assert files_under(config.run_path) == {}


@pytest.mark.parametrize("name", ["valid.en", "test.en", "test2.en"])
def test_unequal_held_out_files_stop_binarizing_and_change_nothing(config, name):
    write_lines(config.data.root / "test2.en", lines(config, "test.en"))
    config = with_test(config, "test.en", "test2.en")
    prepared(config)
    before = files_under(config.run_path)
    write_lines(config.data.root / name, [*lines(config, name), "one more"])
    with pytest.raises(DataError, match=f"{name} has .* line n must translate line n"):
        binarize(config)
    assert files_under(config.run_path) == before


def test_a_corpus_of_nothing_is_told(config):
    prepared(config)
    for name in ("train.fr", "train.en", "more.fr", "more.en"):
        write_lines(config.data.root / name, [])
    with pytest.raises(DataError, match=r"train\.fr, .*more\.en: the training corpora hold no pairs"):
        binarize(config)
    with pytest.raises(DataError, match=r"train\.fr, .*more\.en: the training corpora hold no pairs"):
        make_tokenizer(config)


def test_a_corpus_of_which_nothing_stays_is_told(config):
    prepared(config)
    before = files_under(config.run_path)
    with pytest.raises(DataError) as raised:
        binarize(changed(config, "data", max_length=1))
    assert str(raised.value) == ("every one of 320 training pairs is left out: 320 too long; see data.max_length")
    assert files_under(config.run_path) == before


def test_a_corpus_of_blank_lines_is_told_though_no_setting_decides_them(config):
    make_tokenizer(config)
    for name in ("train", "more"):
        write_lines(config.data.root / f"{name}.fr", [" "] * len(lines(config, f"{name}.fr")))
    with pytest.raises(DataError, match=r"left out: 320 blank source; see the files of data\.train$"):
        binarize(config)


def test_validation_corpora_of_nothing_are_told(config):
    for name in ("valid.fr", "valid.en", "extra.fr", "extra.en"):
        write_lines(config.data.root / name, [])
    told = (
        "valid.fr, valid.en, extra.fr, extra.en: the validation corpora hold no pairs; list others in data.valid, "
        "since training chooses checkpoints by them"
    )
    with pytest.raises(DataError) as raised:
        make_tokenizer(config)
    assert str(raised.value) == told
    make_tokenizer(changed(config, "data", valid=()))
    with pytest.raises(DataError) as raised:
        binarize(config)
    assert str(raised.value) == told


def test_validation_text_that_changed_is_told(config):
    prepared(config)
    path = config.run_path / "data" / "valid" / "target.txt"
    path.write_bytes(path.read_bytes().replace(b"e", b"o", 1))
    with pytest.raises(DataError, match=r"target\.txt: has changed since it was written; binarize the corpora again"):
        read_validation(config)
    path.unlink()
    with pytest.raises(DataError, match=r"target\.txt: missing; binarize the corpora again"):
        read_validation(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"manifest\.json: damaged; make it again"),
        ("[]", r"manifest\.json: damaged; make it again"),
        ("{}", r"format None is unknown; this version of mtkit reads format 1"),
        ('{"format": 1}', r"source\.txt: has changed"),
        (None, r"manifest\.json: missing; make it again"),
    ],
)
def test_a_validation_manifest_that_is_wrong_is_told(config, content, message):
    prepared(config)
    path = config.run_path / "data" / "valid" / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_validation(config)


def test_a_run_directory_that_cannot_be_made_is_told(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/run/?.*: cannot be written: Not a directory"):
        make_tokenizer(config.model_copy(update={"run_dir": tmp_path / "file" / "run"}))


def test_a_vocabulary_that_is_too_small_leaves_no_trace(config):
    with pytest.raises(ConfigError, match="too small"):
        make_tokenizer(changed(config, "tokenizer", vocab_size=264))
    assert files_under(config.run_path) == {}
    assert not (config.run_path / ".tokenizer.new").exists()


def test_what_a_kill_left_half_done_is_put_right(config):
    prepared(config)
    for place in ("tokenizer", "data/train", "data/valid"):
        path = config.run_path / place
        path.rename(path.with_name(f".{path.name}.old"))
        shutil.copytree(path.with_name(f".{path.name}.old"), path.with_name(f".{path.name}.new"))
    assert tokenizer_is_current(config)
    assert binarized_is_current(config)
    prepared(config)
    assert sorted(path.name for path in config.run_path.rglob("*") if path.is_dir()) == [
        "data",
        "tokenizer",
        "train",
        "valid",
    ]


def test_preparing_needs_no_torch():
    code = "import sys, mtkit.preparation.prepare; sys.exit('torch' in sys.modules or 'sacrebleu' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
