"""Tests of the choice of settings: the largest batches that fit, the order of concessions, time and disk."""

from dataclasses import replace

import pytest

from gvpo.errors import ConfigError
from gvpo.planning import (
    GPUS,
    Device,
    Workload,
    checkpoint_bytes,
    devices,
    estimate_memory,
    estimate_seconds,
    find_device,
    make_plan,
    read_architecture,
    run_bytes,
)
from gvpo.planning.devices import GIB
from gvpo.planning.search import USABLE

HALF_B = read_architecture(
    {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    }
)


def sized(gib):
    return replace(GPUS["h100"], memory=gib * GIB)


def test_the_budget_is_the_largest_that_fits():
    device = sized(24)
    plan = make_plan(HALF_B, Workload(), device)
    assert plan.fits
    assert plan.memory.peak <= USABLE * device.memory
    twice = replace(plan.workload, tokens_per_microbatch=2 * plan.workload.tokens_per_microbatch)
    assert estimate_memory(HALF_B, twice, device).peak > USABLE * device.memory


def test_more_memory_never_gives_smaller_batches():
    plans = [make_plan(HALF_B, Workload(), sized(gib)).workload for gib in (18, 24, 40, 80)]
    for name in ("tokens_per_microbatch", "tokens_per_batch"):
        found = [getattr(workload, name) for workload in plans]
        assert found == sorted(found)
    assert plans[0].tokens_per_microbatch < plans[-1].tokens_per_microbatch


def test_activations_are_given_up_before_the_reference():
    kept = {gib: make_plan(HALF_B, Workload(), sized(gib)) for gib in (40, 2)}
    assert (kept[40].workload.checkpointing, kept[40].reference_fits) == (False, True)
    assert not kept[2].fits
    states = 16 * HALF_B.parameters  # without a reference
    scarce = next(p for g in range(8, 40) if (p := make_plan(HALF_B, Workload(), sized(g))).fits)
    assert scarce.reference_fits is False
    assert scarce.memory.peak > states


def test_a_fixed_budget_is_kept_even_if_the_run_does_not_fit():
    fixed = frozenset({"tokens_per_microbatch"})
    asked = Workload(tokens_per_microbatch=3000)
    assert make_plan(HALF_B, asked, sized(40), fixed=fixed).workload.tokens_per_microbatch == 3000
    assert not make_plan(HALF_B, replace(asked, tokens_per_microbatch=10**7), sized(10), fixed=fixed).fits


def test_the_plan_reports_how_many_devices_are_enough():
    plan = make_plan(HALF_B, Workload(), sized(6))
    assert not plan.fits
    assert plan.enough is not None
    assert make_plan(HALF_B, Workload(), replace(sized(6), count=plan.enough)).fits


def test_seconds_are_proportional_to_operations():
    slow = Device("slow", "cuda", 0, 1e12, 1e12)
    fast = replace(slow, rate=2e12, bandwidth=2e12)
    base, twice = estimate_seconds(HALF_B, Workload(), slow), estimate_seconds(HALF_B, Workload(), fast)
    assert base.updating == pytest.approx(2 * twice.updating)
    assert estimate_seconds(HALF_B, Workload(checkpointing=True), slow).updating > base.updating
    assert estimate_seconds(HALF_B, Workload(reference=False), slow).scoring < base.scoring


def test_disk_space_matches_hand_computed_bytes():
    assert checkpoint_bytes(HALF_B, reference=False) == 12 * HALF_B.parameters
    workload = Workload(prompts_per_step=2, group_size=3, completion_tokens=100, reference=False)
    rollouts = run_bytes(HALF_B, workload, keep=2, rollouts=10) - 4 * checkpoint_bytes(HALF_B, reference=False)
    assert rollouts == pytest.approx(10 * 600 * 28)


def test_devices_by_name():
    assert find_device("H100").memory == 80 * GIB
    assert find_device("A100_80", 4).count == 4
    assert find_device("l4", memory=20 * GIB).memory == 20 * GIB
    with pytest.raises(ConfigError, match="did you mean 'rtx4090'"):
        find_device("rtx409")


def test_the_gpu_of_the_machine_is_used_if_it_is_known(monkeypatch):
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: ["NVIDIA H100 80GB HBM3"])
    assert find_device().name == "h100"
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: ["NVIDIA Zebra"])
    with pytest.raises(ConfigError, match="NVIDIA Zebra, is not in the table"):
        find_device()
    monkeypatch.setattr(devices, "nvidia_gpus", list)
    assert find_device().kind == "cpu"
