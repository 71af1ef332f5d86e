"""Mistakes in parallel text are reported: CSV, a header line, and sides that are the same."""

import bz2
import csv
import gzip
import io
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtkit.config.data_and_model_settings import LanguagesConfig
from mtkit.config.settings import Config
from mtkit.errors import DataError
from mtkit.pipeline import run_binarize, run_tokenizer, run_train
from mtkit.text.lines import read_columns
from mtkit.text.parallel import Oversights
from tests.conftest import write_lines

ROWS = [('say "hi", please', "dis « salut », s'il te plaît"), ("two\nlines", "deux\tlignes"), ("a; b", "é, è")]


def as_csv(rows: list[tuple[str, str]], **options: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **options).writerows(rows)
    return text.getvalue().encode("utf-8")


@pytest.mark.parametrize("name", ["a.csv", "it's a.csv", "a.csv.gz", "a.csv.bz2", "a.csv.xz", "a.txt"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_is_told_with_a_command_that_makes_columns_of_it(tmp_path: Path, name: str, delimiter: str) -> None:
    path = tmp_path / name
    content = b"\xef\xbb\xbf" + as_csv(ROWS, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    with pytest.raises(DataError) as error:
        list(read_columns(path, 1, 2))
    told, _, command = str(error.value).partition(" instead: ")
    assert told.startswith(
        f"{path}:1: has 1 of 2 columns; this is CSV, which is not read. Make columns with tabs of it"
    )
    subprocess.run(["sh", "-c", command], check=True)
    table = Path(told.rpartition("name ")[2])
    assert list(read_columns(table, 1, 2)) == [
        (source.replace("\n", " "), target.replace("\t", " ")) for source, target in ROWS
    ]


def test_a_line_without_a_tab_is_no_csv_for_having_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_lines(path, ["one, two"])
    with pytest.raises(DataError, match=r"has 1 of 2 columns; wants a tab between one and the next$"):
        list(read_columns(path, 1, 2))


def warnings_of(*pairs: tuple[str, str], drops: bool = False, trains: bool = True) -> list[str]:
    oversights = Oversights(LanguagesConfig(source="xx-YY", target="zz"), drops)
    list(oversights.watched("data.train", [Path("a.tsv")], pairs, trains))
    return list(oversights.warnings())


@pytest.mark.parametrize(
    "header",
    [
        "source/target",
        "en/de",
        "sentence1/sentence2",
        "Text_EN/Text_DE",
        "xx-YY/zz",
        "English/Yoruba",
        "eng_Latn/yor_Latn",
        "score/en",
        "text/text",
        "id/sentence_en",
    ],
)
def test_a_first_line_that_names_columns_is_told(header: str) -> None:
    source, target = header.split("/")
    told = [
        f"mtkit: warning: data.train: line 1 of a.tsv, {source} / {target}, looks like the names of columns, and is "
        "read as a pair; delete it: sed -i 1d a.tsv"
    ]
    assert warnings_of((source, target), *[("one", "un")] * 9) == told
    assert warnings_of(*[("one", "un")] * 9, (source, target)) == []


def test_columns_with_tabs_between_may_lie_in_a_file_that_ends_in_csv() -> None:
    oversights = Oversights(LanguagesConfig(source="fr", target="en"), is_copying_dropped=False)
    list(oversights.watched("data.train", ["a.csv"], [("a", "b")], trains=True))
    assert list(oversights.warnings()) == []


@pytest.mark.parametrize("pair", ["one/un", "no/no", "The source is here./La source est ici.", "de/", "yes/oui", "1/2"])
def test_a_first_line_that_is_text_is_not_told(pair: str) -> None:
    source, target = pair.split("/")
    assert warnings_of((source, target), ("three", "trois"), ("four", "quatre"), *[("a b", "c d")] * 9) == []


@pytest.mark.parametrize("name", ["it's a.fr", "a.fr.gz", "a.tsv.xz"])
def test_the_command_that_deletes_a_header_works_as_printed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(b"text\none\ntext\n"))
    oversights = Oversights(LanguagesConfig(), False)
    list(oversights.watched("data.valid", [path, path], [("text_fr", "text_en"), ("one", "un")], trains=False))
    (warning,) = oversights.warnings()
    subprocess.run(
        ["sh", "-c", warning.partition("delete it: ")[2].partition(", and name ")[0]], check=True, timeout=10
    )
    written = path if path.suffix == ".fr" else path.with_suffix("")
    assert written.read_bytes() == b"one\ntext\n"


def test_sides_that_are_the_same_are_told_with_their_share() -> None:
    others = [(f"one {n}", f"un {n}") for n in range(8)]
    copies = [("OK ", "ok"), ("x", "x"), ("", "")]
    assert warnings_of(*others, *copies) == [
        "mtkit: warning: data.train: a.tsv: source and target are the same in 2 of 11 pairs (18.2%), so the model "
        "learns to copy; name the file of the translation, or leave such pairs out with data.drop_identical: true"
    ]
    assert warnings_of(*others * 3, *copies) == []
    assert warnings_of(*others, *copies, drops=True) == []
    [told] = warnings_of(*others, *copies, drops=True, trains=False)
    assert told.endswith("so copying is measured; name the file of the translation")


def test_many_of_a_kind_are_counted() -> None:
    oversights = Oversights(LanguagesConfig(), False)
    for number in range(5):
        list(oversights.watched("data.train", [Path(f"{number}.tsv")], [("a", "a"), ("b", "b")], True))
    assert [line[:33] for line in oversights.warnings()] == [
        *(f"mtkit: warning: data.train: {number}.tsv" for number in range(3)),
        "mtkit: warning: the same for 2 mo",
    ]


@pytest.fixture
def copying(make_config: Callable[..., Config], corpus_files: Any, tmp_path: Path) -> Config:
    """A run whose training and validation text has the same file on both sides."""
    shutil.copytree(corpus_files.root, tmp_path / "data")
    twice = {"source": "valid.src", "target": "valid.src"}
    short = {"max_steps": 1, "validate_every": 1, "save_every": 1, "warmup_steps": 1, "validation_sentences": 2}
    data = {"root": str(tmp_path / "data"), "train": [twice], "valid": [twice], "test": {"t": twice}}
    return make_config(data=data, training=short, tokenizer={"vocab_size": 300})


@pytest.mark.parametrize("command", [run_tokenizer, run_binarize, run_train])
def test_each_stage_tells_once_what_was_overlooked(
    copying: Config, command: Callable[[Config], None], capsys: pytest.CaptureFixture[str]
) -> None:
    command(copying)
    told = [line for line in capsys.readouterr().err.splitlines() if "the same in 24 of 24 pairs (100.0%)" in line]
    assert [line.split(": ")[2] for line in told] == ["data.valid", "data.test", "data.train"]
    assert str(copying.data_path(Path("valid.src"))) in told[2]
    run_binarize(copying)
    assert capsys.readouterr().err.count("so the model learns to copy") == 1
