"""Tests of the memory model against the packed layout, hand-computed items and the peak of a real step."""

import sys
from typing import Any

import pytest
import torch

from benchmarks import plan_check
from gvpo.planning import Device, Workload, checkpoint_bytes, estimate_memory, read_architecture
from gvpo.planning import memory as formulas
from gvpo.planning.memory import activation_bytes, cache_bytes
from gvpo.planning.workload import rectangles
from gvpo.sampling import cache
from gvpo.types import Completion, Group
from gvpo.update import head
from gvpo.update.layouts.packed import Rows, Trees

CPU = Device("cpu", "cpu", 0, 1, 1)
GPU = Device("gpu", "cuda", 0, 1, 1)
LLAMA = read_architecture(
    {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
)


def work(**sizes):
    return Workload(**{"prompts_per_step": 5, "prompt_tokens": 12, "completion_tokens": 9, "half": False, **sizes})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("budget", [1, 20, 60, 76, 160, 1000])
def test_micro_batches_equal_those_of_the_update(budget, shared):
    workload = work(tokens_per_microbatch=budget)
    groups = [Group([1] * 12, [Completion([1] * 9) for _ in range(8)]) for _ in range(5)]
    layout = Trees() if shared else Rows()
    real = [
        (*layout.lay_out(pieces, torch.device("cpu")).input_ids.shape, 9 * sum(len(p.rows) for p in pieces))
        for pieces in layout.cut(groups, budget)
    ]
    found = [(shape.lanes, shape.length, shape.scored) for shape in rectangles(workload, shared=shared)]
    assert found == real


def test_constants_of_head_chunks_equal_those_of_the_update():
    for name in ("CHUNK_BYTES", "DEFAULT_CHUNK_BYTES", "BLOCK_ELEMENTS", "FEWEST_ROWS"):
        assert getattr(formulas, name) == getattr(head, name)


def test_the_room_of_the_cache_equals_the_samplers():
    assert formulas.ROOM == cache.ROOM


def test_activations_of_a_layer_match_hand_computed_bytes():
    # norms 6 x 64, attention 2 x 64 + 2 x 32, MLP 4 x 160 elements
    assert activation_bytes(LLAMA, half=False) == 4 * (384 + 192 + 640)
    # norms 4 x 64 and attention in float32; five copies of inputs and MLP in bfloat16
    assert activation_bytes(LLAMA, half=True) == 4 * (256 + 192) + 2 * (5 * 64 + 640)


def test_cache_matches_hand_computed_bytes():
    assert cache_bytes(LLAMA, half=False) == 3 * 32 * 8
    assert cache_bytes(LLAMA, half=True) == 3 * 32 * 6


def test_each_persistent_item_has_four_bytes_per_parameter():
    memory = estimate_memory(LLAMA, work(), CPU)
    size = 4 * LLAMA.parameters
    for phase in memory.phases.values():
        assert (phase["weights"], phase["optimizer"], phase["reference"]) == (size, 2 * size, size)
    assert memory.phases["optimizer"]["gradients"] == size
    assert "reference" not in estimate_memory(LLAMA, work(reference=False), CPU).phases["update"]
    assert "scoring" not in estimate_memory(LLAMA, work(reference=False), CPU).phases


@pytest.mark.parametrize("narrow", [False, True])
def test_an_adapter_has_state_and_the_weights_below_it_have_none(narrow: bool):
    memory = estimate_memory(LLAMA, work(lora_rank=2, narrow_base=narrow), CPU)
    adapter = 4 * 3 * 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))
    for phase in memory.phases.values():
        assert (phase["weights"], phase["adapter"], phase["optimizer"]) == (
            (2 if narrow else 4) * LLAMA.parameters,
            adapter,
            2 * adapter,
        )
        assert "reference" not in phase
        assert "embedding" not in phase
    assert memory.phases["optimizer"]["gradients"] == adapter
    assert "scoring" in memory.phases


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, LLAMA.parameters),
        ({"lora_rank": 2}, LLAMA.adapter_parameters(2)),
        ({"lora_rank": 2, "copies_base": True}, LLAMA.adapter_parameters(2) + LLAMA.parameters),
    ],
)
@pytest.mark.parametrize("width", [0, 2, 4])
def test_a_sampler_with_its_own_copy_keeps_it_in_all_phases(width: int, settings: dict[str, Any], parameters: int):
    memory = estimate_memory(LLAMA, work(copy_width=width, **settings), CPU)
    assert {phase.get("sampler's copy", 0) for phase in memory.phases.values()} == {width * parameters}


def test_servers_sample_elsewhere():
    assert estimate_memory(LLAMA, work(samples=False), CPU).phases.keys() == {"update", "optimizer", "scoring"}


def test_an_adapter_keeps_its_own_activations_too():
    full, adapted = (estimate_memory(LLAMA, work(lora_rank=rank), CPU).phases["update"] for rank in (0, 2))
    tokens = rectangles(work(), shared=True)[0].tokens
    assert adapted["activations"] == full["activations"]
    assert adapted["adapter's activations"] == 4 * tokens * 3 * 7 * 2


def test_gpus_shard_persistent_items_and_not_activations():
    one = estimate_memory(LLAMA, work(), GPU).phases["update"]
    four = estimate_memory(LLAMA, work(), Device("gpu", "cuda", 0, 1, 1, count=4)).phases["update"]
    assert four["weights"] == one["weights"] / 4
    assert four["activations"] == one["activations"]


def test_checkpointing_keeps_only_the_input_of_each_layer():
    many = estimate_memory(LLAMA, work(checkpointing=True), CPU).phases["update"]["activations"]
    tokens = rectangles(work(), shared=True)[0].tokens
    assert many == tokens * (3 * 4 * 64 + 3 * 4 * 64)


def test_a_checkpoint_on_disk_has_the_estimated_size(tmp_path):
    from gvpo.config import TrainConfig
    from gvpo.model.model import load_model
    from gvpo.model.reference import Reference
    from gvpo.training import optimizer as optim
    from gvpo.training.checkpoint.files import Checkpoints, TrainerState
    from tests.fakes import byte_tokenizer

    case = plan_check.CASES["llama-2048"]
    keys = {**case.model, "vocab_size": 300, "num_hidden_layers": 1}
    model = load_model(init=keys)
    optimizer = optim.make_optimizer(model, TrainConfig())
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optim.step(optimizer, model.parameters(), rate=1e-3, max_grad_norm=1.0)
    state = Reference(model).state_dict()
    path = Checkpoints(tmp_path, 1).save(TrainerState(), model, byte_tokenizer(), optimizer.state_dict(), state)
    large = sum(file.stat().st_size for file in path.rglob("*") if file.suffix in (".safetensors", ".pt"))
    expected = checkpoint_bytes(read_architecture({**keys, "model_type": "llama"}), reference=True)
    assert large == pytest.approx(expected, rel=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc, which only Linux has")
@pytest.mark.parametrize("name", ["qwen2-short", "llama-2048", "qwen2-lora"])
def test_a_real_step_needs_the_estimated_memory(name):
    """Compare a few cases; the table in docs/internals/measurements.md has all of them."""
    peak = max(plan_check.measure(name).values())
    assert plan_check.predicted(plan_check.CASES[name])[1].peak / plan_check.MIB == pytest.approx(peak, rel=0.2)
