"""SentencePiece models in exports normalise text themselves, as mtkit does before its own models."""

import os
import random
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import sentencepiece

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.text.tokenizer import SPACE_MARK, Tokenizer, train_tokenizer
from mtkit.text.vocabulary import UNKNOWN, pieces_of
from tests.text.test_tokenizer import HOSTILE, SOURCE, TARGET

TAGS = ["<2de>", "<2fr>"]
TAGGED = ["<2de> the house", "the<2de>house", "<2de>", " <2de> <2fr>  a", "＜2de＞ x", "<2de>\u0301 x", "<2d < 2de>"]
RULES = ["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj"]


@cache
def hostile_lines() -> list[str]:
    """Lines that tokenizers often get wrong, and many of random characters, mostly spaces and space marks."""
    rng = random.Random(1)
    spaces = [chr(code) for code in range(0x3100) if chr(code).isspace()]
    alphabet = [*spaces, *"\u200b\u200c\u200d\u2060\ufeff\u00ad\u0301\u0323\x00\x1f\u202e", *"abc   "]
    basic = [chr(code) for code in range(0x3100)]
    others = [chr(code) for code in range(0x3100, 0x110000, 97) if not 0xD800 <= code < 0xE000]
    random_lines = ["".join(rng.choices(alphabet, k=12)) for _ in range(500)]
    random_lines += ["".join(rng.choices(characters, k=20)) for characters in (basic, others) for _ in range(250)]
    return [*HOSTILE, *TAGGED, *random_lines]


def without_mark(lines: list[str]) -> list[str]:
    return [line for line in lines if SPACE_MARK not in line]


def trained(directory: Path, **settings) -> Tokenizer:
    config = TokenizerConfig(**{"vocab_size": 320, **settings})
    train_tokenizer(lambda: SOURCE, lambda: TARGET, config, directory, TAGS)
    return Tokenizer.load(directory)


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("type_", ["bpe", "unigram", "char"])
def test_the_model_by_itself_encodes_as_the_tokenizer(tmp_path, type_, rule, byte_fallback):
    tokenizer = trained(
        tmp_path,
        type=type_,
        byte_fallback=byte_fallback,
        shared=rule != "nfkc",
        source_normalization=rule,
        target_normalization=RULES[RULES.index(rule) - 1],
    )
    lines = without_mark(hostile_lines())
    assert processor(tokenizer.source_sentencepiece()).encode(lines) == tokenizer.encode_source(lines)
    assert processor(tokenizer.target_sentencepiece()).encode(lines) == tokenizer.encode_target(lines)


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char"])
def test_the_naughty_strings_are_no_exception(tmp_path, type_):
    path = Path(os.environ.get("MTKIT_DATA", "nowhere")) / "robustness" / "blns.txt"
    if not path.is_file():
        pytest.skip("MTKIT_DATA has no robustness/blns.txt")
    lines = path.read_text("utf-8").split("\n")
    tokenizer = trained(tmp_path, type=type_, target_normalization="nfkc")
    assert processor(tokenizer.source_sentencepiece()).encode(lines) == tokenizer.encode_source(lines)
    assert processor(tokenizer.target_sentencepiece()).encode(lines) == tokenizer.encode_target(lines)


def test_a_space_mark_in_the_text_makes_no_single_space_with_another(tmp_path):
    tokenizer = trained(tmp_path, source_normalization="nmt_nfkc", target_normalization="nfkc")
    own, other = processor(tokenizer.target_sentencepiece()), f"a{SPACE_MARK}b"
    assert own.encode(other) == tokenizer.encode_target([other])[0]
    for line in (f"a{SPACE_MARK} b", f"{SPACE_MARK}a", f"a {SPACE_MARK}b"):
        (row,) = tokenizer.encode_target([line])
        found = own.encode(line)
        assert found != row
        assert tokenizer.decode_target([found])[0].split() == tokenizer.decode_target([row])[0].split()
    # nmt_nfkc turns it into a space.
    marked = [line for line in HOSTILE if SPACE_MARK in line]
    assert len(marked) == 2
    assert processor(tokenizer.source_sentencepiece()).encode(marked) == tokenizer.encode_source(marked)


def test_a_symbol_before_a_combining_mark_stays_whole(tmp_path):
    tokenizer = trained(tmp_path, source_normalization="nfkc")
    line = "<2de>\u0338 x"  # the rule joins the last character of the symbol and the combining mark
    assert tokenizer.normalize_source(line) == "<2de≯ x"
    own = processor(tokenizer.source_sentencepiece())
    assert TAGS[0] in own.encode(line, out_type=str)
    assert TAGS[0] not in tokenizer.source_pieces(tokenizer.encode_source([line])[0])


@pytest.mark.parametrize("rule", RULES)
def test_of_words_only_unknown_ones_in_a_row_differ(tmp_path, rule):
    tokenizer = trained(tmp_path, type="word", source_normalization=rule)
    lines = without_mark([*hostile_lines(), "the unseen unseen house unseen", *SOURCE])
    own = processor(tokenizer.source_sentencepiece()).encode(lines)
    rows = tokenizer.encode_source(lines)
    assert own != rows
    once = [[id_ for id_, same in groupby(row) for id_ in ([id_] if id_ == UNKNOWN else same)] for row in rows]
    assert own == once


@pytest.mark.parametrize("shared", [True, False])
def test_pieces_and_scores_stand_in_the_order_of_their_ids(tmp_path, shared):
    tokenizer = trained(tmp_path, shared=shared, vocab_size=300)
    for pieces, scores, model, size in (
        (
            tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
            tokenizer.source_scores(),
            tokenizer.source_sentencepiece(),
            tokenizer.source_vocab_size,
        ),
        (
            tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
            tokenizer.target_scores(),
            tokenizer.target_sentencepiece(),
            tokenizer.target_vocab_size,
        ),
    ):
        assert len(pieces) == size
        assert [(piece.text, piece.score) for piece in pieces_of(model)] == list(zip(pieces, scores, strict=True))
    assert (
        tokenizer.source_pieces(range(tokenizer.source_vocab_size))
        == tokenizer.target_pieces(range(tokenizer.target_vocab_size))
    ) == shared
