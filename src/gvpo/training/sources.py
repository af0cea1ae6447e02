"""The source of a run's groups, composed from its settings.

problems ──▶ LiveSource ──┬─▶ StaleSource, ReuseSource
                          └─▶ SampledOnceSource
problems ──▶ AsynchronousSource
rows ──▶ DemonstrationSource, PreferenceSource, OfflineSource
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gvpo.config import TrainConfig
from gvpo.config.defaults import overlaps
from gvpo.model.model import context_length
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.dynamic.curriculum import Curriculum
from gvpo.rollout.dynamic.dead import Replacement
from gvpo.rollout.given.expert import ExpertRows, Reencoder, expert_endpoint
from gvpo.rollout.given.history import History
from gvpo.rollout.given.logged import LoggedRows
from gvpo.rollout.given.mixture import Mixture, WrittenRows
from gvpo.rollout.offline import Records, offline_groups
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.packed import Problems
from gvpo.rollout.pipeline import Pipeline
from gvpo.rollout.problems import answer_ending
from gvpo.rollout.rewards import NoRewards
from gvpo.rollout.sources.asynchronous import AsynchronousSource, Bounds
from gvpo.rollout.sources.base import Source, StatelessSource
from gvpo.rollout.sources.demonstrations import DemonstrationSource
from gvpo.rollout.sources.live import LiveSource
from gvpo.rollout.sources.offline import OfflineSource
from gvpo.rollout.sources.preferences import PreferenceSource
from gvpo.rollout.sources.reuse import ReuseSource
from gvpo.rollout.sources.sampled_once import SampledOnceSource
from gvpo.rollout.sources.sampler_reference import Score
from gvpo.rollout.sources.stale import StaleSource
from gvpo.sampling import Sampler, is_concurrent
from gvpo.training.inputs import Policy, RunInputs, TrainingData, logged_data


def make_source(
    inputs: RunInputs,
    policy: Policy,
    data: TrainingData,
    pool: RewardPool | None,
    file: Path,
    *,
    resume: bool,
    score: Score,
    sampler: Sampler,
    sampling: Callable[[], AbstractContextManager[None]],
) -> Source:
    """Return the source of the groups of each step.

    Args:
        inputs: Inputs of the run.
        policy: The policy.
        data: Training data, with the log-probs that are computed once.
        pool: Pool of reward workers; None if there are no rewards.
        file: File of groups that are sampled once.
        resume: Whether the run is resumed, so that the file may exist.
        score: Function that returns the policy's log-probs.
        sampler: Sampler of the run.
        sampling: Function that returns the context in which it samples.
    """
    config = inputs.settings
    if not inputs.plan.samples:
        return _stored_source(config, data)
    scorer: Any = NoRewards() if pool is None else pool
    order = ShuffledOrder(data.problems, config.sample_groups or config.prompts_per_step, config.seed)
    if config.rollout_asynchronous:
        return _asynchronous(inputs, order, sampler, scorer, sampling)
    live = LiveSource(
        order,
        sampler,
        inputs.params,
        scorer,
        seed=config.seed,
        mixture=_mixture(inputs, policy, data, file.parent, rewarded=pool is not None),
        score=_reference(inputs, score),
        curriculum=_curriculum(inputs, data),
        replacement=_replacement(inputs),
    )
    if inputs.plan.source != "live":
        return SampledOnceSource(file, live, _reader(inputs, policy), resumed=resume)
    return _later(inputs, live, {item.problem.id: item for item in data.problems})


def _asynchronous(
    inputs: RunInputs,
    order: ShuffledOrder[EncodedProblem],
    sampler: Sampler,
    rewards: RewardPool,
    sampling: Callable[[], AbstractContextManager[None]],
) -> AsynchronousSource:
    """Return the source of groups that are sampled in the background."""
    config = inputs.settings
    bounds = Bounds(config.steps, config.rollout_max_staleness, config.rollout_late_groups)
    threads = bounds.ahead + 1 if is_concurrent(sampler) else 1
    pipeline = Pipeline(sampler, inputs.params, rewards, seed=config.seed, threads=threads, context=sampling)
    problems = {item.problem.id: item for item in inputs.data.problems}
    recorded = overlaps(config) and inputs.plan.reads_reference and config.reference == "sampler"
    return AsynchronousSource(order, pipeline, rewards, problems, bounds, recorded_reference=recorded)


def _later(inputs: RunInputs, live: LiveSource, problems: Problems) -> Source:
    """Return the source of groups that are trained on after the step that samples them, if they are."""
    config = inputs.settings
    if config.rollout_staleness > 0:
        return StaleSource(live, config.rollout_staleness, problems)
    if config.rollout_reuse == 1:
        return live
    bounds = {"max_age": config.rollout_max_age, "capacity": config.rollout_capacity}
    steps = config.rollout_reuse
    return ReuseSource(live, config.prompts_per_step, steps, problems, **bounds, dead=inputs.dead_groups)


def _reference(inputs: RunInputs, score: Score) -> Score | None:
    """Return the function that gives rows their reference; None if they are trained on in the step that samples them.

    Then the learner computes their reference itself, without an additional pass.
    """
    config = inputs.settings
    later = config.rollout_staleness > 0 or config.rollout_reuse > 1
    return score if later and inputs.plan.reads_reference and config.reference == "sampler" else None


def _mixture(
    inputs: RunInputs, policy: Policy, data: TrainingData, directory: Path, *, rewarded: bool
) -> Mixture | None:
    """Return the sources of given rows of each group; None if all rows are live."""
    c, history = inputs.settings, None
    written: list[WrittenRows] = []
    if c.rollout_history:
        bounds = {"max_age": c.rollout_max_age, "capacity": c.rollout_capacity}
        history = History(c.rollout_history, **bounds, rewarded=inputs.plan.objective.needs_rewards)
    if c.rollout_logged:
        groups = [logged.group for logged in data.given]
        written.append(LoggedRows(groups, c.rollout_logged, seed=c.seed))
    if c.rollout_expert:
        end = answer_ending(c, inputs.tokenizer, policy.model)
        reencoder = Reencoder(inputs.tokenizer, end, c.max_tokens, context_length(policy.model))
        templates = bool(inputs.tokenizer.chat_template)
        written.append(ExpertRows(expert_endpoint(c), c, reencoder, directory, templates=templates))
    return Mixture(history, written, rewarded=rewarded) if history is not None or written else None


def _curriculum(inputs: RunInputs, data: TrainingData) -> Curriculum | None:
    c, judge = inputs.settings, inputs.judge
    if c.rollout_curriculum == "none" or judge is None:
        return None
    target, by = c.rollout_curriculum_target, c.rollout_curriculum_by
    return Curriculum(data.problems, c.seed, target=target, judge=judge, by=by)


def _replacement(inputs: RunInputs) -> Replacement | None:
    dead = inputs.dead_groups
    if dead is None or inputs.settings.rollout_dead_groups != "replace":
        return None
    return Replacement(dead, inputs.settings.rollout_max_replacements)


def _reader(inputs: RunInputs, policy: Policy) -> Callable[[Records], StatelessSource]:
    """Return a function that makes a source from groups that were sampled once."""

    def read(records: Records) -> StatelessSource:
        groups = offline_groups(inputs.settings, inputs.tokenizer, policy.model, records, source="live")
        return _stored_source(inputs.settings, logged_data(inputs.plan, groups, policy.model))

    return read


def _stored_source(config: TrainConfig, data: TrainingData) -> StatelessSource:
    """Return the source for data that is complete before training."""
    per_step, seed = config.prompts_per_step, config.seed
    if data.written:
        return DemonstrationSource(ShuffledOrder(data.written, per_step, seed))
    if data.compared:
        return PreferenceSource(data.compared, per_step, seed, softmax=config.chosen_by == "softmax")
    return OfflineSource(ShuffledOrder(data.logged, per_step, seed))
