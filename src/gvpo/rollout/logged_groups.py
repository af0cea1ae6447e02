"""Logged groups: rows `{"prompt", "completions", "rewards"}` as groups to train on.

rows (a file, a data set, a list) ──logged_groups──▶ LoggedGroup          Rollout ──group_file.records──▶ rows

Knows the form of the rows (docs/guides/offline.md), and has preferences (docs/guides/preferences.md) made into it;
nothing of objectives, models or steps.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gvpo.config import TrainConfig
from gvpo.data import as_group, per_completion, problems_from_records
from gvpo.errors import DataError
from gvpo.messages import answer_text
from gvpo.rollout.answer_ends import ended
from gvpo.rollout.problems import answer_ending, encode, encode_answer, numbered
from gvpo.types import Completion, FinishReason, Group, Problem, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.model.endings import Ending

T = TypeVar("T")

NO_REWARD = "the data has no reward for it"
"""The reason of a row whose reward is null: not a failure, and no cause to stop."""

REQUIRED = ("completions", "rewards")
OWN = frozenset(
    {"prompt", "id", *REQUIRED, "sources", "finish_reasons", "sampler_logprobs", "reward_parts", "reasons", "texts"}
    | {"log_allowed"}
)
"""Columns that mean something here; all others are kept with the group, for reports."""


@dataclass(frozen=True)
class LoggedGroup:
    """A row as a group.

    Args:
        group: every completion; reward None where the row has none.
        verdicts: one a completion; parts where the row names them.
        problem: its prompt as it was written, and its other columns.
    """

    group: Group
    verdicts: Sequence[Verdict]
    problem: Problem

    def named(self, name: str) -> "LoggedGroup":
        """The same under another name, for a step that has it twice."""
        return (
            self if name == self.group.id else dataclasses.replace(self, group=dataclasses.replace(self.group, id=name))
        )


def logged_groups(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    records: Sequence[Mapping[str, Any]],
    *,
    source: str,
    model: "PreTrainedModel | None" = None,
) -> list[LoggedGroup]:
    """Rows as groups, in order.

    Args:
        config: how prompts become tokens, as online.
        tokenizer: of the policy.
        records: rows, groups or pairs (`gvpo.data.as_group`); a prompt and each completion is text, messages or token
            ids. A text completion gets the end token, unless its finish reason is "length". What comes after the
            first end token of a completion is left out, with a warning.
        source: of completions whose row does not say.
        model: the policy, whose generation config may say how answers end.

    Raises:
        DataError: a row that is not a group; the message names its number, counted from 1.
    """
    if not records:
        raise DataError("there are no groups to train on; the data set is empty")
    grouped = [numbered(number, as_group, record) for number, record in enumerate(records, start=1)]
    readable = [
        numbered(number, _with_readable_prompt, tokenizer, record) for number, record in enumerate(grouped, start=1)
    ]
    rows = zip(grouped, problems_from_records(readable), strict=True)
    end = answer_ending(config, tokenizer, model)
    read = [
        numbered(number, _logged, config, tokenizer, record, problem, source, end)
        for number, (record, problem) in enumerate(rows, start=1)
    ]
    kept = ended(tokenizer, [logged.group.completions for logged in read], {*end.stops, *config.stop_token_ids})
    return [
        dataclasses.replace(logged, group=dataclasses.replace(logged.group, completions=completions))
        for logged, completions in zip(read, kept, strict=True)
    ]


def _logged(
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    record: Mapping[str, Any],
    problem: Problem,
    source: str,
    end: "Ending",
) -> LoggedGroup:
    written = record["prompt"]
    prompt = _checked_ids(written) if _are_ids(written) else encode(config, tokenizer, [problem])[0].prompt
    rows = _completions(tokenizer, record, source, end)
    own = {name: value for name, value in problem.columns.items() if name not in OWN}
    parts = _each_is(
        per_completion(record, "reward_parts", len(rows)), Mapping, '`reward_parts` are objects, {"right": 1}'
    )
    verdicts = [
        Verdict(row.reward, dict(part or {}), "" if row.reward is not None else NO_REWARD)
        for row, part in zip(rows, parts, strict=True)
    ]
    return LoggedGroup(
        Group(prompt, rows, id=problem.id, columns=own), verdicts, Problem(problem.prompt, problem.id, own)
    )


def _with_readable_prompt(tokenizer: "PreTrainedTokenizerBase", record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with a prompt of token ids as text, for people; the ids are what is trained on."""
    if not _are_ids(record.get("prompt")):
        return record
    return {**record, "prompt": str(tokenizer.decode(_checked_ids(record["prompt"])))}


def _completions(
    tokenizer: "PreTrainedTokenizerBase", record: Mapping[str, Any], source: str, end: "Ending"
) -> list[Completion]:
    for name in REQUIRED:
        if not isinstance(record.get(name), list | tuple):
            raise DataError(f"there is no list `{name}`; a logged group has `prompt`, `completions` and `rewards`")
    count = len(record["completions"])
    if count == 0:
        raise DataError("`completions` is empty; give at least two, or remove the row")
    columns = [
        per_completion(record, name, count)
        for name in ("completions", "rewards", "sources", "finish_reasons", "sampler_logprobs")
    ]
    _each_is(columns[-1], Sequence, "`sampler_logprobs` are lists, one log-prob a token")
    return [
        _completion(tokenizer, written, reward, named or source, reason, logprobs, end)
        for written, reward, named, reason, logprobs in zip(*columns, strict=True)
    ]


def _each_is(values: list[Any], kind: type, expected: str) -> list[Any]:
    for value in values:
        if value is not None and not isinstance(value, kind):
            raise DataError(f"{expected}; one is {str(value)[:40]!r}")
    return values


def _completion(
    tokenizer: "PreTrainedTokenizerBase",
    written: Any,
    reward: Any,
    source: Any,
    reason: Any,
    logprobs: Any,
    end: "Ending",
) -> Completion:
    finish = _finish_reason(reason)
    if _are_ids(written):
        tokens = _checked_ids(written)
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    else:
        text = answer_text(written)
        tokens = encode_answer(tokenizer, text, end if finish == "stop" else None)
    if not tokens:
        raise DataError("a completion has no tokens; give it some text, or remove it and its reward")
    return Completion(
        tokens,
        _reward(reward),
        sampler_logprobs=logprobs,
        text=text,
        finish_reason=finish,
        source=str(source),
    )


def _finish_reason(value: Any) -> FinishReason:
    if value is None or value == "stop":
        return "stop"
    if value == "length":
        return "length"
    raise DataError(f"a finish reason is {value!r}; write 'stop', or 'length' for a completion that was cut")


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(type(item) is int for item in value)


def _checked_ids(ids: Sequence[int]) -> list[int]:
    if min(ids) < 0:
        raise DataError(f"token id {min(ids)} is negative; token ids begin at 0")
    return list(ids)


def _reward(value: Any) -> float | None:
    """A reward as a number. Null, or NaN, as which data frames write null, is none."""
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise DataError(
            f"a reward is {str(value)[:40]!r} ({type(value).__name__}); give numbers, null where there is none"
        )
    if math.isinf(value):
        raise DataError("a reward is infinite; give finite numbers, null where there is none")
    return None if math.isnan(value) else float(value)
