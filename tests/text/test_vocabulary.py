"""SentencePiece models are read as SentencePiece reads them, and edits change nothing else."""

import io
import random

import pytest
import sentencepiece

from mtkit.text.vocabulary import (
    Piece,
    charsmap_of,
    cuts_at_spaces,
    model_type_of,
    normalizer_of,
    pieces_of,
    with_defined,
    with_normalizer,
    with_pieces,
)

LINES = ["the house is red", "a boy is where the tree is", "x ½ ﬁ é"] * 20
NEW = [Piece(">>fra<<", 0.0, "user_defined"), Piece("▁newer", -7.5), Piece("é" * 200, 1.5, "unused")]


def model_of(type_: str, **settings) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type=type_,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 40, **settings},
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=["unigram", "bpe", "char", "word"])
def type_(request):
    return request.param


@pytest.fixture(scope="module")
def model(type_):
    special = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "user_defined_symbols": ["<2de>"]}
    return model_of(type_, vocab_size=300, byte_fallback=type_ in ("bpe", "unigram"), **special)


def pieces_by_processor(model: bytes) -> list[Piece]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    kinds = {"unknown": "is_unknown", "control": "is_control", "unused": "is_unused", "byte": "is_byte"}

    def type_of(id_: int) -> str:
        found = [name for name, test in kinds.items() if getattr(processor, test)(id_)]
        return found[0] if found else "normal"

    ids = range(processor.vocab_size())
    return [Piece(processor.id_to_piece(id_), processor.get_score(id_), type_of(id_)) for id_ in ids]


def plain(pieces: list[Piece]) -> list[Piece]:
    """The processor does not report user-defined pieces."""
    return [Piece(piece.text, piece.score, piece.type.replace("user_defined", "normal")) for piece in pieces]


def test_the_pieces_are_those_of_the_processor(model, type_):
    assert plain(pieces_of(model)) == pieces_by_processor(model)
    assert [piece.text for piece in pieces_of(model) if piece.type == "user_defined"][:1] == ["<2de>"]
    assert model_type_of(model) == type_


def test_nothing_changes_where_nothing_is_edited(model):
    size = len(pieces_of(model))
    told = with_pieces(model, [])  # the TrainerSpec has the size asked for
    assert pieces_of(told) == pieces_of(model)
    assert with_pieces(told, []) == told
    assert abs(len(told) - len(model)) <= 1
    assert with_normalizer(model, normalizer_of(model)) == model
    if size == 300:
        assert told == model


def test_new_pieces_stand_behind_the_others(model, type_):
    size = len(pieces_of(model))
    larger = with_pieces(model, NEW)
    assert pieces_of(larger) == [*pieces_of(model), *NEW]
    assert plain(pieces_of(larger)) == pieces_by_processor(larger)
    assert normalizer_of(larger) == normalizer_of(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=larger)
    assert size in processor.encode("a >>fra<< the") or type_ == "word"
    # The processor serialises the message anew, in protobuf's canonical form.
    assert processor.serialized_model_proto() == larger


def test_pieces_that_are_never_split_are_the_models_own_or_stand_behind_them(model):
    old = pieces_of(model)
    (own,) = (place for place, piece in enumerate(old) if piece.text == "<2de>")
    plain = next(place for place, piece in enumerate(old) if piece.type == "normal")
    changed = pieces_of(with_defined(model, ["<new>", old[plain].text, "<2de>"]))
    assert changed[-1] == Piece("<new>", 0.0, "user_defined")
    assert changed[plain] == Piece(old[plain].text, old[plain].score, "user_defined")
    assert [place for place, piece in enumerate(old) if changed[place] != piece] == [plain]
    assert changed[own] == old[own]
    larger = sentencepiece.SentencePieceProcessor(model_proto=with_defined(model, ["<new>"]))
    assert larger.vocab_size() == len(old) + 1


@pytest.mark.parametrize(
    ("options", "usual"),
    [
        ({}, True),
        ({"add_dummy_prefix": False}, False),
        ({"remove_extra_whitespaces": False}, False),
        ({"treat_whitespace_as_suffix": True}, False),
        ({"split_by_whitespace": False}, False),
    ],
)
def test_whether_pieces_are_those_of_words_is_told(options, usual):
    assert cuts_at_spaces(model_of("unigram", **options), "▁") == usual


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity", "nfkc_cf"])
def test_another_normaliser_does_what_it_does(rule):
    text = " ﬁ ½  É\u200b the"
    model = model_of("bpe", normalization_rule_name="nfkc")
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=True, escape_whitespaces=True, remove_extra_whitespaces=True
    )
    changed = with_normalizer(model, normalizer_of(normalizer.serialized_model_proto()))
    assert pieces_of(changed) == pieces_of(model)
    assert sentencepiece.SentencePieceProcessor(model_proto=changed).normalize(text) == normalizer.normalize(text)
    assert (charsmap_of(changed) == b"") == (rule == "identity")


def test_the_message_is_the_one_that_protobuf_reads(model, type_):
    pytest.importorskip("google.protobuf")
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    read = proto.ModelProto.FromString(with_pieces(with_normalizer(model, b"\x0a\x01x"), NEW))
    names = proto.ModelProto.SentencePiece.Type.Name
    assert [Piece(piece.piece, piece.score, names(piece.type).lower()) for piece in read.pieces] == [
        *pieces_of(model),
        *NEW,
    ]
    assert read.trainer_spec.vocab_size == len(read.pieces)
    assert proto.TrainerSpec.ModelType.Name(read.trainer_spec.model_type).lower() == type_
    assert read.normalizer_spec.name == "x"


def test_what_is_unknown_is_kept_and_parts_are_one_message():
    unknown = b"\x9a\x06\x03abc" + b"\xa1\x06" + b"12345678"  # field 99 in bytes, field 100 in 64 bits
    model = unknown + b"\x1a\x03\x0a\x01x" + b"\x0a\x03\x0a\x01a" + b"\x1a\x03\x0a\x01y" + b"\x12\x02\x18\x02"
    assert pieces_of(model) == [Piece("a", 0.0)]
    assert normalizer_of(model) == b"\x0a\x01x\x0a\x01y"
    assert model_type_of(model) == "bpe"
    changed = with_pieces(with_normalizer(model, b""), [Piece("b", 0.0)])
    assert changed == unknown + (
        b"\x1a\x00" + b"\x0a\x03\x0a\x01a" + b"\x0a\x08\x0a\x01b\x15\x00\x00\x00\x00" + b"\x12\x04\x18\x02\x20\x02"
    )


def test_an_empty_message_is_an_empty_model():
    assert (pieces_of(b""), normalizer_of(b""), charsmap_of(b""), model_type_of(b"")) == ([], b"", b"", "unigram")
    assert pieces_of(with_pieces(with_normalizer(b"", b""), NEW)) == NEW


@pytest.mark.parametrize(
    ("damaged", "told"),
    [
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "cut off or damaged"),  # a length of exabytes
        (b"\x0a\x05abc", "cut off or damaged"),
        (b"\x0d\x00\x00", "cut off or damaged"),
        (b"\x02\x01a", "cut off or damaged"),  # field 0
        (b"\x0a", "a number has no end"),
        (b"\x80" * 100, "a number has no end"),
        (b"\x0b\x0c", "a field is written in way 3"),
        (b"\x08\x01", "a number stands where bytes are wanted"),
        (b"\x0a\x02\x12\x00", "a score is no number of 32 bits"),
        (b"\x0a\x02\x18\x09", "piece type 9 is unknown"),
        (b"\x0a\x02\x1a\x00", "field 3 is no number"),
        (b"\x0a\x03\x0a\x01\xff", "can't decode"),
        (b"text", "way 4"),
    ],
)
def test_bytes_that_are_no_model_are_told(damaged, told):
    with pytest.raises(ValueError, match=told):
        pieces_of(damaged)


def test_a_model_of_no_type_is_told():
    with pytest.raises(ValueError, match="model type 7 is unknown"):
        model_type_of(b"\x12\x02\x18\x07")


def test_damage_gives_another_model_or_a_value_error():
    model = model_of("unigram")
    rng = random.Random(1)
    damaged = [model[: rng.randrange(len(model))] for _ in range(100)]
    for _ in range(300):
        bytes_ = bytearray(model)
        for _ in range(rng.randint(1, 4)):
            # Half of them in the first bytes, since most of a model is its compiled rule.
            place = rng.choice([rng.randrange(len(model)), rng.randrange(1500)])
            bytes_[place] = rng.randrange(256)
        damaged.append(bytes(bytes_))
    refused = 0
    for bytes_ in damaged:
        for read in (pieces_of, normalizer_of, charsmap_of, model_type_of, lambda model: with_pieces(model, NEW)):
            try:
                read(bytes_)
            except ValueError:
                refused += 1
    assert 100 < refused < 2000
