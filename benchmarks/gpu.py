"""The update on a GPU: whether it is exact, how fast it is, and how near to the bound.

    python benchmarks/gpu.py [--device cuda] [--minutes 8] [--json FILE] [--page docs/internals/benchmarks.md]

First exactness, on two-layer models of real architectures: shared prompts against rows with separate prompts (gradient,
in float32 and bfloat16), a score pass against the push (the same bits), a small budget against a large one. Then speed:
the shapes of update_vs_trl.py and a random model of 1.5 billion parameters, each with shared prompts and without,
compared with TRL if it is installed. Measurements for which no time is left are skipped, and the caption lists them.
`--device cpu --tiny` tries the script.
"""

import argparse
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matmul_bound import Passes, Work, bound_seconds, flops
from measure import circumstances, in_turns, ratio, spread, table, write_json, write_page
from update_cases import LAYERS, SHAPES, Shape

from gvpo import Group, group_backward, load_model, score
from gvpo.objectives import gvpo

BILLION: dict[str, Any] = {  # the sizes of Qwen2.5-1.5B
    "architecture": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
BILLION_SHAPES = {
    "1.5B": Shape(512, (512,) * 8, vocabulary=151_936, groups=2),
    "1.5B long prompt": Shape(4096, (256,) * 8, vocabulary=151_936),
    "1.5B ragged": Shape(512, SHAPES["ragged"].lengths, vocabulary=151_936, groups=2),
}
TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXACT: dict[str, dict[str, Any]] = {
    "qwen2": {"architecture": "qwen2", **TINY},
    "llama": {"architecture": "llama", **TINY},
    "qwen3": {"architecture": "qwen3", **TINY, "head_dim": 32},
    "mistral, window 24": {"architecture": "mistral", **TINY, "sliding_window": 24},
    "qwen3_moe": {"architecture": "qwen3_moe", **TINY, "moe_intermediate_size": 64, "num_experts": 8},
}
RAGGED = Shape(40, (17, 3, 64, 33, 33, 1), vocabulary=512, groups=3)
BUDGET = 32_768


def main() -> None:
    """Check, measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="Use only small shapes, to try the script")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; try the script with --device cpu --tiny")
    warnings.simplefilter("ignore")
    until = time.monotonic() + 60 * options.minutes
    results = {"circumstances": circumstances(torch.get_num_threads()) | {"device": _name(options.device)}}
    results["exact"] = [_exactness(name, options.device) for name in EXACT]
    results["speed"], results["left_out"] = [], []
    for name, make, shape in _cells(tiny=options.tiny):
        if time.monotonic() > until:
            results["left_out"].append(name)
            continue
        results["speed"].append(_speed(name, make, shape, options.device, options.repeats))
        write_json(options.json, results)
    write_json(options.json, results)
    text = markdown(results)
    print(text)
    write_page(options.page, "gpu", text)
    if not all(part["exact"] for part in results["exact"]):
        raise SystemExit("the update is not exact on this device; see the first table")


def markdown(results: dict[str, Any]) -> str:
    """Return both tables with a caption."""
    exact = table(
        ("model", "shared prompts", "score and push", "budget", "gradient in bfloat16"),
        [
            (
                part["model"],
                f"{part['shared']:.0e}",
                "the same bits" if part["same_bits"] else "differ",
                f"{part['budget']:.0e}",
                f"{part['bfloat16']:.1%}",
            )
            for part in results["exact"]
        ],
    )
    speed = table(
        (
            "shape, bfloat16",
            "s",
            "rows s",
            "times faster (range)",
            "GiB",
            "rows GiB",
            "share of bound",
            "TRL s",
            "TRL with gvpo s",
        ),
        [_speed_cells(part) for part in results["speed"]],
    )
    facts = results["circumstances"]
    left = f" Skipped for lack of time: {', '.join(results['left_out'])}." if results["left_out"] else ""
    caption = f"`python benchmarks/gpu.py`, {facts['device']}, {facts['date']}, torch {torch.__version__}.{left}"
    return f"{exact}\n\n{speed}\n\n{caption}"


def _speed_cells(part: dict[str, Any]) -> tuple[str, ...]:
    faster, memory = ratio(part["seconds"], "rows", "shared"), part["memory"]
    theirs = part["seconds"].get("trl")
    return (
        part["shape"],
        f"{spread(part['seconds']['shared'])['median']:.3f}",
        f"{spread(part['seconds']['rows'])['median']:.3f}",
        f"{faster['median']:.1f} ({faster['min']:.1f} to {faster['max']:.1f})",
        f"{memory['shared']:.2f}",
        f"{memory['rows']:.2f}",
        f"{ratio(part['seconds'], 'bound', 'shared')['median']:.0%}",
        part["trl"] if theirs is None else f"{spread(theirs)['median']:.3f}",
        f"{spread(part['seconds']['plugin'])['median']:.3f}" if "plugin" in part["seconds"] else part["plugin"],
    )


def _cells(*, tiny: bool) -> list[tuple[str, Callable[[], Any], Shape]]:
    """Return the name, the function that creates the model, and the shape of each line of the speed table."""
    if tiny:
        return [("tiny", partial(load_model, init=EXACT["llama"]), RAGGED)]
    small = [
        (name, partial(load_model, init={**LAYERS, "vocab_size": shape.vocabulary}), shape)
        for name, shape in SHAPES.items()
    ]
    large = [
        (name, partial(load_model, init={**BILLION, "vocab_size": shape.vocabulary}), shape)
        for name, shape in BILLION_SHAPES.items()
    ]
    return [*large, *small]


def _exactness(name: str, device: str) -> dict[str, Any]:
    """Return the relative L2 between gradients that must be equal, and whether scores have the same bits."""
    model = load_model(init=EXACT[name]).to(device).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)  # distributions far from uniform
    batch = RAGGED.batch(0)
    plain = _gradient(model, batch, prefix_sharing="off")
    shared = _gradient(model, batch, prefix_sharing="on")
    small = _gradient(model, batch, prefix_sharing="on", tokens_per_microbatch=300)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = _gradient(model, batch, prefix_sharing="on")
        scored = score(model, batch)
        pushed = group_backward(model, batch, gvpo, on_policy=True).rows
    found = {
        "model": name,
        "shared": _relative(shared, plain),
        "budget": _relative(small, shared),
        "bfloat16": _relative(half, plain),
        "same_bits": all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(scored, pushed, strict=True)),
    }
    exact = found["shared"] < 1e-4 and found["budget"] < 1e-4 and found["same_bits"]
    return {**found, "exact": exact}


def _gradient(model: Any, batch: Sequence[Group], **settings: Any) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    group_backward(model, batch, gvpo, on_policy=True, **settings)
    return torch.cat([value.grad.double().flatten() for value in model.parameters() if value.grad is not None])


def _relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _speed(name: str, make: Callable[[], Any], shape: Shape, device: str, repeats: int) -> dict[str, Any]:
    """Return times, measured in turns, and peak memory of one line."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    model, batch = make().to(device).train(), shape.batch(0)
    work = Work.of(batch)
    sides: dict[str, Callable[[], Any]] = {
        "shared": partial(_update, model, batch, device, "on"),
        "rows": partial(_update, model, batch, device, "off"),
        "bound": partial(bound_seconds, model, work, Passes(), torch.bfloat16),
    }
    memory = {side: _peak(sides[side], device) for side in ("shared", "rows")}  # also warms up
    trl = {"trl": _trl(make, shape, device, fast=False), "plugin": _trl(make, shape, device, fast=True)}
    sides |= {side: run for side, run in trl.items() if callable(run)}
    seconds = in_turns(sides, repeats)
    return {
        "shape": name,
        "seconds": seconds,
        "memory": memory,
        **{side: "" if callable(run) else run for side, run in trl.items()},
        "gigaflops": flops(model, work, Passes()) / 1e9,
    }


def _update(model: Any, batch: Sequence[Group], device: str, sharing: Any) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        group_backward(model, batch, gvpo, on_policy=True, prefix_sharing=sharing, tokens_per_microbatch=BUDGET)
    _wait(device)


def _trl(make: Callable[[], Any], shape: Shape, device: str, *, fast: bool) -> Callable[[], None] | str:
    """Return TRL's loss and backward on the same batch, or the reason why it cannot run.

    Args:
        make: Function that creates the model.
        shape: Shape of the batch.
        device: Device.
        fast: Whether gvpo's update runs inside TRL's trainer, instead of TRL's own.
    """
    try:
        import trl_side
    except ImportError:
        return "not installed"
    kind = trl_side.FastGRPOTrainer if fast else trl_side.GRPOTrainer
    settings = {"half": True, "use_cpu": device == "cpu", "kind": kind}
    try:
        trainer = trl_side.grpo_trainer(make(), shape.rows, len(shape.lengths), **settings)
        inputs = {key: value.to(device) for key, value in trl_side.inputs_of(shape.batch(0)).items()}
    except (RuntimeError, ValueError, TypeError) as error:
        return f"failed: {type(error).__name__}"

    def update() -> None:
        trainer.model.zero_grad(set_to_none=True)
        if fast:
            trl_side.fast_backward(trainer, inputs, len(shape.lengths))
        else:
            trl_side.backward(trainer, inputs, shape.rows)
        _wait(device)

    try:
        update()
    except torch.OutOfMemoryError:
        return "out of memory"
    return update


def _peak(run: Callable[[], Any], device: str) -> float:
    """Return GiB at the peak of the second call above the use before it, or NaN on a CPU.

    The gradients of the first call are included.
    """
    run()
    if device != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{circumstances(1)['machine']}"


if __name__ == "__main__":
    main()
