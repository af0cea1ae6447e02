"""Lookup of environments and tools by name, class, function and instance."""

import importlib
import math
import sys

import cloudpickle
import pytest

from gvpo.environments import ENVIRONMENTS, EnvironmentPool, Start, load_environment
from gvpo.environments.registry import require_environment
from gvpo.errors import EpisodeError

FILE = '''
import helper

class Guess:
    worst = -1.0
    blames = "environment"

    def __init__(self, number=3):
        self.number = number

    def reset(self, *, seed, **columns):
        return helper.OPENING

    def step(self, text):
        return "no", float(int(text) == self.number), int(text) == self.number

def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b

class NoReset:
    def step(self, text):
        return ""

class Wrong:
    blames = "nobody"
    def reset(self, **_): ...
    def step(self, text): ...

def silent(a: int):
    return a

value = 3
'''


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Enter a working directory with an environment file and a module that it imports."""
    (tmp_path / "my_games.py").write_text(FILE)
    (tmp_path / "helper.py").write_text("OPENING = 'Guess.'\n")
    (tmp_path / "broken.py").write_text("class Guess(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


class Counter:
    """Say how often it was asked."""

    def __init__(self, first: int = 0) -> None:
        self.count = first

    def reset(self, *, seed: int, **_: object) -> None:
        self.count += 1

    def step(self, text: str) -> str:
        self.count += 1
        return str(self.count)


@pytest.mark.parametrize("name", ["my_games.py:Guess", "my_games:Guess"])
def test_classes_of_files_and_modules_are_played(directory, name):
    spec = load_environment(name, {"number": 5})
    assert (spec.name, spec.worst, spec.blames, spec.pays) == (name, -1.0, "environment", True)
    with EnvironmentPool(spec) as pool:
        assert pool.reset([Start("a", 1, {"x": 2})])[0].say == "Guess."
        answer = pool.step({"a": "5"})["a"]
    assert (answer.reward, answer.done) == (1.0, True)


def test_a_class_of_a_file_is_pickled_by_value(directory):
    data = cloudpickle.dumps(load_environment("my_games.py:Guess").make)
    assert b"OPENING" in data  # its code, and not only its name


@pytest.mark.parametrize("environment", [Counter, lambda first=0: Counter(first)], ids=["class", "function"])
def test_classes_and_functions_make_one_environment_per_episode(environment):
    with EnvironmentPool(load_environment(environment, {"first": 7})) as pool:
        pool.reset([Start("a", 1), Start("b", 1)])
        assert [pool.step({name: ""})[name].say for name in ("a", "a", "b")] == ["9", "10", "9"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("reasoning_gim", "there is no environment 'reasoning_gim'"),
        ("my_games.py", "'my_games.py' is a file; name its class too, my_games.py:CLASS"),
        ("my_games.py:Gues", "environment 'my_games.py:Gues': my_games.py has no Class 'Gues'; did you mean 'Guess'"),
        ("my_games.py:value", "has no Class 'value'"),
        ("missing.py:Guess", "there is no file .*missing.py"),
        ("no_such_module:Guess", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("broken.py:Guess", "broken.py cannot be imported: SyntaxError"),
        ("my_games.py:NoReset", "no method `reset`; write reset"),
        (
            "my_games.py:Wrong",
            "attribute blames of the environment 'my_games.py:Wrong' is 'nobody'; set it to 'text' or 'environment'",
        ),
        (Counter(), "an instance of Counter, and each episode needs its own; pass the class"),
        (3, "environment is an int; pass a class"),
    ],
)
def test_what_cannot_be_an_environment(directory, environment, message):
    with pytest.raises(EpisodeError, match=message) as error:
        load_environment(environment)
    assert "\n" not in str(error.value)


def test_options_that_do_not_fit_are_named_with_those_that_do(directory):
    with pytest.raises(EpisodeError, match=r"options of the environment 'my_games.py:Guess'.*'nmber'.* accepts number"):
        load_environment("my_games.py:Guess", {"nmber": 5})
    with pytest.raises(EpisodeError, match=r"options belong to environment.name"):
        load_environment(None, {"number": 5}, ["my_games.py:add"])


def test_tools_are_found_by_name(directory):
    spec = load_environment(None, tools=["my_games.py:add"])
    assert ([tool.__name__ for tool in spec.tools], spec.pays) == (["add"], False)
    with EnvironmentPool(spec) as pool:
        pool.reset([Start("a", 1)])
        said = pool.step({"a": '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'})["a"].say
    assert said == [{"role": "tool", "name": "add", "content": "5"}]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["my_games.py:ad"], "tool 'my_games.py:ad': my_games.py has no function 'ad'"),
        (["add"], "tool 'add' is not a name; write module:function or file.py:function"),
        (["my_games.py:silent"], "the tool 'silent' has no docstring"),
        (["my_games.py:add", "my_games:add"], "two tools are called 'add'"),
    ],
)
def test_what_cannot_be_a_tool(directory, tools, message):
    with pytest.raises(EpisodeError, match=message):
        load_environment(None, tools=tools)


def test_tools_with_an_environment_that_reads_text_are_refused(directory):
    with pytest.raises(EpisodeError, match=r"environment.tools would never be called"):
        load_environment("my_games.py:Guess", tools=["my_games.py:add"])


def test_names_are_checked_without_importing(directory):
    require_environment("broken.py:Guess")
    for name in ("missing.py:Guess", "nothing"):
        with pytest.raises(EpisodeError):
            require_environment(name)
    assert list(ENVIRONMENTS) == sorted(ENVIRONMENTS)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("worst", math.nan, "a finite number"),
        ("worst", "low", "a finite number"),
        ("replayable", "no", "True or False"),
    ],
)
def test_attributes_that_cannot_be_used(key: str, value: object, words: str):
    kind = type("Odd", (), {"reset": lambda self, seed: None, "step": lambda self, text: text, key: value})
    with pytest.raises(EpisodeError, match=rf"the attribute {key} of the environment 'Odd' is .*; set it to {words}"):
        load_environment(kind)
