"""Tests of normalized spelling: texts that become equal, and texts that must stay different."""

import pytest

from gvpo.data.normalize import words

SAME = [
    ("Find  $\\dfrac{1}{2}$ of 1,000.", "find $\\frac12$ of 1000"),
    ("Find \\[x^{2}+y_{1}\\].", "find $x^2 + y_1$"),
    ("$\\left( 3, 4 \\right)$", "(3,4)"),
    ("What is $10{,}000$?", "what is 10000"),
    ("Let $x \\leq 3$ and $y \\geqslant 2$.", "Let $x\\le 3$ and $y\\ge 2$"),
    ("the “best” one", 'The "best" one'),
    ("$2 × 3$", "2\\times 3"),
    ("$90^\\circ$", "90°"),
    ("$x \\text{ and } y$", "$x$ and $y$"),
    ("Compute:\n\n  2 + 3 .", "compute 2+3"),
]
DIFFERENT = [
    ("2+3", "2-3"),
    ("2+3", "23"),
    ("f(1,2)", "f(12)"),
    ("f(1, 2)", "f(1 2)"),
    ("0.5", "05"),
    ("f(x)", "f'(x)"),
    ("x^2", "x_2"),
    ("$\\sin x$", "$\\cos x$"),
    ("5!", "5"),
    ("Is 3 < 4?", "Is 3 > 4?"),
    ("(1,2)", "[1,2]"),
    ("A and B", "A or B"),
    ("A and B", "A, B"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_the_same(left, right):
    assert words(left) == words(right)
    assert words(left)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different(left, right):
    assert words(left) != words(right)


def test_words_match_a_hand_written_list():
    assert words("Find $\\frac12$ of 1,000!") == ("find", "\\frac", "1", "2", "of", "1000", "!")
    assert words("数え上げ 12") == ("数", "え", "上", "げ", "12")
    assert words(" $ . ") == ()
