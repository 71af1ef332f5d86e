"""What the Transformer may be made of: norms, nonlinearities, layers left out; and what stays as it was."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.data.batches import Batch, padded_batch, ragged
from mtkit.models.interface import TranslationModel, next_rows
from mtkit.models.layers import CrossAttention, FeedForward, SelfAttention, draw_layers, with_zero_gradients
from mtkit.models.registry import new_model
from mtkit.models.transformer import NORMS, make_norm
from mtkit.training.optimizers import hidden_matrices

VOCAB = 23

TINY = {"d_model": 16, "num_heads": 4, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}


def made(**others: object) -> TranslationModel:
    return new_model(TransformerConfig(**{**TINY, **others}), VOCAB, VOCAB, seed=1)


def example() -> Batch:
    return padded_batch(ragged([[5, 6, 7], [8]]), ragged([[9, 10], [11, 12, 13, 14]]))


# Norms, nonlinearities, biases


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    norm = make_norm(TransformerConfig(**TINY, norm="rms")).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 16))
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * torch.linspace(0.5, 2, 16, dtype=torch.float64)
    torch.testing.assert_close(norm(x), wanted, atol=1e-6, rtol=0)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_model_has_norms_of_one_kind(norm, placement):
    model = made(norm=norm, norm_placement=placement, embedding_norm=True)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    assert set(kinds) == {NORMS[norm]}
    assert len(kinds) == 2 * 2 + 3 * 2 + 2 + 2 * (placement == "pre")


def test_an_embedding_norm_stands_between_the_embeddings_and_the_first_layer():
    model = made(embedding_norm=True, norm="rms").eval()
    embedded, source = model.encoder.embedded, example().source
    x = embedded(source, 4)
    torch.testing.assert_close(x.square().mean(-1), torch.ones(x.shape[:2]), atol=1e-3, rtol=0)
    embedded.norm = nn.Identity()
    torch.testing.assert_close(x, F.rms_norm(embedded(source, 4), (16,), eps=1e-5))


@pytest.mark.parametrize(("name", "function"), [("reglu", F.relu), ("geglu", F.gelu), ("swiglu", F.silu)])
def test_a_gate_is_the_first_half_of_the_inner_layer_and_multiplies_the_second(name, function):
    torch.manual_seed(0)
    layer = FeedForward(TransformerConfig(**TINY, activation=name), 24).double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    gate, value = layer.inner.weight[:24], layer.inner.weight[24:]
    gate_bias, value_bias = layer.inner.bias[:24], layer.inner.bias[24:]
    inner = function(x @ gate.T + gate_bias) * (x @ value.T + value_bias)
    torch.testing.assert_close(layer(x), inner @ layer.output.weight.T + layer.output.bias)


@pytest.mark.parametrize(
    ("name", "function"),
    [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)],
)
def test_without_a_gate_there_is_a_nonlinearity_alone(name, function):
    torch.manual_seed(0)
    layer = FeedForward(TransformerConfig(**TINY, activation=name), 24)
    x = torch.randn(2, 3, 16)
    assert torch.equal(layer(x), layer.output(function(layer.inner(x))))


def test_without_attention_biases_only_those_are_gone():
    names, without = ({name for name, _ in made(attention_bias=bias).named_parameters()} for bias in (True, False))
    gone = names - without
    assert without < names
    assert len(gone) == 2 * 2 + 2 * 5
    assert all("attention." in name and name.endswith(".bias") for name in gone)
    assert not [name for name in without if "attention." in name and "around" not in name and name.endswith(".bias")]


def test_an_output_bias_begins_at_zero_and_is_added_to_the_logits():
    model, plain = made(output_bias=True).eval(), made().eval()
    batch = example()
    logits = [m.output(m(batch.source, batch.target)) for m in (model, plain)]
    assert torch.equal(*logits)
    bias = torch.linspace(-1, 1, VOCAB)
    with torch.no_grad():
        model.output.bias.copy_(bias)
    torch.testing.assert_close(model.output(model(batch.source, batch.target)), logits[1] + bias)


# Queries and keys, residual connections


def logits_of(model: TranslationModel) -> Tensor:
    batch = example()
    return model.eval().output(model(batch.source, batch.target))


@pytest.mark.parametrize(
    "choice",
    [
        {"query_key_norm": True},
        {"query_key_norm": "layer"},
        {"residual_init": "zero"},
        {"residual_init": "scaled"},
    ],
    ids=str,
)
def test_a_choice_alone_changes_what_a_new_model_says(choice):
    assert (logits_of(made(**choice)) - logits_of(made())).abs().max() > 0.01


def test_the_gains_of_queries_and_keys_are_left_to_adam_by_muon():
    names = [
        {name for name, weight in model.named_parameters() if weight in hidden_matrices(model)}
        for model in (made(), made(query_key_norm=True), made(query_key_norm="layer"))
    ]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("kind", [True, "layer"])
def test_normalised_queries_and_keys_forget_their_length_and_know_their_gains(kind):
    torch.manual_seed(0)
    x, memory = torch.randn(2, 5, 16).double(), torch.randn(2, 7, 16).double()
    own, other = (
        SelfAttention(16, 4, 0.0, query_key_norm=kind).double(),
        CrossAttention(16, 4, 0.0, query_key_norm=kind).double(),
    )

    def outputs() -> tuple[Tensor, Tensor]:
        return own(x, None, causal=True), other(x, *other.project(memory), None)

    before = outputs()
    with torch.no_grad():
        own.query_key_value.weight[:32] *= 50
        own.query_key_value.bias[:32] *= 50
        for part in (other.query, other.key_value):
            part.weight[:16] *= 50
            part.bias[:16] *= 50
    for found, wanted in zip(outputs(), before, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)  # but for the norm's epsilon
    for norm in (own.query_norm, own.key_norm, other.query_norm, other.key_norm):
        with torch.no_grad():
            norm.weight *= 3
        assert max((found - wanted).abs().max() for found, wanted in zip(outputs(), before, strict=True)) > 0.01
        with torch.no_grad():
            norm.weight /= 3


@pytest.mark.parametrize("kind", [True, "layer"])
def test_attention_with_normalised_queries_and_keys_is_that_of_the_papers(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16).double()
    layer = SelfAttention(16, 4, 0.0, query_key_norm=kind).double()
    torch.nn.init.normal_(layer.query_norm.weight)
    torch.nn.init.normal_(layer.key_norm.weight)
    query, key, value = layer.query_key_value(x).view(2, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)  # each (R, H, L, K)
    if kind == "layer":
        query, key = (part - part.mean(-1, keepdim=True) for part in (query, key))
    query, key = (
        part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
        for part, norm in ((query, layer.query_norm), (key, layer.key_norm))
    )
    mixed = (query @ key.mT / 2).softmax(-1) @ value
    torch.testing.assert_close(layer(x, None), layer.output(mixed.transpose(1, 2).flatten(2)))


def test_sublayers_that_begin_at_zero_change_nothing():
    model, batch = made(residual_init="zero").eval(), example()
    encoder, decoder = model.encoder, model.decoder
    memory, wanted = encoder(batch.source).states, encoder.norm(encoder.embedded(batch.source, 4))
    assert torch.equal(memory, wanted)
    features = model(batch.source, batch.target)
    assert torch.equal(features, decoder.norm(decoder.embedded(batch.target, batch.target.ids.shape[1])))


def test_scaled_sublayers_are_those_of_the_seed_divided_by_the_root_of_their_number():
    weights, plain = (dict(made(encoder_layers=3, residual_init=n).named_parameters()) for n in ("scaled", "default"))
    for name, weight in plain.items():
        is_last = name.endswith(("attention.output.weight", "feed_forward.output.weight"))
        num_sublayers = (3 * 2 if name.startswith("encoder") else 2 * 3) if is_last else 1
        torch.testing.assert_close(weights[name], weight * num_sublayers**-0.5)


def test_without_positions_the_encoder_knows_no_order_and_the_decoder_does():
    model = made(positions="none").eval().double()
    source = padded_batch(ragged([[5, 6, 7, 8]]), ragged([[9]])).source
    turned = padded_batch(ragged([[8, 6, 7, 5]]), ragged([[9]])).source
    memory, other = model.encoder(source).states, model.encoder(turned).states
    torch.testing.assert_close(memory[:, [3, 1, 2, 0, 4]], other)
    one, two = (padded_batch(ragged([[5]]), ragged([target])).target for target in ([9, 10, 11], [10, 9, 11]))
    assert (model(source, one)[0, 3] - model(source, two)[0, 3]).abs().max() > 1e-3


# What stays as it was


def names_of_a_plain_model() -> set[str]:
    """Those of every bundle that was written before there were other choices."""
    linear = ["weight", "bias"]
    feed_forward = [f"feed_forward.{part}.{kind}" for part in ("inner", "output") for kind in linear]
    attention = [f"attention.{part}.{kind}" for part in ("query_key_value", "output") for kind in linear]
    source = [f"source_attention.{part}.{kind}" for part in ("query", "key_value", "output") for kind in linear]
    around = [f"around_{part}.norm.{kind}" for part in ("attention", "feed_forward") for kind in linear]
    around_source = [f"around_source_attention.norm.{kind}" for kind in linear]
    names = {"encoder.embedded.embedding.weight"}
    for half, layer in (
        ("encoder", [*attention, *feed_forward, *around]),
        ("decoder", [*attention, *source, *feed_forward, *around, *around_source]),
    ):
        names |= {f"{half}.layers.{n}.{name}" for n in (0, 1) for name in layer} | {f"{half}.norm.{k}" for k in linear}
    return names


def test_the_names_of_a_plain_models_weights_are_those_of_older_bundles():
    model = made()
    assert {name for name, _ in model.named_parameters()} == names_of_a_plain_model()
    untied = {name for name, _ in made(tie_embeddings="none", positions="learned").named_parameters()}
    assert untied - names_of_a_plain_model() == {
        "encoder.embedded.positions.weight",
        "decoder.embedded.positions.weight",
        "decoder.embedded.embedding.weight",
        "decoder.output.table.weight",
    }


@pytest.mark.parametrize(
    "choice",
    [
        {"positions": "rotary"},
        {"positions": "none"},
        {"sinusoid_layout": "interleaved"},
        {"start_token": "pad"},
        {"layer_dropout": 0.5},
        {"activation": "silu"},
        {"output_bias": True},
        {"embedding_norm": True},
        {"query_key_norm": True},
        {"query_key_norm": "layer"},
    ],
    ids=str,
)
def test_a_choice_that_draws_no_weights_leaves_those_of_the_seed_as_they_are(choice):
    weights = dict(made(**choice).named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in made().named_parameters())


@pytest.mark.parametrize(
    "choices",
    [
        {"norm": "rms", "activation": "swiglu", "positions": "rotary", "attention_bias": False},
        {"activation": "geglu", "output_bias": True, "embedding_norm": True, "positions": "learned"},
        {"activation": "reglu", "norm": "rms", "norm_placement": "post", "positions": "none"},
        {"activation": "relu", "query_key_norm": True},
        {"activation": "silu", "query_key_norm": "layer"},
    ],
    ids=lambda choices: choices["activation"],
)
def test_every_weight_is_learned(choices):
    model = made(**choices, tie_embeddings="none")
    batch = example()
    model.output(model(batch.source, batch.target)).logsumexp(-1).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


# Layers left out


def test_layers_are_left_out_as_often_as_said_in_training_and_never_else():
    torch.manual_seed(0)
    assert sum(draw_layers(10_000, 0.3, training=True)) / 10_000 == pytest.approx(0.7, abs=0.02)
    assert all(draw_layers(10_000, 0.3, training=False))
    assert all(draw_layers(10_000, 0.0, training=True))


def test_without_layer_dropout_no_chance_is_touched():
    before = torch.random.get_rng_state()
    draw_layers(5, 0.0, training=True)
    draw_layers(5, 0.5, training=False)
    assert torch.equal(torch.random.get_rng_state(), before)


def only(model: TranslationModel, encoder: tuple[int, ...], decoder: tuple[int, ...]) -> TranslationModel:
    """The model without its other layers."""
    smaller = copy.deepcopy(model).eval()
    for half, kept in ((smaller.encoder, encoder), (smaller.decoder, decoder)):
        half.layers = nn.ModuleList(half.layers[n] for n in kept)
    return smaller


def test_in_training_the_model_is_at_times_each_of_those_with_fewer_layers():
    model, batch = made(layer_dropout=0.5), example()
    subsets = [kept for size in range(3) for kept in itertools.combinations(range(2), size)]
    with torch.no_grad():
        wanted = [only(model, *both)(batch.source, batch.target) for both in itertools.product(subsets, subsets)]
        seen = set()
        for seed in range(150):
            torch.manual_seed(seed)
            found = model(batch.source, batch.target)
            same = {n for n, features in enumerate(wanted) if torch.equal(found, features)}
            assert same
            seen |= same
    assert len(seen) == 16


def test_in_evaluation_no_layer_is_left_out():
    batch = example()
    dropped, plain = (made(layer_dropout=rate).eval()(batch.source, batch.target) for rate in (0.9, 0.0))
    assert torch.equal(dropped, plain)


def test_the_same_seed_leaves_out_the_same_layers():
    model, batch = made(layer_dropout=0.5), example()

    def features(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(batch.source, batch.target)

    first = [features(seed) for seed in range(20)]
    assert all(torch.equal(features(seed), found) for seed, found in enumerate(first))
    assert not all(torch.equal(first[0], other) for other in first), "other seeds leave out others"


def test_a_layer_that_was_left_out_has_a_gradient_of_zeros_and_the_others_that_of_the_model_without_it():
    model, batch = made(layer_dropout=0.5, tie_embeddings="none"), example()
    num_zero = set()
    for seed in range(15):
        torch.manual_seed(seed)
        model.zero_grad(set_to_none=True)
        model.output(model(batch.source, batch.target)).logsumexp(-1).sum().backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        assert None not in gradients.values()
        torch.manual_seed(seed)
        kept = [tuple(n for n, stays in enumerate(draw_layers(2, 0.5, True)) if stays) for _ in range(2)]
        smaller = only(model, *kept)
        smaller.zero_grad(set_to_none=True)
        smaller.output(smaller(batch.source, batch.target)).logsumexp(-1).sum().backward()
        wanted = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
        for name, weight in smaller.named_parameters():
            half, *rest = name.split(".")
            if rest[0] == "layers":
                rest[1] = str(kept[half == "decoder"][int(rest[1])])
            if weight.grad is not None:  # the encoder has none where no layer of the decoder is left
                wanted[".".join([half, *rest])] = weight.grad
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name])
        num_zero.add(sum(not gradient.any() for gradient in gradients.values()))
    assert len(num_zero) > 4


def test_a_state_keeps_its_layers_for_all_its_steps():
    model, batch = made(layer_dropout=0.5), example()
    for seed in range(10):
        torch.manual_seed(seed)
        expected = model(batch.source, batch.target)
        torch.manual_seed(seed)
        state = model.encode(batch.source)
        for t in range(batch.target.ids.shape[1]):
            features, state = model.decode(next_rows(batch.target.ids[:, t : t + 1], state), state)
            real = batch.target.mask[:, t]
            torch.testing.assert_close(features[real, 0], expected[real, t], atol=1e-5, rtol=0)


def test_unused_tensors_change_no_value_and_get_zeros():
    x, unused = torch.randn(3, requires_grad=True), torch.full((2, 2), float("nan"), requires_grad=True)
    y = with_zero_gradients(x, [unused])
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert torch.equal(unused.grad, torch.zeros(2, 2))
    assert with_zero_gradients(x, []) is x
