"""Preference training: the chosen answer of each prompt, the answers it is compared with, and the weak negatives.

groups with scores ──comparisons──▶ two or more answers that differ ──weak_negatives──▶ Compared
Compared ──PreferenceSource.rollout(step)──▶ rows with a role: chosen, strong or weak

All random choices depend only on the seed and the prompt's name (for the positive also on the step), so a run resumes
exactly.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gvpo import notices
from gvpo.errors import DataError
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.usable import is_usable
from gvpo.sampling.noise import noise_key
from gvpo.types import Completion, Group


@dataclass(frozen=True)
class Comparison:
    """A prompt and all answers that can be compared.

    Args:
        logged: The prompt with its different answers, each with a score.
        weak: Answers to other prompts.
    """

    logged: LoggedGroup
    weak: Sequence[Completion] = ()

    @property
    def group(self) -> Group:
        """Return every row, answers first; the reference scores these rows once."""
        return dataclasses.replace(self.logged.group, completions=[*self.logged.group.completions, *self.weak])

    def with_rows(self, group: Group) -> "Comparison":
        """Return the same comparison with the rows of `group`, which are in the order of `self.group`."""
        count = len(self.logged.group.completions)
        own = dataclasses.replace(self.logged.group, completions=list(group.completions[:count]))
        return Comparison(dataclasses.replace(self.logged, group=own), list(group.completions[count:]))


def comparisons(groups: Sequence[LoggedGroup], *, scores_differ: bool) -> list[LoggedGroup]:
    """Return the groups with answers to compare, each answer once, without answers that have no score.

    Args:
        groups: Groups with rewards as scores.
        scores_differ: Whether the compared answers must have different scores (the positive is the best); otherwise any
            two answers are compared.

    Raises:
        DataError: If no group has two answers to compare.
    """
    kept = [_different(logged) for logged in groups]
    usable = [logged for logged in kept if _compares(logged, scores_differ=scores_differ)]
    if not usable:
        raise DataError("no row can be trained on: none has two different answers of different scores")
    if len(usable) < len(groups):
        first = next(place for place, logged in enumerate(kept) if not _compares(logged, scores_differ=scores_differ))
        notices.warn(
            f"{len(groups) - len(usable)} of {len(groups)} rows have no two different answers of different scores and "
            f"are skipped; the first is {groups[first].group.id!r}"
        )
    return usable


def _different(logged: LoggedGroup) -> LoggedGroup:
    seen: set[tuple[int, ...]] = set()
    rows = []
    for row in logged.group.completions:
        if is_usable(row) and tuple(row.tokens) not in seen:
            seen.add(tuple(row.tokens))
            rows.append(row)
    return dataclasses.replace(logged, group=dataclasses.replace(logged.group, completions=rows))


def _compares(logged: LoggedGroup, *, scores_differ: bool) -> bool:
    rows = logged.group.completions
    return len({row.reward for row in rows}) > 1 if scores_differ else len(rows) > 1


def with_weak_negatives(
    groups: Sequence[LoggedGroup], count: int, *, seed: int, context: int | None = None
) -> list[Comparison]:
    """Return each group with answers to other prompts, the same ones in every epoch.

    An answer is excluded if any row gives it to this prompt as well, or if it does not fit after the prompt.

    Args:
        groups: Groups, which also provide the answers.
        count: Number of weak negatives per prompt, all different.
        seed: Random seed of the choice.
        context: Number of tokens in the model's context; None for no limit.

    Raises:
        DataError: If there are too few answers to other prompts.
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
        f"data.weak_negatives={count}, but {group.id!r} has only {len(drawn)} answers to other prompts that "
        "fit; lower it"
    )


def _shuffled(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, each drawn on demand (Fisher-Yates on a table of the moved entries)."""
    moved: dict[int, int] = {}
    for last in range(count - 1, -1, -1):
        place = int(generator.integers(last + 1))
        yield moved.get(place, place)
        moved[place] = moved.get(last, last)
