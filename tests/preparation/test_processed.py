"""Text that is not plain is warned of before training: cut into subwords, tokenised, escaped, lower-cased."""

import gzip
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from mtkit.config.load import config_from_text
from mtkit.pipeline import run_binarize, run_tokenizer
from mtkit.preparation.prepare import binarize, renew_validation
from mtkit.text.parallel import LEADING_LINES, MOST_LINES, SIGNS, capitals, cleaning_command, findings, sample

PLAIN = [
    "He doesn't want low-cost goods, she says.",
    "The lowest price is the best (for him).",
    '"Never," said Tom & Jerry; it was 5 < 6 | 7.',
]
SUBWORDS = ["the lo@@ w@@ est", "pri@@ ce", "on th@@ e"]
CONFIG = """
run_dir: {root}/run
languages: {{source: fr, target: en}}
data:
  root: {root}
  train: [{{source: train.fr, target: train.en}}]
  valid: [{{source: valid.fr, target: valid.en}}]
  test: {{mine: {{source: test.fr, target: test.en}}}}
tokenizer: {{vocab_size: 320}}
"""


def write_corpus(root: Path, **lines: list[str]) -> str:
    """Six plain files, but for those that are given, such as train_fr, and the YAML of their settings."""
    for name in ("train", "valid", "test"):
        for side in ("fr", "en"):
            text = lines.get(f"{name}_{side}", PLAIN * 5)
            (root / f"{name}.{side}").write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return CONFIG.format(root=root)


Told = Callable[..., list[str]]


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """The warnings of train-tokenizer on a corpus with these files, without the folder they are in."""

    def warnings(*overrides: str, **lines: list[str]) -> list[str]:
        run_tokenizer(config_from_text(write_corpus(tmp_path, **lines), "x.yaml", overrides))
        printed = re.sub(rf"(?<=[<>] ){tmp_path}/", "ROOT/", capsys.readouterr().err).replace(f"{tmp_path}/", "")
        warned = [line for line in printed.splitlines() if line.startswith("mtkit: warning: ")]
        others = ("source and target are the same", "the same for")  # as they are here
        return [line for line in warned if not any(other in line for other in others)]

    return warnings


def test_plain_text_is_not_warned_of(told: Told) -> None:
    assert told() == []


def test_pieces_of_subword_nmt_are_told_with_file_line_command_and_the_setting_that_keeps_them(told: Told) -> None:
    lines = ["plain", *SUBWORDS[:2]] * 5
    assert told(train_fr=lines, valid_en=lines) == [
        'mtkit: warning: train.fr:2: "the lo@@ w@@ est" looks cut into subwords by subword-nmt, as do 10 of the 15 '
        "lines looked at (and valid.en); mtkit wants plain text and cuts it by itself, so undo that first, "
        "file by file, and name the new files: sed -E 's/(@@ )|(@@ ?$)//g' < ROOT/train.fr > ROOT/train.plain.fr; or "
        "tokenizer.type: word keeps the pieces as they are"
    ]


def test_pieces_of_sentencepiece_are_told_with_the_model_that_cuts_so(told: Told) -> None:
    assert told(train_en=["▁The ▁low est ▁price"] * 15) == [
        'mtkit: warning: train.en:1: "▁The ▁low est ▁price" looks cut into subwords by SentencePiece, as do 15 of the '
        "15 lines looked at; mtkit wants plain text and cuts it by itself, so undo that first, file by file, and "
        "name the new files: sed 's/ //g; s/▁/ /g; s/^ //' < ROOT/train.en > ROOT/train.plain.en; or "
        "tokenizer.model: MODEL cuts the plain text in the same way"
    ]


def test_tokenised_text_is_told_with_the_language_of_its_side(told: Told) -> None:
    (warning,) = told(test_en=["It &apos;s late , he says ."] * 15)
    assert warning.startswith('mtkit: warning: test.en:1: "It &apos;s late , he says ." looks tokenised by Moses')
    assert warning.endswith(
        "name the new files: sacremoses -l en detokenize < ROOT/test.en > ROOT/test.plain.en (pip install sacremoses "
        "brings that command)"
    )


def test_escapes_alone_are_told(told: Told) -> None:
    (warning,) = told(valid_fr=["C&apos;est &quot;bon&quot;."] * 15)
    assert 'valid.fr:1: "C&apos;est &quot;bon&quot;." looks escaped by Moses or HTML' in warning


def test_words_are_kept_by_type_word_which_is_told_with_what_it_means_for_scores(told: Told) -> None:
    (warning,) = told("tokenizer.type=word", train_fr=SUBWORDS * 5)
    assert warning.endswith(
        "; tokenizer.type word keeps it so, but translations and scores will be of such text, too; this undoes it, "
        "file by file: sed -E 's/(@@ )|(@@ ?$)//g' < ROOT/train.fr > ROOT/train.plain.fr"
    )


def test_lower_cased_text_beside_cased_text_is_told_with_a_line_of_both(told: Told) -> None:
    lowered = [line.lower() for line in PLAIN * 5]
    assert told(train_fr=lowered, train_en=lowered) == [
        'mtkit: warning: train.fr:1: "he doesn\'t want low-cost goods, she say…" is lower-cased like all of this file '
        '(and train.en), but valid.fr:1: "He doesn\'t want low-cost goods, she say…" is not (and valid.en, test.fr, '
        "test.en); use text in its original case everywhere, or lower-case all of it: sed 's/.*/\\L&/' FILE"
    ]
    same = {f"{name}_{side}": lowered for name in ("train", "valid", "test") for side in ("fr", "en")}
    assert told(**same) == []


def test_columns_and_packed_files_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_corpus(tmp_path)
    rows = "".join(f"{number}\t{line}\t{line}@@ x\n" for number, line in enumerate(PLAIN * 5))
    (tmp_path / "all.tsv.gz").write_bytes(gzip.compress(rows.encode()))
    run_tokenizer(config_from_text(text, "x.yaml", ["data.train=[{tsv: all.tsv.gz, columns: [2, 3]}]"]))
    assert f'{tmp_path}/all.tsv.gz:1, column 3: "ost goods, she says.@@ x" looks cut' in capsys.readouterr().err


def test_a_run_is_warned_once_and_binarize_alone_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_from_text(write_corpus(tmp_path, train_en=SUBWORDS * 5), "x.yaml")
    run_binarize(config)
    assert capsys.readouterr().err.count("subword-nmt") == 1
    run_binarize(config)
    assert capsys.readouterr().err.count("subword-nmt") == 1
    binarize(config)
    assert capsys.readouterr().err.count("subword-nmt") == 1


@pytest.mark.parametrize(
    ("processed", "plain"),
    [
        ("the lo@@ w@@ est pri@@ ce@@", "the lowest price"),
        ("the low ￭est price ￭.", "the lowest price."),
        ("the low ##est pri ##ce", "the lowest price"),
        ("▁the ▁low est ▁ pri ce ▁ so ,", "the lowest price so,"),
        ("今天 天气 很 好 。", "今天天气很好。"),
        ('"say ""hi"", ""&""!"', 'say "hi", "&"!'),
        ("&lt;a&gt; it&apos;s &quot;x&quot; &amp;amp; &#91;1&#93; &#124;", '<a> it\'s "x" &amp; [1] |'),
    ],
)
def test_the_command_that_a_warning_names_undoes_what_it_names(processed: str, plain: str, tmp_path: Path) -> None:
    (finding,) = findings(enumerate([processed] * 5, start=1))
    (tmp_path / "FILE").write_text(f"{processed}\n", encoding="utf-8")
    done = subprocess.run(
        f"{finding.sign.cure} < FILE", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{plain}\n"


@pytest.mark.parametrize("name", ["it's a.fr", "a.fr.gz", "a.tsv", "a.tsv.gz"])
def test_the_command_of_a_warning_works_as_printed_for_packed_files_and_columns(name: str, tmp_path: Path) -> None:
    path, column = tmp_path / name, 2 if ".tsv" in name else None
    content = "".join(f"{line}\n" if column is None else f"a\t{line}\tb\n" for line in SUBWORDS).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    command = cleaning_command(path, column, [SIGNS[0].cure, "sed 's/e/E/g'"], "fr")
    subprocess.run(["sh", "-c", command], check=True, timeout=10)
    written = tmp_path / ("it's a.plain.fr" if "'" in name else "a.plain.fr")
    assert written.read_text(encoding="utf-8") == "thE lowEst\npricE\non thE\n"


def test_words_under_pieces_are_told_with_them_and_with_one_command_for_both(told: Told) -> None:
    plain = ["▁Well ▁, ▁yes"] * 15  # the spaces between pieces are no signs of tokens
    (warning,) = told(train_fr=["Th@@ at &apos;s la@@ te ."] * 15)
    assert "looks cut into subwords by subword-nmt and tokenised by Moses or a tool like it, as do 15 of" in warning
    assert (
        "sed -E 's/(@@ )|(@@ ?$)//g' < ROOT/train.fr | sacremoses -l fr detokenize > ROOT/train.plain.fr (pip"
        in warning
    )
    assert [finding.sign.by for finding in findings(enumerate(["▁We ll , ▁yes ▁I ▁do ."] * 5))] == ["SentencePiece"]
    assert [finding.sign.kind for finding in findings(enumerate(plain))] == ["cut into subwords", "tokenised"]


def test_validation_text_that_is_kept_anew_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_from_text(write_corpus(tmp_path), "x.yaml")
    run_binarize(config)
    capsys.readouterr()
    write_corpus(tmp_path, valid_fr=["text_fr", *SUBWORDS * 5], valid_en=["text_en", *PLAIN * 5])
    renew_validation(config)
    told = capsys.readouterr().err
    assert 'valid.fr:2: "the lo@@ w@@ est" looks cut into subwords' in told
    assert told.count("text_fr / text_en, looks like the names of columns") == 1


def test_the_part_that_is_not_plain_is_named(told: Told, tmp_path: Path) -> None:
    for part in range(3):
        lines = SUBWORDS if part == 1 else PLAIN
        (tmp_path / f"part-{part}.en").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    sides = "source: [part-0.en, part-2.en, part-0.en], target: [part-0.en, part-1.en, part-2.en]"
    (warning,) = told(f"data.train=[{{{sides}}}]")
    assert warning.startswith('mtkit: warning: part-1.en:1: "the lo@@ w@@ est" looks cut into subwords')


ROWS = [f"{n}\tDix{n} s'il, vous plaît\tTen{n}, please" for n in range(15)]


def test_columns_that_are_named_as_plain_text_are_told_with_what_to_name(told: Told) -> None:
    table = "has 3 columns in each line, which is read as one sentence: 14 | Dix14 s'il, vous pl… | Ten14, please; "
    assert told(train_fr=ROWS, test_en=ROWS) == [
        f"mtkit: warning: train.fr: {table}for columns 2 and 3 say {{tsv: train.fr, columns: [2, 3]}}",
        f"mtkit: warning: test.en: {table}make a file of each column that is wanted: cut -f 2 test.en > "
        "ROOT/test.column2; cut -f 3 test.en > ROOT/test.column3",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_csv_that_is_named_as_plain_text_is_told(told: Told, tmp_path: Path, name: str, separator: str) -> None:
    rows = [f'"Dix{n}, s\'il vous plaît"{separator}Ten{n}\n' for n in range(24)]
    (tmp_path / name).write_text("".join(rows), encoding="utf-8")
    (warning,) = told(f"data.train=[{{source: {name}, target: {name}}}]")
    assert warning.startswith(f"mtkit: warning: {name}: this is CSV, which is not read. Make columns with tabs of it")
    subprocess.run(
        ["sh", "-c", warning.partition(" instead: ")[2].replace("ROOT/", "")], check=True, timeout=10, cwd=tmp_path
    )
    (table,) = tmp_path.glob("*.tsv")
    assert table.read_text(encoding="utf-8").startswith("Dix0, s'il vous plaît\tTen0\nDix1")


def test_a_column_of_numbers_is_told_with_the_columns_of_sentences(told: Told, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"{row}\n" for row in ROWS), encoding="utf-8")
    assert told("data.train=[{tsv: a.tsv}]") == [
        'mtkit: warning: a.tsv, column 1: 15 of the 15 lines looked at are numbers or names such as "0"; choose the '
        "columns of source and target, such as columns: [2, 3]; a row is 14 | Dix14 s'il, vous pl… | Ten14, please"
    ]
    assert told("data.train=[{tsv: a.tsv, columns: [3, 2]}]") == []
    (warning,) = told(valid_en=[f"doc-{n}/x" for n in range(15)])
    assert warning.endswith(
        '15 of the 15 lines looked at are numbers or names such as "doc-0/x"; name a file of sentences'
    )


def test_prose_is_no_table_for_having_commas_in_each_line(told: Told) -> None:
    assert told(train_fr=["Oui, merci."] * 15, train_en=["Yes, sir."] * 9 + ["No.", *["Yes, please, sir."] * 5]) == []
    assert told(train_fr=[f"{n} 2 3 5" for n in range(15)], train_en=[f"第{n}章" for n in range(15)]) == []


def test_few_lines_with_a_sign_are_no_habit() -> None:
    assert findings(enumerate(["a@@ b"] + ["Plain."] * 20)) == []
    assert findings(enumerate(["It 's , so"] * 19 + ["Plain."] * 81)) == []
    assert {finding.sign for finding in findings(enumerate(["a@@ b"] * 3 + ["Plain."] * 97))} == {SIGNS[0]}


def test_a_sample_takes_all_first_lines_and_some_of_the_rest() -> None:
    numbers = [number for number, line in sample(map(str, range(1, 100_001))) if str(number) == line]
    assert numbers[:LEADING_LINES] == list(range(1, LEADING_LINES + 1))
    assert len(numbers) < 5 * LEADING_LINES
    assert max(numbers) > 90_000
    assert max(b - a for a, b in pairwise(numbers)) <= 64
    assert max(number for number, _ in sample(map(str, range(2 * MOST_LINES)))) <= MOST_LINES


def test_text_without_case_has_no_share_of_capitals() -> None:
    assert capitals(["今天天气很好。" * 50]) is None
    assert capitals(["დღეს კარგი ამინდია " * 50]) is None
    assert capitals(["Ab"]) is None  # too little
    assert capitals(["ab"] * 200) == 0
    assert capitals(["Ab"] * 200) == 0.5
