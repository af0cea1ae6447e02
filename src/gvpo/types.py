"""The central types: samples, rewards, groups. They are plain frozen values; this module does not import torch.

Problem ──sample──▶ Completion × k ──reward──▶ Group ──▶ the update
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

from gvpo.errors import DataError

Message = Mapping[str, Any]
"""One chat message: `{"role": "user", "content": "..."}`."""

Prompt = str | Sequence[Message]
"""A prompt in a dataset: text, or a list of chat messages."""

FinishReason = Literal["stop", "length", "turns", "context", "environment", "abort"]
"""Reason for the end of a completion:

- `stop`: it ended with a token or a text that ends an answer.
- `length`: it reached the maximum number of tokens, or filled the model's context.
- `turns`: it reached the maximum number of turns.
- `context`: the environment's next text did not fit into the model's context or the maximum number of tokens.
- `environment`: the environment failed, so that the episode could not continue.
- `abort`: the sampling engine gave it up. It is a fragment that the policy did not end, and is never trained on.
"""

FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)

RIGHT = 0.5
"""Value of a reward function above which a completion is correct."""


class FloatSequence(Protocol):
    """Per-token values: a list, a numpy array or a 1-D tensor."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Problem:
    """A prompt with the data that its rewards need.

    Args:
        prompt: Text or chat messages.
        id: Name of the problem in logs, rollouts and the sampling seed; unique in a dataset.
        columns: Other columns of the dataset (`answer`, ...), passed to the rewards by name.
    """

    prompt: Prompt
    id: str
    columns: Mapping[str, Any] = field(default_factory=dict)


TurnOutcome = Literal["ok", "error", "timeout", "died", "lost", "gone", "none"]
"""Outcome of a turn in the environment:

- `ok`: it answered.
- `error`: it raised an error, which it told the policy.
- `timeout`: it gave no answer in time, and the episode continued without this turn.
- `died`: its process ended, and the episode continued without this turn.
- `lost`: it failed, and the episode could not continue.
- `gone`: its process ended because of another episode, and it could not be replayed, so the episode could not continue.
- `none`: it was not asked, because the turn was cut before its end.
"""

ENDINGS: tuple[TurnOutcome, ...] = ("lost", "gone")
"""Outcomes after which an episode cannot continue."""


@dataclass(frozen=True)
class EpisodeTurn:
    """A turn of an episode: what the policy said, and what it heard.

    Args:
        start: Position in the completion of the policy's first token.
        stop: Position after its last token.
        end: Position after the tokens of what it heard, which come next and have mask 0.
        text: Text of the policy, without its end token.
        heard: Messages that it heard; () if the episode ended.
        reward: Reward of the turn; None if it has none.
        outcome: What came of it in the environment.
        detail: Error of the environment in one line; "" without one.
        seconds: Duration of the environment's step.
        metrics: Further numbers of the environment, by name.
    """

    start: int
    stop: int
    end: int
    text: str = ""
    heard: Sequence[Message] = ()
    reward: float | None = None
    outcome: TurnOutcome = "ok"
    detail: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


def stored_turn(fields_of: Mapping[str, Any]) -> EpisodeTurn:
    """Return a turn from the mapping that a file contains, which may have further keys."""
    return EpisodeTurn(**{each.name: fields_of[each.name] for each in fields(EpisodeTurn) if each.name in fields_of})


@dataclass(frozen=True)
class Completion:
    """One sampled answer: a row of the optimizer batch.

    Args:
        tokens: C token ids, including the stop token.
        reward: Scalar reward; None if it has none (not yet scored, or its reward failed).
        mask: C values, 1 on scored tokens; None scores all of them. Tool output is 0.
        ref_logprobs: C log-probs (nats) under the reference pi_theta'.
        old_logprobs: C log-probs (nats) that ratios are relative to: those of the policy at the start of the step, or
            those that the sampler recorded.
        sampler_logprobs: C log-probs (nats) under the distribution that the sampler drew from, after temperature and
            truncation.
        experts: Experts of each token in a mixture of experts, from `gvpo.score(..., routing="watch")`.
        extras: Further keywords of an objective: a scalar, a vector or a list as long as tokens.
        text: The decoded completion.
        finish_reason: Reason for its end.
        source: Origin: "live", "history", "logged", "expert", "demonstration", a file's name, ...
        version: Number of completed training steps of the policy that sampled it; None if no policy of the run did. If
            several policies sampled it, that of the oldest.
        versions: C versions, one per token, of a row that was sampled while the policy changed; None if all of its
            tokens have the same.
        turns: Turns of an episode in order; () if the row is one answer.
        prompt: Token ids of the prompt with what the environment added to it; None if it added nothing.
        opening: Text that the environment added to the prompt; "" if it added nothing.

    Raises:
        DataError: If per-token values are not as long as tokens.
    """

    tokens: Sequence[int]
    reward: float | None = None
    mask: FloatSequence | None = None
    ref_logprobs: FloatSequence | None = None
    old_logprobs: FloatSequence | None = None
    sampler_logprobs: FloatSequence | None = None
    experts: Any = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None
    finish_reason: FinishReason = "stop"
    source: str = "live"
    version: int | None = None
    versions: Sequence[int] | None = None
    turns: Sequence[EpisodeTurn] = ()
    prompt: Sequence[int] | None = None
    opening: str = ""

    def __post_init__(self) -> None:
        for name in ("mask", "ref_logprobs", "old_logprobs", "sampler_logprobs", "versions"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise DataError(
                    f"Completion.{name} has {len(values)} values for {len(self.tokens)} tokens; give one per token"
                )

    def age(self, step: int) -> int | None:
        """Return the number of training steps between the policy that sampled it and the one that step `step` trains.

        Returns:
            0 in the step that sampled it; None without a version.
        """
        return None if self.version is None else step - 1 - self.version


@dataclass(frozen=True)
class Group:
    """A prompt and its completions, which a group objective compares.

    Args:
        prompt: Token ids of the prompt, at least one.
        completions: Rows, any number of them; groups of one batch may differ in size.
        id: Name of the group in logs and reports.
        columns: Columns of the problem, kept for reports.

    Raises:
        DataError: If the prompt is empty.
    """

    prompt: Sequence[int]
    completions: Sequence[Completion]
    id: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.prompt) == 0:
            raise DataError(
                f"group {self.id!r} has an empty prompt; a completion's first token needs at least one token before it"
            )


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse answer: an input format that is converted into a Group before training."""

    prompt: Prompt
    chosen: str
    rejected: str
    id: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Result of the rewards for one completion.

    Args:
        reward: Weighted sum, or None if the row has no usable reward.
        parts: Value of each reward function by name; None if it abstained or failed.
        reason: Reason for a missing reward (timeout, exception, nan, ...). With a reward it begins with "paid worst"
            and describes what the completion did to a function, which returned its lowest reward; "" otherwise.
    """

    reward: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    reason: str = ""


def is_right(part: float | None) -> bool:
    """Return whether the value of the deciding reward function counts a completion as correct."""
    return part is not None and part > RIGHT
