"""Tests of column addition: chains are correct or forget every carry, and no held-out problem is in training."""

import itertools

import pytest

from gvpo.data import TASKS
from gvpo.data.tasks.addition import chain
from gvpo.errors import ConfigError
from gvpo.rewards import REWARDS

ADDITION = TASKS["addition"]


def numbers(problem):
    """Return the two numbers of a problem."""
    left, right = problem.prompt.removesuffix("=\n").split("+")
    return int(left), int(right)


def test_a_chain_matches_a_hand_written_one():
    assert chain(489, 636) == "9+6+0=15\n8+3+1=12\n4+6+1=11\n\\boxed{1125}"


def test_a_chain_without_carries_matches_a_hand_written_one():
    assert chain(489, 636, carry=False) == "9+6+0=15\n8+3+0=11\n4+6+0=10\n\\boxed{1015}"


def test_numbers_of_different_width():
    assert chain(7, 95) == "7+5+0=12\n0+9+1=10\n\\boxed{102}"
    assert chain(0, 0) == "0+0+0=0\n\\boxed{0}"


@pytest.mark.parametrize("digits", [1, 2, 3, 8])
def test_the_correct_chain_has_full_reward(digits):
    for problem in ADDITION.problems("train", 50, 3, digits=digits):
        left, right = numbers(problem)
        assert problem.columns["answer"] == str(left + right)
        columns = {name: [value] for name, value in problem.columns.items()}
        for name in (ADDITION.reward, "addition_steps"):
            assert REWARDS[name](completions=[chain(left, right)], **columns) == [1.0]


def test_a_chain_without_carries_is_correct_only_if_nothing_is_carried():
    for problem in ADDITION.problems("train", 300, 0):
        left, right = numbers(problem)
        forgetful = chain(left, right, carry=False)
        carries = any(int(a) + int(b) > 9 for a, b in list(zip(str(left), str(right), strict=True))[1:])
        reward = REWARDS[ADDITION.reward](completions=[forgetful], answer=[problem.columns["answer"]])
        assert reward == [float(not carries)]
        assert (forgetful == chain(left, right)) is not carries


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_train_and_eval_do_not_overlap(digits):
    def unordered(split, seed):
        return {tuple(sorted(numbers(p))) for p in ADDITION.problems(split, 1000, seed, digits=digits)}

    for train_seed, eval_seed in itertools.product(range(2), repeat=2):
        assert not unordered("train", train_seed) & unordered("eval", eval_seed)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_problems_are_different_and_depend_on_digits_and_seed(split):
    first = ADDITION.problems(split, 500, 1)
    assert first == ADDITION.problems(split, 500, 1)
    assert first != ADDITION.problems(split, 500, 2)
    assert len({problem.id for problem in first}) == 500
    assert all(100 <= number <= 999 for problem in first for number in numbers(problem))


def test_a_longer_list_begins_with_the_shorter_one():
    assert ADDITION.problems("train", 500, 1)[:20] == ADDITION.problems("train", 20, 1)


def test_a_count_above_the_number_of_problems_returns_all():
    every = [*ADDITION.problems("train", 1000, 0, digits=1), *ADDITION.problems("eval", 1000, 0, digits=1)]
    assert sorted(map(numbers, every)) == list(itertools.product(range(10), repeat=2))


def test_demonstrations_forget_with_the_given_probability_and_use_training_problems():
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
def test_demonstrations_with_probabilities_0_and_1(forget, carry):
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
def test_error_explains_invalid_options(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
