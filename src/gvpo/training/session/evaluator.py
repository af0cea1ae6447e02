"""Evaluation of the policy on held-out problems and answers, in a run or outside of one."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from gvpo.config import TrainConfig
from gvpo.evaluation import evaluate
from gvpo.evaluation.pairs import pair_metrics
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.collect_shared import collect_shared
from gvpo.sampling import Sampler, SamplingParams
from gvpo.training.metrics import evaluation_metrics
from gvpo.types import Group
from gvpo.update.group_backward import TokenLogprobs


@dataclass(frozen=True)
class EvalInputs:
    """Inputs of an evaluation by samples.

    Args:
        problems: Held-out problems.
        sampler: Sampler of the live policy.
        params: Parameters of sampled evaluation.
        rewards: Pool of reward workers.
        judge: Name of the reward that measures accuracy.
    """

    problems: Sequence[EncodedProblem]
    sampler: Sampler
    params: SamplingParams
    rewards: RewardPool
    judge: str


@dataclass(frozen=True)
class Measured:
    """Results of an evaluation.

    Args:
        metrics: The eval/ metrics; {} without held-out data.
        sampled: Sampled answers, if problems were sampled.
        greedy: Greedy answers, if there are any.
    """

    metrics: dict[str, float]
    sampled: Rollout | None = None
    greedy: Rollout | None = None


@dataclass(frozen=True)
class Evaluator:
    """Measures the current policy.

    Args:
        config: Settings of the run.
        samples: Inputs of the evaluation by samples; None without held-out problems.
        groups: Held-out answers with scores and the starting policy's log-probs.
        beta: Beta of the objective, in reward per nat.
        score: Function that returns the current policy's log-probs of groups.
        sampling: Function that returns the context of sampling.
    """

    config: TrainConfig
    samples: EvalInputs | None
    groups: Sequence[Group]
    beta: float
    score: Callable[[Sequence[Group]], list[TokenLogprobs]]
    sampling: Callable[[], AbstractContextManager[None]]

    def __bool__(self) -> bool:
        """Return whether there is held-out data."""
        return self.samples is not None or bool(self.groups)

    def measure(self) -> Measured:
        """Evaluate the current policy.

        If there are only held-out groups, `eval/accuracy` is the accuracy on their pairs; it decides which checkpoint
        is best.
        """
        pairs = pair_metrics(self.groups, self.score(self.groups), self.beta) if self.groups else {}
        judged = {"eval/accuracy": pairs["eval/pair_accuracy"]} if pairs else {}
        if self.samples is None:
            return Measured({**pairs, **judged})
        sampled = self._sampled(self.samples)
        return replace(sampled, metrics={**pairs, **judged, **sampled.metrics})

    def _sampled(self, inputs: EvalInputs) -> Measured:
        settings = [replace(inputs.params, group_size=self.config.eval_samples)]
        if self.config.eval_greedy:
            settings.append(replace(inputs.params, group_size=1, temperature=0.0, top_p=1.0, top_k=0))
        measure = functools.partial(
            evaluate,
            inputs.problems,
            inputs.sampler,
            rewards=inputs.rewards,
            judge=inputs.judge,
            seed=self.config.seed,
            collect=collect_shared,
        )
        with self.sampling():
            results = [measure(params=params) for params in settings]
        sampled, greedy = results[0], results[1] if len(results) > 1 else None
        return Measured(
            evaluation_metrics(sampled, greedy), sampled.rollout, greedy.rollout if greedy is not None else None
        )
