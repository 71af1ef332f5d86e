"""Lines are read exactly, and what cannot be read is told in one line."""

import gzip
import io
import lzma
import os
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from mtkit.errors import DataError
from mtkit.text.lines import decode_lines, fingerprint, read_columns, read_lines, read_pairs
from mtkit.text.packing import PACKER_NAMES, PACKERS, open_to_read, open_to_write

if sys.version_info >= (3, 14):
    from compression import zstd

    pack_zst = partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1})
else:
    import zstandard

    pack_zst = zstandard.ZstdCompressor(write_checksum=True).compress

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": pack_zst}


def lines_of(path: Path, raw: bytes) -> list[str]:
    path.write_bytes(raw)
    return list(read_lines(path))


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"\n\n", ["", ""]),
        (b"a", ["a"]),
        (b"a\nb", ["a", "b"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\nb\rc\n", ["a\r", "b\rc"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n", [""]),
        ("a\u2028b\u0085c\fd\x00e\x1cf\vg\n".encode(), ["a\u2028b\u0085c\fd\x00e\x1cf\vg"]),
    ],
)
def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path, raw, lines):
    assert lines_of(tmp_path / "text", raw) == lines
    for ending, pack in PACK.items():
        assert lines_of(tmp_path / f"text{ending}", pack(raw)) == lines
    assert list(decode_lines(io.BytesIO(raw))) == [(line, False) for line in lines]


def test_a_file_is_streamed(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"first\n" + b"\xff\n")
    assert next(read_lines(path)) == "first"


def test_bytes_that_are_not_utf_8_are_told_with_line_and_column(tmp_path):
    path = tmp_path / "latin1"
    with pytest.raises(DataError) as raised:
        lines_of(path, "fine\n\u00fcber caf".encode() + b"\xe9!\n")
    assert str(raised.value) == f"{path}:2: not valid UTF-8 (byte 0xe9 at column 9); convert the file to UTF-8"


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"missing\.txt: no such file"):
        list(read_lines(tmp_path / "missing.txt"))
    with pytest.raises(DataError, match=r"missing\.txt: no such file"):
        fingerprint(tmp_path / "missing.txt")


def test_a_directory_is_told(tmp_path):
    with pytest.raises(DataError, match="is a directory; a text file is wanted"):
        list(read_lines(tmp_path))


def test_a_path_through_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        list(read_lines(tmp_path / "file" / "text"))


@pytest.mark.parametrize("ending", sorted(PACKERS))
@pytest.mark.parametrize("damage", ["cut", "changed", "plain"])
def test_a_damaged_packed_file_is_told(tmp_path, damage, ending):
    packed = PACK[ending](os.urandom(1000).hex().encode() + b"\n")
    middle = len(packed) // 2
    flipped = packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :]
    raw = {"cut": packed[:middle], "changed": flipped, "plain": b"just text\n"}[damage]
    message = rf"text{ending}: damaged or not {PACKER_NAMES[ending]} \(.+\); compress it again or rename it"
    with pytest.raises(DataError, match=message):
        lines_of(tmp_path / f"text{ending}", raw)


@pytest.mark.parametrize("ending", sorted(PACKERS))
def test_a_packed_file_cut_off_anywhere_is_told(tmp_path, ending):
    packed = PACK[ending](b"one\ntwo\nthree\n")
    for end in range(1, len(packed)):
        with pytest.raises(DataError, match="damaged or not"):
            lines_of(tmp_path / f"text{ending}", packed[:end])


@pytest.mark.parametrize("ending", sorted(PACKERS))
def test_packed_files_one_after_the_other_are_one_text(tmp_path, ending):
    lines = [os.urandom(20).hex() for _ in range(20_000)]
    raw = "".join(f"{line}\n" for line in lines).encode()
    pieces = [raw[: len(raw) // 3], raw[len(raw) // 3 :], b"end"]
    assert lines_of(tmp_path / f"text{ending}", b"".join(map(PACK[ending], pieces))) == [*lines, "end"]


@pytest.mark.parametrize("ending", sorted(PACKERS))
def test_what_is_packed_is_what_is_unpacked(tmp_path, ending):
    raw = os.urandom(300_000)
    with open_to_write(tmp_path / "part", tmp_path / f"text{ending}") as stream:
        stream.write(raw)
    (tmp_path / "part").rename(tmp_path / f"text{ending}")
    with open_to_read(tmp_path / f"text{ending}") as stream:
        assert stream.read() == raw
    assert (tmp_path / f"text{ending}").read_bytes() != raw


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has its own")
@pytest.mark.parametrize("mode", ["read", "write"])
def test_zst_without_its_package_names_the_extra(tmp_path, monkeypatch, mode):
    path = tmp_path / "text.zst"
    path.write_bytes(PACK[".zst"](b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError) as raised:
        list(read_lines(path)) if mode == "read" else open_to_write(path, path)
    assert str(raised.value) == (
        f"{path}: .zst files want the package zstandard; install it with pip install 'mtkit[zstd]'"
    )


def test_damaged_lines_of_a_stream_are_replaced_and_marked():
    stream = io.BytesIO(b"good\nb\xe9d\n\xf0\x9f\ngood")
    assert list(decode_lines(stream)) == [("good", False), ("b\ufffdd", True), ("\ufffd", True), ("good", False)]


def test_a_line_of_a_pipe_comes_before_the_next_is_written():
    read_end, write_end = os.pipe()
    seen = threading.Event()
    seen_in_time = []

    def write() -> None:
        os.write(write_end, b"one\n")
        seen_in_time.append(seen.wait(timeout=60))
        os.write(write_end, b"two")
        os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(read_end, "rb") as stream:
        lines = decode_lines(stream)
        assert next(lines) == ("one", False)
        seen.set()
        assert list(lines) == [("two", False)]
    writer.join()
    assert seen_in_time == [True]


def test_pairs_are_line_n_with_line_n(tmp_path):
    (tmp_path / "a").write_bytes(b"1\n\n3\n")
    (tmp_path / "b").write_bytes(b"one\ntwo\nthree")
    assert list(read_pairs(tmp_path / "a", tmp_path / "b")) == [("1", "one"), ("", "two"), ("3", "three")]


@pytest.mark.parametrize(("num_source", "num_target"), [(1200, 1199), (1199, 1200), (0, 3), (3, 0), (1500, 2)])
def test_unequal_line_counts_are_told_with_both_numbers(tmp_path, num_source, num_target):
    source, target = tmp_path / "a.fr", tmp_path / "b.en"
    source.write_text("x\n" * num_source)
    target.write_text("y\n" * num_target)
    with pytest.raises(DataError) as raised:
        list(read_pairs(source, target))
    assert str(raised.value) == (
        f"{source} has {num_source:,} lines but {target} has {num_target:,}; line n must translate line n"
    )


def test_columns_are_told_by_tabs_alone(tmp_path):
    path = tmp_path / "pairs.tsv.gz"
    path.write_bytes(gzip.compress(b'1\tone\tun\n"2\t"two" \t\n\t\tx\tmore\r\n'))
    assert list(read_columns(path, 1, 2)) == [("1", "one"), ('"2', '"two" '), ("", "")]
    assert list(read_columns(path, 3, 1)) == [("un", "1"), ("", '"2'), ("x", "")]


def test_a_line_without_the_column_is_told_with_its_number(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"1\tone\n2 two\n3\tthree\n")
    with pytest.raises(DataError) as raised:
        list(read_columns(path, 1, 2))
    assert str(raised.value) == f"{path}:2: has 1 of 2 columns; wants a tab between one and the next"
    with pytest.raises(DataError, match=r"pairs\.tsv:1: has 2 of 3 columns"):
        list(read_columns(path, 3, 1))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_a_pipe_is_refused_where_text_is_read_more_than_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is a pipe; a file is wanted, which can be read more than once"):
        fingerprint(tmp_path / "pipe")


def test_a_fingerprint_is_of_the_bytes(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"")
    assert fingerprint(path) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.write_bytes(b"a\r\n")
    assert fingerprint(path) != "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
