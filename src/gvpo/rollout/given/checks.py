"""Checks of the sources of given rows that need the data (`gvpo.config.rollout_rules` has the other rules)."""

from collections.abc import Sequence

from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, DataError
from gvpo.rollout.collect import EncodedProblem
from gvpo.rollout.given.logged import LoggedRows
from gvpo.rollout.sources.reuse import most_groups
from gvpo.types import Group


def check_given_rows(
    config: TrainConfig, prompts: Sequence[EncodedProblem], logged: Sequence[Group], *, ratios: bool
) -> None:
    """Check the sources of given rows against the prompts of a run.

    Args:
        config: Settings of the run.
        prompts: Prompts to sample completions of.
        logged: Groups of `rollout.logged_path`.
        ratios: Whether the objective has ratios, and therefore reads log-probs of the policies that sampled.

    Raises:
        ConfigError: If groups contain history, but no prompt occurs twice in the run.
        DataError: If the logged groups belong to other prompts, or lack log-probs.
    """
    evicts = config.rollout_max_age is not None or config.rollout_capacity is not None
    drawn = most_groups(config.steps, config.prompts_per_step, config.rollout_reuse, evicts=evicts)
    draws_again = config.rollout_dead_groups == "replace" or config.rollout_curriculum != "none"
    if config.rollout_history and drawn <= len(prompts) and not draws_again:
        raise ConfigError(
            f"rollout.history needs prompts that occur again, but {config.steps} steps use {drawn} of {len(prompts)} "
            f"prompts once: set data.train_problems below {drawn}, or more train.steps"
        )
    if config.rollout_logged:
        LoggedRows(logged, config.rollout_logged, seed=config.seed).check(prompts)
    if ratios and any(row.sampler_logprobs is None for group in logged for row in group.completions):
        raise DataError(
            f"{config.objective} needs the log-probs of the policy that sampled a completion, and a completion of "
            "rollout.logged_path has no `sampler_logprobs`; add them (`gvpo docs offline`), or choose an objective "
            "without ratios, such as gvpo"
        )
