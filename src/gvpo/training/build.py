"""What a session is given: the source of its groups and what it evaluates on, checked before anything is written."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo import runfiles
from gvpo.config import TrainConfig, find_objective
from gvpo.data.given_rows import Dataset, Rows
from gvpo.errors import ConfigError
from gvpo.model.model import context_length
from gvpo.rewards import RewardFunc, RewardPool
from gvpo.rewards.identity import identity
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fingerprints import answer_rows, demonstration_rows, fingerprint, problem_rows
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.offline import (
    Records,
    check_temperature,
    held_out_groups,
    offline_groups,
    warn_of_finite_support,
)
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.preferences import comparisons, with_weak_negatives
from gvpo.rollout.problems import answer_ending, demonstrations, encode, held_out_problems, training_problems
from gvpo.rollout.rewards import reward_pool
from gvpo.rollout.sampling_params import sampling_params
from gvpo.rollout.sources.base import Source, StatelessSource
from gvpo.rollout.sources.demonstrations import DemonstrationSource
from gvpo.rollout.sources.live import LiveSource
from gvpo.rollout.sources.offline import OfflineSource
from gvpo.rollout.sources.preferences import PreferenceSource
from gvpo.rollout.sources.sampled_once import SampledOnceSource
from gvpo.sampling import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.checks import check_columns, check_demonstrations, check_prompts, warn_of_overlap
from gvpo.training.loop import EvalInputs
from gvpo.types import Group, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING, HELD_OUT = "set of training data", "set of held-out data"
"""Names of the fingerprints of data."""
REWARDS_LOG = "rewards.log"
"""What the reward functions print."""


@dataclass(frozen=True)
class Parts:
    """What a session is given.

    Args:
        source: of each step's groups.
        items: how many different groups the source has: an epoch.
        held: for evaluation; None does without.
        held_groups: held-out answers with scores, for evaluation.
        prompts: those that are trained on.
        inputs: fingerprints, by name, of what decides the run besides settings and weights; a resumed run has the same.
    """

    source: Source
    items: int
    held: EvalInputs | None
    held_groups: Sequence[Group] = ()
    prompts: frozenset[tuple[int, ...]] = frozenset()
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        """Return whether training draws completions, in each step or once."""
        return isinstance(self.source, LiveSource | SampledOnceSource)


@dataclass(frozen=True)
class Setup:
    """From settings, model and data to the parts of a session.

    Args:
        config: the settings.
        model: the policy, on its device.
        tokenizer: its tokenizer.
        objective: name of the objective.
        rewards: the reward functions by name; empty without.
        logged: rows of logged groups, to train on offline.
        train_dataset: instead of the settings' data or task.
        eval_dataset: the same, held out.
        eval_rows: held-out rows of groups or pairs.
    """

    config: TrainConfig
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    objective: str
    rewards: Mapping[str, RewardFunc]
    logged: Rows | None
    train_dataset: Dataset | None
    eval_dataset: Dataset | None
    eval_rows: Rows | None = None

    @contextlib.contextmanager
    def parts(self, path: Path, *, resume: bool) -> "Iterator[Parts]":
        """The source of groups and what evaluation needs, while the reward workers live."""
        with contextlib.ExitStack() as stack:
            pool = (
                stack.enter_context(reward_pool(self.config, self.rewards, log=path / REWARDS_LOG))
                if self.rewards
                else None
            )
            sampler = TransformersSampler(
                self.model,
                self.tokenizer,
                tokens_per_batch=self.config.tokens_per_batch,
                ending=answer_ending(self.config, self.tokenizer, self.model),
            )
            params = sampling_params(self.config)
            sampler.check([], params)  # this and the next line find errors before the work
            sampler.exclusion(params)
            held_out = self._encoded(held_out_problems(self.config, self.eval_dataset), pool)
            held = EvalInputs(held_out, sampler, params, pool) if held_out and pool is not None else None
            if self.eval_dataset is not None and pool is None:
                raise ConfigError(
                    "eval_dataset needs a reward to be judged by: set rewards.funcs, or pass reward_funcs"
                )
            compared = held_out_groups(self.config, self.tokenizer, self.model, self.eval_rows)
            if find_objective(self.objective).learns_from == "answers":
                made = self._supervised(held)
            elif self.logged is not None:
                made = self._offline(self.logged, held)
            else:
                assert pool is not None  # `Trainer` has refused a run that samples without a reward
                made = self._sampled(sampler, params, pool, held, file=path / runfiles.GROUPS, resume=resume)
            if not resume:
                evaluated = [*(item.prompt for item in held_out), *(group.prompt for group in compared)]
                warn_of_overlap(made.prompts, evaluated)
            stack.callback(made.source.close)
            inputs = {**made.inputs, HELD_OUT: fingerprint([*problem_rows(held_out), *answer_rows(compared)])}
            yield replace(made, held_groups=compared, inputs={**inputs, **self._judges(held, made)})

    def _judges(self, held: EvalInputs | None, made: Parts) -> dict[str, str]:
        """Fingerprints of the rewards, where any of them is asked."""
        asked = held is not None or made.samples
        return {f"reward {name!r}": identity(function) for name, function in self.rewards.items()} if asked else {}

    def _encoded(self, problems: Sequence[Problem], pool: RewardPool | None) -> list[EncodedProblem]:
        """The problems with their prompts, all of which the model and the rewards can do something with."""
        items = encode(self.config, self.tokenizer, problems)
        check_prompts(items, self.model)
        if pool is not None:
            check_columns(pool, items)
        return items

    def _supervised(self, held: EvalInputs | None) -> "Parts":
        written = demonstrations(self.config, self.tokenizer, self.train_dataset, self.model)
        check_demonstrations(written, self.model)
        order = ShuffledOrder(written, self.config.prompts_per_step, self.config.seed)
        data = fingerprint(demonstration_rows(written))
        prompts = _prompts(item for item, _ in written)
        return Parts(DemonstrationSource(order), len(written), held, prompts=prompts, inputs={TRAINING: data})

    def _offline(self, rows: Rows, held: EvalInputs | None) -> "Parts":
        warn_of_finite_support(self.objective)
        logged = offline_groups(self.config, self.tokenizer, self.model, rows.items, source=rows.name)
        check_temperature(self.config, logged)
        source = self._offline_source(logged)
        groups = source.groups if isinstance(source, PreferenceSource) else [each.group for each in logged]
        inputs = {TRAINING: fingerprint(answer_rows(groups))}
        return Parts(source, len(groups), held, prompts=_prompts(groups), inputs=inputs)

    def _offline_source(self, groups: Sequence[LoggedGroup]) -> OfflineSource | PreferenceSource:
        config = self.config
        if find_objective(self.objective).learns_from != "pairs":
            return OfflineSource(ShuffledOrder(groups, config.prompts_per_step, config.seed))
        softmax = config.chosen_by == "softmax"
        compared = with_weak_negatives(
            comparisons(groups, scores_differ=not softmax),
            config.weak_negatives,
            seed=config.seed,
            context=context_length(self.model),
        )
        return PreferenceSource(compared, config.prompts_per_step, config.seed, softmax=softmax)

    def _sampled(
        self,
        sampler: TransformersSampler,
        params: SamplingParams,
        pool: RewardPool,
        held: EvalInputs | None,
        *,
        file: Path,
        resume: bool,
    ) -> "Parts":
        """Groups from the live policy: at each step, or once."""
        config = self.config
        problems = self._encoded(training_problems(config, self.train_dataset), pool)
        order = ShuffledOrder(problems, config.sample_groups or config.prompts_per_step, config.seed)
        live = LiveSource(order, sampler, params, pool, seed=config.seed)
        inputs = {TRAINING: fingerprint(problem_rows(problems))}
        if config.sample_groups is None:
            return Parts(live, len(problems), held, prompts=_prompts(problems), inputs=inputs)

        def read(records: Records) -> StatelessSource:
            return self._offline_source(offline_groups(config, self.tokenizer, self.model, records, source="live"))

        warn_of_finite_support(self.objective)
        once = SampledOnceSource(file, live, read, resumed=resume)
        return Parts(once, config.sample_groups, held, prompts=_prompts(problems), inputs=inputs)


def _prompts(items: Iterable[EncodedProblem | Group]) -> frozenset[tuple[int, ...]]:
    return frozenset(tuple(item.prompt) for item in items)
