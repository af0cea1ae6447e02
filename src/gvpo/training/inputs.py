"""What a run is made of: policy, rewards and data as token ids, all read and checked before anything is written.

    RunPlan, model, rows ──prepare──▶ RunInputs, Policy ──build──▶ RunParts (gvpo.training.build)

`RunInputs` has no weights, so what a warm start trains is not in memory twice.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gvpo.config import RunPlan, TrainConfig
from gvpo.data.given_rows import Rows, read_rows
from gvpo.model.model import context_length
from gvpo.rewards import RewardFunc
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.fingerprints import answer_rows, demonstration_rows, fingerprint, problem_rows
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.offline import held_out_groups, offline_groups
from gvpo.rollout.preferences import Comparison, comparisons, with_weak_negatives
from gvpo.rollout.problems import answer_ending, demonstrations, encode, held_out_problems, training_problems
from gvpo.rollout.rewards import RewardFuncs, reward_functions
from gvpo.rollout.sampling_params import sampling_params
from gvpo.sampling import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.adapter import check_adapter, load_policy
from gvpo.training.checks import check, check_rewards
from gvpo.types import Completion, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on; of the four fields, the one that its plan's source takes is filled.

    Args:
        problems: Prompts to sample completions of.
        written: Prompts with one written answer each.
        logged: Groups with their rewards.
        compared: Prompts with answers that are compared.
    """

    problems: Sequence[EncodedProblem] = ()
    written: Sequence[tuple[EncodedProblem, Completion]] = ()
    logged: Sequence[LoggedGroup] = ()
    compared: Sequence[Comparison] = ()

    @property
    def groups(self) -> list[Group]:
        """Return the groups that were logged, or that are compared."""
        return [*(each.group for each in self.logged), *(each.group for each in self.compared)]

    def __len__(self) -> int:
        return len(self.problems) + len(self.written) + len(self.logged) + len(self.compared)

    def prompts(self) -> frozenset[tuple[int, ...]]:
        """Return the token ids of every prompt."""
        items: Iterable[EncodedProblem | Group] = (*self.problems, *(item for item, _ in self.written), *self.groups)
        return frozenset(tuple(item.prompt) for item in items)

    def fingerprint(self) -> str:
        """Return a short text that is another one for other data."""
        if self.written:
            return fingerprint(demonstration_rows(self.written))
        return fingerprint(problem_rows(self.problems) if self.problems else answer_rows(self.groups))


@dataclass(frozen=True)
class Policy:
    """The policy that a run starts from.

    Args:
        model: It is on its device, with its adapter.
        sampler: Draws completions from it.
    """

    model: "PreTrainedModel"
    sampler: TransformersSampler


@dataclass(frozen=True)
class RunInputs:
    """What a run is made of, its policy aside.

    Args:
        plan: What it does; train.epochs is resolved to train.steps.
        tokenizer: The tokenizer of the policy.
        params: How training draws completions.
        rewards: The reward functions by name; empty without.
        data: What it trains on.
        held_out: Problems to evaluate on.
        held_groups: Held-out answers with scores, to evaluate on.
        notices: What a run prints when it begins, and does not repeat when it is resumed.
    """

    plan: RunPlan
    tokenizer: "PreTrainedTokenizerBase"
    params: SamplingParams
    rewards: Mapping[str, RewardFunc]
    data: TrainingData
    held_out: Sequence[EncodedProblem] = ()
    held_groups: Sequence[Group] = ()
    notices: tuple[str, ...] = ()

    @property
    def settings(self) -> TrainConfig:
        """Return the settings of the plan."""
        return self.plan.settings

    def policy(self, model: "str | PreTrainedModel") -> Policy:
        """Return another starting policy of the same kind, which is loaded now if it is named."""
        policy, _ = load_policy(self.plan, model, self.tokenizer)
        return Policy(policy, _sampler(self.settings, policy, self.tokenizer))


def prepare(
    plan: RunPlan,
    model: "str | Path | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    rewards: RewardFuncs = None,
    train: Rows | None = None,
    held_out: Rows | None = None,
    peft_config: object | None = None,
) -> tuple[RunInputs, Policy]:
    """Load and read what a run is made of, and apply the rules that settings alone do not decide.

    Args:
        plan: What the run does.
        model: A directory, a hub id or a loaded model, which is trained in place.
        tokenizer: Its tokenizer; default its own.
        rewards: Reward functions or their names; default those of the settings, then the task's.
        train: Rows to train on; default the settings' data or task.
        held_out: The same, held out.
        peft_config: A `peft.LoraConfig` for a fresh adapter.

    Raises:
        GvpoError: what cannot work; the message says what to do.
    """
    config = plan.settings
    check_adapter(config, peft_config)
    params = sampling_params(config)
    functions = reward_functions(config, rewards)
    rows, groups = (held_out, None) if held_out is None or held_out.kind == "problems" else (None, held_out)
    check_rewards(plan, functions, held_out=rows is not None)
    loaded, words = load_policy(plan, model, tokenizer, peft_config)
    policy = Policy(loaded, _sampler(config, loaded, words))
    problems = held_out_problems(config, None if rows is None else rows.items)
    inputs = RunInputs(
        plan,
        words,
        params,
        functions,
        _training_data(plan, loaded, words, train),
        encode(config, words, problems),
        held_out_groups(config, words, loaded, groups),
    )
    if config.epochs is not None:
        items = config.sample_groups or len(inputs.data)
        steps = -(-config.epochs * items // config.prompts_per_step)  # the last takes what it lacks from the next epoch
        inputs = dataclasses.replace(inputs, plan=dataclasses.replace(plan, settings=config.replace(steps=steps)))
    return dataclasses.replace(inputs, notices=(*plan.notices, *check(inputs, policy))), policy


def _sampler(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> TransformersSampler:
    ending = answer_ending(config, tokenizer, model)
    return TransformersSampler(model, tokenizer, tokens_per_batch=config.tokens_per_batch, ending=ending)


def _training_data(
    plan: RunPlan, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Rows | None
) -> TrainingData:
    config, given = plan.settings, None if rows is None else rows.items
    if plan.source == "written":
        return TrainingData(written=demonstrations(config, tokenizer, given, model))
    if plan.samples:
        return TrainingData(problems=encode(config, tokenizer, training_problems(config, given)))
    found = rows if rows is not None else read_rows(config, str(config.groups_data))
    found = found.first(config.train_problems)
    return logged_data(plan, offline_groups(config, tokenizer, model, found.items, source=found.name), model)


def logged_data(plan: RunPlan, groups: Sequence[LoggedGroup], model: "PreTrainedModel") -> TrainingData:
    """Return groups as the objective learns from them: whole, or as answers that are compared."""
    config = plan.settings
    if plan.objective.learns_from != "pairs":
        return TrainingData(logged=groups)
    compared = comparisons(groups, scores_differ=config.chosen_by != "softmax")
    context = context_length(model)
    return TrainingData(
        compared=with_weak_negatives(compared, config.weak_negatives, seed=config.seed, context=context)
    )
