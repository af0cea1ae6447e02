"""The events of a run: what happened so far, and the callbacks that are told and may ask for something.

    Session ──begin, begin_step, end_step, logged, evaluated, saved, end──▶ Events ──▶ on_step_end(args, state, control)
    Session ◀──────── should_training_stop, should_evaluate, should_save ── Events ◀── the flags of control, on any rank

transformers' own objects are created when a callback or the user reads them, because their module takes a second to
import. `docs/guides/python.md` says which events there are.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo.callbacks.names import split, with_known_names
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, TrainingError, one_line, type_of
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

    from gvpo.callbacks.arguments import CallbackArguments

STOP, SAVE, EVALUATE, LOG = "should_training_stop", "should_save", "should_evaluate", "should_log"


class Events:
    """Events of a run for its callbacks, and the flags by which they answer.

    Every rank calls its own callbacks. What a callback of any rank asks for happens on all ranks.

    Args:
        callbacks: Instances or subclasses of transformers' `TrainerCallback`.
        config: Settings of the run.
        items: Number of training items, which is the length of an epoch.
        evaluates: Whether there is held-out data.
        model: The policy.
        tokenizer: Tokenizer of the policy.

    Raises:
        ConfigError: If a callback is something else.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        config: TrainConfig,
        *,
        items: int,
        evaluates: bool,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        self._config, self._items, self._evaluates = config, max(1, items), evaluates
        absent = ("optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
        self._passed: dict[str, Any] = {"model": model, "processing_class": tokenizer, **dict.fromkeys(absent)}
        self._facts: dict[str, Any] = {}
        self.log_history: list[dict[str, float]] = []
        self.run_dir: Path | None = None
        self._flags = dict.fromkeys((STOP, SAVE, EVALUATE), False)
        self._callbacks: list[TrainerCallback] = []
        for callback in _listed(callbacks):
            self.add(callback)
        self.reached(0)
        self._tell("on_init_end")

    # the callbacks

    def add(self, callback: Any) -> None:
        """Add a callback, or one of its class.

        Raises:
            ConfigError: If it is no callback.
        """
        from transformers import TrainerCallback

        made = callback() if isinstance(callback, type) else callback
        if not isinstance(made, TrainerCallback):
            raise ConfigError(f"callbacks contains {type_of(made)}; pass instances of transformers.TrainerCallback")
        self._callbacks.append(made)

    def remove(self, callback: Any) -> None:
        """Remove a callback, or all callbacks of a class.

        Raises:
            ConfigError: If there is none to remove.
        """
        kept = [c for c in self._callbacks if not (c is callback or type(c) is callback)]
        if len(kept) == len(self._callbacks):
            raise ConfigError("the callback to remove is not one of the trainer's callbacks")
        self._callbacks = kept

    def states(self) -> dict[str, Any]:
        """Return the states of the callbacks that export theirs, by the name of their class, for a checkpoint.

        Raises:
            TrainingError: If a callback fails to return its state, or JSON cannot express it.
        """
        found: dict[str, list[Any]] = {}
        for callback in self._exporting():
            try:
                state = json.loads(json.dumps(callback.state()))
            except Exception as error:  # it is code of the user
                raise self._failed(callback, "state", error) from error
            found.setdefault(type(callback).__name__, []).append(state)
        return found

    def restore(self, states: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Give the callbacks the states of a checkpoint back."""
        left = {name: list(each) for name, each in states.items()}
        for callback in self._exporting():
            if remaining := left.get(type(callback).__name__):
                vars(callback).update(remaining.pop(0)["attributes"])

    def _exporting(self) -> list[Any]:
        if not self._callbacks:
            return []
        from transformers.trainer_callback import ExportableState

        return [callback for callback in self._callbacks if isinstance(callback, ExportableState)]

    # what a session tells

    def begin(self, run_dir: Path, step: int, lines: Sequence[Mapping[str, Any]], optimizer: object) -> None:
        """Begin or resume a run after step `step`; `lines` are those of its metrics.jsonl."""
        self.run_dir, self._flags[STOP], self._passed["optimizer"] = run_dir, False, optimizer
        self.__dict__.pop("_arguments", None)
        self.log_history.clear()
        for line in lines:
            self.reached(int(line["step"]))
            for metrics in split(line):
                self._keep(metrics)
        self.reached(step)
        self._tell("on_train_begin")

    def begin_step(self, *, first: bool) -> None:
        """Begin the step after the last one; `first` is the first step of the session."""
        self._flags |= {SAVE: False, EVALUATE: False}
        if first or self._epochs_began():
            self._tell("on_epoch_begin")
        self._tell("on_step_begin")

    def end_step(self, step: int, *, evaluate: bool, save: bool, last: bool) -> None:
        """End a step, with what the settings ask for after it; the callbacks may change that."""
        self.reached(step)
        self._flags |= {STOP: last or self.stops, EVALUATE: evaluate, SAVE: save}
        self._tell("on_step_end")
        if self._epochs_began():
            self._tell("on_epoch_end")

    def logged(self, metrics: Mapping[str, Any]) -> None:
        """Report the metrics of training of a step."""
        entry = self._keep(metrics)
        self._tell("on_log", logs=entry)

    def evaluated(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Report an evaluation, and return its metrics under all their names."""
        self._flags[EVALUATE] = False
        known = with_known_names(metrics)
        self.logged(metrics)
        self._tell("on_evaluate", metrics=dict(known))
        return known

    def saved(self) -> None:
        """Report that a checkpoint was written."""
        self._flags[SAVE] = False
        self._tell("on_save")

    def end(self) -> None:
        """Report the end of the run, after its files are written."""
        self._tell("on_train_end")

    def reached(self, step: int) -> None:
        """Note the last finished step."""
        self._facts |= {"global_step": step, "epoch": step * self._config.prompts_per_step / self._items}

    def best(self, metric: float | None, step: int, checkpoint: Path) -> None:
        """Note the best evaluation so far, and the path that its checkpoint has if it is kept."""
        if metric is not None:
            path = str(checkpoint) if checkpoint.is_dir() else None
            self._facts |= {"best_metric": metric, "best_global_step": step, "best_model_checkpoint": path}

    # what the callbacks ask for

    @property
    def stops(self) -> bool:
        """Return whether a callback asks for the end of the run."""
        return self._flags[STOP]

    @property
    def evaluates(self) -> bool:
        """Return whether to evaluate after this step; without held-out data there is nothing to evaluate."""
        return self._evaluates and self._flags[EVALUATE]

    @property
    def saves(self) -> bool:
        """Return whether to write a checkpoint after this step."""
        return self._flags[SAVE]

    # transformers' objects

    @property
    def state(self) -> "TrainerState":
        """Return the state of the run as callbacks see it."""
        state = self._state
        for name, value in self._facts.items():
            setattr(state, name, value)
        return state

    @functools.cached_property
    def control(self) -> "TrainerControl":
        """Return the flags as callbacks see them."""
        from transformers import TrainerControl

        return TrainerControl()

    @functools.cached_property
    def _state(self) -> "TrainerState":
        from transformers import TrainerState

        config, epochs = self._config, self._config.steps * self._config.prompts_per_step / self._items
        return TrainerState(
            max_steps=config.steps,
            num_train_epochs=-int(-epochs // 1),
            logging_steps=1,
            eval_steps=config.eval_every,
            save_steps=config.checkpoint_every,
            train_batch_size=config.prompts_per_step * config.group_size,
            log_history=self.log_history,
            is_local_process_zero=ranks.is_first(),
            is_world_process_zero=ranks.is_first(),
        )

    @functools.cached_property
    def _arguments(self) -> "CallbackArguments":
        from gvpo.callbacks.arguments import CallbackArguments

        return CallbackArguments(self._config, self.run_dir, evaluates=self._evaluates)

    def _epochs_began(self) -> bool:
        """Return whether the last finished step was the last one of an epoch."""
        after: int = self._facts["global_step"] * self._config.prompts_per_step
        return after // self._items > max(0, after - self._config.prompts_per_step) // self._items

    def _keep(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Append metrics to the history, and return a copy for callbacks, which may change it."""
        if not metrics:
            return {}
        known = {**with_known_names(metrics), "epoch": self._facts["epoch"]}
        self.log_history.append({**known, "step": self._facts["global_step"]})
        return known

    def _tell(self, event: str, **values: Any) -> None:
        """Call an event of every callback; afterwards the flags are those that any rank has set.

        Raises:
            TrainingError: If a callback raises an error; the message names it.
        """
        if not self._callbacks:
            return
        control = self.control
        for name, flag in {**self._flags, LOG: event in ("on_step_end", "on_epoch_end")}.items():
            setattr(control, name, flag)
        with ranks.together():
            for callback in self._callbacks:
                control = self._answer(callback, event, control, values)
        self.control = control
        names = list(self._flags)
        self._flags = dict(zip(names, ranks.union_([getattr(control, name) for name in names]), strict=True))

    def _answer(
        self, callback: "TrainerCallback", event: str, control: "TrainerControl", values: Mapping[str, Any]
    ) -> "TrainerControl":
        try:
            answer = getattr(callback, event)(self._arguments, self.state, control, **self._passed, **values)
        except Exception as error:  # it is code of the user
            raise self._failed(callback, event, error) from error
        return control if answer is None else answer

    def _failed(self, callback: object, event: str, error: Exception) -> TrainingError:
        return TrainingError(
            f"the callback {type(callback).__name__}.{event} failed after step {self._facts['global_step']} "
            f"({type(error).__name__}: {one_line(error)}); fix it, then resume the run"
        )


def _listed(callbacks: Any) -> Sequence[Any]:
    if not isinstance(callbacks, list | tuple):
        raise ConfigError(
            f"callbacks is {type_of(callbacks)}; pass a list of instances of transformers.TrainerCallback"
        )
    return callbacks
