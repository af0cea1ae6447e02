"""Column addition: the chains are right or forget every carry, and no held-out problem is ever trained on."""

import itertools

import pytest

from gvpo.data import TASKS
from gvpo.data.tasks.addition import chain
from gvpo.errors import ConfigError
from gvpo.rewards import REWARDS

ADDITION = TASKS["addition"]


def numbers(problem):
    """The two numbers of a problem."""
    left, right = problem.prompt.removesuffix("=\n").split("+")
    return int(left), int(right)


def test_a_chain_by_hand():
    assert chain(489, 636) == "9+6+0=15\n8+3+1=12\n4+6+1=11\n\\boxed{1125}"


def test_a_chain_that_forgets_by_hand():
    assert chain(489, 636, carry=False) == "9+6+0=15\n8+3+0=11\n4+6+0=10\n\\boxed{1015}"


def test_numbers_of_different_width():
    assert chain(7, 95) == "7+5+0=12\n0+9+1=10\n\\boxed{102}"
    assert chain(0, 0) == "0+0+0=0\n\\boxed{0}"


@pytest.mark.parametrize("digits", [1, 2, 3, 8])
def test_the_right_chain_gets_every_reward(digits):
    for problem in ADDITION.problems("train", 50, 3, digits=digits):
        left, right = numbers(problem)
        assert problem.columns["answer"] == str(left + right)
        columns = {name: [value] for name, value in problem.columns.items()}
        for name in (ADDITION.reward, "addition_steps"):
            assert REWARDS[name](completions=[chain(left, right)], **columns) == [1.0]


def test_a_chain_that_forgets_is_right_only_where_nothing_is_carried():
    for problem in ADDITION.problems("train", 300, 0):
        left, right = numbers(problem)
        forgetful = chain(left, right, carry=False)
        carries = any(int(a) + int(b) > 9 for a, b in list(zip(str(left), str(right), strict=True))[1:])
        reward = REWARDS[ADDITION.reward](completions=[forgetful], answer=[problem.columns["answer"]])
        assert reward == [float(not carries)]
        assert (forgetful == chain(left, right)) is not carries


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_train_and_eval_never_meet(digits):
    def unordered(split, seed):
        return {tuple(sorted(numbers(p))) for p in ADDITION.problems(split, 1000, seed, digits=digits)}

    for train_seed, eval_seed in itertools.product(range(2), repeat=2):
        assert not unordered("train", train_seed) & unordered("eval", eval_seed)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_problems_are_different_of_the_right_size_and_the_seeds(split):
    first = ADDITION.problems(split, 500, 1)
    assert first == ADDITION.problems(split, 500, 1)
    assert first != ADDITION.problems(split, 500, 2)
    assert len({problem.id for problem in first}) == 500
    assert all(100 <= number <= 999 for problem in first for number in numbers(problem))


def test_more_problems_begin_with_the_fewer():
    assert ADDITION.problems("train", 500, 1)[:20] == ADDITION.problems("train", 20, 1)


def test_asking_for_more_than_there_are_gives_all():
    every = [*ADDITION.problems("train", 1000, 0, digits=1), *ADDITION.problems("eval", 1000, 0, digits=1)]
    assert sorted(map(numbers, every)) == list(itertools.product(range(10), repeat=2))


def test_demonstrations_forget_as_often_as_asked_and_show_training_problems_only():
    shown = ADDITION.demonstrations(4000, 0, forget_carry=0.7)
    assert shown == ADDITION.demonstrations(4000, 0, forget_carry=0.7)
    held_out = {tuple(sorted(numbers(p))) for p in ADDITION.problems("eval", 40_000, 0)}
    forgot = right = 0
    for problem, text in shown:
        left, held = numbers(problem)
        assert tuple(sorted((left, held))) not in held_out
        carried, forgotten = chain(left, held), chain(left, held, carry=False)
        assert text in (carried, forgotten)
        if carried != forgotten:
            forgot += text == forgotten
            right += text == carried
    share = forgot / (forgot + right)
    assert abs(share - 0.7) < 0.03  # about 2800 chains with a carry: a standard error of 0.009


@pytest.mark.parametrize(("forget", "carry"), [(0.0, True), (1.0, False)])
def test_demonstrations_at_the_ends(forget, carry):
    for problem, text in ADDITION.demonstrations(100, 5, forget_carry=forget, digits=2):
        assert text == chain(*numbers(problem), carry=carry)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ADDITION.problems("train", 1, 0, digit=3), "no option 'digit'; did you mean 'digits'"),
        (lambda: ADDITION.problems("train", 1, 0, zebra=3), "no option 'zebra'; it has digits"),
        (lambda: ADDITION.problems("train", 1, 0, forget_carry=0.7), "no option 'forget_carry'"),
        (lambda: ADDITION.problems("test", 1, 0), "splits train and eval, not 'test'"),
        (lambda: ADDITION.problems("train", 1, 0, digits=0), "whole number from 1 to 100, not 0"),
        (lambda: ADDITION.problems("train", 1, 0, digits="3"), "whole number from 1 to 100, not '3'"),
        (lambda: ADDITION.demonstrations(1, 0, forget_carry=1.5), "between 0 and 1, not 1.5"),
    ],
)
def test_options_that_cannot_be(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
