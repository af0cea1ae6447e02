"""A run with episodes, without training: a model that asks a calculator, with errors, time-outs and turn limits."""

import dataclasses
from pathlib import Path
from typing import Any

from gvpo.runfiles import HELD_OUT, RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory

HOSTILE = "</b><img src=x onerror=alert(1)>"


def turn(own: str, heard: str | None = None, *, role: str = "tool", **facts: Any) -> dict[str, Any]:
    """Return a turn without the places of its tokens, which are one per character."""
    return {"text": own, "heard": [] if heard is None else [{"role": role, "content": heard}], **facts}


def episode(step: int, group: str, row: int, *turns: dict[str, Any], reward: float, **facts: Any) -> RolloutRow:
    """Return a row whose tokens are its characters; `weight` is that of each turn, and the row gets their mean."""
    text, mask, found = "", [], []
    for each in turns:
        heard = "".join(message["content"] for message in each["heard"]) if each is not turns[-1] else ""
        start, stop = len(text), len(text) + len(each["text"])
        found.append({"start": start, "stop": stop, "end": stop + len(heard), "outcome": "ok", "reward": None, **each})
        text += each["text"] + heard
        mask += [1.0] * len(each["text"]) + [0.0] * len(heard)
    weights = [each["weight"] for each in turns if each.get("weight") is not None]
    return RolloutRow(
        step=step,
        group=group,
        row=row,
        prompt=f"{group}?",
        prompt_tokens=[*group.encode()],
        text=text,
        tokens=[*text.encode()],
        reward=reward,
        reward_parts={"environment": reward},
        weight=sum(weights) / len(weights) if weights else None,
        logprobs=[-0.5 * (at % 5) for at in range(len(text))],
        mask=mask,
        version=step - 1,
        age=0,
        turns=found,
        columns={"answer": "14"},
        **facts,
    )


def group(step: int) -> list[RolloutRow]:
    """Return four episodes of one problem: right, a tool error and a wrong answer, a time-out, and no answer at all."""
    name = "4-2*7"
    paid = {"reward": 0.25, "seconds": 0.002}
    right = (
        turn("4-2;", "2", weight=0.011, **paid),
        turn("2*7;", "14", weight=0.008, **paid),
        turn("=14.", weight=0.005, reward=1.0, seconds=0.001),
    )
    wrong = (
        turn("4-2;", "2", weight=-0.003, **paid),
        turn("2*;", f"SyntaxError: {HOSTILE}", weight=-0.009, outcome="error", detail="SyntaxError", seconds=0.003),
        turn("=4.", weight=-0.006, reward=0.0, seconds=0.001),
    )
    late = (
        turn("4-0;", "no answer in 10 s", weight=-0.012, outcome="timeout", detail="no answer in 10 s", seconds=10.01),
        turn("=3.", weight=-0.004, reward=0.0, seconds=0.001),
    )
    endless = tuple(turn("4-2;", "2", weight=-0.002, reward=0.0, seconds=0.002) for _ in range(4))
    return [
        episode(step, name, 0, *right, reward=1.5),
        episode(step, name, 1, *wrong, reward=0.25),
        episode(step, name, 2, *late, reward=0.0),
        episode(step, name, 3, *endless, reward=0.0, finish_reason="turns"),
    ]


def fine(step: int, name: str = "1+1*3") -> list[RolloutRow]:
    """Return a group whose episodes are all right, and of one turn; the tokens of the second are not its text."""
    known, other = (episode(step, name, row, turn("=6.", reward=1.0, seconds=0.001), reward=1.0) for row in (0, 1))
    return [known, dataclasses.replace(other, tokens=[*b"xyz"])]


def make_run(path: Path) -> RunDirectory:
    """Write a run with episodes in its steps and in its evaluations."""
    run = RunDirectory.create(path, config="{}")
    run.write_rollouts(1, [*group(1), *fine(1)])
    for step, row in ((0, 1), (20, 0)):
        run.write_rollouts(step, [group(step)[row]], HELD_OUT)
    return run
