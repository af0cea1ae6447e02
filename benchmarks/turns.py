"""Episodes of several turns: rows that continue from their caches, and rows that restart with each turn.

    python benchmarks/turns.py [--models scratch smollm2] [--prompts 64 512] [--turns 3 6] [--repeats N] [--json FILE]

Both sides sample the same requests with the same noise, in float32: `TransformersSampler.converse`, and
`Restarting(TransformersSampler)`, whose turns are new requests. They take turns, round by round. After each turn, a row
hears tokens and speaks again; turns end at stop tokens, after 16 tokens in the mean, or at their limit. The model
scratch is random, with 4 layers of width 256 and 32,000 tokens; smollm2 is the model in GVPO_TEST_SMOLLM2.
"""

import argparse
import itertools
import json
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import (
    CLOCKS,
    caption,
    child,
    circumstances,
    in_turns,
    numbered_tokenizer,
    ratio,
    table,
    write_json,
    write_page,
)

PROMPTS, GROUP = 2, 8
"""Number of prompts, and of rows per prompt."""
MEAN, LIMIT, HEARD = 16, 32, (8, 24)
"""Mean number of tokens per turn without its limit, the limit, and the range of the number of tokens that are heard."""
SMOLLM2 = os.environ.get("GVPO_TEST_SMOLLM2", "")


def main() -> None:
    """Measure and print the table, or (in a child) one case."""
    models = ["scratch", "smollm2"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=models, default=models if SMOLLM2 else models[:1])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--turns", nargs="+", type=int, default=[3, 6])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="Page for the table, such as docs/internals/benchmarks.md")
    parser.add_argument("--part", nargs=3, metavar=("MODEL", "PROMPT", "TURNS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        model, prompt, turns = options.part
        print(json.dumps(Episodes(model, int(prompt), int(turns)).timed(options.repeats)))
        return
    results: dict[str, Any] = {"circumstances": circumstances(options.threads, options.clock), "cases": []}
    for model, prompt, turns in itertools.product(options.models, options.prompts, options.turns):
        arguments = ("--part", model, str(prompt), str(turns), "--repeats", str(options.repeats))
        found = child(__file__, *arguments, threads=options.threads, clock=options.clock)
        results["cases"].append({"model": model, "prompt": prompt, "turns": turns, **found})
        write_json(options.json, results)
        print(*_cells(results["cases"][-1]), flush=True)
    write_page(options.page, "turns", markdown(results))
    print(markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """Return the table with its caption."""
    header = ("model, prompt, turns", "restarting, s", "continuing, s", "times faster (range)", "equal tokens")
    rows = [_cells(found) for found in results["cases"]]
    return f"{caption('turns.py', results['circumstances'])}\n\n{table(header, rows)}"


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    seconds = found["seconds"]
    faster = ratio(seconds, "restarting", "continuing")
    return (
        f"{found['model']}, {found['prompt']}, {found['turns']}",
        f"{median(seconds['restarting']):.2f}",
        f"{median(seconds['continuing']):.2f}",
        f"{faster['median']:.2f} ({faster['min']:.2f} to {faster['max']:.2f})",
        f"{found['equal']:.1%}",
    )


class Episodes:
    """Episodes of a model, and a method per side that samples all of them.

    Args:
        model: Name of the model.
        prompt: Number of tokens of each prompt.
        turns: Number of turns.
    """

    def __init__(self, model: str, prompt: int, turns: int) -> None:
        warnings.simplefilter("ignore")
        from gvpo.sampling import Request, SamplingParams
        from gvpo.sampling.transformers import TransformersSampler

        loaded, tokenizer = _loaded(model)
        self._sampler, self._turns, self._calls = TransformersSampler(loaded, tokenizer), turns, 0
        self._vocabulary = loaded.config.vocab_size
        generator = random.Random(0)
        self._requests = [
            Request(str(number), tuple(generator.randrange(self._vocabulary) for _ in range(prompt)))
            for number in range(PROMPTS)
        ]
        stops = tuple(generator.sample(range(self._vocabulary), self._vocabulary // MEAN))
        self._params = SamplingParams(GROUP, turns * (LIMIT + HEARD[1]), stop_token_ids=stops)

    def timed(self, repeats: int) -> dict[str, Any]:
        """Return the seconds of each side in each round, and the share of rows with equal tokens on both sides."""
        said: dict[str, list[Any]] = {"restarting": [], "continuing": []}
        sides = {
            "restarting": lambda: said["restarting"].append(self._restarting(len(said["restarting"]))),
            "continuing": lambda: said["continuing"].append(self._continuing(len(said["continuing"]))),
        }
        in_turns(sides, 1)  # warms up
        seconds = in_turns(sides, repeats)
        pairs = [
            pair
            for one, other in zip(said["restarting"], said["continuing"], strict=True)
            for pair in zip(one, other, strict=True)
        ]
        return {"seconds": seconds, "equal": sum(one == other for one, other in pairs) / len(pairs)}

    def _restarting(self, step: int) -> list[list[int]]:
        from gvpo.sampling.conversation import Restarting

        return self._sampled(Restarting(self._sampler), step)

    def _continuing(self, step: int) -> list[list[int]]:
        return self._sampled(self._sampler, step)

    def _sampled(self, speaker: Any, step: int) -> list[list[int]]:
        """Return the tokens of each row, without those that were heard."""
        conversation = speaker.converse(self._requests, self._params, seed=0, step=step)
        rows = range(PROMPTS * GROUP)
        generator, tokens = random.Random(step), [[] for _ in rows]
        for turn in range(self._turns):
            spoken = conversation.speak(dict.fromkeys(rows, LIMIT))
            for row, completion in spoken.items():
                tokens[row] += completion.tokens
            if turn < self._turns - 1:
                conversation.hear({row: self._heard(generator) for row in rows})
        return tokens

    def _heard(self, generator: random.Random) -> Sequence[int]:
        return [generator.randrange(self._vocabulary) for _ in range(generator.randint(*HEARD))]


def _loaded(model: str) -> tuple[Any, Any]:
    """Return a model in float32 and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from gvpo import load_model

    if model == "smollm2":
        return load_model(SMOLLM2, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(SMOLLM2)
    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    init = {"architecture": "qwen2", "vocab_size": 32_000, "tie_word_embeddings": True, **sizes, **heads}
    return load_model(init=init).eval(), numbered_tokenizer(32_000)


if __name__ == "__main__":
    main()
