"""A reward's name changes with what it computes, and with nothing else."""

import functools
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gvpo.rewards import REWARDS, code_reward, judge, length_penalty, regex_format
from gvpo.rewards.identity import identity
from gvpo.rewards.registry import load


def made(source: str, name: str = "reward") -> Any:
    """A function of some source, as a module of the user's would define it."""
    scope: dict[str, Any] = {"__name__": "theirs"}
    exec(textwrap.dedent(source), scope)
    return scope[name]


PLAIN = """
GOLD = {"a", "b", "c"}
LIMIT = 3

def helper(text):
    return text in GOLD

class Scorer:
    weight = 1.0
    def __init__(self, power):
        self.power = power
        self.lock = __import__("threading").Lock()
    def __call__(self, completions, **columns):
        return [self.weight ** self.power for _ in completions]

scorer = Scorer(2)

def reward(completions, *, scale=1.0, **columns):
    '''What it says.'''
    return [scale * helper(text) * LIMIT * len([x for x in "ab" if x in {"a", "z"}]) for text in completions]
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("scale * helper", "-scale * helper"),  # the function itself
        ("scale=1.0", "scale=2.0"),  # a default
        ("LIMIT = 3", "LIMIT = 4"),  # a constant that it mentions
        ('GOLD = {"a", "b", "c"}', 'GOLD = {"a", "b"}'),
        ("return text in GOLD", "return text not in GOLD"),  # a function that it calls
        ('{"a", "z"}', '{"a", "y"}'),  # within a nested function
    ],
)
def test_what_decides_a_reward_changes_its_name(before: str, after: str):
    assert before in PLAIN
    assert identity(made(PLAIN)) != identity(made(PLAIN.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("LIMIT = 3", "LIMIT = 3\n\n# a comment\n"),
        ("LIMIT = 3", "LIMIT = 3\nUNUSED = 4"),
        ("weight = 1.0", "weight = 2.0"),  # of a class that it does not mention
    ],
)
def test_what_does_not_decide_it_leaves_the_name(before: str, after: str):
    assert identity(made(PLAIN)) == identity(made(PLAIN.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after"), [("weight = 1.0", "weight = 2.0"), ("Scorer(2)", "Scorer(3)"), ("** self", "* self")]
)
def test_a_callable_object_is_its_class_and_its_attributes(before: str, after: str):
    assert identity(made(PLAIN, "scorer")) == identity(made(PLAIN, "scorer"))
    assert identity(made(PLAIN, "scorer")) != identity(made(PLAIN.replace(before, after), "scorer"))


@pytest.mark.parametrize("name", ["reward", "scorer", "Scorer"])
def test_the_name_is_the_same_in_each_process_and_under_each_seed_of_hashes(name: str, tmp_path: Path):
    (tmp_path / "theirs.py").write_text(PLAIN)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import theirs; " + (
        f"from gvpo.rewards.identity import identity; print(identity(theirs.{name}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1
    assert found == {f"{identity(made(PLAIN, name))}\n"}, "the name of the module does not matter"


def test_values_that_functions_hold():
    pairs: list[tuple[Any, Any]] = [
        (re.compile("a"), re.compile("b")),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (functools.partial(max, key=len), functools.partial(min, key=len)),
        (np.arange(3), np.arange(3)[::-1]),
        (torch.zeros(3), torch.ones(3)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (Path("a"), Path("b")),
        ([1, 2], [2, 1]),
        (1, 1.0),
        (1, True),
        ("1", 1),
        ({"a": 1}, {"a": 2}),
        (10**5000, 10**5001),
    ]
    for one, other in pairs:
        assert identity(one) == identity(one)
        assert identity(one) != identity(other)
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity({3, 1, 2}) == identity({1, 2, 3})


def test_values_that_cannot_be_followed_do_no_harm():
    ring: list[Any] = []
    ring.append(ring)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep, threading.Lock(), (each for each in "ab"), sys.stdout, functools.lru_cache(len)):
        assert identity(value) == identity(value)
    while deep:  # so that Python need not follow it either
        deep = deep[0]


def test_built_in_rewards_are_their_names_and_options():
    names = {identity(function) for function in REWARDS.values()}
    assert len(names) == len(REWARDS)
    assert identity(code_reward(wall=1.0)) != identity(code_reward(wall=2.0))
    assert identity(length_penalty(limit=10, margin=2)) != identity(length_penalty(limit=11, margin=2))
    assert identity(regex_format(pattern="a")) != identity(regex_format(pattern="b"))


def test_a_judge_is_its_model_and_its_prompt_and_not_where_it_is_served(tmp_path: Path):
    def asked(**changes: Any) -> str:
        given = {"url": "http://a.example/v1", "model": "m", "cache": str(tmp_path / "cache"), **changes}
        return identity(judge(**given))

    assert asked() == asked(url="http://b.example/v1")
    for changes in ({"model": "n"}, {"template": "{prompt} {completion}"}, {"highest": 5}, {"system": "Be strict."}):
        assert asked() != asked(**changes)


def test_a_file_of_rewards_is_known_by_what_it_imports_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def written(name: str, number: int) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / f"helpers_{name}.py").write_text(f"def points(text):\n    return {number}\n")
        source = f"import helpers_{name} as helpers\n\ndef right(completions, **_):\n    return [helpers.points('')]\n"
        (place / "rewards.py").write_text(source)
        monkeypatch.syspath_prepend(str(place))
        return identity(load(f"{place / 'rewards.py'}:right"))

    assert written("one", 1) != written("two", 2)
