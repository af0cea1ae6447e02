"""Completions and rollouts as tensors and plain values, for the state of a source in a checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import EncodedProblem, Rollout, prompt_of
from gvpo.types import Completion, EpisodeTurn, FloatSequence, Group, Verdict

Problems = Mapping[str, EncodedProblem]
"""The problems of a run by their id."""

ScoredRow = tuple[Completion, Verdict]
"""A completion and the result of the rewards for it."""

PER_TOKEN = ("mask", "ref_logprobs", "old_logprobs", "sampler_logprobs")
"""Fields of a completion with one number per token, or None."""
PLAIN = {"text": None, "finish_reason": None, "source": None, "version": None, "versions": None, "opening": ""}
"""Fields of a completion that are stored unchanged, with their values in states of an earlier gvpo without them."""


def pack(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Return rows as a state that `unpack` reads: token ids are int32, numbers per token float32 if that is exact."""
    completions = [row for row, _ in rows]
    return {
        "tokens": torch.tensor([token for row in completions for token in row.tokens], dtype=torch.int32),
        "lengths": [len(row.tokens) for row in completions],
        "rewards": [_plain(row.reward) for row in completions],
        "verdicts": [
            (_plain(verdict.reward), {name: _plain(part) for name, part in verdict.parts.items()}, verdict.reason)
            for _, verdict in rows
        ],
        "extras": [dict(row.extras) for row in completions],
        **{name: _numbers([getattr(row, name) for row in completions]) for name in PER_TOKEN},
        **{name: [getattr(row, name) for row in completions] for name in PLAIN},
        "prompts": [None if row.prompt is None else list(row.prompt) for row in completions],
        "turns": [[dataclasses.asdict(turn) for turn in row.turns] for row in completions],
    }


def unpack(state: Mapping[str, Any]) -> list[ScoredRow]:
    """Return the rows that `pack` has packed."""
    lengths = state["lengths"]
    tokens = _split(state["tokens"], lengths)
    fields: dict[str, Any] = {name: _rows(state[name], lengths) for name in PER_TOKEN}
    fields |= {name: state.get(name, [default] * len(lengths)) for name, default in PLAIN.items()}
    fields |= {"extras": state["extras"], "prompt": state.get("prompts", [None] * len(lengths))}
    fields["turns"] = [_turns(turns) for turns in state.get("turns", [()] * len(lengths))]
    return [
        (
            Completion(tokens[place], reward, **{name: values[place] for name, values in fields.items()}),
            Verdict(*state["verdicts"][place]),
        )
        for place, reward in enumerate(state["rewards"])
    ]


def pack_rollout(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as a state that `unpack_rollout` reads, without durations; problems are stored by their id."""
    unjudged = [[Verdict(None)] * len(group.completions) for group in rollout.groups]
    judged = zip(rollout.groups, rollout.verdicts or unjudged, strict=True)
    return {
        "problems": [problem.id for problem in rollout.problems],
        "groups": [group.id for group in rollout.groups],
        "sizes": [len(group.completions) for group in rollout.groups],
        "rows": pack([row for group, verdicts in judged for row in zip(group.completions, verdicts, strict=True)]),
        "is_judged": bool(rollout.verdicts),
        "metrics": dict(rollout.metrics),
    }


def unpack_rollout(state: Mapping[str, Any], problems: Problems) -> Rollout:
    """Return the rollout that `pack_rollout` has packed.

    Raises:
        CheckpointError: If the data does not contain one of its problems.
    """
    missing = next((name for name in state["problems"] if name not in problems), None)
    if missing is not None:
        raise CheckpointError(
            f"the checkpoint contains completions of the prompt {missing!r}, which is not in the training data; resume "
            "with the data that the run was started with"
        )
    items, rest = [problems[name] for name in state["problems"]], iter(unpack(state["rows"]))
    rows = [list(islice(rest, size)) for size in state["sizes"]]
    completed = [[row for row, _ in found] for found in rows]
    groups = [
        Group(prompt_of(item, completions), completions, id=name, columns=item.problem.columns)
        for item, name, completions in zip(items, state["groups"], completed, strict=True)
    ]
    verdicts = [[verdict for _, verdict in found] for found in rows] if state["is_judged"] else []
    return Rollout(groups, verdicts, [item.problem for item in items], metrics=state["metrics"])


def _turns(turns: Sequence[Mapping[str, Any]]) -> tuple[EpisodeTurn, ...]:
    return tuple(EpisodeTurn(**turn) for turn in turns)


def _plain(value: float | None) -> float | None:
    """Return a number as Python's, because `torch.load(weights_only=True)` reads no scalars of numpy."""
    return None if value is None else float(value)


def _numbers(rows: Sequence[FloatSequence | None]) -> dict[str, Any]:
    """Return the numbers of the rows that have some, and whether each row has them."""
    flat = [float(row[place]) for row in rows if row is not None for place in range(len(row))]
    exact = torch.tensor(flat, dtype=torch.float64)
    short = exact.float()
    return {"has": [row is not None for row in rows], "values": short if torch.equal(short.double(), exact) else exact}


def _rows(state: Mapping[str, Any], lengths: Sequence[int]) -> list[list[float] | None]:
    parts = iter(_split(state["values"], [length for length, has in zip(lengths, state["has"], strict=True) if has]))
    return [next(parts) if has else None for has in state["has"]]


def _split(values: Tensor, lengths: Sequence[int]) -> list[list[Any]]:
    flat = iter(values.tolist())
    return [list(islice(flat, length)) for length in lengths]
