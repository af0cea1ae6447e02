"""The calculator computes what it is asked, pays right calls once, and ends with an answer."""

import pickle

import pytest

from gvpo.environments import Turn, load_environment
from gvpo.environments.calculator import Calculator, calls_of, result_of
from gvpo.errors import EpisodeError


def heard(expression: str, *texts: str, **options: float) -> list[Turn]:
    environment = Calculator(**options)
    environment.reset(seed=0, expression=expression)
    return [environment.step(text) for text in texts]


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("4-2", 2),
        ("2*7", 14),
        ("2-7", 95),  # modulo 100
        ("99*99", 1),
        ("98+7", 5),
        ("4-", None),
        ("4-2-1", None),  # two operations
        ("100+1", None),  # three digits
        ("", None),
        ("42", None),
        ("4 - 2", None),
    ],
)
def test_one_operation_has_a_result(call: str, result: int | None):
    assert result_of(call) == result


def test_an_expression_is_computed_from_left_to_right():
    assert calls_of("4-2*7") == ["4-2", "2*7"]
    assert calls_of("2-9*3+4") == ["2-9", "93*3", "79+4"]


@pytest.mark.parametrize("expression", ["", "4", "4-", None, "4/2", 12])
def test_an_episode_needs_an_expression(expression: object):
    with pytest.raises(EpisodeError, match="needs the column `expression`"):
        Calculator().reset(seed=0, expression=expression)  # type: ignore[arg-type]


def test_the_dialogue_of_the_documents():
    said = heard("4-2*7", "4-2;", "2*7;", "=14.")
    assert said == [Turn("2|", 0.25), Turn("14|", 0.25), Turn("", 1.0, done=True)]


def test_a_wrong_call_is_computed_and_not_paid_and_can_be_made_good():
    said = heard("4-2*7", "4-3;", "4-2;", "oh;", "2*7", "=14")
    assert [(turn.say, turn.reward) for turn in said] == [("1|", 0), ("2|", 0.25), ("!|", 0), ("14|", 0.25), ("", 1)]


def test_a_right_call_is_paid_once():
    assert [turn.reward for turn in heard("4-2*7", "4-2;", "4-2;", "4-2;")] == [0.25, 0, 0]


def test_a_wrong_answer_ends_the_episode_without_a_reward():
    assert heard("4-2*7", "=13.") == [Turn("", 0.0, done=True)]


def test_rewards_are_options():
    assert [turn.reward for turn in heard("1+1", "1+1;", "=2.", step_reward=0.0, answer_reward=3.0)] == [0, 3]


def test_it_is_found_by_name_and_can_be_sent_to_a_worker():
    spec = load_environment("calculator", {"step_reward": 0.5})
    environment = pickle.loads(pickle.dumps(spec.make))()
    environment.reset(seed=0, expression="1+1")
    assert environment.step("1+1;") == Turn("2|", 0.5)
