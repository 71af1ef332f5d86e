"""Nothing in a model can run code, hang or end in a traceback: one line tells what is wrong."""

import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mtkit
from mtkit.bundle.bundle import (
    Folder,
    _checksum,
    all_sums,
    open_bundle,
    read_canaries,
    read_scores,
    read_tensors,
    sealed,
    tokenizer_files,
)
from mtkit.bundle.info import info_json, info_of, info_text
from mtkit.bundle.opening import start_bundle
from mtkit.config.load import config_from_text, with_sections
from mtkit.config.section import read_yaml
from mtkit.config.settings import config_text
from mtkit.errors import CheckpointError, ConfigError, MtkitError
from mtkit.models.layers import sinusoids
from mtkit.models.registry import new_model
from mtkit.text.tokenizer import Tokenizer, _Description
from mtkit.translation.stream import check

BUNDLES = Path(__file__).parents[1] / "bundles"
DEEP = 100_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that may be changed, in a folder where nothing explodes."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(BUNDLES / "format-2", tmp_path / "model"))


def put(folder: Path, name: str, content: bytes, **told: object) -> None:
    """Change a file, and all that is told of it, as one would who wants to deceive."""
    description = json.loads((folder / "bundle.json").read_bytes())
    (folder / name).write_bytes(content)
    if name == "bundle.json":
        return
    del description["sha256"]
    sums = {name: each.told for name, each in all_sums(Folder(folder)).items() if name != "bundle.json"}
    own = _checksum(tokenizer_files(Folder(folder)))
    sizes = {"weights_bytes": sums["weights.safetensors"]["bytes"], "tokenizer_sha256": own}
    (folder / "bundle.json").write_bytes(sealed({**description, **sizes, "files": sums, **told}))


def refusal(folder: Path) -> str:
    """The one line that loading ends with, and checking."""
    with pytest.raises((CheckpointError, ConfigError)) as error:
        mtkit.load(folder, ["device=cpu"])
    with pytest.raises(type(error.value)) as checked:
        check(folder, "cpu")
    assert "\n" not in str(error.value)
    assert str(checked.value) == str(error.value)
    assert not (folder.parent / "exploded").exists()
    return str(error.value)


class Bomb:
    """What pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_no_weights(folder: Path, protocol: int) -> None:
    bomb = pickle.dumps(Bomb(), protocol)
    put(folder, "weights.safetensors", bomb)
    assert refusal(folder).startswith(f"{folder / 'weights.safetensors'}: damaged: ")
    pickle.loads(bomb)
    assert Path("exploded").exists()  # it would have


def test_weights_that_torch_saved_are_no_weights(folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "weights.safetensors")
    put(folder, "weights.safetensors", (folder / "weights.safetensors").read_bytes())
    assert refusal(folder).startswith(f"{folder / 'weights.safetensors'}: damaged: its header would have ")


@pytest.mark.parametrize("name", ["bundle.json", "canaries.json", "config.yaml"])
@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_nothing_else(folder: Path, name: str, protocol: int) -> None:
    put(folder, name, pickle.dumps(Bomb(), protocol))
    with pytest.raises(MtkitError, match=rf"^{folder / name}.*$"):
        check(folder, "cpu")
    assert not Path("exploded").exists()


# Weights.


def weights(header: object, numbers: bytes = b"", length: int | None = None) -> memoryview:
    """A file of tensors as nobody should write it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(bytearray(struct.pack("<Q", len(text) if length is None else length) + text + numbers))


def tensor(**told: object) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **told}}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (memoryview(b""), "0 bytes are too few for a header"),
        (memoryview(b"1234567"), "7 bytes are too few for a header"),
        (weights(b"{}", length=3), "its header would have 3 bytes, and can have 2"),
        (
            weights(b"{}", length=(1 << 64) - 1),
            "its header would have 18,446,744,073,709,551,615 bytes, and can have 2",
        ),
        (weights(b"\xff\xfe"), "its header is not UTF-8"),
        (weights(b"{"), "its header is not JSON"),
        (weights(b""), "its header is not JSON"),
        (weights([]), "its header is not a table of tensors"),
        (weights(b'{"a": 1, "a": 2}'), "its header names something twice"),
        (weights(b"[" * DEEP), "its header is nested too deeply"),
        (weights(b'{"a":' * DEEP), "its header is nested too deeply"),
        (weights({"x": 3}), "tensor 'x' is not told by dtype, shape and data_offsets"),
        (weights({"x": {"dtype": "F32"}}), "tensor 'x' is not told by dtype, shape and data_offsets"),
        (weights(tensor(dtype="I64")), "tensor 'x' is of no type that is known: F64, F32, F16, BF16"),
        (weights(tensor(dtype=["F32"])), "tensor 'x' is of no type that is known: F64, F32, F16, BF16"),
        (weights(tensor(shape=[-2])), "tensor 'x' has no shape that a tensor can have"),
        (weights(tensor(shape=[True, 2])), "tensor 'x' has no shape that a tensor can have"),
        (weights(tensor(shape=[1e99])), "tensor 'x' has no shape that a tensor can have"),
        (weights(tensor(shape=[1] * 9 + [2])), "tensor 'x' has no shape that a tensor can have"),
        (weights(tensor(shape=[0, 1 << 70], data_offsets=[0, 0])), "tensor 'x' has no shape that a tensor can have"),
        (weights(tensor(shape=[1 << 40])), "tensor 'x' has not the bytes that its shape wants"),
        (weights(tensor(data_offsets=[8, 0])), "tensor 'x' has not the bytes that its shape wants"),
        (weights(tensor(data_offsets=[0, 4, 8])), "tensor 'x' has not the bytes that its shape wants"),
        (weights(tensor(data_offsets=[-8, 0])), "tensor 'x' has not the bytes that its shape wants"),
        (weights(tensor(), bytes(4)), "its tensors have 8 bytes, and 4 are there"),
        (weights(tensor(), bytes(12)), "its tensors have 8 bytes, and 12 are there"),
        (weights({}, bytes(1)), "its tensors have 0 bytes, and 1 are there"),
        (weights(tensor(data_offsets=[4, 12]), bytes(12)), "tensor x begins at byte 4, not at 0"),
        (
            weights({**tensor(), "y": tensor(data_offsets=[4, 12])["x"]}, bytes(12)),
            "tensor y begins at byte 4, not at 8",
        ),
        (
            weights({**tensor(), "y": tensor(data_offsets=[0, 8])["x"]}, bytes(8)),
            "tensor y begins at byte 0, not at 8",
        ),
        (
            weights({**tensor(), "y": tensor(data_offsets=[1 << 62, (1 << 62) + 8])["x"]}, bytes(16)),
            f"tensor y begins at byte {1 << 62:,}, not at 8",
        ),
    ],
)
def test_a_header_of_weights_is_right_or_refused(data: memoryview, reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_tensors(data, "file")
    assert str(error.value) == f"file: damaged: {reason}; copy it again"


def test_a_header_longer_than_any_is_refused_before_it_is_read() -> None:
    with pytest.raises(CheckpointError, match=r"its header would have 16,777,217 bytes, and can have 16,777,216;"):
        read_tensors(weights(b" " * ((1 << 24) + 1)), "file")


def test_a_header_that_is_right_is_read() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "x": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
        "y": {"dtype": "F64", "shape": [1, 1], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    found = read_tensors(weights(text + b" " * (-len(text) % 8), struct.pack("<df", 2.5, 1.5)), "file")
    assert torch.equal(found["x"], torch.tensor(1.5))
    assert torch.equal(found["y"], torch.tensor([[2.5]], dtype=torch.float64))


# Settings.


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:pathlib.Path.touch [exploded]\n",
        "name: !!python/object/apply:os.system ['touch exploded']\n",
        "!!python/object/new:pathlib.Path [exploded]\n",
        "name: !!python/name:os.system\n",
        "name: !!python/module:antigravity\n",
        '!!python/object/apply:eval [\'open("exploded", "w")\']\n',
        "name: !exploded x\n",
        "name: !!int ''\n",
        "name: !!float ''\n",
        "name: !!bool maybe\n",
        "name: !!timestamp tomorrow\n",
        "name: !!binary '*'\n",
        "name: " + "{a: " * 9999,
        "- " * 9999,
        "name: &a [*a]\n",
        "name: \0\n",
        "%YAML 9.9\n---\nname: x\n",
        "name: x\n---\nname: y\n",
    ],
)
def test_settings_build_plain_data_or_are_refused(folder: Path, text: str) -> None:
    put(folder, "config.yaml", text.encode())
    assert refusal(folder).startswith(f"{folder / 'config.yaml'}")


@pytest.mark.parametrize("depth", [1999, 200_000])  # the most that libyaml is given, and enough to overflow its stack
def test_settings_that_are_nested_too_deeply_are_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml: not valid YAML: lists or sections are nested too deeply$"):
        read_yaml('"no # comment": ' + "[" * depth, "x.yaml")  # PyYAML takes long for each


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(10 * [f'*{a}'])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_may_not_ask_for_billions_of_values() -> None:
    assert read_yaml("a: &a [x, y]\nb: *a\n", "x.yaml").data == {"a": ["x", "y"], "b": ["x", "y"]}
    with pytest.raises(ConfigError, match=r"^x\.yaml: more than 100,000 values; do its aliases repeat each other\?$"):
        read_yaml(LAUGHS, "x.yaml")


def test_text_that_is_not_what_its_tag_says_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml:2: not valid YAML: found text that is no bool$"):
        read_yaml("a: 1\nb: !!bool maybe\n", "x.yaml")


# Sizes.

SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
TRANSFORMER = {**SMALL, "architecture": "transformer", "num_heads": 2, "d_ff": 32}
RNN = {**SMALL, "architecture": "rnn"}
HUGE = 4 * 10**18


def put_model(folder: Path, model: dict[str, Any], asked: dict[str, Any]) -> None:
    """Make it a bundle of a small model whose settings ask for another one."""
    description = json.loads((folder / "bundle.json").read_bytes())
    sizes = (description["source_vocab_size"], description["target_vocab_size"])
    config = config_from_text((folder / "config.yaml").read_text("utf-8"), "config.yaml")
    small, large = (with_sections(config, {"model": settings}, "model") for settings in (model, asked))
    save_file(dict(new_model(small.model, *sizes, seed=1).named_parameters()), folder / "weights.safetensors")
    (folder / "config.yaml").write_text(config_text(large), "utf-8")
    put(folder, "weights.safetensors", (folder / "weights.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("model", "changes", "found"),
    [
        (TRANSFORMER, {"encoder_layers": 10**9}, "1,000,000,000 layers in the encoder, the weights have 1;"),
        (TRANSFORMER, {"decoder_layers": 2}, "2 layers in the decoder, the weights have 1;"),
        (TRANSFORMER, {"d_model": 10**9}, "a matrix of 1,000,000,000 x 1,000,000,000 in the encoder, and there are"),
        (TRANSFORMER, {"d_model": HUGE}, "a matrix of 4,000,000,000,000,000,000 x 4,000,000,000,000,000,000 in the"),
        (TRANSFORMER, {"d_ff": HUGE}, "a matrix of 4,000,000,000,000,000,000 x 16 in the encoder, and there are"),
        (TRANSFORMER, {"decoder_d_ff": HUGE}, "a matrix of 4,000,000,000,000,000,000 x 16 in the decoder, and there"),
        (TRANSFORMER, {"positions": "learned", "max_positions": 10**9}, "a matrix of 1,000,000,000 x 16 in the"),
        (RNN, {"encoder_layers": 10**9}, "1,000,000,000 layers in the encoder, the weights have 1;"),
        (RNN, {"decoder_layers": 10**9}, "1,000,000,000 layers in the decoder, the weights have 1;"),
        (RNN, {"d_model": 10**9}, "a matrix of 1,000,000,000 x 1,000,000,000 in the encoder, and there are"),
        (RNN, TRANSFORMER | {"encoder_layers": 3}, "3 layers in the encoder, the weights have 1;"),
    ],
    ids=lambda value: None if isinstance(value, dict) and "d_model" in value else str(value)[:40],
)
@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "mixed"])
def test_settings_that_ask_for_more_than_the_weights_hold_are_refused_before_a_model_is_built(
    folder: Path, model: dict[str, Any], changes: dict[str, Any], found: str, mixed: bool
) -> None:
    asked = {**model, **changes}
    if mixed:
        bridged = {**TRANSFORMER, "d_model": 32}
        halves = (
            [{"encoder": half, "decoder": RNN} for half in (model, asked)]
            if "encoder" in found
            else [{"encoder": bridged, "decoder": half} for half in (model, asked)]
        )
        model, asked = ({"architecture": "mixed", "tie_embeddings": "none", **half} for half in halves)
    put_model(folder, model, asked)
    assert refusal(folder).startswith(f"{folder}: the settings want {found}")  # what is built first never ends
    start = config_from_text((folder / "config.yaml").read_text("utf-8"), "", [f"training.start_from={folder}"])
    with pytest.raises(CheckpointError, match="the settings want"):
        start_bundle(start)


def test_a_model_whose_settings_and_weights_agree_is_read(folder: Path) -> None:
    bridged = {"encoder": {**TRANSFORMER, "d_model": 32, "encoder_layers": 2}, "decoder": {**RNN, "decoder_layers": 2}}
    for model in (TRANSFORMER, RNN, {"architecture": "mixed", "tie_embeddings": "none", **bridged}):
        put_model(folder, model, model)
        weights = open_bundle(folder).weights()
        loaded = dict(mtkit.load(folder, ["device=cpu"]).model.named_parameters())
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_place_of_the_first_token_takes_no_memory() -> None:
    assert torch.equal(sinusoids(3, 8, first=5), sinusoids(8, 8)[5:])
    assert sinusoids(3, 8, first=1_000_000).untyped_storage().nbytes() == 3 * 8 * 4


# JSON.


@pytest.mark.parametrize("text", [b"[" * DEEP, b'{"a":' * DEEP, b'{"format":' + b"[" * DEEP, b"9" * DEEP, b"\xff", b""])
def test_json_that_is_none_or_too_deep_is_one_line(folder: Path, text: bytes) -> None:
    put(folder, "canaries.json", text)
    with pytest.raises(CheckpointError, match=r"canaries\.json: damaged; copy the model again$"):
        check(folder, "cpu")
    put(folder, "canaries.json", (BUNDLES / "format-2" / "canaries.json").read_bytes())
    put(folder, "scores.json", text)
    assert read_scores(open_bundle(folder)) == []
    put(folder, "tokenizer/tokenizer.json", text)
    assert refusal_of_tokenizer(folder).startswith(f"{folder / 'tokenizer' / 'tokenizer.json'}: damaged; ")
    (folder / "bundle.json").write_bytes(text)
    assert refusal(folder) == f"{folder / 'bundle.json'}: damaged; copy the model again"
    with pytest.raises(CheckpointError, match=r"^x: damaged; "):
        read_canaries(text, "x", 10, 10)


def refusal_of_tokenizer(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Tokenizer.load(folder / "tokenizer")
    assert "\n" not in str(error.value)
    return str(error.value)


# The tokenizer.


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {**content, "sha256": ["tokenizer.model"]},
        lambda content: {**content, "sha256": {"../tokenizer.model": ""}},
        lambda content: {**content, "sha256": {"tokenizer.model": 7}},
        lambda content: {**content, "symbols": 7},
        lambda content: {**content, "symbols": [7]},
        lambda content: {**content, "type": "pickle"},
        lambda content: {**content, "source_normalization": "../../etc/passwd"},
        lambda content: {**content, "more": 1},
    ],
)
def test_a_tokenizer_that_tells_nonsense_is_refused(folder: Path, change: Callable[[dict], dict]) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    content = change(json.loads(path.read_bytes()))
    fields = {name: value for name, value in content.items() if name in _Description.__dataclass_fields__}
    put(folder, "tokenizer/tokenizer.json", json.dumps({**content, "hash": _Description(**fields).hash}).encode())
    assert refusal_of_tokenizer(folder).startswith(str(folder / "tokenizer"))


GARBAGE = [b"", b"\0" * 100, b"\xff" * 100, bytes(range(256)), pickle.dumps(Bomb())]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_sentencepiece_model_of_garbage_is_refused(folder: Path, garbage: bytes) -> None:
    content = json.loads((folder / "tokenizer" / "tokenizer.json").read_bytes())
    content["sha256"] = {"tokenizer.model": hashlib.sha256(garbage).hexdigest()}
    fields = {name: value for name, value in content.items() if name not in ("format", "hash")}
    (folder / "tokenizer" / "tokenizer.model").write_bytes(garbage)
    put(folder, "tokenizer/tokenizer.json", json.dumps({**content, "hash": _Description(**fields).hash}).encode())
    reason = "not a SentencePiece model" if garbage else "its padding, unknown, begin and end ids are [-1, -1, -1, -1]"
    assert refusal(folder).startswith(f"{folder / 'tokenizer' / 'tokenizer.model'}: {reason}")
    assert not Path("exploded").exists()


# What is printed.


def test_what_a_model_says_of_itself_moves_no_cursor(folder: Path) -> None:
    config = (folder / "config.yaml").read_text().replace("source: en\n", 'source: "\\e[2J"\n')
    put(folder, "config.yaml", config.encode(), mtkit="\x1b[31m")
    text = info_text(info_of(folder))
    assert "\x1b" not in text
    assert text.startswith("toy: ?[2J to digits\n")
    assert info_json(info_of(folder))["mtkit"] == "\x1b[31m"
