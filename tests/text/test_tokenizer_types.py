"""For every type of tokenizer, text with pieces is restored, and text without is <unk> and is counted."""

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from mtkit.bundle.bundle import open_bundle
from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.config.load import config_from_text
from mtkit.config.settings import Config
from mtkit.data.corpus import Corpus
from mtkit.errors import ConfigError
from mtkit.pipeline import run_all
from mtkit.preparation.encoding import UnknownShares, describe_unknown
from mtkit.preparation.prepare import binarize, make_tokenizer, tokenizer_is_current
from mtkit.text import vocabulary as segmentation
from mtkit.text.tokenizer import SPACE_MARK, UNKNOWN_TEXT, Tokenizer
from mtkit.text.vocabulary import NUM_SPECIAL, UNKNOWN, BulkEncoder
from mtkit.translation.translator import load
from tests.conftest import NAMES
from tests.text.test_tokenizer import HOSTILE, SOURCE, TARGET, trained

TYPES = get_args(TokenizerConfig.model_fields["type"].annotation)
SPELLING = [type_ for type_ in TYPES if TokenizerConfig(type=type_).spells_bytes]
SIZES = {"bpe": 320, "unigram": 320, "char": 300, "word": 300}
WITHOUT_BYTES = {"byte_fallback": False}


def test_all_types_but_word_spell_in_bytes_unless_told_otherwise():
    assert SPELLING == ["bpe", "unigram", "char"]
    assert set(SIZES) == set(TYPES)
    assert not TokenizerConfig(byte_fallback=False).spells_bytes
    assert TokenizerConfig(byte_fallback=True).spells_bytes


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("type_", SPELLING)
def test_whatever_is_encoded_comes_back_where_bytes_can_spell_it(tmp_path, type_, shared):
    tokenizer, _ = trained(tmp_path, type=type_, vocab_size=SIZES[type_], shared=shared)
    assert not tokenizer.source_shows_unknown
    assert not tokenizer.target_shows_unknown
    tokens = tokenizer.encode_source(HOSTILE)
    assert tokenizer.decode_source(tokens) == [tokenizer.normalize_source(line) for line in HOSTILE]
    assert all(id_ >= NUM_SPECIAL for row in tokens for id_ in row)
    tokens = tokenizer.encode_target(HOSTILE)
    assert tokenizer.decode_target(tokens) == [tokenizer.normalize_target(line) for line in HOSTILE]


@pytest.mark.parametrize("type_", TYPES)
def test_text_of_known_pieces_comes_back_without_bytes(tmp_path, type_):
    tokenizer, _ = trained(tmp_path, type=type_, vocab_size=SIZES[type_], **WITHOUT_BYTES)
    assert tokenizer.source_shows_unknown
    assert tokenizer.target_shows_unknown
    lines = [*TARGET, "", "  the   house "]
    tokens = tokenizer.encode_target(lines, num_threads=2)
    assert tokenizer.decode_target(tokens) == [tokenizer.normalize_target(line) for line in lines]
    assert all(id_ >= NUM_SPECIAL for row in tokens for id_ in row)


@pytest.mark.parametrize("type_", TYPES)
def test_what_has_no_piece_is_shown_as_unknown_and_hides_nothing_else(tmp_path, type_):
    tokenizer, _ = trained(tmp_path, type=type_, vocab_size=SIZES[type_], **WITHOUT_BYTES)
    lines = ["the ☃ house", "☃", "☃ ☃☃ house", "the house ☃"]
    tokens = tokenizer.encode_target(lines)
    assert [row.count(UNKNOWN) for row in tokens] == [1, 1, 2, 1]
    assert tokenizer.decode_target(tokens) == [
        f"the {UNKNOWN_TEXT} house",
        UNKNOWN_TEXT,
        f"{UNKNOWN_TEXT} {UNKNOWN_TEXT} house",
        f"the house {UNKNOWN_TEXT}",
    ]


def test_a_piece_of_a_word_is_unknown_to_a_word_and_a_character_to_characters(tmp_path):
    words, _ = trained(tmp_path / "words", type="word")
    characters, _ = trained(tmp_path / "characters", type="char", **WITHOUT_BYTES)
    lines = ["the hous☃e", "thehouse"]
    assert words.decode_target(words.encode_target(lines)) == [f"the {UNKNOWN_TEXT}", UNKNOWN_TEXT]
    assert characters.decode_target(characters.encode_target(lines)) == [f"the hous{UNKNOWN_TEXT}e", "thehouse"]


def test_hostile_text_has_one_token_for_each_word_of_it(tmp_path):
    tokenizer, _ = trained(tmp_path, type="word")
    known = tokenizer.decode_source([[id_] for id_ in range(NUM_SPECIAL, tokenizer.source_vocab_size)])
    assert len(known) > 15
    words = [[word for word in tokenizer.normalize_source(line).split(" ") if word] for line in HOSTILE]
    tokens = tokenizer.encode_source(HOSTILE)
    assert [len(row) for row in tokens] == [len(each) for each in words]
    assert tokenizer.decode_source(tokens) == [
        " ".join(word if word in known else UNKNOWN_TEXT for word in each) for each in words
    ]


def test_words_are_those_between_spaces_and_the_most_frequent_stay(tmp_path):
    lines = ["often often often ,, it's often", "it's rare naïve\u00a0one"] * 3
    tokenizer, (report,) = trained(tmp_path, source=lines, target=lines, type="word", vocab_size=7)
    assert (report.type, report.pieces_made) == ("word", 7)
    (row,) = tokenizer.encode_target(["often it's ,, rare often"])
    assert tokenizer.decode_target([row]) == [f"often it's ,, {UNKNOWN_TEXT} often"]
    assert len(row) == 5


def test_letters_are_no_rarer_in_words_than_they_are(tmp_path):
    """Character coverage would replace rare letters of frequent words."""
    lines = ["a b"] * 20_000 + ["naïve"] * 2
    tokenizer, _ = trained(tmp_path, source=lines, target=lines, type="word")
    assert tokenizer.decode_target(tokenizer.encode_target(["naïve b"])) == ["naïve b"]


def test_characters_are_pieces(tmp_path):
    tokenizer, _ = trained(tmp_path, type="char", vocab_size=300)
    text = tokenizer.normalize_target("the house")
    assert [len(row) for row in tokenizer.encode_target([text])] == [len(f"{SPACE_MARK}{text}")]


@pytest.mark.parametrize("type_", TYPES)
def test_the_same_text_makes_the_same_bytes_whatever_the_type(tmp_path, type_):
    for name in ("one", "two"):
        trained(tmp_path / name, type=type_, vocab_size=SIZES[type_])
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert Tokenizer.load(tmp_path / "one").hash == Tokenizer.load(tmp_path / "two").hash


@pytest.mark.parametrize("type_", TYPES)
def test_a_vocabulary_of_any_type_is_no_larger_than_asked_and_tells_its_size(tmp_path, type_):
    tokenizer, (report,) = trained(tmp_path, type=type_, vocab_size=SIZES[type_])
    assert report.type == type_
    assert report.pieces_made == tokenizer.source_vocab_size <= report.pieces_asked == SIZES[type_]
    small, (report,) = trained(tmp_path / "small", source=["a b"], target=["a c"], type=type_, vocab_size=5000)
    assert report.pieces_made == small.target_vocab_size < 300
    assert small.decode_target(small.encode_target(["c a b"])) == ["c a b"]


def test_each_type_has_a_hash_of_its_own(tmp_path):
    assert len({trained(tmp_path / type_, type=type_)[0].hash for type_ in TYPES}) == len(TYPES)


def test_a_file_that_an_earlier_version_wrote_loads_with_its_hash(tmp_path):
    tokenizer, _ = trained(tmp_path, source_normalization="nmt_nfkc")
    content = {
        "type": "bpe",
        "shared": True,
        "source_normalization": "nmt_nfkc",
        "target_normalization": "identity",
        "sha256": {"tokenizer.model": hashlib.sha256((tmp_path / "tokenizer.model").read_bytes()).hexdigest()},
    }
    rehashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (tmp_path / "tokenizer.json").write_text(json.dumps({"format": 1, **content, "hash": rehashed}))
    assert Tokenizer.load(tmp_path).hash == rehashed == tokenizer.hash


# Errors.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "tokenizer: {type: word, byte_fallback: true}",
            "byte_fallback true is not for type word, whose pieces spell nothing; set it to false, or change type",
        ),
        (
            "tokenizer: {vocab_size: 263}",
            "vocab_size 263 is too small for the 256 bytes of byte_fallback; "
            "set it to 264 or more, or byte_fallback to false",
        ),
        (
            "tokenizer: {type: char, vocab_size: 100}",
            "vocab_size 100 is too small for the 256 bytes of byte_fallback; "
            "set it to 264 or more, or byte_fallback to false",
        ),
        (
            "tokenizer: {type: word, vocab_size: 4}",
            "found 4, wants a whole number, at least 5, at most 10000000, or {source: …, target: …}",
        ),
        ("tokenizer: {type: char}\ntraining: {bpe_dropout: 0.1}", "wants tokenizer.type bpe, not char"),
        ("tokenizer: {type: word}\ntraining: {unigram_alpha: 0.1}", "wants tokenizer.type unigram, not word"),
    ],
)
def test_settings_of_a_tokenizer_that_cannot_be_are_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        config_from_text(text, "x.yaml")
    assert str(caught.value).endswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["tokenizer: {type: char, byte_fallback: false, vocab_size: 60}", "tokenizer: {vocab_size: 264}"]
)
def test_the_smallest_settings_are_taken(text):
    assert config_from_text(text, "x.yaml").tokenizer.vocab_size in (60, 264)


@pytest.mark.parametrize("type_", ["bpe", "unigram"])
def test_too_few_pieces_for_the_characters_are_told_whatever_the_type(tmp_path, type_):
    with pytest.raises(
        ConfigError, match=r"vocab_size 10 is too small for the characters of .*; set it to \d+ or more"
    ):
        trained(tmp_path, type=type_, vocab_size=10, **WITHOUT_BYTES)


def test_characters_without_the_space_are_told(tmp_path):
    lines = ["aaabbbccc"] * 9
    with pytest.raises(ConfigError, match=r"^tokenizer\.vocab_size 7 leaves no piece for the space .* set it higher$"):
        trained(tmp_path, source=lines, target=lines, type="char", vocab_size=7, **WITHOUT_BYTES)
    trained(tmp_path, source=lines, target=lines, type="char", vocab_size=8, **WITHOUT_BYTES)


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char"])
def test_a_coverage_without_the_space_is_told(tmp_path, type_):
    lines = ["ab" * 5000]
    with pytest.raises(
        ConfigError, match=r"^tokenizer\.character_coverage 0\.99 leaves no piece for the space .*higher$"
    ):
        trained(tmp_path, source=lines, target=lines, type=type_, vocab_size=264, character_coverage=0.99)
    trained(tmp_path, source=lines, target=lines, type=type_, vocab_size=264, character_coverage=1.0)


@pytest.mark.parametrize("type_", sorted(set(TYPES) - {"word"}))
def test_the_least_coverage_that_is_taken_can_be_trained(tmp_path, type_):
    trained(tmp_path, type=type_, character_coverage=0.98)


# Large amounts of text.

# Compatibility characters that normalisation replaces by a space and combining marks, and these replacements.
WITH_SPACES = [
    text
    for character in map(chr, range(0x20000))
    if " " in (normal := unicodedata.normalize("NFKD", character))
    for text in (character, f"a{character}b", f"a {character}", normal, f"a{normal}b", f"a{normal} b")
]


def fuzz(seed: int) -> list[str]:
    rng = random.Random(seed)
    alphabet = [*"abcdeéèœ’' ▁\u00a0\u200c\u0301\u3000日本ー☃\t\x00", " ", " ", *HOSTILE[-12:-1]]
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 12))) for _ in range(1000)]


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj"])
@pytest.mark.parametrize(("type_", "byte_fallback"), [*((type_, None) for type_ in TYPES), ("bpe", False)])
def test_encoding_in_bulk_gives_the_same_ids(tmp_path, monkeypatch, type_, byte_fallback, rule):
    tokenizer = trained(
        tmp_path,
        type=type_,
        vocab_size=SIZES[type_],
        source_normalization=rule,
        target_normalization=rule,
        byte_fallback=byte_fallback,
        symbols=("(c)", "⟨1⟩"),
    )[0]
    texts = [*HOSTILE, *SOURCE, *TARGET, *fuzz(1), "a(c)b ⟨1⟩ c(c)", "日" * 100]
    texts += WITH_SPACES if type_ == "bpe" else []
    for most, longest in [(1 << 17, 40), (200, 3)]:  # the second forgets words all the time
        monkeypatch.setattr(segmentation, "MOST_WORDS", most)
        monkeypatch.setattr(segmentation, "LONGEST_WORD", longest)
        for start in range(0, len(texts), 500):
            lines = texts[start : start + 500]
            for bulk, encode in [
                (tokenizer.bulk_encode_source, tokenizer.encode_source),
                (tokenizer.bulk_encode_target, tokenizer.encode_target),
            ]:
                assert list(bulk(lines)) == encode(lines)
    assert list(tokenizer.bulk_encode_source([])) == []


def test_only_words_that_are_new_are_segmented_again():
    seen: list[str] = []

    def encode(words: Sequence[str], _: int) -> list[list[int]]:
        seen.extend(words)
        return [[len(word)] * len(word) for word in words]

    bulk = BulkEncoder(encode, 100, segments_words_alone=True)
    assert list(bulk.encode(["a bb", "", "bb"], 1)) == [[1, 2, 2], [], [2, 2]]
    assert list(bulk.encode(["ccc bb", "a"], 1)) == [[3, 3, 3, 2, 2], [1]]
    assert sorted(seen) == ["", "a", "bb", "ccc"]


# Counting.


def test_shares_are_counted_by_text():
    shares = UnknownShares()
    shares.add("a", np.array([UNKNOWN, 5, 6]), UNKNOWN)
    shares.add("b", np.array([]), UNKNOWN)
    shares.add("a", np.array([7]), UNKNOWN)
    assert shares.shares() == {"a": 0.25, "b": 0.0}
    assert describe_unknown(shares.shares()) == "25.00% of the a, 0.00% of the b"
    assert UnknownShares().shares() == {}


def share(lines: list[str], known: list[str]) -> float:
    words = [word for line in lines for word in line.split()]
    return sum(word not in known for word in words) / len(words)


def test_binarizing_tells_how_much_is_unknown_and_the_manifest_keeps_it(make_config, corpus_files, capsys):
    config = make_config(tokenizer={"type": "word", "vocab_size": 14})
    make_tokenizer(config)
    binarize(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    known = tokenizer.decode_source([[id_] for id_ in range(NUM_SPECIAL, 14)])
    assert len(known) == 10
    manifest = Corpus.open(config.run_path / "data" / "train").manifest
    assert manifest.unknown == {
        f"{kind} {side}": pytest.approx(share(lines, known))
        for kind, name in (("training", "train"), ("validation", "valid"))
        for side, lines in zip(("source", "target"), corpus_files.lines(name), strict=True)
    }
    assert 0 < sum(manifest.unknown.values()) < 4
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unknown")]
    assert told == [f"unknown tokens: {describe_unknown(manifest.unknown)}"]


def test_nothing_is_told_where_nothing_is_unknown(make_config, capsys):
    config = make_config()
    make_tokenizer(config)
    binarize(config)
    assert Corpus.open(config.run_path / "data" / "train").manifest.unknown == {}
    err = capsys.readouterr().err
    assert "unknown" not in err
    assert "shared bpe vocabulary: " in err


def test_a_setting_that_an_earlier_version_did_not_have_makes_no_tokenizer_stale(make_config):
    config = make_config()
    make_tokenizer(config)
    path = config.run_path / "tokenizer" / "provenance.json"
    content = json.loads(path.read_text())
    del content["settings"]["byte_fallback"]
    path.write_text(json.dumps(content))
    assert tokenizer_is_current(config)
    assert not tokenizer_is_current(make_config(tokenizer={"byte_fallback": False}))


# From text to translations.


@pytest.mark.parametrize("type_", TYPES)
def test_a_run_with_any_type_of_tokenizer_translates(make_config: Callable[..., Config], tmp_path: Path, type_: str):
    tokenizer: dict[str, Any] = {"type": type_, "vocab_size": SIZES[type_]}
    training = {"max_steps": 4, "validate_every": 4, "save_every": 4}
    config = make_config(tokenizer=tokenizer, training=training, data={"max_length": 60})
    run_all(config)
    lines = ["four nine one", "", "zero"]
    found = load(config.run_path).translate(lines)
    assert len(found) == 3
    assert found[1] == ""
    card = (open_bundle(config.run_path).path / "README.md").read_text("utf-8")
    assert ("Unknown tokens: 0.00% of the training source, 0.00%" in card) == (type_ == "word")


def test_a_model_of_words_says_unknown_where_its_training_text_does(make_config):
    # Of the ten digits four are known, and only four of their names.
    tokenizer = {"type": "word", "shared": False, "vocab_size": 8}
    training = {"max_steps": 60, "validate_every": 60, "save_every": 60}
    config = make_config(tokenizer=tokenizer, training=training, model={"tie_embeddings": "decoder"})
    run_all(config)
    translator = load(config.run_path)
    said = " ".join(translator.translate([" ".join(NAMES[i : i + 4]) for i in range(6)])).split()
    assert UNKNOWN_TEXT in said
    known = translator.tokenizer.decode_target([[id_] for id_ in range(NUM_SPECIAL, 8)])
    assert set(said) <= {UNKNOWN_TEXT, *known}
