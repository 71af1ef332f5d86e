"""Word alignments: read off attention by known rules, the same however a line gets its translation, scored by AER."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkit.errors import DataError, MtkitError
from mtkit.models.interface import Ensemble
from mtkit.text.tokenizer import Tokenizer
from mtkit.text.vocabulary import join_parts, split_line, word_of_each_piece
from mtkit.translation.alignments import (
    AlignmentLines,
    AlignmentScores,
    AlignmentSettings,
    Gold,
    alignment_scores,
    choose_heads,
    diagonal,
    links_of,
    parse_gold,
    parse_links,
    parse_settings,
    pharaoh,
    piece_links,
    raw_words,
    read_gold,
)
from mtkit.translation.translator import Translator, load
from mtkit.translation.workers import Opening, with_workers
from tests.conftest import CorpusFiles, write_lines
from tests.translation.test_translator import ARCHITECTURES, random_translator, sentences, settings
from tests.translation.test_translator import tokenizer as tokenizer

# From weights to links.


def test_the_weight_of_a_word_is_summed_over_its_source_pieces_and_averaged_over_its_target_pieces() -> None:
    weights = np.array([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8], [0.2, 0.5, 0.1]])  # words: source 0 0 1, target 0 0 1
    assert links_of(weights, [0, 1, 2], [0, 1, 2]) == ((1, 2), (2, 0), (2, 1))
    assert links_of(weights, [0, 0, 1], [0, 0, 1]) == ((0, 1), (1, 0))  # word 0: 0.4 and 0.6; word 1: 0.7 and 0.1
    assert links_of(weights, [0, 0, 1], [0, 0, 1], threshold=0.35) == ((0, 0), (0, 1), (1, 0))
    assert links_of(weights, [-1, -1, 4], [3, 3, 5]) == ((4, 3), (4, 5))  # -1: tags, to which nothing is linked
    assert links_of(weights, [-1, -1, -1], [0, 1, 2]) == links_of(np.zeros((0, 0)), [], []) == ()


def test_pieces_belong_to_the_words_between_spaces() -> None:
    pieces = ["▁", "Gr", "<0xC3>", "<0xBC>", "n", "▁", "▁ist", "▁", "<0xE2>", "<0x82>", "<0xAC>", "!"]
    assert word_of_each_piece(pieces) == [0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert word_of_each_piece(["▁a", "\u00a0", "b", "▁"]) == [0, 1, 1, 1]
    assert word_of_each_piece(["▁"]) == [0]
    assert word_of_each_piece([]) == []


def test_words_are_those_of_the_line_before_normalisation(tokenizer: Tokenizer) -> None:
    line = "the\u200bcat  sees\u3000\u200d a tree"  # U+200B becomes a space, and U+200D alone is removed or kept
    pieces = tokenizer.source_pieces(tokenizer.encode_source([line])[0])
    found = raw_words(word_of_each_piece(pieces), line, tokenizer.normalize_source)
    texts = ["".join(p for p, word in zip(pieces, found, strict=True) if word == n) for n in range(len(line.split()))]
    assert [text.replace("▁", "") for text in texts[:2]] == ["thecat", "sees"]
    assert [text.replace("▁", "") for text in texts[-2:]] == ["a", "tree"]


def test_heads_are_chosen_by_number_or_averaged_and_guided_ones_by_default() -> None:
    attention = [torch.rand(2, 3, 4, 5) for _ in range(2)]
    every = torch.stack(attention)  # (layers, R, H, T, S)
    for layer, head in product((1, 2, "mean", None), (1, 3, "mean", None)):
        heads = choose_heads(AlignmentSettings(layer=layer, head=head), (2, 3), guided=(2, 1))
        if layer is head is None:
            layer, head = 2, 1
        wanted = every[layer - 1 : layer] if isinstance(layer, int) else every
        wanted = wanted[:, :, head - 1 : head] if isinstance(head, int) else wanted
        assert torch.allclose(heads.weights(attention), wanted.mean((0, 2)))
    assert torch.allclose(choose_heads(AlignmentSettings(), (2, 3), None).weights(attention), every.mean((0, 2)))


# Pharaoh files and scores.


def test_the_error_rate_is_that_of_och_and_ney() -> None:
    gold = [parse_gold("0-0 1-1 2?2 3p3", "gold:1", 4, 4), parse_gold("0-1", "gold:2", 1, 2)]
    assert gold[0] == Gold(frozenset({(0, 0), (1, 1)}), frozenset({(0, 0), (1, 1), (2, 2), (3, 3)}))
    scores = alignment_scores([((0, 0), (2, 2), (3, 1)), ((0, 1),)], gold)  # A: 4 links; A and S: 2; A and P: 3; S: 3
    assert scores.error_rate == pytest.approx(100 * (1 - (2 + 3) / (4 + 3)))
    assert (scores.precision, scores.recall) == (pytest.approx(75), pytest.approx(200 / 3))
    perfect = alignment_scores([((0, 0), (1, 1), (2, 2)), ((0, 1),)], gold)  # a possible link costs nothing
    assert (perfect.error_rate, perfect.precision, perfect.recall) == (0, 100, 100)
    nothing = parse_gold("", "gold:1", 4, 4)
    assert alignment_scores([()], [nothing]) == AlignmentScores(error_rate=0, precision=0, recall=0)
    assert alignment_scores([((0, 0),)], [nothing]).error_rate == alignment_scores([()], gold[1:]).error_rate == 100


def test_the_diagonal_of_equal_lengths_links_equal_places() -> None:
    assert diagonal(3, 3) == ((0, 0), (1, 1), (2, 2))
    assert diagonal(2, 4) == ((0, 0), (0, 1), (1, 2), (1, 3))
    assert diagonal(4, 1) == ((2, 0),)
    assert diagonal(0, 3) == diagonal(3, 0) == ()


def test_wrong_alignment_files_are_told(tmp_path: Path) -> None:
    links = ((0, 0), (1, 2))
    assert parse_links(f" {pharaoh(links)} 1-2", "x:1", 2, 3) == links
    for line, told in {
        "0-0 1:2": "x:1: found '1:2', wants pairs such as 0-0 1-2: source-target, from 0",
        "2-0": "x:1: found 2-0, but the source has 2 words, counted from 0 and separated by white space",
        "0-3": "x:1: found 0-3, but the target has 3 words, counted from 0 and separated by white space",
    }.items():
        with pytest.raises(DataError) as error:
            parse_links(line, "x:1", 2, 3)
        assert str(error.value) == told
    path = tmp_path / "gold"
    write_lines(path, ["0-0", ""])
    told = f"{path} has 2 lines, wants 3, one for each pair; a pair without links has a blank line"
    with pytest.raises(DataError) as error:
        read_gold(path, [("a", "b")] * 3)
    assert str(error.value) == told
    for num_pairs in (1, 3):
        lines = AlignmentLines(path, lambda num_pairs=num_pairs: num_pairs)
        read = [*zip(range(2), lines.next_lines(num_pairs), strict=False)]  # not beyond the second line
        assert [line for _, (_, line) in read] == ["0-0", ""][:num_pairs]
        with pytest.raises(DataError, match=f"has 2 lines, wants {num_pairs}: one for each pair of data.train"):
            lines.finish() if num_pairs == 1 else next(lines.next_lines(1))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("word", None, None, None, "read"), "--alignment-units: found word, wants one of words, pieces"),
        (("words", "0", None, None, "read"), "--alignment-layer: found 0, wants mean or a number from 1"),
        (("words", None, "last", None, "read"), "--alignment-head: found last, wants mean or a number from 1"),
        (("words", None, None, "1.5", "read"), "--alignment-threshold: found 1.5, wants a number above 0, at most 1"),
        (("words", None, None, None, "now"), "--alignment-step: found now, wants one of predicted, read"),
    ],
)
def test_wrong_options_are_told(given: tuple[str, str | None, str | None, str | None, str], told: str) -> None:
    with pytest.raises(MtkitError) as error:
        parse_settings(*given)
    assert str(error.value) == told


def test_links_of_words_are_links_of_all_their_pieces() -> None:
    assert piece_links(((0, 1), (1, 0)), [-1, 0, 0, 1], [0, 1, 1]) == [(3, 0), (1, 1), (2, 1), (1, 2), (2, 2)]


# Translators.


@pytest.mark.parametrize("units", ["words", "pieces"])
def test_translations_are_aligned_as_given_translations_are(
    tiny_run: Path, corpus_files: CorpusFiles, units: str
) -> None:
    translator, given = load(tiny_run), load(tiny_run)
    lines = [*corpus_files.lines("test")[0][:6], "", " ", "seven"]
    plain = list(translator.translate_lines(lines, num_best=2))
    for each in (translator, given):
        each.align_with(AlignmentSettings(units=units))
    found = list(translator.translate_lines(lines, num_best=2))
    assert plain == [  # the alignment changes nothing else
        type(line)([type(each)(each.text, each.score) for each in line.translations], line.num_parts, line.notes)
        for line in found
    ]
    for line, result in zip(lines, found, strict=True):
        for each in result.translations:
            assert list(given.tokenizer.encode_target([each.text])[0]) == list(each.tokens)
            assert each.alignment == next(given.align_lines([(line, each.text)]))
            num_units = len(each.tokens) if units == "pieces" else len(each.text.split())
            assert [j for _, j in sorted(each.alignment, key=lambda link: link[1])] == list(range(num_units))
    pairs = [(line, result.text) for line, result in zip(lines, found, strict=True)]
    assert [line.alignment for line in given.score_lines(pairs)] == list(given.align_lines(pairs))
    if units == "words":
        many = lines * 60  # enough characters that workers are started
        with with_workers(translator, Opening(tiny_run), 2) as workers:
            again = list(workers.translate_lines(many))
        assert [each.translations[0].alignment for each in again] == [
            each.translations[0].alignment for each in found
        ] * 60


@pytest.mark.parametrize("units", ["words", "pieces"])
def test_a_line_translated_in_parts_has_the_alignments_of_its_parts(tokenizer: Tokenizer, units: str) -> None:
    translator = random_translator(tokenizer, settings(max_length=9, max_length_ratio=2.0))
    translator.align_with(AlignmentSettings(units=units))
    line = " ".join(sentences(4, longest=6)) + " " + "dog" * 30 + " cat"
    fits = lambda text: len(tokenizer.encode_source([text])[0]) <= 9  # noqa: E731
    parts = split_line(line, fits)
    [whole] = translator.translate_lines([line])
    assert whole.num_parts == len(parts) > 3
    assert not all(part.separator for part in parts[:-1])  # a word is cut, too
    wanted, texts, num_tokens = set(), [], [0, 0]
    position = 0
    for number, part in enumerate(parts):
        [best] = next(translator.translate_lines([part.text])).translations
        texts.append(best.text)
        position = line.index(part.text, position)
        joined = join_parts(texts, [each.separator for each in parts[: number + 1]])
        first = [len(line[: position + 1].split()) - 1, len(joined.split()) - len(best.text.split())]
        first = num_tokens if units == "pieces" else first
        wanted |= {(i + first[0], j + first[1]) for i, j in best.alignment}
        num_tokens = [num_tokens[0] + len(tokenizer.encode_source([part.text])[0]), num_tokens[1] + len(best.tokens)]
        position += len(part.text)
    assert whole.translations[0].alignment == tuple(sorted(wanted))
    if units == "words":
        assert max(i for i, _ in wanted) == len(line.split()) - 1


def test_a_tag_is_not_counted_unless_it_stands_in_the_line(tiny_run: Path, tmp_path: Path) -> None:
    from mtkit.exchange.formats import extend

    extend(tiny_run, tmp_path / "model", [], ["<2xx>"])
    translator = load(tmp_path / "model")
    translator.align_with(AlignmentSettings())
    with pytest.raises(MtkitError, match="call align_with"):
        load(tiny_run).align_lines([])
    line, target = "four nine one", "4 9 1"
    [inside] = translator.align_lines([(f"<2xx> {line}", target)])
    [before] = translator.align_lines([(line, target)], tag="<2xx>")
    assert inside == tuple((i + 1, j) for i, j in before)
    assert {i for i, _ in before} <= {0, 1, 2}
    [translated] = translator.translate_lines([line], tag="<2xx>")
    assert translated.translations[0].alignment == next(translator.align_lines([(line, translated.text)], tag="<2xx>"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_model_with_attention_aligns(tokenizer: Tokenizer, name: str) -> None:
    config = settings(ARCHITECTURES[name])
    translator = random_translator(tokenizer, config)
    pairs = list(zip(sentences(9), reversed(sentences(9)), strict=True))
    if not config.model.has_attention:
        with pytest.raises(MtkitError, match="no attention to the source, from which alignments could be read"):
            translator.align_with(AlignmentSettings())
        return
    translator.align_with(AlignmentSettings(layer=1))
    together = list(translator.align_lines(pairs))
    assert together == [next(translator.align_lines([pair])) for pair in pairs]
    num_layers, num_heads = config.model.source_attention
    for name, most in (("layer", num_layers), ("head", num_heads)):
        with pytest.raises(MtkitError) as error:
            translator.align_with(AlignmentSettings(**{name: most + 1}))
        assert str(error.value) == f"--alignment-{name}: found {most + 1}, wants mean or a number from 1 to {most}"
    members = Translator(Ensemble([translator.model, translator.model]), tokenizer, config)
    members.align_with(AlignmentSettings())
    translator.align_with(AlignmentSettings(layer=num_layers))
    assert list(members.align_lines(pairs)) == list(translator.align_lines(pairs))
