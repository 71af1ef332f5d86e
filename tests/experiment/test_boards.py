"""Boards: their figures are identities or known facts, and a fault in what they check changes them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mtkit.data.batches import Rows
from mtkit.experiment import boards
from mtkit.experiment.boards import BOARDS, Figures
from mtkit.experiment.measures import BOARD, parse
from mtkit.experiment.run import load_folder
from mtkit.models import interface, layers, recurrent, transformer
from mtkit.models.transformer import TransformerDecoder, TransformerState
from mtkit.training import update as loss

EXACT = 1e-12  # of sums in fp64


# Times differ; the others take longest. What they draw without a seed would still change the global state.
ONCE = ("milliseconds", "gradients", "cosines", "smoothing", "segmentations", "continuations")


@cache
def figures(name: str) -> Figures:
    """The figures of a board, computed once."""
    return BOARDS[name]()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_gives_numbers_that_are_the_same_again_and_leaves_the_global_state_alone(name: str) -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    found = figures(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert found
    assert all(math.isfinite(value) for value in found.values())
    if name not in ONCE:
        assert BOARDS[name]() == found


def test_only_minus_infinity_and_renormalised_zeros_hide_later_words() -> None:
    found = figures("leaks")
    assert found["minus infinity"] == 0
    assert found["zero, renormalised"] < EXACT
    assert min(found[name] for name in ("no mask", "product before the softmax", "zero after the softmax")) > 0.1
    assert found["decoder"] == found["encoder, causal"] == 0
    parts = ("decoder, no mask", "decoder, product", "decoder, no shift", "encoder")
    assert min(found[part] for part in parts) > 0.1
    assert max(found["steps"], found["steps, no mask"]) < EXACT


def test_one_vector_is_the_only_way_without_attention_and_none_is_left_without_cross_attention() -> None:
    found = figures("connection")
    assert found["states replaced, one vector"] == 0
    assert found["states replaced, attention"] > 0.1
    for figure in ("gradient of the encoder", "least change"):
        assert found[f"{figure}, no cross-attention"] == 0
        assert found[f"{figure}, cross-attention"] > 0.01


def test_without_positions_an_encoder_moves_along_and_two_decoder_layers_still_know_the_order() -> None:
    found = figures("order")
    assert max(found["encoder, none"], found["output, none"]) < EXACT
    assert min(found[f"encoder, {kind}"] for kind in layers.POSITIONS if kind != "none") > 0.01
    assert found["decoder, none, one layer"] < EXACT < found["decoder, none, two layers"]


def test_sinusoids_rotate_and_other_codes_do_not() -> None:
    found = figures("codes")
    assert found["rotation"] < 2e-7  # of fp32
    assert found["best map, sinusoidal"] < 1e-6 < 0.5 < min(found["best map, binary"], found["best map, learned"])
    assert found["best map, scalar"] < 1e-6
    assert found["smallest step"] == pytest.approx(found["largest step"], abs=1e-4)
    assert found["smallest step"] == pytest.approx(0.244, abs=0.001)
    assert found["directions with 99 % of the variance"] == 16
    assert found["dimensions in use"] == 77
    assert found["before unlike after"] < 1e-5
    assert [found["period of bit 0"], found["period of bit 3"]] == [2, 16]
    assert found["rotary, both moved"] < 1e-5


def test_only_rows_of_positions_that_occur_are_learnt() -> None:
    found = figures("learned-rows")
    assert found["rows with a gradient"] == boards.TRAINED_LENGTH + 1  # and the end mark
    assert found["rows"] == boards.TABLE_LENGTH


def test_the_three_curves_have_their_peaks_where_warm_up_ends() -> None:
    found = figures("noam")
    for d_model, warmup in ((512, 4000), (512, 8000), (256, 4000)):
        assert found[f"peak of width {d_model} and warm-up {warmup}"] == pytest.approx((d_model * warmup) ** -0.5)
        assert found[f"its step, width {d_model} and warm-up {warmup}"] == warmup
        curve = f"width {d_model} and warm-up {warmup}"
        assert figures("learning-rates")[f"{curve}, {warmup}"] == found[f"peak of {curve}"]
    assert found["after both peaks"] < EXACT


def test_the_smoothed_loss_is_least_where_its_formula_says() -> None:
    found = figures("smoothing")
    for size, mass in ((5, 0.1), (5, 0.4), (8000, 0.1)):
        label, other = 1 - mass + mass / size, mass / size
        assert found[f"best probability, {size}, {mass}"] == pytest.approx(label, abs=1e-6)
        floor = -label * math.log(label) - (size - 1) * other * math.log(other)
        assert found[f"floor, {size}, {mass}"] == pytest.approx(floor)
    assert found["best probability, 5, 0.0"] == pytest.approx(1, abs=1e-8)
    assert found["best probability, 5, 0.1, spread over the others"] == pytest.approx(0.9, abs=1e-6)
    assert found["surer than that"] == pytest.approx(0.37, abs=0.005)


def test_scaled_attention_is_as_even_at_any_width() -> None:
    scaled, unscaled = ([figures("entropy")[f"{name}, {width}"] for width in boards.WIDTHS] for name in boards.SCALES)
    assert max(scaled) - min(scaled) < 0.05
    assert unscaled == sorted(unscaled, reverse=True)
    assert unscaled[-1] < 0.2 < 2.5 < min(scaled) < math.log(boards.NUM_KEYS)
    assert figures("slope")["unscaled, 512"] < 0.01 < 0.04 < figures("slope")["scaled, 512"]


def test_positions_become_alike_without_residuals_and_gradients_explode_without_norms() -> None:
    alike, found = figures("cosines"), figures("gradients")
    for norm in boards.NORMS:
        assert alike[f"norm {norm}, no residual, 6"] > 0.999 > alike[f"norm {norm}, residual, 6"]
    assert found["first, norm none, residual, 12"] > 1000 * found["first, norm none, residual, 2"]
    for norm in ("post", "pre"):
        assert 0.2 < found[f"first, norm {norm}, no residual, 12"] < 2
    post, pre = (
        [found[f"last of the decoder, norm {norm}, residual, {depth}"] for depth in (2, 6, 12)]
        for norm in ("post", "pre")
    )
    assert max(post) < 1.2 * min(post)
    assert pre[2] < 0.7 * pre[0]


def test_attention_waits_for_nothing_and_cells_for_every_word() -> None:
    found = figures("steps")
    assert found["attention, 8"] == found["attention, 128"]
    for cell in ("gru", "tanh"):
        per_word = (found[f"{cell}, 128"] - found[f"{cell}, 32"]) / 96
        assert per_word >= 1
        assert found[f"{cell}, 32"] - found[f"{cell}, 8"] == 24 * per_word
    assert found["product against loop"] < 1e-6


def test_the_longest_chain_is_counted_along_one_way() -> None:
    x = torch.ones(2, requires_grad=True)
    one, two = x * 2, (x * 3).exp()
    assert boards.longest_chain(one) == 2  # the leaf counts
    assert boards.longest_chain((one + two).sum()) == 5


def test_a_cache_computes_each_word_once() -> None:
    found, steps = figures("search-work"), boards.FORCED_LENGTH + 1
    assert found["words, cache"] == found["words, recurrent"] == found["calls, cache"] == steps
    assert found["words, no cache"] == steps * (steps + 1) / 2
    assert [found["calls, scoring"], found["words, scoring"]] == [1, steps]
    for length in (5, boards.FORCED_LENGTH):
        assert found[f"calls, 4 iterations, {length} words"] == 4
    assert found["steps against all at once"] < EXACT


def test_wider_beams_find_what_is_likelier_and_exact_search_the_likeliest() -> None:
    found = figures("search")
    by_size = [found[f"beam, {size}"] for size in (1, 2, 4, 16)]
    assert all(wider >= narrower - EXACT for narrower, wider in pairwise(by_size))
    assert by_size[0] < found["exact"] - 0.1
    assert found["exact"] == pytest.approx(found["best of all"])


def test_batches_change_nothing() -> None:
    found = figures("batches")
    for name in ("padded against single", "packed against single", "beside an empty row"):
        assert found[name] < EXACT
    assert found["finite, padded"] == found["finite, packed"] == 1


def test_all_probabilities_add_up_to_one() -> None:
    found = figures("chain-rule")
    assert found["sum of all"] == pytest.approx(1, abs=1e-9)
    assert found["loss per token"] == pytest.approx(found["mean over tokens"])
    assert abs(found["mean of sentence means"] - found["mean over tokens"]) > 0.05


def test_cells_forget_and_attention_does_not() -> None:
    found = figures("memory")
    for name in ("tanh", "gru", "lstm", "attention"):
        assert found[f"{name}, later"] == 0
    for cell in ("tanh", "gru", "lstm"):
        assert found[f"{cell}, 50"] < 1e-3 * found[f"{cell}, 1"]
    assert found["attention, 50"] > 0.5 * found["attention, 1"]


def test_two_halves_have_the_gradient_of_the_whole() -> None:
    found = figures("ranks")
    assert found["halves"] < EXACT < 0.1 < found["mean of halves"]


def test_stems_are_shared_in_small_vocabularies_only() -> None:
    found = figures("segmentations")
    assert found["stem, 1000"] > found["whole, 1000"] == 0
    assert found["stem, 4000"] < found["whole, 4000"]
    pieces = [found[f"pieces per word, {size}"] for size in boards.VOCAB_SIZES]
    assert pieces == sorted(pieces, reverse=True)
    assert found["unknown, bpe, 300"] == 0 < found["unknown, word, 300"]


def test_families_are_words_with_two_of_their_forms() -> None:
    counts = boards.Counter(["walk", "walks", "walking", "cat", "cats", "go", "goed", "going"])
    assert boards.families_of(counts) == [["walk", "walks", "walking"]]


def test_some_words_leave_open_what_follows() -> None:
    found = figures("continuations")
    assert found["bits, the"] > 5 > 0.1 > found["bits, going"]
    assert found["several translations, English"] >= found["several translations, French"] == 0
    assert boards.bits(boards.Counter(a=2, b=1, c=1)) == 1.5


def test_the_diagonal_is_no_alignment() -> None:
    found = figures("alignments")
    assert found["gold"] == 0 < found["diagonal"] < found["first word"]
    assert not boards.is_monotone([(0, 1), (1, 0)])
    assert boards.is_monotone([(0, 0), (0, 1), (1, 1), (2, 2)])
    assert found["sentences that are not monotone"] > 0.5


def test_the_experiments_use_each_board_and_name_only_results_that_there_are() -> None:
    cards = load_folder(Path(__file__).parents[2] / "configs" / "lecture")
    named = {
        (reference.variant, str(reference.subset))
        for card in cards
        for text in (*(each.expression for each in card.predict), *card.valid_if)
        for reference in parse(text).references
        if reference.measure == BOARD
    }
    assert named <= {(board, key) for board in BOARDS for key in figures(board)}
    assert {name for card in cards for name in card.file.board} == set(BOARDS)


def test_a_board_of_text_says_that_it_needs_the_demo_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(boards, "__file__", str(tmp_path / "mtkit" / "experiment" / "boards.py"))
    with pytest.raises(boards.DataError, match=r"data/demo/test\.fr: not there; this board reads the demo corpus"):
        BOARDS["alignments"]()


# Faults in what boards check.


def product_instead_of_minus_infinity(patch: pytest.MonkeyPatch) -> None:
    """Masked scores become 0, not minus infinity."""

    def attend(query: Any, key: Any, value: Any, mask: Any, causal: bool, dropout: float) -> torch.Tensor:
        factors = torch.ones(query.shape[2], key.shape[2], dtype=query.dtype)
        factors = factors.tril() if causal else factors if mask is None else mask.to(query.dtype)
        weights = layers.attention_weights(query, key, None, False, factors)
        return (weights @ value).transpose(1, 2).flatten(2)

    patch.setattr(layers, "attend", attend)


def positions_under_none(patch: pytest.MonkeyPatch) -> None:
    """Sinusoids are added where the settings say none."""
    patch.setitem(transformer.POSITIONS, "none", layers.SinusoidalPositions)


def no_attention_under_attention(patch: pytest.MonkeyPatch) -> None:
    """A recurrent model attends to nothing: each word gets the mean of no state."""

    def attend(scores: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = scores.softmax(-1)
        return torch.zeros_like(weights @ states), weights

    patch.setattr(recurrent, "attend", attend)


def smoothing_ignored(patch: pytest.MonkeyPatch) -> None:
    """The loss does not know of smoothing."""
    true_loss = loss.consistent_cross_entropy

    def unsmoothed(features: Any, output: interface.Output, labels: Any, smoothing: float, shares: Any) -> Any:
        return true_loss(features, output, labels, 0.0, shares)

    patch.setattr(loss, "consistent_cross_entropy", unsmoothed)


def cache_without_a_mask(patch: pytest.MonkeyPatch) -> None:
    """A decoder that sees later words is searched with a cache of earlier ones."""
    true_forward = TransformerDecoder.forward

    def forward(self: TransformerDecoder, target: Rows, state: Any) -> tuple[torch.Tensor, Any]:
        if isinstance(state, TransformerState) or target.ids.shape[1] > 1:
            return true_forward(self, target, state)
        cached, mask = state.fresh.advance(target)
        features, _ = self._decode(target, cached, mask)
        return features, replace(state, fresh=cached)

    patch.setattr(TransformerDecoder, "forward", forward)


# A fault, the board that must show it, and a figure with what it must be at least or at most under the fault.
SABOTAGES: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str, float, float]] = [
    (product_instead_of_minus_infinity, "leaks", "decoder", 0.01, math.inf),
    (positions_under_none, "order", "encoder, none", 0.01, math.inf),
    (no_attention_under_attention, "connection", "states replaced, attention", 0, 0),
    (smoothing_ignored, "smoothing", "best probability, 8000, 0.1", 0.99, 1),
    (cache_without_a_mask, "leaks", "steps, no mask", 0.001, math.inf),
]


@pytest.mark.parametrize(("sabotage", "board", "figure", "least", "most"), SABOTAGES)
def test_a_fault_changes_the_figure_that_is_there_to_show_it(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    board: str,
    figure: str,
    least: float,
    most: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not least <= figures(board)[figure] <= most
    sabotage(monkeypatch)
    assert least <= BOARDS[board]()[figure] <= most
