"""Train a small model that solves some GSM8K-like word problems, and write groups of its samples to fit a probe on.

`python word_problems.py --out DIRECTORY` creates a tokenizer and a randomly initialized Qwen2 of width 64 and trains it
on worked solutions, a fraction of which are careless and stop after the first step. While the model still makes
mistakes, it samples k completions per problem and scores them with the reward `gsm8k`. It writes `model/`,
`train.jsonl` and `held-out.jsonl` in the row format of `gvpo probe` and offline training.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gvpo
from gvpo.data import TASKS
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.model.model import save_model
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, collect
from gvpo.rollout.group_file import records

NAMES, THINGS = ("Ann", "Ben", "Eve", "Tom"), ("pens", "eggs", "coins", "books")
MORE, LESS = ("buys", "finds"), ("loses", "gives away")
WORDS = (*NAMES, *THINGS, *MORE, *LESS, "has", "more", "then", "How many are left?", " ", ",", ".", "\n", "####")
VOCABULARY = [*WORDS, *"0123456789", "+", "-", "="]
HELD_OUT = 5
"""One in this many triples of numbers is held out, regardless of the words around them."""


def rows(count: int, seed: int, *, held_out: bool) -> list[dict[str, str]]:
    """Return problems in GSM8K's form, {question, answer}, with held-out numbers or with the others."""
    rng = random.Random(f"word problems/{seed}/{held_out}")
    found = []
    while len(found) < count:
        have, more = rng.randrange(2, 30), rng.randrange(2, 30)
        less = rng.randrange(2, have + more)
        if ((have + 3 * more + 7 * less) % HELD_OUT == 0) == held_out:
            found.append(row(rng, have, more, less))
    return found


def row(rng: random.Random, have: int, more: int, less: int) -> dict[str, str]:
    """Return one problem of two steps."""
    name, thing, gets, gives = (rng.choice(words) for words in (NAMES, THINGS, MORE, LESS))
    question = f"{name} has {have} {thing}, {gets} {more} more, then {gives} {less}. How many are left?"
    total = have + more
    steps = f"{have}+{more}={total}\n{total}-{less}={total - less}"
    return {"question": question, "answer": f"{steps}\n#### {total - less}"}


def problems(count: int, seed: int, *, held_out: bool) -> list[gvpo.Problem]:
    """Return the rows as problems of the task `gsm8k`, with distinct ids."""
    split = "eval" if held_out else "train"
    return TASKS["gsm8k"].read(rows(count, seed, held_out=held_out), split, instruction="\n")


def demonstrations(count: int, seed: int, careless: float) -> list[dict[str, str]]:
    """Return problems with solutions, a fraction of which omits the second step."""
    rng = random.Random(f"careless/{seed}")
    return [
        {"prompt": one.prompt, "completion": _hasty(solution) if rng.random() < careless else solution}
        for one in problems(count, seed, held_out=False)
        for solution in [one.columns["solution"]]
    ]


def _hasty(solution: str) -> str:
    """Return the first step of a solution, with its result as the answer."""
    first = solution.partition("\n")[0]
    return f"{first}\n#### {first.partition('=')[2]}"


def make_model(out: Path, seed: int, steps: int, worked: list[dict[str, str]]) -> Path:
    """Train a randomly initialized model on solutions, and return its directory."""
    tokenizer = fresh_tokenizer(VOCABULARY)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = gvpo.load_model(init={"architecture": "qwen2", **size, **heads, **ids}, seed=seed)
    settings = {"objective": "sft", "steps": steps, "prompts_per_step": 64, "learning_rate": 3e-3, "seed": seed}
    args = gvpo.TrainConfig(run_dir=out / "run", eval_problems=0, schedule="linear", rollouts_every=0, **settings)
    gvpo.Trainer(model, args=args, train_dataset=worked, processing_class=tokenizer).train()
    save_model(model, tokenizer, out / "model")
    return out / "model"


def write_groups(path: Path, model: Path, items: Sequence[gvpo.Problem], k: int, seed: int) -> float:
    """Sample and score k completions of each problem, write them, and return the mean reward."""
    tokenizer = gvpo.load_tokenizer(model)
    sampler = gvpo.TransformersSampler(gvpo.load_model(model), tokenizer)
    encoded = [EncodedProblem(one, tuple(tokenizer(one.prompt).input_ids)) for one in items]
    params = gvpo.SamplingParams(group_size=k, max_tokens=32)
    with RewardPool({"gsm8k": gvpo.rewards.gsm8k}, workers=1) as pool:
        rollout = collect(encoded, sampler, params, pool, seed=seed, step=0)
    path.write_text("".join(json.dumps(one) + "\n" for one in records(rollout)), encoding="utf-8")
    rewards = [verdict.reward or 0.0 for group in rollout.verdicts for verdict in group]
    return sum(rewards) / len(rewards)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Write the model and the groups, and print the fraction of correct samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Directory for model and groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=700, help="Number of training steps; fewer steps make a worse model"
    )
    parser.add_argument("--demonstrations", type=int, default=20_000, help="Number of worked solutions for training")
    parser.add_argument(
        "--careless", type=float, default=0.5, help="Fraction of the worked solutions that stop too early"
    )
    parser.add_argument("--train", type=int, default=150, help="Number of prompts for fitting")
    parser.add_argument("--held-out", type=int, default=150, help="Number of prompts for evaluation")
    parser.add_argument("--k", type=int, default=48, help="Number of samples per prompt")
    options = parser.parse_args(arguments)
    worked = demonstrations(options.demonstrations, options.seed, options.careless)
    model = make_model(options.out, options.seed, options.steps, worked)
    means = {}
    for name, count, held_out in (("train", options.train, False), ("held-out", options.held_out, True)):
        items = problems(count, options.seed + 1, held_out=held_out)
        means[name] = write_groups(options.out / f"{name}.jsonl", model, items, options.k, options.seed)
        print(f"{options.out / name}.jsonl: {count} prompts x {options.k}, {means[name]:.3f} correct")
    return means


if __name__ == "__main__":
    main()
