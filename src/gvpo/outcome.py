"""Rules that judge a run by its metrics, for warnings while it trains and for the verdict at its end.

    lines of metrics.jsonl ──each rule──▶ a sentence, or ""

A rule reads nothing but metrics lines, so a resumed run, its report and Python say the same. While a run trains, a rule
is applied to its last steps, and its warning is given once; at the end it is applied to all lines.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from gvpo.collapse import CollapseWatch, collapse_warning

Line = Mapping[str, Any]
Lines = Sequence[Line]

HOLD = 5
"""Number of consecutive steps for which a problem must last before a run warns of it."""

MANY, HALF, MOST = 0.25, 0.5, 0.9
"""Fractions of rows or groups from which a rule applies."""

FAR = 3.0
"""KL to the reference, in nats per token, at which the policy writes another language than its reference."""

APART = 0.05
"""KL from the engine that samples to the trainer, in nats per token, that rounding to bfloat16 does not explain."""
GROWTHS = ((5, 10.0, 3e-3), (1, 1000.0, 3e-5))
"""Growths of that KL from which a rule applies: a number of first steps, the factor by which the last steps exceed the
largest of these, and the least KL of the last steps. The second is that of an engine that is exact only at first."""

ENDS = 10
"""Maximum number of steps in the means of the first and the last steps of a run."""

SEE = "see `gvpo docs troubleshooting`"


@dataclass(frozen=True)
class Rule:
    """A disappointment that metrics can show.

    Args:
        name: Name of the rule.
        find: Function that returns a sentence about some steps in order, or "" if there is nothing to say.
        is_live: Whether the rule is also applied to the last steps while the run trains.
    """

    name: str
    find: Callable[[Lines], str]
    is_live: bool = True


class OutcomeWatch:
    """Reader of a run's metrics lines, in order, that gives each warning once."""

    def __init__(self) -> None:
        self._recent: list[Line] = []
        self._given: set[str] = set()
        self._collapse = CollapseWatch()

    def note(self, line: Line) -> list[str]:
        """Read the next line, and return the warnings that it is the first to cause."""
        collapse = self._collapse.note(line)
        if line.get("step") != 0:
            self._recent = [*self._recent, line][-HOLD:]
        return [*([collapse] if collapse else []), *(self._new() if len(self._recent) == HOLD else ())]

    def _new(self) -> Iterator[str]:
        first, last = self._recent[0].get("step"), self._recent[-1].get("step")
        for rule in RULES:
            if rule.is_live and rule.name not in self._given and (text := rule.find(self._recent)):
                self._given.add(rule.name)
                yield f"steps {first} to {last}: {text}"


def findings(lines: Lines) -> list[str]:
    """Return what a run's metrics lines say about its outcome, one sentence per rule that applies."""
    collapse = collapse_warning(lines)
    found = (rule.find(lines) for rule in RULES)
    return [*(text for text in found if text), *([collapse] if collapse else [])]


def training_reward(lines: Lines) -> dict[str, float]:
    """Return the mean training reward of the first and the last steps, and the number of steps in each mean.

    Returns:
        `reward_first`, `reward_last` and `reward_steps`; {} without rewards.
    """
    means = _values(lines, "reward/mean")
    if not means:
        return {}
    size = max(1, min(ENDS, len(means) // 2))
    return {"reward_first": fmean(means[:size]), "reward_last": fmean(means[-size:]), "reward_steps": size}


def _values(lines: Lines, key: str) -> list[float]:
    """Return the finite numbers of a key."""
    found = (line.get(key) for line in lines)
    return [value for value in found if isinstance(value, int | float) and math.isfinite(value)]


def _steps(lines: Lines) -> list[Line]:
    """Return the lines of steps with rewards, without that of the evaluation before training."""
    return [line for line in lines if "groups/total" in line and "reward/mean" in line]


def _is_dead(line: Line) -> bool:
    """Return whether a step had groups, and no group with unequal rewards."""
    dead = line.get("groups/dead", 0)
    return bool(dead) and dead + _lost(line) >= line["groups/total"]


def _lost(line: Line) -> float:
    """Return the number of groups that no update used, without those that were left out because they are dead."""
    return float(line.get("groups/skipped", 0) - line.get("groups/dropped", 0))


def _total(lines: Lines, key: str) -> int:
    return round(sum(_values(lines, key)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _of_equal_rewards(lines: Lines) -> str:
    steps = _steps(lines)
    if not steps or not all(map(_is_dead, steps)):
        return ""
    return (
        f"nothing was learned: all {_total(steps, 'groups/dead')} groups had equal rewards ({_rewards(steps)}); "
        f"{_remedy(steps)}, and {SEE}"
    )


def _rewards(steps: Lines) -> str:
    """Return which rewards were seen, such as `every reward was 0`."""
    means = _values(steps, "reward/mean")
    if not means:
        return "no row had a reward"
    if any(_values(steps, "reward/std")):
        return f"mean {fmean(means):.3g}; they differ only between prompts"
    if min(means) == max(means):
        return f"every reward was {means[0]:.3g}"
    return f"{min(means):.3g} to {max(means):.3g}"


def _remedy(steps: Lines) -> str:
    """Return what to try first, according to what else the steps show."""
    if fmean(_values(steps, "rows/truncated") or [0.0]) >= MOST:
        return "completions were cut before their end, so raise sampling.max_tokens"
    if _values(steps, "entropy") and max(_values(steps, "entropy")) < 0.01:
        return "the completions of a prompt were the same, so raise sampling.temperature or begin from another model"
    return "read some completions in the report, check that the reward tells good from bad ones, or use other prompts"


def _of_late_equal_rewards(lines: Lines) -> str:
    steps = _steps(lines)
    alive = [place for place, line in enumerate(steps) if not _is_dead(line)]
    rest = steps[alive[-1] + 1 :] if alive else []
    if len(rest) < max(2 * HOLD, len(steps) // 2):
        return ""
    return (
        f"all groups had equal rewards from step {rest[0].get('step')} on ({_rewards(rest)}), so the last {len(rest)} "
        "steps taught nothing: if the prompts are solved, stop earlier (eval.patience, eval.stop_at_accuracy) or use "
        f"harder ones; otherwise {SEE}"
    )


def _of_few_unequal_rewards(lines: Lines) -> str:
    steps = _steps(lines)
    total, dead = _total(steps, "groups/total"), _total(steps, "groups/dead")
    half = steps[: max(1, len(steps) // 2)]
    if all(map(_is_dead, steps)) or any(
        _total(part, "groups/dead") < MOST * _total(part, "groups/total") for part in (steps, half)
    ):
        return ""
    return (
        f"little was learned: {dead} of {total} groups had equal rewards; use prompts that the model solves sometimes, "
        f"or a larger sampling.group_size, and {SEE}"
    )


def _of_missing_rewards(lines: Lines) -> str:
    share = fmean(_values(lines, "rows/failed") or [0.0])
    if share < MANY:
        return ""
    return (
        f"{_percent(share)} of the completions had no reward and taught nothing; the report and rewards.log show the "
        f"reasons; {SEE}"
    )


def _of_skipped_groups(lines: Lines) -> str:
    steps = _steps(lines)
    total, skipped = _total(steps, "groups/total"), round(sum(map(_lost, steps)))
    if not total or skipped < max(1, MANY * total):
        return ""
    return f"{skipped} of {total} groups were skipped, because too few of their rows could be trained on; {SEE}"


def _of_blamed_rows(lines: Lines) -> str:
    share = fmean(_values(lines, "rows/paid_worst") or [0.0])
    if share < MANY:
        return ""
    return (
        f"{_percent(share)} of the completions got the worst reward because their check failed or timed out; the "
        "report and rewards.log show the reasons"
    )


def _of_failing_environments(lines: Lines) -> str:
    share = sum(fmean(_values(lines, f"env/{each}") or [0.0]) for each in ("errors", "timeouts", "died"))
    if share < HALF:
        return ""
    return (
        f"{_percent(share)} of the turns failed in the environment, so the policy heard errors; they are mistakes of "
        "the policy or of the environment's code, whose tracebacks are in environments.log"
    )


def _of_truncation(lines: Lines) -> str:
    sampled = [line for line in lines if "seconds/sampling" in line and "rows/truncated" in line]
    share = fmean(_values(sampled, "rows/truncated") or [0.0])
    longest = round(max(_values(sampled, "length/max"), default=0))
    if share < MOST or longest == 1:  # one token has no room for an end, so it is a whole answer
        return ""
    return (
        f"{_percent(share)} of the completions were cut at the maximum length of {longest} before they ended, so "
        f"rewards were given to unfinished answers; raise sampling.max_tokens, or {SEE} if the model never stops"
    )


def _of_skipped_updates(lines: Lines) -> str:
    done, skipped = _total(lines, "train/updates"), _total(lines, "train/skipped_updates")
    if not skipped or skipped < 0.1 * (done + skipped):
        return ""
    return (
        f"{skipped} of {done + skipped} updates were skipped, because loss or gradient was not finite; lower "
        f"train.learning_rate, and {SEE}"
    )


def _of_no_updates(lines: Lines) -> str:
    """Report a learning rate or a gradient of 0, unless equal rewards explain it."""
    steps = [line for line in lines if line.get("train/updates")]
    if not steps or all(map(_is_dead, _steps(steps) or [{"groups/total": 1}])):
        return ""
    for key, name in (("train/lr", "learning rate"), ("train/grad_norm", "gradient")):
        values = _values(steps, key)
        if len(values) == len(steps) and not any(values):
            return (
                f"nothing was learned: the {name} was 0 in all {len(steps)} steps; check train and objective settings"
            )
    return ""


def _of_a_policy_that_stays(lines: Lines) -> str:
    """Report a policy that hardly differs from a fixed reference after many steps, without a better reward."""
    steps = [line for line in lines if "kl/reference" in line]
    distances, gain = _values(steps[-HOLD:], "kl/reference"), training_reward(lines)
    if len(steps) < 4 * HOLD or len(distances) < HOLD or not 0 < max(distances) < 1e-3:
        return ""
    if not gain or gain["reward_last"] - gain["reward_first"] > _noise(lines):
        return ""
    return (
        f"little was learned: after {len(steps)} steps the policy is only {fmean(distances):.1g} nats from its "
        "reference, and the reward did not rise; raise train.learning_rate, or train for longer"
    )


def _of_a_policy_that_is_far(lines: Lines) -> str:
    sampled = [line for line in lines if "seconds/sampling" in line][-HOLD:]
    far = [
        kl / max(1.0, length)
        for line in sampled
        for kl, length in zip(_values([line], "kl/reference"), _values([line], "length/mean"), strict=False)
    ]
    if len(far) < HOLD or min(far) < FAR:
        return ""
    return (
        f"the policy is {fmean(far):.1f} nats per token from its reference, which is rarely text that people read; use "
        f"a lower train.learning_rate or a larger objective.beta, and {SEE}"
    )


def _of_short_completions(lines: Lines) -> str:
    lengths = _values([line for line in lines if "seconds/sampling" in line], "length/mean")
    if len(lengths) < 2 * HOLD:
        return ""
    first, last = fmean(lengths[:HOLD]), fmean(lengths[-HOLD:])
    if first < 8 or last > first / 4:
        return ""
    return (
        f"completions became {first / last:.0f} times shorter ({first:.0f} to {last:.0f} tokens); check in the report "
        "that the reward cannot be gained with empty answers"
    )


def _of_held_out_accuracy(lines: Lines) -> str:
    found = _values(lines, "eval/accuracy")
    if len(found) < 2:
        return ""
    if max(found) == 0:
        return (
            f"no held-out answer was right before, during or after training; check the reward that decides it, or {SEE}"
        )
    if min(found) == 1:
        return (
            "all held-out answers were right before and after training, so they cannot show progress; use harder ones"
        )
    if found[-1] > found[0] - 0.1:
        return ""
    return (
        f"held-out accuracy fell from {found[0]:.2f} to {found[-1]:.2f}; lower train.learning_rate, keep the best "
        f"checkpoint with checkpoint.every and eval.every, and {SEE}"
    )


def _of_falling_reward(lines: Lines) -> str:
    ends = training_reward(lines)
    if not ends or ends["reward_steps"] < HOLD or ends["reward_first"] - ends["reward_last"] <= 3 * _noise(lines):
        return ""
    return (
        f"the training reward fell from {ends['reward_first']:.3g} to {ends['reward_last']:.3g} "
        f"(first and last {ends['reward_steps']} steps); lower train.learning_rate, and {SEE}"
    )


def _noise(lines: Lines) -> float:
    """Return the standard error of the difference between the mean rewards of the first and the last steps."""
    means = _values(lines, "reward/mean")
    size = max(1, min(ENDS, len(means) // 2))
    if size < 2:
        return math.inf
    return math.hypot(stdev(means[:size]), stdev(means[-size:])) / math.sqrt(size)


def _of_mismatch(lines: Lines) -> str:
    divergences = _values(lines, "sampler/kl")[-HOLD:]
    if not divergences or median(divergences) < APART:
        return ""
    return (
        f"the engine samples from another policy than the trainer's (KL {median(divergences):.2g} nats per token); "
        f"check its weights with sampling.check, use a finer sampling.dtype, and {SEE}"
    )


def _of_growing_mismatch(lines: Lines) -> str:
    divergences = _values(lines, "sampler/kl")
    last = median(divergences[-HOLD:] or [0.0])
    if len(divergences) < 2 * HOLD or last >= APART:
        return ""
    if not any(last >= max(least, factor * max(divergences[:steps])) for steps, factor, least in GROWTHS):
        return ""
    return (
        f"the KL from the engine to the trainer grew from {divergences[0]:.1g} to {last:.1g} nats per token; check "
        f"that all of the engine's weights are updated in each step, and {SEE}"
    )


def _of_overlap(lines: Lines) -> str:
    share = max(_values(lines, "eval/overlap"), default=0.0)
    if not share:
        return ""
    return (
        f"{_percent(share)} of the held-out prompts are training prompts too, so evaluation does not show what the "
        "model can do on new prompts; hold out other rows"
    )


RULES = (
    Rule("equal rewards", _of_equal_rewards),
    Rule("equal rewards at the end", _of_late_equal_rewards, is_live=False),
    Rule("few unequal rewards", _of_few_unequal_rewards, is_live=False),
    Rule("missing rewards", _of_missing_rewards),
    Rule("skipped groups", _of_skipped_groups),
    Rule("worst rewards", _of_blamed_rows),
    Rule("failing environments", _of_failing_environments),
    Rule("truncation", _of_truncation),
    Rule("skipped updates", _of_skipped_updates),
    Rule("no updates", _of_no_updates),
    Rule("policy that stays", _of_a_policy_that_stays, is_live=False),
    Rule("policy that is far", _of_a_policy_that_is_far),
    Rule("mismatch", _of_mismatch),
    Rule("growing mismatch", _of_growing_mismatch, is_live=False),
    Rule("short completions", _of_short_completions, is_live=False),
    Rule("held-out accuracy", _of_held_out_accuracy, is_live=False),
    Rule("falling reward", _of_falling_reward, is_live=False),
    Rule("overlap", _of_overlap, is_live=False),
)
