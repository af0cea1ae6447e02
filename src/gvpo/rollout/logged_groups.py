"""Logged groups: rows as groups to train on.

    rows (a file, a dataset, a list) ──data.read_groups──▶ GroupRow ──tokens──▶ LoggedGroup

This module depends on tokenizers but not on objectives, models or steps. `gvpo.data.group_rows` parses the rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gvpo.config import TrainConfig
from gvpo.data import GroupRow, WrittenCompletion, numbered, read_groups
from gvpo.errors import DataError
from gvpo.rollout.answer_ends import ended
from gvpo.rollout.problems import answer_ending, encode, encode_answer
from gvpo.types import Completion, Group, Problem, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.model.endings import Ending

NO_REWARD = "the data has no reward for it"
"""Reason of a row whose reward is null; such a row has not failed and does not stop the run."""


@dataclass(frozen=True)
class LoggedGroup:
    """A row as a group.

    Args:
        group: Every completion; its reward is None if the row has none.
        verdicts: One verdict per completion, with parts if the row names them.
        problem: Prompt in its original form, and the other columns of the row.
    """

    group: Group
    verdicts: Sequence[Verdict]
    problem: Problem

    def named(self, name: str) -> "LoggedGroup":
        """Return the same group under another name, for a step that contains it twice."""
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
    rewarded: bool = True,
) -> list[LoggedGroup]:
    """Return rows as groups, in order.

    Args:
        config: Settings that encode prompts as in online training.
        tokenizer: Tokenizer of the policy.
        records: Rows as `gvpo.data.read_groups` reads them. A text completion gets the end token unless its finish
            reason is "length". Tokens after the first end token of a completion are ignored with a warning.
        source: Source of completions whose row does not name one.
        model: Policy, whose generation config may define how answers end.
        rewarded: Whether `rewards` are required.

    Raises:
        DataError: If a row is not a group; the message contains its number, counted from 1.
    """
    if not records:
        raise DataError("there are no groups to train on; the dataset is empty")
    end = answer_ending(config, tokenizer, model)
    read = [
        numbered(number, _logged, config, tokenizer, row, source, end)
        for number, row in enumerate(read_groups(records, rewarded=rewarded), start=1)
    ]
    read = [logged for logged in read if logged.group.completions]
    kept = ended(tokenizer, [logged.group.completions for logged in read], {*end.stops, *config.stop_token_ids})
    return [
        dataclasses.replace(logged, group=dataclasses.replace(logged.group, completions=completions))
        for logged, completions in zip(read, kept, strict=True)
    ]


def _logged(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", row: GroupRow, source: str, end: "Ending"
) -> LoggedGroup:
    problem, ids = row.problem, row.prompt_tokens
    if ids is None:
        ids = encode(config, tokenizer, [problem])[0].prompt
    else:
        problem = dataclasses.replace(problem, prompt=str(tokenizer.decode(list(ids))))  # as the model reads it
    written_rows = [written for written in row.completions if not _never_began(written)]
    completions = [_completion(tokenizer, written, source, end) for written in written_rows]
    verdicts = [
        Verdict(written.reward, written.parts, "" if written.reward is not None else NO_REWARD)
        for written in written_rows
    ]
    return LoggedGroup(Group(ids, completions, id=problem.id, columns=problem.columns), verdicts, problem)


def _never_began(written: WrittenCompletion) -> bool:
    """Return whether a completion is an episode that could not begin, which has no tokens."""
    return bool(written.turns) and not written.tokens and not written.text


def _completion(
    tokenizer: "PreTrainedTokenizerBase", written: WrittenCompletion, source: str, end: "Ending"
) -> Completion:
    tokens, text = written.tokens, written.text
    if tokens is not None:
        text = str(tokenizer.decode(list(tokens), skip_special_tokens=True))
    else:
        tokens = encode_answer(tokenizer, text or "", end if written.finish_reason == "stop" else None)
    if not tokens:
        raise DataError("a completion has no tokens; add text, or remove it and its reward")
    return Completion(
        tokens,
        written.reward,
        mask=written.mask,
        sampler_logprobs=written.sampler_logprobs,
        text=text,
        finish_reason=written.finish_reason,
        source=written.source or source,
        turns=written.turns,
    )
