"""The log of the rewards' prints keeps the latest output within its limit, with any number of writers."""

import subprocess
import sys

from gvpo.workers.output_log import OutputLog

NOTE = b"[gvpo: earlier output is in rewards.log.1, older output is gone]\n"


def test_the_latest_output_is_kept(tmp_path):
    log = OutputLog(tmp_path / "rewards.log", limit=2000)
    for number in range(300):
        log.write(f"line {number}\n".encode())
    newest, older = (tmp_path / "rewards.log").read_bytes(), (tmp_path / "rewards.log.1").read_bytes()
    assert newest.startswith(NOTE)
    assert newest.endswith(b"line 299\n")
    assert len(newest) + len(older) <= 2000
    kept = [line for line in (older + newest).splitlines(keepends=True) if line != NOTE]
    assert kept == [f"line {number}\n".encode() for number in range(300 - len(kept), 300)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rewards.log", "rewards.log.1"]


def test_one_print_larger_than_the_log_keeps_its_end(tmp_path):
    log = OutputLog(tmp_path / "rewards.log", limit=2000)
    log.write(b"x" * 5000 + b"end")
    assert (tmp_path / "rewards.log").read_bytes().endswith(b"xend")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000


def test_a_log_that_cannot_be_written_is_ignored(tmp_path):
    OutputLog(tmp_path / "absent" / "rewards.log").write(b"lost")


WRITER = """
import sys
from pathlib import Path
from gvpo.workers.output_log import OutputLog
log = OutputLog(Path(sys.argv[1]), limit=40_000)
for number in range(2000):
    log.write(f"{sys.argv[2]} {number}\\n".encode())
"""


def test_several_processes_share_a_log(tmp_path):
    path = tmp_path / "rewards.log"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = (tmp_path / "rewards.log.1").read_text().splitlines() + path.read_text().splitlines()
    assert sum(part.stat().st_size for part in tmp_path.iterdir()) <= 40_000
    for name in "ab":
        numbers = [int(line.split()[1]) for line in lines if line.startswith(f"{name} ")]
        assert numbers == sorted(numbers)
