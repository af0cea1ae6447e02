"""The answers to the held-out problems before and after training, side by side.

The answers come from the evaluations of a run (`held-out/`), the first and the last. The part of the page is plain
markup: its filter needs no script.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from statistics import fmean

from gvpo import notices
from gvpo.errors import RunError
from gvpo.report.data import Run
from gvpo.report.episodes import bubbles
from gvpo.runfiles import HELD_OUT, RolloutRow, read_rollouts, rollout_path, rollout_steps

TEXT_CHARACTERS = 3_000_000
"""Maximum number of characters of held-out prompts and answers per page, shared evenly by the runs."""

MOST_PROBLEMS = 500
"""Maximum number of held-out problems per run, because each is part of the page's markup."""

COLUMNS = ("reward", "reward_parts", "reason", "finish_reason", "source", "row", "columns", "turns")

OUTCOMES = {
    "better": "the reward rose",
    "worse": "the reward fell",
    "same": "the reward is the same",
}


@dataclass(frozen=True)
class Answers:
    """The answers of one evaluation to one problem: the one to show, and the mean reward of the sampled ones."""

    shown: RolloutRow
    mean: float | None
    count: int


@dataclass(frozen=True)
class Compared:
    """A held-out problem with its answers in the first and in the last evaluation."""

    before: Answers
    after: Answers

    @property
    def outcome(self) -> str:
        """Return which way the reward of the shown answer went; an answer without a reward counts as the lowest."""
        before, after = (-float("inf") if a.shown.reward is None else a.shown.reward for a in (self.before, self.after))
        return "same" if before == after else "better" if after > before else "worse"

    @property
    def characters(self) -> int:
        """Return the length of the texts to show."""
        return len(self.before.shown.prompt) + len(self.before.shown.text) + len(self.after.shown.text)


def held_out(runs: Sequence[Run]) -> str:
    """Return the HTML of all runs that have two evaluations or more; "" if there are none."""
    return "".join(_part(run, number, len(runs)) for number, run in enumerate(runs))


def _part(run: Run, number: int, count: int) -> str:
    steps = rollout_steps(run.path, HELD_OUT)
    if len(steps) < 2:
        return ""
    try:
        problems = compared(run, steps[0], steps[-1])
    except RunError as error:
        notices.warn(f"{error}; the report leaves it out")
        return ""
    shown = list(_fitting(problems, TEXT_CHARACTERS // count))
    name = f"<h3>{escape(run.name)}</h3>" if count > 1 else ""
    prompts = _short([problem.before.shown.prompt for problem in shown])
    cards = "".join(
        _problem(problem, prompt, (steps[0], steps[-1])) for problem, prompt in zip(shown, prompts, strict=True)
    )
    left = len(problems) - len(shown)
    rest = f'<p class="empty">{left} more are in {escape(run.name)}/{HELD_OUT}/.</p>' if left else ""
    return f'<div class="answers">{name}{_filter(problems, number)}{cards}{rest}</div>'


def compared(run: Run, first: int, last: int) -> list[Compared]:
    """Return the problems that two evaluations have in common, in the order of the last one.

    Raises:
        RunError: If a file cannot be read.
    """
    before, after = (_answers(read_rollouts(rollout_path(run.path, step, HELD_OUT), COLUMNS)) for step in (first, last))
    return [Compared(before[name], answers) for name, answers in after.items() if name in before]


def _answers(rows: Sequence[RolloutRow]) -> dict[str, Answers]:
    """Return the answers by problem: the greedy one is shown if there is one, else the first sampled one."""
    found = {}
    for name, group in groupby(rows, key=lambda row: row.group):
        answers = list(group)
        sampled = [row for row in answers if row.source != "greedy"]
        rewards = [row.reward for row in sampled if row.reward is not None]
        found[name] = Answers(answers[-1 if answers[-1].source == "greedy" else 0], fmean(rewards or [0]), len(sampled))
    return found


def _fitting(problems: Sequence[Compared], allowance: int) -> Iterator[Compared]:
    for problem in problems[:MOST_PROBLEMS]:
        allowance -= problem.characters
        if allowance < 0:
            return
        yield problem


def _short(prompts: Sequence[str]) -> list[str]:
    """Return prompts without what all of them share, such as a template: the beginning, up to a space, and the end."""
    if len(set(prompts)) < 2:
        return list(prompts)
    start = os.path.commonprefix(list(prompts))  # noqa: RUF071 - texts, not paths
    end = os.path.commonprefix([prompt[::-1] for prompt in prompts])  # noqa: RUF071
    skipped = max(start.rfind(" "), start.rfind("\n")) + 1
    return [prompt[skipped : max(skipped, len(prompt) - len(end))].strip() or prompt for prompt in prompts]


def _filter(problems: Sequence[Compared], number: int) -> str:
    counts = {name: sum(problem.outcome == name for problem in problems) for name in OUTCOMES}
    choices = [("all", f"all <b>{len(problems)}</b>")]
    choices += [(name, f"{label} <b>{counts[name]}</b>") for name, label in OUTCOMES.items()]
    inputs = "".join(
        f'<label><input type="radio" name="outcome-{number}" value="{value}"{" checked" if value == "all" else ""}> '
        f"{label}</label>"
        for value, label in choices
    )
    return f'<fieldset class="outcomes"><legend>Held-out problems where</legend>{inputs}</fieldset>'


def _problem(problem: Compared, prompt: str, steps: tuple[int, int]) -> str:
    row = problem.after.shown
    columns = "".join(f"<span>{escape(name)} {escape(_brief(value))}</span>" for name, value in row.columns.items())
    titles = ("before training" if steps[0] == 0 else f"after step {steps[0]}", f"after step {steps[1]}")
    answers = "".join(_answer(each, title) for each, title in zip((problem.before, problem.after), titles, strict=True))
    return (
        f'<article class="compared {problem.outcome}"><div class="about-group"><pre class="prompt" '
        f'title="{escape(row.group)}">{escape(prompt)}</pre>{columns}</div><div class="sides">{answers}</div></article>'
    )


def _answer(answers: Answers, title: str) -> str:
    row = answers.shown
    reward = "no reward" if row.reward is None else f"{row.reward:.4g}"
    kind = "greedy" if row.source == "greedy" else "sampled"
    facts = [
        *(f"{name} {value:.4g}" for name, value in row.reward_parts.items() if value is not None),
        f"{len(row.tokens)} tokens",
        row.finish_reason,
        kind,
    ]
    if answers.count > 1 or kind == "greedy":
        sampled = "1 sampled answer" if answers.count == 1 else f"{answers.count} sampled answers"
        facts.append(f"{sampled}: reward {answers.mean:.3g}")
    warn = f'<span class="warn">{escape(row.reason)}</span>' if row.reason else ""
    small = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    text = f'<div class="text episode">{bubbles(row.turns)}' if row.turns else f'<div class="text">{escape(row.text)}'
    return (
        f'<div class="row"><div class="top"><small>{title}</small><span class="reward">{reward}</span></div>'
        f'{text}</div><div class="facts">{small}{warn}</div></div>'
    )


def _brief(value: object, limit: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
