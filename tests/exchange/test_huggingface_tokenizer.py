"""The tokenizers that transformers reads encode and decode as mtkit's own; what differs is told here, case by case."""

import json
import os
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.errors import ConfigError
from mtkit.exchange.huggingface import read_marian_vocabulary, write_m2m100_tokenizer, write_marian_tokenizer
from mtkit.exchange.portable import PortableModel, Vocabulary
from mtkit.text.tokenizer import SPACE_MARK, Tokenizer, train_tokenizer
from mtkit.text.vocabulary import DEFAULT_IDS, UNKNOWN, Piece, SpecialIds, with_pieces
from tests.conftest import CorpusFiles, config_with, toy_settings
from tests.text.test_own_normalization import RULES, TAGS, hostile_lines, without_mark
from tests.text.test_tokenizer import SOURCE, TARGET

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

TYPES = ["bpe", "unigram", "char"]
REPEATED = ["a" * length for length in range(40)] + ["abab" * 5, "aab" * 6 + "a"]
TEXT = SOURCE + TARGET
SPELLING = "the < / > s 0 x A 4 1 p a d u n k <p> </b>"  # as real text has what names of pieces are made of


def trained(directory: Path, text: list[str] = TEXT, tags: list[str] = TAGS, **settings: Any) -> Tokenizer:
    config = TokenizerConfig(**{"vocab_size": 330, **settings})
    train_tokenizer(lambda: text, lambda: text, config, directory, tags)
    return Tokenizer.load(directory)


def in_order(pieces: list[str], scores: list[float], model: bytes, order: list[int]) -> Vocabulary:
    special = SpecialIds(*(order.index(id_) for id_ in DEFAULT_IDS.all))
    return Vocabulary([pieces[id_] for id_ in order], special, model, [scores[id_] for id_ in order])


class Exported:
    """A tokenizer, and what transformers makes of it once the ids stand in another order: the end first, pad last."""

    def __init__(self, tokenizer: Tokenizer, write: Callable[[PortableModel, Path], None], directory: Path) -> None:
        self.tokenizer = tokenizer
        self.order = [3, 1, 2, *range(4, tokenizer.source_vocab_size), 0]
        self.new_ids = {old: new for new, old in enumerate(self.order)}
        sides = (
            (
                tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
                tokenizer.source_scores(),
                tokenizer.source_sentencepiece(),
            ),
            (
                tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
                tokenizer.target_scores(),
                tokenizer.target_sentencepiece(),
            ),
        )
        source, target = (in_order(*side, self.order) for side in sides)
        settings = toy_settings(CorpusFiles(directory), directory)
        self.model = PortableModel(config_with(settings), {}, source, target, tokenizer.tags)
        write(self.model, directory)
        # As the directory of a whole model has it.
        config = {"model_type": "marian" if write is write_marian_tokenizer else "m2m_100"}
        (directory / "config.json").write_text(json.dumps(config))
        self.directory = directory
        self.theirs = transformers.AutoTokenizer.from_pretrained(directory)

    def rows(self, lines: list[str]) -> list[list[int]]:
        """By mtkit, as ids of the export, with the end behind them."""
        rows = self.tokenizer.encode_source(lines)
        return [[self.new_ids[id_] for id_ in row] + [0] for row in rows]

    def differing(self, lines: list[str]) -> list[str]:
        """The lines that they encode otherwise."""
        theirs = self.theirs(lines).input_ids  # all at once, which is faster than one by one
        return [line for line, row, ids in zip(lines, self.rows(lines), theirs, strict=True) if ids != row]

    def decoded(self, lines: list[str]) -> list[tuple[str, str]]:
        """What both say, each its own way, to what mtkit encoded."""
        ours = self.tokenizer.decode_target(self.tokenizer.encode_source(lines))
        return [
            (said, self.theirs.decode(row, skip_special_tokens=True))
            for said, row in zip(ours, self.rows(lines), strict=True)
        ]


def marked_apart(line: str) -> bool:
    """Whether marks stand where the library tokenizers puts them otherwise: in a row, or behind what a rule drops."""
    text = unicodedata.normalize("NFC", line)
    return any(
        unicodedata.category(mark)[0] == "M" and (unicodedata.category(before)[0] in "MC" or before.isspace())
        for before, mark in pairwise(text)
    )


# Half of all combinations, in which any three of the four choices meet in every way.
COMBINATIONS = [
    pytest.param(
        a + b, type_, rule, byte_fallback, tags, id=f"{type_}-{rule}-{byte_fallback}-{'tags' if tags else 'no tags'}"
    )
    for a, type_ in enumerate(TYPES)
    for b, rule in enumerate(RULES)
    for byte_fallback in (True, False)
    for tags in (TAGS, [])
    if (a + b + byte_fallback + bool(tags)) % 2 == 0
]


@pytest.mark.parametrize(("number", "type_", "rule", "byte_fallback", "tags"), COMBINATIONS)
def test_both_encode_as_mtkit(tmp_path, number, type_, rule, byte_fallback, tags):
    tokenizer = trained(
        tmp_path / "tokenizer",
        type=type_,
        text=TEXT if tags else [*TEXT, *[SPELLING] * 40],
        tags=tags,
        source_normalization=rule,
        byte_fallback=byte_fallback,
    )
    lines = [*hostile_lines()[:60], *hostile_lines()[60 + number % 4 :: 4], *REPEATED, *SOURCE[:50], *TARGET[:50]]
    marian = Exported(tokenizer, write_marian_tokenizer, tmp_path / "marian")
    assert type(marian.theirs).__name__ == "MarianTokenizer"
    assert marian.differing(without_mark(lines)) == []
    m2m100 = Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "m2m100")
    assert m2m100.theirs.is_fast
    assert sum(map(marked_apart, lines)) < len(lines) / 3
    assert [line for line in m2m100.differing(lines) if rule == "identity" or not marked_apart(line)] == []
    if byte_fallback:
        said = m2m100.decoded(lines)
        assert [ours for ours, _ in said] == [theirs for _, theirs in said]
        said = marian.decoded(lines)
        assert [ours.strip() for ours, _ in said] == [theirs for _, theirs in said]


@pytest.mark.parametrize(("number", "rule"), [(0, "nfkc"), (1, "nmt_nfkc"), (2, "nmt_nfkc_zwnj")])
def test_a_rule_does_in_tokenizer_json_what_it_does(tmp_path, number, rule):
    characters = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    decomposed = [text for one in characters if (text := unicodedata.normalize("NFD", one)) != one]
    kana = [chr(code) + mark for code in range(0xFF66, 0xFF9E) for mark in "\uff9e\uff9f"]
    # Those few thousand where most happens, a third of them for each of the rules, which are much alike, and some of
    # the others.
    common = [*characters[:13_000:3], *decomposed[:2100]]
    chosen = [*common[number::3], *characters[13_000 + number :: 291], *decomposed[2100 + number :: 87], *kana]
    exported = Exported(trained(tmp_path / "1", source_normalization=rule), write_m2m100_tokenizer, tmp_path / "2")
    # Rules compose otherwise what is a mark and more than one.
    assert set(exported.differing([f"a{text}b" for text in chosen])) <= {"a\u0344b"}


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("write", [write_marian_tokenizer, write_m2m100_tokenizer], ids=["marian", "m2m100"])
def test_real_and_naughty_text_is_no_exception(tmp_path, write, type_):
    data = Path(os.environ.get("MTKIT_DATA", "nowhere"))
    paths = [data / "robustness" / "blns.txt", data / "multi30k" / "val.de", data / "tatoeba-fr-en" / "dev.fr"]
    if not all(path.is_file() for path in paths):
        pytest.skip("MTKIT_DATA has not all of the corpora")
    naughty, german, french = (path.read_text("utf-8").split("\n") for path in paths)
    tokenizer = trained(tmp_path / "tokenizer", text=german[200:], type=type_, vocab_size=1000)
    lines = [*naughty, *german[:200], *(unicodedata.normalize("NFD", line) for line in french[:200])]
    exported = Exported(tokenizer, write, tmp_path / "exported")
    assert exported.differing(lines) == []
    stripped = write is write_marian_tokenizer
    assert [ours for ours, theirs in exported.decoded(lines) if (ours.strip() if stripped else ours) != theirs] == []


def two_sides(directory: Path) -> Path:
    config = TokenizerConfig(vocab_size=320, shared=False, target_normalization="nfkc")
    train_tokenizer(lambda: SOURCE, lambda: TARGET, config, directory, TAGS)
    return directory


def portable(tokenizer: Tokenizer, root: Path) -> PortableModel:
    return PortableModel(
        config_with(toy_settings(CorpusFiles(root), root)),
        {},
        Vocabulary(
            tokenizer.source_pieces(range(tokenizer.source_vocab_size)),
            DEFAULT_IDS,
            tokenizer.source_sentencepiece(),
            tokenizer.source_scores(),
        ),
        Vocabulary(
            tokenizer.target_pieces(range(tokenizer.target_vocab_size)),
            DEFAULT_IDS,
            tokenizer.target_sentencepiece(),
            tokenizer.target_scores(),
        ),
        tokenizer.tags,
    )


def test_a_vocabulary_for_each_side(tmp_path):
    tokenizer = Tokenizer.load(two_sides(tmp_path / "tokenizer"))
    model = portable(tokenizer, tmp_path)
    write_marian_tokenizer(model, tmp_path / "marian")
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "marian")
    lines = without_mark(hostile_lines())[:300]
    assert theirs.separate_vocabs
    assert [theirs(line).input_ids for line in lines] == [[*row, 3] for row in tokenizer.encode_source(lines)]
    rows = tokenizer.encode_target(lines)
    assert [theirs(text_target=line).input_ids for line in lines] == [[*row, 3] for row in rows]
    assert [theirs.decode(row, skip_special_tokens=True) for row in rows] == [
        line.strip() for line in tokenizer.decode_target(rows)
    ]
    found = read_marian_vocabulary(tmp_path / "marian")
    assert (found.source, found.target, found.shared) == (model.source, model.target, False)


# What differs.


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    return trained(directory, tags=[*TAGS, ">>fra<<"], source_normalization="nfkc")


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Without a tag between arrows, which a MarianTokenizer misreads."""
    tokenizer = trained(tmp_path_factory.mktemp("without"), source_normalization="nfkc")
    exported = Exported(tokenizer, write_marian_tokenizer, tmp_path_factory.mktemp("marian"))
    assert type(exported.theirs).__name__ == "MarianTokenizer"
    return exported


@pytest.fixture(scope="module")
def m2m100(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tokenizer, write_m2m100_tokenizer, tmp_path_factory.mktemp("m2m100"))


def test_a_tag_between_arrows_which_marian_misreads_is_read_by_a_tokenizer_json(tokenizer, m2m100, tmp_path):
    arrows = Exported(tokenizer, write_marian_tokenizer, tmp_path)
    assert type(arrows.theirs).__name__ != "MarianTokenizer"
    lines = ["<2de> the house", "the >>fra<< house", ">>fra<< the house"]
    assert arrows.differing(lines) == []
    assert m2m100.differing(lines) == []
    own = transformers.MarianTokenizer.from_pretrained(tmp_path)
    assert own(lines[2]).input_ids == arrows.rows(lines)[2][1:], "it has no space mark before the tag"


def test_arrows_around_what_is_no_tag_are_an_unknown_token_in_marian(marian, m2m100):
    line = ">>xyz<< the house"
    assert marian.theirs.convert_ids_to_tokens(marian.theirs(line).input_ids)[:2] == ["<unk>", "▁the"]
    assert UNKNOWN not in marian.rows([line])[0]
    assert m2m100.differing([line]) == []


def test_a_space_mark_in_the_text_is_kept_by_marian_alone(marian, m2m100):
    lines = [f"the{SPACE_MARK} house", f"{SPACE_MARK}the"]
    assert marian.differing(lines) == lines
    assert m2m100.differing(lines) == []


def test_several_marks_come_in_the_order_of_unicode_in_m2m100(marian, m2m100):
    lines = ["e\u0301\u0323", "e\u0323\u0301", "a\u0302\u0301"]
    assert m2m100.differing(lines) == lines[:1]
    assert marian.differing(lines) == []


def test_a_mark_behind_what_a_rule_drops_joins_the_character_before_it_in_m2m100(tmp_path):
    tokenizer = trained(tmp_path / "tokenizer", source_normalization="nmt_nfkc")
    lines = ["a\x1f\u0301", "a\x1f e", "a\ufdd0"]
    assert Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "m2m100").differing(lines) == [lines[0], lines[2]]
    assert Exported(tokenizer, write_marian_tokenizer, tmp_path / "marian").differing(lines) == []


def test_a_symbol_before_a_mark_stays_whole_in_marian(marian, m2m100):
    line = "<2de>\u0338 x"
    assert marian.differing([line]) == [line]
    assert m2m100.differing([line]) == []


def test_a_name_behind_a_symbol_ends_a_piece_of_bpe_in_m2m100(tmp_path):
    names = ["<2de></s>", "<2de></s><2fr>", "<2de></s>x", "<2de><0x41>", "<2de> </s>"]
    plain = Exported(trained(tmp_path / "1"), write_m2m100_tokenizer, tmp_path / "plain")
    assert plain.differing(names) == []
    text = [*TEXT, *["</p> </b> </s>"] * 100]
    tokenizer = trained(tmp_path / "2", text=text, vocab_size=350)
    assert "</" in tokenizer.source_pieces(range(tokenizer.source_vocab_size))
    assert Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "spelled").differing(names) == names[:2]


def test_the_same_pieces_may_come_in_another_order_in_m2m100(tmp_path):
    base = trained(tmp_path, text=["x y"], tags=[], type="unigram", byte_fallback=False)
    letters = [chr(code) for code in range(ord("a"), ord("x"))]
    singles = [Piece(letter, -5.1 - number / 17) for number, letter in enumerate(letters)]
    doubles = [Piece(2 * letter, -8.3 - number / 13) for number, letter in enumerate(letters)]
    pieces = [*singles, *doubles, Piece("H", -6.7)]
    model = with_pieces(base.source_sentencepiece(), pieces)
    tokenizer = Tokenizer(model, model, "unigram", True, "identity", "identity")
    lines = ["H" * before + 3 * letter + "H" for letter in letters for before in range(1, 20)]
    assert Exported(tokenizer, write_marian_tokenizer, tmp_path / "marian").differing(lines) == []
    m2m100 = Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "m2m100")
    differing = m2m100.differing(lines)
    assert 0 < len(differing) < len(lines)
    assert [sorted(m2m100.theirs(line).input_ids) for line in differing] == list(map(sorted, m2m100.rows(differing)))


@pytest.mark.parametrize("type_", TYPES)
def test_unknown_text_that_is_written_as_a_special_token_is_one_in_marian(tmp_path, type_):
    tokenizer = trained(tmp_path / "tokenizer", text=["a b c d e"], type=type_, byte_fallback=False, tags=[])
    lines = ["</s>", "a </s> b", "☃ </S>"]
    exported = Exported(tokenizer, write_marian_tokenizer, tmp_path / "marian")
    assert exported.differing(lines) == lines[:2]
    assert exported.theirs("a </s> b").input_ids.count(0) == 2
    assert Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "m2m100").differing(lines) == []


@pytest.mark.parametrize("write", [write_marian_tokenizer, write_m2m100_tokenizer], ids=["marian", "m2m100"])
def test_skipping_special_tokens_skips_the_unknown(tmp_path, write):
    exported = Exported(trained(tmp_path / "tokenizer", byte_fallback=False), write, tmp_path / "exported")
    assert exported.decoded(["the ☃ house", "☃"]) == [("the <unk> house", "the  house"), ("<unk>", "")]


def test_white_space_at_the_ends_is_lost_in_decoding_by_marian(tmp_path):
    tokenizer = trained(tmp_path / "tokenizer", source_normalization="identity")
    lines = ["\tthe\u3000"]
    assert Exported(tokenizer, write_marian_tokenizer, tmp_path / "1").decoded(lines) == [(lines[0], "the")]
    assert Exported(tokenizer, write_m2m100_tokenizer, tmp_path / "2").decoded(lines) == [(lines[0], lines[0])]


@pytest.mark.parametrize("write", [write_marian_tokenizer, write_m2m100_tokenizer], ids=["marian", "m2m100"])
def test_words_are_refused(tmp_path, write):
    with pytest.raises(
        ConfigError, match=r"^tokenizer\.type word: .*; train with tokenizer\.type bpe, unigram or char$"
    ):
        write(portable(trained(tmp_path, type="word"), tmp_path), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_m2m100_refuses_a_vocabulary_for_each_side(tmp_path):
    tokenizer = Tokenizer.load(two_sides(tmp_path / "tokenizer"))
    with pytest.raises(ConfigError, match=r"^tokenizer\.shared false: M2M100 has one vocabulary for both sides; train"):
        write_m2m100_tokenizer(portable(tokenizer, tmp_path), tmp_path / "exported")
