r"""Benchmark of the reward math_answer: mathematical answers scored per second.

    python benchmarks/math_answers.py --data ../shared/data --workers 2

Reads the reference answers of the benchmarks under `--data`, writes completions around them in groups of eight as a
model would (half with the reference answer in the box, half with the answer of another problem), and scores them with a
`RewardPool` several times. Prints the median and the range of answers per second, with warm workers.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gvpo.rewards import RewardBatch, RewardPool, math_answer
from gvpo.rewards.math.math_answer import gold_text

SOURCES = {
    "math500/test.jsonl": "answer",
    "olympiadbench/test.jsonl": "final_answer",
    "amc/amc83_test.jsonl": "answer",
    "aime24/test.jsonl": "answer",
    "minerva/test.jsonl": "answer",
}
REASONING = "We write the sum in another way and find \\boxed{x} first, which is not yet the answer. " * 30


def golds(data: Path) -> list[str]:
    """Return the reference answers of all benchmarks that exist."""
    found = []
    for name, column in SOURCES.items():
        if (data / name).exists():
            found += [gold_text(json.loads(line)[column]) for line in (data / name).read_text().splitlines()]
    if not found:
        sys.exit(f"no benchmarks under {data}; pass their directory with --data")
    return found


def groups(answers: list[str], size: int) -> list[RewardBatch]:
    """Return a group per reference answer: half of its completions give that answer, half another one."""
    draw = random.Random(0)
    made = []
    for gold in answers:
        written = [gold if row % 2 == 0 else draw.choice(answers) for row in range(size)]
        made.append(RewardBatch("", [f"{REASONING}\\boxed{{{text}}}" for text in written], {"answer": gold}))
    return made


def main() -> None:
    """Read the arguments, score, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    batches = groups(golds(settings.data), settings.group_size)
    rates = []
    with RewardPool({"math_answer": math_answer}, workers=settings.workers, timeout=10.0) as pool:
        for _ in range(settings.repeats + 1):
            began = time.perf_counter()
            verdicts = [verdict for group in pool.score(batches) for verdict in group]
            rates.append(len(verdicts) / (time.perf_counter() - began))
    print(f"{len(verdicts)} answers, {settings.workers} workers; first pass, workers starting: {rates[0]:.0f}/s")
    print(f"then {statistics.median(rates[1:]):.0f}/s ({min(rates[1:]):.0f} to {max(rates[1:]):.0f})")
    print(f"timeouts: {sum(verdict.reward is None for verdict in verdicts)}")


if __name__ == "__main__":
    main()
