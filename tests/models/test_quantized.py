"""Laws of the layers that make translating on a CPU faster: right products, and no row that depends on another."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtkit.commands import options
from mtkit.config.data_and_model_settings import AnyModelConfig, MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.errors import MtkitError
from mtkit.models import registry as quantized
from mtkit.models.interface import Output, TranslationModel, next_rows
from mtkit.models.registry import (
    DTYPES,
    KERNELS,
    LEVELS,
    PRECISIONS,
    Int8Linear,
    Kernel,
    PackedLinear,
    is_right,
    new_model,
    packing_is_right,
    pick_run_precision,
    precision_of,
    run_dtype,
    shorten_lookups,
    speed_up,
    usable_kernels,
)
from tests.models.test_models import padded, sentences

VOCAB = 23
SIZES = {"d_model": 16, "num_heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
MODELS: dict[str, AnyModelConfig] = {
    "transformer": TransformerConfig(**SIZES, output_bias=True),
    "gated": TransformerConfig(**SIZES, activation="swiglu", positions="rotary", attention_bias=False),
    "rnn": RecurrentConfig(d_model=16, dropout=0.0, attention="additive", input_feeding=True, context="every_step"),
    "mixed": MixedConfig(
        encoder=TransformerConfig(**SIZES), decoder=RecurrentConfig(d_model=24, dropout=0.0), tie_embeddings="none"
    ),
}

# Of this processor: on one without a right kernel, the products below would be those of the fallback.
RIGHT = [make for make in KERNELS if is_right(make)]


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes every right kernel, however long it takes beside other work on this machine."""
    monkeypatch.setattr(quantized, "is_fast", lambda make: True)
    usable_kernels.cache_clear()
    yield
    usable_kernels.cache_clear()


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer in whole numbers, by the definition."""
    scale, of_weight = (
        (rows.abs().amax(1, keepdim=True).double().clamp(min=quantized.TINY) / LEVELS) for rows in (x, weight)
    )
    y = (x / scale.float()).round().double() @ (weight / of_weight.float()).round().double().t()
    y = y * scale * of_weight.t()
    return (y if bias is None else y + bias).float()


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize(
    ("num_rows", "width", "out"), [(1, 1, 1), (1, 33, 7), (3, 64, 257), (65, 100, 31), (5, 700, 9)]
)
def test_a_kernel_multiplies_whole_numbers_exactly(make, num_rows: int, width: int, out: int) -> None:
    if make not in RIGHT:
        pytest.skip("not on this processor")
    rows, weight = (torch.randint(-LEVELS, LEVELS + 1, (n, width), dtype=torch.int8) for n in (num_rows, out))
    rows[0] = 0
    weight[-1] = LEVELS
    scales = torch.rand(out)
    assert torch.equal(make(weight, scales)(rows), (rows.double() @ weight.double().t()).float() * scales)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("num_rows", "width", "out"), [(1, 16, 48), (7, 33, 65), (64, 129, 30), (2, 5, 2)])
def test_an_int8_layer_is_plain_integer_arithmetic(num_rows: int, width: int, out: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(n, width, generator=generator) for n in (num_rows, out))
    x[-1] *= 1e25
    weight[0] *= 1e-20
    bias = torch.randn(out, generator=generator) if has_bias else None
    found = Int8Linear(weight, bias)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_an_int8_layer_is_close_to_the_layer_that_it_replaces() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(256, 64)
    x = torch.randn(3, 5, 256)
    exact, found = layer(x).detach(), Int8Linear(layer.weight, layer.bias)(x)
    assert found.shape == exact.shape
    assert 0 < (found - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("factor", [0.0, 1e-42, 1e-33, 1e-20, 1e20, 1e36])
def test_rows_of_any_size_keep_their_own_scale(factor: float) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(4, 32), torch.randn(40, 32)
    x[2] *= factor
    found = Int8Linear(weight, None)(x)
    exact = F.linear(x, weight)
    for row in range(4):
        # Numbers below 1e-30 count as zero.
        torch.testing.assert_close(found[row], exact[row], rtol=0, atol=0.05 * float(exact[row].norm()) + 1e-29)
    assert torch.equal(found[:2], Int8Linear(weight, None)(x[:2]))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_does_not_become_one(wrong: float) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(4, 32), torch.randn(40, 32)
    layer = Int8Linear(weight, None)
    before = layer(x)
    x[1, 5] = wrong
    after = layer(x)
    assert not after[1].isfinite().any()
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    weight[7, 3] = wrong
    assert not Int8Linear(weight, None)(x)[:, 7].isfinite().any()


@pytest.mark.parametrize("slice_rows", [1, 50, 1000])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_row_of_an_int8_layer_does_not_depend_on_other_rows(
    has_bias: bool, slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "SLICE_INPUTS", slice_rows * 96)
    torch.manual_seed(1)
    x = torch.randn(quantized.MANY_ROWS + 64, 96)
    for out in (32, 300):  # few outputs: one kernel for few rows and another for many; many outputs: one kernel
        layer = Int8Linear(torch.randn(out, 96), torch.randn(out) if has_bias else None)
        together = layer(x)
        for size in (1, 7, 31, quantized.MANY_ROWS):
            assert torch.equal(torch.cat([layer(part) for part in torch.split(x, size)]), together)
        order = torch.randperm(len(x))
        assert torch.equal(layer(x[order]), together[order])


def test_no_rows_give_no_rows() -> None:
    assert Int8Linear(torch.randn(8, 16), torch.randn(8))(torch.randn(0, 3, 16)).shape == (0, 3, 8)


def wrong_kernel(weight: Tensor, scales: Tensor) -> Kernel:
    """Sums of products are limited to 16 bits, as on processors that add pairs of products so."""
    return lambda rows: (rows.double() @ weight.double().t()).clamp(-(1 << 15), (1 << 15) - 1).float() * scales


def absent_kernel(weight: Tensor, scales: Tensor) -> Kernel:
    raise RuntimeError("not on this processor")


@pytest.mark.parametrize("bad", [wrong_kernel, absent_kernel])
def test_a_wrong_kernel_is_found_and_not_used(bad, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(24, 300), torch.randn(5, 300)
    assert not is_right(bad)

    monkeypatch.setattr(quantized, "KERNELS", [bad, *RIGHT])
    usable_kernels.cache_clear()
    assert usable_kernels() == RIGHT
    assert capsys.readouterr().err == ""

    # Where there is no other, the weights alone are rounded.
    monkeypatch.setattr(quantized, "KERNELS", [bad])
    usable_kernels.cache_clear()
    found = Int8Linear(weight, None)(x)
    Int8Linear(weight, None)
    assert capsys.readouterr().err == (
        "mtkit: warning: precision int8: no product of 8-bit numbers is right on this processor; products are "
        "computed in fp32, with weights rounded to 8 bits\n"
    )
    scale = weight.abs().amax(1, keepdim=True) / LEVELS
    torch.testing.assert_close(found, F.linear(x, (weight / scale).round() * scale))


def test_of_right_kernels_the_fast_ones_are_used_if_there_are_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantized, "is_fast", lambda make: make is not KERNELS[0])
    assert usable_kernels() == ([make for make in RIGHT if make is not KERNELS[0]] or RIGHT)
    monkeypatch.setattr(quantized, "is_fast", lambda make: False)
    usable_kernels.cache_clear()
    assert usable_kernels() == RIGHT


# Whole models.


def model_of(name: str, precision: str) -> TranslationModel:
    """A random model, whose output layer differs from its embeddings, for a run in this precision."""
    model = new_model(MODELS[name], VOCAB, VOCAB, seed=1).requires_grad_(False).eval()
    model.to(run_dtype(precision, torch.device("cpu")))
    speed_up(model, precision)
    return model


def logits_of(model: TranslationModel, source: list[Tensor], target: list[Tensor]) -> Tensor:
    """The logits (R, T, V) under teacher forcing."""
    with torch.inference_mode():
        return model.output(model(padded(source), padded(target)))


@pytest.mark.parametrize("name", MODELS)
def test_int8_replaces_every_linear_layer_and_leaves_a_smaller_model(name: str) -> None:
    before, after = (new_model(MODELS[name], VOCAB, VOCAB, seed=1).eval() for _ in range(2))
    speed_up(after, "int8")
    left = [layer for layer in after.modules() if isinstance(layer, nn.Linear)]
    assert all(layer.out_features == 1 for layer in left)
    replaced = [layer for layer in after.modules() if isinstance(layer, Int8Linear)]
    num_linear = sum(isinstance(layer, nn.Linear) for layer in before.modules())
    assert len(replaced) == num_linear - len(left) + 1  # the output layer
    names = {name for name, _ in after.named_parameters()}
    assert {name for name, _ in before.named_parameters() if "embedding" in name} <= names
    # The weights of a replaced layer stay nowhere in fp32: what they take is what is stored as int8.
    assert (
        after.num_parameters
        + sum(
            layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())
            for layer in before.modules()
            if isinstance(layer, nn.Linear) and layer.out_features > 1
        )
        == before.num_parameters
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_logits_of_int8_are_close_to_those_of_fp32(name: str) -> None:
    source, target = sentences(5, 9, 2), sentences(4, 6, 3, seed=1)
    exact, found = (logits_of(model_of(name, precision), source, target) for precision in ("fp32", "int8"))
    real = padded(target).mask
    assert 0 < (found - exact)[real].norm() / exact[real].norm() < 0.05


def tolerance(name: str, logits: Tensor) -> float:
    """How much logits in int8 may depend on the batch.

    Recurrent layers attend in fp32, so that the last bits of a sum depend on the length of the batch, and a value that
    lies between two whole numbers may be rounded to the other. A Transformer attends in fp64. Only its last bits may
    differ, since PyTorch computes the SiLU of the last few values of a tensor by another function.
    """
    return (1e-6 if isinstance(MODELS[name], TransformerConfig) else 0.02) * float(logits.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_a_sentence_in_int8_does_not_depend_on_its_neighbours(name: str) -> None:
    model = model_of(name, "int8")
    source, target = sentences(5, 9, 2, 9), sentences(4, 6, 3, 6, seed=1)
    together = logits_of(model, source, target)
    for i in range(len(source)):
        alone = logits_of(model, [source[i]], [target[i]])[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, rtol=0, atol=tolerance(name, alone))


def test_attention_in_int8_does_not_depend_on_how_long_the_batch_is() -> None:
    config = TransformerConfig(**{**SIZES, "d_model": 128, "encoder_layers": 2})
    model = new_model(config, VOCAB, VOCAB, seed=1).requires_grad_(False).eval()
    speed_up(model, "int8")
    source, target = sentences(17, 5, 9), sentences(11, 6, 13, seed=1)
    alone = [logits_of(model, [s], [t])[0] for s, t in zip(source, target, strict=True)]
    for length in (18, 21, 24, 32, 47, 64, 100):
        together = logits_of(model, [*source, *sentences(length)], [*target, *sentences(length, seed=2)])
        for i, wanted in enumerate(alone):
            assert torch.equal(together[i, : len(wanted)], wanted)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_token_by_token_in_int8_gives_the_logits_of_teacher_forcing(name: str) -> None:
    model = model_of(name, "int8")
    source, target = sentences(5, 5, seed=2), sentences(6, 6, seed=3)
    whole = logits_of(model, source, target)
    with torch.inference_mode():
        state = model.encode(padded(source))
        for place in range(6):
            features, state = model.decode(next_rows(torch.stack(target)[:, place : place + 1], state), state)
            step = model.output(features)[:, 0]
            torch.testing.assert_close(step, whole[:, place], rtol=0, atol=tolerance(name, whole))


@pytest.mark.parametrize("name", MODELS)
def test_packed_weights_in_bf16_change_no_bit(name: str) -> None:
    if not packing_is_right(torch.bfloat16):
        pytest.skip("not on this processor")
    source, target = sentences(5, 9, 2), sentences(4, 6, 3, seed=1)
    unpacked = new_model(MODELS[name], VOCAB, VOCAB, seed=1).requires_grad_(False).eval().to(torch.bfloat16)
    packed = model_of(name, "bf16")
    assert any(isinstance(layer, PackedLinear) for layer in packed.modules())
    assert torch.equal(logits_of(packed, source, target), logits_of(unpacked, source, target))


def test_tokens_that_were_not_trained_stay_impossible() -> None:
    for precision in ("int8", "bf16"):
        model = model_of("transformer", precision)
        model.output.untrained = [VOCAB - 1]
        logits = logits_of(model, sentences(3), sentences(4, seed=1))
        assert (logits[..., -1] == -torch.inf).all()
        assert logits[..., :-1].isfinite().all()


def test_a_model_tells_its_precision() -> None:
    for precision in {*PRECISIONS} - {"auto"}:
        assert precision_of(model_of("transformer", precision)) == precision


def test_an_output_layer_without_a_projection_multiplies_by_its_matrix() -> None:
    output = model_of("transformer", "fp64").output
    assert isinstance(output, Output)
    assert output.projection is None


@pytest.mark.parametrize("name", MODELS)
def test_in_fp32_the_output_layer_alone_is_packed_and_gives_the_same_logits_up_to_rounding(name: str) -> None:
    if not packing_is_right(torch.float32):
        pytest.skip("not on this processor")
    source, target = sentences(5, 9, 2), sentences(4, 6, 3, seed=1)
    unpacked = new_model(MODELS[name], VOCAB, VOCAB, seed=1).requires_grad_(False).eval()
    packed = model_of(name, "fp32")
    assert [layer for layer in packed.modules() if isinstance(layer, PackedLinear)] == [packed.output.projection]
    torch.testing.assert_close(logits_of(packed, source, target), logits_of(unpacked, source, target))


# Which precision.


def test_the_command_line_offers_every_precision() -> None:
    assert options.PRECISIONS == PRECISIONS
    assert set(PRECISIONS) == {*DTYPES, "int8", "auto"}


@pytest.mark.parametrize(
    ("amx", "vnni", "bf16", "d_model", "wanted"),
    [
        (True, True, True, 512, "bf16"),
        (True, True, True, 128, "bf16"),
        (True, True, True, 64, "fp32"),
        (False, True, True, 512, "int8"),
        (False, True, True, 256, "bf16"),
        (False, True, False, 256, "int8"),
        (False, True, False, 128, "fp32"),
        (False, False, True, 512, "bf16"),
        (False, False, False, 1024, "fp32"),
    ],
)
def test_auto_is_the_fastest_on_this_processor(monkeypatch, amx, vnni, bf16, d_model, wanted) -> None:
    for name, value in (("_is_amx_tile_supported", amx), ("_is_vnni_supported", vnni)):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert pick_run_precision("auto", torch.device("cpu"), d_model) == wanted


def test_auto_on_a_gpu_is_bf16_and_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert pick_run_precision("auto", torch.device("cuda"), 512) == "bf16"
    with pytest.raises(MtkitError, match=r"^precision int8: device cuda has no such products here; take bf16, or dev"):
        pick_run_precision("int8", torch.device("cuda"), 512)
    for name in DTYPES:
        assert pick_run_precision(name, torch.device("cuda"), 512) == name


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_short_lookups_change_no_logits_and_find_what_is_assigned_later(name: str, precision: str) -> None:
    source, target = sentences(5, 3), sentences(4, 6, seed=2)
    model = model_of(name, precision)
    wanted = logits_of(model, source, target)
    shorten_lookups(model)
    assert torch.equal(logits_of(model, source, target), wanted)
    places = [(module, key) for module in model.modules() for key, _ in module.named_parameters(recurse=False)]
    assert places
    assert all(key in vars(module) for module, key in places)
    for module, key in places:
        setattr(module, key, nn.Parameter(getattr(module, key).detach() + 1))
    assert not torch.allclose(logits_of(model, source, target), wanted)
