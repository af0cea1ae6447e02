"""Compare the planner's memory and time (`gvpo.planning`) with the peak resident memory and the seconds of real steps.

    python benchmarks/plan_check.py [CASE ...]            memory
    python benchmarks/plan_check.py --seconds [CASE ...]  processor seconds of each phase, with one thread

Each case runs in a separate process, on the CPU of a Linux machine. A tiny model of the same architecture is trained
first, so that all code is loaded and not counted. Then come the case's model, its reference, a first update that
allocates AdamW's moments, and a whole step: sampling, scoring, `group_backward`, AdamW. The peak is the kernel's
high-water mark above the initial memory of the process.

Each case is measured twice: with freed memory kept, as the trainer keeps it, and with MALLOC_MMAP_THRESHOLD_=65536,
which returns freed blocks to the system immediately, so that only memory in use counts. The column `tuned` marks the
cases that were used to derive the formulas.

Seconds are those of the second of two whole steps, because the first one also checks the fast paths. They are processor
seconds, as are the rates that the plan measures, so that other programs on the machine do not matter.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from gvpo.planning import (
    Architecture,
    Device,
    Memory,
    Seconds,
    Workload,
    estimate_memory,
    estimate_seconds,
    read_architecture,
)

MIB = 2**20
CPU = Device("cpu", "cpu", 0)
KEPT, EXACT = "kept", "exact"
MALLOC = {KEPT: {}, EXACT: {"MALLOC_MMAP_THRESHOLD_": "65536"}}


@dataclass(frozen=True)
class Case:
    """A randomly initialized model and its workload."""

    model: dict[str, Any]
    workload: Workload
    tuned: bool = False


def _model(architecture: str, layers: int, hidden: int, vocabulary: int, **others: Any) -> dict[str, Any]:
    heads = hidden // 64
    sizes = {"num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": 4 * hidden}
    known = {"num_hidden_layers": layers, "hidden_size": hidden, "vocab_size": vocabulary, "tie_word_embeddings": True}
    return {"architecture": architecture, **known, **sizes, "max_position_embeddings": 8192, **others}


def _work(prompt: int, answer: int, budget: int, **others: Any) -> Workload:
    usual = {"prompts_per_step": 4, "group_size": 8, "tokens_per_batch": 2048, "half": False}
    return Workload(prompt_tokens=prompt, completion_tokens=answer, tokens_per_microbatch=budget, **{**usual, **others})


_QWEN2 = _model("qwen2", 4, 256, 32_000, num_key_value_heads=2)
_SMOLLM2 = _model(
    "llama", 30, 576, 49_152, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536
)  # SmolLM2-135M; its weights do not matter here
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}

CASES = {
    "qwen2-1024": Case(_QWEN2, _work(64, 64, 1024), tuned=True),
    "qwen2-4096": Case(_QWEN2, _work(128, 128, 4096), tuned=True),
    "qwen2-short": Case(_QWEN2, _work(64, 16, 256, group_size=4), tuned=True),
    "qwen2-lora": Case(_QWEN2, _work(64, 16, 256, group_size=4, lora_rank=8)),
    "qwen2-4096-bfloat16": Case(_QWEN2, _work(128, 128, 4096, half=True), tuned=True),
    "llama-2048": Case(
        _model("llama", 8, 512, 1024, intermediate_size=1536, tie_word_embeddings=False),
        _work(64, 64, 2048, group_size=4),
        tuned=True,
    ),
    "qwen3-moe": Case(_model("qwen3_moe", 4, 256, 1024, num_key_value_heads=2, **_EXPERTS), _work(64, 64, 2048)),
    "qwen2-no-reference": Case(_QWEN2, _work(64, 64, 1024, reference=False)),
    "qwen2-long": Case(_QWEN2, _work(96, 600, 4096, prompts_per_step=2, group_size=4), tuned=True),
    "llama-wide": Case(_model("llama", 3, 1024, 8000, num_key_value_heads=4), _work(32, 64, 1024)),
    "llama-deep-bfloat16": Case(_model("llama", 16, 256, 2000), _work(64, 64, 2048, half=True)),
    "qwen3-checkpointing": Case(
        _model("qwen3", 12, 256, 4000, num_key_value_heads=2, head_dim=64),
        _work(64, 128, 4096, checkpointing=True),
        tuned=True,
    ),
    "mistral-window": Case(_model("mistral", 6, 320, 16_000, sliding_window=64), _work(64, 64, 2048, group_size=4)),
    "gemma2-logits": Case(
        _model("gemma2", 4, 256, 16_000, head_dim=64, sliding_window=64, final_logit_softcapping=30.0),
        _work(64, 64, 1024, group_size=4),
        tuned=True,
    ),
    "granite-logits": Case(
        _model("granite", 5, 320, 9000, num_key_value_heads=5, logits_scaling=8.0),
        _work(64, 96, 1500, group_size=4),
        tuned=True,
    ),
    "gemma2-wide": Case(
        _model("gemma2", 2, 512, 9000, head_dim=64, sliding_window=64, final_logit_softcapping=30.0),
        _work(32, 96, 1500, group_size=4),
    ),
    "llama-checkpointing": Case(_model("llama", 10, 384, 3000), _work(48, 100, 3000, checkpointing=True)),
    "smollm2": Case(_SMOLLM2, _work(32, 32, 2048), tuned=True),
    "smollm2-lora": Case(_SMOLLM2, _work(32, 32, 2048, lora_rank=8), tuned=True),
    "smollm2-bfloat16": Case(_SMOLLM2, _work(32, 32, 2048, half=True), tuned=True),
    "smollm2-128": Case(_SMOLLM2, _work(128, 64, 2048)),
    "smollm2-128-lora": Case(_SMOLLM2, _work(128, 64, 2048, lora_rank=8)),
    "smollm2-512": Case(_SMOLLM2, _work(512, 128, 4096, prompts_per_step=2, group_size=4, tokens_per_batch=8192)),
    "qwen2-sampling": Case(
        _model("qwen2", 8, 256, 4000, num_key_value_heads=2),
        _work(64, 192, 512, tokens_per_batch=65_536),
    ),
}


def main() -> None:
    """Measure and print the table, or (in a child) one measurement."""
    parser = argparse.ArgumentParser(description="Compare the planner's memory with measured peaks")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--measure", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--phases", action="store_true", help="Also print each phase")
    parser.add_argument("--seconds", action="store_true", help="Compare processor seconds instead of memory")
    options = parser.parse_args()
    if options.measure:
        measured = _seconds if options.seconds else _measure
        print(json.dumps(measured(CASES[options.measure])))
        return
    if options.seconds:
        print("| case | sampling: planned, measured | scoring | updating | together | ratio |")
        print("|---|---|---|---|---|---|")
        for name in options.cases or CASES:
            _print_seconds(name)
        return
    print("| case | tuned | parameters | predicted MiB | phase | measured MiB | ratio | in use MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.cases or CASES:
        _print(name, options.phases)


def _print(name: str, phases: bool) -> None:
    model, memory = predicted(CASES[name])
    usual, exact = measure(name), measure(name, EXACT)
    peaks = [max(found.values()) for found in (usual, exact)]
    cells = " | ".join(f"{peak:.0f} | {memory.peak / MIB / peak:.2f}" for peak in peaks)
    count = f"{model.parameters / 1e6:.1f}M"
    tuned = "yes" if CASES[name].tuned else "no"
    print(f"| {name} | {tuned} | {count} | {memory.peak / MIB:.0f} | {memory.largest} | {cells} |", flush=True)
    if phases:
        for phase in memory.phases:
            print(f"    {phase:10} {memory.peak_of(phase) / MIB:8.0f} {usual[phase]:8.0f} {exact[phase]:8.0f}")


def _print_seconds(name: str) -> None:
    found = measure(name, KEPT, "--seconds")
    planned, real = Seconds(**found["planned"]), Seconds(**found["measured"])
    phases = ("sampling", "scoring", "updating", "total")
    cells = " | ".join(f"{getattr(planned, phase):.1f}, {getattr(real, phase):.1f}" for phase in phases)
    print(f"| {name} | {cells} | {planned.total / real.total:.2f} |", flush=True)


def predicted(case: Case) -> tuple[Architecture, Memory]:
    """Return the architecture of a case and the planner's memory for it."""
    model = read_architecture({**case.model, "model_type": case.model["architecture"]})
    return model, estimate_memory(model, case.workload, CPU)


def measure(name: str, malloc: str = KEPT, *flags: str) -> dict[str, Any]:
    """Return what a separate process measures: MiB at the peak of each phase, above the initial memory, or seconds."""
    threads = {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, __file__, "--measure", name, *flags],
        env={**os.environ, **threads, **MALLOC[malloc]},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"{name} failed:\n{finished.stderr}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


@dataclass
class Peaks:
    """High-water mark of each phase."""

    base: float = 0.0
    found: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        """Measure peaks relative to the memory that is resident now."""
        gc.collect()
        self.base = _status("VmRSS")
        self._reset()

    def mark(self, phase: str) -> None:
        """End a phase and record its peak."""
        self.found[phase] = max(self.found.get(phase, 0.0), (_status("VmHWM") - self.base) / MIB)
        self._reset()

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark to the resident memory


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _measure(case: Case) -> dict[str, float]:
    from gvpo.training.allocator import keep_freed_memory

    keep_freed_memory()  # has no effect if the environment sets the allocator
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    small = replace(case.workload, prompts_per_step=2, prompt_tokens=8, completion_tokens=8, tokens_per_microbatch=64)
    _run(Case({**case.model, **tiny, **heads}, small), lambda phase: None)
    tokenizer(case.model["vocab_size"])  # the plan does not count its memory
    peaks = Peaks()
    peaks.start()
    _run(case, peaks.mark)
    return peaks.found


def _seconds(case: Case) -> dict[str, dict[str, float]]:
    """Return the seconds of each phase: those of a plan with rates that are measured now, and those of a step."""
    from gvpo.model.cpu.rates import measure_rates
    from gvpo.training.allocator import keep_freed_memory

    keep_freed_memory()
    tokenizer(case.model["vocab_size"])
    found, since = dict[str, float](), [time.process_time()]

    def mark(phase: str) -> None:
        found[phase] = time.process_time() - since[0]
        since[0] = time.process_time()

    _run(case, mark, steps=2)
    model, work = predicted(case)[0], case.workload
    outputs = model.expert_intermediate or model.intermediate
    rates = measure_rates(model.hidden, outputs, work.rows_at_once, half=work.half)
    real = Seconds(found["sampling"], found.get("scoring", 0.0), found["update"] + found["optimizer"])
    return {"planned": asdict(estimate_seconds(model, work, CPU, rates)), "measured": asdict(real)}


def _run(case: Case, mark: Callable[[str], None], steps: int = 1) -> None:
    """Run a small step, which creates the optimizer's moments, and then the case's steps."""
    from gvpo.config import TrainConfig
    from gvpo.model.model import checkpoint_activations, load_model
    from gvpo.model.reference import make_reference
    from gvpo.training import optimizer as optim

    model = load_model(init=case.model)
    model.train()
    if case.workload.lora_rank:
        _adapt(model, case.workload.lora_rank)
    if case.workload.checkpointing:
        checkpoint_activations(model)
    reference = make_reference(model) if case.workload.reference else None
    optimizer = optim.make_optimizer(model, TrainConfig())
    mark("load")
    first = replace(case.workload, prompts_per_step=1, group_size=2, prompt_tokens=4, completion_tokens=4)
    for workload in (first, *[case.workload] * steps):
        _step(workload, model, reference, mark)
        optim.step(optimizer, model.parameters(), rate=1e-6, max_grad_norm=1.0)
        mark("optimizer")


def _adapt(model: Any, rank: int) -> None:
    import peft

    from gvpo.model import lora

    lora.add_adapter(model, peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))


def _step(workload: Workload, model: Any, reference: Any, mark: Callable[[str], None]) -> None:
    import torch

    from gvpo.objectives import gvpo
    from gvpo.update.group_backward import group_backward, score

    def precision() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if workload.half else contextlib.nullcontext()

    with precision():
        _sample(workload, model)
    mark("sampling")
    groups, budget = make_groups(workload, model.config.vocab_size), workload.tokens_per_microbatch
    if reference is not None:
        with precision(), reference.scoring() as frozen:
            scores = iter(score(frozen, groups, tokens_per_microbatch=budget))
        groups = [_with_reference(group, scores) for group in groups]
        mark("scoring")
    with precision():
        objective = partial(gvpo, beta=0.1)
        group_backward(model, groups, objective, tokens_per_microbatch=budget, on_policy=reference is None)
    mark("update")


def make_groups(workload: Workload, vocabulary: int) -> list[Any]:
    """Return random groups of a workload's sizes; every other completion is rewarded."""
    import torch

    from gvpo.types import Completion, Group

    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        drawn: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
        return drawn

    return [
        Group(
            tokens(workload.prompt_tokens),
            [
                Completion(tokens(workload.completion_tokens), reward=float(row % 2))
                for row in range(workload.group_size)
            ],
        )
        for _ in range(workload.prompts_per_step)
    ]


def _with_reference(group: Any, scores: Any) -> Any:
    rows = [replace(row, ref_logprobs=next(scores).logprobs) for row in group.completions]
    return replace(group, completions=rows)


@cache
def tokenizer(size: int) -> Any:
    """Return a tokenizer with all ids of a model, so that the whole head is used."""
    from measure import numbered_tokenizer  # in the same folder, since this file runs as a script

    return numbered_tokenizer(size)


def _sample(workload: Workload, model: Any) -> None:
    """Sample a rollout from prompts of unequal lengths with a model that rarely stops by itself."""
    from gvpo.sampling import Request, SamplingParams
    from gvpo.sampling.transformers import TransformersSampler

    tokens = tokenizer(model.config.vocab_size)
    sampler = TransformersSampler(model, tokens, tokens_per_batch=workload.tokens_per_batch)
    lengths = [max(1, workload.prompt_tokens - number % 2) for number in range(workload.prompts_per_step)]
    requests = [Request(f"prompt-{number}", (3,) * length) for number, length in enumerate(lengths)]
    params = SamplingParams(group_size=workload.group_size, max_tokens=workload.completion_tokens)
    sampler.sample(requests, params, seed=0, step=1)


if __name__ == "__main__":
    main()
