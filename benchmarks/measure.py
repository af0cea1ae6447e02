"""Helpers of the benchmarks: paired times, peak memory, tables. They do not depend on the measured code.

Times are taken in turns, A B A B ..., so that a machine that slows down slows both; a ratio is the median of the ratios
of pairs. Memory is the kernel's high-water mark above the initial memory of a separate process, which runs with
MALLOC_MMAP_THRESHOLD_=65536. Freed tensors are then returned to the system immediately, so only memory in use counts.
"""

import datetime
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

MIB = 2**20
EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
CLOCKS = {"wall": "seconds are wall-clock", "cpu": "seconds are CPU time, summed over threads"}
"""Clocks. CPU time is better for one thread on a machine that others use, and misleading for several threads."""
_CLOCK = "BENCHMARK_CLOCK"
_ANSWER = "answer "
PACKAGES = ("torch", "transformers", "trl", "vllm")

Seconds = Mapping[str, Sequence[float]]


def now() -> float:
    """Return the seconds on the clock that this process was started with."""
    return time.process_time() if os.environ.get(_CLOCK) == "cpu" else time.perf_counter()


def in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each side in each round; a side that returns a float has timed itself. Warm up before."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            gc.collect()
            started = now()
            own = run()
            found[name].append(own if isinstance(own, float) else now() - started)
    return found


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """Return how many times faster `fast` is: the median of the pairs, and the extremes."""
    return spread([one / other for one, other in zip(seconds[slow], seconds[fast], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def peak_above(run: Callable[[], Any]) -> float:
    """Return MiB at the peak of a call above the memory before it; call it if the allocator returns freed memory."""
    gc.collect()
    base = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is reset to the resident memory
    run()
    return (_status("VmHWM") - base) / MIB


def peak_of_process() -> float:
    """Return the largest resident memory of this process so far in MiB, without that of the process that started it."""
    return _status("VmHWM") / MIB


def child(script: str, *arguments: str, threads: int, clock: str = "wall", exact_memory: bool = False) -> Any:
    """Run a benchmark in a separate process and return the last line that it prints, as JSON.

    Raises:
        SystemExit: If it fails; its own messages are printed.
    """
    finished = subprocess.run(
        [sys.executable, script, *arguments],
        env=_environment(threads, clock) | (EXACT_MALLOC if exact_memory else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments)} exited with status {finished.returncode}")
    return json.loads(finished.stdout.splitlines()[-1])


class Worker:
    """A benchmark in a separate process, which waits for names and answers each with the result of `serve`.

    Args:
        script: The benchmark; with these arguments it calls `serve`.
        arguments: Arguments of the script.
        threads: Number of threads for computations.
        clock: Clock for times, one of `CLOCKS`.
    """

    def __init__(self, script: str, *arguments: str, threads: int, clock: str = "wall") -> None:
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=_environment(threads, clock),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self, name: str) -> Any:
        """Return the answer of the process, as JSON.

        Raises:
            SystemExit: If the process ended; its own messages are printed.
        """
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(_ANSWER):  # libraries print too
                return json.loads(line.removeprefix(_ANSWER))
        raise SystemExit(f"{' '.join(self._process.args[1:])} failed at {name!r} with status {self._process.wait()}")


def serve(answer: Callable[[str], Any]) -> None:
    """Answer the names that a `Worker` is called with, until its input ends."""
    for line in sys.stdin:
        print(_ANSWER + json.dumps(answer(line.strip())), flush=True)


def _environment(threads: int, clock: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", _CLOCK: clock}


def circumstances(threads: int, clock: str = "wall") -> dict[str, Any]:
    """Return the date, the machine and the software of a measurement."""
    names = packages_distributions()  # the vLLM package for CPUs has another name
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "threads": threads,
        "clock": clock,
        "load_before": round(os.getloadavg()[0], 2),
        "packages": {name: version(names[name][0]) for name in PACKAGES if find_spec(name)},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first column aligned left and the others right."""
    rules = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *rows))


def caption(script: str, found: Mapping[str, Any]) -> str:
    """Return a caption that states how a table was measured."""
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return (
        f"`python benchmarks/{script}`, {found['machine']}, {threads}, {found['date']}, {packages}. "
        f"Load {found['load_before']} before it began; {CLOCKS[found['clock']]}."
    )


def write_page(page: Path | None, name: str, text: str) -> None:
    """Put a table between its marks in a Markdown page; do nothing without a page.

    Raises:
        SystemExit: If the page has no marks of that name.
    """
    if page is None:
        return
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    old = page.read_text()
    if start not in old or end not in old:
        raise SystemExit(f"{page} has no place for the table: put {start.strip()} and {end} around one")
    before, after = old.partition(start)[0], old.partition(end)[2]
    page.write_text(f"{before}{start}\n{text}\n\n{end}{after}")


def write_json(path: Path | None, results: Any) -> None:
    """Write the results if there is a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def numbered_tokenizer(size: int) -> Any:
    """Return a tokenizer with tokens `token0`, `token1`, ..., so that a model can sample all of its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"token{number}": number for number in range(size)}, unk_token="token0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="token0")
