"""Answers that no computer finishes, or that are too long to read: they are wrong, and rejected quickly."""

import time

import pytest

from gvpo.rewards import RewardBatch, RewardPool, math_answer
from gvpo.rewards.math import values
from tests.rewards.judging import judged

pytest.importorskip("mpmath")

TOWERS = [
    "9^{9^{9^9}}",
    "9^{9^{9}}",
    "9^9^9^9",
    "((((9^9)^9)^9)^9)^9",
    "2^{2^{100}}",
    "2**2**100",
    "10**10**10",
    "9.9^{9.9^{9.9^{9.9}}}",
    r"\pi^{\pi^{\pi^{\pi}}}",
    r"e^{e^{e^{e^{e}}}}",
    r"\exp(\exp(\exp(\exp(10))))",
    "10^{-10^{10}}",
    r"10^{10^{10}} - 10^{10^{10}}",
    r"\frac{10^{10^{10}}}{10^{10^{10}}}",
    "(-1)^{10^{10^{10}}}",
    r"x^{10^{10^{10}}}",
    r"(x+y+z)^{5000}",
    r"(1+\frac{1}{10^9})^{10^9}",
    r"(1+i)^{10^{12}}",
    r"1.0000001^{10^{15}}",
    r"\sqrt[10^9]{3}",
    r"\sqrt[10^{-9}]{3}",
    "1e999999999",
    "1e-999999999",
    r"1.5 \times 10^{999999999}",
    r"\frac{1}{10^{-999999999}}",
]
LARGE_FUNCTIONS = [
    "(10^6)!",
    "(10^{9})!",
    "((((10!)!)!)!)!",
    "9!!!!!!!!!",
    "1000!!!",
    "(10^9)!!",
    r"(0.5 + 10^9)!",
    r"\binom{10^9}{5*10^8}",
    r"\binom{10^6}{5 \cdot 10^5}",
    r"\binom{0.5}{10^9}",
    r"\binom{x}{10^9}",
    r"\Gamma(10^9)",
    r"\gcd(9^{9^{9^9}}, 3)",
    r"\operatorname{lcm}(9^{9^{9^9}}, 3)",
    r"9^{9^{9^9}} \bmod 7",
    r"\lfloor 10^{10^{10}} \rfloor",
    r"\lceil \pi \cdot 10^{10^{5}} \rceil",
    r"\sin(10^{10^5})",
    r"\tan(9^{9^9})",
    r"\log(9^{9^{9^9}})",
    r"\max(9^{9^{9^9}}, 3)",
    r"|9^{9^{9^9}}|",
    r"\sum_{k=1}^{10^9} k",
    r"\sum_{k=1}^{2000} \sum_{j=1}^{2000} \sum_{i=1}^{2000} ijk",
    r"\prod_{k=1}^{10^9} k",
    r"\prod_{k=1}^{2000} 9^{9999}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n}",
    r"\sum_{k=1}^{2000} \frac{1}{k^{1000}}",
    r"\int_0^1 \sin(\exp(\exp(\exp(x^x)))) dx",
    "+".join(rf"\frac{{1}}{{{n}^{{9999}}}}" for n in range(3, 25)),
    "*".join(f"{n}^{{9999}}" for n in range(3, 25)),
]
IN_OTHER_THINGS = [
    "x = 9^{9^{9^9}}",
    "9^{9^{9^9}} = x",
    "9^{9^{9^9}} = 9^{9^{9^9}}",
    "3 = 9^{9^{9^9}}",
    r"x \ge 9^{9^{9^9}}",
    r"x + 9^{9^{9^9}} = 3",
    "(1, 9^{9^{9^9}})",
    "[9^{9^{9^9}}, 3)",
    r"\{3, 9^{9^{9^9}}\}",
    r"(1, 9^{9^{9^9}}) \cup (3, 4)",
    r"\mathbb{R} \setminus \{9^{9^{9^9}}\}",
    r"\begin{pmatrix} 9^{9^{9^9}} \\ 3 \end{pmatrix}",
    r"9^{9^{9^9}} \begin{pmatrix} 1 \\ 3 \end{pmatrix}",
    r"\det\begin{pmatrix} 9^{9^{9^9}} & 1 \\ 1 & 3 \end{pmatrix}",
    "9^{9^{9^9}}:3",
    r"9^{9^{9^9}}\%",
    r"9^{9^{9^9}} \text{ cm}",
    r"3 \pm 9^{9^{9^9}}",
    r"f(9^{9^{9^9}})",
    r"9^{9^{9^9}}_8",
    "np.exp(np.exp(np.exp(np.exp(10))))",
    "math.factorial(10**9)",
]
LONG = [
    "x=" * 500 + "3",
    "x=" * 240 + "4",
    "4=" * 240 + "4",
    "1<" * 240 + "3",
    "9" * 100_000,
    "9" * 400,
    "0." + "3" * 400,
    "0." + "12" * 200 + r"\ldots",
    "1/" * 240 + "3",
    "2^" * 240 + "3",
    "2^{" * 160 + "3" + "}" * 160,
    "-" * 400 + "4",
    "+" * 400 + "4",
    "(" * 240 + "4" + ")" * 240,
    "(" * 50_000,
    "{" * 3000 + "3" + "}" * 3000,
    "[" * 480,
    "|" * 480,
    "|x" * 240,
    r"\sqrt{" * 60 + "3" + "}" * 60,
    r"\frac{1}{" * 50 + "4" + "}" * 50,
    r"\frac" * 90,
    r"\left" * 90,
    r"\text{" * 80,
    r"\begin{pmatrix}" * 30,
    r"\begin{pmatrix}" + "1&" * 240 + r"1\end{pmatrix}",
    r"\sin " * 100 + "3",
    "3!" * 240,
    "3'" * 240,
    "x_" * 240,
    "1," * 240 + "3",
    ",".join(map(str, range(3000))),
    "a" * 490,
    "a b " * 120,
    "1 000 " * 80,
    "1.000." * 80,
    r"\pm 1" * 98,
    r"1 \cup " * 70,
    r"(1,2) \cup " * 40 + "(1,3)",
    r"\{" * 240,
    r"\\" * 240,
    r"{1 \over " * 50,
    "$" * 490,
    "~" * 490,
    " " * 490,
    "*" * 490,
    "0.(" * 160,
    ":1" * 240,
    "%" * 490,
    "½" * 490,
    "x²" * 240,
    "３" * 490,
    "\u0305" * 490,
    "∑" * 490,
    "1e9" * 160,
]
BOMBS = [*TOWERS, *LARGE_FUNCTIONS, *IN_OTHER_THINGS, *LONG]
GOLDS = ["3", "0", r"\frac{1}{2}", "x^2+1", r"n!", r"2x+3y=6", "(1,2)", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
def test_a_bomb_is_wrong_within_a_second(bomb):
    began = time.process_time()
    wrong = [not values.same_answer(gold, bomb) for gold in GOLDS]
    assert (all(wrong), time.process_time() - began < len(GOLDS)) == (True, True)


def test_bombs_are_wrong_answers_like_others():
    answers = [rf"\boxed{{{bomb}}}" for bomb in BOMBS[::9]]
    with RewardPool({"math_answer": math_answer}, workers=1, timeout=5.0) as pool:
        (verdicts,) = pool.score([RewardBatch("", [*answers, r"\boxed{5}"], {"answer": "5"})])
    assert [(each.reward, each.reason) for each in verdicts] == [(0.0, "")] * len(answers) + [(1.0, "")]


@pytest.mark.parametrize("gold", ["9^{9^{9^9}}", "(10^9)!", r"\frac{1}{0}", r"\infty"])
def test_a_reference_answer_without_a_value_equals_only_its_own_text(gold):
    assert judged(gold, rf"\boxed{{ {gold} }}")
    assert not judged(gold, "9^{9^{9^8}}")
    assert not judged(gold, "0")


def test_the_length_limit_of_an_answer_grows_with_the_reference_answer():
    numbers = [str(n) for n in range(600)]
    large = r"\{" + ", ".join(numbers) + r"\}"
    assert values.same_answer(large, ",".join(reversed(numbers)))
    assert not values.same_answer(large, ",".join(["600", *numbers[1:]]))
    assert values.same_answer("5", "5" + " " * 490)
    assert not values.same_answer("5", "5" + " " * 510)
