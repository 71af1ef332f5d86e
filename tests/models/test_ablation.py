"""Transformers with a part taken out: the part is gone, the rest stays, and no search trusts a cache that would lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import mtkit
from mtkit.config.data_and_model_settings import SEES_LATER, Ablation, MixedConfig, TransformerConfig
from mtkit.config.settings import Config
from mtkit.data.batches import Rows, padded_batch, ragged
from mtkit.errors import CheckpointError
from mtkit.exchange.formats import export
from mtkit.models.interface import TranslationModel, next_rows
from mtkit.models.layers import Cache
from mtkit.models.registry import new_model
from mtkit.models.transformer import PrefixState, TransformerState
from tests.models.test_models import packed, padded, sentences
from tests.runs import trained

VOCAB = 23
TINY = {"d_model": 16, "num_heads": 4, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
SOURCE, TARGET = padded(sentences(5, 3)), padded(sentences(6, 4, seed=1))


def made(*ablate: str, **others: object) -> TranslationModel:
    """A model without these parts, whose biases and gains are not all alike."""
    model = new_model(TransformerConfig(**{**TINY, "ablate": ablate, **others}), VOCAB, VOCAB, seed=1).eval()
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.requires_grad_(False).named_parameters():
        if weight.dim() == 1 and "source_attention" not in name:
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def changed(rows: Rows, place: Tensor) -> Rows:
    """The rows with another token wherever `place` is True."""
    return Rows(torch.where(place, (rows.ids + 1) % VOCAB, rows.ids), rows.segments, rows.positions)


def largest_change(model: TranslationModel, source: Rows, target: Rows, watched: Tensor) -> float:
    """How much the features of the tokens `watched` change if the rows become these."""
    return float((model(source, target) - model(SOURCE, TARGET))[watched].abs().max())


def leak(model: TranslationModel) -> float:
    """The largest change of features when a later token changes."""
    last = torch.zeros_like(TARGET.mask)
    last[:, 3] = True
    return largest_change(model, SOURCE, changed(TARGET, last), TARGET.mask & (TARGET.positions < 3))


@pytest.mark.parametrize("ablate", [(), *((name,) for name in get_args(Ablation))], ids=str)
def test_each_mask_lets_through_exactly_nothing_unless_it_is_taken_out(ablate: tuple[str, ...]) -> None:
    model = made(*ablate)
    others = torch.tensor([[True], [False]]).expand_as(SOURCE.mask)
    assert largest_change(model, changed(SOURCE, ~SOURCE.mask), TARGET, TARGET.mask) == 0
    assert largest_change(model, SOURCE, changed(TARGET, ~TARGET.mask), TARGET.mask) == 0
    assert largest_change(model, changed(SOURCE, others), TARGET, TARGET.mask & ~others[:, :1]) == 0
    assert (leak(model) == 0) == (not {"causal_mask", "causal_mask_product"} & {*ablate})
    later = SOURCE.positions >= 2
    states = [model.encoder(rows).states[:, :2] for rows in (SOURCE, changed(SOURCE, later))]
    assert torch.equal(*states) == ("encoder_causal" in ablate)


def plain_attention(model: TranslationModel, x: Tensor, product: bool) -> Tensor:
    """Self-attention of the decoder's layer over the tokens x, (L, D), by its formula."""
    attention = model.decoder.layers[0].attention
    query, key, value = attention.query_key_value(x).view(len(x), 3, 4, 4).permute(1, 2, 0, 3)  # each (H, L, K)
    scores = query @ key.mT / 2
    if product:
        scores = scores * torch.ones(len(x), len(x)).tril()
    return attention.output((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))


@pytest.mark.parametrize("name", ["causal_mask", "causal_mask_product"])
def test_without_its_mask_a_token_attends_to_all_and_a_product_with_zero_is_no_mask(name: str) -> None:
    model = made(name)
    layer, x = model.decoder.layers[0], torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
    everywhere, product = torch.ones(1, 1, 6, 6, dtype=torch.bool), name == "causal_mask_product"
    factors = everywhere.tril() if product else None
    found = layer.attention(x, everywhere, False, Cache(), factors=factors)[0]
    torch.testing.assert_close(found, plain_attention(model, x[0], product))
    target = Rows(TARGET.ids[:1], TARGET.segments[:1], TARGET.positions[:1])
    source = Rows(SOURCE.ids[:1], SOURCE.segments[:1], SOURCE.positions[:1])
    x = model.decoder.embedded(target, 6)
    memory = layer.project(model.encoder(source).states)
    x = layer(x, everywhere, Cache(), None, memory, source.mask[:, None, None], None, factors)
    torch.testing.assert_close(model(source, target), model.decoder.norm(x))


def test_without_a_shift_the_input_is_what_is_to_be_predicted() -> None:
    pairs = ragged([[5, 6, 7], [8]]), ragged([[9, 10], [11, 12, 13]])
    batch = padded_batch(*pairs, made("shift").boundaries)
    assert torch.equal(batch.target.ids[batch.target.mask], batch.labels[batch.target.mask])
    found, wanted = (model(batch.source, batch.target)[batch.target.mask] for model in (made("shift"), made()))
    torch.testing.assert_close(found, wanted)
    shifted = padded_batch(*pairs, made().boundaries)
    assert torch.equal(batch.labels, shifted.labels)
    assert not torch.equal(batch.target.ids, shifted.target.ids)


def test_without_attention_to_the_source_the_rest_is_as_if_it_added_nothing() -> None:
    model, plain = made("cross_attention"), made()
    assert largest_change(model, changed(SOURCE, SOURCE.mask), TARGET, TARGET.mask) == 0
    weights = dict(model.named_parameters())
    gone = {name for name, _ in plain.named_parameters()} - weights.keys()
    assert {name.split(".")[3] for name in gone} == {"source_attention", "around_source_attention"}
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.copy_(weights.get(name, torch.zeros(())))
    assert torch.equal(plain(SOURCE, TARGET), model(SOURCE, TARGET))
    assert not model.decode(TARGET, model.encode(SOURCE, watch=True))[1].attention
    model.requires_grad_(True)(SOURCE, TARGET).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters()), "an optimizer would leave some out"


def test_without_residual_connections_a_layer_is_its_sublayers_one_after_the_other() -> None:
    model = made("residual")
    encoder = model.encoder
    layer, x = encoder.layers[0], encoder.embedded(SOURCE, 5)
    y = layer.attention(layer.around_attention.norm(x), SOURCE.mask[:, None, None])
    y = layer.feed_forward(layer.around_feed_forward.norm(y))
    torch.testing.assert_close(encoder(SOURCE).states, encoder.norm(y))
    assert not torch.equal(model(SOURCE, TARGET), made()(SOURCE, TARGET))


def test_without_the_scale_of_attention_queries_are_as_if_multiplied_by_the_root_of_their_width() -> None:
    model, plain = made("attention_scale"), made()
    for name, module in plain.named_modules():
        if name.endswith("query_key_value"):
            module.weight[:16] *= 2
            module.bias[:16] *= 2
        elif name.endswith("source_attention.query"):
            module.weight *= 2
            module.bias *= 2
    torch.testing.assert_close(model(SOURCE, TARGET), plain(SOURCE, TARGET))
    assert not torch.equal(model(SOURCE, TARGET), made()(SOURCE, TARGET))


def test_a_causal_encoder_knows_of_each_token_what_it_would_if_the_source_ended_there() -> None:
    encoder = made("encoder_causal").encoder
    states, [source] = encoder(padded(sentences(5))).states[0], sentences(5)
    for length in range(1, 6):
        torch.testing.assert_close(encoder(padded([source[:length]])).states[0], states[:length])


@pytest.mark.parametrize("name", get_args(Ablation))
def test_the_weights_that_stay_are_those_of_the_whole_model(name: str) -> None:
    own, whole = dict(made(name).named_parameters()), dict(made().named_parameters())
    assert own.keys() == whole.keys() or name == "cross_attention"
    if name != "cross_attention":  # without it, fewer weights are drawn
        assert all(torch.equal(weight, whole[key]) for key, weight in own.items())


def test_a_width_of_zero_has_no_feed_forward_layers_and_norm_none_no_norms() -> None:
    for others, gone in (
        ({"d_ff": 0}, "feed_forward"),
        ({"norm": "none"}, "norm"),
        ({"d_ff": 24, "decoder_d_ff": 0}, "decoder.layers.0.feed_forward"),
    ):
        names = [name for name, _ in made(**others).named_parameters()]
        whole = [name for name, _ in made().named_parameters()]
        around = gone.replace("feed_forward", "around_feed_forward")
        assert names == [name for name in whole if gone not in name and around not in name]
    model = made(d_ff=0, norm="none")
    encoder = model.encoder
    x = encoder.embedded(SOURCE, 5)
    y = x + encoder.layers[0].attention(x, SOURCE.mask[:, None, None])
    torch.testing.assert_close(encoder(SOURCE).states, y)


# Searches


def stepwise(model: TranslationModel, state: Any) -> Tensor:
    """The features of all tokens of TARGET's first row, each decoded in a step of its own."""
    found = []
    for place in range(TARGET.ids.shape[1]):
        features, state = model.decode(next_rows(TARGET.ids[:, place : place + 1], state), state)
        found.append(features[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize("name", SEES_LATER)
def test_a_decoder_that_sees_later_tokens_refuses_a_cache_which_would_lie(name: str) -> None:
    model = made(name, decoder_layers=2)  # the keys of a first layer depend on no other token
    state = model.encode(SOURCE)
    assert isinstance(state, PrefixState)
    _, after = model.decode(TARGET, model.encode(SOURCE))
    assert not any(cache.length for cache in after.fresh.caches)
    if name != "shift":  # without a shift alone, only the place of the unknown token differs
        wanted, lie = (stepwise(model, start) for start in (state, model.encode(SOURCE).fresh))
        assert (wanted - lie).abs().max() > 1e-3
    for kept in {*get_args(Ablation)} - {*SEES_LATER}:
        assert isinstance(made(kept).encode(SOURCE), TransformerState)


@pytest.mark.parametrize("name", SEES_LATER)
def test_each_step_decodes_the_whole_prefix_of_each_hypothesis_anew(name: str) -> None:
    model, generator = made(name, decoder_layers=2), torch.Generator().manual_seed(3)
    source = padded(sentences(5, 9, 2))
    histories, alive = [[[4]]] * 3, torch.arange(3)
    state, ids = model.encode(source, watch=True), torch.full((3, 1), 4)
    for width in (3, 2, 4, 1):
        features, state = model.decode(next_rows(ids, state), state)
        rows = alive.repeat_interleave(len(histories[0]))
        sources = Rows(source.ids[rows], source.segments[rows], source.positions[rows])
        prefixes = [history for beam in histories for history in beam]
        if name == "shift":  # the start token stands where the next token would
            prefixes = [[*history[1:], history[0]] for history in prefixes]
        target = padded([torch.tensor(prefix) for prefix in prefixes])
        torch.testing.assert_close(features.flatten(0, 1), model(sources, target)[:, -1], atol=1e-5, rtol=0)
        assert state.attention[-1].shape[2] == len(histories[0])
        assert state.positions.tolist() == [len(histories[0][0])] * len(alive)
        if width == 2:
            kept = torch.tensor([2, 0])
            state, histories, alive = state.keep(kept), [histories[i] for i in kept], alive[kept]
        parents = torch.randint(0, len(histories[0]), (len(histories), width), generator=generator)
        state, ids = state.branch(parents), torch.randint(4, VOCAB, parents.shape, generator=generator)
        histories = [
            [[*histories[r][p], int(i)] for p, i in zip(parents[r], ids[r], strict=True)] for r in range(len(ids))
        ]


@pytest.mark.parametrize("name", SEES_LATER)
def test_packing_changes_nothing_where_later_tokens_are_seen(name: str) -> None:
    model, sources, targets = made(name), sentences(5, 9, 2), sentences(7, 3, 6, seed=1)
    together = model(packed(sources, 20), packed(targets, 17))[0, : 7 + 3 + 6]
    alone = [model(padded([s]), padded([t]))[0] for s, t in zip(sources, targets, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


# Settings, bundles, exports


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"ablate": ("shift", "shift")}, "ablate has shift twice"),
        ({"ablate": ("causal_mask", "causal_mask_product")}, "ablate has causal_mask and causal_mask_product"),
        (
            {"ablate": ("residual", "encoder_causal"), "encoder_layers": 0},
            "ablate has encoder_causal, which a model with",
        ),
        (
            {"ablate": ("cross_attention",), "encoder_layers": 0},
            "ablate has cross_attention, which a model without enc",
        ),
        ({"norm": "none", "norm_placement": "post"}, "norm_placement post wants norm layer or rms, found none"),
        ({"d_ff": 0, "activation": "gelu"}, "activation gelu wants feed-forward layers; d_ff is 0"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**model)


def test_only_a_whole_transformer_has_parts_to_take_out() -> None:
    with pytest.raises(ValueError, match=r"encoder\.ablate \[residual\] wants architecture transformer, found mixed"):
        MixedConfig(encoder=TransformerConfig(ablate=("residual",)))


@pytest.mark.filterwarnings("ignore:.*reached the maximum length")  # of a model that has learnt little
def test_a_bundle_tells_that_parts_are_taken_out_and_is_not_exported(
    make: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(make(model={"ablate": ["causal_mask", "shift"]}, max_steps=2, validate_every=2, save_every=2))
    capsys.readouterr()
    translator = mtkit.load(run)
    said = f"{run}: parts of this model are taken out (model.ablate): causal_mask, shift\n"
    assert capsys.readouterr().err == said
    assert len(translator.translate(["one two"])) == 1
    assert translator.score(["one"], ["1"])[0].num_tokens > 1
    with pytest.raises(CheckpointError, match=r"model\.ablate is causal_mask, shift; CTranslate2 and the others want"):
        export(run, "ctranslate2", tmp_path / "out")
