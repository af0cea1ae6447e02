"""Evaluation of one model or response file on one benchmark: prompts, samples, scores and the result."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gvpo.evaluation.benchmarks import Benchmark
from gvpo.evaluation.results import Result, judged
from gvpo.evaluation.templates import Template
from gvpo.rewards import RewardPool, load
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fill import Watch, encode, fill
from gvpo.rollout.group_file import GroupFile
from gvpo.sampling import Sampler, SamplingParams
from gvpo.sampling.stops import StopTexts
from gvpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PoolOptions:
    """Options of the processes that run rewards; see `RewardPool`.

    Args:
        workers: Number of processes.
        timeout: Timeout per call, in seconds.
        memory_limit: Memory limit per worker, in bytes.
    """

    workers: int = 2
    timeout: float = 10.0
    memory_limit: int = 4 << 30


@dataclass(frozen=True)
class Job:
    """One model on one benchmark.

    Args:
        model: Name of the model.
        benchmark: The questions, and the reward that scores the answers.
        items: The problems with their prompts.
        params: Sampling parameters.
        file: Output file of the groups.
        settings: Settings that determine the groups; resuming with other settings is an error.
        template: The text around the questions; None for responses from a file.
        seed: Random seed of the sampling noise.
        at_once: Number of problems between two writes; None for the default.
    """

    model: str
    benchmark: Benchmark
    items: Sequence[EncodedProblem]
    params: SamplingParams
    file: GroupFile
    settings: Mapping[str, Any] = field(repr=False)
    template: Template | None = None
    seed: int = 0
    at_once: int | None = None


def prompts(
    benchmark: Benchmark, problems: Sequence[Problem], template: Template, tokenizer: "PreTrainedTokenizerBase"
) -> list[EncodedProblem]:
    """Return the problems with prompts in the form of the template.

    Raises:
        ConfigError: If the template does not fit the benchmark.
        DataError: If a prompt cannot be encoded.
    """
    asked = [replace(problem, prompt=template.apply(benchmark, problem)) for problem in problems]
    return encode(tokenizer, asked, chat=template.form)


def without_prompts(problems: Sequence[Problem]) -> list[EncodedProblem]:
    """Return the problems with an unused prompt of one token, for responses that already exist."""
    return [EncodedProblem(problem, (0,)) for problem in problems]


class Judges:
    """The reward pools of an evaluation. Their workers start once, for any number of models and benchmarks.

    Args:
        options: Options of the worker processes.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._pools: dict[tuple[str, bool], RewardPool] = {}
        self._open = contextlib.ExitStack()

    def of(self, job: Job) -> RewardPool:
        """Return the pool with a job's reward.

        Raises:
            RewardError: If the reward cannot be loaded.
        """
        key = (job.benchmark.reward, job.template is not None and job.template.tagged)
        if key not in self._pools:
            name, reward = job.benchmark.reward, load(job.benchmark.reward)
            if job.template is not None:
                reward = job.template.judged_by(reward, job.benchmark)
            self._pools[key] = self._open.enter_context(RewardPool({name: reward}, **asdict(self._options)))
        return self._pools[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def run_job(
    job: Job,
    open_sampler: Callable[[], Sampler],
    rewards: RewardPool,
    *,
    ks: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Result:
    """Sample and score the remaining problems, and return the result of the whole job.

    Args:
        job: The job; its file has been started.
        open_sampler: Function that returns the model's sampler; not called if no problem remains.
        rewards: The pool with the benchmark's reward.
        ks: The k of pass@k and maj@k to compute.
        watch: Function that is called after each finished part.

    Raises:
        RewardError: If the reward fails on every completion.
        RunError: If the file cannot be written.
    """
    stops = () if job.template is None else job.template.stops_for(job.benchmark)
    continued = job.benchmark.family == "continuation"
    fill(
        job.file,
        job.items,
        (lambda: StopTexts(open_sampler(), stops, before_fence=continued)) if stops else open_sampler,
        job.params,
        rewards,
        seed=job.seed,
        at_once=job.at_once,
        logprobs=False,
        watch=watch,
    )
    return result(job, ks)


def result(job: Job, ks: Sequence[int] | None = None) -> Result:
    """Return the result of a job, computed from the problems that are finished.

    Raises:
        RunError: If no problem is finished yet, or the file is corrupt.
    """
    rows = {row["id"]: row for row in job.file.rows()}
    done = [judged(rows[item.problem.id], job.benchmark.reward) for item in job.items if item.problem.id in rows]
    return Result(job.model, job.benchmark.name, done, ks)
