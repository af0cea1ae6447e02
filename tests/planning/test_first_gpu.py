"""The table of the guide to the first GPU has the numbers of the planner."""

import re
from pathlib import Path

import pytest

from gvpo.planning import Workload, estimate_seconds, find_device, make_plan, read_architecture
from gvpo.planning.devices import GIB
from gvpo.planning.search import USABLE

GUIDE = Path(__file__).parents[2] / "docs/guides/first-gpu.md"
ROWS = re.findall(
    r"^\| `([\w-]+)` \| ([\d.]+) of ([\d.]+) GiB \| (\d+) s \| ([\d,]+) \|$", GUIDE.read_text("utf-8"), re.MULTILINE
)
QWEN = {  # config.json of Qwen2.5-0.5B-Instruct
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "hidden_act": "silu",
}


def test_the_table_has_several_devices():
    assert len(ROWS) >= 4


@pytest.mark.parametrize(("gpu", "memory", "usable", "seconds", "rate"), ROWS)
def test_a_row_is_what_the_planner_computes(gpu: str, memory: str, usable: str, seconds: str, rate: str):
    device = find_device(gpu, 1, None)
    asked = Workload(
        group_size=8,
        completion_tokens=512,
        prompts_per_step=64,
        groups_per_update=16,
        tokens_per_microbatch=8192,
        tokens_per_batch=65536,
        half=True,
    )
    model = read_architecture(QWEN)
    plan = make_plan(model, asked, device, fixed=frozenset({"tokens_per_microbatch", "tokens_per_batch"}))
    step = estimate_seconds(model, plan.workload, device).total
    assert plan.memory.peak / GIB == pytest.approx(float(memory), rel=0.02)
    assert USABLE * device.memory / GIB == pytest.approx(float(usable), rel=0.01)
    assert step == pytest.approx(float(seconds), rel=0.02)
    assert 64 * 8 * 512 / step == pytest.approx(float(rate.replace(",", "")), rel=0.03)
