"""TRL's GRPOTrainer with whole optimizer steps: GVPO, and GRPO with gvpo's update.

TRL generates, scores rewards, evaluates, logs and saves as before. Only the step changes: the micro-batches of an
optimizer step are kept until the last of them, and then one exact update runs over all their rows.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gvpo import notices
from gvpo.errors import ConfigError
from gvpo.integrations.trl import engines, plain
from gvpo.integrations.trl.config import FastGRPOConfig, GVPOConfig
from gvpo.integrations.trl.grpo_loss import SUPPORTED, TrlLoss
from gvpo.integrations.trl.numbers import Numbers
from gvpo.integrations.trl.rows import (
    GROUP,
    REWARD,
    Row,
    Served,
    comparable,
    groups_of,
    part_of,
    rows_of,
    usable,
    window,
)
from gvpo.integrations.trl.surface import GRPOTrainer, check_classes, check_keys, check_trainer
from gvpo.objectives import ObjectiveOutput
from gvpo.objectives import gvpo as gvpo_objective
from gvpo.training.allocator import keep_freed_memory
from gvpo.types import Group
from gvpo.update.distributed import ranks
from gvpo.update.group_backward import UpdateOutput, group_backward

LEAST_BUDGET = 8192
"""Tokens per forward pass of gvpo's update, unless a micro-batch of TRL has more or a setting says otherwise."""


class _StepTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """A GRPOTrainer that updates once per optimizer step, from all its rows."""

    _updates_steps = True
    _current_train_step_time: float

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *more: Any, **named: Any) -> None:
        check_classes()
        self._served: list[Served] = []
        super().__init__(model, reward_funcs, args, *more, **named)
        check_trainer(self)

    def _calculate_rewards(self, *arguments: Any, **named: Any) -> Tensor:
        """Keep the rewards of all rows of all ranks, which TRL turns into advantages."""
        found: Tensor = super()._calculate_rewards(*arguments, **named)
        weighted = (found * self.reward_weights.to(found.device)).nansum(dim=1)
        self._rewards = weighted.masked_fill(found.isnan().all(dim=1), torch.nan)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Add each row's reward and the number of its group, which follow it through TRL's shuffle."""
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        check_keys(batch)
        size = self.num_generations if self.model.training else self.num_generations_eval
        first = self.accelerator.process_index * len(inputs)
        places = torch.arange(first, first + len(inputs), device=self.accelerator.device)
        return batch | {GROUP: places // size, REWARD: self._rewards[first : first + len(inputs)]}

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Serve a micro-batch, and in the last micro-step of an optimizer step run its update."""
        if not self._updates_steps:
            trls: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return trls
        began = time.perf_counter()
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        batch = self._prepare_inputs(inputs)
        self._served.append(Served(self._step // self.args.steps_per_generation, batch))
        loss = torch.zeros((), device=self.accelerator.device)
        if self.accelerator.sync_gradients:
            loss = self._update(model).to(loss)
            self._served.clear()
        self._step += 1
        self._time_step(time.perf_counter() - began)
        return loss

    def _update(self, model: nn.Module) -> Tensor:
        """Add the gradient of the step to `.grad`, log its metrics, and return its loss."""
        raise NotImplementedError

    def _time_step(self, seconds: float) -> None:
        self._current_train_step_time += seconds
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["step_time"].append(self._current_train_step_time)
            self._current_train_step_time = 0.0

    def _fast_backward(self, model: nn.Module, groups: list[Group], objective: Any, *, on_policy: bool) -> Tensor:
        """Run gvpo's update on groups that every rank has, and return the loss."""
        policy = engines.policy_of(self, model)
        with engines.without_autocast_wrapper(policy), self.accelerator.autocast():
            output = group_backward(
                policy,
                ranks.deal(groups),
                objective,
                tokens_per_microbatch=self._budget(groups),
                temperature=self.temperature,
                on_policy=on_policy,
                **self._router_loss(),
            )
        self._log_rows(output, groups)
        return self._finished(model, ObjectiveOutput(output.loss, output.metrics))

    def _router_loss(self) -> dict[str, Any]:
        return {"router_aux_coef": self.router_aux_loss_coef} if self.aux_loss_enabled else {}

    def _budget(self, groups: list[Group]) -> int:
        """Return the tokens per forward pass: no less than a micro-batch of TRL has with padding."""
        given: int | None = getattr(self.args, "tokens_per_microbatch", None)
        longest = max(len(group.prompt) + len(row.tokens) for group in groups for row in group.completions)
        return given or max(LEAST_BUDGET, self.args.per_device_train_batch_size * longest)

    def _log_rows(self, output: UpdateOutput, groups: list[Group]) -> None:
        """Log the mean entropy of the tokens that the policy wrote, as TRL does."""
        masks = [row.mask for group in groups for row in group.completions]
        scored = zip(output.rows, masks, strict=True)
        values = [row.entropy if mask is None else row.entropy[torch.as_tensor(mask) != 0] for row, mask in scored]
        entropy = torch.cat(values) if values else torch.zeros(0)
        self._metrics["train"]["entropy"].append(float(entropy.mean()) if len(entropy) else 0.0)

    def _finished(self, model: nn.Module, output: ObjectiveOutput) -> Tensor:
        """Log an update's metrics. Drop the gradient of a loss that is not finite, so that the step changes nothing."""
        for name, value in output.metrics.items():
            self._metrics["train"][name].append(float(value))
        if not output.loss.isfinite():
            model.zero_grad(set_to_none=True)
        return output.loss

    def _save_rng_state(self, output_dir: str) -> None:
        """Store the completions that are still to be trained on, which TRL would forget and sample again."""
        super()._save_rng_state(output_dir)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            batches = [{name: _on_cpu(value) for name, value in batch.items()} for batch in self._buffered_inputs]
            state = {"ranks": self.accelerator.num_processes, "step": self._step, "batches": batches}
            torch.save(state, self._rollout_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the completions that a checkpoint stores."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._rollout_file(checkpoint).is_file():
            return
        state = torch.load(self._rollout_file(checkpoint), map_location=self.accelerator.device, weights_only=True)
        if state["ranks"] != self.accelerator.num_processes:
            notices.warn(f"the checkpoint's completions are those of {state['ranks']} processes; new ones are sampled")
            return
        self._step, self._buffered_inputs = state["step"], state["batches"]

    def _rollout_file(self, directory: str) -> Path:
        return Path(directory) / f"gvpo_completions_{self.accelerator.process_index}.pt"


class GVPOTrainer(_StepTrainer):
    """TRL's GRPOTrainer with the exact GVPO gradient.

    Arguments, data sets, reward functions, generation, evaluation, logging and checkpoints are those of GRPOTrainer.
    Each optimizer step is one GVPO update over the whole groups of all its micro-batches and ranks, however
    accumulation cuts them. A row without a reward leaves its group, and with `mask_truncated_completions` a truncated
    row does too.

    Args:
        model: See GRPOTrainer.
        reward_funcs: See GRPOTrainer.
        args: A `GVPOConfig`.
        more: Further arguments of GRPOTrainer, in its order.
        named: Further arguments of GRPOTrainer, by name.

    Raises:
        ConfigError: If the settings split groups over optimizer steps, if the update could not be exact, or if this
            version of TRL lacks a name that is needed. The message contains what to use instead.
        ImportError: If TRL is not installed (at import).
    """

    _name = "GVPO"
    _tag_names = ("trl", "gvpo")
    _paper: Mapping[str, str] = {
        "title": "GVPO: Group Variance Policy Optimization for Large Language Model Post-Training",
        "id": "2504.19599",
        "citation": "",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *more: Any, **named: Any) -> None:
        args = GVPOConfig(_default_directory(model)) if args is None else args
        if not isinstance(args, GVPOConfig):
            raise ConfigError(
                f"GVPOTrainer needs a GVPOConfig, not a {type(args).__name__}; import it from the same module"
            )
        _require_a_name(model, args, named.get("peft_config"))
        super().__init__(model, reward_funcs, args, *more, **named)
        engines.refuse_adapter_dropout(self.accelerator.unwrap_model(self.model))
        self.engine = engines.choose(self, args.engine)
        self._numbers = _numbers(self)
        self._numbers.require_whole()
        if self._is_vlm and self._numbers.windows > 1:
            raise ConfigError("images need steps_per_generation of at most gradient_accumulation_steps; reduce it")
        if self.engine == "gvpo" and self.accelerator.device.type == "cpu":
            keep_freed_memory()

    @property
    def _objective(self) -> Callable[..., ObjectiveOutput]:
        return partial(gvpo_objective, beta=self.args.gvpo_beta)

    def _update(self, model: nn.Module) -> Tensor:
        parts = self._window()
        if self.engine == "trl":
            output = plain.backward(self, model, parts, self._objective)
            return torch.zeros(()) if output is None else self._finished(model, output)
        rows = [row for part in parts for row in self._rows(part)]
        groups = comparable(groups_of(row for rank in ranks.gather(rows) for row in rank))
        own = all(plain.reference_of(part.batch) is None for part in parts)
        return self._fast_backward(model, groups, self._objective, on_policy=own) if groups else torch.zeros(())

    def _window(self) -> list[Served]:
        """Return the micro-batches of this optimizer step, with whole groups over all ranks."""
        numbers, spg = self._numbers, self.args.steps_per_generation
        if numbers.windows == 1:
            return list(self._served)
        number = self._step % spg // numbers.accumulation
        batches = window(self._buffered_inputs, number, numbers.windows, numbers.rows)
        return [Served(self._step // spg, batch) for batch in batches]

    def _rows(self, part: Served) -> list[Row]:
        """Return the usable rows of a micro-batch."""
        batch = part_of(part.batch, usable(part.batch, mask_truncated=self.mask_truncated_completions))
        reference = plain.reference_of(batch)
        columns = {"reward": batch[REWARD]} | ({} if reference is None else {"ref_logprobs": reference})
        return list(rows_of(Served(part.turn, batch), columns))

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of an evaluation batch. Training does not call this."""
        return plain.loss_of(self, model, inputs, self._objective).to(self.accelerator.device)


class FastGRPOTrainer(_StepTrainer):
    """TRL's GRPOTrainer, with TRL's loss and gradient from gvpo's update, which shares the prompt of a group.

    TRL's own update runs, with a warning, where gvpo's cannot compute the same: see `why_not_fast`. Dropout is off.

    Args:
        model: See GRPOTrainer.
        reward_funcs: See GRPOTrainer.
        args: A `GRPOConfig`, or a `FastGRPOConfig` for the settings of gvpo's update.
        more: Further arguments of GRPOTrainer, in its order.
        named: Further arguments of GRPOTrainer, by name.

    Raises:
        ConfigError: If engine="gvpo" is set and cannot be correct, or if this version of TRL lacks a name.
        ImportError: If TRL is not installed (at import).
    """

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *more: Any, **named: Any) -> None:
        super().__init__(model, reward_funcs, args, *more, **named)
        self.engine = self._choose()
        self._updates_steps = self.engine == "gvpo"
        if self.engine == "gvpo" and self.accelerator.device.type == "cpu":
            keep_freed_memory()

    def _choose(self) -> str:
        wanted = getattr(self.args, "engine", "auto")
        reason = "" if wanted == "trl" else self._why_not()
        if reason and wanted == "gvpo":
            raise ConfigError(f"engine='gvpo' does not compute {reason}; use engine='trl'")
        if reason:
            notices.warn(f"TRL's own update is used, because gvpo's does not compute {reason}")
        return "trl" if reason else engines.choose(self, wanted)

    def _why_not(self) -> str:
        """Return a part of TRL's loss that gvpo's update does not compute, or ""."""
        args = self.args
        reasons = {
            f"loss_type={args.loss_type!r}": args.loss_type not in SUPPORTED,
            "an entropy bonus": bool(args.entropy_coef) or args.use_adaptive_entropy,
            "top_entropy_quantile": args.top_entropy_quantile < 1.0,
            "off_policy_mask_threshold": args.off_policy_mask_threshold is not None,
            "the router loss per micro-batch": self.aux_loss_enabled,
            "dropout of an adapter": engines.adapter_dropout(self.accelerator.unwrap_model(self.model)) > 0,
            "a _compute_loss of a subclass": type(self)._compute_loss is not GRPOTrainer._compute_loss,
        }
        return next((reason for reason, applies in reasons.items() if applies), "")

    def _update(self, model: nn.Module) -> Tensor:
        loss, rows = TrlLoss(self.args, self.beta), [row for part in self._served for row in self._rows(part)]
        groups = groups_of(row for rank in ranks.gather(rows) for row in rank)
        own = all("old_per_token_logps" not in part.batch for part in self._served)
        return self._fast_backward(model, groups, loss, on_policy=own)

    def _router_loss(self) -> dict[str, Any]:
        return {}

    def _rows(self, part: Served) -> list[Row]:
        batch, accelerator = part.batch, self.accelerator
        scale = TrlLoss(self.args, self.beta).row_scale(
            plain.loss_mask(batch),
            micro_batches=self.current_gradient_accumulation_steps,
            ranks=accelerator.num_processes,
            tokens=batch["num_items_in_batch"],
        )
        names = {
            "advantages": "advantages",
            "old_logprobs": "old_per_token_logps",
            "ref_logprobs": "ref_per_token_logps",
            "sampler_ratio": "importance_sampling_ratio",
        }
        columns = {name: batch[key] for name, key in names.items() if batch.get(key) is not None}
        if "sampler_ratio" in columns and columns["sampler_ratio"].shape[1] == 1:
            columns["sampler_ratio"] = columns["sampler_ratio"].squeeze(1)
        return list(rows_of(part, columns | {"scale": scale}))


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _default_directory(model: Any) -> str:
    name = model if isinstance(model, str) else str(getattr(model.config, "_name_or_path", ""))
    return f"{Path(name).name or 'model'}-GVPO"


def _require_a_name(model: Any, args: GVPOConfig, peft_config: Any) -> None:
    """Raise an error if TRL could not load the reference, because a model in memory has no name to load it by.

    Raises:
        ConfigError: If the reference is the initial model, and the model has neither a name nor an adapter.
    """
    adapted = peft_config is not None or isinstance(model, str) or getattr(model, "peft_config", None)
    if args.reference == "initial" and not adapted and not getattr(model.config, "_name_or_path", ""):
        raise ConfigError(
            "reference='initial' loads the model again by its name, and this one has none; save it with "
            "save_pretrained and pass its directory as model, or use reference='previous'"
        )


def _numbers(trainer: GVPOTrainer) -> Numbers:
    args = trainer.args
    return Numbers(
        accumulation=args.gradient_accumulation_steps,
        per_generation=args.steps_per_generation,
        rows=args.per_device_train_batch_size,
        ranks=trainer.accelerator.num_processes,
        group=args.num_generations,
        together=trainer.engine == "gvpo",
    )


__all__ = ["FastGRPOConfig", "FastGRPOTrainer", "GVPOConfig", "GVPOTrainer"]
