"""The loop of a run: roll out, learn, log, evaluate and save, until the steps are done or a stop is requested."""

import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gvpo import activity, notices, runfiles
from gvpo.callbacks import Events
from gvpo.config.objectives import PREFIX
from gvpo.errors import EngineError, GvpoError, RewardError, TrainingError
from gvpo.model.lora import adapter_of
from gvpo.model.round_trip import verify_round_trip, warn_of_nameless_base
from gvpo.outcome import OutcomeWatch, findings, training_reward
from gvpo.progress import preparing
from gvpo.report import report_finished
from gvpo.rollout.collect import Rollout, failures
from gvpo.rollout.logged_groups import NO_REWARD
from gvpo.rollout.sampling_params import samples_exactly, truncates
from gvpo.rollout.usable import MAX_FAILED_SHARE, TrainingGroup, usable
from gvpo.system_errors import explained
from gvpo.training.allocator import keep_freed_memory
from gvpo.training.build import RunParts, build
from gvpo.training.checkpoint.card import model_card
from gvpo.training.checkpoint.files import Checkpoints
from gvpo.training.checkpoint.publish import push_to_hub
from gvpo.training.constraints import with_inputs
from gvpo.training.inputs import Policy, RunInputs
from gvpo.training.learner import StepResult
from gvpo.training.metrics import held_out_rows, overlong_metrics, rollout_rows, step_metrics
from gvpo.training.session.events import events_of
from gvpo.training.signals import RunStopped
from gvpo.training.step.turn_credit import with_turns
from gvpo.update.distributed import fsdp, ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_EMPTY_STEPS = 5


def train(inputs: RunInputs, policy: Policy, *, resume: bool, events: Events | None = None) -> dict[str, Any]:
    """Build the parts of a run, run them to the end, and write the report.

    Args:
        inputs: Inputs of the run.
        policy: The policy, which is trained in place.
        resume: Whether to resume the run in the directory of the settings.
        events: Events of the run with its callbacks; by default there are no callbacks.

    Returns:
        The summary, as in summary.json.

    Raises:
        GvpoError: If the run cannot begin or continue; files that were written stay.
        KeyboardInterrupt: If a stop was requested; the last step is saved.
    """
    if policy.model.device.type == "cpu":
        keep_freed_memory()
    title = (
        inputs.settings.run_dir.name
        if inputs.settings.run_dir is not None
        else inputs.settings.objective.removeprefix(PREFIX)
    )
    with preparing(title, quiet=not ranks.is_first()), ranks.explained():
        warn_of_nameless_base(policy.model)
        with build(inputs, policy, resume=resume) as parts:
            session = Session(parts, events or events_of(inputs, policy))
            summary = session.train()
            ranks.on_first(lambda: report_finished(parts.run.path))
            session.events.end()
            return summary


class Session:
    """One session of a run, from its state to its end.

    Every rank runs one on the same rollouts and with the same numbers; the first rank writes.

    Args:
        parts: Parts of the run.
        events: Events of the run with its callbacks.
    """

    def __init__(self, parts: RunParts, events: Events) -> None:
        self.config, self.run, self.state = parts.settings, parts.run, parts.state
        self.learner, self.tokenizer, self.source = parts.learner, parts.tokenizer, parts.source
        self.publisher, self._sampling = parts.publisher, parts.sampling
        self.judge, self.evaluator, self.events = parts.judge, parts.evaluator, events
        self._dead = parts.dead
        self._overlap = parts.overlap
        self.progress, self.trackers, self.stop = parts.progress, parts.trackers, parts.stop
        self.checkpoints = Checkpoints(self.run.checkpoints, self.config.checkpoint_keep)
        self._began = time.perf_counter() - self.state.seconds
        self._watch = OutcomeWatch()
        self._lines = ranks.on_first(self.run.read_metrics)
        for line in self._lines:
            self._watch.note(line)
        self._newest: Rollout | None = None
        self._saved = self.state.step or None  # the last step that is known to be intact on disk

    def train(self) -> dict[str, Any]:
        """Run to the end.

        Returns:
            The summary that is written to summary.json.

        Raises:
            TrainingError: If updates are not finite or no group can be trained on several times in a row, or memory
                runs out.
            RewardError: If most rewards of a step failed.
            RunError: If the system rejected a write.
            RunStopped: If a stop was requested; the last step is saved.
        """
        with explained(lambda: f"after step {self.state.step}"):
            self._begin()
            self.publisher.begin(self.state.step)
            self._card()  # it is written with the first checkpoint, so try it before hours of training
            if self.state.step == 0 and not self._is_asked_to_stop():
                self._evaluate_before()
            if self._is_due(self.config.eval_every):
                self._add_evaluation()  # the engine failed in the evaluation of the step that a resumed run begins with
            if not self._is_last():
                ranks.on_first(self.run.reopen)
            while not self._is_last() and not self._is_asked_to_stop():
                self._step(self.state.step + 1)
            if not self._is_last():
                self._stop()
            failure = _engine_failure(self._add_evaluation)
            if self._saved != self.state.step:
                self._save()
            if failure is not None:
                raise failure
            return ranks.on_first(self._summarise)

    def _is_asked_to_stop(self) -> bool:
        """Return whether any rank received a signal; a signal may reach one rank only, or another rank a step later."""
        return ranks.some(self.stop.requested)

    def _evaluate_before(self) -> None:
        evaluated = self._evaluate()
        self.state.before = self.state.latest
        if self.evaluator:
            self._log({"step": 0, **evaluated, **({"eval/overlap": self._overlap} if self._overlap else {})})
            self.progress.say(f"held-out accuracy before training {self.state.before['eval/accuracy']:.2f}")

    def _begin(self) -> None:
        self.events.restore(self.state.callbacks)
        self._note_for_callbacks()
        self.events.begin(self.run.path, self.state.step, self._lines, self.learner.optimizer)

    def _add_evaluation(self) -> None:
        """Evaluate the policy, and add that to the line of its step, if the step was not evaluated."""
        if self.evaluator and self._lines and not any(key.startswith("eval/") for key in self._lines[-1]):
            self._lines[-1] |= self._evaluate()
            self._note_best()
            ranks.on_first(lambda: self.run.replace_last(self._lines[-1]))
            self.trackers.log(self._lines[-1])

    def _step(self, step: int) -> None:
        self.events.begin_step(first=self._newest is None)
        began = time.perf_counter()
        rollout = with_inputs(self._roll_out(step), self.config, self.tokenizer)
        groups = self._usable(rollout)
        learned = self.learner.learn(groups, step)
        failure = _engine_failure(lambda: self.publisher.publish(step))
        self.source.commit(step)
        for note in self.learner.budget.take_notes():
            self.progress.say(note)
        self.state.step = step
        self._newest = rollout
        self._end_step(step)
        line = self._metrics(step, rollout, learned, time.perf_counter() - began)
        if self.events.evaluates and failure is None:
            failure = _engine_failure(lambda: self._evaluate_step(line))
        self._log(line)
        for warning in self._watch.note(line):
            self.progress.warn(warning)
        if self._wants_rollouts():
            self._write_rollouts(step, rollout, learned)
        if self.events.saves or self._is_new_best() or failure is not None:
            self._save()
        self.progress.update(step, line)
        if failure is not None:
            raise failure

    def _evaluate_step(self, line: dict[str, Any]) -> None:
        line |= self._evaluate()
        self._note_best()

    def _roll_out(self, step: int) -> Rollout:
        """Return the groups of a step. If the engine fails, save the steps that are done before the run ends."""
        try:
            with self._sampling():
                return self.source.rollout(step)
        except EngineError:
            if self.state.step > 0 and self._saved != self.state.step:
                self._save()
            raise

    def _end_step(self, step: int) -> None:
        """Tell the callbacks that a step is done; they may change what follows it."""
        last = step == self.config.steps
        evaluate = bool(self.evaluator) and (last or self._is_due(self.config.eval_every))
        self.events.end_step(step, evaluate=evaluate, save=self._is_due(self.config.checkpoint_every), last=last)

    def _log(self, line: dict[str, Any]) -> None:
        self._lines = [line]
        ranks.on_first(lambda: self.run.append_metrics(line))
        self.trackers.log(line)

    def _usable(self, rollout: Rollout) -> list[TrainingGroup]:
        rewarded = bool(rollout.verdicts) and self.learner.objective.spec.needs_rewards
        verdicts = [verdict for group in rollout.verdicts for verdict in group]
        failed = sum(v.reward is None and v.reason != NO_REWARD for v in verdicts)
        if failed > MAX_FAILED_SHARE * len(verdicts):
            if rollout.traceback:
                self.progress.say(rollout.traceback)
            raise RewardError(f"most rewards of step {self.state.step + 1} failed: {failures(rollout)}")
        least, overlong = self.learner.objective.spec.min_group, self.config.overlong_completions
        groups = usable(rollout.groups, rewarded=rewarded, at_least=least, overlong=overlong)
        dead = set() if self._dead is None else self._dead.of(rollout)
        groups = [entry for entry in groups if entry.index not in dead]
        self.state.empty_steps = 0 if groups else self.state.empty_steps + 1
        if self.state.empty_steps >= MAX_EMPTY_STEPS:
            raise TrainingError(
                f"no group could be trained on for {MAX_EMPTY_STEPS} steps: {self._reason(rollout, dead)}"
            )
        return with_turns(groups, self.learner.objective.spec, self.config)

    def _reason(self, rollout: Rollout, dead: Collection[int]) -> str:
        """Return why no group of a step can be trained on."""
        if len(dead) == len(rollout.groups):
            return (
                f"all groups are dead by their {self.config.rollout_dead_by}, and rollout.dead_groups is "
                f"{self.config.rollout_dead_groups!r}; choose prompts that are neither too easy nor too hard, or 'keep'"
            )
        overlong = self.config.overlong_completions
        end = " and an end" if overlong != "keep" else ""
        return f"each has fewer than two rows that have a reward{end} ({failures(rollout, overlong)})"

    def _metrics(self, step: int, rollout: Rollout, learned: StepResult, seconds: float) -> dict[str, Any]:
        kind = {"exact": samples_exactly(self.config), "truncated": truncates(self.config)}
        line = {"step": step, **step_metrics(step, rollout, learned, judge=self.judge, **kind)}
        line |= overlong_metrics(rollout, self.config.overlong_completions)
        line |= {} if self._dead is None else {"groups/dropped": len(self._dead.of(rollout))}
        line |= {} if self.publisher.shares_model else {"seconds/publishing": self.publisher.seconds}
        line["seconds/total"] = seconds
        line["tokens/per_second"] = line["tokens/sampled"] / seconds
        if self.learner.constraints is not None:
            line |= self.learner.constraints.ascend(rollout)
        self.events.logged({key: value for key, value in line.items() if key != "step"})
        return line

    def _wants_rollouts(self) -> bool:
        """Return whether to write this step's rollouts: those of the first step, of each N-th and of the last one."""
        every = self.config.rollouts_every
        return every > 0 and (self.state.step == 1 or self._is_due(every) or self._is_last())

    def _write_rollouts(self, step: int, rollout: Rollout, learned: StepResult) -> None:
        def write() -> None:
            prompts = [_text(self.tokenizer, group.prompt) for group in rollout.groups]
            self.run.write_rollouts(step, rollout_rows(step, rollout, learned, prompts, self.learner.objective.beta))

        ranks.on_first(write)

    def _evaluate(self) -> dict[str, float]:
        """Return the eval/ metrics of the current policy and their duration, or {} without held-out data."""
        if not self.evaluator:
            return {}
        began = time.perf_counter()
        measured = self.evaluator.measure()
        if measured.sampled is not None:
            self._write_held_out(measured.sampled, measured.greedy)
        self.state.latest = measured.metrics
        evaluated = {**measured.metrics, "seconds/evaluating": time.perf_counter() - began}
        self.events.evaluated(evaluated)
        return evaluated

    def _write_held_out(self, sampled: Rollout, greedy: Rollout | None) -> None:
        step = self.state.step

        def write() -> None:
            rows = held_out_rows(step, sampled, greedy, lambda ids: _text(self.tokenizer, ids))
            self.run.write_rollouts(step, rows, runfiles.HELD_OUT)

        ranks.on_first(write)

    def _note_best(self) -> None:
        state, accuracy = self.state, self.state.latest["eval/accuracy"]
        if state.best_accuracy is None or accuracy > state.best_accuracy:
            state.best_accuracy, state.best_step, state.evaluations_since_best = accuracy, state.step, 0
        else:
            state.evaluations_since_best += 1
        self._note_for_callbacks()

    def _note_for_callbacks(self) -> None:
        state = self.state
        self.events.best(state.best_accuracy, state.best_step, self.checkpoints.path(state.best_step))

    def _is_good_enough(self) -> bool:
        """Return whether to stop early: the target accuracy is reached, or there has been no new best for long."""
        target, patience = self.config.stop_at_accuracy, self.config.patience
        reached = target is not None and (self.state.best_accuracy or 0.0) >= target
        return reached or (patience is not None and self.state.evaluations_since_best >= patience)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.state.step % every == 0

    def _is_last(self) -> bool:
        asked = self.events.stops and self.state.step > 0
        return asked or self.state.step == self.config.steps or self._is_good_enough()

    def _is_new_best(self) -> bool:
        """Return whether to save this step as the best; a run with checkpoints keeps its best by evaluation."""
        return self.config.checkpoint_every > 0 and self.state.step == self.state.best_step

    def _save(self) -> None:
        self.state.seconds = time.perf_counter() - self._began
        self.state.non_finite = self.learner.non_finite
        self.state.budget = self.learner.budget.state()
        self.state.multipliers = self.learner.constraints.multipliers if self.learner.constraints is not None else {}
        self.state.callbacks = self.events.states()
        first = ranks.on_first(lambda: not any(self.run.checkpoints.glob("step-*")))
        with activity.phase("saving"):
            path = self._write_checkpoint()
        self._saved = self.state.step
        self._note_for_callbacks()
        self.events.saved()
        if first and self.config.checkpoint_verify:
            with fsdp.unsharded(self.learner.model):
                ranks.on_first(lambda: self._verify(path))

    def _write_checkpoint(self) -> Path:
        """Gather parts from all ranks if the model is split, and let the first rank write."""
        model, optimizer, reference = self.learner.model, self.learner.optimizer, self.learner.reference
        split = fsdp.is_sharded(model)
        weights = fsdp.full_on_first(model.state_dict(keep_vars=True)) if split else None
        moments = fsdp.full_optimizer(optimizer) if split else optimizer.state_dict()
        copied = reference.state_dict() if reference is not None else None
        source = self.source.state_dict()
        if split and copied is not None:
            copied = fsdp.full_on_first(copied)
        return ranks.on_first(
            lambda: self.checkpoints.save(
                self.state, model, self.tokenizer, moments, copied, card=self._card(), weights=weights, source=source
            )
        )

    def _card(self) -> str:
        needs_reference = self.learner.objective.needs_reference
        adapter = adapter_of(self.learner.model)
        is_new = self.config.model_init is not None
        start = self.config.model_path or ("" if is_new else str(self.learner.model.name_or_path))
        return model_card(
            self.config,
            self.state,
            self.tokenizer,
            start,
            needs_reference=needs_reference,
            adapter=adapter,
            objective=self.learner.objective.spec,
        )

    def _verify(self, path: Path) -> None:
        """Load the checkpoint back, and print what other programs must consider when they load it."""
        texts = _texts(self.tokenizer, self._newest) if self._newest is not None else []
        with notices.handled(lambda note, _: self.progress.say(f"note: {note}")):
            verify_round_trip(self.learner.model, self.tokenizer, path, texts)

    def _stop(self) -> NoReturn:
        """Save the last step. Before the first step there is none to save, so a resumed run starts over."""
        step = self.state.step
        if step > 0 and self._saved != step:
            self._save()
        done = f"after step {step} of {self.config.steps}, which is saved" if step > 0 else "before the first step"
        raise RunStopped(f"stopped {done}")

    def _summarise(self) -> dict[str, Any]:
        before, after, lines = self.state.before, self.state.latest, self.run.read_metrics()
        summary = {
            "accuracy_of": self._accuracy_of(),
            "accuracy_before": before.get("eval/accuracy"),
            "accuracy_after": after.get("eval/accuracy"),
            "accuracy_greedy_before": before.get("eval/accuracy_greedy"),
            "accuracy_greedy_after": after.get("eval/accuracy_greedy"),
            **training_reward(lines),
            "best_accuracy": self.state.best_accuracy,
            "best_step": self.state.best_step,
            "steps": self.state.step,
            "seconds": time.perf_counter() - self._began,
            "objective": self.learner.objective.name,
            "model": str(self.checkpoints.path(self.state.step)),
            "report": str(self.run.report_path),
            "warnings": findings(lines),
        }
        self.run.write_summary(summary)
        if self.config.push_to_hub is not None:
            summary["hub"] = self._push(self.config.push_to_hub)
            self.run.write_summary(summary)
        return summary

    def _accuracy_of(self) -> str | None:
        """Return what the accuracy is measured on."""
        if self.evaluator.samples is not None:
            return "samples"
        return "pairs" if self.evaluator.groups else None

    def _push(self, repo_id: str) -> str | None:
        """Push the model and return its page. A failed push only prints a warning, since the model is safe."""
        path = self.checkpoints.path(self.state.step)
        try:
            return push_to_hub(path, repo_id, private=self.config.push_private)
        except GvpoError as error:
            self.progress.say(
                f"{error}; the model is safe, push it later: gvpo.push_to_hub({str(path)!r}, {repo_id!r})"
            )
            return None


def _engine_failure(call: Callable[[], None]) -> EngineError | None:
    """Call a function, and return the error of an engine that fails in it, so that the step can be saved first."""
    try:
        call()
    except EngineError as error:
        return error
    return None


def _texts(tokenizer: "PreTrainedTokenizerBase", rollout: Rollout) -> list[str]:
    """Return some of a step's prompts and completions, to check that a saved tokenizer reads them as this one does."""
    texts: list[str] = []
    for group in rollout.groups[:2]:
        texts.append(_text(tokenizer, group.prompt))
        texts += [row.text for row in group.completions[:2] if row.text]
    return texts


def _text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))
