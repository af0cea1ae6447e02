"""Post-train language models with Group Variance Policy Optimization and its family.

The public names are loaded when they are first used, so that `import gvpo` and `gvpo --help` do not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gvpo import errors, objectives, rewards
    from gvpo.config import TrainConfig
    from gvpo.errors import GvpoError, GvpoWarning, MissingLogprobs
    from gvpo.model.model import load_model
    from gvpo.model.tokenizer import load_tokenizer
    from gvpo.objectives import ObjectiveOutput
    from gvpo.report import write_report
    from gvpo.sampling import Request, SamplingParams
    from gvpo.sampling.transformers import TransformersSampler
    from gvpo.training.allocator import keep_freed_memory
    from gvpo.training.checkpoint.publish import push_to_hub
    from gvpo.training.trainer import Trainer
    from gvpo.types import Completion, Group, PreferencePair, Problem, Verdict
    from gvpo.update.group_backward import TokenLogprobs, UpdateOutput, group_backward, score

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
    "TokenLogprobs",
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
    "TokenLogprobs": "gvpo.update.group_backward",
    "TrainConfig": "gvpo.config",
    "Trainer": "gvpo.training.trainer",
    "TransformersSampler": "gvpo.sampling.transformers",
    "UpdateOutput": "gvpo.update.group_backward",
    "Verdict": "gvpo.types",
    "group_backward": "gvpo.update.group_backward",
    "keep_freed_memory": "gvpo.training.allocator",
    "load_model": "gvpo.model.model",
    "load_tokenizer": "gvpo.model.tokenizer",
    "push_to_hub": "gvpo.training.checkpoint.publish",
    "score": "gvpo.update.group_backward",
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
