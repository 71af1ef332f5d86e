"""The conditional masked language model: what is masked is unknown, all else is known, and only masked tokens count."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import MaskedConfig
from mtkit.data.batches import NO_LABEL, Batch, padded_batch, ragged
from mtkit.models.registry import new_model
from mtkit.models.transformer import MOST_DIFFERENCE, MaskedModel
from mtkit.text.vocabulary import END, PAD
from mtkit.training.update import masked_cross_entropy

VOCAB = 20
SOURCES, TARGETS = [[5, 6, 7], [8, 9], [4, 4, 4, 4]], [[10, 11, 12, 13], [14], [15, 16, 17]]


@pytest.fixture
def model() -> MaskedModel:
    config = MaskedConfig(d_model=16, num_heads=2, d_ff=16, encoder_layers=1, decoder_layers=1, dropout=0.0)
    made = new_model(config, VOCAB, VOCAB, seed=1)
    assert isinstance(made, MaskedModel)
    return made.eval()


def batch_of(sources: list[list[int]], targets: list[list[int]]) -> Batch:
    return padded_batch(ragged(sources), ragged(targets))


def test_tokens_are_masked_in_uniformly_drawn_numbers_and_only_they_have_labels(model):
    count, length = 2000, 4
    batch = batch_of([[5]] * count + [[5]], [[10, 11, 12, 13]] * count + [[14]])
    torch.manual_seed(1)
    hidden = model.train().hide(batch)
    masked = hidden.target.cut
    assert torch.equal(hidden.labels != NO_LABEL, masked)
    assert torch.equal(hidden.labels[masked], batch.labels[masked])
    assert hidden.target.ids[0].tolist() == [10, 11, 12, 13, END]
    assert hidden.target.ids[-1].tolist() == [14, END, PAD, PAD, PAD]
    assert masked[-1].tolist() == [True, False, False, False, False], "a single token is always masked"
    drawn = masked[:count, :length]
    assert not masked[:count, length].any(), "the end mark is never masked"
    numbers = drawn.sum(1).bincount(minlength=length + 1) / count  # of 0, 1, …, 4 masked tokens
    assert numbers[0] == 0
    assert ((numbers[1:] - 1 / length).abs() < 0.05).all()
    assert ((drawn.float().mean(0) - (length + 1) / (2 * length)).abs() < 0.05).all(), "every place is alike"
    assert torch.equal(model.eval().hide(batch).target.cut, model.hide(batch).target.cut)


def test_what_is_masked_is_unknown_and_every_other_token_is_known_to_every_place(model):
    batch = batch_of(SOURCES, TARGETS)
    masked = torch.tensor([[False, True, True, False, False], [True, False, False, False, False], [False] * 5])
    target = replace(model.hide(batch).target, cut=masked)
    state = model.encode(batch.source)
    features, _ = model.decode(target, state)
    places = torch.arange(5)
    for place in places:
        other = replace(target, ids=target.ids.index_fill(1, place, 18))
        changed = (model.decode(other, state)[0] != features).any(2)  # (R, T)
        known = ~masked[:, place] & target.mask[:, place]
        assert torch.equal(changed[target.mask], known[:, None].expand_as(changed)[target.mask])
    with torch.no_grad():
        model.decoder.embedded.mask += 1
    changed = (model.decode(target, state)[0] != features)[target.mask]
    assert torch.equal(changed.any(1), masked.any(1)[:, None].expand_as(masked)[target.mask]), (
        "a mask is seen in its row"
    )


def test_padding_changes_neither_features_nor_lengths(model):
    together = batch_of([*SOURCES, [5] * 9], [*TARGETS, [6] * 8])
    hidden = model.hide(together)
    features, state = model.decode(hidden.target, model.encode(together.source))
    for row, (source, tokens) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone = batch_of([source], [tokens])
        own = replace(model.hide(alone).target, cut=hidden.target.cut[row : row + 1, : len(tokens) + 1])
        expected, own_state = model.decode(own, model.encode(alone.source))
        torch.testing.assert_close(features[row, : len(tokens) + 1], expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(state.length_logits[row], own_state.length_logits[0], atol=1e-5, rtol=0)


def test_the_loss_is_that_of_masked_tokens_and_of_lengths_and_reaches_every_weight(model):
    batch, smoothing = batch_of(SOURCES, TARGETS), 0.1
    found = masked_cross_entropy(model, batch, smoothing)
    hidden, state = model.hide(batch), model.encode(batch.source)
    masked = hidden.target.cut
    logits = model.output(model.decode(hidden.target, state)[0])[masked]
    differences = torch.tensor([len(t) - len(s) for s, t in zip(SOURCES, TARGETS, strict=True)])
    lengths = F.cross_entropy(state.length_logits, differences + MOST_DIFFERENCE, reduction="sum")
    for value, share in zip((found.total, found.sums[1]), (smoothing, 0.0), strict=True):
        tokens = F.cross_entropy(logits, batch.labels[masked], label_smoothing=share)  # the mean over masked tokens
        torch.testing.assert_close(value, tokens * sum(map(len, TARGETS)) + lengths)
    found.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_lengths_are_ranked_by_probability_within_their_limits(model):
    sources = [[5] * 3, [6]]
    state = model.encode(batch_of(sources, sources).source)
    logits = torch.full_like(state.length_logits, -30.0)
    for difference, probability in ((-5, 0.3), (-2, 0.1), (0, 0.25), (1, 0.2), (90, 0.15)):
        logits[:, difference + MOST_DIFFERENCE] = math.log(probability)
    state = replace(state, length_logits=logits)
    # Of the source of three tokens: -2 and 1 are both 1, then 3, 4 and 93, which the limit makes 9.
    lengths, log_probs = model.likeliest_lengths(state, torch.tensor([9, 9]), 4)
    assert lengths.tolist() == [[1, 3, 4, 9], [1, 2, 9, 3]]
    wanted = torch.tensor([[0.4, 0.25, 0.2, 0.15], [0.65, 0.2, 0.15, 0.0]])
    torch.testing.assert_close(log_probs.exp(), wanted, atol=1e-6, rtol=0)
    lengths, log_probs = model.likeliest_lengths(state, torch.tensor([2, 1]), 3)
    assert lengths[log_probs > -torch.inf].tolist() == [2, 1, 1]
    for lengths, probabilities in (([1, 1], [0.1, 0.25]), ([3, 2], [0.25, 0.2]), ([93, 500], [0.15, 0.0])):
        found = model.length_log_probs(state, torch.tensor(lengths)).exp()
        torch.testing.assert_close(found, torch.tensor(probabilities), atol=1e-6, rtol=0)
