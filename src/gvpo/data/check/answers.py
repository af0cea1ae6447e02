r"""Checks of the reward on correct and wrong answers, which find rows that no answer solves or that any answer solves.

The reward scores the reference answer as if a model had written it: in a box, by itself, as written in the row, and
then the row's solution. One form with a score of 1 is enough. It also scores answers that cannot be correct: an empty
text, "no idea", functions that return nothing (if the row has tests of functions), and the answer of another row.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gvpo.data.check.findings import Finding
from gvpo.data.check.rows import ANSWER_COLUMNS, CheckedRow
from gvpo.errors import DataError, RewardError
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.code.forms import Functions, read_tests
from gvpo.rewards.judges.cache import request_key
from gvpo.rewards.math.math_answer import gold_text
from gvpo.rewards.verifiers.boxed import same_answer
from gvpo.types import Verdict

SOLUTIONS = ("solution", "canonical_solution", "code", "completion")
"""Columns that may contain a written solution."""
AT_ONCE = 200
"""Number of rows scored between two progress reports."""
OTHERS = 50
"""Number of rows that are searched for a row with another answer."""
_FRACTION = re.compile(r"\\[dt]?frac\{?(\d{1,9})\}?\{?([1-9]\d{0,9})\}?")
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
EMPTY, IDLE = "an empty completion", '"no idea"'


@dataclass
class _Case:
    """Rows that the reward cannot distinguish, and the results of their answers.

    Args:
        rows: The rows, at least one.
        forms: Forms of the reference answer that are still to be tried.
        reason: Reason why the reference answer is not accepted; "" if it is accepted, or if there is none to try.
        accepted: The accepted form.
        best: Score of each reward for the form with the highest score.
        wrong: The verdict on each wrong answer, by its name.
    """

    rows: list[CheckedRow]
    forms: list[str]
    reason: str = ""
    accepted: str | None = None
    best: Mapping[str, float | None] = field(default_factory=dict)
    wrong: dict[str, Verdict] = field(default_factory=dict)

    @property
    def row(self) -> CheckedRow:
        """First of the rows."""
        return self.rows[0]

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of each row."""
        details = [*self._paid()]
        for row in self.rows:
            if self.reason:
                yield Finding("unscorable", row.place, self.reason)
            yield from (Finding("wrong answer paid", row.place, detail) for detail in details)

    def _paid(self) -> Iterator[str]:
        """Yield the rewards that score a wrong answer as high as the correct one, or 1 if no correct one is known."""
        for name in next(iter(self.wrong.values())).parts if self.wrong else ():
            full = self.best.get(name) or 0.0
            paid = {what: value for what, verdict in self.wrong.items() if (value := verdict.parts[name]) is not None}
            wrong = [what for what, value in paid.items() if value >= (full if full > 0 else 1)]
            if wrong:
                yield f"{name} pays {paid[wrong[0]]:g} for {' and '.join(wrong)}"


def tried(
    rows: Sequence[CheckedRow], pool: RewardPool, progress: Callable[[int], None] | None = None
) -> Iterator[Finding]:
    """Find rows whose reference answer does not score 1 by the rewards of `pool`, and rows that reward a wrong answer.

    Args:
        rows: The rows; rows without a prompt are skipped.
        pool: Pool with the data's rewards; they receive each row's columns, and the answer as `answer`.
        progress: Function that is called with the number of rows after each part.

    Raises:
        DataError: If no row has an answer and the rewards need one.
        RewardError: If a reward needs a column that no row has.
    """
    asked = [row for row in rows if row.prompt is not None]
    columns = list(dict.fromkeys(name for row in asked for name in row.record if name != "prompt"))
    cases = _cases(asked, columns)
    if asked and not any(case.forms for case in cases):
        _require_no_answer(cases, columns, pool)
    done: list[_Case] = []
    for start in range(0, len(cases), AT_ONCE):
        part = cases[start : start + AT_ONCE]
        _try_right(part, columns, pool)
        done = [*done[-OTHERS:], *part]
        _try_others(part, done, columns, pool)
        if progress is not None:
            progress(sum(len(case.rows) for case in part))
    order = {row.place: number for number, row in enumerate(asked)}
    yield from sorted((each for case in cases for each in case.findings()), key=lambda each: order[each.place])


def written(row: CheckedRow) -> list[str]:
    """Return the forms of the reference answer that the reward scores; [] if the row has no answer."""
    forms = [row.record[name] for name in SOLUTIONS if isinstance(row.record.get(name), str)]
    if row.answer is None or not str(row.answer).strip():
        return forms
    gold = gold_text(row.answer)
    return list(dict.fromkeys([f"\\boxed{{{gold}}}", gold, str(row.answer), *forms]))


def _cases(rows: Sequence[CheckedRow], columns: Sequence[str]) -> list[_Case]:
    """Group the rows that are the same to a reward."""
    alike: dict[str, list[CheckedRow]] = {}
    for row in rows:
        key = request_key(
            {"prompt": row.prompt, "answer": row.answer, **{name: row.record.get(name) for name in columns}}
        )
        alike.setdefault(key, []).append(row)
    some = any(map(written, rows))
    return [
        _Case(same, forms, "" if forms or not some else "there is no answer")
        for same in alike.values()
        for forms in [written(same[0])]
    ]


def _require_no_answer(cases: Sequence[_Case], columns: Sequence[str], pool: RewardPool) -> None:
    try:
        pool.require_columns([_batch(case.row, columns, [""]) for case in cases])
    except RewardError as error:
        if "'answer'" not in str(error):
            raise
        usual = " or ".join(ANSWER_COLUMNS)
        raise DataError(f"no row has an answer in {usual}; name its column with data.answer_column") from None


def _try_right(cases: Sequence[_Case], columns: Sequence[str], pool: RewardPool) -> None:
    """Try the forms of each reference answer until one is accepted. Try general wrong answers along with the first."""
    wrong = {case.row.place: _wrong(case.row) for case in cases}
    waiting = list(cases)
    while waiting:
        tries = [[*case.forms[:1], *wrong[case.row.place].values()] for case in waiting]
        batches = [_batch(case.row, columns, texts) for case, texts in zip(waiting, tries, strict=True)]
        for case, verdicts in zip(waiting, pool.score(batches), strict=True):
            names = wrong[case.row.place]
            _note_wrong(case, dict(zip(names, verdicts[len(verdicts) - len(names) :], strict=True)))
            if case.forms:
                _note_form(case, case.forms.pop(0), verdicts[0])
            names.clear()
        waiting = [case for case in waiting if case.forms]


def _note_form(case: _Case, form: str, verdict: Verdict) -> None:
    if sum(value or 0.0 for value in verdict.parts.values()) >= sum(value or 0.0 for value in case.best.values()):
        case.best = verdict.parts
    if verdict.reward is not None and verdict.reward >= 1:
        case.reason, case.accepted = "", form
        case.forms.clear()
    else:
        case.reason = verdict.reason or f"the reference answer scores {verdict.reward:g}"


def _note_wrong(case: _Case, verdicts: Mapping[str, Verdict]) -> None:
    """Record the scores of wrong answers. If none of them could be scored, no completion of the row can be."""
    case.wrong |= verdicts
    reasons = [verdict.reason for verdict in verdicts.values() if verdict.reward is None]
    told = next((reason for reason in reasons if reason.startswith("unscorable")), "")
    if verdicts and len(reasons) == len(verdicts) and not case.forms:
        case.reason = told or case.reason or reasons[0]


def _wrong(row: CheckedRow) -> dict[str, str]:
    """Return answers that cannot be correct, by their names."""
    stub = _stub(row)
    return {EMPTY: "", IDLE: "no idea"} | ({"functions that return nothing": stub} if stub else {})


def _stub(row: CheckedRow) -> str:
    """Return code whose functions, which the row's tests call, do nothing; "" if the row has no such tests."""
    if row.record.get("tests") is None:
        return ""
    try:
        tests = read_tests(row.record["tests"], row.record.get("entry_point"), row.record.get("setup") or "")
    except (RewardError, TypeError):
        return ""
    return tests.stub(None) if isinstance(tests, Functions) else ""


def _try_others(cases: Sequence[_Case], done: Sequence[_Case], columns: Sequence[str], pool: RewardPool) -> None:
    """Give each row the accepted answer of another row that has another answer."""
    found = [(case, other) for case in cases if (other := _other(case, done)) is not None]
    batches = [_batch(case.row, columns, [other.accepted or ""]) for case, other in found]
    for (case, other), (verdict,) in zip(found, pool.score(batches), strict=True):
        case.wrong[f"the answer of {other.row.place}"] = verdict


def _other(case: _Case, done: Sequence[_Case]) -> _Case | None:
    candidates = (each for each in done[-OTHERS:] if each.accepted is not None)
    return next((each for each in candidates if each is not case and _differ(case.row, each.row)), None)


def _differ(row: CheckedRow, other: CheckedRow) -> bool:
    """Return whether the answer of one row is known to be wrong for the other; code is compared by its tests."""
    if row.answer is None or other.answer is None:
        return row.answer is other.answer and row.record.get("tests") != other.record.get("tests")
    return not any(_may_be_same(one, two) for one in _golds(row) for two in _golds(other))


def _may_be_same(one: str, other: str) -> bool:
    """Return whether two answers may mean the same: the same text or value, or the same numbers (20, 20 degrees)."""
    return one == other or same_answer(one, other) or (_numbers(one) == _numbers(other) != set())


def _numbers(answer: str) -> set[float]:
    quotients = _FRACTION.sub(lambda found: f" {int(found[1]) / int(found[2])} ", answer)
    return {float(number) for number in _NUMBER.findall(quotients)}


def _golds(row: CheckedRow) -> list[str]:
    answers = row.answer if isinstance(row.answer, list | tuple) else [row.answer]
    return [gold_text(answer).strip().casefold() for answer in answers]


def _batch(row: CheckedRow, columns: Sequence[str], texts: Sequence[str]) -> RewardBatch:
    """Return the batch for the reward; columns that only other rows have are None."""
    chat = not isinstance(row.prompt, str)
    given: dict[str, Any] = {name: row.record.get(name) for name in columns}
    if row.answer is not None:
        given["answer"] = row.answer
    return RewardBatch(
        row.prompt or "", [[{"role": "assistant", "content": text}] if chat else text for text in texts], given
    )
