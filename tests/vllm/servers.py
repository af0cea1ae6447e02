"""A real vLLM server for the tests: started as the documentation says, killed, started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

START = 300.0
"""Seconds that a server may take to start on a busy machine."""


class Server:
    """A vLLM server on a free port of this machine. Its processes form a group, so that all of them can be killed.

    Args:
        model: Directory with configuration, weights and tokenizer.
        log: File for what it prints.
        arguments: Further arguments.
    """

    def __init__(self, model: Path, log: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._command = [
            *[sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)],
            *["--host", "127.0.0.1", "--port", str(self.port), "--enable-scale-out", "--dtype", "float32"],
            *["--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--max-num-batched-tokens", "4096"],
            *["--no-enable-chunked-prefill", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"],
            *["--worker-extension-cls", "gvpo.sampling.vllm.worker.FileWeights"],
            *["--weight-transfer-config", '{"backend": "gvpo_file"}', *arguments],
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting for it."""
        variables = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "OMP_NUM_THREADS": "1",
        }
        own = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env={**own, **variables}, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        until = time.monotonic() + START
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start: {self._log.read_text()[-3000:]}")

    def processes(self) -> list[int]:
        """Return the ids of its processes."""
        assert self._process is not None
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [number for number in numbers if _group_of(number) == self._process.pid]

    def kill(self) -> None:
        """Kill all of its processes at once, as `kill -9` does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> "Server":
        self.start()
        self.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _group_of(process: int) -> int:
    """Return the process group of a process, or 0 if it has ended."""
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return 0
