"""`mtkit info` and the card tell what a model is, whatever is known of it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mtkit.bundle.bundle import open_bundle, sealed
from mtkit.bundle.info import card_text, info_json, info_of, info_text, pack
from mtkit.config.data_and_model_settings import MixedConfig, RecurrentConfig

BUNDLES = Path(__file__).parents[1] / "bundles"


def told(path: Path) -> list[str]:
    return info_text(info_of(path)).splitlines()


def test_it_tells_on_a_screen_what_a_model_is() -> None:
    path = BUNDLES / "format-2"
    size = sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    minutes = open_bundle(path).description["training"]["minutes"]
    lines = told(path)
    assert len(lines) <= 24
    assert max(len(line) for line in lines if str(path) not in line) <= 100
    signature = "case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    assert [line.rstrip() for line in lines[:-2]] == [
        "toy: en to digits",
        f"  model         {path}",
        f"  size          {size:,} bytes, in a folder",
        "  format        2, written by mtkit 0.1.0",
        "  architecture  transformer, d_model 16, num_heads 2, d_ff 32, encoder_layers 1, decoder_layers 1,",
        "                dropout 0.0",
        "  parameters    10,752",
        "  tokenizer     bpe, one vocabulary for both sides: 320 source pieces, 320 target pieces",
        "  data          1,498 pairs, 2 left out",
        "  source        12,278 tokens; per sentence: mean 8.2, 1% 2, 5% 3, 50% 8, 95% 16, 99% 20, longest 23",
        "  target        7,879 tokens; per sentence: mean 5.26, 1% 2, 5% 3, 50% 5, 95% 8, 99% 9, longest 10",
        f"  training      1,500 updates in {minutes} minutes",
        "  weights       those after update 900, chosen by validation bleu",
        "  scores        beam 2, length penalty 1 (power)",
        f"    toy  BLEU 97.13  nrefs:1|{signature}",
    ]


def test_json_tells_all_of_it(tmp_path: Path) -> None:
    path = BUNDLES / "format-2"
    pack(path, tmp_path / "model.mtkit")
    found = json.loads(json.dumps(info_json(info_of(tmp_path / "model.mtkit"))))
    assert (found["packed"], found["bytes"]) == (True, (tmp_path / "model.mtkit").stat().st_size)
    assert found["format"] == 2
    assert found["num_parameters"] == 10_752
    assert found["training"]["data"]["lengths"]["source"]["quantiles"]["50%"] == 8
    assert found["languages"] == {"source": "en", "target": "digits"}
    assert found["config"]["model"]["d_model"] == 16
    assert [score["metric"] for score in found["scores"]] == ["BLEU", "chrF2", "TER"]
    assert found["files"].keys() == {part for part in info_of(path).bundle.storage.names() if part != "bundle.json"}


def test_what_format_1_does_not_tell_is_left_out() -> None:
    lines = told(BUNDLES / "format-1")
    assert "  source        12,278 tokens" in lines
    assert "  format        1, written by mtkit 0.1.0" in lines


@pytest.mark.parametrize("training", [{}, {"steps": 3}, {"data": {}}, {"data": {"num_pairs": 7, "lengths": {}}}])
def test_a_model_that_does_not_tell_how_it_was_trained_is_told_of_all_the_same(
    tmp_path: Path, training: dict[str, object]
) -> None:
    path = Path(shutil.copytree(BUNDLES / "format-2", tmp_path / "model"))
    content = json.loads((path / "bundle.json").read_bytes())
    (path / "bundle.json").write_bytes(
        sealed(
            {key: value for key, value in content.items() if key not in ("sha256", "mtkit")} | {"training": training}
        )
    )
    (path / "scores.json").unlink()
    lines = told(path)
    assert lines[3] == "  format        2, written by mtkit ?"
    assert ("  training      3 updates in ? minutes" in lines) == (training == {"steps": 3})
    assert not [line for line in lines if line.startswith("  scores")]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (RecurrentConfig(), "rnn, cell lstm, d_model 512, encoder_layers 2, decoder_layers 2, attention "),
        (MixedConfig(), "mixed, encoder.architecture transformer, encoder.d_model 512, "),
    ],
)
def test_every_architecture_tells_its_sizes(model: object, line: str) -> None:
    info = info_of(BUNDLES / "format-2")
    bundle = replace(info.bundle, config=info.bundle.config.model_copy(update={"model": model}))
    assert f"  architecture  {line}" in info_text(replace(info, bundle=bundle))


# The card.


def test_the_card_tells_files_lengths_and_use() -> None:
    card = (BUNDLES / "format-2" / "README.md").read_text("utf-8")
    assert "\n    mtkit pack MODEL toy.mtkit\n" in card
    assert '    translator = mtkit.load("MODEL")\n' in card
    for name in ("src", "tgt"):
        assert f"\n| train.{name} | 1,498 | sha256:" in card
    assert "\n| tokens of a sentence | mean | 1% | 5% | 50% | 95% | 99% | longest |\n" in card
    assert "\n| source | 8.2 | 2 | 3 | 8 | 16 | 20 | 23 |\n" in card


def test_the_card_of_a_sample_says_so_and_that_of_an_older_bundle_tells_no_more_than_it_knows() -> None:
    bundle = open_bundle(BUNDLES / "format-2")
    about = json.loads(json.dumps(bundle.description))
    about["training"]["data"]["lengths"] |= {"pairs": 5_000_000, "measured": 1_000_000}
    assert "| tokens per sentence; quantiles of 1,000,000 pairs | mean |" in card_text(
        replace(bundle, description=about), []
    )
    old = card_text(open_bundle(BUNDLES / "format-1"), [])
    assert "\n| train.src |  | sha256:" in old
    assert "tokens per sentence" not in old


def test_the_card_of_a_model_that_was_not_trained_here_has_no_data() -> None:
    bundle = open_bundle(BUNDLES / "format-2")
    about = {key: value for key, value in bundle.description.items() if key != "training"}
    card = card_text(replace(bundle, description=about), [])
    assert "## Data" not in card
    assert "\n## Model\n" in card
    assert "updates" not in card
