"""`mtkit check` notices a changed byte wherever it is, and a model that says something else here."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtkit.bundle.bundle import Canary, Folder, Packed, all_sums, canaries_text, open_bundle, read_description, sealed
from mtkit.bundle.info import pack
from mtkit.errors import CheckpointError, DataError, MtkitError
from mtkit.models.registry import new_model
from mtkit.translation.stream import GREEDY, NUM_CANARIES, ONE_PASS, TIE, check, make_canaries, translate_canaries
from mtkit.translation.translator import Translator, load
from tests.conftest import CorpusFiles

BUNDLES = Path(__file__).parents[1] / "bundles"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that may be changed."""
    return Path(shutil.copytree(BUNDLES / "format-2", tmp_path / "model"))


def reseal(folder: Path) -> None:
    """Tell of the files as they are, as one would who wants to deceive."""
    content = json.loads((folder / "bundle.json").read_bytes())
    del content["sha256"]
    sums = {name: each.told for name, each in all_sums(Folder(folder)).items() if name != "bundle.json"}
    size = sums["weights.safetensors"]["bytes"]
    (folder / "bundle.json").write_bytes(sealed({**content, "weights_bytes": size, "files": sums}))


def faults(model: Path) -> list[str]:
    """What is wrong with a model, told by check or by its refusal."""
    try:
        return check(model, "cpu").faults
    except MtkitError as error:
        return str(error).splitlines()


# Files.


def test_a_model_that_is_whole_says_so(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "model.mtkit")
    for model in (folder, tmp_path / "model.mtkit"):
        report = check(model, "cpu")
        assert report.faults == []
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        first, files, canaries, drift = report.lines
        assert first == f"{model}: bundle format 2, written by mtkit 0.1.0"
        assert files == f"files: 8, {size:,} bytes, all as they were written"
        assert canaries == "canaries: 8 of 8 give the same tokens on cpu"
        assert drift.startswith("log-probabilities: the largest difference is ")


def test_a_flipped_bit_in_any_file_of_the_folder_is_noticed(folder: Path) -> None:
    chance = random.Random(1)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in {0, len(content) - 1, *(chance.randrange(len(content)) for _ in range(15))}:
            spoilt = bytearray(content)
            spoilt[place] ^= 1 << chance.randrange(8)
            path.write_bytes(spoilt)
            found = faults(folder)
            assert len(found) == 1, (path, place, found)
            assert found[0].startswith(str(path)), (path, place, found)
        path.write_bytes(content)
    assert faults(folder) == []


def test_any_byte_of_bundle_json_matters(folder: Path) -> None:
    """White space and the last digit of a number, too: every byte, turned into others that look alike."""
    path = folder / "bundle.json"
    content = path.read_bytes()
    read_description(content, path)
    alike = {ord(" "): b"\t\n", ord("\n"): b" \r", ord("1"): b"023", ord("2"): b"013", ord("e"): b"E"}
    for place, byte in enumerate(content):
        for other in alike.get(byte, bytes([byte ^ 1])):
            with pytest.raises(CheckpointError):
                read_description(content[:place] + bytes([other]) + content[place + 1 :], path)


def test_a_flipped_bit_anywhere_in_the_packed_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    chance = random.Random(2)
    path = tmp_path / "model.mtkit"
    pack(folder, path)
    content = path.read_bytes()
    members = Packed.open(path).members.values()
    inside = {place for member in members for place in range(member.begin, member.begin + member.size)}
    around = [place for place in range(len(content)) if place not in inside]
    assert len(around) > 800  # heads, directory, end: every byte of them
    for place in [*around, *chance.sample(sorted(inside), 40)]:
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        assert faults(path), place
    for spoilt in (content + b"\0", b"\0" + content, content[:-1]):
        path.write_bytes(spoilt)
        assert faults(path)


def test_what_is_missing_and_what_is_too_much_is_told_line_by_line(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.model").unlink()
    (folder / "canaries.json").unlink()
    (folder / "more").write_text("")
    (folder / "README.md").write_text("")
    size = (BUNDLES / "format-2" / "README.md").stat().st_size
    assert faults(folder) == [
        f"{folder / 'README.md'}: changed since it was written (0 bytes, {size:,} were written); copy the model again",
        f"{folder / 'canaries.json'}: missing; copy the model again",
        f"{folder / 'tokenizer' / 'tokenizer.model'}: missing; copy the model again",
        f"{folder / 'more'}: not part of the model; remove it, or copy the model again",
    ]


def test_a_file_that_could_be_a_part_but_is_not_told_of_is_too_much(folder: Path) -> None:
    (folder / "tokenizer" / "more").write_text("")
    assert faults(folder) == [
        f"{folder / 'tokenizer' / 'more'}: not part of the model; remove it, or copy the model again"
    ]


def test_a_bundle_of_format_1_says_what_it_lacks(tmp_path: Path) -> None:
    old = Path(shutil.copytree(BUNDLES / "format-1", tmp_path / "old"))
    report = check(old, "cpu")
    assert report.faults == []
    assert report.lines[1].endswith("it has no checksums of other files, and no canaries")
    pack(old, tmp_path / "old.mtkit")
    assert check(tmp_path / "old.mtkit", "cpu").faults == []
    (old / "more").write_text("")
    assert faults(old) == [f"{old / 'more'}: not part of the model; remove it, or copy the model again"]
    (old / "more").unlink()
    (old / "tokenizer" / "more").write_text("")
    assert faults(old) == [
        f"{old / 'tokenizer'}: not the tokenizer that this model was trained with; copy the model again"
    ]


def test_scores_that_are_measured_again_leave_a_model_that_is_whole(tiny_run: Path, tmp_path: Path) -> None:
    assert faults(tiny_run) == []
    names = json.loads((tiny_run / "model" / "bundle.json").read_bytes())["files"]
    assert {"scores.json", "README.md"} <= names.keys()


# Canaries.


def test_a_model_that_says_something_else_is_told_though_its_files_are_whole(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    noise = torch.Generator().manual_seed(1)
    weights = {name: tensor + 0.3 * torch.randn(tensor.shape, generator=noise) for name, tensor in weights.items()}
    save_file(weights, folder / "weights.safetensors")
    reseal(folder)
    found = faults(folder)
    assert len(found) >= 4
    assert found[0].startswith(f"{folder / 'canaries.json'}: canary ")
    assert any(": the model's translation differs, and is likelier here by " in line for line in found)


def canaries_of(folder: Path) -> list[Canary]:
    return open_bundle(folder).canaries()


def put_canaries(folder: Path, canaries: list[Canary]) -> None:
    (folder / "canaries.json").write_bytes(canaries_text(canaries))
    reseal(folder)


def test_a_log_probability_that_drifted_is_told(folder: Path) -> None:
    first, *others = canaries_of(folder)
    near = replace(first, log_prob=first.log_prob - 0.001)
    put_canaries(folder, [near, *others])
    report = check(folder, "cpu")
    assert report.faults == []
    assert report.lines[-1] == "log-probabilities: the largest difference is 1.0e-03, the mean 1.3e-04"
    far = replace(first, log_prob=first.log_prob - 1)
    put_canaries(folder, [far, *others])
    assert faults(folder) == [
        f"{folder / 'canaries.json'}: canary 1: its log-probability is {first.log_prob:.4f}, and was {far.log_prob:.4f}"
    ]


@pytest.mark.parametrize("change", [{"text": "7"}, {"source_tokens": [5, 6]}])
def test_a_tokenizer_that_does_something_else_is_told(folder: Path, change: dict[str, object]) -> None:
    first, *others = canaries_of(folder)
    put_canaries(folder, [replace(first, **change), *others])
    [found] = faults(folder)
    assert found.endswith("canary 1: the tokenizer encodes or decodes it differently here")


def test_a_tie_is_told_as_one_and_is_no_fault(folder: Path) -> None:
    """Two tokens of one embedding are as likely as each other; which is said, chance decides."""
    translator = load(folder, ["device=cpu"])
    first = canaries_of(folder)[0]
    said = first.target_tokens[0]
    other = next(id_ for id_ in range(10, 300) if id_ not in first.target_tokens and id_ > said)
    weights = load_file(folder / "weights.safetensors")
    [name] = [name for name, tensor in weights.items() if len(tensor) == translator.tokenizer.target_vocab_size]
    weights[name][other] = weights[name][said]
    save_file(weights, folder / "weights.safetensors")
    [now] = make_canaries(load_folder(folder), [first.source])
    tokens = [other if token == said else token for token in now.target_tokens]
    assert tokens != now.target_tokens
    put_canaries(folder, [replace(now, target_tokens=tokens, text=translator.tokenizer.decode_target([tokens])[0])])
    report = check(folder, "cpu")
    assert report.faults == []
    assert report.lines[2] == "canaries: 0 of 1 give the same tokens on cpu"
    assert report.lines[-1] == "canary 1: a tie: its translation differs, and is as likely to within 0.0e+00"
    [result] = translate_canaries(load_folder(folder), canaries_of(folder))
    assert result.is_tie
    assert not replace(result, gap=2 * TIE).is_tie


def load_folder(folder: Path) -> Translator:
    reseal(folder)
    return load(folder, ["device=cpu"])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {},
        lambda content: [{}],
        lambda content: [{**content[0], "more": 1}],
        lambda content: [{**content[0], "log_prob": None}],
        lambda content: [{**content[0], "log_prob": float("nan")}],
        lambda content: [{**content[0], "source": 1}],
        lambda content: [{**content[0], "target_tokens": [320]}],
        lambda content: [{**content[0], "target_tokens": [-1]}],
        lambda content: [{**content[0], "source_tokens": ["a"]}],
    ],
)
def test_canaries_that_are_none_are_damaged(folder: Path, change: Callable[[list[dict]], object]) -> None:
    path = folder / "canaries.json"
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))
    reseal(folder)
    assert faults(folder) == [f"{path}: damaged; copy the model again"]


ARCHITECTURES = [
    {
        "architecture": "transformer",
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
    {"architecture": "rnn", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    {
        "architecture": "mixed",
        "encoder": {"architecture": "transformer", "d_model": 16, "num_heads": 2, "d_ff": 16, "encoder_layers": 1},
        "decoder": {"architecture": "rnn", "d_model": 16, "decoder_layers": 1},
    },
    {
        "architecture": "cmlm",
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
]


def test_a_canary_that_the_model_cannot_take_is_told(folder: Path, make_config: Callable) -> None:
    config = make_config(model={**ARCHITECTURES[0], "positions": "learned", "max_positions": 40})
    tokenizer = load(folder, ["device=cpu"]).tokenizer
    translator = Translator(new_model(config.model, 320, 320, 1).eval(), tokenizer, config)
    for source, target_tokens in (("one " * 1000, [5]), ("one", [5] * 1000)):
        with pytest.raises(DataError, match=r"^canary 1 has [13],000 tokens, and the model can take 39$"):
            translate_canaries(translator, [Canary(source, [], target_tokens, -1.0, "")])


@pytest.mark.parametrize("model", ARCHITECTURES, ids=lambda model: model["architecture"])
def test_every_architecture_has_canaries(
    folder: Path, make_config: Callable, corpus_files: CorpusFiles, model: dict[str, object]
) -> None:
    tokenizer = load(folder, ["device=cpu"]).tokenizer
    config = make_config(model=model, decoding={"beam_size": 3, "mbr_samples": 0})
    sizes = (tokenizer.source_vocab_size, tokenizer.target_vocab_size)
    translator = Translator(new_model(config.model, *sizes, 1).eval().requires_grad_(False), tokenizer, config)
    lines = ["", *corpus_files.lines("valid")[0], "one " * 1000]
    canaries = make_canaries(translator, lines)
    assert len(canaries) == NUM_CANARIES
    assert canaries == make_canaries(translator, lines[::-1])
    lengths = [len(canary.source_tokens) for canary in canaries]
    fitting = [length for length in map(len, tokenizer.encode_source(lines)) if 0 < length <= 24]
    assert (lengths[0], lengths[-1]) == (min(fitting), max(fitting))
    assert all(a <= b for a, b in pairwise(lengths))
    decoding = ONE_PASS if model["architecture"] == "cmlm" else GREEDY
    greedy = Translator(translator.model, tokenizer, config.model_copy(update={"decoding": decoding}))
    assert [canary.text for canary in canaries] == greedy.translate([canary.source for canary in canaries])
    scored = translator.score([canary.source for canary in canaries], [canary.text for canary in canaries])
    for canary, result, each in zip(canaries, translate_canaries(translator, canaries), scored, strict=True):
        assert result.same_tokens
        assert result.same_text
        assert result.drift < 1e-4
        if tokenizer.encode_target([canary.text]) == [canary.target_tokens]:
            assert each.log_prob == pytest.approx(canary.log_prob, abs=1e-4)


def test_fewer_lines_give_fewer_canaries(folder: Path) -> None:
    translator = load(folder, ["device=cpu"])
    assert make_canaries(translator, []) == make_canaries(translator, ["", " "]) == []
    assert [canary.source for canary in make_canaries(translator, ["one two", "one", "one"])] == ["one", "one two"]
    put_canaries(folder, [])
    report = check(folder, "cpu")
    assert (report.faults, report.lines[-1]) == ([], "canaries: none")


@pytest.mark.gpu
def test_canaries_sound_alike_on_a_gpu(folder: Path) -> None:
    report = check(folder, "auto")
    assert report.faults == []
