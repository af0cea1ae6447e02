"""Settings that somebody set and that change nothing in this run: each is named, with the reason.

Only what differs from its default was set to some end. Settings that are refused instead are in
`gvpo.config.combinations`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gvpo import notices
from gvpo.config import FIELDS, TrainConfig
from gvpo.errors import GvpoWarning


class UnusedSettingWarning(GvpoWarning):
    """A setting has no effect in this run."""


@dataclass(frozen=True)
class Regime:
    """What a run does, as far as it decides which settings are read.

    Args:
        samples: Training draws completions, in each step or once.
        evaluates: There are held-out problems to sample.
        compares: There are held-out answers to compare.
        needs_reference: The objective reads the reference's log-probs.
        divides_by_length: The objective divides by a maximum length.
        adapted: An adapter is trained.
        demonstrates: Training is on the task's own demonstrations.
        train_passed: Training data was passed to the trainer.
        eval_passed: Held-out data was passed to the trainer.
    """

    samples: bool
    evaluates: bool
    compares: bool
    needs_reference: bool
    divides_by_length: bool
    adapted: bool
    demonstrates: bool
    train_passed: bool
    eval_passed: bool


def warn_of_unused(config: TrainConfig, regime: Regime) -> None:
    """Warn of each setting that was set and is not read, one warning per reason."""
    for unread, names, why in _rules(config, regime):
        found = [name for name in FIELDS if unread and _is_among(name, names) and _is_set(config, FIELDS[name])]
        if found:
            notices.warn(
                f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} no effect: {why}", UnusedSettingWarning
            )


def _is_among(name: str, names: tuple[str, ...]) -> bool:
    """Return whether a setting is one of some names; a name that ends in . or _ stands for all that begin so."""
    return any(name == each or (each[-1] in "._" and name.startswith(each)) for each in names)


def _is_set(config: TrainConfig, field: str) -> bool:
    default = TrainConfig.model_fields[field].get_default(call_default_factory=True)
    return field in config.model_fields_set and getattr(config, field) != default


_DRAWING = ("sampling.temperature", "sampling.top_", "sampling.allow", "sampling.ban", "sampling.tokens_per_batch")
_WARMING = ("warm_start.batch", "warm_start.learning_rate", "warm_start.schedule", "warm_start.warmup")
_STOPPING = ("eval.stop_at_accuracy", "eval.patience")


def _rules(c: TrainConfig, r: Regime) -> Iterator[tuple[bool, tuple[str, ...], str]]:
    """Yield whether settings are not read, their names, and why they are not."""
    draws, held_out = r.samples or r.evaluates, r.evaluates or r.compares
    yield not r.samples, ("sampling.group_size",), "training samples nothing"
    yield not draws, _DRAWING, "nothing is sampled"
    yield not draws and not r.divides_by_length, ("sampling.max_tokens",), "nothing is sampled"
    yield not draws, ("rewards.",), "no completion is judged"
    yield not r.evaluates, ("eval.samples", "eval.greedy"), "there are no held-out problems"
    yield not held_out, ("eval.every", *_STOPPING), "nothing is held out"
    yield held_out and c.eval_every == 0, _STOPPING, "eval.every is 0, so nothing is evaluated before the end"
    yield not r.needs_reference, ("objective.reference",), f"{c.objective} uses no reference"
    yield not r.divides_by_length, ("objective.max_length",), "only the reduction 'constant' divides by it"
    yield c.task is None, ("data.task_options",), "data.task is not set"
    yield r.train_passed, ("data.train",), "the data set that was passed is trained on"
    yield r.eval_passed, ("data.eval",), "the data set that was passed is held out"
    yield c.warm_start_steps == 0, _WARMING, "warm_start.steps is 0"
    unread = c.warm_start_steps == 0 and not r.demonstrates
    yield unread, ("warm_start.demonstrations", "warm_start.options"), "warm_start.steps is 0"
    yield not r.adapted, ("lora.base_dtype", "lora.quantization"), "no adapter is trained"
    yield c.epochs is not None, ("train.steps",), "train.epochs decides how many there are"
    yield "wandb" not in c.trackers, ("run.project",), "run.trackers does not name wandb"
    yield c.push_to_hub is None, ("checkpoint.push_private",), "checkpoint.push_to_hub is not set"
