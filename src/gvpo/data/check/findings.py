"""Findings of the checks, and searches for missing, duplicate, near duplicate and contaminated prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gvpo.data.check.overlap import Containment, counted, grams, jaccard
from gvpo.data.check.rows import CheckedRow, Place
from gvpo.rewards.math.math_answer import gold_text
from gvpo.rewards.verifiers.boxed import same_answer

Kind = Literal[
    "no prompt", "duplicate", "near duplicate", "contamination", "unscorable", "wrong answer paid", "too long"
]

GRAM = 5
"""Number of words per gram."""
SIMILARITY = 0.7
"""Default fraction of shared grams from which two texts are near duplicates."""


@dataclass(frozen=True)
class Finding:
    """A problem of a row.

    Args:
        kind: Kind of problem.
        place: Place of the row.
        detail: Description.
        other: The row that it repeats, or the benchmark's row that it contains; otherwise None.
        share: Fraction of shared grams, 1 for the same text; None if `other` is None.
    """

    kind: Kind
    place: Place
    detail: str
    other: Place | None = None
    share: float | None = None


def without_prompt(rows: Sequence[CheckedRow]) -> Iterator[Finding]:
    """Find rows whose prompt is missing, empty or invalid."""
    return (Finding("no prompt", row.place, row.problem) for row in rows if row.prompt is None)


def duplicates(rows: Sequence[CheckedRow], similarity: float = SIMILARITY) -> Iterator[Finding]:
    """Find rows that repeat the question of an earlier row.

    A duplicate has the same words as an earlier row. A near duplicate has, compared with an earlier row that is kept, a
    Jaccard similarity of grams of at least `similarity`, the same numbers, and the same answer if both have one: rows
    with different numbers or answers are different questions.
    """
    asked = [row for row in rows if row.words]
    of_row = [grams(row.bare, GRAM) for row in asked]
    index, first = Containment(counted(of_row), similarity), dict[tuple[str, ...], CheckedRow]()
    kept: list[CheckedRow] = []
    for row, own in zip(asked, of_row, strict=True):
        if row.words in first:
            yield _duplicate(row, first[row.words])
            continue
        first[row.words] = row
        near = [(kept[number], jaccard(own, index.text(number))) for number, _ in index.search(own)]
        near = [(other, share) for other, share in near if share >= similarity and _asks_the_same(row, other)]
        if near:
            other, share = max(near, key=lambda each: each[1])
            yield Finding("near duplicate", row.place, f"{share:.2f} of {other.place}", other.place, share)
        else:
            index.add(own)
            kept.append(row)


def _duplicate(row: CheckedRow, other: CheckedRow) -> Finding:
    differs = _same_answers(row, other) is False
    return Finding("duplicate", row.place, f"{other.place}{', which has another answer' * differs}", other.place, 1.0)


def _asks_the_same(row: CheckedRow, other: CheckedRow) -> bool:
    return row.numbers == other.numbers and _same_answers(row, other) is not False


def _same_answers(row: CheckedRow, other: CheckedRow) -> bool | None:
    """Return whether the answers are the same number or text, or None if one of the rows has no answer."""
    if row.answer is None or other.answer is None:
        return None
    left, right = gold_text(row.answer), gold_text(other.answer)
    return left == right or same_answer(left, right)


def contamination(
    rows: Sequence[CheckedRow], benchmarks: Sequence[CheckedRow], similarity: float = SIMILARITY
) -> Iterator[Finding]:
    """Find rows with a benchmark problem: its words, or at least `similarity` of its grams and all its numbers."""
    asked = [row for row in rows if row.words]
    held_out = [row for row in benchmarks if row.words]
    of_row, of_benchmark = [[grams(row.bare, GRAM) for row in each] for each in (asked, held_out)]
    index = Containment(counted([*of_row, *of_benchmark]), similarity)
    for text in of_benchmark:
        index.add(text)
    first = {words: row for row in reversed(held_out) for words in (row.bare, row.words) if words}
    for row, own in zip(asked, of_row, strict=True):
        same = first.get(row.words) or first.get(row.bare)
        found = [(held_out[number], share) for number, share in index.search(own)]
        found = [(other, share) for other, share in found if other.numbers <= row.numbers]
        if same is not None:
            yield _contaminated(row, same, 1.0, "the same words as")
        elif found:
            other, share = max(found, key=lambda each: each[1])
            yield _contaminated(row, other, share, f"{share:.2f} of")


def _contaminated(row: CheckedRow, other: CheckedRow, share: float, how: str) -> Finding:
    answers = {True: ", the same answer", False: ", another answer", None: ""}[_same_answers(row, other)]
    return Finding("contamination", row.place, f"{how} {other.place}{answers}", other.place, share)
