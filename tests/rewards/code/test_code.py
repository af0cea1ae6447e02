"""The code of a completion, what passes and what does not, and the error if it would run unprotected."""

# ruff: noqa: E501 - one case per line

import os
import shutil
import subprocess
import sys

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import REWARDS, RewardBatch, RewardPool, code_reward, code_tests
from gvpo.rewards.code.checkers import CHECKERS
from gvpo.rewards.code.code import extract_code
from gvpo.rewards.code.forms import called_names
from gvpo.rewards.sandbox import isolation
from gvpo.rewards.sandbox.isolation import ALLOW_VARIABLE, isolation_problem

isolated = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(2, 3) == 5"


def passes(code, tests=TESTS, **columns):
    (value,) = code_tests([code], tests=[tests], **{name: [value] for name, value in columns.items()})
    return value == 1.0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("First:\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nIt prints:\n```text\n1\n```", "x = 1\n"),  # a block in another language does not count
        (
            "```python\nx = 1\n```\nRun it:\n```\n$ python x.py\n```",
            "x = 1\n",
        ),  # Python before a block without language
        ("```python\r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = 1", "x = 1"),  # truncated, or never closed: the existing part counts
        ("```python\nx = '''```'''\n```", "x = '''```'''\n"),  # a fence is at the start of a line
        ("", ""),
    ],
)
def test_the_last_python_block_is_the_code(text, code):
    assert extract_code(text) == code


def test_names_that_tests_expect_of_the_code():
    assert called_names("import math\nassert math.isclose(area(2), 3) and len(f(2)) == 2") == ["area", "f"]
    assert called_names("for i in range(3):\n    assert g(i) == h(i)", "def h(n):\n    return n") == ["g"]
    assert called_names("def check(candidate):\n    assert candidate(1)\ncheck(f)") == ["f"]
    with pytest.raises(RewardError, match="are not Python"):
        called_names("assert (")


@pytest.mark.parametrize(
    ("output", "right", "accepted"),
    [
        ("1 2\n3\n", "1 2\n3", {"exact", "numbers", "tokens"}),
        ("1 2 3", "1 2\n3", {"numbers", "tokens"}),
        ("1  2 \n", "1 2", {"numbers", "tokens"}),
        ("1 \n2", "1\n2\n", {"exact", "numbers", "tokens"}),
        ("0.3333333", "0.33333333", {"numbers"}),
        ("0.34", "0.33", set()),
        ("YES", "Yes", set()),
        ("nan", "0.5", set()),
        ("inf", "1e300", set()),
        ("1", "1 2", set()),
        ("", "0", set()),
    ],
)
def test_built_in_comparisons(output, right, accepted):
    assert {name for name, checker in CHECKERS.items() if checker(output, right)} == accepted


@isolated
@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        (ADD, TESTS, True),
        (f"Here:\n```python\n{ADD}\n```", TESTS, True),
        (ADD, [TESTS, "assert add('a', 'b') == 'ab'", "assert add((1,), (2,)) == (1, 2)"], True),
        (ADD, [TESTS, "assert add(1, 1) == 3"], False),
        ("def add(a, b):\n    return [a + b]", "assert add(2, 3) == (5,)", False),
        ("def sub(a, b):\n    return a - b", TESTS, False),
        ("def add(a, b): return a +", TESTS, False),
        ("import numpy\n" + ADD, TESTS, False),  # the standard library only
        ("\0", TESTS, False),
        ("", TESTS, False),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]", True),
        ("def f(n):\n    yield from range(n)", "assert f(3) == [0, 1, 2]", False),
        ("def f(n):\n    return 1 / n", "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass", True),
        ("def f(n):\n    return 1", "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass", False),
        ("class P:\n    def __init__(self, x): self.x = x\ndef f(p): return p.x", "p = P(1)\np.x = 2\nassert f(p) == 2", True),
        ("def f(a):\n    a.append(1)", "a = []\nassert f(a) is None\nassert a == []", True),  # arguments are copies
        ("def f(): return 2**100, -2**70, {1: {2}}, b'x', 1j", "assert f() == (2**100, -2**70, {1: {2}}, b'x', 1j)", True),
        ("def f(kinds): return [int] + kinds", "assert f([str]) == [int, str]", True),
        ("print('noise')\nimport sys\nsys.stdin.read()\n" + ADD, TESTS, True),
        ("if __name__ == '__main__':\n    raise SystemExit\n" + ADD, TESTS, True),
    ],
)  # fmt: skip
def test_functions(code, tests, expected):
    assert passes(code, tests) is expected


@isolated
def test_columns_of_functions():
    assert passes("    return a + b", prefix="def add(a, b):\n")
    assert passes("class Solution:\n    def add(self, a, b): return a + b", entry_point="Solution.add")
    assert passes(ADD, "assert add(one, 4) == 5", setup="one = 1")
    assert not passes("def add(a, b): return 0\ndef same(a, b): return True", "assert same(add(2, 3), 5)",
                      entry_point="add", setup="def same(a, b): return a == b")  # fmt: skip
    assert code_tests([ADD, ADD], tests=[None, []]) == [None, None]


@isolated
def test_programs():
    runs = [{"input": "2 3\n", "output": "5\n"}, {"input": "10 -4", "output": "6"}]
    assert passes("print(sum(map(int, input().split())))", runs)
    assert passes(
        "import threading\nthreading.Thread(target=lambda: print(sum(map(int, input().split())))).start()", runs
    )
    assert not passes("print(5)", runs)
    assert passes("print(1/3)", [{"input": "", "output": "0.333333333"}], checker="numbers")
    assert not passes("print(1/3)", [{"input": "", "output": "0.333333333"}])
    assert passes("print('é')", [{"input": "", "output": "é"}])


@isolated
def test_a_problem_with_its_own_checker():
    checker = (
        "import sys\n"
        "given, right, output = (open(path).read() for path in sys.argv[1:])\n"
        "print(int(sum(map(int, output.split())) == int(right)))\n"
    )
    runs = [{"input": "5", "output": "5"}]
    assert passes("print(2, 3)", runs, checker=checker)
    assert not passes("print(2, 4)", runs, checker=checker)
    assert not passes("print('x')", runs, checker=checker)  # the checker raises


@isolated
def test_in_the_pool_a_group_has_its_values():
    reward = code_reward(wall=2, cpu=2)
    with RewardPool({"code": reward, "named": REWARDS["code_tests"]}, workers=1, timeout=60) as pool:
        (group,) = pool.score([RewardBatch("Add.", [ADD, "x", "import os\nos._exit(0)"], {"tests": TESTS})])
    assert [verdict.reward for verdict in group] == [2.0, 0.0, 0.0]


def test_limits_are_checked():
    with pytest.raises(RewardError, match="the sandbox's limit wall is 0; give a number above 0"):
        code_reward(wall=0)
    with pytest.raises(RewardError, match=r"the sandbox's limit memory is 1000000000\.0; give a whole number above 0"):
        code_reward(memory=1e9)
    with pytest.raises(RewardError, match="the sandbox's limit cpu is '2'; give a whole number"):
        code_reward(cpu="2")


@isolated
def test_a_limit_that_the_system_rejects_gives_no_verdict():
    with pytest.raises(RewardError, match="the sandbox for code cannot be built"):
        code_reward(memory=1 << 70)(completions=[ADD], tests=[TESTS])


def test_code_runs_without_isolation_only_if_the_user_allows_it(monkeypatch):
    monkeypatch.setattr(isolation, "isolation_problem", lambda: "unshare: Operation not permitted")
    monkeypatch.delenv(ALLOW_VARIABLE, raising=False)
    with pytest.raises(RewardError, match=r"unshare: Operation not permitted.*GVPO_UNSAFE_CODE=1"):
        passes(ADD)
    monkeypatch.setenv(ALLOW_VARIABLE, "1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(RewardError, match=r"GVPO_UNSAFE_CODE=1 is not allowed for root.*run gvpo as another user"):
        passes(ADD)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # the suite may run as root; this code is harmless
    assert passes(ADD)
    assert not passes("def add(a, b): return 0")
    assert passes("open('file', 'w').write('x')\n" + ADD)  # its own directory
    assert not passes("import socket\nsocket.socket()\n" + ADD)  # system calls are still filtered
    assert not passes("import os\nos.kill(os.getpid(), 0)\n" + ADD)  # signals are not allowed either
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n"
    assert passes(daemon + ADD)  # and it returns immediately, since all processes of the code are ended


CONTAINER = """
from gvpo.workers import kernel
for _, calls, *_ in kernel._MACHINES.values():
    del calls["memfd_create"]  # which containers allow
kernel.forbid_new_privileges()
kernel.refuse_system_calls()  # unshare among them, as containers do by default
from gvpo.rewards.sandbox.isolation import isolation_problem
print(isolation_problem())
"""


def test_a_container_that_forbids_namespaces_is_detected():
    found = subprocess.run([sys.executable, "-c", CONTAINER], capture_output=True, text=True, check=True)
    assert "unshare: Operation not permitted" in found.stdout


@pytest.mark.skipif(shutil.which("setpriv") is None or os.geteuid() != 0, reason="needs root and setpriv")
def test_root_whose_processes_cannot_be_counted_is_detected():
    """Linux does not limit the processes of root, so that a user namespace is not enough for it."""
    probe = "from gvpo.rewards.sandbox.isolation import isolation_problem; print(isolation_problem() or 'holds')"
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", probe]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() in (
        "processes can be started without limit",
        "[Errno 1] unshare: Operation not permitted",
    )
