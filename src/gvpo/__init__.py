"""Post-train language models with Group Variance Policy Optimization and its family.

The public names are loaded when they are first used, so that `import gvpo` and `gvpo --help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo import errors, objectives, rewards
    from gvpo.config import TrainConfig
    from gvpo.errors import GvpoError, GvpoWarning, MissingLogprobs
    from gvpo.objectives import ObjectiveOutput
    from gvpo.policy.model import load_model
    from gvpo.policy.tokenizer import load_tokenizer
    from gvpo.report import write_report
    from gvpo.sampling import Request, SamplingParams
    from gvpo.sampling.transformers import TransformersSampler
    from gvpo.training.heap import keep_freed_memory
    from gvpo.training.hub import push_to_hub
    from gvpo.training.online import Trainer
    from gvpo.training.update import Scored, UpdateOutput, group_backward, score
    from gvpo.types import Completion, Group, PreferencePair, Problem, Verdict

__all__ = [
    "Completion",
    "Group",
    "GvpoError",
    "GvpoWarning",
    "MissingLogprobs",
    "ObjectiveOutput",
    "PreferencePair",
    "Problem",
    "Request",
    "SamplingParams",
    "Scored",
    "TrainConfig",
    "Trainer",
    "TransformersSampler",
    "UpdateOutput",
    "Verdict",
    "errors",
    "group_backward",
    "keep_freed_memory",
    "load_model",
    "load_tokenizer",
    "objectives",
    "push_to_hub",
    "rewards",
    "score",
    "write_report",
]

_HOME = {
    "Completion": "gvpo.types",
    "Group": "gvpo.types",
    "GvpoError": "gvpo.errors",
    "GvpoWarning": "gvpo.errors",
    "MissingLogprobs": "gvpo.errors",
    "ObjectiveOutput": "gvpo.objectives",
    "PreferencePair": "gvpo.types",
    "Problem": "gvpo.types",
    "Request": "gvpo.sampling",
    "SamplingParams": "gvpo.sampling",
    "Scored": "gvpo.training.update",
    "TrainConfig": "gvpo.config",
    "Trainer": "gvpo.training.online",
    "TransformersSampler": "gvpo.sampling.transformers",
    "UpdateOutput": "gvpo.training.update",
    "Verdict": "gvpo.types",
    "group_backward": "gvpo.training.update",
    "keep_freed_memory": "gvpo.training.heap",
    "load_model": "gvpo.policy.model",
    "load_tokenizer": "gvpo.policy.tokenizer",
    "push_to_hub": "gvpo.training.hub",
    "score": "gvpo.training.update",
    "write_report": "gvpo.report",
}


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"gvpo.{name}")
    raise AttributeError(f"module 'gvpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
