"""From problems to a file of scored groups, some at a time, so that little is lost and nothing is done twice.

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
"""Completions sampled before the file is written, by default: what a crash can cost."""

HOPELESS = 8
"""So many rows whose rewards all failed, and none that succeeded, end the work."""

Watch = Callable[[Rollout], None]
"""Is told of each part that is done."""


@runtime_checkable
class Checking(Protocol):
    """A sampler that can tell beforehand whether it could sample."""

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raise what `sample` would raise of these requests, without sampling."""
        ...


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    problems: Sequence[Problem],
    *,
    system_prompt: str | None = None,
    chat: "ChatMode" = "auto",
    template_args: Mapping[str, Any] | None = None,
) -> list[EncodedProblem]:
    """Each problem with the token ids of its prompt; the keywords are those of `encode_prompt`.

    Raises:
        DataError: a prompt that cannot be encoded; the message names the problem.
    """
    from gvpo.model.tokenizer import encode_prompt  # transformers, which responses from a file do without

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
    """Return a problem's tools as a keyword for the chat template; nothing where there are none, or no template."""
    tools = tools_in(problem.columns) if tokenizer.chat_template else None
    if tools is None:
        return {}
    if "tools" not in str(tokenizer.chat_template):
        raise DataError("it has `tools`, and the chat template does not write any; remove or rename the column")
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
    """Sample and judge the problems that the file does not have yet, and append them.

    The noise of a row depends on the seed, the problem's id and the row alone: how the work is cut, or broken off and
    gone on with, does not change what is drawn.

    Args:
        file: begun; problems that it has are skipped.
        items: problems with different ids.
        open_sampler: gives the sampler; not called where nothing is left to do.
        params: how to draw.
        rewards: the pool.
        seed: of the noise.
        at_once: problems between two writes; default as many as have `ROWS_AT_ONCE` completions.
        logprobs: whether the sampler's log-probs are kept.
        watch: told of each part.

    Raises:
        RewardError: a column is missing, a reward cannot work here, or the rewards fail on everything.
        DataError: a prompt leaves no room for a completion.
        RunError: the file cannot be written.
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
    """Rewards that fail on every row are set up wrongly: hours of sampling would be judged by nothing."""
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    failed = [verdict.reason for verdict in verdicts if has_failed(verdict.reward, verdict.reason)]
    if len(failed) == len(verdicts) >= HOPELESS:
        raise RewardError(f"the rewards fail on every completion: {failed[0]}")


def has_failed(reward: float | None, reason: str) -> bool:
    """Whether a completion has no reward though it should have one: abstaining is no failure."""
    return reward is None and not reason.startswith("abstained")
