"""Laws of every model: token by token is teacher forcing; padding and packing change nothing."""

import itertools
from functools import cache, partial

import pytest
import torch
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import (
    AnyModelConfig,
    MaskedConfig,
    MixedConfig,
    RecurrentConfig,
    TransformerConfig,
)
from mtkit.data.batches import NO_LABEL, Rows
from mtkit.models import interface
from mtkit.models.interface import Memory, Scratch, TranslationModel, log_probs_from, next_rows
from mtkit.models.layers import CrossAttention, _attend_unfused, attend
from mtkit.models.recurrent import RecurrentLayer
from mtkit.models.registry import empty_model, new_model
from mtkit.training.update import label_smoothed_cross_entropy
from mtkit.translation.decode import next_log_probs
from tests.runs import DEVICES

VOCAB = 23

TINY = {"d_model": 16, "num_heads": 4, "d_ff": 24, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}

TRANSFORMERS = [
    TransformerConfig(**TINY, norm_placement=norm, positions=positions, tie_embeddings=tie, activation=activation)
    for norm, positions, tie, activation in [
        *itertools.product(["pre", "post"], ["sinusoidal", "learned"], ["all"], ["relu"]),
        ("pre", "sinusoidal", "none", "gelu"),
        ("post", "sinusoidal", "decoder", "silu"),
    ]
] + [TransformerConfig(**{**TINY, "decoder_layers": 1}, decoder_num_heads=2, decoder_d_ff=8, scale_embeddings=False)]

# Each other choice alone, and some that are made together: as Llama, Marian, M2M100 and mBART have them.
TRANSFORMERS += [
    TransformerConfig(**{**TINY, **others})
    for others in [
        {"norm": "rms"},
        {"activation": "reglu"},
        {"activation": "geglu"},
        {"activation": "swiglu"},
        {"attention_bias": False},
        {"positions": "rotary"},
        {"positions": "rotary", "decoder_num_heads": 2, "norm_placement": "post"},
        {"positions": "none"},
        {"sinusoid_layout": "interleaved"},
        {"embedding_norm": True},
        {"output_bias": True, "tie_embeddings": "none"},
        {"layer_dropout": 0.5},
        {"norm": "rms", "activation": "swiglu", "positions": "rotary", "attention_bias": False},
        {"norm_placement": "post", "activation": "silu", "output_bias": True, "start_token": "pad"},
        {"norm_placement": "post", "activation": "gelu", "output_bias": True, "start_token": "zero"},
        {"sinusoid_exponent": "tensor2tensor", "sinusoid_first": 2, "start_token": "end"},
        {"positions": "learned", "embedding_norm": True, "norm": "rms", "norm_placement": "post"},
        {"query_key_norm": True, "residual_init": "scaled"},
        {"query_key_norm": "layer", "positions": "rotary", "residual_init": "scaled"},
        {"positions": "alibi", "decoder_num_heads": 2},
        {"positions": "scalar", "decoder_positions": "alibi", "tie_embeddings": "none"},
        {"encoder_positions": "learned", "decoder_positions": "binary", "norm_placement": "post"},
        {"encoder_positions": "none", "decoder_positions": "rotary"},
        {"norm": "none", "decoder_d_ff": 0},
        {"d_ff": 0, "norm_placement": "post", "ablate": ("attention_scale",)},
        {"ablate": ("residual", "encoder_causal"), "positions": "rotary"},
        {"query_key_norm": True, "positions": "rotary", "norm": "rms", "norm_placement": "post", "output_bias": True},
    ]
]

SMALL = {"d_model": 16, "dropout": 0.0}
BOTH_WAYS = [True, False]
RECURRENT = [
    *(
        # Every pair of two of the choices, for which half of all combinations are enough.
        RecurrentConfig(**SMALL, cell=cell, attention=attention, input_feeding=feeding, bidirectional=(i + j) % 2 == 0)
        for i, cell in enumerate(["lstm", "gru", "tanh"])
        for j, (attention, feeding) in enumerate([("none", False), ("general", False), ("general", True)])
    ),
    *(
        RecurrentConfig(**SMALL, attention=attention, input_feeding=feeding, context="every_step", reverse_source=True)
        for attention, feeding in [("none", False), *itertools.product(["additive", "dot"], BOTH_WAYS)]
    ),
    RecurrentConfig(**SMALL, output_bias=True, start_token="pad"),
    *(
        RecurrentConfig(**SMALL, encoder_layers=up, decoder_layers=down, cell=cell, context=context, tie_embeddings=tie)
        for up, down, cell, context, tie in [
            (1, 3, "lstm", "initial", "none"),
            (3, 1, "gru", "every_step", "decoder"),
            (1, 1, "tanh", "every_step", "none"),
        ]
    ),
]

TRANSFORMER, LSTM = TransformerConfig(**TINY), RecurrentConfig(**SMALL)
MIXED = [
    MixedConfig(encoder=TRANSFORMER, decoder=LSTM),
    MixedConfig(encoder=LSTM, decoder=TRANSFORMER),
    *(
        MixedConfig(encoder=encoder, decoder=decoder, tie_embeddings=tie)
        for encoder, decoder, tie in [
            (TransformerConfig(**{**TINY, "d_model": 24}), RecurrentConfig(**SMALL, context="every_step"), "none"),
            (TRANSFORMER, RecurrentConfig(d_model=10, dropout=0.0, cell="gru", attention="none"), "decoder"),
            (TRANSFORMER, RecurrentConfig(d_model=15, dropout=0.0, bidirectional=False, input_feeding=True), "decoder"),
            (RecurrentConfig(d_model=12, dropout=0.0, reverse_source=True), TRANSFORMER, "none"),
            (RecurrentConfig(d_model=12, dropout=0.0, decoder_layers=1), LSTM, "decoder"),
            (RecurrentConfig(**SMALL, cell="gru"), RecurrentConfig(**SMALL, cell="lstm", attention="none"), "all"),
            (TransformerConfig(**{**TINY, "d_model": 24}), TRANSFORMER, "decoder"),
        ]
    ),
]
MASKED = [MaskedConfig(**TINY), MaskedConfig(**TINY, positions="rotary", tie_embeddings="none", output_bias=True)]
# Language models, which have no encoder.
ALONE = [
    *(TransformerConfig(**{**TINY, "encoder_layers": 0}, positions=positions) for positions in ("learned", "rotary")),
    RecurrentConfig(**SMALL, encoder_layers=0, attention="additive", input_feeding=True, context="every_step"),
]
CHOICES: list[AnyModelConfig] = [*TRANSFORMERS, *RECURRENT, *MIXED, *ALONE]


def name_of(config: AnyModelConfig) -> str:
    """What of a choice differs from the settings' defaults and from the smallness they all have."""
    if isinstance(config, MixedConfig):
        return f"{name_of(config.encoder)}>{name_of(config.decoder)}-{config.tie_embeddings}"
    common = {*TINY, *SMALL} - {"encoder_layers", "decoder_layers"}
    changed = {name: value for name, value in config.model_dump(exclude_defaults=True).items() if name not in common}
    return "-".join([config.architecture, *(f"{name}={value}" for name, value in changed.items())])


@pytest.fixture(params=CHOICES, ids=name_of)
def model(request: pytest.FixtureRequest) -> TranslationModel:
    return varied(request.param)


@pytest.fixture(params=[*CHOICES, *MASKED], ids=name_of)
def any_model(request: pytest.FixtureRequest) -> TranslationModel:
    """Models that decode token by token, and those that do not."""
    return varied(request.param)


@cache
def varied(config: AnyModelConfig) -> TranslationModel:
    """A model that tests share: they must not change its weights."""
    model = new_model(config, VOCAB, VOCAB, seed=1).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # norms and biases are not all alike, as they are before training
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(params=[config for config in CHOICES if config.can_pack], ids=name_of)
def packable(request: pytest.FixtureRequest) -> TranslationModel:
    return varied(request.param)


def sentences(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in lengths]


def padded(rows: list[torch.Tensor], extra: int = 0) -> Rows:
    """One sentence a row, with so many more columns of padding than needed."""
    length = max(map(len, rows)) + extra
    ids, segments, positions = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(3))
    for r, row in enumerate(rows):
        ids[r, : len(row)], segments[r, : len(row)], positions[r, : len(row)] = row, 1, torch.arange(len(row))
    return Rows(ids, segments, positions)


def packed(rows: list[torch.Tensor], length: int) -> Rows:
    """All sentences one after the other in one row."""
    ids, segments, positions = (torch.zeros(1, length, dtype=torch.int64) for _ in range(3))
    start = 0
    for s, row in enumerate(rows):
        here = slice(start, start + len(row))
        ids[0, here], segments[0, here], positions[0, here] = row, s + 1, torch.arange(len(row))
        start += len(row)
    return Rows(ids, segments, positions, packed=True)


def test_decoding_token_by_token_gives_the_logits_of_teacher_forcing(model):
    source, target = padded(sentences(5, 9, 2)), padded(sentences(5, 5, 5, seed=1))
    with torch.no_grad():
        expected = model.output(model(source, target))
        state = model.encode(source)
        for t in range(5):
            features, state = model.decode(next_rows(target.ids[:, t : t + 1], state), state)
            torch.testing.assert_close(model.output(features)[:, 0], expected[:, t], atol=1e-5, rtol=0)
            assert state.positions.tolist() == [t + 1] * 3


def test_the_likelihood_in_the_loss_is_that_of_the_search(model):
    source, target = padded(sentences(5, 9, 2)), padded(sentences(5, 2, 4, seed=1))
    labels = torch.where(target.mask, target.ids, NO_LABEL)
    with torch.no_grad():
        _, found = label_smoothed_cross_entropy(model(source, target), model.output, labels, 0.1)
        state, wanted = model.encode(source), torch.zeros(())
        for t in range(5):
            log_probs, state = next_log_probs(model, [], target.ids[:, t : t + 1], state)
            real = target.mask[:, t]
            wanted -= log_probs[real, 0].gather(1, target.ids[real, t, None]).sum()
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-5)


def test_a_watched_state_tells_how_each_token_looked_at_the_source(model):
    source, target = padded(sentences(5, 9)), padded(sentences(3, 3, seed=1))
    with torch.no_grad():
        expected, unwatched = model.decode(target, model.encode(source))
        features, state = model.decode(target, model.encode(source, watch=True))
    assert not unwatched.attention
    assert torch.equal(features, expected)
    for weights in state.attention:
        assert weights.shape[0] == 2
        assert weights.shape[2:] == (3, 9)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert not weights[0, :, :, 5:].any(), "padding is looked at"
    num_looking = sum(isinstance(module, CrossAttention) for module in model.decoder.modules())
    assert len(state.attention) == num_looking + (getattr(model.decoder, "score", None) is not None)


def test_a_state_goes_on_after_several_tokens_at_once(model):
    source, target = padded(sentences(5, 9)), padded(sentences(9, 9, seed=1))
    with torch.no_grad():
        expected = model.output(model(source, target))
        state = model.encode(source)
        for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
            rows = Rows(target.ids[:, part], target.segments[:, part], target.positions[:, part])
            features, state = model.decode(rows, state)
            torch.testing.assert_close(model.output(features), expected[:, part], atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [[2, 0, 3], [0, 3, 2], [0, 3]])  # copied, moved in place
def test_a_branched_and_compacted_beam_computes_what_each_hypothesis_alone_would(model, order):
    generator = torch.Generator().manual_seed(3)
    source = padded(sentences(5, 9, 2, 4))
    histories = [[[int(x)] for x in torch.randint(4, VOCAB, (1,), generator=generator)] for _ in range(4)]
    with torch.no_grad():
        state = model.encode(source)
        ids = torch.tensor(histories)[:, :, 0]
        alive = torch.arange(4)
        for t, width in enumerate([3, 3, 2, 4, 1]):
            features, state = model.decode(next_rows(ids, state), state)
            # Each hypothesis with its source, in a row of its own.
            rows = alive.repeat_interleave(len(histories[0]))
            sources = Rows(source.ids[rows], source.segments[rows], source.positions[rows])
            alone = model(sources, padded([torch.tensor(history) for beam in histories for history in beam]))[:, -1]
            torch.testing.assert_close(features.flatten(0, 1), alone, atol=1e-5, rtol=0)
            if t == 2:
                kept = torch.tensor(order)
                state, histories, alive = state.keep(kept), [histories[i] for i in kept], alive[kept]
            parents = torch.randint(0, len(histories[0]), (len(histories), width), generator=generator)
            state = state.branch(parents)
            ids = torch.randint(4, VOCAB, parents.shape, generator=generator)
            histories = [
                [[*histories[r][p], int(i)] for p, i in zip(parents[r], ids[r], strict=True)] for r in range(len(ids))
            ]


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 5, 2, 4], [3, 1, 0], [0, 0, 2], [4, 3, 2, 1, 0, 5], list(range(6)), []]
)
def test_kept_rows_are_those_listed_whether_they_are_moved_or_copied(order):
    tensors = [torch.arange(24.0).view(6, 4), torch.arange(60).view(6, 2, 5)[:, :, :3]]
    wanted = [x.clone()[order] for x in tensors]
    with torch.no_grad():
        found = interface.keep_rows(torch.tensor(order, dtype=torch.int64), *tensors)
    for x, y in zip(found, wanted, strict=True):
        assert torch.equal(x, y)


def test_rows_are_kept_without_copying_those_that_stay_in_place():
    x = torch.arange(12.0).view(6, 2)
    with torch.no_grad():
        [found] = interface.keep_rows(torch.tensor([0, 5, 2, 3]), x)
    assert found.data_ptr() == x.data_ptr()
    [found] = interface.keep_rows(torch.tensor([0, 5, 2, 3]), x.requires_grad_())  # in training, nothing is overwritten
    assert found.data_ptr() != x.data_ptr()


def logits_and_gradient(model: TranslationModel, source: Rows, target: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the real tokens, one sentence after the other, and the gradient of a function of them all."""
    model.zero_grad()
    logits = model.output(model(source, target)[target.mask])
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def require_same_as_alone(
    model: TranslationModel,
    sources: list[torch.Tensor],
    targets: list[torch.Tensor],
    found: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Logits and gradient are those of each pair in a batch of its own."""
    alone = [logits_and_gradient(model, padded([s]), padded([t])) for s, t in zip(sources, targets, strict=True)]
    torch.testing.assert_close(found[0], torch.cat([logits for logits, _ in alone]), atol=1e-5, rtol=0)
    gradient = sum(gradient for _, gradient in alone)
    assert (found[1] - gradient).norm() <= 1e-5 * gradient.norm()


def test_padding_changes_no_logit_and_no_gradient(any_model):
    sources, targets = sentences(5, 9, 2), sentences(7, 3, 6, seed=1)
    together = logits_and_gradient(any_model, padded(sources, extra=4), padded(targets, extra=3))
    require_same_as_alone(any_model, sources, targets, together)


def test_packing_changes_no_logit_and_no_gradient(packable):
    sources, targets = sentences(5, 9, 2), sentences(7, 3, 6, seed=1)
    together = logits_and_gradient(packable, packed(sources, 20), packed(targets, 17))
    require_same_as_alone(packable, sources, targets, together)


def test_what_cannot_be_packed_refuses_packed_rows():
    sources, targets = sentences(5, 9, 2), sentences(7, 3, 6, seed=1)
    for config in [*CHOICES, *MASKED]:
        if not config.can_pack:
            with pytest.raises(AssertionError, match="one sentence a row"):
                varied(config)(packed(sources, 20), packed(targets, 17))


def test_gradients_flow_to_every_weight(model):
    model.zero_grad()
    source, target = padded(sentences(5, 9, 2)), padded(sentences(7, 3, 6, seed=1))
    label_smoothed_cross_entropy(model(source, target), model.output, target.ids, 0.1)[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


def test_a_model_without_weights_takes_those_of_another():
    source, target = padded(sentences(5, 9)), padded(sentences(7, 3))
    for config in [*CHOICES, *MASKED]:
        model = varied(config)
        copy = empty_model(config, VOCAB, VOCAB)
        copy.load_state_dict(dict(model.named_parameters()), strict=False, assign=True)
        copy.eval()
        with torch.no_grad():
            assert torch.equal(model(source, target), copy(source, target))
        assert {n for n, _ in copy.named_parameters()} == {n for n, _ in model.named_parameters()}


def test_fresh_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first, second, other = (new_model(CHOICES[0], VOCAB, VOCAB, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.output.weight, other.output.weight)


def test_a_mixed_model_has_the_output_layer_of_its_decoder():
    halves = [TransformerConfig(**TINY, output_bias=True), RecurrentConfig(**SMALL)]
    for encoder, decoder in itertools.permutations(halves):
        model = new_model(MixedConfig(encoder=encoder, decoder=decoder), VOCAB, VOCAB, seed=1)
        assert (model.output.bias is not None) == decoder.output_bias


@pytest.mark.parametrize(("tie", "expected"), [("none", 3), ("decoder", 2), ("all", 1)])
def test_tied_embeddings_are_one_matrix(tie, expected):
    model = new_model(TransformerConfig(**TINY, tie_embeddings=tie), VOCAB, VOCAB, seed=1)
    assert sum(p.shape == (VOCAB, 16) for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("sizes", "millions"), [({}, 65), ({"d_model": 1024, "d_ff": 4096, "num_heads": 16}, 213)], ids=["base", "big"]
)
def test_base_and_big_are_as_large_as_published(sizes, millions):
    """Vaswani et al. 2017, table 3; the vocabulary is that of section 5.1."""
    model = empty_model(TransformerConfig(**sizes), 37000, 37000)
    assert model.num_parameters == pytest.approx(millions * 1e6, rel=0.03)


def test_the_sizes_are_those_of_the_paper():
    base = empty_model(TransformerConfig(), 37000, 37000)
    assert (
        base.num_parameters
        == 37000 * 512
        + 6 * (4 * 512 * 513 + 2 * 512 * 2048 + 2560 + 2048)
        + 6 * (8 * 512 * 513 + 2 * 512 * 2048 + 2560 + 3072)
        + 2048
    )


def test_the_sizes_of_a_recurrent_model_are_those_of_its_parts():
    width, two = 512, 2
    lstm = 4 * (2 * width * width + 2 * width)
    one_way = 4 * (width // 2 * (width + width // 2) + 2 * width // 2)
    bridge = 2 * width * 2 * width + 2 * width
    model = empty_model(RecurrentConfig(), 8000, 8000)
    attention, join = width * width, 2 * width * width + width
    assert model.num_parameters == 8000 * width + two * (two * one_way + lstm + bridge) + attention + join


def plain_lstm(layer: torch.nn.LSTM, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
    """Hochreiter & Schmidhuber (1997), with forget gates, token by token; of each token (h, c)."""
    found = []
    for token in x:
        gates = layer.weight_ih_l0 @ token + layer.bias_ih_l0 + layer.weight_hh_l0 @ h + layer.bias_hh_l0
        enter, forget, new, leave = gates.chunk(4)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        h = leave.sigmoid() * c.tanh()
        found.append(torch.cat([h, c]))
    return found


def test_a_model_without_attention_is_the_formulas_of_sutskever_et_al():
    config = RecurrentConfig(**SMALL, attention="none", bidirectional=False, reverse_source=True)
    model = new_model(config, VOCAB, VOCAB, seed=1)
    source, target = sentences(6, 4)
    table = model.output.weight * 4
    with torch.no_grad():
        found = model(padded([source], extra=2), padded([target]))[0]
        x, finals = table[source.flip(0)], []
        for layer in model.encoder.layers:
            states = plain_lstm(layer.cells, x, torch.zeros(16), torch.zeros(16))
            finals.append(states[-1])
            x = torch.stack(states)[:, :16]
        x = table[target]
        for layer, bridge, final in zip(model.decoder.layers, model.decoder.begin.layers, finals, strict=True):
            h, c = (bridge.weight @ final + bridge.bias).chunk(2)
            x = torch.stack(plain_lstm(layer.cells, x, h.tanh(), c))[:, :16]
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("score", ["dot", "general", "additive"])
@pytest.mark.parametrize("feeding", BOTH_WAYS)
def test_a_model_with_attention_is_the_formulas_of_its_papers(score, feeding):
    config = RecurrentConfig(
        **SMALL, cell="tanh", attention=score, input_feeding=feeding, encoder_layers=1, decoder_layers=1
    )
    model = new_model(config, VOCAB, VOCAB, seed=1)
    source, target = padded(sentences(6, 4)), sentences(5)[0]
    with torch.no_grad():
        found = model(source, padded([target, target]))[1]
        memory = model.encoder(source)
        decoder, states = model.decoder, memory.states[1, :4]
        h = (decoder.begin.layers[0](memory.finals[0][1])).tanh()
        cells, fed = decoder.layers[0].cells, torch.zeros(16)
        for step, token in enumerate(model.output.weight[target] * 4):
            x = torch.cat([token, fed]) if feeding else token
            h = (cells.weight_ih_l0 @ x + cells.bias_ih_l0 + cells.weight_hh_l0 @ h + cells.bias_hh_l0).tanh()
            scores = {
                "dot": lambda s, h: s @ h,
                "general": lambda s, h: s @ decoder.score.key.weight.T @ h,
                "additive": lambda s, h: (
                    (decoder.score.key(s) + decoder.score.query(h)).tanh() @ decoder.score.score.weight[0]
                ),
            }[score](states, h)
            fed = decoder.join(torch.cat([h, scores.softmax(0) @ states])).tanh()
            torch.testing.assert_close(found[step], fed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_fresh_cells_are_orthogonal_and_begin_by_remembering(cell):
    model = new_model(RecurrentConfig(**SMALL, cell=cell), VOCAB, VOCAB, seed=1)
    for layer in (module for module in model.modules() if isinstance(module, RecurrentLayer)):
        width = layer.cells.hidden_size
        for name, parameter in layer.cells.named_parameters():
            gates = parameter.detach().split(width)
            if name.startswith("weight_hh"):
                for gate in gates:
                    torch.testing.assert_close(gate @ gate.T, torch.eye(width), atol=1e-5, rtol=0)
            elif name.startswith("bias"):
                ones = [1] if cell == "lstm" and name.startswith("bias_ih") else []
                assert [float(gate.mean()) for gate in gates] == [float(i in ones) for i in range(len(gates))]


@pytest.mark.parametrize("up", [1, 2, 3])
def test_the_last_state_of_each_encoder_layer_reaches_the_decoder_layer_of_its_height(up):
    config = RecurrentConfig(**SMALL, encoder_layers=up, attention="none")
    model = new_model(config, VOCAB, VOCAB, seed=1)
    memory = model.encoder(padded(sentences(5)))
    finals = [final.detach().requires_grad_() for final in memory.finals]
    state = model.decoder.start(Memory(memory.states, finals), padded(sentences(5)))
    for height, layer in enumerate(state.layers):
        reached = torch.autograd.grad(layer.sum(), finals, allow_unused=True)
        assert [gradient is not None for gradient in reached] == [
            number == (height if up == 2 else up - 1) for number in range(up)
        ]


@pytest.mark.parametrize("both", BOTH_WAYS)
def test_a_source_read_from_its_end_leaves_its_states_in_its_own_order(both):
    config = RecurrentConfig(**SMALL, bidirectional=both)
    reading = {
        reverse: new_model(config.model_copy(update={"reverse_source": reverse}), VOCAB, VOCAB, seed=1).encoder
        for reverse in BOTH_WAYS
    }
    sources = sentences(5, 9)
    found = reading[True](padded(sources))
    turned = reading[False](padded([source.flip(0) for source in sources]))
    for r, source in enumerate(sources):
        torch.testing.assert_close(found.states[r, : len(source)], turned.states[r, : len(source)].flip(0))
    torch.testing.assert_close(found.finals, turned.finals)


def test_nothing_follows_the_padding_of_a_recurrent_model():
    model = new_model(LSTM, VOCAB, VOCAB, seed=1)
    source, target = padded(sentences(5, 9)), padded(sentences(7, 3))
    _, state = model.decode(target, model.encode(source))
    with pytest.raises(AssertionError, match="nothing follows padding"):
        model.decode(next_rows(target.ids[:, :1], state), state)


@pytest.mark.parametrize("config", [*RECURRENT, *MIXED], ids=name_of)
def test_features_under_autocast_are_close_to_those_in_full_precision(config):
    model = new_model(config, VOCAB, VOCAB, seed=1)
    source, target = padded(sentences(5, 9, 2)), padded(sentences(7, 3, 6, seed=1))
    expected = model(source, target)[target.mask]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(source, target)[target.mask]
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
    found.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_dropout_falls_on_what_every_recurrent_layer_reads_and_on_the_features():
    model = new_model(RecurrentConfig(d_model=64, dropout=0.5), VOCAB, VOCAB, seed=1)
    shares: list[float] = []

    def share_of_zeros(values: torch.Tensor) -> float:
        return float((values == 0).float().mean())

    for layer in (module for module in model.modules() if isinstance(module, RecurrentLayer)):
        layer.cells.register_forward_pre_hook(lambda _, inputs: shares.append(share_of_zeros(inputs[0])))
    source, target = padded(sentences(*[20] * 5)), padded(sentences(*[20] * 5, seed=1))

    def features(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(source, target)

    shares.append(share_of_zeros(features(1)))
    assert shares == pytest.approx([0.5] * 5, abs=0.05)
    assert torch.equal(features(1), features(1))
    assert not torch.equal(features(1), features(2))
    model.eval()
    assert torch.equal(features(1), features(2))
    assert shares[-4:] == [0.0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_queries", [1, 5, 12])
def test_attention_in_parts_is_the_fused_kernel(dtype, causal, num_queries):
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, num_queries, 8)
    query, key, value = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    mask = None if causal else torch.arange(num_queries) < torch.tensor([1, 3, 9])[:, None, None, None]

    def run(function):
        mixed = function(query, key, value, mask, causal)
        return [mixed, *torch.autograd.grad(mixed.float().square().sum(), (query, key, value))]

    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05}
    fused = run(lambda q, k, v, m, c: F.scaled_dot_product_attention(q, k, v, m, is_causal=c))
    for one, other in zip(run(partial(_attend_unfused, rate=0.0)), fused, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [False, True])
def test_dropout_falls_on_attention_weights_and_keeps_their_mean(causal, device):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(64, 4, 16, 16, generator=generator).to(device) for _ in range(2))
    units = torch.eye(16, device=device).expand(64, 4, 16, 16)  # as values, they show the weights
    weights = attend(query, key, units, None, causal, 0.0)
    torch.manual_seed(1)
    dropped = attend(query, key, units, None, causal, 0.25)
    visible = weights > 0
    kept = (dropped > 0) & visible
    assert kept.sum() / visible.sum() == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
    assert not dropped[~visible].any()


def test_a_seed_may_be_of_any_size():
    first, second = (new_model(CHOICES[0], VOCAB, VOCAB, seed) for seed in (1 << 80, (1 << 80) + 1))
    assert not torch.equal(first.output.weight, second.output.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_log_probabilities_computed_in_slices_are_the_log_softmax(monkeypatch, dtype):
    monkeypatch.setattr(interface, "SLICE_ELEMENTS", 20)  # two rows of nine
    scratch = Scratch()
    for shape in ((5, 3, 9), (2, 2, 9), (6, 3, 9)):  # the memory is large enough, then too small
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        logits[0, 0, 3] = -torch.inf
        wanted = logits.to(torch.float64 if dtype == torch.float64 else torch.float32).log_softmax(-1)
        assert torch.equal(log_probs_from(logits.clone()), wanted)
        assert torch.equal(log_probs_from(logits, scratch), wanted)
