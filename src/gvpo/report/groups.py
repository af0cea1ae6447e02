"""Rollout files as the columns of the report's group viewer: plain JSON values, no markup.

A run becomes an index, which contains the facts by which groups are sorted and filtered, and blocks of texts and of
tokens. The page unpacks a block when one of its groups is shown.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gvpo.report.data import Run, is_number
from gvpo.report.episodes import episode_facts, shown_turns
from gvpo.report.tokens import Pieces
from gvpo.runfiles import rollout_path, rollout_table

Array = NDArray[np.float64]

BLOCK_ROWS = 1024
"""A block contains the groups that begin within about this many completions."""

_HUGE = 1e12
"""Log-probs are clipped to this size; no token has a larger one, and its thousandths would overflow."""

_FACTS = ("reward", "weight", "implicit_reward", "version", "age", "finish_reason", "source", "reason", "reward_parts")
_TEXTS = ("group", "row", "prompt", "text", "columns", "tokens", "mask", "turns")
_TOKENS = ("text", "tokens", "logprobs", "ref_logprobs", "sampler_logprobs", "mask")


@dataclass(frozen=True)
class StepGroups:
    """The groups of a rollout file.

    Args:
        step: its step.
        bounds: the rows at which groups begin, and the number of rows: group g is rows bounds[g] to bounds[g + 1].
        blocks: the groups at which blocks begin, and the number of groups.
        facts: columns of the index: "id" and "prompt" with a value per group, the others with a value per completion.
    """

    step: int
    bounds: Sequence[int]
    blocks: Sequence[int]
    facts: dict[str, list[Any]] = field(repr=False)


def read_step(run: Run, step: int) -> StepGroups:
    """Read the groups of a step, without their texts and tokens.

    Raises:
        RunError: the rollout file is damaged.
    """
    from pyarrow import compute

    table = rollout_table(rollout_path(run.path, step), ("group", "row", "prompt", "tokens", "turns", *_FACTS))
    bounds = _bounds(table["group"].to_pylist(), table["row"].to_pylist())
    facts = {name: table[name].to_pylist() for name in _FACTS}
    facts["length"] = compute.list_value_length(table["tokens"]).to_pylist()
    facts["turns"] = table["turns"].to_pylist()
    facts |= {"id": _taken(table, "group", bounds[:-1]), "prompt": _taken(table, "prompt", bounds[:-1])}
    return StepGroups(step, bounds, _blocks(bounds), facts)


def _taken(table: Any, name: str, rows: Sequence[int]) -> list[Any]:
    import pyarrow as pa

    return list(table[name].take(pa.array(rows, pa.int64())).to_pylist())


def _bounds(groups: Sequence[str], rows: Sequence[int]) -> list[int]:
    """Return the row at which each group begins, where the id changes or the row number falls, and the end."""
    begins = [at for at in range(len(groups)) if at == 0 or groups[at] != groups[at - 1] or rows[at] <= rows[at - 1]]
    return [*begins, len(groups)]


def _blocks(bounds: Sequence[int]) -> list[int]:
    """Return the first group of each block, and the number of groups."""
    begins = [0]
    for group, row in enumerate(bounds[:-1]):
        if row - bounds[begins[-1]] >= BLOCK_ROWS:
            begins.append(group)
    return [*begins, len(bounds) - 1] if len(bounds) > 1 else [0]


def run_index(run: Run, steps: Sequence[StepGroups]) -> dict[str, Any]:
    """Return the facts of all groups of a run, in columns.

    Returns:
        "steps": the steps; "groups": number of groups per step; "blocks": number of groups per block; "ids",
        "excerpts", "sizes": a value per group. With a value per completion: "reward", "weight", "implicit", "length",
        "version", "age"; in "coded": "finish", "source", "reason" (the names, and the number of its name); in "parts":
        each part of the reward; in "episodes": `episode_facts`.
    """
    names = (*_FACTS, "length", "turns", "id", "prompt")
    facts = {name: [value for step in steps for value in step.facts[name]] for name in names}
    coded = {"finish": "finish_reason", "source": "source", "reason": "reason"}
    return {
        "name": run.name,
        "steps": [step.step for step in steps],
        "groups": [len(step.bounds) - 1 for step in steps],
        "blocks": [end - begin for step in steps for begin, end in pairwise(step.blocks)],
        "ids": facts["id"],
        "excerpts": _excerpts(facts["prompt"]),
        "sizes": [end - begin for step in steps for begin, end in pairwise(step.bounds)],
        "reward": [_rounded(value) for value in facts["reward"]],
        "weight": [_rounded(value) for value in facts["weight"]],
        "implicit": [_rounded(value) for value in facts["implicit_reward"]],
        "length": facts["length"],
        "version": facts["version"],
        "age": facts["age"],
        "coded": {name: _coded(facts[column]) for name, column in coded.items()},
        "parts": _parts(facts["reward_parts"]),
        "episodes": episode_facts(facts["turns"]),
    }


def text_blocks(run: Run, groups: StepGroups, pieces: Pieces | None) -> Iterator[dict[str, Any]]:
    """Yield the prompts and columns of the groups of each block, and the texts and turns of their completions.

    Yields:
        "prompts", "columns": per group; "texts": per completion; "turns": per completion what `_turns` returns;
        "episodes": per completion what `shown_turns` returns, or null if it has no turns.
    """
    table = rollout_table(rollout_path(run.path, groups.step), _TEXTS)
    for begin, end in _block_rows(groups):
        firsts = [row for row in groups.bounds[:-1] if begin <= row < end]
        yield {
            "prompts": _taken(table, "prompt", firsts),
            "columns": [
                {name: _cut(str(value), 200) for name, value in json.loads(text).items()}
                for text in _taken(table, "columns", firsts)
            ],
            "texts": table["text"].slice(begin, end - begin).to_pylist(),
            "turns": _turns_of_rows(table.slice(begin, end - begin), pieces),
            "episodes": [
                shown_turns(json.loads(text)) or None for text in table["turns"].slice(begin, end - begin).to_pylist()
            ],
        }


def _turns_of_rows(table: Any, pieces: Pieces | None) -> list[list[int] | None]:
    masks = table["mask"].to_pylist()
    if pieces is None or not any(masks):
        return [None] * len(masks)
    columns = (table["tokens"].to_pylist(), table["text"].to_pylist(), masks)
    return [_turns(pieces, tokens, text, mask) for tokens, text, mask in zip(*columns, strict=True)]


def _turns(pieces: Pieces, tokens: Sequence[int], text: str, mask: Sequence[float] | None) -> list[int] | None:
    """Return the turns of a completion that contains text of others: the model's tokens are the scored ones.

    Returns:
        Lengths of the turns in the text, positive for the model's, negative for the others'. None if a scored token
        never follows one that is not scored, or the tokens have no known place in the text.
    """
    if mask is None or 0 not in mask or not any(mask[list(mask).index(0) :]):
        return None
    lengths = pieces.lengths(tokens, text)
    if lengths is None:
        return None
    runs = groupby(zip(mask, lengths, strict=True), key=lambda item: item[0] > 0)
    return [(1 if own else -1) * sum(length for _, length in run) for own, run in runs]


def token_blocks(run: Run, groups: StepGroups, pieces: Pieces | None) -> Iterator[dict[str, Any]]:
    """Yield the tokens of each block: a list per completion, or null where they are unknown.

    Yields:
        "lengths": the length of each token in the text (`Pieces.lengths`); "logprobs": thousandths of a nat, those
        of the sampler where the trainer has none; "ratios": log-prob minus that of the reference, in the same unit;
        "masks": null where all tokens are scored.
    """
    table = rollout_table(rollout_path(run.path, groups.step), _TOKENS)
    for begin, end in _block_rows(groups):
        yield _token_block(table.slice(begin, end - begin), pieces)


def _token_block(table: Any, pieces: Pieces | None) -> dict[str, Any]:
    own, reference, sampled = (_arrays(table[name]) for name in ("logprobs", "ref_logprobs", "sampler_logprobs"))
    texts = zip(table["tokens"].to_pylist(), table["text"].to_pylist(), strict=True)
    masks = table["mask"].to_pylist()
    return {
        "lengths": [pieces.lengths(tokens, text) if pieces else None for tokens, text in texts],
        "logprobs": _thousandths([a if a is not None else b for a, b in zip(own, sampled, strict=True)]),
        "ratios": _thousandths([_difference(a, b) for a, b in zip(own, reference, strict=True)]),
        "masks": [None if mask is None or all(mask) else [int(value) for value in mask] for mask in masks],
    }


def _arrays(column: Any) -> list[Array | None]:
    """Return a column of lists as arrays, with None where there is no list."""
    lists = column.combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False).astype(np.float64)
    bounds = pairwise(lists.offsets.to_pylist())
    there = lists.is_valid().to_pylist()
    return [values[begin:end] if known else None for known, (begin, end) in zip(there, bounds, strict=True)]


def _block_rows(groups: StepGroups) -> Iterator[tuple[int, int]]:
    for begin, end in pairwise(groups.blocks):
        yield groups.bounds[begin], groups.bounds[end]


def _difference(a: Array | None, b: Array | None) -> Array | None:
    """Return `a` minus `b`, token by token; None if one of them is missing."""
    return None if a is None or b is None or len(a) != len(b) else a - b


def _thousandths(rows: Sequence[Array | None]) -> list[list[int | None] | None]:
    """Return values in thousandths, null where not finite; all rows at once, since a call per row is slow."""
    values = np.concatenate([np.empty(0), *(row for row in rows if row is not None)])
    finite = np.isfinite(values)
    whole = np.rint(1000 * np.clip(np.where(finite, values, 0), -_HUGE, _HUGE)).astype(np.int64)
    numbers: list[int | None] = whole.tolist()
    for at in np.flatnonzero(~finite):
        numbers[at] = None
    rest = iter(numbers)
    return [None if row is None else list(islice(rest, len(row))) for row in rows]


def _rounded(value: float | None) -> float | None:
    """Return a value with five digits, which are enough for a reader; null where there is no finite number."""
    return float(f"{value:.5g}") if is_number(value) else None


def _coded(values: Sequence[str]) -> dict[str, list[Any]]:
    """Return a column that has few different texts as these texts, and the number of the text in each row."""
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return {"names": [_cut(name, 2000) for name in numbers], "codes": codes}


def _parts(texts: Sequence[str]) -> dict[str, list[float | None]]:
    """Return JSON objects as columns. Rows have few different ones, so each is parsed once."""
    read = {text: {name: _rounded(value) for name, value in json.loads(text).items()} for text in dict.fromkeys(texts)}
    names = dict.fromkeys(name for row in read.values() for name in row)
    return {name: [read[text].get(name) for text in texts] for name in names}


def _excerpts(prompts: Sequence[str], limit: int = 100) -> list[str]:
    """Return the beginning of each prompt after the words that all prompts share, such as those of a template."""
    shared = os.path.commonprefix(list(prompts)) if len(set(prompts)) > 1 else ""  # noqa: RUF071 - texts, not paths
    skipped = max(shared.rfind(" "), shared.rfind("\n")) + 1
    return [" ".join(prompt[skipped : skipped + 2 * limit].split())[:limit] for prompt in prompts]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
