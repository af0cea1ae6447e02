"""The trainer: sets a run up from a model, rewards and data, and hands it to its session.

Trainer(model, reward_funcs, args, train_dataset).train()
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from gvpo import notices, runfiles
from gvpo.config import TrainConfig
from gvpo.config.recipe import dump_config
from gvpo.data import is_comparison
from gvpo.data.given_rows import Dataset, read_rows
from gvpo.errors import ConfigError
from gvpo.model import lora
from gvpo.model.fingerprints import base_fingerprint
from gvpo.model.generation_config import settle
from gvpo.model.known_tokens import restrict
from gvpo.model.round_trip import rehearse_adapter, warn_of_nameless_base
from gvpo.model.tokenizer import load_tokenizer
from gvpo.progress import StepProgress, error_console
from gvpo.rewards import check_ready
from gvpo.rollout.offline import given_records, resolve_reference
from gvpo.rollout.problems import training_stops
from gvpo.rollout.rewards import RewardFuncs, reward_functions
from gvpo.rollout.sources.preferences import PreferenceSource
from gvpo.system_errors import explained
from gvpo.training.adapter import check_adapter, starting_policy
from gvpo.training.allocator import keep_freed_memory
from gvpo.training.build import Parts, Setup
from gvpo.training.checkpoint.files import TrainerState
from gvpo.training.checkpoint.publish import check_account, check_hub
from gvpo.training.checkpoint.resume import BASE, open_run, restore
from gvpo.training.checkpoint.run_directory import RunDirectory, locked
from gvpo.training.checkpoint.trial import check_place, try_save, warn_of_short_disk
from gvpo.training.checks import check_arguments, check_files, check_fit, check_routing
from gvpo.training.learner import Learner
from gvpo.training.loop import Session
from gvpo.training.objective import build_objective
from gvpo.training.reference_scores import policy_name, score_under_start
from gvpo.training.signals import StopRequests
from gvpo.training.trackers import Trackers, check_trackers
from gvpo.training.unused_settings import Regime, warn_of_unused
from gvpo.update.distributed import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANNOUNCED = 50_000_000
"""Parameters of a model whose second loading a person notices."""

BEFORE_ALL = -1
"""A run without a checkpoint starts over, its step 0 (the evaluation before training) included."""


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
        ranks.start((args or TrainConfig()).rank_timeout)
        with notices.collected(quiet=not ranks.is_first()) as self._notices:
            given = self._asked = args or TrainConfig()
            rows = read_rows(given, train_dataset, most=given.train_problems) if train_dataset is not None else None
            self._logged = given_records(given, rows)
            self.config = resolve_reference(given, given=self._logged is not None)
            check_adapter(self.config, peft_config)
            check_files(self.config)
            check_trackers(self.config)
            check_hub(self.config)
            self.objective = build_objective(self.config)
            self.rewards = reward_functions(self.config, reward_funcs)
            most = given.eval_problems
            held = read_rows(given, eval_dataset, most=most, held_out=True) if eval_dataset is not None else None
            compares = held is not None and bool(held.items) and is_comparison(held.items[0])
            self._eval_rows = held if compares else None
            self._eval_dataset = held.items if held is not None and not compares else None
            samples = self.objective.spec.learns_from != "answers" and self._logged is None
            self._check_rewards(samples=samples)
            self.model = starting_policy(model, self.config, peft_config)
            ranks.require_same_weights(self.model)
            self.tokenizer = processing_class or load_tokenizer(_tokenizer_path(model, self.config))
            if lora.is_adapted(self.model) and self.config.checkpoint_verify:
                _say_what_takes_time(self.model)
                ranks.on_first(lambda: rehearse_adapter(self.model, self.tokenizer))
            check_routing(self.config, self.model)
            check_fit(self.config, self.model, self.tokenizer, samples=samples)
            settle(self.model, training_stops(self.config, self.tokenizer, self.model))
            restrict(self.model, self.tokenizer)
            self._train_dataset = rows.items if rows is not None else None

    def check(self) -> None:
        """Find what cannot work in settings, model, data and rewards; trains nothing and writes nothing.

        Raises:
            GvpoError: as `train` would.
        """
        with notices.handled(self._notices.add):  # `train` prints them
            path = self.config.run_dir or Path("runs")
            ranks.on_first(lambda: check_place(path))
            ranks.on_first(lambda: check_account(self.config))
            ranks.on_first(lambda: try_save(self.config, self.model, self.tokenizer))  # others would save nothing
            with self._setup().parts(path, resume=False):
                return

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Run to the end.

        Args:
            resume: go on from the newest whole checkpoint of `run_dir`, exactly as an unbroken run would have.

        Returns:
            The summary, as in summary.json: accuracy_before, accuracy_after, steps, seconds, report, model, ...

        Raises:
            RunError: the directory holds a run already or is in use, or (resume) holds none or one of other settings.
            GvpoError: training cannot go on; what was written stays.
            TrainingError: another rank was killed or does not answer, among others.
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, after the step that was running and a checkpoint of it; at
                once if there were two (other than SIGHUP). In any thread but the main one signals are left alone.
        """
        if self.model.device.type == "cpu":
            keep_freed_memory()
        with notices.handled(self._notices.add), ranks.explained():
            warn_of_nameless_base(self.model)
            return self._train(resume=resume)

    def _train(self, *, resume: bool) -> dict[str, Any]:
        path = self.config.run_dir or ranks.on_first(lambda: free_directory("runs", self.objective.name))
        ranks.on_first(lambda: check_account(self.config))
        with self._setup().parts(path, resume=resume) as parts:  # bad data is found before there is a run directory
            if self.config.epochs is not None:
                self.config = self.config.replace(steps=_steps(self.config, self.config.epochs, parts.items))
            if not resume:
                warn_of_unused(self._asked, self._regime(parts))
            if resume:
                RunDirectory.open(path)  # `locked` would make the directory
            with contextlib.ExitStack() as stack:
                ranks.on_first(lambda: stack.enter_context(locked(path)))
                stop = stack.enter_context(StopRequests())
                stack.enter_context(explained(lambda: "before training"))
                ranks.on_first(lambda: try_save(self.config, self.model, self.tokenizer, path))
                inputs = {**parts.inputs, **self._base()}
                run = ranks.on_first(lambda: self._run_directory(path, inputs, resume=resume))
                self._notices.begin()
                start = None if any(run.checkpoints.glob("step-*")) else policy_name(self.model)
                learner = Learner(
                    self.model, self.objective, self.config, reference_given=self._stores_reference(parts)
                )
                ranks.on_first(lambda: warn_of_short_disk(self.config, learner, path))
                parts = self._with_reference(parts, learner, start, run, stop)
                state = restore(run, learner, parts.source, self.config) if resume else TrainerState()
                ranks.on_first(lambda: run.truncate_after(state.step if state.step > 0 else BEFORE_ALL))
                return self._session(run, learner, state, parts, stop)

    def _base(self) -> dict[str, str]:
        """Return the fingerprint of the weights under an adapter, which no checkpoint contains."""
        return {BASE: base_fingerprint(self.model)} if lora.is_adapted(self.model) else {}

    def _regime(self, parts: Parts) -> Regime:
        """Return what the run does, for what it does not read."""
        return Regime(
            samples=parts.samples,
            evaluates=parts.held is not None,
            compares=bool(parts.held_groups),
            needs_reference=self.objective.needs_reference,
            divides_by_length=self.objective.divides_by_length,
            adapted=lora.is_adapted(self.model),
            demonstrates=self.objective.spec.learns_from == "answers" and self.config.task is not None,
            train_passed=self._train_dataset is not None,
            eval_passed=self._eval_dataset is not None,
        )

    def _stores_reference(self, parts: Parts) -> bool:
        """Whether the reference's log-probs of all rows can be computed before training, once for all steps."""
        return isinstance(parts.source, PreferenceSource) and self.config.reference == "initial"

    def _with_reference(
        self, parts: Parts, learner: Learner, start: str | None, run: RunDirectory, stop: StopRequests
    ) -> Parts:
        """The rows of preference data with the starting policy's log-probs; what was scored before is read."""
        score = functools.partial(
            score_under_start,
            learner=learner,
            start=start,
            directory=run.path / runfiles.REFERENCE,
            stop=stop,
            console=_console(),
        )
        if isinstance(parts.source, PreferenceSource) and self._stores_reference(parts):
            parts.source.replace(score(parts.source.groups, "train"))
        return dataclasses.replace(parts, held_groups=score(parts.held_groups, "held-out"))

    def _run_directory(self, path: Path, inputs: Mapping[str, str], *, resume: bool) -> RunDirectory:
        if resume:
            return open_run(path, self.config, inputs)
        facts = {"ranks": ranks.count(), "device": str(ranks.device())}
        return RunDirectory.create(path, config=dump_config(self.config), facts=facts, inputs=inputs)

    def _session(
        self, run: RunDirectory, learner: Learner, state: TrainerState, parts: Parts, stop: StopRequests
    ) -> dict[str, Any]:
        with (
            StepProgress(run.path.name, self.config.steps, state.step, _console()) as progress,
            Trackers(_tracked(self.config), run, state.step, progress.say) as trackers,
        ):
            session = Session(
                self.config,
                run,
                state,
                learner,
                self.tokenizer,
                source=parts.source,
                judge=self._judge(),
                held=parts.held,
                held_groups=parts.held_groups,
                progress=progress,
                trackers=trackers,
                stop=stop,
            )
            return session.train()

    def _setup(self) -> Setup:
        return Setup(
            self.config,
            self.model,
            self.tokenizer,
            self.objective.name,
            self.rewards,
            self._logged,
            self._train_dataset,
            self._eval_dataset,
            self._eval_rows,
        )

    def _check_rewards(self, *, samples: bool) -> None:
        if self.objective.spec.learns_from == "pairs" and samples and self.config.sample_groups is None:
            raise ConfigError(
                f"{self.objective.name} learns from preferences, not from live samples: set data.groups to rows with "
                "`prompt`, `chosen` and `rejected`, or pass them as train_dataset"
            )
        if not self.rewards and samples:
            raise ConfigError("there is no reward: set rewards.funcs, or pass reward_funcs")
        unknown = [name for name in self.config.costs or () if self.rewards and name not in self.rewards]
        if unknown:
            raise ConfigError(f"objective.costs names {unknown[0]!r}, which is none of {', '.join(self.rewards)}")
        judge = self.config.accuracy_reward
        if judge is not None and judge not in self.rewards:
            raise ConfigError(f"rewards.accuracy_reward={judge!r} is not one of the rewards: {', '.join(self.rewards)}")
        if samples or self._is_evaluated():
            check_ready(self.rewards.values())  # before a model is loaded, not at the first scoring

    def _is_evaluated(self) -> bool:
        """Whether there may be held-out problems."""
        sources = (self._eval_dataset, self.config.eval_data, self.config.task)
        return self.config.eval_problems > 0 and any(source is not None for source in sources)

    def _judge(self) -> str | None:
        return self.config.accuracy_reward or next(iter(self.rewards), None)


def _steps(config: TrainConfig, epochs: int, items: int) -> int:
    """How many steps go through `items` groups `epochs` times; the last one takes what it lacks from the next."""
    return -(-epochs * items // config.prompts_per_step)


def _console() -> Console:
    """One rank is enough to look at."""
    return error_console(quiet=not ranks.is_first())


def _say_what_takes_time(policy: "PreTrainedModel") -> None:
    """Announce the comparison of an adapter's base with the one on the disk, which loads it a second time."""
    if (name := lora.named_base(policy)) and policy.num_parameters() > ANNOUNCED:
        _console().print(f"loading {name} again to check that the adapter will fit it (checkpoint.verify=false skips)")


def _tracked(config: TrainConfig) -> TrainConfig:
    return config if ranks.is_first() else config.replace(trackers=[])


def _tokenizer_path(model: "str | Path | PreTrainedModel", config: TrainConfig) -> str:
    path = config.tokenizer or (str(model) if isinstance(model, str | Path) else str(model.name_or_path))
    if not path:
        raise ConfigError("this model was made on the spot and has no tokenizer of its own; pass processing_class")
    return path


def free_directory(parent: str | Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, `-3`, ... where that is taken."""
    number = 1
    while (path := Path(parent) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
