"""Which implementations of exclusion sample from the same distribution, and how much do the others differ?

    python benchmarks/exclusion.py

Trains a small model on the letters of this repository's pages, then continues texts from them without the letter "e",
with each implementation and with the same noise. docs/internals/measurements.md explains the columns. It also
measures the effect of the masked softmax itself: the log-prob of whole short texts sampled by it, plain and weighted by
`sequence_weights`, compared with texts sampled freely of which those with the letter are discarded.
"""

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gvpo.model import load_model
from gvpo.model.fresh_tokenizer import fresh_tokenizer
from gvpo.sampling.draw import inverse_cdf
from gvpo.sampling.exclusion import (
    CompiledExclusion,
    compile_exclusion,
    effective_size,
    log_acceptance,
    parse_exclusion,
    sequence_weights,
)
from gvpo.sampling.exclusion.exclusion import State, exclude

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, PROMPT, LENGTH, SHORT = 96, 24, 48, 8
SEEDS = range(10)
T_95 = 2.262  # Student's t for 10 seeds


@dataclass(frozen=True)
class Setting:
    """Operations before or after the mask: penalty, temperature and filters."""

    name: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    penalty: float = 1.0

    def penalise(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Apply Transformers' repetition penalty."""
        return scores if self.penalty == 1 else RepetitionPenaltyLogitsProcessor(self.penalty)(ids, scores)

    def cut(self, scores: Tensor) -> Tensor:
        """Apply temperature, top-k and top-p."""
        none, scores = torch.empty(0), scores / self.temperature
        scores = TopKLogitsWarper(self.top_k)(none, scores) if self.top_k else scores
        return TopPLogitsWarper(self.top_p)(none, scores) if self.top_p < 1 else scores


@dataclass(frozen=True)
class Step:
    """Inputs of an implementation: ids so far [B, L], logits [B, V], and the mask of allowed tokens [B, V]."""

    ids: Tensor
    logits: Tensor
    allowed: Tensor

    def masked(self, scores: Tensor, value: float = -math.inf) -> Tensor:
        """Return the scores with `value` in the place of banned tokens."""
        return scores.masked_fill(~self.allowed, value)


Implementation = Callable[[Step, Setting], Tensor]
"""Function from a step and a setting to scores, which go through a softmax."""


def first(step: Step, setting: Setting) -> Tensor:
    """Apply the penalty, set -inf, then apply temperature and filters; this is the reference."""
    return setting.cut(step.masked(setting.penalise(step.ids, step.logits)))


def before_penalty(step: Step, setting: Setting) -> Tensor:
    """Set -inf, then apply the penalty."""
    return setting.cut(setting.penalise(step.ids, step.masked(step.logits)))


def log_q(step: Step, setting: Setting) -> Tensor:
    """Replace the logits by log Q; the penalty then receives only negative numbers."""
    return setting.cut(setting.penalise(step.ids, step.masked(step.logits).log_softmax(-1)))


def finite(value: float) -> Implementation:
    """Set a finite number in place of minus infinity."""
    return lambda step, setting: setting.cut(step.masked(setting.penalise(step.ids, step.logits), value))


def bias(value: float) -> Implementation:
    """Add a number to banned logits, as APIs offer it."""
    return lambda step, setting: setting.cut(
        torch.where(step.allowed, setting.penalise(step.ids, step.logits), step.logits + value)
    )


def last(step: Step, setting: Setting) -> Tensor:
    """Apply the mask after the filters."""
    return step.masked(setting.cut(setting.penalise(step.ids, step.logits)))


def probabilities(step: Step, setting: Setting) -> Tensor:
    """Return renormalised probabilities as if they were logits."""
    return setting.cut(step.masked(setting.penalise(step.ids, step.logits)).softmax(-1))


IMPLEMENTATIONS: dict[str, Implementation] = {
    "-inf, then temperature, top-k, top-p (masked softmax)": first,
    "log Q in the place of logits": log_q,
    "-1e4 in the place of -inf": finite(-1e4),
    "logit bias -100": bias(-100.0),
    "logit bias -5": bias(-5.0),
    "-inf after top-k and top-p": last,
    "probabilities passed on as logits": probabilities,
}
PENALISED: dict[str, Implementation] = {
    "penalty, then -inf (masked softmax)": first,
    "-inf, then penalty": before_penalty,
    "log Q, then penalty": log_q,
}
CASES = [
    (Setting("temperature 1"), IMPLEMENTATIONS),
    (Setting("temperature 0.7, top-k 5, top-p 0.9", 0.7, 5, 0.9), IMPLEMENTATIONS),
    (Setting("repetition penalty 1.3", penalty=1.3), PENALISED),
]


def trained(steps: int) -> tuple[Any, Any, list[int]]:
    """Return a small model of letters, its tokenizer, and text that it was not trained on."""
    pages = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    tokenizer = fresh_tokenizer(sorted(set(text)))
    ids = tokenizer(text).input_ids
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": len(tokenizer)}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = load_model(init={"architecture": "qwen2", **shape, **ends})
    seen, held = ids[: -len(ids) // 10], ids[-len(ids) // 10 :]
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(steps):
        starts = [draw.randrange(len(seen) - CONTEXT) for _ in range(32)]
        batch = torch.tensor([seen[start : start + CONTEXT] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{len(tokenizer)} letters, {steps} steps, loss {loss.item():.2f} nats per letter\n")
    return model.eval(), tokenizer, held


def pieces(text: Sequence[int], count: int, length: int, seed: int) -> Tensor:
    """Return [count, length] pieces of text."""
    starts = random.Random(seed).sample(range(len(text) - length), count)
    return torch.tensor([text[start : start + length] for start in starts])


@dataclass(frozen=True)
class Found:
    """Measurements of one implementation, setting and seed."""

    score: float
    distance: float
    empty: float
    banned: float


@torch.no_grad()
def sample(
    model: Any, prompts: Tensor, exclusion: CompiledExclusion, how: Implementation, setting: Setting, seed: int
) -> Found:
    """Continue the prompts and compare each step with the masked softmax."""
    noise = torch.rand(LENGTH, len(prompts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    states: Sequence[State] = [exclusion.start] * len(prompts)
    ids, cache, scores, distance, empty, banned = prompts, None, [], 0.0, 0, 0
    for uniforms in noise:
        output = model(input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
        logits, cache = output.logits[:, -1].double(), output.past_key_values
        step = Step(ids, logits, exclude(logits, states, exclusion).scores > -math.inf)
        reference, found = first(step, setting).softmax(-1), how(step, setting).softmax(-1)
        nothing = found.isnan().any(-1, keepdim=True)
        found = torch.where(nothing, reference, found)  # the row can continue; others would stop with an error
        distance = max(distance, float((found - reference).abs().sum(-1).max()) / 2)
        tokens = inverse_cdf(found, uniforms)
        empty += int(nothing.sum())
        banned += int((~step.allowed.gather(-1, tokens[:, None])).sum())
        scores.append(logits.log_softmax(-1).gather(-1, tokens[:, None]))
        ids = torch.cat([ids, tokens[:, None]], dim=-1)
        states = [exclusion.advance(exclusion.start, int(token)) for token in tokens]  # single letters: no memory
    return Found(float(torch.cat(scores).mean()), distance, empty / noise.numel(), banned / noise.numel())


def row(name: str, found: Sequence[Found], reference: Sequence[Found]) -> str:
    """Return a line of the table."""
    scores = [one.score for one in found]
    differences = [one.score - other.score for one, other in zip(found, reference, strict=True)]
    interval = T_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return (
        f"| {name} | {max(one.distance for one in found):.1e} | {statistics.mean(one.empty for one in found):.1%} | "
        f"{statistics.mean(one.banned for one in found):.2%} | {statistics.mean(scores):.4f} | "
        f"{statistics.stdev(scores):.4f} | {statistics.mean(differences):+.4f} ± {interval:.4f} |"
    )


@dataclass(frozen=True)
class Texts:
    """Short texts after one prompt: log P of each [B], sums of log P(allowed) [B], and whether each is allowed [B]."""

    scores: Tensor
    sums: Tensor
    good: Tensor


@torch.no_grad()
def short_texts(model: Any, prompt: Tensor, exclusion: CompiledExclusion, rows: int, seed: int, *, free: bool) -> Texts:
    """Sample texts, with the exclusion or freely."""
    noise = torch.rand(SHORT, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ids, cache = prompt.expand(rows, -1), None
    scores, sums = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    good = torch.ones(rows, dtype=torch.bool)
    for uniforms in noise:
        output = model(input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
        logits, cache = output.logits[:, -1].double(), output.past_key_values
        found = exclude(logits, [exclusion.start] * rows, exclusion)
        tokens = inverse_cdf((logits if free else found.scores).softmax(-1), uniforms)[:, None]
        scores += logits.log_softmax(-1).gather(-1, tokens)[:, 0]
        good &= found.scores.gather(-1, tokens)[:, 0] > -math.inf
        sums += found.log_allowed
        ids = torch.cat([ids, tokens], dim=-1)
    return Texts(scores, sums, good)


def whole_texts(model: Any, prompts: Tensor, exclusion: CompiledExclusion, rows: int) -> None:
    """Print the table of whole texts: means over prompts, and their standard deviation over seeds."""
    table: dict[str, list[list[float]]] = {"masked softmax": [], "the same, weighted": [], "sampled freely, kept": []}
    for seed in SEEDS:
        sums = torch.zeros(3, 3, dtype=torch.float64)
        for place, prompt in enumerate(prompts[:, None]):
            drawn = short_texts(model, prompt, exclusion, rows, 1000 * seed + place, free=False)
            kept = short_texts(model, prompt, exclusion, rows, 1000 * seed + place + 500, free=True)
            weights, allowed = sequence_weights(drawn.sums), math.exp(log_acceptance(drawn.sums))
            worth, share = effective_size(weights) / rows, float(kept.good.double().mean())
            sums[0] += torch.tensor([float(drawn.scores.mean()), math.nan, 1.0])
            sums[1] += torch.tensor([float((weights * drawn.scores).mean()), allowed, worth])
            sums[2] += torch.tensor([float(kept.scores[kept.good].mean()), share, share])
        for values, line in zip(table.values(), (sums / len(prompts)).tolist(), strict=True):
            values.append(line)
    print(f"**whole texts of {SHORT} letters, {len(prompts)} prompts, {rows} texts each**\n")
    print("| Texts | log P of a text | sd | difference from kept | P(allowed) | worth of a text |")
    print("|---|---|---|---|---|---|")
    exact = [line[0] for line in table["sampled freely, kept"]]
    for name, lines in table.items():
        scores = [line[0] for line in lines]
        differences = [one - other for one, other in zip(scores, exact, strict=True)]
        interval = T_95 * statistics.stdev(differences) / math.sqrt(len(differences))
        allowed, worth = (statistics.mean(line[column] for line in lines) for column in (1, 2))
        print(
            f"| {name} | {statistics.mean(scores):.3f} | {statistics.stdev(scores):.3f} | "
            f"{statistics.mean(differences):+.3f} ± {interval:.3f} | {allowed:.3f} | {worth:.2f} |".replace("nan", "")
        )


def main() -> None:
    """Read the arguments, train, sample and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="Training steps of the model")
    parser.add_argument("--rows", type=int, default=64, help="Number of texts per seed; there are 10 seeds")
    settings = parser.parse_args()
    model, tokenizer, held = trained(settings.steps)
    exclusion = compile_exclusion(parse_exclusion(ban="[eE]"), model, tokenizer)
    for setting, implementations in CASES:
        print(f"**{setting.name}**\n")
        print("| Implementation | largest distance | nothing left | banned sampled | score | sd | difference |")
        print("|---|---|---|---|---|---|---|")
        reference: list[Found] = []
        for name, how in implementations.items():
            starts = [(pieces(held, settings.rows, PROMPT, seed), seed) for seed in SEEDS]
            found = [sample(model, prompts, exclusion, how, setting, seed) for prompts, seed in starts]
            reference = reference or found
            print(row(name, found, reference), flush=True)
        print()
    whole_texts(model, pieces(held, 20, PROMPT, seed=0), exclusion, rows=400)


if __name__ == "__main__":
    main()
