"""Rows of a dataset that do not fit: prompts without room for a completion, and answers that are too long.

    data.overlong_prompts   error (refuse to start), drop
    data.overlong_answers   drop, cut (their ends), error

A warning counts the dropped and the cut ones. Of a logged group only the long answers are dropped, and the group itself
if it has nothing left to compare.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gvpo import notices
from gvpo.config import TrainConfig
from gvpo.errors import DataError
from gvpo.model.model import context_length
from gvpo.rollout.answer_ends import first_tokens
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fitting_prompts(
    config: TrainConfig, model: "PreTrainedModel", items: Sequence[EncodedProblem]
) -> list[EncodedProblem]:
    """Return the problems whose prompts leave room for a completion in the model's context.

    Raises:
        DataError: If `data.overlong_prompts` is "error" and some leave none, or if all of them leave none.
    """
    context = context_length(model)
    long = [item for item in items if context is not None and len(item.prompt) >= context]
    if not long:
        return list(items)
    found = (
        f"the model's context is {context} tokens and {len(long)} of {len(items)} prompts leave no room for a "
        f"completion; the first is {long[0].problem.id!r} with {len(long[0].prompt)}"
    )
    if config.overlong_prompts == "error" or len(long) == len(items):
        raise DataError(f"{found}: shorten or drop them, or set data.overlong_prompts=drop")
    notices.warn(f"{found}; such prompts are left out (data.overlong_prompts)")
    return [item for item in items if len(item.prompt) < (context or 0)]


def fitting_answers(
    config: TrainConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[tuple[EncodedProblem, Completion]],
) -> list[tuple[EncodedProblem, Completion]]:
    """Return the written answers that fit after their prompts; longer ones are cut or dropped.

    Raises:
        DataError: If `data.overlong_answers` is "error" and some do not fit, or if all would be dropped.
    """
    rows = [_Row(item.problem.id, len(item.prompt), answer) for item, answer in items]
    kept = _fitting(rows, config, model, tokenizer)
    return [(item, answer) for (item, _), answer in zip(items, kept, strict=True) if answer is not None]


def fitting_groups(
    config: TrainConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    groups: Sequence[LoggedGroup],
    *,
    at_least: int = 2,
) -> list[LoggedGroup]:
    """Return the groups with the answers that fit after their prompts; longer ones are cut or dropped.

    A group that is left with fewer than `at_least` answers is dropped, unless it had fewer before.

    Raises:
        DataError: If `data.overlong_answers` is "error" and some do not fit, or if all would be dropped.
    """
    rows = [
        _Row(logged.group.id, len(logged.group.prompt), row) for logged in groups for row in logged.group.completions
    ]
    answers = iter(_fitting(rows, config, model, tokenizer))
    shorter = [(logged, _only(logged, [next(answers) for _ in logged.group.completions])) for logged in groups]
    return [new for old, new in shorter if len(new.verdicts) >= min(at_least, len(old.verdicts))]


@dataclass(frozen=True)
class _Row:
    """An answer, and the name and the number of tokens of its prompt."""

    name: str
    prompt: int
    answer: Completion

    @property
    def tokens(self) -> int:
        return self.prompt + len(self.answer.tokens)


def _fitting(
    rows: Sequence[_Row], config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> list[Completion | None]:
    """Return each answer, perhaps cut, or None if it is dropped."""
    known = [most for most in (context_length(model), config.max_row_tokens) if most is not None]
    if not known or not (long := [row for row in rows if row.tokens > min(known)]):
        return [row.answer for row in rows]
    most = min(known)
    limit = "data.max_row_tokens" if most == config.max_row_tokens else "the model's context"
    found = (
        f"{len(long)} of {len(rows)} answers have more than {most} tokens with their prompts "
        f"({limit}); the first is that of {long[0].name!r} with {long[0].tokens}"
    )
    if config.overlong_answers == "error":
        raise DataError(f"{found}: shorten these answers, or remove their rows")
    kept = [_shortened(row, most, config.overlong_answers == "cut", tokenizer) for row in rows]
    dropped = kept.count(None)
    if dropped == len(rows):
        raise DataError(f"{found}; nothing is left to train on: shorten them")
    notices.warn(f"{found}; cut: {len(long) - dropped}, left out: {dropped} (data.overlong_answers)")
    return kept


def _shortened(row: _Row, most: int, cut: bool, tokenizer: "PreTrainedTokenizerBase") -> Completion | None:
    """Return an answer that fits, else its first tokens as a completion without an end, or None."""
    answer, room = row.answer, most - row.prompt
    if row.tokens <= most:
        return answer
    if not cut or room < 1:
        return None
    return first_tokens(tokenizer, answer, room, "length")


def _only(logged: LoggedGroup, answers: Sequence[Completion | None]) -> LoggedGroup:
    """Return a group with its answers replaced, without those that are None."""
    kept = [(answer, verdict) for answer, verdict in zip(answers, logged.verdicts, strict=True) if answer is not None]
    group = dataclasses.replace(logged.group, completions=[answer for answer, _ in kept])
    return dataclasses.replace(logged, group=group, verdicts=[verdict for _, verdict in kept])
