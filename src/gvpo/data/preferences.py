"""Rows of preference data in their usual forms, as groups: a prompt, its answers, and a score per answer.

prompt, chosen, rejected                  text, messages, or (without a prompt) whole conversations
... score_chosen, score_rejected          the same with scores
prompt, completions, scores | ranks       k answers
instruction, completions: [{response, overall_score}, ...]      UltraFeedback's form
                     │
                     ▼
prompt, completions, rewards              a logged group of docs/guides/offline.md
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gvpo.data.records import Record
from gvpo.errors import DataError, type_of
from gvpo.messages import plain_messages
from gvpo.types import PreferencePair

PAIR = ("chosen", "rejected")
SCORES = ("rewards", "scores", "ranks")
"""Columns with one value per completion. The reward of a rank is its negative, so that rank 1 is the best."""


def is_comparison(row: object) -> bool:
    """Return whether a dataset row contains several comparable answers to a prompt: a pair, or a scored group."""
    if is_pair(row):
        return True
    if not isinstance(row, Mapping) or "completions" not in row:
        return False
    return any(name in row for name in SCORES) or _has_responses(row)


def as_group(row: Record | PreferencePair) -> dict[str, Any]:
    """Convert a row to `prompt`, `completions`, `rewards` and its other columns.

    A pair without scores has the rewards 1 and 0.

    Args:
        row: A row in one of the forms above; a group is returned unchanged.

    Raises:
        DataError: If the row is a single labeled answer, the prompt of a pair cannot be found, or scores do not fit.
    """
    if isinstance(row, PreferencePair):
        row = _without_empty_id({**row.columns, **{name: getattr(row, name) for name in ("prompt", *PAIR, "id")}})
    if not isinstance(row, Mapping):
        raise DataError(f"it is {type_of(row)}; rows are objects with a `prompt` and its answers")
    if is_pair(row):
        return _from_pair(row)
    if _has_responses(row):
        return _from_responses(row)
    if "label" in row and "completions" not in row:
        raise DataError(
            "it has one answer and a `label`, and comparing needs two answers to a prompt; give `chosen` and `rejected`"
        )
    return _from_scores(row)


def per_completion(row: Record, name: str, count: int) -> list[Any]:
    """Return the values of a group's column, one per completion, or `count` times None if the column is absent.

    Raises:
        DataError: If the number of values is not `count`.
    """
    values = row.get(name)
    if values is None:
        return [None] * count
    if not isinstance(values, list | tuple) or len(values) != count:
        have = f"{len(values)} values" if isinstance(values, list | tuple) else f"{type_of(values)}"
        raise DataError(f"`{name}` has {have} for {count} completions; give a list with one for each")
    return list(values)


def is_pair(row: object) -> bool:
    """Return whether a row contains a better and a worse answer."""
    return isinstance(row, PreferencePair) or (isinstance(row, Mapping) and all(name in row for name in PAIR))


def with_prompt(row: Record | PreferencePair) -> Record:
    """Return a pair or a conversation as a row with `prompt` and `completion`, and any other row unchanged.

    The completion of a pair is its better answer; the completion of a conversation (`messages`) is its last message.

    Raises:
        DataError: See `as_group`; also if the last message of a conversation is not the assistant's.
    """
    if isinstance(row, PreferencePair) or is_pair(row):
        group = as_group(row)
        others = {name: value for name, value in group.items() if name not in ("completions", "rewards")}
        return {**others, "completion": group["completions"][0]}
    if isinstance(row, Mapping) and "messages" in row and "prompt" not in row:
        return _from_conversation(row)
    return row


def _from_conversation(row: Record) -> dict[str, Any]:
    messages = _messages(row, "messages")
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"the last of its `messages` is of the role {messages[-1]['role']!r}, and the assistant's answer comes "
            "last; add one, or, where they are the prompt, set data.prompt_column to 'messages'"
        )
    if len(messages) == 1:
        raise DataError("its `messages` contain only an answer; add the question before it")
    others = {name: value for name, value in row.items() if name not in ("messages", "completion")}
    return {**others, "prompt": messages[:-1], "completion": messages[-1:]}


def _without_empty_id(row: dict[str, Any]) -> dict[str, Any]:
    return row if row["id"] else {name: value for name, value in row.items() if name != "id"}


def _from_pair(row: Record) -> dict[str, Any]:
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        if "prompt" not in row:
            raise DataError("`chosen` and `rejected` are text and there is no `prompt`; give the prompt by itself")
        prompt, answers = row["prompt"], [row["chosen"], row["rejected"]]
    else:
        prompt, answers = _from_messages(row)
    others = {name: value for name, value in row.items() if name not in (*PAIR, "score_chosen", "score_rejected")}
    return {**others, "prompt": prompt, "completions": answers, "rewards": _pair_scores(row)}


def _from_messages(row: Record) -> tuple[Any, list[Any]]:
    """Return the prompt and two answers of one message each.

    Answers may be whole conversations; the prompt is then their common beginning.
    """
    chosen, rejected = (_messages(row, name) for name in PAIR)
    if len(chosen) == len(rejected) == 1:
        if "prompt" not in row:
            raise DataError("`chosen` and `rejected` contain only the answer and there is no `prompt`; add one")
        return row["prompt"], [chosen, rejected]
    shared = min(len(chosen), len(rejected)) - 1
    if chosen[:shared] != rejected[:shared] or len(chosen) != len(rejected):
        raise DataError(
            "`chosen` and `rejected` are conversations that differ before their last message; keep the shared part and "
            "one answer each"
        )
    return chosen[:shared], [chosen[shared:], rejected[shared:]]


def _messages(row: Record, name: str) -> list[dict[str, Any]]:
    value = row[name]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        what = "a list of messages" if name == "messages" else "both answers as text, or both as messages"
        raise DataError(f"`{name}` is {str(value)[:40]!r}; give {what}")
    try:
        return plain_messages(value)
    except DataError as error:
        raise DataError(f"`{name}`: {error}") from None


def _pair_scores(row: Record) -> list[float]:
    names = ("score_chosen", "score_rejected")
    given = [row.get(name) for name in names]
    if given == [None, None]:
        return [1.0, 0.0]
    for name, value in zip(names, given, strict=True):
        if not isinstance(value, int | float):
            raise DataError(f"`{name}` is {str(value)[:40]!r}; give a number for each of the two answers, or neither")
    chosen, rejected = (float(value) for value in given if value is not None)
    if chosen < rejected:
        raise DataError(f"`score_chosen` {chosen:g} is below `score_rejected` {rejected:g}; swap the answers")
    return [chosen, rejected]


def _has_responses(row: Record) -> bool:
    answers = row.get("completions")
    return isinstance(answers, list | tuple) and bool(answers) and all(_is_response(answer) for answer in answers)


def _is_response(answer: Any) -> bool:
    return isinstance(answer, Mapping) and "response" in answer


def _from_responses(row: Record) -> dict[str, Any]:
    """Convert a row of UltraFeedback, whose completions are objects with a text, a score and annotations."""
    answers = row["completions"]
    prompt = row["prompt"] if "prompt" in row else row.get("instruction")
    others = {name: value for name, value in row.items() if name not in ("instruction", "completions")}
    scores = [answer.get("overall_score") for answer in answers]
    sources = {"sources": [answer.get("model") for answer in answers]}
    return {
        **others,
        **sources,
        "prompt": prompt,
        "completions": [answer["response"] for answer in answers],
        "rewards": scores,
    }


def _from_scores(row: Record) -> dict[str, Any]:
    given = [name for name in SCORES if row.get(name) is not None]
    if len(given) != 1 or given == ["rewards"]:
        if len(given) > 1:
            raise DataError(f"it has `{given[0]}` and `{given[1]}`; keep one of them")
        return dict(row)
    (name,) = given
    values = row[name]
    if name == "ranks" and isinstance(values, list | tuple):
        values = [-value if isinstance(value, int | float) else value for value in values]
    others = {key: value for key, value in row.items() if key != name}
    return {**others, "rewards": values}
