"""Lookup of reward functions by name, in the registry, modules and files."""

import importlib
import sys

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import REWARDS, RewardBatch, RewardPool, load

FILE = """
import sibling

SCALE = 2.0
calls = []

def judge(completions, **_):
    calls.append(1)
    return [SCALE * sibling.measure(text) for text in completions]

number = 3
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Enter a working directory with a reward file and a module that it imports; restore the import path afterwards."""
    (tmp_path / "my_rewards.py").write_text(FILE)
    (tmp_path / "sibling.py").write_text("def measure(text):\n    return float(len(text))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_every_built_in_is_found_by_its_name():
    assert {name: load(name) for name in REWARDS} == REWARDS
    assert all(function.__name__ == name for name, function in REWARDS.items())
    assert list(REWARDS) == sorted(REWARDS)


@pytest.mark.parametrize("name", ["my_rewards.py:judge", "my_rewards:judge"])
def test_functions_of_files_and_modules_reach_the_workers(directory, name):
    with RewardPool({"judge": load(name)}) as pool:
        assert [verdict.reward for verdict in pool.score([RewardBatch("p", ["a", "bcd"])])[0]] == [2.0, 6.0]


def test_a_file_is_run_once(directory):
    assert load("my_rewards.py:judge") is load(str(directory / "my_rewards.py") + ":judge")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("boxed_anser", "no reward 'boxed_anser'; did you mean 'boxed_answer'"),
        ("zzz", "choose one of addition_slip, .* or give module:function"),
        ("my_rewards.py:juge", "has no function 'juge'; did you mean 'judge'"),
        ("my_rewards.py:number", "has no function 'number'"),
        ("missing.py:judge", "there is no file .*missing.py"),
        ("no_such_module:judge", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("broken.py:judge", "broken.py cannot be imported: SyntaxError"),
    ],
)
def test_unknown_names(directory, name, message):
    (directory / "broken.py").write_text("def judge(:")
    with pytest.raises(RewardError, match=message):
        load(name)
