"""Lines are read exactly, and what cannot be read is reported in one line."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from mtkit.errors import DataError
from mtkit.text import lines
from mtkit.text.lines import (
    COMPRESSIONS,
    compressed_fingerprint,
    decode_blocks,
    decode_lines,
    fingerprint,
    open_to_read,
    open_to_write,
    read_columns,
    read_lines,
    read_pairs,
)

if sys.version_info >= (3, 14):
    from compression import zstd

    compress_zst = partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1})
else:
    import zstandard

    compress_zst = zstandard.ZstdCompressor(write_checksum=True).compress

COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zst}


def make_zip(raw: bytes, *more: tuple[str, bytes]) -> bytes:
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", raw)
        for name, content in more:
            archive.writestr(name, content)
    return compressed.getvalue()


def make_tar(raw: bytes, format_: int = tarfile.PAX_FORMAT) -> bytes:
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w", format=format_) as archive:
        member = tarfile.TarInfo("text")
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
    return compressed.getvalue()


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
def test_a_line_ends_at_a_line_feed_and_nowhere_else(tmp_path, raw, lines, monkeypatch):
    assert lines_of(tmp_path / "text", raw) == lines
    for ending, compress in COMPRESS.items():
        assert lines_of(tmp_path / f"text{ending}", compress(raw)) == lines
    assert list(decode_lines(io.BytesIO(raw))) == [(line, False) for line in lines]
    monkeypatch.setattr("mtkit.text.lines.BLOCK_BYTES", 2)
    assert [line for block, _ in decode_blocks(io.BytesIO(raw)) for line in block] == lines


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


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_file_is_told(tmp_path, damage, ending):
    compressed = COMPRESS[ending](os.urandom(1000).hex().encode() + b"\n")
    middle = len(compressed) // 2
    flipped = compressed[:middle] + bytes([compressed[middle] ^ 0xFF]) + compressed[middle + 1 :]
    raw = {"cut": compressed[:middle], "changed": flipped}[damage]
    message = rf"text{{0}}: damaged {COMPRESSIONS[ending].name} \(.+\); make or fetch it again$"
    for name in (f"text{ending}", "text"):
        with pytest.raises(DataError, match=message.replace("{0}", name.removeprefix("text"))):
            lines_of(tmp_path / name, raw)


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
def test_a_compressed_file_cut_off_anywhere_is_told(tmp_path, ending):
    compressed = COMPRESS[ending](b"one\ntwo\nthree\n")
    for end in range(1, len(compressed)):
        with pytest.raises(DataError, match=f"damaged {COMPRESSIONS[ending].name}"):
            lines_of(tmp_path / f"text{ending}", compressed[:end])


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
def test_compressed_files_one_after_the_other_are_one_text(tmp_path, ending):
    lines = [os.urandom(20).hex() for _ in range(20_000)]
    raw = "".join(f"{line}\n" for line in lines).encode()
    pieces = [raw[: len(raw) // 3], raw[len(raw) // 3 :], b"end"]
    assert lines_of(tmp_path / f"text{ending}", b"".join(map(COMPRESS[ending], pieces))) == [*lines, "end"]


@pytest.mark.parametrize("ending", sorted(COMPRESSIONS))
def test_what_is_compressed_is_what_is_decompressed(tmp_path, ending):
    raw = os.urandom(300_000)
    with open_to_write(tmp_path / "part", tmp_path / f"text{ending}") as stream:
        stream.write(raw)
    (tmp_path / "part").rename(tmp_path / f"text{ending}")
    with open_to_read(tmp_path / f"text{ending}") as stream:
        assert stream.read() == raw
    assert (tmp_path / f"text{ending}").read_bytes() != raw


@pytest.mark.parametrize("name", ["text", "text.gz", "text.GZ", "text.bz2", "text.xz", "text.zst", "text.txt"])
def test_what_a_file_holds_decides_how_it_is_read_and_not_its_name(tmp_path, name):
    raw = "".join(f"{number} \u00e9\n" for number in range(2000)).encode()
    lines = raw.decode().splitlines()
    assert lines_of(tmp_path / name, raw) == lines
    assert lines_of(tmp_path / name, b"") == []
    for compress in (*COMPRESS.values(), make_zip):
        assert lines_of(tmp_path / name, compress(raw)) == lines
        assert lines_of(tmp_path / name, compress(b"")) == []
    assert lines_of(tmp_path / name, lzma.compress(raw, lzma.FORMAT_ALONE)) == lines
    assert lines_of(tmp_path / name, gzip.compress(bz2.compress(raw))) == lines
    assert lines_of(tmp_path / name, make_zip(gzip.compress(raw))) == lines


def test_the_one_file_of_a_zip_archive_may_have_folders_and_what_macos_adds_beside_it(tmp_path):
    path = tmp_path / "text.zip"
    compressed = make_zip(b"a\nb\n", ("folder/", b""), ("__MACOSX/._text", b"\0\5\26\7"))
    assert lines_of(path, compressed) == ["a", "b"]


def encrypted(compressed: bytes) -> bytes:
    """The zip archive, its only file flagged as encrypted."""
    raw = bytearray(compressed)
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (make_zip(b"a\n", ("more", b"b\n")), "a zip archive of 2 files"),
        (b"PK\x05\x06" + bytes(18), "a zip archive of 0 files"),
        (encrypted(make_zip(b"a\n")), "an encrypted zip archive"),
        (
            gzip.compress(make_zip(b"a\n")),
            "a zip archive, compressed with gzip",
        ),
        (make_tar(b"a\n"), "a tar archive"),
        (make_tar(b"a\n", tarfile.USTAR_FORMAT), "a tar archive"),
        (make_tar(b"a\n", tarfile.GNU_FORMAT), "a tar archive"),
        (gzip.compress(make_tar(b"a\n")), "a tar archive, compressed with gzip"),
        (bz2.compress(make_tar(b"a\n")), "a tar archive, compressed with bzip2"),
        (lzma.compress(make_tar(b"a\n")), "a tar archive, compressed with xz"),
        (compress_zst(make_tar(b"a\n")), "a tar archive, compressed with zstd"),
        (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100), "a 7z archive"),
        (b"Rar!\x1a\x07\x01\0" + bytes(100), "a RAR archive"),
        (b"!<arch>\ndebian-binary", "an ar archive"),
        (b"\x04\x22\x4d\x18" + bytes(100), "compressed with lz4"),
        (b"LZIP\x01" + bytes(100), "compressed with lzip"),
        (b"\x1f\x9d\x90" + bytes(100), "compressed with compress (.Z)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "raw",  # gzip output contains the time
)
@pytest.mark.parametrize("name", ["text", "text.gz", "text.tgz", "text.txt"])
def test_an_archive_is_refused_by_name(tmp_path, raw, what, name):
    for read in (lambda path: lines_of(path, raw), fingerprint):
        with pytest.raises(DataError) as raised:
            read(tmp_path / name)
        assert str(raised.value) == (
            f"{tmp_path / name}: is {what}, no text file; unpack it, and name the text files in it"
        )


def test_a_damaged_zip_archive_is_told(tmp_path):
    compressed = make_zip(os.urandom(1000).hex().encode())
    middle = len(compressed) // 3
    changed = compressed[:middle] + bytes([compressed[middle] ^ 0xFF]) + compressed[middle + 1 :]
    for raw in (compressed[:-30], changed):
        with pytest.raises(DataError, match=r"text\.zip: damaged zip \(.+\); make or fetch it again$"):
            lines_of(tmp_path / "text.zip", raw)


def test_a_file_that_is_neither_what_its_name_says_nor_text_is_told(tmp_path):
    for ending, compress in COMPRESS.items():
        path = tmp_path / f"text{ending}"
        with pytest.raises(DataError) as raised:
            lines_of(path, b"\xff\rx\rx" + compress(os.urandom(1000))[1:].replace(b"\n", b""))  # not old Mac line ends
        name = COMPRESSIONS[ending].name
        assert str(raised.value) == f"{path}: neither {name}, as its name says, nor UTF-8 text; make or fetch it again"


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_unicode_are_told(tmp_path, name):
    with pytest.raises(DataError) as raised:
        lines_of(tmp_path / "text", "Ein Satz.\nNoch einer.\n".encode(name))
    name = name.upper().replace("16-", "16")
    assert str(raised.value) == f"{tmp_path / 'text'}: is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8 FILE"


OLD_MAC = "which must be the line ends of an old Mac; convert them to line feeds, for example with mac2unix"


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"a\rb", ": found 1 carriage return within one line"),
        (b"a\rb\rc\r", ": found 2 carriage returns within one line"),
        (b"a\rb\rc\n", ": found 2 carriage returns within one line"),
        (b"a\rb\r\rc\rd\nx\r\ny\n", ": found 4 carriage returns within 3 lines"),
        (b"x\n" * 500 + b"a\r" * 499, ":501: found 498 carriage returns within one line"),
        (b"a\r" * 499 + b"x\n" * 500, ":1: found 499 carriage returns within one line"),
    ],
)
def test_line_ends_of_an_old_mac_are_told(tmp_path, raw, told):
    path = tmp_path / "text"
    for compressed in (raw, gzip.compress(raw)):
        with pytest.raises(DataError) as raised:
            lines_of(path, compressed)
        assert str(raised.value) == f"{path}{told}, {OLD_MAC}"


@pytest.mark.parametrize(
    "raw",
    [
        b"a\r",
        b"a\rb\n",
        b"a\r\r\n" * 1000,  # \r\n written in text mode on Windows
        b"a\rb\n" * 1000,
        b"a\n" * 1000 + b"x\r" * 99 + b"\n",
        b"a\n" * 100_000 + b"x\r" * 500 + b"\n",
    ],
)
def test_carriage_returns_within_lines_of_an_otherwise_normal_file_are_text(tmp_path, raw):
    lines = [line.removesuffix("\r") for line in raw.decode().removesuffix("\n").split("\n")]
    assert lines_of(tmp_path / "text", raw) == lines


@pytest.mark.parametrize("mac_side", ["a", "b", "both"])
def test_line_ends_of_an_old_mac_are_told_of_either_side_of_pairs(tmp_path, mac_side):
    for name in ("a", "b"):
        end = b"\r" if mac_side in (name, "both") else b"\n"
        (tmp_path / name).write_bytes(b"word" + end + b"word" + end + b"word" + end)
    with pytest.raises(DataError) as raised:
        list(read_pairs(tmp_path / "a", tmp_path / "b"))
    name = "a" if mac_side == "both" else mac_side
    assert str(raised.value) == f"{tmp_path / name}: found 2 carriage returns within one line, {OLD_MAC}"


def test_line_ends_of_an_old_mac_are_told_of_a_file_of_columns(tmp_path):
    (tmp_path / "pairs.tsv").write_bytes(b"1\tone\r2\ttwo\r3\tthree\r")
    with pytest.raises(DataError, match=r"pairs\.tsv: found 2 carriage returns within one line, which must be"):
        list(read_columns(tmp_path / "pairs.tsv", 1, 2))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has its own")
@pytest.mark.parametrize("mode", ["read", "write"])
def test_zst_without_its_package_names_the_extra(tmp_path, monkeypatch, mode):
    path = tmp_path / "text.zst"
    path.write_bytes(COMPRESS[".zst"](b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError) as raised:
        list(read_lines(path)) if mode == "read" else open_to_write(path, path)
    assert str(raised.value) == (
        f"{path}: .zst files want the package zstandard; install it with pip install 'mtkit[zstd]'"
    )


def test_damaged_lines_of_a_stream_are_replaced_and_marked():
    raw = b"good\nb\xe9d\n\xf0\x9f\ngood"
    assert list(decode_blocks(io.BytesIO(raw))) == [(["good", "b\ufffdd", "\ufffd", "good"], [1, 2])]
    assert list(decode_lines(io.BytesIO(raw))) == [
        ("good", False),
        ("b\ufffdd", True),
        ("\ufffd", True),
        ("good", False),
    ]


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


@pytest.mark.parametrize("compress", [None, gzip.compress, bz2.compress, lzma.compress, compress_zst])
@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_a_pipe_is_decompressed_without_waiting_for_more_than_has_come(tmp_path, compress):
    os.mkfifo(tmp_path / "pipe")
    seen = threading.Event()
    seen_in_time = []

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as stream:
            for raw in [b"one\n"] if compress is None else compress(b"one\n") + compress(b""):
                stream.write(raw if compress is None else bytes([raw]))  # compressed data byte by byte
            seen_in_time.append(seen.wait(timeout=60))
            stream.write(b"two\n" if compress is None else compress(b"two\n"))

    writer = threading.Thread(target=write)
    writer.start()
    with open_to_read(tmp_path / "pipe") as stream:
        lines = decode_lines(stream)
        assert next(lines) == ("one", False)
        seen.set()
        assert list(lines) == [("two", False)]
    writer.join()
    assert seen_in_time == [True]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_archives_are_refused_in_a_pipe_too(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for raw, what in ((make_tar(b"a\n"), "a tar archive"), (make_zip(b"a\n"), "a zip archive")):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(raw,))
        writer.start()
        with pytest.raises(DataError, match=f"pipe: is {what}"):
            list(read_lines(tmp_path / "pipe"))
        writer.join()


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


def test_a_blank_line_of_columns_is_a_blank_pair_and_at_the_end_of_the_file_nothing(tmp_path):
    path = tmp_path / "pairs.tsv"
    for end in (b"", b"\n", b"\r\n", b"\n\n", b"  \n\n"):
        path.write_bytes(b"1\tone\n2\ttwo\n" + end)
        assert list(read_columns(path, 1, 2)) == [("1", "one"), ("2", "two")]
        path.write_bytes(b"1\tone\n" + end + b"2\ttwo\n" + end)
        num_blank = end.count(b"\n")
        assert list(read_columns(path, 1, 2)) == [("1", "one"), *[("", "")] * num_blank, ("2", "two")]
    path.write_bytes(b"\n1 one\n")
    with pytest.raises(DataError, match=r"pairs\.tsv:2: has 1 of 2 columns"):
        list(read_columns(path, 1, 2))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes there")
def test_a_pipe_is_refused_where_text_is_read_more_than_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is a pipe; a file is wanted, which can be read more than once"):
        fingerprint(tmp_path / "pipe")


def test_a_fingerprint_is_of_the_decompressed_bytes(tmp_path):
    raw = b"some text\n" * 100
    (tmp_path / "text").write_bytes(raw)
    assert compressed_fingerprint(tmp_path / "text") == fingerprint(tmp_path / "text")
    for name, compressed in (("gz", gzip.compress(raw, 1)), ("gz9", gzip.compress(raw, 9)), ("zip", make_zip(raw))):
        (tmp_path / name).write_bytes(compressed)
        assert fingerprint(tmp_path / name) == fingerprint(tmp_path / "text")
        assert compressed_fingerprint(tmp_path / name) == f"sha256:{hashlib.sha256(compressed).hexdigest()}"


def test_a_fingerprint_is_of_the_bytes(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"")
    assert fingerprint(path) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    path.write_bytes(b"a\r\n")
    assert fingerprint(path) != "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("block_bytes", [1, 5, 1 << 18])
def test_blocks_that_are_decoded_together_change_nothing(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    text = "\ufeffé\n\nb\r\nc\rd\n" + "e\n" * 10 + "end"
    assert lines_of(tmp_path / "text", text.encode()) == ["é", "", "b", "c\rd", *["e"] * 10, "end"]
    read = read_lines(tmp_path / "text")
    (tmp_path / "text").write_bytes(text.encode() + b"\nok\nb\xe9\n")
    assert list(islice(read, 16))[-2:] == ["end", "ok"]
    with pytest.raises(DataError, match=r"text:17: not valid UTF-8 \(byte 0xe9 at column 2\)"):
        next(read)
