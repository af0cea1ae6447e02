r"""Votes of completions, for majority voting.

Two answers are the same vote if they are the same number, or the same text after spelling is normalized
(`\dfrac{x}{2}` and `\frac{x}{2}`). Formulas are not compared by value, because that would take seconds per problem:
`x+1` and `1+x` are two votes.
"""

from collections.abc import Callable, Hashable

from gvpo.evaluation.templates import answer_inside
from gvpo.rewards.math import relations, spelling
from gvpo.rewards.math import text as mathtext
from gvpo.rewards.math.math_answer import final_answer
from gvpo.rewards.verifiers.gsm8k import final_number
from gvpo.rewards.verifiers.number import last_number, parse_number

Vote = Hashable | None
"""Answer that a completion votes for; None abstains, because the completion contains no answer."""

LONGEST = 500
"""Maximum number of characters of an answer that is normalized; a longer answer votes unchanged."""


def math_vote(text: str) -> Vote:
    """Return the number or the text in a completion's last box; see `final_answer`."""
    answer = final_answer(answer_inside(text, boxed=True))
    if answer is None or len(answer) > LONGEST:
        return answer
    _, value = relations.assignment(spelling.spelled(answer))
    bare, _ = mathtext.without_units(value)
    number = parse_number(bare)
    return (spelling.compact(bare) or None) if number is None else number


VOTES: dict[str, Callable[[str], Vote]] = {
    "math_answer": math_vote,
    "boxed_answer": math_vote,
    "gsm8k": lambda text: final_number(answer_inside(text, boxed=False)),
    "number_match": last_number,
    "exact_match": lambda text: " ".join(text.split()) or None,
}
"""Voting function by reward. Programs have no votes."""
