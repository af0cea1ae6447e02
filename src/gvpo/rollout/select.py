"""What to train on, out of scored groups: right answers, the best of n, or groups that can teach something."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gvpo.rollout.group_file import texts

Row = Mapping[str, Any]
RIGHT = 0.5
"""Rewards above this are right, by default."""

PER_COMPLETION = (
    *("completions", "texts", "rewards", "reward_parts", "reasons"),
    *("finish_reasons", "sources", "sampler_logprobs"),
)
"""Columns of a group that hold one value a completion."""


def right(rows: Sequence[Row], above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Rejection sampling: each different finished completion with a reward above `above`, at most `most` a problem.

    Yields:
        Rows for supervised training, in the order of problems and samples: `prompt`, `completion`, `reward` and the
        problem's other columns. The first of a problem has its id, the others `id#2`, `id#3` and so on.
    """
    for row in rows:
        yield from _answers(row, _finished(row, above)[:most])


def best(rows: Sequence[Row], above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Best of n: each problem's finished completions with the highest rewards, one or `most`, if above `above`.

    Yields:
        As `right`, the best first; of equal ones the first sampled.
    """
    for row in rows:
        yield from _answers(row, sorted(_finished(row, above), key=lambda found: -found[1])[: most or 1])


def mixed(rows: Sequence[Row], above: float, most: int | None) -> Iterator[dict[str, Any]]:
    """Groups with a completion above `above` and one not above it: the others have nothing to compare.

    Yields:
        The groups as they are, for offline training.
    """
    for row in rows:
        judged = {reward > above for reward in row["rewards"] if reward is not None}
        if len(judged) == 2:
            yield dict(row)


SELECTIONS: dict[str, Callable[[Sequence[Row], float, int | None], Iterator[dict[str, Any]]]] = {
    "right": right,
    "best": best,
    "mixed": mixed,
}
"""By name: what `select` can take out of groups."""


def select(
    name: str, rows: Sequence[Row], *, above: float | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Rows to train on, out of the rows of a `GroupFile`.

    Args:
        name: a key of `SELECTIONS`.
        rows: groups.
        above: what a good completion's reward is above; default 0.5, and anything for "best".
        most: completions a problem at most; "mixed" keeps whole groups.

    Returns:
        Rows for supervised training ("right", "best") or for offline training ("mixed").
    """
    if above is None:
        above = -math.inf if name == "best" else RIGHT
    return list(SELECTIONS[name](rows, above, most))


def _finished(row: Row, above: float) -> list[tuple[str, float]]:
    """The different good completions that ended by themselves: one that was cut must not be learned as whole."""
    found: dict[str, float] = {}
    for text, reward, reason in zip(texts(row), row["rewards"], row["finish_reasons"], strict=True):
        if text and reason == "stop" and reward is not None and reward > above:
            found.setdefault(text, reward)
    return list(found.items())


def _answers(row: Row, chosen: Sequence[tuple[str, float]]) -> Iterator[dict[str, Any]]:
    """Rows with different ids, which training asks for."""
    own = {name: value for name, value in row.items() if name not in PER_COMPLETION}
    for number, (text, reward) in enumerate(chosen, start=1):
        name = row["id"] if number == 1 else f"{row['id']}#{number}"
        yield {**own, "id": name, "completion": text, "reward": reward}
