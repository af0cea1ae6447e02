import base64
import gzip
import json

import pytest

from gvpo.report.data import load_run
from gvpo.report.groups import BLOCK_ROWS, read_step, run_index, token_blocks
from gvpo.report.viewer import pack, spread, viewer_data
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory


def row(group: str, index: int, step: int = 1, **changes) -> RolloutRow:
    base = {"prompt": f"What is {group}?", "prompt_tokens": [1], "text": f"text of {group}/{index}", "tokens": [2, 3]}
    return RolloutRow(step=step, group=group, row=index, **{**base, **changes})


def make(path, *steps: list[RolloutRow]):
    run = RunDirectory.create(path / "run", config="{}")
    for number, rows in enumerate(steps, start=1):
        run.write_rollouts(number, rows)
    return load_run(run.path)


def index(run) -> dict:
    return run_index(run, [read_step(run, step) for step in run.rollout_steps])


def unpack(text: str):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_groups_of_any_size_and_a_problem_that_comes_twice(tmp_path):
    run = make(
        tmp_path,
        [row("a", 0), row("a", 1), row("b", 0), row("a", 0), row("a", 1), row("a", 2), row("a", 0)],
        [],
        [row("c", 0)],
    )
    found = index(run)
    assert found["ids"] == ["a", "b", "a", "a", "c"]
    assert found["sizes"] == [2, 1, 3, 1, 1]
    assert found["groups"] == [4, 0, 1]
    assert found["blocks"] == [4, 1]


def test_facts_are_columns(tmp_path):
    run = make(
        tmp_path,
        [
            row("a", 0, reward=1.0, reward_parts={"x": 1.0}, weight=0.123456789, implicit_reward=-0.5),
            row("a", 1, reason="timeout", finish_reason="length", source="file.jsonl", version=3, age=2),
        ],
    )
    found = index(run)
    assert found["reward"] == [1.0, None]
    assert found["weight"] == [0.12346, None]
    assert found["implicit"] == [-0.5, None]
    assert found["length"] == [2, 2]
    assert (found["version"], found["age"]) == ([None, 3], [None, 2])
    assert found["parts"] == {"x": [1.0, None]}
    assert found["coded"] == {
        "finish": {"names": ["stop", "length"], "codes": [0, 1]},
        "source": {"names": ["live", "file.jsonl"], "codes": [0, 1]},
        "reason": {"names": ["", "timeout"], "codes": [0, 1]},
    }


def test_excerpts_begin_where_prompts_differ(tmp_path):
    rows = [row(name, 0, prompt=f"<system>Be good.\nThe sum {text}\n") for name, text in (("a", "1+2"), ("b", "13+2"))]
    assert index(make(tmp_path, rows))["excerpts"] == ["1+2", "13+2"]


def test_equal_prompts_are_not_cut_away(tmp_path):
    assert index(make(tmp_path, [row("a", 0), row("a", 0)]))["excerpts"] == ["What is a?"] * 2


def test_blocks_end_between_groups(tmp_path):
    rows = [row(f"g{group}", i) for group in range(5) for i in range(BLOCK_ROWS // 2 - 1)]
    run = make(tmp_path, rows)
    assert index(run)["blocks"] == [3, 2]
    packed = viewer_data([run])
    first, second = unpack(packed["text-0-0"]), unpack(packed["text-0-1"])
    assert first["prompts"] == ["What is g0?", "What is g1?", "What is g2?"]
    assert second["texts"][0] == "text of g3/0"
    assert len(first["texts"]) + len(second["texts"]) == len(rows)


def test_tokens_are_thousandths_of_nats(tmp_path):
    run = make(
        tmp_path,
        [
            row("a", 0, logprobs=[-0.5, -2.0], ref_logprobs=[-0.75, -1.0], mask=[1.0, 0.0]),
            row("a", 1, sampler_logprobs=[-1.0, -3.0], mask=[1.0, 1.0]),
            row("a", 2, logprobs=[-1.0, float("nan")]),
        ],
    )
    (block,) = token_blocks(run, read_step(run, 1), None)
    assert block == {
        "lengths": [None, None, None],
        "logprobs": [[-500, -2000], [-1000, -3000], [-1000, None]],
        "ratios": [[250, -1000], None, None],
        "masks": [[1, 0], None, None],
    }


def test_packing_is_the_same_every_time_and_safe():
    text = pack({"a": "</script>\ud800"})
    assert text == pack({"a": "</script>\ud800"})
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert unpack(text) == {"a": "</script>?"}


@pytest.mark.parametrize(
    ("count", "order"),
    [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 2, 1]), (9, [0, 8, 4, 2, 6, 1, 3, 5, 7])],
)
def test_spread(count, order):
    assert spread(count) == order


def test_spread_leaves_nothing_out():
    assert all(sorted(spread(count)) == list(range(count)) for count in range(40))


def test_what_does_not_fit_is_left_out_evenly_and_facts_stay(tmp_path):
    run = make(tmp_path, *([row(f"g{step}", 0)] for step in range(9)))
    whole = viewer_data([run])
    assert {f"text-0-{block}" for block in range(9)} < whole.keys()
    size = len(whole["text-0-0"])
    packed = viewer_data([run], text_bytes=int(3.5 * size), token_bytes=0)
    assert {name for name in packed if name != "index-0"} == {"text-0-0", "text-0-8", "text-0-4"}
    assert packed["index-0"] == whole["index-0"]


def test_runs_share_the_allowance(tmp_path):
    runs = [make(tmp_path / name, *([row("g", 0)] for _ in range(4))) for name in "ab"]
    size = len(viewer_data(runs)["text-0-0"])
    packed = viewer_data(runs, text_bytes=5 * size, token_bytes=0)
    assert [sum(name.startswith(f"text-{run}") for name in packed) for run in range(2)] == [2, 2]
