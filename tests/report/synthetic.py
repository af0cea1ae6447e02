"""A run directory like one of training, but without training: column addition with forgotten carries."""

import json
import math
from pathlib import Path

import numpy as np

from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory

CONFIG = {
    "run": {"dir": "runs/demo", "seed": 0},
    "model": {"path": None, "init": {"architecture": "qwen2", "hidden_size": 64}},
    "data": {"task": "addition", "eval_problems": 200},
    "sampling": {"group_size": 8, "max_tokens": 48, "temperature": 1.0},
    "rewards": {"funcs": ["boxed", "format"]},
    "objective": {"name": "gvpo", "beta": 0.1, "reference": "every:10"},
    "train": {"steps": 200, "prompts_per_step": 16, "learning_rate": 3e-4},
}


def chain(a: int, b: int, forgotten: set[int] = frozenset()) -> str:
    """Return the worked sum, from right to left; at the columns in `forgotten` the carry is dropped.

    >>> print(chain(489, 636))
    9+6+0=15
    8+3+1=12
    4+6+1=11
    \\boxed{1125}
    """
    carry, digits, lines = 0, "", []
    for column in range(3):
        x, y = a // 10**column % 10, b // 10**column % 10
        carry = 0 if column in forgotten else carry
        total = x + y + carry
        lines.append(f"{x}+{y}+{carry}={total}")
        digits = f"{total % 10}{digits}"
        carry = total // 10
    answer = f"{carry}{digits}".lstrip("0") or "0"
    return "\n".join([*lines, rf"\boxed{{{answer}}}"])


def rollout(step: int, skill: float, rng: np.random.Generator, groups: int = 16, k: int = 8) -> list[RolloutRow]:
    rows = []
    for index in range(groups):
        a, b = (int(n) for n in rng.integers(100, 1000, size=2))
        texts = [chain(a, b, {c for c in (1, 2) if rng.random() > skill**0.5}) for _ in range(k)]
        rewards = np.array([float(text == chain(a, b)) for text in texts])
        ratios = rng.normal(0.8 * (rewards - rewards.mean()), 0.6)
        weights = ((rewards - rewards.mean()) - 0.1 * (ratios - ratios.mean())) * 0.1 / (k - 1) / groups
        rows += [
            _row(step, f"train/{step * groups + index}", i, (a, b), texts[i], rewards[i], weights[i], ratios[i])
            for i in range(k)
        ]
    return rows


def _row(step, group, row, terms, text, reward, weight, ratio) -> RolloutRow:
    a, b = terms
    tokens = [*text.encode(), 1]
    logprobs = np.full(len(tokens), -0.1, dtype=np.float32)
    return RolloutRow(
        step=step,
        group=group,
        row=row,
        prompt=f"{a}+{b}=",
        prompt_tokens=list(f"{a}+{b}=".encode()),
        text=text,
        tokens=tokens,
        reward=float(reward),
        reward_parts={"boxed": float(reward), "format": 1.0},
        weight=float(weight),
        implicit_reward=float(0.1 * ratio),
        logprobs=logprobs,
        ref_logprobs=logprobs - ratio / len(tokens),
        version=step - 1,
        age=0,
        columns={"answer": str(a + b)},
    )


def skill(step: int, steps: int) -> float:
    return 0.34 + 0.5 / (1 + math.exp(-(step / steps - 0.4) * 9))


def metrics(step: int, steps: int, rng: np.random.Generator) -> dict[str, float]:
    accuracy = float(np.clip(skill(step, steps) + rng.normal(0, 0.05), 0, 1))
    progress = step / steps
    line = {
        "step": step,
        "reward/mean": accuracy,
        "reward/std": (accuracy * (1 - accuracy)) ** 0.5,
        "reward/boxed": accuracy,
        "reward/format": min(1.0, 0.97 + 0.03 * progress),
        "accuracy": accuracy,
        "groups/total": 16,
        "groups/dead": float(rng.poisson(1 + 6 * progress)),
        "groups/skipped": 0,
        "rows/failed": 0.0,
        "rows/truncated": max(0.0, rng.normal(0.01, 0.005)),
        "length/mean": 38 - 2 * progress + rng.normal(0, 0.3),
        "length/max": 43.0,
        "kl/reference": 2.2 * progress**0.7 + abs(rng.normal(0, 0.05)),
        "entropy": 0.16 * (1 - 0.7 * progress) + rng.normal(0, 0.004),
        "gvpo/advantage_term": 0.4 * (1 - progress) + rng.normal(0, 0.03),
        "gvpo/variance_term": 6 * (1 - 0.5 * progress) + rng.normal(0, 0.4),
        "gvpo/covariance_term": 5 * (1 - 0.5 * progress) + rng.normal(0, 0.4),
        "gvpo/certificate": 2.4 * (1 - progress) + 0.3 + rng.normal(0, 0.1),
        "gvpo/implicit_reward_corr": min(1.0, 0.8 * progress + rng.normal(0, 0.04)),
        "gvpo/residual_ratio": 1 - 0.6 * progress + rng.normal(0, 0.04),
        "gvpo/logratio_gap_max": 1 + 4 * progress + rng.normal(0, 0.3),
        "gvpo/weight_sum_max": 1e-8,
        "train/loss": 0.09 * (1 - 0.5 * progress) + rng.normal(0, 0.006),
        "train/grad_norm": float(rng.lognormal(-1.5, 0.4)),
        "train/lr": 3e-4 * (1 - progress),
        "train/updates": 1,
        "train/skipped_updates": 0,
        "sampler/mismatch": 2e-7,
        "tokens/sampled": 4864,
        "tokens/per_second": 27000 + rng.normal(0, 900),
    }
    seconds = {"sampling": 0.09, "rewarding": 0.01, "scoring": 0.02, "updating": 0.06}
    line |= {f"seconds/{name}": mean * rng.lognormal(0, 0.1) for name, mean in seconds.items()}
    line["seconds/total"] = sum(line[f"seconds/{name}"] for name in seconds)
    if step % 20 == 0:
        line |= {
            "eval/accuracy": skill(step, steps),
            "eval/accuracy_greedy": min(1.0, skill(step, steps) * 1.25),
            "eval/reward": skill(step, steps),
            "eval/length": 37.0,
            "eval/truncated": 0.0,
        }
    return line


def make_run(path: Path, *, steps: int = 200, seed: int = 0, rollouts_every: int = 50, finished: bool = True) -> Path:
    """Write a run directory with the trainer's own writers."""
    rng = np.random.default_rng(seed)
    run = RunDirectory.create(path, config=json.dumps(CONFIG))
    for step in range(1, steps + 1):
        # most lines are appended without fsync, which would take longer than the rest of the test
        line = metrics(step, steps, rng)
        if step == steps:
            run.append_metrics(line)
        else:
            with run.metrics_path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if step == 1 or step % rollouts_every == 0:
            run.write_rollouts(step, rollout(step, skill(step, steps), rng))
    if finished:
        run.write_summary(
            {"accuracy_before": 0.34, "accuracy_after": 0.845, "steps": steps, "seconds": 47.3, "report": "report.html"}
        )
    return path
