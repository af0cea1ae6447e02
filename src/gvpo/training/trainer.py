"""The trainer: one class for a run from Python.

Trainer(model, reward_funcs, args, train_dataset).train()
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gvpo import notices
from gvpo.config import Given, TrainConfig, resolve
from gvpo.data.given_rows import Dataset, read_rows
from gvpo.model import lora
from gvpo.rollout.rewards import RewardFuncs
from gvpo.training.checkpoint.trial import rehearse
from gvpo.training.checks import check_arguments, check_surroundings
from gvpo.training.inputs import prepare
from gvpo.training.loop import train
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Trainer:
    """Post-train a causal language model: online with rewards, offline on groups or preferences, or on written answers.

    Under `torchrun` or `accelerate launch` every process makes one and calls `train`; the first of them writes
    (docs/guides/scaling.md).

    Args:
        model: a directory, a hub id or a loaded model; trained in place, its weights in float32.
        reward_funcs: reward functions (TRL's signature) or their names; default those of `args`, then the task's.
        args: the settings.
        train_dataset: rows with a `prompt`, a `datasets` one, a data frame, a file or a hub id; default the settings'
            data or task. Rows with `completions` and `rewards`, or `chosen` and `rejected`, are logged groups: nothing
            is sampled, and no reward is needed. Of a stream `train_problems` rows are taken.
        eval_dataset: the same, held out.
        processing_class: the tokenizer; default the model's own.
        peft_config: a `peft.LoraConfig`: train a fresh adapter, and leave the model's own weights as they are. A
            `PeftModel` as `model` is trained in place, too.

    Raises:
        ModelError: a model, an adapter or a tokenizer that cannot be used.
        ConfigError: settings that cannot work, or nothing to train on.
        DataError: data that cannot be trained or evaluated on.
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
    ) -> None:
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
            )
            plan = resolve(config, given)
            check_surroundings(config)
            self._inputs, self._policy = prepare(
                plan,
                model,
                processing_class,
                rewards=reward_funcs,
                train=rows,
                held_out=held,
                peft_config=peft_config,
            )
        self.config, self.rewards = self._inputs.settings, self._inputs.rewards
        self.model, self.tokenizer = self._policy.model, self._inputs.tokenizer

    def check(self) -> None:
        """Try what a run needs besides settings, model and data; trains nothing and writes nothing.

        Raises:
            GvpoError: as `train` would.
        """
        with notices.handled(self._notices.add):  # `train` prints them
            rehearse(self._inputs, self._policy)

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Run to the end.

        Args:
            resume: resume from the newest whole checkpoint of `run_dir`, exactly as an unbroken run would have.

        Returns:
            The summary, as in summary.json: accuracy_before, accuracy_after, steps, seconds, report, model, ...

        Raises:
            RunError: the directory contains a run already or is in use, or (resume) contains none or one of other
                settings.
            GvpoError: training cannot continue; what was written stays.
            TrainingError: another rank was killed or does not answer, among others.
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, after the step that was running and a checkpoint of it; at
                once if there were two (other than SIGHUP). In any thread but the main one signals are left alone.
        """
        with notices.handled(self._notices.add):
            return train(self._inputs, self._policy, resume=resume)
