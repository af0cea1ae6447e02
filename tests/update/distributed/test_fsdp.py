"""Tests of sharding in a single process; several ranks are tested in test_ranks.py."""

import pytest
import torch

from gvpo.update.distributed import fsdp
from tests.training.toy import model


def test_small_gradients_of_one_dtype_are_sent_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fsdp, "BUCKET", 10)
    gradients = [torch.zeros(size) for size in (4, 4, 4, 20)]
    gradients += [torch.zeros(2, dtype=torch.float64), torch.zeros(3)]
    sizes = [[gradient.numel() for gradient in bucket] for bucket in fsdp._buckets(gradients)]
    assert sizes == [[4, 4], [4], [20], [2], [3]]


def test_a_single_process_shards_nothing():
    policy = model()
    fsdp.shard(policy, half=True)
    assert not fsdp.is_sharded(policy)
    assert not fsdp.communicates(policy)
    assert fsdp.gradient_scale(policy) == 1
    with fsdp.unsharded(policy):
        assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())


def test_complete_tensors_keep_their_ties():
    shared = torch.ones(3)
    found = fsdp.full_on_first({"a": shared, "b": shared, "c": torch.ones(3)})
    assert found["a"] is found["b"]
    assert found["a"] is not found["c"]
