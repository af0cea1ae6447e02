"""Checks of a run that need more than its settings; they are the second of two phases.

check_surroundings ──▶ check_rewards ──▶ (the model) check_routing, check_fit ──▶ (the data) check

Rules between settings are in `gvpo.config.rules`. Each function here is called once per run.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.config import RunPlan, TrainConfig
from gvpo.config.aliases import unknown_argument
from gvpo.config.defaults import overlaps
from gvpo.config.from_trl import DEFAULTS
from gvpo.data import is_data_set
from gvpo.errors import ConfigError, DataError, ModelError, type_of
from gvpo.model import lora
from gvpo.model.known_tokens import largest_id
from gvpo.model.model import context_length, is_model, vocabulary_size
from gvpo.model.tokenizer import is_tokenizer
from gvpo.rewards import RewardBatch, RewardFunc, check_ready
from gvpo.rewards.base import RewardSignature
from gvpo.rewards.pool.checks import require_columns
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.episodes.setup import turn_template
from gvpo.rollout.given.checks import check_given_rows
from gvpo.rollout.given.expert import expert_endpoint
from gvpo.rollout.offline import check_temperature, require_logprobs
from gvpo.rollout.order import NOTHING
from gvpo.rollout.required_files import require_data
from gvpo.sampling import SamplingParams, ratio_warning, support_warning
from gvpo.training.checkpoint.publish import check_hub
from gvpo.training.trackers import check_trackers
from gvpo.update.distributed import ranks
from gvpo.update.experts.routers import routers_of
from gvpo.workers.state import STATEFUL

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gvpo.training.inputs import Policy, RunInputs

LEAST_ADAPTER_RATE, LARGEST_FULL_RATE = 3e-6, 1e-4
"""Learning rates below or above which a run warns: clearly outside what is usual."""
PRETRAINED_SIZE = 50_000_000
"""Number of parameters from which a model that is not new is taken for a pretrained one."""
ANSWERS = ("answer", "answers", "solution", "solutions", "ground_truth", "target", "label", "reference_answer")
"""Usual names of columns with right answers."""


def check_arguments(model: Any, settings: Any, datasets: Iterable[Any], tokenizer: Any) -> None:
    """Check the types of the trainer's arguments.

    Raises:
        ConfigError, ModelError, DataError: If an argument has the wrong type; the message says what to pass.
    """
    if settings is not None and not isinstance(settings, TrainConfig):
        kind = type(settings).__name__
        way = "TrainConfig.from_trl(args)" if kind in DEFAULTS else "TrainConfig(beta=0.1, ...)"
        raise ConfigError(f"args is a {kind}; pass {way}")
    if not (isinstance(model, str | Path) or is_model(model)):
        raise ModelError(f"the model is {type_of(model)}; pass a directory, a Hub model ID or a transformers model")
    if tokenizer is not None and not is_tokenizer(tokenizer):
        raise ModelError(
            f"processing_class is {type_of(tokenizer)}; pass a tokenizer, for example from gvpo.load_tokenizer"
        )
    for given in datasets:
        if given is None or isinstance(given, str | Path) or is_data_set(given):
            continue
        if isinstance(given, Mapping):
            raise DataError(
                f"the dataset is {type_of(given)} of {', '.join(map(str, given))}; pass one of them, or a list of rows"
            )
        raise DataError(
            f"the dataset is {type_of(given)}; pass rows, a `datasets` dataset, a data frame, a file or Hub ID"
        )


def refuse_others(others: Mapping[str, object], known: Iterable[str], method: str = "") -> None:
    """Raise an error for arguments that the trainer does not have, unless they are empty, as `ref_model=None` is.

    Args:
        others: The arguments.
        known: Names of the arguments that exist.
        method: Method of the trainer; "" for its constructor.

    Raises:
        ConfigError: The message says what to do instead.
    """
    for name, value in others.items():
        is_empty = value is None or value is False or (isinstance(value, tuple) and all(each is None for each in value))
        if not is_empty:
            raise ConfigError(unknown_argument(name, known, method))


def check_surroundings(config: TrainConfig) -> None:
    """Check files, trackers and names on the Hub before a model is loaded or warmed up.

    Raises:
        DataError, ConfigError: If one of them cannot be used; the message names the file or the setting.
    """
    require_data(config)
    if config.rollout_expert:
        expert_endpoint(config)
    check_trackers(config)
    check_hub(config)


def check_rewards(plan: RunPlan, rewards: Mapping[str, RewardFunc], *, held_out: bool) -> None:
    """Check that a run's rewards are present, match its settings and have their packages.

    Args:
        plan: Plan of the run.
        rewards: Reward functions by name.
        held_out: Whether held-out problems are passed.

    Raises:
        ConfigError, RewardError: If a reward is missing or unusable; the message says what to set.
    """
    config = plan.settings
    if not rewards and plan.samples and plan.objective.needs_rewards:
        raise ConfigError("there is no reward: set rewards.funcs, or pass reward_funcs")
    if not rewards and plan.source == "sampled once":
        raise ConfigError("data.sample_groups stores groups with rewards, and there is no reward: set rewards.funcs")
    unknown = [name for name in config.costs or () if rewards and name not in rewards]
    if unknown:
        raise ConfigError(f"objective.costs names {unknown[0]!r}, which is not one of {', '.join(rewards)}")
    stateful = [name for name, function in rewards.items() if getattr(function, STATEFUL, False) is True]
    if stateful and overlaps(config):
        raise ConfigError(
            f"the reward {stateful[0]!r} keeps a state, whose order would depend on time with rollout.asynchronous; "
            "set rollout.max_staleness to 0, or remove one"
        )
    judge = config.accuracy_reward
    if judge is not None and judge not in rewards:
        raise ConfigError(f"rewards.accuracy_reward={judge!r} is not one of the rewards: {', '.join(rewards)}")
    judged = [key for key in ("curriculum", "dead_groups") if getattr(config, f"rollout_{key}") not in ("none", "keep")]
    if not rewards and judged and plan.samples:
        raise ConfigError(f"rollout.{judged[0]} follows rewards, and there are none: set rewards.funcs")
    if not rewards and held_out:
        raise ConfigError("eval_dataset needs a reward for its scores: set rewards.funcs, or pass reward_funcs")
    if plan.samples or plan.evaluates:
        check_ready(rewards.values())  # it fails now, before a model is loaded, and not at the first scoring


def check(inputs: "RunInputs", policy: "Policy") -> list[str]:
    """Apply the rules that need model, tokenizer and data together.

    Returns:
        Notices about settings that work but are rarely intended.

    Raises:
        GvpoError: If the run cannot work; the message says what to do.
    """
    policy.sampler.check([], inputs.params)
    policy.sampler.exclusion(inputs.params)
    for problems in (inputs.held_out, inputs.data.problems):
        check_columns(inputs.rewards, problems, episodes=inputs.environment is not None)
    if not inputs.data:
        raise DataError(NOTHING)
    if inputs.environment is not None:
        turn_template(inputs.settings, inputs.tokenizer, policy.sampler.ending, inputs.environment)
    check_ranks(inputs.settings)
    check_temperature(inputs.settings, inputs.data.logged)
    ratios, given = "old_logprobs" in inputs.plan.objective.needs, [logged.group for logged in inputs.data.given]
    check_given_rows(inputs.settings, inputs.data.problems, given, ratios=ratios)
    return [
        *sampling_notices(inputs.plan, inputs.params),
        *overlap(inputs).notices(),
        *_of_columns(inputs.rewards, inputs.data.problems),
        *rate_notices(inputs.settings, policy.model),
    ]


def check_ranks(config: TrainConfig) -> None:
    """Check that the engine can sample for several processes.

    Raises:
        ConfigError: If it cannot; the message says what to set.
    """
    if ranks.count() > 1 and config.rollout_asynchronous and config.sampling_engine == "transformers":
        raise ConfigError(
            "rollout.asynchronous with several processes needs an engine of its own: set sampling.engine='server', or "
            "start one process"
        )


def check_old_logprobs(inputs: "RunInputs") -> None:
    """Check that logged groups have the log-probs that an objective with ratios reads.

    A run that was started by an earlier version and is resumed reads none, so this follows `RunPlan.started_as`.

    Raises:
        DataError: If a completion has none; the message contains the number of its row.
    """
    c = inputs.settings
    if inputs.plan.trains_old_rows and (c.rollout_old_logprobs == "sampler" or c.is_cap is not None):
        require_logprobs(inputs.data.logged, c.objective)


def sampling_notices(plan: RunPlan, params: SamplingParams) -> Iterator[str]:
    """Yield notices about how a truncated sampling distribution affects the objective."""
    cut_off = support_warning(params, plan.settings.objective) if plan.objective.needs_support else None
    corrected = plan.settings.rollout_old_logprobs == "sampler" or plan.settings.is_cap is not None
    if "old_logprobs" in plan.objective.needs and not corrected:
        cut_off = ratio_warning(params, plan.settings.objective)
    if cut_off is not None:
        yield cut_off


def check_fit(
    config: TrainConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, samples: bool = True
) -> None:
    """Check that the tokenizer's tokens, the lengths and the stop tokens fit the model.

    Args:
        config: Settings of the run.
        model: The policy.
        tokenizer: Tokenizer to use with the policy.
        samples: Whether training samples from the policy, so that the longest completion must leave room for a prompt.

    Raises:
        ModelError: If the tokenizer does not belong to the model.
        ConfigError: If sampling.max_tokens or sampling.stop_token_ids exceeds the model's limits.
    """
    known, context = vocabulary_size(model), context_length(model)
    largest = largest_id(tokenizer)
    if largest >= known:
        raise ModelError(
            f"the tokenizer has token ids up to {largest} but the model's embedding has only {known} rows; use the "
            "tokenizer that belongs to the model"
        )
    beyond = [token for token in config.stop_token_ids if not 0 <= token < known]
    if beyond:
        raise ConfigError(f"sampling.stop_token_ids contains {beyond[0]}, but the model's tokens are 0 to {known - 1}")
    if samples and context is not None and config.max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens={config.max_tokens} leaves no room for a prompt in the model's context of {context} "
            "tokens; lower it"
        )


def check_routing(config: TrainConfig, model: "PreTrainedModel") -> None:
    """Check that a model with mixture-of-experts settings is one.

    Raises:
        ModelError: If the model has no known routers.
    """
    if config.routing != "free" or config.router_aux_coef > 0:
        routers_of(model)


@dataclass(frozen=True)
class Overlap:
    """Number of held-out prompts that are trained on, and of all held-out prompts."""

    shared: int
    held_out: int

    @property
    def share(self) -> float:
        """Return the fraction of held-out prompts that are trained on."""
        return self.shared / max(1, self.held_out)

    def notices(self) -> Iterator[str]:
        """Yield a notice about these prompts, since their results include memorization."""
        if self.shared:
            yield (
                f"{self.shared} of {self.held_out} held-out prompts are training prompts too, so evaluation does not "
                "show what the model can do on new prompts; hold out other rows"
            )


def overlap(inputs: "RunInputs") -> Overlap:
    """Return how many held-out prompts of a run are training prompts too."""
    trained = inputs.data.prompts()
    evaluated = [*(item.prompt for item in inputs.held_out), *(group.prompt for group in inputs.held_groups)]
    return Overlap(sum(tuple(prompt) in trained for prompt in evaluated), len(evaluated))


def _of_columns(rewards: Mapping[str, RewardFunc], items: Sequence[EncodedProblem]) -> Iterator[str]:
    """Yield notices about answers that no reward reads, and about optional arguments for answers that no row has."""
    columns = {name for item in items for name in item.problem.columns}
    signatures = {name: RewardSignature.by(function) for name, function in rewards.items()}
    read = {argument for signature in signatures.values() for argument in signature.named}
    unread = [name for name in ANSWERS if name in columns and name not in read]
    if unread and signatures and not any(signature.everything for signature in signatures.values()):
        yield (
            f"no reward reads the column {unread[0]!r}, so answers are not compared with it; name it as an argument of "
            "the reward, or drop the column"
        )
    for reward, signature in signatures.items():
        absent = [name for name in ANSWERS if name in signature.named - signature.required - columns]
        if absent and items:
            yield (
                f"the reward {reward!r} names the argument {absent[0]!r}, but no row has this column, so its default "
                "is used; add the column, or rename the argument"
            )


def rate_notices(config: TrainConfig, model: "PreTrainedModel") -> Iterator[str]:
    """Yield a notice about a learning rate that is far from those that usually work."""
    rate, adapted = config.learning_rate, lora.is_adapted(model)
    if adapted and rate < LEAST_ADAPTER_RATE:
        yield f"train.learning_rate={rate:g} is low for an adapter; 1e-5 to 1e-4 is usual (`gvpo docs objectives`)"
    pretrained = config.model_init is None and model.num_parameters() >= PRETRAINED_SIZE
    if pretrained and not adapted and rate > LARGEST_FULL_RATE:
        yield (
            f"train.learning_rate={rate:g} is high for all weights of a pretrained model; 1e-6 to 1e-5 is usual "
            "(`gvpo docs objectives`)"
        )


def check_columns(rewards: Mapping[str, RewardFunc], items: Sequence[EncodedProblem], *, episodes: bool) -> None:
    """Check that the columns that the rewards need exist, and the turns if completions are episodes.

    Raises:
        RewardError: If no problem has a column; the message names the reward and the column.
    """
    turns = [()] if episodes else ()
    batches = [RewardBatch(item.problem.prompt, [""], item.problem.columns, [[0]], turns) for item in items]
    require_columns(list(rewards), [RewardSignature.by(function) for function in rewards.values()], batches)
