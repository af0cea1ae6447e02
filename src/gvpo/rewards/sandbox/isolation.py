"""Check that the sandbox isolates code on this machine: tested once on harmless code, not inferred from versions."""

import functools
import os
import sys

from gvpo.errors import RewardError
from gvpo.rewards.sandbox.limits import MIB, Limits
from gvpo.rewards.sandbox.process import Jail

ALLOW_VARIABLE = "GVPO_UNSAFE_CODE"
"""If set to 1, code that cannot be isolated runs with limits only; on Linux only, and never as root."""

# Each line names something that should not have been possible. It forks a few sleeping processes more than allowed.
_PROBE = """
import os, time
found = []
if os.getpid() != 2: found.append("processes outside are visible")
if len(os.listdir("/proc") if os.path.isdir("/proc") else []): found.append("/proc is visible")
if os.path.exists("/etc/passwd") or os.path.exists("/home"): found.append("files outside are visible")
try: os.mkdir("/usr/lib/gvpo-probe"); found.append("files outside can be written")
except OSError: pass
import socket
try: socket.socket(); found.append("sockets can be opened")
except OSError: pass
started = 0
try:
    while started < 6:
        if os.fork() == 0:
            time.sleep(20); os._exit(0)
        started += 1
    found.append("processes can be started without limit")
except OSError: pass
print("; ".join(found) or "isolated")
"""


def is_isolated() -> bool:
    """Return whether code runs isolated: True, or False if the user has accepted limits only.

    Raises:
        RewardError: If code cannot be isolated on this machine, and the user has not accepted this or is root.
    """
    problem = isolation_problem()
    if not problem:
        return True
    allowed = os.environ.get(ALLOW_VARIABLE) == "1" and sys.platform == "linux"
    if allowed and os.geteuid() != 0:
        return False
    if allowed:
        raise RewardError(
            f"{ALLOW_VARIABLE}=1 is not allowed for root, as untrusted code would run as root ({problem}); run gvpo as "
            "another user (docker run --user 1000), or allow it to create namespaces (`gvpo docs code-tests`)"
        )
    raise RewardError(
        f"code cannot be isolated on this machine ({problem}); allow it to create namespaces "
        f"(`gvpo docs code-tests`), or set {ALLOW_VARIABLE}=1, "
        "as a user other than root, to run untrusted code with limits only"
    )


@functools.cache
def isolation_problem() -> str:
    """Return why code cannot be isolated on this machine; "" if it can."""
    if sys.platform != "linux":
        return f"the system is {sys.platform}, not Linux"
    limits = Limits(wall=20, cpu=5, memory=256 * MIB, disk=MIB, processes=3)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as output:
        try:
            jail = Jail(
                {"kind": "program", "code": _PROBE, "files": {}, "arguments": []}, limits, isolate=True, stdout=write
            )
        finally:
            os.close(write)
        with jail:
            said = output.read(1 << 16).decode()
            ended = jail.wait(limits.wall)
    if ended.error:
        return ended.error
    return "" if said == "isolated\n" else said.strip() or "a harmless program does not run in the sandbox"
