"""Tests of the calculator's task: answers are right, splits differ, and dialogues are those of the environment."""

import itertools

import pytest

from gvpo.data import TASKS
from gvpo.environments.calculator import Calculator
from gvpo.errors import ConfigError
from gvpo.rewards import REWARDS

CALCULATOR = TASKS["calculator"]


def judged(text, problem):
    (reward,) = REWARDS[CALCULATOR.reward](completions=[text], answer=[problem.columns["answer"]])
    return reward


@pytest.mark.parametrize("operations", [1, 2, 5])
def test_demonstrations_without_mistakes_get_every_reward(operations):
    for problem, dialogue in CALCULATOR.demonstrations(50, 1, operations=operations, mistakes=0):
        environment = Calculator()
        environment.reset(seed=0, **problem.columns)
        turns = [environment.step(text) for text in dialogue[::2]]
        assert [turn.say for turn in turns] == [*dialogue[1::2], ""]
        assert [turn.reward for turn in turns] == [0.25] * operations + [1.0]
        assert judged("".join(dialogue), problem) == 1.0


def test_the_tool_of_a_demonstration_says_what_the_environment_says_and_most_are_wrong():
    rewards, outcomes = [], set()
    for problem, dialogue in CALCULATOR.demonstrations(500, 0):
        environment = Calculator()
        environment.reset(seed=0, **problem.columns)
        turns = [environment.step(text) for text in dialogue[::2]]
        assert [turn.say for turn in turns] == [*dialogue[1::2], ""]
        assert turns[-1].done
        assert len(turns) <= 4
        assert turns[-1].reward == judged("".join(dialogue), problem)
        rewards.append(turns[-1].reward)
        outcomes |= {turn.say for turn in turns}
    assert 0.1 < sum(rewards) / 500 < 0.25
    assert "!|" in outcomes


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("4-2;2|2*7;14|=14.", 1.0),
        ("=14.", 1.0),  # a guess
        ("4-2;2|2*7;14|", 0.0),  # no last line
        ("4-2;2|2*7;14|14.", 0.0),
        ("4-2;2|2*7;14|=4.", 0.0),
        ("=14.;2|=13.", 0.0),  # only the last line counts
        ("", 0.0),
    ],
)
def test_the_last_line_decides(text, reward):
    assert REWARDS["calculator"](completions=[text], answer=["14"]) == [reward]


def test_no_expression_is_in_both_splits():
    def expressions(split, seed):
        return {problem.columns["expression"] for problem in CALCULATOR.problems(split, 600, seed)}

    for train_seed, eval_seed in itertools.product(range(2), repeat=2):
        assert not expressions("train", train_seed) & expressions("eval", eval_seed)
    assert expressions("eval", 0) != expressions("eval", 1)


def test_problems_repeat_and_are_different():
    assert CALCULATOR.problems("train", 300, 0) == CALCULATOR.problems("train", 300, 0)
    assert CALCULATOR.demonstrations(30, 0) == CALCULATOR.demonstrations(30, 0)
    assert len({problem.id for problem in CALCULATOR.problems("train", 300, 0)}) == 300
    assert len(CALCULATOR.problems("train", 1000, 0, operations=1)) < 243  # all that exist


@pytest.mark.parametrize("operations", [0, 21, 2.5, "2", True])
def test_bad_options_are_refused(operations):
    with pytest.raises(ConfigError, match="operations as a whole number"):
        CALCULATOR.problems("train", 1, 0, operations=operations)


@pytest.mark.parametrize("mistakes", [-0.1, 1.1, "half", True])
def test_bad_probabilities_are_refused(mistakes):
    with pytest.raises(ConfigError, match="mistakes between 0 and 1"):
        CALCULATOR.demonstrations(1, 0, mistakes=mistakes)
