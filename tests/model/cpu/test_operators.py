"""Tests that the private operators are looked up once, and that their absence is not an error."""

from collections.abc import Iterator

import pytest
import torch

from gvpo.model.cpu import operators


@pytest.fixture(autouse=True)
def looked_up_anew() -> Iterator[None]:
    for find in (operators.linear_pointwise, operators.flash_attention):
        find.cache_clear()
    yield
    for find in (operators.linear_pointwise, operators.flash_attention):
        find.cache_clear()


def test_an_operator_that_does_not_exist_is_none():
    assert operators._operator("aten", "mm", "default") is torch.ops.aten.mm.default
    assert operators._operator("aten", "no_such_operator", "default") is None
    assert operators._operator("aten", "mm", "no_such_overload") is None
    assert operators._operator("no_such_library", "mm", "default") is None


@pytest.mark.parametrize("missing", ["default", "binary"])
def test_one_missing_overload_rules_out_the_linear_layer(missing: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operators.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(operators, "_operator", lambda library, name, overload: None if overload == missing else print)
    assert operators.linear_pointwise() is None


def test_other_machines_and_builds_keep_their_own_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operators, "_operator", lambda *_: print)
    monkeypatch.setattr(operators.platform, "machine", lambda: "arm64")
    assert operators.linear_pointwise() is None
    operators.linear_pointwise.cache_clear()
    monkeypatch.setattr(operators.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert operators.linear_pointwise() is None


@pytest.mark.parametrize("missing", ["", "_backward"])
def test_attention_needs_its_backward_too(missing: str, monkeypatch: pytest.MonkeyPatch):
    absent = f"_scaled_dot_product_flash_attention_for_cpu{missing}"
    monkeypatch.setattr(operators, "_operator", lambda library, name, overload: None if name == absent else print)
    assert operators.flash_attention() is None


def test_each_is_looked_up_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    monkeypatch.setattr(operators, "_operator", lambda library, name, overload: seen.append(name))
    for _ in range(3):
        operators.flash_attention()
    assert len(seen) == 2
