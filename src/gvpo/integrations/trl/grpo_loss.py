"""TRL's GRPO loss as an objective of gvpo's update: the sum of the losses of an optimizer step's micro-batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gvpo.objectives import ObjectiveOutput

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
SUPPORTED = (*CLIPPED, "cispo", "sapo")
"""Values of `loss_type`; TRL itself computes the others."""


@dataclass(frozen=True)
class TrlLoss:
    """The loss of TRL's GRPOTrainer.

    Args:
        settings: The GRPOConfig.
        beta: Weight of the KL term.
    """

    settings: Any
    beta: float

    def __call__(
        self,
        logprobs: Tensor,
        *,
        mask: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        scale: Tensor,
        ref_logprobs: Tensor | None = None,
        sampler_ratio: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Return the loss of a whole optimizer step, on all ranks.

        Args:
            logprobs: [B, T] log-probs of the policy, nats.
            mask: [B, T], 1 on tokens that the policy wrote.
            old_logprobs: [B, T] log-probs that ratios are relative to, nats.
            advantages: [B].
            scale: [B] weight of the sum over each row's tokens, from `row_scale`.
            ref_logprobs: [B, T] log-probs of the reference, nats; read if beta is not 0.
            sampler_ratio: [B, T] or [B] TRL's importance weights for vLLM.
        """
        gain = advantages[:, None].to(logprobs.dtype)
        ratio = self._log_ratio(logprobs - old_logprobs, mask).exp()
        per_token = self._policy_loss(ratio, gain, logprobs)
        if sampler_ratio is not None:
            per_token = per_token * (sampler_ratio if sampler_ratio.ndim > 1 else sampler_ratio[:, None]).to(gain.dtype)
        metrics = self._clip_metrics(ratio.detach(), gain, mask)
        if self.beta != 0.0 and ref_logprobs is not None:
            ahead = ref_logprobs - logprobs
            divergence = ahead.exp() - ahead - 1
            divergence = divergence * ratio if self.settings.use_bias_correction_kl else divergence
            per_token = per_token + self.beta * divergence
            metrics["kl"] = _token_mean(divergence.detach(), mask)
        return ObjectiveOutput((scale * (per_token * mask).sum(1)).sum(), metrics)

    def row_scale(self, mask: Tensor, *, micro_batches: int, ranks: int, tokens: Tensor) -> Tensor:
        """Return [b] the weight of the sum over each row's tokens in the loss of a whole optimizer step.

        Args:
            mask: [b, C] of a micro-batch, 1 on tokens that the policy wrote.
            micro_batches: Number of micro-batches of the step on each rank.
            ranks: Number of ranks, over which DDP averages.
            tokens: TRL's `num_items_in_batch`, the number of tokens of the whole generation on all ranks.
        """
        rows, lengths, parts = len(mask), mask.sum(1).double(), micro_batches * ranks
        kind = self.settings.loss_type
        if kind in ("grpo", "sapo"):
            return 1 / (lengths.clamp(min=1) * rows * parts)
        if kind == "bnpo":
            return (1 / (lengths.sum().clamp(min=1) * parts)).expand(rows)
        if kind == "dr_grpo":
            return torch.full_like(lengths, 1 / (rows * int(self.settings.max_completion_length) * parts))
        if kind == "luspo":
            return torch.full_like(lengths, 1 / (rows * parts))
        share = float(micro_batches / self.settings.steps_per_generation)
        return (1 / (tokens.double().clamp(min=1) * share)).expand(rows)

    def _log_ratio(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """Return [B, T], or [B, 1] the mean over each row's tokens."""
        if self.settings.importance_sampling_level == "token":
            return log_ratio
        return ((log_ratio * mask).sum(1) / mask.sum(1).clamp(min=1.0))[:, None]

    def _policy_loss(self, ratio: Tensor, gain: Tensor, logprobs: Tensor) -> Tensor:
        settings = self.settings
        if settings.loss_type == "cispo":
            return -ratio.clamp(max=self._high).detach() * gain * logprobs
        if settings.loss_type == "sapo":
            heat = torch.where(gain > 0, float(settings.sapo_temperature_pos), float(settings.sapo_temperature_neg))
            return -torch.sigmoid(heat * (ratio - 1)) * 4 / heat * gain
        capped = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
        return -torch.minimum(capped * gain, ratio.clamp(1 - settings.epsilon, 1 + self._high) * gain)

    @property
    def _high(self) -> float:
        settings = self.settings
        return float(settings.epsilon if settings.epsilon_high is None else settings.epsilon_high)

    def _clip_metrics(self, ratio: Tensor, gain: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return TRL's metrics under TRL's names, as means over the tokens of the whole step."""
        if self.settings.loss_type == "cispo":
            return {"cispo_clip_ratio": _token_mean((ratio > self._high) & (gain > 0), mask)}
        if self.settings.loss_type not in CLIPPED:
            return {}
        capped = ratio if self.settings.delta is None else ratio.clamp(max=self.settings.delta)
        low = (capped < 1 - self.settings.epsilon) & (gain < 0)
        high = (capped > 1 + self._high) & (gain > 0)
        shares = {"low": low, "high": high, "region": low | high}
        metrics = {f"clip_ratio/{name}_mean": _token_mean(each, mask) for name, each in shares.items()}
        per_row = {name: (each * mask).sum(1) / mask.sum(1) for name, each in shares.items()}
        metrics["clip_ratio/low_min"] = _finite(per_row["low"]).min()
        metrics["clip_ratio/high_max"] = _finite(per_row["high"]).max()
        return metrics


def _finite(values: Tensor) -> Tensor:
    """Return the values of rows with tokens, or a single 0 if there are none."""
    values = values[values.isfinite()]
    return values if len(values) else values.new_zeros(1)


def _token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over tokens of values [B, T], or the mean over rows of values [B, 1]."""
    if values.shape[1] == 1:
        return values.to(mask.dtype).mean()
    return (values * mask).sum() / mask.sum().clamp(min=1.0)
