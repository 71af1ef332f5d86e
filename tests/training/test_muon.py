"""Muon's update is what singular values say it is, block by block, and all else is Adam's."""

import pytest
import torch
from torch import Tensor, nn

from mtkit.config.data_and_model_settings import RecurrentConfig, TransformerConfig
from mtkit.config.training_settings import TrainingConfig
from mtkit.models.registry import new_model
from mtkit.training.optimizers import (
    MOMENTUM,
    POLYNOMIALS,
    RMS,
    Muon,
    hidden_matrices,
    make_optimizer,
    orthogonalized,
)

CPU = torch.device("cpu")


def by_singular_values(matrix: Tensor) -> Tensor:
    """The polynomials of the iteration, applied to the singular values that a decomposition finds."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for a, b, c in POLYNOMIALS:
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (16, 16), (8, 64)])
def test_the_iteration_keeps_singular_vectors_and_moves_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(5, *shape)
    found = orthogonalized([*matrices])
    for matrix, orthogonal in zip(matrices, found, strict=True):
        torch.testing.assert_close(orthogonal.double(), by_singular_values(matrix), rtol=0, atol=2e-4)
    large = torch.linalg.svdvals(found[torch.linalg.svdvals(matrices).amin(1) > 0.05])
    assert large.numel()
    assert 0.76 < large.min() <= large.max() < 1.2


@pytest.mark.parametrize("shape", [(16, 16), (16, 64)])
def test_small_singular_values_keep_their_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = u @ torch.logspace(0, -6, 16, dtype=torch.float64).diag() @ v
    found = orthogonalized([matrix.float()])[0]
    torch.testing.assert_close(found.double(), by_singular_values(matrix), rtol=0, atol=1e-3)


def test_every_singular_value_from_0_003_to_a_little_over_one_comes_near_one() -> None:
    values = torch.linspace(0.003, 1.015, 100_000, dtype=torch.float64)  # rounding may lead a little over 1
    for a, b, c in POLYNOMIALS:
        values = a * values + b * values**3 + c * values**5
    assert 0.76 < values.min() <= values.max() < 1.2


def test_a_matrix_of_rank_one_stays_bounded_in_bf16() -> None:
    torch.manual_seed(1)
    matrices = torch.randn(50, 32, 1) @ torch.randn(50, 1, 48)  # the largest singular value is the norm
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonalized([*matrices])
    assert 0.7 < torch.linalg.svdvals(found)[:, 0].min() <= torch.linalg.svdvals(found)[:, 0].max() < 1.3


def test_a_matrix_of_zeros_has_an_update_of_zeros() -> None:
    assert torch.equal(orthogonalized([*torch.zeros(2, 3, 4)]), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_an_update_is_the_formula(shape: tuple[int, int], decay: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    config = TrainingConfig.model_validate({"optimizer": "muon", "weight_decay": decay})
    optimizer = make_optimizer(model, config, CPU)
    weight = model[0].weight
    wanted, momentum = weight.detach().double().clone(), torch.zeros(shape, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.randn(shape)
        weight.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate = 0.1 / step
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        change = by_singular_values(MOMENTUM * momentum + (1 - MOMENTUM) * gradient)
        wanted = wanted * (1 - rate * decay) - rate * RMS * max(shape) ** 0.5 * change
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=0, atol=1e-4)


def test_blocks_of_one_matrix_are_orthogonalized_each_by_itself() -> None:
    torch.manual_seed(1)
    config = TransformerConfig(
        d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, activation="swiglu"
    )
    model = new_model(config, 20, 20, 1)
    optimizer = make_optimizer(model, TrainingConfig.model_validate({"optimizer": "muon"}), CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    for place, blocks in {"attention.query_key_value": 3, "feed_forward.inner": 2, "feed_forward.output": 1}.items():
        name = f"encoder.layers.0.{place}.weight"
        parameter = dict(model.named_parameters())[name]
        assert parameter.grad is not None
        for new, old, gradient in zip(
            *(each.chunk(blocks) for each in (parameter.detach(), before[name], parameter.grad)), strict=True
        ):
            change = by_singular_values(gradient)
            wanted = old.double() - RMS * max(gradient.shape) ** 0.5 * change
            torch.testing.assert_close(new.double(), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("config", [TransformerConfig(), RecurrentConfig()], ids=["transformer", "rnn"])
def test_embeddings_output_gains_and_biases_are_left_to_adam(config) -> None:
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    more = {"num_heads": 2, "d_ff": 32} if isinstance(config, TransformerConfig) else {}
    torch.manual_seed(1)
    model = new_model(config.model_copy(update=small | more), 30, 30, 1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    matrices = {names[parameter]: blocks for parameter, blocks in hidden_matrices(model).items()}
    assert matrices
    assert all("embedding" not in name and "norm" not in name and "bias" not in name for name in matrices)
    assert all(parameter.ndim == 2 for parameter in hidden_matrices(model))
    others = [name for name in names.values() if name not in matrices]
    assert any("embedding" in name for name in others)

    def updated(optimizer: str) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = new_model(config.model_copy(update=small | more), 30, 30, 1)
        made = make_optimizer(model, TrainingConfig.model_validate({"optimizer": optimizer}), CPU)
        for _ in range(3):
            for group in made.param_groups:
                group["lr"] = 0.01
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            made.step()
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    adam, muon = updated("adam"), updated("muon")
    assert all(torch.equal(adam[name], muon[name]) for name in others)
    assert not any(torch.equal(adam[name], muon[name]) for name in matrices)


def test_the_gates_of_a_recurrent_cell_are_blocks() -> None:
    for kind, gates in {"lstm": 4, "gru": 3, "tanh": 1}.items():
        model = new_model(RecurrentConfig(d_model=8, encoder_layers=1, decoder_layers=1, cell=kind), 9, 9, 1)
        found = [blocks for parameter, blocks in hidden_matrices(model).items() if parameter.shape[0] == gates * 8]
        assert gates in found


def test_matrices_may_have_a_learning_rate_of_their_own() -> None:
    config = TrainingConfig.model_validate({"optimizer": "muon", "learning_rate": 0.01, "matrix_learning_rate": 0.02})
    optimizer = make_optimizer(nn.Sequential(nn.Linear(3, 2)), config, CPU)
    assert isinstance(optimizer, Muon)
    assert [group.get("rate") for group in optimizer.param_groups] == [None, 2.0]
