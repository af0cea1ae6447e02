"""The trainer: one class that runs GVPO and its family from Python.

Trainer(model, reward_funcs, args, train_dataset).train()
"""

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import notices
from gvpo.config import Given, TrainConfig, resolve
from gvpo.data.given_rows import Dataset, read_rows
from gvpo.errors import ConfigError, type_of
from gvpo.model import lora
from gvpo.model.model import save_model
from gvpo.progress import error_console, print_sentence
from gvpo.rollout.episodes.setup import EnvironmentItem
from gvpo.rollout.rewards import RewardFuncs, RewardTokenizers
from gvpo.training.checkpoint.trial import rehearse
from gvpo.training.checks import check_arguments, check_surroundings, refuse_others
from gvpo.training.inputs import prepare
from gvpo.training.loop import train
from gvpo.training.session.events import events_of
from gvpo.training.session.standalone import evaluator_of, with_dtype, with_start
from gvpo.update.distributed import fsdp, ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

    from gvpo.objectives import ObjectiveOutput


class Trainer:
    """Post-train a causal language model: online with rewards, offline on groups or preferences, or on written answers.

    Under `torchrun` or `accelerate launch` every process creates a trainer and calls `train`; the first process writes
    (docs/guides/scaling.md).

    Args:
        model: Directory, Hub model ID or loaded model; trained in place, with float32 weights.
        reward_funcs: Reward functions (TRL's signature), their names, or sequence classifiers of transformers, which
            run in this process; by default those of `args`, then those of the task.
        args: Settings.
        train_dataset: Rows with a `prompt`, a `datasets` dataset, a data frame, a file or a Hub dataset ID; by default
            the data or the task of the settings. Rows with `completions` and `rewards`, or `chosen` and `rejected`, are
            logged groups: the run samples nothing and needs no reward. From a stream, `train_problems` rows are read.
        eval_dataset: Held-out rows, in the same forms.
        processing_class: Tokenizer; by default, the one saved with the model.
        peft_config: A `peft.LoraConfig` to train a new adapter and leave the model's own weights unchanged. A
            `PeftModel` as `model` is trained in place as well.
        reward_processing_classes: Tokenizers of the classifiers in `reward_funcs`, with None for the other rewards; by
            default, those saved with the classifiers.
        objective: Loss to train with, instead of the one that `args` names: a function of log-probs and the inputs
            that its signature names, which returns an `ObjectiveOutput` (docs/guides/python.md).
        callbacks: Instances or subclasses of transformers' `TrainerCallback` (docs/guides/python.md).
        environment: What answers the policy in several turns: a class with `reset` and `step`, or its name
            (docs/guides/environments.md); by default that of `args`.
        others: Arguments of other trainers, which are errors that say what to do instead; None is accepted.

    Raises:
        ModelError: If the model, the adapter or the tokenizer cannot be used.
        ConfigError: If the settings cannot work, or there is nothing to train on.
        DataError: If the data cannot be trained or evaluated on.
    """

    def __init__(
        self,
        model: "str | Path | PreTrainedModel",
        reward_funcs: RewardFuncs = None,
        args: TrainConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        peft_config: object | None = None,
        reward_processing_classes: RewardTokenizers = None,
        callbacks: Sequence[object] | None = None,
        objective: "Callable[..., ObjectiveOutput] | None" = None,
        environment: EnvironmentItem = None,
        **others: object,
    ) -> None:
        refuse_others(others, signature(type(self)).parameters)
        model = lora.unwrapped(model)
        check_arguments(model, args, (train_dataset, eval_dataset), processing_class)
        config = args or TrainConfig()
        ranks.start(config.rank_timeout)
        with notices.collected(quiet=not ranks.is_first()) as self._notices:
            rows = read_rows(config, train_dataset, most=config.train_problems) if train_dataset is not None else None
            most = config.eval_problems
            held = read_rows(config, eval_dataset, most=most, held_out=True) if eval_dataset is not None else None
            given = Given(
                train=rows.kind if rows is not None else None,
                held_out=held.kind if held is not None else None,
                rewards=None if reward_funcs is None else callable(reward_funcs) or bool(reward_funcs),
                model=True,
                adapter=peft_config is not None or lora.is_adapted(model),
                objective=objective,
                environment=environment is not None,
            )
            plan = resolve(config, given)
            check_surroundings(config)
            self._inputs, self._policy = prepare(
                plan,
                model,
                processing_class,
                rewards=reward_funcs,
                reward_tokenizers=reward_processing_classes,
                train=rows,
                held_out=held,
                peft_config=peft_config,
                environment=environment,
            )
        self.config, self.rewards = self._inputs.settings, self._inputs.rewards
        self.model, self.tokenizer = self._policy.model, self._inputs.tokenizer
        self._events = events_of(self._inputs, self._policy, callbacks or ())
        self._held_groups = self._inputs.held_groups

    def check(self) -> None:
        """Try the other requirements of a run, such as saving, without training or writing anything.

        Raises:
            GvpoError: If `train` would raise it.
        """
        with notices.handled(self._notices.add):  # `train` prints them
            rehearse(self._inputs, self._policy)

    def train(self, resume: bool = False, **others: object) -> dict[str, Any]:
        """Run to the end.

        Args:
            resume: Whether to resume from the latest intact checkpoint of `run_dir`, with the same results as an
                unbroken run.
            others: Arguments of other trainers, which are errors that say what to do instead; None is accepted.

        Returns:
            The summary, as in summary.json: accuracy_before, accuracy_after, steps, seconds, report, model, ...

        Raises:
            ConfigError: If `resume` is not a bool, or there are other arguments.
            RunError: If the directory already contains a run or is in use, or (resume) contains no run or one with
                other settings.
            GvpoError: If training cannot continue; files that were written stay.
            TrainingError: If another rank was killed or does not answer, among other reasons.
            KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP, once the running step is finished and saved; immediately
                after a second signal other than SIGHUP. In any thread but the main one, signals are left unchanged.
        """
        refuse_others(others, ["resume"], "train")
        if not isinstance(resume, bool):
            raise ConfigError(f"resume is {type_of(resume)}; resume=True resumes from the latest checkpoint in run_dir")
        with notices.handled(self._notices.add):
            summary = train(self._inputs, self._policy, resume=resume, events=self._events)
        for warning in summary["warnings"]:
            print_sentence(error_console(quiet=not ranks.is_first()), f"gvpo: warning: {warning}")
        return summary

    def evaluate(self, eval_dataset: None = None, **others: object) -> dict[str, float]:
        """Evaluate the current policy on the held-out data, before, between or after training.

        No run directory is created. The callbacks receive `on_log` and `on_evaluate`.

        Args:
            eval_dataset: None; the held-out data are those of the constructor.
            others: Arguments of other trainers, which are errors that say what to do instead; None is accepted.

        Returns:
            The eval/ metrics, as in metrics.jsonl, and the same values under transformers' names: `eval/accuracy` and
            `eval_accuracy`, ...

        Raises:
            ConfigError: If there is no held-out data, or an argument is given.
        """
        if eval_dataset is not None:
            raise ConfigError("gvpo.Trainer.evaluate takes no data: pass eval_dataset to gvpo.Trainer")
        refuse_others(others, [], "evaluate")
        with notices.handled(self._notices.add), ranks.explained():
            inputs = with_dtype(self._inputs, self._policy, self._events.run_dir)
            self._held_groups = with_start(inputs, self._policy, self._held_groups, self._events.run_dir)
            with evaluator_of(inputs, self._policy, self._held_groups) as evaluator:
                if not evaluator:
                    raise ConfigError("there is nothing to evaluate on: pass eval_dataset, or set data.eval")
                return self._events.evaluated(evaluator.measure().metrics)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the current policy and its tokenizer in the format of Hugging Face; of a LoRA model only the adapter.

        Args:
            output_dir: Directory, created if necessary; by default `model` in the directory of the run.

        Raises:
            ConfigError: If neither a directory nor `run_dir` is given.
            ModelError: If the files cannot be written.
        """
        parent = self._events.run_dir or self.config.run_dir
        if output_dir is None and parent is None:
            raise ConfigError("there is no directory to save in; pass output_dir, or set run_dir")
        target = output_dir if output_dir is not None else Path(str(parent)) / "model"
        split = fsdp.is_sharded(self.model)
        weights = fsdp.full_on_first(self.model.state_dict(keep_vars=True)) if split else None
        ranks.on_first(lambda: save_model(self.model, self.tokenizer, target, weights=weights))

    @property
    def state(self) -> "TrainerState":
        """Return transformers' `TrainerState`: `global_step`, `epoch`, `log_history`, `best_metric`, ..."""
        return self._events.state

    @property
    def log_history(self) -> list[dict[str, float]]:
        """Return the metrics so far, as `state.log_history`: one entry per step, and one per evaluation."""
        return self._events.log_history

    def add_callback(self, callback: object) -> None:
        """Add a callback, or an instance of a callback class, for the next call of `train`.

        Raises:
            ConfigError: If it is not a `TrainerCallback`.
        """
        self._events.add(callback)

    def remove_callback(self, callback: object) -> None:
        """Remove a callback, or all callbacks of a class.

        Raises:
            ConfigError: If the trainer does not have it.
        """
        self._events.remove(callback)
