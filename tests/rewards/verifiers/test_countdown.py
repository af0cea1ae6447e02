"""Countdown's reward: correct expressions in every spelling get 1, everything else 0, and nothing is evaluated."""

import itertools
import operator
import random
from fractions import Fraction

import pytest

from gvpo.rewards import countdown
from gvpo.rewards.verifiers.countdown import value_of

NUMBERS, TARGET = [3, 7, 25], 46
RIGHT = [
    r"\boxed{3*7+25}",
    r"So 3*7=21.\n\boxed{25 + 7 * 3}",
    r"\boxed{(3 \times 7) + 25}",
    r"\boxed{25+3\cdot7}.",
    r"$\boxed{25 + 7 × 3 = 46}$",
    r"\boxed{\left(7\cdot 3\right)+25}",
    r"\boxed{1} no, \boxed{3*7+25}",
    "<think>3*7=21</think><answer>3*7+25</answer>",
    "<answer>\n(3 * 7) + 25 = 46\n</answer>",
    "3*7=21\n21+25=46\n3*7+25",
    r"\boxed{((((3))))*(7)+25}",
]
WRONG = [
    "",
    "46",
    r"\boxed{46}",  # the target is not one of the numbers
    r"\boxed{3+7+25}",  # 35
    r"\boxed{3*7+25=47}",  # the stated value is wrong
    r"\boxed{3*7+25=46=46}",
    r"\boxed{3*7+25+3-3}",  # a number used three times
    r"\boxed{21+25}",  # other numbers
    r"\boxed{37+9}",  # concatenated digits
    r"\boxed{3*7+25",  # never closes, and is not an expression as a line
    r"\boxed{3*7+25} but rather \boxed{3+7}",
    r"\boxed{--3*7+25}",  # only signs between numbers
    r"\boxed{+3*7+25}",
    r"\boxed{3*7+25+0}",
    r"\boxed{3**7+25}",
    r"\boxed{7//3+25}",
    r"\boxed{3*7+25.0}",
    r"\boxed{3*7+2_5}",
    r"\boxed{03*7+25}",
    r"\boxed{3*7,25}",
    r"\boxed{3(7)+25}",
    r"\boxed{()}",
    r"\boxed{3*7+25;46}",
    r"\boxed{__import__('os').getpid()}",
    r"\boxed{(lambda: 46)()}",
    r"\boxed{x*7+25}",
    r"\boxed{" + "(" * 300 + "3*7+25" + ")" * 300 + "}",
    r"\boxed{" + "9**" * 60 + "9}",
    r"\boxed{" + " " * 5000 + "3*7+25}",
    r"\boxed{3/(7-7)+25}",
]


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert countdown(completions=[text], numbers=[NUMBERS], target=[TARGET]) == [1.0]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert countdown(completions=[text], numbers=[NUMBERS], target=[TARGET]) == [0.0]


def test_fractions_are_exact():
    """8 / (3 - 8 / 3) = 24 is the classic example that floats and integers miss."""
    for text in ("8/(3-8/3)", r"\frac{8}{3-\frac{8}{3}}", r"\dfrac{8}{3 - 8 \div 3}"):
        judged = countdown(completions=[f"\\boxed{{{text}}}"], numbers=[[8, 8, 3, 3]], target=[24])
        assert judged == [1.0], text


def test_a_division_by_zero_is_wrong():
    assert countdown(completions=[r"\boxed{5/(3-3)}"], numbers=[[3, 3, 5]], target=[0]) == [0.0]


def test_values_equal_fractions_on_random_expressions():
    apply = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    rng = random.Random(0)
    for _ in range(300):
        a, b, c, d = numbers = [rng.randint(1, 9) for _ in range(4)]
        first, middle, last = (rng.choice("+-*/") for _ in range(3))
        left, right = apply[first](Fraction(a), b), apply[last](Fraction(c), d)
        expected = None if middle == "/" and right == 0 else apply[middle](left, right)
        text = f"({a}{first}{b}){middle}({c}{last}{d})"
        assert value_of(text, numbers) == expected
        assert value_of(text, numbers[:3]) is None


def test_each_row_is_scored_with_its_own_columns_and_may_abstain():
    judged = countdown(
        completions=["1+2", "1+2", "1+2", [{"role": "assistant", "content": "1+2"}]],
        numbers=[[1, 2], "[2, 1]", None, [1, 2]],
        target=[3, "3", 3, 4],
    )
    assert judged == [1.0, 1.0, None, 0.0]


@pytest.mark.parametrize("numbers", ["three", 3, ["1", "2"], '{"a": 1}'])
def test_columns_that_are_not_numbers(numbers):
    with pytest.raises(ValueError, match=r"not a list of integers|Expecting value"):
        countdown(completions=["1+2"], numbers=[numbers], target=[3])


def test_every_order_of_the_numbers_is_correct():
    for a, b, c in itertools.permutations(NUMBERS):
        value = Fraction(a + b * c)
        assert value_of(f"{a}+{b}*{c}", NUMBERS) == value
