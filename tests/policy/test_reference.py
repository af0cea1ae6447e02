"""The reference: a frozen copy of the policy, refreshed in place."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvpo.errors import ModelError
from gvpo.policy.reference import Reference
from tests.fakes import CONFIGS, tiny_model

IDS = torch.tensor([[5, 9, 30, 7, 7, 12]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def moved(model):
    """The model after a step of training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def test_the_reference_stays_while_the_policy_moves():
    policy = tiny_model()
    policy(input_ids=IDS).logits.sum().backward()
    start = logits(policy)
    reference = Reference(policy)
    moved(policy)
    assert torch.equal(logits(reference.model), start)
    assert not torch.equal(logits(policy), start)
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())
    assert all(parameter.grad is None for parameter in reference.model.parameters())
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in policy.parameters())
    assert policy.training


def test_refreshing_takes_the_weights_of_now_in_place():
    policy = tiny_model()
    reference = Reference(policy)
    storage = [parameter.data_ptr() for parameter in reference.model.parameters()]
    moved(policy)
    reference.refresh(policy)
    assert torch.equal(logits(reference.model), logits(policy))
    assert [parameter.data_ptr() for parameter in reference.model.parameters()] == storage
    moved(policy)
    assert not torch.equal(logits(reference.model), logits(policy))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_stored_weights_come_back_through_safetensors(kind, tmp_path):
    """Tied (qwen2) and untied (llama) embeddings: safetensors refuses a tensor under two names."""
    reference = Reference(tiny_model(kind))
    before = logits(reference.model)
    save_file(reference.state_dict(), tmp_path / "reference.safetensors")
    resumed = Reference(tiny_model(kind, seed=1))
    assert not torch.equal(logits(resumed.model), before)
    resumed.load_state_dict(load_file(tmp_path / "reference.safetensors"))
    assert torch.equal(logits(resumed.model), before)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_copy_keeps_dtype_and_ties(kind):
    policy = tiny_model(kind, dtype=torch.float64)
    copy = Reference(policy).model
    assert {parameter.dtype for parameter in copy.parameters()} == {torch.float64}
    tied = policy.get_output_embeddings().weight is policy.get_input_embeddings().weight
    assert (copy.get_output_embeddings().weight is copy.get_input_embeddings().weight) == tied


def test_weights_of_another_model_are_refused():
    reference = Reference(tiny_model("qwen2"))
    with pytest.raises(ModelError, match="do not fit"):
        reference.load_state_dict(dict(tiny_model("llama").named_parameters()))
    with pytest.raises(ModelError, match="do not fit"):
        reference.refresh(tiny_model("qwen2", hidden_size=64))
