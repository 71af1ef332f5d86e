"""Patterns and lists of parts are replaced by files early, with the sides matched, so that stages see only files."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtkit.bundle.opening import run_config
from mtkit.config.load import config_from_text
from mtkit.config.settings import Config, config_text
from mtkit.data.corpus import Corpus
from mtkit.errors import ConfigError, DataError
from mtkit.pipeline import run_binarize, run_train
from mtkit.preparation.prepare import read_validation
from mtkit.preparation.sources import first_pairs
from mtkit.preparation.sources import test_sets as sets_of
from mtkit.text.parallel import read_corpus, with_patterns_expanded
from tests.conftest import CorpusFiles, config_with, toy_settings, write_lines, write_toy_corpus

NAMES = [1, 2, 9, 10]  # of the parts, in natural order, which is not alphabetical

MakeParts = Callable[..., Config]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder with the toy corpus and its training text in four parts, both compressed and not."""
    write_toy_corpus(tmp_path, 120)
    for side in ("src", "tgt"):
        lines = (tmp_path / f"train.{side}").read_text("utf-8").splitlines()
        for place, name in enumerate(NAMES):
            part = lines[place * 30 : place * 30 + 30]
            write_lines(tmp_path / f"part-{name}.{side}", part)
            (tmp_path / f"part-{name}.{side}.gz").write_bytes(gzip.compress("".join(f"{x}\n" for x in part).encode()))
    return tmp_path


def settings(folder: Path, **data: Any) -> Config:
    """The toy settings with other data in a folder."""
    whole = toy_settings(CorpusFiles(folder), folder / "run")
    short = {"max_steps": 2, "warmup_steps": 1, "validate_every": 2, "save_every": 2}
    return config_with(whole, data=data, tokenizer={"vocab_size": 330}, training=short)


def pair(source: Any, target: Any) -> dict[str, Any]:
    return {"source": source, "target": target}


def whole_text(root: Path) -> list[tuple[str, str]]:
    [pairs] = first_pairs(settings(root), settings(root).data.train, 1000)
    return pairs


PARTS = {
    "pattern": pair("part-*.src", "part-*.tgt"),
    "compressed pattern": pair("part-*.src.gz", "part-*.tgt.gz"),
    "pattern of digits": pair("part-*[0-9].src", "part-*[!a].tgt"),
    "list": pair([f"part-{name}.src" for name in NAMES], [f"part-{name}.tgt" for name in NAMES]),
    "list of patterns": pair(["part-?.src", "part-??.src"], ["part-?.tgt", "part-??.tgt"]),
    "compressed and not": pair("part-*.src", "part-*.tgt.gz"),
}


@pytest.mark.parametrize("form", PARTS)
def test_parts_are_read_as_one_text_in_natural_order(parts: Path, form: str) -> None:
    config = with_patterns_expanded(settings(parts, train=[PARTS[form]]))
    assert first_pairs(config, config.data.train, 1000) == [whole_text(parts)]
    assert [path.name.split(".")[0] for path in config.data.train[0].paths[::2]] == [f"part-{name}" for name in NAMES]


def test_parts_of_both_sides_may_lie_in_folders_of_their_own(parts: Path) -> None:
    for side in ("src", "tgt"):
        (parts / side / "deep").mkdir(parents=True)
        for name in NAMES:
            (parts / f"part-{name}.{side}").rename(parts / side / "deep" / f"{name}.txt")
    for pattern in ("{}/*/*.txt", "{}/**/*.txt"):
        train = [pair(pattern.format("src"), pattern.format("tgt"))]
        config = with_patterns_expanded(settings(parts, train=train))
        assert first_pairs(config, config.data.train, 1000) == [whole_text(parts)]


def test_parts_of_columns_are_read_as_one_text(parts: Path) -> None:
    pairs = whole_text(parts)
    for place, name in enumerate(NAMES):
        write_lines(parts / f"part-{name}.tsv", [f"{t}\t{s}" for s, t in pairs[place * 30 : place * 30 + 30]])
    for tsv in ("part-*.tsv", [f"part-{name}.tsv" for name in NAMES]):
        config = with_patterns_expanded(settings(parts, train=[{"tsv": tsv, "columns": [2, 1]}]))
        assert first_pairs(config, config.data.train, 1000) == [pairs]


def test_the_run_sees_plain_files_and_one_corpus(parts: Path) -> None:
    config = settings(parts, train=[PARTS["pattern"]], valid=[pair("val*.src", "val*.tgt")])
    run_train(config)
    kept = run_config(config.run_path)
    assert "part-*" not in config_text(kept)
    assert [len(corpus.paths) for corpus in kept.data.train] == [8]
    manifest = Corpus.open(config.run_path / "data" / "train").manifest
    assert manifest.corpora == (120,)
    assert [Path(raw.path).name for raw in manifest.raw_files[:2]] == ["part-1.src", "part-1.tgt"]
    assert len(read_validation(config)[0]) == 24
    # The run, started with patterns, resumes with the files that it recorded.
    run_train(kept.model_copy(update={"run_dir": config.run_path}))


def test_a_part_that_is_new_or_gone_is_told_by_name(parts: Path) -> None:
    config = settings(parts, train=[PARTS["pattern"]])
    run_train(config)
    for side in ("src", "tgt"):
        write_lines(parts / f"part-3.{side}", ["one two three"])
    with pytest.raises(DataError, match=r"data\.train: \S+/part-3\.src and \S+/part-3\.tgt is new"):
        run_train(config)
    for side in ("src", "tgt"):
        (parts / f"part-3.{side}").unlink()
        (parts / f"part-10.{side}").rename(parts / f"kept.{side}")
    with pytest.raises(DataError, match="is no longer listed"):
        run_train(config)
    for side in ("src", "tgt"):
        (parts / f"kept.{side}").rename(parts / f"part-10.{side}")
    run_train(config)


def test_a_run_goes_on_where_all_its_parts_are_gone(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(parts, train=[{**PARTS["pattern"], "weight": 2}, pair("train.src", "train.tgt")])
    run_train(config)
    for path in [*parts.glob("part-*"), *parts.glob("train.*")]:
        path.unlink()
    longer = config.training.model_copy(update={"max_steps": 4})
    run_train(config.model_copy(update={"training": longer}))
    assert "going on with what was binarized" in capsys.readouterr().err


def test_settings_with_parts_are_printed_as_they_were_said(parts: Path) -> None:
    for form in PARTS.values():
        config = settings(parts, train=[form])
        assert config_from_text(config_text(config), "printed") == config
    assert "source: part-*.src, target: part-*.tgt" in config_text(settings(parts, train=[PARTS["pattern"]]))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(parts: Path) -> None:
    for name in ("part-*", "part-[1]", "part-?"):
        for side in ("src", "tgt"):
            write_lines(parts / f"{name}.{side}", ["one"])
        config = settings(parts, train=[pair(f"{name}.src", f"{name}.tgt")])
        assert with_patterns_expanded(config) is config
        assert first_pairs(config, config.data.train, 9) == [[("one", "one")]]


FAULTS = {
    "a part without its other side": (
        pair("part-*.src", "part-?.tgt"),
        "data.train[0]: part-10.src has no other side: there is no part-10.tgt (part-*.src matches 4 files, "
        "part-?.tgt matches 3 files); add what is missing, or narrow the patterns",
    ),
    "several without": (
        pair("*.src", "part-*.tgt"),
        "data.train[0]: part-1.src has no other side: there is no part-part-1.tgt, and 6 more like it (*.src matches 7 "
        "files, part-*.tgt matches 4 files); add what is missing, or narrow the patterns",
    ),
    "only one side has some": (
        pair("part-*.src", "nothing-*.tgt"),
        "data.train[0]: no file matches nothing-*.tgt, but part-*.src matches 4 files",
    ),
    "one file beside many": (
        pair("part-*.src", "train.tgt"),
        "data.train[0]: source part-*.src matches 4 files, and target train.tgt is one file; wants as many files of "
        "each: line n of a part must translate line n of its other side",
    ),
    "other wildcards": (
        pair("part-*.src", "*-*.tgt"),
        "data.train[0]: the patterns part-*.src and *-*.tgt have 1 and 2 wildcards; wants as many in both, since parts "
        "are paired by the text that the wildcards match",
    ),
    "lists in other orders": (
        pair(["part-1.src", "part-2.src"], ["part-2.tgt", "part-1.tgt"]),
        "data.train[0]: source and target list the same parts in different orders: part-1.src is paired with "
        "part-2.tgt; list both in the same order",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_go_together_are_told(parts: Path, fault: str) -> None:
    train, told = FAULTS[fault]
    with pytest.raises(DataError) as error:
        with_patterns_expanded(settings(parts, train=[train]))
    assert str(error.value) == told


def test_a_pattern_that_matches_nothing_is_told_with_the_folder(parts: Path) -> None:
    with pytest.raises(DataError, match=rf"no\*\.src: no file matches; relative paths start from data\.root, {parts}"):
        run_binarize(settings(parts, train=[pair("no*.src", "no*.tgt")]))


def test_a_folder_is_told_with_the_pattern_that_names_its_files(parts: Path) -> None:
    (parts / "all").mkdir()
    for name in ("a.en.gz", "b.en.gz", "a.digits", "b.digits", ".hidden.en", "README"):
        (parts / "all" / name).touch()
    config = settings(parts, train=[pair("all", "all")])
    told = f"data.train[0].source: {parts}/all is a folder; wants a file, a list of files, or a pattern such as "
    with pytest.raises(DataError) as error:
        with_patterns_expanded(config)
    assert str(error.value) == f"{told}all/*.en.gz"
    with pytest.raises(DataError, match=r"data\.valid\[0\]\.target\[1\]: .*all/\*\.digits$"):
        with_patterns_expanded(settings(parts, valid=[pair(["train.src", "test.src"], ["train.tgt", "all"])]))
    with pytest.raises(DataError, match=r"data\.test\.t\.target\[0\]: .*is a folder"):
        with_patterns_expanded(settings(parts, test={"t": pair("test.src", "all")}))


def test_a_list_of_targets_of_a_test_set_is_one_of_references(parts: Path) -> None:
    config = with_patterns_expanded(settings(parts, test={"t": pair("te*.src", ["part-[12].tgt", "test.tgt"])}))
    files = sets_of(config)["t"]
    assert files.source == parts / "test.src"
    assert files.target == (parts / "part-1.tgt", parts / "part-2.tgt", parts / "test.tgt")
    with pytest.raises(DataError, match=r"data\.test\.t\.source: part-\*\.src matches 4 files, wants one"):
        with_patterns_expanded(settings(parts, test={"t": pair("part-*.src", "test.tgt")}))


def test_more_text_of_the_tokenizer_may_be_a_pattern(parts: Path) -> None:
    config = settings(parts)
    tokenizer = config.tokenizer.model_validate_json('{"text": [{"source": "part-*.src", "target": "test.tgt"}]}')
    text = with_patterns_expanded(config.model_copy(update={"tokenizer": tokenizer})).tokenizer.text
    assert [each.source for each in text if each.source] == [Path(f"part-{name}.src") for name in NAMES]
    assert [each.target for each in text if each.target] == [Path("test.tgt")]


def test_lists_of_different_lengths_are_told(parts: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.train\[0\]: found 2 in source and 1 in target, wants as many"):
        config_from_text("data: {train: [{source: [a, b], target: c}]}", "x")
    with pytest.raises(ConfigError, match=r"data\.train\[0\]: found no file, wants source and target, or tsv alone"):
        config_from_text("data: {train: [{source: [], target: []}]}", "x")
    with pytest.raises(ConfigError, match=r'data\.train\[0\]\.source\[1\]: found 2; quote it, "2"'):
        config_from_text("data: {train: [{source: [a, 2], target: [a, b]}]}", "x")


MISSING = {
    "root": (
        lambda root: settings(root, train=[pair("tran.src", "train.tgt")]),
        "data.root, {root}. Did you mean train",
    ),
    "no root": (
        lambda root: settings(root, root=None, train=[pair("tran.src", "train.tgt")]),
        "tran.src: no such file in {here}, from which relative paths start; name another folder in data.root",
    ),
    "no such root": (
        lambda root: settings(root, root=str(root / "no"), train=[pair("train.src", "train.tgt")]),
        "no/train.src: no such folder as data.root; relative paths start from data.root, {root}/no",
    ),
    "whole path": (
        lambda root: settings(root, train=[pair(str(root / "tran.src"), "train.tgt")]),
        "{root}/tran.src: no such file. Did you mean train.src?",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_file_is_told_with_the_folder_where_it_was_looked_for(
    parts: Path, case: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    make, told = MISSING[case]
    config = make(parts)
    valid = [pair(str(parts / "valid.src"), str(parts / "valid.tgt"))]
    data = config.data.model_copy(update={"valid": settings(parts, valid=valid).data.valid, "test": {}})
    with pytest.raises(DataError) as error:
        run_binarize(config.model_copy(update={"data": data}))
    assert told.format(root=parts, here=here) in str(error.value)


def test_the_pairs_of_parts_of_one_corpus_are_not_mixed_up(parts: Path) -> None:
    config = with_patterns_expanded(settings(parts, train=[PARTS["pattern"]]))
    [corpus] = config.data.train
    here = corpus.model_copy(
        update={side: tuple(parts / path for path in getattr(corpus, side)) for side in ("source", "target")}
    )
    assert dict(read_corpus(here)) == dict(whole_text(parts))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("{a,b}.src", "no such file; braces stand for themselves; write a list of files or patterns, [FIRST, SECOND]"),
        ("part-{1..9}.src", "no such file; braces stand for themselves; write a list of files or patterns,"),
        ("$HOME/*.src", "no file matches; variables such as $HOME are not replaced; write what they stand for"),
        ("my\\ data.src", "no such file; a backslash stands for itself; write the name as it is, and quotes around it"),
        (
            "part-1.src:part-*.src",
            "no file matches; a colon stands for itself; several files are a list, [FIRST, SECOND]",
        ),
        ("wmt:14.src", "no such file; relative paths start from data.root"),
    ],
)
def test_a_path_that_a_shell_would_replace_is_told_with_what_to_write(parts: Path, path: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        run_binarize(settings(parts, train=[pair(path, path)]))
    assert str(error.value).startswith(f"{parts}/{path}: {told}")


def test_a_habit_of_shells_is_told_where_the_other_side_is_there(parts: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file matches \$D/\*\.src, but part-\*\.tgt matches 4 files; variables such as"
    ):
        run_binarize(settings(parts, train=[pair("$D/*.src", "part-*.tgt")]))
