"""Benchmark of the report of a large run: time to write it, time to open it, and its size.

    python benchmarks/report_open.py --groups 10000 --group-size 8 --tokens 300

Creates a run directory with random completions, writes its report, opens it in a headless Chromium several times, and
prints the medians. `first groups` is the time from navigation until the viewer shows its list and its first
group (`performance.now()` of the page); `all steps` and `search` are the times of those two interactions.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gvpo.report import write_report
from gvpo.runfiles import RolloutRow
from gvpo.training.checkpoint.run_directory import RunDirectory
from tests.report.browser import CHROMIUM, Browser

WORDS = ("so", "the", "sum", "of", "both", "sides", "is", "now", "equal", "half", "its", "area", "carry", "one", "two")


def tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte."""
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def completion(
    ids: dict[str, int], step: int, group: int, row: int, tokens: int, rng: np.random.Generator
) -> RolloutRow:
    """Return a completion of random words with its log-probs."""
    text = " ".join(rng.choice(WORDS, size=tokens // 3))[:tokens]
    logprobs = -rng.exponential(0.4, size=len(text)).astype(np.float32)
    reward = float(rng.random() < 0.5)
    return RolloutRow(
        step=step,
        group=f"problem/{group}",
        row=row,
        prompt=f"Solve the problem and put the answer in a box.\n\nWhat is {group} + {group * 7 % 1009}?",
        prompt_tokens=[1],
        text=text,
        tokens=[ids.get(letter, ids["\u0120"]) for letter in text],
        reward=reward,
        reward_parts={"answer": reward, "format": 1.0},
        weight=(reward - 0.5) / 100,
        implicit_reward=float(rng.normal()),
        logprobs=logprobs,
        ref_logprobs=logprobs + rng.normal(0, 0.1, size=len(text)).astype(np.float32),
        version=step,
    )


def make_run(path: Path, args: argparse.Namespace) -> Path:
    """Write the run directory."""
    rng = np.random.default_rng(0)
    run = RunDirectory.create(path, config="{}")
    made = tokenizer()
    run.checkpoint_path(args.steps).mkdir(parents=True)
    made.save(str(run.checkpoint_path(args.steps) / "tokenizer.json"))
    ids = made.get_vocab()
    for step in range(1, args.steps + 1):
        run.append_metrics({"step": step, "reward/mean": 0.5})
        groups = range((step - 1) * args.groups // args.steps, step * args.groups // args.steps)
        run.write_rollouts(
            step,
            [completion(ids, step, group, row, args.tokens, rng) for group in groups for row in range(args.group_size)],
        )
    return path


def open_page(page: Path, groups: int) -> dict[str, float]:
    """Return the seconds of one visit, in a new browser."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Browser(Path(profile)) as browser:
        browser.look()
        browser.open(page)
        found = {"first groups": browser.evaluate("performance.getEntriesByName('groups-shown')[0].startTime") / 1000}
        began = time.perf_counter()
        browser.click("#all-steps")
        browser.wait(f"document.querySelector('.item').ariaSetSize == {groups}")
        found["all steps"] = time.perf_counter() - began
        found["elements in the viewer"] = browser.evaluate("document.querySelectorAll('#viewer *').length")
        began = time.perf_counter()
        browser.click("#search")
        browser.type("no such text")
        browser.wait("document.querySelector('.status').textContent.startsWith('0 of')")
        found["search"] = time.perf_counter() - began
        return found


def main() -> None:
    """Measure and print the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300, help="Number of tokens per completion")
    parser.add_argument("--steps", type=int, default=100, help="Number of rollout files")
    parser.add_argument("--visits", type=int, default=3)
    args = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("Chromium is not installed on this machine; Debian's package is called chromium")
    with tempfile.TemporaryDirectory() as directory:
        run = make_run(Path(directory) / "run", args)
        began = time.perf_counter()
        page = write_report([run], Path(directory) / "report.html")
        print(f"written in {time.perf_counter() - began:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
        visits = [open_page(page, args.groups) for _ in range(args.visits)]
        for name in visits[0]:
            values = [visit[name] for visit in visits]
            print(f"{name}: median {statistics.median(values):.2f}, from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
