"""Rewards under attack: the scoring continues, only the guilty rows lose their reward, and the reason is kept."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from gvpo.errors import RewardError
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.pool.scoring import GIVE_UP_AFTER
from tests.rewards.pool import attackers

ROWS = ["fine", "bad", "well"]
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc and RLIMIT_DATA, so Linux")


def judge(function, completions=ROWS, *, columns=None, **options):
    """Return the verdicts of one group, and the pool's first failure."""
    options = {"timeout": 5.0, "workers": 1, **options}
    with RewardPool({"attacker": function}, **options) as pool:
        (verdicts,) = pool.score([RewardBatch("prompt", completions, columns or {})])
        return verdicts, pool.first_failure


@pytest.mark.parametrize(
    ("function", "reason", "options"),
    [
        (attackers.hang, "timeout: attacker gave no answer in 0.6 s", {"timeout": 0.6}),
        (attackers.hang_in_c, "timeout: attacker gave no answer in 0.6 s", {"timeout": 0.6}),
        (attackers.raise_, "exception: attacker raised ValueError: no digit in this text", {}),
        (attackers.die, "died: attacker ended its process (exit code 3)", {}),
        (attackers.leave, "exception: attacker raised SystemExit: enough", {}),
        pytest.param(
            attackers.eat_memory,
            "exception: attacker raised MemoryError",
            {"memory_limit": 400_000_000},
            marks=linux,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_the_guilty_row_loses_its_reward(function, reason, options):
    verdicts, failure = judge(function, **options)
    assert [verdict.reward for verdict in verdicts] == [1.0, None, 1.0]
    assert [verdict.reason for verdict in verdicts] == ["", reason, ""]
    assert verdicts[1].parts == {"attacker": None}
    assert failure.reason == reason


def test_what_is_written_into_the_pipe_is_not_taken_for_a_reply():
    verdicts, _ = judge(attackers.scribble)
    assert [verdict.reward for verdict in verdicts] == [1.0, None, 1.0]
    assert verdicts[1].reason.startswith("died: attacker ended its process")


def test_an_exception_keeps_its_traceback_without_the_workers_frames():
    _, failure = judge(attackers.raise_)
    assert "attackers.py" in failure.traceback
    assert failure.traceback.endswith("ValueError: no digit\nin this text\n")
    assert "worker.py" not in failure.traceback


def test_megabytes_of_prints_neither_block_nor_corrupt_replies(tmp_path):
    verdicts, _ = judge(attackers.shout, log=tmp_path / "rewards.log")
    assert [verdict.reward for verdict in verdicts] == [4.0, 3.0, 4.0]
    assert (tmp_path / "rewards.log").stat().st_size == 10_100_000


def test_prints_are_discarded_without_a_log(capfd):
    verdicts, _ = judge(attackers.shout)
    assert verdicts[0].reward == 4.0
    assert capfd.readouterr() == ("", "")


def test_a_fork_that_returns_twice_replies_once():
    with RewardPool({"forks": attackers.fork_and_both_return}, workers=1) as pool:
        for _ in range(3):
            (verdicts,) = pool.score([RewardBatch("prompt", ROWS)])
            assert [verdict.reward for verdict in verdicts] == [4.0, 3.0, 4.0]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not merely waiting to be reaped."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def ends(pid: int, seconds: float = 5.0) -> bool:
    """Return whether a process ends in time."""
    limit = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    return not is_running(pid)


@linux
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (attackers.leave_child_and_hang, "timeout"),
        (attackers.leave_child_and_die, "died"),
        (attackers.leave_daemon_and_hang, "timeout"),
        (attackers.leave_clean_daemon_and_hang, "timeout"),
        (attackers.leave_daemon_and_die, "died"),
    ],
)
def test_a_child_that_would_outlive_its_worker_is_killed_with_it(tmp_path, function, kind):
    pid_file = tmp_path / "pid"
    verdicts, _ = judge(function, ["one"], columns={"pid_file": str(pid_file)}, timeout=1.0)
    assert verdicts[0].reason.startswith(kind)
    assert ends(int(pid_file.read_text()))


def test_a_killed_worker_is_replaced():
    with RewardPool({"hang": attackers.hang, "pid": attackers.report_pid}, workers=1, timeout=0.6) as pool:
        ((before,),) = pool.score([RewardBatch("prompt", ["fine"])])
        ((during,),) = pool.score([RewardBatch("prompt", ["bad"])])
        ((after,),) = pool.score([RewardBatch("prompt", ["fine"])])
    assert during.reward is None
    assert after.parts["hang"] == 1.0
    assert before.parts["pid"] != after.parts["pid"]


@linux
def test_a_worker_that_died_while_idle_costs_no_reward():
    with RewardPool({"pid": attackers.report_pid}, workers=1) as pool:
        ((first,),) = pool.score([RewardBatch("prompt", ["fine"])])
        os.kill(int(first.reward), 9)
        assert ends(int(first.reward))
        ((second,),) = pool.score([RewardBatch("prompt", ["fine"])])
    assert second.reason == ""
    assert second.reward != first.reward


@linux
def test_closing_ends_the_workers():
    with RewardPool({"pid": attackers.report_pid}, workers=1) as pool:
        ((verdict,),) = pool.score([RewardBatch("prompt", ["fine"])])
        assert is_running(int(verdict.reward))
    assert not is_running(int(verdict.reward))


ORPHAN = """
import os, sys, threading, time
from gvpo.rewards import RewardBatch, RewardPool
from tests.rewards.pool import attackers

path, state = sys.argv[1:]

def busy(completions, **_):
    with open(path + ".busy", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

def daemon(completions, **_):
    attackers._daemon(path + ".busy")
    time.sleep(600)

functions = {"idle": attackers.report_pid, "busy": busy, "daemon": daemon}[state]
functions, timeout = {state: functions}, 60.0
if state == "daemon":
    state = "busy"
pool = RewardPool(functions, workers=1, timeout=timeout)
if state == "busy":
    def end_once_it_works():
        while not os.path.exists(path + ".busy") or not os.path.getsize(path + ".busy"):
            time.sleep(0.01)
        os._exit(0)
    threading.Thread(target=end_once_it_works).start()
((verdict,),) = pool.score([RewardBatch("prompt", ["fine"])])
with open(path + ".idle", "w") as file:
    file.write(str(int(verdict.reward)))
os._exit(0)
"""


@linux
@pytest.mark.parametrize("state", ["idle", "busy", "daemon"])
def test_an_orphan_ends(tmp_path, state):
    """The program ends without closing the pool: the workers and their descendants end immediately."""
    subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path / "pid"), state], check=True, timeout=60)
    assert ends(int((tmp_path / f"pid.{'idle' if state == 'idle' else 'busy'}").read_text()))


def test_a_reward_that_always_hangs_is_given_up():
    started = time.monotonic()
    with RewardPool({"hang": attackers.hang}, workers=2, timeout=0.2) as pool:
        verdicts = pool.score([RewardBatch("prompt", ["bad"] * 8) for _ in range(16)])
    assert all(verdict.reason.startswith("timeout: hang") for group in verdicts for verdict in group)
    assert "was not called again" in verdicts[-1][-1].reason
    every_row_alone = 16 * 8 / 2 * 0.2
    assert time.monotonic() - started < every_row_alone


def test_a_reward_that_worked_once_is_not_given_up():
    bad = RewardBatch("p", ["bad"] * GIVE_UP_AFTER)
    fine = RewardBatch("p", ["fine"])
    with RewardPool({"raises": attackers.raise_}, workers=1) as pool:
        given_up = pool.score([bad, bad, fine])
        assert [group[0].reward for group in given_up] == [None, None, None]
        verdicts = pool.score([fine, bad, bad, fine])  # the next scoring starts from scratch
        assert [group[0].reward for group in verdicts] == [1.0, None, None, 1.0]


@pytest.mark.parametrize("held", [threading.Lock(), (number for number in range(3))], ids=["lock", "generator"])
def test_the_error_names_an_unpicklable_function(held):
    def judge_with_it(completions, **_):
        return [float(held is not None)] * len(completions)

    with pytest.raises(RewardError, match=r"reward 'mine' cannot be sent to a worker process .*inside the function"):
        RewardPool({"mine": judge_with_it})


def test_the_error_names_an_unpicklable_column():
    def generator():
        yield 1

    with RewardPool({"any": attackers.report_pid}) as pool:
        with pytest.raises(RewardError, match="column 'stream' cannot be sent to the reward 'any'"):
            pool.score([RewardBatch("p", ["x"], {"fine": 1, "stream": generator()})])
        assert pool.score([RewardBatch("p", ["x"])])[0][0].reason == ""


def test_a_function_that_does_not_load_in_a_worker_is_an_error_and_not_many_failures():
    module = types.ModuleType("only_here")
    exec("def judge(completions, **_):\n    return [1.0] * len(completions)", vars(module))
    sys.modules["only_here"] = module
    try:
        with (
            RewardPool({"judge": module.judge}) as pool,
            pytest.raises(
                RewardError, match="reward 'judge' cannot be loaded in a worker process: ModuleNotFoundError"
            ),
        ):
            pool.score([RewardBatch("p", ["x"])])
    finally:
        del sys.modules["only_here"]
