"""Environment classes of TRL, unchanged."""

import asyncio
import json

import pytest
from transformers.utils import get_json_schema

from gvpo.environments import EnvironmentPool, Start, load_environment
from gvpo.errors import EpisodeError


class WordGame:
    """The form of the environments in TRL's documentation."""

    def __init__(self) -> None:
        self.reward = 0.0

    def reset(self, **kwargs) -> str | None:
        self.reward, self.done = 0.0, False
        self.word = kwargs["word"]
        self.seen = sorted(kwargs)
        return "Guess a word."

    def guess(self, word: str) -> str:
        """Guess the word.

        Args:
            word: The word.

        Returns:
            What the game says.
        """
        if self.done:
            raise ValueError("Game over.")
        self.reward = 1.0 if word == self.word else self.reward + 0.25
        self.done = word == self.word
        return "yes" if self.done else "no"

    def _hidden(self) -> None:
        raise AssertionError


class Judged:
    """Has `get_reward`, and names the columns that it wants."""

    def reset(self, number: int, seed: int) -> None:
        self.number, self.total, self.seed = number, 0, seed

    async def add(self, value: int) -> int:
        """Add to the total.

        Args:
            value: What is added.
        """
        self.total += value
        return self.total

    async def get_reward(self) -> float:
        return float(self.total == self.number)


class Unpaid:
    """Has no reward of its own."""

    def reset(self) -> None: ...

    @staticmethod
    def look() -> str:
        """Look around."""
        return "dark"


def call(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def played(environment, columns, texts):
    """Return the answers of an episode."""
    spec = load_environment(environment)
    with EnvironmentPool(spec) as pool:
        opening = pool.reset([Start("a", 5, columns)])[0]
        return opening, [pool.step({"a": text})["a"] for text in texts]


def test_a_class_of_the_documentation_is_played():
    texts = [call("guess", word="no"), call("guess", word="apple"), call("guess", word="apple"), "I am done."]
    opening, answers = played(WordGame, {"word": "apple", "other": 1}, texts)
    assert opening.say == "Guess a word."
    assert [answer.say[0]["content"] for answer in answers[:3]] == ["no", "yes", '{"error": "Game over"}']
    assert [answer.outcome for answer in answers] == ["ok", "ok", "error", "ok"]
    assert [answer.reward for answer in answers] == [0.25, 0.75, 0.0, 0.0]
    assert [answer.done for answer in answers] == [False, False, False, True]


def test_the_sum_of_the_turns_is_what_get_reward_returns():
    _, answers = played(Judged, {"number": 5, "other": "x"}, [call("add", value=5), call("add", value=1), "done"])
    assert [answer.say[0]["content"] for answer in answers[:2]] == ["5", "6"]
    assert [answer.reward for answer in answers] == [1.0, -1.0, 0.0]


def test_reset_gets_the_columns_and_the_seed_only_if_it_names_it():
    environment = load_environment(WordGame).make()
    asyncio.run(environment.reset(seed=5, word="apple"))
    assert environment._object.seen == ["word"]
    environment = load_environment(Judged).make()
    asyncio.run(environment.reset(seed=5, number=1, other=2))
    assert environment._object.seed == 5


def test_a_class_without_a_reward_pays_nothing():
    assert [load_environment(each).pays for each in (WordGame, Judged, Unpaid)] == [True, True, False]
    _, answers = played(Unpaid, {"any": 1}, [call("look")])
    assert (answers[0].say[0]["content"], answers[0].reward) == ("dark", None)


def test_attributes_say_what_comes_of_failures():
    class Server(Unpaid):
        worst, replayable, blames = -1.0, False, "environment"

    spec = load_environment(Server)
    assert (spec.worst, spec.replayable, spec.blames, spec.pays) == (-1.0, False, "environment", False)


@pytest.mark.parametrize(("environment", "name"), [(WordGame, "guess"), (Judged, "add"), (Unpaid, "look")])
def test_the_methods_are_described_to_chat_templates(environment, name):
    (tool,) = load_environment(environment).tools
    schema = get_json_schema(tool)["function"]
    assert schema["name"] == name
    assert "self" not in schema["parameters"]["properties"]


def test_a_function_that_returns_instances_works_too():
    assert load_environment(lambda: WordGame()).tools[0].__name__ == "guess"


def test_further_tools_can_be_called():
    def shout(text: str) -> str:
        """Shout.

        Args:
            text: The text.
        """
        return text.upper()

    spec = load_environment(WordGame, tools=[shout])
    assert [tool.__name__ for tool in spec.tools] == ["guess", "shout"]
    turn = asyncio.run(spec.make().step(call("shout", text="a")))
    assert turn.say[0]["content"] == "A"


class Empty:
    def reset(self, **_): ...


class Silent:
    def reset(self, **_): ...
    def move(self, to: str): ...


@pytest.mark.parametrize(
    ("environment", "message"), [(Empty, "neither a method `step` nor a public method"), (Silent, "no docstring")]
)
def test_a_class_that_cannot_be_played(environment, message):
    with pytest.raises(EpisodeError, match=message):
        load_environment(environment)


def test_the_methods_are_those_that_trl_finds():
    """TRL's own constructor decides which methods are tools."""
    import inspect

    import trl.trainer.grpo_trainer as grpo

    source = inspect.getsource(grpo.GRPOTrainer)
    assert 'member_name not in ("reset", "get_reward") and not member_name.startswith("_")' in source
