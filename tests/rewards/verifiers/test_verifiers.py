"""Verifiers as tables: one comment per family, including wrong answers that must score 0."""

from decimal import Decimal
from fractions import Fraction

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import (
    addition_slip,
    addition_steps,
    boxed_answer,
    boxed_format,
    exact_match,
    gsm8k,
    length_penalty,
    number_match,
    regex_format,
    token_cost,
)
from gvpo.rewards.verifiers.boxed import last_boxed
from gvpo.rewards.verifiers.number import MAX_CHARACTERS, last_number, parse_number

EXACT = [
    # the same
    ("yes", "yes", 1),
    ("  yes\n", "yes", 1),
    ("two\n  words", "two words", 1),
    ("42", 42, 1),
    # not the same
    ("Yes", "yes", 0),
    ("yes.", "yes", 0),
    ("yes, it is yes", "yes", 0),
    ("twowords", "two words", 0),
    ("", "yes", 0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), EXACT)
def test_exact_match(completion, answer, reward):
    assert exact_match(completions=[completion], answer=[answer]) == [reward]


LAST_NUMBER = [
    # integers and signs
    ("the answer is 42", 42),
    ("42.", 42),
    ("first 1, then 2", 2),
    ("so -3", -3),
    ("so −3", -3),
    ("x=-3", -3),
    ("+4", 4),
    # a minus between things subtracts
    ("10-5", 5),
    ("n-5", 5),
    ("f(x)-5", 5),
    ("10 - 5", 5),
    # commas
    ("1,234", 1234),
    ("12,345,678.5", Fraction("12345678.5")),
    ("1{,}234", 1234),
    ("1,\\!234", 1234),
    ("1,2", 2),
    ("1,2345", 2345),
    ("in 2020, 15 left", 15),
    # decimals and powers of ten
    ("0.1", Fraction(1, 10)),
    (".5", Fraction(1, 2)),
    ("it is...5", 5),
    ("1.50", Fraction(3, 2)),
    ("1e3", 1000),
    ("2.5E-1", Fraction(1, 4)),
    ("1.2.3", Fraction("1.2")),
    # fractions
    ("3/4", Fraction(3, 4)),
    ("-3/4", Fraction(-3, 4)),
    ("1 1/2", Fraction(3, 2)),
    ("\\frac{3}{4}", Fraction(3, 4)),
    ("-\\dfrac{3}{4}", Fraction(-3, 4)),
    ("1\\frac{1}{2}", Fraction(3, 2)),
    ("0.5/0.25", 2),
    # currency, per cent, units, other scripts
    ("$5", 5),
    ("-$5", -5),
    ("$-5", -5),
    ("\\$1,000", 1000),
    ("50%", 50),
    ("5km", 5),
    ("共有72个", 72),
    # digits that are not a number
    ("H2O", None),
    ("room B12", None),
    ("x_1", None),
    ("", None),
    ("none at all", None),
    ("٣", None),  # other digits than 0 to 9
    # no value, or an implausible one
    ("1/0", None),
    ("9" * (MAX_CHARACTERS + 1), None),
    ("9" * 1_000_000, None),
]


@pytest.mark.parametrize(("text", "number"), LAST_NUMBER, ids=lambda value: str(value)[:20])
def test_last_number(text, number):
    assert last_number(text) == number


WHOLE = [
    ("42", 42),
    (" $1,234.50 ", Fraction("1234.5")),
    ("$42$", 42),
    ("50%", 50),
    ("7.", 7),
    ("42 apples", None),
    ("x=42", None),
    ("1 2", None),
    ("", None),
    ("-", None),
    ("nan", None),
    ("__import__('os')", None),
]


@pytest.mark.parametrize(("text", "number"), WHOLE)
def test_parse_number(text, number):
    assert parse_number(text) == number


NUMBER = [
    # equal in value
    ("so 1,000", "1000", 1),
    ("so 0.50", 0.5, 1),
    ("so 1/2", "0.5", 1),
    ("so 3.0", 3, 1),
    ("so 0.1", Decimal("0.1"), 1),
    ("so 0.3", 0.3, 1),
    # close, or only somewhere in the text
    ("so 0.30000000000000004", 0.3, 0),
    ("so 0.333", "1/3", 0),
    ("42, or rather 41", "42", 0),
    ("-42", "42", 0),
    ("420", "42", 0),
    ("4.2", "42", 0),
    ("", "42", 0),
    ("9" * 5000, "42", 0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), NUMBER, ids=lambda value: str(value)[:20])
def test_number_match(completion, answer, reward):
    assert number_match(completions=[completion], answer=[answer]) == [reward]


@pytest.mark.parametrize("judge", [number_match, gsm8k])
def test_an_answer_that_is_not_a_number_is_an_error(judge):
    with pytest.raises(ValueError, match="'forty-two' is not a number"):
        judge(completions=["42"], answer=["forty-two"])


@pytest.mark.parametrize("judge", [boxed_answer, exact_match, gsm8k, number_match])
def test_no_answer_abstains(judge):
    assert judge(completions=["1", "1"], answer=[None, "2"]) == [None, 0.0]


BOXED = [
    # numbers, as numbers
    ("\\boxed{1125}", "1125", 1),
    ("so $\\boxed{1,125}$.", 1125, 1),
    ("\\boxed{\\frac{1}{2}}", "0.5", 1),
    ("\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}", 1),
    ("\\boxed{\\$5}", "5", 1),
    ("\\boxed{50\\%}", "50", 1),
    # text, except for spacing
    ("\\boxed{(1,\\,2)}", "(1, 2)", 1),
    ("\\boxed{\\left(1, 2\\right)}", "(1,2)", 1),
    ("\\boxed{x^{2}+1}", "x^{2} + 1", 1),
    ("\\boxed{\\{1,2\\}}", "\\{1, 2\\}", 1),
    ("\\boxed{A.}", "A", 1),
    ("\\boxed{5}", "\\boxed{5}", 1),
    # the last box counts, and the inner one of two
    ("\\boxed{3}, no: \\boxed{4}", "4", 1),
    ("\\boxed{3}, no: \\boxed{4}", "3", 0),
    ("\\boxed{\\boxed{4}}", "4", 1),
    # boxes in other forms
    ("\\boxed 7", "7", 1),
    ("so $\\boxed 7$.", "7", 1),
    ("\\boxed7", "7", 1),
    ("\\boxed {7}", "7", 1),
    ("\\fbox{7}", "7", 1),
    ("\\framebox{7}", "7", 1),
    ("\\boxed\\frac{1}{2}", "0.5", 1),
    ("\\boxed{8} \\fbox{7}", "7", 1),
    ("\\boxed{7} \\fbox{8}", "7", 0),
    ("\\boxed{7}. A \\boxed is required", "7", 1),
    # not the answer
    ("1125", "1125", 0),
    ("\\boxed{1124}", "1125", 0),
    ("\\boxed{11 25}", "1125", 0),
    ("\\boxed{1 1/2}", "11/2", 0),
    ("\\boxed{-1125}", "1125", 0),
    ("\\boxed{1125", "1125", 0),
    ("\\boxed{1125} or \\boxed{", "1125", 0),
    ("\\boxed{}", "", 0),
    ("\\boxed{ }", "5", 0),
    ("\\boxed{5, 6}", "5", 0),
    ("\\boxed{a}", "A", 0),
    ("boxed{5}", "5", 0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), BOXED)
def test_boxed_answer(completion, answer, reward):
    assert boxed_answer(completions=[completion], answer=[answer]) == [reward]


def test_nested_and_unclosed_braces():
    assert last_boxed("a \\boxed{\\frac{1}{x^{2}}} b") == "\\frac{1}{x^{2}}"
    assert last_boxed("\\boxed{\\}}") == "\\}"
    assert last_boxed("\\boxed{\\") is None
    assert last_boxed("\\boxed{" * 100_000) is None


BOXED_FORMAT = [
    ("so \\boxed{5}", 1),
    ("so $\\boxed{5}$. \n", 1),
    ("\\boxed{\\frac{1}{2}}", 1),
    ("\\boxed{5} is it", 0),
    ("\\boxed{}", 0),
    ("\\boxed{ }", 0),
    ("\\boxed{5", 0),
    ("5", 0),
    ("", 0),
]


@pytest.mark.parametrize(("completion", "reward"), BOXED_FORMAT)
def test_boxed_format(completion, reward):
    assert boxed_format(completions=[completion]) == [reward]


def test_regex_format_must_match_the_whole_completion():
    judge = regex_format(r"<think>.+</think>\s*\d+", name="thinks")
    texts = ["<think>a\nb</think>\n12\n", "<think></think>12", "well: <think>a</think>12", "12"]
    assert judge(completions=texts) == [1.0, 0.0, 0.0, 0.0]
    assert judge.__name__ == "thinks"
    with pytest.raises(RewardError, match="is not a regular expression"):
        regex_format("(")


GSM8K = [
    # the marker first
    ("48/2 = 24\n#### 72", "72", 1),
    ("#### 1,234", "1234", 1),
    ("#### $72.00", "72", 1),
    ("#### 72 clips", "72", 1),
    ("#### 71\nno\n#### 72", "72", 1),
    ("#### -3", "-3", 1),
    ("#### –3", "-3", 1),
    ("#### 72 (48/2 + 48)", "72", 1),
    ("#### 72.\n3 of them are red", "72", 1),
    ("#### 3/4", "0.75", 1),
    # a marker before a calculation, a range or a choice
    ("#### 5-6", "5", 0),
    ("#### 5 - 6", "5", 0),
    ("#### 5–6", "5", 0),
    ("#### 5*1", "5", 0),
    ("#### 5 × 1", "5", 0),
    ("#### 5+0=5", "5", 0),
    ("#### 5/1/1", "5", 0),
    ("#### 5^2", "5", 0),
    ("#### 5:30", "5", 0),
    ("#### 5 or 6", "5", 0),
    ("#### 5 to 6", "5", 0),
    ("#### 5, 6", "5", 0),
    ("#### 5..6", "5", 0),
    ("#### $5-$6", "5", 0),
    ("#### 5\\times 2", "5", 0),
    # then the box, then the last number
    ("\\boxed{72} of 100", "72", 1),
    ("\\boxed 72 of 100", "72", 1),
    ("\\boxed {72} of 100", "72", 1),
    ("\\fbox{72} of 100", "72", 1),
    ("She sold 72 clips.", "72", 1),
    # a box without its assignment and unit
    (r"\boxed{18\text{ dollars}}", "18", 1),
    (r"\boxed{\text{18 dollars}}", "18", 1),
    (r"\boxed{18 dollars}", "18", 1),
    (r"\boxed{1,234 \, \mathrm{clips}}", "1234", 1),
    (r"\boxed{15 \text{ cm}^2}", "15", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{x=18}", "18", 1),
    (r"\boxed{\text{Total} = \$18.00}", "18", 1),
    (r"\boxed{9 \cdot 2 = 18 red clips}", "18", 1),
    (r"\boxed{-\frac{1}{2}\text{ mile}}", "-0.5", 1),
    (r"\boxed{x=17}", "18", 0),
    (r"\boxed{18=x+1}", "18", 0),
    (r"\boxed{x \ge 18}", "18", 0),
    (r"\boxed{x >= 18}", "18", 0),
    (r"\boxed{2^{18}}", "18", 0),
    (r"\boxed{\sqrt{18}}", "18", 0),
    (r"\boxed{5, 18}", "18", 0),
    (r"\boxed{18\text{ dollars and }50\text{ cents}}", "18", 0),
    (r"\boxed{18x}", "18", 0),
    (rf"\boxed{{18{' ' * 5000}dollars}}", "18", 0),  # implausible
    # the dataset's own answers
    ("72", "48+24 = <<48+24=72>>72\n#### 72", 1),
    ("2125", "so\n#### 2,125", 1),
    # wrong, or correct in the wrong place
    ("72\n#### 71", "72", 0),
    ("72\n####", "72", 0),
    ("#### none, but 72 \n####", "72", 0),
    ("72, \\boxed{71}", "72", 0),
    ("72, \\boxed{}", "72", 0),
    ("72 of 100", "72", 0),
    ("", "72", 0),
]


@pytest.mark.parametrize(("completion", "answer", "reward"), GSM8K)
def test_gsm8k(completion, answer, reward):
    assert gsm8k(completions=[completion], answer=[answer]) == [reward]


STEPS = ["9+6+0=15", "8+3+1=12", "4+6+1=11"]
ADDITION = [
    ("9+6+0=15\n8+3+1=12\n4+6+1=11\n\\boxed{1125}", 1.0),
    ("9+6+0=15\n8+3+0=11\n4+6+1=11\n\\boxed{1115}", 2 / 3),
    ("9+6+0=15", 1 / 3),
    ("8+3+1=12\n9+6+0=15\n4+6+1=11", 1 / 3),  # on the wrong lines
    ("\n9+6+0=15\n8+3+1=12\n4+6+1=11", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("completion", "share"), ADDITION)
def test_addition_steps(completion, share):
    assert addition_steps(completions=[completion], steps=[STEPS]) == [share]


@pytest.mark.parametrize(("completion", "share"), ADDITION)
def test_addition_slip_is_the_cost_of_any_wrong_step(completion, share):
    assert addition_slip(completions=[completion], steps=[STEPS]) == [float(share < 1)]


def test_addition_steps_abstain_without_steps():
    assert addition_steps(completions=["a"], steps=[None]) == [None]
    assert addition_slip(completions=["a"], steps=[None]) == [None]


def test_token_cost():
    assert token_cost(completion_ids=[[1] * 500, []]) == [-0.5, 0.0]


def test_length_penalty_is_dapos_soft_punishment():
    """Hand-computed for limit 10, margin 4: 0 up to 6 tokens, then a quarter less for each, -1 from 10 on."""
    judge = length_penalty(10, 4)
    assert judge(completion_ids=[[0] * n for n in (0, 6, 7, 9, 10, 50)]) == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    for margin in (0, 11):
        with pytest.raises(RewardError, match="margin must be between 1 and limit"):
            length_penalty(10, margin)


@pytest.mark.parametrize("judge", [boxed_answer, exact_match, gsm8k, number_match])
def test_messages_are_scored_by_their_text(judge):
    completion = [{"role": "assistant", "content": "\\boxed{5}" if judge is boxed_answer else "5"}]
    assert judge(completions=[completion, []], answer=["5", "5"]) == [1.0, 0.0]
