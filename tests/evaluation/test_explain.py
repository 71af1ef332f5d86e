"""The page on a sentence shows what `mtkit translate`, `mtkit score` and `mtkit plot attention` say."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mtkit.bundle.opening import readable_steps, step_directory
from mtkit.cli import main
from mtkit.errors import DataError, MtkitError
from mtkit.evaluation.explain import explain, explain_sentence, explanation
from mtkit.evaluation.page import read_data
from mtkit.evaluation.plot import attention_of
from mtkit.translation.translator import load
from tests.evaluation.reading import Reader

SOURCES = ["three four <one> two", "nine nine zero"]


@pytest.fixture(scope="module")
def explained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page on SOURCES, made by the command."""
    output = tmp_path_factory.mktemp("explained") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        sources = [word for source in SOURCES for word in ("--source", source)]
        patch.setattr(sys, "argv", ["mtkit", "explain", str(tiny_run), *sources, "-o", str(output), "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return output.read_text("utf-8")


def test_the_numbers_are_those_of_translate_score_and_plot_attention(tiny_run, explained):
    translator = load(tiny_run)
    sentences = read_data(explained, "data")["sentences"]
    assert [one["translation"] for one in sentences] == translator.translate(SOURCES)
    for source, one in zip(SOURCES, sentences, strict=True):
        best = next(translator.translate_lines([source])).translations[0]
        assert one["score"] == best.score
        [score] = translator.score([source], [one["translation"]])
        attention = attention_of(translator, source)
        assert (one["pieces"], one["source_pieces"]) == (score.pieces, attention.source)
        assert one["log_probs"] == pytest.approx(score.log_probs, abs=1e-5)
        for mine, theirs in zip(one["attention"], attention.weights, strict=True):
            assert np.abs(np.array(mine) - theirs).max() < 1e-4


def test_what_is_read_without_scripts_agrees_with_the_numbers(tiny_run, explained):
    reader = Reader(explained)
    shown = [reader.text[place + 1] for place, text in enumerate(reader.text) if text == "Probability "]
    sentences = read_data(explained, "data")["sentences"]
    assert shown == [f"{np.exp(log_prob):.4f}" for one in sentences for log_prob in one["log_probs"]]
    assert {*SOURCES, *(one["translation"] for one in sentences)} <= set(reader.text)
    maps = [text for text in reader.text if text.startswith("layer 1, head 4")]
    assert len(maps) == 2 * len(SOURCES)  # the picture, and the choice of the player
    targets = {attributes.get("href", "")[1:] for tag, attributes in reader.tags if tag == "a"}
    assert targets <= {attributes.get("id") for _, attributes in reader.tags}


def test_checkpoints_say_what_they_translate(tiny_run, explained):
    steps = readable_steps(tiny_run / "checkpoints")
    assert steps
    for index, one in enumerate(read_data(explained, "data")["sentences"]):
        said = [load(step_directory(tiny_run / "checkpoints", step)).translate(SOURCES)[index] for step in steps]
        assert one["checkpoints"] == [{"step": step, "text": text} for step, text in zip(steps, said, strict=True)]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_beam_that_is_shown_is_that_of_the_search(tiny_run, beam_size):
    translator = load(tiny_run, [f"decoding.beam_size={beam_size}"])
    end = translator.model.boundaries.target_end
    for source in SOURCES:
        one = explain_sentence(translator, source)
        found = translator.search(translator.tokenizer.encode_source([source]))[0][0]
        assert one.hypothesis.tokens == found.tokens
        assert one.hypothesis.score == pytest.approx(found.score, abs=1e-6)
        way = tuple(one.tokens)
        for place, step in enumerate(one.beam):
            kept = [candidate for candidate in step if candidate.fate.startswith("kept")]
            ended = [candidate for candidate in step if candidate.score is not None]
            cut = [candidate for candidate in step if candidate.fate.startswith("cut")]
            assert len(kept) <= beam_size
            assert len(step) == len(kept) + len(ended) + len(cut) <= 2 * beam_size
            assert all(candidate.tokens[-1] == end for candidate in ended)
            likely = [candidate.log_prob for candidate in kept]
            assert all(candidate.log_prob <= min(likely) for candidate in cut if candidate.tokens[-1] != end)
            assert all(len(candidate.tokens) == place + 1 for candidate in step)
            if place < len(way):
                [on_way] = [candidate for candidate in step if candidate.tokens == way[: place + 1]]
                assert not on_way.fate.startswith("cut")
                assert on_way.log_prob == pytest.approx(sum(one.chosen[: place + 1]), abs=1e-4)
        scores = [candidate.score for step in one.beam for candidate in step if candidate.score is not None]
        assert max(scores) == pytest.approx(one.hypothesis.score)


def test_a_model_without_attention_and_one_of_odd_spelling_are_explained_in_words(tiny_run):
    translator = load(tiny_run)
    one = explain_sentence(translator, SOURCES[1])
    odd = replace(one, attention=[], hypothesis=replace(one.hypothesis, tokens=[*one.hypothesis.tokens, 5]))
    text = "".join(Reader(explanation(tiny_run, translator, [odd], [[]])).text)
    assert "This model has no attention" in text
    assert "The model spelt its translation in other pieces than the tokenizer" in text
    assert "During training" not in text


def test_what_cannot_be_explained_is_refused(tiny_run, tmp_path):
    translator = load(tiny_run)
    with pytest.raises(DataError, match="--source: found a blank text, wants a sentence"):
        explain_sentence(translator, " ")
    with pytest.raises(DataError, match=r"--source: found \d+ tokens, wants one sentence of at most 24"):
        explain_sentence(translator, "one two " * 20)
    with pytest.raises(MtkitError, match="only beam search can be explained: --set method=beam"):
        explain_sentence(load(tiny_run, ["decoding.method=sample"]), "one")
    with pytest.raises(MtkitError, match="only beam search can be explained: --set stopping=exact"):
        explain_sentence(load(tiny_run, ["decoding.stopping=optimal"]), "one")
    with pytest.raises(MtkitError, match=r"wants a file that ends in \.html"):
        explain(tiny_run, ["one"], tmp_path / "page.txt")
