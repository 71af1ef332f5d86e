"""The vocabularies of OPUS-MT's models are read by their ids; what is wrong with their files is told in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtkit.errors import CheckpointError
from mtkit.exchange.huggingface import read_marian_vocabulary, write_m2m100_tokenizer, write_marian_tokenizer
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import DEFAULT_IDS, SpecialIds
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.text.test_own_normalization import TAGS, trained


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def model(tokenizer: Tokenizer, tmp_path: Path) -> PortableModel:
    sides = (
        (
            tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
            DEFAULT_IDS,
            tokenizer.source_sentencepiece(),
            tokenizer.source_scores(),
        ),
        (
            tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
            DEFAULT_IDS,
            tokenizer.target_sentencepiece(),
            tokenizer.target_scores(),
        ),
    )
    config = config_with(toy_settings(CorpusFiles(tmp_path), tmp_path))
    return PortableModel(config, {}, Vocabulary(*sides[0]), Vocabulary(*sides[1]), tokenizer.tags)


@pytest.fixture
def directory(model: PortableModel, tmp_path: Path) -> Path:
    """What write_marian_tokenizer writes."""
    write_marian_tokenizer(model, tmp_path / "marian")
    return tmp_path / "marian"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize("write", [write_marian_tokenizer, write_m2m100_tokenizer])
def test_what_was_written_is_read(model, tmp_path, write):
    write(model, tmp_path / "written")
    found = read_marian_vocabulary(tmp_path / "written")
    assert (found.source, found.target, found.shared) == (model.source, model.target, True)
    assert found.languages == ("en", "digits")
    assert found.symbols == ()
    assert found.defined == tuple(TAGS)


def test_the_order_of_the_file_means_nothing_and_special_tokens_are_found_by_name(directory):
    path = directory / "vocab.json"
    pieces = list(json.loads(path.read_text("utf-8")))
    pieces = [">>fra<<", "</s>", *(piece for piece in pieces if piece not in ("<pad>", "</s>", "<s>")), "<pad>"]
    ids = list(enumerate(pieces))
    path.write_text(json.dumps({piece: id_ for id_, piece in reversed(ids)}), "utf-8")
    found = read_marian_vocabulary(directory)
    assert found.source.pieces == pieces
    assert found.source.special == SpecialIds(pieces.index("<pad>"), pieces.index("<unk>"), None, 1)
    assert found.symbols == (">>fra<<",)
    assert found.source.scores[0] == 0.0


def test_names_come_from_the_settings_or_are_the_usual_ones(directory, model):
    (directory / "special_tokens_map.json").unlink()
    rewrite(directory / "tokenizer_config.json", eos_token={"content": "<s>", "special": True}, source_lang=None)
    found = read_marian_vocabulary(directory)
    assert found.source.special.end == 2
    assert found.languages == (None, "digits")
    (directory / "tokenizer_config.json").unlink()
    found = read_marian_vocabulary(directory)
    assert found.source == model.source
    assert found.languages == (None, None)


@pytest.mark.parametrize("name", ["vocab.json", "source.spm", "target.spm"])
def test_a_missing_file_is_told(directory, name):
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing; the model is not whole, copy it again$"):
        read_marian_vocabulary(directory)


def test_a_missing_vocabulary_of_the_target_is_told(directory):
    rewrite(directory / "tokenizer_config.json", separate_vocabs=True)
    with pytest.raises(CheckpointError, match=r"target_vocab\.json: missing"):
        read_marian_vocabulary(directory)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 0', "damaged: "),
        (b"\xff\xfe", "damaged: "),
        (b"[" * 100_000, "damaged: "),
        (b'{"a": 0, "a": 1}', "damaged: 'a' stands there more than once"),
        (b"[1]", "holds no JSON object; copy it again"),
    ],
)
def test_a_file_that_is_no_json_object_is_told(directory, name, content, told):
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: {told}") as raised:
        read_marian_vocabulary(directory)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "is empty; wanted is an id for each piece"),
        ({"a": 0, "b": 2}, "no piece has the id 1; wanted are all from 0 to 1"),
        ({"a": 0, "b": 10**12}, "no piece has the id 1; wanted are all from 0 to 1"),
        ({"a": -1, "b": 0}, "no piece has the id 1; wanted are all from 0 to 1"),
        ({"a": 0, "b": 0}, "'a' and 'b' have both the id 0; wanted is one each"),
        ({"a": "0"}, "the id of 'a' is '0'; wanted is a number from 0 on"),
        ({"a": True}, "the id of 'a' is True; wanted is a number from 0 on"),
        ({"a": 0}, "has no <pad>, which is the pad_token of this tokenizer"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_told(directory, content, told):
    (directory / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"vocab\.json: {told}$"):
        read_marian_vocabulary(directory)


@pytest.mark.parametrize("content", [b"", b"text", b"\x0a\xff"])
def test_a_file_that_is_no_sentencepiece_model_is_told(directory, content):
    (directory / "target.spm").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"target\.spm: not a SentencePiece model; copy it again$"):
        read_marian_vocabulary(directory)
