"""Tokenizers from elsewhere: pieces by SentencePiece, ids by a separate vocabulary."""

import io
import json
import random

import pytest
import sentencepiece

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.errors import CheckpointError, ConfigError
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import SpecialIds, Specials

FRENCH = ["le chat dort dans la maison", "un chien mange le pain", "la maison est grande et le jardin petit"]
ENGLISH = ["the cat sleeps in the house", "a dog eats the bread", "the house is large and the garden small"]
TAGS = (">>eng<<", ">>deu<<")


def model_of(lines: list[str], type_: str = "unigram", **settings: object) -> bytes:
    """A SentencePiece model with its own ids and normalisation rule, like Marian's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5),
        model_writer=model,
        model_type=type_,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 60, **settings},
    )
    return model.getvalue()


def pieces_of(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(id_) for id_ in range(3, processor.vocab_size())]


@pytest.fixture(params=["shared", "apart"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A tokenizer with shuffled pieces between its special tokens; apart, the special ids of the sides differ."""
    source, target = model_of(FRENCH), model_of(ENGLISH)
    rng = random.Random(1)
    if request.param == "shared":
        inner = sorted({*pieces_of(source), *pieces_of(target), *TAGS})
        rng.shuffle(inner)
        vocabulary = ["</s>", "<unk>", *inner, "<pad>"]
        special = SpecialIds(pad=len(vocabulary) - 1, unknown=1, begin=None, end=0)
        return made(source, target, True, (vocabulary, vocabulary), Specials(special, special))
    ours, theirs = sorted({*pieces_of(source), *TAGS}), sorted(pieces_of(target))
    rng.shuffle(ours)
    rng.shuffle(theirs)
    vocabularies = ([*ours[:7], "</s>", *ours[7:], "<unk>", "<pad>"], ["<unk>", "</s>", *theirs, "<pad>"])
    specials = Specials(
        SpecialIds(len(vocabularies[0]) - 1, len(vocabularies[0]) - 2, None, 7),
        SpecialIds(len(vocabularies[1]) - 1, 0, None, 1),
    )
    return made(source, target, False, vocabularies, specials)


def made(source: bytes, target: bytes, shared: bool, vocabularies: tuple, specials: Specials) -> Tokenizer:
    return Tokenizer(source, target, "unigram", shared, "model", "model", TAGS, vocabularies, specials)


def test_ids_are_those_of_the_vocabulary_whatever_sentencepiece_calls_them(tokenizer):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_of(FRENCH))
    for line, ids in zip(FRENCH, tokenizer.encode_source(FRENCH), strict=True):
        assert tokenizer.source_pieces(ids) == processor.encode(line, out_type=str)
    for line, ids in zip(ENGLISH, tokenizer.encode_target(ENGLISH), strict=True):
        assert tokenizer.decode_target([ids]) == [line]


def test_the_model_normalises_by_itself(tokenizer):
    [plain, wide] = tokenizer.encode_source(["le chat dort", "  ｌｅ \u3000 chat  dort "])
    assert plain == wide
    assert tokenizer.normalize_source("  ｌｅ \u3000 chat  dort ") == "le chat dort"
    assert tokenizer.decode_source([plain]) == ["le chat dort"]


def test_a_tag_before_the_line_is_one_token_and_elsewhere_it_is_text(tokenizer):
    [tagged, plain, within] = tokenizer.encode_source([">>deu<< le chat", "le chat", "le chat >>deu<<"])
    assert tokenizer.source_pieces(tagged) == [">>deu<<", *tokenizer.source_pieces(plain)]
    assert tagged[0] not in within
    assert tokenizer.normalize_source(">>deu<<  le  chat") == ">>deu<< le chat"


def test_what_has_no_piece_is_unknown_and_shown(tokenizer):
    unknown = tokenizer.specials.target.unknown
    [ids] = tokenizer.encode_target(["the 漢字 cat"])
    assert ids.count(unknown) == 1
    assert tokenizer.target_shows_unknown
    assert tokenizer.decode_target([ids]) == ["the <unk> cat"]


def test_special_ids_are_no_text(tokenizer):
    special = tokenizer.specials.target
    [ids] = tokenizer.encode_target(["the cat"])
    assert tokenizer.decode_target([[special.pad, *ids, special.end], [], [special.end]]) == ["the cat", "", ""]


def test_the_vocabulary_of_the_other_side_helps_out_where_it_is_shared():
    source, target = model_of(FRENCH), model_of(["漢 字", *ENGLISH])
    vocabulary = ["</s>", "<unk>", *sorted({*pieces_of(source), *pieces_of(target)}), "<pad>"]
    special = SpecialIds(len(vocabulary) - 1, 1, None, 0)
    tokenizer = made(source, target, True, (vocabulary, vocabulary), Specials(special, special))
    [ids] = tokenizer.encode_source(["le chat 漢"])
    assert 1 not in ids
    assert tokenizer.decode_source([ids]) == ["le chat 漢"]


def test_a_tokenizer_from_elsewhere_is_saved_and_loaded_whole(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.hash == tokenizer.hash
    assert again.specials == tokenizer.specials
    assert again.tags == TAGS
    lines = [*FRENCH, ">>eng<< un 漢 chat", "", "\ud800", "a\0b"]
    assert again.encode_source(lines) == tokenizer.encode_source(lines)
    assert (again.source_vocab_size, again.target_vocab_size) == (
        tokenizer.source_vocab_size,
        tokenizer.target_vocab_size,
    )
    again.save(tmp_path / "again")
    for path in tmp_path.glob("*.*"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_changed_vocabulary_is_noticed(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    path = next(tmp_path.glob("*vocabulary.json"))
    pieces = json.loads(path.read_text("utf-8"))
    pieces[5], pieces[6] = pieces[6], pieces[5]
    path.write_text(json.dumps(pieces, ensure_ascii=False), "utf-8")
    with pytest.raises(CheckpointError, match=r"vocabulary\.json: damaged or changed"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("nbest", [-1, 8])
def test_segmentations_are_drawn_from_a_tokenizer_from_elsewhere_too(tokenizer, nbest):
    texts = [tokenizer.normalize_source(line) for line in FRENCH]
    drawn = [tokenizer.sample_source(texts, 0.1, nbest, seed) for seed in range(20)]
    assert len({tuple(map(tuple, rows)) for rows in drawn}) > 1
    assert all(tokenizer.decode_source(rows) == texts for rows in drawn)


def test_bytes_spell_what_has_no_piece_where_the_vocabulary_has_them():
    model = model_of(FRENCH, "bpe", vocab_size=320, byte_fallback=True)
    vocabulary = ["</s>", "<unk>", *pieces_of(model), "<pad>"]
    special = SpecialIds(len(vocabulary) - 1, 1, None, 0)
    tokenizer = made(model, model, True, (vocabulary, vocabulary), Specials(special, special))
    assert not tokenizer.target_shows_unknown
    [ids] = tokenizer.encode_target(["le 漢 chat"])
    assert 1 not in ids
    assert tokenizer.decode_target([ids]) == ["le 漢 chat"]


@pytest.mark.parametrize("side", ["source", "target"])
def test_no_new_tokenizer_is_trained_to_normalise_like_one_from_elsewhere(side, tmp_path):
    settings = TokenizerConfig(vocab_size=300, **{f"{side}_normalization": "model"})
    with pytest.raises(ConfigError, match=f"tokenizer.{side}_normalization model is of tokenizers that come from else"):
        train_tokenizer(lambda: FRENCH, lambda: ENGLISH, settings, tmp_path)
