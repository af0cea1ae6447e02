r"""Answers that their own reward does not accept: a row on which no completion can be right.

The reward is given the reference answer as if a model had written it: in a box, by itself, as it stands, then the row's
written solution. A row passes with the first that scores 1.
"""

from collections.abc import Callable, Iterator, Sequence

from gvpo.datacheck.findings import Finding
from gvpo.datacheck.rows import ANSWER_COLUMNS, Row
from gvpo.errors import DataError
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.math_answer import gold_text

SOLUTIONS = ("solution", "canonical_solution", "code", "completion")
"""Columns where a written solution may stand."""
AT_ONCE = 200
"""Rows judged between two looks at the progress."""


def unscorable(rows: Sequence[Row], pool: RewardPool, progress: Callable[[int], None] | None = None) -> list[Finding]:
    """Rows whose reference answer does not score 1 by the reward of `pool`.

    Args:
        rows: those without a prompt are left out.
        pool: with the one reward; it sees each row's columns, and the answer as `answer`.
        progress: told the number of rows after each part of them.

    Raises:
        DataError: no row has an answer.
        RewardError: the reward needs a column that no row has.
    """
    asked = [row for row in rows if row.prompt is not None]
    if asked and not any(map(written, asked)):
        raise DataError(f"no row has an answer in {' or '.join(ANSWER_COLUMNS)}; name its column with --answer-column")
    columns = dict.fromkeys(name for row in asked for name in row.record if name != "prompt")
    found: list[Finding] = []
    for start in range(0, len(asked), AT_ONCE):
        part = asked[start : start + AT_ONCE]
        found += _judged(part, list(columns), pool)
        if progress is not None:
            progress(len(part))
    return found


def written(row: Row) -> list[str]:
    """The forms in which the reference answer is given to the reward; none where the row has no answer."""
    forms = [row.record[name] for name in SOLUTIONS if isinstance(row.record.get(name), str)]
    if row.answer is None or not str(row.answer).strip():
        return forms
    gold = gold_text(row.answer)
    return list(dict.fromkeys([f"\\boxed{{{gold}}}", gold, str(row.answer), *forms]))


def _judged(rows: Sequence[Row], columns: Sequence[str], pool: RewardPool) -> Iterator[Finding]:
    """The findings of some rows; what was accepted in one form is not tried in the next."""
    forms = {row.place: written(row) for row in rows}
    reasons = {row.place: "there is no answer" for row in rows}
    waiting = [row for row in rows if forms[row.place]]
    while waiting:
        batches = [_batch(row, columns, forms[row.place].pop(0)) for row in waiting]
        for row, (verdict,) in zip(waiting, pool.score(batches), strict=True):
            if verdict.reward is not None and verdict.reward >= 1:
                del reasons[row.place]
                forms[row.place].clear()
            else:
                reasons[row.place] = verdict.reason or f"the reference answer scores {verdict.reward:g}"
        waiting = [row for row in waiting if forms[row.place]]
    return (Finding("unscorable", place, reason) for place, reason in reasons.items())


def _batch(row: Row, columns: Sequence[str], text: str) -> RewardBatch:
    """What the reward sees; a column that only other rows have is null."""
    chat = not isinstance(row.prompt, str)
    given = {name: row.record.get(name) for name in columns}
    if row.answer is not None:
        given["answer"] = row.answer
    return RewardBatch(row.prompt or "", [[{"role": "assistant", "content": text}] if chat else text], given)
