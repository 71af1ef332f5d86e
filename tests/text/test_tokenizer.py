"""Encoding and decoding any text gives the normalised text; incomplete tokenizers are refused."""

import hashlib
import io
import json
import random
import signal
import sys

import pytest
import sentencepiece

from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.errors import CheckpointError, ConfigError, DataError
from mtkit.text import tokenizer as tokenizer_training
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import BEGIN, END, NUM_SPECIAL, PAD, SPACE_MARK, UNKNOWN

HOSTILE = [
    "",
    " ",
    "plain words",
    "  two  spaces  ",
    "<s>",
    "</s>",
    "a<s>b</s>",
    "<pad> <unk> <0x41> <0x0A>",
    SPACE_MARK,
    f"a{SPACE_MARK}b {SPACE_MARK} {SPACE_MARK}c{SPACE_MARK}",
    "\u2585 \u2047",
    "\x00",
    "a\x00b\x00",
    "\t",
    "a\tb\rc\fd\ve",
    "a\u2028b\u0085c\u2029d",
    "\ufeffa\ufeff",
    "\u3000a\u3000b\u00a0c",
    "👩‍👩‍👧 🇫🇷 ☃",
    "\U0002a6d6\U0001f9ff\U0010ffff",
    "e\u0301\u0323 \u0301alone",
    "ﬁ ① Ａ ½ ™",
    "שלום عربي \u200f\u202e x",
    "\u200b",
    "\u0e01\u0e33 देवनागरी",
    "\ud7ff\ue000\ufffd\uffff",
    "x" * 5000,
]


def lines_of(words: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    alphabet = words.split()
    return [" ".join(rng.choices(alphabet, k=rng.randint(1, 8))) for _ in range(200)]


SOURCE = lines_of("le la maison arbre rouge é œuvre garçon où est", seed=1)
TARGET = lines_of("the a house tree red boy where is are ring", seed=2)


def trained(directory, source=SOURCE, target=TARGET, **settings):
    report = train_tokenizer(
        lambda: source, lambda: target, TokenizerConfig(**{"vocab_size": 320, **settings}), directory
    )
    return Tokenizer.load(directory), report


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("tokenizer"))[0]


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc", "nmt_nfkc_zwnj"])
@pytest.mark.parametrize("shared", [True, False])
def test_decoding_what_was_encoded_is_the_normalised_text(tmp_path, rule, shared):
    tokenizer, _ = trained(tmp_path, shared=shared, source_normalization=rule, target_normalization=rule)
    tokens = tokenizer.encode_source(HOSTILE, num_threads=2)
    assert tokenizer.decode_source(tokens) == [tokenizer.normalize_source(line) for line in HOSTILE]
    assert all(id_ >= NUM_SPECIAL for row in tokens for id_ in row)
    tokens = tokenizer.encode_target(HOSTILE)
    assert tokenizer.decode_target(tokens) == [tokenizer.normalize_target(line) for line in HOSTILE]
    assert all(id_ >= NUM_SPECIAL for row in tokens for id_ in row)


def test_random_characters_come_back(tokenizer):
    rng = random.Random(3)
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    lines = ["".join(rng.choices(characters, k=40)) for _ in range(500)]
    assert tokenizer.decode_target(tokenizer.encode_target(lines)) == lines


def test_text_that_looks_like_a_symbol_is_text(tokenizer):
    lines = ["<s>", "</s>", "<pad>", "<unk>", "<0x41>", "x</s>", "<s> <s>"]
    assert tokenizer.decode_target(tokenizer.encode_target(lines)) == lines


def test_symbols_in_the_training_text_stay_text(tmp_path):
    lines = ["a<s>b</s>c<unk>d<pad>e<0x41>f \u2585 \x00 \t <s> </s> <0x41>"] * 50
    tokenizer, _ = trained(tmp_path, source=lines, target=lines, target_normalization="identity")
    tokens = tokenizer.encode_target(lines[:1])
    assert tokenizer.decode_target(tokens) == lines[:1]
    assert all(id_ >= NUM_SPECIAL for id_ in tokens[0])


def test_normalising_changes_no_more_than_its_rule(tmp_path):
    tokenizer, _ = trained(tmp_path, source_normalization="nfkc", target_normalization="identity")
    assert tokenizer.normalize_source(" ﬁne  ½") == "fine 1⁄2"
    assert tokenizer.normalize_target(" ﬁne  ½\t") == "ﬁne ½\t"
    assert tokenizer.normalize_target(f"a{SPACE_MARK} {SPACE_MARK}b") == "a b"


def test_half_of_a_surrogate_pair_is_a_question_mark(tokenizer):
    assert tokenizer.decode_target(tokenizer.encode_target(["a\ud800b"])) == ["a?b"]


def test_decoding_leaves_special_ids_out(tokenizer):
    (tokens,) = tokenizer.encode_target(["the house"])
    assert tokenizer.decode_target([[BEGIN, PAD, UNKNOWN, *tokens, END, PAD], [], [END]]) == ["the house", "", ""]
    assert tokenizer.decode_target([]) == []
    assert tokenizer.encode_target([]) == []


def test_threads_change_nothing(tokenizer):
    assert tokenizer.encode_source(SOURCE, num_threads=4) == tokenizer.encode_source(SOURCE, num_threads=1)


def test_the_same_text_makes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        trained(tmp_path / name, sample_lines=150)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["tokenizer.json", "tokenizer.model"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_vocabulary_is_no_larger_than_asked_and_may_be_smaller(tmp_path):
    _, (full,) = trained(tmp_path / "full", vocab_size=320)
    assert (full.side, full.pieces_asked, full.pieces_made) == ("shared", 320, 320)
    small, (report,) = trained(tmp_path / "small", source=["a b"], target=["a c"], vocab_size=5000)
    assert report.pieces_asked == 5000
    assert report.pieces_made == small.source_vocab_size == small.target_vocab_size < 300


def test_separate_models_have_sizes_of_their_own(tmp_path):
    tokenizer, reports = trained(tmp_path, target=["a b c"], shared=False, vocab_size=300)
    assert [report.side for report in reports] == ["source", "target"]
    assert tokenizer.source_vocab_size == 300 > tokenizer.target_vocab_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.model", "target.model", "tokenizer.json"]


@pytest.mark.parametrize("most", [1, 7, 400, 1000])
def test_a_sample_has_the_size_asked_for(tmp_path, most):
    _, (report,) = trained(tmp_path, sample_lines=most, vocab_size=300)
    assert (report.lines_seen, report.lines_offered) == (min(most, 400), 400)


def test_very_long_lines_count_too(tmp_path):
    tokenizer, (report,) = trained(tmp_path, source=["ab" * 50_000], target=["lorem ipsum " * 2000], vocab_size=300)
    assert report.lines_seen == 2
    assert len(tokenizer.encode_source(["ab" * 8])[0]) <= 2
    assert len(tokenizer.encode_source(["lorem"])[0]) == 1


def test_the_pieces_are_those_that_sentencepiece_learns_from_lines(tmp_path):
    trained(tmp_path, target=SOURCE, shared=False, source_normalization="identity", vocab_size=300)
    plain = plain_model(
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
    )
    ours, theirs = (
        sentencepiece.SentencePieceProcessor(model_proto=model)
        for model in ((tmp_path / "source.model").read_bytes(), plain)
    )
    assert [ours.id_to_piece(id_) for id_ in range(300)] == [theirs.id_to_piece(id_) for id_ in range(300)]


def rewrite_settings(directory, **changes) -> None:
    """Change settings in tokenizer.json and update its hash."""
    path = directory / "tokenizer.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["hash"], content["format"]
    rehashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"format": 1, **content, "hash": rehashed}))


def test_a_file_that_is_no_model_is_told(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"text")
    rewrite_settings(tmp_path, sha256={"tokenizer.model": hashlib.sha256(b"text").hexdigest()})
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": {}}, {"sha256": {"../model": "0"}}, {"source_normalization": "nfd"}, {"type": "words"}, {"shared": 1}],
)
def test_settings_that_cannot_be_are_told(tmp_path, tokenizer, changes):
    tokenizer.save(tmp_path)
    rewrite_settings(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)


def test_nothing_is_printed(tmp_path, capfd):
    trained(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lines", [[], ["", " "], ["\u200b", "\t"]])
def test_text_of_nothing_is_told(tmp_path, lines):
    with pytest.raises(DataError, match=r"^the training text is empty or blank; a tokenizer needs some"):
        trained(tmp_path, source=lines, target=lines, target_normalization="nmt_nfkc")
    with pytest.raises(DataError, match=r"^the training target text is empty or blank"):
        trained(tmp_path, target=lines, target_normalization="nmt_nfkc", shared=False)


def test_a_vocabulary_too_small_for_the_characters_is_told_with_the_number_needed(tmp_path):
    characters = ["".join(chr(0x4E00 + i) for i in range(300))] * 2
    with pytest.raises(ConfigError) as raised:
        trained(tmp_path, source=characters, target=characters, vocab_size=400)
    assert str(raised.value) == (
        "tokenizer.vocab_size 400 is too small for the characters of the training text; "
        "set it to 561 or more, or lower tokenizer.character_coverage"
    )
    trained(tmp_path, source=characters, target=characters, vocab_size=561)


@pytest.mark.parametrize("failure", [DataError("text:2: not valid UTF-8"), KeyboardInterrupt()])
def test_what_goes_wrong_while_reading_goes_through(tmp_path, failure):
    calls = []

    def lines():
        calls.append(1)
        yield "some text"
        if len(calls) == 2:  # the first pass only counts
            raise failure

    with pytest.raises(type(failure)) as raised:
        train_tokenizer(lines, lambda: ["x"], TokenizerConfig(), tmp_path)
    assert raised.value is failure


def test_an_interrupt_while_sentencepiece_asks_for_words_goes_through(tmp_path):
    asked = []

    def interrupt(frame, event, argument) -> None:
        if frame.f_code.co_filename == tokenizer_training.__file__ and "count" in frame.f_code.co_varnames:
            asked.append(event)
            if asked.count("call") == 2:  # the first word is asked for by Python
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    # A shell that runs things in the background has them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGINT, before)
    assert asked == ["call", "return", "call"]


def test_a_saved_tokenizer_is_the_same(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.hash == tokenizer.hash
    assert copy.encode_source(SOURCE) == tokenizer.encode_source(SOURCE)


def test_the_hash_tells_all_that_decides_an_encoding(tmp_path):
    hashes = {
        trained(tmp_path / name, **settings)[0].hash
        for name, settings in {
            "plain": {},
            "size": {"vocab_size": 310},
            "rule": {"source_normalization": "identity"},
            "target": {"target_normalization": "nfkc"},
            "separate": {"shared": False},
        }.items()
    }
    assert len(hashes) == 5


def test_a_missing_tokenizer_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no tokenizer here \(tokenizer\.json is missing\)"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_missing_model_is_told(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: missing"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_model_is_told(tmp_path, tokenizer, damage):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.model"
    model = path.read_bytes()
    path.write_bytes(model[:-10] if damage == "cut" else model[:500] + bytes([model[500] ^ 1]) + model[501:])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: damaged or changed \([\d,]+ bytes that are not what"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "null",
        lambda text: '{"format": 1}',
        lambda text: text.replace("nmt_nfkc", "identity"),
        lambda text: text.replace('"shared": true', '"shared": false'),
        lambda text: text.replace('"shared"', '"shred"'),
    ],
)
def test_damaged_settings_are_told(tmp_path, tokenizer, edit):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)


def test_a_later_format_is_told(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2 is unknown; this version of mtkit reads format 1"):
        Tokenizer.load(tmp_path)


def plain_model(**settings) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE), model_writer=model, model_type="bpe", minloglevel=2, **settings
    )
    return model.getvalue()


def test_a_model_with_other_special_ids_is_told(tmp_path):
    foreign = plain_model(vocab_size=60)
    Tokenizer(foreign, foreign, "bpe", True, "identity", "identity").save(tmp_path)
    with pytest.raises(CheckpointError, match=r"ids are \[-1, 0, 1, 2\]; mtkit wants \[0, 1, 2, 3\]"):
        Tokenizer.load(tmp_path)
