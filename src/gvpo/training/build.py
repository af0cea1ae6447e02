"""Building the parts of a run's loop from its inputs: directory, learner, source of groups, and state."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gvpo import activity, notices, runfiles
from gvpo.config import TrainConfig
from gvpo.config.objectives import PREFIX
from gvpo.config.recipe import dump_config
from gvpo.model import lora
from gvpo.model.fingerprints import base_fingerprint
from gvpo.model.fingerprints import fingerprint as model_fingerprint
from gvpo.model.reference import Reference
from gvpo.progress import StepProgress, error_console
from gvpo.rewards import RewardPool
from gvpo.rewards.identity import identity
from gvpo.rollout.dynamic.dead import DeadGroups
from gvpo.rollout.episodes.setup import environment_identity
from gvpo.rollout.fingerprints import answer_rows, fingerprint, problem_rows
from gvpo.rollout.rewards import reward_pool
from gvpo.rollout.sources.base import Source
from gvpo.sampling import Sampler
from gvpo.system_errors import explained
from gvpo.training.checkpoint.files import TrainerState
from gvpo.training.checkpoint.publish import check_account
from gvpo.training.checkpoint.resume import BASE, open_run, read_settings, restore
from gvpo.training.checkpoint.run_directory import RunDirectory, free_directory, locked
from gvpo.training.checkpoint.trial import try_save, warn_of_short_disk
from gvpo.training.checks import check_old_logprobs, overlap
from gvpo.training.engine.publish import Publisher
from gvpo.training.engine.sampling import open_sampling
from gvpo.training.inputs import Policy, RunInputs, TrainingData
from gvpo.training.learner import Learner
from gvpo.training.objective import build_objective
from gvpo.training.reference_scores import policy_name, score_under_start
from gvpo.training.session.evaluator import EvalInputs, Evaluator
from gvpo.training.signals import StopRequests
from gvpo.training.sources import make_source
from gvpo.training.step.teacher import load_teacher
from gvpo.training.trackers import Trackers
from gvpo.types import Group
from gvpo.update.distributed import ranks
from gvpo.update.precision import choose_dtype, is_half

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING, HELD_OUT, GIVEN = "set of training data", "set of held-out data", "set of logged completions"
"""Names of the data fingerprints."""
REWARDS_LOG = "rewards.log"
"""File with the output of the reward functions."""
WORTH_SAYING = 10**8
"""Smallest size in bytes of a copy of the policy that is announced."""
COMPUTE_DTYPE = "compute_dtype"
"""Key of environment.json with the dtype that model.compute_dtype="auto" was resolved to."""
BEFORE_ALL = -1
"""Step from which a run without a checkpoint starts over, including its step 0 (the evaluation before training)."""


@dataclass(frozen=True)
class RunParts:
    """Parts that the loop runs.

    Args:
        settings: Settings of the run.
        run: Directory of the run.
        state: Progress of the run; the loop changes it.
        learner: The policy, its objective and its optimizer.
        tokenizer: Tokenizer, which is saved with the policy and used to show prompts.
        source: Source of the groups of each step.
        publisher: Publisher of the policy's weights to the sampler.
        sampling: Function that returns the context in which the sampler samples.
        judge: Name of the reward that measures accuracy; None if there are no rewards.
        dead: Definition of the groups that are not trained on; None if dead groups are kept.
        evaluator: Evaluator of the policy on held-out data.
        overlap: Fraction of the held-out prompts that are training prompts too.
        progress: Terminal output.
        trackers: Receivers of metrics lines in addition to metrics.jsonl.
        stop: Stop requests, which the loop checks between steps.
    """

    settings: TrainConfig
    run: RunDirectory
    state: TrainerState
    learner: Learner
    tokenizer: "PreTrainedTokenizerBase"
    source: Source
    publisher: Publisher
    sampling: Callable[[], AbstractContextManager[None]]
    judge: str | None
    dead: DeadGroups | None
    evaluator: Evaluator
    overlap: float
    progress: StepProgress
    trackers: Trackers
    stop: StopRequests


@contextlib.contextmanager
def build(inputs: RunInputs, policy: Policy, *, resume: bool) -> Iterator[RunParts]:
    """Create a run, or open one to resume; its workers, locks and trackers live as long as the context.

    Raises:
        RunError: If the directory already contains a run or is in use, or (resume) contains no run or another one.
        GvpoError: If nothing can be saved there, or a reward cannot be sent to its workers.
    """
    path = inputs.settings.run_dir or ranks.on_first(
        lambda: free_directory("runs", inputs.settings.objective.removeprefix(PREFIX))
    )
    if resume:  # opening the run first, because `locked` would create the directory
        before = ranks.on_first(lambda: read_settings(RunDirectory.open(path)))
        inputs = dataclasses.replace(inputs, plan=inputs.plan.started_as(before))
    check_old_logprobs(inputs)
    config = inputs.settings
    ranks.on_first(lambda: check_account(config))
    with contextlib.ExitStack() as stack:
        pool = None
        if inputs.rewards:
            pool = stack.enter_context(reward_pool(config, inputs.rewards, log=path / REWARDS_LOG))
        ranks.on_first(lambda: stack.enter_context(locked(path)))
        stop = stack.enter_context(StopRequests())
        stack.enter_context(explained(lambda: "before training"))
        with activity.phase("trying to save"):
            ranks.on_first(lambda: try_save(config, policy.model, inputs.tokenizer, path))
        with activity.phase("choosing the compute dtype"):
            dtype = stored_dtype(path, config) if resume else _chosen_dtype(policy, config)
        resolved = config.replace(compute_dtype=dtype)
        teacher = load_teacher(resolved, inputs.tokenizer)
        run = ranks.on_first(lambda: _directory(path, inputs, policy, teacher, dtype, resume=resume))
        _say(inputs, resume=resume)
        start = None if any(run.checkpoints.glob("step-*")) else policy_name(policy.model)  # before the model is split
        objective = build_objective(config, inputs.plan.objective)
        learner = Learner(policy.model, objective, resolved, reference_given=_stores_reference(inputs), teacher=teacher)
        for line in () if resume else _introduction(inputs, learner):
            _print(line)
        ranks.on_first(lambda: warn_of_short_disk(config, learner, path))
        learner.compare_paths()
        data, held_groups = _under_start(inputs, learner, start, run, stop)
        sampling = stack.enter_context(open_sampling(inputs, policy, resolved, learner, path))
        source = make_source(
            inputs,
            policy,
            data,
            pool,
            path / runfiles.GROUPS,
            resume=resume,
            score=learner.score,
            sampler=sampling.sampler,
            sampling=sampling.context,
        )
        stack.callback(source.close)
        state = restore(run, learner, source, config) if resume else TrainerState()
        ranks.on_first(lambda: run.truncate_after(state.step if state.step > 0 else BEFORE_ALL))
        progress = stack.enter_context(StepProgress(run.path.name, config.steps, state.step, _console()))
        tracked = config if ranks.is_first() else config.replace(trackers=[])
        trackers = stack.enter_context(Trackers(tracked, run, state.step, progress.say))
        yield RunParts(
            settings=config,
            run=run,
            state=state,
            learner=learner,
            tokenizer=inputs.tokenizer,
            source=source,
            publisher=sampling.publisher,
            sampling=sampling.context,
            judge=inputs.judge,
            dead=inputs.dead_groups,
            evaluator=Evaluator(
                config,
                eval_inputs(inputs, sampling.sampler, pool),
                held_groups,
                learner.objective.beta,
                score=learner.score,
                sampling=sampling.context,
            ),
            overlap=overlap(inputs).share,
            progress=progress,
            trackers=trackers,
            stop=stop,
        )


def _chosen_dtype(policy: Policy, config: TrainConfig) -> str:
    """Return the dtype of a new run's forward passes, and print it if the speed of the processor decided."""
    dtype, faster = choose_dtype(config, policy.model)
    if faster > 0 and dtype == "bfloat16":
        _print(
            f"computing in bfloat16, which this processor multiplies {faster:.1f} times as fast as float32; weights "
            "stay float32 (model.compute_dtype)"
        )
    return dtype


def stored_dtype(path: Path, config: TrainConfig) -> str:
    """Return the dtype that a run started with. Earlier versions did not record it, and had no choice on a CPU."""
    found = ranks.on_first(lambda: runfiles.read_json(path / runfiles.ENVIRONMENT).get(COMPUTE_DTYPE))
    return found if found in ("float32", "bfloat16") else "bfloat16" if is_half(config) else "float32"


def _directory(
    path: Path, inputs: RunInputs, policy: Policy, teacher: "PreTrainedModel | None", dtype: str, *, resume: bool
) -> RunDirectory:
    fingerprints = _fingerprints(inputs, policy)
    if teacher is not None:  # no checkpoint contains it
        fingerprints |= {"teacher": model_fingerprint(teacher, inputs.tokenizer)}
    if resume:
        return open_run(path, inputs.settings, fingerprints)
    facts = {"ranks": ranks.count(), "device": str(ranks.device()), COMPUTE_DTYPE: dtype}
    return RunDirectory.create(path, config=dump_config(inputs.settings), facts=facts, inputs=fingerprints)


def _fingerprints(inputs: RunInputs, policy: Policy) -> dict[str, str]:
    """Return the fingerprints that identify the run, besides settings and weights; a resumed run must have the same."""
    held_out = fingerprint([*problem_rows(inputs.held_out), *answer_rows(inputs.held_groups)])
    found = {TRAINING: inputs.data.fingerprint(), HELD_OUT: held_out}
    if inputs.data.given:
        found[GIVEN] = fingerprint(answer_rows(logged.group for logged in inputs.data.given))
    if inputs.environment is not None:
        found["environment"] = environment_identity(inputs.environment)
    if inputs.plan.samples or (inputs.held_out and inputs.rewards):
        found |= {f"reward {name!r}": identity(function) for name, function in inputs.rewards.items()}
    if not isinstance(inputs.plan.objective.function, str):
        found["objective"] = identity(inputs.plan.objective.function)
    if lora.is_adapted(policy.model):
        found[BASE] = base_fingerprint(policy.model)  # no checkpoint contains those weights
    return found


def _say(inputs: RunInputs, *, resume: bool) -> None:
    """Print the warnings so far. A resumed run printed them when it began."""
    for message in () if resume else inputs.notices:
        notices.warn(message)
    notices.begin()


def _introduction(inputs: RunInputs, learner: Learner) -> Iterator[str]:
    """Yield lines about what the run resolved, and about a copy of the policy that needs memory."""
    if inputs.plan.introduction is not None:
        yield inputs.plan.introduction
    if isinstance(learner.reference, Reference) and (size := learner.reference.nbytes()) >= WORTH_SAYING:
        yield f"the reference is a copy of the policy, which takes {size / 1e9:.1f} GB"
    if learner.teacher is not None and (size := learner.teacher.get_memory_footprint()) >= WORTH_SAYING:
        yield f"the teacher {inputs.settings.teacher} takes {size / 1e9:.1f} GB"


def _stores_reference(inputs: RunInputs) -> bool:
    """Return whether the reference's log-probs of all rows can be computed once, before training."""
    return bool(inputs.data.compared) and inputs.settings.reference == "initial"


def _under_start(
    inputs: RunInputs, learner: Learner, start: str | None, run: RunDirectory, stop: StopRequests
) -> tuple[TrainingData, list[Group]]:
    """Return the data and the held-out groups, with the starting policy's log-probs if these are computed once."""
    score = functools.partial(
        score_under_start,
        learner=learner,
        start=start,
        directory=run.path / runfiles.REFERENCE,
        stop=stop,
        console=_console(),
    )
    data = inputs.data
    if _stores_reference(inputs):
        scored = zip(data.compared, score(data.groups, "train"), strict=True)
        data = dataclasses.replace(data, compared=[each.with_rows(group) for each, group in scored])
    return data, score(inputs.held_groups, "held-out")


def eval_inputs(inputs: RunInputs, sampler: Sampler, pool: RewardPool | None) -> EvalInputs | None:
    """Return the inputs of the evaluation by samples; None without held-out problems or rewards."""
    judge = inputs.judge
    if not inputs.held_out or pool is None or judge is None:
        return None
    return EvalInputs(inputs.held_out, sampler, inputs.params, pool, judge)


def _print(line: str) -> None:
    _console().print(f"gvpo: {line}", highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    """Return the console of the first rank; the other ranks print nothing."""
    return error_console(quiet=not ranks.is_first())
