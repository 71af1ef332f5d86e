"""A line's translation is its own: no neighbour, order, length or strange model changes, cuts or loses it."""

import gc
import random
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, pairwise, product
from pathlib import Path

import pytest
import torch

import mtkit
from mtkit.bundle.bundle import open_bundle, save_bundle
from mtkit.config.data_and_model_settings import (
    AnyModelConfig,
    DataConfig,
    MaskedConfig,
    MixedConfig,
    RecurrentConfig,
    TokenizerConfig,
    TransformerConfig,
)
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.data.corpus import Corpus
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import DTYPES, new_model
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import BEGIN, END, NUM_SPECIAL, PAD, START_TOKENS, UNKNOWN
from mtkit.translation import translator as translator_module
from mtkit.translation.decode import Fusion, next_log_probs
from mtkit.translation.search import LENGTH_PENALTIES, Hypothesis, beam_search
from mtkit.translation.translator import CUT_OFF, OUT_OF_POSITIONS, Translator
from tests.forked import answer_of

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sees",
    "hears",
    "likes",
    "red",
    "old",
    "small",
    "house",
    "tree",
    "and",
    "or",
]
BYTE = {byte: NUM_SPECIAL + byte for byte in range(256)}  # ids of the pieces <0x00> to <0xFF>


def sentences(count: int, longest: int = 9) -> list[str]:
    """So many made-up lines of very different lengths."""
    chance = random.Random(1)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    lines = sentences(50)
    train_tokenizer(lambda: lines, lambda: lines, TokenizerConfig(vocab_size=320), directory)
    return Tokenizer.load(directory)


SMALL = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 2, "decoder_layers": 2}

# What searches and scores keep their laws over, beside the Transformer that other tests have.
ARCHITECTURES: dict[str, AnyModelConfig] = {
    "transformer": TransformerConfig(**SMALL, tie_embeddings="none"),
    "rnn": RecurrentConfig(d_model=16, attention="none", context="every_step", tie_embeddings="none"),
    "rnn-attention": RecurrentConfig(d_model=16, cell="gru", input_feeding=True, tie_embeddings="none"),
    "mixed": MixedConfig(
        encoder=TransformerConfig(**SMALL),
        decoder=RecurrentConfig(d_model=16, attention="additive"),
        tie_embeddings="none",
    ),
}


# With those that do not decode token by token.
ALL_ARCHITECTURES = {**ARCHITECTURES, "cmlm": MaskedConfig(**SMALL, tie_embeddings="none")}


def settings(
    model: dict[str, object] | AnyModelConfig | None = None, max_length: int = 256, **decoding: object
) -> Config:
    if model is None or isinstance(model, dict):
        model = TransformerConfig(**{**SMALL, "tie_embeddings": "none", **(model or {})})
    # Few translations of random weights end before they must, and the laws hold for short ones, too.
    decoding = {"beam_size": 4, "max_length_ratio": 1.0, "max_length_extra": 5, **decoding}
    if isinstance(model, MaskedConfig):
        decoding |= {"length_candidates": decoding.pop("beam_size"), "iterations": 3}
    return Config(data=DataConfig(max_length=max_length), model=model, decoding=DecodingConfig(**decoding))


def random_translator(tokenizer: Tokenizer, config: Config, precision: str = "fp32", seed: int = 1) -> Translator:
    """A model of random weights that says something else for each source, and now and then ends before it must."""
    model = new_model(config.model, tokenizer.source_vocab_size, tokenizer.target_vocab_size, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "weight" in name and parameter.dim() == 2:
                parameter.mul_(2)
    model.requires_grad_(False)
    return Translator(model.to(DTYPES[precision]).eval(), tokenizer, config)


def stubborn_translator(tokenizer: Tokenizer, config: Config, likes: dict[int, float]) -> Translator:
    """A model that at each step, whatever came before, gives these tokens these logits, and -20 to the others."""
    translator = random_translator(tokenizer, config)
    norm, table = translator.model.decoder.norm, translator.model.output.table
    logits = torch.full((len(table.weight),), -20.0)
    logits[list(likes)] = torch.tensor(list(likes.values()))
    norm.weight.zero_()
    norm.bias.fill_(1.0)
    table.weight.copy_(logits[:, None] / table.weight.shape[1])
    return translator


def found_by(translator: Translator, lines: Sequence[str]) -> list[tuple[str, float]]:
    return [(best.text, best.score) for line in translator.translate_lines(lines) for best in line.translations]


class Recorder(Translator):
    """Keeps what goes into the search and what comes out."""

    def search(
        self,
        sentences: Sequence[Sequence[int]],
        num_best: int = 1,
        prefixes: Sequence[Sequence[int]] = (),
        **options: object,
    ) -> list[list[Hypothesis]]:
        found = super().search(sentences, num_best, prefixes, **options)
        self.seen = [*getattr(self, "seen", []), *map(list, sentences)]
        self.said = [*getattr(self, "said", []), *found]
        return found


def recorder(translator: Translator) -> Recorder:
    return Recorder(translator.model, translator.tokenizer, translator.config)


BEAMS = pytest.mark.parametrize("beam_size", [1, 4])


@BEAMS
@pytest.mark.parametrize("model", ALL_ARCHITECTURES.values(), ids=ALL_ARCHITECTURES.keys())
def test_batch_size_and_order_change_no_translation_in_float64(
    tokenizer: Tokenizer, beam_size: int, model: AnyModelConfig
) -> None:
    lines = sentences(7, longest=5)
    alone = random_translator(tokenizer, settings(model, beam_size=beam_size, batch_tokens=1), "fp64")
    wanted = found_by(alone, lines)
    assert len({text for text, _ in wanted}) > 3
    order = random.Random(2).sample(range(len(lines)), len(lines))
    for batch_tokens in (100_000, 100):  # all in one batch, and in a few
        config = settings(model, beam_size=beam_size, batch_tokens=batch_tokens)
        found = found_by(random_translator(tokenizer, config, "fp64"), [lines[i] for i in order])
        assert [text for text, _ in found] == [wanted[i][0] for i in order]
        scores = torch.tensor([[score, wanted[i][1]] for i, (_, score) in zip(order, found, strict=True)])
        torch.testing.assert_close(scores[:, 0], scores[:, 1], atol=1e-9, rtol=0)


@BEAMS
@pytest.mark.parametrize("model", ALL_ARCHITECTURES.values(), ids=ALL_ARCHITECTURES.keys())
def test_batch_size_changes_no_log_probability_by_a_hundred_thousandth_in_fp32(
    tokenizer: Tokenizer, beam_size: int, model: AnyModelConfig
) -> None:
    translator = random_translator(tokenizer, settings(model, beam_size=beam_size))
    sources = tokenizer.encode_source(sentences(6, longest=5))
    together = [best for (best, *_) in translator.search(sources)]
    for source, hypothesis in zip(sources, together, strict=True):
        [[alone, *_]] = translator.search([source])
        assert abs(alone.score - hypothesis.score) < 1e-5
        assert alone.tokens == hypothesis.tokens


@pytest.mark.parametrize("model", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_beam_of_one_is_greedy_search(tokenizer: Tokenizer, model: AnyModelConfig) -> None:
    translator = random_translator(tokenizer, settings(model, beam_size=1, length_penalty=0.0), "fp64")
    sources = tokenizer.encode_source(sentences(20))
    greedy = [best for [best] in translator.search(sources)]
    batch = padded_batch(ragged(sources), ragged(sources))
    most = torch.tensor([len(source) + 5 for source in sources])
    start = torch.full((len(sources),), BEGIN)
    beam = beam_search(
        partial(next_log_probs, translator.model, (PAD, UNKNOWN, BEGIN)),
        translator.model.encode(batch.source),
        start,
        most,
        END,
        1,
        lambda length: length**0,
    )
    assert [best.tokens for [best] in beam] == [hypothesis.tokens for hypothesis in greedy]
    assert [best.score for [best] in beam] == pytest.approx([hypothesis.score for hypothesis in greedy])


@BEAMS
@pytest.mark.parametrize(
    ("form", "exponent", "start"),
    [
        (*penalty, start)
        for penalty, start in zip(product(["power", "gnmt"], [0.0, 0.7, 1.0]), cycle(START_TOKENS), strict=False)
    ],
)
def test_a_score_is_the_teacher_forced_log_probability_over_the_length_penalty(
    tokenizer: Tokenizer, beam_size: int, form: str, exponent: float, start: str
) -> None:
    model = {"start_token": start, "output_bias": True, "positions": "rotary"}
    config = settings(model, beam_size=beam_size, length_penalty=exponent, length_penalty_form=form)
    translator = random_translator(tokenizer, config, "fp64")
    sources = tokenizer.encode_source(sentences(6))
    found = [best for (best, *_) in translator.search(sources)]
    targets = ragged([hypothesis.tokens for hypothesis in found])
    batch = padded_batch(ragged(sources), targets, translator.model.boundaries)
    with torch.no_grad():
        log_probs = translator.model.output(translator.model(batch.source, batch.target)).log_softmax(-1)
    sums = (
        log_probs.gather(2, batch.labels.clamp(min=0)[:, :, None])[:, :, 0].masked_fill(~batch.target.mask, 0.0).sum(1)
    )
    assert [hypothesis.log_prob for hypothesis in found] == pytest.approx(sums.tolist())
    lengths = torch.tensor([len(hypothesis.tokens) + 1 for hypothesis in found])
    scores = sums / LENGTH_PENALTIES[form](lengths, exponent)
    assert [hypothesis.score for hypothesis in found] == pytest.approx(scores.tolist())


@BEAMS
def test_padding_unknown_and_start_mark_are_never_said(tokenizer: Tokenizer, beam_size: int) -> None:
    likes = {PAD: 9.0, UNKNOWN: 9.5, BEGIN: 10.0, 300: 1.0, 301: 0.5, END: 0.0}
    translator = recorder(stubborn_translator(tokenizer, settings(beam_size=beam_size), likes))
    translator.translate(sentences(5))
    tokens = {token for hypotheses in translator.said for hypothesis in hypotheses for token in hypothesis.tokens}
    assert tokens
    assert tokens <= {300, 301}


def test_the_best_of_many_are_different_best_first_and_begin_with_the_translation(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings())
    lines = sentences(10)
    for line, best in zip(translator.translate_lines(lines, num_best=4), translator.translate(lines), strict=True):
        assert line.text == best
        scores = [translation.score for translation in line.translations]
        assert scores == sorted(scores, reverse=True)
        assert 1 <= len(scores) <= 4


@pytest.mark.parametrize("byte", [0x00, 0x0A, 0x0D])
@BEAMS
def test_a_line_break_or_nul_that_a_model_writes_becomes_a_space(
    tokenizer: Tokenizer, beam_size: int, byte: int
) -> None:
    assert tokenizer.decode_target([[BYTE[byte]]]) == [chr(byte)]
    likes = {BYTE[byte]: 10.0, BYTE[ord("x")]: 9.9, END: -5.0}
    translator = stubborn_translator(tokenizer, settings(beam_size=beam_size, max_length_extra=9), likes)
    [line] = translator.translate(["the cat"])
    assert len(line) >= 9
    assert set(line) <= {" ", "x"}
    assert " " in line


BLANKS = ["", " ", "\t \u3000", "\x01\x02", "\u200b\ufeff", "\n", "\u2581"]


def test_a_line_that_normalises_to_nothing_is_blank_and_its_neighbours_are_not(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings())
    blank = [line for line in BLANKS if not tokenizer.normalize_source(line)]
    assert len(blank) >= 5
    lines = [text for line in blank for text in (line, "the cat")]
    found = translator.translate(lines)
    assert found[::2] == [""] * len(blank)
    assert found[1::2] == translator.translate(["the cat"]) * len(blank)
    assert translator.translate(blank) == [""] * len(blank)


def test_white_space_that_is_too_long_for_the_model_is_blank(tokenizer: Tokenizer, tmp_path: Path) -> None:
    as_it_is = TokenizerConfig(vocab_size=300, source_normalization="identity")
    train_tokenizer(lambda: WORDS, lambda: WORDS, as_it_is, tmp_path)
    translator = random_translator(Tokenizer.load(tmp_path), settings(max_length=8))
    assert translator.translate(["\x1c" * 50, "\u2028" * 50]) == ["", ""]


def only_letters(text: str) -> str:
    return re.sub(r"\s", "", text)


STRANGE = [
    "the cat sees the dog. " * 8,
    "thecatseesthedog" * 6,
    "😀🇩🇪👍🏽" * 4,
    "ﷺ" * 2,
    "مرحبا بالعالم " * 3,
    "今天天气很好，我们去公园吧。" * 2,
    "half \ud800 of a pair \udc00 " * 3,
    "a\u2028b\u0085c\x0cd\x00e " * 6,
]


@pytest.mark.parametrize("max_length", [1, 2, 8, 30])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_a_line_too_long_for_the_model_is_translated_in_parts_and_nothing_is_cut(
    tokenizer: Tokenizer, max_length: int, positions: str
) -> None:
    # Learned positions that hold no more than the longest sentence and a mark.
    model = {"positions": "learned", "max_positions": max_length + 1} if positions == "learned" else {}
    config = settings(model, max_length, beam_size=1)
    translator = recorder(random_translator(tokenizer, config))
    for line in STRANGE:
        translator.seen, translator.said = [], []
        [found] = translator.translate_lines([line])
        assert found.num_parts == len(translator.seen) > 1
        assert all(1 <= len(tokens) <= max_length for tokens in translator.seen)
        # Characters may be parted in their bytes, so the ids are joined before they are text.
        parts = [part.tokens for part in translator._parts([line], [""])]
        assert sorted(parts) == sorted(translator.seen)
        [joined] = tokenizer.decode_source([[token for tokens in parts for token in tokens]])
        assert only_letters(joined) == only_letters(tokenizer.normalize_source(line))
        if positions == "learned":
            assert all(len(best.tokens) <= max_length for best, *_ in translator.said)


def test_the_translations_of_parts_are_joined_and_scored_by_their_mean(tokenizer: Tokenizer) -> None:
    parts = ["the cat sees.", "the dog hears.", "the bird likes."]
    line = " ".join(parts)
    max_length = max(map(len, tokenizer.encode_source(parts)))
    pairs = [f"{one} {two}" for one, two in pairwise(parts)]
    assert all(len(tokens) > max_length for tokens in tokenizer.encode_source(pairs))
    translator = random_translator(tokenizer, settings(max_length=max_length, beam_size=1))
    separate = [line.translations[0] for line in translator.translate_lines(parts)]
    [whole] = translator.translate_lines([line])
    assert whole.num_parts == 3
    assert whole.text.split() == " ".join(part.text for part in separate).split()
    assert whole.translations[0].score == pytest.approx(sum(part.score for part in separate) / 3)


@pytest.mark.parametrize("unit", ["the cat sees. ", "x", "今天。"])
def test_a_line_of_a_hundred_thousand_bytes_is_one_line(tokenizer: Tokenizer, unit: str) -> None:
    translator = stubborn_translator(tokenizer, settings(beam_size=1, batch_tokens=100_000), {END: 5.0})
    lines = ["the cat", unit * (100_000 // len(unit.encode())), "the dog"]
    assert translator.translate(lines) == ["", "", ""]


def counted(lines: Sequence[str], taken: list[int]) -> Iterator[str]:
    for line in lines:
        taken[0] += 1
        yield line


def test_translations_come_before_the_input_ends_and_in_its_order(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translator_module, "WINDOW_LINES", 5)
    translator = random_translator(tokenizer, settings(beam_size=1))
    lines = sentences(17)
    taken = [0]
    found = []
    for number, line in enumerate(translator.translate_lines(counted(lines, taken))):
        assert taken[0] <= 5 * (number // 5 + 1)
        found.append(line.text)
    assert found == [translator.translate([line])[0] for line in lines]


def test_long_lines_make_small_windows(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translator_module, "WINDOW_CHARACTERS", 10_000)
    translator = stubborn_translator(tokenizer, settings(beam_size=1), {END: 5.0})
    taken = [0]
    next(iter(translator.translate_lines(counted(["x" * 1000] * 50, taken))))
    assert taken[0] == 10


def test_at_once_answers_each_line_before_it_takes_the_next(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings(beam_size=1))
    taken = [0]
    for number, _ in enumerate(translator.translate_lines(counted(sentences(5), taken), at_once=True), start=1):
        assert taken[0] == number


def test_a_text_in_the_place_of_a_list_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="list of lines"):
        random_translator(tokenizer, settings()).translate("the cat")


def test_no_lines_give_no_lines(tokenizer: Tokenizer) -> None:
    assert random_translator(tokenizer, settings()).translate([]) == []


def write_bundle(path: Path, tokenizer: Tokenizer, config: Config, model: TranslationModel) -> Path:
    sizes = {"source_vocab_size": tokenizer.source_vocab_size, "target_vocab_size": tokenizer.target_vocab_size}
    save_bundle(path, dict(model.named_parameters()), config, tokenizer.save, sizes)
    return path


@pytest.mark.parametrize("tie", ["none", "decoder", "all"])
def test_a_loaded_model_translates_as_the_one_that_was_saved(tokenizer: Tokenizer, tmp_path: Path, tie: str) -> None:
    config = settings({"tie_embeddings": tie})
    translator = random_translator(tokenizer, config)
    path = write_bundle(tmp_path / "model", tokenizer, config, translator.model)
    loaded = mtkit.load(str(path))
    assert isinstance(loaded, mtkit.Translator)
    lines = sentences(10)
    assert found_by(loaded, lines) == found_by(translator, lines)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_weights_are_used_where_they_lie_in_the_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings({"tie_embeddings": "decoder"})
    path = write_bundle(tmp_path / "model", tokenizer, config, random_translator(tokenizer, config).model)
    model = mtkit.load(path).model
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    ranges = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in maps]
    assert ranges
    for name, parameter in model.named_parameters():
        assert any(begin <= parameter.data_ptr() < end for begin, end in ranges), name


def peak() -> int:
    """The most memory that this process has had, in bytes, since it was last told to forget it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_loading_a_model_takes_little_more_memory_than_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings({"d_model": 256, "num_heads": 4, "d_ff": 32768, "encoder_layers": 1, "decoder_layers": 1})
    path = write_bundle(tmp_path / "model", tokenizer, config, random_translator(tokenizer, config).model)
    size = open_bundle(path).description["weights_bytes"]
    assert size > 100e6

    def growth() -> int:
        # The library of matrix products keeps the memory that its first products have taken.
        mtkit.load(path).translate(["the cat"])
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        mtkit.load(path).translate(["the cat"])
        return peak() - before

    # Each matrix is larger than what malloc may have kept of what was freed, so that a copy of it would count.
    assert size / 4 > 32 << 20
    assert size < answer_of(growth) + (8 << 20) < 1.4 * size


def test_fp64_and_bf16_are_what_they_say(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings()
    path = write_bundle(tmp_path / "model", tokenizer, config, random_translator(tokenizer, config).model)
    for precision, dtype in DTYPES.items():
        translator = mtkit.load(path, precision=precision)
        assert {parameter.dtype for parameter in translator.model.parameters()} == {dtype}
        assert len(translator.translate(sentences(3))) == 3


@pytest.mark.parametrize(
    ("architecture", "beam_size"), [("transformer", 1), *((architecture, 3) for architecture in ALL_ARCHITECTURES)]
)
def test_translations_in_int8_do_not_depend_on_the_batch(
    tokenizer: Tokenizer, tmp_path: Path, architecture: str, beam_size: int
) -> None:
    config = settings(ALL_ARCHITECTURES[architecture], beam_size=beam_size, max_length_extra=3)
    path = write_bundle(tmp_path / "model", tokenizer, config, random_translator(tokenizer, config).model)
    lines = sentences(9, longest=4)
    translator = mtkit.load(path, precision="int8")
    assert translator.precision == "int8"
    found = [
        [text for begin in range(0, 9, num_lines) for text in translator.translate(lines[begin:][:num_lines])]
        for num_lines in (1, 4, 9)
    ]
    # Attention is in fp32, whose last bits depend on the batch; so may a value that lies between two whole numbers.
    assert max(sum(a != b for a, b in zip(found[0], other, strict=True)) for other in found[1:]) <= 1


def test_an_ensemble_translates_in_int8(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings()
    paths = [
        write_bundle(tmp_path / str(seed), tokenizer, config, random_translator(tokenizer, config, seed=seed).model)
        for seed in (1, 2)
    ]
    pair, alone = (mtkit.load(paths[0], precision="int8", ensemble=others) for others in ([paths[1]], []))
    exact = mtkit.load(paths[0], ensemble=[paths[1]])
    lines = sentences(8)
    texts = exact.translate(lines)
    assert pair.precision == "int8"
    for one, other, third in zip(*(each.score(lines, texts) for each in (pair, exact, alone)), strict=True):
        assert one.mean == pytest.approx(other.mean, abs=0.1)
        assert one.mean != other.mean
        assert one.mean != third.mean


def test_settings_of_the_model_give_way_to_those_of_the_caller(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings(max_length_ratio="auto")
    path = write_bundle(tmp_path / "model", tokenizer, config, random_translator(tokenizer, config).model)
    assert mtkit.load(path, ["decoding.beam_size=1"]).config.decoding.beam_size == 1
    numbers = {"max_length_ratio": 2.0}  # where the bundle knows no lengths
    assert mtkit.load(path).config.decoding == config.decoding.model_copy(update=numbers)


# The limit of the length of translations.


def test_the_lengths_of_the_training_pairs_limit_translations(tiny_run: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(tiny_run / "data" / "train")
    limit = corpus.facts()["length_limit"]
    decoding = mtkit.load(tiny_run).config.decoding
    assert (decoding.max_length_ratio, decoding.max_length_extra) == (limit["ratio"], limit["extra"])
    assert decoding.max_length(10) == int(10 * limit["ratio"] + limit["extra"])
    given = mtkit.load(tiny_run, ["decoding.max_length_extra=3"]).config.decoding
    assert (given.max_length_ratio, given.max_length_extra) == (limit["ratio"], 3)
    bundle = open_bundle(tiny_run)
    del bundle.description["training"]["data"]["length_limit"]
    without = bundle.with_length_limit(bundle.config).decoding
    assert (without.max_length_ratio, without.max_length_extra) == (2.0, 20)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_translation_that_reaches_the_limit_is_told(tokenizer: Tokenizer, tmp_path: Path, beam_size: int) -> None:
    piece, end = tokenizer.encode_target(["one"])[0][0], tokenizer.specials.target.end
    config = settings(beam_size=beam_size, max_length_ratio="auto", max_length_extra="auto")
    for liked, notes in ((piece, (CUT_OFF,)), (end, ())):
        model = stubborn_translator(tokenizer, config, {liked: 20.0}).model
        path = write_bundle(tmp_path / str(liked), tokenizer, config, model)
        [line] = mtkit.load(path).translate_lines(["one two"])
        assert line.notes == notes
        [line] = mtkit.load(path, ["decoding.max_length_ratio=1", "decoding.max_length_extra=2"]).translate_lines(["a"])
        assert line.notes == ()  # the user has chosen the limit


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_translation_that_fills_all_positions_is_told_whoever_chose_the_limit(
    tokenizer: Tokenizer, beam_size: int
) -> None:
    piece, end = tokenizer.encode_target(["one"])[0][0], tokenizer.specials.target.end
    learned = {"positions": "learned", "max_positions": 9}
    endless = stubborn_translator(tokenizer, settings(learned, 8, beam_size=beam_size), {piece: 20.0})
    [long, short] = endless.translate_lines(["the cat sees a dog", "a"])
    assert (long.notes, short.notes) == ((OUT_OF_POSITIONS,), ())  # the limit of 5 more tokens than the source
    [line] = stubborn_translator(tokenizer, settings(learned, 8), {end: 20.0}).translate_lines(["the cat sees a dog"])
    assert line.notes == ()
    free = stubborn_translator(tokenizer, settings(beam_size=beam_size), {piece: 20.0})
    assert [line.notes for line in free.translate_lines(["the cat sees a dog"])] == [()]
    only = TransformerConfig(**{**SMALL, **learned, "encoder_layers": 0})
    language_model = new_model(only, tokenizer.target_vocab_size, tokenizer.target_vocab_size, 1).eval()
    for weight, notes in ((0.5, (OUT_OF_POSITIONS,)), (0.0, ())):
        free.fusion = Fusion(language_model, weight)
        assert [line.notes for line in free.translate_lines(["the cat sees a dog"])] == [notes]
