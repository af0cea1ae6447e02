"""The numbers and rows of a step: its metrics line and its rollout rows (keys: docs/reference/run-directory.md)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from gvpo.evaluation import Evaluation
from gvpo.rollout.collect import Rollout
from gvpo.rollout.episodes.metrics import episode_metrics
from gvpo.rollout.usable import Overlong, is_overlong, is_usable
from gvpo.runfiles import RolloutRow
from gvpo.training.learner import StepResult, Update
from gvpo.training.off_policy import is_on_policy, offpolicy_metrics
from gvpo.types import Completion, Verdict, is_right
from gvpo.update.group_backward import RowGradient

_MAX_LOG_RATIO = 20.0

GIVEN = ("history", "logged", "expert")
"""Sources of the rows of mixed groups that the step did not sample."""
SOURCES = ("live", *GIVEN)
"""Sources of completions; one with another name, such as that of a file, counts as "logged"."""

_OF_OWN_SAMPLES = frozenset({"gvpo/certificate"})
"""Metrics of objectives that are meaningful only if the rows are exact samples of the updated policy."""


@dataclass(frozen=True)
class TrainedRow:
    """A row as its first update processed it: with the attached log-probs, and the row's values from the update.

    `is_current` says that the policy of that update sampled the row.
    """

    completion: Completion
    row: RowGradient
    is_current: bool


def trained_rows(updates: Sequence[Update]) -> dict[tuple[int, int], TrainedRow]:
    """Map (group, row) in the rollout to the row in the first update that contained it."""
    rows: dict[tuple[int, int], TrainedRow] = {}
    for update in updates:
        results = iter(update.output.rows)
        for entry in update.groups:
            for position, completion in zip(entry.rows, entry.group.completions, strict=True):
                is_current = update.number == 0 and completion.age(update.step) == 0
                rows.setdefault((entry.index, position), TrainedRow(completion, next(results), is_current))
    return rows


def step_metrics(
    step: int, rollout: Rollout, learned: StepResult, *, judge: str | None, exact: bool = True, truncated: bool = False
) -> dict[str, float]:
    """Return the metrics line of a step, without evaluation and wall-clock time.

    Args:
        step: Number of the step, from 1.
        rollout: Groups of the step.
        learned: Updates of the step.
        judge: Name of the reward that measures accuracy.
        exact: Whether rows are sampled at temperature 1 from all tokens, so that they are samples of the policy itself.
        truncated: Whether rows are sampled from a part of the tokens, so that the sampler's log-probs differ from the
            trainer's.
    """
    trained = trained_rows(learned.updates)
    return {
        **reward_metrics(rollout, judge),
        **_group_metrics(rollout, learned),
        **source_metrics(rollout, step),
        **rollout.metrics,
        **_length_metrics(rollout),
        **episode_metrics(row for group in rollout.groups for row in group.completions),
        **_policy_metrics(trained.values()),
        **({} if truncated else _mismatch_metrics(trained.values())),
        **_update_metrics(learned.updates, exact=exact, truncated=truncated),
        **({} if learned.budget is None else {"train/tokens_per_microbatch": learned.budget}),
        **{f"seconds/{phase}": seconds for phase, seconds in rollout.seconds.items()},
        "seconds/scoring": learned.scoring + rollout.seconds.get("scoring", 0.0),
        "seconds/updating": learned.updating,
    }


def reward_metrics(rollout: Rollout, judge: str | None) -> dict[str, float]:
    """Return means over the rows with a reward, the fraction without one, and the fraction with the worst reward."""
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    if not verdicts:
        return {}
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    metrics = {
        "reward/mean": fmean(rewards or [math.nan]),
        "reward/std": pstdev(rewards or [math.nan]),
        "rows/failed": fmean(verdict.reward is None for verdict in verdicts),
        "rows/paid_worst": fmean(verdict.reward is not None and verdict.reason != "" for verdict in verdicts),
    }
    for name in sorted({name for verdict in verdicts for name in verdict.parts}):
        parts = [part for verdict in verdicts if (part := verdict.parts.get(name)) is not None]
        if parts:
            metrics[f"reward/{name}"] = fmean(parts)
    if judge is not None and any(judge in verdict.parts for verdict in verdicts):  # logged groups may lack it
        metrics["accuracy"] = fmean(is_right(verdict.parts.get(judge)) for verdict in verdicts)
    return metrics


def _group_metrics(rollout: Rollout, learned: StepResult) -> dict[str, float]:
    used = {entry.index for update in learned.updates for entry in update.groups}
    rewards = [[row.reward for row in group.completions if row.reward is not None] for group in rollout.groups]
    return {
        "groups/total": len(rollout.groups),
        "groups/dead": sum(len(values) > 1 and max(values) == min(values) for values in rewards),
        "groups/skipped": len(rollout.groups) - len(used),
    }


def source_metrics(rollout: Rollout, step: int) -> dict[str, float]:
    """Return the fraction of rows from each source, and the ages of the rows that a policy of the run sampled.

    Training on written answers has no such metrics: its rows have neither rewards nor a policy of the run.
    """
    rows = [row for group in rollout.groups for row in group.completions]
    if not rollout.verdicts and all(row.version is None for row in rows):
        return {}
    counts = Counter(_origin(row) for row in rows)
    ages = [age for row in rows if (age := row.age(step)) is not None]
    metrics = {f"rows/{source}": counts[source] / len(rows) for source in SOURCES}
    return {**metrics, **({"age/mean": fmean(ages), "age/max": max(ages)} if ages else {})}


def _origin(row: Completion) -> str:
    """Return the source of a row; "live" rows of a file were sampled by another run."""
    known = row.source in SOURCES and (row.source != "live" or row.version is not None)
    return row.source if known else "logged"


def _length_metrics(rollout: Rollout) -> dict[str, float]:
    rows = [row for group in rollout.groups for row in group.completions]
    lengths = [len(row.tokens) for row in rows]
    return {
        "length/mean": fmean(lengths),
        "length/max": max(lengths),
        "rows/truncated": fmean(is_overlong(row) for row in rows),
        "tokens/sampled": _sampled_tokens(rollout),
        "tokens/prompt": sum(len(group.prompt) for group in rollout.groups),
    }


def _sampled_tokens(rollout: Rollout) -> int:
    """Return the number of completion tokens that are new in a step; given rows and kept groups are not new."""
    rows = (row for group in rollout.groups[: rollout.fresh] for row in group.completions)
    return sum(len(row.tokens) for row in rows if row.source not in GIVEN)


def overlong_metrics(rollout: Rollout, treatment: Overlong) -> dict[str, float]:
    """Return the fraction of rows that are masked or dropped because they reached the maximum length."""
    if treatment == "keep":
        return {}
    rows = [row for group in rollout.groups for row in group.completions]
    affected = [is_overlong(row) and is_usable(row, rewarded=bool(rollout.verdicts)) for row in rows]
    return {"rows/masked" if treatment == "mask" else "rows/dropped": fmean(affected)}


def _policy_metrics(trained: Iterable[TrainedRow]) -> dict[str, float]:
    kl, entropies = [], []
    for item in trained:
        entropies.append(item.row.entropy)
        if item.completion.ref_logprobs is not None:
            kl.append(_k3(item))
    metrics = {"kl/reference": fmean(kl)} if kl else {}
    joined = torch.cat(entropies) if entropies else torch.empty(0)
    return metrics | ({"entropy": float(joined.mean())} if joined.numel() else {})


def _mismatch_metrics(trained: Iterable[TrainedRow]) -> dict[str, float]:
    """Compare the trainer's log-probs with the sampler's, token by token, on rows that the current policy sampled.

    Rows of an earlier policy are left out. Their differences would show how far the policy has moved since then.
    """
    differences = [
        (item.row.logprobs.double() - torch.as_tensor(recorded, dtype=torch.float64))[_mask(item.completion) != 0]
        for item in trained
        if item.is_current and (recorded := item.completion.sampler_logprobs) is not None
    ]
    joined = torch.cat(differences) if differences else torch.empty(0)
    if not joined.numel():
        return {}
    return {
        "sampler/mismatch": float(joined.abs().mean()),
        "sampler/mismatch_max": float(joined.abs().max()),
        "sampler/kl": float((joined.clamp(max=_MAX_LOG_RATIO).expm1() - joined).mean()),
    }


def _k3(item: TrainedRow) -> float:
    """Return a one-sample estimate of KL(policy || reference), nats.

    It is the sum of e^d - d - 1 over scored tokens, with d = ref - current.
    """
    difference = torch.as_tensor(item.completion.ref_logprobs) - item.row.logprobs
    k3 = difference.clamp(max=_MAX_LOG_RATIO).exp() - difference - 1
    return float((k3 * _mask(item.completion)).sum())


def _update_metrics(updates: Sequence[Update], *, exact: bool, truncated: bool) -> dict[str, float]:
    """Return means over the applied updates; if there were several, also the last one's values as NAME/last.

    A key that some updates lack is averaged over the others.
    """
    applied = [update for update in updates if update.applied]
    metrics: dict[str, float] = {
        "train/updates": len(applied),
        "train/skipped_updates": len(updates) - len(applied),
        "tokens/trained": sum(_scored_tokens(update) for update in applied),
    }
    if not applied:
        return metrics
    lines = [_one_update(update, exact=exact, truncated=truncated) for update in applied]
    keys = dict.fromkeys(key for line in lines for key in line)
    metrics |= {key: fmean(line[key] for line in lines if key in line) for key in keys}
    metrics["train/lr"] = applied[-1].rate
    if len(lines) > 1:
        metrics |= {f"{key}/last": value for key, value in lines[-1].items()}
    return metrics


def _scored_tokens(update: Update) -> int:
    return int(sum(_mask(row).sum() for entry in update.groups for row in entry.group.completions))


def _one_update(update: Update, *, exact: bool, truncated: bool) -> dict[str, float]:
    omitted = frozenset() if exact and is_on_policy(update) else _OF_OWN_SAMPLES
    return {
        "train/loss": float(update.output.loss),
        "train/grad_norm": update.grad_norm,
        **{key: float(value) for key, value in update.output.metrics.items() if key not in omitted},
        **offpolicy_metrics(update, truncated=truncated),
    }


def evaluation_metrics(sampled: Evaluation, greedy: Evaluation | None) -> dict[str, float]:
    """Return the eval/ keys of a metrics line."""
    metrics = {
        "eval/accuracy": sampled.accuracy,
        "eval/reward": sampled.reward,
        "eval/length": sampled.length,
        "eval/truncated": sampled.truncated,
    }
    if greedy is not None:
        metrics["eval/accuracy_greedy"] = greedy.accuracy
    episodes = episode_metrics(row for group in sampled.rollout.groups for row in group.completions)
    return {**metrics, **{f"eval/{key.replace('/', '_', 1)}": value for key, value in episodes.items()}}


def rollout_rows(
    step: int, rollout: Rollout, learned: StepResult, prompts: Sequence[str], beta: float
) -> list[RolloutRow]:
    """Return one row per completion, including failed ones. `prompts` contains each group's prompt as text."""
    trained = trained_rows(learned.updates)
    return [
        dataclasses.replace(row, **_trained_facts(trained.get((index, position)), beta))
        for index, group in enumerate(_completion_rows(step, rollout, prompts))
        for position, row in enumerate(group)
    ]


def held_out_rows(
    step: int, sampled: Rollout, greedy: Rollout | None, text_of: Callable[[Sequence[int]], str]
) -> list[RolloutRow]:
    """Return one row per held-out answer: per problem the sampled ones, then the greedy one with the source "greedy".

    Args:
        step: Step after which the policy answered.
        sampled: Sampled answers.
        greedy: Greedy answers to the same problems, if there are any.
        text_of: Decodes a prompt.
    """
    prompts = [text_of(group.prompt) for group in sampled.groups]
    groups = list(_completion_rows(step, sampled, prompts))
    if greedy is not None:
        for group, (row,) in zip(groups, _completion_rows(step, greedy, prompts), strict=True):
            group.append(dataclasses.replace(row, row=len(group), source="greedy"))
    return [dataclasses.replace(row, version=step, token_versions=None, age=None) for group in groups for row in group]


def _completion_rows(step: int, rollout: Rollout, prompts: Sequence[str]) -> Iterator[list[RolloutRow]]:
    """Yield the rows of each group, without the facts of an update."""
    for index, (group, prompt) in enumerate(zip(rollout.groups, prompts, strict=True)):
        verdicts = rollout.verdicts[index] if rollout.verdicts else [Verdict(None)] * len(group.completions)
        judged = zip(group.completions, verdicts, strict=True)
        yield [
            RolloutRow(
                step=step,
                group=group.id,
                row=position,
                prompt=prompt,
                prompt_tokens=list(group.prompt),
                text=completion.text or "",
                tokens=list(completion.tokens),
                reward=completion.reward,
                reward_parts=dict(verdict.parts),
                reason=verdict.reason,
                mask=_floats(completion.mask),
                sampler_logprobs=_floats(completion.sampler_logprobs),
                finish_reason=completion.finish_reason,
                source=completion.source,
                version=completion.version,
                token_versions=None if completion.versions is None else list(completion.versions),
                turns=_turn_rows(completion),
                opening=completion.opening,
                age=completion.age(step),
                columns=dict(group.columns),
            )
            for position, (completion, verdict) in enumerate(judged)
        ]


def _trained_facts(trained: TrainedRow | None, beta: float) -> dict[str, Any]:
    """Return the fields of a row that was trained on; without a stored reference, its policy is the reference."""
    if trained is None:
        return {}
    completion, row = trained.completion, trained.row
    implicit = None
    if completion.ref_logprobs is not None:
        log_ratio = row.logprobs - torch.as_tensor(completion.ref_logprobs)
        implicit = beta * float((log_ratio * _mask(completion)).sum())
    return {
        "mask": _floats(completion.mask),
        "turns": _turn_rows(completion, row),
        "weight": _weight(completion, row),
        "implicit_reward": implicit,
        "logprobs": _floats(row.logprobs),
        "ref_logprobs": _floats(completion.ref_logprobs),
        "old_logprobs": _floats(completion.old_logprobs),
        "entropy": _floats(row.entropy),
    }


def _turn_rows(completion: Completion, row: RowGradient | None = None) -> list[dict[str, Any]]:
    """Return the turns of an episode as mappings, with the weight of each turn if the row was trained on."""
    return [
        {
            **dataclasses.asdict(turn),
            "weight": None if row is None else _weight(completion, row, slice(turn.start, turn.stop)),
        }
        for turn in completion.turns
    ]


def _weight(completion: Completion, row: RowGradient, part: slice = slice(None)) -> float:
    """Return minus the mean of c over the scored tokens. In GVPO a row's tokens share one c; the weights sum to 0."""
    mask = _mask(completion)[part]
    return -float((row.coefficients[part] * mask).sum() / mask.sum().clamp(min=1))


def _mask(completion: Completion) -> torch.Tensor:
    if completion.mask is None:
        return torch.ones(len(completion.tokens))
    return torch.as_tensor(completion.mask, dtype=torch.float32)


def _floats(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
