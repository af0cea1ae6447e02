"""The trainer: sets a run up from a model, rewards and data, and hands it to its session.

Trainer(model, reward_funcs, args, train_dataset).train()
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from gvpo import runfiles
from gvpo.config import TrainConfig
from gvpo.errors import ConfigError, GvpoWarning, RewardError, RunError
from gvpo.policy.model import load_model
from gvpo.policy.tokenizer import load_tokenizer
from gvpo.recipefiles import dump_config, restore_config
from gvpo.rewards import RewardFunc, RewardPool, load
from gvpo.rollout import Encoded
from gvpo.sampling import SamplingParams
from gvpo.sampling.transformers import TransformersSampler
from gvpo.training.checkpoint import Checkpoints, Loaded, TrainerState
from gvpo.training.checks import (
    check_arguments,
    check_columns,
    check_demonstrations,
    check_fit,
    check_prompts,
)
from gvpo.training.data import ShuffledOrder
from gvpo.training.hub import check_hub
from gvpo.training.interrupt import StopRequests
from gvpo.training.learner import Learner
from gvpo.training.logged import LoggedGroup
from gvpo.training.objective import build_objective
from gvpo.training.offline import (
    OfflineSource,
    Records,
    Rows,
    SampledOnceSource,
    given_records,
    offline_groups,
    read_rows,
    resolve_reference,
    warn_of_finite_support,
)
from gvpo.training.outage import explained
from gvpo.training.problems import (
    Dataset,
    demonstrations,
    encode,
    find_task,
    held_out_problems,
    training_problems,
)
from gvpo.training.progress import StepProgress
from gvpo.training.run import RunDirectory, locked
from gvpo.training.session import Held, Session
from gvpo.training.sources import DemonstrationSource, LiveSource, Source
from gvpo.training.trackers import Trackers, check_trackers
from gvpo.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RewardFuncs = str | RewardFunc | Sequence[str | RewardFunc] | None
"""One reward function or several; a name is resolved as in a recipe."""

REWARDS_LOG = "rewards.log"
"""What the reward functions print."""

BEFORE_ALL = -1
"""A run without a checkpoint starts over, its step 0 (the evaluation before training) included."""

MAY_CHANGE = (
    "checkpoint.",
    "rewards.timeout",
    "rewards.workers",
    "rewards.memory_limit",
    "train.tokens_per_microbatch",
    "run.dir",
    "sampling.tokens_per_batch",
    "run.trackers",
    "run.project",
)
"""Settings that a resumed run may have otherwise than it started with."""


class Trainer:
    """Post-train a causal language model: online with rewards, offline on logged groups, or on written answers ("sft").

    Args:
        model: a directory, a hub id or a loaded model; trained in place, its weights in float32.
        reward_funcs: reward functions (TRL's signature) or their names; default those of `args`, then the task's.
        args: the settings.
        train_dataset: a `datasets` one, a file, a hub id or rows with a `prompt`; default the settings' data or task.
            Rows with `completions` and `rewards` are logged groups: nothing is sampled, and no reward is needed.
        eval_dataset: the same, held out.
        processing_class: the tokenizer; default the model's own.
        peft_config: not supported yet.

    Raises:
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
        if peft_config is not None:
            raise ConfigError("peft_config is not supported yet; leave it out to train all weights")
        check_arguments(model, args, (train_dataset, eval_dataset), processing_class)
        rows = read_rows(train_dataset) if train_dataset is not None else None
        self._logged = given_records(args or TrainConfig(), rows)
        self.config = resolve_reference(args or TrainConfig(), given=self._logged is not None)
        check_trackers(self.config)
        check_hub(self.config)
        self.objective = build_objective(self.config)
        self.rewards = reward_functions(self.config, reward_funcs)
        self._check_rewards()
        self.model = _load(model, self.config)
        self.tokenizer = processing_class or load_tokenizer(_tokenizer_path(model, self.config))
        samples = self.objective.name != "sft" and self._logged is None
        check_fit(self.config, self.model, self.tokenizer, samples=samples)
        self._train_dataset = rows.items if rows is not None else None
        self._eval_dataset = eval_dataset

    def check(self) -> None:
        """Find what cannot work in settings, model, data and rewards; trains nothing and writes nothing.

        Raises:
            GvpoError: as `train` would.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GvpoWarning)  # `train` says them
            with self._parts(self.config.run_dir or Path("runs"), resume=False):
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
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the step that was running and a checkpoint of it; at once if
                there were two. In any thread but the main one signals are left alone.
        """
        path = self.config.run_dir or free_directory("runs", self.objective.name)
        with self._parts(path, resume=resume) as parts:  # bad data is found before there is a run directory
            if self.config.epochs is not None:
                self.config = self.config.replace(steps=_steps(self.config, self.config.epochs, parts.items))
            if resume:
                RunDirectory.open(path)  # `locked` would make the directory
            with locked(path), StopRequests() as stop, explained(lambda: "before training"):
                run = _open(path, self.config) if resume else RunDirectory.create(path, config=dump_config(self.config))
                learner = Learner(self.model, self.objective, self.config)
                state = _restore(run, learner, self.config) if resume else TrainerState()
                run.truncate_after(state.step if state.step > 0 else BEFORE_ALL)
                return self._session(run, learner, state, parts, stop)

    def _session(
        self, run: RunDirectory, learner: Learner, state: TrainerState, parts: "_Parts", stop: StopRequests
    ) -> dict[str, Any]:
        with (
            StepProgress(run.path.name, self.config.steps, state.step) as progress,
            Trackers(self.config, run, state.step, progress.say) as trackers,
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
                progress=progress,
                trackers=trackers,
                stop=stop,
            )
            return session.train()

    def _check_rewards(self) -> None:
        if not self.rewards and self.objective.name != "sft" and self._logged is None:
            raise ConfigError("there is no reward: set rewards.funcs, or pass reward_funcs")
        judge = self.config.accuracy
        if judge is not None and judge not in self.rewards:
            raise ConfigError(f"rewards.accuracy={judge!r} is not one of the rewards: {', '.join(self.rewards)}")

    def _judge(self) -> str | None:
        return self.config.accuracy or next(iter(self.rewards), None)

    @contextlib.contextmanager
    def _parts(self, path: Path, *, resume: bool) -> "Iterator[_Parts]":
        """The source of groups and what evaluation needs, while the reward workers live."""
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(self._pool(path)) if self.rewards else None
            sampler = TransformersSampler(self.model, self.tokenizer, tokens_per_batch=self.config.tokens_per_batch)
            params = self._sampling()
            held_out = self._encoded(held_out_problems(self.config, self._eval_dataset), pool)
            held = Held(held_out, sampler, params, pool) if held_out and pool is not None else None
            if self._eval_dataset is not None and pool is None:
                raise ConfigError(
                    "eval_dataset needs a reward to be judged by: set rewards.funcs, or pass reward_funcs"
                )
            if self.objective.name == "sft":
                yield self._supervised(held)
            elif self._logged is not None:
                yield self._offline(self._logged, held)
            elif pool is not None:
                yield self._sampled(sampler, params, pool, held, file=path / runfiles.GROUPS, resume=resume)

    def _encoded(self, problems: Sequence[Problem], pool: RewardPool | None) -> list[Encoded]:
        """The problems with their prompts, all of which the model and the rewards can do something with."""
        items = encode(self.config, self.tokenizer, problems)
        check_prompts(items, self.model)
        if pool is not None:
            check_columns(pool, items)
        return items

    def _pool(self, path: Path) -> RewardPool:
        weights = self.config.reward_weights
        return RewardPool(
            self.rewards,
            dict(zip(self.rewards, weights, strict=True)) if weights is not None else None,
            workers=self.config.reward_workers,
            timeout=self.config.reward_timeout,
            memory_limit=round(self.config.reward_memory_limit * 2**30),
            log=path / REWARDS_LOG,  # opened when a worker starts, by when there is a run directory
        )

    def _sampling(self) -> SamplingParams:
        config = self.config
        return SamplingParams(
            group_size=config.group_size,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop_token_ids=tuple(config.stop_token_ids),
        )

    def _supervised(self, held: Held | None) -> "_Parts":
        written = demonstrations(self.config, self.tokenizer, self._train_dataset)
        check_demonstrations(written, self.model)
        order = ShuffledOrder(written, self.config.prompts_per_step, self.config.seed)
        return _Parts(DemonstrationSource(order), len(written), held)

    def _offline(self, rows: Rows, held: Held | None) -> "_Parts":
        warn_of_finite_support(self.objective.name)
        groups = offline_groups(self.config, self.tokenizer, self.model, rows.items, source=rows.name)
        return _Parts(self._offline_source(groups), len(groups), held)

    def _offline_source(self, groups: Sequence[LoggedGroup]) -> OfflineSource:
        return OfflineSource(ShuffledOrder(groups, self.config.prompts_per_step, self.config.seed))

    def _sampled(
        self,
        sampler: TransformersSampler,
        params: SamplingParams,
        pool: RewardPool,
        held: Held | None,
        *,
        file: Path,
        resume: bool,
    ) -> "_Parts":
        """Groups from the live policy: at each step, or once."""
        config = self.config
        problems = self._encoded(training_problems(config, self._train_dataset), pool)
        order = ShuffledOrder(problems, config.sample_groups or config.prompts_per_step, config.seed)
        live = LiveSource(order, sampler, params, pool, seed=config.seed)
        if config.sample_groups is None:
            return _Parts(live, len(problems), held)

        def read(records: Records) -> OfflineSource:
            return self._offline_source(offline_groups(config, self.tokenizer, self.model, records, source="live"))

        warn_of_finite_support(self.objective.name)
        return _Parts(SampledOnceSource(file, live, read, resumed=resume), config.sample_groups, held)


@dataclass(frozen=True)
class _Parts:
    source: Source
    items: int  # how many different groups the source has: an epoch
    held: Held | None


def reward_functions(config: TrainConfig, given: RewardFuncs) -> dict[str, RewardFunc]:
    """The rewards by name: those given, else the settings', else the task's own.

    Raises:
        ConfigError: two of one name, or a number of weights that does not fit.
    """
    task = find_task(config)
    chosen = given if given is not None else config.reward_funcs or ([task.reward] if task else [])
    if not isinstance(chosen, str | Iterable) and not callable(chosen):
        raise RewardError(f"reward_funcs is a {type(chosen).__name__}; pass functions or names of rewards")
    listed = [chosen] if isinstance(chosen, str) or callable(chosen) else list(chosen)
    functions: dict[str, RewardFunc] = {}
    for item in listed:
        function = load(item) if isinstance(item, str) else item
        name = _reward_name(item)
        if name in functions:
            raise ConfigError(f"two rewards are called {name!r}; give them different names")
        functions[name] = function
    weights = config.reward_weights
    if weights is not None and len(weights) != len(functions):
        raise ConfigError(f"rewards.weights has {len(weights)} values for {len(functions)} rewards")
    return functions


def _steps(config: TrainConfig, epochs: int, items: int) -> int:
    """How many steps go through `items` groups `epochs` times; the last one takes what it lacks from the next."""
    return -(-epochs * items // config.prompts_per_step)


def _reward_name(item: str | Callable[..., Any]) -> str:
    if isinstance(item, str):
        return item.rpartition(":")[2]
    return getattr(item, "__name__", type(item).__name__)


def _load(model: "str | Path | PreTrainedModel", config: TrainConfig) -> "PreTrainedModel":
    if isinstance(model, str | Path):
        model = load_model(model, attention=config.attention)
    if model.dtype in (torch.bfloat16, torch.float16):  # half-precision weights do not move at the rates of RL
        model.float()
    moved: PreTrainedModel = model.to(PartialState().device)
    moved.train()
    return moved


def _tokenizer_path(model: "str | Path | PreTrainedModel", config: TrainConfig) -> str:
    path = config.tokenizer or (str(model) if isinstance(model, str | Path) else str(model.name_or_path))
    if not path:
        raise ConfigError("this model was made on the spot and has no tokenizer of its own; pass processing_class")
    return path


def _open(path: Path, config: TrainConfig) -> RunDirectory:
    """The directory of a run that goes on.

    Raises:
        RunError: there is none, or it was started with other settings.
    """
    run = RunDirectory.open(path)
    before = _flat(restore_config(run.config_path.read_text(encoding="utf-8")))
    now = _flat(config)
    changed = [key for key in now if before[key] != now[key] and not key.startswith(MAY_CHANGE)]
    if changed:
        key = changed[0]
        raise RunError(
            f"{path} was started with {key}={before[key]!r}, not {now[key]!r}; resume it with the same settings, "
            "or start another run"
        )
    return run


def _flat(config: TrainConfig) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, table in config.to_recipe().items() for key, value in table.items()}


def _restore(run: RunDirectory, learner: Learner, config: TrainConfig) -> TrainerState:
    """Weights, optimizer, reference and state of the newest whole checkpoint; a run without one starts over."""
    checkpoints = Checkpoints(run.checkpoints, config.checkpoint_keep)
    checkpoints.clean()
    loaded = checkpoints.newest()
    if loaded is None:
        return TrainerState()
    _restore_learner(loaded, learner, config)
    return loaded.state


def _restore_learner(loaded: Loaded, learner: Learner, config: TrainConfig) -> None:
    dtype = learner.model.dtype
    saved: Mapping[str, Any] = load_model(loaded.path, dtype=dtype, attention=config.attention).state_dict()
    learner.model.load_state_dict(saved)
    learner.optimizer.load_state_dict(loaded.optimizer)
    learner.non_finite = loaded.state.non_finite
    if learner.reference is not None and loaded.reference is not None:
        learner.reference.load_state_dict(loaded.reference)


def free_directory(parent: str | Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, `-3`, ... where that is taken."""
    number = 1
    while (path := Path(parent) / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
