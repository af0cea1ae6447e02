r"""Votes: which completions say the same, for majority voting.

Answers are the same vote if they are the same number, or else the same text in one spelling (`\dfrac{x}{2}` and
`\frac{x}{2}`). Formulas are not compared by value, which would take seconds a problem: `x+1` and `1+x` are two votes.
"""

from collections.abc import Callable, Hashable

from gvpo.evaluation.templates import answer_inside
from gvpo.rewards.math import relations, spelling
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.math_answer import final_answer
from gvpo.rewards.verifiers.gsm8k import final_number
from gvpo.rewards.verifiers.number import last_number, parse_number

Vote = Hashable | None
"""What a completion votes for; None abstains: it gives no answer."""

LONGEST = 500
"""Characters of an answer that is read; a longer one votes as it is."""


def math_vote(text: str) -> Vote:
    """The number or the text in a completion's last box; see `final_answer`."""
    answer = final_answer(answer_inside(text, boxed=True))
    if answer is None or len(answer) > LONGEST:
        return answer
    _, value = relations.assignment(spelling.spelled(answer))
    bare, _ = mathtext.without_units(value)
    number = parse_number(bare)
    return (spelling.compact(bare) or None) if number is None else number


def _number_vote(text: str) -> Vote:
    return final_number(answer_inside(text, boxed=False))


VOTES: dict[str, Callable[[str], Vote]] = {
    "math_answer": math_vote,
    "boxed_answer": math_vote,
    "gsm8k": _number_vote,
    "number_match": last_number,
    "exact_match": lambda text: " ".join(text.split()) or None,
}
"""By reward: how a completion votes. Programs have no votes."""
