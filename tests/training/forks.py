"""A process that has imported everything and forks a child for each requested run, so that a start is cheap.

    python -m tests.training.forks        input: one JSON list of words per line; output: the child's pid, its exit code

Words: "toy" RUN_DIRECTORY trains the toy there, "stateful" does so with a stateful reward, "stale" and "reused" on
groups of older policies, "episodes" on episodes, "overlapping" and "late" on asynchronous groups; others are a
`gvpo` command line.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "src")])
"""Import path of the server: these tests and the gvpo next to them."""
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "checkpoint_every": 2,
    "rollouts_every": 1,
    "eval_every": 2,
    "eval_problems": 2,
    "prompts_per_step": 2,
    "prefix_sharing": "off",
}
ASYNCHRONOUS: dict[str, Any] = {
    "rollout_asynchronous": True,
    "steps": 6,
    "prompts_per_step": 3,
    "checkpoint_every": 1,
    "eval_every": 0,
    "learning_rate": 0.03,
    "tokens_per_batch": 1,  # so that groups arrive one by one
}
KINDS: dict[str, dict[str, Any]] = {
    "toy": {},
    "stateful": {},
    "stale": {"rollout_staleness": 1, "learning_rate": 0.03},
    "reused": {"rollout_reuse": 2, "learning_rate": 0.03},
    "episodes": {
        "environment_between": "{observation}5",
        "environment_max_turns": 3,
        "environment_turn_tokens": 4,
        "environment_workers": 1,
        "max_tokens": 20,
        "stop_token_ids": [3, 4, 5],
    },
    "overlapping": ASYNCHRONOUS,
    "late": {**ASYNCHRONOUS, "rollout_max_staleness": 2, "rollout_late_groups": 1},
}


class Child:
    """A forked process, with its output in a file."""

    def __init__(self, server: "Forks", pid: int, output: Path) -> None:
        self._server, self.pid, self._output = server, pid, output

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return its exit code; minus a signal's number if a signal ended it."""
        return self._server.exit_code()

    def output(self) -> str:
        """Return its output so far, including standard error."""
        return self._output.read_text()

    def wait_for(self, *places: Path, seconds: float = 60.0) -> None:
        """Wait until one of the files exists and is not empty."""
        end = time.monotonic() + seconds
        while not any(path.is_file() and path.stat().st_size for path in places):
            if time.monotonic() > end:
                raise TimeoutError(f"no {places[0]} after {seconds} s: {self.output()}")
            time.sleep(0.005)


class Forks:
    """The client, which starts the process, and children in it, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]", output: Path) -> None:
        self._process, self._output, self._running = process, output, 0

    def end(self) -> None:
        """End the process, and a child that a failed test has left."""
        if self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)

    def start(self, *words: str) -> Child:
        if self._running:  # a failed test has left it
            self.end()
            self.exit_code()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        self._running = self._read()
        return Child(self, self._running, self._output)

    def exit_code(self) -> int:
        code = self._read()
        self._running = 0
        return code

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def forks(directory: Path) -> Iterator[Forks]:
    """Start a server whose children write their output to a file in `directory`."""
    output = directory / "output.txt"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.forks", str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": PATH},
    ) as process:
        server = Forks(process, output)
        try:
            yield server
        finally:
            server.end()


# The process itself


def serve(output: str) -> None:
    """Fork a child for each line, print its pid, wait for its end and print its exit code."""
    import torch

    import gvpo.cli.main
    import gvpo.cli.train
    import gvpo.report
    import gvpo.training.warm_start  # noqa: F401
    import tests.training.toy

    torch.set_num_threads(1)
    tests.training.toy.tokenizer()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_child(json.loads(line), output))
        _tell(pid)
        _tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _child(words: Sequence[str], output: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and a job under nohup ignores this one
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        return train(Path(words[1]), words[0]) if words[0] in KINDS else _command(words)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _command(words: Sequence[str]) -> int:
    from gvpo.cli.main import main

    return main(words)


def train(path: Path, kind: str = "toy") -> int:
    """Train the toy, or resume its run if there is one."""
    from gvpo import runfiles
    from tests.training.guessing import Slow
    from tests.training.stateful import Novelty
    from tests.training.toy import trainer

    rewards = [Novelty()] if kind == "stateful" else None
    environment = Slow if kind == "episodes" else None
    run = trainer(path, rewards=rewards, environment=environment, **{**SETTINGS, **KINDS[kind]})
    run.train(resume=runfiles.is_run(path))
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
