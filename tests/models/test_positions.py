"""Sinusoids are the papers' formulas, and rotary positions tell distances alone."""

import math

import pytest
import torch

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.models.layers import (
    BinaryPositions,
    LinearBiases,
    RotaryPositions,
    ScalarPositions,
    SelfAttention,
    SinusoidalPositions,
)
from mtkit.models.registry import new_model
from tests.models.test_models import padded, sentences

# P places, D model width, H heads, K width of a head.


def wave(place: int, pair: int, d_model: int, exponent: str) -> tuple[float, float]:
    """Sine and cosine of one place in one pair of columns."""
    power = {"paper": 2 * pair / d_model, "tensor2tensor": pair / (d_model / 2 - 1)}[exponent]
    return math.sin(place / 10000**power), math.cos(place / 10000**power)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("exponent", ["paper", "tensor2tensor"])
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_sinusoids_are_their_formulas_however_long_the_sentence(layout, exponent, first):
    config = TransformerConfig(
        d_model=12, num_heads=2, sinusoid_layout=layout, sinusoid_exponent=exponent, sinusoid_first=first
    )
    positions = SinusoidalPositions(config)
    places = torch.tensor([[0, 1, 2, 3, 17, 255]])
    for shown in (places, torch.cat([places, torch.tensor([[256, 299]])], 1)):
        found = positions(shown, int(shown.max()) + 1)[0]
        assert found.shape == (shown.shape[1], 12)
        for row, place in zip(found.tolist(), shown[0].tolist(), strict=True):
            waves = [wave(first + place, pair, 12, exponent) for pair in range(6)]
            if layout == "interleaved":
                wanted = [value for both in waves for value in both]
            else:
                wanted = [sine for sine, _ in waves] + [cosine for _, cosine in waves]
            assert row == pytest.approx(wanted, abs=1e-6)


def test_the_last_wave_of_tensor2tensor_divides_by_ten_thousand_and_a_width_of_two_has_one_wave():
    config = TransformerConfig(d_model=8, num_heads=2, sinusoid_exponent="tensor2tensor")
    assert SinusoidalPositions(config)(torch.tensor([[5]]), 6)[0, 0, 3].item() == pytest.approx(5e-4)
    config = TransformerConfig(d_model=2, num_heads=1, sinusoid_exponent="tensor2tensor")
    found = SinusoidalPositions(config)(torch.tensor([[5]]), 6)[0, 0]
    assert found.tolist() == pytest.approx([math.sin(5), math.cos(5)])


def test_a_rotation_turns_pairs_of_columns_by_place_over_wavelength():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = torch.tensor([[0, 1, 5, 300], [7, 2, 0, 299]])
    found = RotaryPositions(6)(places, 301)(x)
    for pair in range(3):
        angle = (places.double() / 10000 ** (2 * pair / 6))[:, None]
        before = torch.complex(x[..., pair], x[..., pair + 3])
        after = torch.complex(found[..., pair], found[..., pair + 3])
        torch.testing.assert_close(after, before * torch.polar(torch.ones_like(angle), angle), atol=1e-6, rtol=0)


def test_the_gradient_of_a_rotation_is_that_of_finite_differences():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    rotation = RotaryPositions(6)(torch.tensor([[0, 1, 5, 300], [7, 2, 0, 299]]), 301)
    assert torch.autograd.gradcheck(rotation, (x,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_rotating_by_matrices_changes_neither_result_nor_gradient(dtype, tolerance):
    rotary, positions = RotaryPositions(6), torch.arange(9).expand(2, -1)
    by_matrices = rotary(positions, 9, consecutive=True)
    assert by_matrices.matrices is not None
    results = []
    for rotation in (rotary(positions, 9), by_matrices):
        x = torch.randn(2, 3, 9, 6, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        rotated = rotation(x)
        (gradient,) = torch.autograd.grad(rotated.pow(3).sum(), x)
        results.append((rotated, gradient))
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rotation_in_half_precision_rounds_only_its_result(dtype):
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    rotation = RotaryPositions(6)(torch.tensor([[0, 1, 5, 300], [7, 2, 0, 299]]), 301)
    assert torch.equal(rotation(x), rotation(x.float()).to(dtype))


def test_rotated_scores_depend_on_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotary = RotaryPositions(8)

    def score(at: int, of: int) -> float:
        turned = [rotary(torch.tensor([[place]]), 401)(x) for place, x in ((at, query), (of, key))]
        return (turned[0] * turned[1]).sum().item()

    for distance in (0, 1, 7, 100):
        for place in (1, 50, 300):
            assert score(place + distance, place) == pytest.approx(score(distance, 0), abs=1e-5)
    assert abs(score(7, 0) - score(0, 7)) > 0.01, "before and after are not the same"
    assert abs(score(7, 0) - score(8, 0)) > 0.01


def test_self_attention_with_rotary_positions_sees_no_shift_of_a_whole_sentence():
    torch.manual_seed(0)
    attention = SelfAttention(16, 2, dropout=0.0).double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    rotary, places = RotaryPositions(8), torch.arange(9)[None]
    here, there, backwards = (
        attention(x, None, causal=True, rotation=rotary(moved, 500)) for moved in (places, places + 400, 8 - places)
    )
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
    assert (here - backwards).abs().max() > 0.01


def test_angles_of_far_places_are_as_exact_in_bf16_as_in_full_precision():
    rotary = RotaryPositions(8)
    places = torch.tensor([[1000]])
    wanted = rotary(places, 1001)
    found = torch.nn.ModuleList([rotary]).bfloat16()[0](places, 1001)
    assert torch.equal(found.sines, wanted.sines)
    x = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16)
    assert found(x).dtype == torch.bfloat16
    torch.testing.assert_close(found(x).float(), wanted(x.float()), atol=0.01, rtol=0)


def test_a_table_that_grew_in_a_search_serves_training():
    rotary = RotaryPositions(8)
    with torch.inference_mode():
        rotary(torch.tensor([[600]]), 601)
    x = torch.randn(1, 1, 1, 8, requires_grad=True)
    rotary(torch.tensor([[600]]), 601)(x).sum().backward()
    assert x.grad is not None


# Position numbers, bits, linear biases, and a choice for each side

NARROW = {"d_model": 16, "num_heads": 2, "d_ff": 16, "encoder_layers": 1, "decoder_layers": 1}


def test_a_scalar_is_the_scaled_place_and_a_bit_flips_with_its_period():
    config, places = TransformerConfig(**NARROW), torch.arange(16)[None]
    assert torch.equal(ScalarPositions(config)(places, 16), places[:, :, None] / 100)
    table = BinaryPositions(config)(places, 16)[0]
    assert ["".join(map(str, row[:4])) for row in table.tolist()] == [f"{place:04b}"[::-1] for place in range(16)]
    bits = BinaryPositions(config)(torch.arange(1 << 13)[None], 1 << 13)[0]
    for bit in range(12):
        flips = (bits[1:, bit] != bits[:-1, bit]).nonzero()[:, 0] + 1
        assert flips.tolist() == list(range(1 << bit, 1 << 13, 1 << bit)), "a period is two flips"


def test_concatenated_positions_are_further_inputs_of_a_projection_to_the_width_of_the_model():
    for kind, width in (("scalar", 1), ("binary", 16)):
        embedded = new_model(TransformerConfig(**NARROW, positions=kind), 23, 23, seed=1).eval().encoder.embedded
        rows = padded(sentences(5))
        weight, codes = embedded.projection.weight, embedded.positions(rows.positions, 5).float()
        assert weight.shape == (16, 16 + width)
        wanted = embedded.embedding(rows) @ weight[:, :16].T + codes @ weight[:, 16:].T + embedded.projection.bias
        torch.testing.assert_close(embedded(rows, 5), wanted)


def test_linear_biases_lower_scores_by_distance_and_in_the_encoder_both_ways_alike():
    places = torch.arange(5)
    distances, mask = (places[:, None] - places).abs()[None], torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    found = LinearBiases(8)(distances, mask, torch.float32)[0]
    for head in range(8):
        for query in range(5):
            for key in range(5):
                wanted = -(query - key) * 2.0 ** -(head + 1) if key <= query else -math.inf
                assert found[head, query, key].item() == wanted
    config = TransformerConfig(**NARROW, positions="alibi")
    encoder = new_model(config, 23, 23, seed=1).eval().encoder
    [source] = sentences(7)
    backwards = encoder(padded([source.flip(0)])).states[0].flip(0)
    torch.testing.assert_close(encoder(padded([source])).states[0], backwards, atol=1e-5, rtol=0)
    assert (encoder(padded([source.roll(1)])).states[0].roll(-1, 0) - backwards).abs().max() > 1e-3


def test_each_side_has_the_positions_that_are_said_for_it():
    source, target = padded(sentences(6)), padded(sentences(5, seed=1))
    both, first, second = (
        new_model(TransformerConfig(**NARROW, **choice), 23, 23, seed=1).eval()
        for choice in ({}, {"encoder_positions": "none"}, {"positions": "none", "encoder_positions": "sinusoidal"})
    )
    assert second.encoder.embedded.positions is not None
    assert second.decoder.embedded.positions is None
    assert torch.equal(both.encoder(source).states, second.encoder(source).states)
    turned = padded([source.ids[0].flip(0)])
    torch.testing.assert_close(first.encoder(turned).states[0].flip(0), first.encoder(source).states[0])
    embedded = [model.decoder.embedded(target, 5) for model in (both, first)]
    assert torch.equal(*embedded)


def test_the_limit_of_learned_positions_is_that_of_the_side_that_has_them():
    config = TransformerConfig(**NARROW, encoder_positions="learned", max_positions=9)
    limits = new_model(config, 23, 23, seed=1).limits
    assert (limits.source, limits.target) == (9, None)
    assert config.position_limits == {"max_positions": 9}
    with pytest.raises(ValueError, match="max_positions 9 wants positions learned, found sinusoidal and rotary"):
        TransformerConfig(**NARROW, decoder_positions="rotary", max_positions=9)
    with pytest.raises(ValueError, match="positions rotary wants heads of even width"):
        TransformerConfig(d_model=18, num_heads=6, decoder_positions="rotary")
    TransformerConfig(d_model=18, num_heads=6, decoder_num_heads=3, decoder_positions="rotary")
