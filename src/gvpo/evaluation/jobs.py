"""A model, or a file of responses, on a benchmark: prompts by a template, samples judged and kept, a result."""

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
    """How rewards are run; see `RewardPool`.

    Args:
        workers: processes.
        timeout: seconds a call.
        memory_limit: bytes a worker.
    """

    workers: int = 2
    timeout: float = 10.0
    memory_limit: int = 4 << 30


@dataclass(frozen=True)
class Job:
    """One model on one benchmark.

    Args:
        model: its name.
        benchmark: what is asked and who judges.
        items: the problems with their prompts.
        params: how to draw.
        file: where the groups go.
        settings: what decides them; going on with other ones is refused.
        template: what stands around the questions; None for responses from a file.
        seed: of the noise.
        at_once: problems between two writes; None for the default.
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
    """The problems with the prompts that the template makes of them.

    Raises:
        ConfigError: the template does not fit the benchmark.
        DataError: a prompt cannot be encoded.
    """
    asked = [replace(problem, prompt=template.apply(benchmark, problem)) for problem in problems]
    return encode(tokenizer, asked, chat=template.form)


def without_prompts(problems: Sequence[Problem]) -> list[EncodedProblem]:
    """The problems with a prompt of one token, which nothing reads: for responses that are there already."""
    return [EncodedProblem(problem, (0,)) for problem in problems]


class Judges:
    """The reward pools of an evaluation: their workers start once, however many models and benchmarks they judge.

    Args:
        options: how rewards are run.
    """

    def __init__(self, options: PoolOptions) -> None:
        self._options = options
        self._pools: dict[tuple[str, bool], RewardPool] = {}
        self._open = contextlib.ExitStack()

    def of(self, job: Job) -> RewardPool:
        """The pool with a job's reward.

        Raises:
            RewardError: the reward cannot be loaded.
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
    """Sample and judge what is left to do, and say what came out.

    Args:
        job: its file is begun.
        open_sampler: gives the model's sampler; not called where everything is done.
        rewards: the pool with the benchmark's reward.
        ks: which pass@k and maj@k.
        watch: told of each part that is done.

    Raises:
        RewardError: the reward fails on everything.
        RunError: the file cannot be written.
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
    """The numbers of a job that is done, or of as much of it as is done.

    Raises:
        RunError: nothing is done yet, or the file is damaged.
    """
    rows = {row["id"]: row for row in job.file.rows()}
    done = [judged(rows[item.problem.id], job.benchmark.reward) for item in job.items if item.problem.id in rows]
    return Result(job.model, job.benchmark.name, done, ks)
