"""The gain of recurrent models from shared prompts, compared with a dense model of their size.

    python benchmarks/update_forked.py [--rounds 9] [--threads 2] [--json FILE]

For each shape one group goes through `group_backward` with coefficients known in advance (one forward and backward),
with a prompt for each row and with a shared one: masked in the dense model, forked in the others. The passes of a round
follow each other, so that a disturbance of the machine affects all of them. A ratio is the median over rounds of that
round's ratio, followed by the first and third quartile. The last column divides the recurrent model's ratio by the
dense one's of the same round.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import gvpo
from gvpo.model.model import load_model
from gvpo.objectives import gvpo as objective

SIZE = {
    "vocab_size": 32000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
DENSE = "qwen3"
MODELS: dict[str, dict[str, Any]] = {
    DENSE: {"head_dim": 64, "intermediate_size": 1024, "tie_word_embeddings": True},
    "qwen3_next": {
        "head_dim": 64,
        "intermediate_size": 1024,
        "tie_word_embeddings": True,
        "mlp_only_layers": [0, 1, 2, 3],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "lfm2": {"intermediate_size": 1536, "layer_types": ["conv", "conv", "full_attention", "conv"]},
}
GROUP = 8
SHAPES = ((256, 64), (512, 64))
UNEVEN = (512, (16, 24, 40, 64, 96, 160, 280, 512))


def group(prompt: int, completions: Sequence[int]) -> gvpo.Group:
    """Return a group of random tokens."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, SIZE["vocab_size"], (count,), generator=generator).tolist()

    rows = [gvpo.Completion(tokens(length), reward=float(place % 2)) for place, length in enumerate(completions)]
    return gvpo.Group(tokens(prompt), rows)


def seconds(model: PreTrainedModel, groups: Sequence[gvpo.Group], sharing: Any) -> float:
    """Return the seconds of one update that starts without a gradient."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    start = time.perf_counter()
    gvpo.group_backward(
        model, groups, partial(objective, beta=0.1), prefix_sharing=sharing, on_policy=True, tokens_per_microbatch=16384
    )
    return time.perf_counter() - start


def gains(models: dict[str, PreTrainedModel], groups: Sequence[gvpo.Group], rounds: int) -> dict[str, list[float]]:
    """Return the time with a prompt per row over the time with a shared one, for each model and round."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for each in range(rounds + 1):  # the first round warms up
        for name, model in models.items():
            rows, shared = seconds(model, groups, "off"), seconds(model, groups, "on")
            if each:
                found[name].append(rows / shared)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {name: load_model(init={"architecture": name, **SIZE, **own}).train() for name, own in MODELS.items()}
    results = []
    print("| prompt | completions | model | rows / shared | of the dense ratio |\n|---|---|---|---|---|")
    for prompt, completions in [*((prompt, (size,) * GROUP) for prompt, size in SHAPES), UNEVEN]:
        found = gains(models, [group(prompt, completions)], options.rounds)
        for name, values in found.items():
            ratio = spread(values)
            share = spread([own / dense for own, dense in zip(values, found[DENSE], strict=True)])
            results.append({"prompt": prompt, "completions": completions, "model": name, "gain": ratio, "share": share})
            sizes = f"{len(completions)} x {completions[0]}" if len(set(completions)) == 1 else "uneven"
            print(
                f"| {prompt} | {sizes} | {name} | {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) "
                f"| {share['median']:.0%} ({share['low']:.0%} to {share['high']:.0%}) |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
