"""U+200C, the zero width non-joiner, which several languages write within words, stays in the source."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from mtkit.bundle.opening import carried_over
from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.config.load import load_config
from mtkit.config.settings import Config
from mtkit.pipeline import run_train
from mtkit.preparation.prepare import keep_normalization, make_tokenizer, tokenizer_is_current
from mtkit.text.tokenizer import Normalizer, Tokenizer, train_tokenizer
from mtkit.text.vocabulary import normalizer_of, rule_keeping
from tests.conftest import CorpusFiles, config_with, toy_settings

TEXT = [
    "می\u200cروم به خانه\u200cها",  # Persian
    "క్\u200cషణం సాఫ్ట్\u200cవేర్",  # Telugu
    "க்\u200cஷ சாஃப்ட்\u200cவேர்",  # Tamil
    "हिन्दी में क्\u200cष",  # Hindi
    "Auf\u200clage",
    "👩\u200d🚀 👨\u200d👩\u200d👧",  # held together by U+200D
]


def trained(directory: Path, lines: list[str], **settings: object) -> Tokenizer:
    config = TokenizerConfig.model_validate({"vocab_size": 400, **settings})
    train_tokenizer(lambda: lines, lambda: lines, config, directory)
    return Tokenizer.load(directory)


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char", "word"])
def test_text_with_joiners_and_non_joiners_comes_back(tmp_path: Path, type_: str) -> None:
    tokenizer = trained(tmp_path, TEXT, type=type_)
    rows = tokenizer.encode_source(TEXT)
    assert tokenizer.decode_source(rows) == TEXT
    assert [tokenizer.normalize_source(line) for line in TEXT] == TEXT
    own = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.source_sentencepiece())
    assert own.encode(TEXT) == rows
    pieces = tokenizer.source_pieces(sorted({id_ for row in rows for id_ in row}))
    assert any("\u200c" in piece for piece in pieces), "it is learnt, not spelled in bytes"


def test_the_rule_is_nmt_nfkc_but_for_that_character() -> None:
    ours, theirs = Normalizer("nmt_nfkc_zwnj"), Normalizer("nmt_nfkc")
    differing = []
    for first in range(0, 0x110000, 0x100):
        texts = [f"a{chr(code)}b" for code in range(first, first + 0x100) if not 0xD800 <= code < 0xE000]
        if ours("".join(texts)) != theirs("".join(texts)):  # each by itself would take seconds
            differing += [text for text in texts if ours(text) != theirs(text)]
    assert differing == ["a\u200cb"]
    assert ours("\u200b ﬁ \u200c\ufeff x\u200c ") == "fi \u200c x\u200c"
    assert ours(ours("ﬁ\u200cﬁ")) == ours("ﬁ\u200cﬁ") == "fi\u200cfi"


@pytest.mark.parametrize("type_", ["bpe", "unigram", "char", "word"])
def test_text_without_it_makes_the_model_of_before(tmp_path: Path, type_: str) -> None:
    lines = [line.replace("\u200c", "") for line in TEXT] + ["plain  text ﬁ ½", "１２\u200b３"]
    new = trained(tmp_path / "new", lines, type=type_)
    old = trained(tmp_path / "old", lines, type=type_, source_normalization="nmt_nfkc")
    assert new.models == old.models
    assert new.encode_source(lines) == old.encode_source(lines)


def test_yaml_that_says_nmt_nfkc_gets_it() -> None:
    assert load_config(None).tokenizer.source_normalization == "nmt_nfkc_zwnj"
    told = load_config(None, ["tokenizer.source_normalization=nmt_nfkc"])
    assert told.tokenizer.source_normalization == "nmt_nfkc"
    assert Normalizer("nmt_nfkc")("می\u200cروم") == "می روم"


def test_a_character_that_a_rule_does_not_replace_cannot_be_kept() -> None:
    rule = Normalizer("nmt_nfkc").spec
    for text, problem in (("x\u0301\u0302\u0303", "does not know"), ("A", "does not replace")):
        with pytest.raises(ValueError, match=problem):
            rule_keeping(rule, text)


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc"])
def test_exported_models_hold_a_rule_as_sentencepiece_writes_it(rule: str) -> None:
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=True, escape_whitespaces=True, remove_extra_whitespaces=True
    )
    try:
        written = normalizer.serialized_model_proto()
    except UnicodeDecodeError:
        pytest.skip("this version of SentencePiece gives no bytes")
    assert Normalizer(rule).spec == normalizer_of(written)


@pytest.fixture
def old_run(make_config: Callable[..., Config]) -> Callable[..., Config]:
    """A run started by an earlier version, whose settings name no rule; settings given here override its settings."""
    few = {"max_steps": 4, "validate_every": 2, "save_every": 2}
    run_train(make_config(training=few, tokenizer={"source_normalization": "nmt_nfkc"}))
    return lambda **sections: make_config(**{"training": few, **sections})


def test_a_run_of_before_goes_on_with_its_rule(old_run: Callable[..., Config], capsys: pytest.CaptureFixture) -> None:
    config = old_run(training={"max_steps": 6, "validate_every": 2, "save_every": 2})
    made = (config.run_path / "tokenizer" / "tokenizer.json").read_bytes()
    capsys.readouterr()
    run_train(config)
    told = capsys.readouterr().err
    assert (
        "tokenizer.source_normalization stays nmt_nfkc, by which this run's tokenizer was made; for new runs it is "
        "nmt_nfkc_zwnj now\n" in told
    )
    assert "going on from step 4" in told
    assert (config.run_path / "tokenizer" / "tokenizer.json").read_bytes() == made
    assert load_config(config.run_path / "config.yaml").tokenizer.source_normalization == "nmt_nfkc"
    run_train(config)
    assert "is up to date" in capsys.readouterr().err


def test_a_rule_that_is_said_is_no_other(old_run: Callable[..., Config]) -> None:
    told = old_run(tokenizer={"source_normalization": "nfkc"})
    assert keep_normalization(told) == told
    assert not tokenizer_is_current(told)


def test_a_run_that_starts_anew_takes_the_new_default(old_run: Callable[..., Config]) -> None:
    config = old_run()
    run_train(config, fresh=True)
    assert Tokenizer.load(config.run_path / "tokenizer").normalize_source("a\u200cb") == "a\u200cb"


def test_a_tokenizer_made_before_stays_though_training_has_not_begun(make_config: Callable[..., Config]) -> None:
    make_tokenizer(make_config(tokenizer={"source_normalization": "nmt_nfkc"}))
    config = make_config()
    assert not tokenizer_is_current(config)
    assert tokenizer_is_current(keep_normalization(config))


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"settings": 3}', b'{"settings": {"source_normalization": ["x"]}}'])
def test_what_is_damaged_is_told_elsewhere(make_config: Callable[..., Config], damage: bytes) -> None:
    config = make_config(tokenizer={"source_normalization": "nmt_nfkc"})
    make_tokenizer(config)
    (config.run_path / "tokenizer" / "provenance.json").write_bytes(damage)
    assert keep_normalization(make_config()) == make_config()


def test_a_model_that_has_another_rule_hands_it_on(tmp_path: Path, corpus_files: CorpusFiles) -> None:
    settings = toy_settings(corpus_files, tmp_path / "run")
    old = str(Path(__file__).parents[1] / "bundles" / "format-2")
    config = config_with({**settings, "model": {}, "tokenizer": {}}, training={"start_from": old})
    assert carried_over(config).tokenizer.source_normalization == "nmt_nfkc"
