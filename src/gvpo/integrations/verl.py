"""verl: exact GVPO in every update of a rollout, as a library that verl's workers import.

    actor_rollout_ref.model.external_lib=gvpo.integrations.verl
    actor_rollout_ref.actor.policy_loss.loss_mode=gvpo
    actor_rollout_ref.actor.kl_loss_coef=0.1                     # beta
    actor_rollout_ref.actor.ppo_mini_batch_size=...              # data.train_batch_size

A policy loss of verl sees one micro-batch, and the factor of a row depends on its whole group. So before each optimizer
step the worker computes the log-probs of all its rows, exchanges R - beta l with the other data-parallel ranks, and
writes the factors where the loss reads advantages. Only public methods of verl's engines are called.
"""

import functools
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import verl
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from gvpo.errors import ConfigError, GvpoWarning

LOSS = "gvpo"
"""Value of `actor.policy_loss.loss_mode`."""

TESTED = "0.9.1"
"""Version of verl that the tests run."""

Row = tuple[Hashable, float]
"""A row's group, and its R - beta l."""


@register_policy_loss(LOSS)  # type: ignore[untyped-decorator]
def linear_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-sum",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return -sum(advantages * log_prob) over the scored tokens of a micro-batch, for factors in place of advantages.

    Args:
        old_log_prob: Not read.
        log_prob: [B, T], with gradient.
        advantages: [B, T] factors of the rows.
        response_mask: [B, T], 1 on scored tokens.
        loss_agg_mode: Not read; the factors contain the mean over groups.
        config: Settings of verl's actor.
        rollout_is_weights: Not read; GVPO needs no importance weights.

    Returns:
        The loss, times the number of data-parallel ranks, over which the engines average; and no metrics.
    """
    ranks = config.global_batch_info["dp_size"]
    return agg_loss(-advantages * log_prob, response_mask, "token-sum", dp_size=ranks), {}


def row_factors(own: Sequence[Row], rows: Sequence[Row], beta: float) -> list[float]:
    """Return the factor of each own row's log-probs: GVPO's weight times beta / (k - 1) / groups.

    Args:
        own: Rows of this rank.
        rows: Rows of all ranks, with these.
        beta: Strength of the pull to the reference, in reward per nat.

    Raises:
        ConfigError: If a group has one row.
    """
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for name, value in rows:
        groups[name].append(value)
    if any(len(values) < 2 for values in groups.values()):
        raise ConfigError("GVPO compares completions of a prompt, and a prompt has one; set rollout.n to at least 2")
    means = {name: sum(values) / len(values) for name, values in groups.items()}
    shares = {name: beta / (len(values) - 1) / len(groups) for name, values in groups.items()}
    return [shares[name] * (value - means[name]) for name, value in own]


def install() -> None:
    """Wrap `TrainingWorker.train_mini_batch` and `train_batch`; importing this module does it.

    Workers whose `loss_mode` is another one are not changed.

    Raises:
        ConfigError: If this version of verl has no such methods.
    """
    missing = [name for name in ("train_mini_batch", "train_batch", "set_loss_fn") if not hasattr(TrainingWorker, name)]
    if missing:
        raise ConfigError(f"verl {verl.__version__} has no TrainingWorker.{missing[0]}; install verl {TESTED}")
    if verl.__version__ != TESTED:
        warnings.warn(GvpoWarning(f"gvpo is tested with verl {TESTED}, not {verl.__version__}"), stacklevel=2)
    TrainingWorker.train_mini_batch = _before(TrainingWorker.train_mini_batch, _refuse_parts)
    TrainingWorker.train_batch = _before(TrainingWorker.train_batch, _write_factors)


def _before(method: Callable[..., Any], step: Callable[..., None]) -> Callable[..., Any]:
    """Return the method with a step before it on workers that train with GVPO's loss."""

    @functools.wraps(method)  # keeps how verl dispatches the method
    def wrapped(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        config = _actor_config(self)
        if config is not None:
            step(self, data, config)
        return method(self, data, *args, **kwargs)

    return wrapped


def _actor_config(worker: Any) -> Any:
    """Return the settings of an actor whose loss is GVPO's, or None."""
    config = getattr(worker.loss_fn, "keywords", {}).get("config")
    policy_loss = getattr(config, "policy_loss", None)
    return config if policy_loss is not None and policy_loss.get("loss_mode") == LOSS else None


def _refuse_parts(worker: Any, data: TensorDict, config: Any) -> None:
    """Refuse mini-batches that are a part of the rollout, because verl does not keep groups together in them."""
    if config.use_kl_loss:
        raise ConfigError("GVPO has its KL in the weights; set actor_rollout_ref.actor.use_kl_loss=False")
    rows = data.shape[0] * worker.engine.get_data_parallel_size()
    size = tu.get(data, "mini_batch_size")
    size = rows // (tu.get(data, "num_mini_batch") or 1) if size is None else size
    if size != rows:
        raise ConfigError(
            f"GVPO needs whole groups in an optimizer step, and a mini-batch has {size} of the rollout's {rows} rows; "
            "set actor_rollout_ref.actor.ppo_mini_batch_size to data.train_batch_size"
        )


def _write_factors(worker: Any, data: TensorDict, config: Any) -> None:
    """Write the factors of the rows at the current weights into `advantages`."""
    log_probs = _score(worker, data)
    if log_probs is None:
        return  # a stage of a pipeline that computes no loss
    reference = "ref_log_prob" if "ref_log_prob" in data else "old_log_probs"
    rewards = next((name for name in ("rm_scores", "token_level_scores") if name in data), None)
    if rewards is None or "uid" not in data or reference not in data:
        raise ConfigError(
            f"verl {verl.__version__} does not give uid, rewards and log-probs to its workers; use {TESTED}"
        )
    padded = data.select("response_mask", reference, rewards).to_padded_tensor()
    mask = padded["response_mask"].double()
    log_ratios = ((log_probs.double() - padded[reference]) * mask).sum(1)
    values = padded[rewards].double().sum(1) - config.kl_loss_coef * log_ratios
    scored = mask.sum(1) > 0  # verl fills its batches with rows of no group, whose mask is empty
    own = [
        row for row, real in zip(zip(tu.get(data, "uid"), values.tolist(), strict=True), scored, strict=True) if real
    ]
    factors = torch.zeros_like(values)
    factors[scored] = torch.tensor(row_factors(own, _gathered(worker, own), config.kl_loss_coef), dtype=values.dtype)
    advantages = (factors[:, None] * mask).float()
    nested = data["response_mask"].is_nested
    data["advantages"] = response_to_nested(advantages, data["response_mask"]) if nested else advantages


def _score(worker: Any, data: TensorDict) -> Tensor | None:
    """Return the log-probs of the responses at the current weights, [B, T] on the data's device."""
    inputs = data.clone(recurse=False)
    settings = worker.engine_config
    tu.assign_non_tensor(
        inputs,
        calculate_entropy=False,
        use_remove_padding=worker.model_config.get("use_remove_padding", False),
        use_fused_kernels=settings.use_fused_kernels,
        use_dynamic_bsz=settings.use_dynamic_bsz,
        max_token_len_per_gpu=settings.infer_max_token_len_per_gpu or settings.max_token_len_per_gpu,
        micro_batch_size_per_gpu=settings.infer_micro_batch_size_per_gpu or settings.micro_batch_size_per_gpu,
    )
    offload = tu.get(data, "disable_auto_offload", default=False)
    with worker.engine.eval_mode(disable_auto_offload=offload):
        output = worker.engine.infer_batch(inputs, loss_function=None)
    found = output.get("model_output", {}).get("log_probs")
    return None if found is None else no_padding_2_padding(found.to(data["response_mask"].device), data)


def _gathered(worker: Any, own: list[Row]) -> list[Row]:
    """Return the rows of all data-parallel ranks."""
    group = worker.engine.get_data_parallel_group()
    if group is None or worker.engine.get_data_parallel_size() == 1:
        return own
    parts: list[list[Row]] = [[] for _ in range(worker.engine.get_data_parallel_size())]
    torch.distributed.all_gather_object(parts, own, group=group)
    return [row for part in parts for row in part]


install()
