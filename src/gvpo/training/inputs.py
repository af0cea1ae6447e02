"""Inputs of a run: policy, rewards and data as token ids, which are read and checked before anything is written.

    RunPlan, model, rows ──prepare──▶ RunInputs, Policy ──build──▶ RunParts (gvpo.training.build)

`RunInputs` contains no weights, so a model that a warm start trains is not in memory twice.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import activity
from gvpo.config import RunPlan, TrainConfig
from gvpo.data.given_rows import Rows, read_rows
from gvpo.environments import EnvironmentSpec
from gvpo.errors import DataError
from gvpo.model.model import context_length
from gvpo.rewards import RewardFunc
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.dynamic.dead import DeadGroups
from gvpo.rollout.episodes.setup import EnvironmentItem, described_tools, environment_of
from gvpo.rollout.fingerprints import answer_rows, demonstration_rows, fingerprint, problem_rows
from gvpo.rollout.lengths import fitting_answers, fitting_prompts
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.offline import held_out_groups, known_groups, offline_groups
from gvpo.rollout.preferences import Comparison, comparisons, with_weak_negatives
from gvpo.rollout.problems import answer_ending, demonstrations, encode, held_out_problems, training_problems
from gvpo.rollout.rewards import RewardFuncs, RewardTokenizers, reward_functions
from gvpo.rollout.sampling_params import sampling_params
from gvpo.rollout.sources.reuse import steps_for
from gvpo.sampling import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.adapter import check_adapter, load_policy
from gvpo.training.checks import check, check_rewards
from gvpo.training.step.teacher import check_teacher
from gvpo.types import Completion, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingData:
    """Training data of a run; only the field that the plan's source needs is filled.

    Args:
        problems: Prompts to sample completions of.
        written: Prompts with one written answer each.
        logged: Groups with their rewards.
        compared: Prompts with answers that are compared.
        given: Logged groups whose completions are given rows of sampled groups (`rollout.logged`).
    """

    problems: Sequence[EncodedProblem] = ()
    written: Sequence[tuple[EncodedProblem, Completion]] = ()
    logged: Sequence[LoggedGroup] = ()
    compared: Sequence[Comparison] = ()
    given: Sequence[LoggedGroup] = ()

    @property
    def groups(self) -> list[Group]:
        """Return the groups that were logged or are compared."""
        return [*(each.group for each in self.logged), *(each.group for each in self.compared)]

    def __len__(self) -> int:
        return len(self.problems) + len(self.written) + len(self.logged) + len(self.compared)

    def prompts(self) -> frozenset[tuple[int, ...]]:
        """Return the token ids of every prompt."""
        items: Iterable[EncodedProblem | Group] = (*self.problems, *(item for item, _ in self.written), *self.groups)
        return frozenset(tuple(item.prompt) for item in items)

    def fingerprint(self) -> str:
        """Return a short text that differs if the data differs."""
        if self.written:
            return fingerprint(demonstration_rows(self.written))
        return fingerprint(problem_rows(self.problems) if self.problems else answer_rows(self.groups))


@dataclass(frozen=True)
class Policy:
    """The policy that a run starts from.

    Args:
        model: Model on its device, with its adapter.
        sampler: Sampler of completions of the model.
    """

    model: "PreTrainedModel"
    sampler: TransformersSampler


@dataclass(frozen=True)
class RunInputs:
    """Inputs of a run, except its policy.

    Args:
        plan: Plan of the run; train.epochs is resolved to train.steps.
        tokenizer: Tokenizer of the policy.
        params: Parameters of training's sampling.
        rewards: Reward functions by name; empty if there are none.
        data: Training data.
        held_out: Problems to evaluate on.
        held_groups: Held-out answers with scores, to evaluate on.
        environment: Environment that answers the policy; None if completions are single answers.
        notices: Notices that the run prints when it begins, and does not repeat when it is resumed.
    """

    plan: RunPlan
    tokenizer: "PreTrainedTokenizerBase"
    params: SamplingParams
    rewards: Mapping[str, RewardFunc]
    data: TrainingData
    held_out: Sequence[EncodedProblem] = ()
    held_groups: Sequence[Group] = ()
    environment: EnvironmentSpec | None = None
    notices: tuple[str, ...] = ()

    @property
    def settings(self) -> TrainConfig:
        """Return the settings of the plan."""
        return self.plan.settings

    @property
    def judge(self) -> str | None:
        """Return the name of the reward that measures accuracy; None without rewards."""
        return self.settings.accuracy_reward or next(iter(self.rewards), None)

    @property
    def dead_groups(self) -> DeadGroups | None:
        """Return the definition of the groups that are not trained on; None if dead groups are kept."""
        c = self.settings
        return None if c.rollout_dead_groups == "keep" else DeadGroups(c.rollout_dead_by, self.judge)

    def policy(self, model: "str | PreTrainedModel") -> Policy:
        """Return another starting policy of the same kind; load it if a name is passed."""
        policy, _ = load_policy(self.plan, model, self.tokenizer)
        return Policy(policy, _sampler(self.settings, policy, self.tokenizer))


def prepare(
    plan: RunPlan,
    model: "str | Path | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    rewards: RewardFuncs = None,
    reward_tokenizers: RewardTokenizers = None,
    train: Rows | None = None,
    held_out: Rows | None = None,
    peft_config: object | None = None,
    environment: EnvironmentItem = None,
) -> tuple[RunInputs, Policy]:
    """Load and read the inputs of a run, and apply the rules that need more than the settings.

    Args:
        plan: Plan of the run.
        model: Directory, Hub model ID or loaded model, which is trained in place.
        tokenizer: Tokenizer of the model; by default, the one saved with it.
        rewards: Rewards or their names; by default those of the settings, then those of the task.
        reward_tokenizers: Tokenizers of the rewards that are classifiers.
        train: Rows to train on; by default the data or the task of the settings.
        held_out: Held-out rows; by default those of the settings.
        peft_config: A `peft.LoraConfig` for a new adapter.
        environment: Environment that answers the policy; by default that of the settings.

    Raises:
        GvpoError: If the run cannot work; the message says what to do.
    """
    config = plan.settings
    check_adapter(config, peft_config)
    params = sampling_params(config)
    spec = environment_of(config, environment)
    tools = described_tools(spec)
    functions = reward_functions(config, rewards, reward_tokenizers, spec)
    rows, groups = (held_out, None) if held_out is None or held_out.kind == "problems" else (None, held_out)
    check_rewards(plan, functions, held_out=rows is not None)
    with activity.phase("loading the model"):
        loaded, words = load_policy(plan, model, tokenizer, peft_config)
        check_teacher(config, words)
    policy = Policy(loaded, _sampler(config, loaded, words))
    problems = held_out_problems(config, None if rows is None else rows.items)
    inputs = RunInputs(
        plan,
        words,
        params,
        functions,
        _training_data(plan, loaded, words, train, tools),
        fitting_prompts(config, loaded, encode(config, words, problems, tools)),
        held_out_groups(config, words, loaded, groups),
        spec,
    )
    if config.epochs is not None:
        items = config.sample_groups or len(inputs.data)
        # the last step is filled up from the next epoch
        steps = steps_for(config.epochs * items, config.prompts_per_step, config.rollout_reuse)
        inputs = dataclasses.replace(inputs, plan=dataclasses.replace(plan, settings=config.replace(steps=steps)))
    return dataclasses.replace(inputs, notices=(*plan.notices, *check(inputs, policy))), policy


def _sampler(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> TransformersSampler:
    ending = answer_ending(config, tokenizer, model)
    return TransformersSampler(model, tokenizer, tokens_per_batch=config.tokens_per_batch, ending=ending)


def _training_data(
    plan: RunPlan,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Rows | None,
    tools: Sequence[Mapping[str, Any]],
) -> TrainingData:
    config, given = plan.settings, None if rows is None else rows.items
    if plan.source == "written":
        written = demonstrations(config, tokenizer, given, model)
        return TrainingData(written=fitting_answers(config, model, tokenizer, written))
    if plan.samples:
        problems = encode(config, tokenizer, training_problems(config, given), tools)
        return TrainingData(fitting_prompts(config, model, problems), given=_given_groups(config, model, tokenizer))
    found = rows if rows is not None else read_rows(config, str(config.groups_data))
    found = found.first(config.train_problems)
    return logged_data(plan, offline_groups(config, tokenizer, model, found.items, source=found.name), model)


def _given_groups(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> Sequence[LoggedGroup]:
    if config.rollout_logged == 0:
        return ()
    found = read_rows(config, str(config.rollout_logged_path), held_out=True)  # rewards are not needed
    try:
        return known_groups(config, tokenizer, model, found.items, source=found.name, rewarded=False)
    except DataError as error:
        raise DataError(f"rollout.logged_path={config.rollout_logged_path}: {error}") from None


def logged_data(plan: RunPlan, groups: Sequence[LoggedGroup], model: "PreTrainedModel") -> TrainingData:
    """Return groups in the form that the objective trains on: whole, or as answers that are compared."""
    config = plan.settings
    if plan.objective.learns_from != "pairs":
        return TrainingData(logged=groups)
    compared = comparisons(groups, scores_differ=config.chosen_by != "softmax")
    context = context_length(model)
    return TrainingData(
        compared=with_weak_negatives(compared, config.weak_negatives, seed=config.seed, context=context)
    )
