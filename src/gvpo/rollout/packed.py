"""Completions with their verdicts as tensors and plain values, for the state of a source in a checkpoint."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gvpo.types import Completion, FloatSequence, Verdict

ScoredRow = tuple[Completion, Verdict]
"""A completion and the result of the rewards for it."""

PER_TOKEN = ("mask", "ref_logprobs", "old_logprobs", "sampler_logprobs")
"""Fields of a completion with one number per token, or None."""
PLAIN = ("text", "finish_reason", "source", "version")
"""Fields of a completion that are stored unchanged."""


def pack(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Return rows as a state that `unpack` reads: token ids are int32, numbers per token float32 if that is exact."""
    completions = [row for row, _ in rows]
    return {
        "tokens": torch.tensor([token for row in completions for token in row.tokens], dtype=torch.int32),
        "lengths": [len(row.tokens) for row in completions],
        "rewards": [row.reward for row in completions],
        "verdicts": [(verdict.reward, dict(verdict.parts), verdict.reason) for _, verdict in rows],
        "extras": [dict(row.extras) for row in completions],
        **{name: _numbers([getattr(row, name) for row in completions]) for name in PER_TOKEN},
        **{name: [getattr(row, name) for row in completions] for name in PLAIN},
    }


def unpack(state: Mapping[str, Any]) -> list[ScoredRow]:
    """Return the rows that `pack` has packed."""
    lengths = state["lengths"]
    tokens = _split(state["tokens"], lengths)
    fields: dict[str, Any] = {name: _rows(state[name], lengths) for name in PER_TOKEN}
    fields |= {name: state[name] for name in ("extras", *PLAIN)}
    return [
        (
            Completion(tokens[place], reward, **{name: values[place] for name, values in fields.items()}),
            Verdict(*state["verdicts"][place]),
        )
        for place, reward in enumerate(state["rewards"])
    ]


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
