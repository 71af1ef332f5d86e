"""Placeholders that are never split, single digits, a vocabulary size per side, additional text for tokenizers."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from mtkit.bundle.bundle import open_bundle
from mtkit.cli import main
from mtkit.config.data_and_model_settings import SideSizes, TokenizerConfig
from mtkit.config.load import config_from_text, load_config
from mtkit.config.settings import Config, config_text
from mtkit.errors import ConfigError, DataError, MtkitError
from mtkit.exchange.formats import export, extend, import_model
from mtkit.pipeline import run_train
from mtkit.preparation.prepare import binarize, make_tokenizer, tokenizer_is_current
from mtkit.text.tokenizer import Tokenizer, extended, train_tokenizer
from mtkit.translation.translator import Translator, load
from tests.conftest import CorpusFiles, config_with, toy_pairs, toy_settings, write_lines

SYMBOLS = ["<url>", "⟨num⟩", "%s", "<url>2", "__", '"q,"']
LINES = ["see <url> now", "(<url>). %s%s and ⟨num⟩", "the house is small", "the houses are large", "__init__"] * 20
LINES += [source for source, _ in toy_pairs(200)]
PLACEHOLDERS = ["see <url> now", "(<url>).", "%s%s ⟨num⟩<url>2x", '__ "q," <url', "<url>", "<url>house", "%d %s", ""]
TYPES = ["bpe", "unigram", "char", "word"]


def settings_of(**settings: Any) -> TokenizerConfig:
    return TokenizerConfig.model_validate_json(json.dumps({"vocab_size": 360, **settings}))


def trained(directory: Path, source: list[str], target: list[str], tags: tuple[str, ...] = (), **settings: Any):
    reports = train_tokenizer(lambda: source, lambda: target, settings_of(**settings), directory, tags)
    return Tokenizer.load(directory), reports


def sides(tokenizer: Tokenizer) -> list[tuple[Callable, ...]]:
    return [
        (tokenizer.encode_source, tokenizer.decode_source, tokenizer.normalize_source, tokenizer.source_pieces),
        (tokenizer.encode_target, tokenizer.decode_target, tokenizer.normalize_target, tokenizer.target_pieces),
    ]


def whole(pieces: list[str]) -> list[str]:
    """The symbols among pieces, with or without a space mark."""
    return [bare for piece in pieces if (bare := piece.removeprefix("▁")) in SYMBOLS]


FOUND = [["<url>"], ["<url>"], ["%s", "%s", "⟨num⟩", "<url>2"], ["__", '"q,"'], ["<url>"], ["<url>"], ["%s"], []]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("type_", TYPES)
def test_a_symbol_is_one_piece_on_both_sides_wherever_it_stands(tmp_path: Path, type_: str, shared: bool) -> None:
    tokenizer, _ = trained(tmp_path, LINES, LINES[::-1], ("<2de>",), type=type_, shared=shared, symbols=SYMBOLS)
    assert tokenizer.tags == ("<2de>",)
    assert tokenizer.symbols == tuple(SYMBOLS)
    for encode, decode, normalize, pieces in sides(tokenizer):
        rows = encode(PLACEHOLDERS)
        assert [whole(pieces(row)) for row in rows] == FOUND
        if type_ != "word":
            assert decode(rows) == PLACEHOLDERS == [normalize(line) for line in PLACEHOLDERS]
    if type_ == "word":
        assert tokenizer.decode_target(tokenizer.encode_target(["see <url>now"])) == ["see <url> now"]
        assert tokenizer.normalize_target("see <url>now") == "see <url> now"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("type_", ["bpe", "unigram"])
def test_a_symbol_survives_the_sampling_of_segmentations(tmp_path: Path, type_: str, shared: bool) -> None:
    tokenizer, _ = trained(tmp_path, LINES, LINES, type=type_, shared=shared, symbols=SYMBOLS)
    seen = set()
    for seed in range(20):
        for sample, pieces in (
            (tokenizer.sample_source, tokenizer.source_pieces),
            (tokenizer.sample_target, tokenizer.target_pieces),
        ):
            rows = sample([*PLACEHOLDERS, "seven ninety"], 0.7, -1, seed)
            assert [whole(pieces(row)) for row in rows] == [*FOUND, []]
            seen.add(tuple(rows[-1]))
    assert len(seen) > 1, "other words are drawn anew"


def test_a_piece_that_was_added_survives_sampling_too(tmp_path: Path) -> None:
    tokenizer, _ = trained(tmp_path, LINES, LINES)
    larger = extended(tokenizer, ["house"], [])
    id_ = larger.source_vocab_size - 1
    assert all(id_ in larger.sample_source(["the house"], 0.9, -1, seed)[0] for seed in range(20))


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char"])
def test_symbols_are_in_the_model_that_exports_get(tmp_path: Path, type_: str) -> None:
    tokenizer, _ = trained(tmp_path, LINES, LINES, type=type_, shared=False, symbols=SYMBOLS)
    for model, encode in (
        (tokenizer.source_sentencepiece(), tokenizer.encode_source),
        (tokenizer.target_sentencepiece(), tokenizer.encode_target),
    ):
        assert sentencepiece.SentencePieceProcessor(model_proto=model).encode(PLACEHOLDERS) == encode(PLACEHOLDERS)


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (["ﬁ"], "tokenizer.symbols: ﬁ becomes fi by tokenizer.source_normalization; take another, such as <url>"),
        (["\u200b"], "tokenizer.symbols: \u200b becomes nothing by tokenizer.source_normalization; take another, such"),
        (["a▁b"], "tokenizer.symbols: a▁b becomes a b by tokenizer.source_normalization; take another, such as <url>"),
        (["<s>"], "tokenizer.symbols: every vocabulary has a piece of the name <s>; take another, such as <url>"),
        (["<0x41>"], "tokenizer.symbols: every vocabulary has a piece of the name <0x41>; take another, such as <url>"),
    ],
)
@pytest.mark.parametrize("type_", TYPES)
def test_a_symbol_that_text_cannot_hold_is_refused(
    tmp_path: Path, type_: str, symbols: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        trained(tmp_path, LINES, LINES, type=type_, symbols=symbols)
    assert str(raised.value).startswith(message)


def test_a_symbol_that_the_rule_of_the_target_changes_is_refused(tmp_path: Path) -> None:
    rules = {"source_normalization": "identity", "target_normalization": "nfkc"}
    with pytest.raises(ConfigError, match=r"½ becomes 1⁄2 by tokenizer\.target_normalization"):
        trained(tmp_path, LINES, LINES, symbols=["½"], **rules)


def test_too_few_pieces_for_the_symbols_are_told(tmp_path: Path) -> None:
    symbols = [f"<{number}>" for number in range(200)]
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size 300 is too small .*; set it to 4\d\d or more"):
        trained(tmp_path, LINES, LINES, vocab_size=300, symbols=symbols)


def test_settings_about_symbols_that_cannot_be_are_refused() -> None:
    for text, line in (
        ("tokenizer: {symbols: [<a>, <a>]}", "x.yaml:1: tokenizer.symbols: symbols has <a> twice"),
        ("tokenizer: {symbols: [a b]}", r"x.yaml:1: tokenizer.symbols[0]: found a b, wants text that matches ^\S+$"),
        (
            "{tokenizer: {symbols: [<a>]}, data: {train: [{tsv: a, tag: <a>}]}}",
            "x.yaml:1: tokenizer.symbols has <a>, which is a tag of data.train, too; take it out of one of them",
        ),
        (
            "tokenizer: {type: word, split_digits: true}",
            "x.yaml:1: tokenizer: split_digits true is not for type word, whose pieces are words, with all their "
            "characters",
        ),
        (
            "tokenizer: {vocab_size: {source: 300, target: 400}}",
            "x.yaml:1: tokenizer: vocab_size {source: 300, target: 400} wants shared false; one vocabulary has one "
            "size",
        ),
        (
            "{tokenizer: {shared: false, vocab_size: {source: 300, target: 99}}, model: {tie_embeddings: none}}",
            "x.yaml:1: tokenizer: vocab_size.target 99 is too small for the 256 bytes of byte_fallback; set it to 264 "
            "or more, or byte_fallback to false",
        ),
        (
            "tokenizer: {vocab_size: {source: 3}}",
            "x.yaml:1: tokenizer.vocab_size.source: found 3, wants a whole number, at least 5, at most 10000000\n"
            "x.yaml:1: tokenizer.vocab_size.target: missing; wants a whole number, at least 5, at most 10000000",
        ),
        (
            "tokenizer: {vocab_size: {source: 300, target: 300, targte: 3}}",
            "x.yaml:1: unknown key 'tokenizer.vocab_size.targte'; did you mean 'target'?",
        ),
        (
            "tokenizer: {vocab_size: {source: 300, target: 300, both: 3}}",
            "x.yaml:1: unknown key 'tokenizer.vocab_size.both'; 'tokenizer.vocab_size' takes a whole number, at least "
            "5, at most 10000000, or {source: …, target: …}",
        ),
        ("tokenizer: {text: [{}]}", "x.yaml:1: tokenizer.text[0]: found no file, wants source, target or both"),
        (
            "tokenizer: {text: a}",
            "x.yaml:1: tokenizer.text: found a, wants a list of items, each {source: …} or {target: …}",
        ),
    ):
        with pytest.raises(ConfigError) as raised:
            config_from_text(text, "x.yaml")
        assert str(raised.value) == line


def test_a_size_for_each_side_can_be_said_over_one_for_both_and_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("tokenizer: {vocab_size: 8000, shared: false}\nmodel: {tie_embeddings: none}\n")
    config = load_config(path, ["tokenizer.vocab_size.source=500", "tokenizer.vocab_size.target=400"])
    assert config.tokenizer.vocab_size == SideSizes(source=500, target=400)
    assert config_from_text(config_text(config), "again.yaml") == config
    assert config_from_text("tokenizer: {vocab_size: 8000}", "again.yaml").tokenizer.vocab_size == 8000


@pytest.mark.parametrize("type_", ["bpe", "char"])
def test_each_side_has_the_size_that_is_said_for_it(tmp_path: Path, type_: str) -> None:
    sizes = {"source": 310, "target": 300}
    tokenizer, reports = trained(tmp_path, LINES, LINES, type=type_, shared=False, vocab_size=sizes)
    if type_ == "bpe":
        assert (tokenizer.source_vocab_size, tokenizer.target_vocab_size) == (310, 300)
    assert [report.pieces_asked for report in reports] == [310, 300]
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size\.target 264 is too small"):
        trained(tmp_path / "2", LINES, LINES, shared=False, vocab_size={"source": 300, "target": 264})


def test_a_vocabulary_for_each_side_grows_by_what_is_added_to_it() -> None:
    config = settings_of(shared=False, vocab_size={"source": 290, "target": 280})
    assert config.with_room_for(300, 270).vocab_size == SideSizes(source=300, target=280)
    assert settings_of(vocab_size=290).with_room_for(300, 270).vocab_size == 300


NUMBERS = ["room 2024 12kg x12", "3.14159 2024 2023", "٢٠٢٤ ٢٠٢٣ سنة٢٠٢٤", "१२३४ १२३४", "２０２４", "the 2024"] * 20


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char"])
def test_every_digit_is_a_piece_where_digits_are_split(tmp_path: Path, type_: str) -> None:
    tokenizer, _ = trained(tmp_path, NUMBERS, NUMBERS, type=type_, split_digits=True, source_normalization="identity")
    assert [piece for piece in tokenizer.source_pieces(range(260, tokenizer.source_vocab_size))
            if re.search(r"\d", piece) and len(piece) > 1] == []  # fmt: skip
    pieces = tokenizer.source_pieces(tokenizer.encode_source(["x12 2024 ٢٠٢٤ १२३４"])[0])
    assert [piece for piece in pieces if re.search(r"\d", piece)] == list("122024٢٠٢٤१२३４")
    assert tokenizer.decode_source(tokenizer.encode_source(NUMBERS[:6])) == NUMBERS[:6]
    if type_ != "char":
        drawn = [tokenizer.sample_source(["x12 2024"], 0.5, -1, seed)[0] for seed in range(10)]
        assert all([p for p in tokenizer.source_pieces(row) if p.isdigit()] == list("122024") for row in drawn)
        joined, _ = trained(tmp_path / "joined", NUMBERS, NUMBERS, type=type_)
        assert any(re.search(r"\d\d", piece) for piece in joined.source_pieces(range(260, joined.source_vocab_size)))


def test_a_very_long_number_is_learnt_from_too(tmp_path: Path) -> None:
    lines = ["٣" * 15_000, *["x y z"] * 1000]
    tokenizer, _ = trained(tmp_path, lines, lines, split_digits=True)
    assert tokenizer.source_pieces(tokenizer.encode_source(["٣٣"])[0]) == ["▁", "٣", "٣"]


@pytest.fixture
def with_text(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    """Settings with additional tokenizer text for both sides, one of them compressed."""
    write_lines(tmp_path / "more.src", ["quokka quokka"] * 500)
    write_lines(tmp_path / "more.tgt", ["zebra zebra"] * 700)
    text = [{"source": str(tmp_path / "more.src"), "target": str(tmp_path / "more.tgt")}]
    return make_config(tokenizer={"text": text, "vocab_size": 330})


def test_more_text_trains_the_tokenizer_and_makes_no_pairs(
    with_text: Config, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    make_tokenizer(with_text)
    binarize(with_text)
    told = capsys.readouterr().err
    assert "trained on 4,200 of 4,200 lines" in told
    assert "kept 1,498 pairs" in told
    tokenizer = Tokenizer.load(with_text.run_path / "tokenizer")
    assert len(tokenizer.encode_source(["quokka"])[0]) == len(tokenizer.encode_target(["zebra"])[0]) == 1
    without = make_config(run_dir=with_text.run_path.parent / "without", tokenizer={"vocab_size": 330})
    make_tokenizer(without)
    assert len(Tokenizer.load(without.run_path / "tokenizer").encode_source(["quokka"])[0]) > 1


def test_more_text_of_one_side_trains_the_vocabulary_of_that_side(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "more", ["zebra"] * 100)
    settings = {"text": [{"target": str(tmp_path / "more")}], "shared": False, "vocab_size": 300}
    make_tokenizer(make_config(tokenizer=settings, model={"tie_embeddings": "none"}))
    told = capsys.readouterr().err
    assert "source bpe vocabulary" in told
    assert "trained on 1,500 of 1,500 lines\n" in told
    assert "trained on 1,600 of 1,600 lines\n" in told


def test_text_that_changed_makes_the_tokenizer_out_of_date_and_text_that_moved_does_not(with_text: Config) -> None:
    make_tokenizer(with_text)
    assert tokenizer_is_current(with_text)
    (text,) = with_text.tokenizer.text
    assert text.source is not None
    moved = text.source.with_name("moved")
    shutil.move(text.source, moved)
    with pytest.raises(DataError, match=r"more\.src: no such file"):
        tokenizer_is_current(with_text)
    texts = (text.model_copy(update={"source": moved}),)
    elsewhere = with_text.model_copy(update={"tokenizer": with_text.tokenizer.model_copy(update={"text": texts})})
    assert tokenizer_is_current(elsewhere)
    write_lines(moved, ["another"])
    assert not tokenizer_is_current(elsewhere)
    assert text.target is not None
    text.target.unlink()
    assert tokenizer_is_current(with_text), "all of it is gone, so nothing says that it changed"
    other = with_text.model_copy(update={"tokenizer": with_text.tokenizer.model_copy(update={"type": "unigram"})})
    assert not tokenizer_is_current(other)


def test_text_lies_below_the_root_of_the_data(make_config: Callable[..., Config], corpus_files: CorpusFiles) -> None:
    config = make_config(tokenizer={"text": [{"source": "test.tgt"}]})
    make_tokenizer(config)
    assert tokenizer_is_current(config)
    assert (corpus_files.root / "test.tgt").exists()


@pytest.fixture(scope="module")
def run(corpus_files: CorpusFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates with a tag and a symbol."""
    settings = toy_settings(corpus_files, tmp_path_factory.mktemp("symbols") / "run")
    train = [{**corpus_files.pair("train"), "tag": "<2de>"}]
    valid = [{**corpus_files.pair("valid"), "tag": "<2de>"}]
    run_train(
        config_with(
            settings,
            data={"train": train, "valid": valid},
            tokenizer={"symbols": ["<url>", "%s"]},
            model={"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"},
            training={"max_steps": 2, "validate_every": 2, "save_every": 2},
            decoding={"beam_size": 1},
        )
    )
    return Path(str(settings["run_dir"]))


def test_a_symbol_is_no_tag(run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    translator = load(run)
    with pytest.raises(MtkitError) as raised:
        translator.translate(["one"], tag="<url>")
    told = "tag <url>: the model does not know it; it knows <2de>"
    assert str(raised.value).startswith(told)
    monkeypatch.setattr(sys, "argv", ["mtkit", "translate", str(run), "--tag", "<url>"])
    with pytest.raises(SystemExit):
        main()
    assert capfd.readouterr().err.startswith(f"mtkit: error: {told}")
    searched: list[list[int]] = []

    class Watched(Translator):
        def search(self, sentences, num_best=1, prefixes=(), **options):
            searched.extend(sentences)
            return translator.search(sentences, num_best, prefixes, **options)

    watched = Watched(translator.model, translator.tokenizer, translator.config)
    with pytest.warns(UserWarning, match="looks like a tag"):
        watched.translate(["<url>", "<2de>"])
    assert searched == translator.tokenizer.encode_source(["<url>"]), "of a tag alone there is nothing to translate"


def test_symbols_and_their_ids_survive_being_extended(run: Path, tmp_path: Path) -> None:
    extend(run, tmp_path / "larger", ["Ĝ"], ["<2eo>"])
    before, after = Tokenizer.load(run / "tokenizer"), Tokenizer.load(tmp_path / "larger" / "tokenizer")
    assert after.tags == ("<2de>", "<2eo>")
    assert after.symbols == before.symbols == ("<url>", "%s")
    line = "one <url>, (%s)Ĝ"
    assert after.decode_target(after.encode_target([line])) == [line]
    assert before.encode_target(["<url> %s%s"]) == after.encode_target(["<url> %s%s"])
    assert open_bundle(tmp_path / "larger").config.tokenizer.symbols == ("<url>", "%s")


def test_symbols_are_whole_in_an_export_and_no_tags_in_its_import(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(run, "m2m100", tmp_path / "exported")
    ours, lines = Tokenizer.load(run / "tokenizer"), ["<2de> see <url>, (%s%s)", "<url>", "x<url>y"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    for line, row in zip(lines, ours.encode_source(lines), strict=True):
        assert theirs.convert_ids_to_tokens(theirs(line).input_ids) == [*ours.source_pieces(row), "</s>"]
        assert theirs.decode(theirs(line).input_ids, skip_special_tokens=True) == line
    import_model(tmp_path / "exported", tmp_path / "imported")
    again = Tokenizer.load(tmp_path / "imported" / "tokenizer")
    assert (again.tags, again.symbols) == (("<2de>",), ("<url>", "%s"))
    assert again.decode_source(again.encode_source(lines)) == lines


@pytest.mark.parametrize(("piece", "symbol"), [("x<url>y", "<url>"), ("see<", "<url>"), ("%s%", "%s"), ("a%", "%s")])
def test_a_piece_that_would_split_a_symbol_is_not_added(run: Path, tmp_path: Path, piece: str, symbol: str) -> None:
    with pytest.raises(ConfigError) as raised:
        extend(run, tmp_path / "larger", [piece], [])
    assert str(raised.value) == f"piece {piece}: would split {symbol} of tokenizer.symbols, which is never split"
    with pytest.raises(ConfigError, match="the vocabulary has it already"):
        extend(run, tmp_path / "larger", [symbol], [])


def test_a_tokenizer_that_was_changed_by_hand_is_told(tmp_path: Path) -> None:
    trained(tmp_path, LINES, LINES, symbols=SYMBOLS)
    path = tmp_path / "tokenizer.json"
    for old, new in (('"<url>"', '"<other>"'), ('"own_symbols": [', '"own_symbols": [3, ')):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        with pytest.raises(MtkitError, match=r"tokenizer\.json: damaged"):
            Tokenizer.load(tmp_path)
        path.write_text(text)
