"""Rewards under attack, from the trainer to the files: the run continues without the guilty rows and reports why."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gvpo import runfiles
from gvpo.cli.main import main
from gvpo.errors import RewardError
from gvpo.training.build import REWARDS_LOG
from gvpo.workers import output_log
from tests.rewards.pool import attackers
from tests.rewards.pool.test_attacks import ends, linux
from tests.training.toy import lines, trainer

NO_EVAL: dict[str, Any] = {"held": [], "eval_problems": 0}


def guilty(text: str) -> bool:
    """Return whether the tests' rewards misbehave on a completion, about a tenth of an untrained model's samples."""
    return text.startswith("7")


def misbehaving(attack: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reward that runs `attack` on guilty completions, and counts letters otherwise."""

    def attacked(completions: Any, **_: Any) -> Any:
        if any(text.startswith("7") for text in completions):
            attack(completions=["bad"])
        return [float(len(set(text))) for text in completions]

    return attacked


def returning(value: Any) -> Callable[..., Any]:
    """Return a reward that returns `value` for guilty completions."""

    def returns(completions: Any, **_: Any) -> list[Any]:
        return [value if text.startswith("7") else float(len(set(text))) for text in completions]

    return returns


def asynchronous(reward: Callable[..., Any]) -> Callable[..., Any]:
    async def later(completions: Any, **columns: Any) -> Any:
        import asyncio

        await asyncio.sleep(0.001)
        return reward(completions, **columns)

    return later


def rollouts(run_dir: Path) -> list[Any]:
    return [
        row
        for step in runfiles.rollout_steps(run_dir)
        for row in runfiles.read_rollouts(runfiles.rollout_path(run_dir, step))
    ]


def run(tmp_path: Path, reward: Any, **settings: Any) -> list[Any]:
    """Train on a reward for two steps, and return the rows of all rollouts."""
    small = {"steps": 2, "prompts_per_step": 4, "group_size": 4, "seed": 1, "reward_timeout": 5.0}
    trainer(tmp_path, rewards=reward, **{**small, **settings}, **NO_EVAL).train()
    return rollouts(tmp_path)


HASTY = {"steps": 1, "reward_timeout": 1.0}
ATTACKS = {
    "hangs": (misbehaving(attackers.hang), "timeout: {} gave no answer in 1 s", HASTY),
    "raises": (misbehaving(attackers.raise_), "exception: {} raised ValueError: no digit in this text", {}),
    "leaves": (misbehaving(attackers.leave), "exception: {} raised SystemExit: enough", {}),
    "dies": (misbehaving(attackers.die), "died: {} ended its process (exit code 3)", {}),
    # The text that it writes into the pool's pipe may read as a reply or as the start of one, which the pool then waits
    # for.
    "scribbles": (misbehaving(attackers.scribble), ("died: {} ended its process", "timeout: {} gave no answer"), {}),
    "nan": (returning(math.nan), "nan: {} returned nan", {}),
    "infinite": (returning(math.inf), "infinite: {} returned inf", {}),
    "None": (returning(None), "abstained: every reward function returned None", {}),
    "text": (returning("much"), "wrong type: {} returned a str instead of a number or None", {}),
    "async, raises": (asynchronous(misbehaving(attackers.raise_)), "exception: {} raised ValueError", {}),
    "async, hangs": (asynchronous(misbehaving(attackers.hang)), "timeout: {} gave no answer", HASTY),
}
EATS = (misbehaving(attackers.eat_memory), "exception: {} raised MemoryError", {"reward_memory_limit": 0.4})


@pytest.mark.parametrize(
    ("reward", "reason", "settings"),
    [*(pytest.param(*case, id=name) for name, case in ATTACKS.items()), pytest.param(*EATS, id="eats", marks=linux)],
)
def test_the_run_continues_without_the_guilty_rows(tmp_path: Path, reward: Any, reason: Any, settings: dict[str, Any]):
    rows = run(tmp_path, reward, **settings)
    possible = (reason,) if isinstance(reason, str) else reason
    failed = [row for row in rows if guilty(row.text)]
    assert 0 < len(failed) < len(rows) / 4
    for row in failed:
        assert row.reason.startswith(tuple(text.format(reward.__name__) for text in possible))
        assert (row.reward, row.weight) == (None, None)
    others = [row for row in rows if not guilty(row.text)]
    assert {row.reason for row in others} == {""}
    assert all(row.reward == len(set(row.text)) and row.weight is not None for row in others)
    shares = [line["rows/failed"] for line in lines(tmp_path)]
    assert len(shares) == settings.get("steps", 2)
    assert sum(shares) * len(rows) / len(shares) == pytest.approx(len(failed))


def test_a_wrong_number_of_values_costs_the_whole_group(tmp_path: Path):
    def short(completions: Any, **_: Any) -> list[float]:
        values = [float(len(set(text))) for text in completions]
        return values[1:] if any(text.startswith("7") for text in completions) else values

    rows = run(tmp_path, short)
    spoilt = {(row.step, row.group) for row in rows if guilty(row.text)}
    assert spoilt
    for row in rows:
        lost = (row.step, row.group) in spoilt
        assert row.reason == ("wrong length: short returned 3 values for 4 completions" if lost else "")
        assert (row.reward is None) == (row.weight is None) == lost
    assert sum(line["groups/skipped"] for line in lines(tmp_path)) == len(spoilt)


@pytest.mark.parametrize("reward", [attackers.fork_and_both_return, attackers.shout, attackers.length_later])
def test_odd_rewards_that_return_values_are_accepted(tmp_path: Path, reward: Any):
    rows = run(tmp_path, reward)
    assert all(row.reward == len(row.text) for row in rows)
    assert [line["rows/failed"] for line in lines(tmp_path)] == [0, 0]


def test_the_latest_megabytes_of_output_are_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run(tmp_path, attackers.shout)
    parts = [tmp_path / name for name in (REWARDS_LOG, REWARDS_LOG + output_log.OLDER)]
    size = sum(part.stat().st_size for part in parts)
    assert output_log.LIMIT / 2 < size <= output_log.LIMIT < 8 * 10_100_000
    assert parts[0].read_bytes().startswith(b"[gvpo: earlier output is in rewards.log.1, older output is gone]\n")
    assert "xxx" not in "".join(capfd.readouterr())


@linux
def test_a_daemon_ends_with_the_run(tmp_path: Path):
    pid_file = tmp_path / "pid"

    def leaves(completions: Any, **_: Any) -> list[float]:
        if not pid_file.exists():
            attackers._daemon(pid_file)
        return [1.0] * len(completions)

    run(tmp_path / "run", leaves)
    assert ends(int(pid_file.read_text()))


def test_a_logged_reward_may_fail_without_effect(tmp_path: Path):
    rows = run(tmp_path, [returning(1.0), misbehaving(attackers.raise_)], reward_weights=[1.0, 0.0])
    assert any(guilty(row.text) for row in rows)
    for row in rows:
        assert row.reward is not None
        assert (row.reward_parts["attacked"] is None) == guilty(row.text)


def test_rewards_that_mostly_fail_stop_the_run_with_the_first_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def bug(completions: Any, **_: Any) -> list[float]:
        return [1.0 / len(text[3:]) for text in completions]

    message = "most rewards of step 1 failed: exception .*; the first is exception: bug raised ZeroDivisionError"
    with pytest.raises(RewardError, match=message):
        run(tmp_path, bug)
    shown = capsys.readouterr().err
    assert shown.count("Traceback") == 1
    assert "return [1.0 / len(text[3:]) for text in completions]" in shown
    assert (tmp_path / runfiles.CONFIG).is_file()


def test_the_stopped_run_resumes_once_the_reward_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On the command line the error is one line after the traceback, and --resume uses the fixed file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1"}\n{"prompt": "2"}\n')
    (tmp_path / "judge.py").write_text("def judge(completions, **_):\n    raise OSError('the judge sleeps')\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    words = ["train", str(recipe), "run.dir=run"]
    assert main(words) == 2
    assert not (tmp_path / "run/metrics.jsonl").read_text()
    monkeypatch.setattr("gvpo.rollout.rewards.load", lambda name, **_: returning(0.0))
    assert main([*words, "--resume"]) == 0
    assert len(lines(tmp_path / "run")) == 2


RECIPE = """
[model]
vocabulary = ["1", "2"]
init = { architecture = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1, \
num_attention_heads = 2, num_key_value_heads = 2, max_position_embeddings = 16 }
[data]
train = "rows.jsonl"
[sampling]
group_size = 2
max_tokens = 3
[rewards]
funcs = ["judge.py:judge"]
workers = 1
[objective]
name = "rloo"
[train]
steps = 2
prompts_per_step = 2
[checkpoint]
verify = false
"""
