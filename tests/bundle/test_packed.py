"""A model in one file is the same model, used where it lies, and the same bytes wherever it is packed."""

import io
import json
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import mtkit
from mtkit.bundle.bundle import Member, Packed, first_difference, lay_out, open_bundle
from mtkit.bundle.info import pack
from mtkit.cli import main
from mtkit.config.settings import Config
from mtkit.errors import CheckpointError, MtkitError
from mtkit.pipeline import run_train
from tests.conftest import CorpusFiles, write_lines

BUNDLES = Path(__file__).parents[1] / "bundles"
LINES = ["one two three", "", "nine nine eight eight"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(BUNDLES / "format-2", tmp_path / "model"))


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    """The same in one file."""
    pack(folder, tmp_path / "model.mtkit")
    return tmp_path / "model.mtkit"


def told(*arguments: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit code of a command, and what it says on either stream."""
    monkeypatch.setattr(sys, "argv", ["mtkit", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one two\n")))
    with pytest.raises(SystemExit) as end:
        main()
    out, error = capsys.readouterr()
    return int(end.value.code or 0), out + error


# What is written.


def test_the_same_bundle_gives_the_same_bytes(folder: Path, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").touch()
    for number, model in enumerate((folder, copy, packed)):
        assert pack(model, tmp_path / f"{number}.mtkit") == packed.stat().st_size
        assert (tmp_path / f"{number}.mtkit").read_bytes() == packed.read_bytes()


def test_any_program_for_zips_reads_it(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(archive.namelist()) == files
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        for name in files:
            assert archive.read(name) == (folder / name).read_bytes()


@pytest.mark.parametrize("padding", range(0, 80, 8))
def test_the_numbers_of_the_weights_begin_at_a_multiple_of_64(folder: Path, padding: int, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    folder = Path(shutil.copytree(BUNDLES / "format-1", tmp_path / "model"))  # nothing there tells of the card
    (folder / "README.md").write_bytes(b"x" * (1000 + padding // 2))
    weights = (folder / "weights.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    header = weights[8 : 8 + length] + b" " * padding
    weights = struct.pack("<Q", len(header)) + header + weights[8 + length :]
    (folder / "weights.safetensors").write_bytes(weights)
    description = json.loads((folder / "bundle.json").read_bytes())
    (folder / "bundle.json").write_text(json.dumps({**description, "weights_bytes": len(weights)}))
    pack(folder, tmp_path / "model.mtkit")
    data = (tmp_path / "model.mtkit").read_bytes()
    assert (data.index(weights) + 8 + len(header)) % 64 == 0
    assert mtkit.load(tmp_path / "model.mtkit", ["device=cpu"]).translate(LINES) == ["1 2 3", "", "9 9 8 8"]


def test_files_of_more_than_4_gib_have_their_fields_and_are_read(tmp_path: Path) -> None:
    sizes = [5 << 30, 7, 3 << 30, (1 << 32) - 1, 11]
    members = [Member(f"part-{n}", size, n, align_at=8 if n % 2 else None) for n, size in enumerate(sizes)]
    layout, places, place = lay_out(members), [], 0
    path = tmp_path / "big"
    with path.open("wb") as file:  # holes, where the contents are
        for head, member in zip(layout.heads, members, strict=True):
            file.seek(place)
            file.write(head)
            places.append(place + len(head))
            place += len(head) + member.size
        file.seek(place)
        file.write(layout.tail)
    packed = Packed.open(path)
    assert [(m.name, m.size, m.crc, m.begin) for m in packed.members.values()] == [
        (m.name, m.size, m.crc, begin) for m, begin in zip(members, places, strict=True)
    ]
    assert all((begin + 8) % 64 == 0 for begin in places[1::2])
    assert first_difference(packed.data, members) is None
    assert (
        first_difference(packed.data, [*members[:-1], Member("part-4", 11, 5)]) == places[-1] - 30 - len("part-4") + 14
    )


def test_an_older_file_stays_until_the_new_one_is_whole(folder: Path, packed: Path) -> None:
    before = packed.read_bytes()
    (folder / "config.yaml").write_text("name: other\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml: changed since it was written \(12 bytes, "):
        pack(folder, packed)
    assert packed.read_bytes() == before
    assert sorted(path.name for path in packed.parent.iterdir()) == ["model", "model.mtkit"]


def test_what_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder; wants the name of a file, such as model\.mtkit$"):
        pack(folder, tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere/x: cannot be written: No such file or directory$"):
        pack(folder, tmp_path / "nowhere" / "x")


def test_the_file_is_named_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = (2, "mtkit: error: name the FILE to write, once (mtkit pack --help shows how)\n")
    assert told("pack", folder, capsys=capsys, monkeypatch=monkeypatch) == usage
    assert told("pack", folder, "a", "-o", "b", capsys=capsys, monkeypatch=monkeypatch) == usage
    for arguments in (["a"], ["-o", "b"]):
        monkeypatch.chdir(tmp_path)
        code, said = told("pack", folder, *arguments, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 0
        assert said == f"{arguments[-1]}: {(tmp_path / arguments[-1]).stat().st_size:,} bytes\n"


# What is read.


@pytest.mark.parametrize("packs", [False, True])
def test_weights_are_used_where_they_lie(folder: Path, packed: Path, packs: bool) -> None:
    bundle = open_bundle(packed if packs else folder)
    weights = bundle.weights()
    if packs:
        assert isinstance(bundle.storage, Packed)
        begin = torch.frombuffer(bundle.storage.data, dtype=torch.uint8).data_ptr()
        assert all(begin <= tensor.data_ptr() < begin + len(bundle.storage.data) for tensor in weights.values())
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in weights.values())
    assert all(place + size == after for (place, size), (after, _) in pairwise(places))
    translator = mtkit.load(bundle.path, ["device=cpu"])
    assert {name: (p.shape, p.dtype) for name, p in translator.model.named_parameters()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()
    }


@pytest.mark.parametrize("packs", [False, True])
def test_what_is_done_to_weights_in_memory_does_not_reach_the_disk(folder: Path, packed: Path, packs: bool) -> None:
    path = packed if packs else folder / "weights.safetensors"
    before = path.read_bytes()
    weights = open_bundle(packed if packs else folder).weights()
    for tensor in weights.values():
        tensor.add_(1.0)
    assert path.read_bytes() == before


def test_every_command_takes_the_file(
    folder: Path,
    packed: Path,
    corpus_files: CorpusFiles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path, lines in zip((source, target), corpus_files.lines("test"), strict=True):
        write_lines(path, lines[:6])
    for command in (
        ["translate", "MODEL", source],
        ["translate", folder, source, "--ensemble", "MODEL"],
        ["score", "MODEL", "--source", source, "--target", target],
        ["evaluate", "MODEL", "--source", source, "--reference", target, "--against", "MODEL", "--quiet"],
        ["plot", "attention", "MODEL", "--source", "one two", "-o", tmp_path / "picture.svg"],
        ["check", "MODEL"],
        ["info", "MODEL"],
        ["info", "MODEL", "--json"],
        ["pack", "MODEL", tmp_path / "again.mtkit"],
    ):
        said = []
        for model in (folder, packed):
            arguments = [model if argument == "MODEL" else argument for argument in command]
            code, text = told(*arguments, capsys=capsys, monkeypatch=monkeypatch)
            assert code == 0, text
            said.append(re.sub(r"took [\d.]+ s", "took", text.replace(str(model), "MODEL")))
        if command[0] == "info":
            assert said[0].splitlines()[5:] == said[1].splitlines()[5:]
        else:
            assert said[0] == said[1]


MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 32}


def test_training_starts_from_the_file(
    folder: Path, packed: Path, make_config: Callable[..., Config], tmp_path
) -> None:
    told_starts = []
    for number, model in enumerate((folder, packed)):
        training = {"start_from": str(model), "max_steps": 2, "validate_every": 2, "save_every": 2}
        config = make_config(tmp_path / f"run-{number}", model=MODEL, training=training, tokenizer={"vocab_size": 320})
        run_train(config)
        told_starts.append(json.loads((config.run_path / "run.json").read_text())["start_from"])
    assert told_starts[0] == told_starts[1]
    assert told_starts[0].startswith("sha256:")
    inside = make_config(tmp_path, model=MODEL, training=training, tokenizer={"vocab_size": 320})
    with pytest.raises(MtkitError, match=r"is this run itself; give the run another name$"):
        run_train(inside)


# What is refused.


def zipped(path: Path, write: Callable[[zipfile.ZipFile], None]) -> Path:
    """A zip that another program could have written."""
    with zipfile.ZipFile(path, "w") as archive:
        write(archive)
    return path


def refusal(path: Path) -> str:
    """The one line that loading ends with."""
    with pytest.raises(MtkitError) as error:
        mtkit.load(path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(f"{path}: damaged: ").removesuffix("; copy or pack the model again")


@pytest.mark.parametrize(
    "name", ["../bundle.json", "/bundle.json", "a/../../b", "a\\b", "C:x", "a//b", ".", "tokenizer/"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "zip", lambda archive: archive.writestr(zipfile.ZipInfo(name), b"{}"))
    assert refusal(path) == f"it holds {name!r}, which no file of a model is called"


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("weights.safetensors")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = zipped(tmp_path / "zip", lambda archive: archive.writestr(link, "/etc/passwd"))
    assert refusal(path) == "weights.safetensors is not a plain file"


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    def twice(archive: zipfile.ZipFile) -> None:
        archive.writestr("bundle.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("bundle.json", b"{ }")

    assert refusal(zipped(tmp_path / "zip", twice)) == "it holds bundle.json twice"


def test_what_is_compressed_is_refused(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "zip",
        lambda archive: archive.writestr("bundle.json", b"{}" * 99, compress_type=zipfile.ZIP_DEFLATED),
    )
    assert refusal(path) == "bundle.json is compressed; a model is stored as it is"


def changed(packed: Path, place: int, data: bytes) -> Path:
    content = bytearray(packed.read_bytes())
    content[place : place + len(data)] = data
    packed.write_bytes(content)
    return packed


def test_what_the_directory_says_must_be_there(packed: Path) -> None:
    data = packed.read_bytes()
    directory = data.index(b"PK\1\2")
    original = packed.read_bytes()
    for place, value, reason in (
        (8, b"\1", "bundle.json is encrypted"),
        (24, struct.pack("<I", 1 << 30), "bundle.json is compressed; a model is stored as it is"),
        (20, struct.pack("<2I", 1 << 30, 1 << 30), "bundle.json lies where something else does"),
        (42, struct.pack("<I", 5), "bundle.json is not where the directory says"),
        (42, struct.pack("<I", 1 << 30), "bundle.json is not where the directory says"),
        (46, b"x", "xundle.json is not where the directory says"),
    ):
        packed.write_bytes(original)
        assert refusal(changed(packed, directory + place, value)) == reason
    packed.write_bytes(original[:-30])
    assert refusal(packed).startswith("not a whole zip (")
    packed.write_bytes(b"PK\3\4")
    assert refusal(packed).startswith("not a whole zip (")


def test_two_files_in_one_place_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "zip", lambda archive: [archive.writestr(name, b"{}" * 50) for name in ("aa", "bb")])
    data = bytearray(path.read_bytes())
    first_entry = data.index(b"PK\1\2")
    data[first_entry + 20 : first_entry + 28] = struct.pack("<2I", 150, 150)  # the first runs into the second
    path.write_bytes(data)
    assert refusal(path) == "bb lies where something else does"


def test_a_zip_that_is_no_model_is_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "zip", lambda archive: archive.writestr("hello.txt", b"hello"))
    assert refusal(path) == f"{path}/bundle.json: damaged or missing; copy the model again"


def test_another_programs_zip_is_read_if_its_numbers_lie_at_multiples_of_their_size(
    folder: Path, tmp_path: Path
) -> None:
    def write(archive: zipfile.ZipFile) -> None:
        archive.writestr("pad", b"x" * len(found))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())

    found: list[object] = []
    while len(found) < 4:
        path = zipped(tmp_path / "zip", write)
        try:
            found.append(mtkit.load(path, ["device=cpu"]).translate(LINES))
        except CheckpointError as error:
            found.append(str(error).partition(" lies ")[2])
    told = "where the processor cannot read its numbers; copy it again"
    assert sorted(found, key=str) == [["1 2 3", "", "9 9 8 8"], told, told, told]
