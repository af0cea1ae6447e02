"""Tests of the operations and seconds of a step against counts by hand and by a loop."""

from dataclasses import replace

import peft
import pytest
import torch

from gvpo.model import lora
from gvpo.model.cpu.rates import measure_rates
from gvpo.model.model import load_model
from gvpo.planning import Device, Rates, Workload, estimate_seconds, read_architecture, seconds
from gvpo.planning.seconds import forward_operations, update_operations
from gvpo.planning.workload import Rectangle, rectangles
from tests.planning.test_memory import CPU, GPU, LLAMA, work

LAYER = 64 * (64 + 32 + 32 + 64) + 2 * 64 + 3 * 64 * 160
"""Parameters of a layer of LLAMA: attention, two norms, the MLP."""
RATES = Rates(wide=1e9, narrow=1e9, bandwidth=1e9)


def visible_pairs(prompt: int, answer: int, rows: int) -> int:
    """Count the keys that each token of a group sees, one by one; -1 is the prompt."""
    tokens = [(-1, place) for place in range(prompt)]
    tokens += [(row, prompt + place) for row in range(rows) for place in range(answer)]
    return sum(
        owner in (-1, row) and before <= place
        for row, place in tokens
        for owner, before in tokens
        if owner in (-1, row)
    )


@pytest.mark.parametrize(("prompt", "completion", "rows"), [(12, 9, 8), (5, 2, 3), (1, 1, 2), (7, 30, 1)])
def test_attention_is_counted_within_each_group(prompt: int, completion: int, rows: int):
    """A last token is only a target, so a completion has one token less."""
    workload = work(
        prompts_per_step=3,
        group_size=rows,
        prompt_tokens=prompt,
        completion_tokens=completion,
        tokens_per_microbatch=9999,
    )
    (shape,) = rectangles(workload, shared=True)
    assert shape.pairs == 3 * visible_pairs(prompt, completion - 1, rows)
    if completion > 2:
        assert shape.pairs < shape.length**2 / 3  # one lane has all groups, but they do not attend to each other


def test_rows_that_cannot_share_their_prompt_attend_under_a_mask():
    (shape,) = rectangles(work(prompts_per_step=1, group_size=4, tokens_per_microbatch=9999), shared=False)
    assert (shape.lanes, shape.length, shape.pairs) == (4, 20, 4 * 20 * 20)


def test_operations_of_a_forward_match_a_count_by_hand():
    shape = Rectangle(lanes=1, length=100, scored=40, pairs=700)
    layers, head = forward_operations(LLAMA, shape)
    assert layers == 3 * (2 * 100 * LAYER + 4 * 64 * 700)
    assert head == 2 * 40 * 1000 * 64


def test_operations_of_an_update_match_a_count_by_hand():
    shape = Rectangle(lanes=1, length=100, scored=40, pairs=700)
    products, attention, head = 3 * 2 * 100 * LAYER, 3 * 4 * 64 * 700, 2 * 40 * 1000 * 64
    assert update_operations(LLAMA, work(), shape) == 3 * (products + attention + head)
    again = update_operations(LLAMA, work(checkpointing=True), shape)
    assert again == 4 * (products + attention) + 3 * head
    # frozen weights have no gradient; an adapter of rank 2 has 2 (in + out) weights per linear layer
    adapter = 3 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))
    assert update_operations(LLAMA, work(lora_rank=2), shape) == (
        2 * (products + head) + 3 * attention + 3 * 2 * 100 * adapter
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_size_of_an_adapter_equals_pefts(architecture: str):
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = load_model(init={"architecture": architecture, **sizes, **heads})
    lora.add_adapter(model, peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    real = sum(weight.numel() for _, weight in lora.trainable(model))
    assert read_architecture(model.config.to_dict()).adapter_parameters(3) == real


def test_seconds_of_a_step_on_a_cpu_match_a_count_by_hand(monkeypatch: pytest.MonkeyPatch):
    for name in ("SECONDS_PER_LAYER", "SECONDS_PER_ADAPTER"):
        monkeypatch.setattr(seconds, name, {"cpu": 0.0})
    for name in ("FORWARD_TRAFFIC", "UPDATE_TRAFFIC", "ADAPTER_TRAFFIC", "LOGIT_TRAFFIC", "OPTIMIZER_BYTES"):
        monkeypatch.setattr(seconds, name, 0)
    workload = work(prompts_per_step=2, group_size=4, tokens_per_microbatch=9999, reference=True)
    found = estimate_seconds(LLAMA, workload, CPU, RATES)
    (shape,) = rectangles(workload, shared=True)
    assert found.scoring == pytest.approx(sum(forward_operations(LLAMA, shape)) / 1e9)
    assert found.updating == pytest.approx(update_operations(LLAMA, workload, shape) / 1e9)
    three = estimate_seconds(LLAMA, replace(workload, passes=3), CPU, RATES)
    assert three.updating == pytest.approx(3 * found.updating)
    assert three.scoring == found.scoring


def test_a_step_that_uses_groups_again_samples_fewer():
    whole, half = work(prompts_per_step=4), work(prompts_per_step=2)
    reused = estimate_seconds(LLAMA, replace(whole, reuse=2), CPU, RATES)
    assert reused.sampling == estimate_seconds(LLAMA, half, CPU, RATES).sampling
    assert reused.updating == estimate_seconds(LLAMA, whole, CPU, RATES).updating


def test_the_optimizer_and_the_traffic_of_a_cpu_are_included():
    base = estimate_seconds(LLAMA, work(), CPU, RATES)
    slow = estimate_seconds(LLAMA, work(), CPU, replace(RATES, bandwidth=1e8))
    assert slow.updating > base.updating
    assert slow.scoring > base.scoring


def test_an_adapter_costs_traffic_and_saves_the_optimizers(monkeypatch: pytest.MonkeyPatch):
    def planned(rank: int) -> seconds.Seconds:
        return estimate_seconds(LLAMA, work(lora_rank=rank), CPU, replace(RATES, wide=1e15))

    assert planned(0).sampling < planned(2).sampling
    assert planned(0).updating < planned(2).updating
    monkeypatch.setattr(seconds, "ADAPTER_TRAFFIC", 0)
    trained = LLAMA.parameters - LLAMA.adapter_parameters(2)
    saved = seconds.OPTIMIZER_BYTES * trained / (1e9 * seconds.BANDWIDTH_SHARE)
    assert planned(0).updating - planned(2).updating == pytest.approx(saved, rel=1e-3)


def test_decoding_uses_the_rate_of_few_rows_and_updates_that_of_many():
    narrow = estimate_seconds(LLAMA, work(), CPU, replace(RATES, narrow=1e8))
    base = estimate_seconds(LLAMA, work(), CPU, RATES)
    assert narrow.sampling > base.sampling
    assert narrow.updating == base.updating


def test_a_gpu_uses_its_data_sheet():
    device = Device("gpu", "cuda", 0, 1e12, 1e12)
    one, two = (estimate_seconds(LLAMA, work(), each) for each in (device, replace(device, count=2)))
    assert one.scoring == pytest.approx(2 * two.scoring)
    assert GPU.kind == "cuda"


def test_rates_are_measured_with_one_thread_and_scaled_to_all_of_them(monkeypatch: pytest.MonkeyPatch):
    used = []
    monkeypatch.setattr("gvpo.model.cpu.rates._product_rate", lambda rows, *_, **__: used.append(rows) or 1e9 * rows)
    monkeypatch.setattr("gvpo.model.cpu.rates._copy_rate", lambda: used.append(torch.get_num_threads()) or 2e9)
    monkeypatch.setattr(torch, "get_num_threads", lambda counts=[4]: counts[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: used.append(f"threads {count}"))
    rates = measure_rates(64, 160, 8, half=False)
    assert used == ["threads 1", 512, 8, 4, "threads 4"]
    assert rates == Rates(wide=4 * 512e9, narrow=4 * 8e9, bandwidth=4 * 2e9)


@pytest.mark.parametrize("half", [False, True])
def test_measured_rates_are_of_a_processor(half: bool):
    rates = measure_rates(64, 128, 4, half=half)
    assert 0 < rates.narrow <= rates.wide < 1e14
    assert 1e6 < rates.bandwidth < 1e13


def test_a_workload_of_an_adapter_keeps_the_usual_micro_batches():
    shapes = [rectangles(Workload(lora_rank=rank), shared=True) for rank in (0, 8)]
    assert shapes[0] == shapes[1]
