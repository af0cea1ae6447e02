"""Write candidates for MBPP without a model: reference solutions and altered copies, scored in the sandbox.

`python mbpp.py --data mbpp.jsonl --out DIRECTORY` alters each reference solution in one random place (an operator, a
constant, a condition, a return value, or only a name), scores each candidate with the reward `code_tests`, and writes
`train.jsonl` and `held-out.jsonl` for `gvpo probe`. With --model-steps it also trains a small causal model on the
training problems' solutions and writes `model/`, for features. It demonstrates the path from code to a choice; the gain
of a probe on these candidates says nothing about code that a model writes.
"""

import argparse
import ast
import builtins
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import gvpo
from gvpo.data import TASKS
from gvpo.model.model import save_model
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rewards.code.forms import parse_quietly

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv, ast.FloorDiv: ast.Div}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
END, PAD = "<end>", "<pad>"


def altered(source: str, rng: random.Random) -> str | None:
    """Return the source with one change, formatted by `ast.unparse`, or None if it cannot be changed."""
    tree = parse_quietly(source)
    changes = list(_changes(tree))
    if not changes:
        return None
    rng.choice(changes)(rng)
    return ast.unparse(ast.fix_missing_locations(tree))


def _changes(tree: ast.Module) -> Iterator[Any]:
    """Yield functions that each change one place of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield lambda rng, node=node: setattr(node, "op", OPERATORS[type(node.op)]())
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield lambda rng, node=node: node.ops.__setitem__(0, COMPARISONS[type(node.ops[0])]())
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield lambda rng, node=node: setattr(node, "value", node.value + rng.choice((-1, 1)))
        if isinstance(node, ast.If | ast.While):
            yield lambda rng, node=node: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
        if isinstance(node, ast.Return) and node.value is not None:
            yield lambda rng, node=node: setattr(node, "value", ast.Constant(None))
    for name in sorted(_local_names(tree)):
        yield lambda rng, name=name: _rename(tree, name, f"{name}_{rng.randrange(10)}")


def _local_names(tree: ast.Module) -> set[str]:
    """Return names that functions assign, since renaming them does not change the result."""
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return {name for name in stored if not hasattr(builtins, name)}


def _rename(tree: ast.Module, old: str, new: str) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = new


def candidates(source: str, k: int, rng: random.Random) -> list[str]:
    """Return at most k different programs, including the reference, in random order."""
    found = {ast.unparse(parse_quietly(source)): None}
    for _ in range(20 * k):
        changed = altered(source, rng)
        if changed is not None and len(found) < k:
            found[changed] = None
    listed = list(found)
    rng.shuffle(listed)
    return listed


def write_groups(path: Path, items: Sequence[gvpo.Problem], k: int, seed: int, workers: int) -> float:
    """Score the candidates of each problem, write them, and return the mean reward."""
    programs = [candidates(one.columns["solution"], k, random.Random(f"{seed}/{one.id}")) for one in items]
    batches = [RewardBatch(one.prompt, texts, one.columns) for one, texts in zip(items, programs, strict=True)]
    with RewardPool({"code_tests": gvpo.rewards.code_tests}, workers=workers, timeout=120) as pool:
        verdicts = pool.score(batches)
    groups = [
        {"id": one.id, "prompt": one.prompt, "completions": texts, "rewards": [verdict.reward for verdict in judged]}
        for one, texts, judged in zip(items, programs, verdicts, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
    rewards = [reward for group in groups for reward in group["rewards"] if reward is not None]
    return sum(rewards) / len(rewards)


def make_model(out: Path, items: Sequence[gvpo.Problem], steps: int, seed: int) -> Path:
    """Train a byte-pair tokenizer and a small Qwen2 on the solutions of some problems, and return their directory."""
    rows = [{"prompt": one.prompt, "completion": ast.unparse(parse_quietly(one.columns["solution"]))} for one in items]
    tokenizer = _tokenizer([text for row in rows for text in row.values()])
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = gvpo.load_model(init={"architecture": "qwen2", **size, **heads, **ids}, seed=seed)
    settings = {"objective": "sft", "steps": steps, "prompts_per_step": 8, "learning_rate": 2e-3, "seed": seed}
    args = gvpo.TrainConfig(run_dir=out / "run", eval_problems=0, schedule="linear", rollouts_every=0, **settings)
    fitting = [row for row in rows if len(tokenizer(row["prompt"] + row["completion"]).input_ids) < 900]
    gvpo.Trainer(model, args=args, train_dataset=fitting, processing_class=tokenizer).train()
    save_model(model, tokenizer, out / "model")
    return out / "model"


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1000, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Write the groups and the model, and print the fraction of candidates that pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="MBPP as JSONL (default: download from the Hub)")
    parser.add_argument("--out", type=Path, required=True, help="Directory for model and groups")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=120, help="Number of problems for fitting")
    parser.add_argument("--held-out", type=int, default=80, help="Number of problems for evaluation")
    parser.add_argument("--k", type=int, default=8, help="Number of candidates per problem")
    parser.add_argument("--workers", type=int, default=2, help="Number of concurrent sandboxes")
    parser.add_argument(
        "--model-steps", type=int, default=0, help="Number of training steps of a small model; 0 trains none"
    )
    options = parser.parse_args(arguments)
    chosen = {
        name: TASKS["mbpp"].problems(split, count, options.seed, path=options.data)
        for name, split, count in (("train", "train", options.train), ("held-out", "eval", options.held_out))
    }
    if options.model_steps:
        everything = TASKS["mbpp"].problems("train", 1000, options.seed, path=options.data)
        make_model(options.out, everything, options.model_steps, options.seed)
    means = {}
    for name, items in chosen.items():
        means[name] = write_groups(options.out / f"{name}.jsonl", items, options.k, options.seed, options.workers)
        print(f"{options.out / name}.jsonl: {len(items)} problems, {means[name]:.3f} of the candidates pass")
    return means


if __name__ == "__main__":
    main()
