"""Every way of decoding keeps the laws: N lines, no neighbour's influence, scores that are the model's own."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import mtkit
from mtkit.config.data_and_model_settings import TokenizerConfig
from mtkit.config.settings import Config
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import padded_batch, ragged
from mtkit.errors import CheckpointError, DataError, MtkitError
from mtkit.models.interface import Ensemble
from mtkit.text.tokenizer import Tokenizer, train_tokenizer
from mtkit.text.vocabulary import END
from mtkit.translation.decode import elect, log_probs_of
from mtkit.translation.search import LENGTH_PENALTIES
from mtkit.translation.translator import BREAKS, CUT_SHORT, Translation, Translator
from tests.translation.test_translator import (
    ARCHITECTURES,
    found_by,
    random_translator,
    recorder,
    sentences,
    settings,
    stubborn_translator,
    write_bundle,
)

LINES = sentences(50)
MODES: dict[str, dict[str, object]] = {
    "greedy": {"beam_size": 1},
    "count": {"stopping": "count"},
    "constrained": {"min_length": 3, "no_repeat_ngram": 2},
    "greedy constrained": {"beam_size": 1, "min_length": 3, "no_repeat_ngram": 2},
    "optimal": {"beam_size": 1, "stopping": "optimal", "search_steps": 12},
    "coverage": {"coverage_penalty": 0.4},
    "coverage constrained": {"coverage_penalty": 0.4, "no_repeat_ngram": 2},
    "diverse": {"diversity_groups": 2, "diversity_strength": 0.7},
    "sample": {"method": "sample", "temperature": 1.3},
    "sample constrained": {"method": "sample", "top_k": 50, "top_p": 0.9, "min_length": 3, "no_repeat_ngram": 1},
    "mbr": {"mbr_samples": 6, "mbr_utility": "chrf"},
    "mbr bleu": {"mbr_samples": 6, "mbr_utility": "bleu", "top_k": 10},
}
ALL_MODES = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(lambda: LINES, lambda: LINES, TokenizerConfig(vocab_size=320), directory)
    return Tokenizer.load(directory)


def pair_of(tokenizer: Tokenizer, config: Config, precision: str = "fp64") -> Translator:
    """Two random models that speak as one."""
    members = [random_translator(tokenizer, config, precision, seed).model for seed in (1, 2)]
    return Translator(Ensemble(members), tokenizer, config)


# What no mode may do.


@pytest.mark.parametrize(
    ("architecture", "prefixes", "mode"),
    [
        *(("transformer", True, mode) for mode in MODES),  # every third prefix of a line is empty
        *(("rnn-attention", False, mode) for mode in list(MODES)[::2]),
    ],
)
def test_batch_size_and_order_change_no_translation_in_float64(
    tokenizer: Tokenizer, architecture: str, prefixes: bool, mode: str
) -> None:
    lines = ["the cat sees the dog. " * 5, "", *sentences(3)]  # the first is translated in two parts
    begins = ["", "the", "the old", "", "a"]

    def found(batch_tokens: int, order: Sequence[int], num_best: int = 2) -> list[list[Translation]]:
        decoding = {"beam_size": 4, "max_length_extra": 3, "batch_tokens": batch_tokens, **MODES[mode]}
        config = settings(ARCHITECTURES[architecture], 24, **decoding)
        translator = random_translator(tokenizer, config, "fp64")
        num_best = 1 if config.decoding.beam_size == 1 else num_best
        chosen = translator.translate_lines(
            [lines[i] for i in order], num_best, prefixes=[begins[i] for i in order] if prefixes else None
        )
        return [line.translations for line in chosen]

    in_order = list(range(len(lines)))
    wanted = found(1, in_order)
    assert [translation.text for translation in wanted[1]] == [""]
    order = random.Random(2).sample(in_order, len(lines))
    for i, translations in zip(order, found(100_000, order), strict=True):
        assert [translation.text for translation in translations] == [best.text for best in wanted[i]]
        scores = [translation.score for translation in translations]
        assert scores == pytest.approx([best.score for best in wanted[i]], abs=1e-9)
        assert scores == sorted(scores, reverse=True)


def test_lines_whose_exact_search_was_cut_short_are_told_and_others_are_not(tokenizer: Tokenizer) -> None:
    likes = {300: 2.0, END: 1.5}
    for steps, notes in ((1, (CUT_SHORT,)), (1000, ())):
        config = settings(stopping="optimal", search_steps=steps, length_penalty=1.0)
        translator = stubborn_translator(tokenizer, config, likes)
        assert [line.notes for line in translator.translate_lines(["the cat", ""])] == [notes, ()]


def test_the_same_line_has_the_same_samples_and_another_seed_others(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings(method="sample"))
    first, second, third = translator.translate(["the old cat sees", "a dog", "the old cat sees"])
    assert first == third != second
    other = random_translator(tokenizer, settings(method="sample", seed=2))
    assert other.translate(LINES) != translator.translate(LINES)


def test_samples_are_as_many_as_are_asked_for_and_duplicates_stay(tokenizer: Tokenizer) -> None:
    likes = {300: 2.0, END: 1.5}
    translator = stubborn_translator(tokenizer, settings(method="sample"), likes)
    [line] = translator.translate_lines(["the cat"], num_best=200)
    assert len(line.translations) == 200
    scores = [translation.score for translation in line.translations]
    assert scores == sorted(scores, reverse=True)
    # It ends at each step with the same probability.
    end = math.exp(1.5) / (math.exp(2.0) + math.exp(1.5))
    share = Counter(translation.text for translation in line.translations)[""] / 200
    assert abs(share - end) < 4 * math.sqrt(end * (1 - end) / 200)


def test_samples_that_are_sure_are_what_greedy_search_finds(tokenizer: Tokenizer) -> None:
    greedy = random_translator(tokenizer, settings(beam_size=1), "fp64")
    for sure in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-9}):
        translator = random_translator(tokenizer, settings(method="sample", **sure), "fp64")
        assert translator.translate(LINES) == greedy.translate(LINES), sure


# The n best.


def test_the_n_best_are_different_texts_and_the_first_is_always_the_same(tokenizer: Tokenizer) -> None:
    # The byte of a letter and its piece are the same text.
    [[*_, letter]] = tokenizer.encode_target(["the cat a"])
    piece = tokenizer.target_pieces([letter])[0]
    byte = next(token for token in range(4, 260) if tokenizer.decode_target([[token]]) == [piece.strip("▁")])
    twins = {byte: 3.0, letter: 2.9, END: 2.8, 301: 0.0}
    translator = stubborn_translator(tokenizer, settings(beam_size=6, length_penalty=0.0), twins)
    doubled = recorder(translator)
    lists = {n: next(doubled.translate_lines(["the cat"], n)).translations for n in range(1, 7)}
    assert any(
        len({*map(tuple, tokenizer.decode_target([h.tokens for h in found]))}) < len(found) for found in doubled.said
    )
    for n, translations in lists.items():
        texts = [translation.text for translation in translations]
        assert len(set(texts)) == len(texts) <= n
        assert translations[0] == lists[1][0]
    for n in (1, 2, 4):
        random_one = random_translator(tokenizer, settings(), "fp64")
        assert [line.text for line in random_one.translate_lines(LINES[:15], n)] == random_one.translate(LINES[:15])


# Constraints.


def test_translations_begin_with_their_prefix_and_are_scored_with_it(tokenizer: Tokenizer) -> None:
    prefixes = ["the old", "", "a small house and a", "bird xyz é 日本"]
    for mode in ({}, {"beam_size": 1}, {"method": "sample"}, {"stopping": "count"}, {"no_repeat_ngram": 1}):
        translator = random_translator(tokenizer, settings(length_penalty=0.0, **mode), "fp64")
        found = recorder(translator)
        texts = found.translate(LINES[:4], prefixes)
        for text, prefix in zip(texts, prefixes, strict=True):
            assert text.startswith(prefix)
        assert translator.translate(LINES[:4], [""] * 4) == translator.translate(LINES[:4])
        encoded = sorted(map(tuple, tokenizer.encode_target(prefixes)))
        for (best, *_), source in zip(found.said, found.seen, strict=True):
            assert any(tuple(best.tokens[: len(prefix)]) == prefix for prefix in encoded)
            [log_probs] = log_probs_of(translator.model, [source], [best.tokens], 1)
            assert best.log_prob == pytest.approx(sum(log_probs), abs=1e-9)


def test_a_split_line_has_its_prefix_once_and_a_blank_one_none(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings(None, 8, beam_size=2, max_length_extra=0))
    found = recorder(translator)
    texts = found.translate(["the cat sees the dog. " * 5, " "], ["old tree", "old tree"])
    assert texts[0].startswith("old tree")
    assert texts[1] == ""
    [prefix] = tokenizer.encode_target(["old tree"])
    assert sum(best.tokens[: len(prefix)] == prefix for best, *_ in found.said) == 1 < len(found.said)


def test_prefixes_that_are_too_many_too_few_or_too_long_are_told(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings())
    for prefixes, told in (
        (["the"], "the prefixes end after 1, but there are more lines; line n of both belong together"),
        (
            ["the"] * 3,
            "the lines end after 2, but there are more prefixes; line n of both belong together",
        ),
    ):
        with pytest.raises(DataError) as error:
            translator.translate(["a", "b"], prefixes)
        assert str(error.value) == told
    with pytest.raises(TypeError, match="list of lines"):
        translator.translate(["the cat"], "the")
    learned = random_translator(tokenizer, settings({"positions": "learned", "max_positions": 9}, 8))
    with pytest.warns(UserWarning, match="line 1 has a translation that fills all positions of the model"):
        assert learned.translate(["the cat"], ["x" * 7])[0].startswith("x" * 7)
    with pytest.raises(DataError, match=r"^prefix 'x{40}' has 6\d tokens, and the model can take 8; shorten it$"):
        learned.translate(["the cat"], ["x" * 60])


def test_no_repetition_and_the_fewest_tokens_are_kept_to(tokenizer: Tokenizer) -> None:
    for likes in ({300: 9.0, 301: 8.0, END: 8.5}, {300: 9.0, END: 9.5}):
        for beam_size in (1, 3):
            config = settings(beam_size=beam_size, min_length=6, no_repeat_ngram=2)
            translator = recorder(stubborn_translator(tokenizer, config, likes))
            translator.translate(["the cat"])
            [[best, *_]] = translator.said
            assert len(best.tokens) >= 6
            bigrams = list(zip(best.tokens, best.tokens[1:], strict=False))
            assert len(set(bigrams)) == len(bigrams)


def test_where_fewer_tokens_have_room_than_are_wanted_the_room_is_filled(tokenizer: Tokenizer) -> None:
    config = settings(min_length=50, max_length_ratio=0.1, max_length_extra=3)
    translator = recorder(random_translator(tokenizer, config))
    translator.translate(["the cat"])
    assert [len(best.tokens) for best, *_ in translator.said] == [3]
    assert translator.said[0][0].score > -math.inf


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_the_coverage_penalty_uses_the_last_layers_attention(tokenizer: Tokenizer, precision: str) -> None:
    config = settings(coverage_penalty=0.7, beam_size=3)
    translator = random_translator(tokenizer, config, precision)
    sources = tokenizer.encode_source(LINES[:10])
    for source, (best, *_) in zip(sources, translator.search(sources), strict=True):
        batch = padded_batch(ragged([source]), ragged([best.tokens]))
        state = translator.model.encode(batch.source, watch=True)
        _, state = translator.model.decode(batch.target, state)
        looked = state.attention[-1].mean(1)[0].sum(0)  # (S,)
        penalty = 0.7 * float(looked.double().clamp(max=1).log().sum())
        length = torch.tensor(len(best.tokens) + 1)
        wanted = best.log_prob / float(LENGTH_PENALTIES["power"](length, 1.0)) + penalty
        assert best.score == pytest.approx(wanted, abs=1e-9 if precision == "fp64" else 0.1)


class Blind(Ensemble):
    """A model that tells no attention, as those without any do."""

    def encode(self, source: object, watch: bool = False) -> object:
        return super().encode(source, watch=False)


def test_a_model_without_attention_has_no_coverage_penalty(tokenizer: Tokenizer) -> None:
    config = settings(coverage_penalty=0.5)
    blind = Translator(Blind([random_translator(tokenizer, config).model]), tokenizer, config)
    with pytest.raises(MtkitError) as error:
        blind.translate(["the cat"])
    assert str(error.value) == (
        "decoding.coverage_penalty: this model, or one of the ensemble, has no attention to the source; leave the "
        "setting at its default"
    )


# Ensembles.


@ALL_MODES
def test_a_model_twice_translates_as_once(tokenizer: Tokenizer, mode: dict[str, object]) -> None:
    config = settings(**mode)
    one = random_translator(tokenizer, config, "fp64")
    twice = Translator(Ensemble([one.model, one.model]), tokenizer, config)
    found, wanted = found_by(twice, LINES[:4]), found_by(one, LINES[:4])
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-9)


def test_an_ensemble_says_the_mean_of_probabilities(tokenizer: Tokenizer) -> None:
    both = pair_of(tokenizer, settings(length_penalty=0.0))
    sources = tokenizer.encode_source(LINES[:10])
    found = [best for best, *_ in both.search(sources)]
    batch = padded_batch(ragged(sources), ragged([best.tokens for best in found]))
    with torch.no_grad():
        probabilities = [m.output(m(batch.source, batch.target)).softmax(-1) for m in both.model.members]
    mean = (probabilities[0] + probabilities[1]) / 2
    log_probs = (
        mean.gather(2, batch.labels.clamp(min=0)[:, :, None])[:, :, 0].log().masked_fill(~batch.target.mask, 0.0)
    )
    assert [best.log_prob for best in found] == pytest.approx(log_probs.sum(1).tolist(), abs=1e-9)
    alone = random_translator(tokenizer, settings(length_penalty=0.0), "fp64").search(sources)
    assert [best.tokens for best in found] != [best.tokens for best, *_ in alone]


def test_the_limits_of_an_ensemble_are_its_narrowest(tokenizer: Tokenizer) -> None:
    models = [
        random_translator(tokenizer, settings(model, 8)).model
        for model in ({}, {"positions": "learned", "max_positions": 30}, {"positions": "learned", "max_positions": 12})
    ]
    assert (Ensemble(models).limits.source, Ensemble(models).limits.target) == (12, 12)
    assert Ensemble(models[:1]).limits.source is None


def test_an_ensemble_is_loaded_and_one_of_another_vocabulary_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = settings()
    paths = [
        write_bundle(
            tmp_path / f"model{seed}", tokenizer, config, random_translator(tokenizer, config, seed=seed).model
        )
        for seed in (1, 2)
    ]
    loaded = mtkit.load(paths[0], ensemble=[paths[1]], precision="fp64")
    assert found_by(loaded, LINES[:5]) == found_by(pair_of(tokenizer, config), LINES[:5])
    train_tokenizer(lambda: LINES, lambda: LINES, TokenizerConfig(vocab_size=300), tmp_path / "tokenizer")
    others = Tokenizer.load(tmp_path / "tokenizer")
    other = write_bundle(tmp_path / "other", others, config, random_translator(others, config).model)
    with pytest.raises(CheckpointError) as error:
        mtkit.load(paths[0], ensemble=[other])
    assert str(error.value) == (
        f"{other}: its tokenizer is not that of {paths[0]}; the models of an ensemble share one"
    )


# Scores of given translations.


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, "count") for kind in ("post-norm", "learned", "ensemble", *ARCHITECTURES)),
        *(
            (kind, mode)
            for kind in ("transformer", "rnn-attention")
            for mode in ("greedy", "constrained", "diverse", "sample")
        ),
    ],
)
def test_a_translation_scores_what_the_search_said(tokenizer: Tokenizer, kind: str, mode: str) -> None:
    choices = {"post-norm": {"norm_placement": "post"}, "learned": {"positions": "learned"}, **ARCHITECTURES}
    model = choices.get(kind)
    config = settings(model, **MODES[mode])
    translator = pair_of(tokenizer, config, "fp32") if kind == "ensemble" else random_translator(tokenizer, config)
    sources = tokenizer.encode_source(LINES[:6])
    found = [best for best, *_ in translator.search(sources)]
    for batch_tokens in (1, 60, 100_000):
        scored = log_probs_of(translator.model, sources, [best.tokens for best in found], batch_tokens)
        assert [len(log_probs) for log_probs in scored] == [len(best.tokens) + 1 for best in found]
        assert [sum(log_probs) for log_probs in scored] == pytest.approx(
            [best.log_prob for best in found], rel=1e-5, abs=1e-4
        )


def test_lines_are_scored_in_order_whatever_stands_beside_them(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings(None, 8), "fp64")
    sources = [*LINES[:9], "", "the cat", " ", "the cat sees the dog. " * 40]
    targets = [*LINES[9:18], "the dog", "", " ", "the bird hears " * 40]
    together = translator.score(sources, targets)
    for source, target, line in zip(sources, targets, together, strict=True):
        [alone] = translator.score([source], [target])
        assert alone.pieces == line.pieces
        assert alone.log_probs == pytest.approx(line.log_probs, abs=1e-9)
        assert line.log_prob == pytest.approx(sum(line.log_probs))
        assert line.num_tokens == len(line.log_probs) == len(line.pieces)
        assert line.mean == pytest.approx(line.log_prob / line.num_tokens)
        assert "".join(line.pieces[:-1]).replace("▁", " ").strip() == target.strip()
        assert line.pieces[-1] == "</s>"
    assert [len(line.log_probs) for line in together[10:12]] == [1, 1]
    assert together[-1].num_tokens > 100  # longer than what the model translates at once
    assert translator.score([], []) == []


def test_what_cannot_be_scored_is_told(tokenizer: Tokenizer) -> None:
    translator = random_translator(tokenizer, settings({"positions": "learned", "max_positions": 9}, 8))
    long, short = "x" * 60, "the cat"
    for sources, targets, told in (
        (
            [short],
            [],
            "the translations end after 0, but there are more sources; line n of both belong together",
        ),
        (
            [],
            [short],
            "the sources end after 0, but there are more translations; line n of both belong together",
        ),
        ([short, long], [short, short], r"line 2: the source has 6\d tokens, and the model can take 8; split the line"),
        ([short], [long], r"line 1: the target has 6\d tokens, and the model can take 8; split the line"),
    ):
        with pytest.raises(DataError, match=f"^{told}$"):
            translator.score(sources, targets)
    with pytest.raises(TypeError, match="wants a list of lines"):
        translator.score("a", ["b"])


# What samples elect.


def test_the_elected_text_is_most_like_all_the_others() -> None:
    def letters(texts: Sequence[str]) -> list[list[float]]:
        return [[len(set(h) & set(r)) - 0.1 * len(h) for r in texts] for h in texts]

    texts = ["abc", "xyz", "abd", "abc", "bcd", ""]
    elected = elect(texts, letters)
    assert sorted(text for text, _ in elected) == sorted(set(texts))
    for text, mean in elected:
        others = [*texts[: texts.index(text)], *texts[texts.index(text) + 1 :]]
        assert mean == pytest.approx(sum(letters([text, other])[0][1] for other in others) / 5)
    assert [mean for _, mean in elected] == sorted((mean for _, mean in elected), reverse=True)
    assert elected[0][0] == "abc"
    assert elect(["alone"], letters) == [("alone", 0.0)]


def test_samples_elect_one_of_themselves_and_duplicates_vote(tokenizer: Tokenizer) -> None:
    translator = recorder(random_translator(tokenizer, settings(mbr_samples=8, top_k=5)))
    [line] = translator.translate_lines(["the old cat sees"], num_best=3)
    samples = [BREAKS.sub(" ", text) for text in tokenizer.decode_target([h.tokens for h in translator.said[0]])]
    assert len(samples) == 8
    assert translator._utility is not None
    ordered = sorted(zip(samples, translator.said[0], strict=True), key=lambda pair: -pair[1].score)
    wanted = elect([text for text, _ in ordered], translator._utility)
    assert [(best.text, best.score) for best in line.translations] == [wanted[n] for n in range(len(wanted[:3]))]


# Settings that do not go together.


@pytest.mark.parametrize(
    ("decoding", "told"),
    [
        ({"beam_size": 5, "diversity_groups": 2}, "beam_size 5 is not a multiple of diversity_groups 2"),
        ({"mbr_samples": 1}, "mbr_samples 1 leaves a sample nothing to be compared with; wants 2 or more, or 0"),
        (
            {"method": "sample", "coverage_penalty": 0.2},
            "coverage_penalty 0.2 ranks what a beam finds; samples want 0",
        ),
        (
            {"mbr_samples": 4, "beam_size": 4, "diversity_groups": 2},
            "diversity_groups 2 divides a beam; samples want 1",
        ),
        ({"temperature": 0.5}, "temperature 0.5 is of samples; it goes with method sample or with mbr_samples"),
        ({"top_k": 5}, "top_k 5 is of samples; it goes with method sample or with mbr_samples"),
        ({"top_p": 0.5}, "top_p 0.5 is of samples; it goes with method sample or with mbr_samples"),
        (
            {"coverage_penalty": 0.2, "beam_size": 1},
            "coverage_penalty ranks what a beam finds; it wants a beam_size of 2 or more",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_told(decoding: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DecodingConfig(**decoding)
