"""Tests of arithmetic and word problems: steps are true, other solutions agree, and splits share no numbers."""

import ast
import itertools
import operator
import random
import re
from fractions import Fraction

import pytest

from gvpo.data import TASKS
from gvpo.data.tasks.generated import INSTRUCTION, LEVELS, written
from gvpo.errors import ConfigError
from gvpo.rewards import REWARDS

GENERATED = [TASKS["arithmetic"], TASKS["word_problems"]]
FAMILIES = {
    "arithmetic": ["sum", "difference", "product", "quotient", "remainder", "expression", "equation", "fraction"],
    "word_problems": ["shopping", "sharing", "travel", "ages", "fence", "discount", "animals", "savings"],
}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

each_task = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)


def value(text):
    """Return the value of a term as a fraction, computed from its syntax tree."""

    def of(node):
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        return Fraction(node.value)

    return of(ast.parse(text, mode="eval").body)


def answer(problem):
    """Return the answer as a fraction."""
    latex = re.fullmatch(r"\\frac\{(\d+)\}\{(\d+)\}", problem.columns["answer"])
    return Fraction(int(latex[1]), int(latex[2])) if latex else Fraction(problem.columns["answer"])


def numbers(problem):
    """Return the numbers of a question in their order."""
    return list(map(int, re.findall(r"\d+", problem.prompt.removesuffix(INSTRUCTION))))


def brute_remainder(dividend, divisor):
    while dividend >= divisor:
        dividend -= divisor
    return dividend


def equation(question):
    """Compute x by exact rational arithmetic from the coefficients of both sides."""
    left, right = re.search(r"Solve (.*) = (.*) for x", question).groups()
    (a, b), (c, d) = (
        (int(next(iter(re.findall(r"(\d+)x", side)), 0)), int(next(iter(re.findall(r"(\d+)(?!\d|x)", side)), 0)))
        for side in (left, right)
    )
    return Fraction(d - b, a - c)


# Solutions that differ from the generator's: from only the text, or from the numbers in the question's order.
BY_TEXT = {
    "sum": lambda q: value(q.removeprefix("Compute ")[:-1]),
    "difference": lambda q: value(q.removeprefix("Compute ")[:-1]),
    "product": lambda q: value(q.removeprefix("Compute ")[:-1]),
    "quotient": lambda q: value(q.removeprefix("Compute ")[:-1]),
    "expression": lambda q: value(q.removeprefix("Compute ")[:-1]),
    "fraction": lambda q: value(q.removeprefix("Compute ").removesuffix(" and simplify.")),
    "remainder": lambda q: brute_remainder(*map(int, re.findall(r"\d+", q))),
    "equation": equation,
}
BY_NUMBERS = {
    ("shopping", 3): lambda n, price, money: money - n * price,
    ("shopping", 4): lambda n, price, fee, money: money - n * price - fee,
    ("sharing", 2): lambda total, people: None,  # two possible questions: see SHARING
    ("travel", 2): lambda hours, speed: hours * speed,
    ("travel", 4): lambda hours, speed, more, faster: hours * speed + more * faster,
    ("ages", 2): lambda times, total: Fraction(total, times + 1),
    ("ages", 3): lambda times, total, later: Fraction(total, times + 1) + later,
    ("fence", 2): lambda length, width: length + width + length + width,
    ("fence", 3): lambda length, width, price: (length + width + length + width) * price,
    ("discount", 2): lambda price, percent: price * Fraction(100 - percent, 100),
    ("discount", 3): lambda price, percent, count: count * price * Fraction(100 - percent, 100),
    ("animals", 2): lambda heads, legs: None,  # two possible questions: see below
    ("savings", 3): lambda start, weekly, price: Fraction(price - start, weekly),
    ("savings", 4): lambda start, weekly, spent, price: Fraction(price - start, weekly - spent),
}


def solved(problem):
    """Compute the answer in a way that differs from the generator's."""
    question, family, given = problem.prompt.removesuffix(INSTRUCTION), problem.columns["family"], numbers(problem)
    if family in BY_TEXT:
        return BY_TEXT[family](question)
    if family == "sharing":
        total, people = given
        return brute_remainder(total, people) if "remain" in question else total // people
    if family == "animals":
        heads, legs = given
        beasts = next(n for n in itertools.count() if 4 * n + 2 * (heads - n) == legs)
        return heads - beasts if re.search(r"How many (hens|ducks|geese)", question) else beasts
    return BY_NUMBERS[family, len(given)](*given)


@each_task
@pytest.mark.parametrize("level", LEVELS)
def test_answers_steps_and_rewards_agree(task, level):
    problems = task.problems("train", 240, 1, levels=[level])
    assert {problem.columns["family"] for problem in problems} == set(FAMILIES[task.name])
    for problem in problems:
        if problem.columns["family"] != "animals" or level <= 2:  # counting up to large herds would take long
            assert solved(problem) == answer(problem), problem
        for step in problem.columns["steps"]:
            left, right = step.split(" = ")
            assert value(left) == value(right), problem
        last = value(problem.columns["steps"][-1].split(" = ")[1])
        assert last == answer(problem), problem
        judged = REWARDS[task.reward](
            completions=[written(problem), f"\\boxed{{{answer(problem) + 1}}}"], answer=[problem.columns["answer"]] * 2
        )
        assert judged == [1.0, 0.0], problem


@each_task
def test_no_set_of_numbers_is_in_both_splits_for_any_seed_family_or_level(task):
    def sets(split, seed, **options):
        return {tuple(sorted(numbers(p))) for p in task.problems(split, 700, seed, **options)}

    trained = sets("train", 0) | sets("train", 1, levels=[1]) | sets("train", 2, families=FAMILIES[task.name][:2])
    held_out = sets("eval", 0) | sets("eval", 3, levels=[1]) | sets("eval", 4, families=FAMILIES[task.name][:2])
    assert len(trained) > 1000
    assert len(held_out) > 300
    assert not trained & held_out


def test_numbers_held_out_in_one_task_are_held_out_in_the_other():
    def sets(split):
        return {tuple(sorted(numbers(p))) for task in GENERATED for p in task.problems(split, 2000, 0, levels=[1, 2])}

    assert not sets("train") & sets("eval")


@each_task
@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_same_seed_gives_the_same_different_problems(task, split):
    first = task.problems(split, 300, 1)
    state = random.getstate()
    assert first == task.problems(split, 300, 1)
    assert random.getstate() == state
    assert first != task.problems(split, 300, 2)
    assert len({problem.id for problem in first}) == len({problem.prompt for problem in first}) == 300
    assert first[:40] == task.problems(split, 40, 1)


@each_task
def test_levels_are_harder(task):
    def largest(level):
        found = [max(numbers(problem)) for problem in task.problems("train", 200, 0, levels=[level])]
        return sorted(found)[100]

    middles = [largest(level) for level in LEVELS]
    assert middles == sorted(middles)
    assert middles[-1] > 50 * middles[0]


@each_task
def test_options_choose(task):
    family = FAMILIES[task.name][1]
    problems = task.problems("eval", 50, 0, families=[family], levels=[2], instruction="!")
    assert {(p.columns["family"], p.columns["level"]) for p in problems} == {(family, 2)}
    assert all(p.prompt.endswith("!") and p.id.startswith(f"{task.name}/{family}/") for p in problems)


@each_task
def test_demonstrations_are_correct_and_use_training_problems(task):
    shown = task.demonstrations(300, 0)
    assert shown == task.demonstrations(300, 0)
    held_out = {problem.id for problem in task.problems("eval", 3000, 0)}
    for problem, text in shown:
        assert problem.id not in held_out
        assert REWARDS[task.reward](completions=[text], answer=[problem.columns["answer"]]) == [1.0]
        assert text.splitlines()[:-1] == problem.columns["steps"]


def test_a_count_above_the_number_of_problems_returns_all():
    """Expect 18 times 8 quotients of level 1; the question shows the dividend and the divisor."""
    parts = [
        TASKS["arithmetic"].problems(split, 10_000, 0, families=["quotient"], levels=[1]) for split in ("train", "eval")
    ]
    assert sum(map(len, parts)) == 18 * 8
    assert len({problem.id for part in parts for problem in part}) == 18 * 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GENERATED[0].problems("train", 1, 0, family=["sum"]), "no option 'family'; did you mean 'families'"),
        (
            lambda: GENERATED[0].problems("train", 1, 0, families=["sums"]),
            "no 'sums' among its families; choose from sum",
        ),
        (lambda: GENERATED[0].problems("train", 1, 0, families="sum"), "needs families as a list of sum, difference"),
        (lambda: GENERATED[1].problems("train", 1, 0, levels=[6]), "no 6 among its levels; choose from 1, 2, 3, 4, 5"),
        (lambda: GENERATED[1].problems("train", 1, 0, levels=[]), "needs levels as a list of 1, 2, 3, 4, 5; it is"),
        (lambda: GENERATED[1].problems("train", 1, 0, levels=[True]), "no True among its levels"),
        (lambda: GENERATED[1].problems("test", 1, 0), "splits train and eval, not 'test'"),
        (lambda: GENERATED[1].demonstrations(1, 0, levels=3), "needs levels as a list"),
    ],
)
def test_error_explains_invalid_options(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
