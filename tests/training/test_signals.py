"""Signals: the effects of the first, the second and the third of each kind."""

import contextlib
import errno
import os
import pty
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from gvpo.training.signals import SIGNALS, StopRequests

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_of_each_kind_requests_a_stop(number: signal.Signals):
    before = signal.getsignal(number)
    with StopRequests() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, TERM), (INT, TERM), (HUP, INT), (HUP, TERM)])
def test_the_second_signal_stops_now_and_prints_a_message(
    first: signal.Signals, second: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    with StopRequests():
        signal.raise_signal(first)
        assert capfd.readouterr().err == "\nstopping when this step is done and saved; once more stops now\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    shown = capfd.readouterr().err
    assert shown == "\nstopping now, without this step: closing the workers; once more ends the process at once\n"


@pytest.mark.parametrize("first", [INT, TERM, HUP])
def test_a_hangup_is_never_the_second_signal(first: signal.Signals):
    """The kernel and the shell each send one if a terminal is closed; systemd sends one right after SIGTERM."""
    with StopRequests() as stop:
        for number in (first, HUP, HUP):
            signal.raise_signal(number)
        assert stop.requested


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(HUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequests() as stop:
            signal.raise_signal(HUP)
            assert not stop.requested
    finally:
        signal.signal(HUP, before)


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("number", [INT, TERM])
def test_the_third_signal_ends_the_process(number: signal.Signals):
    done = run(
        f"""
        import signal
        from gvpo.training.signals import StopRequests
        with StopRequests():
            try:
                signal.raise_signal({number})
                signal.raise_signal({number})
            finally:  # cleaning up hangs
                signal.raise_signal({number})
                print("still here")
        """
    )
    assert done.returncode == -number
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


IN_A_TERMINAL = """
import sys, time
from pathlib import Path
from gvpo.training.signals import StopRequests
with StopRequests() as stop:
    print("ready", flush=True)
    for _ in range(1000):
        if stop.requested:
            break
        time.sleep(0.01)
    print("saving", flush=True)
    print("saved", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(str(stop.requested))
"""


def test_a_closed_terminal_lets_the_run_save(tmp_path: Path):
    """A print to a closed terminal is an error, which must not come before the checkpoint."""
    child, terminal = pty.fork()
    if child == 0:
        _become([sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "saved")])
    assert b"ready" in _read_until(terminal, b"ready")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "saved").read_text() == "True"


def _become(words: Sequence[str]) -> None:
    signal.signal(HUP, signal.SIG_DFL)
    os.execv(words[0], list(words))


def _read_until(descriptor: int, words: bytes) -> bytes:
    read = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while words not in read and (part := os.read(descriptor, 1024)):
            read += part
    return read


def test_the_error_of_a_closed_terminal_is_recognized():
    master, slave = pty.openpty()
    os.close(master)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.get_terminal_size(slave)
    os.close(slave)
