"""Rows with several completions of a prompt, as training, probes, evaluation and selection read and write them.

    file, run or data set ──load_records──▶ records ──read_groups──▶ GroupRow
    Group, Verdicts, Problem ──group_record──▶ record ──write_groups──▶ file

docs/guides/offline.md describes the columns. This module does not depend on tokenizers, so a prompt or a completion is
text, token IDs, or both.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gvpo import runfiles
from gvpo.data.preferences import as_group, per_completion
from gvpo.data.records import are_token_ids, numbered, problems_from_records
from gvpo.data.run_groups import TURNS
from gvpo.errors import DataError
from gvpo.messages import answer_text, unicode_text
from gvpo.resumable import json_lines
from gvpo.types import (
    FINISH_REASONS,
    EpisodeTurn,
    FinishReason,
    FloatSequence,
    Group,
    Problem,
    Verdict,
    stored_turn,
)

LOG_ALLOWED = "log_allowed"
"""Column of log P(allowed) per completion, from a sampler with an exclusion; -inf is null in the file."""

PER_COMPLETION = (
    *("completions", "texts", "rewards", "reward_parts", "reasons", "finish_reasons", "sources", "sampler_logprobs"),
    *("masks", TURNS, LOG_ALLOWED),
)
"""Columns of a group that have one value per completion."""

OWN = frozenset({"id", "prompt", *PER_COMPLETION})
"""Columns with a meaning here; all others are kept with the group, for reports."""

PROMPT_TEXT = "prompt_text"
"""Column with the text of a prompt that is token IDs; an ordinary column if the prompt is text."""


@dataclass(frozen=True)
class WrittenCompletion:
    """A completion of a row; C is its number of tokens.

    Args:
        text: Its text; None if the row has only token IDs.
        tokens: Its C token IDs; None if the row has text.
        reward: Its reward; None if it has no reward.
        parts: Value of each reward function, by name.
        finish_reason: Reason why it ended.
        source: Its author; None if the row does not name one.
        sampler_logprobs: C log-probs (nats) from the sampler; None if the row has none.
        mask: C values, 0 on tokens that are not trained on, such as a tool's output; None trains on all of them.
        turns: Turns of an episode; () if it is one answer.
    """

    text: str | None
    tokens: Sequence[int] | None = None
    reward: float | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    finish_reason: FinishReason = "stop"
    source: str | None = None
    sampler_logprobs: Sequence[float] | None = None
    mask: Sequence[float] | None = None
    turns: Sequence[EpisodeTurn] = ()


@dataclass(frozen=True)
class GroupRow:
    """A prompt and its completions, as written in a row.

    Args:
        problem: The prompt, the ID, and the columns that are not in `OWN`. The prompt is "" if the row has token IDs
            and no `prompt_text`.
        completions: The completions, at least one.
        prompt_tokens: The prompt's token IDs; None if the row has text.
    """

    problem: Problem
    completions: Sequence[WrittenCompletion]
    prompt_tokens: Sequence[int] | None = None


def read_groups(records: Sequence[Any], *, rewarded: bool = False) -> list[GroupRow]:
    """Return rows as groups, in order.

    Args:
        records: Rows of any form that `gvpo.data.as_group` accepts: groups, pairs, scores, ranks. A completion is text,
            the assistant's message (by itself, in a list, or after the prompt's messages) or a list of token IDs.
        rewarded: Whether `rewards` are required.

    Raises:
        DataError: If a row has another form; the message names its number, counted from 1.
    """
    grouped = [numbered(number, as_group, record) for number, record in enumerate(records, start=1)]
    readable = [numbered(number, _with_readable_prompt, record) for number, record in enumerate(grouped, start=1)]
    problems = problems_from_records(readable)
    return [
        numbered(number, _group_row, problem, record, rewarded)
        for number, (problem, record) in enumerate(zip(problems, grouped, strict=True), start=1)
    ]


def completion_text(completion: WrittenCompletion) -> str:
    """Return the text of a completion.

    Raises:
        DataError: If the row has only its token IDs.
    """
    if completion.text is None:
        raise DataError(
            f"a completion is {str(completion.tokens)[:40]!r}; give text, a message of the assistant, or token ids "
            "together with the column `texts`"
        )
    return completion.text


def group_record(
    group: Group, verdicts: Sequence[Verdict], problem: Problem, *, logprobs: bool = True
) -> dict[str, Any]:
    """Return a group as a row that `read_groups` accepts: token IDs as sampled, along with readable texts.

    Args:
        group: The prompt's id and its completions.
        verdicts: One verdict per completion.
        problem: The original prompt and its columns.
        logprobs: Whether to keep the sampler's log-probs, which are most of a file's bytes.
    """
    rows = group.completions
    record = {
        **problem.columns,
        "id": group.id,
        **_prompt(group, problem),
        "completions": [list(row.tokens) or row.text for row in rows],
        "texts": [row.text for row in rows],
        "rewards": [verdict.reward for verdict in verdicts],
        "reward_parts": [dict(verdict.parts) for verdict in verdicts],
        "reasons": [verdict.reason for verdict in verdicts],
        "finish_reasons": [row.finish_reason for row in rows],
        "sources": [row.source for row in rows],
    }
    if any(row.mask is not None for row in rows):
        record["masks"] = [_values(row.mask) for row in rows]
    if any(row.turns for row in rows):
        record[TURNS] = [[dataclasses.asdict(turn) for turn in row.turns] for row in rows]
    if any(LOG_ALLOWED in row.extras for row in rows):
        record[LOG_ALLOWED] = [row.extras.get(LOG_ALLOWED) for row in rows]
    return {**record, "sampler_logprobs": [_values(row.sampler_logprobs) for row in rows]} if logprobs else record


def _prompt(group: Group, problem: Problem) -> dict[str, Any]:
    """Return a group's prompt; that of episodes as token IDs, because an environment may have added to it."""
    if not any(row.turns for row in group.completions):
        return {"prompt": problem.prompt}
    said = problem.prompt
    text = said if isinstance(said, str) else "\n".join(str(message["content"]) for message in said)
    opening = next((row.opening for row in group.completions if row.opening), "")
    return {"prompt": list(group.prompt), PROMPT_TEXT: text + opening}


def write_groups(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically.

    Raises:
        RunError: If the file cannot be written.
    """
    runfiles.write_text(path, json_lines(records))


def _values(values: FloatSequence | None) -> list[float] | None:
    return None if values is None else [float(values[index]) for index in range(len(values))]


def _with_readable_prompt(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row, where a placeholder that `problems_from_records` accepts replaces a prompt of token IDs."""
    if not are_token_ids(record.get("prompt")):
        return record
    _checked_ids(record["prompt"])
    return {**record, "prompt": _PLACEHOLDER}


_PLACEHOLDER = "token ids"


def _group_row(problem: Problem, record: Mapping[str, Any], rewarded: bool) -> GroupRow:
    others = {name: value for name, value in problem.columns.items() if name not in OWN}
    if not are_token_ids(record["prompt"]):
        completions = _completions(record, problem.prompt, rewarded)
        return GroupRow(Problem(problem.prompt, problem.id, others), completions)
    text = others.pop(PROMPT_TEXT, None)
    prompt = unicode_text(text) if isinstance(text, str) else ""
    completions = _completions(record, prompt, rewarded)
    return GroupRow(Problem(prompt, problem.id, others), completions, list(record["prompt"]))


def _completions(record: Mapping[str, Any], prompt: Any, rewarded: bool) -> list[WrittenCompletion]:
    for name in ("completions", "rewards") if rewarded else ("completions",):
        if not isinstance(record.get(name), list | tuple):
            raise DataError(f"there is no list `{name}`; a logged group has `prompt`, `completions` and `rewards`")
    count = len(record["completions"])
    if count == 0:
        raise DataError("`completions` is empty; give at least two, or remove the row")
    with_ids = any(map(are_token_ids, record["completions"]))
    texts = per_completion(record, "texts", count) if with_ids else [None] * count
    parts = _each_is(record, "reward_parts", count, Mapping, '`reward_parts` are objects, {"right": 1}')
    logprobs = _each_is(
        record, "sampler_logprobs", count, Sequence, "`sampler_logprobs` are lists, one log-prob per token"
    )
    masks = _each_is(record, "masks", count, Sequence, "`masks` are lists, one number per token")
    turns = _each_is(record, TURNS, count, Sequence, "`episode_turns` are lists of turns")
    others = [per_completion(record, name, count) for name in ("completions", "rewards", "finish_reasons", "sources")]
    return [
        WrittenCompletion(
            *_text_and_ids(written, text, prompt),
            reward=_reward(reward),
            parts=dict(part or {}),
            finish_reason=_finish_reason(reason),
            source=None if not source else str(source),
            sampler_logprobs=values,
            mask=mask,
            turns=tuple(stored_turn(turn) for turn in said or ()),
        )
        for written, reward, reason, source, text, part, values, mask, said in zip(
            *others, texts, parts, logprobs, masks, turns, strict=True
        )
    ]


def _each_is(record: Mapping[str, Any], name: str, count: int, kind: type, expected: str) -> list[Any]:
    values = per_completion(record, name, count)
    for value in values:
        if value is not None and not isinstance(value, kind):
            raise DataError(f"{expected}; one is {str(value)[:40]!r}")
    return values


def _text_and_ids(written: Any, text: Any, prompt: Any) -> tuple[str | None, list[int] | None]:
    if are_token_ids(written):
        return (unicode_text(text) if isinstance(text, str) else None), _checked_ids(written)
    return answer_text(written, prompt), None


def _checked_ids(ids: Sequence[int]) -> list[int]:
    if min(ids) < 0:
        raise DataError(f"token id {min(ids)} is negative; token ids begin at 0")
    return list(ids)


def _finish_reason(value: Any) -> FinishReason:
    if value is None:
        return "stop"
    for reason in FINISH_REASONS:
        if value == reason:
            return reason
    raise DataError(f"a finish reason is {value!r}; write 'stop', or 'length' for a truncated completion")


def _reward(value: Any) -> float | None:
    """Return a reward as a number, or None for null or NaN, which data frames write for null."""
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise DataError(
            f"a reward is {str(value)[:40]!r} ({type(value).__name__}); give numbers, null if there is none"
        )
    if math.isinf(value):
        raise DataError("a reward is infinite; give finite numbers, null if there is none")
    return None if math.isnan(value) else float(value)
