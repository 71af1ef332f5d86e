"""The loss is PyTorch's label-smoothed cross-entropy, in value and gradients, without all logits at once."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import TransformerConfig
from mtkit.data.batches import NO_LABEL, padded_batch, ragged
from mtkit.models.interface import Embedding, Output
from mtkit.models.registry import new_model
from mtkit.training import update as loss
from mtkit.training.update import Shares, consistent_cross_entropy, label_smoothed_cross_entropy
from tests.runs import DEVICES

# N real tokens, R rows, T length, D model width, V vocabulary size.
R, T, D, V = 5, 7, 16, 41


def output_layer(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Output:
    torch.manual_seed(1)
    table = Embedding(V, D, scaled=True).to(device, dtype)
    table.initialize()
    return Output(table)


def example(dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(R, T, D) features that want a gradient, and (R, T) labels, some of them padding."""
    torch.manual_seed(2)
    features = torch.randn(R, T, D, dtype=dtype).to(device).requires_grad_()
    labels = torch.randint(4, V, (R, T))
    labels[1, 3:] = labels[4, 1:] = NO_LABEL
    return features, labels.to(device)


def biased_output_layer(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Output:
    output = Output(output_layer().table, has_bias=True)
    assert output.bias is not None
    torch.nn.init.normal_(output.bias)
    return output.to(device, dtype)


def plain(features: Tensor, output: Output, labels: Tensor, smoothing: float) -> Tensor:
    """The same by PyTorch's own function, on all logits."""
    logits = output(features)
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum", label_smoothing=smoothing
    )


def distance(found: Tensor, wanted: Tensor) -> float:
    """As a share of the norm of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return ((found - wanted).norm() / wanted.norm()).item()


def gradients(value: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_loss_and_gradients_are_those_of_cross_entropy(dtype, tolerance, smoothing, device):
    output = output_layer(dtype, device)
    features, labels = example(dtype, device)
    wanted = plain(features, output, labels, smoothing)
    found, _ = label_smoothed_cross_entropy(features, output, labels, smoothing)
    assert found.dtype == dtype
    assert distance(found, wanted) < tolerance
    pairs = zip(gradients(found, features, output.weight), gradients(wanted, features, output.weight), strict=True)
    for by_found, by_wanted in pairs:
        assert by_found.dtype == dtype
        assert distance(by_found, by_wanted) < tolerance


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("rows_of_a_chunk", [3, 1000])
def test_with_a_bias_loss_and_gradients_are_those_of_cross_entropy(
    monkeypatch, rows_of_a_chunk, dtype, tolerance, smoothing, device
):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", rows_of_a_chunk * V)
    output = biased_output_layer(dtype, device)
    features, labels = example(dtype, device)
    wanted, likelihood = (plain(features, output, labels, s) for s in (smoothing, 0.0))
    found = label_smoothed_cross_entropy(features, output, labels, smoothing)
    assert distance(found[0], wanted) < tolerance
    assert distance(found[1], likelihood) < tolerance
    inputs = (features, output.weight, output.bias)
    for by_found, by_wanted in zip(gradients(found[0], *inputs), gradients(wanted, *inputs), strict=True):
        assert by_found.dtype == dtype
        assert distance(by_found, by_wanted) < tolerance


def test_the_gradients_of_the_loss_with_a_bias_are_its_slopes():
    output = biased_output_layer(torch.float64)
    features, labels = example(torch.float64)

    def summed(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        table = Embedding(V, D, scaled=True)
        layer = Output(table)
        del table.weight, layer.bias
        table.weight, layer.bias = weight, bias
        return label_smoothed_cross_entropy(features, layer, labels, 0.1)[0]

    few = features[:2, :4].detach().requires_grad_()
    labels = labels[:2, :4]
    assert torch.autograd.gradcheck(summed, (few, output.weight, output.bias))


def test_without_a_bias_one_of_zeros_would_change_nothing():
    output = output_layer()
    other = Output(output.table, has_bias=True)
    other.initialize()
    features, labels = example()
    found, wanted = (label_smoothed_cross_entropy(features, layer, labels, 0.1) for layer in (output, other))
    assert [value.item() for value in found] == [value.item() for value in wanted]
    assert torch.equal(gradients(found[0], features)[0], gradients(wanted[0], features)[0])


def test_some_columns_of_the_logits_are_those_of_all():
    columns = torch.tensor([7, 0, 40, 7])
    features = example(torch.float64)[0]
    for output in (output_layer(torch.float64), biased_output_layer(torch.float64)):
        torch.testing.assert_close(output(features, columns), output(features)[..., columns])


@pytest.mark.parametrize("make_output", [output_layer, biased_output_layer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_whose_probability_is_zero_in_floating_point_has_a_finite_loss(dtype, make_output):
    output = make_output(dtype)
    features, labels = example(dtype)
    features = (features.detach() * torch.tensor([1.0, 3000.0], dtype=dtype)[torch.arange(R) % 2, None, None]).to(dtype)
    features.requires_grad_()
    wanted, likelihood = (plain(features, output, labels, s) for s in (0.1, 0.0))
    assert likelihood > 1000 * labels.numel(), "most labels of some rows have probability 0"
    found = label_smoothed_cross_entropy(features, output, labels, 0.1)
    assert distance(found[0], wanted) < 1e-5
    assert distance(found[1], likelihood) < 1e-5
    assert distance(gradients(found[0], features)[0], gradients(wanted, features)[0]) < 1e-5


def test_under_autocast_a_bias_is_close_to_one_in_full_precision():
    output = biased_output_layer()
    features, labels = example()
    wanted = plain(features, output, labels, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = label_smoothed_cross_entropy(features, output, labels, 0.1)
    assert distance(found, wanted) < 2e-3
    (by_found,), (by_wanted,) = gradients(found, output.bias), gradients(wanted, output.bias)
    assert by_found.dtype == torch.float32
    assert distance(by_found, by_wanted) < 1e-2


def test_the_gradient_follows_whatever_is_done_with_the_loss():
    output = output_layer()
    features, labels = example()
    found = label_smoothed_cross_entropy(features, output, labels, 0.1)[0] / 17 * 3
    wanted = plain(features, output, labels, 0.1) / 17 * 3
    assert distance(gradients(found, features)[0], gradients(wanted, features)[0]) < 1e-5


@pytest.mark.parametrize("rows_of_a_chunk", [1, 2, 3, 1000])
def test_the_loss_does_not_depend_on_how_it_is_cut_into_chunks(monkeypatch, rows_of_a_chunk):
    output = output_layer(torch.float64)
    features, labels = example(torch.float64)
    wanted = plain(features, output, labels, 0.1)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", rows_of_a_chunk * V)
    found, _ = label_smoothed_cross_entropy(features, output, labels, 0.1)
    assert distance(found, wanted) < 1e-13
    for by_found, by_wanted in zip(
        gradients(found, features, output.weight), gradients(wanted, features, output.weight), strict=True
    ):
        assert distance(by_found, by_wanted) < 1e-13


def test_the_second_sum_is_the_likelihood_without_smoothing():
    output = output_layer()
    features, labels = example()
    _, likelihood = label_smoothed_cross_entropy(features, output, labels, 0.3)
    assert distance(likelihood, plain(features, output, labels, 0.0)) < 1e-6
    assert not likelihood.requires_grad


def test_padding_counts_for_nothing():
    output = output_layer()
    features, labels = example()
    with torch.no_grad():
        changed = torch.where((labels == NO_LABEL)[:, :, None], 1e6, features)
    changed.requires_grad_()
    wider = torch.cat([changed, torch.full((R, 3, D), float("nan"))], 1)
    wider_labels = F.pad(labels, (0, 3), value=NO_LABEL)

    wanted = label_smoothed_cross_entropy(features, output, labels, 0.1)
    found = label_smoothed_cross_entropy(wider, output, wider_labels, 0.1)
    assert [value.item() for value in found] == [value.item() for value in wanted]
    by_features, by_weight = gradients(found[0], changed, output.weight)
    assert not by_features[labels == NO_LABEL].any()
    assert torch.equal(by_weight, gradients(wanted[0], output.weight)[0])


def test_a_batch_of_nothing_but_padding_has_no_loss_and_no_gradient():
    output = output_layer()
    features, labels = example()
    found = label_smoothed_cross_entropy(features, output, torch.full_like(labels, NO_LABEL), 0.1)
    assert [value.item() for value in found] == [0, 0]
    assert not any(gradient.any() for gradient in gradients(found[0], features, output.weight))


def test_without_gradients_the_loss_is_the_same_and_nothing_is_kept_for_them():
    output = output_layer()
    features, labels = example()

    def watched() -> tuple[list[Tensor], set[str]]:
        with torch.profiler.profile() as profile:
            values = label_smoothed_cross_entropy(features, output, labels, 0.1)
        return list(values), {event.key for event in profile.key_averages()}

    wanted, operators = watched()
    assert "aten::index_put_" in operators, "it takes part in computing the gradients"
    with torch.no_grad():
        found, operators = watched()
    assert not found[0].requires_grad
    assert [value.item() for value in found] == pytest.approx([value.item() for value in wanted], rel=1e-6)
    assert "aten::index_put_" not in operators, "the gradients were computed all the same"


@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_loss_and_gradients_are_close_to_those_in_full_precision(device):
    output = output_layer(device=device)
    features, labels = example(device=device)
    wanted = plain(features, output, labels, 0.1)
    with torch.autocast(device, torch.bfloat16):
        found, likelihood = label_smoothed_cross_entropy(features, output, labels, 0.1)
    assert found.dtype == likelihood.dtype == torch.float32
    assert distance(found, wanted) < 2e-3
    for by_found, by_wanted in zip(
        gradients(found, features, output.weight), gradients(wanted, features, output.weight), strict=True
    ):
        assert by_found.dtype == torch.float32
        assert distance(by_found, by_wanted) < 1e-2


def test_weights_that_are_embedding_and_output_at_once_get_both_gradients():
    config = TransformerConfig(
        d_model=D, num_heads=2, d_ff=8, encoder_layers=1, decoder_layers=1, dropout=0.0, tie_embeddings="all"
    )
    model = new_model(config, V, V, seed=1).double()
    batch = padded_batch(ragged([[5, 6, 7], [8]]), ragged([[9, 10], [11, 12, 13, 14]]))
    wanted = plain(model(batch.source, batch.target), model.output, batch.labels, 0.1)
    found, _ = label_smoothed_cross_entropy(model(batch.source, batch.target), model.output, batch.labels, 0.1)
    by_wanted, by_found = (gradients(value, model.output.weight)[0] for value in (wanted, found))
    assert distance(by_found, by_wanted) < 1e-12
    unread = sorted(set(range(V)) - set(batch.source.ids.flatten().tolist()) - set(batch.target.ids.flatten().tolist()))
    assert by_found[unread].any(), "the output's gradient reaches every row, the embedding's those that were read"


# fp16, whose largest number is 65,504.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_in_fp16_the_gradient_of_the_output_layer_is_summed_in_fp32(device: str, passes: int, biased: bool) -> None:
    output = (biased_output_layer if biased else output_layer)(device=device)
    torch.manual_seed(3)
    features = (40 + 20 * torch.rand(1, 4000, D)).to(device, torch.float16)  # all of a sign: their sums are large
    labels = torch.full((1, 4000), 5, device=device)
    output.weight.detach().mul_(1e-3)

    def gradient(features: Tensor) -> Tensor:
        output.weight.grad = None
        if passes == 1:
            total, _ = label_smoothed_cross_entropy(features, output, labels, 0.1)
        else:
            shares = Shares(cross_entropy=(0.5, 0.5), divergence=(0.5, 0.5), weight=2.5)
            total, *_ = consistent_cross_entropy(torch.stack([features, features]), output, labels, 0.1, shares)
        (total / 4000).backward()
        assert output.weight.grad is not None
        return output.weight.grad

    found, wanted = gradient(features).clone(), gradient(features.float())
    assert found.isfinite().all()
    assert distance(found, wanted) < 2e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_in_half_precision_is_added_in_fp32(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    by_logits, h = (torch.randn(300, width).to(device, dtype) for width in (V, D))
    total = torch.ones(V, D, device=device)
    loss._add_product(total, by_logits, h)
    assert distance(total, 1 + by_logits.double().T @ h.double()) < (1e-5 if dtype == torch.float16 else 1e-2)


@pytest.mark.parametrize("passes", [1, 2])
def test_the_logits_of_a_chunk_are_bounded_however_large_the_vocabulary(passes: int) -> None:
    for vocab_size in (1000, 32_000, 256_000, 5_000_000):
        assert passes * vocab_size * loss.chunk_tokens("cuda", passes, vocab_size) <= 1 << 28
        assert passes * vocab_size * loss.chunk_tokens("cpu", passes, vocab_size) <= max(1 << 22, passes * vocab_size)
        assert loss.slice_tokens("cpu", passes, vocab_size) <= loss.chunk_tokens("cpu", passes, vocab_size)
    assert loss.chunk_tokens("cuda", passes, 32_000) == (1 << 13) // passes
