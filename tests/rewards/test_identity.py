"""The identity of a reward changes with what it computes, and with nothing else."""

import argparse
import array
import collections
import copy
import datetime
import decimal
import fractions
import functools
import operator
import re
import string
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gvpo.rewards
from gvpo.rewards import REWARDS, code_reward, judge, length_penalty, regex_format
from gvpo.rewards.identity import identity
from gvpo.rewards.registry import load


def made(source: str, name: str = "reward") -> Any:
    """Return a function of some source, as a user's module would define it."""
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
def test_a_change_that_affects_a_reward_changes_its_identity(before: str, after: str):
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
def test_a_change_that_affects_no_reward_keeps_the_identity(before: str, after: str):
    assert identity(made(PLAIN)) == identity(made(PLAIN.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after"), [("weight = 1.0", "weight = 2.0"), ("Scorer(2)", "Scorer(3)"), ("** self", "* self")]
)
def test_a_callable_object_is_identified_by_class_and_attributes(before: str, after: str):
    assert identity(made(PLAIN, "scorer")) == identity(made(PLAIN, "scorer"))
    assert identity(made(PLAIN, "scorer")) != identity(made(PLAIN.replace(before, after), "scorer"))


@pytest.mark.parametrize("name", ["reward", "scorer", "Scorer"])
def test_the_identity_is_the_same_in_each_process_and_for_each_hash_seed(name: str, tmp_path: Path):
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


def test_values_are_identified_by_their_content():
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


def test_values_that_cannot_be_traversed_are_harmless():
    ring: list[Any] = []
    ring.append(ring)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (ring, deep, threading.Lock(), (each for each in "ab"), sys.stdout, functools.lru_cache(len)):
        assert identity(value) == identity(value)
    while deep:  # so that Python does not recurse either
        deep = deep[0]


def test_built_in_rewards_are_identified_by_name_and_options():
    names = {identity(function) for function in REWARDS.values()}
    assert len(names) == len(REWARDS)
    assert identity(code_reward(wall=1.0)) != identity(code_reward(wall=2.0))
    assert identity(length_penalty(limit=10, margin=2)) != identity(length_penalty(limit=11, margin=2))
    assert identity(regex_format(pattern="a")) != identity(regex_format(pattern="b"))


def test_a_judge_is_identified_by_model_and_prompt_not_by_its_server(tmp_path: Path):
    def asked(**changes: Any) -> str:
        given = {"url": "http://a.example/v1", "model": "m", "cache": str(tmp_path / "cache"), **changes}
        return identity(judge(**given))

    assert asked() == asked(url="http://b.example/v1")
    for changes in ({"model": "n"}, {"template": "{prompt} {completion}"}, {"highest": 5}, {"system": "Be strict."}):
        assert asked() != asked(**changes)


def test_the_identity_of_a_file_covers_its_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def written(name: str, number: int) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / f"helpers_{name}.py").write_text(f"def points(text):\n    return {number}\n")
        source = f"import helpers_{name} as helpers\n\ndef right(completions, **_):\n    return [helpers.points('')]\n"
        (place / "rewards.py").write_text(source)
        monkeypatch.syspath_prepend(str(place))
        return identity(load(f"{place / 'rewards.py'}:right"))

    assert written("one", 1) != written("two", 2)


HEAD = "import datetime, os, pathlib, random, tempfile, time, uuid\n"
FLEETING = [
    "time.time()",
    "time.perf_counter()",
    "datetime.datetime.now()",
    "datetime.datetime.now().isoformat()",
    "os.getpid()",
    "tempfile.mkdtemp()",
    "uuid.uuid4()",
    "str(uuid.uuid4())",
    "random.random()",
    "f'run-{time.time()}'",
]


def in_a_file(place: Path, source: str, name: str = "reward") -> str:
    """Return the identity of a function of a file, which is reloaded."""
    place.mkdir(exist_ok=True)
    (place / "rewards.py").write_text(textwrap.dedent(source))
    return identity(load(f"{place / 'rewards.py'}:{name}"))


@pytest.mark.parametrize("expression", FLEETING)
def test_a_value_that_differs_between_processes_counts_by_its_expression(expression: str, tmp_path: Path):
    def written(text: str, name: str) -> str:
        source = f"{HEAD}BEGUN = {text}\ndef reward(completions, **_):\n    return [BEGUN for _ in completions]\n"
        return in_a_file(tmp_path / name, source)

    assert written(expression, "one") == written(expression, "two")
    assert written(expression, "one") != written(f"[{expression}, 1]", "three")


def test_paths_of_files_do_not_count_but_their_content_does(tmp_path: Path):
    source = """
    import json, pathlib
    FILE = pathlib.Path(__file__).parent / "gold.json"
    GOLD = json.loads(FILE.read_text())
    def reward(completions, **_):
        return [GOLD[text] for text in completions if FILE]
    """
    for name, gold in (("one", '{"a": 1}'), ("two", '{"a": 1}'), ("three", '{"a": 2}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gold.json").write_text(gold)
    one, two, three = (in_a_file(tmp_path / name, source) for name in ("one", "two", "three"))
    assert one == two
    assert one != three


@pytest.mark.parametrize(
    "after",
    [
        '"""Of the module."""\ndef points(text):\n    return 1\n',  # a docstring, and a comment below
        "# new\n\ndef points(text: str) -> float:\n    '''Of the function.'''\n    return 1  # one\n",
        "def points(text):\n    return (1)\n",  # layout
    ],
)
@pytest.mark.parametrize(
    "source",
    [
        "import {0}\ndef reward(completions, **_):\n    return [{0}.points(text) for text in completions]\n",
        "from {0} import points\ndef reward(completions, **_):\n    return [points(text) for text in completions]\n",
        "def reward(completions, **_):\n    from {0} import points\n    return [points(one) for one in completions]\n",
        "def reward(completions, **_):\n    import {0}\n    return [{0}.points(text) for text in completions]\n",
    ],
)
def test_modules_are_identified_by_their_code(source: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = "def points(text):\n    return 1\n"

    def written(name: str, text: str) -> str:
        place = tmp_path / name
        place.mkdir()
        (place / "own_points.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_points", raising=False)
        monkeypatch.setattr(sys, "path", [str(place), *sys.path])
        return in_a_file(place, source.format("own_points"))

    assert written("before", plain) == written("after", after)
    assert written("other", plain.replace("1", "2")) != written("again", plain)


STATEFUL = """
CALLS, CACHE, model = 0, {}, 1.0

def counting(completions, **_):
    global CALLS
    CALLS += 1
    for text in completions:
        CACHE[text] = CALLS
    return [text.model for text in completions]

class Scorer:
    def __init__(self):
        self.weight, self.seen, self.calls = 1.0, [], 0
    def __call__(self, completions, **_):
        self.calls += 1
        self.seen.append(completions)
        return [self.weight]

def made():
    seen = set()
    def closed(completions, **_):
        seen.add(len(completions))
        return [1.0]
    return closed

scorer, closed = Scorer(), made()
"""


def test_state_that_a_reward_keeps_does_not_count(tmp_path: Path):
    before = {name: in_a_file(tmp_path, STATEFUL, name) for name in ("counting", "scorer", "closed")}
    functions = {name: load(f"{tmp_path / 'rewards.py'}:{name}") for name in before}
    functions["counting"]([])
    functions["counting"].__globals__.update(CALLS=7, CACHE={"a": 1}, model="an attribute has this name, no global")
    functions["scorer"](["a"])
    functions["closed"](["a"])
    assert {name: identity(function) for name, function in functions.items()} == before
    functions["scorer"].weight = 2.0
    assert identity(functions["scorer"]) != before["scorer"]


def test_objects_of_libraries_that_are_values_count_by_their_content():
    big = np.zeros(100_000)
    changed = big.copy()
    changed[77_777] = 1
    pairs: list[tuple[Any, Any]] = [
        (decimal.Decimal(1), decimal.Decimal(2)),
        (fractions.Fraction(1, 2), fractions.Fraction(1, 3)),
        (range(3), range(4)),
        (slice(3), slice(4)),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        (argparse.Namespace(a=1), argparse.Namespace(a=2)),
        (collections.deque([1]), collections.deque([2])),
        (collections.ChainMap({"a": 1}), collections.ChainMap({"a": 2})),
        (bytearray(b"a"), bytearray(b"b")),
        (array.array("d", [1]), array.array("d", [2])),
        (operator.itemgetter(0), operator.itemgetter(1)),
        (datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)),
        (datetime.timedelta(1), datetime.timedelta(2)),
        (string.Template("$a"), string.Template("$b")),
        (big, changed),
    ]
    for one, other in pairs:
        assert identity(one) == identity(copy.deepcopy(one))
        assert identity(one) != identity(other)


def test_tables_count_by_their_cells_and_row_names():
    pandas = pytest.importorskip("pandas")
    frame, column = pandas.DataFrame({"a": [1, 2]}), pandas.Series(["a", "b"])
    for one, other in ((frame, frame + 1), (frame, frame[::-1]), (frame, frame.rename(columns={"a": "b"}))):
        assert identity(one) == identity(one.copy())
        assert identity(one) != identity(other)
    assert identity(column) != identity(column.str.upper())


def test_every_value_of_a_large_collection_counts():
    for many in ([str(i) for i in range(5000)], {str(i): [i] for i in range(5000)}, {str(i) for i in range(5000)}):
        same = type(many)(reversed(list(many.items()))) if isinstance(many, dict) else copy.copy(many)
        assert identity(many) == identity(same)
    table: dict[str, list[Any]] = {str(i): [i] for i in range(5000)}
    assert identity(table) != identity({**table, "17": [18]})
    assert identity(table) != identity({**table, "17": [made(PLAIN)]})
    assert identity({**table, "17": [made(PLAIN)]}) == identity({**table, "17": [made(PLAIN)]})


def test_own_rewards_keep_their_identity_when_they_move_to_another_module(monkeypatch):
    before = identity(gvpo.rewards.boxed_answer)
    monkeypatch.setattr(gvpo.rewards.boxed_answer, "__module__", "gvpo.rewards.elsewhere")
    assert identity(gvpo.rewards.boxed_answer) == before
    assert identity(gvpo.rewards.exact_match) != before
