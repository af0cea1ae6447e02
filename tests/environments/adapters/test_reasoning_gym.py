"""Questions of reasoning-gym with several tries."""

import pytest

from gvpo.data import TASKS
from gvpo.environments import EnvironmentPool, Start, load_environment
from gvpo.errors import EpisodeError

pytest.importorskip("reasoning_gym")


@pytest.fixture(scope="module")
def problem():
    (problem,) = TASKS["reasoning_gym"].problems("train", 1, 0, name="chain_sum")
    return problem


def answered(problem, texts, **options):
    with EnvironmentPool(load_environment("reasoning_gym", options)) as pool:
        opening = pool.reset([Start("a", 1, problem.columns)])[0]
        assert (opening.say, opening.outcome) == ("", "ok")
        return [pool.step({"a": text})["a"] for text in texts]


def test_a_wrong_answer_has_a_second_try(problem):
    right = f"<answer>{problem.columns['answer']}</answer>"
    first, second = answered(problem, ["<answer>no</answer>", right])
    assert (first.say, first.reward, first.done) == ("That is not right. Try again.", None, False)
    assert (second.say, second.reward, second.done, second.metrics) == ("", 1.0, True, {"tries": 2})
    (only,) = answered(problem, [right], discount=0.5)
    assert (only.reward, only.done) == (1.0, True)


def test_later_tries_pay_less_and_the_last_one_ends(problem):
    right = problem.columns["answer"]
    *_, last = answered(problem, ["x", "y", right], tries=3, discount=0.5, again="No.")
    assert (last.reward, last.done) == (0.25, True)
    *_, last = answered(problem, ["x", "y"])
    assert (last.reward, last.done) == (0.0, True)
    (one,) = answered(problem, ["x"], tries=1)
    assert one.done


@pytest.mark.parametrize("options", [{"tries": 0}, {"again": ""}, {"discount": 2.0}])
def test_options_out_of_range(options):
    with pytest.raises(EpisodeError, match="tries of at least 1"):
        load_environment("reasoning_gym", options)


def test_other_rows_are_refused():
    with EnvironmentPool(load_environment("reasoning_gym")) as pool:
        (answer,) = pool.reset([Start("a", 1, {"answer": "5"})])
    assert answer.outcome in ("lost", "error")
    assert "is not of reasoning-gym" in answer.detail
