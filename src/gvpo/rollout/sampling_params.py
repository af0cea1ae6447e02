"""Sampling parameters from settings."""

from gvpo.config import TrainConfig
from gvpo.sampling import SamplingParams, support_warning
from gvpo.sampling.exclusion import parse_exclusion


def sampling_params(config: TrainConfig) -> SamplingParams:
    """Return the settings' sampling parameters.

    Raises:
        ConfigError: If an exclusion is invalid.
    """
    return SamplingParams(
        group_size=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop_token_ids=tuple(config.stop_token_ids),
        exclusion=parse_exclusion(config.sampling_allow, config.sampling_ban),
    )


def samples_exactly(config: TrainConfig) -> bool:
    """Return whether rows are samples of the policy itself: at temperature 1, without excluded tokens or rows."""
    return config.temperature == 1 and config.overlong_completions == "keep" and not truncates(config)


def truncates(config: TrainConfig) -> bool:
    """Return whether rows are sampled from a part of the tokens."""
    return support_warning(sampling_params(config)) is not None
