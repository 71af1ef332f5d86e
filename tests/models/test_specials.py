"""Models whose vocabularies have special ids of their own, and decoders that begin with nothing."""

import pytest
import torch

from mtkit.config.data_and_model_settings import MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import DecodingConfig
from mtkit.data.batches import Batch, padded_batch, ragged
from mtkit.models.interface import TranslationModel
from mtkit.models.registry import empty_model, fill_model, new_model
from mtkit.text.vocabulary import DEFAULT_IDS, SpecialIds, Specials
from mtkit.training.optimizers import Adam
from mtkit.training.update import label_smoothed_cross_entropy
from mtkit.translation.decode import decode, log_probs_of

V = 24
FOREIGN = Specials(
    SpecialIds(pad=V - 1, unknown=1, begin=None, end=0), SpecialIds(pad=V - 1, unknown=4, begin=3, end=7)
)
TINY = {"d_model": 16, "num_heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
LSTM = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
ZERO = [
    TransformerConfig(**TINY, start_token="zero"),
    TransformerConfig(**TINY, start_token="zero", tie_embeddings="none", output_bias=True),
    TransformerConfig(**TINY, start_token="zero", tie_embeddings="decoder"),
    RecurrentConfig(**LSTM, start_token="zero"),
    MixedConfig(encoder=TransformerConfig(**TINY), decoder=RecurrentConfig(**LSTM, start_token="zero")),
]
SOURCES, TARGETS = [[5, 6, 9], [8], [9, 9, 10, 11]], [[9, 10], [11, 12, 13, 14], [15]]


def permuted(model: TranslationModel, order: list[int], specials: Specials) -> TranslationModel:
    """The same model with id n being what was order[n]."""
    config = TransformerConfig(**TINY, start_token="end", output_bias=True)
    other = empty_model(config, V, V, specials)
    weights = {name: weight[order] if weight.shape[0] == V else weight for name, weight in model.named_parameters()}
    fill_model(other, weights, "test")
    return other.eval()


@pytest.fixture
def pair() -> tuple[TranslationModel, TranslationModel, list[int]]:
    """A model with our special ids, the same one with others, and where each id went."""
    torch.manual_seed(2)
    model = new_model(TransformerConfig(**TINY, start_token="end", output_bias=True), V, V, seed=3).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape)
    special = SpecialIds(pad=V - 1, unknown=4, begin=None, end=0)
    order = [
        DEFAULT_IDS.end,
        9,
        DEFAULT_IDS.begin,
        5,
        DEFAULT_IDS.unknown,
        *(i for i in range(4, V) if i not in (5, 9)),
        DEFAULT_IDS.pad,
    ]
    other = permuted(model, order, Specials(special, special))
    return model, other, [order.index(i) for i in range(V)]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_other_special_ids_change_no_translation(pair, beam_size):
    model, other, place = pair
    decoding = DecodingConfig(beam_size=beam_size)
    ours = decode(model, decoding, SOURCES, forbidden=DEFAULT_IDS.never_generated)
    moved = [[place[token] for token in source] for source in SOURCES]
    theirs = decode(other, decoding, moved, forbidden=[place[token] for token in DEFAULT_IDS.never_generated])
    for one, two in zip(ours, theirs, strict=True):
        assert [place[token] for token in one[0].tokens] == two[0].tokens
        assert one[0].log_prob == pytest.approx(two[0].log_prob)


def test_other_special_ids_change_no_likelihood(pair):
    model, other, place = pair
    moved = [[[place[token] for token in row] for row in side] for side in (SOURCES, TARGETS)]
    ours, theirs = log_probs_of(model, SOURCES, TARGETS, 100), log_probs_of(other, *moved, 100)
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two)


def test_an_end_mark_of_id_0_is_a_label_and_padding_is_not(pair):
    model, other, place = pair
    moved = [[[place[token] for token in row] for row in side] for side in (SOURCES, TARGETS)]
    found = []
    for one, (sources, targets) in ((model, (SOURCES, TARGETS)), (other, moved)):
        batch = padded_batch(ragged(sources), ragged(targets), one.boundaries)
        features = one(batch.source, batch.target)
        found.append([x.item() for x in label_smoothed_cross_entropy(features, one.output, batch.labels, 0.1)])
    assert found[0] == pytest.approx(found[1])


def test_what_is_forbidden_follows_from_the_special_ids():
    assert SpecialIds(pad=9, unknown=1, begin=None, end=0).never_generated == (9, 1)
    assert DEFAULT_IDS.never_generated == (0, 1, 2)
    # M2M100's decoder begins with what ends a sentence.
    assert SpecialIds(pad=1, unknown=3, begin=2, end=2).never_generated == (1, 3)


def trained(model: TranslationModel, batch: Batch, steps: int = 3) -> None:
    optimizer = Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        loss, _ = label_smoothed_cross_entropy(model(batch.source, batch.target), model.output, batch.labels, 0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("config", ZERO, ids=lambda config: config.architecture)
@pytest.mark.parametrize("specials", [Specials(), FOREIGN], ids=["own", "foreign"])
def test_a_decoder_that_begins_with_nothing_does_so_after_training_too(config, specials):
    model = new_model(config, V, V, seed=1, specials=specials).train()
    batch = padded_batch(ragged(SOURCES), ragged(TARGETS), model.boundaries)
    table, start = model.decoder.embedding.weight, specials.target.pad
    assert (batch.target.ids[:, 0] == start).all()
    before = table.detach().clone()
    trained(model, batch)
    assert not table[start].any()
    changed = (table != before).any(1)
    assert changed[[token for row in TARGETS for token in row]].all()


@pytest.mark.parametrize("name", ["pad", "begin", "end"])
def test_other_start_tokens_are_learned(name):
    model = new_model(TransformerConfig(**TINY, start_token=name), V, V, seed=1).train()
    before = model.decoder.embedding.weight.detach().clone()
    trained(model, padded_batch(ragged(SOURCES), ragged(TARGETS), model.boundaries))
    assert (model.decoder.embedding.weight[model.boundaries.start] != before[model.boundaries.start]).all()
