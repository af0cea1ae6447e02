"""Tests of Countdown: the solution of every problem is correct, and no set of numbers is in both splits."""

import itertools

import pytest

from gvpo.data import TASKS
from gvpo.errors import ConfigError, DataError
from gvpo.rewards import REWARDS
from gvpo.rewards.verifiers.countdown import value_of

COUNTDOWN = TASKS["countdown"]


def judged(text, problem):
    (reward,) = REWARDS[COUNTDOWN.reward](
        completions=[text], numbers=[problem.columns["numbers"]], target=[problem.columns["target"]]
    )
    return reward


@pytest.mark.parametrize(
    "options", [{}, {"sizes": [2]}, {"sizes": [6], "largest": 12}, {"signs": "+-"}, {"signs": "*/", "target": 10_000}]
)
def test_the_solution_of_every_problem_is_correct(options):
    problems = COUNTDOWN.problems("train", 300, 3, **options)
    assert len(problems) == 300
    for problem in problems:
        columns = problem.columns
        assert judged(f"\\boxed{{{columns['solution']}}}", problem) == 1.0, columns
        assert judged(f"\\boxed{{{columns['solution']}+1}}", problem) == 0.0
        assert 1 <= columns["target"] <= options.get("target", 100)
        assert len(columns["numbers"]) in options.get("sizes", [3, 4])
        assert all(1 <= number <= options.get("largest", 99) for number in columns["numbers"])
        assert not set(columns["solution"]) & (set("+-*/") - set(options.get("signs", "+-*/")))
        assert f"Using the numbers {', '.join(map(str, columns['numbers']))}, write" in problem.prompt
        assert f"equals {columns['target']}." in problem.prompt


def test_steps_lead_to_the_target_through_whole_numbers_above_zero():
    for problem in COUNTDOWN.problems("eval", 200, 0):
        at_hand = sorted(problem.columns["numbers"])
        for step in problem.columns["steps"]:
            term, result = step.split("=")
            used = list(at_hand)
            sign = next(sign for sign in "+-*/" if sign in term)
            left, right = map(int, term.split(sign))
            used.remove(left)
            used.remove(right)
            assert value_of(term, [left, right]) == int(result) >= 1
            at_hand = sorted([*used, int(result)])
        assert at_hand == [problem.columns["target"]]


@pytest.mark.parametrize("options", [{}, {"sizes": [3], "largest": 9}, {"sizes": [2], "largest": 20}])
def test_no_set_of_numbers_is_in_both_splits(options):
    def sets(split, seed):
        return {tuple(sorted(p.columns["numbers"])) for p in COUNTDOWN.problems(split, 500, seed, **options)}

    for train_seed, eval_seed in itertools.product(range(2), repeat=2):
        assert sets("train", train_seed)
        assert sets("eval", eval_seed)
        assert not sets("train", train_seed) & sets("eval", eval_seed)


def test_the_seed_fixes_the_problems():
    first = COUNTDOWN.problems("train", 200, 1)
    assert first == COUNTDOWN.problems("train", 200, 1)
    assert first != COUNTDOWN.problems("train", 200, 2)
    assert first[:20] == COUNTDOWN.problems("train", 20, 1)
    assert len({problem.id for problem in first}) == 200


def test_demonstrations_miss_with_the_given_probability():
    right = COUNTDOWN.demonstrations(200, 0)
    assert all(judged(text, problem) == 1.0 for problem, text in right)
    assert right == COUNTDOWN.demonstrations(200, 0)
    missing = COUNTDOWN.demonstrations(1000, 0, miss=0.5)
    hits = sum(judged(text, problem) for problem, text in missing)
    assert 480 < hits < 600  # half, and the few of the other half that hit by chance
    held_out = {tuple(sorted(p.columns["numbers"])) for p in COUNTDOWN.problems("eval", 2000, 0)}
    assert not {tuple(sorted(p.columns["numbers"])) for p, _ in missing} & held_out


def test_a_demonstration_has_its_steps_and_the_boxed_expression():
    problem, text = COUNTDOWN.demonstrations(1, 0)[0]
    assert text == "\n".join([*problem.columns["steps"], f"\\boxed{{{problem.columns['solution']}}}"])


def test_rows_of_other_sources_are_split_by_their_numbers():
    rows = [{"nums": [n, n + 1, 2], "target": 2 * n + 3} for n in range(1, 60)]
    train, held_out = (COUNTDOWN.read(rows, split, prompt="{target} of {numbers}") for split in ("train", "eval"))
    assert len(train) + len(held_out) == 59
    assert held_out
    assert {p.id for p in train} | {p.id for p in held_out} == {f"countdown/row-{n}" for n in range(1, 60)}
    assert train[0].prompt == f"{train[0].columns['target']} of {', '.join(map(str, train[0].columns['numbers']))}"
    generated = {
        tuple(sorted(p.columns["numbers"])) for p in COUNTDOWN.problems("train", 3000, 0, sizes=[3], largest=60)
    }
    assert not generated & {tuple(sorted(p.columns["numbers"])) for p in held_out}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: COUNTDOWN.problems("train", 1, 0, size=[3]), ConfigError, "no option 'size'; did you mean 'sizes'"),
        (lambda: COUNTDOWN.problems("train", 1, 0, sizes=[1]), ConfigError, r"sizes from 2 to 8, not \[1\]"),
        (lambda: COUNTDOWN.problems("train", 1, 0, sizes=3), ConfigError, "needs sizes as a list"),
        (lambda: COUNTDOWN.problems("train", 1, 0, largest=0), ConfigError, "whole numbers above 0"),
        (lambda: COUNTDOWN.problems("train", 1, 0, signs="+^"), ConfigError, r"signs of \+ - \* /"),
        (lambda: COUNTDOWN.problems("train", 1, 0, signs="-/"), ConfigError, r"signs of \+ - \* /"),
        (lambda: COUNTDOWN.problems("train", 1, 0, prompt="{goal}"), ConfigError, "cannot be filled in: KeyError"),
        (lambda: COUNTDOWN.problems("test", 1, 0), ConfigError, "splits train and eval, not 'test'"),
        (lambda: COUNTDOWN.demonstrations(1, 0, miss=2), ConfigError, "miss between 0 and 1, not 2"),
        (lambda: COUNTDOWN.read([{"nums": "1,2", "target": 3}], "train"), DataError, "row 1 is not of countdown"),
        (lambda: COUNTDOWN.read([{"nums": [1, 2]}], "train"), DataError, "row 1 is not of countdown"),
    ],
)
def test_error_explains_invalid_options_and_rows(call, error, message):
    with pytest.raises(error, match=message):
        call()
