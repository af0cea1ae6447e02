"""Reward functions that misbehave on the rows whose text is "bad"."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path


def hang(completions, **_):
    if "bad" in completions:
        time.sleep(600)
    return [1.0] * len(completions)


def hang_in_c(completions, **_):
    """Match a regular expression that backtracks without end and never releases the interpreter."""
    if "bad" in completions:
        re.match(r"(a+)+$", "a" * 64 + "b")
    return [1.0] * len(completions)


def raise_(completions, **_):
    if "bad" in completions:
        raise ValueError("no digit\nin this text")
    return [1.0] * len(completions)


def die(completions, **_):
    if "bad" in completions:
        os._exit(3)
    return [1.0] * len(completions)


def leave(completions, **_):
    if "bad" in completions:
        sys.exit("enough")
    return [1.0] * len(completions)


def shout(completions, **_):
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * 5_000_000)
        stream.flush()
    os.write(1, b"y" * 100_000)
    return [float(len(text)) for text in completions]


def eat_memory(completions, **_):
    if "bad" in completions:
        hoard = []
        while True:
            hoard.append(bytearray(50_000_000))
    return [1.0] * len(completions)


def scribble(completions, **_):
    """Write into every open file, including the pool's pipe."""
    if "bad" in completions:
        for descriptor in range(3, 1024):  # the number of the pipe is unknown
            try:
                os.write(descriptor, b"\xff" * 64)
            except OSError:
                continue
        time.sleep(600)
    return [1.0] * len(completions)


def fork_and_both_return(completions, **_):
    os.fork()
    return [float(len(text)) for text in completions]


def leave_child_and_hang(completions, pid_file, **_):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    Path(pid_file[0]).write_text(str(child))
    time.sleep(600)


def leave_child_and_die(completions, pid_file, **_):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    Path(pid_file[0]).write_text(str(child))
    os._exit(0)


def _daemon(pid_file):
    """Start a grandchild in a separate session, which no signal to the worker's group reaches."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            Path(pid_file).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    while not Path(pid_file).exists() or not Path(pid_file).read_text():
        time.sleep(0.01)


def leave_clean_daemon_and_hang(completions, pid_file, **_):
    """Leave a daemon that shares nothing with its parent: another session, no environment, another program."""
    start = f"sleep 600 & echo $! > {pid_file[0]}.new; mv {pid_file[0]}.new {pid_file[0]}"
    subprocess.run(["/bin/sh", "-c", start], env={}, start_new_session=True, check=True)
    time.sleep(600)


def leave_daemon_and_hang(completions, pid_file, **_):
    _daemon(pid_file[0])
    time.sleep(600)


def leave_daemon_and_die(completions, pid_file, **_):
    _daemon(pid_file[0])
    os._exit(0)


def report_pid(completions, **_):
    return [float(os.getpid())] * len(completions)


async def length_later(completions, **_):
    import asyncio

    await asyncio.sleep(0.01)
    return [float(len(text)) for text in completions]


class Counting:
    """A reward that counts its calls. Workers import it from this module, where it is not declared as stateful."""

    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **_):
        self.calls += 1
        return [float(self.calls)] * len(completions)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]
