"""Existing SentencePiece models, whatever their special ids, can be the tokenizer of a run."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from mtkit.bundle.bundle import open_bundle
from mtkit.bundle.info import pack
from mtkit.config.load import config_from_text, load_config
from mtkit.config.settings import Config, config_text
from mtkit.errors import ConfigError, DataError, MtkitError
from mtkit.exchange.formats import export, extend
from mtkit.pipeline import run_train
from mtkit.preparation.prepare import binarize, make_tokenizer, tokenizer_is_current
from mtkit.text.tokenizer import Tokenizer, existing_tokenizer
from mtkit.text.vocabulary import SpecialIds, pieces_of
from mtkit.translation.stream import check
from mtkit.translation.translator import load
from tests.conftest import CorpusFiles, config_with, toy_pairs, toy_settings, write_toy_corpus
from tests.text.test_own_normalization import hostile_lines

NAMES, DIGITS = zip(*toy_pairs(400), strict=True)
COMPOUNDS = [name.replace(" ", "", 1) for name in NAMES]
LINES = [*NAMES, *DIGITS, *COMPOUNDS, "the ﬁrst house", "seven ninety, eight!"]

# By name: training options of a SentencePiece model, and the ids of padding, unknown, begin and end in its tokenizer.
# Negative ids are added after the model's own pieces, -1 first.
KINDS: dict[str, tuple[dict[str, Any], tuple[int, int, int, int]]] = {
    "default": ({}, (-1, 0, 1, 2)),
    "t5": ({"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, (0, 2, -1, 1)),
    "ours": ({"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}, (0, 1, 2, 3)),
    "no marks": ({"bos_id": -1, "eos_id": -1}, (-1, 0, -2, -3)),
    "other names": ({"pad_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]"}, (3, 0, 1, 2)),
    "text of a mark": ({"user_defined_symbols": "<pad>"}, (-1, 0, 1, 2)),
    "bytes": ({"byte_fallback": True, "vocab_size": 350}, (-1, 0, 1, 2)),
    "char": ({"model_type": "char"}, (-1, 0, 1, 2)),
    "word": ({"model_type": "word"}, (-1, 0, 1, 2)),
    "spaces kept": ({"remove_extra_whitespaces": False, "add_dummy_prefix": False}, (-1, 0, 1, 2)),
    "marks behind": ({"treat_whitespace_as_suffix": True}, (-1, 0, 1, 2)),
    "over spaces": ({"model_type": "unigram", "split_by_whitespace": False}, (-1, 0, 1, 2)),
    "own rule": ({"normalization_rule_name": "nfkc_cf"}, (-1, 0, 1, 2)),
}


@pytest.fixture(scope="module")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> CorpusFiles:
    """A corpus that is soon encoded; must not be changed."""
    return CorpusFiles(write_toy_corpus(tmp_path_factory.mktemp("few"), 200))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a kind to the file of such a model."""
    directory = tmp_path_factory.mktemp("models")

    def model(name: str) -> Path:
        path = directory / f"{name}.model"
        if not path.exists():
            out = io.BytesIO()
            options = {"model_type": "bpe", "vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 2}
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(LINES), model_writer=out, **{**options, **KINDS[name][0]}
            )
            path.write_bytes(out.getvalue())
        return path

    return model


def tokenizer_of(path: Path, *symbols: str, tags: tuple[str, ...] = ()) -> Tokenizer:
    return existing_tokenizer(path, path, shared=True, tags=tags, symbols=symbols)


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_the_model_and_what_it_lacks_stands_behind(models, name: str) -> None:
    path = models(name)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = tokenizer_of(path)
    size, special = theirs.vocab_size(), tokenizer.specials.target
    wanted = SpecialIds(*(id_ if id_ >= 0 else size - 1 - id_ for id_ in KINDS[name][1]))
    assert special == wanted == tokenizer.specials.source
    assert tokenizer.source_pieces(range(size)) == theirs.id_to_piece(list(range(size)))
    assert tokenizer.source_vocab_size == max(size, max(special.all) + 1)
    assert tokenizer.encode_source(LINES) == tokenizer.encode_target(LINES) == theirs.encode(LINES)
    assert len(set(tokenizer.source_pieces(range(tokenizer.source_vocab_size)))) == tokenizer.source_vocab_size


@pytest.mark.parametrize("name", KINDS)
def test_what_is_encoded_comes_back_as_the_model_normalises_it(models, name: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(models(name), *([] if name == "word" else ["<url>", "%s"]))
    tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    lines = [*hostile_lines()[::3], *LINES[::40], "", "  ", "<s> </s> <unk>", "one <url>, %s%s", "▁"]
    rows = tokenizer.encode_source(lines)
    normal = [tokenizer.normalize_source(line) for line in lines]
    special = tokenizer.specials.source
    known = [number for number, row in enumerate(rows) if special.unknown not in row]
    assert len(known) > 20
    decoded = tokenizer.decode_source(rows)
    assert [decoded[number] for number in known] == [normal[number] for number in known]
    assert [not row for row in rows] == [not text for text in normal], "what normalises to nothing has no pieces"
    assert not {id_ for row in rows for id_ in row} & ({*special.all} - {special.unknown}), "no text is a mark"


@pytest.mark.parametrize("name", [name for name in KINDS if name != "word"])
def test_tags_and_symbols_are_given_to_a_model(models, name: str) -> None:
    tokenizer = tokenizer_of(models(name), "<url>", "%s", "one", tags=("<2de>",))
    assert (tokenizer.tags, tokenizer.symbols) == (("<2de>",), ("<url>", "%s", "one"))
    pieces = tokenizer.source_pieces(tokenizer.encode_source(["<2de> two <url>x(%s%s)one"])[0])
    assert [piece for piece in pieces if piece in ("<2de>", "<url>", "%s", "one")] == [
        "<2de>",
        "<url>",
        "%s",
        "%s",
        "one",
    ]
    plain = [line for line in LINES if "one" not in line]
    assert tokenizer.encode_source(plain) == tokenizer_of(models(name)).encode_source(plain)


def test_a_piece_that_becomes_a_symbol_keeps_its_id(models) -> None:
    before = tokenizer_of(models("default"))
    pieces = before.source_pieces(range(before.source_vocab_size))
    id_, text = next(
        (id_, piece) for id_, piece in enumerate(pieces) if piece.isascii() and piece.isalpha() and len(piece) > 1
    )
    after = tokenizer_of(models("default"), text)
    assert after.encode_source([f"x{text}{text}y"])[0].count(id_) == 2
    assert after.source_vocab_size == before.source_vocab_size


@pytest.mark.parametrize(
    ("name", "tag", "message"),
    [
        ("default", "<s>", "<s> is no text to the model; take another tag or symbol"),
        ("bytes", "<0x41>", "<0x41> is no text to the model; take another tag or symbol"),
        ("default", "a▁b", "a▁b holds the mark of a space; take another tag or symbol"),
        ("word", "<url>", "is of type word, which can be given no tags and symbols; found <url>"),
    ],
)
def test_a_symbol_that_a_model_cannot_keep_whole_is_refused(models, name: str, tag: str, message: str) -> None:
    for arguments in ({"symbols": [tag]}, {"tags": [tag]}):
        with pytest.raises(ConfigError) as raised:
            existing_tokenizer(models(name), models(name), shared=False, **arguments)
        assert str(raised.value) == f"tokenizer.model {models(name)}: {message}"


def test_a_file_that_is_no_model_is_told(models, tmp_path: Path) -> None:
    (tmp_path / "t5.vocab").write_text("<pad>\t0\n▁the\t-3.1\n")
    (tmp_path / "text").write_text("the house\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(models("default").read_bytes()[:700])
    for name, message in (
        ("none", "no such file; wants a SentencePiece model"),
        ("", "is a folder; name the SentencePiece model in it"),
        ("t5.vocab", f"is a list of pieces and no model; name {tmp_path / 't5.model'} instead"),
        ("text", "is no SentencePiece model, or damaged; wants FILE.model"),
        ("empty", "is no SentencePiece model, or damaged; wants FILE.model"),
        ("cut", "is no SentencePiece model, or damaged; wants FILE.model"),
    ):
        with pytest.raises(ConfigError) as raised:
            tokenizer_of(tmp_path / name)
        assert str(raised.value) == f"tokenizer.model {tmp_path / name}: {message}"


def test_two_models_are_of_one_type(models) -> None:
    with pytest.raises(ConfigError, match=r"is of type bpe and .* of type unigram; wants two of one type"):
        existing_tokenizer(models("default"), models("t5"), shared=False)


TRAINED = "is for a tokenizer that is trained, and model names one; take out one of both"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: {model: a, type: unigram}", f"tokenizer: type unigram {TRAINED}"),
        ("tokenizer: {model: a, vocab_size: 500}", f"tokenizer: vocab_size 500 {TRAINED}"),
        ("tokenizer: {model: a, byte_fallback: false}", f"tokenizer: byte_fallback false {TRAINED}"),
        ("tokenizer: {model: a, split_digits: true}", f"tokenizer: split_digits true {TRAINED}"),
        ("tokenizer: {model: a, sample_lines: 5}", f"tokenizer: sample_lines 5 {TRAINED}"),
        ("tokenizer: {model: a, character_coverage: 1.0}", f"tokenizer: character_coverage 1.0 {TRAINED}"),
        ("tokenizer: {model: a, source_normalization: nfkc}", f"tokenizer: source_normalization nfkc {TRAINED}"),
        ("tokenizer: {model: a, target_normalization: nfkc}", f"tokenizer: target_normalization nfkc {TRAINED}"),
        ("tokenizer: {model: a, text: [{source: b}]}", f"tokenizer: text [{{source: b, target: null}}] {TRAINED}"),
        (
            "tokenizer: {model: {source: a, target: b}}",
            "tokenizer: model {source: a, target: b} wants shared false; one vocabulary is of one model",
        ),
        ("tokenizer: {model: {source: a}, shared: false}", "tokenizer.model.target: missing; wants a path"),
        ("tokenizer: {model: 5}", 'tokenizer.model: found 5; quote it, "5", if text is meant'),
        ("tokenizer: {model: [a]}", "tokenizer.model: found [a], wants a path, or {source: …, target: …}, or null"),
        (
            "{tokenizer: {model: a}, training: {start_from: b}}",
            "tokenizer.model a is for a model that starts from nothing; that of training.start_from has a tokenizer of "
            "its own",
        ),
    ],
)
def test_settings_that_mean_nothing_beside_a_model_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_from_text(text, "x.yaml")
    assert str(raised.value) == f"x.yaml:1: {message}"


@pytest.mark.parametrize("model", ["a.model", "{source: a.model, target: b.model}"])
def test_a_config_with_a_model_is_printed_and_read_back(model: str) -> None:
    text = f"tokenizer: {{model: {model}, shared: false, source_normalization: model}}\nmodel: {{tie_embeddings: none}}"
    config = config_from_text(text, "x.yaml")
    assert config_from_text(config_text(config), "again.yaml") == config


FEW = {"max_steps": 4, "validate_every": 4, "save_every": 4, "validation_sentences": 8}


def config_of(make_config: Callable[..., Config], tokenizer: dict[str, Any], **sections: Any) -> Config:
    settings = {"training": FEW, "decoding": {"beam_size": 1}, "model": {}, **sections}
    return make_config(**settings, tokenizer={"vocab_size": 8000, **tokenizer})


@pytest.mark.parametrize("name", ["default", "t5", "no marks", "spaces kept", "word"])
def test_a_run_with_a_model_trains_translates_and_travels(
    models, make_config, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(make_config, {"model": str(models(name))})
    run_train(config)
    told = capsys.readouterr().err
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    assert f"tokenizer: {models(name)}, of type {tokenizer.type}; {tokenizer.source_vocab_size} source pieces" in told
    translator = load(config.run_path)
    assert len(translator.translate(["one two", "", "   ", "three"])) == 4
    assert translator.translate(["", "   "]) == ["", ""]
    found = open_bundle(config.run_path).config.tokenizer
    assert (found.model, found.type, found.source_normalization) == (None, tokenizer.type, "model")
    assert load_config(config.run_path / "config.yaml").tokenizer.model == models(name)
    pack(config.run_path, tmp_path / "packed.mtkit")
    assert not check(tmp_path / "packed.mtkit").faults
    run_train(config)
    assert "is up to date" in capsys.readouterr().err


def test_a_longer_training_goes_on_and_another_starts_from_it(models, make_config, tmp_path: Path, capsys) -> None:
    config = config_of(make_config, {"model": str(models("t5")), "symbols": ["<url>"]})
    run_train(config)
    run_train(
        config_of(make_config, {"model": str(models("t5")), "symbols": ["<url>"]}, training={**FEW, "max_steps": 6})
    )
    assert "going on from step 4" in capsys.readouterr().err
    extend(config.run_path, tmp_path / "larger", ["Ĝ"], ["<2eo>"])
    start = {**FEW, "start_from": str(tmp_path / "larger"), "unigram_alpha": 0.3}
    tuned = make_config(run_dir=tmp_path / "tuned", training=start, tokenizer={})
    settings = tuned.model_dump(mode="json", exclude_unset=True)
    settings.pop("tokenizer")
    settings.pop("model")
    run_train(config_with(settings))
    tokenizer = Tokenizer.load(tmp_path / "tuned" / "tokenizer")
    assert (tokenizer.tags, tokenizer.symbols) == (("<2eo>",), ("<url>",))
    old = Tokenizer.load(config.run_path / "tokenizer")
    assert tokenizer.encode_source(list(NAMES[:20])) == old.encode_source(list(NAMES[:20]))


def test_another_file_makes_the_run_out_of_date_and_one_that_moved_or_is_gone_does_not(
    models, make_config, tmp_path: Path
) -> None:
    path, moved = tmp_path / "my.model", tmp_path / "moved.model"
    shutil.copy(models("default"), path)
    config = config_of(make_config, {"model": str(path)})
    run_train(config)
    path.rename(moved)
    assert tokenizer_is_current(config), "a run that was carried elsewhere has all it needs"
    elsewhere = config_of(make_config, {"model": str(moved)})
    assert tokenizer_is_current(elsewhere)
    shutil.copy(models("t5"), moved)
    assert not tokenizer_is_current(elsewhere)
    with pytest.raises(DataError, match="cannot go on"):
        run_train(elsewhere)
    moved.write_text("the house")
    with pytest.raises(ConfigError, match="is no SentencePiece model"):
        run_train(elsewhere)
    for other in ({"symbols": ["<url>"]}, {"shared": False}):
        changed = config_of(make_config, {"model": str(path), **other}, model={"tie_embeddings": "none"})
        assert not tokenizer_is_current(changed)
    assert not tokenizer_is_current(config_of(make_config, {"vocab_size": 400}))


def test_a_tokenizer_that_was_trained_is_none_of_a_model(models, make_config) -> None:
    make_tokenizer(make_config())
    assert not tokenizer_is_current(config_of(make_config, {"model": str(models("default"))}))


def test_the_training_text_decides_nothing_of_a_model(models, make_config, tmp_path: Path) -> None:
    config = config_of(make_config, {"model": str(models("default"))})
    make_tokenizer(config)
    other = config_of(
        make_config, {"model": str(models("default"))}, data={"train": [config.data.valid[0].model_dump(mode="json")]}
    )
    assert tokenizer_is_current(other)


def test_a_model_lies_below_the_root_of_the_data(models, corpus_files: CorpusFiles, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(corpus_files.root, root)
    shutil.copy(models("default"), root / "my.model")
    make_tokenizer(
        config_with(
            toy_settings(CorpusFiles(root), tmp_path / "run"), tokenizer={"model": "my.model", "vocab_size": 8000}
        )
    )
    assert Tokenizer.load(tmp_path / "run" / "tokenizer").is_mapped


@pytest.mark.parametrize(
    ("name", "training", "message"),
    [
        ("default", {"unigram_alpha": 0.1}, "unigram_alpha 0.1 wants a tokenizer of type unigram, and {} is of bpe"),
        ("t5", {"bpe_dropout": 0.1}, "bpe_dropout 0.1 wants a tokenizer of type bpe, and {} is of unigram"),
        (
            "spaces kept",
            {"bpe_dropout": 0.1},
            "bpe_dropout 0.1 draws the pieces of each word by itself, and {} does not",
        ),
        ("marks behind", {"bpe_dropout": 0.1}, "bpe_dropout 0.1 draws the pieces of each word by itself, and {} does"),
        (
            "over spaces",
            {"unigram_alpha": 0.1},
            "unigram_alpha 0.1 draws the pieces of each word by itself, and {} does",
        ),
    ],
)
def test_segmentations_that_a_model_would_not_make_are_not_drawn(models, make_config, name, training, message) -> None:
    config = config_of(make_config, {"model": str(models(name))}, training={**FEW, **training})
    for stage in (make_tokenizer, binarize):
        with pytest.raises(ConfigError) as raised:
            stage(config)
        assert str(raised.value).startswith(f"training.{message}".format(f"tokenizer.model {models(name)}"))
        make_tokenizer(config_of(make_config, {"model": str(models(name))}))


@pytest.mark.parametrize(("name", "sampling"), [("default", {"bpe_dropout": 0.3}), ("t5", {"unigram_alpha": 0.3})])
def test_segmentations_are_drawn_from_a_model(models, make_config, name: str, sampling: dict[str, float]) -> None:
    config = config_of(make_config, {"model": str(models(name)), "symbols": ["<url>"]}, training={**FEW, **sampling})
    run_train(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    texts = [tokenizer.normalize_source(line) for line in [*COMPOUNDS[:5], "one <url>"]]
    drawn = [tokenizer.sample_source(texts, 0.5, -1, seed) for seed in range(5)]
    assert all(tokenizer.decode_source(rows) == texts for rows in drawn)
    assert any(rows[:-1] != drawn[0][:-1] for rows in drawn)
    assert all("<url>" in tokenizer.source_pieces(rows[-1]) for rows in drawn)
    if name == "default":
        assert tokenizer.sample_source(texts, 0.0, -1, 1) == tokenizer.encode_source(texts)


def test_a_model_for_each_side(models, make_config) -> None:
    both = {"source": str(models("default")), "target": str(models("no marks"))}
    config = config_of(
        make_config, {"model": both, "shared": False, "symbols": ["%s"]}, model={"tie_embeddings": "decoder"}
    )
    run_train(config)
    tokenizer = Tokenizer.load(config.run_path / "tokenizer")
    sizes = [sentencepiece.SentencePieceProcessor(model_file=file).vocab_size() for file in both.values()]
    assert (tokenizer.source_vocab_size, tokenizer.target_vocab_size) == (sizes[0] + 2, sizes[1] + 4)
    assert tokenizer.specials.source.all == (sizes[0], 0, 1, 2)
    assert tokenizer.specials.target.all == (sizes[1], 0, sizes[1] + 1, sizes[1] + 2)
    assert tokenizer.decode_target(tokenizer.encode_target(["4 %s"])) == ["4 %s"]
    load(config.run_path).translate(["one"])


def test_the_share_of_unknown_tokens_goes_by_the_id_of_the_model(
    models, make_config, corpus_files, tmp_path, capsys
) -> None:
    root = tmp_path / "data"
    shutil.copytree(corpus_files.root, root)
    for side in ("src", "tgt"):
        (root / f"train.{side}").write_text("one two\n" * 50 if side == "src" else "1 日\n" * 50)
    settings = {"model": str(models("default")), "vocab_size": 8000}
    config = config_with(toy_settings(CorpusFiles(root), tmp_path / "run"), tokenizer=settings)
    make_tokenizer(config)
    capsys.readouterr()
    binarize(config)
    (told,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("unknown tokens"))
    assert told.startswith("unknown tokens: 0.00% of the training source, 33.33% of the training target")


@pytest.mark.parametrize("to", ["ctranslate2", "marian", "m2m100"])
def test_a_run_with_a_model_is_exported(models, make_config, to: str, tmp_path: Path, capsys) -> None:
    layouts = {
        "ctranslate2": {},
        "marian": {"norm_placement": "post"},
        "m2m100": {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"},
    }
    config = config_of(make_config, {"model": str(models("t5")), "symbols": ["%s"]}, model=layouts[to])
    run_train(config)
    export(config.run_path, to, tmp_path / to)
    told = capsys.readouterr().err
    if "nothing was compared" not in told:
        assert "8 of 8 lines have the same ids, 8 the same greedy translation" in told
    if to != "m2m100":
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / to / "source.spm"))
        assert theirs.encode(list(NAMES[:9])) == sentencepiece.SentencePieceProcessor(
            model_file=str(models("t5"))
        ).encode(list(NAMES[:9]))
    else:
        transformers = pytest.importorskip("transformers")
        pieces = Tokenizer.load(config.run_path / "tokenizer")
        other = transformers.AutoTokenizer.from_pretrained(tmp_path / to)
        line = "one  two %s."
        wanted = pieces.source_pieces(pieces.encode_source([line])[0])
        assert other.convert_ids_to_tokens(other(line).input_ids) == [*wanted, "</s>"]


def test_what_the_files_of_other_libraries_cannot_hold_is_told(models, make_config, tmp_path: Path) -> None:
    model = {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"}
    config = config_of(make_config, {"model": str(models("spaces kept"))}, model=model)
    run_train(config)
    with pytest.raises(
        MtkitError, match=r"does not cut text at its spaces, as a tokenizer\.json does; --to ctranslate2"
    ):
        export(config.run_path, "m2m100", tmp_path / "out")
    both = {"source": str(models("default")), "target": str(models("other names"))}
    settings = {"model": both, "shared": False}
    config = make_config(
        run_dir=tmp_path / "post",
        training=FEW,
        tokenizer={"vocab_size": 8000, **settings},
        model={"norm_placement": "post", "tie_embeddings": "decoder"},
    )
    run_train(config)
    message = r"source are <pad> <unk> <s> </s>, those of the target \[PAD\] <unk> \[CLS\] </s>; Hugging Face's Marian"
    with pytest.raises(MtkitError, match=message):
        export(config.run_path, "marian", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_file_is_left_as_it_is(models) -> None:
    before = models("default").read_bytes()
    tokenizer_of(models("default"), "<url>")
    assert models("default").read_bytes() == before
    assert tokenizer_of(models("ours")).models[0] == models("ours").read_bytes(), "nothing is lacking, nothing is added"
    assert pieces_of(before) == pieces_of(tokenizer_of(models("default")).models[0])[:-1]
