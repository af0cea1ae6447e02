"""What to train on, out of scored groups: right answers, the best of n, or groups that can teach something."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gvpo.data.group_rows import PER_COMPLETION, GroupRow, completion_text, read_groups

Row = Mapping[str, Any]
Read = Sequence[tuple[Row, GroupRow]]
"""Rows as they were written, each with what it says."""

RIGHT = 0.5
"""Rewards above this are right, by default."""


def right(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Rejection sampling: each different finished completion with a reward above `above`, at most `most` per problem.

    Yields:
        Rows for supervised training, in the order of problems and samples: `prompt`, `completion`, `reward` and the
        problem's other columns. The first of a problem has its id, the others `id#2`, `id#3` and so on.
    """
    for row, group in rows:
        yield from _answers(row, group, _finished(group, above)[:most])


def best(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Best of n: each problem's finished completions with the highest rewards, one or `most`, if above `above`.

    Yields:
        As `right`, the best first; of equal ones the first sampled.
    """
    for row, group in rows:
        chosen = sorted(_finished(group, above), key=lambda found: -found[1])[: most or 1]
        yield from _answers(row, group, chosen)


def mixed(rows: Read, above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Groups with a completion above `above` and one not above it: the others have nothing to compare.

    Yields:
        The rows as they are, for offline training.
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
"""By name: what `select` can take out of groups."""


def select(
    name: str, rows: Sequence[Row], *, above: float | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return rows to train on, out of groups.

    Args:
        name: a key of `SELECTIONS`.
        rows: groups, as `gvpo.data.read_groups` reads them.
        above: what a good completion's reward is above; default 0.5, and anything for "best".
        most: maximum number of completions per problem; "mixed" keeps whole groups.

    Returns:
        Rows for supervised training ("right", "best") or for offline training ("mixed").

    Raises:
        DataError: a row is no group with rewards, or has completions without text.
    """
    if above is None:
        above = -math.inf if name == "best" else RIGHT
    read = list(zip(rows, read_groups(rows, rewarded=True), strict=True))
    return list(SELECTIONS[name](read, above, most))


def _finished(group: GroupRow, above: float) -> list[tuple[str, float]]:
    """Return the different good completions that ended by themselves: one that was cut must not be learned as whole."""
    found: dict[str, float] = {}
    for completion in group.completions:
        text, reward = completion_text(completion), completion.reward
        if text and completion.finish_reason == "stop" and reward is not None and reward > above:
            found.setdefault(text, reward)
    return list(found.items())


def _answers(row: Row, group: GroupRow, chosen: Sequence[tuple[str, float]]) -> Iterator[dict[str, Any]]:
    """Yield rows with different ids, which training asks for."""
    own = {name: value for name, value in row.items() if name not in PER_COMPLETION}
    for number, (text, reward) in enumerate(chosen, start=1):
        name = group.problem.id if number == 1 else f"{group.problem.id}#{number}"
        yield {**own, "id": name, "completion": text, "reward": reward}
