"""What a vocabulary cannot spell: <unk> is kept, banned or replaced, and a prefix that holds it is told of."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.config.load import config_from_text
from mtkit.errors import ConfigError
from mtkit.exchange.formats import extend
from mtkit.models.interface import Ensemble
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import UNKNOWN, group_by_word
from mtkit.translation.decode import source_attention
from mtkit.translation.stream import translate
from mtkit.translation.translator import Translator, load
from tests.translation.test_translator import random_translator, sentences, settings

LINES = ["the cat sees zorglub", "zorglub likes a xyzzy tree", "the old dog"]
MODES: dict[str, dict[str, object]] = {
    "greedy": {"beam_size": 1},
    "beam": {},
    "samples": {"method": "sample"},
    "mbr": {"mbr_samples": 4},
    "coverage": {"coverage_penalty": 0.3},
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("words")
    lines = sentences(50)
    train_tokenizer(lambda: lines, lambda: lines, TokenizerConfig(type="word", vocab_size=18), directory)
    return Tokenizer.load(directory)


def translator_with(tokenizer: Tokenizer, unknown: str, seed: int = 1, **decoding: object) -> Translator:
    """A model of random weights; of its 18 words <unk> is one that it says often."""
    return random_translator(tokenizer, settings(unknown=unknown, **decoding), "fp64", seed)


def texts(translator: Translator, prefixes: Sequence[str] | None = None, num_best: int = 1) -> list[list[str]]:
    """All texts that are found for each of the lines."""
    return [
        [translation.text for translation in line.translations]
        for line in translator.translate_lines(LINES, num_best, prefixes=prefixes)
    ]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize(("members", "num_best"), [(1, 3), (2, 1)])
def test_unknown_words_are_kept_or_banned_or_replaced_by_source_words(
    words: Tokenizer, mode: dict[str, object], num_best: int, members: int
) -> None:
    num_best = 1 if mode == {"beam_size": 1} else num_best
    kept, banned, copied = (translator_with(words, unknown, **mode) for unknown in ("keep", "ban", "copy"))
    if members == 2:
        for translator in (kept, banned, copied):
            translator.model = Ensemble([translator.model, translator_with(words, "keep", 2).model])  # type: ignore[list-item]
    found = texts(kept, num_best=num_best)
    assert any("<unk>" in text.split() for line in found for text in line)
    assert not any("<unk>" in text for line in texts(banned, num_best=num_best) for text in line)
    replaced = texts(copied, num_best=num_best)
    assert not any("<unk>" in text for line in replaced for text in line)
    for source, line in zip(LINES, replaced, strict=True):
        for text in line:
            assert set(text.split()) <= {*source.split(), *(words.target_pieces([i])[0].strip("▁") for i in range(18))}


def test_the_word_that_is_copied_is_the_one_attended_to_most(words: Tokenizer) -> None:
    kept, copied = translator_with(words, "keep", beam_size=1), translator_with(words, "copy", beam_size=1)
    for source, before, [after] in zip(LINES, texts(kept), texts(copied), strict=True):
        [ids], [[hypothesis]] = words.encode_source([source]), kept.search(words.encode_source([source]))
        [weights] = source_attention(kept.model, [ids], [hypothesis.tokens], 100)
        assert weights.shape == (len(hypothesis.tokens), len(ids))
        wanted = [
            source.split()[int(row.argmax())] if token == UNKNOWN else word
            for row, token, word in zip(weights, hypothesis.tokens, before[0].split(), strict=True)
        ]
        assert after.split() == wanted


def test_a_long_line_is_copied_from_part_by_part(words: Tokenizer) -> None:
    config = settings(max_length=4, unknown="copy", beam_size=1)
    line = "zorglub sees the cat and xyzzy hears a blorp and the dog"
    [whole] = random_translator(words, config, "fp64").translate_lines([line])
    assert whole.num_parts > 1
    assert "<unk>" not in whole.text


@pytest.mark.parametrize("type_", ["unigram", "bpe", "char"])
def test_characters_without_a_piece_are_copied_with_the_word_they_are_in(type_: str, tmp_path: Path) -> None:
    lines = sentences(50)
    settings_ = TokenizerConfig(type=type_, vocab_size=40, byte_fallback=False)
    train_tokenizer(lambda: lines, lambda: lines, settings_, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    [found] = tokenizer.source_words(["the Ĝat sees 漢"])
    [ids] = tokenizer.encode_source(["the Ĝat sees 漢"])
    assert UNKNOWN in ids
    assert len(found) == len(ids)
    assert {word for word, id_ in zip(found, ids, strict=True) if id_ == UNKNOWN} == {"Ĝat", "漢"}
    [tokens] = tokenizer.encode_target(["a Ĝ cat"])
    assert tokenizer.decode_target([tokens], [["<unk>"]]) == tokenizer.decode_target([tokens]) == ["a <unk> cat"]
    assert tokenizer.decode_target([tokens], [["▁the</s>"]]) == ["a  the</s> cat"]


def test_pieces_belong_to_the_word_that_their_space_mark_begins() -> None:
    assert group_by_word(["▁a", "b", "▁", "c", "d", "▁e"]) == [0, 0, 1, 1, 1, 2]
    assert group_by_word(["▁漢字", "学", "a", "b"]) == [0, 1, 2, 2]
    assert group_by_word([]) == []


def test_copying_wants_attention() -> None:
    text = "model: {architecture: rnn, attention: none}\ndecoding: {unknown: copy}"
    with pytest.raises(ConfigError, match=r"x.yaml:2: decoding.unknown copy wants a model with attention, which tells"):
        config_from_text(text, "x.yaml")
    with pytest.raises(ConfigError, match="found drop, wants one of keep, ban, copy"):
        config_from_text("decoding: {unknown: drop}", "x.yaml")


# Prefixes that the vocabulary cannot spell.


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize(("unknown", "begin"), [("keep", "<unk> the"), ("ban", "Qwerty the"), ("copy", "Qwerty the")])
def test_a_prefix_that_cannot_be_spelled_is_told_and_begins_the_translation(
    words: Tokenizer, mode: dict[str, object], unknown: str, begin: str
) -> None:
    translator = translator_with(words, unknown, **mode)
    with pytest.warns(UserWarning, match="line 2 has a prefix that the target vocabulary cannot spell") as told:
        found = translator.translate(LINES, ["the", "Qwerty the", ""])
    assert len(told) == 1
    assert found[0].startswith("the")
    assert found[1].startswith(begin)


def test_translate_names_the_line_of_such_a_prefix(words: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    translate(translator_with(words, "keep"), BytesIO(b"the cat\na dog\n"), BytesIO(), prefixes=["a", "Qwerty"])
    assert capsys.readouterr().err == (
        "mtkit: warning: line 2 has a prefix that the target vocabulary cannot spell; the model sees <unk> in it\n"
    )


@pytest.mark.filterwarnings("ignore:.*reached the maximum length")  # of a model that has learnt little
@pytest.mark.parametrize("piece", ["Ĝ", "qqq", "<2xx>"])
def test_prefixes_and_scores_are_spelled_without_pieces_that_no_training_has_seen(
    piece: str, tiny_run: Path, tmp_path: Path
) -> None:
    extend(tiny_run, tmp_path / "larger", [] if piece == "<2xx>" else [piece], [piece] if piece == "<2xx>" else [])
    extend(tmp_path / "larger", tmp_path / "largest", ["漢"], [])
    before = load(tiny_run, ["device=cpu"], "fp64")
    lines, prefixes = ["one two", "four"], [piece, f"1 {piece}漢 x{piece}"]
    for path in ("larger", "largest"):
        after = load(tmp_path / path, ["device=cpu"], "fp64")
        found = after.translate(lines, prefixes)
        assert found == before.translate(lines, prefixes)
        assert found[0].startswith(piece)
        for one, other in zip(before.score(lines, prefixes), after.score(lines, prefixes), strict=True):
            assert one.pieces == other.pieces
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
