"""N lines in, N lines out, whatever is in them."""

import io
import os
import sys
from pathlib import Path

import pytest

import mtkit
from mtkit.cli import main
from mtkit.commands import models
from mtkit.errors import NUM_NAMED, DataError, MtkitError
from mtkit.text.lines import COMPRESSIONS, open_to_read
from mtkit.translation.stream import parted, reading, translate, writing
from mtkit.translation.translator import Translator


@pytest.fixture(scope="module")
def translator(tiny_run: Path) -> Translator:
    return mtkit.load(tiny_run, ["decoding.beam_size=2", "decoding.max_length_extra=2", "decoding.max_length_ratio=1"])


def translated(translator: Translator, source: bytes, **options: object) -> bytes:
    out = io.BytesIO()
    translate(translator, io.BytesIO(source), out, **options)
    return out.getvalue()


def num_lines(source: bytes) -> int:
    r"""As `mtkit` counts: a `\n` ends a line, and a last line need not have one."""
    return source.count(b"\n") + (not source.endswith(b"\n") and source != b"")


SOURCES = {
    "nothing": b"",
    "one line": b"one two\n",
    "no newline at the end": b"one two\nthree four",
    "blank lines": b"\n\none two\n\n \n\t\n",
    "only newlines": b"\n" * 7,
    "nul": b"one\0two\n\0\nthree\n",
    "windows line ends": b"one two\r\n\r\nthree four\r\n",
    "old line ends": b"one\rtwo\r\r\n",
    "line and paragraph separators": "one\u2028two\u2029three\n\u2028\n".encode(),
    "next line, form feed, vertical tab": "one\u0085two\x0cthree\x0bfour\n\x0c\n".encode(),
    "file, group, record and unit separators": b"one\x1ctwo\x1dthree\x1efour\x1ffive\n",
    "byte-order mark": b"\xef\xbb\xbfone two\nthree\n",
    "only a byte-order mark": b"\xef\xbb\xbf\n",
    "invalid utf-8": b"one \xff two\n\xc3\n\xed\xa0\x80\nthree\n",
    "cut off in a character": b"one\n\xe2\x82",
    "utf-16": "one two\nthree".encode("utf-16"),
    "emoji": "👨\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽\n😀\n".encode(),
    "right to left": "مرحبا \u202e\u200f one\nשלום\n".encode(),
    "combining marks": ("Z" + "\u0363\u0351" * 40 + "\n" + "\u0301\n").encode(),
    "control characters": bytes(range(1, 10)) + bytes(range(11, 32)) + b"\x7f\n",
    "noncharacters": "\ufffe\uffff\U0010ffff\ufdd0\n".encode(),
    "the tokenizer's own marks": "▁ ▁▁ <s> </s> <unk> <0x0A> <pad>\n▁\n".encode(),
    "a long line": b"one two three four " * 500 + b"\n" + b"one\n",
    "a long line without spaces": b"onetwothree" * 500 + b"\none\n",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_n_lines_in_are_n_lines_out(translator: Translator, source: bytes) -> None:
    out = translated(translator, source)
    assert out.count(b"\n") == num_lines(source)
    assert out.endswith(b"\n") or not source
    assert b"\0" not in out
    assert b"\r" not in out
    out.decode("utf-8")


def test_every_line_of_all_of_them_together_has_the_translation_it_has_alone(translator: Translator) -> None:
    sources = [source.removeprefix(b"\xef\xbb\xbf") for source in SOURCES.values() if source]
    ended = [source if source.endswith(b"\n") else source + b"\n" for source in sources]
    assert translated(translator, b"".join(ended)) == b"".join(translated(translator, source) for source in ended)


@pytest.mark.parametrize("name", ["blns.txt", "blns.lines.txt"])
def test_naughty_strings_come_out_line_by_line(translator: Translator, name: str) -> None:
    if "MTKIT_DATA" not in os.environ:
        pytest.skip("MTKIT_DATA names no folder of corpora")
    source = (Path(os.environ["MTKIT_DATA"]) / "robustness" / name).read_bytes()
    assert translated(translator, source).count(b"\n") == num_lines(source)


def test_a_blank_line_stays_blank_and_its_neighbours_keep_their_places(translator: Translator) -> None:
    source = "".join(f"{text}\n" for text in ("two", "", " \u3000\t", "three four", "\u200b", "five"))
    lines = translated(translator, source.encode()).decode().split("\n")
    assert lines[1] == lines[2] == lines[4] == ""
    assert [lines[0], lines[3], lines[5]] == translator.translate(["two", "three four", "five"])
    assert all(lines[n] for n in (0, 3, 5))


def test_bytes_that_are_no_utf8_are_replaced_and_the_first_ten_lines_named(
    translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    translated(translator, b"one\n" + b"two \xff\n" * (NUM_NAMED + 1234))
    warnings = capsys.readouterr().err.splitlines()
    told = "is not valid UTF-8; what could not be read was replaced"
    assert warnings == [
        *(f"mtkit: warning: line {number} {told}" for number in range(2, NUM_NAMED + 2)),
        f"mtkit: warning: the same for 1,234 more lines: it {told}",
    ]


def test_carriage_returns_within_a_line_are_warned_of_and_it_stays_one_line(
    translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert translated(translator, b"one\r\ntwo\r\r\nthree\rfour\n").count(b"\n") == 3
    assert translated(translator, b"one\rtwo\rthree\r").count(b"\n") == 1
    told = (
        "has carriage returns within it, which end no line; text with the line ends of an old Mac must be converted, "
        "for example with mac2unix"
    )
    assert capsys.readouterr().err.splitlines() == [f"mtkit: warning: line {number} {told}" for number in (3, 1)]


def test_lines_too_long_for_the_model_are_warned_of(translator: Translator, capsys: pytest.CaptureFixture[str]) -> None:
    out = translated(translator, b"one\n" + b"one two three. " * 50 + b"\nfour\n")
    assert out.count(b"\n") == 3
    assert len(out.split(b"\n")[1].split()) >= 100  # none of it is lost
    [warning] = capsys.readouterr().err.splitlines()
    assert warning == "mtkit: warning: line 2 was too long for the model; translated in parts"


def test_nothing_is_said_of_lines_that_are_as_they_should_be(
    translator: Translator, capsys: pytest.CaptureFixture[str]
) -> None:
    translated(translator, b"one two\n\nthree\n")
    assert capsys.readouterr().err == ""


def test_a_score_stands_before_each_translation(translator: Translator) -> None:
    lines = translated(translator, b"one two\n\n", with_scores=True).decode().splitlines()
    wanted = [line.translations[0] for line in translator.translate_lines(["one two", ""])]
    assert lines == [f"{best.score:.4f}\t{best.text}" for best in wanted]
    assert lines[1] == "0.0000\t"


def test_several_translations_of_a_line_are_numbered_and_the_best_is_first(translator: Translator) -> None:
    lines = translated(translator, b"one two\n\nthree\n", num_best=2).decode().splitlines()
    rows = [line.split("\t") for line in lines]
    assert [number for number, _, _ in rows] == ["1", "1", "2", "3", "3"]
    best = translated(translator, b"one two\n\nthree\n").decode().split("\n")
    assert [rows[0][2], rows[2][2], rows[3][2]] == best[:3]
    assert float(rows[0][1]) >= float(rows[1][1])


class LineByLine(io.BytesIO):
    """A stream that counts the lines taken from it."""

    taken = 0

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.taken += bool(line)
        return line


def test_line_buffered_each_line_is_written_and_flushed_before_the_next_is_read(translator: Translator) -> None:
    source = LineByLine(b"one\ntwo\nthree\n")

    flushed = []

    class Out(io.BytesIO):
        def flush(self) -> None:
            flushed.append((source.taken, self.getvalue().count(b"\n")))

    translate(translator, source, Out(), line_buffered=True)
    assert flushed[:3] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
def test_a_packed_file_is_read_and_written(translator: Translator, tmp_path: Path, ending: str) -> None:
    source_path, out_path = tmp_path / f"source{ending}", tmp_path / f"out{ending}"
    with writing(source_path) as stream:
        stream.write(b"one two\nthree\n")
    with reading(source_path) as source, writing(out_path) as out:
        translate(translator, source, out)
    with open_to_read(out_path) as stream:
        assert stream.read() == translated(translator, b"one two\nthree\n")
    assert out_path.read_bytes() != translated(translator, b"one two\nthree\n")


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
def test_a_packed_file_that_is_cut_off_is_an_error(translator: Translator, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"source{ending}"
    with writing(path) as stream:
        stream.write(os.urandom(10_000))
    os.truncate(path, path.stat().st_size // 2)
    message = rf"{path}: damaged {COMPRESSIONS[ending].name} \("
    with reading(path) as source, pytest.raises(DataError, match=message):
        translate(translator, source, io.BytesIO())


def test_a_file_is_whole_when_it_appears_and_the_old_one_stays_until_then(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with writing(path) as out:
        out.write(b"new")
        out.flush()
        assert path.read_bytes() == b"old"
        assert (tmp_path / "out.part").read_bytes() == b"new"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_file_and_what_was_done_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def be_interrupted() -> None:
        with writing(path) as out:
            out.write(b"some")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert path.read_bytes() == b"old"
    assert (tmp_path / "out.part").read_bytes() == b"some"


def test_a_file_may_be_translated_in_its_own_place(translator: Translator, tmp_path: Path) -> None:
    path, link = tmp_path / "text", tmp_path / "link"
    path.write_bytes(b"one two\nthree\n")
    link.symlink_to(path)
    with reading(path) as source, writing(link) as out:
        translate(translator, source, out)
    assert link.is_symlink()
    assert path.read_bytes() == translated(translator, b"one two\nthree\n")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no /dev/null")
def test_a_device_is_written_to_and_not_replaced() -> None:
    with writing(Path("/dev/null")) as out:
        out.write(b"text")
    assert not Path("/dev/null").is_file()
    assert not Path("/dev/null.part").exists()


def test_what_cannot_be_read_or_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, told in (
        (tmp_path / "nowhere" / "out", "cannot be written: No such file or directory"),
        (tmp_path / "file" / "out", "cannot be written: Not a directory"),
        (tmp_path, "is a directory; a file to write is wanted"),
    ):
        with pytest.raises(MtkitError) as error, writing(path):
            pass
        assert str(error.value) == f"{path}: {told}"
    for path, told in ((tmp_path / "none", "no such file"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(DataError) as error, reading(path):
            pass
        assert str(error.value) == f"{path}: {told}"


# Parts of a file, for several machines.


@pytest.mark.parametrize("num_lines", [0, 1, 5, 97])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_parts_of_a_text_follow_one_another_and_are_of_equal_size(num_lines: int, count: int) -> None:
    parts = [parted(number, count, num_lines) for number in range(1, count + 1)]
    assert [index for part in parts for index in part] == list(range(num_lines))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_of_a_file_put_together_are_what_the_whole_file_gives(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    (tmp_path / "text").write_bytes(b"one\ntwo \xff\n\nthree four\n" + b"five six. " * 60 + b"\nseven")
    (tmp_path / "prefixes").write_text("9\n\n\n8\n\n\n")
    command = [
        "mtkit",
        "translate",
        tiny_run,
        tmp_path / "text",
        "--prefix",
        tmp_path / "prefixes",
        "--n-best",
        "2",
        "-q",
    ]

    def result(*options: str) -> tuple[bytes, bytes]:
        monkeypatch.setattr(sys, "argv", [*map(str, command), "--device", "cpu", "--workers", "1", "-q", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capfdbinary.readouterr()

    whole, parts = result(), [result("--part", f"{number}/4") for number in range(1, 5)]
    assert b"".join(out for out, _ in parts) == whole[0]
    assert b"\n4\t" in whole[0]
    assert all(out for out, _ in parts)
    assert sorted(line for _, error in parts for line in error.splitlines()) == sorted(whole[1].splitlines())
    assert b"line 2 is not valid UTF-8" in whole[1]
    assert b"line 5 was too long" in whole[1]


def test_a_part_of_the_lines_has_its_own_prefixes(translator: Translator) -> None:
    source, prefixes = b"one\ntwo\nthree\nfour\n", ["9", "8", "7", "6"]
    whole = translated(translator, source, prefixes=prefixes).splitlines()
    assert translated(translator, source, prefixes=prefixes, part=range(1, 3)).splitlines() == whole[1:3]
    assert [line[:1] for line in whole] == [b"9", b"8", b"7", b"6"]


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "1/0", "/", "a/b", "1/2/3"])
def test_a_part_that_there_is_not_is_told(tmp_path: Path, part: str) -> None:
    (tmp_path / "text").write_text("one\n")
    with pytest.raises(MtkitError, match=f"--part: found {part}, wants K/N, such as 2/8 for the second of eight parts"):
        models.translate(tmp_path / "no model", tmp_path / "text", part=part)


def test_standard_input_has_no_parts(tmp_path: Path) -> None:
    for file in (None, Path("-")):
        with pytest.raises(MtkitError, match="--part 1/2: wants a FILE, whose lines can be counted"):
            models.translate(tmp_path / "no model", file, part="1/2")
