"""Tests that oneDNN's products equal torch.mm's, with their gradients, and are used only where intended."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvpo.model.cpu import matmul, operators
from gvpo.model.cpu.matmul import fast_linears, gradient_of_weight, is_fast, linear, product

if operators.linear_pointwise() is None:
    pytest.skip("this torch has no oneDNN", allow_module_level=True)


@pytest.fixture(autouse=True)
def all_sizes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matmul, "LEAST", 1)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one entry per product of oneDNN."""
    found: list[int] = []
    multiply = matmul._multiply
    monkeypatch.setattr(matmul, "_multiply", lambda *a: found.append(1) or multiply(*a))
    return found


def close(found: Tensor, expected: Tensor) -> None:
    """Compare up to float32's rounding of sums of a few hundred terms of size 1."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-4)


def test_products_of_matrices_and_of_transposed_views(calls: list[int]):
    torch.manual_seed(0)
    left, right, bias = torch.randn(70, 300), torch.randn(300, 90), torch.randn(90)
    for one in (left, left.T.contiguous().T):
        for other in (right, right.T.contiguous().T):
            close(product(one, other), one.double() @ other.double())
            close(product(one, other, bias), one.double() @ other.double() + bias.double())
    assert len(calls) == 8


@pytest.mark.parametrize(("out", "inner"), [(200, 50), (50, 200), (64, 64)])
def test_the_gradient_of_a_weight_with_either_side_larger(calls: list[int], out: int, inner: int):
    torch.manual_seed(0)
    change, x = torch.randn(300, out), torch.randn(300, inner)
    found = gradient_of_weight(change, x)
    assert found.shape == (out, inner)
    close(found, change.double().T @ x.double())
    assert calls


def test_rows_that_are_not_adjacent_in_memory_use_torch(calls: list[int]):
    wide = torch.randn(40, 100)
    close(product(wide[:, :30], torch.ones(30, 20)), wide[:, :30].double() @ torch.ones(30, 20).double())
    assert not calls


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients(calls: list[int], bias: bool):
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=bias)
    x = torch.randn(3, 25, 48, requires_grad=True)
    push = torch.randn(3, 25, 80)
    leaves = [x, *layer.parameters()]
    found = linear(layer, x)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    close(found, expected)
    gradients = torch.autograd.grad((found * push).sum(), leaves)
    truth = torch.autograd.grad((expected * push.double()).sum(), leaves)
    for one, other in zip(gradients, truth, strict=True):
        close(one, other.double())
    assert len(calls) == 3


def test_no_gradient_is_computed_for_a_frozen_weight(calls: list[int]):
    layer = nn.Linear(48, 80).requires_grad_(False)
    x = torch.randn(25, 48, requires_grad=True)
    linear(layer, x).square().sum().backward()
    assert layer.weight.grad is None
    assert len(calls) == 2


def test_layers_of_a_model_are_restored(calls: list[int]):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(20, 16)
    expected = model(x)
    with fast_linears(model, head=model[2]):
        torch.testing.assert_close(model(x), expected)
    assert len(calls) == 1
    model(x)
    assert len(calls) == 1
    assert all("forward" not in vars(layer) for layer in model)


def test_other_dtypes_and_autocast_use_torch(calls: list[int]):
    layer = nn.Linear(16, 32)
    x = torch.randn(20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(layer, x).dtype == torch.bfloat16
    assert linear(layer.double(), x.double()).dtype == torch.float64
    assert not calls


def test_small_products_use_torch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matmul, "LEAST", 1001)
    assert not is_fast(torch.ones(10, 10), torch.ones(10, 10))
    assert is_fast(torch.ones(10, 10), torch.ones(10, 11))
