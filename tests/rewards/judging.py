"""Scoring of the tables of mathematical answers."""

from gvpo.rewards.math.math_answer import final_answer, gold_text
from gvpo.rewards.math.values import same_answer


def table(families: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    return [pair for pairs in families.values() for pair in pairs]


def judged(gold: str, written: str) -> bool:
    """Score an answer like `math_answer` does, in a box unless it has one."""
    answer = final_answer(written) if "box" in written else written
    return answer is not None and same_answer(gold_text(gold), answer)
