"""Everything that samples for a run: its engine, the publisher of the policy's weights to it, and its episodes."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from gvpo.config import TrainConfig
from gvpo.model.model import context_length
from gvpo.rollout.episodes.setup import open_episodes
from gvpo.sampling import Sampler, shares_model
from gvpo.training.engine.agreement import compare_with_policy
from gvpo.training.engine.open import engine_of
from gvpo.training.engine.publish import Publisher
from gvpo.training.inputs import Policy, RunInputs
from gvpo.training.learner import Learner

ENVIRONMENTS_LOG = "environments.log"
"""File with the output of the environments."""


@dataclass(frozen=True)
class Sampling:
    """Sampler of a run and what belongs to it.

    Args:
        sampler: Sampler of completions, or of episodes if the run has an environment.
        publisher: Publisher of the policy's weights to the engine.
        context: Function that returns the context in which the sampler samples.
    """

    sampler: Sampler
    publisher: Publisher
    context: Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def open_sampling(
    inputs: RunInputs, policy: Policy, config: TrainConfig, learner: Learner, path: Path
) -> Iterator[Sampling]:
    """Open the engine, the publisher and the environments of a run; they live as long as the context.

    Args:
        inputs: Inputs of the run.
        policy: The policy.
        config: Settings, with the compute dtype resolved.
        learner: Learner of the policy.
        path: Directory of the run.

    Raises:
        GvpoError: If one of them cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engine_of(inputs, policy, config, learner.autocast))
        check = functools.partial(compare_with_policy, inputs, policy, engine, learner, config)
        publisher = Publisher(policy.model, engine, config.sampling_transfer_dir, check)
        stack.callback(publisher.close)
        sampler = stack.enter_context(with_episodes(inputs, policy, engine, log=path / ENVIRONMENTS_LOG))
        yield Sampling(sampler, publisher, learner.sampling if shares_model(engine) else contextlib.nullcontext)


def with_episodes(
    inputs: RunInputs, policy: Policy, sampler: Sampler, *, log: Path | None = None
) -> AbstractContextManager[Sampler]:
    """Return a context with the sampler of the run's episodes; the sampler itself if there is no environment."""
    return open_episodes(
        inputs.settings,
        inputs.environment,
        sampler,
        inputs.tokenizer,
        policy.sampler.ending,
        context=context_length(policy.model),
        log=log,
    )
