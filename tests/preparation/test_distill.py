"""Distillation: a teacher's translations become a student's text, the same however often the work is interrupted."""

import gzip
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mtkit.config.load import load_config
from mtkit.config.settings import Config, config_text
from mtkit.errors import CheckpointError, ConfigError, DataError, MtkitError, StoppedError
from mtkit.exchange.formats import extend
from mtkit.files import ended_by_signal
from mtkit.pipeline import run_all
from mtkit.preparation import distill as stage
from mtkit.preparation.distill import Teacher, distill
from mtkit.translation.translator import Translator, load
from tests.conftest import SHORT, CorpusFiles, toy_pairs, write_lines
from tests.forked import MTKIT, Forked
from tests.runs import Killed, always, doing, interrupt, kill

GREEDY = ["decoding.beam_size=1"]
LINES = [source for source, _ in toy_pairs(31, seed=5)]
FIRST, SECOND = [*LINES[:10], "  ", *LINES[10:20]], LINES[20:]

Make = Callable[..., Config]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of few lines, so that a small corpus has several."""
    monkeypatch.setattr(stage, "WINDOW_LINES", 7)


@pytest.fixture
def teacher(tiny_run: Path) -> Teacher:
    """A teacher that translates greedily."""
    return Teacher(tiny_run, GREEDY)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with two corpora, of which the first has a blank line; their targets are of no use."""
    root = tmp_path / "text"
    root.mkdir()
    for name, lines in (("a", FIRST), ("b", SECOND)):
        write_lines(root / f"{name}.src", lines)
        write_lines(root / f"{name}.tgt", ["1 2 3"] * len(lines))
    return root


@pytest.fixture
def make_student(make_config: Make, text: Path, corpus_files: CorpusFiles) -> Make:
    """A function that makes the settings of a student with these corpora, or others, and other settings of data."""

    def made(**data: Any) -> Config:
        held_out = {
            name: {side: str(corpus_files.root / file) for side, file in corpus_files.pair(name).items()}
            for name in ("valid", "test")
        }
        train = [{"source": "a.src", "target": "a.tgt"}, {"source": "b.src", "target": "b.tgt", "weight": 2.5}]
        settings = {"root": str(text), "train": train, "valid": [held_out["valid"]], "test": {"toy": held_out["test"]}}
        return make_config(data={**settings, **data}, training=SHORT, tokenizer={"vocab_size": 300})

    return made


@pytest.fixture
def student(make_student: Make) -> Config:
    """The settings of a student with both corpora."""
    return make_student()


def folder_of(config: Config) -> Path:
    """The folder that mtkit distill makes by default."""
    return config.run_path.with_name(f"{config.run_path.name}-distilled-text")


def lines_of(path: Path) -> list[str]:
    """The lines of a file, which must end with a line feed."""
    content = path.read_bytes().decode()
    assert content[-1:] in ("", "\n")
    return content.split("\n")[:-1]


def texts(folder: Path) -> dict[str, bytes]:
    """The files that a student needs: the text and its settings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if stage.OURS.fullmatch(path.name)}


def translations(teacher: Teacher, lines: Iterable[str], tag: str | None = None) -> list[str]:
    """What mtkit translates the lines to."""
    return [line.text for line in load(teacher.path, teacher.overrides).translate_lines(lines, tag=tag)]


# What is written.


def test_each_line_stands_beside_its_translation_and_blank_ones_are_left_out(student: Config, teacher: Teacher) -> None:
    report = distill(student, teacher)
    folder = folder_of(student)
    for number, lines in ((1, [line for line in FIRST if line.strip()]), (2, SECOND)):
        assert lines_of(folder / f"corpus-{number}.source") == lines
        assert lines_of(folder / f"corpus-{number}.target") == translations(teacher, lines)
    first, pairs, left_out, command = report.splitlines()
    assert first.startswith("32 lines translated in ")
    assert first.endswith(" tokens a second")
    assert pairs == f"31 pairs in {folder}"
    assert left_out == "1 line left out: 1 blank, 0 with a blank translation"
    assert command == f"to train the student: mtkit run {folder / 'student.yaml'}"


def test_the_settings_are_those_of_the_student_but_for_the_text_and_the_name(student: Config, teacher: Teacher) -> None:
    distill(student, teacher)
    folder = folder_of(student)
    found = load_config(folder / "student.yaml")
    assert found.name == "toy-distilled"
    assert found.run_path == student.run_path.with_name("run-distilled")
    assert [(corpus.source, corpus.weight) for corpus in found.data.train] == [
        (folder / "corpus-1.source", 1.0),
        (folder / "corpus-2.source", 2.5),
    ]
    data = found.data.model_copy(update={"train": student.data.train})
    unchanged = {"name": student.name, "run_dir": student.run_dir, "data": data}
    assert found.model_copy(update=unchanged) == student


def test_a_student_has_no_alignments_of_text_that_it_does_not_train_on(student: Config, tmp_path: Path) -> None:
    guided = {"guided_alignment": Path("train.align"), "guided_alignment_weight": 0.1}
    config = student.model_copy(update={"training": student.training.model_copy(update=guided)})
    stage._write_student(config, tmp_path, keep_original=False)
    assert load_config(tmp_path / stage.STUDENT, []).training == student.training


def test_the_student_trains_on_the_new_text_and_on_the_original_where_that_is_asked_for(
    student: Config, teacher: Teacher
) -> None:
    distill(student, teacher)
    before = texts(folder_of(student))
    report = distill(student, teacher, keep_original=True)
    assert "is finished already" in report
    assert before["student.yaml"] != texts(folder_of(student))["student.yaml"]
    found = load_config(folder_of(student) / "student.yaml")
    assert found.data.train[2:] == student.data.train
    scores = run_all(found)
    assert [score.test_set for score in scores] == ["toy"] * 3
    manifest = json.loads((found.run_path / "data" / "train" / "manifest.json").read_text("utf-8"))
    assert manifest["num_pairs"] == 31 + 31


def test_without_a_root_a_folder_that_is_given_relatively_stays_relative(
    make_student: Make, text: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text)
    config = make_student(root=None)
    distill(config, teacher, Path("new"))
    assert load_config(Path("new/student.yaml")).data.train[0].source == Path("new/corpus-1.source")
    distill(make_student(), teacher, Path("other"))
    assert load_config(Path("other/student.yaml")).data.train[0].source == text / "other" / "corpus-1.source"


def test_parts_tables_and_packed_text_are_read(make_student: Make, text: Path, teacher: Teacher) -> None:
    for number, lines in ((1, FIRST), (2, SECOND)):
        for side in ("src", "tgt"):
            packed = gzip.compress("".join(f"{line}\n" for line in lines).encode())
            (text / f"part-{number}.{side}.gz").write_bytes(packed)
    write_lines(text / "table", [f"0\t{line}" for line in SECOND])
    parts = {"source": "part-*.src.gz", "target": "part-*.tgt.gz"}
    config = make_student(train=[parts, {"tsv": "table", "columns": [2, 1], "weight": 3}])
    distill(config, teacher)
    folder = folder_of(config)
    assert lines_of(folder / "corpus-1.source") == [line for line in [*FIRST, *SECOND] if line.strip()]
    assert lines_of(folder / "corpus-2.source") == SECOND
    assert lines_of(folder / "corpus-2.target") == translations(teacher, SECOND)
    found = load_config(folder / "student.yaml").data.train
    assert [(corpus.tsv, corpus.columns, corpus.weight) for corpus in found] == [(None, (1, 2), 1), (None, (1, 2), 3)]


def test_the_tag_of_a_corpus_stands_before_its_lines_for_the_teacher_alone(
    make_student: Make, tiny_run: Path, tmp_path: Path
) -> None:
    extend(tiny_run, tmp_path / "larger", [], ["<2a>", "<2b>"])
    teacher = Teacher(tmp_path / "larger", GREEDY)
    train = [{"source": "b.src", "target": "b.tgt", "tag": tag} for tag in ("<2a>", "<2b>")]
    config = make_student(train=train)
    distill(config, teacher)
    for number, tag in ((1, "<2a>"), (2, "<2b>")):
        assert lines_of(folder_of(config) / f"corpus-{number}.source") == SECOND
        assert lines_of(folder_of(config) / f"corpus-{number}.target") == translations(teacher, SECOND, tag)
    found = load_config(folder_of(config) / "student.yaml").data.train
    assert [corpus.tag for corpus in found] == ["<2a>", "<2b>"]
    before = texts(folder_of(config))
    for folder, fresh in ((tmp_path / "new", False), (folder_of(config), True)):
        with pytest.raises(MtkitError, match="tag <2a>: the model does not know it"):
            distill(config, Teacher(tiny_run, GREEDY), folder, fresh=fresh)
    assert texts(folder_of(config)) == before
    distill(config, teacher, tmp_path / "new")  # nothing had been translated there


def test_long_lines_and_lines_without_a_translation_are_told_of_and_counted(
    make_student: Make, text: Path, teacher: Teacher, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [*SECOND, " ".join(LINES), SECOND[0], " ".join(reversed(LINES))]
    write_lines(text / "long.src", lines)
    write_lines(text / "long.tgt", ["0"] * len(lines))
    config = make_student(train=[{"source": "long.src", "target": "long.tgt"}])
    report = distill(config, teacher)
    told = "is too long for the teacher, and is translated in parts"
    assert f"data.train[0], line 12 {told}; further ones are counted\n" in capsys.readouterr().err
    assert f"2 lines, each of which {told}" in report.splitlines()
    assert lines_of(folder_of(config) / "corpus-1.source") == lines
    write_lines(text / "long.src", ["one two"])
    write_lines(text / "long.tgt", ["0"])
    # There are fewer pieces than a translation must have, and none may come twice.
    impossible = ["no_repeat_ngram=1", "min_length=500", "max_length_extra=600"]
    nothing = Teacher(teacher.path, [*GREEDY, *(f"decoding.{setting}" for setting in impossible)])
    report = distill(config, nothing, text / "nothing")
    assert "data.train[0], line 1 has no translation" in capsys.readouterr().err
    assert report.splitlines()[2] == "1 line left out: 0 blank, 1 with a blank translation"
    assert lines_of(text / "nothing" / "corpus-1.source") == lines_of(text / "nothing" / "corpus-1.target") == []


def test_a_pair_whose_translation_is_blank_is_left_out_on_both_sides(
    student: Config, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = translations(teacher, SECOND)
    gone = whole[3]

    def blanked(self: Translator, tokens: Any, unknown: Any = None) -> list[str]:
        return [" " if found == gone else found for found in decode(self, tokens, unknown)]

    from mtkit.text.tokenizer import Tokenizer

    decode: Any = Tokenizer.decode_target
    monkeypatch.setattr(Tokenizer, "decode_target", blanked)
    report = distill(student, teacher)
    kept = [(line, found) for line, found in zip(SECOND, whole, strict=True) if found != gone]
    assert lines_of(folder_of(student) / "corpus-2.source") == [line for line, _ in kept]
    assert lines_of(folder_of(student) / "corpus-2.target") == [found for _, found in kept]
    assert "2 lines left out: 1 blank, 1 with a blank translation" in report.splitlines()


# Interruptions.


@pytest.fixture
def whole(student: Config, teacher: Teacher, tmp_path: Path) -> dict[str, bytes]:
    """The files that an uninterrupted call writes to the default folder."""
    distill(student, teacher)
    shutil.move(folder_of(student), tmp_path / "whole")
    return texts(tmp_path / "whole")


def on_call(number: int) -> Callable[[Any], bool]:
    """A condition for doing(): true at the call with this number, from 1."""
    calls = iter(range(1, 1000))
    return lambda _: next(calls) == number


def test_work_that_was_killed_anywhere_goes_on_to_the_same_bytes(
    student: Config, teacher: Teacher, whole: dict[str, bytes]
) -> None:
    kills = [(stage._GrowingFile, "append", number) for number in (1, 2, 4)]
    kills += [(stage._Record, "save", number) for number in (1, 2, 3, 1)]
    kills += [(Translator, "translate_lines", 1), (stage, "_write_student", 1)]
    for owner, name, number in kills:
        with pytest.raises(Killed), doing(kill, owner, name, on_call(number)):
            distill(student, teacher)
        if name != "_write_student":  # a kill may leave a part of what was being written
            with (folder_of(student) / "corpus-1.target").open("ab") as file:
                file.write(b"half a li")
    report = distill(student, teacher)
    assert texts(folder_of(student)) == whole
    assert report.splitlines()[1:3] == [
        f"31 pairs in {folder_of(student)}",
        "1 line left out: 1 blank, 0 with a blank translation",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_sigkill_costs_at_most_a_chunk(
    student: Config, teacher: Teacher, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "student.yaml").write_text(config_text(student), "utf-8")
    words = ["distill", str(tmp_path / "student.yaml"), "--teacher", str(teacher.path), "--beam-size", "1"]
    with doing(lambda: os.kill(os.getpid(), signal.SIGKILL), stage._Record, "save", on_call(4)):
        assert Forked([*MTKIT, *words]).wait() == -signal.SIGKILL
    done = json.loads((folder_of(student) / "distilled.json").read_text("utf-8"))["corpora"]
    assert [corpus["done"] for corpus in done] == [14, 0]
    seen: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        translate: Any = Translator.translate_lines
        patch.setattr(
            Translator,
            "translate_lines",
            lambda self, lines, **more: seen.append(lines) or translate(self, lines, **more),
        )
        distill(student, teacher)
    assert sum(map(len, seen)) == 32 - 14
    assert texts(folder_of(student)) == whole
    assert "going on after 14 of 32 lines" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_ends_the_work_with_one_line_that_tells_how_far_it_is(
    student: Config, teacher: Teacher, whole: dict[str, bytes]
) -> None:
    with (
        pytest.raises(
            StoppedError,
            match=r"^stopped by SIGINT; 7 lines are translated; the same command, without",
        ) as end,
        doing(interrupt, Translator, "translate_lines", on_call(2)),
        ended_by_signal(),
    ):
        distill(student, teacher)
    assert end.value.code == 130
    distill(student, teacher)
    assert texts(folder_of(student)) == whole


def test_finished_work_is_not_done_again_and_needs_no_model(student: Config, teacher: Teacher) -> None:
    distill(student, teacher)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder_of(student).iterdir()}
    before.pop(folder_of(student) / ".lock")
    with doing(kill, stage, "load", always):
        report = distill(student, teacher)
    assert report.splitlines()[0].startswith(f"{folder_of(student)} is finished already: 32 lines translated in ")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


# What does not fit.


@pytest.mark.parametrize("is_finished", [False, True])
def test_other_settings_of_decoding_another_teacher_and_other_text_are_refused_until_fresh_is_given(
    make_student: Make, text: Path, teacher: Teacher, tiny_run: Path, tmp_path: Path, is_finished: bool
) -> None:
    student = make_student()
    if is_finished:
        distill(student, teacher)
    else:
        with pytest.raises(Killed), doing(kill, stage._Record, "save", on_call(3)):
            distill(student, teacher)
    folder = folder_of(student)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    extend(tiny_run, tmp_path / "larger", [], ["<2a>"])
    for other, changed in (
        (Teacher(tiny_run, ["decoding.beam_size=3"]), r"decoding\.beam_size was 1, is 3"),
        (Teacher(tiny_run, GREEDY, "fp64"), "--precision was fp32, is fp64"),
        (Teacher(tmp_path / "larger", GREEDY), "the teacher has other weights"),
        (Teacher(tiny_run, GREEDY, ensemble=[tiny_run]), "the teacher has other weights"),
    ):
        with pytest.raises(CheckpointError, match=rf"{folder.name}: was made otherwise: {changed}\. .*--fresh"):
            distill(student, other)
    for config, changed in (
        (make_student(train=[{"source": "a.src", "target": "a.tgt"}]), r"data\.train listed 2 corpora, lists 1"),
        (
            make_student(train=[{"source": f"{name}.src", "target": f"{name}.tgt"} for name in "bb"]),
            r"the source of data\.train\[0\] is other text",
        ),
        (
            make_student(train=[{"source": f"{name}.src", "target": f"{name}.tgt", "tag": "<x>"} for name in "ab"]),
            r"data\.train\.tags was \[null, null\], is \[<x>, <x>\]",
        ),
    ):
        with pytest.raises(CheckpointError, match=changed):
            distill(config, teacher)
    after = {path: path.read_bytes() for path in folder.iterdir()}
    after[folder / ".lock"] = before[folder / ".lock"]
    assert after == before
    # What changes no translation may change.
    free = Teacher(tiny_run, [*GREEDY, "decoding.batch_tokens=500", "device=cpu"])
    distill(make_student(max_length=20), free)
    other = Teacher(tiny_run, ["decoding.beam_size=3"])
    distill(student, other, fresh=True)
    assert lines_of(folder / "corpus-2.target") == translations(other, SECOND)


def test_text_that_changed_is_refused_until_it_is_as_before(student: Config, text: Path, teacher: Teacher) -> None:
    distill(student, teacher)
    source = text / "b.src"
    was = source.read_bytes()
    source.write_bytes(was + b"one two\n")
    with pytest.raises(CheckpointError, match=r"the source of data\.train\[1\] is other text"):
        distill(student, teacher)
    source.write_bytes(was)
    (text / "b.tgt").write_bytes(b"0\n" * 3)  # the target side is not read
    assert "is finished already" in distill(student, teacher)


@pytest.mark.parametrize("name", ["corpus-1.source", "corpus-2.target"])
def test_files_that_changed_are_told_of(student: Config, teacher: Teacher, name: str) -> None:
    distill(student, teacher)
    path = folder_of(student) / name
    was = path.read_bytes()
    for content in (was + b"more\n", was[:-5], was.replace(b"e", b"f", 1).replace(b"1", b"2", 1), None):
        path.write_bytes(content) if content is not None else path.unlink()
        with pytest.raises(DataError, match=rf"{name}: not as mtkit distill wrote it; .*--fresh"):
            distill(student, teacher)
    path.write_bytes(was)
    distill(student, teacher)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1}', b'{"format": 1, "corpora": [3], "made_from": {}}'])
def test_a_damaged_record_is_told_of(student: Config, teacher: Teacher, content: bytes) -> None:
    distill(student, teacher)
    whole = texts(folder_of(student))
    (folder_of(student) / "distilled.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"distilled\.json: damaged; begin anew with --fresh"):
        distill(student, teacher)
    distill(student, teacher, fresh=True)
    assert texts(folder_of(student)) == whole


def test_files_of_others_are_not_overwritten(student: Config, teacher: Teacher, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "student.yaml").write_text("name: mine\n", "utf-8")
    for fresh in (False, True):
        with pytest.raises(CheckpointError, match=r"mine: holds student\.yaml but no distilled\.json"):
            distill(student, teacher, folder, fresh=fresh)
    assert (folder / "student.yaml").read_text("utf-8") == "name: mine\n"


def test_a_teacher_of_other_languages_is_refused(student: Config, teacher: Teacher) -> None:
    reverse = student.model_copy(
        update={"languages": student.languages.model_copy(update={"source": "digits", "target": "en"})}
    )
    with pytest.raises(
        ConfigError, match=r"translates en to digits, and languages\.source is digits; wants a teacher .* digits to en$"
    ):
        distill(reverse, teacher)
    assert not folder_of(student).exists()
    region = student.languages.model_copy(update={"source": "en_GB"})
    distill(student.model_copy(update={"languages": region}), teacher)


def test_text_without_lines_is_refused(make_student: Make, text: Path, teacher: Teacher) -> None:
    for name in ("c.src", "c.tgt"):
        (text / name).touch()
    empty = {"source": "c.src", "target": "c.tgt"}
    with pytest.raises(DataError, match=r"data\.train: its files hold no lines"):
        distill(make_student(train=[empty]), teacher)
    with pytest.raises(ConfigError, match=r"data\.train is empty"):
        distill(make_student(train=[]), teacher)
    config = make_student(train=[empty, {"source": "b.src", "target": "b.tgt"}])
    distill(config, teacher)
    assert (folder_of(config) / "corpus-1.source").read_bytes() == b""
    assert lines_of(folder_of(config) / "corpus-2.source") == SECOND
