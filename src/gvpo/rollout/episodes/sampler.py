"""Episodes as completions: a sampler that lets the policy and an environment speak in turns.

 reset ─▶ prompt + opening
┌──────▶ the policy speaks           its tokens as sampled, mask 1
│        the environment answers     a step per live episode, in workers
│        done, no end of turn, no room, last turn ──▶ the episode ends
└─────── the policy hears            tokens between turns, mask 0

Training, evaluation and `gvpo generate` sample through it like through any other sampler.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo.environments import Answer, EnvironmentPool, Start
from gvpo.errors import EpisodeError
from gvpo.model.turns import TurnTemplate
from gvpo.sampling import Request, Sampler, SamplingParams, is_concurrent, shares_model
from gvpo.sampling.conversation import Conversation, conversing
from gvpo.types import Completion, EpisodeTurn, FinishReason, Message, Problem

OBSERVATION_CUT = "observation_cut"
"""Metric of a turn after which the middle of what the environment said was left out."""


@dataclass(frozen=True)
class EpisodeLimits:
    """Limits of episodes.

    Args:
        max_turns: Maximum number of turns of the policy.
        turn_tokens: Maximum number of tokens per turn of the policy; None for no limit.
        observation_tokens: Maximum number of tokens of what the environment says in a turn.
        context: Maximum number of tokens of prompt and episode; None for no limit.
    """

    max_turns: int
    turn_tokens: int | None
    observation_tokens: int
    context: int | None


class EpisodeSampler:
    """Samples episodes; each is a completion with its turns, and with mask 0 on what the environment said.

    Args:
        sampler: Sampler of the policy.
        pool: The environments.
        template: Tokens between turns.
        encode: Function that returns the token ids of a problem's prompt.
        limits: Limits of episodes.
    """

    def __init__(
        self,
        sampler: Sampler,
        pool: EnvironmentPool,
        template: TurnTemplate,
        encode: Callable[[Problem], Sequence[int]],
        limits: EpisodeLimits,
    ) -> None:
        self._sampler, self._pool, self._template, self._encode = sampler, pool, template, encode
        self._limits = limits
        self._calls = itertools.count()

    @property
    def shares_model(self) -> bool:
        """True if it samples from the trainer's own model."""
        return shares_model(self._sampler)

    @property
    def concurrent(self) -> bool:
        """True if several threads may sample at once."""
        return is_concurrent(self._sampler)

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> list[list[Completion]]:
        """Sample `params.group_size` episodes for each request; see `Sampler.sample`.

        Raises:
            EpisodeError: If environments cannot be used, or the episodes of a group begin differently.
        """
        found = dict(self.stream(requests, params, seed=seed, step=step))
        return [found[index] for index in range(len(requests))]

    def stream(
        self, requests: Sequence[Request], params: SamplingParams, *, seed: int, step: int
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield each group of `sample` when its batch is finished; see `StreamingSampler.stream`."""
        call, size = next(self._calls), params.group_size
        speaker = conversing(self._sampler)
        opened, lost = self._opened(requests, size, call, seed, step)
        for index, rows in lost.items():
            yield index, rows
        places = [index for index in range(len(requests)) if index not in lost]
        for batch in speaker.batches([opened[index] for index in places], params):
            chosen = [places[place] for place in batch]
            asked = [opened[index] for index in chosen]
            episodes = [_Episode(_name(call, request, row), request) for request in asked for row in range(size)]
            conversation = speaker.converse(asked, params, seed=seed, step=step)
            self._run(episodes, conversation, params)
            for number, index in enumerate(chosen):
                group = episodes[number * size : (number + 1) * size]
                is_opened = opened[index].prompt != requests[index].prompt
                yield index, [self._completion(each, is_opened) for each in group]

    def close(self) -> None:
        """End the environments; the policy's sampler is closed by its owner."""
        self._pool.close()

    def _opened(
        self, requests: Sequence[Request], size: int, call: int, seed: int, step: int
    ) -> tuple[list[Request], dict[int, list[Completion]]]:
        """Begin all episodes; return the requests with the environments' openings, and the groups that were lost."""
        starts = [
            Start(_name(call, request, row), episode_seed(seed, step, request.id), _columns(request))
            for request in requests
            for row in range(size)
        ]
        answers = self._pool.reset(starts)
        opened, lost = [], {}
        for index, request in enumerate(requests):
            own = answers[index * size : (index + 1) * size]
            if any(answer.outcome == "lost" for answer in own):
                self._pool.forget(_name(call, request, row) for row in range(size))
                lost[index] = [_failed(answer) for answer in own]
                opened.append(request)
                continue
            if any(answer.say != own[0].say for answer in own):
                raise EpisodeError(
                    f"the environment begins the episodes of {request.id!r} differently, although their seed and "
                    "columns are the same; let reset depend on nothing else"
                )
            opened.append(self._with_opening(request, own[0]))
        return opened, lost

    def _with_opening(self, request: Request, answer: Answer) -> Request:
        if not answer.say or request.problem is None:
            return request
        text = answer.say if isinstance(answer.say, str) else "".join(str(m["content"]) for m in answer.say)
        problem = dataclasses.replace(request.problem, prompt=_prompt_with(request.problem.prompt, text))
        return dataclasses.replace(request, prompt=tuple(self._encode(problem)))

    def _run(self, rows: Sequence["_Episode"], conversation: Conversation, params: SamplingParams) -> None:
        """Let the policy and the environments speak in turns until all episodes have ended."""
        live = list(range(len(rows)))
        for turn in range(self._limits.max_turns):
            limits = {row: self._turn_limit(rows[row], params) for row in live}
            spoken = conversation.speak(limits)
            for row, completion in spoken.items():
                rows[row].say(completion)
            asked = [row for row in live if spoken[row].finish_reason == "stop"]
            answers = self._pool.step({rows[row].name: spoken[row].text or "" for row in asked})
            heard = {}
            is_last = turn == self._limits.max_turns - 1
            for row in live:
                answer = answers.get(rows[row].name)
                tokens = self._hear(rows[row], spoken[row], answer, params, is_last=is_last)
                if tokens is not None:
                    heard[row] = tokens
            self._pool.forget(rows[row].name for row in live if row not in heard)
            conversation.hear(heard)
            live = list(heard)
            if not live:
                return

    def _hear(
        self, row: "_Episode", spoken: Completion, answer: Answer | None, params: SamplingParams, *, is_last: bool
    ) -> Sequence[int] | None:
        """Record a turn; return the tokens that the row hears, or None if the episode has ended."""
        if answer is None:
            row.end_turn(spoken, Answer(outcome="none"))
            row.finish_reason = spoken.finish_reason
            return None
        has_ended = answer.done or answer.outcome == "lost"
        messages = self._template.messages(answer.say) if answer.say or not has_ended else []
        messages, is_cut = self._template.shortened(messages, self._limits.observation_tokens)
        if is_cut:
            answer = dataclasses.replace(answer, metrics={**answer.metrics, OBSERVATION_CUT: 1.0})
        can_go_on = self._template.follows(spoken.tokens[-1], messages) if messages else True
        if has_ended or not can_go_on or is_last:
            row.end_turn(spoken, answer, messages)
            row.finish_reason = _reason(answer, can_go_on=can_go_on)
            return None
        tokens = self._template.between(messages)
        if len(row.tokens) + len(tokens) + 1 > self._room(row, params):
            row.end_turn(spoken, answer)
            row.finish_reason = "context"
            return None
        row.end_turn(spoken, answer, messages, tokens)
        return tokens

    def _room(self, row: "_Episode", params: SamplingParams) -> int:
        """Return the maximum number of tokens of an episode."""
        context = self._limits.context
        return params.max_tokens if context is None else min(params.max_tokens, context - len(row.request.prompt))

    def _turn_limit(self, row: "_Episode", params: SamplingParams) -> int:
        left = self._room(row, params) - len(row.tokens)
        return left if self._limits.turn_tokens is None else min(left, self._limits.turn_tokens)

    def _completion(self, row: "_Episode", is_opened: bool) -> Completion:
        return row.completion(self._template.text_of(row.tokens), row.request.prompt if is_opened else None)


def episode_seed(seed: int, step: int, name: str) -> int:
    """Return the seed of the episodes of a group, from 0 to 2^31 - 1."""
    digest = hashlib.blake2b(json.dumps([seed, step, name]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class _Episode:
    """An episode in progress."""

    name: str
    request: Request
    tokens: list[int] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[EpisodeTurn] = field(default_factory=list)
    parts: list[Completion] = field(default_factory=list)
    finish_reason: FinishReason = "stop"

    def say(self, spoken: Completion) -> None:
        """Add the tokens of the policy's turn."""
        self.parts.append(spoken)
        self.tokens += spoken.tokens
        self.mask += [1.0] * len(spoken.tokens)
        recorded = spoken.sampler_logprobs
        self.logprobs += [0.0 if recorded is None else float(recorded[t]) for t in range(len(spoken.tokens))]

    def end_turn(
        self, spoken: Completion, answer: Answer, messages: Sequence[Message] = (), tokens: Sequence[int] = ()
    ) -> None:
        """Add what the environment answered, and the tokens that the policy hears."""
        stop = len(self.tokens)
        self.turns.append(
            EpisodeTurn(
                stop - len(spoken.tokens),
                stop,
                stop + len(tokens),
                spoken.text or "",
                messages,
                answer.reward,
                answer.outcome,
                answer.detail,
                answer.seconds,
                answer.metrics,
            )
        )
        self.tokens += tokens
        self.mask += [0.0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def completion(self, text: str, prompt: Sequence[int] | None) -> Completion:
        """Return the episode as a completion."""
        recorded = all(part.sampler_logprobs is not None for part in self.parts)
        return Completion(
            self.tokens,
            mask=self.mask,
            sampler_logprobs=self.logprobs if recorded else None,
            text=text,
            finish_reason=self.finish_reason,
            turns=tuple(self.turns),
            prompt=prompt,
            version=min((part.version for part in self.parts if part.version is not None), default=None),
        )


def _reason(answer: Answer, *, can_go_on: bool) -> FinishReason:
    """Return why an episode ends with an answer that the policy does not hear."""
    if answer.outcome == "lost":
        return "environment"
    return "stop" if answer.done or not can_go_on else "turns"


def _failed(answer: Answer) -> Completion:
    """Return the row of an episode that could not begin, without tokens and without a reward."""
    turn = EpisodeTurn(0, 0, 0, outcome="lost", detail=answer.detail, seconds=answer.seconds)
    return Completion([], mask=[], sampler_logprobs=[], text="", finish_reason="environment", turns=(turn,))


def _name(call: int, request: Request, row: int) -> str:
    return f"{call}/{request.id}/{row}"


def _columns(request: Request) -> dict[str, Any]:
    return {} if request.problem is None else dict(request.problem.columns)


def _prompt_with(prompt: Any, text: str) -> Any:
    """Return a prompt with text at its end: that of the last message, if it is messages."""
    if isinstance(prompt, str):
        return prompt + text
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']}{text}"}]
