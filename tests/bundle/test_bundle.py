"""A model directory is whole, its own and of a known format, or it is refused in one line that says what to do."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtkit
from mtkit.bundle.bundle import FORMAT, bundle_at, open_bundle, read_scores, save_scores, sealed
from mtkit.bundle.info import card_text
from mtkit.config.data_and_model_settings import MixedConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import ConfigError, MtkitError


@pytest.fixture
def bundle(tiny_run: Path, tmp_path: Path) -> Path:
    """A model that may be spoilt."""
    return Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))


def refusal(path: Path) -> str:
    """The one line that loading ends with."""
    with pytest.raises(MtkitError) as error:
        mtkit.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_directory_and_its_bundle_are_the_same_model(tiny_run: Path) -> None:
    assert bundle_at(tiny_run) == bundle_at(tiny_run / "model") == tiny_run / "model"


def test_a_bundle_needs_nothing_but_itself(bundle: Path, tiny_run: Path) -> None:
    lines = ["one two three", "nine"]
    moved = bundle.rename(bundle.parent / "elsewhere")
    assert mtkit.load(moved).translate(lines) == mtkit.load(tiny_run).translate(lines)


def test_a_bundle_names_no_device_and_no_folder_of_results(bundle: Path) -> None:
    config = open_bundle(bundle).config
    assert config.device == "auto"
    assert config.run_dir is None


def test_what_is_no_model_is_told_with_the_model_that_may_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "my" / "checkpoints").mkdir(parents=True)
    assert refusal(Path("my")) == f"my: no such directory; did you mean {Path('runs/my')}?"
    assert refusal(Path("yours")).startswith("yours: no such directory; MODEL is a run directory")
    assert refusal(Path("runs")) == (
        f"runs: not a model: it holds no bundle.json and no model/bundle.json; {Path('runs/my')} is one"
    )
    (tmp_path / "my.yaml").write_text("name: my\n")
    assert refusal(Path("my.yaml")).startswith("my.yaml: is a file of settings; MODEL is a run directory, a checkpoint")


def test_what_is_no_model_is_told_from_what_is_none_yet(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such directory; " + (
        "MODEL is a run directory, a checkpoint or a model bundle"
    )
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'}: is a file that mtkit pack did not write; " + (
        "MODEL is a run directory, a checkpoint or a model bundle"
    )
    assert refusal(tmp_path) == f"{tmp_path}: not a model: it holds no bundle.json and no model/bundle.json"
    (tmp_path / "checkpoints").mkdir()
    assert refusal(tmp_path) == f"{tmp_path}: training has not found a first model yet; go on with mtkit train"


def test_a_bundle_is_found_while_it_is_being_replaced(bundle: Path, tiny_run: Path) -> None:
    bundle.rename(bundle.with_name(".model.old"))
    assert bundle_at(bundle.parent) == bundle.with_name(".model.old")
    assert mtkit.load(bundle.parent).translate(["one"]) == mtkit.load(tiny_run).translate(["one"])


PARTS = {
    "weights.safetensors": "missing; the model is not whole, copy it again",
    "config.yaml": "damaged or missing; copy the model again",
    "tokenizer/tokenizer.json": "no tokenizer here (tokenizer.json is missing); train or copy one",
    "tokenizer/tokenizer.model": "missing; copy it again or train the tokenizer again",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    where = bundle / "tokenizer" if name.endswith("tokenizer.json") else bundle / name
    assert refusal(bundle) == f"{where}: {PARTS[name]}"


@pytest.mark.parametrize("name", ["bundle.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer.model"])
@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"\xff\x00{}"])
def test_a_damaged_part_is_named(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    assert refusal(bundle).startswith(f"{bundle / name}: damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda description: [],
        lambda description: {},
        lambda description: {**description, "weights_bytes": "many"},
        lambda description: {**description, "source_vocab_size": None},
        lambda description: {**description, "source_vocab_size": 0},
        lambda description: {**description, "source_vocab_size": True},
        lambda description: {**description, "target_vocab_size": 1 << 31},
        lambda description: {**description, "format": 0},
        lambda description: {**description, "format": True},
        lambda description: {**description, "format": 1},
        lambda description: {**description, "training": {"steps": "many"}},
        lambda description: {**description, "training": {"minutes": float("nan")}},
        lambda description: {**description, "training": {"averaged_steps": [-1]}},
        lambda description: {**description, "files": {"config.yaml": {"bytes": 1, "sha256": 7}}},
        lambda description: {**description, "languages": ["en", "de"]},
        lambda description: {key: value for key, value in description.items() if key != "tokenizer_sha256"},
    ],
)
def test_a_description_that_is_not_one_is_damaged(bundle: Path, change: Callable[[dict], object]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_bytes(sealed(content))
    mtkit.load(bundle)
    changed = change(content)
    path.write_bytes(sealed(changed) if isinstance(changed, dict) else json.dumps(changed).encode())
    assert refusal(bundle) == f"{path}: damaged; copy the model again"


@pytest.mark.parametrize("change", [lambda data: data.replace(b"\n", b"\r\n"), lambda data: data + b" "])
def test_a_description_is_byte_for_byte_as_it_was_written(bundle: Path, change: Callable[[bytes], bytes]) -> None:
    path = bundle / "bundle.json"
    path.write_bytes(change(path.read_bytes()))
    assert refusal(bundle) == f"{path}: damaged; copy the model again"


def test_settings_that_are_no_yaml_or_know_another_key_are_told_with_their_line(bundle: Path) -> None:
    path = bundle / "config.yaml"
    text = path.read_text()
    path.write_bytes(b"\xff" + text.encode())
    assert refusal(bundle) == f"{path}: damaged or missing; copy the model again"
    path.write_text("new_thing: 1\n" + text)
    with pytest.raises(ConfigError, match=r"config\.yaml:1: unknown key 'new_thing'"):
        mtkit.load(bundle)


def test_a_newer_format_is_refused(bundle: Path) -> None:
    path = bundle / "bundle.json"
    path.write_text(json.dumps({"format": FORMAT + 1, "all": "else is new"}))
    assert refusal(bundle) == (
        f"{bundle}: a bundle of format {FORMAT + 1}; this version of mtkit reads format {FORMAT} and older: "
        "install a newer one"
    )


def test_weights_that_are_cut_off_are_refused(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    told = f"{path}: {len(data) - 4:,} bytes where {len(data):,} were written; the file is cut off or another model's"
    assert refusal(bundle) == f"{told}, copy it again"


def test_weights_of_a_damaged_head_are_refused(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[:16] = b"\xff" * 16
    path.write_bytes(data)
    assert refusal(bundle).startswith(f"{path}: damaged: ")


def change_weights(bundle: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Another model's weights, though the description knows their size."""
    weights = {name: tensor.clone() for name, tensor in load_file(bundle / "weights.safetensors").items()}
    change(weights)
    save_file(weights, bundle / "weights.safetensors")
    description = json.loads((bundle / "bundle.json").read_text())
    del description["sha256"]
    description["weights_bytes"] = (bundle / "weights.safetensors").stat().st_size
    (bundle / "bundle.json").write_bytes(sealed(description))


def test_weights_of_another_model_are_refused(bundle: Path) -> None:
    name = "encoder.layers.0.feed_forward.inner.bias"
    width = len(load_file(bundle / "weights.safetensors")[name])
    change_weights(bundle, lambda weights: weights.update({name: torch.zeros(7)}))
    assert refusal(bundle) == (
        f"{bundle}: weight {name} is (7,), the settings want ({width},); the weights belong to another model"
    )
    change_weights(bundle, lambda weights: weights.pop(name))
    assert f"weight {name} is missing" in refusal(bundle)
    change_weights(bundle, lambda weights: weights.update({name: torch.zeros(width), "more": torch.zeros(1)}))
    assert "weight more is (1,), the settings want none" in refusal(bundle)


def test_another_tokenizer_is_refused_though_it_is_whole(
    bundle: Path, tiny_run: Path, corpus_files: object, tmp_path: Path
) -> None:
    from mtkit.config.data_and_model_settings import TokenizerConfig
    from mtkit.text.tokenizer import Tokenizer, train_tokenizer

    sources, targets = corpus_files.lines("valid")
    own = Tokenizer.load(tiny_run / "tokenizer")
    train_tokenizer(lambda: sources, lambda: targets, TokenizerConfig(vocab_size=320), tmp_path / "other")
    assert Tokenizer.load(tmp_path / "other").hash != own.hash
    shutil.rmtree(bundle / "tokenizer")
    shutil.copytree(tmp_path / "other", bundle / "tokenizer")
    assert refusal(bundle) == (
        f"{bundle / 'tokenizer'}: not the tokenizer that this model was trained with; copy the model again"
    )


class Bomb:
    """What pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_nothing_that_is_loaded_can_run_code(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = bundle / "weights.safetensors"
    bomb = pickle.dumps(Bomb())
    path.write_bytes(bomb.ljust(path.stat().st_size, b"\0"))
    refusal(bundle)
    config = bundle / "config.yaml"
    config.write_text("name: !!python/object/apply:pathlib.Path.touch [exploded]\n")
    refusal(bundle)
    assert not (tmp_path / "exploded").exists()


def test_scores_and_card_are_kept_in_the_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    rows = [("toy", "BLEU", 12.345, "nrefs:1|case:mixed")]
    scores = [{"test_set": "toy", "metric": "BLEU", "score": 12.345, "signature": "nrefs:1|case:mixed"}]
    save_scores(opened, scores, card_text(opened, rows))
    assert read_scores(opened) == scores
    card = (bundle / "README.md").read_text()
    assert "\n| toy | BLEU | 12.35 | nrefs:1\\|case:mixed |\n" in card


@pytest.mark.parametrize(
    ("settings", "steps", "told"),
    [
        ({}, [1200], "the weights are those after update 1,200."),
        ({}, [800, 1200], "the weights are the average of those after updates 800, 1,200."),
        ({"ema_decay": 0.999}, [1200], "the weights are the moving average (decay 0.999) after update 1,200."),
        ({"optimizer": "schedule_free"}, [1200], "the weights are the average of schedule_free after update 1,200."),
    ],
)
def test_the_card_says_which_weights_these_are(
    bundle: Path, settings: dict[str, object], steps: list[int], told: str
) -> None:
    opened = open_bundle(bundle)
    training = opened.config.training.model_copy(update=settings)
    description = {**opened.description, "training": {**opened.description["training"], "averaged_steps": steps}}
    config = opened.config.model_copy(update={"training": training})
    assert told in " ".join(card_text(replace(opened, config=config, description=description), []).split())


def test_scores_that_cannot_be_read_are_none(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for text in ("[", "{}", "null", '["a"]', '[{"score": 1}]'):
        (bundle / "scores.json").write_text(text)
        assert read_scores(opened) == []
    (bundle / "scores.json").unlink()
    assert read_scores(opened) == []
    (bundle / "scores.json").mkdir()  # opening it is an OSError, as it is without permission
    assert read_scores(opened) == []


@pytest.mark.parametrize(
    ("decoding", "told"),
    [
        ({"beam_size": 4, "length_penalty": 0.6}, "beam 4, length penalty 0.6 (power)."),
        ({"no_repeat_ngram": 3}, "beam 5, length penalty 1 (power), no_repeat_ngram 3."),
        ({"mbr_samples": 16, "top_p": 0.9}, "samples, top_p 0.9, mbr_samples 16."),
    ],
)
def test_a_card_tells_how_the_scored_translations_were_made(bundle: Path, decoding: dict[str, Any], told: str) -> None:
    opened = open_bundle(bundle)
    settings = DecodingConfig(**{"beam_size": 5, **decoding})
    config = opened.config.model_copy(update={"decoding": settings})
    assert f"Raw text in, raw text out; {told}\n" in card_text(replace(opened, config=config), [])


def test_a_card_names_the_settings_of_both_halves_of_a_mixed_model(bundle: Path) -> None:
    opened = open_bundle(bundle)
    mixed = replace(opened, config=opened.config.model_copy(update={"model": MixedConfig()}))
    assert "architecture mixed, encoder.architecture transformer, encoder.d_model 512" in card_text(mixed, [])
    assert "decoder.architecture rnn, decoder.cell lstm" in card_text(mixed, [])


def test_who_may_read_one_file_of_a_bundle_may_read_all(tiny_run):
    assert len({path.stat().st_mode for path in (tiny_run / "model").rglob("*") if path.is_file()}) == 1
