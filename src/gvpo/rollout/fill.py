"""From problems to a file of scored groups, in parts, so that an interruption loses little and no work is repeated.

problems ──encode──▶ prompts ──sampler──▶ completions ──rewards──▶ rows, appended
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gvpo.errors import DataError, RewardError
from gvpo.messages import tools_in
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, collect, reward_batch
from gvpo.rollout.group_file import GroupFile, records
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.types import Completion, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gvpo.model.tokenizer import ChatMode

ROWS_AT_ONCE = 256
"""Default number of completions that are sampled before the file is written; at most this many are lost in a crash."""

HOPELESS = 8
"""Number of rows with failed rewards that ends the work if no reward has succeeded."""

Watch = Callable[[Rollout], None]
"""Function that is called with each finished part."""


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
) -> list[EncodedProblem]:
    """Return each problem with the token ids of its prompt; the keywords are passed to `encode_prompt`.

    Raises:
        DataError: If a prompt cannot be encoded; the message names the problem.
    """
    from gvpo.model.tokenizer import encode_prompt  # with transformers, which responses from a file do not need

    def ids(problem: Problem) -> tuple[int, ...]:
        try:
            keywords = {**(template_args or {}), **({} if chat == "plain" else _tools(tokenizer, problem))}
            return tuple(
                encode_prompt(tokenizer, problem.prompt, system_prompt=system_prompt, chat=chat, template_args=keywords)
            )
        except DataError as error:
            raise DataError(f"problem {problem.id!r}: {error}") from None

    return [EncodedProblem(problem, ids(problem)) for problem in problems]


def _tools(tokenizer: "PreTrainedTokenizerBase", problem: Problem) -> dict[str, Any]:
    """Return a problem's tools as a keyword for the chat template; {} without tools or without a template."""
    tools = tools_in(problem.columns) if tokenizer.chat_template else None
    if tools is None:
        return {}
    if "tools" not in str(tokenizer.chat_template):
        raise DataError("it has `tools`, but the chat template does not support them; remove or rename the column")
    return {"tools": tools}


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
) -> None:
    """Sample and score the problems that the file does not contain yet, and append them.

    The noise of a row depends only on the seed, the problem's id and the row's number. Splitting or interrupting the
    work therefore does not change the samples.

    Args:
        file: File on which `begin` was called; problems that it contains are skipped.
        items: Problems with different ids.
        open_sampler: Function that returns the sampler; not called if all problems are done.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the noise.
        at_once: Number of problems between two writes; by default as many as have `ROWS_AT_ONCE` completions.
        logprobs: Whether the sampler's log-probs are stored.
        watch: Function that is called with each finished part.

    Raises:
        RewardError: If a column is missing, a reward cannot work on this machine, or the rewards fail on every row.
        DataError: If a prompt leaves no room for a completion.
        RunError: If the file cannot be written.
    """
    _check_ids(items)
    rewards.require_columns([reward_batch(item.problem, [Completion([0], text="")]) for item in items])
    done = file.finished()
    left = [item for item in items if item.problem.id not in done]
    if not left:
        return
    rewards.check_ready()  # before a model is loaded and hours are sampled
    sampler = open_sampler()
    if isinstance(sampler, Checking):
        sampler.check([Request(item.problem.id, item.prompt) for item in left], params)
    size = at_once or max(1, ROWS_AT_ONCE // params.group_size)
    for start in range(0, len(left), size):
        rollout = collect(left[start : start + size], sampler, params, rewards, seed=seed, step=0)
        _refuse_hopeless(rollout)
        file.append(records(rollout, logprobs=logprobs))
        if watch is not None:
            watch(rollout)


def _check_ids(items: Sequence[EncodedProblem]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.problem.id in seen:
            raise DataError(f"two problems have the id {item.problem.id!r}; make ids unique, or drop the column")
        seen.add(item.problem.id)


def _refuse_hopeless(rollout: Rollout) -> None:
    """Raise RewardError if the rewards fail on every row, because then they are set up incorrectly."""
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    failed = [verdict.reason for verdict in verdicts if has_failed(verdict.reward, verdict.reason)]
    if len(failed) == len(verdicts) >= HOPELESS:
        raise RewardError(f"the rewards fail on every completion: {failed[0]}")


def has_failed(reward: float | None, reason: str) -> bool:
    """Return whether a completion should have a reward but has none; a reward that abstains has not failed."""
    return reward is None and not reason.startswith("abstained")
