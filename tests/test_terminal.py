"""Streams that stop accepting text: a closed pipe, a full disk, a closed descriptor."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from gvpo.progress import StepProgress
from gvpo.terminal import Lasting, lasting_error, lasting_streams

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def pipe_without_reader() -> TextIO:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def test_writing_to_a_pipe_without_a_reader_succeeds():
    with pipe_without_reader() as pipe:
        stream = Lasting(pipe, is_product=True)
        for _ in range(3):
            assert stream.write("words\n" * 5000) == 30_000  # more than any buffer
            stream.flush()


@needs_full
def test_a_full_disk_is_an_error_only_for_the_product():
    with FULL.open("w") as file:
        stream = Lasting(file)
        stream.write("words")
        stream.flush()
        with pytest.raises(OSError, match="No space"):
            Lasting(file, is_product=True).flush()
        stream.end()  # the text is dropped, and closing the file does not fail


def test_progress_survives_the_loss_of_its_reader(monkeypatch: pytest.MonkeyPatch):
    with pipe_without_reader() as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        with StepProgress("run", 2) as progress:
            progress.update(1, {})
            progress.say("still here")


def test_closed_streams_drop_text(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with lasting_streams():
        print("nobody")  # noqa: T201
        assert lasting_error() is None
        StepProgress("run", 1).say("nobody")


def gvpo(command: str) -> int:
    """Return the exit code of a line of shell, in which `gvpo` is the command line."""
    line = command.replace("gvpo", f"'{sys.executable}' -m gvpo.cli.main")
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=120).returncode


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("gvpo data check rows.jsonl | true", 0),
        ("gvpo data check rows.jsonl >&- 2>&-", 0),
        ("gvpo --help | true", 0),
        pytest.param("gvpo data check rows.jsonl > /dev/full", 2, marks=needs_full),
    ],
)
def test_exit_codes_of_commands_whose_output_is_lost(
    command: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is one and one?"}\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.chdir(tmp_path)
    assert gvpo(command) == code
