"""From settings to how completions are drawn."""

from gvpo.config import TrainConfig
from gvpo.decoding import parse_exclusion
from gvpo.sampling import SamplingParams


def sampling_params(config: TrainConfig) -> SamplingParams:
    """What the settings say of sampling.

    Raises:
        ConfigError: an exclusion that cannot be.
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
