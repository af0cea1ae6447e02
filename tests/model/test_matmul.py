"""Tests that logits are float32 whatever a model computes in."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gvpo.model.matmul import wide_head
from tests.fakes import tiny_model

IDS = torch.arange(3, 23)[None]


def in_half() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("fixed", [True, False], ids=["sampling", "update"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_logits_in_half_precision_are_those_of_a_float32_head(weights: torch.dtype, fixed: bool):
    model: Any = tiny_model("llama", dtype=weights)
    model.lm_head.weight *= 20  # logits of a real model's size, which bfloat16 rounds to eighths
    with in_half() if weights == torch.float32 else nullcontext():
        hidden = model.model(input_ids=IDS).last_hidden_state
        narrow = model(input_ids=IDS).logits
        with wide_head(model, fixed=fixed):
            found = model(input_ids=IDS).logits
    true = F.linear(hidden.float(), model.lm_head.weight.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, true, rtol=0.0, atol=1e-4)
    assert float((narrow.float() - true).abs().max()) > 0.01
    assert "forward" not in vars(model.lm_head)


def test_logits_of_an_update_in_half_precision_have_a_gradient():
    model: Any = tiny_model("llama")
    with in_half(), wide_head(model):
        model(input_ids=IDS).logits.square().sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_float32_model_keeps_its_head():
    model: Any = tiny_model("llama")
    with wide_head(model):
        assert "forward" not in vars(model.lm_head)
