"""Environments: what the policy talks to, in several turns. Text only; this package does not import torch.

Public names are imported on first use, so that workers start quickly.
"""

from typing import TYPE_CHECKING

from gvpo import lazy

if TYPE_CHECKING:
    from gvpo.environments.base import Environment as Environment
    from gvpo.environments.base import EnvironmentSpec as EnvironmentSpec
    from gvpo.environments.base import Turn as Turn
    from gvpo.environments.calls import Answer as Answer
    from gvpo.environments.calls import Start as Start
    from gvpo.environments.pool import EnvironmentPool as EnvironmentPool
    from gvpo.environments.registry import ENVIRONMENTS as ENVIRONMENTS
    from gvpo.environments.registry import load_environment as load_environment

__all__, __getattr__, __dir__ = lazy.exports(__name__)
