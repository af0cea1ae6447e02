"""From problems to a file of scored groups, which grows as groups finish, so that an interruption loses little.

problems ──encode──▶ prompts ──sampler──▶ completions ──rewards──▶ rows, appended

Problems are sampled in parts. A part that was interrupted is sampled again as a whole, because the batch changes
log-probs by rounding, and its groups that the file already contains are skipped. A resumed file therefore has the same
rows as an unbroken one, bit for bit. Groups are in the order in which they finish, which depends on time with servers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gvpo import activity
from gvpo.errors import DataError, RewardError
from gvpo.messages import tools_in
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, reward_batch, scored
from gvpo.rollout.group_file import GroupFile, records
from gvpo.sampling import Request, Sampler, SamplingParams, streamed
from gvpo.types import Completion, EpisodeTurn, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gvpo.model.tokenizer import ChatMode

ROWS_AT_ONCE = 256
"""Default number of completions that are sampled together; a sampler may have its own (`rows_at_once`)."""

SECONDS = 2.0
"""Time after which finished groups are scored and written, while others of their part are still sampled."""

HOPELESS = 8
"""Number of rows with failed rewards that ends the work if no reward has succeeded."""

Watch = Callable[[Rollout], None]
"""Function that is called with the finished groups that were just written."""


@runtime_checkable
class Checking(Protocol):
    """A sampler that can check requests before it samples."""

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise the error that `sample` would raise for these requests, without sampling."""
        ...


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
    *,
    system_prompt: str | None = None,
    chat: "ChatMode" = "auto",
    template_args: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[EncodedProblem]:
    """Return each problem with the token ids of its prompt; the other keywords are passed to `encode_prompt`.

    Args:
        tokenizer: Tokenizer of the policy.
        problems: Problems; those with a column `tools` are encoded with these tools.
        system_prompt: System prompt.
        chat: Whether prompts go through the chat template.
        template_args: Keywords of the chat template.
        tools: Descriptions of further tools, which all problems have.

    Raises:
        DataError: If a prompt cannot be encoded; the message names the problem.
    """
    from gvpo.model.tokenizer import encode_prompt  # with transformers, which responses from a file do not need

    def ids(problem: Problem) -> tuple[int, ...]:
        try:
            keywords = {**(template_args or {}), **({} if chat == "plain" else _tools(tokenizer, problem, tools))}
            return tuple(
                encode_prompt(tokenizer, problem.prompt, system_prompt=system_prompt, chat=chat, template_args=keywords)
            )
        except DataError as error:
            raise DataError(f"problem {problem.id!r}: {error}") from None

    return [EncodedProblem(problem, ids(problem)) for problem in problems]


def _tools(
    tokenizer: "PreTrainedTokenizerBase", problem: Problem, others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return all tools as a keyword for the chat template; {} without tools or without a template."""
    own = tools_in(problem.columns) if tokenizer.chat_template else None
    supported = "tools" in str(tokenizer.chat_template)
    if own is not None and not supported:
        raise DataError("it has `tools`, but the chat template does not support them; remove or rename the column")
    if others and tokenizer.chat_template and not supported:
        raise DataError(
            "the environment has tools, which the chat template does not describe; use a template that supports tools"
        )
    tools = [*others, *(own or [])]
    return {"tools": tools} if tools and supported else {}


def fill(
    file: GroupFile,
    items: Sequence[EncodedProblem],
    open_sampler: Callable[[], Sampler],
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int = 0,
    at_once: int | None = None,
    logprobs: bool = True,
    watch: Watch | None = None,
    episodes: bool = False,
) -> None:
    """Sample and score the problems that the file does not contain yet, and append them.

    The noise of a row depends only on the seed, the problem's id and the row's number. Splitting or interrupting the
    work therefore does not change the samples. A sampler that streams gets its groups written as they finish.

    Args:
        file: File on which `begin` was called; problems that it contains are skipped.
        items: Problems with different ids.
        open_sampler: Function that returns the sampler; not called if all problems are done.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the noise.
        at_once: Number of problems that are sampled together; by default as many as have `ROWS_AT_ONCE` completions.
        logprobs: Whether the sampler's log-probs are stored.
        watch: Function that is called with the groups of each write.
        episodes: Whether completions are episodes, so that rewards may need their turns.

    Raises:
        RewardError: If a column is missing, a reward cannot work on this machine, or the rewards fail on every row.
        DataError: If a prompt leaves no room for a completion.
        RunError: If the file cannot be written.
    """
    _check_ids(items)
    probe = Completion([0], text="", turns=(EpisodeTurn(0, 1, 1),) if episodes else ())
    rewards.require_columns([reward_batch(item.problem, [probe]) for item in items])
    done = file.finished()
    left = [item for item in items if item.problem.id not in done]
    if not left:
        return
    rewards.check_ready()  # before a model is loaded and hours are sampled
    sampler = open_sampler()
    if isinstance(sampler, Checking):
        sampler.check([Request(item.problem.id, item.prompt) for item in left], params)
    size = at_once or max(1, getattr(sampler, "rows_at_once", ROWS_AT_ONCE) // params.group_size)
    for part in _parts(items, done, file.begun(), size):
        ids = [item.problem.id for item in part]
        for rollout in _usable(_finished(part, done, sampler, params, rewards, seed)):
            done |= {group.id for group in rollout.groups}
            if not done.issuperset(ids):
                file.mark(ids)
            file.append(records(rollout, logprobs=logprobs))
            if watch is not None:
                watch(rollout)
        file.mark([])


def _parts(
    items: Sequence[EncodedProblem], done: Set[str], begun: Set[str], size: int
) -> Iterator[Sequence[EncodedProblem]]:
    """Yield the problems that are sampled together: first a part that an earlier session began, then those left."""
    again = [item for item in items if item.problem.id in begun]
    if 0 < len(again) <= size and any(item.problem.id not in done for item in again):
        yield again
        done = done | begun
    left = [item for item in items if item.problem.id not in done]
    for start in range(0, len(left), size):
        yield left[start : start + size]


def _finished(
    part: Sequence[EncodedProblem],
    done: Set[str],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    seed: int,
) -> Iterator[Rollout]:
    """Sample a part, and yield its new groups with their rewards, those of a few seconds together."""
    requests = [Request(item.problem.id, item.prompt, problem=item.problem) for item in part]
    groups = streamed(sampler, requests, params, seed=seed, step=0)
    ready: list[tuple[EncodedProblem, list[Completion]]] = []
    began = time.perf_counter()
    while True:
        with activity.phase("sampling"):
            found = next(groups, None)
        if found is not None and part[found[0]].problem.id not in done:
            ready.append((part[found[0]], found[1]))
        seconds = time.perf_counter() - began
        if ready and (found is None or seconds >= SECONDS):
            items, sampled = zip(*ready, strict=True)
            yield scored(items, sampled, rewards, names=[item.problem.id for item in items], sampling=seconds)
            ready, began = [], time.perf_counter()
        if found is None:
            return


def _usable(rollouts: Iterator[Rollout]) -> Iterator[Rollout]:
    """Pass on the groups of a part, but none before one of its rewards has succeeded.

    Raises:
        RewardError: If the rewards of the part fail on every row, because then they are set up incorrectly.
    """
    held: list[Rollout] = []
    has_succeeded = False
    for rollout in rollouts:
        held.append(rollout)
        has_succeeded = has_succeeded or len(_failed(rollout)) < sum(map(len, rollout.verdicts))
        if has_succeeded:
            yield from held
            held = []
    failed = [reason for rollout in held for reason in _failed(rollout)]
    if len(failed) >= HOPELESS:
        raise RewardError(f"the rewards fail on every completion: {failed[0]}")
    yield from held


def _check_ids(items: Sequence[EncodedProblem]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.problem.id in seen:
            raise DataError(f"two problems have the id {item.problem.id!r}; make ids unique, or drop the column")
        seen.add(item.problem.id)


def _failed(rollout: Rollout) -> list[str]:
    """Return the reasons of the rows whose rewards failed."""
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    return [verdict.reason for verdict in verdicts if has_failed(verdict.reward, verdict.reason)]


def has_failed(reward: float | None, reason: str) -> bool:
    """Return whether a completion should have a reward but has none; a reward that abstains has not failed."""
    return reward is None and not reason.startswith("abstained")
