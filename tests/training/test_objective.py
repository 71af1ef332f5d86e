"""Two passes that must agree: R-Drop and SimCut are what their papers say, in value and gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtkit.config.data_and_model_settings import MixedConfig, RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import TrainingConfig
from mtkit.data.batches import NO_LABEL, Batch, Rows, padded_batch, ragged
from mtkit.models.interface import Embedding, TranslationModel
from mtkit.models.registry import new_model
from mtkit.text.vocabulary import BEGIN, END, PAD
from mtkit.training import update as loss
from mtkit.training.update import OBJECTIVES, Shares, consistent_cross_entropy, cut_tokens, label_smoothed_cross_entropy
from tests.training.test_loss import DEVICES, D, R, T, V, biased_output_layer, distance, gradients, output_layer

SHARES = {
    "rdrop": Shares(cross_entropy=(0.5, 0.5), divergence=(0.5, 0.5), weight=2.5),
    "simcut": Shares(cross_entropy=(1.0, 0.0), divergence=(1.0, 0.0), weight=3.0),
    "any": Shares(cross_entropy=(0.7, 0.2), divergence=(1.3, 0.4), weight=0.6),
}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), a sum over all places, of (…, V) log-probabilities, by PyTorch's own function."""
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def plain(logits: Tensor, labels: Tensor, smoothing: float, shares: Shares) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four sums, from all logits of both passes, (2, N, V)."""
    losses, likelihoods = (
        sum(share * cross_entropy(side, labels, s) for share, side in zip(shares.cross_entropy, logits, strict=True))
        for s in (smoothing, 0.0)
    )
    p, q = F.log_softmax(logits, -1)
    consistency = shares.divergence[0] * divergence(p, q) + shares.divergence[1] * divergence(q, p)
    return losses + shares.weight * consistency, losses, likelihoods, consistency


def example(dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(2, R, T, D) features that want a gradient, and (R, T) labels, some of them padding."""
    torch.manual_seed(2)
    features = torch.randn(2, R, T, D, dtype=dtype).to(device).requires_grad_()
    labels = torch.randint(4, V, (R, T))
    labels[1, 3:] = labels[4, 1:] = NO_LABEL
    return features, labels.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens_of_a_chunk", [1, 3, 1000])
@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_sums_and_gradients_are_those_of_autograd_on_all_logits(
    monkeypatch, dtype, tolerance, smoothing, name, tokens_of_a_chunk, device
):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", tokens_of_a_chunk * 2 * V)
    monkeypatch.setattr(loss, "SLICE_ELEMENTS", 2 * 2 * V)
    output, shares = output_layer(dtype, device), SHARES[name]
    features, labels = example(dtype, device)
    real = labels != NO_LABEL
    wanted = plain(output(features[:, real]), labels[real], smoothing, shares)
    found = consistent_cross_entropy(features, output, labels, smoothing, shares)
    for by_found, by_wanted in zip(found, wanted, strict=True):
        assert by_found.dtype == dtype
        assert distance(by_found, by_wanted) < tolerance
    assert [value.requires_grad for value in found] == [True, False, False, False]
    for by_found, by_wanted in zip(
        gradients(found[0], features, output.weight), gradients(wanted[0], features, output.weight), strict=True
    ):
        assert by_found.dtype == dtype
        assert distance(by_found, by_wanted) < tolerance


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_a_bias_sums_and_gradients_are_those_of_autograd_on_all_logits(monkeypatch, dtype, name):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 3 * 2 * V)
    monkeypatch.setattr(loss, "SLICE_ELEMENTS", 2 * V)
    output, shares, tolerance = biased_output_layer(dtype), SHARES[name], 1e-5 if dtype == torch.float32 else 1e-13
    features, labels = example(dtype)
    real = labels != NO_LABEL
    wanted = plain(output(features[:, real]), labels[real], 0.1, shares)
    found = consistent_cross_entropy(features, output, labels, 0.1, shares)
    for by_found, by_wanted in zip(found, wanted, strict=True):
        assert distance(by_found, by_wanted) < tolerance
    weights = (features, output.weight, output.bias)
    for by_found, by_wanted in zip(gradients(found[0], *weights), gradients(wanted[0], *weights), strict=True):
        assert distance(by_found, by_wanted) < tolerance


def test_the_gradient_is_that_of_finite_differences():
    output = output_layer(torch.float64)
    features, labels = example()
    few = features[:, :2, 1:5].detach().requires_grad_()
    for name in SHARES:
        assert torch.autograd.gradcheck(
            lambda x, shares=SHARES[name]: consistent_cross_entropy(x, output, labels[:2, 1:5], 0.1, shares)[0], [few]
        )


@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_sums_and_gradients_are_close_to_those_in_full_precision(device):
    output, shares = output_layer(torch.float32, device), SHARES["rdrop"]
    features, labels = example(torch.float32, device)
    real = labels != NO_LABEL
    wanted = plain(output(features[:, real]), labels[real], 0.1, shares)
    with torch.autocast(device, torch.bfloat16):
        found = consistent_cross_entropy(features, output, labels, 0.1, shares)
    for by_found, by_wanted in zip(found, wanted, strict=True):
        assert by_found.dtype == torch.float32
        assert distance(by_found, by_wanted) < 5e-3
    for by_found, by_wanted in zip(
        gradients(found[0], features, output.weight), gradients(wanted[0], features, output.weight), strict=True
    ):
        assert by_found.dtype == torch.float32
        assert distance(by_found, by_wanted) < 2e-2


def test_under_autocast_features_are_taken_in_its_precision():
    output, shares = output_layer(), SHARES["rdrop"]
    features, labels = example(torch.float32)
    wanted = consistent_cross_entropy(features.bfloat16(), output, labels, 0.1, shares)
    with torch.autocast("cpu", torch.bfloat16):
        found = consistent_cross_entropy(features, output, labels, 0.1, shares)
    assert [value.item() for value in found] == [value.item() for value in wanted]
    assert torch.equal(*(gradients(value[0], output.weight)[0] for value in (found, wanted)))


def test_two_equal_passes_agree_and_have_the_loss_and_gradient_of_one():
    output = output_layer(torch.float64)
    features, labels = example()
    one = features[0].detach().requires_grad_()
    wanted, likelihood = label_smoothed_cross_entropy(one, output, labels, 0.1)
    total, found, nll, consistency = consistent_cross_entropy(
        torch.stack([one, one]), output, labels, 0.1, SHARES["rdrop"]
    )
    assert abs(consistency) < 1e-12
    for value, as_wanted in ((total, wanted), (found, wanted), (nll, likelihood)):
        assert distance(value, as_wanted) < 1e-13
    assert distance(gradients(total, one)[0], gradients(wanted, one)[0]) < 1e-12


def test_padding_counts_for_nothing():
    output = output_layer(torch.float64)
    features, labels = example()
    with torch.no_grad():
        changed = torch.where((labels == NO_LABEL)[:, :, None], float("nan"), features)
    changed.requires_grad_()
    wanted = consistent_cross_entropy(features, output, labels, 0.1, SHARES["rdrop"])
    found = consistent_cross_entropy(changed, output, labels, 0.1, SHARES["rdrop"])
    assert [value.item() for value in found] == [value.item() for value in wanted]
    by_features, by_weight = gradients(found[0], changed, output.weight)
    assert not by_features[:, labels == NO_LABEL].any()
    assert torch.equal(by_weight, gradients(wanted[0], output.weight)[0])


def test_without_gradients_the_sums_are_the_same_and_padding_alone_sums_to_nothing():
    output = output_layer()
    features, labels = example(torch.float32)
    wanted = consistent_cross_entropy(features, output, labels, 0.1, SHARES["simcut"])
    with torch.no_grad():
        found = consistent_cross_entropy(features, output, labels, 0.1, SHARES["simcut"])
    assert [value.item() for value in found] == [value.item() for value in wanted]
    nothing = consistent_cross_entropy(features, output, torch.full_like(labels, NO_LABEL), 0.1, SHARES["simcut"])
    assert [value.item() for value in nothing] == [0, 0, 0, 0]
    assert not any(gradient.any() for gradient in gradients(nothing[0], features, output.weight))


# The cut.


def test_a_cut_token_is_told_by_its_place_alone():
    table = Embedding(V, D, scaled=True)
    table.initialize()
    batch = padded_batch(ragged([[5, 6, 7], [8]]), ragged([[9, 10], [11, 12, 13, 14]]))
    cut = torch.zeros_like(batch.source.ids, dtype=torch.bool)
    cut[0, 1] = True
    rows = Rows(batch.source.ids, batch.source.segments, batch.source.positions, cut=cut)
    found, whole = table(rows), table(batch.source)
    assert not found[0, 1].any()
    assert torch.equal(found[~cut], whole[~cut])
    by_weight = gradients(found.sum(), table.weight)[0]
    assert not by_weight[6].any()
    assert by_weight[7].any()


def test_rows_keep_their_cut_on_another_device():
    ids = torch.ones(2, 3, dtype=torch.int64)
    cut = torch.tensor([[True, False, True], [False, False, True]])
    moved = Rows(ids, ids, ids, cut=cut).to(torch.device("meta"))
    assert moved.cut is not None
    assert moved.cut.device.type == "meta"
    assert Rows(ids, ids, ids).to(torch.device("meta")).cut is None


@pytest.mark.parametrize("mark", [BEGIN, END, 7])
def test_tokens_are_cut_in_their_share_but_never_the_mark_and_the_same_ones_for_the_same_seed(mark):
    torch.manual_seed(1)
    ids = torch.randint(4, V, (200, 100))
    ids[:, 0], ids[:, 81:] = mark, PAD
    rows = Rows(ids, (ids != PAD).long(), torch.arange(100).expand_as(ids))
    cut = cut_tokens(rows, 0.2, mark)
    assert cut[:, 1:81].float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert not cut[:, [0, *range(81, 100)]].any()
    torch.manual_seed(7)
    first, second = cut_tokens(rows, 0.2, mark), cut_tokens(rows, 0.2, mark)
    torch.manual_seed(7)
    assert torch.equal(cut_tokens(rows, 0.2, mark), first)
    assert not torch.equal(first, second)


# The objectives.


@pytest.fixture
def model() -> TranslationModel:
    """In double precision, with dropout of every kind."""
    config = TransformerConfig(
        d_model=D,
        num_heads=2,
        d_ff=8,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.3,
        attention_dropout=0.2,
        activation_dropout=0.1,
    )
    return new_model(config, V, V, seed=1).double().train()


@pytest.fixture
def batch() -> Batch:
    return padded_batch(ragged([[5, 6, 7], [8], [9, 9]]), ragged([[9, 10], [11, 12, 13, 14], [15]]))


def both(rows: Rows, cut: Tensor | None = None) -> Rows:
    """All rows once, and once more with a cut."""
    names = ("ids", "segments", "positions")
    twice = [torch.cat([getattr(rows, name), getattr(rows, name)]) for name in names]
    return Rows(*twice, cut=None if cut is None else torch.cat([torch.zeros_like(cut), cut]))


@pytest.mark.parametrize("weight", [None, 1.5])
@pytest.mark.parametrize("name", ["rdrop", "simcut"])
def test_the_loss_of_a_batch_is_the_papers_in_value_and_gradient(model, batch, name, weight):
    cutoff = {"cutoff": 0.4} if name == "simcut" else {}
    settings = TrainingConfig(consistency=name, consistency_weight=weight, label_smoothing=0.1, **cutoff)
    torch.manual_seed(3)
    found = OBJECTIVES[name](model, batch, settings)

    torch.manual_seed(3)
    cuts = (
        (None, None) if name == "rdrop" else [cut_tokens(batch.source, 0.4, END), cut_tokens(batch.target, 0.4, BEGIN)]
    )
    features = model(both(batch.source, cuts[0]), both(batch.target, cuts[1]))
    real = batch.labels != NO_LABEL
    p, q = model.output(features).chunk(2)
    p, q, labels = p[real], q[real], batch.labels[real]
    assert not torch.equal(p, q)
    log_p, log_q = F.log_softmax(p, -1), F.log_softmax(q, -1)
    if name == "rdrop":
        loss, nll = ((cross_entropy(p, labels, s) + cross_entropy(q, labels, s)) / 2 for s in (0.1, 0.0))
        consistency = (divergence(log_p, log_q) + divergence(log_q, log_p)) / 2
        total = loss + (weight or 5.0) / 2 * consistency
    else:
        loss, nll = (cross_entropy(p, labels, s) for s in (0.1, 0.0))
        consistency = divergence(log_p, log_q)
        total = loss + (weight or 3.0) * consistency
    assert distance(found.total, total) < 1e-12
    assert distance(found.sums, torch.stack([loss, nll, consistency])) < 1e-12
    assert not found.sums.requires_grad
    for by_found, by_wanted in zip(
        gradients(found.total, *model.parameters()), gradients(total, *model.parameters()), strict=True
    ):
        assert (by_found - by_wanted).norm() <= 1e-11 * max(1.0, by_wanted.norm())


def test_the_two_passes_of_a_batch_have_dropout_of_their_own(model, batch):
    settings = TrainingConfig(consistency="rdrop")
    torch.manual_seed(3)
    with_dropout = OBJECTIVES["rdrop"](model, batch, settings).sums[2]
    without = OBJECTIVES["rdrop"](model.eval(), batch, settings).sums[2]
    assert with_dropout > 0.01
    assert abs(without) < 1e-10


def test_without_dropout_only_the_cut_makes_simcuts_passes_differ_and_its_loss_is_that_of_the_whole_rows(model, batch):
    model.eval()
    settings = TrainingConfig(consistency="simcut", cutoff=0.4)
    torch.manual_seed(3)
    found = OBJECTIVES["simcut"](model, batch, settings)
    uncut = OBJECTIVES["simcut"](model, batch, settings.model_copy(update={"cutoff": 0.0}))
    alone = OBJECTIVES["none"](model, batch, settings)
    assert found.sums[2] > 0.01
    assert abs(uncut.sums[2]) < 1e-10
    assert distance(found.sums[:2], alone.sums) < 1e-12
    assert torch.equal(alone.total.detach(), alone.sums[0])


@pytest.mark.parametrize("name", ["rdrop", "simcut"])
@pytest.mark.parametrize("mixed", [False, True])
def test_layers_are_left_out_of_each_pass_by_itself(name: str, mixed: bool) -> None:
    sizes = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.0}
    half = TransformerConfig(**sizes, layer_dropout=0.5, tie_embeddings="none")
    config = MixedConfig(encoder=half, decoder=RecurrentConfig(d_model=16, dropout=0.0)) if mixed else half
    if mixed:
        config = config.model_copy(update={"tie_embeddings": "none"})
    model = new_model(config, 30, 30, 1).train()
    sentences = ragged([[5, 6, 7, 8], [9, 10]])
    batch = padded_batch(sentences, sentences, model.boundaries)
    # Nothing is cut, so that only the layers can tell the passes apart.
    settings = TrainingConfig(consistency=name, **({"cutoff": 1e-9} if name == "simcut" else {}))
    torch.manual_seed(1)
    found = [OBJECTIVES[name](model, batch, settings) for _ in range(8)]
    assert sum(batch_loss.sums[2].item() > 1e-3 for batch_loss in found) >= 4
    sum(batch_loss.total for batch_loss in found).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    assert OBJECTIVES[name](model, batch, settings).sums[2].abs().item() < 1e-4
