"""The parent's side of one sandbox: start it, wait for its end, end it."""

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gvpo.rewards.sandbox.limits import Limits

# The packages are empty: the sandbox's modules are found, and nothing else of gvpo is imported.
_BOOT = """\
import sys, types
for name, path in zip(("gvpo", "gvpo.workers", "gvpo.rewards", "gvpo.rewards.sandbox"), sys.argv[2:]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from gvpo.rewards.sandbox.jail import main
main(sys.argv[1])
"""
_GVPO = Path(__file__).parents[2]
_PACKAGES = [str(_GVPO / name) for name in ("", "workers", "rewards", "rewards/sandbox")]
_ENVIRONMENT = {"HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
END_SECONDS = 10.0
"""Maximum number of seconds until a sandbox ends once its lifeline is closed; the kernel needs milliseconds."""


@dataclass(frozen=True)
class GuestExit:
    """Exit of a sandboxed process.

    Args:
        code: Exit code, or minus the signal that ended it; None if it ran out of time or the parent ended it.
        error: Reason why the sandbox could not be built; "" if it could.
        seconds: Seconds that it ran.
    """

    code: int | None
    error: str = ""
    seconds: float = 0.0


class Jail:
    """One sandbox with one process; a context manager that leaves no process behind.

    Args:
        payload: Task of the process (`guest.run`).
        limits: Limits of the process.
        isolate: True to use namespaces; without them only the limits apply.
        stdin: Descriptor, or None for an empty one.
        stdout: Descriptor, or None to discard the output.
        verdict: Descriptor that the process keeps, or None.

    Raises:
        OSError: If the system cannot start another process.
    """

    def __init__(
        self,
        payload: Mapping[str, Any],
        limits: Limits,
        *,
        isolate: bool,
        stdin: int | None = None,
        stdout: int | None = None,
        verdict: int | None = None,
    ) -> None:
        self._ended: GuestExit | None = None
        self._said = b""
        with contextlib.ExitStack() as mine, contextlib.ExitStack() as on_error:
            message = sealed(json.dumps(payload).encode())
            mine.callback(os.close, message)
            self.status, status = os.pipe()
            lifeline, self._lifeline = os.pipe()
            for descriptor in (self.status, self._lifeline):
                on_error.callback(os.close, descriptor)
            for descriptor in (status, lifeline):
                mine.callback(os.close, descriptor)
            self._directory = None if isolate else _new_directory()
            if self._directory:
                on_error.callback(self._directory.cleanup)
            settings: dict[str, Any] = {"payload": message, "status": status, "lifeline": lifeline, "verdict": verdict}
            settings |= {"isolate": isolate, "directory": self._directory and self._directory.name, **asdict(limits)}
            kept = [message, status, lifeline] + ([] if verdict is None else [verdict])
            self._process = _start(settings, stdin, stdout, kept)
            on_error.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def wait(self, seconds: float) -> GuestExit:
        """Wait at most `seconds` for the process; return how it ended."""
        self._wait(seconds)
        return self.end()

    def end(self) -> GuestExit:
        """End the process if it is still running, with all its descendants, and return how it ended."""
        if self._ended is None:
            os.close(self._lifeline)
            if not self._wait(END_SECONDS):
                self._process.kill()  # its supervisor ends with it
            self._process.wait()
            if self._directory:
                self._directory.cleanup()
            os.close(self.status)
            self._ended = _ended(self._said)
        return self._ended

    def _wait(self, seconds: float) -> bool:
        """Read the supervisor's report until it ends and thereby closes the pipe; return whether it has."""
        poll, end = select.poll(), time.monotonic() + seconds
        poll.register(self.status, select.POLLIN)
        while poll.poll(max(end - time.monotonic(), 0.0) * 1000):
            said = os.read(self.status, 1 << 16)
            if not said:
                return True
            self._said += said
        return False


def _new_directory() -> "tempfile.TemporaryDirectory[str]":
    """Create a directory for a process that has no file system of its own."""
    return tempfile.TemporaryDirectory(prefix="gvpo-code-", ignore_cleanup_errors=True)


def _start(
    settings: Mapping[str, Any], stdin: int | None, stdout: int | None, kept: list[int]
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _BOOT, json.dumps(settings), *_PACKAGES],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        stderr=subprocess.DEVNULL,
        pass_fds=kept,
        start_new_session=True,
        env=_ENVIRONMENT,
        cwd="/",
    )


def sealed(data: bytes) -> int:
    """Return a descriptor that reads `data` from the start; its holder cannot change or extend the data."""
    descriptor = os.memfd_create("gvpo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def _ended(status: bytes) -> GuestExit:
    """Parse the first report of the supervisor; later ones could only come from code that escaped the sandbox."""
    try:
        said, _ = json.JSONDecoder().raw_decode(status.decode())
    except ValueError:
        return GuestExit(None, "its supervisor ended without a report")
    return GuestExit(said.get("code"), said.get("error", ""), said.get("seconds", 0.0))
