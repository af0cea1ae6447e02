"""Episodes as completions: a sampler that lets the policy and an environment speak in turns.

 reset ─▶ prompt + opening
┌──────▶ the policy speaks           its tokens as sampled, mask 1
│        the environment answers     a step per live episode, in workers
│        done, no end of turn, no room, last turn ──▶ the episode ends
└─────── the policy hears            tokens between turns, mask 0

Training, evaluation and `gvpo generate` sample through it like through any other sampler.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo.environments import Answer, EnvironmentPool, Start
from gvpo.errors import DataError, EpisodeError
from gvpo.messages import with_opening
from gvpo.model.turns import TurnTemplate
from gvpo.sampling import Request, Sampler, SamplingParams, is_concurrent, shares_model
from gvpo.sampling.conversation import Conversation, conversing
from gvpo.types import ENDINGS, Completion, EpisodeTurn, FinishReason, Message, Problem

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

    Attributes:
        waited: Seconds that it has waited for environments so far.
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
        self.waited = 0.0

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
        names = [[_name(call, request, row) for row in range(size)] for request in requests]
        try:
            openings = self._openings(requests, names, seed, step)
            for index, opening in enumerate(openings):
                if opening.failure is not None:
                    self._pool.forget(names[index])
                    yield index, [opening.failure] * size
            places = [index for index, opening in enumerate(openings) if opening.failure is None]
            speaker = conversing(self._sampler)
            for batch in speaker.batches([openings[index].request for index in places], params):
                chosen = [places[place] for place in batch]
                asked = [openings[index].request for index in chosen]
                episodes = [_Episode(name, openings[index]) for index in chosen for name in names[index]]
                self._run(episodes, speaker.converse(asked, params, seed=seed, step=step), params)
                for number, index in enumerate(chosen):
                    own = episodes[number * size : (number + 1) * size]
                    yield index, [each.completion(self._template.text_of(each.tokens)) for each in own]
        finally:  # the caller may leave early, and sampling may fail
            self._pool.forget(name for own in names for name in own)

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the error of the policy's sampler for these requests, without sampling."""
        getattr(self._sampler, "check", lambda *_: None)(requests, params)

    def close(self) -> None:
        """End the environments; the policy's sampler is closed by its owner."""
        self._pool.close()

    def _openings(
        self, requests: Sequence[Request], names: Sequence[Sequence[str]], seed: int, step: int
    ) -> list["_Opening"]:
        """Begin all episodes; return the beginning of each group."""
        starts = [
            Start(name, episode_seed(seed, step, request.id), _columns(request))
            for request, own in zip(requests, names, strict=True)
            for name in own
        ]
        with self._waiting():
            answers = iter(self._pool.reset(starts))
        return [
            self._opening(request, [next(answers) for _ in own]) for request, own in zip(requests, names, strict=True)
        ]

    def _opening(self, request: Request, answers: Sequence[Answer]) -> "_Opening":
        """Return the beginning of a group's episodes."""
        failed = next((answer for answer in answers if answer.outcome != "ok"), None)
        if failed is not None:
            return _Opening(request, failure=_failed(failed))
        say = answers[0].say
        if any(answer.say != say for answer in answers):
            raise EpisodeError(
                f"the environment begins the episodes of {request.id!r} differently, although their seed and "
                "columns are the same; let reset depend on nothing else"
            )
        text = say if isinstance(say, str) else "".join(str(message["content"]) for message in say)
        if not text or request.problem is None:
            return _Opening(request)
        return self._with_text(request, request.problem, text)

    def _with_text(self, request: Request, problem: Problem, text: str) -> "_Opening":
        """Return the beginning of a group whose prompt ends with the environment's text."""

        def encode(opening: str) -> Sequence[int]:
            return self._encode(dataclasses.replace(problem, prompt=with_opening(problem.prompt, opening)))

        try:
            prompt = tuple(self._template.opened(text, encode))
        except DataError as error:
            return _Opening(request, failure=_failed(Answer(detail=f"the environment's opening: {error}")))
        if self._limits.context is not None and len(prompt) >= self._limits.context:
            detail = (
                f"the prompt with the environment's opening has {len(prompt)} tokens, which leaves no room in the "
                f"model's context of {self._limits.context}"
            )
            return _Opening(request, failure=_failed(Answer(detail=detail), "context"))
        return _Opening(dataclasses.replace(request, prompt=prompt), text)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def _run(self, rows: Sequence["_Episode"], conversation: Conversation, params: SamplingParams) -> None:
        """Let the policy and the environments speak in turns until all episodes have ended."""
        live = list(range(len(rows)))
        for turn in range(self._limits.max_turns):
            limits = {row: self._turn_limit(rows[row], params) for row in live}
            spoken = conversation.speak(limits)
            for row, completion in spoken.items():
                rows[row].say(completion)
            asked = [row for row in live if spoken[row].finish_reason == "stop"]
            with self._waiting():
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
        has_ended = answer.done or answer.outcome in ENDINGS
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
        return params.max_tokens if context is None else min(params.max_tokens, context - len(row.prompt))

    def _turn_limit(self, row: "_Episode", params: SamplingParams) -> int:
        left = self._room(row, params) - len(row.tokens)
        return left if self._limits.turn_tokens is None else min(left, self._limits.turn_tokens)


def episode_seed(seed: int, step: int, name: str) -> int:
    """Return the seed of the episodes of a group, from 0 to 2^31 - 1."""
    digest = hashlib.blake2b(json.dumps([seed, step, name]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class _Opening:
    """The beginning of a group's episodes.

    Args:
        request: Request, whose prompt contains what the environment added.
        text: What the environment added to the prompt; "" if it added nothing.
        failure: Row of each episode if they could not begin.
    """

    request: Request
    text: str = ""
    failure: Completion | None = None


@dataclass
class _Episode:
    """An episode in progress."""

    name: str
    opening: _Opening
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

    @property
    def prompt(self) -> Sequence[int]:
        """Return the token ids of the prompt."""
        return self.opening.request.prompt

    def completion(self, text: str) -> Completion:
        """Return the episode as a completion."""
        recorded = all(part.sampler_logprobs is not None for part in self.parts)
        return Completion(
            self.tokens,
            mask=self.mask,
            sampler_logprobs=self.logprobs if recorded else None,
            extras=_sums([part.extras for part in self.parts]),
            text=text,
            finish_reason=self.finish_reason,
            turns=tuple(self.turns),
            prompt=self.prompt if self.opening.text else None,
            opening=self.opening.text,
            **self._versions(),
        )

    def _versions(self) -> dict[str, Any]:
        """Return the oldest version of the policy that said a turn, and the version of each token if they differ."""
        known = [part.version for part in self.parts if part.version is not None]
        if len(known) < len(self.parts) or not known:
            return {}
        versions: list[int] = []
        for part, turn, version in zip(self.parts, self.turns, known, strict=True):
            versions += part.versions if part.versions is not None else [version] * len(part.tokens)
            versions += [versions[-1]] * (turn.end - turn.stop)
        return {"version": min(known), "versions": versions if len(set(versions)) > 1 else None}


def _sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the sums over turns of numbers per row, such as the log-prob of staying within an exclusion."""
    common = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {
        name: sum(part[name] for part in parts)
        for name in sorted(common)
        if all(isinstance(part[name], int | float) for part in parts)
    }


def _reason(answer: Answer, *, can_go_on: bool) -> FinishReason:
    """Return why an episode ends with an answer that the policy does not hear."""
    if answer.outcome in ENDINGS:
        return "environment"
    return "stop" if answer.done or not can_go_on else "turns"


def _failed(answer: Answer, reason: FinishReason = "environment") -> Completion:
    """Return the row of an episode that could not begin, without tokens and without a reward."""
    turn = EpisodeTurn(0, 0, 0, outcome="lost", detail=answer.detail, seconds=answer.seconds)
    return Completion([], mask=[], sampler_logprobs=[], text="", finish_reason=reason, turns=(turn,))


def _name(call: int, request: Request, row: int) -> str:
    return f"{call}/{request.id}/{row}"


def _columns(request: Request) -> dict[str, Any]:
    return {} if request.problem is None else dict(request.problem.columns)
