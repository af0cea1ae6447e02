"""Files, rewards and environments that settings name, checked in milliseconds, before torch is imported."""

from gvpo.config import TrainConfig
from gvpo.data import require_file
from gvpo.environments.registry import require_environment, require_tool
from gvpo.model_directories import require_adapter, require_directory, require_model
from gvpo.rewards import is_model_name, require_named
from gvpo.rollout.problems import find_task


def require_files(config: TrainConfig) -> None:
    """Check that a run's data, models, rewards, environment and task exist; their contents are checked later.

    Raises:
        DataError, ModelError, RewardError, EpisodeError, ConfigError: If one of them does not; the message names it.
        RunError: If model.path is a run without a checkpoint.
    """
    find_task(config)
    require_data(config)
    for name in config.reward_funcs:
        function = config.reward_options.get(name, {}).get("reward")
        if function is None and is_model_name(name):
            require_directory(name, "reward model")
        else:
            require_named(str(function or name))
    if config.environment is not None:
        require_environment(config.environment)
    for name in config.environment_tools:
        require_tool(name)
    if config.model_path is not None:
        require_model(config.model_path)
    if config.tokenizer is not None:
        require_directory(config.tokenizer, "tokenizer")
    if config.lora_path is not None:
        require_adapter(config.lora_path)


def require_data(config: TrainConfig) -> None:
    """Check that the data files exist.

    Raises:
        DataError: If a file is missing; the message names it.
    """
    given = config.rollout_logged_path if config.rollout_logged else None
    for rows in (config.groups_data, config.eval_groups, config.train_data, config.eval_data, given):
        if rows is not None:
            require_file(rows)
