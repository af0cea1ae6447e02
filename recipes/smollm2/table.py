"""Compare finished runs: `python table.py DIRECTORY` reads DIRECTORY/ARM-seed-N and prints Markdown.

The table has, per arm, means over seeds with their range: held-out accuracy before and after, and of the answers after
training the KL from the starting model (nats per answer, estimated on these answers) and the length; before and after
the share of different openings (the first three words, where any asked word is the same); and the share of different
answers among those to one prompt in the last step. Below it are the first answers of the first seed.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel

from gvpo import Completion, Group, load_model, runfiles, score
from gvpo.config import TrainConfig
from gvpo.config.recipe import restore_config
from gvpo.runfiles import HELD_OUT, RolloutRow
from gvpo.update.precision import autocast


@dataclass(frozen=True)
class Result:
    """Measurements of one run, and its held-out answers by problem before and after training."""

    numbers: dict[str, float]
    before: list[RolloutRow]
    after: list[RolloutRow]


def kl(model: PreTrainedModel, rows: Sequence[RolloutRow], config: TrainConfig) -> float:
    """Return KL(policy || model) in nats per answer, estimated without bias and with low variance on its own answers.

    The estimate is the mean of the sum over tokens of e^d - d - 1, where d is the model's log-prob minus the policy's.
    """
    import torch

    groups = [Group(row.prompt_tokens, [Completion(row.tokens)]) for row in rows]
    with autocast(config):
        scored = score(model, groups, temperature=config.temperature)
    own = (torch.as_tensor(row.sampler_logprobs) for row in rows)
    differences = [torch.as_tensor(base.logprobs) - policy for base, policy in zip(scored, own, strict=True)]
    return fmean(float((d.exp() - d - 1).sum()) for d in differences)


def distinct(rows: Sequence[RolloutRow]) -> float:
    """Return the share of different answers among those to one prompt, averaged over prompts."""
    texts = defaultdict(list)
    for row in rows:
        texts[row.group].append(row.text.strip())
    return fmean(len(set(group)) / len(group) for group in texts.values())


def opening(row: RolloutRow) -> str:
    """Return the first three words of an answer, with a gap for the word that it must contain."""
    words = re.findall(r"[\w'-]+", row.text.lower())[:3]
    return " ".join("_" if word == row.columns["word"] else word for word in words)


def openings(rows: Sequence[RolloutRow]) -> float:
    """Return the number of different openings per answer, over all problems."""
    return len(set(map(opening, rows))) / len(rows)


def result(run: Path, start: PreTrainedModel) -> Result:
    """Return the measurements of a finished run."""
    summary, config = runfiles.read_json(run / runfiles.SUMMARY), restore_config((run / runfiles.CONFIG).read_text())
    chosen = runfiles.read_json(run / runfiles.ENVIRONMENT).get("compute_dtype", config.compute_dtype)
    config = config.replace(compute_dtype=chosen)
    last = summary["steps"]
    before, after = (runfiles.read_rollouts(runfiles.rollout_path(run, step, HELD_OUT)) for step in (0, last))
    sampled = [row for row in after if row.source != "greedy"]
    numbers = {
        "accuracy before": summary["accuracy_before"],
        "accuracy after": summary["accuracy_after"],
        "KL": kl(start, sampled, config),
        "openings before": openings(before),
        "openings after": openings(sampled),
        "different": distinct(runfiles.read_rollouts(runfiles.rollout_path(run, last))),
        "words": fmean(len(re.findall(r"[\w'-]+", row.text)) for row in sampled),
    }
    return Result(numbers, before, after)


def cell(values: Sequence[float]) -> str:
    """Return the mean of values and their range."""
    return f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Print the table, then the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--model", default="models/smollm2-135m", help="The starting model (default: %(default)s)")
    parser.add_argument("--answers", type=int, default=3, help="Number of problems to show (default: %(default)s)")
    options = parser.parse_args()
    start = load_model(options.model)
    arms: dict[str, list[Result]] = defaultdict(list)
    for run in sorted(options.directory.glob("*-seed-*")):
        if (run / runfiles.SUMMARY).is_file():
            arms[run.name.rpartition("-seed-")[0]].append(result(run, start))
    names = list(next(iter(arms.values()))[0].numbers)
    print(f"| arm | seeds | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for arm, results in arms.items():
        cells = [cell([each.numbers[name] for each in results]) for name in names]
        print(f"| {arm} | {len(results)} | {' | '.join(cells)} |")
    for arm, results in arms.items():
        print(f"\n{arm}\n")
        for old, new in list(zip(results[0].before, results[0].after, strict=True))[: options.answers]:
            answers = (f"{row.text.strip()!r} ({row.reward:g})" for row in (old, new))
            print(f"| {old.columns['word']} | {' | '.join(answers)} |")


if __name__ == "__main__":
    main()
