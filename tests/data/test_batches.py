"""Rows of a batch are what plain Python would write down, and padding changes no loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.data.batches import NO_LABEL, AlignedTokens, Batch, Rows, gather, padded_batch, ragged, source_rows
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import BEGIN, END, PAD, BoundaryTokens
from mtkit.training.update import label_smoothed_cross_entropy

SOURCES = [[5, 6, 7], [8], [], [9, 10, 11, 12, 13]]
TARGETS = [[14], [15, 16, 17, 18], [19], []]


def filled(rows: list[list[int]], filler: int = PAD) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [filler] * (longest - len(row)) for row in rows]


def check_rows(found: Rows, rows: list[list[int]]) -> None:
    """One sentence a row: ids, ones where they are real, and places from 0."""
    assert found.ids.tolist() == filled(rows)
    assert found.segments.tolist() == filled([[1] * len(row) for row in rows], 0)
    assert found.positions.tolist() == filled([list(range(len(row))) for row in rows], 0)
    assert found.ids.dtype == found.segments.dtype == found.positions.dtype == torch.int64
    assert not found.packed


def test_a_batch_is_what_plain_python_would_write_down():
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS))
    check_rows(batch.source, [[*source, END] for source in SOURCES])
    check_rows(batch.target, [[BEGIN, *target] for target in TARGETS])
    assert batch.labels.tolist() == filled([[*target, END] for target in TARGETS], NO_LABEL)
    assert batch.num_pairs == 4
    assert batch.source_tokens == sum(len(source) + 1 for source in SOURCES)
    assert batch.target_tokens == sum(len(target) + 1 for target in TARGETS)
    assert batch.padding == pytest.approx(1 - (13 + 10) / (4 * 6 + 4 * 5))


def test_a_packed_batch_is_what_plain_python_would_write_down():
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS), rows=np.array([0, 0, 0, 1]))
    assert batch.source.packed
    assert batch.target.packed
    assert batch.source.ids.tolist() == filled([[5, 6, 7, END, 8, END, END], [9, 10, 11, 12, 13, END]])
    assert batch.source.segments.tolist() == filled([[1, 1, 1, 1, 2, 2, 3], [1] * 6], 0)
    assert batch.source.positions.tolist() == filled([[0, 1, 2, 3, 0, 1, 0], [0, 1, 2, 3, 4, 5]], 0)
    assert batch.target.ids.tolist() == filled([[BEGIN, 14, BEGIN, 15, 16, 17, 18, BEGIN, 19], [BEGIN]])
    assert batch.target.segments.tolist() == filled([[1, 1, 2, 2, 2, 2, 2, 3, 3], [1]], 0)
    assert batch.target.positions.tolist() == filled([[0, 1, 0, 1, 2, 3, 4, 0, 1], [0]], 0)
    assert batch.labels.tolist() == filled([[14, END, 15, 16, 17, 18, END, 19, END], [END]], NO_LABEL)
    assert (batch.num_pairs, batch.source_tokens, batch.target_tokens) == (4, 13, 10)
    assert batch.padding == pytest.approx(1 - (13 + 10) / (2 * 7 + 2 * 9))


def test_each_label_is_what_the_decoder_reads_next_in_the_same_sentence():
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS), rows=np.array([0, 0, 1, 1]))
    same = (batch.target.segments[:, 1:] == batch.target.segments[:, :-1]) & batch.target.mask[:, 1:]
    assert same.sum() == sum(map(len, TARGETS))
    assert torch.equal(batch.labels[:, :-1][same], batch.target.ids[:, 1:][same])


def test_each_label_is_what_the_decoder_reads_next():
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS))
    for read, said, real in zip(batch.target.ids, batch.labels, batch.target.mask, strict=True):
        assert read[0] == BEGIN
        assert said[real][-1] == END
        assert torch.equal(said[real][:-1], read[real][1:])
    assert torch.equal(batch.labels != NO_LABEL, batch.target.mask)


@pytest.mark.parametrize(
    "boundaries",
    [BoundaryTokens(start=PAD), BoundaryTokens(start=END), BoundaryTokens(source_end=7, start=8, target_end=0)],
)
def test_a_batch_has_the_boundary_tokens_of_the_model_that_reads_it(boundaries):
    found = padded_batch(ragged(SOURCES), ragged(TARGETS), boundaries)
    check_rows(found.target, [[boundaries.start, *target] for target in TARGETS])
    assert found.labels.tolist() == filled([[*target, boundaries.target_end] for target in TARGETS], NO_LABEL)
    check_rows(found.source, [[*source, boundaries.source_end] for source in SOURCES])


def test_source_rows_are_the_source_side_of_a_batch():
    check_rows(source_rows(ragged(SOURCES)), [[*source, END] for source in SOURCES])


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_gather_takes_the_chosen_sentences_of_a_corpus_in_that_order(dtype):
    tokens = np.array([token for source in SOURCES for token in source], dtype)
    offsets = np.cumsum([0, *map(len, SOURCES)])
    chosen = [3, 0, 2, 2, 1]
    found = gather(tokens, offsets, np.array(chosen))
    wanted = ragged([SOURCES[i] for i in chosen])
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.lengths.tolist() == wanted.lengths.tolist()


def losses(batch: Batch, config: TransformerConfig, dtype: torch.dtype) -> torch.Tensor:
    """Loss and likelihood of a batch, and the gradient of all weights, as one vector."""
    model = new_model(config, 23, 23, seed=1).to(dtype)
    loss, likelihood = label_smoothed_cross_entropy(
        model(batch.source, batch.target), model.output, batch.labels, smoothing=0.1
    )
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([loss.detach()[None], likelihood[None], *(gradient.flatten() for gradient in gradients)])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_pair_costs_the_same_alone_and_padded_among_longer_ones(norm, dtype, tolerance):
    config = TransformerConfig(
        d_model=16, num_heads=2, d_ff=24, encoder_layers=2, decoder_layers=2, dropout=0.0, norm_placement=norm
    )
    together = losses(padded_batch(ragged(SOURCES), ragged(TARGETS)), config, dtype)
    alone = sum(
        losses(padded_batch(ragged([source]), ragged([target])), config, dtype)
        for source, target in zip(SOURCES, TARGETS, strict=True)
    )
    assert (together[0] - alone[0]).abs() < tolerance * alone[0].abs()
    assert (together[1] - alone[1]).abs() < tolerance * alone[1].abs()
    assert (together[2:] - alone[2:]).norm() < tolerance * alone[2:].norm()


def test_the_halves_of_a_batch_hold_its_pairs():
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS), rows=np.array([0, 0, 1, 2]))
    links = ([0, 0, 1, 2], [3, 0, 1, 0], [4, 1, 0, 2], [1.0, 0.5, 1.0, 1.0])
    batch = replace(batch, alignment=AlignedTokens(*map(torch.tensor, links)))
    first, second = batch.parts(2)
    assert first.source.ids.tolist() == [[5, 6, 7, END, 8, END]]
    assert first.labels.tolist() == [[14, END, 15, 16, 17, 18, END]]
    assert second.target.ids.tolist() == [[BEGIN, 19], [BEGIN, PAD]]
    assert second.labels.tolist() == [[19, END], [END, NO_LABEL]]
    for name in ("num_pairs", "source_tokens", "target_tokens"):
        assert getattr(first, name) + getattr(second, name) == getattr(batch, name)
    assert (first.num_pairs, second.num_pairs) == (2, 2)
    assert first.alignment.rows.tolist() == [0, 0]
    assert second.alignment.rows.tolist() == [0, 1]
    assert second.alignment.sources.tolist() == [0, 2]
