"""Environments: what the policy talks to, in several turns. Text only; this package does not import torch."""

from gvpo.environments.base import Environment, EnvironmentSpec, Turn
from gvpo.environments.pool import Answer, EnvironmentPool, Start
from gvpo.environments.registry import ENVIRONMENTS, load_environment

__all__ = [
    "ENVIRONMENTS",
    "Answer",
    "Environment",
    "EnvironmentPool",
    "EnvironmentSpec",
    "Start",
    "Turn",
    "load_environment",
]
