"""Code that cheats, escapes or exhausts gets no reward, leaves no process and changes nothing outside its sandbox."""

import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.code.code import code_reward
from gvpo.rewards.sandbox.isolation import isolation_problem
from gvpo.rewards.sandbox.limits import MIB, Limits
from gvpo.rewards.sandbox.process import Jail
from gvpo.workers import deadline
from tests.rewards.code.attacks import ENDS, EXHAUSTS, LIES, PROGRAMS, REACHES

pytestmark = pytest.mark.skipif(bool(isolation_problem()), reason=f"code cannot be isolated: {isolation_problem()}")
TESTS = "assert add(2, 3) == 5\nassert add(10, -4) == 6"
RUNS = [{"input": "2 3", "output": "5"}, {"input": "10 -4", "output": "6"}]
WALL = round(1 + random.random() / 1000, 9)
"""Part of the command line of every sandboxed process, by which it is found."""
judge = code_reward(wall=WALL, cpu=1, memory=192 * MIB, disk=2 * MIB, output=MIB, processes=4)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Check what must not change: a secret file and variable, a server without visitors, and no sandboxed processes."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    canary.chmod(0o666)
    monkeypatch.setenv("CODE_SECRET", "s3cret")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield {"CANARY": repr(str(canary)), "PORT": str(server.getsockname()[1]), "PARENT": str(os.getpid())}
        with pytest.raises(BlockingIOError):
            server.accept()
    assert canary.read_text() == "alive"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary"]
    assert not _processes()


def _processes():
    """Return the IDs of this module's sandboxed processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(WALL)[1:].encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:  # the process ended in the meantime
            continue
    return found


def _filled(code, outside):
    for name, value in outside.items():
        code = code.replace(name, value)
    return code


@pytest.mark.parametrize("name", [*LIES, *ENDS, *REACHES, *EXHAUSTS])
def test_functions_that_cheat_get_nothing(name, outside):
    code = _filled((LIES | ENDS | REACHES | EXHAUSTS)[name], outside)
    assert judge(completions=[code], tests=[TESTS]) == [0.0]


@pytest.mark.parametrize("name", [*PROGRAMS, *ENDS, "daemon", "fork_bomb", "memory_bomb", "output"])
def test_programs_that_cheat_get_nothing(name, outside):
    code = _filled((PROGRAMS | ENDS | EXHAUSTS)[name], outside)
    assert judge(completions=[code], tests=[RUNS]) == [0.0]


def test_every_attack_is_python(outside):
    """Otherwise it would get no reward for the wrong reason."""
    for code in (LIES | ENDS | REACHES | EXHAUSTS | PROGRAMS).values():
        compile(_filled(code, outside), "attack", "exec")


def test_the_same_tests_are_passed_by_code_that_adds(outside):
    """Otherwise the attacks would prove nothing."""
    assert judge(completions=["def add(a, b): return a + b"], tests=[TESTS]) == [1.0]
    assert judge(completions=["print(sum(map(int, input().split())))"], tests=[RUNS]) == [1.0]


def _wait_for(count):
    """Wait until `count` sandboxed processes are running; return their number."""
    deadline = time.monotonic() + 5
    while len(_processes()) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(_processes())


def test_the_processes_of_a_sandbox_can_be_found(outside):
    """Otherwise the search for survivors would prove nothing. Here the processes are found while they run."""
    payload = {"kind": "program", "code": "import time\ntime.sleep(9)", "files": {}, "arguments": []}
    with Jail(payload, Limits(wall=WALL), isolate=True):
        assert _wait_for(3) == 3  # starter, supervisor, sandboxed process


def test_when_the_pool_kills_the_worker_the_sandbox_ends_too(outside):
    patient = code_reward(wall=float(f"6{WALL}"), cpu=60)

    def stubborn(completions, tests):
        """Ignore the pool's deadline."""
        deadline.begin(60.0)
        return patient(completions=completions, tests=tests)

    with RewardPool({"code": stubborn}, workers=1, timeout=1.5) as pool:
        (group,) = pool.score([RewardBatch("Add.", ["import time\ntime.sleep(50)"], {"tests": TESTS})])
    assert group[0].reward is None
    assert group[0].reason.startswith("timeout")
    assert _wait_for(0) == 0


# As another user: the supervisor then has the same user as the sandboxed code, whose signals and limits could reach it

AS_NOBODY = """
set -e
kept=$(mktemp -d); mount --bind "$1" "$kept"
mount -t tmpfs -o mode=755 none "$2"; mkdir -p "$1"; mount --bind "$kept" "$1"
shift 2
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""
"""Shows Python's own directory in a separate namespace, without those parent directories that only root may enter."""


def as_nobody(*words, **options):
    """Run the interpreter as a user without privileges."""
    prefix = Path(sys.base_prefix).resolve()
    closed = next((path for path in reversed(prefix.parents) if not path.stat().st_mode & 1), prefix)
    command = ["unshare", "--mount", "bash", "-c", AS_NOBODY, "as_nobody", str(prefix), str(closed)]
    environment = {**os.environ, "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", **options}
    return subprocess.run(
        [*command, sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900
    )


ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv", "bash"))), reason="needs root and util-linux"
)


@needs_root
@pytest.mark.parametrize(
    "chosen",
    [
        "supervisor or signal or of_first or writes_outside or adds",
        pytest.param("not nobody", marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_the_attacks_fail_as_nobody_too(chosen):
    with tempfile.TemporaryDirectory(prefix="gvpo-nobody-") as directory:  # other users cannot enter pytest's own
        Path(directory).chmod(0o777)
        if as_nobody("-c", "import gvpo, pytest", TMPDIR=directory).returncode:
            pytest.skip("another user cannot read this checkout")
        words = ["-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={directory}/files", "-k", chosen, __file__]
        done = as_nobody(*words, TMPDIR=directory)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout, done.stdout[-3000:]
    assert " skipped" not in done.stdout, done.stdout[-3000:]


REFUSED = """
import ctypes
from gvpo.rewards import code_tests
from gvpo.workers import kernel
machine, _, _, limits = kernel._MACHINES["x86_64"]
code = kernel._filter(machine, {"pidfd_open": 434, "clone": 56}, limits)
kernel.forbid_new_privileges()
program = kernel._Program(len(code) // 8, code)
assert kernel._libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
print(code_tests(completions=["def f(): return 1", "def f(): return 2"], tests=["assert f() == 1"] * 2))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter has the numbers of x86_64")
def test_code_is_scored_on_a_system_without_pidfd_open():
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("[1.0, 0.0]\n", 0), done.stderr
