"""Tests of the reference: a frozen copy of the policy, refreshed in place, or an earlier adapter."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from gvpo.errors import ModelError
from gvpo.model import lora
from gvpo.model.reference import AdapterReference, Reference, make_reference
from tests.fakes import CONFIGS, tiny_model
from tests.model.test_lora import adapted, move

IDS = torch.tensor([[5, 9, 30, 7, 7, 12]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def moved(model):
    """Return the model after a training step."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def test_the_reference_stays_while_the_policy_changes():
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


def test_refreshing_copies_the_current_weights_in_place():
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
def test_stored_weights_are_restored_through_safetensors(kind, tmp_path):
    """Embeddings are tied (qwen2) and untied (llama): safetensors rejects a tensor under two names."""
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


def test_weights_of_another_model_are_rejected():
    reference = Reference(tiny_model("qwen2"))
    with pytest.raises(ModelError, match="do not fit"):
        reference.load_state_dict(dict(tiny_model("llama").named_parameters()))
    with pytest.raises(ModelError, match="do not fit"):
        reference.refresh(tiny_model("qwen2", hidden_size=64))


def referred(reference):
    """Return the reference's logits."""
    with reference.scoring() as model:
        return logits(model)


def storages(model):
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize("kind", ["whole", "fresh", "moved"])
def test_it_equals_the_earlier_policy(kind):
    policy = tiny_model("llama") if kind == "whole" else adapted(moved=kind == "moved")
    start = logits(policy)
    reference = make_reference(policy)
    (moved if kind == "whole" else move)(policy)
    now = logits(policy)
    assert not torch.equal(now, start)
    assert torch.equal(referred(reference), start)
    assert torch.equal(logits(policy), now)
    reference.refresh(policy)
    assert torch.equal(referred(reference), now)


def test_the_reference_of_a_fresh_adapter_stores_nothing():
    reference = make_reference(adapted(moved=False))
    assert isinstance(reference, AdapterReference)
    assert reference.state_dict() == {}


@pytest.mark.parametrize("was_moved", [True, False])
def test_the_base_is_never_copied(was_moved):
    policy = adapted(moved=was_moved)
    before, trained = storages(policy), dict(lora.trainable(policy))
    reference = make_reference(policy)
    reference.refresh(policy)
    with reference.scoring() as model:
        assert model is policy
        assert storages(model) == before
    assert reference.state_dict().keys() == trained.keys()
    assert sum(each.numel() for each in reference.state_dict().values()) == sum(p.numel() for p in trained.values())


def test_an_error_while_scoring_leaves_the_policy_unchanged():
    for was_moved in (True, False):
        policy = adapted(moved=was_moved)
        reference = make_reference(policy)
        move(policy)
        now = logits(policy)
        with pytest.raises(ZeroDivisionError), reference.scoring():
            raise ZeroDivisionError
        assert torch.equal(logits(policy), now)


def test_an_adapters_reference_is_restored_through_safetensors(tmp_path):
    for name, was_moved in (("off", False), ("stored", True)):
        reference = make_reference(adapted(moved=was_moved))
        before = referred(reference)
        save_file(reference.state_dict(), tmp_path / name)
        other = make_reference(adapted(moved=not was_moved))
        assert not torch.equal(referred(other), before)
        other.load_state_dict(load_file(tmp_path / name))
        assert torch.equal(referred(other), before)


def test_an_adapters_reference_of_another_shape_is_rejected():
    reference = make_reference(adapted())
    with pytest.raises(ModelError, match="do not fit this model"):
        reference.load_state_dict(make_reference(adapted(r=2)).state_dict())
    with pytest.raises(ModelError, match="do not fit this model"):
        reference.load_state_dict(make_reference(adapted("all linear")).state_dict())
