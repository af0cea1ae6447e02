"""Preference training: which answer is the chosen one, what it is compared with, and the weak negatives.

groups with scores ──comparisons──▶ two or more answers that differ ──weak_negatives──▶ Compared
Compared ──PreferenceSource.rollout(step)──▶ rows with a role: chosen, strong or weak

All draws are functions of the seed and the prompt's name (the positive's also of the step), so a run resumes exactly.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gvpo.errors import DataError, GvpoWarning
from gvpo.rollout.collect import Rollout, distinct
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.order import ShuffledOrder
from gvpo.sampling.noise import noise_key, uniforms
from gvpo.types import Completion, Group

ROLE = "role"
"""The objectives' keyword, in a completion's extras."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and all that its answers can be compared with.

    Args:
        logged: the prompt with its answers, each with a score and no two alike.
        weak: answers to other prompts.
    """

    logged: LoggedGroup
    weak: Sequence[Completion] = ()

    @property
    def group(self) -> Group:
        """Every row, answers first: what the reference scores once."""
        return dataclasses.replace(self.logged.group, completions=[*self.logged.group.completions, *self.weak])

    def with_rows(self, group: Group) -> "Comparison":
        """The same with the rows of `group`, in the order that `self.group` has them."""
        count = len(self.logged.group.completions)
        own = dataclasses.replace(self.logged.group, completions=list(group.completions[:count]))
        return Comparison(dataclasses.replace(self.logged, group=own), list(group.completions[count:]))


def comparisons(groups: Sequence[LoggedGroup], *, scores_differ: bool) -> list[LoggedGroup]:
    """The groups that compare something, each answer once, without those that have no score.

    Args:
        groups: with rewards as scores.
        scores_differ: an answer is worse only if its score is (the positive is the best); else any two answers do.

    Raises:
        DataError: no group compares anything.
    """
    kept = [_different(logged) for logged in groups]
    usable = [logged for logged in kept if _compares(logged, scores_differ=scores_differ)]
    if not usable:
        raise DataError("no row can be trained on: none has two different answers of different scores")
    if len(usable) < len(groups):
        first = next(place for place, logged in enumerate(kept) if not _compares(logged, scores_differ=scores_differ))
        warnings.warn(
            f"{len(groups) - len(usable)} of {len(groups)} rows have no two different answers of different scores and "
            f"are left out; the first is {groups[first].group.id!r}",
            GvpoWarning,
            stacklevel=2,
        )
    return usable


def _different(logged: LoggedGroup) -> LoggedGroup:
    seen: set[tuple[int, ...]] = set()
    rows = []
    for row in logged.group.completions:
        if row.reward is not None and tuple(row.tokens) not in seen:
            seen.add(tuple(row.tokens))
            rows.append(row)
    return dataclasses.replace(logged, group=dataclasses.replace(logged.group, completions=rows))


def _compares(logged: LoggedGroup, *, scores_differ: bool) -> bool:
    rows = logged.group.completions
    return len({row.reward for row in rows}) > 1 if scores_differ else len(rows) > 1


def with_weak_negatives(
    groups: Sequence[LoggedGroup], count: int, *, seed: int, context: int | None = None
) -> list[Comparison]:
    """Each group with answers to other prompts, the same ones in every epoch.

    An answer that any row gives to this prompt too is none, nor is one that does not fit behind it.

    Args:
        groups: where answers come from.
        count: weak negatives a prompt, all different.
        seed: of the draw.
        context: tokens that the model can read; None: any number.

    Raises:
        DataError: there are not as many answers to other prompts.
    """
    if count == 0:
        return [Comparison(logged) for logged in groups]
    pool = [(tuple(each.group.prompt), each.group.id, row) for each in groups for row in each.group.completions]
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for prompt, _, row in pool:
        answers.setdefault(prompt, set()).add(tuple(row.tokens))
    return [
        Comparison(logged, _drawn(logged.group, pool, answers[tuple(logged.group.prompt)], count, seed, context))
        for logged in groups
    ]


def _drawn(
    group: Group,
    pool: Sequence[tuple[tuple[int, ...], str, Completion]],
    own: set[tuple[int, ...]],
    count: int,
    seed: int,
    context: int | None,
) -> list[Completion]:
    taken = set(own)
    drawn: list[Completion] = []
    room = None if context is None else context - len(group.prompt)
    generator = np.random.Generator(np.random.Philox(key=noise_key(seed, 0, f"weak negatives of {group.id}", 0)))
    for place in _shuffled(len(pool), generator):
        prompt, name, row = pool[place]
        tokens = tuple(row.tokens)
        if prompt == tuple(group.prompt) or tokens in taken or (room is not None and len(tokens) > room):
            continue
        taken.add(tokens)
        drawn.append(dataclasses.replace(row, reward=None, source=f"weak: an answer to {name}"))
        if len(drawn) == count:
            return drawn
    raise DataError(
        f"data.weak_negatives={count}, and for {group.id!r} there are only {len(drawn)} answers to other prompts that "
        "fit; lower it"
    )


def _shuffled(count: int, generator: np.random.Generator) -> Iterator[int]:
    """0 .. count - 1 in random order, each drawn when it is asked for (Fisher-Yates on a table of what has moved)."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        place = int(generator.integers(last + 1))
        yield moved.get(place, place)
        moved[place] = moved.get(last, last)


class PreferenceSource:
    """Rows with roles: shuffled epochs over the comparisons, a function of seed and step.

    Args:
        compared: the prompts and their rows.
        per_step: how many a step takes.
        seed: of the order and of the draw of positives.
        softmax: draw the positive by softmax(scores), and all other answers are strong negatives; else the best is the
            positive, and those of lower scores are.
    """

    def __init__(self, compared: Sequence[Comparison], per_step: int, seed: int, *, softmax: bool) -> None:
        self._compared, self._seed, self._softmax = list(compared), seed, softmax
        self._order = ShuffledOrder(range(len(compared)), per_step, seed)

    @property
    def groups(self) -> list[Group]:
        """Every row that any step can train on: each prompt's answers, then its weak negatives."""
        return [each.group for each in self._compared]

    def replace(self, groups: Sequence[Group]) -> None:
        """Take the rows of `groups`, which are those of `self.groups` with log-probs attached."""
        self._compared = [each.with_rows(group) for each, group in zip(self._compared, groups, strict=True)]

    def rollout(self, step: int) -> Rollout:
        """The groups of this step. There are no verdicts: scores only say who is compared with whom."""
        items = [self._compared[index] for index in self._order.at(step)]
        names = distinct([item.logged.group.id for item in items])
        groups = [self._with_roles(item, name, step) for item, name in zip(items, names, strict=True)]
        return Rollout(groups, [], [item.logged.problem for item in items])

    def _with_roles(self, item: Comparison, name: str, step: int) -> Group:
        answers = item.logged.group.completions
        scores = [row.reward or 0.0 for row in answers]
        if self._softmax:
            (drawn,) = uniforms([noise_key(self._seed, step, f"positive of {name}", 0)], 0, 1)
            chosen = drawn_by_softmax(scores, float(drawn[0]))
            strong = [place for place in range(len(answers)) if place != chosen]
        else:
            chosen = scores.index(max(scores))
            strong = [place for place, score in enumerate(scores) if score < scores[chosen]]
        rows = [_as(answers[chosen], "chosen"), *(_as(answers[place], "strong") for place in strong)]
        rows += [_as(row, "weak") for row in item.weak]
        return dataclasses.replace(item.logged.group, id=name, completions=rows)


def drawn_by_softmax(scores: Sequence[float], uniform: float) -> int:
    """The place that `uniform` in [0, 1) falls on when the places share it by softmax(scores)."""
    weights = np.exp(np.asarray(scores) - max(scores))
    shares = np.cumsum(weights) / weights.sum()
    return min(int(np.searchsorted(shares, uniform, side="right")), len(scores) - 1)


def _as(row: Completion, role: str) -> Completion:
    return dataclasses.replace(row, extras={**row.extras, ROLE: role})
