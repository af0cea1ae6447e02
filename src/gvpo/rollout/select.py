"""Selection of training data from scored groups: correct answers, the best of n, or groups with different outcomes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gvpo.data.group_rows import PER_COMPLETION, GroupRow, completion_text, read_groups
from gvpo.errors import DataError
from gvpo.types import RIGHT

Row = Mapping[str, Any]
Read = Sequence[tuple[Row, GroupRow]]
"""Rows in their original form, each with its parsed contents."""


def right(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Yield different finished completions with a reward above `above`, at most `most` each (rejection sampling).

    Yields:
        Rows for supervised training, in the order of problems and samples: `prompt`, `completion`, `reward` and the
        problem's other columns. The first of a problem has its id, the others `id#2`, `id#3` and so on.
    """
    for row, group in rows:
        yield from _answers(row, group, _finished(group, above)[:most])


def best(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Yield each problem's finished completions with the highest rewards (best of n), one or `most`, if above `above`.

    Yields:
        Rows as from `right`, the best first; among equal ones the first sampled.
    """
    for row, group in rows:
        chosen = sorted(_finished(group, above), key=lambda found: -found[1])[: most or 1]
        yield from _answers(row, group, chosen)


def mixed(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Yield groups with a completion above `above` and one not above it; the others have no difference to learn from.

    Yields:
        The rows unchanged, for offline training.
    """
    for row, group in rows:
        judged = {completion.reward > above for completion in group.completions if completion.reward is not None}
        if len(judged) == 2:
            yield dict(row)


SELECTIONS: dict[str, Callable[[Read, float, int | None], Iterator[dict[str, Any]]]] = {
    "right": right,
    "best": best,
    "mixed": mixed,
}
"""Selections that `select` can make, by name."""


def select(
    name: str, rows: Sequence[Row], *, above: float | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return rows to train on, out of groups.

    Args:
        name: Key of `SELECTIONS`.
        rows: Groups, as `gvpo.data.read_groups` reads them.
        above: Reward above which a completion is good; by default 0.5, and no limit for "best".
        most: Maximum number of completions per problem; "mixed" keeps whole groups.

    Returns:
        Rows for supervised training ("right", "best") or for offline training ("mixed").

    Raises:
        DataError: If a row is not a group with rewards, or has completions without text.
    """
    if above is None:
        above = -math.inf if name == "best" else RIGHT
    read = list(zip(rows, read_groups(rows, rewarded=True), strict=True))
    return list(SELECTIONS[name](read, above, most))


def _finished(group: GroupRow, above: float) -> list[tuple[str, float]]:
    """Return the different good completions that ended by themselves; a truncated one must not be learned as whole."""
    found: dict[str, float] = {}
    for completion in group.completions:
        text, reward = completion_text(completion), completion.reward
        if text and completion.finish_reason == "stop" and reward is not None and reward > above:
            found.setdefault(text, reward)
    return list(found.items())


def _answers(row: Row, group: GroupRow, chosen: Sequence[tuple[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield rows with different ids, as training requires."""
    if any(completion.turns for completion in group.completions):
        raise DataError(
            "the completions are episodes, whose texts contain what an environment said; supervised training would "
            "learn to write that, so select whole groups, with 'mixed'"
        )
    own = {name: value for name, value in row.items() if name not in PER_COMPLETION}
    for number, (text, reward) in enumerate(chosen, start=1):
        name = group.problem.id if number == 1 else f"{group.problem.id}#{number}"
        yield {**own, "id": name, "completion": text, "reward": reward}
