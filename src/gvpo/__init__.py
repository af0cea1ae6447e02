"""Post-train language models with Group Variance Policy Optimization and its family.

Public names are imported on first use, so that `import gvpo` and `gvpo --help` do not wait for torch.
"""

from typing import TYPE_CHECKING

from gvpo import lazy

if TYPE_CHECKING:
    from gvpo import errors as errors
    from gvpo import objectives as objectives
    from gvpo import rewards as rewards
    from gvpo.config import TrainConfig as TrainConfig
    from gvpo.errors import GvpoError as GvpoError
    from gvpo.errors import GvpoWarning as GvpoWarning
    from gvpo.errors import MissingLogprobs as MissingLogprobs
    from gvpo.model.model import load_model as load_model
    from gvpo.model.tokenizer import load_tokenizer as load_tokenizer
    from gvpo.objectives import ObjectiveOutput as ObjectiveOutput
    from gvpo.report import write_report as write_report
    from gvpo.rewards import reward as reward
    from gvpo.sampling import Request as Request
    from gvpo.sampling import SamplingParams as SamplingParams
    from gvpo.sampling.transformers import TransformersSampler as TransformersSampler
    from gvpo.training.allocator import keep_freed_memory as keep_freed_memory
    from gvpo.training.checkpoint.publish import push_to_hub as push_to_hub
    from gvpo.training.trainer import Trainer as Trainer
    from gvpo.types import Completion as Completion
    from gvpo.types import Group as Group
    from gvpo.types import PreferencePair as PreferencePair
    from gvpo.types import Problem as Problem
    from gvpo.types import Verdict as Verdict
    from gvpo.update.group_backward import TokenLogprobs as TokenLogprobs
    from gvpo.update.group_backward import UpdateOutput as UpdateOutput
    from gvpo.update.group_backward import group_backward as group_backward
    from gvpo.update.group_backward import score as score

__all__, __getattr__, __dir__ = lazy.exports(__name__)
