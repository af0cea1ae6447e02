"""The teacher of a distillation: a model that is loaded, never trained and never written to a checkpoint."""

from typing import TYPE_CHECKING

import torch

from gvpo import activity
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, ModelError
from gvpo.model.known_tokens import largest_id, restrict
from gvpo.model.model import context_length, load_model, vocabulary_size
from gvpo.model.tokenizer import load_tokenizer
from gvpo.model_directories import require_model
from gvpo.update.distributed import ranks
from gvpo.update.precision import is_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGPROBS = "teacher_logprobs"
"""Input of objectives with the teacher's log-probs."""


def check_teacher(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that the teacher exists and that each token of the policy has the same id there.

    Raises:
        ModelError: If there is no such model, or it has other tokens.
        RunError: If the teacher is a run without a checkpoint.
    """
    if config.teacher is None:
        return
    own, other = tokenizer.get_vocab(), load_tokenizer(require_model(config.teacher)).get_vocab()
    unlike = next((token for token in sorted(own, key=own.__getitem__) if other.get(token) != own[token]), None)
    if unlike is not None:
        found = f"id {other[unlike]}" if unlike in other else "no id"
        raise ModelError(
            f"the teacher {config.teacher} has another tokenizer: {unlike!r} has id {own[unlike]} in the policy's and "
            f"{found} in the teacher's; use a teacher with the policy's tokens"
        )


def load_teacher(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel | None":
    """Return the frozen teacher, whose distribution is restricted to the policy's tokens; None without one.

    Its weights have the dtype that forwards compute in, because they never change.

    Raises:
        ModelError: If it cannot be loaded, or its embedding is smaller than the vocabulary.
        ConfigError: If sampling.max_tokens exceeds its context.
    """
    if config.teacher is None:
        return None
    path = ranks.on_first(lambda: require_model(str(config.teacher)))
    with activity.phase("loading the teacher"):
        teacher = load_model(
            path, dtype=torch.bfloat16 if is_half(config) else torch.float32, attention=config.attention
        )
    _require_fit(config, teacher, tokenizer)
    ranks.require_same_weights(teacher)
    if config.sharding == "none":  # otherwise it is moved to the device in parts
        teacher.to(ranks.device())  # type: ignore[arg-type]  # transformers' stubs forget the device
    restrict(teacher, tokenizer)
    teacher.requires_grad_(False).train(False)
    return teacher


def _require_fit(config: TrainConfig, teacher: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    known, context = vocabulary_size(teacher), context_length(teacher)
    if largest_id(tokenizer) >= known:
        raise ModelError(
            f"the teacher {config.teacher} has {known} tokens and the policy's tokenizer has ids up to "
            f"{largest_id(tokenizer)}; use a teacher with the policy's tokens"
        )
    if context is not None and config.max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens={config.max_tokens} leaves no room for a prompt in the teacher's context of "
            f"{context} tokens; lower it"
        )
