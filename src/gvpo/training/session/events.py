"""Events of a run for its callbacks."""

from collections.abc import Sequence
from typing import Any

from gvpo.callbacks import Events
from gvpo.training.inputs import Policy, RunInputs


def events_of(inputs: RunInputs, policy: Policy, callbacks: Sequence[Any] = ()) -> Events:
    """Return the events of a run that these callbacks receive.

    Raises:
        ConfigError: If a callback is not one of transformers.
    """
    return Events(
        callbacks,
        inputs.settings,
        items=inputs.settings.sample_groups or len(inputs.data),
        evaluates=bool(inputs.held_out or inputs.held_groups),
        model=policy.model,
        tokenizer=inputs.tokenizer,
    )
